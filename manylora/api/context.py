"""What every route needs: the ledger, the store, the settings, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from manylora.api.rate import Rate
from manylora.errors import AuthError
from manylora.ledger import shares, tenants
from manylora.ledger.database import Database
from manylora.ledger.tenants import Caller
from manylora.metrics import ApiMetrics
from manylora.settings import Settings
from manylora.storage.store import Store


@dataclass(frozen=True)
class Context:
    """The parts of one API process."""

    settings: Settings
    database: Database
    store: Store
    metrics: ApiMetrics
    rate: Rate = field(default_factory=Rate)


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Parts = Annotated[Context, Depends(_context)]


def _caller(request: Request, parts: Parts) -> Caller:
    """Whom the bearer key speaks for. Raises: AuthError; QuotaError for too many requests."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    with parts.database.transaction() as tx:
        caller = tenants.authenticate(
            tx,
            key.strip() if scheme.lower() == "bearer" else None,
            parts.settings.key_pepper.get_secret_value(),
        )
        most = shares.of(tx, caller.tenant_id).max_requests
    if most is not None:
        parts.rate.take(caller.tenant_id, most)
    return caller


Tenant = Annotated[Caller, Depends(_caller)]


def _operator(caller: Tenant) -> Caller:
    """The caller, if it may change bases and quotas. Raises: AuthError."""
    if "operator" not in caller.scopes:
        raise AuthError("this key is no operator's", code="insufficient_permissions")
    return caller


Operator = Annotated[Caller, Depends(_operator)]
