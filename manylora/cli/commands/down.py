"""`manylora down`: stop what `up` started. The work is done in `manylora.local`."""

from __future__ import annotations

from pathlib import Path

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option


@command()
@click.option("--home", type=folder, help="Where everything lives  [~/.manylora]")
@json_option
def down(home: Path | None, as_json: bool) -> None:
    """Stop the service on this machine. Data stays; running jobs go on after the next `up`.

    \b
    Examples:
    $ manylora down
    $ manylora down --home /srv/manylora
    """
    where = context.settings(home=home).home
    state = context.load("manylora.local.commands:down", extra="local")(home=where)
    if as_json:
        output.document(state or {"home": str(where), "running": False})
    else:
        output.talk(f"the service in {where} is stopped", "down")
