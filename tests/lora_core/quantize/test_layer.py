"""Quantised layers in the place of whole ones: the same numbers as their weight made whole, made
once a pass, and closed to what they cannot do."""

import json

import peft
import pytest
import torch
from torch import nn

from lora_core import (
    AdapterSpec,
    LoraError,
    SpecError,
    Trainer,
    inject,
    merge,
    save_adapter,
    weights_digest,
)
from lora_core.inject import layers, targets
from lora_core.quantize import QuantizedLinear, method_of, name_of, quantize_layers
from tests.lora_core.models import job, tiny

METHODS = ("nf4", "int8", "int4-g16")


def quantized(kind, method, dtype=torch.float32, **options):
    """A tiny model whose linear layers are quantised."""
    model = tiny(kind, dtype, **options)  # `whole` is about widths
    quantize_layers(model, targets(model, AdapterSpec(r=1)), method_of(method))
    return model


def made_whole(kind, method, dtype=torch.float32, **options):
    """The same model, its weights made whole again."""
    model, few = tiny(kind, dtype, **options), quantized(kind, method, dtype, **options)
    with torch.no_grad():
        for name in targets(few, AdapterSpec(r=1)):
            layer, other = few.get_submodule(name), model.get_submodule(name)
            other.weight.copy_(layer.weight.T if layer.of_conv1d else layer.weight)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_it_computes_what_its_whole_weight_computes(kind, method):
    few, plain = quantized(kind, method), made_whole(kind, method)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(few(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
    assert isinstance(few.get_submodule(targets(few, AdapterSpec(r=1))[0]), QuantizedLinear)
    assert not isinstance(few.get_output_embeddings(), QuantizedLinear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_job_on_it_takes_the_steps_it_takes_on_the_whole_weights(method, dtype):
    losses = []
    for model in (quantized("llama", method, dtype), made_whole("llama", method, dtype)):
        trainer = Trainer(model, slots=2)
        assert trainer.fused
        trainer.join(job("a", 3, spec_dropout=0.1))
        losses.append([trainer.step()[0].loss for _ in range(6)])
    assert losses[0] == losses[1]  # the same products of the same numbers


@pytest.mark.parametrize("method", METHODS)
def test_native_kernels_take_it_like_its_whole_weights(method, kernels):
    losses = []
    for made in (quantized, made_whole):
        model = made("llama", method, torch.bfloat16, whole=True)
        trainer = Trainer(model, slots=2, kernels=kernels)
        assert trainer.native
        trainer.join(job("a", 3, spec_dropout=0.1))
        trainer.join(job("b", 4, spec_target_modules=("down_proj",)))
        losses.append([report.loss for _ in range(4) for report in trainer.step()])
    assert losses[0] == losses[1]


def test_the_gradient_goes_through_it_and_not_into_it():
    layer = QuantizedLinear.of(nn.Linear(32, 8), method_of("nf4"))
    x = torch.randn(5, 32, requires_grad=True)
    layer(x).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    (other @ layer.weight.T + layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert [p for p in layer.parameters() if p.requires_grad] == []
    assert not layer.weight.requires_grad


@pytest.mark.parametrize("jobs", [1, 6])
def test_a_weight_is_made_once_a_pass_for_all_jobs(jobs):
    trainer = Trainer(quantized("llama", "nf4"), slots=6)
    for number in range(jobs):
        trainer.join(job(f"j{number}", number, spec_dropout=0.1))
    (scratch,) = {layer.group._scratch for layer in layers(trainer.model).values()}
    groups = {id(layer.group) for layer in layers(trainer.model).values()}
    before, passes = scratch.made, trainer.passes
    trainer.step()
    assert trainer.passes == passes + 1
    assert len(groups) == 8  # of two layers
    # The last group's weight is still there for its backward; the first needs no slope of x.
    assert len(groups) <= scratch.made - before <= 2 * len(groups)


def test_the_room_for_whole_weights_is_the_largest_groups():
    trainer = Trainer(quantized("llama", "int8"), slots=1)
    sizes = {
        id(layer.group): layer.group.out_features * layer.in_features
        for layer in layers(trainer.model).values()
    }
    (scratch,) = {layer.group._scratch for layer in layers(trainer.model).values()}
    assert scratch._room.numel() == max(sizes.values())


@pytest.mark.parametrize("method", ["nf4", "int4-g16"])
def test_casting_a_model_leaves_the_parts_alone(method):
    model = quantized("llama", method)
    before = weights_digest(model)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    parts = {name: part.clone() for name, part in layer.parts.items()}
    model.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    for name, part in parts.items():
        assert torch.equal(part, layer.parts[name])
    assert weights_digest(model.float()) != before  # norms and embeddings were rounded
    assert layer.weight.dtype == torch.float32


def test_the_digest_covers_the_parts_and_training_leaves_them():
    model = quantized("llama", "nf4")
    before = weights_digest(model)
    trainer = Trainer(model, slots=1)
    trainer.join(job("a", 1))
    trainer.step()
    assert weights_digest(model) == before
    layers(model)["model.layers.1.mlp.up_proj"].base.codes[0] ^= 1
    assert weights_digest(model) != before


def test_an_adapter_of_a_quantised_conv1d_says_so(tmp_path):
    model = quantized("gpt2", "int8")
    inject(model, AdapterSpec(r=2))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    loaded = peft.PeftModel.from_pretrained(tiny("gpt2"), tmp_path)
    assert loaded(torch.arange(3, 9)[None]).logits.isfinite().all()


def test_what_cannot_be_is_said_in_a_sentence():
    model = quantized("llama", "nf4")
    with pytest.raises(LoraError, match="q_proj is quantised already"):
        quantize_layers(model, targets(model, AdapterSpec(r=1)), method_of("int8"))
    with pytest.raises(LoraError, match="no linear layer but a Embedding"):
        quantize_layers(tiny("llama"), ["model.embed_tokens"], method_of("int8"))
    inject(model, AdapterSpec(r=2))
    with pytest.raises(LoraError, match="merge into the full-precision base"):
        merge(model)
    with pytest.raises(SpecError, match="'fp4' is no quantisation; there are nf4, int8, int4"):
        method_of("fp4")
    with pytest.raises(SpecError, match="a group size is for int4"):
        name_of("nf4", 32)
    assert (name_of("int4"), name_of("int4", 64)) == ("int4-g32", "int4-g64")
    with pytest.raises(SpecError, match="groups of 64 do not divide a width of 32"):
        quantized("llama", "int4-g64")
