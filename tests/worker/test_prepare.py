"""From a dataset in the store to the examples the trainer reads."""

import json
import uuid

import pytest

from lora_core import Examples
from manylora.errors import BadSpecError, DatasetError
from worker import prepare


def test_a_file_is_fetched_by_its_digest(service, tmp_path):
    tenant, _ = service.tenant(f"t-{uuid.uuid4().hex[:8]}")
    file = service.upload(tenant, [{"text": "a b c"}])
    prepare.fetch_dataset(service.store, file, tmp_path / "train.jsonl")
    assert (tmp_path / "train.jsonl").read_text() == '{"text": "a b c"}\n'
    file.sha256 = "0" * 64
    with pytest.raises(DatasetError, match="no longer in the store") as gone:
        prepare.fetch_dataset(service.store, file, tmp_path / "other.jsonl")
    assert gone.value.error_code == "file_gone"
    (key,) = service.store.list(f"t/{tenant.id}/files/")
    service.store.put_bytes(key, b"forged")
    file.sha256 = key.rsplit("/", 1)[1]
    with pytest.raises(DatasetError, match="not what was uploaded"):
        prepare.fetch_dataset(service.store, file, tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


def test_examples_are_written_as_the_trainer_reads_them(tiny_base, tmp_path):
    tokenizer = prepare.tokenizer_of(tiny_base[1], None)
    source, target = tmp_path / "train.jsonl", tmp_path / "train.safetensors"
    lines = [{"text": "a b"}, {"prompt": "a b", "completion": " c"}]
    for line, length, labels in zip(lines, (4, 5), (3, 2), strict=True):
        source.write_text(json.dumps(line) + "\n")
        assert prepare.write_examples(tokenizer, source, target, 100) == 1
        (example,) = [Examples.load(target)[0]]
        ids, mask = (list(map(int, part)) for part in example)
        assert (ids[0], ids[-1]) == (1, 2)  # <bos> by the tokenizer, <eos> by us
        assert len(ids) == length
        # The first token follows nothing: it is in no loss, whatever its mask says.
        assert sum(mask[1:]) == labels


def test_a_bad_line_is_refused(tiny_base, tmp_path):
    (tmp_path / "bad.jsonl").write_text("not json\n")
    with pytest.raises(DatasetError):
        prepare.write_examples(
            prepare.tokenizer_of(tiny_base[1], None), tmp_path / "bad.jsonl", tmp_path / "x", 100
        )


@pytest.mark.parametrize(
    ("named", "config"),
    [
        ({"eos_token": "<eos>"}, {}),
        ({"eos_token": {"content": "<eos>"}}, {}),
        (None, {"eos_token_id": 2}),
        ({}, {"eos_token_id": [2, 3]}),
    ],
)
def test_the_end_of_text_is_found_wherever_it_is_named(tiny_base, tmp_path, named, config):
    (tmp_path / "tokenizer.json").write_bytes((tiny_base[1] / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    if named is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    source, target = tmp_path / "train.jsonl", tmp_path / "train.safetensors"
    source.write_text('{"text": "a"}\n')
    prepare.write_examples(prepare.tokenizer_of(tmp_path, None), source, target, 100)
    assert int(Examples.load(target)[0][0][-1]) == 2


def test_a_base_without_an_end_of_text_is_refused(tiny_base, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((tiny_base[1] / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadSpecError):
        prepare.tokenizer_of(tmp_path, None)
