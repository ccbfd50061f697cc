"""What is trained: many customers' few short texts, drawn from `examples/`, always the same.

Each customer has 64 texts of about 31 tokens and trains rank 8 on every linear layer, batch 4, one
epoch: 16 optimizer steps. Lengths keep the spread the examples have; other mean lengths are that
spread stretched, texts put end to end until they are long enough. Every token but the first is a
label: the head, which is most of a small model, has all the work it can have.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import OUT, ROOT

if TYPE_CHECKING:
    from lora_core import Examples

JOBS = 8
EXAMPLES = 64
LENGTH = 31
RANK = 8
ALPHA = 16
BATCH = 4
RATE = 5e-4
#: the seven projections of a decoder's layer
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BASE = "gemma-3-270m"
BASES = OUT / "bases"
_SHORTEST = 8


def base() -> Path:
    """The folder of Gemma 3 270M in the bench's own cache; converted at the first call."""
    from worker.bases.register import prepare

    return prepare(BASE, None, BASES, progress=lambda _: None)[1]


@cache
def _pool(folder: Path) -> list[list[int]]:
    """Ids of every training line of the examples, its end-of-text left out."""
    from worker.bases.card import read
    from worker.prepare import tokenizer_of

    coder = tokenizer_of(folder, read(folder).chat_template)
    lines = [
        json.loads(line)
        for path in sorted((ROOT / "examples").glob("*/train.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [
        coder.encode({"text": each["prompt"] + each["completion"]}, 1, 4096).input_ids[:-1]
        for each in lines
    ]


def rows(folder: Path, customer: int, length: int = LENGTH, vocabulary: int = 0) -> list[list[int]]:
    """A customer's ids, `length` of them on average; `vocabulary` wraps them for another base."""
    pool = _pool(folder)
    mean = sum(map(len, pool)) / len(pool)
    draw = random.Random(customer)
    found = []
    for _ in range(EXAMPLES):
        ids = list(draw.choice(pool))
        wanted = max(_SHORTEST, round(len(ids) * length / mean))
        while len(ids) < wanted:
            ids += draw.choice(pool)[1:]
        ids = ids[:wanted]
        found.append([i % vocabulary for i in ids] if vocabulary else ids)
    return found


def texts(folder: Path, customer: int, length: int = LENGTH) -> list[str]:
    """A customer's rows as text, for the service, which tokenises by itself."""
    from tokenizers import Tokenizer

    coder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [coder.decode(ids) for ids in rows(folder, customer, length)]


def examples(folder: Path, customers: int, length: int, vocabulary: int) -> list[Examples]:
    """The rows of the first customers as the worker's trainer gets them: read from files that
    another process wrote, for no trainer ever holds a tokenizer."""
    from lora_core import Examples

    kept = OUT / "examples"
    paths = [kept / f"{length}-{vocabulary}-{n}.safetensors" for n in range(customers)]
    if not all(path.is_file() for path in paths):
        order = json.dumps([str(folder), customers, length, vocabulary])
        subprocess.run([sys.executable, "-m", "bench.workload", order], cwd=ROOT, check=True)
    return [Examples.load(path) for path in paths]


def _write_examples(folder: Path, customers: int, length: int, vocabulary: int) -> None:
    from lora_core import Examples

    kept = OUT / "examples"
    kept.mkdir(parents=True, exist_ok=True)
    for number in range(customers):
        found = rows(folder, number, length, vocabulary)
        path = kept / f"{length}-{vocabulary}-{number}.safetensors"
        Examples.of([(ids, [True] * len(ids)) for ids in found]).save(path)


def batches(found: list[list[int]], batch: int) -> list[list[list[int]]]:
    """A customer's rows, batch by batch, for the peers."""
    return [found[i : i + batch] for i in range(0, len(found), batch)]


if __name__ == "__main__":
    asked, *numbers = json.loads(sys.argv[1])
    _write_examples(Path(asked), *numbers)
