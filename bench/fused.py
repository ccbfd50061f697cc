"""This engine: all jobs in one forward and backward of the base.

Run by engine.py in a fresh process. `native: false` does without the native kernels, `compile` with
kernels that are not there yet; `known` takes the costs of memory as known, as a worker's later
starts do. `exact: false` (without them, too) takes every base product over all
rows at once instead of in tiles of a fixed height, by putting another function in the place of
`lora_core.ops.linear.product`: here and nowhere else, to see what exactness costs.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import lora_core.forward
import lora_core.ops.linear
from bench import measure, models, workload
from lora_core import AdapterSpec, Trainer, TrainingJob, memory
from lora_core.segments import TILE, Layout
from worker.trainer.load import kernels_in

#: rows the native head takes at once
_BLOCK = 32


class _Whole:
    """Stands where the engine takes a base product, and takes it over all rows at once."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self.calls += 1
        return x @ weight if bias is None else torch.addmm(bias, x, weight)


class _Counter:
    """Stands where the engine makes its layouts, and counts their rows."""

    def __init__(self, tile: int) -> None:
        self.tile = tile
        self.rows = self.tokens = self.labels = self.label_rows = 0

    def __call__(self, *args: Any, **named: Any) -> Layout:
        made = Layout(*args, **named)
        labels = len(made.labels)
        self.rows += made.rows
        self.tokens += made.tokens
        self.labels += labels
        self.label_rows += -(-labels // self.tile) * self.tile
        return made

    def shares(self) -> measure.Row:
        """Padding's share of the base's rows and of the head's."""
        return {
            "padding": 1 - self.tokens / self.rows,
            "head_padding": 1 - self.labels / self.label_rows,
            "step_rows": self.rows,
        }


def jobs(order: measure.Row) -> list[TrainingJob]:
    """The order's jobs: customer 0, 1, 2 and so on."""
    found = workload.examples(
        Path(order["folder"]), order["jobs"], order["length"], models.VOCABULARY[order["base"]]
    )
    made = []
    for number, examples in enumerate(found):
        made.append(
            TrainingJob(
                f"job{number}",
                AdapterSpec(
                    r=order["rank"],
                    alpha=float(workload.ALPHA),
                    target_modules=workload.TARGETS,
                    seed=number,
                ),
                examples,
                batch_size=order["batch"],
                learning_rate=workload.RATE,
                seed=number,
            )
        )
    return made


def started(order: measure.Row) -> tuple[Trainer, measure.Row]:
    """A trainer that is ready for its first job, and what getting there took."""
    device = order.get("device", "cpu")
    began = time.perf_counter()
    model = models.packed(order["base"], Path(order["folder"]), device)
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        kept = Path(empty) if order.get("compile") else measure.OUT / "kernels"
        kernels = kernels_in(kept, device) if order.get("native", True) else None
    found = time.perf_counter()
    trainer = Trainer(model, slots=order["jobs"], kernels=kernels)
    built = time.perf_counter()
    if order.get("known"):
        trainer.costs_are(memory.Costs(0.0, 0.0, 0.0))  # which ones makes no difference to the time
    elif order.get("calibrate", True):
        trainer.calibrate()
    ready = time.perf_counter()
    return trainer, {
        "load_seconds": loaded - began,
        "kernels_seconds": found - loaded,
        "construct_seconds": built - found,
        "calibrate_seconds": ready - built,
        "cold_seconds": ready - loaded,
        "fused": trainer.fused,
        "ran_native": trainer.native,
    }


def train(order: measure.Row) -> measure.Row:
    """The order's jobs side by side, as measure.rates and more."""
    memory.peak_of = measure.keep_mark(memory.peak_of)
    whole = _Whole()
    trainer, cold = started(order)
    if not order.get("exact", True):
        # Only now: a trainer built on such products sees that they are not exact, and would
        # not fuse.
        mock.patch.object(lora_core.ops.linear, "product", whole).start()
    for job in jobs(order):
        trainer.join(job)
    counter = _Counter(_BLOCK if trainer.native else TILE)
    mock.patch.object(lora_core.forward, "Layout", counter).start()
    before = trainer.passes
    points: list[tuple[int, float]] = []
    loop = partial(_loop, trainer, order.get("steps"), points)
    steps_peak = memory.peak_of(torch.device(order.get("device", "cpu")), loop)
    if not order.get("exact", True) and not whole.calls:
        raise RuntimeError("the engine takes its base products elsewhere: exactness has no price")
    return {
        **cold,
        **measure.rates(points),
        **counter.shares(),
        "seconds_per_job": sum(seconds for _, seconds in points) / order["jobs"],
        "steps_peak_bytes": steps_peak,
        "passes_per_step": (trainer.passes - before) / len(points),
    }


def _loop(trainer: Trainer, most: int | None, points: list[tuple[int, float]]) -> None:
    while most is None or len(points) < most:
        began = time.perf_counter()
        reports = trainer.step()
        if not reports:
            return
        bad = next((report for report in reports if report.error is not None), None)
        if bad is not None:
            raise RuntimeError(f"{bad.job_id}: {bad.error}")
        points.append((sum(r.input_tokens for r in reports), time.perf_counter() - began))


if __name__ == "__main__":
    measure.answer(train(measure.order()))
