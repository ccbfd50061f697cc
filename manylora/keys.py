"""Every name that leaves a process: object keys, queue and task names, public ids.

Only server-made ids and digests stand in object keys, never a client's text, so that no name can
reach into another tenant's prefix. Layout of the bucket:

    t/{tenant}/files/{sha256}                                     an uploaded dataset
    t/{tenant}/j/{job}/a/{attempt:06d}/adapter/{file}             what an attempt publishes
    t/{tenant}/j/{job}/a/{attempt:06d}/manifest.json              written last
    t/{tenant}/j/{job}/a/{attempt:06d}/ckpt/{step:08d}/{file}     a resumable checkpoint
    t/{tenant}/j/{job}/a/{attempt:06d}/epoch/{step:08d}/{file}    the adapter after an epoch
    b/{fingerprint}/{file}                                        the files of a base
    probe/{random}                                                a worker's question to the store
"""

from __future__ import annotations

import re
import secrets
from typing import Final

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_SAFE_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_MANIFEST: Final = re.compile(r"t/[^/]+/j/[^/]+/a/(\d{6,})/manifest\.json")

TASK_TRAIN: Final = "manylora.train"
#: below which everything of tenants lies
JOBS: Final = "t/"
BROKER_PREFIX: Final = "manylora:"


def _token(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def file_id() -> str:
    """A new public id of a file."""
    return f"file-{_token(22)}"


def job_id() -> str:
    """A new public id of a job."""
    return f"ftjob-{_token(22)}"


def event_id() -> str:
    """A new public id of an event."""
    return f"ftevent-{_token(22)}"


def checkpoint_id() -> str:
    """A new public id of a checkpoint."""
    return f"ftckpt_{_token(22)}"


def webhook_id() -> str:
    """A new public id of a webhook endpoint."""
    return f"we_{_token(22)}"


def message_id() -> str:
    """A new public id of a message to webhook endpoints."""
    return f"evt_{_token(24)}"


def request_id() -> str:
    """A new id of one HTTP request."""
    return f"req_{_token(24)}"


def adapter_name(base: str, tenant: str, suffix: str | None) -> str:
    """The public, never reused name of an adapter: `ft:<base>:<tenant>:<suffix>:<8 chars>`."""
    return f"ft:{base}:{tenant}:{suffix or ''}:{_token(8)}"


def safe_file(name: str) -> str:
    """`name` if it is one plain file name, else ValueError."""
    if not _SAFE_FILE.fullmatch(name) or ".." in name:
        raise ValueError(f"not a plain file name: {name!r}")
    return name


def dataset_key(tenant_id: str, sha256: str) -> str:
    """Where a tenant's dataset of that digest lies."""
    return f"t/{tenant_id}/files/{sha256}"


def job_prefix(tenant_id: str, job: str) -> str:
    """The prefix of all that a job's attempts write."""
    return f"t/{tenant_id}/j/{job}"


def attempt_of(key: str) -> int | None:
    """The attempt whose manifest `key` is; None for any other key."""
    found = _MANIFEST.fullmatch(key)
    return int(found[1]) if found else None


def attempt_prefix(tenant_id: str, job: str, attempt: int) -> str:
    """The prefix only this attempt ever writes to."""
    return f"{job_prefix(tenant_id, job)}/a/{attempt:06d}"


def adapter_prefix(tenant_id: str, job: str, attempt: int) -> str:
    """The prefix that holds just the adapter's own files."""
    return f"{attempt_prefix(tenant_id, job, attempt)}/adapter"


def manifest_key(tenant_id: str, job: str, attempt: int) -> str:
    """The attempt's manifest, written after everything it names."""
    return f"{attempt_prefix(tenant_id, job, attempt)}/manifest.json"


def checkpoint_prefix(tenant_id: str, job: str, attempt: int, step: int) -> str:
    """The prefix of one resumable checkpoint."""
    return f"{attempt_prefix(tenant_id, job, attempt)}/ckpt/{step:08d}"


def epoch_prefix(tenant_id: str, job: str, attempt: int, step: int) -> str:
    """The prefix of the adapter as it was after an epoch."""
    return f"{attempt_prefix(tenant_id, job, attempt)}/epoch/{step:08d}"


def checkpoint_name(adapter: str, step: int) -> str:
    """The public name of the adapter as it was at a step."""
    return f"{adapter}:ckpt-step-{step}"


def probe_key(token: str) -> str:
    """An object of no meaning, written and deleted to see what the store can do."""
    return f"probe/{token}"


def base_key(fingerprint: str, file: str) -> str:
    """One file of a base."""
    return f"b/{fingerprint}/{safe_file(file)}"


def pool_name(base: str, device_kind: str) -> str:
    """What people call a pool: the base and the kind of device, `gemma-3-270m/cpu`."""
    return f"{base}/{device_kind}"


def pool_queue(fingerprint: str, device_kind: str) -> str:
    """The Celery queue of a pool; named by the fingerprint, so a base replaced is a new queue."""
    return f"pool.{fingerprint[:16]}.{device_kind}"
