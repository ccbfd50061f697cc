"""The way into PostgreSQL: one engine, short transactions, plain errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from manylora.errors import UnavailableError


def driver_url(url: str) -> str:
    """`postgresql://…` as SQLAlchemy wants it for psycopg 3."""
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


class Database:
    """The ledger's database. Thread-safe; close it when done."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.engine: Engine = create_engine(
            driver_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            hide_parameters=True,  # secrets are among what is written, and errors are logged
            connect_args={"connect_timeout": 5, "options": "-c statement_timeout=30000"},
        )

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any error.

        Raises: UnavailableError when the database cannot be reached or breaks off.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except (OperationalError, InterfaceError) as error:
            raise UnavailableError(
                "the database cannot be reached",
                hint="is PostgreSQL up? `manylora status` shows the embedded one",
                details=type(error.orig).__name__,
            ) from error

    def ping(self) -> None:
        """Raises UnavailableError unless a query goes through."""
        with self.transaction() as tx:
            tx.execute(text("SELECT 1"))

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()


def times(tx: Session) -> tuple[float, float]:
    """The database's time, in seconds since the epoch, and for how many seconds it has been up."""
    now, up = tx.execute(
        text(
            "SELECT extract(epoch FROM t), extract(epoch FROM t - pg_postmaster_start_time())"
            " FROM clock_timestamp() AS t"
        )
    ).one()
    return float(now), float(up)
