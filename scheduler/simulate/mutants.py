"""Slips that could be made in the table of moves, one line each. The simulation must see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from manylora.ledger.moves import MOVES, Given, Guard, Move, Plus
from manylora.ledger.states import JobState

Table = Mapping[str, Move]


def _change(names: str, **changes: Any) -> Callable[[], Table]:
    return lambda: {**MOVES, **{name: replace(MOVES[name], **changes) for name in names.split()}}


def _from(names: str, *more: JobState) -> Callable[[], Table]:
    return lambda: {
        **MOVES,
        **{n: replace(MOVES[n], sources=MOVES[n].sources | set(more)) for n in names.split()},
    }


def _not_from(name: str, *less: JobState) -> Callable[[], Table]:
    return lambda: {
        **MOVES,
        name: replace(MOVES[name], sources=MOVES[name].sources - set(less)),
    }


def _without(names: str, column: str) -> Callable[[], Table]:
    """No guard on that column."""
    return lambda: {
        **MOVES,
        **{
            n: replace(
                MOVES[n], guards=tuple(g for g in MOVES[n].guards if not g.column.endswith(column))
            )
            for n in names.split()
        },
    }


def _writes(names: str, **sets: Any) -> Callable[[], Table]:
    return lambda: {
        **MOVES,
        **{n: replace(MOVES[n], sets={**MOVES[n].sets, **sets}) for n in names.split()},
    }


_S = JobState

MUTANTS: Final[Mapping[str, Callable[[], Table]]] = {
    "publish without the token": _change("succeed", token=False),
    "renew without the token": _change("renew", token=False),
    "checkpoint without the token": _change("record", token=False),
    "fail without the token": _change("fail", token=False),
    "hand back without the token": _change("park yield return", token=False),
    "count without the token": _change("give_up shelve retry", token=False),
    "claim without the token": _change("claim", token=False),
    "publish from any state": _from("succeed", _S.QUEUED, _S.DISPATCHED, _S.PAUSED),
    "publish what was cancelled": _from("succeed", _S.CANCELLED),
    "renew what was cancelled": _from("renew", _S.CANCELLED),
    "claim what runs": _from("claim", _S.RUNNING),
    "claim what is queued": _from("claim", _S.QUEUED),
    "dispatch what is paused": _from("dispatch", _S.PAUSED),
    "dispatch without a new attempt": _writes("dispatch", attempt=Plus(0)),
    "never take back a wake-up": _change("undispatch", sources=frozenset()),
    "never send a wake-up again": _change("resend", sources=frozenset()),
    "rescue a live lease": _without("rescue rescue_paused bury", "lease_expires_at"),
    "never rescue": _change("rescue", sources=frozenset()),
    "claim without a lease": _change("claim", books={"worker_id": Given("worker_id")}),
    "renew without extending": _change("renew", books={}),
    "never give up": _change("give_up bury", guards=(Guard("id", "is", None),)),
    "one failure too many": _without("give_up bury", "{kind}"),
    "a failure that is not counted": _writes("retry rescue", **{"failures_{kind}": Plus(0)}),
    "a drain that counts": _writes("return", failures=Plus(1), failures_lost=Plus(1)),
    "a preemption that is not counted": _writes("yield", preemptions=Plus(0)),
    "pause what nobody paused": _without("park", "wish"),
    "keep a wish": _change("retry", sets={**MOVES["yield"].sets, "wish": "preempt"}),
    "leave the books open": _change("succeed", outcome=None),
    "cancel all but what runs": _not_from("cancel", _S.RUNNING),
    "cancel into the queue": _change("cancel", target=_S.QUEUED),
    "resume into nothing": _change("resume", target=_S.PAUSED),
}
