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
