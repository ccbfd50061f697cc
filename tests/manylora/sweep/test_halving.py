import math
import random

import pytest

from manylora.errors import UsageError
from manylora.sweep.halving import Trial, plan, stand


def test_the_plan_is_the_papers():
    found = plan(8, 64, 2, None)
    assert found.rungs == (8, 16, 32, 64)
    assert found.entering == (8, 4, 2, 1)
    assert found.cost == 8 * 8 + 4 * 8 + 2 * 16 + 1 * 32
    assert found.full == 512
    assert plan(9, 90, 3, None).rungs == (10, 30, 90)
    assert plan(1, 90, 3, None).rungs == (90,)


def test_the_budget_takes_the_fewest_rungs_that_fit():
    whole = plan(8, 64, 2, 512)
    assert (whole.rungs, whole.cost) == ((64,), 512)
    costs = []
    for budget in (500, 350, 250, 160):
        found = plan(8, 64, 2, budget)
        assert found.cost <= budget
        costs.append(len(found.rungs))
    assert costs == sorted(costs)
    with pytest.raises(UsageError, match="need at least 160 steps, the budget is 100") as error:
        plan(8, 64, 2, 100)
    assert "--budget 160" in error.value.hint


def run(found, losses, order):
    """Trials that step in `order`, a look at the standing after each; the steps each made."""
    trials = [Trial() for _ in losses]
    for each in order:
        standing = stand(found, trials)
        dropped = set(standing.dropped) | set(standing.waiting)
        if each in dropped or trials[each].step >= found.rungs[-1]:
            continue
        trial = trials[each]
        trial.step += 1
        trial.losses[trial.step] = losses[each] / trial.step
        trial.ended = trial.step == found.rungs[-1]
    return trials, stand(found, trials)


def test_whatever_the_order_the_same_go_on_and_no_step_is_lost():
    found = plan(8, 16, 2, None)
    losses = [5.0, 3.0, 8.0, 1.0, 7.0, 2.0, 6.0, 4.0]
    for seed in range(20):
        draw = random.Random(seed)
        order = [draw.randrange(8) for _ in range(2000)]
        trials, standing = run(found, losses, order)
        assert standing.done
        assert standing.going == standing.order == (3,)
        assert sum(trial.step for trial in trials) == found.cost
        assert sorted(standing.dropped) == [0, 1, 2, 4, 5, 6, 7]
        # 2.0 was second to the end, 3.0 and 4.0 went one rung
        assert standing.dropped[5] == len(found.rungs) - 2


def test_failed_and_diverged_trials_are_left_behind():
    found = plan(4, 8, 2, None)
    trials = [
        Trial({2: 1.0}, 2),
        Trial({}, 1, ended=True),
        Trial({2: math.nan}, 2),
        Trial({2: 3.0}, 2),
    ]
    standing = stand(found, trials)
    assert standing.rung == 1
    assert standing.going == (0, 3)
    assert not standing.done
    every = stand(found, [Trial(ended=True) for _ in range(4)])
    assert every.done
    assert every.order == ()


def test_a_job_that_stopped_early_counts_with_its_last_loss():
    found = plan(2, 8, 4, 16)
    assert found.rungs == (8,)
    standing = stand(found, [Trial({2: 1.0, 6: 1.2}, 6, ended=True), Trial({8: 1.1}, 8, True)])
    assert standing.order == (1, 0)
