"""The states of a job, inside and on the wire."""

from manylora.ledger.states import FINAL, ON_THE_WIRE, JobState


def test_three_states_are_final():
    assert {s.value for s in FINAL} == {"succeeded", "failed", "cancelled"}


def test_the_wire_knows_no_dispatched():
    assert ON_THE_WIRE[JobState.DISPATCHED] == "queued"
    assert {v for k, v in ON_THE_WIRE.items() if k is not JobState.DISPATCHED} == {
        s.value for s in JobState if s is not JobState.DISPATCHED
    }
