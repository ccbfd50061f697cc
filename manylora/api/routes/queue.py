"""/v1/manylora/queue: what of the tenant's waits, and why; /v1/manylora/tenants: shares and quotas,
for operators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from manylora.api import wire
from manylora.api.context import Operator, Parts, Tenant
from manylora.ledger import explain, jobs, shares

router = APIRouter(prefix="/v1/manylora")


class Change(BaseModel):
    """What to set; what is not named stays, null takes a quota away."""

    model_config = ConfigDict(extra="forbid")

    weight: float | None = None
    max_queued: int | None = None
    max_running: int | None = None
    max_device_hours: float | None = None
    max_bytes: int | None = None
    max_requests: int | None = None


@router.get("/queue")
def lines(parts: Parts, caller: Tenant) -> dict[str, Any]:
    """For each base the tenant has jobs of: counts, share, reason, when the next one starts."""
    with parts.database.transaction() as tx:
        return {"object": "list", "data": explain.lines(tx, caller.tenant_id)}


@router.get("/queue/{job_id}")
def place(parts: Parts, caller: Tenant, job_id: str) -> dict[str, Any]:
    """Where one job stands; `place` is null once it waits no more."""
    with parts.database.transaction() as tx:
        row = jobs.get(tx, caller.tenant_id, job_id)
        return {"id": row.id, "object": "queue.place", "place": explain.place(tx, row)}


@router.get("/tenants")
def page(parts: Parts, _: Operator) -> dict[str, Any]:
    """Every tenant's weight, quotas and use."""
    with parts.database.transaction() as tx:
        data = [
            wire.share(tenant.name, share or shares.of(tx, tenant.id))
            for tenant, share in shares.page(tx)
        ]
        return {"object": "list", "data": data}


@router.patch("/tenants/{name}")
def change(parts: Parts, _: Operator, name: str, body: Change) -> dict[str, Any]:
    """Set a tenant's weight or quotas."""
    with parts.database.transaction() as tx:
        tenant, share = shares.change(tx, name, body.model_dump(exclude_unset=True))
        return wire.share(tenant.name, share)
