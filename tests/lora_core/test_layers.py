"""Convolutions and embeddings carry adapters as linear layers do; PEFT is the oracle."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_core import (
    AdapterSpec,
    SpecError,
    TargetError,
    eject,
    inject,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
    weights_digest,
)
from lora_core.inject import layers
from tests.lora_core.networks import WORDS, arrays, network
from tests.lora_core.test_peft_format import randomise

TARGETS = {
    "mlp": "all-linear",
    "convnet": ("first", "second", "last"),
    "signal": ("wide", "back"),
    "words": ("words", "mix", "last"),
}
CASES = [
    *((kind, targets, kind in ("convnet", "signal")) for kind, targets in TARGETS.items()),
    ("convnet", ("first", "last"), False),
    ("signal", ("back",), False),
]


def fill(model):
    """Numbers everywhere: an embedding's A is zero at first, a linear layer's B."""
    randomise(model)
    generator = torch.Generator().manual_seed(4)
    for layer in layers(model).values():
        with torch.no_grad():
            a = layer.lora_A["default"]
            a.copy_(torch.randn(a.shape, generator=generator) * 0.3)


@torch.no_grad()
def outputs(kind, model):
    return model(arrays(kind, 3).x)


def at_work(theirs, merged):
    """PEFT's own forward knows neither a convolution's dilation nor its way of padding; what it
    merges does."""
    return theirs.merge_and_unload() if merged else theirs.eval()


@pytest.mark.parametrize(("kind", "targets", "merged"), CASES)
def test_peft_loads_ours_and_gives_the_same_outputs(kind, targets, merged, tmp_path):
    ours, _ = network(kind)
    before = outputs(kind, ours)
    inject(ours, AdapterSpec(r=2, alpha=3, target_modules=targets))
    assert torch.equal(outputs(kind, ours), before)  # a fresh adapter does nothing
    fill(ours)
    save_adapter(ours, tmp_path)
    theirs = at_work(peft.PeftModel.from_pretrained(network(kind)[0], tmp_path), merged)
    assert (outputs(kind, ours) - before).abs().max() > 1e-3
    torch.testing.assert_close(outputs(kind, ours), outputs(kind, theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "targets", "merged"), CASES)
def test_we_load_what_peft_saved(kind, targets, merged, tmp_path):
    config = peft.LoraConfig(
        r=2, lora_alpha=3, init_lora_weights=False,
        target_modules=["first", "last"] if targets == "all-linear" else list(targets),
    )  # fmt: skip
    theirs = peft.get_peft_model(network(kind)[0], config)
    theirs.save_pretrained(tmp_path)
    theirs = at_work(theirs, merged)
    ours, _ = network(kind)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(outputs(kind, ours), outputs(kind, theirs), rtol=0, atol=1e-5)


def test_the_shapes_on_disk_are_pefts(tmp_path):
    convnet, _ = network("convnet")
    inject(convnet, AdapterSpec(r=2))
    save_adapter(convnet, tmp_path / "c")
    held = load_file(tmp_path / "c" / "adapter_model.safetensors")
    assert held["base_model.model.second.lora_A.weight"].shape == (2, 8, 3, 2)
    assert held["base_model.model.second.lora_B.weight"].shape == (6, 2, 1, 1)
    config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["first", "last", "second"]  # not the depthwise one
    assert config["task_type"] is None
    words, _ = network("words")
    inject(words, AdapterSpec(r=2, target_modules=("words",)))
    save_adapter(words, tmp_path / "w")
    held = load_file(tmp_path / "w" / "adapter_model.safetensors")
    assert {name: tuple(t.shape) for name, t in held.items()} == {
        "base_model.model.words.lora_embedding_A": (2, WORDS),
        "base_model.model.words.lora_embedding_B": (16, 2),
    }
    assert not json.loads((tmp_path / "w" / "adapter_config.json").read_text())["fan_in_fan_out"]


@pytest.mark.parametrize("kind", ["convnet", "signal", "words"])
def test_merged_and_unmerged(kind):
    model, _ = network(kind)
    digest = weights_digest(model)
    inject(model, AdapterSpec(r=2, target_modules=TARGETS[kind]))
    fill(model)
    wanted = outputs(kind, model)
    merge(model)
    torch.testing.assert_close(outputs(kind, model), wanted, rtol=0, atol=1e-5)
    unmerge(model)
    assert weights_digest(model) == digest
    assert torch.equal(outputs(kind, model), wanted)
    eject(model)
    assert not layers(model)


def test_all_linear_means_no_embedding():
    words, _ = network("words")
    assert inject(words, AdapterSpec(r=2)) == ["mix", "last"]


def test_a_convolution_of_one_unbatched_example():
    convnet, _ = network("convnet")
    inject(convnet, AdapterSpec(r=2, target_modules=("first",)))
    fill(convnet)
    x = arrays("convnet", 1).x
    with torch.no_grad():
        torch.testing.assert_close(convnet.first(x[0]), convnet.first(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Embedding(9, 4, max_norm=1.0), "max_norm"),
        (nn.Embedding(9, 4, sparse=True), "sparse"),
        (nn.Conv2d(4, 4, 3, groups=2), "2 groups"),
    ],
)
def test_what_is_refused_says_why(module, said):
    with pytest.raises(TargetError, match=said):
        inject(nn.ModuleDict({"it": module}), AdapterSpec(r=1, target_modules=("it",)))
    with pytest.raises(SpecError, match="larger than the layer"):
        inject(nn.ModuleDict({"it": nn.Conv2d(4, 8, 3)}), AdapterSpec(r=37, target_modules=("it",)))
