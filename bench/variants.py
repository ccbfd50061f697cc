"""The variants of LoRA against PEFT's: `python -m bench.variants [--quick]`.

For each base and variant one fresh process (beside.py) that takes both in turn. Rows go to
build/bench/variants.json as they come, and a table to the screen.
"""

from __future__ import annotations

import argparse
import sys

from bench import measure, rows
from bench.measure import OUT, Row
from bench.workload import JOBS

BASES = ("middle", "gemma")
VARIANTS = ("LoRA", "LoRA+", "learnable scaling", "QA-LoRA", "DoRA")
GOALS = {"one_ratio": 1.0, "many_ratio": 0.25}
_HEAD = (
    "| base | variant | PEFT, s a step | 1 job, s | 8 jobs, s | 1 job by PEFT's (goal 1.0) "
    "| a job of 8 by PEFT's (goal 0.25) |\n| --- | --- | --- | --- | --- | --- | --- |\n"
)


def line(row: Row) -> str:
    """A row of the table; a goal that is missed is marked."""
    ratios = [
        f"{row[name]:.2f}" + ("" if row[name] <= goal else " (missed)")
        for name, goal in GOALS.items()
    ]
    seconds = [f"{row[name]:.3f}" for name in ("peft_seconds", "one_seconds", "many_seconds")]
    return "| " + " | ".join([row["base"], row["variant"], *seconds, *ratios]) + " |\n"


def main(argv: list[str]) -> int:
    """Measure, and print the table."""
    asked = argparse.ArgumentParser(prog="python -m bench.variants", description=__doc__)
    asked.add_argument("--quick", action="store_true", help="two rounds of a small part")
    asked.add_argument("--rounds", type=int, default=9, help="steps that are measured")
    asked.add_argument("--threads", type=int, default=0, help="by default all")
    asked.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    asked.add_argument("--variants", default=",".join(VARIANTS))
    asked.add_argument("--bases", default=",".join(BASES))
    given = asked.parse_args(argv)
    out = OUT / "quick" if given.quick else OUT
    found = rows.Rows(out / "variants.json", " ".join(["python -m bench.variants", *argv]))
    bases = ["middle"] if given.quick else given.bases.split(",")
    folder = str(rows.base()) if "gemma" in bases else ""
    sys.stdout.write(_HEAD)
    for base in bases:
        for variant in given.variants.split(","):
            order: Row = {
                "base": base,
                "variant": variant,
                "jobs": JOBS,
                "rounds": 2 if given.quick else given.rounds,
                "folder": folder,
                "threads": given.threads,
                "clock": given.clock,
            }
            row = measure.fresh("bench.beside", order)
            row.pop("folder")
            found.add(row)
            sys.stdout.write(line(row))
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
