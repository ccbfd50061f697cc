"""Moves: failures by kind, preemptions, wishes, back-off, wake-ups sent again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COUNTERS = ("failures_lost", "failures_oom", "failures_infra", "failures_user", "preemptions")


def upgrade() -> None:
    for name in COUNTERS:
        op.add_column(
            "jobs", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
        )
    op.execute("UPDATE jobs SET failures_lost = failures")
    op.add_column("jobs", sa.Column("wish", sa.String(length=16), nullable=True))
    op.add_column("jobs", sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("resend_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        "jobs_wish",
        "jobs",
        "wish IS NULL OR (state = 'running' AND wish IN ('pause', 'preempt'))",
    )


def downgrade() -> None:
    op.drop_constraint("jobs_wish", "jobs", type_="check")
    for name in ("resend_at", "not_before", "wish", *COUNTERS):
        op.drop_column("jobs", name)
