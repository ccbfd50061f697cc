"""Raw rows on disk: written after every measurement, with the machine they come from.

A file is {"command", "started", "machine", "rows"}. `python -m bench.rows` prints the machine and
prepares the base, in a process of its own, so that whoever asks stays without torch.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measure import ROOT, Row

_FLAGS = ("amx_tile", "amx_bf16", "avx512f", "avx512_bf16", "avx512_fp16", "avx2")


class Rows:
    """The rows of one call, kept in a file."""

    def __init__(self, file: Path, command: str) -> None:
        self.file = file
        self.taken: list[Row] = []
        now = dt.datetime.now(dt.UTC)
        self._head = {
            "command": command,
            "started": now.strftime("%Y-%m-%d %H:%M UTC"),
            "machine": _facts()["machine"],
        }
        file.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row) -> None:
        """Keep a row; the file is whole at any time."""
        self.taken.append(row)
        text = json.dumps({**self._head, "rows": self.taken}, indent=1)
        part = self.file.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(self.file)


def read(file: Path) -> dict[str, Any]:
    """A file of rows; without rows where there is none."""
    if not file.is_file():
        return {"rows": []}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def base() -> Path:
    """The folder of the converted base. The first time takes about a minute."""
    return Path(_facts()["base"])


def machine() -> Row:
    """What the figures depend on besides the code."""
    import torch
    import transformers

    cpu = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    facts = dict(line.split(":", 1) for line in cpu.split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    memory = Path("/proc/meminfo").read_text(encoding="ascii").split()[1]
    found: Row = {
        "cpu": facts.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_bytes": int(memory) * 1024,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "environment": {k: v for k, v in sorted(os.environ.items()) if _sets_speed(k)},
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _sets_speed(name: str) -> bool:
    return name.startswith(("OMP_", "KMP_", "MKL_", "MALLOC_", "ONEDNN_")) or name == "LD_PRELOAD"


def _facts() -> dict[str, Any]:
    global _told
    if _told is None:
        done = subprocess.run(
            [sys.executable, "-m", "bench.rows"], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        _told = json.loads(done.stdout.decode().splitlines()[-1])
    return _told


_told: dict[str, Any] | None = None


if __name__ == "__main__":
    from bench import workload

    told = {"machine": machine(), "base": str(workload.base())}
    sys.stdout.write("\n" + json.dumps(told) + "\n")
