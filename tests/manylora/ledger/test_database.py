"""Transactions: kept whole or not at all; and plain errors."""

import pytest
from sqlalchemy import text

from manylora.errors import UnavailableError
from manylora.ledger.database import Database, driver_url
from manylora.ledger.tables import Tenant
from manylora.local.ports import free_ports


def test_a_database_that_is_not_there_is_unavailable():
    (port,) = free_ports(1)
    database = Database(f"postgresql://u:p@127.0.0.1:{port}/x")
    with pytest.raises(UnavailableError) as told:
        database.ping()
    assert told.value.exit_code == 6
    assert "p@" not in str(told.value.__dict__)
    database.close()


def test_a_connection_that_is_cut_is_unavailable_once(ledger, urls):
    database = Database(urls.database_url, pool_size=1)
    database.ping()

    def cut():
        with database.transaction() as tx:
            mine = tx.scalar(text("SELECT pg_backend_pid()"))
            with ledger.transaction() as other:
                other.execute(text("SELECT pg_terminate_backend(:p)"), {"p": mine})
            tx.execute(text("SELECT 1"))

    with pytest.raises(UnavailableError):
        cut()
    database.ping()  # the pool noticed
    database.close()


def test_an_error_rolls_back(ledger):
    def broken():
        with ledger.transaction() as tx:
            tx.get(Tenant, ledger.tenant.id).name = "other"
            tx.flush()
            raise KeyError("x")

    with pytest.raises(KeyError):
        broken()
    with ledger.transaction() as tx:
        assert tx.get(Tenant, ledger.tenant.id).name == ledger.tenant.name


@pytest.mark.parametrize("start", ["postgresql://", "postgres://"])
def test_urls_are_taken_as_people_write_them(start):
    assert driver_url(f"{start}u@h/d") == "postgresql+psycopg://u@h/d"
    assert driver_url("postgresql+psycopg://u@h/d") == "postgresql+psycopg://u@h/d"
