"""The ledger in memory: the verbs of `manylora/ledger`, on rows of the simulation's own.

A conformance suite plays the same histories on these and on PostgreSQL and compares every answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from manylora.errors import LostError, StateError
from manylora.ledger.moves import (
    COUNT,
    HAND_BACK,
    MOST_FAILURES,
    MOST_PREEMPTIONS,
    PAUSE,
    RESCUE,
    RESUME,
    Now,
    backoff,
)
from manylora.ledger.states import FINAL, JobState
from scheduler.simulate.rows import BrokenRowError, Row, Rows


class Books(Rows):
    """Jobs and all that is written about them."""

    def dispatch(self, job_id: str, *, queue: str, deadline: float, resend: float) -> int:
        """As `leases.dispatch`."""
        job = self.move(
            job_id, "dispatch", actor="scheduler", queue=queue, deadline=deadline, resend=resend
        )
        attempt: int = job["attempt"]
        return attempt

    def resend(self, *, resend: float) -> list[tuple[str, str, int]]:
        """As `leases.resend`."""
        again = []
        for job_id, attempt, queue in self._candidates("resend"):
            self.move(job_id, "resend", actor="scheduler", attempt=attempt, resend=resend)
            again.append((queue, job_id, attempt))
        return again

    def claim(self, job_id: str, attempt: int, *, worker_id: str, ttl: float) -> Row:
        """As `leases.claim`."""
        return self.move(
            job_id, "claim", actor=worker_id, attempt=attempt, worker_id=worker_id, ttl=ttl
        )

    def renew(
        self,
        job_id: str,
        attempt: int,
        *,
        ttl: float,
        step: int,
        device_seconds: float,
        total_steps: int | None = None,
        actor: str = "",
    ) -> str | None:
        """As `leases.renew`."""
        job = self.move(
            job_id,
            "renew",
            actor=actor,
            attempt=attempt,
            ttl=ttl,
            step=step,
            device_seconds=device_seconds,
            total_steps=total_steps,
        )
        wish: str | None = job["wish"]
        return wish

    def record(self, job_id: str, attempt: int, *, step: int, digest: str, actor: str = "") -> None:
        """As `leases.add_checkpoint`."""
        self.move(job_id, "record", actor=actor, attempt=attempt)
        self.checkpoints.setdefault(job_id, {})[step, attempt] = digest

    def publish(self, job_id: str, attempt: int, *, worker_id: str, tokens: int, name: str) -> None:
        """As `leases.publish`."""
        self.move(job_id, "succeed", actor=worker_id, attempt=attempt, tokens=tokens, adapter=name)
        if job_id in self.adapters:
            raise BrokenRowError("adapters_job_id_key")
        self.adapters[job_id] = {"name": name, "attempt": attempt}
        said = "The job has successfully completed"
        self.events.append((job_id, attempt, None, None, said))

    def fail(
        self,
        job_id: str,
        attempt: int,
        *,
        worker_id: str,
        code: str,
        message: str,
        kind: str = "user",
    ) -> None:
        """As `leases.fail`."""
        self.move(
            job_id, "fail", actor=worker_id, attempt=attempt, code=code, told=message, kind=kind
        )

    def release(
        self,
        job_id: str,
        attempt: int,
        *,
        actor: str,
        reason: str,
        counts: bool,
        kind: str = "lost",
        most_failures: int | None = None,
        code: str = "attempts_exhausted",
    ) -> bool:
        """As `leases.release`."""
        if not counts:
            self.first(job_id, HAND_BACK, actor=actor, attempt=attempt, reason=reason)
            return True
        return self._count(job_id, attempt, COUNT, actor, reason, kind, most_failures, code)

    def _count(
        self,
        job_id: str,
        attempt: int,
        names: Sequence[str],
        actor: str,
        reason: str,
        kind: str,
        most_failures: int | None,
        code: str,
    ) -> bool:
        most = MOST_FAILURES[kind] if most_failures is None else most_failures
        job = self.jobs.get(job_id)
        failures = job[f"failures_{kind}"] if job else 0
        tries = "1 try" if failures == 0 else f"{failures + 1} tries"
        name, _ = self.first(
            job_id,
            names,
            actor=actor,
            attempt=attempt,
            kind=kind,
            allowed=most - 1,
            wait=backoff(kind, failures),
            reason=reason,
            code=code,
            told=f"Given up after {tries}: {reason}",
        )
        return name != names[0]

    def preempt(
        self, job_id: str, attempt: int, *, most_preemptions: int = MOST_PREEMPTIONS
    ) -> None:
        """As `leases.preempt`."""
        self.move(
            job_id,
            "preempt",
            actor="scheduler",
            attempt=attempt,
            most_preemptions=most_preemptions,
        )

    def held(self) -> list[tuple[str, int, float]]:
        """As `leases.held`."""
        return [
            (job_id, job["attempt"], self.attempts[job_id, job["attempt"]]["lease_expires_at"])
            for job_id, job in self.jobs.items()
            if job["state"] == JobState.RUNNING and (job_id, job["attempt"]) in self.attempts
        ]

    def rescue(
        self,
        *,
        leases: bool = True,
        only: Collection[tuple[str, int]] | None = None,
        most_failures: int | None = None,
    ) -> list[str]:
        """As `leases.rescue`."""
        back = []
        for job_id, attempt, _ in self._candidates("rescue") if leases else ():
            if only is not None and (job_id, attempt) not in only:
                continue
            if self._count(
                job_id,
                attempt,
                RESCUE,
                "scheduler",
                "its worker has not been heard of",
                "lost",
                most_failures,
                "attempts_exhausted",
            ):
                back.append(job_id)
        for job_id, attempt, _ in self._candidates("undispatch"):
            self.move(job_id, "undispatch", actor="scheduler", attempt=attempt)
            back.append(job_id)
        if leases:
            self._close_left()
        return back

    def _candidates(self, name: str) -> list[tuple[str, int, str]]:
        made = self.table[name]
        timely = [guard for guard in made.guards if isinstance(guard.value, Now)]
        return [
            (job_id, job["attempt"], self.attempts[job_id, job["attempt"]]["queue"])
            for job_id, job in self.jobs.items()
            if job["state"] in made.sources
            and (job_id, job["attempt"]) in self.attempts
            and all(self._holds(guard, job, {}) for guard in timely)
        ]

    def _close_left(self) -> None:
        now = self.now()
        for (job_id, attempt), row in self.attempts.items():
            if row["ended_at"] is not None:
                continue
            job = self.jobs[job_id]
            at_work = job["state"] in (JobState.RUNNING, JobState.DISPATCHED)
            until = row["lease_expires_at"]
            if (attempt < job["attempt"] or not at_work) and (
                row["dispatched_at"] if until is None else until
            ) < now:
                self.close(job_id, attempt, "left")

    def cancel(self, job_id: str) -> Row:
        """As `jobs.cancel`."""
        return self._asked(job_id, ("cancel",), "cancelled")

    def pause(self, job_id: str) -> Row:
        """As `jobs.pause`."""
        return self._asked(job_id, PAUSE, "paused")

    def resume(self, job_id: str) -> Row:
        """As `jobs.resume`."""
        return self._asked(job_id, RESUME, "resumed")

    def _asked(self, job_id: str, names: Sequence[str], what: str) -> Row:
        try:
            return self.first(job_id, names, actor="tenant")[1]
        except LostError:
            job = self.jobs[job_id]
            if job["state"] in FINAL:
                raise StateError(
                    f"{job_id} is {job['state']} already and cannot be {what}"
                ) from None
            return job
