"""Tenants and keys: shown once, kept as a keyed hash, refused in one way."""

import hashlib
import hmac
import uuid

import pytest
from sqlalchemy import text

from manylora.errors import AuthError, ConflictError, UsageError
from manylora.ledger import tenants

PEPPER = "a pepper"


@pytest.fixture
def key(ledger):
    with ledger.transaction() as tx:
        return tenants.mint_key(tx, ledger.tenant, PEPPER, scopes=("tenant", "operator"))


def authenticate(ledger, key, pepper=PEPPER):
    with ledger.transaction() as tx:
        return tenants.authenticate(tx, key, pepper)


def test_a_key_speaks_for_its_tenant(ledger, key):
    caller = authenticate(ledger, key)
    assert (caller.tenant_id, caller.tenant) == (ledger.tenant.id, ledger.tenant.name)
    assert caller.scopes == {"tenant", "operator"}


def test_only_a_keyed_hash_of_it_is_kept(ledger, key):
    _, key_id, secret = key.split("_", 2)
    with ledger.transaction() as tx:
        rows = tx.execute(text("SELECT k::text, k.secret_hash, k.id FROM api_keys k")).all()
    mine = next(row for row in rows if row.id == key_id)
    assert secret not in "".join(row[0] for row in rows)
    keyed = hmac.new(PEPPER.encode(), secret.encode(), hashlib.sha256).hexdigest()
    assert mine.secret_hash == keyed != hashlib.sha256(secret.encode()).hexdigest()


def test_every_wrong_key_is_refused_with_the_same_words(ledger, key):
    start, key_id, secret = key.split("_", 2)
    wrong = [
        f"{start}_{key_id}_{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}",
        f"{start}_{'0' * 12}_{secret}",
        f"{key} ",
        key.upper(),
        "ml__",
        "x" * 10_000,
    ]
    said = []
    for attempt in wrong:
        with pytest.raises(AuthError) as refused:
            authenticate(ledger, attempt)
        said.append(refused.value.message)
    with pytest.raises(AuthError) as refused:
        authenticate(ledger, key, pepper="another")
    said.append(refused.value.message)
    for column in ("revoked_at", "expires_at"):
        with ledger.transaction() as tx:
            tx.execute(
                text(f"UPDATE api_keys SET {column} = clock_timestamp() WHERE id = :i"),
                {"i": key_id},
            )
        with pytest.raises(AuthError) as refused:
            authenticate(ledger, key)
        said.append(refused.value.message)
        with ledger.transaction() as tx:
            tx.execute(text(f"UPDATE api_keys SET {column} = NULL WHERE id = :i"), {"i": key_id})
    assert authenticate(ledger, key)  # it was the columns
    assert set(said) == {"this API key is not valid"}


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_key_is_told_so(ledger, nothing):
    with pytest.raises(AuthError, match="no API key"):
        authenticate(ledger, nothing)


@pytest.mark.parametrize("name", ["", "-a", "A", "a b", "a" * 41, "ä", "a/b", "a\n"])
def test_a_tenants_name_is_plain(ledger, name):
    with ledger.transaction() as tx, pytest.raises(UsageError):
        tenants.create(tx, name)


def test_a_tenants_name_is_taken_once(ledger):
    with ledger.transaction() as tx, pytest.raises(ConflictError):
        tenants.create(tx, ledger.tenant.name)
    with ledger.transaction() as tx:
        assert tenants.find(tx, ledger.tenant.name).id == ledger.tenant.id
        assert tenants.find(tx, uuid.uuid4().hex) is None
