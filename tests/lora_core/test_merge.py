import pytest
import torch
from safetensors.torch import save_file

from lora_core import (
    AdapterSpec,
    FormatError,
    LoraError,
    activate,
    eject,
    fold,
    inject,
    merge,
    unmerge,
)
from lora_core import weights_digest as digest
from lora_core.inject import layers
from tests.lora_core.adapters import filled, with_adapter
from tests.lora_core.models import tiny

IDS = torch.arange(3, 13)[None]
DTYPES = [torch.float32, torch.bfloat16]


def on_disk(kind, dtype, folder):
    """The folder with the tiny model's own files."""
    tiny(kind, dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "variant",
    [
        {"dora": True},
        {"learnable_scaling": True},
        {"qalora_group_size": 8, "alpha": 1.0},
        {"train_norms": True, "trainable_tokens": (3, 5, 8)},
    ],
)
def test_a_merged_variant_computes_what_its_layers_do(kind, variant):
    if kind == "gpt2" and "train_norms" in variant:
        pytest.skip("GPT-2 has no RMS norms, and its head is tied to the embedding")
    model = with_adapter(kind, **variant)
    before = digest(model)
    on_the_fly = model(IDS).logits
    assert (on_the_fly - tiny(kind)(IDS).logits).abs().max() > 1e-2
    merge(model)
    torch.testing.assert_close(model(IDS).logits, on_the_fly, atol=1e-4, rtol=0)
    unmerge(model)
    assert digest(model) == before
    torch.testing.assert_close(model(IDS).logits, on_the_fly, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
def test_unmerge_restores_the_bits(kind, dtype, mapped, tmp_path):
    source = on_disk(kind, dtype, tmp_path) if mapped else None
    model = with_adapter(kind, dtype)
    before = digest(model)
    assert before == digest(tiny(kind, dtype))
    on_the_fly = model(IDS).logits
    merge(model, source=source)
    assert digest(model) != before
    kept = [layer for layer in layers(model).values() if hasattr(layer, "_unmerged")]
    assert bool(kept) == (source is None)
    torch.testing.assert_close(
        model(IDS).logits, on_the_fly, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=0.05
    )
    unmerge(model, source=source)
    assert digest(model) == before
    assert not any(hasattr(layer, "_unmerged") for layer in layers(model).values())
    torch.testing.assert_close(model(IDS).logits, on_the_fly, rtol=0, atol=0)


def test_a_source_that_does_not_hold_these_very_bits_is_refused(tmp_path):
    model = with_adapter()
    before = digest(model)
    source = on_disk("llama", torch.float32, tmp_path / "base")
    from lora_core.mapped import Mapped

    files = Mapped(source)
    changed = {name: files.tensor(name).clone() for name in files.names}
    name = next(n for n in changed if "down_proj" in n)
    changed[name].view(-1)[0] += 1e-6
    (tmp_path / "other").mkdir()
    save_file(changed, tmp_path / "other" / "model.safetensors")
    for wrong, why in ((tmp_path / "other", "down_proj"), (tmp_path, "no safetensors file")):
        with pytest.raises(LoraError, match=why):
            merge(model, source=wrong)
    half = on_disk("llama", torch.bfloat16, tmp_path / "half")
    with pytest.raises(LoraError, match="another shape or dtype"):
        merge(model, source=half)
    assert digest(model) == before
    merge(model, source=source)
    with pytest.raises(LoraError, match="kept no copy"):
        unmerge(model)
    with pytest.raises(FormatError, match="no safetensors file"):
        unmerge(model, source=tmp_path)
    unmerge(model, source=source)
    assert digest(model) == before


def test_folding_is_merging_for_good():
    model, merged = with_adapter(), with_adapter()
    merge(merged)
    fold(model)
    assert digest(model) == digest(merged)
    assert not layers(model)
    with pytest.raises(LoraError, match="no layer has a slot"):
        fold(model)


def test_activating_touches_no_weight():
    model = filled(with_adapter(slot="one", seed=1), "two", seed=2)
    before, seen = digest(model), {}
    for slot in ("one", "two", None, "one"):
        versions = [p._version for p in model.parameters()]
        activate(model, slot)
        assert [p._version for p in model.parameters()] == versions
        logits = model(IDS).logits
        assert torch.equal(logits, seen.setdefault(slot, logits))
    assert not torch.equal(seen["one"], seen["two"])
    assert not torch.equal(seen["one"], seen[None])
    assert digest(model) == before


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
