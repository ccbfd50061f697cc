"""What must always be true. A second set of books, kept from what is seen and not from the table
of moves, so that a slip in the table cannot agree with itself."""

from __future__ import annotations

from collections import Counter

from manylora.ledger.moves import MOST_FAILURES
from manylora.ledger.states import FINAL, JobState
from scheduler.simulate.books import Books
from scheduler.simulate.rows import Row
from scheduler.simulate.service import MOST_PREEMPTIONS, Clients
from scheduler.simulate.worker import TTL
from scheduler.simulate.world import World

_BY_WORKER = {
    "renew", "record", "succeed", "fail", "park", "yield", "return", "give_up", "shelve", "retry",
}  # fmt: skip
_BY_RESCUE = {"bury", "rescue_paused", "rescue"}
_COUNTED = {"give_up", "shelve", "retry", "bury", "rescue_paused", "rescue"}
_GIVEN_UP = {"give_up", "bury"}


class Violation(AssertionError):  # noqa: N818
    """Something that must never be has been."""


class Check:
    """Looks at every move that the ledger accepted."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.moves: Counter[str] = Counter()
        #: job -> highest attempt sent out, and who claimed which attempt
        self.current: dict[str, int] = {}
        self.owner: dict[tuple[str, int], str] = {}
        #: until when a lease is good, in true time
        self.good_until: dict[tuple[str, int], float] = {}
        self.failures: dict[str, Counter[str]] = {}
        self.preempted: Counter[str] = Counter()
        self.over: dict[str, str] = {}
        self.clients: Clients | None = None

    def __call__(self, name: str, before: Row, after: Row, token: int | None, actor: str) -> None:
        """A move was made."""
        job_id, attempt = before["id"], after["attempt"]
        self.moves[name] += 1
        self.world.tell(
            f"{job_id} {name}: {before['state']} -> {after['state']} by {actor or '-'} as {token}"
        )
        self._must(job_id not in self.over, f"{name} of {job_id}, which is {before['state']} (I5)")
        self._must(attempt >= before["attempt"], f"the attempt of {job_id} went back (I2)")
        if name == "dispatch":
            self._must(before["state"] == JobState.QUEUED, f"{job_id} is sent out, not queued")
            self._must(attempt > self.current.get(job_id, 0), f"{job_id}: attempt used twice (I2)")
            self.current[job_id] = attempt
        elif name == "claim":
            self._claim(job_id, token, before, actor)
        elif name in _BY_WORKER:
            self._written(job_id, name, token, actor)
        elif name in _BY_RESCUE:
            self._rescued(job_id, attempt, name)
        self._count(job_id, name, before, after)
        if after["state"] == JobState.PAUSED and before["state"] != JobState.PAUSED:
            wanted = self.clients is not None and self.clients.wants_pause.get(job_id, False)
            self._must(wanted, f"{job_id} is paused, and nobody asked for it")
        if after["state"] in FINAL:
            self.over[job_id] = after["state"]
        self._must(
            (after["state"] in FINAL) == (after["finished_at"] is not None),
            f"{job_id} is {after['state']}, finished at {after['finished_at']}",
        )

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(what)

    def _claim(self, job_id: str, token: int | None, before: Row, actor: str) -> None:
        current = self.current.get(job_id)
        self._must(token == current, f"{actor} claims {job_id}/{token}, current is {current} (I4)")
        assert token is not None
        place = job_id, token
        self._must(place not in self.owner, f"{place} is claimed twice (I4)")
        self.owner[place] = actor
        self.good_until[place] = self.world.now + TTL

    def _written(self, job_id: str, name: str, token: int | None, actor: str) -> None:
        current = self.current.get(job_id)
        self._must(token == current, f"{name} of {job_id}/{token}, current is {current} (I4)")
        assert token is not None
        owner = self.owner.get((job_id, token))
        self._must(owner is not None, f"{name} of {job_id}/{token}, which nobody claimed (I4)")
        self._must(owner == actor, f"{name} of {job_id}/{token} by {actor}, not {owner} (I4)")
        if name == "renew":
            self.good_until[job_id, token] = self.world.now + TTL
        elif name != "record":
            # The attempt is over: whoever writes for it from now on is a zombie.
            self.owner[job_id, token] = "nobody any more"

    def _rescued(self, job_id: str, attempt: int, name: str) -> None:
        place = job_id, attempt
        left = self.good_until.get(place, 0.0) - self.world.now
        self._must(left <= 0, f"{name} of {place}, good for {left:.1f} s more (I6)")
        up = self.world.now - self.world.database_started
        self._must(up >= TTL, f"{name} of {place}, {up:.1f} s after the database was away (I6)")
        self.owner[place] = "nobody any more"

    def _count(self, job_id: str, name: str, before: Row, after: Row) -> None:
        counted = self.failures.setdefault(job_id, Counter())
        if name in _COUNTED:
            kind = next(
                (k for k in MOST_FAILURES if after[f"failures_{k}"] > before[f"failures_{k}"]), None
            )
            self._must(kind is not None, f"{name} of {job_id} counts nothing (I7)")
            assert kind is not None
            counted[kind] += 1
            spent = counted[kind] >= MOST_FAILURES[kind]
            self._must(
                spent == (name in _GIVEN_UP), f"{name} of {job_id} at {counted[kind]} {kind} (I7)"
            )
        elif name == "fail":
            counted["user"] += 1
        elif name == "yield":
            self.preempted[job_id] += 1
        for kind in MOST_FAILURES:
            own = after[f"failures_{kind}"]
            self._must(own == counted[kind], f"{job_id} has {own} {kind}, not {counted[kind]} (I7)")
        total = sum(n for kind, n in counted.items() if kind != "user")
        self._must(after["failures"] == total, f"{job_id}: {after['failures']} failures (I7)")
        self._must(
            after["preemptions"] == self.preempted[job_id] <= MOST_PREEMPTIONS,
            f"{job_id} made room {after['preemptions']} times, seen {self.preempted[job_id]}",
        )


def at_the_end(world: World, books: Books, check: Check, clients: Clients) -> None:
    """What must be true once nothing fails any more and all jobs had their time."""
    for job_id in sorted(clients.acknowledged):
        job = books.jobs.get(job_id)
        if job is None:
            raise Violation(f"{job_id} was acknowledged and is not there (I1)")
        if job["state"] not in FINAL:
            raise Violation(f"{job_id} is still {job['state']} (I1)")
    for job_id in sorted(clients.cancelled):
        if books.jobs[job_id]["state"] != JobState.CANCELLED:
            raise Violation(f"{job_id} is {books.jobs[job_id]['state']}, was cancelled (I5)")
    for job_id, job in books.jobs.items():
        adapter = books.adapters.get(job_id)
        if (job["state"] == JobState.SUCCEEDED) != (adapter is not None):
            raise Violation(f"{job_id} is {job['state']}, its adapter {adapter} (I3)")
        if adapter is not None:
            manifest = adapter["name"]
            whole = manifest in world.objects and world.complete(manifest)
            if not whole or adapter["attempt"] != job["attempt"]:
                raise Violation(f"the adapter {adapter} of {job_id} is not whole (I3)")
    for (job_id, attempt), row in books.attempts.items():
        if books.jobs[job_id]["state"] in FINAL and row["ended_at"] is None:
            raise Violation(f"the slot of {job_id}/{attempt} was never given back (I11)")
        ended = books.jobs[job_id]["state"] == JobState.SUCCEEDED
        if ended and attempt == books.jobs[job_id]["attempt"] and row["outcome"] != "succeeded":
            raise Violation(f"the slot of {job_id}/{attempt} was not given back at once (I11)")
    _replay(books)


def _replay(books: Books) -> None:
    """The events of each job, one after the other, lead to its row."""
    states: dict[str, str | None] = {}
    attempts: dict[str, int] = {}
    for job_id, attempt, source, target, _ in books.events:
        if attempt < attempts.get(job_id, 0):
            raise Violation(f"an event of {job_id} carries {attempt} (I2)")
        attempts[job_id] = attempt
        if target is not None:
            if states.get(job_id) != source:
                raise Violation(f"{job_id}: an event from {source}, was {states[job_id]} (I13)")
            states[job_id] = target
    for job_id, job in books.jobs.items():
        if (states[job_id], attempts[job_id]) != (job["state"], job["attempt"]):
            raise Violation(f"the events of {job_id} end at {states[job_id]} (I13)")
