"""Publish an adapter: its files, then its manifest, then one guarded transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora import __version__, crash, keys
from manylora.ledger import adapters, checkpoints, leases
from manylora.ledger.database import Database
from manylora.ledger.tables import Adapter, File, Job
from manylora.storage.store import Store, sha256_of

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Published:
    """What the store holds and the ledger is about to name."""

    name: str
    prefix: str
    manifest_key: str
    manifest_sha256: str
    weights_sha256: str
    bytes: int
    #: the attempt that made it
    source_attempt: int


def wish(job: Job, datasets: list[File], quantization: str | None = None) -> dict[str, Any]:
    """What a manifest says of the job itself, on a base of that quantisation; equal for every
    attempt of it."""
    base = {"name": job.base, "fingerprint": job.base_fingerprint}
    if quantization is not None:
        base["quantization"] = quantization
    return {
        "format": "manylora-adapter/1",
        "job": job.id,
        "base": base,
        "datasets": [
            {"file": f.id, "filename": f.filename, "sha256": f.sha256, "bytes": f.bytes}
            for f in datasets
        ],
        "hyperparameters": job.hyperparameters,
        "seed": job.seed,
    }


def manifest(
    job: Job,
    tenant: str,
    name: str,
    folder: Path,
    datasets: list[File],
    numerics: dict[str, Any],
    *,
    quantization: str | None = None,
    tokens: int = 0,
    exact: bool = True,
    gains: dict[str, float] | None = None,
) -> dict[str, Any]:
    """All that the weights file must not say: whose it is, from what and how it was made. Not
    `exact`: it was resumed on a worker of other numerics than it began on. `gains`: the learnt
    factor of each layer, which is in the weights already."""
    return {
        **({"gains": gains} if gains else {}),
        **wish(job, datasets, quantization),
        "adapter": name,
        "tenant": tenant,
        "attempt": job.attempt,
        "steps": job.total_steps,
        "trained_tokens": tokens,
        "numerics": numerics,
        "versions": {"manylora": __version__},
        "exact": exact,
        "files": [
            {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
            for p in sorted(folder.iterdir())
        ],
    }


def upload(store: Store, job: Job, folder: Path, described: dict[str, Any]) -> Published:
    """Put the adapter's files and, last, the manifest. Raises: UnavailableError, IntegrityError."""
    tenant_id = str(job.tenant_id)
    prefix = keys.adapter_prefix(tenant_id, job.id, job.attempt)
    crash.point("before_upload")
    for file in described["files"]:
        name = keys.safe_file(file["name"])
        store.put_file(f"{prefix}/{name}", folder / name, if_absent=True)
    crash.point("before_manifest")
    body = (json.dumps(described, indent=1, sort_keys=True) + "\n").encode()
    key = keys.manifest_key(tenant_id, job.id, job.attempt)
    digest = store.put_bytes(key, body, if_absent=True)
    crash.point("after_manifest")
    weights = next(f for f in described["files"] if f["name"] == WEIGHTS)
    return Published(
        name=described["adapter"],
        prefix=prefix,
        manifest_key=key,
        manifest_sha256=digest,
        weights_sha256=weights["sha256"],
        bytes=sum(f["bytes"] for f in described["files"]),
        source_attempt=job.attempt,
    )


def commit(
    database: Database,
    job: Job,
    published: Published,
    worker_id: str,
    tokens: int,
    metrics: dict[str, Any] | None = None,
) -> None:
    """The one transaction that makes the adapter exist; it is the last epoch's checkpoint, too,
    with the `metrics` of the last step. Said twice it is done once.

    Raises: LostError, UnavailableError.
    """
    with database.transaction() as tx:
        mine = adapters.of_job(tx, job.id)
        if mine is not None and mine.attempt == job.attempt:
            return  # the answer to the first try was lost on its way
        if job.total_steps:
            checkpoints.add(
                tx,
                job,
                step=job.total_steps,
                prefix=published.prefix,
                manifest_sha256=published.manifest_sha256,
                metrics=metrics or {},
                kind="epoch",
                name=keys.checkpoint_name(published.name, job.total_steps),
            )
        leases.publish(
            tx,
            job.id,
            job.attempt,
            worker_id=worker_id,
            tokens=tokens,
            adapter=Adapter(
                name=published.name,
                tenant_id=job.tenant_id,
                job_id=job.id,
                attempt=job.attempt,
                source_attempt=published.source_attempt,
                base=job.base,
                base_fingerprint=job.base_fingerprint,
                prefix=published.prefix,
                manifest_key=published.manifest_key,
                manifest_sha256=published.manifest_sha256,
                weights_sha256=published.weights_sha256,
                bytes=published.bytes,
            ),
        )
        checkpoints.drop_states(tx, job.id)
    crash.point("after_commit")
