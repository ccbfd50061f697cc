"""Carry out a plan: rows in one transaction, wake-ups after its commit."""

from __future__ import annotations

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import update

from manylora.celery_app import send_wakeup
from manylora.errors import LostError
from manylora.ledger import leases, tenants, workers
from manylora.ledger.database import Database
from manylora.ledger.tables import Job
from scheduler.planner import Plan

log = structlog.get_logger(__name__)


def carry_out(database: Database, app: Celery, plan: Plan, *, deadline_seconds: float) -> int:
    """Write the plan and send its wake-ups; returns how many jobs went out.

    A wake-up the broker refuses is no loss: the deadline passes and the job is queued again.
    """
    sent: list[tuple[str, str, int]] = []
    with database.transaction() as tx:
        for worker_id, base in plan.assignments:
            workers.assign(tx, worker_id, base)
        for job_id, reason in plan.reasons.items():
            tx.execute(
                update(Job)
                .where(Job.id == job_id, Job.waiting_for.is_distinct_from(reason))
                .values(waiting_for=reason)
            )
        for job_id, queue in plan.dispatches:
            try:
                with tx.begin_nested():
                    attempt = leases.dispatch(
                        tx, job_id, queue=queue, deadline_seconds=deadline_seconds
                    )
            except LostError:
                log.info("dispatch.lost", job_id=job_id)  # cancelled since the snapshot
                continue
            sent.append((queue, job_id, attempt))
        owners = tenants.of_jobs(tx, [job_id for _, job_id, _ in sent])
    for queue, job_id, attempt in sent:
        told = log.bind(job_id=job_id, tenant_id=owners[job_id], attempt=attempt)
        try:
            send_wakeup(app, queue, job_id, attempt, deadline_seconds)
            told.info("dispatch.sent", queue=queue)
        except BrokerError as error:
            told.warning("dispatch.broker_down", error=type(error).__name__)
    return len(sent)
