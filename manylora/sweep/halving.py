"""Successive halving, without any job: at which steps trials are compared, and who goes on.

"Non-stochastic Best Arm Identification and Hyperparameter Optimization" (Jamieson and Talwalkar,
2016), the inner loop of Hyperband (Li et al., 2018): at each rung the best 1/eta go on to eta times
as many steps. Steps are optimizer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from manylora.errors import UsageError

#: a first comparison earlier than this says little
_LEAST = 2


@dataclass(frozen=True)
class Plan:
    """`rungs` are the steps trials are compared at, the last is their end; `entering[i]` trials go
    for rung i. `cost` in steps, `full` what every trial to its end would be."""

    rungs: tuple[int, ...]
    entering: tuple[int, ...]
    cost: int
    full: int


def plan(trials: int, steps: int, eta: int, budget: int | None) -> Plan:
    """The fewest rungs whose cost is within `budget`; without one, as many as make sense.

    Raises: UsageError when even the cheapest plan costs more; it says how much.
    """
    found = [_plan(trials, steps, eta, 1)]
    count = 2
    while eta ** (count - 1) <= trials and steps // eta ** (count - 1) >= _LEAST:
        found.append(_plan(trials, steps, eta, count))
        count += 1
    if budget is None:
        return found[-1]
    for one in found:
        if one.cost <= budget:
            return one
    cheapest = min(one.cost for one in found)
    raise UsageError(
        f"{trials} trials of {steps} steps need at least {cheapest:,} steps, the budget is "
        f"{budget:,}",
        hint=f"--budget {cheapest}, fewer values, or --random N for a part of the grid",
        param="budget",
    )


def _plan(trials: int, steps: int, eta: int, count: int) -> Plan:
    first = steps // eta ** (count - 1)
    rungs = (*(first * eta**i for i in range(count - 1)), steps)
    entering = tuple(max(1, trials // eta**i) for i in range(count))
    starts = (0, *rungs)
    cost = sum(n * (rung - start) for n, rung, start in zip(entering, rungs, starts, strict=False))
    return Plan(rungs, entering, cost, trials * steps)


@dataclass
class Trial:
    """What is known of a trial: its validation loss by step, the steps it has made, and whether it
    has `ended` (for good, however)."""

    losses: dict[int, float] = field(default_factory=dict)
    step: int = 0
    ended: bool = False

    def at(self, rung: int, last: int) -> float | None:
        """Its loss at a rung; infinite for one that ended before, None when it is not there yet.
        At the last rung any later evaluation counts: a job may stop early."""
        if rung in self.losses:
            return _number(self.losses[rung])
        if not self.ended:
            return None
        if rung == last and self.losses:
            return _number(self.losses[max(self.losses)])
        return math.inf


def _number(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands. `rung` is the index of the one that is open (their number when all are
    closed), `going` who goes for it, `waiting` who of them is there already, `dropped` at which
    rung (by index) each loser was left behind, `order` the going ones, best first, as far as known.
    """

    rung: int
    going: tuple[int, ...]
    waiting: tuple[int, ...]
    dropped: dict[int, int]
    order: tuple[int, ...]

    @property
    def done(self) -> bool:
        """Whether nobody is waited for any more."""
        return not self.going or set(self.waiting) == set(self.going)


def stand(plan: Plan, trials: list[Trial]) -> Standing:
    """Close every rung that all who go for it have reached. The same results always give the same
    standing, so a sweep that was interrupted goes on as if it had not been."""
    going = tuple(range(len(trials)))
    dropped: dict[int, int] = {}
    last = plan.rungs[-1]
    for index, rung in enumerate(plan.rungs):
        found = {each: trials[each].at(rung, last) for each in going}
        there = tuple(each for each in going if found[each] is not None)
        order = tuple(sorted(there, key=lambda each: (found[each], each)))
        if len(there) < len(going) or index + 1 == len(plan.rungs):
            return Standing(index, going, there, dropped, order)
        kept = [each for each in order if found[each] != math.inf][: plan.entering[index + 1]]
        dropped |= {each: index for each in going if each not in kept}
        going = tuple(sorted(kept))
    raise AssertionError("a plan has at least one rung")
