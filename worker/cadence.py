"""How often to checkpoint: a pure function of what a checkpoint costs and how often things fail."""

from __future__ import annotations

import math

#: checkpoints take at most this share of a job's time
_MOST_SHARE = 0.05
#: a job is not set back by more than this share of its length
_REDONE = 0.1


def interval(*, cost: float, failure: float, expected: float, most: float) -> float:
    """Seconds between two checkpoints.

    Young's first-order optimum sqrt(2 C M) for a checkpoint of `cost` C seconds and one failure in
    `failure` M seconds (Young 1974; Daly 2006), and no longer than a tenth of the `expected` length
    of the job; but never so often that checkpoints are the work; at most `most`.
    """
    young = math.sqrt(2 * cost * failure)
    return min(most, max(cost / _MOST_SHARE, min(young, _REDONE * expected)))
