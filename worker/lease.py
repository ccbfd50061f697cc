"""Keep one attempt's lease, and carry its progress into the ledger, from a thread of its own."""

from __future__ import annotations

from contextvars import copy_context
from threading import Event, Lock, Thread
from typing import Any

import structlog

from manylora.clock import Clock
from manylora.errors import LostError, UnavailableError
from manylora.ledger import leases
from manylora.ledger.database import Database
from manylora.metrics import WorkerMetrics
from manylora.settings import Settings

log = structlog.get_logger(__name__)
#: progress is written at most that often, so that a watcher sees it live
_FLUSH_SECONDS = 1.0


class Lease:
    """The lease of (job, attempt), renewed until `close`. `lost` is set when it is gone; `wish` is
    what was wished of the worker at the last renewal ("pause", "preempt" or None): hand it back."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        clock: Clock,
        job_id: str,
        attempt: int,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.lost = Event()
        self.wish: str | None = None
        self._database = database
        self._settings = settings
        self._clock = clock
        self._metrics = metrics or WorkerMetrics()
        self._lock = Lock()
        self._points: list[tuple[int, dict[str, Any]]] = []
        self._notes: list[tuple[str, dict[str, Any]]] = []
        self._step = 0
        self._total: int | None = None
        self._seconds = 0.0
        self._begun = False
        self._closed = Event()
        #: cuts the wait for the next renewal short
        self._stir = Event()
        # In this context, so that what it logs names the job and its tenant.
        keep = copy_context().run
        self._thread = Thread(target=keep, args=(self._keep,), name=f"lease-{job_id}", daemon=True)
        self._thread.start()

    def progress(
        self, step: int, total: int, point: dict[str, Any], note: str | None = None
    ) -> None:
        """Note a step: its metric point (with its device-seconds), and a line for the job's
        history if there is one, go out at the next renewal."""
        with self._lock:
            self._step, self._total = step, total
            self._seconds += float(point["seconds"])
            self._points.append((step, point))
            if not self._begun:
                self._begun = True
                self._stir.set()  # whoever watches sees at once that it trains
            if note is not None:
                self._notes.append((note, {"step": step, "total_steps": total, **point}))

    def at(self, step: int, total: int | None) -> None:
        """Where the job stands before this attempt's first step."""
        with self._lock:
            self._step, self._total = step, total

    def flush(self) -> None:
        """Renew now, with all that was noted. Raises: LostError, UnavailableError."""
        with self._lock:
            points, self._points = self._points, []
            notes, self._notes = self._notes, []
            step, total, seconds = self._step, self._total, self._seconds
        try:
            with self._database.transaction() as tx:
                wish = leases.renew(
                    tx,
                    self.job_id,
                    self.attempt,
                    ttl_seconds=self._settings.lease_seconds,
                    step=step,
                    device_seconds=seconds,
                    points=points,
                    total_steps=total,
                    notes=notes,
                )
            self._metrics.renewed("ok")
        except LostError:
            self._metrics.renewed("lost")
            raise
        except UnavailableError:
            self._metrics.renewed("unavailable")
            with self._lock:
                self._points[:0] = points
                self._notes[:0] = notes
            raise
        self.wish = wish

    def close(self) -> None:
        """Renew no more."""
        self._closed.set()
        self._stir.set()
        self._thread.join()

    def _keep(self) -> None:
        renewed = self._clock.monotonic()
        while True:
            self._clock.wait(self._stir, _FLUSH_SECONDS)
            if self._closed.is_set():
                return
            self._stir.clear()
            due = self._clock.monotonic() - renewed >= self._settings.heartbeat_seconds
            if not (due or self._points):
                continue
            began = self._clock.monotonic()
            try:
                self.flush()
            except LostError as error:
                log.warning("lease.lost", job_id=self.job_id, details=error.details)
                self.lost.set()
                return
            except UnavailableError as error:
                # Training goes on: the token, not the clock, keeps a late write out.
                log.warning("lease.unavailable", job_id=self.job_id, error=error.message)
                continue
            renewed = began
