"""One measurement, one fresh process: start it, take its row, read its peak memory.

The asking side calls `fresh(module, order)`; the module reads `order()` and ends with
`answer(row)`, which prints the row as the last line of its stdout. Nothing here imports torch, so
the asking process stays small and its own memory is in nobody's figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "bench"
Row = dict[str, Any]
#: what runs as a trainer child does
_OURS = ("bench.fused", "bench.memory", "bench.beside", "bench.swap")
_STATUS = Path("/proc/self/status")
_seen = 0


class FailedError(RuntimeError):
    """A measurement that ended badly; its log says why."""


def fresh(module: str, order: Row, *, logs: Path = OUT / "logs") -> Row:
    """Run `python -m module` on an order in a process of its own; its row, with the order and
    `wall_seconds` from start to exit. This engine gets the variables that the worker gives its
    trainer. Raises: FailedError."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{module.rpartition('.')[2]}.log"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if module in _OURS:
        from worker.trainer.link import CHILD_ENV

        env |= CHILD_ENV
    with log.open("wb") as talk:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", module, json.dumps(order)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=talk,
            check=False,
        )
        wall = time.perf_counter() - began
    if done.returncode != 0:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise FailedError(f"{module} {order} ended with {done.returncode}:\n{end}")
    row: Row = json.loads(done.stdout.decode().splitlines()[-1])
    return {**order, **row, "wall_seconds": wall}


def order() -> Row:
    """What this process was asked for."""
    asked: Row = json.loads(sys.argv[1])
    return asked


def answer(row: Row) -> None:
    """Print the row, with the most this process ever held."""
    sys.stdout.write("\n" + json.dumps({**row, "peak_bytes": high_water()}) + "\n")


def high_water() -> int:
    """Bytes this process held at most: the kernel's mark, or the highest of those that
    `keep_mark` saved from a reset."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return max(_seen, int(line.split()[1]) * 1024)
    raise OSError(f"{_STATUS} says nothing of VmHWM")


def keep_mark(before: Callable[..., Any]) -> Callable[..., Any]:
    """A function that resets the kernel's mark, made to save it first."""

    def saved(*args: Any, **named: Any) -> Any:
        global _seen
        _seen = high_water()
        return before(*args, **named)

    return saved


def rates(points: list[tuple[int, float]], warm_up: int = 2) -> Row:
    """(tokens, seconds) per step to tokens per second: of all steps, and steady (without the
    first `warm_up`; None where no step is left)."""
    tokens, seconds = (sum(each) for each in zip(*points, strict=True))
    late = points[warm_up:]
    steady = sum(t for t, _ in late) / sum(s for _, s in late) if late else None
    return {
        "steps_taken": len(points),
        "tokens": tokens,
        "loop_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "steady_tokens_per_second": steady,
    }
