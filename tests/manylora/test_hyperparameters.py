"""What "auto" becomes, and which layers a rank fits."""

import pytest

from manylora import hyperparameters as hp
from manylora.errors import BadSpecError

LAYERS = {"model.0.q_proj": [64, 64], "model.0.k_proj": [64, 16], "model.0.mlp": [64, 256]}


@pytest.mark.parametrize(
    ("asked", "rank"),
    [
        ({}, 16),
        ({"lora_r": "auto"}, 16),
        ({"target_modules": ["q_proj", "mlp"]}, 32),
        ({"target_modules": r".*\.k_proj"}, 16),
        ({"lora_r": 4}, 4),
        ({"lora_r": 100}, 100),
    ],
)
def test_an_auto_rank_fits_the_narrowest_layer_it_sits_on(asked, rank):
    resolved = hp.resolve(hp.parse(asked), hidden_size=64, layers=LAYERS)
    assert (resolved.lora_r, resolved.lora_alpha) == (rank, rank)


def test_a_rank_that_was_asked_for_is_never_changed():
    resolved = hp.resolve(hp.parse({"lora_r": 17}), hidden_size=64, layers=LAYERS)
    with pytest.raises(BadSpecError, match=r"lora_r 17 is larger than the layer model.0.k_proj"):
        hp.check_layers(resolved, LAYERS)


def test_targets_that_match_nothing_list_what_exists():
    with pytest.raises(BadSpecError, match="match no layer") as caught:
        hp.resolve(hp.parse({"target_modules": ["query"]}), hidden_size=64, layers=LAYERS)
    assert caught.value.hint == "layers of this base: k_proj, mlp, q_proj; or all-linear"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"use_dora": True, "use_qalora": True}, "use_dora and use_qalora cannot be one adapter"),
        ({"use_dora": True, "learnable_scaling": True}, "magnitudes learn the scale"),
        ({"qalora_group_size": 8}, "set use_qalora, too"),
        ({"use_qalora": True, "qalora_group_size": 1}, "qalora_group_size"),
        ({"loraplus_lr_ratio": 0}, "loraplus_lr_ratio"),
        ({"longlora_group_size": 7}, "longlora_group_size"),
        ({"use_dora": "yes"}, "use_dora"),
    ],
)
def test_variants_that_cannot_be_are_refused_with_the_reason(asked, words):
    with pytest.raises(BadSpecError, match=words) as caught:
        hp.parse(asked)
    assert caught.value.param.startswith("hyperparameters.")


@pytest.mark.parametrize(
    ("asked", "group", "rank"),
    [
        ({"use_qalora": True}, 16, 4),
        ({"use_qalora": True, "qalora_group_size": 4}, 4, 16),
        ({"lora_r": 3, "use_qalora": True, "qalora_group_size": 2}, 2, 3),
        ({"use_dora": True, "loraplus_lr_ratio": 16}, None, 16),
    ],
)
def test_a_variant_is_resolved_and_fits(asked, group, rank):
    resolved = hp.resolve(hp.parse(asked), hidden_size=64, layers=LAYERS)
    assert (resolved.qalora_group_size, resolved.lora_r) == (group, rank)
    assert resolved.use_dora is asked.get("use_dora", False)
    assert len(hp.check_layers(resolved, LAYERS)) == 3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"qalora_group_size": 48}, "48 does not divide the 64 inputs of the layer model.0.q_proj"),
        ({"qalora_group_size": 32, "lora_r": 4}, "lora_r 4 is larger than the 2 groups of 32"),
    ],
)
def test_groups_that_do_not_fit_a_layer_are_refused(asked, words):
    asked = {"use_qalora": True, **asked}
    resolved = hp.resolve(hp.parse(asked), hidden_size=64, layers=LAYERS)
    with pytest.raises(BadSpecError, match=words):
        hp.check_layers(resolved, LAYERS)
