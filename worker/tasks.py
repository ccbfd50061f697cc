"""The Celery task: a wake-up handed to a supervisor. It never raises, and returns nothing: what
happened is in the ledger, and a MemoryError must not reach Celery (it would end the worker)."""

from __future__ import annotations

from typing import Any

import structlog
from celery import Celery

from manylora import crash, keys
from worker.supervise import Supervisor

log = structlog.get_logger(__name__)


def register(app: Celery, supervisor: Supervisor) -> None:
    """Put the one task on the app."""

    @app.task(name=keys.TASK_TRAIN, ignore_result=True)  # type: ignore[untyped-decorator]
    def train(v: int = 0, job_id: str = "", attempt: int = 0, **_: Any) -> None:
        """Claim and work an attempt. A message is only a hint: the claim reads the row."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(job_id=str(job_id), attempt=attempt)
        try:
            if v != 1 or not isinstance(job_id, str) or not isinstance(attempt, int):
                log.warning("wakeup.not_understood", v=v)
                return
            crash.point("after_hint")
            log.info("job.left", outcome=supervisor.run(job_id, attempt))
        except BaseException:
            log.exception("job.supervisor_broke")
