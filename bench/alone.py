"""The peer people use: one process per job, transformers' Trainer on a PEFT model.

Run by engine.py in a fresh process, whose whole life is the job's time: imports, loading, training,
saving. The base is bfloat16 and the adapter float32, PEFT's default.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from bench import measure, models, workload


def padded(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows filled up to the longest of their batch."""
    longest = max(len(one["input_ids"]) for one in batch)
    short = [longest - len(one["input_ids"]) for one in batch]
    rows = [one["input_ids"] for one in batch]
    return {
        "input_ids": torch.tensor([r + [0] * n for r, n in zip(rows, short, strict=True)]),
        "labels": torch.tensor([r + [-100] * n for r, n in zip(rows, short, strict=True)]),
        "attention_mask": torch.tensor(
            [[1] * len(r) + [0] * n for r, n in zip(rows, short, strict=True)]
        ),
    }


class _Clock(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.marks:
            self.marks.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())


def train(order: measure.Row) -> measure.Row:
    """One job from the order's customer, as measure.rates."""
    folder = Path(order["folder"])
    found = workload.rows(folder, order.get("customer", 0), order["length"])
    found = found[: order["batch"] * order["steps"]] if order.get("steps") else found
    model = models.plain("gemma", folder, "cpu")
    spec = LoraConfig(
        r=order["rank"],
        lora_alpha=workload.ALPHA,
        target_modules=list(workload.TARGETS),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, spec)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=order["batch"],
            num_train_epochs=1,
            learning_rate=workload.RATE,
            lr_scheduler_type="linear",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=0,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[{"input_ids": ids} for ids in found],
            data_collator=padded,
            callbacks=[clock],
        )
        trainer.train()
        model.save_pretrained(out)
    seconds = [b - a for a, b in zip(clock.marks, clock.marks[1:], strict=False)]
    each = sum(map(len, found)) / len(seconds)  # the order is Trainer's own: the mean per step
    return measure.rates([(round(each), s) for s in seconds])


if __name__ == "__main__":
    measure.answer(train(measure.order()))
