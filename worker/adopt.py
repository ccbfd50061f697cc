"""Adopt what an earlier attempt left whole: its adapter is up, verified and of this very job, and
only the commit is missing. Training it again would give the same bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from manylora import keys
from manylora.errors import IntegrityError, NotFoundError
from manylora.ledger.tables import File, Job
from manylora.storage.store import Store
from worker import publish

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Orphan:
    """A complete adapter of an earlier attempt."""

    published: publish.Published
    steps: int
    tokens: int


def find(
    store: Store,
    job: Job,
    datasets: list[File],
    folder: Path,
    quantization: str | None = None,
) -> Orphan | None:
    """The newest earlier attempt's adapter that is complete and of the same wish, on a base of that
    quantisation; its files are fetched into `folder` to check every digest. None when there is
    none.

    Raises: UnavailableError.
    """
    if job.attempt <= 1:
        return None
    wanted = publish.wish(job, datasets, quantization)
    listed = store.list(f"{keys.job_prefix(str(job.tenant_id), job.id)}/")
    found = {keys.attempt_of(key): key for key in listed}
    for attempt in sorted((a for a in found if a is not None and a < job.attempt), reverse=True):
        try:
            return _checked(store, job, wanted, attempt, found[attempt], folder)
        except (IntegrityError, NotFoundError) as error:
            log.warning("orphan.unusable", job_id=job.id, attempt=attempt, why=error.message)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            log.warning("orphan.unusable", job_id=job.id, attempt=attempt, why=repr(error))
    return None


def _checked(
    store: Store, job: Job, wanted: dict[str, Any], attempt: int, key: str, folder: Path
) -> Orphan:
    body = store.get_bytes(key)
    described: dict[str, Any] = json.loads(body)
    if {name: described.get(name) for name in wanted} != wanted or described["attempt"] != attempt:
        raise IntegrityError(f"{key} is of another wish")
    prefix = keys.adapter_prefix(str(job.tenant_id), job.id, attempt)
    for file in described["files"]:
        name = keys.safe_file(file["name"])
        store.get_file(f"{prefix}/{name}", folder / name, file["sha256"])
    weights = next(f for f in described["files"] if f["name"] == publish.WEIGHTS)
    return Orphan(
        publish.Published(
            name=str(described["adapter"]),
            prefix=prefix,
            manifest_key=key,
            manifest_sha256=hashlib.sha256(body).hexdigest(),
            weights_sha256=weights["sha256"],
            bytes=sum(f["bytes"] for f in described["files"]),
            source_attempt=attempt,
        ),
        steps=int(described["steps"]),
        tokens=int(described["trained_tokens"]),
    )
