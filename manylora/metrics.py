"""What each part counts and measures, for Prometheus. Who serves it is `probe.py` and the API.

No metric has a tenant, a job or a URL as a label: each value of a label is a series that is kept
for ever, and tenants and jobs have no bound. What concerns one of them is in the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from manylora import __version__

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_FAST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SLOW: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class _Part:
    """A part's own registry: nothing is shared between two in one process."""

    def __init__(self, part: str) -> None:
        self.registry = CollectorRegistry()
        self._described: list[tuple[str, str, tuple[str, ...], str]] = []
        ProcessCollector(registry=self.registry)
        about = self._gauge(
            "part_info", "Always 1; which part this is, and its version", "part", "version"
        )
        about.labels(part, __version__).set(1)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)

    def described(self) -> list[tuple[str, str, tuple[str, ...], str]]:
        """Name, kind, labels and meaning of each of our metrics."""
        return list(self._described)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        self._described.append((f"manylora_{name}", "counter", labels, help_))
        return Counter(f"manylora_{name}", help_, labels, registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        self._described.append((f"manylora_{name}", "gauge", labels, help_))
        return Gauge(f"manylora_{name}", help_, labels, registry=self.registry)

    def _seconds(
        self, name: str, help_: str, *labels: str, buckets: tuple[float, ...] = _FAST
    ) -> Histogram:
        self._described.append((f"manylora_{name}", "histogram", labels, help_))
        return Histogram(f"manylora_{name}", help_, labels, registry=self.registry, buckets=buckets)


class ApiMetrics(_Part):
    """One API process."""

    def __init__(self) -> None:
        super().__init__("api")
        self._requests = self._counter(
            "api_requests_total",
            "Requests answered, by method, route template and HTTP status",
            "method",
            "route",
            "status",
        )
        self._latency = self._seconds(
            "api_request_seconds",
            "Seconds from a request's head to the end of its answer",
            "method",
            "route",
        )
        self._errors = self._counter("api_errors_total", "Errors answered, by their code", "code")

    def answered(
        self, method: str, route: str | None, status: int, seconds: float, code: str | None
    ) -> None:
        """Count a request. `route` is its template, None where no route took it."""
        method = method if method in _METHODS else "other"
        where = route or "none"
        self._requests.labels(method, where, str(status)).inc()
        self._latency.labels(method, where).observe(seconds)
        if code is not None:
            self._errors.labels(code).inc()


class SchedulerMetrics(_Part):
    """One scheduler process. What is in the ledger is read now and then: `scheduler/gauges.py`."""

    def __init__(self) -> None:
        super().__init__("scheduler")
        self._ticks = self._counter(
            "scheduler_ticks_total", "Scheduling rounds, by outcome: ok, failed", "outcome"
        )
        self._tick_seconds = self._seconds(
            "scheduler_tick_seconds", "Seconds a scheduling round took"
        )
        self._last_tick = self._gauge(
            "scheduler_last_tick_timestamp_seconds",
            "When the last good scheduling round ended, seconds since 1970",
        )
        self.dispatched = self._counter(
            "scheduler_dispatched_total", "Attempts sent to a pool's queue"
        )
        self.rescued = self._counter(
            "scheduler_rescued_total",
            "Jobs queued again because their worker, or their wake-up, was lost",
        )
        self.jobs = self._gauge(
            "jobs", "Jobs that wait for a worker or are at work, by base and state", "base", "state"
        )
        self.oldest_waiting = self._gauge(
            "jobs_oldest_waiting_seconds",
            "How long the longest waiting queued job has waited, by base",
            "base",
        )
        self.workers = self._gauge(
            "workers", "Workers heard of lately, by base and state", "base", "state"
        )
        self.slots = self._gauge("slots", "Slots of ready workers, by base", "base")
        self.slots_busy = self._gauge("slots_busy", "Slots taken or promised, by base", "base")
        self.messages = self._gauge(
            "webhooks_messages",
            "Messages to webhooks: pending, and dead (given up in the last 30 days)",
            "state",
        )
        self.oldest_message = self._gauge(
            "webhooks_oldest_due_seconds",
            "How long the longest due message to a webhook has been due",
        )
        self._tries = self._counter(
            "webhooks_tries_total",
            "Tries to deliver a message, by outcome: delivered, failed, dead",
            "outcome",
        )
        self._last_tick.set(time.time())  # of a scheduler that has just started, not of 1970
        for outcome in ("ok", "failed"):
            self._ticks.labels(outcome)
        for outcome in ("delivered", "failed", "dead"):
            self._tries.labels(outcome)

    @contextmanager
    def tick(self) -> Iterator[None]:
        """Around one scheduling round."""
        began, outcome = time.perf_counter(), "failed"
        try:
            yield
            outcome = "ok"
            self._last_tick.set(time.time())
        finally:
            self._ticks.labels(outcome).inc()
            self._tick_seconds.observe(time.perf_counter() - began)

    def tried(self, outcome: str) -> None:
        """Count a try to deliver a message."""
        self._tries.labels(outcome).inc()


class WorkerMetrics(_Part):
    """One worker process."""

    def __init__(self) -> None:
        super().__init__("worker")
        self.slots = self._gauge("worker_slots", "Slots of this worker")
        self._busy = self._gauge("worker_slots_busy", "Slots that hold a job")
        self._jobs = self._counter(
            "worker_attempts_total",
            "Attempts ended, by outcome: succeeded, failed, released, lost, broke",
            "outcome",
        )
        self._steps = self._counter("worker_steps_total", "Training steps of jobs")
        self._tokens = self._counter("worker_tokens_total", "Tokens trained on")
        self._last_step = self._gauge(
            "worker_last_step_timestamp_seconds",
            "When a job last made a step (at first: when the worker started), seconds since 1970",
        )
        self._renewals = self._counter(
            "worker_lease_renewals_total",
            "Lease renewals, by outcome: ok, lost, unavailable",
            "outcome",
        )
        self._checkpoint = self._seconds(
            "worker_checkpoint_seconds", "Seconds to store a checkpoint", buckets=_SLOW
        )
        self._publish = self._seconds(
            "worker_publish_seconds", "Seconds to upload and commit an adapter", buckets=_SLOW
        )
        self._skipped = self._counter(
            "worker_checkpoints_skipped_total", "Checkpoints not stored because of an outage"
        )
        self.trainer_restarts = self._gauge(
            "worker_trainer_restarts", "Times this worker's trainer was started again"
        )
        self._last_step.set(time.time())
        for outcome in ("ok", "lost", "unavailable"):
            self._renewals.labels(outcome)

    @contextmanager
    def attempt(self) -> Iterator[list[str]]:
        """Around one attempt; its outcome is put into the list that this gives."""
        ended: list[str] = []
        self._busy.inc()
        try:
            yield ended
        finally:
            self._busy.dec()
            self._jobs.labels(ended[0] if ended else "broke").inc()

    def step(self, tokens: float) -> None:
        """Count a job's step."""
        self._steps.inc()
        self._tokens.inc(tokens)
        self._last_step.set(time.time())

    def renewed(self, outcome: str) -> None:
        """Count a renewal of a lease."""
        self._renewals.labels(outcome).inc()

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Around the storing of a checkpoint; one that raises is not timed but counted."""
        began = time.perf_counter()
        try:
            yield
        except Exception:
            self._skipped.inc()
            raise
        self._checkpoint.observe(time.perf_counter() - began)

    @contextmanager
    def publish(self) -> Iterator[None]:
        """Around the publishing of an adapter; one that raises is not timed."""
        began = time.perf_counter()
        yield
        self._publish.observe(time.perf_counter() - began)
