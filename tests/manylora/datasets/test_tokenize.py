"""Which tokens are labels: the labelled ones are decoded and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from manylora.datasets.templates import BUILT_IN
from manylora.datasets.tokenize import Tokenised, Tokenizer, Totals, encode_file
from manylora.errors import DatasetError, UsageError

SPECIAL = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer: one token a byte, but "ab" and two newlines are one token each."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*letters, "ab", "ĊĊ"])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_special_tokens(SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.token_to_id("<bos>"))]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


class Bench:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = tokenizers.Tokenizer.from_file(str(path))
        self.raw.decoder = tokenizers.decoders.ByteLevel()

    def make(self, template: str | None = None) -> Tokenizer:
        return Tokenizer(self.path, eos="<eos>", chat_template=template)

    def text(self, one: Tokenised) -> str:
        return str(self.raw.decode(one.input_ids, skip_special_tokens=False))

    def labels(self, one: Tokenised) -> str:
        assert len(one.mask) == len(one.input_ids)
        assert not one.mask[0]
        ids = [i for i, m in zip(one.input_ids, one.mask, strict=True) if m]
        return str(self.raw.decode(ids, skip_special_tokens=False))


@pytest.fixture
def bench(tokenizer_file: Path) -> Bench:
    return Bench(tokenizer_file)


def talk(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} for r, c in turns], **more}


TALK = talk(("system", "S"), ("user", "hi"), ("assistant", "model"), ("user", "x"),
            ("assistant", "ok\n\n"))  # fmt: skip


@pytest.mark.parametrize(
    ("example", "template", "labels"),
    [
        ({"text": "hello"}, None, "hello<eos>"),
        ({"text": "hello<eos>"}, None, "hello<eos>"),
        ({"prompt": "Q: é", "completion": " ü!"}, None, " ü!<eos>"),
        ({"prompt": "", "completion": "b"}, None, "b<eos>"),
        ({"prompt": "xa", "completion": "bc"}, None, "abc<eos>"),  # "ab" straddles the border
        (TALK, None, "model\nok\n\n\n<eos>"),
        (TALK, "gemma", "model<end_of_turn>ok\n\n<end_of_turn><eos>"),
        (TALK, "chatml", "model<|im_end|>ok\n\n<|im_end|><eos>"),
        (talk(("user", "u"), ("assistant", "a")), "chatml", "a<|im_end|><eos>"),
        (talk(("assistant", "a"), ("user", "u")), "gemma", "a<end_of_turn><eos>"),
    ],
)
def test_labelled_text(
    bench: Bench, example: dict[str, Any], template: str | None, labels: str
) -> None:
    one = bench.make(BUILT_IN[template] if template else None).encode(example, 1, 1000)
    assert bench.labels(one) == labels
    assert bench.text(one).startswith("<bos>")
    assert bench.text(one).endswith("<eos>")
    assert not one.truncated


def test_weight_zero_is_read_and_not_learnt(bench: Bench) -> None:
    example = talk(("user", "u"), ("assistant", "no"), ("user", "v"), ("assistant", "yes"))
    example["messages"][1]["weight"] = 0
    one = bench.make(BUILT_IN["gemma"]).encode(example, 1, 1000)
    assert bench.labels(one) == "yes<end_of_turn><eos>"


def test_tool_calls_without_content_are_learnt(bench: Bench) -> None:
    example = talk(("user", "u"))
    example["messages"].append({"role": "assistant", "content": None, "tool_calls": [1]})
    one = bench.make(BUILT_IN["chatml"]).encode(example, 1, 1000)
    assert bench.labels(one) == "[1]<|im_end|><eos>"


def test_parts_are_joined(bench: Bench) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "c"}]
    one = bench.make().encode({"messages": [{"role": "assistant", "content": parts}]}, 1, 99)
    assert bench.labels(one) == "ac\n<eos>"


def test_tokens_are_those_of_the_whole_text_and_bos_comes_once(bench: Bench) -> None:
    eos = bench.raw.token_to_id("<eos>")
    one = bench.make().encode({"prompt": "xa", "completion": "bc"}, 1, 99)
    assert one.input_ids == [*bench.raw.encode("xabc").ids, eos]
    one = bench.make("{{ bos_token }}<bos>{{ messages[0].content }}").encode(
        talk(("assistant", "a")), 1, 99
    )
    assert bench.text(one) == "<bos>a<eos>"


def test_truncation_cuts_the_end(bench: Bench) -> None:
    one = bench.make().encode({"prompt": "xx", "completion": "cdef"}, 1, 5)
    assert bench.text(one) == "<bos>xxcd"
    assert bench.labels(one) == "cd"
    assert one.truncated


def test_nothing_left_is_refused_with_its_line(bench: Bench) -> None:
    with pytest.raises(DatasetError, match="line 7: nothing to learn from is left within 3"):
        bench.make().encode({"prompt": "xx", "completion": "c"}, 7, 3)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "rewrites"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_templates_that_cannot_be_masked(bench: Bench, template: str, told: str) -> None:
    with pytest.raises(DatasetError, match=f"line 3: .*{told}"):
        bench.make(template).encode(TALK, 3, 99)


def test_eos_by_id_and_an_unknown_one(tokenizer_file: Path) -> None:
    assert Tokenizer(tokenizer_file, eos=3, chat_template=None).eos == 3
    with pytest.raises(UsageError, match="no end-of-text token"):
        Tokenizer(tokenizer_file, eos="<nope>", chat_template=None)


def test_a_file_and_its_totals(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": "x", "completion": "c" * n} for n in (1, 2, 9)]
    text = "\ufeff" + "".join(json.dumps(r) + "\r\n" for r in rows) + "\n"
    path.write_text(text, encoding="utf-8")
    totals = Totals()
    found = list(encode_file(path, bench.make(), 6, totals))
    assert [one.line for one in found] == [1, 2, 3]
    assert totals == Totals(examples=3, tokens=4 + 5 + 6, label_tokens=2 + 3 + 4, truncated=[3])


def test_a_file_that_was_not_validated(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n[1]\n', encoding="utf-8")
    with pytest.raises(DatasetError, match="line 2: "):
        list(encode_file(path, bench.make(), 6))
