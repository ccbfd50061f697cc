"""Migrations and roles, on an empty database of the test's own."""

import uuid

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy import inspect

from manylora.errors import UsageError
from manylora.ledger import schema
from manylora.ledger.database import Database
from manylora.ledger.states import JobState
from manylora.ledger.tables import Table
from manylora.local import credentials
from manylora.local.postgres import OWNER


@pytest.fixture
def fresh(urls, server_home):
    """(owner's URL, app's URL) of a new, empty database."""
    name = f"fresh_{uuid.uuid4().hex[:8]}"
    password = credentials.secrets_of(server_home)["postgres"]
    place = urls.database_owner_url.rsplit("@", 1)[1].split("/")[0]
    admin = f"postgresql://postgres:{password}@{place}/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(OWNER)
            )
        )
        yield tuple(
            url.rsplit("/", 1)[0] + f"/{name}"
            for url in (urls.database_owner_url, urls.database_url)
        )
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def owner(fresh):
    database = Database(fresh[0])
    yield database
    database.close()


def test_from_nothing_to_the_head_and_back(fresh, owner):
    assert schema.current(owner) is None
    schema.upgrade(fresh[0])
    assert schema.current(owner) == schema.head()
    schema.upgrade(fresh[0])  # nothing to do
    tables = set(inspect(owner.engine).get_table_names())
    assert tables == set(Table.metadata.tables) | {"alembic_version"}
    config = schema._config(str(owner.engine.url.render_as_string(hide_password=False)))
    command.downgrade(config, "base")
    assert set(inspect(owner.engine).get_table_names()) == {"alembic_version"}
    schema.upgrade(fresh[0])
    assert schema.current(owner) == schema.head()


def test_the_models_and_the_migrations_agree(fresh, owner):
    schema.upgrade(fresh[0])
    with owner.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Table.metadata) == []
        # Alembic does not compare checks: theirs are compared by name, and the states by value.
        made = {
            (table, check["name"]): check["sqltext"]
            for table in Table.metadata.tables
            for check in inspect(connection).get_check_constraints(table)
        }
    meant = {
        (table.name, constraint.name)
        for table in Table.metadata.tables.values()
        for constraint in table.constraints
        if type(constraint).__name__ == "CheckConstraint"
    }
    assert set(made) == meant
    for state in JobState:
        assert f"'{state.value}'" in made["jobs", "jobs_state"]


def test_a_role_with_an_odd_name_is_refused(fresh):
    for role in ("a; DROP TABLE jobs", "", "A", "x" * 64):
        with pytest.raises(UsageError):
            schema.upgrade(fresh[0], role)


FORBIDDEN = [
    "CREATE TABLE mine (x int)",
    "DROP TABLE metrics",
    "ALTER TABLE jobs ADD COLUMN x int",
    "ALTER TABLE jobs DROP CONSTRAINT jobs_state",
    "TRUNCATE jobs CASCADE",
    "CREATE INDEX mine_too ON jobs (id)",
    "CREATE SCHEMA mine",
    "UPDATE alembic_version SET version_num = '9'",
    "DELETE FROM alembic_version",
    "UPDATE events SET message = ''",
    "DELETE FROM events",
    "TRUNCATE events",
]


def test_the_app_role_works_with_rows_only_and_the_owner_with_tables(fresh):
    schema.upgrade(fresh[0])
    owner, app = fresh
    with psycopg.connect(app, autocommit=True) as connection:
        for statement in FORBIDDEN:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        tenant = uuid.uuid4()
        connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'a')", [tenant])
        connection.execute("UPDATE tenants SET name = 'b' WHERE id = %s", [tenant])
        assert connection.execute("SELECT name FROM tenants").fetchall() == [("b",)]
        connection.execute("DELETE FROM tenants")
    with psycopg.connect(owner, autocommit=True) as connection:
        for statement in FORBIDDEN[2:6] + FORBIDDEN[:2]:
            connection.execute(statement)
