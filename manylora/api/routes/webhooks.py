"""/v1/manylora/webhooks: the endpoints that are told when a job ends, and what became of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from manylora import destinations
from manylora.api import wire
from manylora.api.context import Parts, Tenant
from manylora.destinations import Allowed
from manylora.errors import UsageError
from manylora.ledger import webhooks

router = APIRouter(prefix="/v1/manylora/webhooks")


class Create(BaseModel):
    """The body of a new endpoint."""

    model_config = ConfigDict(extra="forbid")

    url: str
    events: list[str] | None = Field(None, min_length=1, max_length=len(webhooks.TYPES))


@router.post("")
def create(parts: Parts, caller: Tenant, body: Create) -> dict[str, Any]:
    """Add an endpoint; its secret is in this answer and in no other."""
    known = set(webhooks.TYPES.values())
    unknown = sorted(set(body.events or ()) - known)
    if unknown:
        raise UsageError(
            f"no event is called {unknown[0]!r}", param="events", hint=", ".join(sorted(known))
        )
    destinations.check(body.url, Allowed.from_setting(parts.settings.webhook_networks))
    with parts.database.transaction() as tx:
        row = webhooks.add(
            tx,
            caller.tenant_id,
            url=body.url,
            types=set(body.events or known),
            most=parts.settings.max_webhooks,
        )
        return wire.webhook(row) | {"secret": row.secret}


@router.get("")
def page(parts: Parts, caller: Tenant) -> dict[str, Any]:
    """The tenant's endpoints, oldest first, without their secrets."""
    with parts.database.transaction() as tx:
        return wire.listing(webhooks.page(tx, caller.tenant_id), False, wire.webhook)


@router.delete("/{webhook_id}")
def remove(parts: Parts, caller: Tenant, webhook_id: str) -> dict[str, Any]:
    """Forget an endpoint."""
    with parts.database.transaction() as tx:
        webhooks.remove(tx, caller.tenant_id, webhook_id)
    return {"id": webhook_id, "object": "webhook", "deleted": True}


@router.get("/{webhook_id}/deliveries")
def deliveries(
    parts: Parts,
    caller: Tenant,
    webhook_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """Messages to an endpoint, newest first; what was settled 30 days ago is gone."""
    with parts.database.transaction() as tx:
        rows, more = webhooks.deliveries(tx, caller.tenant_id, webhook_id, after=after, limit=limit)
        return wire.listing(rows, more, wire.delivery)
