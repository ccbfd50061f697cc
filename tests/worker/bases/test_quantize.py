"""A base kept in few bits: registered, on disk, loaded; what cannot be is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lora_core import AdapterSpec
from lora_core.inject import targets
from lora_core.quantize import QuantizedLinear, method_of, quantize_layers
from manylora.errors import UsageError
from tests.conftest import write_tokenizer
from tests.lora_core.models import tiny
from worker.bases import card as cards
from worker.bases import register
from worker.trainer.load import load_base

KINDS = {"nf4": ("nf4", None), "int8": ("int8", None), "int4-g16": ("int4", 16)}


def prepare(source, cache, **options):
    return register.prepare("mine", str(source), cache, progress=lambda _: None, **options)


@pytest.fixture
def source(tiny_model_folder, tmp_path):
    """source(kind): a tiny model's folder."""

    def make(kind):
        folder = tmp_path / f"source-{kind}"
        tiny(kind, packed=False).save_pretrained(folder)
        write_tokenizer(folder / "tokenizer.json")
        shutil.copy(tiny_model_folder / "tokenizer_config.json", folder)
        return folder

    return make


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "qwen2"])
def test_what_is_loaded_is_what_was_quantised(kind, name, source, tmp_path):
    method, group = KINDS[name]
    folder = source(kind)
    whole, plain_folder = prepare(folder, tmp_path / "plain")
    card, made = prepare(folder, tmp_path / "few", quantize=method, group_size=group)
    assert (card.quantization, card.dtype, whole.quantization) == (name, "bfloat16", None)
    assert card.fingerprint == cards.fingerprint("bfloat16", card.files, quantization=name)
    assert (card.layers, card.parameters) == (whole.layers, whole.parameters)
    assert cards.read(made) == card

    expected = load_base(plain_folder, "cpu", None)
    quantize_layers(expected, targets(expected, AdapterSpec(r=1)), method_of(name))
    model = load_base(made, "cpu", None)
    assert not model.training
    assert {n for n, m in model.named_modules() if isinstance(m, QuantizedLinear)} == set(
        card.layers
    )
    own, theirs = dict(model.named_parameters()), dict(expected.named_parameters())
    own |= dict(model.named_buffers())  # those that no file holds, too
    theirs |= dict(expected.named_buffers())
    assert own.keys() == theirs.keys()
    for each, tensor in theirs.items():
        assert (own[each].dtype, own[each].device.type) == (tensor.dtype, "cpu"), each
        assert torch.equal(own[each], tensor), each
    tied = expected.get_output_embeddings().weight is expected.get_input_embeddings().weight
    held = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert held == tied == (kind in ("gpt2", "gemma3"))
    ids = torch.arange(3, 20)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_no_linear_weight_is_on_disk_and_nobody_loads_it_by_mistake(tiny_model_folder, tmp_path):
    card, folder = prepare(tiny_model_folder, tmp_path, quantize="nf4")
    held = load_file(folder / "model.nf4.safetensors")
    assert not [name for name in card.layers if f"{name}.weight" in held]
    assert held["model.layers.0.mlp.up_proj.codes"].dtype == torch.uint8
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def refused(source, cache, **options):
    with pytest.raises(UsageError) as told:
        prepare(source, cache, **options)
    assert not cache.exists() or list(cache.iterdir()) == []
    return f"{told.value.message} {told.value.hint}"


def test_what_cannot_be_is_refused_in_a_sentence(tiny_model_folder, tmp_path):
    def say(**options):
        return refused(tiny_model_folder, tmp_path / "cache", **options)

    assert "'fp4' is no quantisation; there are nf4, int8, int4" in say(quantize="fp4")
    assert "a group size is for int4" in say(quantize="nf4", group_size=32)
    assert "a group size needs a quantisation" in say(group_size=32)
    assert "the group size 7 is not an even number" in say(quantize="int4", group_size=7)
    divided = say(quantize="int4", group_size=20)
    assert divided.startswith("int4-g20 does not suit this model: groups of 20 do not divide")
    wide = say(quantize="nf4", dtype="float32")
    assert "a base in nf4 computes in bfloat16, not in float32" in wide


@pytest.mark.parametrize("again", [None, "int8"])
def test_a_quantised_base_is_not_taken_again(tiny_model_folder, tmp_path, again):
    _, folder = prepare(tiny_model_folder, tmp_path / "first", quantize="nf4")
    said = refused(folder, tmp_path / "cache", quantize=again)
    assert "is quantised already (nf4)" in said
    copy = shutil.copytree(tiny_model_folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (copy / "config.json").write_text(json.dumps(config))
    assert "is quantised already" in refused(copy, tmp_path / "cache", quantize=again)
