"""/v1/models: the bases one may train on, and the tenant's own adapters."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from manylora.api import wire
from manylora.api.context import Parts, Tenant
from manylora.errors import NotFoundError, UnknownBaseError
from manylora.ledger import adapters, bases

router = APIRouter(prefix="/v1/models")


@router.get("")
def page(parts: Parts, caller: Tenant) -> dict[str, Any]:
    """All of them."""
    with parts.database.transaction() as tx:
        data = [wire.model(row.name, row.created_at, "operator") for row in bases.ready(tx)]
        mine = adapters.page(tx, caller.tenant_id, limit=1000)
        data += [wire.model(row.name, row.created_at, caller.tenant) for row, _ in mine]
        return {"object": "list", "data": data}


@router.get("/{name:path}")
def get(parts: Parts, caller: Tenant, name: str) -> dict[str, Any]:
    """One of them."""
    with parts.database.transaction() as tx:
        if name.startswith("ft:"):
            row = adapters.find(tx, caller.tenant_id, name)
            return wire.model(row.name, row.created_at, caller.tenant)
        try:
            base = bases.get(tx, name)
        except UnknownBaseError as error:
            raise NotFoundError(
                error.message, hint=error.hint, param="model", code=error.error_code
            ) from error
        return wire.model(base.name, base.created_at, "operator")
