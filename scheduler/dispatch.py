"""Carry out a plan: rows in one transaction, wake-ups after its commit."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import update

from manylora import crash
from manylora.celery_app import send_wakeup
from manylora.errors import LostError
from manylora.ledger import leases, tenants, workers
from manylora.ledger.database import Database
from manylora.ledger.tables import Job
from manylora.settings import Settings
from scheduler.planner import Plan

log = structlog.get_logger(__name__)


def carry_out(database: Database, app: Celery, plan: Plan, settings: Settings) -> int:
    """Write the plan and send its wake-ups; returns how many jobs went out."""
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
                        tx,
                        job_id,
                        queue=queue,
                        deadline_seconds=settings.dispatch_deadline_seconds,
                        resend_seconds=settings.resend_seconds,
                    )
            except LostError:
                log.info("dispatch.lost", job_id=job_id)  # cancelled or paused since the snapshot
                continue
            sent.append((queue, job_id, attempt))
        for job_id, attempt in plan.preemptions:
            try:
                with tx.begin_nested():
                    leases.preempt(tx, job_id, attempt, most_preemptions=settings.most_preemptions)
            except LostError:
                log.info("preempt.lost", job_id=job_id)  # it has left its slot meanwhile
        owners = tenants.of_jobs(tx, [job_id for _, job_id, _ in sent])
    for queue, job_id, attempt in sent:
        log.info(
            "dispatch.sent", job_id=job_id, tenant_id=owners[job_id], attempt=attempt, queue=queue
        )
    if sent:
        crash.point("dispatch_after_commit_before_publish")
    wake(app, sent, settings)
    return len(sent)


def wake(app: Celery, hints: Sequence[tuple[str, str, int]], settings: Settings) -> None:
    """Send wake-ups (queue, job, attempt). One the broker refuses is no loss: it is sent again,
    and in the end the job is queued again."""
    for queue, job_id, attempt in hints:
        try:
            send_wakeup(app, queue, job_id, attempt, settings.dispatch_deadline_seconds)
        except BrokerError as error:
            log.warning("dispatch.broker_down", job_id=job_id, error=type(error).__name__)
