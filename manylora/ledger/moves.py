"""The moves of a job as data: from which states, under which guards, and what each one writes.

Nothing else knows a guard. `compare.py` makes the compare-and-set in SQL from this table, the
simulator its ledger in memory, and its mutants are changes to this very table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from manylora.ledger.states import FINAL, JobState


@dataclass(frozen=True)
class Now:
    """The ledger's own time."""


@dataclass(frozen=True)
class Given:
    """What the caller hands in under that name; with `keep`, none leaves the column as it is."""

    name: str
    keep: bool = False


@dataclass(frozen=True)
class After:
    """The ledger's time and that many seconds, as handed in."""

    name: str


@dataclass(frozen=True)
class Plus:
    """The column's own value and so much more."""

    by: int


@dataclass(frozen=True)
class First:
    """The ledger's time, unless the column holds one already."""


#: how a column is compared: `is` and `is not` know nothing (None) too; an order is never true of
#: a column that holds nothing, but for `due`: nothing, or not later than
Comparison = Literal["is", "is not", "<", ">=", "due"]


@dataclass(frozen=True)
class Guard:
    """What must hold of a column for a move to happen. `attempts.x` is column x of the current
    attempt; `{kind}` stands for the kind of failure handed in."""

    column: str
    how: Comparison
    value: Any


@dataclass(frozen=True)
class Move:
    """One move. `target` None: the job stays in its state."""

    sources: frozenset[JobState]
    target: JobState | None
    #: must it hold the attempt's number?
    token: bool = False
    guards: tuple[Guard, ...] = ()
    #: column -> what is written, in the same statement
    sets: Mapping[str, Any] = field(default_factory=dict)
    #: does it open the books of a new attempt?
    opens: bool = False
    #: column of the current attempt -> what is written
    books: Mapping[str, Any] = field(default_factory=dict)
    #: how it closes the books of the current attempt (`{kind}` as in guards), if they are open;
    #: its slot is free then
    outcome: str | None = None
    #: the line of the job's history, with what was handed in; none: the caller's, or no line
    says: str = ""
    level: str = "info"


NOW: Final = Now()
_S = JobState
_RUNNING: Final = frozenset({_S.RUNNING})
_DISPATCHED: Final = frozenset({_S.DISPATCHED})

#: kinds of failure; the tenant's own mistakes and numbers that are none are `user`
KINDS: Final = ("lost", "oom", "infra", "user")
#: how many failures of a kind end a job, unless settings say otherwise
MOST_FAILURES: Final = {"lost": 3, "oom": 2, "infra": 5, "user": 1}
#: how often a job makes room for others; after that it is left alone
MOST_PREEMPTIONS: Final = 50
#: what a tenant or the scheduler wishes of a running job, heard at its next renewal
WISHES: Final = ("pause", "preempt")

_NO_WAKEUP: Final = {"dispatch_deadline": None, "resend_at": None}
_NO_WISH: Final = {"wish": None}
_OVER: Final = {"finished_at": NOW, "waiting_for": None, **_NO_WAKEUP, **_NO_WISH}
_FAILED: Final = {
    "failures_{kind}": Plus(1),
    "error_code": Given("code"),
    "error_message": Given("told"),
}
_COUNTED: Final = {"failures": Plus(1), "failures_{kind}": Plus(1), "not_before": After("wait")}
_SPENT: Final = Guard("failures_{kind}", ">=", Given("allowed"))
_NOT_SPENT: Final = Guard("failures_{kind}", "<", Given("allowed"))
_TO_PAUSE: Final = Guard("wish", "is", "pause")
_NOT_TO_PAUSE: Final = Guard("wish", "is not", "pause")
_EXPIRED: Final = Guard("attempts.lease_expires_at", "<", NOW)

_GIVE_UP = Move(
    _RUNNING,
    _S.FAILED,
    token=True,
    guards=(_SPENT,),
    sets=_OVER | _FAILED | {"failures": Plus(1)},
    outcome="{kind}",
    says="{told}",
    level="error",
)
_SHELVE = Move(
    _RUNNING,
    _S.PAUSED,
    token=True,
    guards=(_NOT_SPENT, _TO_PAUSE),
    sets=_COUNTED | _NO_WISH,
    outcome="{kind}",
    says="Paused: {reason}",
    level="warn",
)
_RETRY = Move(
    _RUNNING,
    _S.QUEUED,
    token=True,
    guards=(_NOT_SPENT, _NOT_TO_PAUSE),
    sets=_COUNTED | _NO_WISH,
    outcome="{kind}",
    says="Back in the queue: {reason}",
    level="warn",
)


def _expired(move: Move) -> Move:
    return replace(move, guards=(_EXPIRED, *move.guards))


MOVES: Final[Mapping[str, Move]] = {
    # intake
    "accept": Move(
        frozenset({_S.VALIDATING}),
        _S.QUEUED,
        sets={"queued_at": First(), "examples": Given("examples", keep=True)},
        says="Files validated, moving job to queued state",
    ),
    "reject": Move(
        frozenset({_S.VALIDATING}),
        _S.FAILED,
        sets=_OVER
        | {
            "error_code": Given("code"),
            "error_message": Given("told"),
            "error_param": Given("param"),
        },
        says="{told}",
        level="error",
    ),
    # the scheduler and the broker
    "dispatch": Move(
        frozenset({_S.QUEUED}),
        _S.DISPATCHED,
        guards=(Guard("not_before", "due", NOW),),
        sets={
            "attempt": Plus(1),
            "dispatch_deadline": After("deadline"),
            "resend_at": After("resend"),
            "waiting_for": None,
            "not_before": None,
        },
        opens=True,
        books={"queue": Given("queue")},
        says="A slot is free: sent to the pool",
    ),
    "resend": Move(
        _DISPATCHED,
        None,
        token=True,
        guards=(Guard("resend_at", "<", NOW), Guard("dispatch_deadline", ">=", NOW)),
        sets={"resend_at": After("resend")},
    ),
    "undispatch": Move(
        _DISPATCHED,
        _S.QUEUED,
        token=True,
        guards=(Guard("dispatch_deadline", "<", NOW),),
        sets=_NO_WAKEUP,
        outcome="unclaimed",
        says="No worker took it in time: back in the queue",
    ),
    # the worker's writes
    "claim": Move(
        _DISPATCHED,
        _S.RUNNING,
        token=True,
        sets={"started_at": First(), **_NO_WAKEUP},
        books={
            "worker_id": Given("worker_id"),
            "started_at": NOW,
            "lease_expires_at": After("ttl"),
        },
        says="Fine-tuning job started",
    ),
    "renew": Move(
        _RUNNING,
        None,
        token=True,
        sets={"step": Given("step"), "total_steps": Given("total_steps", keep=True)},
        books={
            "lease_expires_at": After("ttl"),
            "last_step": Given("step"),
            "device_seconds": Given("device_seconds"),
        },
    ),
    "record": Move(_RUNNING, None, token=True),
    "succeed": Move(
        _RUNNING,
        _S.SUCCEEDED,
        token=True,
        sets=_OVER | {"trained_tokens": Given("tokens")},
        outcome="succeeded",
        says="New fine-tuned model created: {adapter}",
    ),
    "fail": Move(
        _RUNNING,
        _S.FAILED,
        token=True,
        sets=_OVER | _FAILED,
        outcome="failed",
        says="{told}",
        level="error",
    ),
    # handed back by its worker: nothing is counted
    "park": Move(
        _RUNNING,
        _S.PAUSED,
        token=True,
        guards=(_TO_PAUSE,),
        sets=_NO_WISH,
        outcome="released",
        says="Paused at step {step}",
    ),
    "yield": Move(
        _RUNNING,
        _S.QUEUED,
        token=True,
        guards=(Guard("wish", "is", "preempt"),),
        sets=_NO_WISH | {"preemptions": Plus(1)},
        outcome="preempted",
        says="Back in the queue: made room for a job of higher priority",
        level="warn",
    ),
    "return": Move(
        _RUNNING,
        _S.QUEUED,
        token=True,
        guards=(Guard("wish", "is", None),),
        outcome="released",
        says="Back in the queue: {reason}",
        level="warn",
    ),
    # handed back by its worker: a failure is counted
    "give_up": _GIVE_UP,
    "shelve": _SHELVE,
    "retry": _RETRY,
    # the same, taken by the scheduler from a worker that is silent
    "bury": _expired(_GIVE_UP),
    "rescue_paused": _expired(_SHELVE),
    "rescue": _expired(_RETRY),
    # the tenant, and the planner
    "cancel": Move(frozenset(_S) - FINAL, _S.CANCELLED, sets=_OVER, says="The job was cancelled"),
    "pause": Move(
        frozenset({_S.VALIDATING, _S.QUEUED, _S.DISPATCHED}),
        _S.PAUSED,
        sets={"waiting_for": None, **_NO_WAKEUP},
        outcome="paused",
        says="Paused",
    ),
    "ask_pause": Move(
        _RUNNING,
        None,
        guards=(_NOT_TO_PAUSE,),
        sets={"wish": "pause"},
        says="To be paused at its next checkpoint",
    ),
    "resume": Move(
        frozenset({_S.PAUSED}),
        _S.QUEUED,
        guards=(Guard("queued_at", "is not", None),),
        sets={"queued_at": NOW, "not_before": None},
        says="Resumed: at the end of the queue",
    ),
    "revalidate": Move(
        frozenset({_S.PAUSED}),
        _S.VALIDATING,
        guards=(Guard("queued_at", "is", None),),
        says="Resumed: its files are validated next",
    ),
    "keep_on": Move(
        _RUNNING,
        None,
        guards=(_TO_PAUSE,),
        sets=_NO_WISH,
        says="Not to be paused after all",
    ),
    "preempt": Move(
        _RUNNING,
        None,
        token=True,
        guards=(Guard("wish", "is", None), Guard("preemptions", "<", Given("most_preemptions"))),
        sets={"wish": "preempt"},
        says="To make room for a job of higher priority, at its next checkpoint",
    ),
}

#: verbs with more than one outcome: the first of these moves whose guards hold is made
HAND_BACK: Final = ("park", "yield", "return")
COUNT: Final = ("give_up", "shelve", "retry")
RESCUE: Final = ("bury", "rescue_paused", "rescue")
PAUSE: Final = ("pause", "ask_pause")
RESUME: Final = ("resume", "revalidate", "keep_on")


def backoff(kind: str, failures: int) -> float:
    """Seconds until a job may be sent out again after its next failure of that kind: what broke
    around it gets time to mend, 10 s at first and 5 minutes at most."""
    return min(300.0, 10.0 * 2.0**failures) if kind == "infra" else 0.0


def named(column: str, given: Mapping[str, Any]) -> str:
    """The name of a column or an outcome, with the kind of failure filled in."""
    return column.format(kind=given["kind"]) if "{" in column else column
