"""`manylora cancel`: take jobs back."""

from __future__ import annotations

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option


@command()
@click.argument("job_ids", nargs=-1, required=True)
@json_option
def cancel(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs. One that runs stops at its next step; one that has ended stays as it is.

    \b
    Examples:
    $ manylora cancel ftjob-7f3k2m
    $ manylora cancel $(manylora jobs --status queued --json | jq -r '.data[].id')
    """
    client = context.connect()
    gone = []
    for job_id in job_ids:
        gone.append(client.cancel(job_id))
        output.talk(f"{job_id}   {gone[-1]['status']}")
    if as_json:
        output.document({"object": "list", "data": gone})
