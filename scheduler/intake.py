"""Intake: read the files of new jobs once more, on the server, and queue or refuse them.

In a thread of its own: a file of a million lines never delays a scheduling round.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import IO, Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from manylora import keys
from manylora.datasets.arrays import is_arrays, require_kind, validate_arrays
from manylora.datasets.limits import Limits
from manylora.datasets.problems import Report
from manylora.datasets.validate import validate
from manylora.errors import DatasetError, LostError, NotFoundError
from manylora.ledger import events, jobs
from manylora.ledger.database import Database
from manylora.ledger.states import JobState
from manylora.ledger.tables import Base, File, Job
from manylora.storage.store import Store

log = structlog.get_logger(__name__)


class Intake:
    """Takes new jobs in, one tenant after the other, so that nobody's thousands of files keep
    another's from being read."""

    def __init__(self, database: Database, store: Store, limits: Limits) -> None:
        self._database = database
        self._store = store
        self._limits = limits
        #: whose job was read last
        self._last = uuid.UUID(int=0)

    def one(self) -> bool:
        """Validate the oldest new job of the next tenant; False when there is none.

        Two intakes on one job do no harm: the second one's move finds it gone.
        """
        with self._database.transaction() as tx:
            job = self._next(tx)
            if job is None:
                return False
            self._last = job.tenant_id
            base = tx.get(Base, job.base)
            network = base.network if base is not None else None
            named = [("training_file", _file(tx, job.training_file))]
            if job.validation_file:
                named.append(("validation_file", _file(tx, job.validation_file)))
            events.add(
                tx,
                job,
                "Validating training file: "
                + " and validation file: ".join(file.id for _, file in named),
                actor="scheduler",
            )
        bound = {"job_id": job.id, "tenant_id": str(job.tenant_id)}
        with structlog.contextvars.bound_contextvars(**bound):
            examples, refusal = _read(self._store, self._limits, named, network)
            _decide(self._database, job.id, examples, refusal)
        return True

    def _next(self, tx: Session) -> Job | None:
        new = (
            select(Job)
            .where(Job.state == JobState.VALIDATING.value)
            .order_by(Job.tenant_id, Job.created_at)
            .limit(1)
        )
        return tx.scalar(new.where(Job.tenant_id > self._last)) or tx.scalar(new)


def _read(
    store: Store, limits: Limits, named: list[tuple[str, File]], network: dict[str, Any] | None
) -> tuple[int, tuple[str, str, str] | None]:
    """How many training examples there are, and why the job cannot be taken in, if it cannot."""
    examples: dict[str, int] = {}
    for param, file in named:
        try:
            require_kind(file.filename, network, param)
            with store.open(keys.dataset_key(str(file.tenant_id), file.sha256)) as stream:
                if network is not None and is_arrays(file.filename):
                    report = _arrays(stream, file, limits, network)
                else:
                    report = validate(stream, limits)
            report.raise_if_bad(file.filename)
            examples[param] = report.examples
        except DatasetError as error:
            return 0, (f"invalid_{param}", error.message, param)
        except NotFoundError:
            return 0, ("file_gone", f"{file.id}: its bytes are no longer stored", param)
    return examples.get("training_file", 0), None


def _arrays(stream: IO[bytes], file: File, limits: Limits, network: dict[str, Any]) -> Report:
    """A file of arrays against its base; it cannot be read as a stream."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"arrays{Path(file.filename).suffix}"
        with path.open("wb") as out:
            shutil.copyfileobj(stream, out)
        return validate_arrays(path, limits, network)


def _file(tx: Session, file_id: str) -> File:
    return tx.scalars(select(File).where(File.id == file_id)).one()


def _decide(
    database: Database, job_id: str, examples: int, refusal: tuple[str, str, str] | None
) -> None:
    try:
        with database.transaction() as tx:
            if refusal is None:
                jobs.move(
                    tx,
                    job_id,
                    "accept",
                    actor="scheduler",
                    examples=examples,
                )
            else:
                code, message, param = refusal
                jobs.move(
                    tx,
                    job_id,
                    "reject",
                    actor="scheduler",
                    told=message,
                    code=code,
                    param=param,
                )
        log.info("intake.done", refused=refusal[0] if refusal else None)
    except LostError:
        log.info("intake.lost")  # cancelled meanwhile, or another intake was first
