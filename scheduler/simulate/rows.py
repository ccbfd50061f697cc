"""Rows in memory, and moves on them made from the same table as the SQL; for simulation only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manylora.errors import LostError
from manylora.ledger.moves import MOVES, After, First, Given, Guard, Move, Now, Plus, named
from manylora.ledger.states import JobState

Row = dict[str, Any]
#: told of every move made: its name, the row before, the row after, the token it came with
Observer = Callable[[str, Row, Row, int | None, str], None]
_NEW: Row = {
    "state": JobState.VALIDATING.value, "attempt": 0, "dispatch_deadline": None, "resend_at": None,
    "failures": 0, "failures_lost": 0, "failures_oom": 0, "failures_infra": 0, "failures_user": 0,
    "preemptions": 0, "wish": None, "not_before": None, "waiting_for": None, "step": 0,
    "total_steps": None, "examples": None, "trained_tokens": None, "device_seconds": 0.0,
    "error_code": None, "error_message": None, "error_param": None, "queued_at": None,
    "started_at": None, "finished_at": None, "priority": 0, "tenant": "",
}  # fmt: skip
_NEW_ATTEMPT: Row = {
    "queue": None, "worker_id": None, "started_at": None, "lease_expires_at": None,
    "ended_at": None, "outcome": None, "last_step": 0, "device_seconds": 0.0,
}  # fmt: skip


class BrokenRowError(AssertionError):
    """A row that PostgreSQL's own checks would have refused."""


class Rows:
    """Jobs, attempts, checkpoints, adapters and events. `now` is the ledger's own time."""

    def __init__(
        self,
        now: Callable[[], float],
        table: Mapping[str, Move] = MOVES,
        observer: Observer | None = None,
    ) -> None:
        self.now = now
        self.table = table
        self.observer = observer
        self.jobs: dict[str, Row] = {}
        self.attempts: dict[tuple[str, int], Row] = {}
        self.checkpoints: dict[str, dict[tuple[int, int], str]] = {}
        self.adapters: dict[str, Row] = {}
        #: (job, attempt, from, to, message)
        self.events: list[tuple[str, int, str | None, str | None, str]] = []

    def create(self, job_id: str, **columns: Any) -> Row:
        """A new job and its first event."""
        job = _NEW | columns | {"id": job_id, "created_at": self.now()}
        self.jobs[job_id] = job
        state = JobState.VALIDATING.value
        self.events.append((job_id, 0, None, state, f"Created fine-tuning job: {job_id}"))
        return job

    def move(self, job_id: str, name: str, **given: Any) -> Row:
        """As `jobs.move`."""
        return self.first(job_id, (name,), **given)[1]

    def first(
        self,
        job_id: str,
        names: Sequence[str],
        *,
        actor: str,
        attempt: int | None = None,
        **given: Any,
    ) -> tuple[str, Row]:
        """As `jobs.first`."""
        job = self.jobs.get(job_id)
        for name in names:
            made = self.table[name]
            if made.token and attempt is None:
                raise ValueError(f"the move {name!r} needs the attempt's token")
            if job is None or not self._legal(made, job, attempt, given):
                continue
            before = dict(job)
            self._make(made, job, given)
            if made.says:
                target = made.target.value if made.target else None
                told = made.says.format_map(given | {"step": job["step"]})
                source = before["state"] if target else None
                self.events.append((job_id, job["attempt"], source, target, told))
            if self.observer is not None:
                self.observer(name, before, job, attempt, actor)
            return name, job
        state = job["state"] if job else None
        raise LostError(
            f"{job_id}: cannot {names[-1]} from {state or 'nothing'}",
            details={"state": state, "attempt": attempt},
        )

    def _legal(self, move: Move, job: Row, attempt: int | None, given: Mapping[str, Any]) -> bool:
        if job["state"] not in move.sources or (move.token and job["attempt"] != attempt):
            return False
        return all(self._holds(guard, job, given) for guard in move.guards)

    def _holds(self, guard: Guard, job: Row, given: Mapping[str, Any]) -> bool:
        column = named(guard.column, given)
        if column.startswith("attempts."):
            books = self.attempts.get((job["id"], job["attempt"]))
            if books is None:
                return False
            own = books[column[len("attempts.") :]]
        else:
            own = job[column]
        value = guard.value
        if isinstance(value, Now):
            value = self.now()
        elif isinstance(value, Given):
            value = given[value.name]
        if guard.how == "is":
            return bool(own == value)
        if guard.how == "is not":
            return bool(own != value)
        if guard.how == "due":
            return own is None or bool(own <= value)
        if own is None:
            return False
        return bool(own < value) if guard.how == "<" else bool(own >= value)

    def _written(self, row: Row, sets: Mapping[str, Any], given: Mapping[str, Any]) -> Row:
        values: Row = {}
        for column, what in sets.items():
            name = named(column, given)
            if isinstance(what, Now):
                values[name] = self.now()
            elif isinstance(what, First):
                values[name] = self.now() if row[name] is None else row[name]
            elif isinstance(what, Plus):
                values[name] = row[name] + what.by
            elif isinstance(what, After):
                values[name] = self.now() + given[what.name]
            elif isinstance(what, Given):
                value = given.get(what.name) if what.keep else given[what.name]
                values[name] = row[name] if what.keep and value is None else value
            else:
                values[name] = what
        return values

    def _make(self, move: Move, job: Row, given: Mapping[str, Any]) -> None:
        values = self._written(job, move.sets, given)
        if move.target is not None:
            values["state"] = move.target.value
        job.update(values)
        if (job["state"] == JobState.DISPATCHED) != (job["dispatch_deadline"] is not None):
            raise BrokenRowError("jobs_dispatched")
        if job["wish"] is not None and job["state"] != JobState.RUNNING:
            raise BrokenRowError("jobs_wish")
        place = (job["id"], job["attempt"])
        if move.opens:
            if place in self.attempts:
                raise BrokenRowError("attempts_pkey")
            self.attempts[place] = dict(_NEW_ATTEMPT, dispatched_at=self.now())
        if move.books and place in self.attempts:
            books = self.attempts[place]
            books.update(self._written(books, move.books, given))
        if move.outcome is not None:
            self.close(*place, named(move.outcome, given))

    def close(self, job_id: str, attempt: int, outcome: str) -> None:
        """As `leases.close`."""
        books = self.attempts.get((job_id, attempt))
        if books is not None and books["ended_at"] is None:
            books.update(ended_at=self.now(), outcome=outcome)
        self.jobs[job_id]["device_seconds"] = sum(
            row["device_seconds"] for (of, _), row in self.attempts.items() if of == job_id
        )
