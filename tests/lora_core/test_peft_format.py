"""PEFT is the oracle: it loads ours, we load its, and the logits agree."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from lora_core import AdapterSpec, FormatError, inject, load_adapter, save_adapter
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


def logits(model):
    ids = torch.arange(3, 23).reshape(2, 10) % VOCAB
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_ours_and_gives_the_same_logits(kind, rslora, tmp_path):
    ours = tiny(kind)
    plain = logits(ours)
    inject(ours, AdapterSpec(r=4, alpha=8, rslora=rslora, seed=5))
    randomise(ours)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny(kind), tmp_path)
    assert (logits(ours) - plain).abs().max() > 1e-3
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_we_load_what_peft_saved(kind, tmp_path):
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False
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
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
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
