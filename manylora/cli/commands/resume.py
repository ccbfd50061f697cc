"""`manylora resume`: let paused jobs go on."""

from __future__ import annotations

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option


@command()
@click.argument("job_ids", nargs=-1, required=True)
@json_option
def resume(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Let paused jobs go on from their checkpoints, at the end of the queue.

    \b
    Examples:
    $ manylora resume ftjob-7f3k2m
    """
    client = context.connect()
    going = []
    for job_id in job_ids:
        going.append(client.resume(job_id))
        output.talk(f"{job_id}   {going[-1]['status']}")
    if as_json:
        output.document({"object": "list", "data": going})
