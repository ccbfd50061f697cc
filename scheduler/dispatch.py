"""One scheduling round: add up what changed, look, decide, write it down; wake-ups afterwards.

All of it is one transaction under the lock of who steers, so that no two schedulers give the same
slot away, and what is said about a decision is written with it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from manylora import crash, estimate
from manylora.celery_app import send_wakeup
from manylora.errors import LostError
from manylora.estimate import Outlook
from manylora.ledger import jobs, leases, lines, workers
from manylora.ledger.database import Database
from manylora.ledger.explain import OF_ITS_OWN, outlook
from manylora.ledger.lines import Ended
from manylora.ledger.tables import Job, Line, Share
from manylora.settings import Settings
from scheduler import snapshot
from scheduler.planner import plan
from scheduler.snapshot import Seen
from scheduler.views import Plan, Waiting

log = structlog.get_logger(__name__)
Hint = tuple[str, str, int]
_LATELY = 0.1


@dataclass(frozen=True)
class Done:
    """How many jobs went out, and whether more could at once: not all was read or added up."""

    sent: int
    more: bool


def steer(database: Database, app: Celery, settings: Settings, *, settled: bool) -> Done:
    """One round. Nothing is done while another scheduler does it.

    Raises: UnavailableError.
    """
    with database.transaction() as tx:
        if not lines.steer(tx):
            return Done(0, False)
        half_life = settings.share_half_life_seconds
        changed = lines.fold(tx, half_life)
        ended = lines.settle(tx, half_life)
        seen = snapshot.read(
            tx,
            worker_silence_seconds=settings.lease_seconds,
            half_life=half_life,
            most_preemptions=settings.most_preemptions,
            settled=settled,
        )
        decided = plan(seen.snapshot)
        sent = _carry_out(tx, seen, decided, settings)
        _tell_pools(tx, seen, decided, ended, [job_id for _, job_id, _ in sent])
        _foretell(tx, seen, changed.queued)
    for queue, job_id, attempt in sent:
        log.info(
            "dispatch.sent",
            job_id=job_id,
            tenant_id=str(seen.owners[job_id]),
            attempt=attempt,
            queue=queue,
        )
    if sent:
        crash.point("dispatch_after_commit_before_publish")
    wake(app, sent, settings)
    return Done(len(sent), changed.more or _cut(seen, sent))


def _cut(seen: Seen, sent: Sequence[Hint]) -> bool:
    """Whether slots stay free although a line has more jobs than were read."""
    bases = {job.job_id: job.base for job in seen.snapshot.waiting}
    went = Counter(bases[job_id] for _, job_id, _ in sent)
    return any(0 < went[base] < seen.free.get(base, 0) for base in seen.cut)


def _carry_out(tx: Session, seen: Seen, decided: Plan, settings: Settings) -> list[Hint]:
    """Write the plan; the wake-ups to send."""
    sent: list[Hint] = []
    waiting = {job.job_id: job for job in seen.snapshot.waiting}
    for queue in sorted({queue for _, queue in decided.dispatches}):
        chosen = [job_id for job_id, to in decided.dispatches if to == queue]
        attempts = jobs.dispatch_all(
            tx,
            chosen,
            queue=queue,
            deadline=settings.dispatch_deadline_seconds,
            resend=settings.resend_seconds,
        )
        for job_id in chosen:
            if job_id in attempts:
                sent.append((queue, job_id, attempts[job_id]))
            else:  # cancelled or paused since the snapshot
                log.info("dispatch.lost", job_id=job_id)
    _charge(tx, seen, [waiting[job_id] for _, job_id, _ in sent], sent, settings)
    for job_id, attempt in decided.preemptions:
        try:
            with tx.begin_nested():
                leases.preempt(tx, job_id, attempt, most_preemptions=settings.most_preemptions)
        except LostError:
            log.info("preempt.lost", job_id=job_id)  # it has left its slot meanwhile
    for worker_id, base in decided.assignments:
        workers.assign(tx, worker_id, base)
    # What is true of a whole line or pool is written there; a job is told what is true of it alone.
    told = {
        job_id: reason if reason.startswith(OF_ITS_OWN) else None
        for job_id, reason in decided.reasons.items()
    }
    changed = {i: reason for i, reason in told.items() if reason != seen.told.get(i)}
    lines.wait_for(tx, changed)
    until = snapshot.midnight(seen.snapshot.now)
    for tenant, reason in sorted(decided.stops.items()):
        day = until if reason.startswith("your device-hours") else None
        lines.stop(tx, [(uuid.UUID(tenant), None)], reason, day)
    for owner, base in seen.empty:
        soonest = tx.scalar(
            select(func.min(Job.not_before)).where(
                Job.tenant_id == owner, Job.base == base, Job.state == "queued"
            )
        )
        lines.stop(tx, [(owner, base)], "it is tried again in a while, after a failure", soonest)
    return sent


def _charge(
    tx: Session, seen: Seen, gone: Sequence[Waiting], sent: Sequence[Hint], settings: Settings
) -> None:
    """Charge tenants what their jobs are thought to take; `settle` sets it right."""
    costs: Counter[uuid.UUID] = Counter()
    for job in gone:
        costs[seen.owners[job.job_id]] += job.cost  # type: ignore[assignment]
    if not sent:
        return
    attempts = {job_id: attempt for _, job_id, attempt in sent}
    lines.note_charges(tx, [(job.job_id, attempts[job.job_id], job.cost) for job in gone])
    lines.charge(tx, costs, settings.share_half_life_seconds)


def _tell_pools(
    tx: Session, seen: Seen, decided: Plan, ended: Iterable[Ended], gone: Iterable[str]
) -> None:
    """Write of each pool what was found: slots, why nothing goes, how long jobs take, how well
    their waits were foretold. A pool of which nothing is new is not written."""
    found: dict[str, dict[str, Any]] = {}
    for base, (slots, reason) in decided.pools.items():
        pool = seen.pools.get(base)
        if pool and (pool.slots, pool.reason) != (slots, reason):
            found[base] = {"slots": slots, "reason": reason}
    for one in ended:
        pool = seen.pools.get(one.base)
        if pool is None or one.held is None:
            continue
        told = found.setdefault(one.base, {})
        told["service"] = _lately(told.get("service", pool.service), one.held)
        if one.outcome == "succeeded" and one.charged:
            ratios = told.get("spans", pool.spans)
            told["spans"] = [*ratios, one.held / one.charged][-estimate.KEPT :]
        if one.outcome == "succeeded" and one.passes:
            pace = one.device_seconds / one.passes
            told["pace"] = _lately(told.get("pace", pool.pace), pace)
    views = {job.job_id: job for job in seen.snapshot.waiting}
    learned: dict[str, Outlook] = {}
    for job_id in gone:
        job = views[job_id]
        if job.foretold is None or job_id not in seen.first:
            continue
        pool, promised = seen.pools[job.base], seen.first[job_id]
        waited = seen.snapshot.now - job.queued_at
        before = learned.get(job.base, outlook(pool))
        learned[job.base] = estimate.learn(before, waited, job.foretold, promised)
        told = found.setdefault(job.base, {})
        told["foretold"] = told.get("foretold", pool.foretold) + 1
        told["in_time"] = told.get("in_time", pool.in_time) + (waited <= promised)
        told["ratios"] = list(learned[job.base].ratios)
        told["level"] = learned[job.base].level
    for base, columns in sorted(found.items()):
        lines.pool(tx, base, **columns, decided_at=func.clock_timestamp())


def _lately(before: float | None, value: float) -> float:
    return value if before is None else before + _LATELY * (value - before)


def _foretell(tx: Session, seen: Seen, queued: Sequence[str]) -> None:
    """Tell jobs queued for the first time when they will start; it is measured when they do."""
    if not queued:
        return
    rows = tx.execute(
        select(Job.id, Job.base, Job.tenant_id, Line.queued, Line.turn, Share.weight)
        .join(Line, (Line.tenant_id == Job.tenant_id) & (Line.base == Job.base))
        .join(Share, Share.tenant_id == Job.tenant_id)
        .where(Job.id.in_(queued), Job.attempt == 0, Job.state == "queued")
        .order_by(Job.rank, Job.id)
    ).all()
    new = Counter((row.tenant_id, row.base) for row in rows)
    told = []
    place: Counter[tuple[uuid.UUID, str]] = Counter()
    for row in rows:
        line = row.tenant_id, row.base
        if row.base not in seen.pools:
            continue
        known = outlook(seen.pools[row.base])
        if known.slots <= 0:
            continue
        own = max(0, row.queued - new[line]) + place[line]
        place[line] += 1
        others = max(0.0, estimate.lines_ahead(row.turn, known) - 1.0)
        raw = estimate.guess(own, others, row.weight, known)
        told.append((row.id, raw, estimate.foretell(raw, known).p90))
    lines.foretell(tx, told)


def wake(app: Celery, hints: Sequence[Hint], settings: Settings) -> None:
    """Send wake-ups (queue, job, attempt). One the broker refuses is no loss: it is sent again,
    and in the end the job is queued again."""
    for queue, job_id, attempt in hints:
        try:
            send_wakeup(app, queue, job_id, attempt, settings.dispatch_deadline_seconds)
        except BrokerError as error:
            log.warning("dispatch.broker_down", job_id=job_id, error=type(error).__name__)
