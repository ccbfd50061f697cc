import pytest

from manylora.errors import UsageError
from manylora.sweep.space import axis, hyperparameters, label, trials


def grid(*texts, count=None, seed=0):
    return trials([axis(text) for text in texts], count, seed)


def test_the_grid_is_every_combination_in_order():
    found = grid("lora_r=4,8,4", "learning_rate=1e-4,5e-4")
    assert [label(one) for one in found] == [
        "lora_r=4 learning_rate=0.0001",
        "lora_r=4 learning_rate=0.0005",
        "lora_r=8 learning_rate=0.0001",
        "lora_r=8 learning_rate=0.0005",
    ]


def test_layers_are_joined_by_a_plus():
    found = [hyperparameters(one) for one in grid("target_modules=all-linear,q_proj+v_proj")]
    assert [one["target_modules"] for one in found] == ["all-linear", ["q_proj", "v_proj"]]


def test_a_draw_is_the_same_for_the_same_seed_and_never_repeats():
    every = grid("lora_r=1,2,3,4", "lora_alpha=1,2,3")
    drawn = grid("lora_r=1,2,3,4", "lora_alpha=1,2,3", count=7, seed=3)
    assert drawn == grid("lora_r=1,2,3,4", "lora_alpha=1,2,3", count=7, seed=3)
    assert drawn != grid("lora_r=1,2,3,4", "lora_alpha=1,2,3", count=7, seed=4)
    assert len({label(one) for one in drawn}) == 7
    assert all(one in every for one in drawn)
    assert len(grid("lora_r=1,2", count=9)) == 2


def test_a_range_is_drawn_from_by_its_logarithm():
    rates = [one["learning_rate"] for one in grid("learning_rate=1e-5..1e-3", count=200)]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert 60 < sum(rate < 1e-4 for rate in rates) < 140


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_r", "not name=value"),
        ("lora_r=", "not name=value"),
        ("n_epochs=1,2", "cannot be swept"),
        ("lora_r=4,x", "'x' is no whole number"),
        ("learning_rate=nan", "is no value"),
        ("learning_rate=2..1", "no range"),
        ("target_modules=a..b", "no range"),
    ],
)
def test_what_is_no_axis(text, said):
    with pytest.raises(UsageError, match=said):
        axis(text)


def test_a_range_in_a_grid_and_a_name_twice():
    with pytest.raises(UsageError, match="--random"):
        grid("learning_rate=1e-5..1e-3")
    with pytest.raises(UsageError, match="given twice"):
        grid("lora_r=1", "lora_r=2")
