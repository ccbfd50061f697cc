import json

import pytest

from manylora.datasets.templates import BUILT_IN
from manylora.datasets.tokenize import Tokenizer
from tests.conftest import write_tokenizer
from worker.prompts import LONGEST, prompts
from worker.quality import compose, overfitting


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    return Tokenizer(tmp_path / "tokenizer.json", eos="<eos>", chat_template=BUILT_IN["plain"])


def asked(tokenizer, tmp_path, *lines):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return prompts(tokenizer, path)


def test_the_prompt_ends_where_the_answer_begins(tokenizer, tmp_path):
    chat = [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "cat"},
        {"role": "assistant", "content": "dog mat"},
    ]
    found = asked(
        tokenizer,
        tmp_path,
        {"prompt": "a b", "completion": " cat dog"},
        {"messages": chat},
        {"text": "a b c d e f"},
        {"text": "never asked for"},
    )
    assert [(f["line"], f["prompt"], f["expected"]) for f in found[::2]] == [
        (1, "a b", "cat dog"),
        (3, "a b c", "d e f"),
    ]
    assert found[1]["prompt"].endswith("cat : assistant :") or "cat" in found[1]["prompt"]
    assert "dog" not in found[1]["prompt"]
    assert found[1]["expected"].startswith("dog mat")


def test_of_a_long_prompt_the_end_is_kept(tokenizer, tmp_path):
    (found,) = asked(tokenizer, tmp_path, {"prompt": "a " * 400 + "cat", "completion": " dog"})
    assert len(found["ids"]) == LONGEST
    assert found["prompt"].endswith("cat")


def points(*pairs):
    return [
        (step, {"train_loss": train} | ({} if valid is None else {"valid_loss": valid}))
        for step, (train, valid) in enumerate(pairs, start=1)
    ]


def test_over_fitting_by_the_rule():
    rising = points((3.0, None), (2.0, 1.0), (1.5, None), (1.0, 1.1))
    verdict = overfitting(rising)
    assert verdict["flag"]
    assert (verdict["best_step"], verdict["last_step"]) == (2, 4)
    assert not overfitting(points((3.0, 1.2), (2.0, 1.0), (1.0, 1.01)))["flag"]  # within 2 %
    assert not overfitting(points((1.0, 1.0), (2.0, 1.5)))["flag"]  # training got worse, too
    assert not overfitting(points((3.0, 2.0), (2.0, 1.0)))["flag"]
    assert overfitting(points((3.0, 2.0), (2.0, None))) is None


def test_the_report_is_whole_or_says_what_is_not(tokenizer):
    prompt = {"line": 1, "prompt": "a", "expected": "cat", "ids": [1]}
    cat, dog = (tokenizer.encode({"text": word}, 1, 9).input_ids[1] for word in ("cat", "dog"))
    spectrum = {"rank_needed": 2, "share": 0.99, "effective_rank": 1.5, "layers": {}}
    found = {
        "facts": {"spectrum": spectrum, "answers": {"base": [[dog]], "adapter": [[cat]]}},
        "cut": None,
        "seconds": 1.0,
    }
    told = compose(found, [prompt], points((2.0, 1.0), (1.0, 0.9)), 8, tokenizer)
    assert told["samples"] == [
        {"line": 1, "prompt": "a", "expected": "cat", "base": "dog", "adapter": "cat"}
    ]
    assert told["spectrum"]["hint"].startswith("rank 2 would keep 99%")
    assert told["overfitting"]["flag"] is False
    bare = compose({"facts": {}, "cut": "cut short", "seconds": 0.0}, [prompt], [], 8, tokenizer)
    assert bare["cut"] == "cut short"
    assert bare["heldout"] is bare["spectrum"] is bare["overfitting"] is None
    assert bare["samples"][0]["adapter"] is None
