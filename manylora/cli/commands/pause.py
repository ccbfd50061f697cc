"""`manylora pause`: hold jobs back."""

from __future__ import annotations

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option


@command()
@click.argument("job_ids", nargs=-1, required=True)
@json_option
def pause(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Hold jobs back. One that runs is paused at its next step: it keeps a checkpoint and gives
    its slot to others.

    \b
    Examples:
    $ manylora pause ftjob-7f3k2m
    $ manylora resume ftjob-7f3k2m
    """
    client = context.connect()
    held = []
    for job_id in job_ids:
        held.append(client.pause(job_id))
        soon = held[-1]["x"]["wish"] == "pause"
        output.talk(f"{job_id}   {'pauses at its next step' if soon else held[-1]['status']}")
    if as_json:
        output.document({"object": "list", "data": held})
