"""Adapters side by side on one base in memory: held-out losses, and answers to one prompt."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from lora_core import Examples, Trainer, activate, load_adapter
from worker.bases.card import read
from worker.prepare import tokenizer_of, write_examples
from worker.trainer.load import load_base


@dataclass(frozen=True)
class Comparison:
    """`losses[adapter][dataset]` per label token and `answers[adapter]`; "base" is the bare one."""

    losses: dict[str, dict[str, float]]
    answers: dict[str, str]


def compare(
    base_folder: Path,
    adapters: dict[str, Path],
    heldout: dict[str, Path],
    prompt: str,
    *,
    max_new_tokens: int = 32,
    max_length: int = 1024,
) -> Comparison:
    """Load the base once and every adapter into a slot of it. Raises: LoraError, DatasetError."""
    model = load_base(base_folder, "cpu", None)
    for name, folder in adapters.items():
        load_adapter(model, folder, slot=name)
    trainer = Trainer(model, slots=1)
    coder = tokenizer_of(base_folder, read(base_folder).chat_template)
    datasets: dict[str, Examples] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in heldout.items():
            target = Path(scratch) / f"{len(datasets)}.safetensors"
            write_examples(coder, path, target, max_length)
            datasets[name] = Examples.load(target)
    tokenizer = AutoTokenizer.from_pretrained(base_folder, local_files_only=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    slots: dict[str, str | None] = {"base": None, **{name: name for name in adapters}}
    losses: dict[str, dict[str, float]] = {}
    answers: dict[str, str] = {}
    for name, slot in slots.items():
        losses[name] = {d: trainer.evaluate_slot(slot, e)[0] for d, e in datasets.items()}
        activate(model, slot)
        with torch.no_grad():
            out = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        start = inputs["input_ids"].shape[1]
        answers[name] = tokenizer.decode(out[0, start:], skip_special_tokens=True).strip()
    return Comparison(losses, answers)
