"""`manylora config`: the settings and where each comes from; secrets stay hidden."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, group, json_option


@group()
def config() -> None:
    """Show the settings.

    \b
    Examples:
    $ manylora config show --origin
    """


@command()
@click.option("--origin", is_flag=True, help="Also say where each value comes from.")
@json_option
def show(origin: bool, as_json: bool) -> None:
    """Show every setting. Secrets are never shown.

    \b
    Examples:
    $ manylora config show
    $ manylora config show --origin --json
    """
    chosen = context.settings()
    values: dict[str, Any] = {
        name: value if value is None or isinstance(value, int | float) else str(value)
        for name, value in chosen
    }
    origins = {name: _origin(name, chosen.home) for name in values}
    if as_json:
        output.document(
            {n: {"value": v, "origin": origins[n]} if origin else v for n, v in values.items()}
        )
        return
    output.table(
        ("setting", "value", "from") if origin else ("setting", "value"),
        [(n, v, origins[n]) if origin else (n, v) for n, v in values.items()],
    )


def _origin(name: str, home: Path) -> str:
    variable = f"MANYLORA_{name.upper()}"
    if variable in {key.upper() for key in os.environ}:
        return "environment"
    for path in (Path(".env"), home / "client.env", home / "service.env"):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            keys = {
                line.partition("=")[0].removeprefix("export ").strip().upper() for line in lines
            }
            if variable in keys:
                return str(path)
    return "default"


config.add_command(show)
