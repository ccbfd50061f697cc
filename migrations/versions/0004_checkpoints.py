"""Checkpoints of two kinds, adapters that a later attempt adopted, ended jobs that were swept."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "checkpoints",
        sa.Column("kind", sa.String(length=8), server_default=sa.text("'state'"), nullable=False),
    )
    op.add_column("checkpoints", sa.Column("name", sa.Text(), nullable=True))
    op.create_check_constraint("checkpoints_kind", "checkpoints", "kind IN ('state', 'epoch')")
    op.drop_constraint("checkpoints_once", "checkpoints", type_="unique")
    op.create_unique_constraint(
        "checkpoints_once", "checkpoints", ["job_id", "kind", "step", "attempt"]
    )
    op.add_column("adapters", sa.Column("source_attempt", sa.BigInteger(), nullable=True))
    op.execute("UPDATE adapters SET source_attempt = attempt")
    op.alter_column("adapters", "source_attempt", nullable=False)
    op.add_column(
        "jobs", sa.Column("sweeps", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.create_index(
        "jobs_to_sweep",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("sweeps < 2 AND finished_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("jobs_to_sweep", table_name="jobs")
    op.drop_column("jobs", "sweeps")
    op.drop_column("adapters", "source_attempt")
    op.drop_constraint("checkpoints_once", "checkpoints", type_="unique")
    op.execute("DELETE FROM checkpoints WHERE kind <> 'state'")
    op.create_unique_constraint("checkpoints_once", "checkpoints", ["job_id", "step", "attempt"])
    op.drop_constraint("checkpoints_kind", "checkpoints", type_="check")
    op.drop_column("checkpoints", "name")
    op.drop_column("checkpoints", "kind")
