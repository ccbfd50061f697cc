"""Foretold starts: exact where nothing is uncertain, and nine of ten in time where waits drift."""

import math
import random

import pytest

from manylora.estimate import (
    ENOUGH,
    KEPT,
    Outlook,
    foretell,
    guess,
    learn,
    lines_ahead,
    percentile,
    spans,
)


def outlook(**more):
    given = {"slots": 4, "active": 4, "tenants": 10, "weights": 10.0, "service": 100.0}
    return Outlook(**(given | more))


def test_a_free_slot_is_now_and_no_slot_is_never():
    assert guess(0, 0.0, 1.0, outlook(active=3)) == 1.0
    assert math.isinf(guess(0, 0.0, 1.0, outlook(slots=0, active=0)))


def test_those_ahead_by_the_rate_at_which_slots_become_free():
    assert guess(0, 7.0, 1.0, outlook()) == pytest.approx(100.0 * 8 / 4)
    # One's own go by one's own share: a tenth of four slots.
    assert guess(2, 0.0, 1.0, outlook()) == pytest.approx(100.0 * (1 / 4 + 2 / 0.4))


def test_lines_ahead_are_read_from_the_turns():
    known = outlook(turns=[0.0, 10.0, 20.0, 30.0], tenants=8)
    assert lines_ahead(-1.0, known) == 0.0
    assert lines_ahead(20.0, known) == 4.0
    assert lines_ahead(99.0, known) == 8.0


def test_a_percentile_is_the_smallest_that_covers():
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.51) == 3.0
    assert percentile([5.0], 0.0) == 5.0


def test_nothing_is_promised_of_few_waits():
    assert foretell(10.0, outlook()).p90 == 30.0
    assert spans(10.0, [1.0] * (ENOUGH - 1)) == (10.0, 30.0)
    assert spans(10.0, [0.5] * ENOUGH) == (5.0, 5.0)


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_nine_of_ten_waits_end_by_their_p90(drift):
    draw, known, kept = random.Random(3), outlook(), []
    for i in range(4000):
        told = foretell(100.0, known)
        waited = 100.0 * draw.lognormvariate(drift * math.sin(i / 200), 0.8)
        kept.append(waited <= told.p90)
        known = learn(known, waited, told.raw, told.p90)
    assert len(known.ratios) == KEPT
    assert 0.87 <= sum(kept[200:]) / len(kept[200:]) <= 0.93
