"""The ledger on PostgreSQL and the simulator's in memory, played the same histories: every answer
is the same, and so are all rows at the end. Histories are drawn by a seed, with stale and forged
attempts, leases and deadlines that are over, and verbs that make no sense where they come."""

import datetime as dt
import random
import uuid
from collections import Counter

import pytest
from sqlalchemy import inspect, select, text

from manylora.errors import ManyloraError
from manylora.ledger import jobs, leases
from manylora.ledger.states import FINAL
from manylora.ledger.tables import Adapter, Attempt, Checkpoint, Event, Job
from scheduler.simulate.books import Books
from tests.manylora.ledger.conftest import HEX

KINDS = ("lost", "oom", "infra")
LENGTH = 80


class Both:
    """One ledger and the other."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.now = 0.0
        self.books = Books(lambda: self.now)
        self.ids = []
        self.tick()

    def tick(self):
        """Memory's time is the database's."""
        with self.ledger.transaction() as tx:
            self.now = float(tx.scalar(text("SELECT extract(epoch FROM clock_timestamp())")))

    def create(self):
        self.ids.append(self.ledger.job("validating_files"))
        self.books.create(self.ids[-1])

    def play(self, name, real, memory):
        """Both do it; both answers are equal."""
        self.tick()
        answers = []
        for do in (real, memory):
            try:
                if do is real:
                    with self.ledger.transaction() as tx:
                        answers.append(do(tx))
                else:
                    answers.append(do())
            except ManyloraError as error:
                answers.append((type(error).__name__, error.message, error.details))
        assert answers[0] == answers[1], name
        return answers[0]


def shown(job):
    """What both ledgers tell of a job."""
    if isinstance(job, dict):
        return job["state"], job["attempt"], job["wish"]
    return job.state, job.attempt, job.wish


def verbs(both, draw, job_id):
    """name -> (on PostgreSQL, in memory), with arguments drawn now."""
    books, mine = both.books, both.ledger
    now = books.jobs[job_id]["attempt"]
    n = draw.choice((now, now, now, now, now - 1, now + 1))
    long, short = draw.choice((60, 60, -1)), draw.choice((60, -1))
    step, spent = draw.randint(1, 9), draw.random()
    total = draw.choice((None, 9))
    kind, counts, most = draw.choice(KINDS), draw.random() < 0.6, draw.choice((None, 1, 2))
    times = draw.choice((0, 1, 50))
    unique = f"ft:{uuid.UUID(int=draw.getrandbits(128))}"
    tenant = mine.tenant.id
    worker = dict(actor="w", reason="r", counts=counts, kind=kind, most_failures=most)
    renewal = dict(step=step, device_seconds=spent, total_steps=total)
    failing = dict(worker_id="w", code="c", message="m")

    def own(ids):
        return sorted(set(ids) & set(both.ids))

    def again(hints):
        return sorted(h for h in hints if h[1] in both.ids)

    def rescue_(tx, **more):
        return own(leases.rescue(tx, limit=10_000, **more))

    leave = draw.random() < 0.7
    return {
        "accept": (
            lambda tx: shown(jobs.move(tx, job_id, "accept", actor="s", examples=3)),
            lambda: shown(books.move(job_id, "accept", actor="s", examples=3)),
        ),
        "reject": (
            lambda tx: shown(
                jobs.move(tx, job_id, "reject", actor="s", code="c", told="t", param="p")
            ),
            lambda: shown(books.move(job_id, "reject", actor="s", code="c", told="t", param="p")),
        ),
        "dispatch": (
            lambda tx: leases.dispatch(
                tx, job_id, queue="q", deadline_seconds=long, resend_seconds=short
            ),
            lambda: books.dispatch(job_id, queue="q", deadline=long, resend=short),
        ),
        "resend": (
            lambda tx: again(leases.resend(tx, resend_seconds=short, limit=10_000)),
            lambda: again(books.resend(resend=short)),
        ),
        "claim": (
            lambda tx: shown(leases.claim(tx, job_id, n, worker_id="w", ttl_seconds=long)),
            lambda: shown(books.claim(job_id, n, worker_id="w", ttl=long)),
        ),
        "renew": (
            lambda tx: leases.renew(tx, job_id, n, ttl_seconds=long, points=[], **renewal),
            lambda: books.renew(job_id, n, ttl=long, **renewal),
        ),
        "record": (
            lambda tx: mine.checkpoint(tx, job_id, n, step=step),
            lambda: books.record(job_id, n, step=step, digest=HEX),
        ),
        "publish": (
            lambda tx: leases.publish(
                tx, job_id, n, worker_id="w", tokens=9,
                adapter=mine.adapter(job_id, n, name=unique),
            ),
            lambda: books.publish(job_id, n, worker_id="w", tokens=9, name=unique),
        ),
        "fail": (
            lambda tx: leases.fail(tx, job_id, n, kind="user", **failing),
            lambda: books.fail(job_id, n, kind="user", **failing),
        ),
        "release": (
            lambda tx: leases.release(tx, job_id, n, **worker),
            lambda: books.release(job_id, n, **worker),
        ),
        "preempt": (
            lambda tx: leases.preempt(tx, job_id, n, most_preemptions=times),
            lambda: books.preempt(job_id, n, most_preemptions=times),
        ),
        "rescue": (
            lambda tx: rescue_(tx, leases=leave, most_failures=most),
            lambda: own(books.rescue(leases=leave, most_failures=most)),
        ),
        "close": (
            lambda tx: leases.close(tx, job_id, n, "left"),
            lambda: books.close(job_id, n, "left"),
        ),
        "cancel": (
            lambda tx: shown(jobs.cancel(tx, tenant, job_id)),
            lambda: shown(books.cancel(job_id)),
        ),
        "pause": (
            lambda tx: shown(jobs.pause(tx, tenant, job_id)),
            lambda: shown(books.pause(job_id)),
        ),
        "resume": (
            lambda tx: shown(jobs.resume(tx, tenant, job_id)),
            lambda: shown(books.resume(job_id)),
        ),
    }  # fmt: skip


#: what makes sense in a state; three times of four it is one of these
SENSIBLE = {
    "validating_files": ["accept"] * 8 + ["pause", "reject"],
    "queued": ["dispatch"] * 6 + ["pause"],
    "dispatched": ["claim"] * 5 + ["rescue", "resend", "pause"],
    "running": ["renew", "renew", "record", "release", "release", "rescue", "preempt", "pause",
                "resume", "publish", "fail"],
    "paused": ["resume"] * 4,
}  # fmt: skip


def next_verb(both, draw, job_id, names):
    sensible = SENSIBLE.get(both.books.jobs[job_id]["state"])
    return draw.choice(sensible if sensible and draw.random() < 0.75 else names)


def same(mine, theirs, columns, where):
    for column in columns:
        one, other = getattr(mine, column), theirs[column]
        time = isinstance(one, dt.datetime) or column.endswith(("_at", "_deadline", "_before"))
        if time:
            assert (one is None) == (other is None), (where, column)
        elif isinstance(one, float):
            assert one == pytest.approx(other), (where, column)
        else:
            assert one == other, (where, column)


def compare(both):
    books = both.books
    with both.ledger.transaction() as tx:
        for job_id in both.ids:
            row = tx.get(Job, job_id)
            shared = {c.key for c in inspect(Job).mapper.column_attrs} & set(books.jobs[job_id])
            assert len(shared) > 20
            same(row, books.jobs[job_id], shared, job_id)
            attempts = {a.attempt: a for a in jobs.attempts(tx, job_id)}
            assert set(attempts) == {n for of, n in books.attempts if of == job_id}
            for n, attempt in attempts.items():
                theirs = books.attempts[job_id, n]
                shared = {c.key for c in inspect(Attempt).mapper.column_attrs} & set(theirs)
                assert len(shared) > 7
                same(attempt, theirs, shared, (job_id, n))
            kept = select(Checkpoint.step, Checkpoint.attempt).where(Checkpoint.job_id == job_id)
            assert set(map(tuple, tx.execute(kept))) == set(books.checkpoints.get(job_id, {}))
            named = tx.execute(
                select(Adapter.name, Adapter.attempt).where(Adapter.job_id == job_id)
            ).all()
            adapter = books.adapters.get(job_id)
            assert [tuple(r) for r in named] == (
                [(adapter["name"], adapter["attempt"])] if adapter else []
            )
            events = tx.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq))
            told = [(e.attempt, e.from_state, e.to_state, e.message) for e in events]
            assert told == [e[1:] for e in books.events if e[0] == job_id]


@pytest.mark.parametrize("seed", range(24))
def test_both_ledgers_answer_alike_and_end_alike(ledger, seed):
    draw = random.Random(seed)
    both = Both(ledger)
    for _ in range(3):
        both.create()
    answered = Counter()
    for _ in range(LENGTH):
        alive = [i for i in both.ids if both.books.jobs[i]["state"] not in FINAL]
        if len(alive) < 2:
            both.create()
            alive.append(both.ids[-1])
        job_id = draw.choice(alive if draw.random() < 0.9 else both.ids)
        ways = verbs(both, draw, job_id)
        name = next_verb(both, draw, job_id, sorted(ways))
        answer = both.play(name, *ways[name])
        if not (isinstance(answer, tuple) and answer[0].endswith("Error")):
            answered[name] += 1
    compare(both)
    assert answered["claim"] >= 2, answered  # not just refusals
