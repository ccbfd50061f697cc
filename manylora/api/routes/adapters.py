"""/v1/manylora/adapters and a job's metric points: what the CLI fetches and plots."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query

from manylora.api import wire
from manylora.api.context import Parts, Tenant
from manylora.ledger import adapters, events, jobs

router = APIRouter(prefix="/v1/manylora")


@router.get("/adapters")
def page(parts: Parts, caller: Tenant) -> dict[str, Any]:
    """The tenant's adapters, newest first."""
    with parts.database.transaction() as tx:
        rows = adapters.page(tx, caller.tenant_id)
        return {"object": "list", "data": [wire.adapter(a, job, parts) for a, job in rows]}


@router.get("/adapters/{ref:path}")
def get(parts: Parts, caller: Tenant, ref: str) -> dict[str, Any]:
    """One adapter by name, job or suffix, with a URL for each of its files."""
    with parts.database.transaction() as tx:
        row = adapters.find(tx, caller.tenant_id, ref)
    manifest = json.loads(parts.store.get_bytes(row.manifest_key))
    return wire.adapter(row, None, parts) | {
        "files": [
            {**f, "url": parts.store.presign_get(f"{row.prefix}/{f['name']}", f["name"])}
            for f in manifest["files"]
        ],
        "manifest": {
            "url": parts.store.presign_get(row.manifest_key, "manifest.json"),
            "sha256": row.manifest_sha256,
        },
    }


@router.get("/jobs/{job_id}/metrics")
def metrics(
    parts: Parts,
    caller: Tenant,
    job_id: str,
    after_step: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """A job's metric points after a step, in order."""
    with parts.database.transaction() as tx:
        jobs.get(tx, caller.tenant_id, job_id)
        rows = events.metrics(tx, job_id, after_step=after_step)
        return {"data": [{"step": row.step, **row.data} for row in rows]}
