"""/healthz (this process), /readyz (everything it needs), /v1/manylora/status (the service)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import redis
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import func, select

from manylora import __version__
from manylora.api.context import Context, Parts, Tenant
from manylora.errors import ManyloraError, UnavailableError
from manylora.ledger import schema, workers
from manylora.ledger.states import FINAL
from manylora.ledger.tables import Job

router = APIRouter()
_TICK_AGE = 30.0
_WAITING = ("validating_files", "queued", "dispatched", "running")


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok", "version": __version__}


def _broker(parts: Context) -> None:
    url = parts.settings.broker_url.get_secret_value()
    client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
    try:
        client.ping()
    except redis.RedisError as error:
        raise UnavailableError(f"the broker cannot be reached ({type(error).__name__})") from error
    finally:
        client.close()


def _schema(parts: Context) -> None:
    has, needs = schema.current(parts.database), schema.head()
    if has != needs:
        raise UnavailableError(f"the schema is {has}, needed is {needs}: manylora db upgrade")


def _scheduler(parts: Context) -> None:
    with parts.database.transaction() as tx:
        age = workers.last_tick_age(tx)
    if age is None or age > _TICK_AGE:
        raise UnavailableError("no scheduler has made a round within 30 s")


@router.get("/readyz")
def readyz(parts: Parts) -> JSONResponse:
    """Each part by name: "ok", or what is wrong with it."""
    checks: dict[str, Callable[[], None]] = {
        "database": parts.database.ping,
        "schema": lambda: _schema(parts),
        "store": parts.store.ping,
        "broker": lambda: _broker(parts),
        "scheduler": lambda: _scheduler(parts),
    }
    found = {}
    for name, check in checks.items():
        try:
            check()
            found[name] = "ok"
        except ManyloraError as error:
            found[name] = error.message
    good = set(found.values()) == {"ok"}
    return JSONResponse({"ready": good, "checks": found}, 200 if good else 503)


@router.get("/v1/manylora/status")
def status(parts: Parts, _: Tenant) -> dict[str, Any]:
    """Queue depth, slots, workers, the last scheduling round."""
    with parts.database.transaction() as tx:
        counts = tx.execute(
            select(Job.state, func.count())
            .where(Job.state.not_in([s.value for s in FINAL]))
            .group_by(Job.state)
        )
        queue = dict.fromkeys(_WAITING, 0) | dict(counts.all())
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
