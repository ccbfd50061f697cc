"""Predicted against measured peak memory: `python -m bench.memory [--quick]`.

Each point of the grid in a fresh process: the trainer is built and calibrated, jobs join, and for
two steps `Trainer.predicted_peak` stands against the kernel's mark while the step runs. Over all
of the process, not only what the step adds. Rows go to build/bench/memory.json. A prediction below
what is measured lets a job in that does not fit; one far above keeps out a job that would.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product

from bench import measure, rows
from bench.measure import OUT, Row

LENGTHS = (16, 64, 256, 1024)
JOBS = (1, 8)
BATCHES = (1, 4, 16)
RANKS = (8, 64)
#: what is allowed: never under what is measured, at most a quarter over it
LEAST, MOST = 1.0, 1.25
_STEPS = 2
_MOST_TOKENS = 16384


def grid() -> list[Row]:
    """Every length, number of jobs and batch at a small rank, and a large rank at one batch; no
    step is longer than a step of the rest of the bench."""
    return [
        {"length": length, "jobs": jobs, "batch": batch, "rank": rank}
        for length, jobs, batch, rank in product(LENGTHS, JOBS, BATCHES, RANKS)
        if length * jobs * batch <= _MOST_TOKENS and (rank == RANKS[0] or batch == BATCHES[1])
    ]


def point(order: Row) -> Row:
    """One point: `steps` of (predicted, measured) bytes."""
    import torch

    from bench.fused import jobs, started
    from lora_core.memory import peak_of

    trainer, cold = started(order)
    for job in jobs(order):
        trainer.join(job)
    pairs = []
    for _ in range(_STEPS):
        predicted = trainer.predicted_peak()
        measured = peak_of(torch.device("cpu"), trainer.step)
        if predicted is None or measured is None:
            raise RuntimeError("this system tells no peak")
        pairs.append((predicted, measured))
    ratios = [predicted / measured for predicted, measured in pairs]
    return {
        **cold,
        "steps": pairs,
        "least_ratio": min(ratios),
        "most_ratio": max(ratios),
        "halvings": trainer.budget.halvings,
    }


def main(argv: list[str]) -> int:
    """Take every point, and say which are out of what is allowed."""
    asked = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    asked.add_argument("--quick", action="store_true", help="one point: build/bench/quick")
    given = asked.parse_args(argv)
    out = OUT / "quick" if given.quick else OUT
    points = [{"length": 64, "jobs": 2, "batch": 4, "rank": 8}] if given.quick else grid()
    folder = rows.base()
    found = rows.Rows(out / "memory.json", " ".join(["python -m bench.memory", *argv]))
    for each in points:
        row = measure.fresh("bench.memory", {"base": "gemma", "folder": str(folder), **each})
        row.pop("folder")
        found.add({"what": "memory", **row})
        sys.stdout.write(f"{told(row)}\n")
        sys.stdout.flush()
    return 0


def flag(row: Row) -> str:
    """What is wrong with a point; empty when nothing is."""
    if row["least_ratio"] < LEAST:
        return "under"
    return "over" if row["most_ratio"] > MOST else ""


def told(row: Row) -> str:
    """A point in a line."""
    predicted, measured = max(row["steps"], key=lambda pair: pair[1])
    where = ", ".join(f"{key} {row[key]}" for key in ("length", "jobs", "batch", "rank"))
    return (
        f"{where}: predicted {predicted / 2**30:.2f}, measured {measured / 2**30:.2f} GiB, "
        f"ratio {row['least_ratio']:.2f} to {row['most_ratio']:.2f} {flag(row)}"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        measure.answer(point(measure.order()))
    else:
        sys.exit(main(sys.argv[1:]))
