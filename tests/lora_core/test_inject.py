import pytest
import torch
from torch import nn

from lora_core import AdapterSpec, SpecError, TargetError, activate, eject, inject, targets
from lora_core.inject import layers
from tests.lora_core.models import KINDS, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_is_every_linear_layer_but_the_head(kind):
    model = tiny(kind)
    hit = targets(model, AdapterSpec(r=2))
    assert len(hit) == (8 if kind == "gpt2" else 14)
    assert not any("lm_head" in name for name in hit)


def test_only_the_adapter_learns():
    model = tiny("llama")
    inject(model, AdapterSpec(r=2))
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora_A" in n or "lora_B" in n for n in learning)


def test_eject_gives_the_module_back_as_it_was():
    model = tiny("gpt2")
    before = [(n, type(m)) for n, m in model.named_modules()]
    inject(model, AdapterSpec(r=2), "a")
    inject(model, AdapterSpec(r=3), "b")
    eject(model, "a")
    assert layers(model)
    eject(model)
    assert [(n, type(m)) for n, m in model.named_modules()] == before


def test_a_new_adapter_changes_nothing_and_none_is_the_bare_base():
    model = tiny("llama")
    ids = torch.arange(3, 13)[None]
    plain = model(ids).logits
    inject(model, AdapterSpec(r=2))
    torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=0)
    for layer in layers(model).values():
        nn.init.ones_(layer.lora_B["default"])
    assert not torch.equal(model(ids).logits, plain)
    activate(model, None)
    torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=0)


def test_targets_that_match_nothing_list_what_there_is():
    with pytest.raises(TargetError, match=r"there are: .*down_proj.*q_proj"):
        inject(tiny("llama"), AdapterSpec(target_modules=("query",)))


def test_a_rank_larger_than_the_layer_is_refused_and_nothing_changed():
    model = tiny("llama")
    with pytest.raises(SpecError, match=r"rank 17 is larger than the layer .*k_proj"):
        inject(model, AdapterSpec(r=17))
    assert not layers(model)


@pytest.mark.parametrize("bad", [{"r": 0}, {"dropout": 1.0}, {"alpha": 0}, {"target_modules": ()}])
def test_specs_that_cannot_be(bad):
    with pytest.raises(SpecError):
        AdapterSpec(**bad)
