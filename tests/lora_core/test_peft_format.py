"""PEFT is the oracle: it loads ours, we load its, and the logits agree."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from lora_core import (
    AdapterSpec,
    FormatError,
    activate,
    from_peft_config,
    inject,
    load_adapter,
    save_adapter,
    to_peft_config,
    weights_digest,
)
from lora_core.inject import layers
from tests.lora_core.models import KINDS, VOCAB, tiny


def randomise(model, slot="default"):
    """B is zero at first, and a zero adapter proves nothing."""
    generator = torch.Generator().manual_seed(3)
    for layer in layers(model).values():
        with torch.no_grad():
            layer.lora_B[slot].copy_(
                torch.randn(layer.lora_B[slot].shape, generator=generator) * 0.1
            )
            if slot in layer.lora_magnitude:
                size = layer.lora_magnitude[slot].shape
                layer.lora_magnitude[slot].mul_(1 + 0.2 * torch.rand(size, generator=generator))
            if slot in layer.lora_gain:
                layer.lora_gain[slot].fill_(0.6)


def logits(model):
    ids = torch.arange(3, 23).reshape(2, 10) % VOCAB
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    "variant",
    [{}, {"rslora": True}, {"dora": True}, {"learnable_scaling": True}],
    ids=["plain", "rslora", "dora", "learnable"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_ours_and_gives_the_same_logits(kind, variant, tmp_path):
    ours = tiny(kind)
    plain = logits(ours)
    inject(ours, AdapterSpec(r=4, alpha=8, seed=5, **variant))
    randomise(ours)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny(kind), tmp_path)
    assert (logits(ours) - plain).abs().max() > 1e-3
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_we_load_what_peft_saved(kind, dora, tmp_path):
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, use_dora=dora
    )
    theirs = peft.get_peft_model(tiny(kind), config)
    theirs.save_pretrained(tmp_path)
    ours = tiny(kind)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)


def test_a_bf16_base_saves_bf16_and_fp32_on_request(tmp_path):
    model = tiny("llama", torch.bfloat16)
    inject(model, AdapterSpec(r=2))
    save_adapter(model, tmp_path / "half")
    save_adapter(model, tmp_path / "full", dtype=torch.float32)
    half = load_file(tmp_path / "half" / "adapter_model.safetensors")
    full = load_file(tmp_path / "full" / "adapter_model.safetensors")
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    assert {t.dtype for t in full.values()} == {torch.float32}


def test_a_regular_expression_names_its_layers_exactly(tmp_path):
    model = tiny("llama")
    hit = inject(model, AdapterSpec(r=2, target_modules=r".*layers\.0\..*q_proj"))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == hit == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "no base_model.*lora_magnitude_vector of shape"),
        ({"use_qalora": True, "qalora_group_size": 4}, r"lora_A.weight of shape \(2, 8\)"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"r": None}, "lacks a usable field"),
        ({"r": 3}, r"lora_A.weight of shape \(3, 32\)"),
        ({"target_modules": ["q_proj"]}, "tensors of no target"),
    ],
)
def test_what_is_not_supported_is_refused(change, words, tmp_path):
    model = tiny("llama")
    inject(model, AdapterSpec(r=2))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(FormatError, match=words):
        load_adapter(tiny("llama"), tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    model = tiny("llama")
    inject(model, AdapterSpec(r=2))
    save_adapter(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FormatError, match="pickled"):
        load_adapter(tiny("llama"), tmp_path)


def test_what_cannot_be_loaded_leaves_the_model_as_it_was(tmp_path):
    model = tiny("llama")
    inject(model, AdapterSpec(r=2), "mine")
    randomise(model, "mine")
    save_adapter(model, tmp_path, slot="mine")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    before, digest = logits(model), weights_digest(model)
    with pytest.raises(FormatError):
        load_adapter(model, tmp_path, "theirs")
    assert torch.equal(logits(model), before)
    assert weights_digest(model) == digest
    assert all(list(layer.specs) == ["mine"] for layer in layers(model).values())
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        load_adapter(model, tmp_path, "theirs")


def test_two_adapters_on_one_base(tmp_path):
    for seed in (1, 2):
        made = tiny("llama")
        inject(made, AdapterSpec(r=2, seed=seed))
        randomise(made)
        save_adapter(made, tmp_path / str(seed))
    both = tiny("llama")
    for seed in (1, 2):
        load_adapter(both, tmp_path / str(seed), slot=str(seed))
    for seed in (1, 2):
        alone = tiny("llama")
        load_adapter(alone, tmp_path / str(seed))
        activate(both, str(seed))
        assert torch.equal(logits(both), logits(alone))


def test_equal_weights_are_equal_bytes_whatever_the_slot_is_called(tmp_path):
    for slot in ("a", "b"):
        model = tiny("llama")
        inject(model, AdapterSpec(r=2, seed=4), slot)
        save_adapter(model, tmp_path / slot, slot=slot, base_model_name=f"base-{slot}")
    a, b = ((tmp_path / slot / "adapter_model.safetensors").read_bytes() for slot in "ab")
    assert a == b
    assert b"__metadata__" not in a


def test_a_half_precision_base_that_is_not_bf16_saves_fp32(tmp_path):
    model = tiny("llama", torch.float16)
    inject(model, AdapterSpec(r=2))
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "variant",
    [{"dora": True}, {"qalora_group_size": 8}, {"qalora_group_size": 4, "learnable_scaling": True}],
)
def test_a_variant_goes_to_the_disk_and_back(variant, dtype, tmp_path):
    ours = tiny("llama", dtype)
    plain = logits(ours)
    inject(ours, AdapterSpec(r=2, alpha=0.5, **variant))
    randomise(ours)
    save_adapter(ours, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        magnitude = name.endswith("lora_magnitude_vector")
        assert tensor.dtype == (torch.float32 if magnitude else dtype)
    width = 32 // variant.get("qalora_group_size", 1)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj."
    assert tensors[prefix + "lora_A.weight"].shape == (2, width)
    again = tiny("llama", dtype)
    spec = load_adapter(again, tmp_path)
    assert (spec.dora, spec.qalora_group_size) == (
        variant.get("dora", False),
        variant.get("qalora_group_size"),
    )
    assert (logits(ours) - plain).abs().max() > 1e-3
    slack = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(logits(again), logits(ours), rtol=0, atol=slack)


@pytest.mark.parametrize("variant", [{}, {"dora": True}, {"qalora_group_size": 2}])
def test_the_config_goes_there_and_back(variant):
    spec = AdapterSpec(
        r=4, alpha=6, dropout=0.1, target_modules=("k_proj", "q_proj"), rslora=True, **variant
    )
    config = to_peft_config(spec, base_model_name="b", fan_in_fan_out=True)
    assert from_peft_config(config) == spec
    assert config["lora_alpha"] == 6
    assert isinstance(config["lora_alpha"], int)
    read = peft.LoraConfig.from_peft_type(**config)
    assert read.target_modules == {"k_proj", "q_proj"}
    assert (read.use_dora, read.use_qalora) == (spec.dora, spec.qalora_group_size is not None)
    assert (read.base_model_name_or_path, read.fan_in_fan_out, read.use_rslora) == ("b", True, True)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_linear_is_written_as_the_endings_it_reached(kind, tmp_path):
    model = tiny(kind)
    inject(model, AdapterSpec(r=2))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {
        "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "gpt2": ["c_attn", "c_fc", "c_proj"],
    }[kind]
    assert config["target_modules"] == expected
    assert config["fan_in_fan_out"] is (kind == "gpt2")
