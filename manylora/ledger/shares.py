"""What a tenant is entitled to and may have at most, and the checks that are made where something
is inserted. Who is running is the planner's business."""

from __future__ import annotations

import math
import uuid
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from manylora.errors import NotFoundError, QuotaError, UsageError
from manylora.ledger.tables import Adapter, File, Line, Pool, Share, Tenant

#: what is counted is not what commits this very moment; from here on one submission waits for
#: the other. More than connections the database has.
_NEAR = 1000
QUOTAS = ("max_queued", "max_running", "max_device_hours", "max_bytes", "max_requests")
_QUEUED = text(
    "SELECT coalesce((SELECT sum(held + queued) FROM lines WHERE tenant_id = :tenant), 0)"
    " + coalesce((SELECT sum(held + queued) FROM changes WHERE tenant_id = :tenant), 0)"
)


def of(tx: Session, tenant_id: uuid.UUID) -> Share:
    """A tenant's row; one with nothing said, where there is none yet."""
    return tx.get(Share, tenant_id) or Share(
        tenant_id=tenant_id, weight=1.0, used=0.0, day_seconds=0.0
    )


def page(tx: Session) -> list[tuple[Tenant, Share | None]]:
    """Every tenant and its share, by name."""
    rows = tx.execute(
        select(Tenant, Share).outerjoin(Share, Share.tenant_id == Tenant.id).order_by(Tenant.name)
    )
    return [(tenant, share) for tenant, share in rows]


def change(tx: Session, name: str, changes: dict[str, Any]) -> tuple[Tenant, Share]:
    """Set a tenant's weight or quotas; None takes a quota away.

    Raises: NotFoundError; UsageError for a weight of nothing or a quota of zero.
    """
    tenant = tx.scalar(select(Tenant).where(Tenant.name == name))
    if tenant is None:
        raise NotFoundError(f"no tenant is called {name!r}", hint="manylora tenants list")
    for column, value in changes.items():
        if column == "weight":
            if value is None or not (0 < value <= 1e6) or not math.isfinite(value):
                raise UsageError(
                    f"weight {value}: a weight is above 0, at most a million",
                    hint="a tenant of weight 2 is entitled to twice as much as one of weight 1",
                    param="weight",
                )
        elif column not in QUOTAS:
            raise UsageError(f"{column} is not a quota", hint=", ".join(QUOTAS), param=column)
        elif value is not None and not (0 < value < 2**62):
            raise UsageError(
                f"{column} {value}: a quota is at least 1; a tenant of nothing is none",
                hint="leave the quota away for no bound",
                param=column,
            )
    given = insert(Share).values(tenant_id=tenant.id, **changes)
    if changes:
        tx.execute(given.on_conflict_do_update(index_elements=[Share.tenant_id], set_=changes))
        # Its lines may go again, or have another turn: a change makes the scheduler look.
        tx.execute(
            text(
                "INSERT INTO changes (tenant_id, base)"
                " SELECT tenant_id, base FROM lines WHERE tenant_id = :tenant AND queued > 0"
            ),
            {"tenant": tenant.id},
        )
    tx.expire_all()
    return tenant, of(tx, tenant.id)


def check_queued(tx: Session, tenant_id: uuid.UUID, most: int) -> None:
    """Whether the tenant may have one more job wait; exact, whoever else submits for it now.

    Raises: QuotaError.
    """
    share = of(tx, tenant_id)
    most = share.max_queued if share.max_queued is not None else most
    given = {"tenant": tenant_id}
    used = int(tx.scalar(_QUEUED, given) or 0)
    if used > most - _NEAR:
        _alone(tx, tenant_id, "queued")
        used = int(tx.scalar(_QUEUED, given) or 0)
    if used >= most:
        wait = _next_start(tx, tenant_id)
        raise QuotaError(
            f"{used:,} of your {most:,} jobs that may wait are waiting",
            hint=f"one may be sent once another has started: in about {wait} s",
            code="queued_quota_exceeded",
            details={"limit": most, "used": used, "retry_after": wait},
        )


def check_bytes(tx: Session, tenant_id: uuid.UUID, more: int) -> None:
    """Whether the tenant may store so many bytes more.

    Raises: QuotaError.
    """
    most = of(tx, tenant_id).max_bytes
    if most is None:
        return
    _alone(tx, tenant_id, "bytes")
    files = tx.scalar(
        select(func.coalesce(func.sum(File.bytes), 0)).where(
            File.tenant_id == tenant_id, File.deleted_at.is_(None)
        )
    )
    adapters = tx.scalar(
        select(func.coalesce(func.sum(Adapter.bytes), 0)).where(Adapter.tenant_id == tenant_id)
    )
    used = int(files or 0) + int(adapters or 0)
    if used + more > most:
        raise QuotaError(
            f"{used:,} of your {most:,} bytes are used, and this would be {more:,} more",
            hint="delete files you do not need",
            code="storage_quota_exceeded",
            details={"limit": most, "used": used, "retry_after": None},
        )


def _alone(tx: Session, tenant_id: uuid.UUID, what: str) -> None:
    name = f"{what}/{tenant_id}"
    tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 2))))


def _next_start(tx: Session, tenant_id: uuid.UUID) -> int:
    """Seconds until one of the tenant's jobs starts, going by how long jobs hold a slot."""
    soonest = tx.scalar(
        select(func.min(Pool.service / func.greatest(1, Line.active)))
        .select_from(Line)
        .join(Pool, Pool.base == Line.base)
        .where(Line.tenant_id == tenant_id, Line.queued > 0)
    )
    return min(3600, max(1, math.ceil(soonest if soonest is not None else 60.0)))
