"""Bases that a function builds: what they are asked for, read and make."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("bases", sa.Column("network", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("bases", "network")
