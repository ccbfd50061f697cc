"""What of the ledger is shown as metrics: read every few seconds, in a thread beside the tick."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

from prometheus_client import Gauge
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from manylora.clock import Clock
from manylora.ledger import webhooks, workers
from manylora.ledger.database import Database
from manylora.ledger.states import JobState
from manylora.ledger.tables import Attempt, Base, Change, Job, Pool
from manylora.metrics import SchedulerMetrics

_EVERY_SECONDS = 5.0
_NOW = func.clock_timestamp()
#: those that wait for nothing but their tenant, or have ended, are many and have no index
_AT_WORK = [JobState.VALIDATING.value, JobState.DISPATCHED.value, JobState.RUNNING.value]


class Gauges:
    """The gauges of one scheduler, and when they were last read."""

    def __init__(
        self,
        database: Database,
        metrics: SchedulerMetrics,
        clock: Clock,
        *,
        worker_silence_seconds: float,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._clock = clock
        self._silence = worker_silence_seconds
        self._read: float | None = None

    def refresh(self) -> bool:
        """Read them again when it is time; always False: there is nothing to do at once.

        Raises: UnavailableError.
        """
        now = self._clock.monotonic()
        if self._read is not None and now - self._read < _EVERY_SECONDS:
            return False
        self._read = now
        with self._database.transaction() as tx:
            jobs = _jobs(tx)
            oldest = _oldest(tx)
            alive, slots, busy = self._pools(tx)
            messages, due = webhooks.counts(tx), webhooks.longest_due(tx)
        show = self._metrics
        _set(show.jobs, jobs)
        _set(show.oldest_waiting, oldest)
        _set(show.workers, alive)
        _set(show.slots, slots)
        _set(show.slots_busy, busy)
        _set(show.messages, {(state,): count for state, count in messages.items()})
        show.oldest_message.set(due)
        return False

    def _pools(self, tx: Session) -> tuple[dict[Any, float], dict[Any, float], dict[Any, float]]:
        """Workers by base and state, slots by base, slots taken by base."""
        alive: Counter[Any] = Counter()
        slots: Counter[Any] = Counter()
        for worker in workers.alive(tx, within_seconds=self._silence):
            base = worker.assigned_base or "none"
            alive[base, worker.state] += 1
            if worker.state == "ready":
                slots[base,] += worker.slots
        busy = tx.execute(
            select(Job.base, func.count())
            .join(Attempt, Attempt.job_id == Job.id)
            .where(Attempt.ended_at.is_(None))
            .group_by(Job.base)
        )
        return dict(alive), dict(slots), {(base,): count for base, count in busy.all()}


def _jobs(tx: Session) -> dict[tuple[str, ...], float]:
    """Jobs by base and state; a ready base without jobs is there, with zero. How many are queued
    is in the pools, and in the changes not yet added to them: the queue is not read for it."""
    found: dict[tuple[str, ...], float] = {
        (base, JobState.QUEUED.value): 0
        for base in tx.scalars(select(Base.name).where(Base.state == "ready"))
    }
    for counted in (select(Pool.base, Pool.queued), select(Change.base, Change.queued)):
        for base, count in tx.execute(counted.where(counted.selected_columns[1] != 0)):
            found[base, JobState.QUEUED.value] = found.get((base, JobState.QUEUED.value), 0) + count
    rows = tx.execute(
        select(Job.base, Job.state, func.count())
        .where(Job.state.in_(_AT_WORK))
        .group_by(Job.base, Job.state)
    )
    return found | {(base, state): count for base, state, count in rows.all()}


def _oldest(tx: Session) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for base in tx.scalars(select(Base.name).where(Base.state == "ready")).all():
        row = tx.execute(
            select(Job.queued_at, _NOW)
            .where(Job.state == JobState.QUEUED.value, Job.base == base)
            .order_by(Job.queued_at)
            .limit(1)
        ).first()
        if row is not None and row[0] is not None:
            found[base,] = _age(row[0], row[1])
    return found


def _age(at: dt.datetime, now: dt.datetime) -> float:
    return max(0.0, (now - at).total_seconds())


def _set(gauge: Gauge, values: dict[tuple[str, ...], float]) -> None:
    """Set a gauge's series, and drop those that are no more: a base that was removed, for one."""
    known = {tuple(sample.labels.values()) for sample in next(iter(gauge.collect())).samples}
    for gone in known - set(values):
        gauge.remove(*gone)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
