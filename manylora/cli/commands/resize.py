"""`manylora resize`: an adapter at another rank, on this machine; needs no base."""

from __future__ import annotations

from pathlib import Path

import click

from manylora.cli import context
from manylora.cli.adapter_ref import adapter_folder
from manylora.cli.commands.extract import one_of, tell
from manylora.cli.flags import command, folder, json_option


@command()
@click.argument("adapter", metavar="DIR|ID|NAME|SUFFIX")
@click.option("--rank", type=click.IntRange(1, 1024), help="The rank it shall have.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Or the smallest rank that keeps this share.",
)
@click.option("-o", "--output", "target", type=folder, required=True, help="Adapter's folder.")
@json_option
def resize(
    adapter: str, rank: int | None, energy: float | None, target: Path, as_json: bool
) -> None:
    """Change an adapter's rank. A larger one is the same adapter, a smaller one the nearest to it.

    \b
    Examples:
    $ manylora resize ./support --rank 8 -o ./support-8
    $ manylora resize support --energy 0.99 -o ./support-small
    """
    from manylora.place import placed

    one_of(rank, energy)
    with adapter_folder(adapter) as where:
        work = context.load("worker.extract:resize", extra="worker")
        with placed(target, fresh=True) as scratch:
            made = work(where, scratch, rank=rank, energy=energy)
    tell(made, target, as_json)
