"""Follow one job through the trainer: join, note its steps, keep its checkpoints, and bring it
through whatever befalls the trainer itself."""

from __future__ import annotations

import queue
import shutil
import signal
from collections import deque
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import structlog

from manylora import crash, keys
from manylora.clock import Clock
from manylora.errors import IntegrityError, LostError, TrainingError, UnavailableError
from manylora.ledger import checkpoints, leases
from manylora.ledger.database import Database
from manylora.ledger.tables import Job
from manylora.metrics import WorkerMetrics
from manylora.settings import Settings
from manylora.storage.store import Store
from worker import cadence, checkpoint
from worker.checkpoint import Resumed
from worker.lease import Lease
from worker.trainer.link import Message, TrainerLink

log = structlog.get_logger(__name__)
_POLL_SECONDS = 0.5
#: a step may take so many times what it usually does before the trainer is thought to hang
_SLOW = 10


class Follow:
    """One attempt's way through the trainer."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        link: TrainerLink,
        clock: Clock,
        draining: Event,
        job: Job,
        lease: Lease,
        order: Message,
        resumed: Resumed | None,
        name: str,
        metrics: WorkerMetrics,
    ) -> None:
        self._settings, self._database, self._store = settings, database, store
        self._link, self._clock, self._draining = link, clock, draining
        self._job, self._lease, self._order = job, lease, order
        self._key: str = order["key"]
        self._name = name
        self._metrics = metrics
        self._resume = resumed.folder if resumed else None
        self.exact = resumed.exact if resumed else True
        self.last_point: dict[str, Any] = {}
        self._joined, self._born = False, 0
        #: told to leave the trainer only until somebody else was tried alone
        self._stepping_out = False
        self._saving = False
        self._cost = 0.0
        self._gaps: deque[float] = deque(maxlen=50)
        with database.transaction() as tx:
            #: what the store holds already: not written again by a job that was set back
            self._kept = {("epoch", c.step) for c in checkpoints.of_job(tx, job.id, "epoch")}
            self._kept |= {
                ("state", c.step)
                for c in checkpoints.of_job(tx, job.id, "state")
                if c.attempt == job.attempt
            }

    def run(self) -> Message | None:
        """The trainer's last message of the job; None when it was handed back by the trainer.

        Raises: LostError, TrainingError, UnavailableError.
        """
        mailbox = self._link.listen(self._key)
        self._saved_at = self._heard_at = self._clock.monotonic()
        told_to_leave: float | None = None
        try:
            while True:
                if self._lease.lost.is_set():
                    raise LostError(f"{self._job.id}: the lease is gone")
                if self._draining.is_set() or self._lease.wish is not None:
                    now = self._clock.monotonic()
                    if not self._joined:
                        return None
                    if told_to_leave is None:
                        told_to_leave = now
                        self._tell({"op": "leave", "key": self._key, "checkpoint": True})
                    elif now - told_to_leave > self._settings.drain_seconds:
                        log.warning("job.left_without_checkpoint", job_id=self._job.id)
                        return None
                self._join()
                message = self._next(mailbox)
                if message is None:
                    self._look_for_hang()
                    continue
                if message["ev"] == "finished":
                    return message
                if message["ev"] == "left" and not self._stepping_out:
                    return None
                self._hear(message)
        finally:
            self._tell({"op": "leave", "key": self._key})
            self._link.forget(self._key)
            self._link.quarantine.forget(self._key)

    def _join(self) -> None:
        """Join, once the trainer is there and nobody is to be alone in it."""
        if self._joined or not self._link.ready.is_set():
            return
        born = self._link.restarts
        if not self._link.quarantine.enter(self._key):
            return
        resume = str(self._resume) if self._resume else None
        self._joined = self._tell({**self._order, "resume": resume})
        if not self._joined:
            self._link.quarantine.leave(self._key)
        self._born = born
        self._gaps.clear()
        self._heard_at = self._clock.monotonic()

    def _hear(self, message: Message) -> None:
        now = self._clock.monotonic()
        gap, self._heard_at = now - self._heard_at, now
        event = message["ev"]
        if event == "step":
            crash.point("mid_step")
            self._gaps.append(gap)
            self._step(message)
            self._make_room()
        elif event == "checkpoint":
            self._checkpoint(message)
        elif event == "epoch":
            self._epoch(message)
        elif event == "unsaved":
            self._saving, self._saved_at = False, now
            self._warn(f"A checkpoint could not be written: {message['message']}; it trains on")
        elif event == "left":
            self._joined = self._stepping_out = self._saving = False
            self._link.quarantine.leave(self._key)
        elif event == "failed" and message["code"] == "disk_full":
            raise UnavailableError(
                f"the worker's disk is full: {message['message']}",
                code="disk_full",
                hint="free space below MANYLORA_SCRATCH",
            )
        elif event == "failed":
            raise TrainingError(message["message"], code=message["code"])
        elif event == "crashed" and self._joined and message["restarts"] > self._born:
            self._joined = self._stepping_out = self._saving = False
            self._judge(message)

    def _step(self, message: Message) -> None:
        step = message["step"]
        self.last_point = message["point"]
        self._link.quarantine.progress(self._key, step)
        _note_step(self._lease, message)
        self._metrics.step(self.last_point.get("tokens", 0))
        due = cadence.interval(
            cost=self._cost,
            failure=self._settings.failure_seconds,
            expected=message["total_steps"] * median(self._gaps),
            most=self._settings.checkpoint_seconds,
        )
        last = step == message["total_steps"] or message["stopped_early"]
        if not (self._saving or last) and self._heard_at - self._saved_at > due:
            self._saving = self._tell({"op": "checkpoint", "key": self._key})

    def _make_room(self) -> None:
        """Step out, with a checkpoint, for somebody who is to be tried alone."""
        if not self._stepping_out and self._link.quarantine.in_the_way(self._key):
            order = {"op": "leave", "key": self._key, "checkpoint": True}
            self._stepping_out = self._tell(order)

    def _checkpoint(self, message: Message) -> None:
        """Keep a state. An outage costs this checkpoint, not the job: it trains on."""
        last, self._resume = self._resume, Path(message["folder"])
        self._keep("state", message["step"], self._resume)
        self._saving, self._saved_at = False, self._clock.monotonic()
        self._cost = message["seconds"] + self._saved_at - self._heard_at
        if last is not None and last != self._resume:
            shutil.rmtree(last, ignore_errors=True)

    def _epoch(self, message: Message) -> None:
        folder, step = Path(message["folder"]), message["step"]
        self._keep("epoch", step, folder, keys.checkpoint_name(self._name, step))
        shutil.rmtree(folder, ignore_errors=True)

    def _keep(
        self, kind: checkpoints.Kind, step: int, folder: Path, name: str | None = None
    ) -> None:
        if (kind, step) in self._kept:
            return
        try:
            with self._metrics.checkpoint():
                checkpoint.save(
                    self._database,
                    self._store,
                    self._job,
                    step,
                    folder,
                    kind=kind,
                    name=name,
                    metrics={k: v for k, v in self.last_point.items() if k != "seconds"},
                    numerics=self._link.numerics,
                    exact=self.exact,
                )
            self._kept.add((kind, step))
        except (UnavailableError, IntegrityError) as error:
            log.warning("checkpoint.skipped", job_id=self._job.id, step=step, error=error.message)
            self._warn(
                f"The checkpoint of step {step} could not be stored: {error.message}; it trains on"
            )

    def _look_for_hang(self) -> None:
        quiet = self._clock.monotonic() - self._heard_at
        usual = median(self._gaps) if self._gaps else 0.0
        if self._joined and quiet > max(self._settings.stall_seconds, _SLOW * usual):
            log.error("trainer.hangs", job_id=self._job.id, quiet=quiet)
            self._warn(f"The trainer made no step for {quiet:.0f} s: it is restarted")
            self._link.kill(self._born)
            self._heard_at = self._clock.monotonic()

    def _judge(self, message: Message) -> None:
        """After a crash: on from the last checkpoint, unless this job is to blame for it."""
        how, memory = _how(message["code"]), message.get("memory", False)
        crashes = self._link.quarantine.guilty(self._key)
        if crashes is None:
            self._warn(f"The trainer ended ({how}); the job goes on from its last checkpoint")
            return
        if memory:
            hyper = self._job.hyperparameters
            asked = ("lora_r", "batch_size", "context_length", "gradient_accumulation_steps")
            sizes = ", ".join(f"{name} {hyper[name]}" for name in asked if name in hyper)
            raise TrainingError(
                f"the trainer was killed for memory under this job alone ({sizes}, "
                f"token_budget {self._settings.token_budget}): ask for less, or for a worker with "
                "more memory",
                code="out_of_memory",
            )
        raise TrainingError(
            f"the trainer ended {crashes} times running under this job, the last time with nobody "
            f"beside it ({how})",
            code="poison",
        )

    def _warn(self, message: str) -> None:
        """A line in the job's history. Where the database is away, the log alone has it."""
        try:
            with self._database.transaction() as tx:
                leases.note(tx, self._job, message, actor="worker", level="warn")
        except UnavailableError as error:
            log.warning("job.not_told", job_id=self._job.id, said=message, error=error.message)

    @staticmethod
    def _next(mailbox: queue.Queue[Message]) -> Message | None:
        try:
            return mailbox.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None

    def _tell(self, order: Message) -> bool:
        """Give the trainer an order; False when it died, of which a message tells (or told)."""
        try:
            self._link.send(order)
        except UnavailableError as error:
            log.info("trainer.not_told", op=order["op"], key=order["key"], error=error.message)
            return False
        return True


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _note_step(lease: Lease, message: Message) -> None:
    """A step's point, and about ten times in a job's life a line of its history."""
    step, total, point = message["step"], message["total_steps"], message["point"]
    note = None
    if step == total or step % max(1, total // 10) == 0:
        note = f"Step {step}/{total}: training loss={point['train_loss']:.2f}"
        if "valid_loss" in point:
            note += f", validation loss={point['valid_loss']:.2f}"
    if message["stopped_early"]:
        note = (
            f"Stopped early at step {step}/{total}: the validation loss was lowest at step "
            f"{message['best_step']}, and that adapter is kept"
        )
    lease.progress(step, total, point, note)
