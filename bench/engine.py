"""The engine against its peers and against the floor: `python -m bench.engine [--quick]`.

Every variant in a fresh process, all of them in turn, round after round (every other round
backwards), so that whatever the machine does besides hits all alike. Rows go to
build/bench/engine.json as they come; report.py makes tables of them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from bench import measure, rows
from bench.measure import OUT, Row
from bench.workload import BATCH, JOBS, LENGTH, RANK

MANY = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 32, 64, 128, 256, 512)
RANKS = (4, 8, 16, 32, 64)
PARTS = ("jobs", "cold", "warm", "length", "rank", "llama")


@dataclass(frozen=True)
class Variant:
    """One line of the plan: which module measures, what it is asked, in how many rounds."""

    what: str
    module: str
    order: Row
    rounds: int


def _order(**changes: object) -> Row:
    return {"base": "gemma", "length": LENGTH, "rank": RANK, "batch": BATCH, **changes}


def _ours(rounds: int, part: str = "jobs", **changes: object) -> Variant:
    order = _order(**{"jobs": JOBS, "part": part, **changes})
    return Variant("ours", "bench.fused", order, rounds)


def _swapped(rounds: int, part: str = "jobs", **changes: object) -> Variant:
    order = _order(**{"jobs": JOBS, "trained": 2, "part": part, **changes})
    return Variant("set_adapter", "bench.swapped", order, rounds)


def _floor(rounds: int, jobs: tuple[int, ...], part: str = "jobs", **changes: object) -> Variant:
    order = _order(**{"jobs": list(jobs), "times": 7, "part": part, **changes})
    return Variant("floor", "bench.floor", order, rounds)


def plan(rounds: int) -> list[Variant]:
    """The whole bench on a CPU: the workload with 1 to 32 jobs, then how it grows."""
    alone = Variant("trainer_peft", "bench.alone", _order(jobs=1, part="jobs"), rounds)
    variants = [alone, *(_swapped(rounds, adapter_dtype=d) for d in ("float32", "bfloat16"))]
    variants += [_ours(rounds, jobs=jobs) for jobs in MANY]
    variants += [_ours(rounds, native=False), _ours(rounds, native=False, exact=False)]
    variants += [
        _floor(rounds, MANY),
        _ours(rounds, "cold", compile=True, steps=1),
        _ours(rounds, "warm", known=True, steps=1),
    ]
    for length in LENGTHS:
        steps = max(3, min(16, 10240 // (JOBS * BATCH * length)))
        peer = max(4, min(16, 2560 // (BATCH * length)))
        variants += [
            _ours(1, "length", length=length, steps=steps),
            _swapped(1, "length", length=length, steps=peer, trained=1),
            _floor(1, (JOBS,), "length", length=length, times=3),
        ]
    for rank in RANKS:
        variants += [
            _ours(1, "rank", rank=rank, steps=6),
            _swapped(1, "rank", rank=rank, steps=10, trained=1),
        ]
    variants += [
        _ours(rounds, "llama", base="llama"),
        _floor(rounds, (JOBS,), "llama", base="llama"),
    ]
    variants += [
        _swapped(rounds, "llama", base="llama", adapter_dtype=dtype, trained=1)
        for dtype in ("float32", "bfloat16")
    ]
    return variants


def smoke() -> list[Variant]:
    """One of each, a few steps long: shows that it works, and measures nothing."""
    return [
        Variant("trainer_peft", "bench.alone", _order(jobs=1, part="jobs", steps=2), 1),
        _swapped(1, steps=3, trained=1, adapter_dtype="float32"),
        _ours(1, jobs=2, steps=3, calibrate=False),
        _ours(1, jobs=2, steps=3, calibrate=False, native=False, exact=False),
        _ours(1, "cold", jobs=2, steps=1, compile=True),
        _floor(1, (2,), times=1),
    ]


def cuda() -> list[Variant]:
    """What is asked of a GPU."""
    return [
        *(_ours(1, jobs=jobs, device="cuda") for jobs in (1, 8, 32)),
        _swapped(1, device="cuda", adapter_dtype="float32"),
        _swapped(1, device="cuda", adapter_dtype="bfloat16"),
        _floor(1, (1, 8, 32), device="cuda"),
    ]


def measured(variants: list[Variant], folder: Path | None, file: Path, command: str) -> list[Row]:
    """Take every variant in each of its rounds, on the base in `folder` or `at` the one its order
    names; rows as they are in the file."""
    found = rows.Rows(file, command)
    for number in range(max(variant.rounds for variant in variants)):
        turn = [variant for variant in variants if number < variant.rounds]
        for variant in turn if number % 2 == 0 else reversed(turn):
            order = dict(variant.order)
            order["folder"] = order.pop("at", str(folder))
            row = measure.fresh(variant.module, order)
            row.pop("folder")
            found.add({"what": variant.what, "round": number, **row})
            sys.stdout.write(_line(variant, number, row))
            sys.stdout.flush()
    return found.taken


def _line(variant: Variant, number: int, row: Row) -> str:
    told = ", ".join(
        f"{key} {row[key]}"
        for key in ("base", "jobs", "length", "rank", "native", "exact", "bits", "adapter_dtype")
        if key in row
    )
    rate = row.get("steady_tokens_per_second") or row.get("tokens_per_second")
    shown = f"{rate:8.1f} tokens/s" if rate else " " * 17
    memory = f"{row['peak_bytes'] / 2**30:5.2f} GiB"
    return f"[{number}] {variant.what:12} {shown} {memory} {row['wall_seconds']:6.1f} s  {told}\n"


def main(argv: list[str]) -> int:
    """Measure; the tables are report.py's."""
    asked = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    asked.add_argument("--quick", action="store_true", help="a smoke test: build/bench/quick")
    asked.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    asked.add_argument("--parts", default=",".join(PARTS), help="of the plan, with commas between")
    given = asked.parse_args(argv)
    out = OUT / "quick" if given.quick else OUT
    name = "engine.json" if given.device == "cpu" else "cuda.json"
    parts = given.parts.split(",")
    variants = smoke() if given.quick else plan(given.rounds)
    variants = [variant for variant in variants if variant.order["part"] in parts]
    if given.device == "cuda":
        variants = cuda()
    folder = rows.base()
    measured(variants, folder, out / name, " ".join(["python -m bench.engine", *argv]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
