"""How often to checkpoint."""

import pytest

from worker.cadence import interval


@pytest.mark.parametrize(
    ("cost", "failure", "expected", "most", "seconds"),
    [
        (3.0, 14_400.0, 86_400.0, 300.0, 293.9),  # Young's optimum
        (3.0, 14_400.0, 600.0, 300.0, 60.0),  # a tenth of a short job, which is 20 times the cost
        (3.0, 14_400.0, 60.0, 300.0, 60.0),  # checkpoints are not the work
        (60.0, 14_400.0, 86_400.0, 300.0, 300.0),  # never more than `most`
        (0.0, 14_400.0, 600.0, 300.0, 0.0),  # not known yet: the first one tells
    ],
)
def test_interval(cost, failure, expected, most, seconds):
    got = interval(cost=cost, failure=failure, expected=expected, most=most)
    assert got == pytest.approx(seconds, abs=0.1)
