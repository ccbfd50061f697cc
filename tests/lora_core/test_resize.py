import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_core import FormatError, SpecError, load_adapter, resize, save_adapter
from lora_core.inject import layers
from tests.lora_core.adapters import with_adapter
from tests.lora_core.models import tiny

IDS = torch.arange(3, 13)[None]


@pytest.fixture(params=[False, True], ids=["plain", "rslora"])
def adapter(request, tmp_path):
    """(the model it was made on, its folder)"""
    model = with_adapter(r=6, alpha=9.0, rslora=request.param)
    save_adapter(model, tmp_path / "adapter", base_model_name="tiny")
    return model, tmp_path / "adapter"


def dense(folder):
    model = tiny("llama")
    load_adapter(model, folder)
    return {name: layer.delta("default") for name, layer in layers(model).items()}


def test_a_smaller_one_is_the_nearest(adapter, tmp_path):
    _, folder = adapter
    kept = resize(folder, tmp_path / "out", rank=2)
    before, after = dense(folder), dense(tmp_path / "out")
    energy = whole = 0.0
    for name, delta in before.items():
        u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
        best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
        torch.testing.assert_close(after[name].double(), best, atol=1e-6, rtol=1e-4, msg=name)
        share = float((s[:2].square().sum() / s.square().sum()).detach())
        assert kept.layers[name] == pytest.approx(share, rel=1e-4)
        energy, whole = energy + float(s[:2].square().sum()), whole + float(s.square().sum())
    assert kept.rank == 2
    assert kept.share == pytest.approx(energy / whole, rel=1e-4)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert config["base_model_name_or_path"] == "tiny"
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path / "out")
    mine = tiny("llama")
    load_adapter(mine, tmp_path / "out")
    torch.testing.assert_close(theirs(IDS).logits, mine(IDS).logits, atol=1e-5, rtol=1e-4)


def test_a_larger_one_is_the_same_adapter(adapter, tmp_path):
    model, folder = adapter
    assert resize(folder, tmp_path / "out", rank=11).share == pytest.approx(1.0)
    before = load_file(folder / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, held in before.items():
        there = after[name][:6] if "lora_A" in name else after[name][:, :6]
        assert torch.equal(there, held)
        rest = after[name][6:] if "lora_A" in name else after[name][:, 6:]
        assert bool((rest != 0).any()) == ("lora_A" in name)
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path / "out")
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, atol=1e-6, rtol=1e-5)


def test_the_rank_by_energy_is_the_smallest_that_does(adapter, tmp_path):
    _, folder = adapter
    kept = resize(folder, tmp_path / "out", energy=0.9)
    assert kept.share >= 0.9
    assert resize(folder, tmp_path / "less", rank=kept.rank - 1).share < 0.9
    assert resize(folder, tmp_path / "all", energy=1.0).rank == 6


def test_what_cannot_be_resized(adapter, tmp_path):
    _, folder = adapter
    with pytest.raises(SpecError, match="larger than the layer"):
        resize(folder, tmp_path / "out", rank=1000)
    with pytest.raises(SpecError, match="either"):
        resize(folder, tmp_path / "out")
    with pytest.raises(FormatError, match="no adapter_config"):
        resize(tmp_path, tmp_path / "out", rank=1)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "odd.weight": torch.ones(2)}, weights)
    with pytest.raises(FormatError, match="no plain LoRA"):
        resize(folder, tmp_path / "out", rank=1)
    assert not (tmp_path / "out").exists()
