"""Crash points, for tests only: places at which a process may be told to die as by `kill -9`.

`arm` is called once at a process's entry with the setting `crash_at` ("name:n": at the nth passing
of that point). Unset, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from threading import Lock

from manylora.errors import UsageError

#: point -> where it lies
POINTS = {
    "after_hint": "a worker got a wake-up and has not claimed yet",
    "after_claim": "the claim is committed and nothing else is done",
    "in_download": "a part of a file came down, and it has no name yet",
    "mid_step": "the trainer is in the middle of a step",
    "mid_ckpt_upload": "one file of a checkpoint is up, the others are not",
    "ckpt_before_manifest": "a checkpoint's files are up, its manifest is not",
    "ckpt_before_row": "a checkpoint is whole in the store, and no row names it",
    "before_upload": "the adapter lies on the worker's disk only",
    "mid_upload": "one part of a large file is up, the upload is not completed",
    "before_manifest": "the adapter's files are up, its manifest is not",
    "after_manifest": "the adapter is whole in the store, and no row names it",
    "after_commit": "the job has succeeded, and its worker has not tidied up",
    "submit_before_commit": "the API has inserted a job and not committed",
    "submit_after_commit": "the job is committed, its submitter has no answer yet",
    "dispatch_after_commit_before_publish": "jobs are dispatched, no wake-up is out",
    "reaper_mid_batch": "a rescue has taken back one job of several and not committed",
}


@dataclass
class _Fuse:
    name: str
    left: int
    lock: Lock = field(default_factory=Lock)


_fuse: _Fuse | None = None


def arm(at: str | None) -> None:
    """Set the one point at which this process dies; None for a process that lives.

    Raises: UsageError for a name that is none.
    """
    global _fuse
    if at is None:
        _fuse = None
        return
    name, _, count = at.partition(":")
    if name not in POINTS or not (count or "1").isdigit() or int(count or 1) < 1:
        raise UsageError(f"{at!r} is no crash point", hint="NAME:N, for tests only")
    _fuse = _Fuse(name, int(count or 1))


def point(name: str) -> None:
    """Pass a point: nothing happens, unless this is where the process is to die."""
    fuse = _fuse
    if fuse is None or fuse.name != name:
        return
    with fuse.lock:
        fuse.left -= 1
        if fuse.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
