"""One worker process for each GPU of this machine, under one parent.

`manylora worker --device all` runs this. Each child is an ordinary worker of its own device; the
parent passes signals on and waits. What a worker is, is in `main.py`.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)
_DRIVER = Path("/dev")


def devices(folder: Path = _DRIVER) -> list[str]:
    """The GPUs the driver shows, as cuda:0 and on; the CPU where there is none."""
    found = [path.name for path in folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [f"cuda:{index}" for index in range(len(found))] or ["cpu"]


def run(commands: Sequence[Sequence[str]]) -> int:
    """Run the commands side by side until all have ended; the worst exit code.

    SIGTERM and SIGINT go to every child. When one ends by itself the others are told to stop: a
    supervisor above this one then starts all of them again.
    """
    children: list[subprocess.Popen[bytes]] = []

    def tell(number: int, _: Any = None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    handlers = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    codes: list[int] = []
    try:
        children += [subprocess.Popen(list(command)) for command in commands]
        left = list(children)
        while left:
            for child in list(left):
                try:
                    code = child.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    continue
                left.remove(child)
                codes.append(code)
                log.info("worker.child_ended", pid=child.pid, code=code)
                tell(signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return max((abs(code) for code in codes), default=0)
