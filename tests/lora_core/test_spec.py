import math

import pytest

from lora_core import AdapterSpec, SpecError


def test_scaling():
    assert AdapterSpec(r=16, alpha=8).scaling == 0.5
    assert AdapterSpec(r=16, alpha=8, rslora=True).scaling == 2.0
    assert (AdapterSpec().r, AdapterSpec().scaling) == (32, 1.0)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"r": 0}, "rank 0 is less than 1"),
        ({"dropout": 1.0}, r"dropout 1.0 is not in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout"),
        ({"alpha": 0}, "alpha 0 is not a positive number"),
        ({"alpha": math.nan}, "alpha nan"),
        ({"target_modules": ()}, "target_modules is empty"),
        ({"qalora_group_size": 1}, "qalora_group_size 1 is less than 2"),
        ({"loraplus_lr_ratio": 0.0}, "loraplus_lr_ratio 0.0 is not a positive number"),
        ({"loraplus_lr_ratio": math.inf}, "loraplus_lr_ratio"),
        ({"dora": True, "qalora_group_size": 4}, "DoRA scales whole rows of the base"),
        ({"dora": True, "learnable_scaling": True}, "two parameters for one thing"),
    ],
)
def test_specs_that_cannot_be(bad, words):
    with pytest.raises(SpecError, match=words):
        AdapterSpec(**bad)
