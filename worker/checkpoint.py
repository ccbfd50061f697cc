"""Checkpoints through the store: files first, manifest second, row last and guarded."""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from manylora import keys
from manylora.errors import IntegrityError, NotFoundError
from manylora.ledger import leases
from manylora.ledger.database import Database
from manylora.ledger.tables import Checkpoint, Job
from manylora.storage.store import Store, sha256_of

log = structlog.get_logger(__name__)


def save(database: Database, store: Store, job: Job, step: int, folder: Path) -> None:
    """Upload a checkpoint and record it. Raises: LostError, UnavailableError."""
    prefix = keys.checkpoint_prefix(str(job.tenant_id), job.id, job.attempt, step)
    files = [
        {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
        for p in sorted(folder.iterdir())
    ]
    for path in sorted(folder.iterdir()):
        store.put_file(f"{prefix}/{keys.safe_file(path.name)}", path)
    body = json.dumps({"job": job.id, "step": step, "files": files}, sort_keys=True).encode()
    digest = store.put_bytes(f"{prefix}/manifest.json", body)
    with database.transaction() as tx:
        leases.add_checkpoint(tx, job, step=step, prefix=prefix, manifest_sha256=digest, metrics={})


def restore(store: Store, rows: list[Checkpoint], folder: Path) -> tuple[int, Path] | None:
    """The newest checkpoint whose every digest holds: its step and its folder; or None.

    Raises: UnavailableError.
    """
    for row in rows:
        target = folder / f"resume-{row.step:08d}"
        try:
            store.get_file(
                f"{row.prefix}/manifest.json", target / ".manifest.json", row.manifest_sha256
            )
            listed = json.loads((target / ".manifest.json").read_text(encoding="utf-8"))
            for file in listed["files"]:
                name = keys.safe_file(file["name"])
                store.get_file(f"{row.prefix}/{name}", target / name, file["sha256"])
        except (IntegrityError, NotFoundError) as error:
            log.warning("checkpoint.unusable", job_id=row.job_id, step=row.step, why=error.message)
            continue
        return row.step, target
    return None
