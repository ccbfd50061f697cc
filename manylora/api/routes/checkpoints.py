"""/v1/fine_tuning/jobs/{id}/checkpoints: the adapter after each epoch, the last and the best."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from manylora.api import wire
from manylora.api.context import Parts, Tenant
from manylora.ledger import checkpoints

router = APIRouter(prefix="/v1/fine_tuning/jobs")


@router.get("/{job_id}/checkpoints")
def page(
    parts: Parts,
    caller: Tenant,
    job_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> dict[str, Any]:
    """A job's checkpoints, newest first; that of the last step is the adapter itself."""
    with parts.database.transaction() as tx:
        rows, more = checkpoints.page(tx, caller.tenant_id, job_id, after=after, limit=limit)
        return wire.listing(rows, more, lambda row: wire.checkpoint(row, parts))
