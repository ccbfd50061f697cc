"""The worker's process: report, get a base, hold it in the trainer child, consume its queue.

Given another base while it is idle, it stops consuming and starts itself anew in place.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import sys
import uuid
from pathlib import Path
from threading import Event, Thread
from typing import Any

import structlog
from celery import signals
from celery.worker import state as celery_state
from sqlalchemy import select

from manylora import __version__, crash, keys
from manylora.celery_app import make_app
from manylora.checks import service_checks
from manylora.clock import SystemClock
from manylora.errors import ManyloraError, UnavailableError, UsageError
from manylora.ledger import bases, workers
from manylora.ledger.database import Database
from manylora.ledger.tables import Base, Worker
from manylora.logs import configure
from manylora.metrics import WorkerMetrics
from manylora.probe import Probe
from manylora.settings import Settings
from manylora.storage.store import Store
from worker.bases.fetch import ensure
from worker.supervise import Supervisor
from worker.tasks import register
from worker.trainer.link import TrainerLink

log = structlog.get_logger(__name__)
#: a worker that has not tried to report for that long has stopped turning
_STUCK_SECONDS = 120.0
_STOP_SECONDS = 3.0


def pick_device(asked: str) -> str:
    """`auto` is the first GPU where the driver is there, else the CPU.

    Raises: UsageError for what is no device.
    """
    if asked == "auto":
        return "cuda:0" if Path("/dev/nvidiactl").exists() else "cpu"
    if asked == "cpu" or (asked.startswith("cuda:") and asked[5:].isdigit()):
        return asked
    raise UsageError(f"{asked!r} is not a device", hint="auto, cpu or cuda:0")


class WorkerProcess:
    """One worker and its device."""

    def __init__(self, settings: Settings, base: str | None, slots: int, device: str) -> None:
        self.settings = settings
        self.pinned = base is not None
        self.base = base
        self.slots = slots
        self.device = pick_device(device)
        self.kind = self.device.split(":")[0]
        # The same process keeps its name through an exec, so that its slots stay its own.
        self.id = os.environ.get("_MANYLORA_WORKER_ID") or (
            f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        )
        self.clock = SystemClock()
        self.database = Database(
            settings.database_url.get_secret_value(), pool_size=max(5, 2 * slots)
        )
        self.store = Store(settings)
        self.metrics = WorkerMetrics()
        self.metrics.slots.set(slots)
        self.stopping = Event()
        self.over = Event()
        self.serving: Base | None = None
        self.supervisor: Supervisor | None = None
        self.state = "idle"
        self.note: str | None = None
        self.fingerprint: str | None = None
        self.queue: str | None = None
        self.restart = False
        self.link: TrainerLink | None = None
        self._reported = self.clock.monotonic()

    def run(self) -> None:
        """Until told to stop."""
        self._hear_signals()
        probe = self._show()
        base = self._wait_for_base()
        if base is not None:
            heart = Thread(target=self._beat, daemon=True)
            try:
                self._serve(base, heart)
            finally:
                self._hear_signals()  # Celery put its own handlers in place
                if self.link is not None:
                    # Every job has left, or its time is over: nothing here is worth a wait.
                    self.link.stop(timeout=_STOP_SECONDS)
                self.over.set()
                if heart.is_alive():
                    heart.join()
        probe.stop()
        if self.restart:
            log.info("worker.new_base")
            self.database.close()
            os.environ["_MANYLORA_WORKER_ID"] = self.id
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
        self.state = "gone"
        self._report_quietly()
        self.database.close()

    def _show(self) -> Probe:
        """Metrics and health on `metrics_port`, if there is one."""
        checks = service_checks(self.settings, self.database, self.store)
        probe = Probe(self.metrics.text, {**checks, "base": self._check_base}, self.alive)
        self.metrics.trainer_restarts.set_function(lambda: self.link.restarts if self.link else 0)
        probe.show(self.settings.metrics_host, self.settings.metrics_port)
        return probe

    def _check_base(self) -> None:
        """Raises: UnavailableError unless a base is held and jobs are taken."""
        if self.state != "ready" or self.link is None or not self.link.ready.is_set():
            raise UnavailableError(
                f"the worker is {self.state}" + (f": {self.note}" if self.note else ""),
                hint="a base is loaded in seconds to minutes; without one: manylora base list",
            )

    def _hear_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_stop)

    def _told_to_stop(self, number: int, frame: Any) -> None:
        if self.stopping.is_set():
            _leave_now(number, frame)
        self.restart = False  # who is told to stop does not come back with another base
        self.stopping.set()

    def _wait_for_base(self) -> Base | None:
        """Report until a base is assigned and ready; None when stopped before."""
        while not self.stopping.is_set():
            try:
                row = self._report()
                wanted = row.assigned_base or (self.base if self.pinned else None)
                if wanted:
                    with self.database.transaction() as tx:
                        return bases.get(tx, wanted)
            except UnavailableError as error:
                log.warning("worker.waits", error=error.message)
            except UsageError as error:
                self.note = error.message
            self.clock.wait(self.stopping, 1.0)
        return None

    def _serve(self, base: Base, heart: Thread) -> None:
        self.state, self.base, self.serving = "loading", base.name, base
        self._report_quietly()
        heart.start()
        folder = self._fetch(base)
        if folder is None:
            return
        note = self.settings.folder("run") / f"trainer-{os.getpid()}.json"
        self.link = TrainerLink(
            folder,
            slots=self.slots,
            device=self.device,
            threads=self.settings.threads,
            note=note,
            token_budget=self.settings.token_budget,
            memory_limit=self.settings.memory_limit,
            kernels=self.settings.folder("kernels"),
            factories=self.settings.factories,
            log=(self.settings.log_level, self.settings.log_format),
        )
        self.link.start()
        self.supervisor = Supervisor(
            self.settings,
            self.database,
            self.store,
            self.link,
            folder,
            self.id,
            metrics=self.metrics,
        )
        self.supervisor.reader.warm(base)
        while not self.link.ready.wait(0.5):
            if self.stopping.is_set():
                return
            self.note = self.link.failure
        self.fingerprint = base.fingerprint
        self.queue = keys.pool_queue(base.fingerprint, self.kind)
        if self.stopping.is_set():
            return
        self.state, self.note = "ready", None
        self._report_quietly()
        log.info("worker.ready", base=base.name, queue=self.queue, slots=self.slots)
        self._consume(self.supervisor)

    def _fetch(self, base: Base) -> Path | None:
        """The base's folder; tries again while the store is away. None when stopped before."""
        while not self.stopping.is_set():
            try:
                folder = ensure(self.store, self.settings.folder("bases"), base)
                if not self.store.probe():
                    log.warning("store.no_conditional_put")
                return folder
            except ManyloraError as error:
                self.note = f"cannot fetch {base.name}: {error.message}"
                log.warning("worker.fetch", error=error.message)
                self._report_quietly()
            self.clock.wait(self.stopping, 5.0)
        return None

    def _consume(self, supervisor: Supervisor) -> None:
        """Run Celery in this thread until a warm shutdown."""
        assert self.queue is not None
        app = make_app(self.settings.broker_url.get_secret_value(), queues=(self.queue,))
        register(app, supervisor)

        def drain(**_: Any) -> None:
            self.restart = False
            self.state = "draining"
            supervisor.draining.set()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _leave_now)

        signals.worker_shutting_down.connect(drain, weak=False)
        celery = app.Worker(
            pool="threads",
            concurrency=self.slots,
            queues=[self.queue],
            hostname=f"{self.id}@manylora",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel=self.settings.log_level.upper(),
            quiet=True,
        )
        if not self.stopping.is_set():
            celery.start()
        self.stopping.set()

    def _beat(self) -> None:
        """Report until it is over; begin to leave once another base is assigned."""
        while not self.clock.wait(self.over, min(5.0, self.settings.heartbeat_seconds)):
            try:
                row = self._report()
                if not self.stopping.is_set() and self._is_given_another(row):
                    self._leave_for_another()
            except UnavailableError as error:
                log.warning("worker.heartbeat", error=error.message)

    def _is_given_another(self, row: Worker) -> bool:
        """Whether the row names a base with other files than those held here, by this name or
        another. One that was taken away is held until there is another."""
        if row.assigned_base is None or self.serving is None:
            return False
        with self.database.transaction() as tx:
            base = tx.get(Base, row.assigned_base)
        return (
            base is not None
            and base.state == "ready"
            and base.fingerprint != self.serving.fingerprint
        )

    def _leave_for_another(self) -> None:
        """As if told to stop (jobs are handed back with a checkpoint), but to come back."""
        log.info("worker.leaves_base", base=self.base)
        self.restart = True
        self.state = "draining"
        self._report_quietly()  # from here on the scheduler sends nothing here
        self.stopping.set()
        if self.supervisor is not None:
            self.supervisor.draining.set()
        celery_state.should_stop = 0  # a warm shutdown, and the exit code 0

    def alive(self) -> bool:
        """Whether this worker tried to report lately, whatever came of it."""
        return self.clock.monotonic() - self._reported < _STUCK_SECONDS

    def _report(self) -> Worker:
        self._reported = self.clock.monotonic()
        columns: dict[str, Any] = {
            "device_kind": self.kind,
            "slots": self.slots,
            "pinned": self.pinned,
            "fingerprint": self.fingerprint,
            "queue": self.queue,
            "state": self.state,
            "note": self.note,
            "facts": {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "python": platform.python_version(),
                "manylora": __version__,
                "trainer_pid": self.link.pid if self.link else None,
                "trainer_restarts": self.link.restarts if self.link else 0,
                "numerics": self.link.numerics if self.link else {},
            },
        }
        with self.database.transaction() as tx:
            if self.pinned:
                # Locked until this row names it, so that it is not removed in between.
                here = select(Base.name).where(Base.name == self.base)
                columns["assigned_base"] = tx.scalar(
                    here.with_for_update(read=True, key_share=True)
                )
            return workers.report(tx, self.id, **columns)

    def _report_quietly(self) -> None:
        try:
            self._report()
        except UnavailableError as error:
            log.warning("worker.report", error=error.message)


def _leave_now(number: int, _: Any) -> None:
    """Told a second time: not another moment. The trainer ends with this process, and the jobs come
    back when their leases are over."""
    os._exit(128 + number)


def serve(settings: Settings, *, base: str | None, slots: int, device: str) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    configure(settings.log_level, settings.log_format, settings.secrets())
    crash.arm(settings.crash_at)
    if slots < 1:
        raise UsageError(f"{slots} slots are no slots", hint="--slots 1 or more")
    worker = WorkerProcess(settings, base, slots, device)
    log.info("worker.up", id=worker.id, device=worker.device, slots=slots)
    worker.run()
    log.info("worker.down")
