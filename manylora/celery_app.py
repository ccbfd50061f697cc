"""The Celery app: wake-ups only. The database is the truth; a message lost, doubled, late or
forged does no harm. Each setting with its reason."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from manylora import keys


def make_app(broker_url: str, *, queues: tuple[str, ...] = ()) -> Celery:
    """An app that sends to, and (for a worker) consumes, the given queues."""
    app = Celery("manylora", broker=broker_url, set_as_current=False)
    app.conf.update(
        # a wake-up is done once it is claimed: no redelivery, no second truth
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        result_backend=None,
        # a busy worker must not sit on a message an idle one could take
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # hours of work outlive a broker's blip
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # SIGTERM must reach the supervising threads at once
        worker_soft_shutdown_timeout=0,
        task_publish_retry_policy={"max_retries": 2, "interval_max": 0.5},
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        broker_transport_options={
            "visibility_timeout": 300,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": keys.BROKER_PREFIX,
        },
        task_queues=[Queue(name) for name in queues],
        task_create_missing_queues=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_heartbeat=0,
    )
    return app


def send_wakeup(app: Celery, queue: str, job_id: str, attempt: int, expires: float) -> None:
    """Tell a pool that an attempt waits for it. May fail: the scheduler sends again later."""
    app.send_task(
        keys.TASK_TRAIN,
        kwargs={"v": 1, "job_id": job_id, "attempt": attempt},
        queue=Queue(queue),
        routing_key=queue,
        expires=expires,
        ignore_result=True,
    )
