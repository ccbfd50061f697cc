"""`extract` and `resize`: PEFT loads what they write, and a merge takes it without --force."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lora_core import save_adapter
from manylora.errors import BadSpecError, UnknownBaseError, UsageError
from tests.lora_core.adapters import filled
from worker.describe import describe
from worker.extract import checkpoint, extract, resize
from worker.merge import merge
from worker.trainer.load import load_base

IDS = torch.arange(3, 13)[None]


@pytest.fixture
def adapter(tiny_base, tmp_path):
    """An adapter of rank 4 on the tiny base, with a manifest."""
    card, base = tiny_base
    save_adapter(filled(load_base(base, "cpu", 2)), tmp_path / "adapter", base_model_name="tiny")
    describe(tmp_path / "adapter", {"name": card.name, "fingerprint": card.fingerprint})
    return tmp_path / "adapter"


def logits(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    return PeftModel.from_pretrained(model, adapter)(IDS).logits


def test_what_was_merged_is_extracted_again(tiny_base, adapter, tmp_path):
    base = tiny_base[1]
    merge(adapter, base, tmp_path / "tuned")
    made = extract(base, tmp_path / "tuned", tmp_path / "out", rank=4, energy=None)
    assert made["share"] > 0.9999
    assert made["left_out"] == []
    torch.testing.assert_close(
        logits(base, tmp_path / "out"), logits(base, adapter), atol=1e-4, rtol=1e-3
    )
    merge(tmp_path / "out", base, tmp_path / "again")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["extracted"]["rank"] == 4


def test_a_resized_adapter_keeps_its_base(tiny_base, adapter, tmp_path):
    base = tiny_base[1]
    made = resize(adapter, tmp_path / "out", rank=9, energy=None)
    assert made["share"] == pytest.approx(1)
    torch.testing.assert_close(
        logits(base, tmp_path / "out"), logits(base, adapter), atol=1e-5, rtol=1e-4
    )
    merge(tmp_path / "out", base, tmp_path / "model")
    with pytest.raises(BadSpecError, match="larger than the layer"):
        resize(adapter, tmp_path / "big", rank=1000, energy=None)


def test_what_is_no_model_is_explained(tiny_base, tmp_path):
    cache = tiny_base[1].parent
    assert checkpoint(cache, "tiny") == tiny_base[1]
    assert checkpoint(cache, str(tiny_base[1])) == tiny_base[1]
    with pytest.raises(UnknownBaseError, match="neither"):
        checkpoint(cache, "nothing-like-it")
    with pytest.raises(UsageError, match=r"no config\.json"):
        checkpoint(cache, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no \.safetensors"):
        checkpoint(cache, str(tmp_path))
