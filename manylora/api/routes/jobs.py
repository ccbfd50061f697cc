"""/v1/fine_tuning/jobs: create, list, get, cancel, pause, resume, events."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from manylora import crash, hyperparameters
from manylora.api import lookups, wire
from manylora.api.context import Context, Parts, Tenant
from manylora.datasets.arrays import require_kind
from manylora.errors import BadSpecError, NotFoundError, UsageError
from manylora.ledger import adapters, bases, events, explain, files, jobs, shares
from manylora.ledger.tables import Job

router = APIRouter(prefix="/v1/fine_tuning/jobs")
_QUALITY = "quality.json"
_REPEAT = re.compile(r"[1-9][0-9]{0,3}")


class Create(BaseModel):
    """The body of a new job, as the client sends it; nulls mean "not given"."""

    model_config = ConfigDict(extra="forbid")

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    integrations: list[Any] | None = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None
    priority: int = Field(0, ge=-100, le=100)
    #: seconds since 1970
    deadline: int | None = Field(None, ge=0, le=2**40)

    @field_validator("method", "hyperparameters")
    @classmethod
    def _text(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refuse lone surrogates, which neither msgspec nor PostgreSQL can hold."""
        json.dumps(value, ensure_ascii=False).encode()  # a UnicodeError is a ValueError: a 400
        return value

    def asked(self) -> dict[str, Any]:
        """The hyperparameters, wherever the client put them. Raises: UsageError."""
        if self.integrations:
            raise UsageError("integrations are not supported", param="integrations")
        for key, value in (self.metadata or {}).items():
            if len(key) > 64 or len(value) > 512:
                raise UsageError("metadata: keys to 64, values to 512 characters", param="metadata")
        if self.method is None:
            return self.hyperparameters or {}
        kind = self.method.get("type")
        if kind != "supervised":
            raise UsageError(
                f"method {kind!r} is not supported", hint="supervised", param="method.type"
            )
        inner = self.method.get("supervised") or {}
        given = inner.get("hyperparameters") if isinstance(inner, dict) else None
        return given if isinstance(given, dict) else self.hyperparameters or {}


def _show(tx: Session, row: Job, tenant: str, parts: Context) -> dict[str, Any]:
    shown = wire.job(row, adapters.of_job(tx, row.id), tenant, parts)
    shown["x"]["waiting_for"] = explain.reason(tx, row)
    return shown


@router.post("")
def create(
    parts: Parts,
    caller: Tenant,
    body: Create,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    x_stainless_retry_count: Annotated[str, Header()] = "0",
) -> dict[str, Any]:
    """Record a wish for an adapter.

    The openai client sends no idempotency key and repeats a request that timed out, saying so:
    such a repeat is answered with the job its first try made. Any client may send an
    `Idempotency-Key`.
    """
    asked = body.asked()
    digest = lookups.body_digest(body.model_dump())
    with parts.database.transaction() as tx:
        if idempotency_key is None:
            # The first try may still be at work: its job is to be seen before one is made.
            lookups.lock(tx, caller.tenant_id, digest)
            again = _REPEAT.fullmatch(x_stainless_retry_count) is not None
            first = lookups.made_before(tx, caller.tenant_id, digest) if again else None
            if first is not None:
                return _show(tx, first, caller.tenant, parts)
        base = bases.get(tx, body.model, held=True)
        resolved = hyperparameters.resolve(
            hyperparameters.parse(asked), hidden_size=base.hidden_size, layers=base.layers
        )
        hyperparameters.check_layers(resolved, base.layers)
        if resolved.context_length > parts.settings.max_context_length:
            raise BadSpecError(
                f"context_length {resolved.context_length} is over the limit",
                hint=f"at most {parts.settings.max_context_length}",
                param="hyperparameters.context_length",
            )
        shares.check_queued(tx, caller.tenant_id, parts.settings.max_queued)
        named = {"training_file": body.training_file, "validation_file": body.validation_file}
        for param, file_id in named.items():
            if file_id:
                file = files.get(tx, caller.tenant_id, file_id)
                require_kind(file.filename, base.network, param)
        row = jobs.create(
            tx,
            tenant_id=caller.tenant_id,
            base=base.name,
            base_fingerprint=base.fingerprint,
            training_file=body.training_file,
            validation_file=body.validation_file,
            suffix=body.suffix,
            seed=body.seed if body.seed is not None else secrets.randbelow(2**31),
            asked=asked | {lookups.BODY: digest},
            hyperparameters=resolved.as_json(),
            job_metadata=body.metadata,
            priority=body.priority,
            deadline=_deadline(tx, body.deadline),
            idempotency_key=_hashed(idempotency_key),
        )
        shown = _show(tx, row, caller.tenant, parts)
        crash.point("submit_before_commit")
    crash.point("submit_after_commit")
    return shown


def _deadline(tx: Session, at: int | None) -> dt.datetime | None:
    """Raises: UsageError for a moment that is over."""
    if at is None:
        return None
    wanted = dt.datetime.fromtimestamp(at, dt.UTC)
    now = tx.scalar(select(func.clock_timestamp()))
    if now is not None and wanted <= now:
        raise UsageError(
            f"deadline {wanted:%Y-%m-%d %H:%M:%S} UTC is in the past",
            hint=f"it is {now.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC here",
            param="deadline",
        )
    return wanted


def _hashed(key: str | None) -> str | None:
    return None if key is None else hashlib.sha256(key.encode()).hexdigest()


@router.get("")
def page(
    request: Request,
    parts: Parts,
    caller: Tenant,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The tenant's jobs, newest first; `metadata[key]=value` filters, `metadata=null` takes those
    that have none."""
    wanted = {
        key[len("metadata[") : -1]: value
        for key, value in request.query_params.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    with parts.database.transaction() as tx:
        if request.query_params.get("metadata") == "null":
            rows, more = lookups.without_metadata(tx, caller.tenant_id, after=after, limit=limit)
        else:
            rows, more = jobs.page(tx, caller.tenant_id, after=after, limit=limit, metadata=wanted)
        return wire.listing(rows, more, lambda row: _show(tx, row, caller.tenant, parts))


@router.get("/{job_id}")
def get(parts: Parts, caller: Tenant, job_id: str) -> dict[str, Any]:
    """One job; of one that waits also its place, in `x.queue`."""
    with parts.database.transaction() as tx:
        row = jobs.get(tx, caller.tenant_id, job_id)
        shown = _show(tx, row, caller.tenant, parts)
        place = explain.place(tx, row)
        shown["x"]["queue"] = place
        if place is not None and place["finish"] is not None:
            shown["estimated_finish"] = int(time.time() + place["finish"]["p50"])
        return shown


@router.post("/{job_id}/cancel")
def cancel(parts: Parts, caller: Tenant, job_id: str) -> dict[str, Any]:
    """Cancel a job; once answered it reads `cancelled`."""
    with parts.database.transaction() as tx:
        return _show(tx, jobs.cancel(tx, caller.tenant_id, job_id), caller.tenant, parts)


@router.post("/{job_id}/pause")
def pause(parts: Parts, caller: Tenant, job_id: str) -> dict[str, Any]:
    """Hold a job back; one that runs stops at its next checkpoint and reads `paused` then."""
    with parts.database.transaction() as tx:
        return _show(tx, jobs.pause(tx, caller.tenant_id, job_id), caller.tenant, parts)


@router.post("/{job_id}/resume")
def resume(parts: Parts, caller: Tenant, job_id: str) -> dict[str, Any]:
    """Let a paused job go on from its checkpoint, at the end of the queue."""
    with parts.database.transaction() as tx:
        return _show(tx, jobs.resume(tx, caller.tenant_id, job_id), caller.tenant, parts)


@router.get("/{job_id}/quality")
def quality(parts: Parts, caller: Tenant, job_id: str) -> dict[str, Any]:
    """A job's quality report, for those that asked for one (`quality_report`); the job by its
    id, its suffix or its adapter's name."""
    with parts.database.transaction() as tx:
        row = adapters.find(tx, caller.tenant_id, job_id)
    try:
        found = json.loads(parts.store.get_bytes(f"{row.prefix}/{_QUALITY}"))
    except NotFoundError as error:
        raise NotFoundError(
            f"{job_id} has no quality report",
            code="no_quality_report",
            hint="submit with --quality (hyperparameter quality_report) to have one",
        ) from error
    return {"object": "manylora.quality", "job_id": row.job_id, "adapter": row.name, **found}


@router.get("/{job_id}/events")
def history(
    parts: Parts,
    caller: Tenant,
    job_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> dict[str, Any]:
    """A job's events, newest first."""
    with parts.database.transaction() as tx:
        jobs.get(tx, caller.tenant_id, job_id)
        rows, more = events.page(tx, caller.tenant_id, job_id, after=after, limit=limit)
        return wire.listing(rows, more, wire.event)
