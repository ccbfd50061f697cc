"""Who ends the trainer: two crashes running with no step beyond, then alone, then guilty."""

import pytest

from worker.quarantine import Quarantine


@pytest.fixture
def three():
    quarantine = Quarantine()
    for key in "abc":
        assert quarantine.enter(key)
        quarantine.progress(key, 5)
    return quarantine


def back(quarantine, keys="abc"):
    return [key for key in keys if quarantine.enter(key)]


def test_one_crash_is_nobodys_and_progress_clears(three):
    three.crash()
    assert back(three) == ["a", "b", "c"]
    for key in "abc":
        three.progress(key, 6)
    three.crash()
    assert back(three) == ["a", "b", "c"]  # not two running: there was a step in between
    assert [three.guilty(k) for k in "abc"] == [None] * 3


def test_a_step_made_again_is_no_progress(three):
    three.crash()
    assert back(three) == ["a", "b", "c"]
    three.progress("a", 5)  # resumed from before; as far as at the crash, and not further
    three.progress("b", 6)
    three.crash()
    # a and c are tried, one after the other, and b waits for them although it is in the clear
    assert back(three, "bca") == ["a"]
    assert back(three, "bc") == []


def test_the_culprit_is_found_alone_and_its_neighbours_go_free(three):
    for _ in range(2):
        three.crash()
        back(three)
    # All three are suspects: a is tried first, makes its step, and is in the way of the others.
    assert three.guilty("a") is None
    assert back(three, "bc") == []
    three.progress("a", 6)
    assert three.in_the_way("a")
    three.leave("a")
    assert not three.in_the_way("a")
    assert back(three) == ["b"]
    three.crash()
    assert three.guilty("b") == 3
    assert (three.guilty("a"), three.guilty("c")) == (None, None)
    three.forget("b")
    assert back(three) == ["c"]
    three.progress("c", 6)
    assert back(three, "a") == ["a"]


def test_a_newcomer_waits_for_a_trial(three):
    for _ in range(2):
        three.crash()
        back(three)
    assert not three.enter("d")
    for key in "abc":
        three.forget(key)
    assert three.enter("d")


def test_out_of_memory_needs_no_second_crash_to_be_tried_alone(three):
    three.crash(memory=True)
    assert back(three) == ["a"]
    three.crash(memory=True)
    assert three.guilty("a") == 2


def test_a_crash_of_nobody_accuses_nobody():
    quarantine = Quarantine()
    quarantine.crash()
    assert quarantine.enter("a")
    quarantine.forget("a")
    quarantine.progress("a", 1)
    quarantine.leave("a")
    assert quarantine.guilty("a") is None
