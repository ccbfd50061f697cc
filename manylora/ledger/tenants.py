"""Tenants and their API keys: `ml_<key id>_<secret>`; only a keyed hash of the secret is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from manylora.errors import AuthError, ConflictError, UsageError
from manylora.ledger.tables import ApiKey, Job, Tenant

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_KEY = re.compile(r"ml_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Caller:
    """Whom a valid key speaks for."""

    tenant_id: uuid.UUID
    tenant: str
    key_id: str
    scopes: frozenset[str]


def create(tx: Session, name: str) -> Tenant:
    """A new tenant.

    Raises: UsageError for a bad name, ConflictError for a taken one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a tenant's name", hint="lower-case letters, digits and dashes, 1..40"
        )
    if tx.scalar(select(Tenant.id).where(Tenant.name == name)) is not None:
        raise ConflictError(f"there is a tenant called {name!r} already")
    tenant = Tenant(id=uuid.uuid4(), name=name)
    tx.add(tenant)
    tx.flush()
    return tenant


def find(tx: Session, name: str) -> Tenant | None:
    """The tenant of that name."""
    return tx.scalar(select(Tenant).where(Tenant.name == name))


def of_jobs(tx: Session, job_ids: Collection[str]) -> dict[str, str]:
    """Whose each of these jobs is, for the log."""
    if not job_ids:
        return {}
    rows = tx.execute(select(Job.id, Job.tenant_id).where(Job.id.in_(job_ids)))
    return {job_id: str(tenant_id) for job_id, tenant_id in rows.all()}


def mint_key(tx: Session, tenant: Tenant, pepper: str, *, scopes: tuple[str, ...]) -> str:
    """A new API key, returned this once in full (256 random bits)."""
    key_id = secrets.token_hex(6)
    secret = secrets.token_urlsafe(32)
    tx.add(
        ApiKey(
            id=key_id,
            tenant_id=tenant.id,
            secret_hash=_hash(secret, pepper),
            scopes=list(scopes),
        )
    )
    return f"ml_{key_id}_{secret}"


def authenticate(tx: Session, key: str | None, pepper: str) -> Caller:
    """Whom the bearer key speaks for.

    Raises: AuthError, with the same words for an unknown, a wrong and an expired key.
    """
    if not key:
        raise AuthError(
            "no API key was sent", hint="send `Authorization: Bearer <key>`; see client.env"
        )
    refused = AuthError("this API key is not valid", hint="check MANYLORA_API_KEY")
    match = _KEY.fullmatch(key)
    if match is None:
        raise refused
    row = tx.execute(
        select(ApiKey, Tenant.name)
        .join(Tenant, Tenant.id == ApiKey.tenant_id)
        .where(
            ApiKey.id == match[1],
            ApiKey.revoked_at.is_(None),
            ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.clock_timestamp()),
        )
    ).one_or_none()
    if row is None or not hmac.compare_digest(row[0].secret_hash, _hash(match[2], pepper)):
        raise refused
    return Caller(row[0].tenant_id, row[1], row[0].id, frozenset(row[0].scopes))


def _hash(secret: str, pepper: str) -> str:
    return hmac.new(pepper.encode(), secret.encode(), hashlib.sha256).hexdigest()
