"""Shares, turns and ranks: what they promise, for any numbers hypothesis can think of."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scheduler.fairness import (
    AGEING,
    FLOOR,
    NOTICE,
    charged,
    decayed,
    entitlements,
    jain,
    rank,
    turn,
)

HALF = 86_400.0
amounts = st.floats(0.0, 1e6)
weights = st.floats(0.1, 10.0)
moments = st.floats(0.0, 30 * HALF)


def test_half_is_forgotten_in_a_half_life():
    assert decayed(100.0, HALF, HALF) == 50.0
    assert decayed(100.0, 0.0, HALF) == 100.0
    assert charged(100.0, 0.0, HALF, 7.0, HALF) == 57.0
    assert charged(1.0, 0.0, 0.0, -5.0, HALF) == 0.0


@given(st.floats(FLOOR * 20, 1e6), st.floats(FLOOR * 20, 1e6), weights, weights, moments, moments)
def test_who_had_less_for_its_weight_goes_first_whenever_one_looks(a, b, wa, wb, at, later):
    """The order of turns is that of what is left, divided by the weights, at any moment."""
    assume(abs(a / wa - b / wb) > 1e-6 * a / wa)
    now = at + later
    left = decayed(a, now - at, HALF) / wa, decayed(b, now - at, HALF) / wb
    turns = turn(a, at, 0.0, wa, HALF), turn(b, at, 0.0, wb, HALF)
    assume(min(turns) > FLOOR and left[0] != left[1])
    assume(min(a / wa, b / wb) > FLOOR / min(wa, wb))
    assert (left[0] < left[1]) == (turns[0] < turns[1])


@given(amounts, weights, moments, amounts)
def test_a_charge_puts_a_turn_back_and_never_forward(used, weight, at, cost):
    before = turn(used, at, 0.0, weight, HALF)
    after = turn(charged(used, at, at, cost, HALF), at, 0.0, weight, HALF)
    assert after >= before


def test_newcomers_go_in_the_order_they_came_and_overtake_nobody_for_ever():
    assert turn(0.0, 0.0, 1.0, 1.0, HALF) < turn(0.0, 0.0, 2.0, 1.0, HALF)
    heavy = turn(1000 * FLOOR, 0.0, 0.0, 1.0, HALF)
    assert turn(0.0, 0.0, 0.0, 1.0, HALF) < heavy < turn(0.0, 0.0, 11 * HALF, 1.0, HALF)


def test_a_rank_ages_and_a_deadline_counts_a_day_before():
    assert rank(0.0, 1) == rank(AGEING, 2)
    assert rank(0.0, 1) < rank(AGEING - 1, 1)
    assert rank(5.0, 0, deadline=NOTICE) == 0.0
    assert rank(5.0, 0, deadline=NOTICE + 10) == 5.0


@given(
    st.dictionaries(st.integers(), st.tuples(weights, st.floats(0.0, 100.0)), max_size=12),
    st.floats(0.1, 200.0),
)
def test_entitlements_are_weighted_max_min(asked, capacity):
    weight = {k: w for k, (w, _) in asked.items()}
    demand = {k: d for k, (_, d) in asked.items()}
    given_ = entitlements(capacity, weight, demand)
    assert sum(given_.values()) == pytest.approx(min(capacity, sum(demand.values())), abs=1e-6)
    short = [k for k in asked if given_[k] < demand[k] - 1e-9]
    for k in asked:
        assert given_[k] <= demand[k] + 1e-9
        for other in short:  # nobody has more for its weight than one who has too little
            assert given_[k] / weight[k] <= given_[other] / weight[other] + 1e-6


@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=20))
def test_jain_is_between_one_of_n_and_one(values):
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9


def test_jain_of_equals_and_of_one_that_has_everything():
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert jain([5.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([]) == 1.0
    assert not math.isnan(jain([0.0]))
