"""The states of a job and the table of legal moves. Nothing else decides what may follow what.

    validating_files ──> queued <──> dispatched ──> running ──> succeeded
            │              │ ^           │            │ │
            v              v │           v            │ └─────> failed
          failed         paused       cancelled <─────┘

`dispatched` (a wake-up is out, no worker has claimed it yet) is inside; on the wire it reads
`queued`. `succeeded`, `failed` and `cancelled` are final: nothing leaves them.
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

_S = JobState

#: move name -> (states it may start from, state it ends in, must it hold the attempt's token)
MOVES: Final[dict[str, tuple[frozenset[JobState], JobState, bool]]] = {
    "accept": (frozenset({_S.VALIDATING}), _S.QUEUED, False),
    "reject": (frozenset({_S.VALIDATING}), _S.FAILED, False),
    "dispatch": (frozenset({_S.QUEUED}), _S.DISPATCHED, False),
    "undispatch": (frozenset({_S.DISPATCHED}), _S.QUEUED, True),
    "claim": (frozenset({_S.DISPATCHED}), _S.RUNNING, True),
    "succeed": (frozenset({_S.RUNNING}), _S.SUCCEEDED, True),
    "fail": (frozenset({_S.RUNNING}), _S.FAILED, True),
    "requeue": (frozenset({_S.RUNNING}), _S.QUEUED, True),
    "cancel": (
        frozenset({_S.VALIDATING, _S.QUEUED, _S.DISPATCHED, _S.RUNNING, _S.PAUSED}),
        _S.CANCELLED,
        False,
    ),
}

#: how a state reads on the wire (the OpenAI client's literals)
ON_THE_WIRE: Final = {state: state.value for state in JobState} | {_S.DISPATCHED: "queued"}
