"""A base from a folder or a .gguf file; what is no base, or brings code or pickles, is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from manylora.errors import UsageError
from manylora.storage.store import sha256_of
from tests.conftest import write_tokenizer
from tests.lora_core.models import tiny
from worker.bases import card as cards
from worker.bases import register
from worker.trainer.load import load_base


def prepare(source, cache, name="mine", **options):
    told = []
    made = register.prepare(
        name, str(source), cache, **{"dtype": "float32", "progress": told.append, **options}
    )
    return *made, told


def test_a_folder_becomes_safetensors_and_a_card(tiny_model_folder, tmp_path):
    card, folder, told = prepare(tiny_model_folder, tmp_path)
    assert told
    assert folder == tmp_path / card.fingerprint
    assert list(tmp_path.iterdir()) == [folder]
    assert cards.read(folder) == card
    assert cards.find(tmp_path, "mine") == folder
    assert card.fingerprint == cards.fingerprint("float32", card.files)
    assert card.files == [
        {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
        for p in sorted(folder.iterdir())
        if p.name != cards.CARD
    ]
    assert card.bytes == sum(f["bytes"] for f in card.files)
    assert (card.architecture, card.dtype, card.hidden_size) == ("LlamaForCausalLM", "float32", 32)
    assert card.chat_template is None
    assert "_name_or_path" not in json.loads((folder / "config.json").read_text())
    before, after = tiny("llama"), load_base(folder, "cpu", None)
    assert card.parameters == sum(p.numel() for p in before.parameters())
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name
    # Every layer an adapter sits on by default is listed with its shape; the head is not.
    assert "lm_head" not in card.layers
    assert card.layers["model.layers.0.self_attn.k_proj"] == [32, 16]
    assert card.layers["model.layers.1.mlp.down_proj"] == [48, 32]
    assert len(card.layers) == 14


def test_the_same_files_make_the_same_base_anywhere(tiny_model_folder, tmp_path):
    first, _, _ = prepare(tiny_model_folder, tmp_path / "a")
    second, _, _ = prepare(tiny_model_folder, tmp_path / "b", name="another")
    assert first.fingerprint == second.fingerprint
    again, _, told = prepare(tiny_model_folder, tmp_path / "a")
    assert again.fingerprint == first.fingerprint
    # A folder's files may have changed: it is converted anew each time.
    assert told[0] == "converting to safetensors (once)"
    half, folder, _ = prepare(tiny_model_folder, tmp_path / "a", name="half", dtype="bfloat16")
    assert half.fingerprint != first.fingerprint
    (weights,) = folder.glob("*.safetensors")
    assert {t.dtype for t in load_file(weights).values()} == {torch.bfloat16}


def test_a_chat_template_is_part_of_the_base(tiny_model_folder, tmp_path):
    plain, _, _ = prepare(tiny_model_folder, tmp_path)
    card, folder, _ = prepare(tiny_model_folder, tmp_path, name="talks", chat_template="gemma")
    assert card.chat_template == (folder / "chat_template.jinja").read_text()
    assert "start_of_turn" in card.chat_template
    assert card.fingerprint != plain.fingerprint


def test_a_conv1d_is_listed_from_its_input_to_its_output(tiny_model_folder, tmp_path):
    source = tmp_path / "gpt2"
    tiny("gpt2").save_pretrained(source)
    write_tokenizer(source / "tokenizer.json")
    shutil.copy(tiny_model_folder / "tokenizer_config.json", source)
    card, _, _ = prepare(source, tmp_path / "cache")
    assert card.layers["transformer.h.0.attn.c_attn"] == [32, 96]
    assert card.layers["transformer.h.0.mlp.c_proj"] == [128, 32]


@pytest.fixture
def copy(tiny_model_folder, tmp_path):
    """A copy of the tiny model's folder, to spoil."""
    return shutil.copytree(tiny_model_folder, tmp_path / "copy")


def refused(source, cache, **options):
    with pytest.raises(UsageError) as told:
        prepare(source, cache, **options)
    assert not cache.exists() or list(cache.iterdir()) == []  # nothing half-made
    return f"{told.value.message} {told.value.hint}"


def test_pickled_weights_are_refused(copy, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(copy)
    for path in copy.glob("*.safetensors"):
        path.unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    assert "pickled weights" in refused(copy, tmp_path / "cache")


def test_a_weights_file_that_is_a_pickle_under_another_name_is_refused(copy, tmp_path):
    (weights,) = copy.glob("*.safetensors")
    torch.save({"a": torch.zeros(1)}, weights)
    assert str(copy) in refused(copy, tmp_path / "cache")


def test_code_that_comes_with_a_model_is_not_run(copy, tmp_path):
    ran = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, tmp_path / "cache")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "neither a model's folder nor a .gguf file"),
        ("./no/such/folder", "neither a model's folder nor a .gguf file"),
        ("/no/such/file.gguf", "no file /no/such/file.gguf"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, source, message):
    assert message in refused(source, tmp_path / "cache")


def test_what_is_no_base_is_refused(copy, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    assert "cannot be loaded" in refused(broken, tmp_path / "cache")
    assert "cannot be loaded" in refused(_without(copy, "config.json"), tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    assert "no .safetensors" in refused(tmp_path / "empty", tmp_path / "cache")
    assert "dtype" in refused(copy, tmp_path / "cache", dtype="float16")
    with pytest.raises(UsageError, match="not a built-in recipe") as told:
        register.prepare("nothing", None, tmp_path / "cache", progress=print)
    assert "gemma-3-270m" in told.value.hint


def _without(folder, name):
    (folder / name).unlink()
    return folder


@pytest.mark.gemma
def test_a_gguf_file_becomes_a_base(gemma_base):
    card, folder = gemma_base
    assert (card.architecture, card.dtype) == ("Gemma3ForCausalLM", "bfloat16")
    assert card.source.endswith("gemma.gguf")
    assert card.parameters == 268_098_176
    assert "start_of_turn" in card.chat_template
    assert all(f["name"].endswith((".safetensors", ".json", ".jinja")) for f in card.files)
    model = load_base(folder, "cpu", None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The capital of France is Paris.", return_tensors="pt")
    assert inputs["input_ids"][0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    assert loss < 4  # of one token among 262,144; knowing nothing is 12.5
