"""Why a job waits, how much is ahead of it, and when it will start: read from what the scheduler
wrote. Nothing is decided here, and of other tenants only counts are told.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from manylora import estimate
from manylora.estimate import Outlook
from manylora.ledger import lines as lines_
from manylora.ledger import shares
from manylora.ledger.states import JobState
from manylora.ledger.tables import Job, Line, Pool

#: counted so far and no further
MOST_COUNTED = 10_000
#: device-seconds of a job of which nothing is known
SERVICE = 60.0
#: what the scheduler says of one job, and not of its line or pool
OF_ITS_OWN = ("a slot of", "a job of lower priority")


def outlook(pool: Pool) -> Outlook:
    """A pool's row, as `estimate` wants it."""
    return Outlook(
        pool.slots,
        pool.active,
        pool.tenants,
        pool.weights,
        pool.service or SERVICE,
        pool.turns,
        pool.ratios,
        pool.level,
    )


def reason(tx: Session, job: Job) -> str | None:
    """Why it waits, in one sentence; None for a job that does not wait in the queue."""
    if job.state != JobState.QUEUED:
        return None
    line, pool = tx.get(Line, (job.tenant_id, job.base)), tx.get(Pool, job.base)
    if line is None or pool is None:
        return "the scheduler has not looked at it yet"
    if job.not_before is not None and (tx.scalar(select(job.not_before > func.clock_timestamp()))):
        return "it is tried again in a while, after a failure"
    if line.stopped and line.reason:
        return line.reason
    if pool.reason:
        return pool.reason
    if job.waiting_for and job.waiting_for.startswith(OF_ITS_OWN):
        return job.waiting_for
    return f"all {pool.slots} slots of {job.base} are taken; others go first"


def place(tx: Session, job: Job) -> dict[str, Any] | None:
    """Where a queued job stands; None for any other."""
    if job.state != JobState.QUEUED:
        return None
    own = select(Job.id).where(
        Job.tenant_id == job.tenant_id,
        Job.base == job.base,
        Job.state == JobState.QUEUED.value,
        tuple_(Job.rank, Job.id) < tuple_(job.rank, job.id),
    )
    mine = _counted(tx, own)
    line, pool = tx.get(Line, (job.tenant_id, job.base)), tx.get(Pool, job.base)
    found = _where(tx, line, pool, mine, job)
    others = found["ahead"]["others"]
    why = reason(tx, job)
    if why is not None and why.endswith("others go first"):
        why = why.replace("others go first", f"{mine + others} ahead, {mine} of them yours")
    return found | {"reason": why, "base": job.base}


def lines(tx: Session, tenant_id: uuid.UUID) -> list[dict[str, Any]]:
    """What of a tenant's waits and runs, for each base."""
    found = []
    for line in lines_.of_tenant(tx, tenant_id):
        head = tx.scalar(
            select(Job)
            .where(
                Job.tenant_id == tenant_id,
                Job.base == line.base,
                Job.state == JobState.QUEUED.value,
            )
            .order_by(Job.rank, Job.id)
            .limit(1)
        )
        said: dict[str, Any] = {"base": line.base, "reason": None, "start": None, "share": None}
        if head is not None:
            said = place(tx, head) or said
        else:
            said["share"] = _share(tx, line, tx.get(Pool, line.base))
        found.append(said | {"held": line.held, "queued": line.queued, "running": line.active})
    return found


def _counted(tx: Session, query: Any) -> int:
    return int(
        tx.scalar(select(func.count()).select_from(query.limit(MOST_COUNTED).subquery())) or 0
    )


def _share(tx: Session, line: Line, pool: Pool | None) -> dict[str, Any]:
    """What part of the pool the tenant is entitled to while those wait who wait now, and what
    part it has."""
    weight = shares.of(tx, line.tenant_id).weight
    weights = max(pool.weights, weight) if pool else weight
    return {
        "weight": weight,
        "entitled": round(weight / weights, 6),
        "has": round(line.active / pool.active, 6) if pool and pool.active > 0 else 0.0,
    }


def _where(
    tx: Session, line: Line | None, pool: Pool | None, mine: int, job: Job
) -> dict[str, Any]:
    if line is None or pool is None:
        return {
            "position": mine + 1, "ahead": {"yours": mine, "others": 0}, "share": None,
            "start": None, "finish": None, "calibration": None,
        }  # fmt: skip
    before = select(Line.tenant_id).where(
        Line.base == line.base,
        Line.queued > 0,
        Line.stopped.is_(False),
        tuple_(Line.turn, Line.tenant_id) < tuple_(line.turn, line.tenant_id),
    )
    others = _counted(tx, before)
    share = _share(tx, line, pool)
    start, finish = None, None
    if pool.slots > 0 and not line.stopped:
        known = outlook(pool)
        told = estimate.foretell(estimate.guess(mine, others, share["weight"], known), known)
        p50, p90 = estimate.spans(_cost(job, pool), pool.spans)
        start = {"p50": round(told.p50, 1), "p90": round(told.p90, 1)}
        finish = {"p50": round(told.p50 + p50, 1), "p90": round(told.p90 + p90, 1)}
    kept = round(pool.in_time / pool.foretold, 3) if pool.foretold else None
    return {
        "position": mine + others + 1,
        "ahead": {"yours": mine, "others": others},
        "share": share,
        "start": start,
        "finish": finish,
        "calibration": {"foretold": pool.foretold, "started_by_p90": kept},
    }


def _cost(job: Job, pool: Pool) -> float:
    epochs = job.hyperparameters.get("n_epochs")
    if job.examples and isinstance(epochs, int) and pool.pace is not None:
        rest = 1.0 - job.step / job.total_steps if job.total_steps else 1.0
        return max(1.0, job.examples * epochs * pool.pace * max(0.0, rest))
    return pool.service or SERVICE
