import pytest
import torch
from peft import PeftModel

from lora_core import LoraError, SpecError, extract, fold, load_adapter
from lora_core.inject import layers
from lora_core.mapped import Mapped
from tests.lora_core.adapters import with_adapter
from tests.lora_core.models import tiny

IDS = torch.arange(3, 13)[None]


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoints(tmp_path):
    """(base, tuned): the tuned one is the base with a rank 4 adapter folded in."""
    model = with_adapter(r=4, target_modules=("q_proj", "down_proj"))
    fold(model)
    return saved(tiny("llama"), tmp_path / "base"), saved(model, tmp_path / "tuned")


def difference(base, tuned, name):
    before, after = Mapped(base), Mapped(tuned)
    return after.tensor(f"{name}.weight").double() - before.tensor(f"{name}.weight").double()


def test_at_the_rank_of_the_difference_nothing_is_lost(checkpoints, tmp_path):
    base, tuned = checkpoints
    kept, others = extract(tiny("llama"), base, tuned, tmp_path / "out", rank=4)
    assert kept.share == pytest.approx(1.0)
    assert others == []
    assert {n.rpartition(".")[2] for n in kept.layers} == {"q_proj", "down_proj"}
    whole = tiny("llama")
    whole.load_state_dict({n: Mapped(tuned).tensor(n) for n in Mapped(tuned).names}, strict=False)
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path / "out")
    torch.testing.assert_close(theirs(IDS).logits, whole(IDS).logits, atol=1e-5, rtol=1e-4)


def test_at_less_it_is_the_nearest_one(checkpoints, tmp_path):
    base, tuned = checkpoints
    kept, _ = extract(tiny("llama"), base, tuned, tmp_path / "out", rank=2)
    model = tiny("llama")
    load_adapter(model, tmp_path / "out")
    for name, layer in layers(model).items():
        u, s, v = torch.linalg.svd(difference(base, tuned, name), full_matrices=False)
        best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
        torch.testing.assert_close(layer.delta("default").double(), best, atol=1e-6, rtol=1e-3)
        share = float(s[:2].square().sum() / s.square().sum())
        assert kept.layers[name] == pytest.approx(share, rel=1e-4)


def test_the_rank_by_energy(checkpoints, tmp_path):
    base, tuned = checkpoints
    kept, _ = extract(tiny("llama"), base, tuned, tmp_path / "out", energy=0.8)
    assert kept.share >= 0.8
    less, _ = extract(tiny("llama"), base, tuned, tmp_path / "less", rank=kept.rank - 1)
    assert less.share < 0.8


def test_transposed_layers_and_what_no_adapter_holds(tmp_path):
    model = with_adapter("gpt2", r=2)
    fold(model)
    with torch.no_grad():
        model.transformer.wte.weight.add_(0.1)
        model.transformer.ln_f.bias.add_(0.1)
    base, tuned = saved(tiny("gpt2"), tmp_path / "base"), saved(model, tmp_path / "tuned")
    kept, others = _gpt2(base, tuned, tmp_path / "out")
    assert kept.share == pytest.approx(1.0)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in others} == {"wte", "ln_f"}
    again = tiny("gpt2")
    load_adapter(again, tmp_path / "out")
    for name, layer in layers(again).items():
        wanted = model.get_submodule(name).weight - tiny("gpt2").get_submodule(name).weight
        torch.testing.assert_close(layer.delta("default"), wanted, atol=1e-6, rtol=1e-3)


def _gpt2(base, tuned, out):
    return extract(tiny("gpt2"), base, tuned, out, rank=2)


def test_what_cannot_be_extracted(checkpoints, tmp_path):
    base, tuned = checkpoints
    with pytest.raises(LoraError, match="no linear layer differs"):
        extract(tiny("llama"), base, base, tmp_path / "out", rank=2)
    with pytest.raises(LoraError, match="different models"):
        extract(tiny("llama"), base, saved(tiny("qwen2"), tmp_path / "q"), tmp_path / "o", rank=2)
    with pytest.raises(SpecError, match="larger than the smallest layer"):
        extract(tiny("llama"), base, tuned, tmp_path / "out", rank=1000)
    assert not (tmp_path / "out").exists()
