"""`manylora up`: the whole service on this machine. The work is done in `manylora.local`."""

from __future__ import annotations

from pathlib import Path

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option


@command()
@click.option("-d", "--detach", is_flag=True, help="Go to the background once it is ready.")
@click.option(
    "--slots",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Jobs at once on the worker.",
)
@click.option("--home", type=folder, help="Where everything lives  [~/.manylora]")
@json_option
def up(detach: bool, slots: int, home: Path | None, as_json: bool) -> None:
    """Start PostgreSQL, Valkey, an object store, the API, the scheduler and a worker here.

    \b
    Examples:
    $ manylora up
    $ manylora up -d --slots 16
    """
    where = context.settings(home=home).home
    start = context.load("manylora.local.commands:up", extra="local")

    def progress(text: str) -> None:
        output.talk(text, "up")

    try:
        state = start(home=where, slots=slots, detach=detach, progress=progress)
    except KeyboardInterrupt:
        output.talk("stopped", "up")
        raise
    if as_json:
        output.document(state or {})
