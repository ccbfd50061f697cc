"""Checkpoints through the store: files first, manifest second, row last and guarded. The states to
resume from and the adapters of epochs go the same way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from manylora import crash, keys
from manylora.errors import IntegrityError, NotFoundError
from manylora.ledger import checkpoints, leases
from manylora.ledger.checkpoints import Kind
from manylora.ledger.database import Database
from manylora.ledger.tables import Checkpoint, Job
from manylora.storage.store import Store, sha256_of

log = structlog.get_logger(__name__)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Resumed:
    """A verified state: where it stands, where it lies, and what made it. Not `exact`: something of
    it was trained with other numerics than the rest."""

    step: int
    folder: Path
    numerics: dict[str, Any]
    exact: bool


def save(
    database: Database,
    store: Store,
    job: Job,
    step: int,
    folder: Path,
    *,
    kind: Kind = "state",
    name: str | None = None,
    metrics: dict[str, Any] | None = None,
    numerics: dict[str, Any] | None = None,
    exact: bool = True,
) -> None:
    """Upload a checkpoint, record it, and let go of those that need not be kept any more.

    Raises: LostError, UnavailableError, IntegrityError.
    """
    prefix = _prefix(job, step, kind)
    files = [
        {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
        for p in sorted(folder.iterdir())
    ]
    for path in sorted(folder.iterdir()):
        store.put_file(f"{prefix}/{keys.safe_file(path.name)}", path)
        crash.point("mid_ckpt_upload")
    described = {
        "job": job.id,
        "attempt": job.attempt,
        "step": step,
        "numerics": numerics or {},
        "exact": exact,
        "files": files,
    }
    crash.point("ckpt_before_manifest")
    digest = store.put_bytes(f"{prefix}/{MANIFEST}", json.dumps(described, sort_keys=True).encode())
    crash.point("ckpt_before_row")
    with database.transaction() as tx:
        checkpoints.add(
            tx,
            job,
            step=step,
            prefix=prefix,
            manifest_sha256=digest,
            metrics=metrics or {},
            kind=kind,
            name=name,
        )
        spare = checkpoints.spare(checkpoints.of_job(tx, job.id, kind), kind)
        checkpoints.drop(tx, job, spare)
    for row in spare:
        clear(store, row.prefix)


def _prefix(job: Job, step: int, kind: Kind) -> str:
    make = keys.checkpoint_prefix if kind == "state" else keys.epoch_prefix
    return make(str(job.tenant_id), job.id, job.attempt, step)


def clear(store: Store, prefix: str) -> None:
    """Delete the objects of a checkpoint no row names any more. Raises: UnavailableError."""
    for key in store.list(f"{prefix}/"):
        store.delete(key)


def restore(
    database: Database, store: Store, job: Job, rows: list[Checkpoint], folder: Path
) -> Resumed | None:
    """The newest checkpoint whose every digest holds; each that is passed over for a damage is
    told in the job's history.

    Raises: UnavailableError.
    """
    for row in rows:
        target = folder / f"resume-{row.step:08d}"
        manifest = target / f".{MANIFEST}"
        try:
            store.get_file(f"{row.prefix}/{MANIFEST}", manifest, row.manifest_sha256)
            listed = json.loads(manifest.read_text(encoding="utf-8"))
            for file in listed["files"]:
                name = keys.safe_file(file["name"])
                store.get_file(f"{row.prefix}/{name}", target / name, file["sha256"])
        except (IntegrityError, NotFoundError) as error:
            log.warning("checkpoint.unusable", job_id=row.job_id, step=row.step, why=error.message)
            told = f"The checkpoint of step {row.step} is damaged and passed over: {error.message}"
            with database.transaction() as tx:
                leases.note(tx, job, told, actor="worker", level="warn")
            continue
        return Resumed(row.step, target, listed.get("numerics", {}), listed.get("exact", True))
    return None
