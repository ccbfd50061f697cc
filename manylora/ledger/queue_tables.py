"""The tables of the fair queue: shares, lines, pools and the changes not yet added up.

They say what the scheduler decided and why; what it does with them is `lines.py`'s business.
"""

from __future__ import annotations

import datetime as dt
import uuid

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, String, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from manylora.ledger.root import Table

_NOW = func.clock_timestamp()
_ZERO = text("0")


class Share(Table):
    """What a tenant is entitled to, what it may have at most, and what it has had."""

    __tablename__ = "shares"
    __table_args__ = (CheckConstraint("weight > 0", name="shares_weight"),)
    tenant_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    #: a tenant of weight 2 is entitled to twice as much as one of weight 1
    weight: Mapped[float] = mapped_column(default=1.0, server_default=text("1"))
    #: quotas; none means the setting of that name, or no bound
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    #: device-hours a day, by UTC
    max_device_hours: Mapped[float | None]
    max_bytes: Mapped[int | None]
    #: requests a minute
    max_requests: Mapped[int | None]
    #: device-seconds it has had, decayed to `used_at`
    used: Mapped[float] = mapped_column(default=0.0, server_default=_ZERO)
    used_at: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    #: the last day it had any, and how many on it
    day: Mapped[dt.date | None]
    day_seconds: Mapped[float] = mapped_column(default=0.0, server_default=_ZERO)


class Line(Table):
    """The jobs of one tenant for one base, and what was decided about them."""

    __tablename__ = "lines"
    __table_args__ = (
        Index(
            "lines_next",
            "base",
            "turn",
            "tenant_id",
            postgresql_where=text("queued > 0 AND NOT stopped"),
        ),
        Index("lines_stopped", "stopped_until", postgresql_where=text("stopped")),
    )
    tenant_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    base: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: being validated or paused
    held: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    queued: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    #: dispatched or running
    active: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    #: when the first of the jobs queued came
    since: Mapped[dt.datetime] = mapped_column(server_default=_NOW)
    #: the fair order between lines, lowest first (`scheduler/fairness.py`)
    turn: Mapped[float] = mapped_column(default=0.0, server_default=_ZERO)
    #: nothing of it is sent out: a quota is used up, or no job of it may go yet
    stopped: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    #: until then, or until something of it changes
    stopped_until: Mapped[dt.datetime | None]
    #: why, in one sentence
    reason: Mapped[str | None]
    decided_at: Mapped[dt.datetime | None]


class Pool(Table):
    """What there is for one base, what waits for it, and how well waits were foretold."""

    __tablename__ = "pools"
    base: Mapped[str] = mapped_column(String(64), primary_key=True)
    queued: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    active: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    slots: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    #: tenants with a job that waits or runs, and their weights together
    tenants: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    weights: Mapped[float] = mapped_column(default=0.0, server_default=_ZERO)
    #: why nothing at all is sent out, if so
    reason: Mapped[str | None]
    #: device-seconds of one pass over one example, lately
    pace: Mapped[float | None]
    #: seconds a job holds a slot, lately
    service: Mapped[float | None]
    #: what waits were, divided by what was foretold, latest last
    ratios: Mapped[list[float]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    #: how long jobs held a slot, divided by what they were charged, latest last
    spans: Mapped[list[float]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    #: turns of the lines that wait, evenly spaced among all of them
    turns: Mapped[list[float]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    #: the share of past ratios that the p90 is read at; moves so that 90 % of waits end by it
    level: Mapped[float] = mapped_column(default=0.9, server_default=text("0.9"))
    #: waits foretold, and those that were over by the p90
    foretold: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    in_time: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    decided_at: Mapped[dt.datetime | None]


class Change(Table):
    """A difference in the counts of a line, written by a trigger on `jobs`, not yet added up."""

    __tablename__ = "changes"
    __table_args__ = (Index("changes_of_tenant", "tenant_id"),)
    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    tenant_id: Mapped[uuid.UUID]
    base: Mapped[str] = mapped_column(String(64))
    held: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    queued: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    active: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    #: the job that was queued, if one was
    job_id: Mapped[str | None] = mapped_column(String(40))
