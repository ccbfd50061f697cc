"""The scheduler's process: a round every tick, and beside it a thread that takes jobs in and one
that sends webhooks."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from threading import Event, Thread

import structlog

from manylora import crash
from manylora.celery_app import make_app
from manylora.checks import service_checks
from manylora.clock import Clock, SystemClock
from manylora.datasets.limits import Limits
from manylora.destinations import Allowed
from manylora.errors import ManyloraError, UnavailableError
from manylora.ledger import leases, lines, tenants, workers
from manylora.ledger.database import Database, times
from manylora.logs import configure
from manylora.metrics import SchedulerMetrics
from manylora.probe import Probe
from manylora.settings import Settings
from manylora.storage.store import Store
from scheduler.contact import Contact
from scheduler.deliver import Sender
from scheduler.dispatch import Done, steer, wake
from scheduler.gauges import Gauges
from scheduler.intake import Intake
from scheduler.post import Post
from scheduler.prune import prune

log = structlog.get_logger(__name__)
#: a round that takes longer is taken for one that never ends
_STUCK_SECONDS = 120.0
_SUMMARY_SECONDS = 10.0


class Scheduler:
    """One scheduler. Several may run at once: every move is a compare-and-set."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.id = f"{socket.gethostname()}-{os.getpid()}"
        self.database = Database(settings.database_url.get_secret_value())
        self.store = Store(settings)
        self.app = make_app(settings.broker_url.get_secret_value())
        self.contact = Contact(settings.lease_seconds)
        self.stopping = Event()
        self.metrics = SchedulerMetrics()
        self.sender = Sender(
            self.database,
            Post(Allowed.from_setting(settings.webhook_networks), self.clock),
            self.clock,
            told=self.metrics.tried,
        )
        self._turned = self.clock.monotonic()
        self._summarised: float | None = None
        #: whether the last round left something it could have done
        self._more = False
        self.intake = Intake(self.database, self.store, Limits.from_settings(settings))

    def tick(self) -> int:
        """One round: rescue, look, decide, do. Returns how many jobs went out."""
        try:
            done = self._round()
        except UnavailableError:
            self.contact.broke()
            raise
        self._more = done.more
        return done.sent

    def _summarise(self) -> None:
        """Once in a while, and first of all: what is true of all lines together."""
        now = self.clock.monotonic()
        if self._summarised is not None and now - self._summarised < _SUMMARY_SECONDS:
            return
        with self.database.transaction() as tx:
            if not lines.steer(tx):
                return
            if self._summarised is None:  # the half-life may be another than it was
                lines.retime(tx, None, self.settings.share_half_life_seconds)
            lines.summarise(tx)
        self._summarised = now

    def _round(self) -> Done:
        settings = self.settings
        with self.database.transaction() as tx:
            workers.tick(tx, self.id)
            now = self.clock.monotonic()
            self.contact.saw(now, *times(tx))
            settled = self.contact.settled
            rescued = leases.rescue(
                tx,
                leases=settled,
                only=self.contact.silent(now, leases.held(tx)),
                most_failures=settings.most_failures_lost,
            )
            again = leases.resend(tx, resend_seconds=settings.resend_seconds)
            owners = tenants.of_jobs(tx, rescued)
        for job_id in rescued:
            log.warning("rescued", job_id=job_id, tenant_id=owners[job_id])
        self.metrics.rescued.inc(len(rescued))
        wake(self.app, again, settings)
        self._summarise()
        done = steer(self.database, self.app, settings, settled=settled)
        self.metrics.dispatched.inc(done.sent)
        return done

    def take_in(self) -> bool:
        """Validate one new job; False when there was none."""
        return self.intake.one()

    def sweep(self) -> bool:
        """Clear the bucket of what ended jobs left; True when there may be more."""
        return prune(self.database, self.store, self.settings.sweep_grace_seconds)

    def run(self) -> None:
        """Rounds until `stop`."""
        thread = Thread(target=self._loop, args=("intake", self.take_in), daemon=True)
        sender = Thread(
            target=self.sender.run, args=(self.stopping, self.settings.tick_seconds), daemon=True
        )
        thread.start()
        sender.start()
        sweeps = "sweep", self.sweep, self.settings.sweep_seconds
        Thread(target=self._loop, args=sweeps, daemon=True).start()
        probe = self._show()
        self._loop("tick", self._turn)
        probe.stop()
        thread.join(timeout=10)
        sender.join(timeout=12)
        self.app.close()
        self.database.close()

    def stop(self) -> None:
        """Finish the round and leave."""
        self.stopping.set()
        self.sender.ended.set()

    def alive(self) -> bool:
        """Whether a round began lately, however it ended."""
        return self.clock.monotonic() - self._turned < _STUCK_SECONDS

    def _turn(self) -> bool:
        self._turned = self.clock.monotonic()
        with self.metrics.tick():
            self.tick()
        return self._more

    def _show(self) -> Probe:
        """Metrics and health on `metrics_port`, if there is one."""
        settings = self.settings
        checks = service_checks(settings, self.database, self.store)
        probe = Probe(self.metrics.text, checks, self.alive)
        if settings.metrics_port:
            gauges = Gauges(
                self.database,
                self.metrics,
                self.clock,
                worker_silence_seconds=settings.lease_seconds,
            )
            Thread(target=self._loop, args=("gauges", gauges.refresh), daemon=True).start()
        probe.show(settings.metrics_host, settings.metrics_port)
        return probe

    def _loop(self, what: str, once: Callable[[], bool], every: float | None = None) -> None:
        """Call `once` again at once while it says True, else after `every` seconds or a tick."""
        while not self.stopping.is_set():
            try:
                more = once()
            except UnavailableError as error:
                log.warning(f"{what}.unavailable", error=error.message)
                more = False
            except ManyloraError as error:
                log.error(f"{what}.failed", error=error.message, code=error.error_code)
                more = False
            if not more:
                self.clock.wait(self.stopping, every or self.settings.tick_seconds)


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    configure(settings.log_level, settings.log_format, settings.secrets())
    crash.arm(settings.crash_at)
    scheduler = Scheduler(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stop())
    log.info("scheduler.up", id=scheduler.id)
    scheduler.run()
    log.info("scheduler.down")
