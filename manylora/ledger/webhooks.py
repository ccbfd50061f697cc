"""Webhooks: a tenant's endpoints, and the outbox of messages to them.

A message is written by the transaction that ends its job, so there is one exactly if the job has
ended. A sender claims what is due, sends it outside of any transaction, and settles it: at least
once, with the same id at every try.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import secrets
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import String, delete, func, insert, literal, select, tuple_, update
from sqlalchemy.orm import Session

from manylora import keys
from manylora.errors import NotFoundError, QuotaError
from manylora.ledger import events
from manylora.ledger.states import JobState
from manylora.ledger.tables import Delivery, Job, Tenant, Webhook

#: the state a job ended in -> the type of the message that says so
TYPES: Final = {
    JobState.SUCCEEDED: "fine_tuning.job.succeeded",
    JobState.FAILED: "fine_tuning.job.failed",
    JobState.CANCELLED: "fine_tuning.job.cancelled",
}
#: tries before a message is given up; with the pauses below they take about a day
MOST_ATTEMPTS: Final = 16
#: and the age at which an endpoint that hangs, and so is tried seldom, gets no more than three
_MOST_AGE, _FEWEST_ATTEMPTS = dt.timedelta(days=2), 3
_FIRST_PAUSE, _LONGEST_PAUSE, _JITTER = 15.0, 4 * 3600.0, 0.1
#: how long what is settled is shown
KEPT_DAYS: Final = 30
_NOW = func.clock_timestamp()


@dataclass(frozen=True)
class Claimed:
    """A message that this sender may try now. `attempt` is the token to settle it with."""

    message_id: str
    webhook_id: str
    tenant_id: uuid.UUID
    job_id: str
    type: str
    created_at: dt.datetime
    attempt: int
    url: str
    secret: str

    def __repr__(self) -> str:
        """Without the URL and the secret: neither may reach a log."""
        return f"Claimed({self.message_id} to {self.webhook_id}, attempt {self.attempt})"


def add(
    tx: Session, tenant_id: uuid.UUID, *, url: str, types: Collection[str], most: int
) -> Webhook:
    """A new endpoint, with a secret of its own. The caller has checked the URL.

    Raises: QuotaError when the tenant has `most` of them.
    """
    # Of two at once the second counts what the first has made.
    tx.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))
    here = select(func.count()).select_from(Webhook).where(*_of(tenant_id))
    if (tx.scalar(here) or 0) >= most:
        raise QuotaError(
            f"a tenant may have {most} webhooks", hint="remove one: manylora webhook remove ID"
        )
    row = Webhook(
        id=keys.webhook_id(),
        tenant_id=tenant_id,
        url=url,
        secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        events=sorted(types),
    )
    tx.add(row)
    tx.flush()
    tx.refresh(row)
    return row


def page(tx: Session, tenant_id: uuid.UUID) -> list[Webhook]:
    """The tenant's endpoints, oldest first."""
    return list(
        tx.scalars(select(Webhook).where(*_of(tenant_id)).order_by(Webhook.created_at, Webhook.id))
    )


def get(tx: Session, tenant_id: uuid.UUID, webhook_id: str) -> Webhook:
    """Raises: NotFoundError for none such or one of another tenant."""
    row = tx.scalar(select(Webhook).where(Webhook.id == webhook_id, *_of(tenant_id)))
    if row is None:
        raise NotFoundError(f"no webhook {webhook_id}", param="webhook_id")
    return row


def remove(tx: Session, tenant_id: uuid.UUID, webhook_id: str) -> None:
    """Forget an endpoint and its secret; what it was still to hear is given up.

    Raises: NotFoundError.
    """
    row = get(tx, tenant_id, webhook_id)
    row.secret, row.deleted_at = "", _NOW
    tx.execute(
        update(Delivery)
        .where(Delivery.webhook_id == webhook_id, Delivery.state == "pending")
        .values(state="dead", settled_at=_NOW, last_error="the endpoint was removed")
    )


def deliveries(
    tx: Session, tenant_id: uuid.UUID, webhook_id: str, *, after: str | None, limit: int
) -> tuple[list[Delivery], bool]:
    """Messages to an endpoint, newest first, after the one called `after`; whether more follow.

    Raises: NotFoundError.
    """
    get(tx, tenant_id, webhook_id)
    query = select(Delivery).where(Delivery.webhook_id == webhook_id)
    if after is not None:
        mark = tx.get(Delivery, (after, webhook_id))
        if mark is None:
            raise NotFoundError(f"no delivery {after}", param="after")
        query = query.where(
            tuple_(Delivery.created_at, Delivery.message_id)
            < tuple_(mark.created_at, mark.message_id)
        )
    order = Delivery.created_at.desc(), Delivery.message_id.desc()
    rows = list(tx.scalars(query.order_by(*order).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def announce(tx: Session, job: Job) -> None:
    """Write what a job's end has to say into the outbox, in the transaction that ends it."""
    kind = TYPES[JobState(job.state)]
    tx.execute(
        insert(Delivery).from_select(
            ["message_id", "webhook_id", "job_id", "type", "state", "attempts", "created_at"],
            select(
                literal(keys.message_id(), String),
                Webhook.id,
                literal(job.id, String),
                literal(kind, String),
                literal("pending", String),
                literal(0),
                literal(job.finished_at, Delivery.created_at.type),
            ).where(*_of(job.tenant_id), Webhook.events.contains([kind])),
        )
    )


def claim(
    tx: Session, *, limit: int, lease_seconds: float, but: Collection[str] = ()
) -> list[Claimed]:
    """Take messages that are due, the longest due first, one to each endpoint and none to those
    in `but`: an endpoint that hangs holds up no other.

    Who dies before settling loses them to the next claim after `lease_seconds`.
    """
    due = (
        Delivery.state == "pending",
        Delivery.next_at <= _NOW,
        Delivery.webhook_id.not_in(list(but)),
    )
    oldest = (
        select(Delivery.webhook_id, func.min(Delivery.next_at).label("at"))
        .where(*due)
        .group_by(Delivery.webhook_id)
        .order_by(func.min(Delivery.next_at))
        .limit(limit)
    )
    claimed = []
    for webhook_id, _ in tx.execute(oldest).all():
        row = tx.scalar(
            select(Delivery)
            .where(*due, Delivery.webhook_id == webhook_id)
            .order_by(Delivery.next_at, Delivery.message_id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        to = tx.get(Webhook, webhook_id)
        if row is None or to is None:
            continue  # another sender has it
        if to.deleted_at is not None:  # removed while this message was being written
            row.state, row.settled_at = "dead", _NOW
            continue
        row.attempts += 1
        row.next_at = _NOW + dt.timedelta(seconds=lease_seconds)
        claimed.append(
            Claimed(
                row.message_id,
                to.id,
                to.tenant_id,
                row.job_id,
                row.type,
                row.created_at,
                row.attempts,
                to.url,
                to.secret,
            )
        )
    return claimed


def delivered(tx: Session, one: Claimed, status: int) -> None:
    """The endpoint has taken it. Said by a sender whose lease ran out it is no less true."""
    tx.execute(
        update(Delivery)
        .where(*_this(one), Delivery.state == "pending")
        .values(state="delivered", settled_at=_NOW, last_status=status, last_error=None)
    )


def failed(tx: Session, one: Claimed, *, status: int | None, error: str) -> str:
    """The endpoint has not taken it: it is tried again after a pause, or given up with an event
    in the job's history. Returns the state it is in now; "" when the claim was lost."""
    now = tx.scalar(select(_NOW)) or one.created_at
    old = now - one.created_at > _MOST_AGE and one.attempt >= _FEWEST_ATTEMPTS
    dead = old or one.attempt >= MOST_ATTEMPTS
    values: dict[str, Any] = {"last_status": status, "last_error": error}
    if dead:
        values |= {"state": "dead", "settled_at": _NOW}
    else:
        values["next_at"] = _NOW + dt.timedelta(seconds=pause(one))
    job_id = tx.scalar(
        update(Delivery)
        .where(*_this(one), Delivery.state == "pending", Delivery.attempts == one.attempt)
        .values(values)
        .returning(Delivery.job_id)
    )
    if job_id is None:
        return ""
    if dead:
        events.add(
            tx,
            tx.get_one(Job, job_id),
            f"Webhook {one.webhook_id} was not reached in {one.attempt} tries: {error}",
            actor="scheduler",
            level="warn",
            data={"webhook": one.webhook_id, "message": one.message_id},
        )
    return "dead" if dead else "pending"


def pause(one: Claimed) -> float:
    """Seconds until the next try: doubled each time up to four hours, and up to a tenth more or
    less, which is decided by the ids, so that an endpoint's messages do not come all at once."""
    seconds = min(_FIRST_PAUSE * 2.0 ** (one.attempt - 1), _LONGEST_PAUSE)
    seed = f"{one.message_id}/{one.webhook_id}/{one.attempt}".encode()
    chance = int.from_bytes(hashlib.sha256(seed).digest()[:8]) / 2**64
    return seconds * (1 - _JITTER + 2 * _JITTER * chance)


def prune(tx: Session, *, limit: int = 1000) -> int:
    """Delete messages settled more than `KEPT_DAYS` ago, and endpoints removed then of which none
    is left; returns how many messages."""
    old = (
        select(Delivery.message_id, Delivery.webhook_id)
        .where(Delivery.settled_at < _NOW - dt.timedelta(days=KEPT_DAYS))
        .limit(limit)
    )
    here = tuple_(Delivery.message_id, Delivery.webhook_id)
    gone = tx.execute(delete(Delivery).where(here.in_(old)).returning(Delivery.message_id))
    count = len(gone.all())
    left = select(Delivery.message_id).where(Delivery.webhook_id == Webhook.id).exists()
    since = _NOW - dt.timedelta(days=KEPT_DAYS)
    tx.execute(delete(Webhook).where(Webhook.deleted_at < since, ~left))
    return count


def counts(tx: Session) -> dict[str, int]:
    """How many messages are pending, and how many were given up in the days that are shown."""

    def of(state: str) -> int:  # one by one: each has an index of its own, delivered ones are many
        query = select(func.count()).select_from(Delivery).where(Delivery.state == state)
        return tx.scalar(query) or 0

    return {state: of(state) for state in ("pending", "dead")}


def longest_due(tx: Session) -> float:
    """For how many seconds the longest due message has been due; 0 when none is."""
    late = _NOW - func.min(Delivery.next_at)
    age = tx.scalar(select(func.extract("epoch", late)).where(Delivery.state == "pending"))
    return max(0.0, float(age or 0.0))


def _of(tenant_id: uuid.UUID) -> tuple[Any, Any]:
    return Webhook.tenant_id == tenant_id, Webhook.deleted_at.is_(None)


def _this(one: Claimed) -> tuple[Any, Any]:
    return Delivery.message_id == one.message_id, Delivery.webhook_id == one.webhook_id
