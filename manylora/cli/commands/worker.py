"""`manylora worker`: a worker as a process of its own. Needs the `worker` extra."""

from __future__ import annotations

import re
import sys

import click

from manylora.cli import context
from manylora.cli.flags import command


def _device(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|all|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is not auto, all, cpu, cuda or cuda:N")
    return value


@command()
@click.option("--base", help="The base to train on; without it the scheduler assigns one.")
@click.option(
    "--slots", type=click.IntRange(1, 256), default=8, show_default=True, help="Jobs at once."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    callback=_device,
    help="auto, cpu, cuda:N, or all: one worker for each GPU.",
)
def worker(base: str | None, slots: int, device: str) -> None:
    """Run a worker until it is told to stop.

    \b
    Examples:
    $ manylora worker --base gemma-3-270m
    $ manylora worker --base gemma-3-270m --slots 32 --device cuda:0
    $ manylora worker --device all
    """
    if device == "all":
        devices = context.load("worker.every_device:devices", extra="worker")()
        started = [sys.executable, "-m", "manylora.cli.main", "worker", "--slots", str(slots)]
        started += ["--base", base] if base else []
        run = context.load("worker.every_device:run", extra="worker")
        sys.exit(run([[*started, "--device", each] for each in devices]))
    serve = context.load("worker.main:serve", extra="worker")
    serve(context.settings(), base=base, slots=slots, device=device)
