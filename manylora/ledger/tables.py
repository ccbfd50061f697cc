"""The tables, typed. What they mean stands beside each column that does not say it itself.

Rows never talk to the database: the verbs are in the modules named after the nouns.
Times are `timestamptz`, written by the database's own clock.
"""

from __future__ import annotations

import datetime as dt
import uuid

from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKey,
    Identity,
    Index,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from manylora.ledger.queue_tables import Change as Change
from manylora.ledger.queue_tables import Line as Line
from manylora.ledger.queue_tables import Pool as Pool
from manylora.ledger.queue_tables import Share as Share
from manylora.ledger.root import Json, Table
from manylora.ledger.states import JobState

_NOW = func.clock_timestamp()


class Tenant(Table):
    """Who owns files, jobs and adapters; `organization_id` on the wire."""

    __tablename__ = "tenants"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)


class ApiKey(Table):
    """A bearer key. Only the keyed hash of its secret half is kept."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    tenant_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tenants.id"))
    secret_hash: Mapped[str] = mapped_column(String(64))
    #: "tenant" for one's own things, "operator" to register bases
    scopes: Mapped[list[str]]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]


class Webhook(Table):
    """An endpoint of a tenant's that is told when a job of its ends."""

    __tablename__ = "webhooks"
    __table_args__ = (
        Index("webhooks_of_tenant", "tenant_id", postgresql_where=text("deleted_at IS NULL")),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tenants.id"))
    url: Mapped[str]
    #: kept as it is, for every message is signed with it; emptied when the endpoint is removed
    secret: Mapped[str]
    #: the types it wants to hear of
    events: Mapped[list[str]]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    #: a row is never deleted: an end of a job being written just now may still refer to it
    deleted_at: Mapped[dt.datetime | None]


class Delivery(Table):
    """The outbox: one message to one endpoint, written in the transaction that ended the job."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="deliveries_state"),
        CheckConstraint("(state = 'pending') = (settled_at IS NULL)", name="deliveries_settled"),
        UniqueConstraint("webhook_id", "job_id", "type", name="deliveries_once"),
        Index("deliveries_due", "next_at", postgresql_where=text("state = 'pending'")),
        Index("deliveries_dead", "webhook_id", postgresql_where=text("state = 'dead'")),
        Index("deliveries_of_webhook", "webhook_id", "created_at", "message_id"),
        Index("deliveries_ended", "settled_at", postgresql_where=text("settled_at IS NOT NULL")),
    )
    #: `webhook-id` on the wire, the same at every try and for every endpoint of the tenant
    message_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    type: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16), default="pending")
    #: tries begun
    attempts: Mapped[int] = mapped_column(default=0)
    #: not to be tried before; while it is being tried, the end of the sender's lease on it
    next_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    #: what came of the last try: an HTTP status, or why there was none
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    settled_at: Mapped[dt.datetime | None]


class Base(Table):
    """A frozen model. Operators register bases; tenants only name them."""

    __tablename__ = "bases"
    __table_args__ = (CheckConstraint("state IN ('uploading', 'ready')", name="bases_state"),)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: sha256 over the digests of all its files, its dtype and its quantisation
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    dtype: Mapped[str] = mapped_column(String(16))
    architecture: Mapped[str]
    source: Mapped[str]
    parameters: Mapped[int]
    hidden_size: Mapped[int]
    bytes: Mapped[int]
    chat_template: Mapped[str | None]
    #: [{name, sha256, bytes}]
    files: Mapped[list[Json]]
    #: {module name: [in_features, out_features]} of every layer an adapter may sit on
    layers: Mapped[Json]
    #: what those layers' weights are kept in: nf4, int8, int4-g<group size>; None: in `dtype`
    quantization: Mapped[str | None] = mapped_column(String(16))
    #: {task, factory, args, input, output} of a base that a function builds
    network: Mapped[Json | None]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)


class File(Table):
    """An uploaded dataset."""

    __tablename__ = "files"
    __table_args__ = (Index("files_of_tenant", "tenant_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tenants.id"))
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    deleted_at: Mapped[dt.datetime | None]


class Job(Table):
    """One wish for one adapter."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "state IN (" + ", ".join(f"'{s.value}'" for s in JobState) + ")", name="jobs_state"
        ),
        CheckConstraint(
            "(state = 'dispatched') = (dispatch_deadline IS NOT NULL)", name="jobs_dispatched"
        ),
        CheckConstraint(
            "wish IS NULL OR (state = 'running' AND wish IN ('pause', 'preempt'))", name="jobs_wish"
        ),
        UniqueConstraint("tenant_id", "idempotency_key", name="jobs_idempotency"),
        Index("jobs_of_tenant", "tenant_id", "created_at", "id"),
        Index(
            "jobs_in_line",
            "tenant_id",
            "base",
            "rank",
            "id",
            postgresql_where=text("state = 'queued'"),
        ),
        Index("jobs_oldest", "base", "queued_at", postgresql_where=text("state = 'queued'")),
        Index(
            "jobs_new",
            "tenant_id",
            "created_at",
            postgresql_where=text("state = 'validating_files'"),
        ),
        Index(
            "jobs_at_work",
            "state",
            postgresql_where=text("state IN ('validating_files', 'dispatched', 'running')"),
        ),
        Index(
            "jobs_to_sweep",
            "finished_at",
            postgresql_where=text("sweeps < 2 AND finished_at IS NOT NULL"),
        ),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tenants.id"))
    base: Mapped[str] = mapped_column(ForeignKey("bases.name"))
    base_fingerprint: Mapped[str] = mapped_column(String(64))
    training_file: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int]
    #: as asked for ("auto" stays "auto")
    asked: Mapped[Json]
    #: as resolved: what the trainer is told
    hyperparameters: Mapped[Json]
    job_metadata: Mapped[Json | None] = mapped_column("metadata")
    priority: Mapped[int] = mapped_column(default=0)
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20), default=JobState.VALIDATING.value)
    #: the fencing token: raised at every dispatch, never lowered
    attempt: Mapped[int] = mapped_column(default=0)
    dispatch_deadline: Mapped[dt.datetime | None]
    #: while dispatched: when its wake-up is sent once more
    resend_at: Mapped[dt.datetime | None]
    #: failures after which it was tried again, or given up for having had too many
    failures: Mapped[int] = mapped_column(default=0)
    #: failures of each kind: worker lost, no memory, what is around it, its own
    failures_lost: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    failures_oom: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    failures_infra: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    failures_user: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    #: how often it made room for a job of higher priority; no failure
    preemptions: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    #: while running: what its worker is to do at the next checkpoint, "pause" or "preempt"
    wish: Mapped[str | None] = mapped_column(String(16))
    #: not sent out again before
    not_before: Mapped[dt.datetime | None]
    #: why it waits, in one sentence, as the scheduler last saw it
    waiting_for: Mapped[str | None]
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    examples: Mapped[int | None]
    trained_tokens: Mapped[int | None]
    device_seconds: Mapped[float] = mapped_column(default=0.0)
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    queued_at: Mapped[dt.datetime | None]
    started_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    #: when its tenant would have it done; among the tenant's own jobs only
    deadline: Mapped[dt.datetime | None]
    #: its place in its tenant's line, lowest first: when it was queued (or a day before its
    #: deadline, if that is earlier), in seconds, less ten minutes for each step of priority
    rank: Mapped[float | None] = mapped_column(
        Computed(
            "extract(epoch FROM least(queued_at AT TIME ZONE 'UTC', (deadline AT TIME ZONE 'UTC')"
            " - interval '86400 seconds')) - 600 * priority",
            persisted=True,
        )
    )
    #: seconds it was foretold to wait when it was queued, before calibration
    foretold: Mapped[float | None]
    #: seconds after which it was to have started, nine times out of ten
    promised: Mapped[float | None]
    #: how often the bucket was swept of what it left there, once it had ended
    sweeps: Mapped[int] = mapped_column(server_default=text("0"))


class Attempt(Table):
    """One try of one job by one worker, and its lease: the right to work until it expires."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("attempts_open", "worker_id", postgresql_where=text("ended_at IS NULL")),
        Index(
            "attempts_unsettled",
            "ended_at",
            postgresql_where=text("ended_at IS NOT NULL AND NOT settled"),
        ),
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    #: pool's queue the wake-up went to
    queue: Mapped[str]
    worker_id: Mapped[str | None] = mapped_column(String(64))
    dispatched_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    started_at: Mapped[dt.datetime | None]
    lease_expires_at: Mapped[dt.datetime | None]
    ended_at: Mapped[dt.datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(20))
    last_step: Mapped[int] = mapped_column(default=0)
    device_seconds: Mapped[float] = mapped_column(default=0.0)
    #: device-seconds its tenant's share was charged when it was dispatched
    charged: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))
    #: whether the share was set right by what it took in the end
    settled: Mapped[bool] = mapped_column(default=False, server_default=text("false"))


class Checkpoint(Table):
    """What a job was at a step; the row is written after its manifest."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        CheckConstraint("kind IN ('state', 'epoch')", name="checkpoints_kind"),
        UniqueConstraint("job_id", "kind", "step", "attempt", name="checkpoints_once"),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    #: "state" to resume from, "epoch" the adapter after an epoch
    kind: Mapped[str] = mapped_column(String(8), server_default=text("'state'"))
    #: an epoch's public name
    name: Mapped[str | None]
    step: Mapped[int]
    prefix: Mapped[str]
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    metrics: Mapped[Json]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)


class Adapter(Table):
    """The published artefact: immutable, versioned by its name."""

    __tablename__ = "adapters"
    __table_args__ = (Index("adapters_of_tenant", "tenant_id", "created_at", "name"),)
    name: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    #: the attempt that published it
    attempt: Mapped[int]
    #: the attempt that made it: an earlier one, where its whole upload was found and adopted
    source_attempt: Mapped[int]
    base: Mapped[str] = mapped_column(ForeignKey("bases.name"))
    base_fingerprint: Mapped[str] = mapped_column(String(64))
    prefix: Mapped[str]
    manifest_key: Mapped[str]
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    weights_sha256: Mapped[str] = mapped_column(String(64))
    #: all files together
    bytes: Mapped[int]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)


class Event(Table):
    """Append-only history of a job, written in the same transaction as what it tells of."""

    __tablename__ = "events"
    __table_args__ = (Index("events_of_job", "job_id", "seq"),)
    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    tenant_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    level: Mapped[str] = mapped_column(String(8))
    #: "message" or "metrics"
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str]
    data: Mapped[Json | None]
    attempt: Mapped[int]
    from_state: Mapped[str | None] = mapped_column(String(20))
    to_state: Mapped[str | None] = mapped_column(String(20))
    actor: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)


class Metric(Table):
    """One point of a job's curves."""

    __tablename__ = "metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    #: train_loss, train_mean_token_accuracy, learning_rate, grad_norm, tokens, valid_loss, …
    data: Mapped[Json]
    created_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)


class Worker(Table):
    """A worker process and its device, as it last reported itself."""

    __tablename__ = "workers"
    __table_args__ = (
        CheckConstraint(
            "state IN ('idle', 'loading', 'ready', 'draining', 'gone')", name="workers_state"
        ),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_kind: Mapped[str] = mapped_column(String(32))
    slots: Mapped[int]
    pinned: Mapped[bool]
    #: the base the scheduler (or its own command line) gave it
    assigned_base: Mapped[str | None] = mapped_column(ForeignKey("bases.name"))
    #: fingerprint of the base it holds, once ready
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    queue: Mapped[str | None]
    state: Mapped[str] = mapped_column(String(16))
    note: Mapped[str | None]
    #: versions, threads, pid, trainer's pid and restarts
    facts: Mapped[Json]
    started_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    heartbeat_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)


class Scheduler(Table):
    """A scheduler process and its last round."""

    __tablename__ = "schedulers"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    started_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    ticked_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
