"""Every pair of a state and a move, with every kind of token, on PostgreSQL. What is legal is
written down here once more, so that a slip in the table of moves cannot agree with itself."""

import itertools

import pytest
from sqlalchemy import func

from manylora.errors import LostError
from manylora.ledger import jobs
from manylora.ledger.states import FINAL, MOVES, ON_THE_WIRE, JobState

LEGAL = {
    ("validating_files", "accept"): "queued",
    ("validating_files", "reject"): "failed",
    ("queued", "dispatch"): "dispatched",
    ("dispatched", "undispatch"): "queued",
    ("dispatched", "claim"): "running",
    ("running", "succeed"): "succeeded",
    ("running", "fail"): "failed",
    ("running", "requeue"): "queued",
    ("validating_files", "cancel"): "cancelled",
    ("queued", "cancel"): "cancelled",
    ("dispatched", "cancel"): "cancelled",
    ("running", "cancel"): "cancelled",
    ("paused", "cancel"): "cancelled",
}
STATES = sorted({s.value for s in JobState})
NEEDS_TOKEN = {"undispatch", "claim", "succeed", "fail", "requeue"}
CURRENT = 2
TOKENS = {"none": None, "stale": 1, "current": CURRENT, "future": 3}


def test_the_table_has_just_these_moves():
    assert set(MOVES) == {move for _, move in LEGAL}
    assert {s.value for s in FINAL} == {"succeeded", "failed", "cancelled"}


@pytest.mark.parametrize(("state", "move"), list(itertools.product(STATES, sorted(MOVES))))
@pytest.mark.parametrize("token", TOKENS)
def test_a_move_happens_when_state_and_token_fit_and_else_nothing_does(ledger, state, move, token):
    job_id = ledger.job(state, attempt=CURRENT)
    before = ledger.books(job_id)
    extra = {"dispatch_deadline": func.clock_timestamp()} if move == "dispatch" else {}

    def go():
        with ledger.transaction() as tx:
            return jobs.move(
                tx, job_id, move, actor="x", message="moved", attempt=TOKENS[token], **extra
            )

    if token == "none" and move in NEEDS_TOKEN:
        with pytest.raises(ValueError, match="token"):
            go()
        assert ledger.books(job_id) == before
        return
    if (state, move) not in LEGAL or token in {"stale", "future"}:
        with pytest.raises(LostError) as refused:
            go()
        assert refused.value.details == {"state": state, "attempt": TOKENS[token]}
        assert ledger.books(job_id) == before
        return
    moved = go()
    target = LEGAL[state, move]
    raised = CURRENT + 1 if move == "dispatch" else CURRENT
    assert (moved.state, moved.attempt) == (target, raised)
    now = ledger.get(job_id)
    assert (now.state, now.attempt) == (target, raised)
    assert (now.finished_at is not None) == (target in {"succeeded", "failed", "cancelled"})
    assert (now.dispatch_deadline is not None) == (target == "dispatched")
    assert ledger.events(job_id)[-1] == (state, target, raised, "moved")
    assert len(ledger.events(job_id)) == len(before["events"]) + 1


def test_a_job_that_is_not_there_cannot_move(ledger):
    with ledger.transaction() as tx, pytest.raises(LostError):
        jobs.move(tx, "ftjob-none", "cancel", actor="x", message="m")


def test_the_wire_knows_no_dispatched():
    assert ON_THE_WIRE[JobState.DISPATCHED] == "queued"
    assert {v for k, v in ON_THE_WIRE.items() if k is not JobState.DISPATCHED} == {
        s.value for s in JobState if s is not JobState.DISPATCHED
    }
