"""Supervise one job from its claim to its end, in one Celery thread. Imports no torch.

claim → adopt what an earlier attempt left whole, or: download → tokenise → follow the job through
the trainer (follow.py), renewing the lease → upload → commit. Whatever goes wrong ends in one of:
lost (leave quietly), failed (the job's own fault), released (back to the queue).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TypeVar

import structlog
from sqlalchemy import select

from manylora import crash, keys
from manylora.clock import Clock, SystemClock
from manylora.errors import IntegrityError, LostError, ManyloraError, UnavailableError
from manylora.ledger import checkpoints, jobs, leases, workers
from manylora.ledger.database import Database
from manylora.ledger.tables import Base, Checkpoint, File, Job, Tenant
from manylora.metrics import WorkerMetrics
from manylora.settings import Settings
from manylora.storage import sweep
from manylora.storage.store import Store
from worker import adopt, checkpoint, publish, quality
from worker.checkpoint import Resumed
from worker.follow import Follow
from worker.lease import Lease
from worker.outlast import outlast
from worker.reader import Reader
from worker.trainer.link import TrainerLink

log = structlog.get_logger(__name__)
T = TypeVar("T")
#: seconds that a worker of other numerics leaves a job to those it began on
_ELSEWHERE = 30.0
#: what a job in work needs on disk: this many times its datasets, and room for its checkpoints
_COPIES, _ROOM = 4, 256 << 20


#: errors of a job that are not its tenant's doing, and what they count as
_KINDS = {"poison": "lost", "out_of_memory": "oom"}


class _HandedBack(Exception):  # noqa: N818  (no error: a way out)
    """The job goes back to the queue at no cost to it, for `wait` seconds at least; says why."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


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
        self.reader = Reader(settings, database, store, base_folder)

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
        crash.point("after_claim")
        structlog.contextvars.bind_contextvars(tenant_id=str(job.tenant_id))
        log.info("job.claimed")
        lease = Lease(self.database, self.settings, self.clock, job_id, attempt, self.metrics)
        folder = self.settings.folder("scratch") / f"{job_id}-{attempt:06d}"
        try:
            try:
                return self._work(job, lease, folder)
            except _HandedBack as why:
                return self._hand_back(job, lease, str(why), why.wait)
            except OSError as error:
                return self._give_up(job, lease, _of_the_disk(error, folder))
            except LostError:
                with self.database.transaction() as tx:
                    leases.close(tx, job_id, attempt, "left")
                return "lost"
            except ManyloraError as error:
                if self.draining.is_set() and error.error_code == UnavailableError.code:
                    return self._hand_back(job, lease, "its worker is shutting down", 0.0)
                return self._give_up(job, lease, error)
        except LostError:
            return "lost"
        except UnavailableError as error:
            # The database is away: the lease ends by itself, and the scheduler closes the books.
            log.warning("job.left_open", error=error.message)
            return "lost"
        finally:
            lease.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _give_up(self, job: Job, lease: Lease, error: ManyloraError) -> str:
        log.warning("job.gave_up", code=error.error_code, error=error.message)
        _end(lease)
        with self.database.transaction() as tx:
            if isinstance(error, UnavailableError | IntegrityError):  # all others stay as they are
                queued = leases.release(
                    tx,
                    job.id,
                    job.attempt,
                    actor=self.worker_id,
                    reason=error.message,
                    counts=True,
                    kind="infra",
                    most_failures=self.settings.most_failures_infra,
                )
                return "released" if queued else "failed"
            leases.fail(
                tx,
                job.id,
                job.attempt,
                worker_id=self.worker_id,
                code=error.error_code,
                message=error.message,
                kind=_KINDS.get(error.error_code, "user"),
            )
            return "failed"

    def _hand_back(self, job: Job, lease: Lease, why: str, wait: float) -> str:
        _end(lease)
        with self.database.transaction() as tx:
            leases.release(tx, job.id, job.attempt, actor=self.worker_id, reason=why, counts=False)
            jobs.postpone(tx, job.id, job.attempt, wait)
        return "released"

    def _work(self, job: Job, lease: Lease, folder: Path) -> str:
        base, tenant, files, saved = self._outlast(lease, lambda: self._rows(job))
        folder.mkdir(parents=True, exist_ok=True)
        _room_for(files, folder)
        orphan = self._outlast(
            lease,
            lambda: adopt.find(self.store, job, files, folder / "orphan", base.quantization),
        )
        if orphan is not None:
            return self._adopt(job, lease, orphan)
        self.reader.read(job, base, files, folder, lambda call: self._outlast(lease, call))
        resumed = self._outlast(
            lease, lambda: checkpoint.restore(self.database, self.store, job, saved, folder)
        )
        if resumed is not None:
            lease.at(resumed.step, job.total_steps)
            resumed = self._exactly(job, resumed)
        order = {
            "op": "join",
            "key": f"{job.id}:{job.attempt}",
            "folder": str(folder),
            "base_name": job.base,
            "hyperparameters": job.hyperparameters,
            "seed": job.seed,
            "quality": quality.wanted(
                job, self.settings.quality_seconds, self.reader.tokenizer(base), folder
            ),
        }
        name = keys.adapter_name(job.base, tenant, job.suffix)
        follow = self._outlast(
            lease,
            lambda: Follow(
                self.settings,
                self.database,
                self.store,
                self.link,
                self.clock,
                self.draining,
                job,
                lease,
                order,
                resumed,
                name,
                self.metrics,
            ),
        )
        finished = follow.run()
        if finished is None:
            raise _HandedBack("its worker is shutting down")
        out, job.total_steps = Path(finished["folder"]), finished["step"]
        if finished.get("quality"):
            self._outlast(lease, lease.flush)
            self._outlast(
                lease,
                lambda: quality.report(
                    self.database, job, finished, self.reader.tokenizer(base), folder
                ),
            )
        described = publish.manifest(
            job,
            tenant,
            name,
            out,
            files,
            self.link.numerics,
            quantization=base.quantization,
            tokens=finished["tokens"],
            exact=follow.exact,
            gains=finished["gains"],
        )
        point = {k: v for k, v in follow.last_point.items() if k != "seconds"}
        with self.metrics.publish():
            published = self._outlast(
                lease, lambda: publish.upload(self.store, job, out, described)
            )
            self._commit(job, lease, published, finished["tokens"], point)
        return "succeeded"

    def _rows(self, job: Job) -> tuple[Base, str, list[File], list[Checkpoint]]:
        """What a job begins with: its base, its tenant's name, its files, its checkpoints."""
        with self.database.transaction() as tx:
            base = tx.scalars(select(Base).where(Base.name == job.base)).one()
            tenant = tx.scalars(select(Tenant.name).where(Tenant.id == job.tenant_id)).one()
            wanted = [i for i in (job.training_file, job.validation_file) if i]
            found = {f.id: f for f in tx.scalars(select(File).where(File.id.in_(wanted)))}
            return base, tenant, [found[i] for i in wanted], checkpoints.of_job(tx, job.id)

    def _adopt(self, job: Job, lease: Lease, orphan: adopt.Orphan) -> str:
        """Publish what an earlier attempt made and could not publish any more."""
        job.total_steps = orphan.steps
        lease.at(orphan.steps, orphan.steps)
        source = orphan.published.source_attempt
        with self.database.transaction() as tx:
            leases.note(
                tx,
                job,
                f"The adapter of attempt {source} is whole and verified: it is published as it is",
                actor=self.worker_id,
                data={"source_attempt": source},
            )
        self._commit(job, lease, orphan.published, orphan.tokens, None)
        return "succeeded"

    def _commit(
        self,
        job: Job,
        lease: Lease,
        published: publish.Published,
        tokens: int,
        metrics: dict[str, object] | None,
    ) -> None:
        """The last renewal and the one transaction; both bear repeating. What the job could have
        resumed from is deleted then; what stays behind is the sweep's."""

        def commit() -> None:
            with suppress(LostError):  # lost to our own first try, perhaps: the commit sees
                lease.flush()
            publish.commit(self.database, job, published, self.worker_id, tokens, metrics)

        try:
            self._outlast(lease, commit)
        except LostError:
            commit()
        lease.close()
        log.info("job.published", adapter=published.name)
        try:
            with self.database.transaction() as tx:
                kept = [c.prefix for c in checkpoints.of_job(tx, job.id, "epoch")]
            sweep.clear(
                self.store,
                str(job.tenant_id),
                job.id,
                [published.prefix, *kept],
                published.manifest_key,
            )
        except UnavailableError as error:
            log.warning("job.not_tidied", job_id=job.id, error=error.message)

    def _outlast(self, lease: Lease, call: Callable[[], T]) -> T:
        return outlast(
            call,
            clock=self.clock,
            lease=lease,
            draining=self.draining,
            seconds=self.settings.patience_seconds,
        )

    def _exactly(self, job: Job, resumed: Resumed) -> Resumed:
        """The state as this worker may take it: if other numerics made it, only when no worker of
        those is to be had.

        Raises: _HandedBack while there is one.
        """
        ours = self.link.numerics
        if not resumed.numerics or not ours or resumed.numerics == ours:
            return resumed
        with self.database.transaction() as tx:
            if workers.served_lately(
                tx, job.base_fingerprint, resumed.numerics, self.settings.exact_wait_seconds
            ):
                raise _HandedBack("it waits for a worker like the one it began on", _ELSEWHERE)
            differs = sorted(k for k, v in resumed.numerics.items() if ours.get(k) != v)
            told = (
                f"No worker like the one it began on ({', '.join(differs)} differ): it is resumed "
                "all the same, and its bytes may not be those of an undisturbed training"
            )
            leases.note(tx, job, told, actor=self.worker_id, level="warn", data={"exact": False})
        return replace(resumed, exact=False)


def _room_for(files: list[File], folder: Path) -> None:
    """Raises: UnavailableError when the disk has no room for a job."""
    needed = _COPIES * sum(file.bytes for file in files) + _ROOM
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(
            f"the worker's disk has {free / 2**20:.0f} MiB free, and the job needs "
            f"{needed / 2**20:.0f} MiB",
            code="disk_full",
            hint="free space below MANYLORA_SCRATCH",
        )


def _of_the_disk(error: OSError, folder: Path) -> UnavailableError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(
            f"the worker's disk is full ({folder.parent})",
            code="disk_full",
            hint="free space below MANYLORA_SCRATCH",
        )
    return UnavailableError(f"the worker's disk: {error}", code="disk_error")


def _end(lease: Lease) -> None:
    """The last renewal: all steps and device-seconds are on the books before the attempt ends.

    Raises: LostError, UnavailableError.
    """
    lease.close()
    lease.flush()
