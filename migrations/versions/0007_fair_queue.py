"""The fair queue: shares of tenants, lines of their jobs per base, what was decided about them.

A trigger notes each change of a job's state as a difference, so that nothing that changes a state
can forget it, and nobody who does waits for another: the scheduler adds the differences up.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NOW = sa.text("clock_timestamp()")
_ZERO = sa.text("0")
COUNTED = """
CREATE FUNCTION count_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was text := CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD.state END;
    held bigint := (NEW.state IN ('validating_files', 'paused'))::int
        - (was IN ('validating_files', 'paused'))::int;
    queued bigint := (NEW.state = 'queued')::int - (was = 'queued')::int;
    active bigint := (NEW.state IN ('dispatched', 'running'))::int
        - (was IN ('dispatched', 'running'))::int;
BEGIN
    IF held <> 0 OR queued <> 0 OR active <> 0 THEN
        INSERT INTO changes (tenant_id, base, held, queued, active, job_id)
        VALUES (NEW.tenant_id, NEW.base, held, queued, active,
                CASE WHEN queued > 0 THEN NEW.id END);
    END IF;
    RETURN NULL;
END $$
"""


def _count(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger(), server_default=_ZERO, nullable=False)


def upgrade() -> None:
    role = context.config.attributes["app_role"]
    op.create_table(
        "shares",
        sa.Column("tenant_id", sa.UUID(), nullable=False),
        sa.Column("weight", sa.Float(), server_default=sa.text("1"), nullable=False),
        sa.Column("max_queued", sa.BigInteger(), nullable=True),
        sa.Column("max_running", sa.BigInteger(), nullable=True),
        sa.Column("max_device_hours", sa.Float(), nullable=True),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_requests", sa.BigInteger(), nullable=True),
        sa.Column("used", sa.Float(), server_default=_ZERO, nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("day", sa.Date(), nullable=True),
        sa.Column("day_seconds", sa.Float(), server_default=_ZERO, nullable=False),
        sa.CheckConstraint("weight > 0", name="shares_weight"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "lines",
        sa.Column("tenant_id", sa.UUID(), nullable=False),
        sa.Column("base", sa.String(length=64), nullable=False),
        _count("held"),
        _count("queued"),
        _count("active"),
        sa.Column("since", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("turn", sa.Float(), server_default=_ZERO, nullable=False),
        sa.Column("stopped", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("stopped_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "base"),
    )
    op.create_index(
        "lines_next",
        "lines",
        ["base", "turn", "tenant_id"],
        postgresql_where=sa.text("queued > 0 AND NOT stopped"),
    )
    op.create_index(
        "lines_stopped", "lines", ["stopped_until"], postgresql_where=sa.text("stopped")
    )
    op.create_table(
        "pools",
        sa.Column("base", sa.String(length=64), nullable=False),
        _count("queued"),
        _count("active"),
        _count("slots"),
        _count("tenants"),
        sa.Column("weights", sa.Float(), server_default=_ZERO, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("pace", sa.Float(), nullable=True),
        sa.Column("service", sa.Float(), nullable=True),
        sa.Column(
            "ratios",
            sa.dialects.postgresql.JSONB(),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "spans",
            sa.dialects.postgresql.JSONB(),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "turns",
            sa.dialects.postgresql.JSONB(),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("level", sa.Float(), server_default=sa.text("0.9"), nullable=False),
        _count("foretold"),
        _count("in_time"),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("base"),
    )
    op.create_table(
        "changes",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.UUID(), nullable=False),
        sa.Column("base", sa.String(length=64), nullable=False),
        _count("held"),
        _count("queued"),
        _count("active"),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("changes_of_tenant", "changes", ["tenant_id"])

    op.add_column("jobs", sa.Column("deadline", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("foretold", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("promised", sa.Float(), nullable=True))
    op.add_column(
        "jobs",
        sa.Column(
            "rank",
            sa.Float(),
            sa.Computed(
                "extract(epoch FROM least(queued_at AT TIME ZONE 'UTC', (deadline AT TIME ZONE"
                " 'UTC') - interval '86400 seconds')) - 600 * priority",
                persisted=True,
            ),
            nullable=True,
        ),
    )
    op.drop_index("jobs_waiting", table_name="jobs")
    queued = sa.text("state = 'queued'")
    op.create_index(
        "jobs_in_line", "jobs", ["tenant_id", "base", "rank", "id"], postgresql_where=queued
    )
    op.create_index("jobs_oldest", "jobs", ["base", "queued_at"], postgresql_where=queued)
    op.create_index(
        "jobs_new",
        "jobs",
        ["tenant_id", "created_at"],
        postgresql_where=sa.text("state = 'validating_files'"),
    )
    op.add_column(
        "attempts", sa.Column("charged", sa.Float(), server_default=_ZERO, nullable=False)
    )
    op.add_column(
        "attempts",
        sa.Column("settled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.execute("UPDATE attempts SET settled = true WHERE ended_at IS NOT NULL")
    op.create_index(
        "attempts_unsettled",
        "attempts",
        ["ended_at"],
        postgresql_where=sa.text("ended_at IS NOT NULL AND NOT settled"),
    )
    op.execute(COUNTED)
    op.execute(
        "CREATE TRIGGER jobs_counted AFTER INSERT OR UPDATE OF state ON jobs"
        " FOR EACH ROW EXECUTE FUNCTION count_jobs()"
    )
    op.execute("INSERT INTO shares (tenant_id) SELECT id FROM tenants")
    op.execute(
        "INSERT INTO changes (tenant_id, base, held, queued, active)"
        " SELECT tenant_id, base, count(*) FILTER (WHERE state IN ('validating_files', 'paused')),"
        " count(*) FILTER (WHERE state = 'queued'),"
        " count(*) FILTER (WHERE state IN ('dispatched', 'running'))"
        " FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')"
        " GROUP BY tenant_id, base"
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON shares, lines, pools, changes TO {role}")


def downgrade() -> None:
    op.execute("DROP TRIGGER jobs_counted ON jobs")
    op.execute("DROP FUNCTION count_jobs()")
    op.drop_index("attempts_unsettled", table_name="attempts")
    op.drop_column("attempts", "settled")
    op.drop_column("attempts", "charged")
    for name in ("jobs_new", "jobs_oldest", "jobs_in_line"):
        op.drop_index(name, table_name="jobs")
    op.create_index(
        "jobs_waiting",
        "jobs",
        [sa.literal_column("priority DESC"), "queued_at", "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    for name in ("rank", "promised", "foretold", "deadline"):
        op.drop_column("jobs", name)
    for name in ("changes", "pools", "lines", "shares"):
        op.drop_table(name)
