"""Supervise one job from its claim to its end, in one Celery thread. Imports no torch.

claim → download → tokenise → join the trainer → follow its steps, renewing the lease →
upload → commit. Whatever goes wrong ends in one of: lost (leave quietly), failed (the job's own
fault), released (back to the queue).
"""

from __future__ import annotations

import queue
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import structlog
from sqlalchemy import select

from manylora import keys
from manylora.clock import Clock, SystemClock
from manylora.datasets.tokenize import Totals
from manylora.errors import LostError, ManyloraError, TrainingError, UnavailableError
from manylora.ledger import events, leases
from manylora.ledger.database import Database
from manylora.ledger.tables import Base, File, Job, Tenant
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
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = store
        self.link = link
        self.base_folder = base_folder
        self.worker_id = worker_id
        self.clock = clock or SystemClock()
        self.draining = Event()

    def run(self, job_id: str, attempt: int) -> str:
        """Work one attempt; returns how it ended: lost, succeeded, failed, released."""
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
        log.info("job.claimed")
        lease = Lease(self.database, self.settings, self.clock, job_id, attempt)
        folder = self.settings.folder("scratch") / f"{job_id}-{attempt:06d}"
        try:
            return self._work(job, lease, folder)
        except LostError:
            with self.database.transaction() as tx:
                leases.close(tx, job_id, attempt, "left")
            return "lost"
        except ManyloraError as error:
            return self._give_up(job, error)
        finally:
            lease.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _give_up(self, job: Job, error: ManyloraError) -> str:
        log.warning("job.gave_up", code=error.error_code, error=error.message)
        try:
            with self.database.transaction() as tx:
                if error.error_code in _AGAIN:
                    leases.release(
                        tx,
                        job.id,
                        job.attempt,
                        actor=self.worker_id,
                        reason=error.message,
                        counts=True,
                    )
                    return "released"
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
        out = self._train(job, lease, order, resume[1] if resume else None)
        if out is None:
            return "released"
        name = keys.adapter_name(job.base, tenant.name, job.suffix)
        described = publish.manifest(job, tenant.name, name, out, files, self.link.numerics)
        published = publish.upload(self.store, job, out, described)
        lease.close()
        lease.flush()
        publish.commit(self.database, job, published, self.worker_id, lease.tokens)
        log.info("job.published", adapter=name)
        return "succeeded"

    def _tokenise(self, job: Job, base: Base, files: list[File], folder: Path) -> None:
        tokenizer = prepare.tokenizer_of(self.base_folder, base.chat_template)
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

    def _train(self, job: Job, lease: Lease, order: Message, resume: Path | None) -> Path | None:
        """Follow the job through the trainer; the adapter's folder, or None when handed back."""
        key = order["key"]
        mailbox = self.link.listen(key)
        crashes = 0
        saved_at = self.clock.monotonic()
        heard_at = self.clock.monotonic()
        joined = False
        try:
            while True:
                if lease.lost.is_set():
                    raise LostError(f"{job.id}: the lease is gone")
                if self.draining.is_set() and not joined:
                    self._hand_back(job)
                    return None
                if not joined and self.link.ready.is_set():
                    self.link.send({**order, "resume": str(resume) if resume else None})
                    joined = True
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
                    self._note_step(job, lease, message)
                    if self.draining.is_set():
                        self.link.send({"op": "leave", "key": key, "checkpoint": True})
                    elif now - saved_at > self.settings.checkpoint_seconds:
                        saved_at = now
                        self.link.send({"op": "checkpoint", "key": key})
                elif event == "checkpoint":
                    resume = Path(message["folder"])
                    checkpoint.save(self.database, self.store, job, message["step"], resume)
                elif event == "finished":
                    return Path(message["folder"])
                elif event == "failed":
                    raise _failure(message)
                elif event == "left":
                    self._hand_back(job)
                    return None
                elif event == "crashed":
                    joined = False
                    crashes += 1
                    if crashes > 1:
                        raise UnavailableError("the trainer died twice under this job")
        finally:
            self._leave(key)
            self.link.forget(key)

    @staticmethod
    def _next(mailbox: queue.Queue[Message]) -> Message | None:
        try:
            return mailbox.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None

    def _leave(self, key: str) -> None:
        """Free the slot, whatever became of the job; a dead child has no slot to free."""
        try:
            self.link.send({"op": "leave", "key": key})
        except UnavailableError:
            log.info("trainer.already_gone", key=key)

    def _hand_back(self, job: Job) -> None:
        with self.database.transaction() as tx:
            leases.release(
                tx,
                job.id,
                job.attempt,
                actor=self.worker_id,
                reason="its worker is shutting down",
                counts=False,
            )

    def _note_step(self, job: Job, lease: Lease, message: Message) -> None:
        step, total, point = message["step"], message["total_steps"], message["point"]
        lease.progress(step, point)
        if job.total_steps != total:
            job.total_steps = total
            with self.database.transaction() as tx:
                row = tx.get(Job, job.id)
                if row is not None and row.attempt == job.attempt:
                    row.total_steps = total
        if step == total or step % max(1, total // 10) == 0:
            self._tell(job, step, total, point)

    def _tell(self, job: Job, step: int, total: int, point: dict[str, Any]) -> None:
        text = f"Step {step}/{total}: training loss={point['train_loss']:.2f}"
        if "valid_loss" in point:
            text += f", validation loss={point['valid_loss']:.2f}"
        data = {"step": step, "total_steps": total, **point}
        with self.database.transaction() as tx:
            events.add(tx, job, text, actor=self.worker_id, kind="metrics", data=data)


def _failure(message: Message) -> ManyloraError:
    return TrainingError(message["message"], code=message["code"])
