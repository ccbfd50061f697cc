"""`manylora api`: the HTTP API as a process of its own."""

from __future__ import annotations

import click

from manylora.cli import context
from manylora.cli.flags import command


@command()
@click.option("--host", "api_host", help="Address to listen on  [127.0.0.1]")
@click.option("--port", "api_port", type=click.IntRange(0, 65535), help="Port  [8400]")
def api(api_host: str | None, api_port: int | None) -> None:
    """Run the HTTP API until it is told to stop.

    \b
    Examples:
    $ manylora api
    $ manylora api --host 0.0.0.0 --port 8400
    """
    chosen = context.settings(api_host=api_host, api_port=api_port)
    context.load("manylora.api.app:serve")(chosen)
