import pytest
import torch

from lora_core import AdapterSpec, LoraError, activate, eject, inject, merge, unmerge
from lora_core import weights_digest as digest
from lora_core.inject import layers
from tests.lora_core.models import tiny


def with_adapter(kind, dtype=torch.float32, slot="default", **variant):
    model = tiny(kind, dtype)
    inject(model, AdapterSpec(r=2, seed=1, **variant), slot)
    for layer in layers(model).values():
        torch.nn.init.constant_(layer.lora_B[slot], 0.05)
        if slot in layer.lora_magnitude:
            layer.lora_magnitude[slot].data.mul_(1.1)
        if slot in layer.lora_gain:
            layer.lora_gain[slot].data.fill_(0.5)
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "variant",
    [{"dora": True}, {"learnable_scaling": True}, {"qalora_group_size": 8, "alpha": 1.0}],
)
def test_a_merged_variant_computes_what_its_layers_do(kind, variant):
    model = with_adapter(kind, **variant)
    ids = torch.arange(3, 13)[None]
    on_the_fly = model(ids).logits
    assert (on_the_fly - tiny(kind)(ids).logits).abs().max() > 1e-2
    merge(model)
    torch.testing.assert_close(model(ids).logits, on_the_fly, atol=1e-4, rtol=0)
    unmerge(model)
    torch.testing.assert_close(model(ids).logits, on_the_fly, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_restores_the_bits(kind, dtype):
    model = with_adapter(kind, dtype)
    before = digest(model)
    assert before == digest(tiny(kind, dtype))
    ids = torch.arange(3, 13)[None]
    on_the_fly = model(ids).logits
    merge(model)
    assert digest(model) != before
    torch.testing.assert_close(
        model(ids).logits, on_the_fly, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=0.05
    )
    unmerge(model)
    assert digest(model) == before
    torch.testing.assert_close(model(ids).logits, on_the_fly, rtol=0, atol=0)


def test_merging_twice_and_unmerging_nothing_are_refused():
    model = with_adapter("llama")
    inject(model, AdapterSpec(r=2, target_modules=("q_proj",)), "other")
    with pytest.raises(LoraError, match="nothing is merged"):
        unmerge(model)
    with pytest.raises(LoraError, match="no layer has a slot 'missing'"):
        merge(model, "missing")
    merge(model)
    for again in ("default", "other"):
        with pytest.raises(LoraError, match="'default' is merged already"):
            merge(model, again)


def test_while_merged_nothing_else_may_change():
    model = with_adapter("llama")
    merge(model)
    before = digest(model)
    for forbidden in (
        lambda: eject(model),
        lambda: activate(model, "default"),
        lambda: inject(model, AdapterSpec(r=2), "more"),
    ):
        with pytest.raises(LoraError, match="unmerge it first"):
            forbidden()
    assert digest(model) == before
    assert all(list(layer.specs) == ["default"] for layer in layers(model).values())
