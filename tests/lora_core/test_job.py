import math

import pytest

from lora_core import Examples, SpecError
from tests.lora_core.models import job


def test_steps():
    mine = job("j", 1, epochs=3, batch_size=5, warmup_ratio=0.25)
    assert (mine.total_steps, mine.warmup_steps) == (9, 2)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"examples": Examples.of([])}, "without examples"),
        ({"epochs": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"learning_rate": math.inf}, "learning_rate inf"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"schedule": "step"}, "none of constant"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"eval_every": 0}, "eval_every"),
        ({"shift_group": 7}, "no even number"),
    ],
)
def test_jobs_that_cannot_be(bad, words):
    with pytest.raises(SpecError, match=words):
        job("j", 1, **bad)
