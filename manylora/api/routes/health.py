"""/healthz and /metrics (this process), /readyz (everything it needs), /v1/manylora/status (the
service)."""

from __future__ import annotations

import datetime as dt
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy import func, select

from manylora import __version__
from manylora.api.context import Parts, Tenant
from manylora.checks import all_good, ask, service_checks
from manylora.ledger import lines, schema, workers
from manylora.ledger.tables import Job
from manylora.metrics import CONTENT_TYPE

router = APIRouter()
_AT_WORK = ("validating_files", "dispatched", "running")
_WAITING = ("queued", *_AT_WORK)


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz")
def readyz(parts: Parts) -> JSONResponse:
    """Each part by name: "ok", or what is wrong with it and what to do."""
    found = ask(service_checks(parts.settings, parts.database, parts.store))
    good = all_good(found)
    return JSONResponse({"ready": good, "checks": found}, 200 if good else 503)


@router.get("/metrics")
def metrics(parts: Parts) -> Response:
    """What this process counts, for Prometheus. It names no tenant."""
    return Response(parts.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/v1/manylora/status")
def status(parts: Parts, _: Tenant) -> dict[str, Any]:
    """Queue depth, slots, workers, the last scheduling round."""
    with parts.database.transaction() as tx:
        counts = tx.execute(
            select(Job.state, func.count()).where(Job.state.in_(_AT_WORK)).group_by(Job.state)
        )
        queue = dict.fromkeys(_WAITING, 0) | dict(counts.all()) | {"queued": lines.queued(tx)}
        alive = workers.alive(tx, within_seconds=parts.settings.lease_seconds)
        busy = workers.busy(tx)
        now = tx.scalar(select(func.clock_timestamp())) or dt.datetime.now(dt.UTC)
        return {
            "version": __version__,
            "schema": schema.head(),
            "scheduler_tick_age": workers.last_tick_age(tx),
            "queue": queue,
            "slots": sum(w.slots for w in alive if w.state == "ready"),
            "busy": sum(busy.values()),
            "workers": [
                {
                    "id": w.id,
                    "device_kind": w.device_kind,
                    "slots": w.slots,
                    "assigned_base": w.assigned_base,
                    "state": w.state,
                    "note": w.note,
                    "heartbeat_age": round((now - w.heartbeat_at).total_seconds(), 1),
                }
                for w in alive
            ],
        }
