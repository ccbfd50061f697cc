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
    with pytest.raises(SpecError, match=r"rank 33 is larger than the layer .*q_proj"):
        inject(model, AdapterSpec(r=33))
    assert not layers(model)


def test_a_tuple_takes_names_and_endings_and_a_string_is_a_regular_expression():
    model = tiny("llama")
    of = lambda wanted: targets(model, AdapterSpec(r=2, target_modules=wanted))  # noqa: E731
    q = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert of(("q_proj",)) == q
    assert of((q[1],)) == of(r"model\.layers\.1\..*q_proj") == q[1:]
    with pytest.raises(TargetError, match="match no layer"):
        of(("_proj",))
    with pytest.raises(TargetError, match="match no layer"):
        of("q_proj")
    with pytest.raises(TargetError, match="not a regular expression"):
        of("(")


def test_the_output_head_is_refused_by_name():
    with pytest.raises(TargetError, match="output head 'lm_head'"):
        targets(tiny("llama"), AdapterSpec(r=2, target_modules=("q_proj", "lm_head")))


def test_slots_are_taken_once_and_only_those_there_are_can_be_set_to_work():
    model = tiny("llama")
    with pytest.raises(SpecError, match="no layer has a slot 'default'"):
        activate(model, "default")
    inject(model, AdapterSpec(r=2))
    with pytest.raises(SpecError, match="taken"):
        inject(model, AdapterSpec(r=2))
    with pytest.raises(SpecError, match="no layer has a slot 'other'"):
        activate(model, "other")


def test_any_module_will_do():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert inject(model, AdapterSpec(r=1)) == ["0", "2"]
    assert model(torch.ones(5, 4)).shape == (5, 2)
    eject(model)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
