"""`merge`: the folder loads with plain transformers and gives the adapter's logits."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_core import load_adapter, save_adapter
from manylora.errors import BadSpecError, ManyloraError, UsageError
from manylora.place import placed
from tests.lora_core.adapters import filled
from worker.bases.card import read
from worker.describe import describe
from worker.merge import merge
from worker.trainer.load import load_base

IDS = torch.arange(3, 13)[None]


@pytest.fixture
def adapter(tiny_base, tmp_path):
    """A folder as `fetch` makes it, of an adapter on the tiny base."""
    card, base = tiny_base
    save_adapter(filled(load_base(base, "cpu", 2)), tmp_path / "adapter", base_model_name="tiny")
    describe(tmp_path / "adapter", {"name": card.name, "fingerprint": card.fingerprint})
    return tmp_path / "adapter"


def test_plain_transformers_gives_the_adapters_logits(tiny_base, adapter, tmp_path):
    base = tiny_base[1]
    told = merge(adapter, base, tmp_path / "out")
    mine = load_base(base, "cpu", 2)
    load_adapter(mine, adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    torch.testing.assert_close(merged(IDS).logits, mine(IDS).logits, atol=1e-5, rtol=1e-4)
    bare = load_base(base, "cpu", 2)(IDS).logits
    assert not torch.allclose(merged(IDS).logits, bare, atol=1e-3)
    plain = AutoTokenizer.from_pretrained(base, local_files_only=True)
    again = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert again("a cat").input_ids == plain("a cat").input_ids
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
    assert not (tmp_path / "out/base.json").exists()
    assert told["base_fingerprint"] == read(base).fingerprint


def test_another_base_is_refused_and_no_manifest_needs_force(tiny_base, adapter, tmp_path):
    manifest = json.loads((adapter / "manifest.json").read_text())
    manifest["base"] = {"name": "other", "fingerprint": "0" * 64}
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    for force in (False, True):
        with pytest.raises(UsageError, match="was trained on other") as error:
            merge(adapter, tiny_base[1], tmp_path / "out", force=force)
        assert error.value.error_code == "wrong_base"
    (adapter / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="not a manifest"):
        merge(adapter, tiny_base[1], tmp_path / "out")
    (adapter / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"no manifest\.json") as error:
        merge(adapter, tiny_base[1], tmp_path / "out")
    assert "--force" in error.value.hint
    assert not (tmp_path / "out").exists()
    merge(adapter, tiny_base[1], tmp_path / "out", force=True)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_an_adapter_that_does_not_fit_is_explained(tiny_base, adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["c_attn"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadSpecError, match="does not fit tiny"):
        merge(adapter, tiny_base[1], tmp_path / "out")


def test_what_goes_wrong_leaves_nothing(tiny_base, adapter, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"), placed(tmp_path / "taken", fresh=True):
        pass
    monkeypatch.setattr(shutil, "copyfile", full)
    with (
        pytest.raises(ManyloraError, match="no space left") as error,
        placed(tmp_path / "out", fresh=True) as work,
    ):
        merge(adapter, tiny_base[1], work)
    assert error.value.error_code == "cannot_write"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "taken"]
