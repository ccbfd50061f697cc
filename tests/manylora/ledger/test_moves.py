"""Every state, move, token, wish and side of every guard, on PostgreSQL. What is legal is written
down here once more, so that a slip in the table of moves cannot agree with itself."""

import itertools
from dataclasses import dataclass

import pytest
from sqlalchemy import text, update

from manylora.errors import LostError
from manylora.ledger import jobs, moves
from manylora.ledger.moves import MOVES
from manylora.ledger.states import JobState
from manylora.ledger.tables import Attempt, Job
from manylora.settings import Settings

ALIVE = ["validating_files", "queued", "dispatched", "running", "paused"]


@dataclass(frozen=True)
class Case:
    """A world in which a move is tried."""

    wish: str | None
    token: str
    #: are deadlines and leases over, and the times to wait for come?
    over: bool
    #: are the failures, or the preemptions, used up?
    spent: bool
    #: has it been queued before?
    known: bool


def free(_):
    return True


#: move -> (from, to, needs the token, what else must hold)
LEGAL = {
    "accept": (["validating_files"], "queued", False, free),
    "reject": (["validating_files"], "failed", False, free),
    "dispatch": (["queued"], "dispatched", False, lambda c: c.over),
    "resend": (["dispatched"], None, True, lambda c: False),  # between two times: see below
    "undispatch": (["dispatched"], "queued", True, lambda c: c.over),
    "claim": (["dispatched"], "running", True, free),
    "renew": (["running"], None, True, free),
    "record": (["running"], None, True, free),
    "succeed": (["running"], "succeeded", True, free),
    "fail": (["running"], "failed", True, free),
    "park": (["running"], "paused", True, lambda c: c.wish == "pause"),
    "yield": (["running"], "queued", True, lambda c: c.wish == "preempt"),
    "return": (["running"], "queued", True, lambda c: c.wish is None),
    "give_up": (["running"], "failed", True, lambda c: c.spent),
    "shelve": (["running"], "paused", True, lambda c: not c.spent and c.wish == "pause"),
    "retry": (["running"], "queued", True, lambda c: not c.spent and c.wish != "pause"),
    "bury": (["running"], "failed", True, lambda c: c.over and c.spent),
    "rescue_paused": (
        ["running"], "paused", True, lambda c: c.over and not c.spent and c.wish == "pause",
    ),
    "rescue": (
        ["running"], "queued", True, lambda c: c.over and not c.spent and c.wish != "pause",
    ),
    "cancel": (ALIVE, "cancelled", False, free),
    "pause": (["validating_files", "queued", "dispatched"], "paused", False, free),
    "ask_pause": (["running"], None, False, lambda c: c.wish != "pause"),
    "resume": (["paused"], "queued", False, lambda c: c.known),
    "revalidate": (["paused"], "validating_files", False, lambda c: not c.known),
    "keep_on": (["running"], None, False, lambda c: c.wish == "pause"),
    "preempt": (["running"], None, True, lambda c: c.wish is None and not c.spent),
}  # fmt: skip
STATES = sorted(s.value for s in JobState)
CURRENT, ALLOWED = 2, 2
TOKENS = {"none": None, "stale": 1, "current": CURRENT, "future": 3}
CLOSES = {"queued", "paused", "failed", "succeeded"}
GIVEN = dict(
    code="c", told="t", param="p", queue="q", deadline=60, resend=60, worker_id="w", ttl=60, step=7,
    device_seconds=1.5, tokens=9, adapter="a", reason="r", kind="oom", allowed=ALLOWED, wait=60,
    most_preemptions=ALLOWED,
)  # fmt: skip


def cases(state):
    """The worlds that state can be in: the token matters in all, the rest where it can be."""
    wishes = [None, "pause", "preempt"] if state == "running" else [None]
    known = [True, False] if state == "paused" else [state != "validating_files"]
    return [
        Case(wish, token, over, spent, before)
        for wish, token, over, spent, before in itertools.product(
            wishes, TOKENS, [True, False], [True, False], known
        )
    ]


def put(ledger, state, case):
    """A job of attempt 2 in that state and world."""
    job_id = ledger.job(state, attempt=CURRENT)
    then = text(f"clock_timestamp() + interval '{-1 if case.over else 1} minute'")
    used = ALLOWED if case.spent else ALLOWED - 1
    with ledger.transaction() as tx:
        columns = {
            "wish": case.wish, "not_before": then, "failures_oom": used, "preemptions": used,
        }  # fmt: skip
        if state == "dispatched":
            columns |= {"dispatch_deadline": then, "resend_at": then}
        if not case.known:
            columns["queued_at"] = None
        tx.execute(update(Job).where(Job.id == job_id).values(**columns))
        lease = update(Attempt).where(Attempt.job_id == job_id, Attempt.attempt == CURRENT)
        tx.execute(lease.values(lease_expires_at=then))
        closed = update(Attempt).where(Attempt.job_id == job_id, Attempt.attempt < CURRENT)
        tx.execute(closed.values(ended_at=then, outcome="lost"))
    return job_id


def test_the_table_has_just_these_moves():
    assert set(MOVES) == set(LEGAL)
    for name, (sources, target, token, _) in LEGAL.items():
        move = MOVES[name]
        assert {s.value for s in move.sources} == set(sources), name
        assert (move.target.value if move.target else None, move.token) == (target, token), name
    for verb in (moves.HAND_BACK, moves.COUNT, moves.RESCUE, moves.PAUSE, moves.RESUME):
        assert set(verb) <= set(MOVES)


def test_nothing_leaves_a_final_state_and_every_worker_write_holds_the_token():
    for name, move in MOVES.items():
        assert not {s.value for s in move.sources} & {"succeeded", "failed", "cancelled"}, name
        if JobState.RUNNING in move.sources and name not in ("cancel", "ask_pause", "keep_on"):
            assert move.token, name


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", sorted(MOVES))
def test_a_move_happens_when_all_of_it_fits_and_else_nothing_does(ledger, state, name):
    sources, target, needs_token, holds = LEGAL[name]
    move = MOVES[name]
    job_id = None
    for case in cases(state):
        if not needs_token and case.token != "current":
            continue
        # Of the worlds that differ in what this move does not look at, one is enough.
        if state not in sources and (case.over, case.spent) != (True, False):
            continue
        if job_id is None or state in sources:
            job_id = put(ledger, state, case)
            before, then = ledger.books(job_id), ledger.get(job_id)

        def go(job_id=job_id, case=case):
            with ledger.transaction() as tx:
                return jobs.move(tx, job_id, name, actor="x", attempt=TOKENS[case.token], **GIVEN)

        if needs_token and case.token == "none":
            with pytest.raises(ValueError, match="token"):
                go()
            assert ledger.books(job_id) == before
            continue
        fits = state in sources and holds(case) and (not needs_token or case.token == "current")
        if not fits:
            with pytest.raises(LostError) as refused:
                go()
            assert refused.value.details == {"state": state, "attempt": TOKENS[case.token]}
            assert ledger.books(job_id) == before
            continue
        go()
        now = ledger.get(job_id)
        attempt = CURRENT + (name == "dispatch")
        assert (now.state, now.attempt) == (target or state, attempt)
        assert (now.finished_at is not None) == (now.state in {"succeeded", "failed", "cancelled"})
        assert (now.dispatch_deadline is not None) == (now.state == "dispatched")
        assert (now.resend_at is not None) == (now.state == "dispatched")
        assert now.wish is None or now.state == "running"
        counts = name in {*moves.COUNT, *moves.RESCUE}
        assert now.failures - then.failures == counts
        assert now.failures_oom - then.failures_oom == (counts or name == "fail")
        assert now.preemptions - then.preemptions == (name == "yield")
        outcome = ledger.attempts(job_id)[CURRENT]
        left_open = target in (None, "dispatched", "running", "cancelled", "validating_files")
        assert (outcome is None) == (left_open or name in ("accept", "reject", "resume"))
        told = ledger.events(job_id)[len(before["events"]) :]
        if move.says:
            ((source, to, number, _),) = told
            assert (source, to, number) == (state if target else None, target, attempt)
        else:
            assert told == []


@pytest.mark.parametrize(("sent", "due"), [(-1, True), (1, False)])
@pytest.mark.parametrize(("deadline", "open_"), [(-1, False), (1, True)])
def test_a_wakeup_is_sent_again_between_its_two_times(ledger, sent, due, deadline, open_):
    job_id = ledger.job("dispatched", attempt=CURRENT)
    minutes = "clock_timestamp() + interval '{} minute'"
    with ledger.transaction() as tx:
        tx.execute(
            update(Job).where(Job.id == job_id).values(
                resend_at=text(minutes.format(sent)),
                dispatch_deadline=text(minutes.format(deadline)),
            )
        )  # fmt: skip
    before = ledger.books(job_id)

    def go():
        with ledger.transaction() as tx:
            jobs.move(tx, job_id, "resend", actor="x", attempt=CURRENT, resend=60)

    if due and open_:
        go()
        assert ledger.get(job_id).state == "dispatched"
    else:
        with pytest.raises(LostError):
            go()
        assert ledger.books(job_id) == before
    with pytest.raises(LostError):  # not twice at once
        go()


def test_a_job_that_is_not_there_cannot_move(ledger):
    with ledger.transaction() as tx, pytest.raises(LostError):
        jobs.move(tx, "ftjob-none", "cancel", actor="x")


def test_settings_and_table_agree_on_what_ends_a_job():
    fields = Settings.model_fields
    for kind in ("lost", "oom", "infra"):
        assert fields[f"most_failures_{kind}"].default == moves.MOST_FAILURES[kind]
    assert fields["most_preemptions"].default == moves.MOST_PREEMPTIONS
