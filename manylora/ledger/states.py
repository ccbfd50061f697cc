"""The states of a job. What may follow what is data, in `moves.py`.

    validating_files ──> queued <──> dispatched ──> running ──> succeeded
        │       ^         │  ^           │           │ │ │
        v       │         v  │           v           │ │ └────> failed
      failed    └────── paused <─────────┴───────────┘ └──────> queued, once more

Whatever is not over can be cancelled. `dispatched` (a wake-up is out, no worker has claimed it
yet) is inside; on the wire it reads `queued`. `succeeded`, `failed` and `cancelled` are final:
nothing leaves them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job stands."""

    #: the API took it; intake has not read its files yet
    VALIDATING = "validating_files"
    #: its files are good; it waits for a slot
    QUEUED = "queued"
    #: the scheduler raised its attempt and sent a wake-up
    DISPATCHED = "dispatched"
    #: a worker holds the lease of its current attempt
    RUNNING = "running"
    #: held back by its tenant
    PAUSED = "paused"
    #: its adapter is published
    SUCCEEDED = "succeeded"
    #: it ended without an adapter; `error_*` says why
    FAILED = "failed"
    #: its tenant took it back
    CANCELLED = "cancelled"


FINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

#: how a state reads on the wire (the OpenAI client's literals)
ON_THE_WIRE: Final = {state: state.value for state in JobState} | {JobState.DISPATCHED: "queued"}
