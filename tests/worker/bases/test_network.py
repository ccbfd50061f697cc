"""Bases that a function builds: their card, and what is refused before anything is imported."""

import pytest
import torch
from safetensors.torch import save_file

from manylora.errors import UsageError
from tests.lora_core.models import tiny
from tests.lora_core.networks import CLASSES, network
from worker.bases import card as cards
from worker.bases.network import allow, build, prepare, require_text, task_of
from worker.trainer.load import load_base

HERE = "tests.lora_core.networks"


def weights(kind, folder):
    path = folder / f"{kind}.safetensors"
    save_file(network(kind)[0].state_dict(), str(path))
    return path


def made(kind, folder, **changes):
    shape = tuple(network(kind)[1].shape)
    given = dict(
        factory=f"{HERE}:{kind}", args={}, weights=weights(kind, folder),
        task=network(kind)[1].kind, shape=shape, input_dtype="float32", dtype="float32",
        tokenizer=None, chat_template=None, progress=lambda _: None,
    )  # fmt: skip
    return prepare(kind, folder / "cache", **given | changes)


def test_a_network_becomes_a_card_and_loads_again(tmp_path):
    card, folder = made("convnet", tmp_path)
    assert cards.read(folder) == card
    assert card.fingerprint == cards.fingerprint("float32", card.files, network=card.network)
    assert card.network == {
        "task": "classification", "factory": f"{HERE}:convnet", "args": {},
        "input": {"shape": [3, 9, 9], "dtype": "float32", "below": None}, "output": [CLASSES],
    }  # fmt: skip
    assert card.layers == {"first": [27, 8], "second": [48, 6], "last": [6, CLASSES]}
    assert card.architecture == "ConvNet"
    task = task_of(card.network)
    assert (task.kind, task.shape, task.dtype) == ("classification", (3, 9, 9), torch.float32)
    loaded = load_base(folder, "cpu", None, HERE)
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(loaded(x), network("convnet")[0](x))
    with pytest.raises(UsageError, match="reads arrays"):
        require_text(folder)


def test_other_arguments_are_another_base(tmp_path):
    a, _ = made("mlp", tmp_path)
    b, _ = made("mlp", tmp_path, args={"width": 24})
    assert a.files == b.files
    assert a.fingerprint != b.fingerprint


def test_only_listed_modules_are_imported(tmp_path):
    card, folder = made("mlp", tmp_path)
    with pytest.raises(UsageError, match="does not build networks of"):
        load_base(folder, "cpu", None)
    for listed in ("tests.lora_core", f"other, {HERE}"):
        allow(card.network, listed)
    for listed in ("", "tests.lora", "networks", HERE + ".x"):
        with pytest.raises(UsageError):
            allow(card.network, listed)
    with pytest.raises(UsageError):
        allow({"factory": "os:system"}, "torch")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factory": f"{HERE}:nothing"}, "cannot be imported"),
        ({"factory": "no.such:thing"}, "cannot be imported"),
        ({"factory": f"{HERE}:arrays"}, "builds nothing"),
        ({"factory": f"{HERE}:_shape_of"}, "cannot be imported"),
        ({"args": {"width": 7}}, "not this network's"),
        ({"shape": (11,)}, "does not take"),
        ({"shape": None}, "--input-shape is needed"),
        ({"task": "causal-lm"}, "--tokenizer is needed"),
    ],
)
def test_what_cannot_be_built_or_trained_says_why(changes, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        made("mlp", tmp_path, **changes)
    assert not list((tmp_path / "cache").glob("*/base.json"))


def test_weights_of_another_network_or_pickled_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no \.safetensors file"):
        made("mlp", tmp_path, weights=tmp_path / "w.pt")
    save_file({"first.weight": torch.zeros(24, 12)}, str(tmp_path / "half.safetensors"))
    with pytest.raises(UsageError, match=r"lacks first\.bias"):
        made("mlp", tmp_path, weights=tmp_path / "half.safetensors")


def tiny_llama():
    """A factory of a causal LM."""
    return tiny("llama", packed=True)


def test_a_causal_lm_by_a_function(tmp_path, tiny_model_folder):
    path = tmp_path / "lm.safetensors"
    state = tiny("llama").state_dict()
    save_file({k: v.clone() for k, v in state.items()}, str(path))
    given = dict(
        task="causal-lm", shape=None, weights=path, tokenizer=tiny_model_folder,
        factory=f"{__name__}:tiny_llama",
    )  # fmt: skip
    card, folder = made("mlp", tmp_path, **given)
    assert task_of(card.network) is None
    assert "model.layers.0.self_attn.q_proj" in card.layers
    loaded = load_base(folder, "cpu", None, "tests.worker")
    ids = torch.arange(5)[None]
    assert torch.equal(loaded(ids).logits, tiny("llama")(ids).logits)
    given |= {"factory": f"{HERE}:mlp", "weights": weights("mlp", tmp_path)}
    with pytest.raises(UsageError, match="no get_output_embeddings"):
        made("mlp", tmp_path, **given)


def test_build_keeps_the_dtype(tmp_path):
    card, folder = made("mlp", tmp_path, dtype="bfloat16")
    assert build(card.network, folder / "model.safetensors", "bfloat16").first.weight.dtype == (
        torch.bfloat16
    )
