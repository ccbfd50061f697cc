"""Supervise one job from its claim to its end, in one Celery thread. Imports no torch.

claim → download → tokenise → join the trainer → follow its steps, renewing the lease →
upload → commit. Whatever goes wrong ends in one of: lost (leave quietly), failed (the job's own
fault), released (back to the queue).
"""

from __future__ import annotations

import queue
import shutil
from pathlib import Path
from threading import Event, Lock

import structlog
from sqlalchemy import select

from manylora import keys
from manylora.clock import Clock, SystemClock
from manylora.datasets.tokenize import Tokenizer, Totals
from manylora.errors import LostError, ManyloraError, TrainingError, UnavailableError
from manylora.ledger import events, leases
from manylora.ledger.database import Database
from manylora.ledger.tables import Base, File, Job, Tenant
from manylora.metrics import WorkerMetrics
from manylora.settings import Settings
from manylora.storage.store import Store
from worker import checkpoint, prepare, publish
from worker.lease import Lease
from worker.trainer.link import Message, TrainerLink

log = structlog.get_logger(__name__)
#: errors that trying again can mend; all others are the job's own
_AGAIN = {"unavailable", "integrity"}
_POLL_SECONDS = 0.5


class Supervisor:
    """What all jobs of one worker share."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        link: TrainerLink,
        base_folder: Path,
        worker_id: str,
        clock: Clock | None = None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = store
        self.link = link
        self.base_folder = base_folder
        self.worker_id = worker_id
        self.clock = clock or SystemClock()
        self.metrics = metrics or WorkerMetrics()
        self.draining = Event()
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_lock = Lock()

    def run(self, job_id: str, attempt: int) -> str:
        """Work one attempt; returns how it ended: lost, succeeded, failed, released."""
        with self.metrics.attempt() as ended:
            ended.append(self._run(job_id, attempt))
        return ended[0]

    def _run(self, job_id: str, attempt: int) -> str:
        try:
            with self.database.transaction() as tx:
                job = leases.claim(
                    tx,
                    job_id,
                    attempt,
                    worker_id=self.worker_id,
                    ttl_seconds=self.settings.lease_seconds,
                )
        except LostError:
            return "lost"  # someone else has it, or the wake-up is stale
        structlog.contextvars.bind_contextvars(tenant_id=str(job.tenant_id))
        log.info("job.claimed")
        lease = Lease(self.database, self.settings, self.clock, job_id, attempt, self.metrics)
        folder = self.settings.folder("scratch") / f"{job_id}-{attempt:06d}"
        try:
            try:
                return self._work(job, lease, folder)
            except LostError:
                with self.database.transaction() as tx:
                    leases.close(tx, job_id, attempt, "left")
                return "lost"
            except ManyloraError as error:
                return self._give_up(job, lease, error)
        except UnavailableError as error:
            # The database is away: the lease ends by itself, and the scheduler closes the books.
            log.warning("job.left_open", error=error.message)
            return "lost"
        finally:
            lease.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _give_up(self, job: Job, lease: Lease, error: ManyloraError) -> str:
        log.warning("job.gave_up", code=error.error_code, error=error.message)
        try:
            _end(lease)
            with self.database.transaction() as tx:
                if error.error_code in _AGAIN:
                    queued = leases.release(
                        tx,
                        job.id,
                        job.attempt,
                        actor=self.worker_id,
                        reason=error.message,
                        counts=True,
                    )
                    return "released" if queued else "failed"
                leases.fail(
                    tx,
                    job.id,
                    job.attempt,
                    worker_id=self.worker_id,
                    code=error.error_code,
                    message=error.message,
                )
                return "failed"
        except LostError:
            return "lost"

    def _work(self, job: Job, lease: Lease, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        with self.database.transaction() as tx:
            base = tx.scalars(select(Base).where(Base.name == job.base)).one()
            tenant = tx.scalars(select(Tenant).where(Tenant.id == job.tenant_id)).one()
            wanted = [i for i in (job.training_file, job.validation_file) if i]
            found = {f.id: f for f in tx.scalars(select(File).where(File.id.in_(wanted)))}
            saved = leases.checkpoints(tx, job.id)
        files = [found[i] for i in wanted]
        self._tokenise(job, base, files, folder)
        resume = checkpoint.restore(self.store, saved, folder)
        order = {
            "op": "join",
            "key": f"{job.id}:{job.attempt}",
            "folder": str(folder),
            "base_name": job.base,
            "hyperparameters": job.hyperparameters,
            "seed": job.seed,
        }
        finished = self._train(job, lease, order, resume[1] if resume else None)
        if finished is None:
            return "released"
        out, job.total_steps = Path(finished["folder"]), finished["step"]
        name = keys.adapter_name(job.base, tenant.name, job.suffix)
        described = publish.manifest(job, tenant.name, name, out, files, self.link.numerics)
        with self.metrics.publish():
            published = publish.upload(self.store, job, out, described)
            _end(lease)
            publish.commit(self.database, job, published, self.worker_id, finished["tokens"])
        log.info("job.published", adapter=name)
        return "succeeded"

    def _tokenizer_of(self, base: Base) -> Tokenizer:
        """The base's tokenizer, read once: it may be hundreds of megabytes, so jobs share it."""
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = prepare.tokenizer_of(self.base_folder, base.chat_template)
            return self._tokenizer

    def _tokenise(self, job: Job, base: Base, files: list[File], folder: Path) -> None:
        tokenizer = self._tokenizer_of(base)
        length = int(job.hyperparameters["context_length"])
        for file, name in zip(files, ("train", "validation"), strict=False):
            source = folder / f"{name}.jsonl"
            prepare.fetch_dataset(self.store, file, source)
            totals = Totals()
            target = folder / f"{name}.safetensors"
            prepare.write_examples(tokenizer, source, target, length, totals)
            if totals.truncated:
                told = prepare.cut(totals.truncated, prepare.KINDS[name], length)
                with self.database.transaction() as tx:
                    events.add(tx, job, told, actor=self.worker_id, level="warn")

    def _train(self, job: Job, lease: Lease, order: Message, resume: Path | None) -> Message | None:
        """Follow the job through the trainer; its last message, or None when handed back."""
        key = order["key"]
        mailbox = self.link.listen(key)
        crashes = 0
        saved_at = self.clock.monotonic()
        heard_at = self.clock.monotonic()
        joined, born = False, 0
        saving = False
        try:
            while True:
                if lease.lost.is_set():
                    raise LostError(f"{job.id}: the lease is gone")
                if self.draining.is_set() and not joined:
                    self._hand_back(job, lease)
                    return None
                if not joined and self.link.ready.is_set():
                    born = self.link.restarts
                    joined = self._told({**order, "resume": str(resume) if resume else None})
                    heard_at = self.clock.monotonic()
                message = self._next(mailbox)
                now = self.clock.monotonic()
                if message is None:
                    if joined and now - heard_at > self.settings.stall_seconds:
                        log.error("trainer.hangs", job_id=job.id)
                        self.link.kill()
                        heard_at = now
                    continue
                heard_at = now
                event = message["ev"]
                if event == "step":
                    _note_step(lease, message)
                    self.metrics.step(message["point"].get("tokens", 0))
                    if self.draining.is_set():
                        self._told({"op": "leave", "key": key, "checkpoint": True})
                    elif not saving and now - saved_at > self.settings.checkpoint_seconds:
                        saving = self._told({"op": "checkpoint", "key": key})
                elif event == "checkpoint":
                    last, resume = resume, Path(message["folder"])
                    self._save(job, message["step"], resume)
                    saving, saved_at = False, self.clock.monotonic()
                    if last is not None and last != resume:
                        shutil.rmtree(last, ignore_errors=True)
                elif event == "finished":
                    return message
                elif event == "failed":
                    raise TrainingError(message["message"], code=message["code"])
                elif event == "left":
                    self._hand_back(job, lease)
                    return None
                elif event == "crashed" and joined and message["restarts"] > born:
                    joined = saving = False
                    crashes += 1
                    if crashes > 1:
                        raise UnavailableError("the trainer died twice under this job")
        finally:
            self._told({"op": "leave", "key": key})
            self.link.forget(key)

    def _save(self, job: Job, step: int, folder: Path) -> None:
        """Keep a checkpoint. An outage costs this checkpoint, not the job: it trains on."""
        try:
            with self.metrics.checkpoint():
                checkpoint.save(self.database, self.store, job, step, folder)
        except UnavailableError as error:
            log.warning("checkpoint.skipped", job_id=job.id, step=step, error=error.message)

    @staticmethod
    def _next(mailbox: queue.Queue[Message]) -> Message | None:
        try:
            return mailbox.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None

    def _told(self, order: Message) -> bool:
        """Give the trainer an order; False when it died, of which a message tells (or told)."""
        try:
            self.link.send(order)
        except UnavailableError as error:
            log.info("trainer.not_told", op=order["op"], key=order["key"], error=error.message)
            return False
        return True

    def _hand_back(self, job: Job, lease: Lease) -> None:
        _end(lease)
        with self.database.transaction() as tx:
            leases.release(
                tx,
                job.id,
                job.attempt,
                actor=self.worker_id,
                reason="its worker is shutting down",
                counts=False,
            )


def _end(lease: Lease) -> None:
    """The last renewal: all steps and device-seconds are on the books before the attempt ends.

    Raises: LostError, UnavailableError.
    """
    lease.close()
    lease.flush()


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
