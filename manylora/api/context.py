"""What every route needs: the ledger, the store, the settings, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from manylora.errors import AuthError
from manylora.ledger import tenants
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


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Parts = Annotated[Context, Depends(_context)]


def _caller(request: Request, parts: Parts) -> Caller:
    """Whom the bearer key speaks for. Raises: AuthError."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    with parts.database.transaction() as tx:
        return tenants.authenticate(
            tx,
            key.strip() if scheme.lower() == "bearer" else None,
            parts.settings.key_pepper.get_secret_value(),
        )


Tenant = Annotated[Caller, Depends(_caller)]


def _operator(caller: Tenant) -> Caller:
    """The caller, if it may change bases. Raises: AuthError."""
    if "operator" not in caller.scopes:
        raise AuthError("this key may not change bases", code="insufficient_permissions")
    return caller


Operator = Annotated[Caller, Depends(_operator)]
