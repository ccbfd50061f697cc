"""What can be checked on a GPU: `make check-cuda`, or `python -m bench.cuda`.

On a CPU a job's bytes are its own. On CUDA one call takes all rows of a product, so its sums may
be ordered otherwise beside other neighbours; promised is a tolerance, checked here the way
tests/lora_core/test_neighbours.py checks the bits: random jobs join and leave a crowd, and each
adapter is compared with the one the job gets alone. Then the engine's bench runs on the GPU. Where
there is no CUDA device it says so and ends well.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

import torch

from bench import engine, rows, tables
from bench.measure import OUT
from lora_core import Trainer, TrainingJob
from tests.lora_core.models import KINDS, tiny
from tests.lora_core.test_neighbours import drawn_job

#: The norm of the difference, by the norm of the adapter a job gets alone; per dtype of the base.
#: Noise of 1e-6 in every base product, put in on a CPU, comes to 5e-6 and 1e-2 on these models.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
SCHEDULES = 5
_SLOTS = 4


def weights(trainer: Trainer, job_id: str) -> torch.Tensor:
    """All trained numbers of a job, end to end."""
    held = trainer.state(job_id).tensors
    return torch.cat([held[name].flatten() for name in sorted(held) if name.endswith(".w")])


def alone(trainer: Trainer, job: TrainingJob) -> torch.Tensor:
    """What a job comes to with nobody beside it."""
    trainer.join(job)
    while not trainer.step()[0].finished:
        pass
    found = weights(trainer, job.job_id)
    trainer.leave(job.job_id)
    return found


def crowded(trainer: Trainer, jobs: list[TrainingJob], draw: random.Random) -> dict[str, Any]:
    """What jobs come to among each other, joining whenever a slot is free, or a little later."""
    waiting, found, busy = list(jobs), {}, 0
    while waiting or busy:
        while waiting and busy < trainer.slots and draw.random() < 0.8:
            trainer.join(waiting.pop())
            busy += 1
        for report in trainer.step():
            if report.finished:
                found[report.job_id] = weights(trainer, report.job_id)
                trainer.leave(report.job_id)
                busy -= 1
    return found


def worst(kind: str, dtype: torch.dtype, device: str, schedules: int = SCHEDULES) -> float:
    """The largest relative difference over random schedules on one tiny model."""
    crowd = Trainer(tiny(kind, dtype).to(device), slots=_SLOTS)
    solo = Trainer(tiny(kind, dtype).to(device), slots=1)
    if not crowd.fused:
        raise SystemExit(f"{kind} in {dtype} is not fused on {device}")
    most = 0.0
    for seed in range(schedules):
        draw = random.Random(seed)
        jobs: list[TrainingJob] = [
            drawn_job(draw, f"j{number}", kind)  # type: ignore[no-untyped-call]
            for number in range(6)
        ]
        among = crowded(crowd, jobs, draw)
        for job in jobs:
            own = alone(solo, job)
            most = max(most, float((among[job.job_id] - own).norm() / own.norm()))
    return most


def neighbours(device: str, schedules: int = SCHEDULES) -> bool:
    """Every tiny model in both dtypes; whether all stay within the tolerance."""
    good = True
    for dtype, allowed in TOLERANCE.items():
        for kind in KINDS:
            found = worst(kind, dtype, device, schedules)
            good &= found <= allowed
            verdict = "within" if found <= allowed else "NOT within"
            name = str(dtype).removeprefix("torch.")
            sys.stdout.write(f"{kind} {name}: {found:.1e}, {verdict} {allowed:g}\n")
    return good


def main(argv: list[str]) -> int:
    """Check and measure on the GPU, where there is one."""
    argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__).parse_args(argv)
    if not torch.cuda.is_available():
        sys.stdout.write("no CUDA device here: nothing to check\n")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    good = neighbours("cuda")
    engine.main(["--device", "cuda"])
    held = rows.read(OUT / "cuda.json")["rows"]
    sys.stdout.write(f"{tables.workload(held)}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
