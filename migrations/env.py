"""Alembic's entry: connects as the owner and runs the revisions in one transaction."""

from alembic import context
from sqlalchemy import create_engine, pool

from manylora.ledger.tables import Table

engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Table.metadata)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
