import math

import pytest

from lora_core import SpecError, learning_rate


def test_values():
    assert learning_rate(1.0, "constant", 9, 10, 0) == 1.0
    assert [learning_rate(1.0, "constant", s, 10, 4) for s in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert [learning_rate(1.0, "linear", s, 4, 0) for s in (1, 2, 4)] == [1.0, 0.75, 0.25]
    assert learning_rate(1.0, "cosine", 1, 4, 0) == 1.0
    assert learning_rate(1.0, "cosine", 3, 4, 0) == pytest.approx(0.5)
    assert learning_rate(2.0, "cosine", 8, 10, 2) == pytest.approx(1 + math.cos(math.pi * 5 / 8))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3, 20])
def test_rises_to_the_peak_then_never_rises_and_stays_positive(schedule, warmup):
    rates = [learning_rate(3e-4, schedule, s, 20, warmup) for s in range(1, 21)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert max(rates) == pytest.approx(3e-4)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert min(rates) > 0


def test_what_cannot_be():
    with pytest.raises(SpecError, match="none of constant, linear, cosine"):
        learning_rate(1.0, "polynomial", 1, 4, 0)
    for step in (0, 5):
        with pytest.raises(SpecError, match=r"not in 1\.\.4"):
            learning_rate(1.0, "linear", step, 4, 0)
