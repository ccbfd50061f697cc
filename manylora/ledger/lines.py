"""Lines: what waits for whom, kept by the scheduler from what changed.

A trigger writes each change of a job's state as a difference into `changes`; `fold` adds them to
the lines and pools, so that a round reads what changed and never the queue. Only who holds the
`steering` lock writes lines, shares and pools; everybody else reads them.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, BigInteger, Float, String, Uuid, bindparam, func, select, text, update
from sqlalchemy.orm import Session

from manylora.ledger.tables import Change, Line, Pool

_STEER = 7_140_211
#: changes added up in one round; what is left is there for the next one
MOST_CHANGES = 20_000
#: device-seconds below which shares used are taken for equal; as in `scheduler/fairness.py`
FLOOR = 60.0

_FOLD = text(
    """
WITH gone AS (
    DELETE FROM changes WHERE seq IN (SELECT seq FROM changes ORDER BY seq LIMIT :most)
    RETURNING tenant_id, base, held, queued, active, job_id
), sums AS (
    SELECT tenant_id, base, sum(held) AS held, sum(queued) AS queued, sum(active) AS active
    FROM gone GROUP BY tenant_id, base
), shared AS (
    INSERT INTO shares (tenant_id) SELECT DISTINCT tenant_id FROM sums
    ON CONFLICT (tenant_id) DO NOTHING
), lined AS (
    INSERT INTO lines AS l (tenant_id, base, held, queued, active)
    SELECT tenant_id, base, held, queued, active FROM sums
    ON CONFLICT (tenant_id, base) DO UPDATE SET
        held = l.held + excluded.held, queued = l.queued + excluded.queued,
        active = l.active + excluded.active, stopped = false, stopped_until = NULL, reason = NULL,
        since = CASE WHEN l.queued <= 0 AND l.queued + excluded.queued > 0
            THEN clock_timestamp() ELSE l.since END
), pooled AS (
    INSERT INTO pools AS p (base, queued, active)
    SELECT base, sum(queued), sum(active) FROM sums GROUP BY base
    ON CONFLICT (base) DO UPDATE SET
        queued = p.queued + excluded.queued, active = p.active + excluded.active
)
SELECT (SELECT array_agg(DISTINCT tenant_id) FROM sums),
       (SELECT array_agg(job_id) FROM gone WHERE job_id IS NOT NULL),
       (SELECT count(*) FROM gone)
"""
)
_FREE = text(
    "UPDATE lines SET stopped = false, stopped_until = NULL, reason = NULL"
    " WHERE tenant_id = ANY(:tenants) AND stopped"
).bindparams(bindparam("tenants", type_=ARRAY(Uuid())))
_TURN = """greatest(
    extract(epoch FROM l.since) + :half_life * ln(:floor / s.weight) / ln(2.0),
    CASE WHEN s.used > 0
        THEN extract(epoch FROM s.used_at) + :half_life * ln(s.used / s.weight) / ln(2.0) END
)"""
_RETIME = text(
    f"UPDATE lines l SET turn = {_TURN} FROM shares s"  # noqa: S608  (no value is put in)
    " WHERE s.tenant_id = l.tenant_id AND l.tenant_id = ANY(:tenants)"
).bindparams(bindparam("tenants", type_=ARRAY(Uuid())))
_RETIME_ALL = text(
    f"UPDATE lines l SET turn = {_TURN} FROM shares s"  # noqa: S608
    f" WHERE s.tenant_id = l.tenant_id AND abs(l.turn - {_TURN}) > 0.001"
)
_CHARGE = text(
    """
UPDATE shares s SET
    used = greatest(0.0, s.used * power(0.5, least(900.0, greatest(0.0,
        extract(epoch FROM now.at - s.used_at) / :half_life))) + given.cost),
    used_at = now.at,
    day = (now.at AT TIME ZONE 'UTC')::date,
    day_seconds = greatest(0.0, given.cost + CASE
        WHEN s.day = (now.at AT TIME ZONE 'UTC')::date THEN s.day_seconds ELSE 0.0 END)
FROM unnest(:tenants, :costs) AS given(tenant_id, cost), (SELECT clock_timestamp() AS at) AS now
WHERE s.tenant_id = given.tenant_id
"""
).bindparams(bindparam("tenants", type_=ARRAY(Uuid())), bindparam("costs", type_=ARRAY(Float())))
_ENDED = text(
    """
WITH ended AS (
    UPDATE attempts SET settled = true
    WHERE (job_id, attempt) IN (
        SELECT job_id, attempt FROM attempts WHERE ended_at IS NOT NULL AND NOT settled
        ORDER BY ended_at LIMIT :most)
    RETURNING job_id, outcome, charged, device_seconds, started_at, ended_at
)
SELECT j.tenant_id, j.base, e.outcome, e.charged, e.device_seconds,
       extract(epoch FROM e.ended_at - e.started_at) AS held,
       j.examples * (j.hyperparameters->>'n_epochs')::float AS passes
FROM ended e JOIN jobs j ON j.id = e.job_id
"""
)
_SUMMARY = text(
    """
UPDATE pools p SET tenants = found.tenants, weights = found.weights, turns = found.turns
FROM (
    SELECT l.base, count(*) AS tenants, sum(s.weight) AS weights,
        coalesce(to_jsonb(percentile_disc(:places) WITHIN GROUP (ORDER BY l.turn)
            FILTER (WHERE l.queued > 0 AND NOT l.stopped)), '[]'::jsonb) AS turns
    FROM lines l JOIN shares s ON s.tenant_id = l.tenant_id
    WHERE l.queued > 0 OR l.active > 0 GROUP BY l.base
) AS found WHERE found.base = p.base
"""
).bindparams(bindparam("places", type_=ARRAY(Float())))


@dataclass(frozen=True)
class Ended:
    """An attempt whose books were closed and whose share was set right."""

    base: str
    outcome: str | None
    charged: float
    device_seconds: float
    held: float | None
    passes: float | None


def steer(tx: Session) -> bool:
    """Take the one lock under which lines are written, to the end of the transaction; False when
    another scheduler has it."""
    return bool(tx.scalar(select(func.pg_try_advisory_xact_lock(_STEER))))


class Folded(NamedTuple):
    """The jobs that were queued, in no order, and whether there may be more changes."""

    queued: list[str]
    more: bool


def fold(tx: Session, half_life: float, most: int = MOST_CHANGES) -> Folded:
    """Add up what changed; lines whose stop may be over are open again."""
    tenants, queued, count = tx.execute(_FOLD, {"most": most}).one()
    if tenants:
        tx.execute(_FREE, {"tenants": tenants})
        retime(tx, tenants, half_life)
    tx.execute(
        update(Line)
        .where(Line.stopped, Line.stopped_until <= func.clock_timestamp())
        .values(stopped=False, stopped_until=None, reason=None)
    )
    return Folded(list(queued or ()), count >= most)


def retime(tx: Session, tenants: Sequence[uuid.UUID] | None, half_life: float) -> None:
    """Write the turns of these tenants' lines (None: of every line that differs), as
    `scheduler/fairness.py: turn` has them."""
    given: dict[str, Any] = {"half_life": half_life, "floor": FLOOR}
    if tenants is None:
        tx.execute(_RETIME_ALL, given)
    else:
        tx.execute(_RETIME, given | {"tenants": list(tenants)})


def charge(tx: Session, costs: Mapping[uuid.UUID, float], half_life: float) -> None:
    """Charge tenants device-seconds, or give them back."""
    if costs:
        tenants = sorted(costs)
        given = {"tenants": tenants, "costs": [costs[t] for t in tenants], "half_life": half_life}
        tx.execute(_CHARGE, given)
        retime(tx, tenants, half_life)


def settle(tx: Session, half_life: float, most: int = 5000) -> list[Ended]:
    """Charge what attempts that ended took beyond (or below) what they were charged for."""
    ended, costs = [], dict[uuid.UUID, float]()
    for tenant, base, outcome, charged, took, held, passes in tx.execute(_ENDED, {"most": most}):
        costs[tenant] = costs.get(tenant, 0.0) + took - charged
        ended.append(
            Ended(base, outcome, charged, took, None if held is None else float(held), passes)
        )
    charge(tx, costs, half_life)
    return ended


def stop(
    tx: Session,
    lines: Iterable[tuple[uuid.UUID, str | None]],
    reason: str,
    until: dt.datetime | None = None,
) -> None:
    """Leave these lines (tenant, base; no base: all of the tenant) out until something of them
    changes, or until then."""
    for tenant, base in sorted(lines, key=str):
        mine = update(Line).where(Line.tenant_id == tenant, Line.queued > 0)
        tx.execute(
            (mine if base is None else mine.where(Line.base == base)).values(
                stopped=True,
                stopped_until=until,
                reason=reason,
                decided_at=func.clock_timestamp(),
            )
        )


def summarise(tx: Session) -> None:
    """What is true of the lines of each pool together; its cost grows with the lines."""
    tx.execute(_SUMMARY, {"places": [i / 64 for i in range(65)]})


def pool(tx: Session, base: str, **columns: Any) -> None:
    """Write what was found of a pool."""
    tx.execute(update(Pool).where(Pool.base == base).values(**columns))


def pools(tx: Session) -> dict[str, Pool]:
    """Every pool by its base."""
    return {row.base: row for row in tx.scalars(select(Pool))}


def queued(tx: Session) -> int:
    """How many jobs are queued, without reading the queue."""
    counted = select(func.coalesce(func.sum(Pool.queued), 0).label("n")).union_all(
        select(func.coalesce(func.sum(Change.queued), 0))
    )
    return int(tx.scalar(select(func.sum(counted.subquery().c.n))) or 0)


def of_tenant(tx: Session, tenant_id: uuid.UUID) -> list[Line]:
    """A tenant's lines with anything in them, by base."""
    return list(
        tx.scalars(
            select(Line)
            .where(Line.tenant_id == tenant_id, Line.held + Line.queued + Line.active > 0)
            .order_by(Line.base)
        )
    )


def prune(tx: Session, days: int = 30) -> None:
    """Forget lines that have been empty for long."""
    tx.execute(
        text(
            "DELETE FROM lines WHERE held <= 0 AND queued <= 0 AND active <= 0"
            " AND since < clock_timestamp() - make_interval(days => :days)"
        ),
        {"days": days},
    )


_WAIT_FOR = text(
    "UPDATE jobs j SET waiting_for = given.reason FROM unnest(:ids, :reasons) AS given(id, reason)"
    " WHERE j.id = given.id AND j.state = 'queued'"
    " AND j.waiting_for IS DISTINCT FROM given.reason"
).bindparams(bindparam("ids", type_=ARRAY(String())), bindparam("reasons", type_=ARRAY(String())))
_CHARGED = text(
    "UPDATE attempts a SET charged = given.cost"
    " FROM unnest(:ids, :attempts, :costs) AS given(id, attempt, cost)"
    " WHERE a.job_id = given.id AND a.attempt = given.attempt"
).bindparams(
    bindparam("ids", type_=ARRAY(String())),
    bindparam("attempts", type_=ARRAY(BigInteger())),
    bindparam("costs", type_=ARRAY(Float())),
)


def wait_for(tx: Session, reasons: Mapping[str, str | None]) -> None:
    """Note why jobs wait, where that is true of the job alone; None: no longer."""
    if reasons:
        ids = sorted(reasons)
        tx.execute(_WAIT_FOR, {"ids": ids, "reasons": [reasons[job_id] for job_id in ids]})


def note_charges(tx: Session, charges: Sequence[tuple[str, int, float]]) -> None:
    """Note what attempts (job, attempt) were charged."""
    if charges:
        ids, attempts, costs = (list(column) for column in zip(*sorted(charges), strict=True))
        tx.execute(_CHARGED, {"ids": ids, "attempts": attempts, "costs": costs})


_FORETELL = text(
    "UPDATE jobs j SET foretold = given.raw, promised = given.most"
    " FROM unnest(:ids, :raws, :mosts) AS given(id, raw, most) WHERE j.id = given.id"
).bindparams(
    bindparam("ids", type_=ARRAY(String())),
    bindparam("raws", type_=ARRAY(Float())),
    bindparam("mosts", type_=ARRAY(Float())),
)


def foretell(tx: Session, found: Sequence[tuple[str, float, float]]) -> None:
    """Note for jobs what they were foretold: (job, seconds, seconds nine times out of ten)."""
    if found:
        ids, raws, mosts = (list(column) for column in zip(*sorted(found), strict=True))
        tx.execute(_FORETELL, {"ids": ids, "raws": raws, "mosts": mosts})
