import pytest
import torch
from peft import PeftModel

from lora_core import LoraError, SpecError, activate, combine, merge, save_adapter
from lora_core.inject import layers
from tests.lora_core.adapters import filled
from tests.lora_core.models import tiny

WEIGHTS = {"one": 0.7, "two": -0.4}


@pytest.fixture
def three():
    """A model with three adapters: two of other ranks and scalings, one on fewer layers."""
    model = filled(tiny("llama"), "one", r=2, alpha=3.0, seed=1)
    filled(model, "two", r=4, alpha=8.0, seed=2)
    return filled(model, "few", r=3, alpha=3.0, seed=3, target_modules=("q_proj", "up_proj"))


def deltas(model, slot):
    return {n: layer.delta(slot) for n, layer in layers(model).items() if slot in layer.specs}


def test_the_sum_is_exact(three):
    spec = combine(three, {**WEIGHTS, "few": 1.5}, "sum")
    assert spec.r == 9
    assert spec.scaling == 1
    for name, layer in layers(three).items():
        wanted = sum(
            w * layer.delta(slot)
            for slot, w in {**WEIGHTS, "few": 1.5}.items()
            if slot in layer.specs
        )
        torch.testing.assert_close(layer.delta("sum"), wanted, msg=name)


def test_at_a_rank_it_is_the_nearest_one(three):
    combine(three, WEIGHTS, "short", rank=3)
    for name, layer in layers(three).items():
        dense = sum(w * layer.delta(slot) for slot, w in WEIGHTS.items()).double()
        u, s, v = torch.linalg.svd(dense, full_matrices=False)
        best = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
        torch.testing.assert_close(layer.delta("short").double(), best, msg=name, **CLOSE)


CLOSE = {"atol": 1e-6, "rtol": 1e-4}


@pytest.mark.parametrize(("rank", "kind"), [(None, "cat"), (3, "svd")])
def test_peft_combines_the_same(three, tmp_path, rank, kind):
    for slot in WEIGHTS:
        save_adapter(three, tmp_path / slot, slot=slot)
    other = PeftModel.from_pretrained(tiny("llama"), tmp_path / "one", adapter_name="one")
    other.load_adapter(tmp_path / "two", adapter_name="two")
    other.add_weighted_adapter(
        list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type=kind, svd_rank=rank
    )
    combine(three, WEIGHTS, "sum", rank=rank)
    mine = deltas(three, "sum")
    theirs = {
        name.removeprefix("base_model.model."): module.get_delta_weight("sum")
        for name, module in other.named_modules()
        if hasattr(module, "get_delta_weight") and "sum" in module.lora_A
    }
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], msg=name, **CLOSE)


def test_it_can_be_used_and_leaves_its_parts_alone(three, tmp_path):
    before = {slot: deltas(three, slot) for slot in WEIGHTS}
    combine(three, WEIGHTS, "sum")
    ids = torch.arange(3, 13)[None]
    summed = three(ids).logits
    save_adapter(three, tmp_path, slot="sum")
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    torch.testing.assert_close(theirs(ids).logits, summed, atol=1e-5, rtol=1e-4)
    for slot in WEIGHTS:
        after = deltas(three, slot)
        assert all(torch.equal(before[slot][name], after[name]) for name in after)


def test_what_cannot_be_combined(three):
    activate(three, "two")
    ids = torch.arange(3, 13)[None]
    before = three(ids).logits
    for wanted, into, rank in (
        ({}, "sum", None),
        ({"one": 1.0, "missing": 1.0}, "sum", None),
        (WEIGHTS, "two", None),
        (WEIGHTS, "sum", 1000),
    ):
        with pytest.raises(SpecError):
            combine(three, wanted, into, rank=rank)
    assert torch.equal(three(ids).logits, before)
    merge(three, "one")
    with pytest.raises(LoraError, match="unmerge it first"):
        combine(three, WEIGHTS, "sum")
