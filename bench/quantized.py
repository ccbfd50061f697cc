"""A base in four bits, here and with bitsandbytes: `python -m bench.quantized [--rounds N]`.

Gemma 3 270M in NF4 with double quantisation; one customer's job, a few steps of it, each in a fresh
process. This engine loads the base as the worker does; the peer is PEFT on transformers' own
loading of four bits (bitsandbytes' CPU kernels), which reads the whole base and quantises it as it
reads, or reads what it saved quantised. Compared is the most a process ever held, from its start
over imports and loading to its last step: the ratio of one round. Rows go to
build/bench/quantized.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from bench import rows, workload
from bench.engine import Variant, measured
from bench.measure import OUT, ROOT, Row

NAME = "gemma-3-270m-nf4"
#: the peer's own folder of quantised weights
PEERS = OUT / "bitsandbytes-nf4"
_STEPS = 3


def _order(folder: Path, **more: object) -> Row:
    common = {"base": "gemma", "length": workload.LENGTH, "rank": workload.RANK}
    order = {**common, "batch": workload.BATCH, "jobs": 1, "steps": _STEPS, "part": "quantized"}
    size = sum(path.stat().st_size for path in folder.glob("model*"))
    return {**order, "at": str(folder), "base_bytes": size, **more}


def plan(plain: Path, few: Path, rounds: int) -> list[Variant]:
    """Both engines on both bases. What is saved quantised, `four_bits` has no need to ask for."""

    def ours(folder: Path, **more: object) -> Variant:
        order = _order(folder, calibrate=False, **more)
        return Variant("ours", "bench.fused", order, rounds)

    def peer(folder: Path, **more: object) -> Variant:
        order = _order(folder, adapter_dtype="float32", trained=1, **more)
        return Variant("set_adapter", "bench.swapped", order, rounds)

    return [
        ours(few, bits="nf4"),
        peer(plain, bits="nf4", four_bits=True),
        peer(PEERS, bits="nf4", saved=True),
        ours(few, bits="nf4", native=False),
        ours(plain, bits="bf16"),
        peer(plain, bits="bf16"),
        ours(few, bits="nf4", jobs=workload.JOBS),
        ours(plain, bits="bf16", jobs=workload.JOBS),
    ]


def base() -> Path:
    """The folder of the base in NF4; made at the first call, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.quantized", "--prepare"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return Path(done.stdout.decode().splitlines()[-1])


def _prepare() -> Path:
    from bench import models
    from worker.bases.register import prepare

    folder = prepare(NAME, workload.BASE, workload.BASES, quantize="nf4", progress=lambda _: None)[
        1
    ]
    if not (PEERS / "config.json").is_file():
        plain = workload.base()
        model = models.plain("gemma", plain, "cpu", four_bits=True)
        model.save_pretrained(PEERS)
        for name in ("tokenizer.json", "tokenizer_config.json", "base.json"):
            (PEERS / name).write_bytes((plain / name).read_bytes())
    return folder


def main(argv: list[str]) -> int:
    """Measure; the table is report.py's."""
    asked = argparse.ArgumentParser(prog="python -m bench.quantized", description=__doc__)
    asked.add_argument("--quick", action="store_true", help="a smoke test: build/bench/quick")
    asked.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    asked.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    given = asked.parse_args(argv)
    if given.prepare:
        sys.stdout.write(f"\n{_prepare()}\n")
        return 0
    out = OUT / "quick" if given.quick else OUT
    variants = plan(rows.base(), base(), 1 if given.quick else given.rounds)
    variants = variants[:2] if given.quick else variants
    command = " ".join(["python -m bench.quantized", *argv])
    taken = measured(variants, None, out / "quantized.json", command)
    first = [row["peak_bytes"] for row in taken if row["what"] == "ours" and row["bits"] == "nf4"]
    peers = [row["peak_bytes"] for row in taken if row.get("four_bits")]
    sys.stdout.write(f"peak, ours by bitsandbytes: {first[0] / peers[0]:.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
