"""`manylora jobs`: the list. One job in full is `show`."""

from __future__ import annotations

from itertools import islice

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option

STATES = ("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled")


@command()
@click.option("-l", "--limit", type=click.IntRange(1), default=20, show_default=True, help="Most.")
@click.option("--status", "states", multiple=True, help="Only these; repeat it or use commas.")
@json_option
def jobs(limit: int, states: tuple[str, ...], as_json: bool) -> None:
    """List your jobs, newest first.

    \b
    Examples:
    $ manylora jobs
    $ manylora jobs --status running,queued -l 50
    $ manylora jobs --json | jq -r '.data[].id'
    """
    wanted = {state.strip() for value in states for state in value.split(",")}
    if unknown := wanted - set(STATES):
        raise click.BadParameter(
            f"{', '.join(sorted(unknown))}: not a status ({', '.join(STATES)})",
            param_hint="--status",
        )
    every = context.connect().jobs(limit=100 if wanted else min(limit, 100))
    found = list(islice((j for j in every if not wanted or j["status"] in wanted), limit))
    if as_json:
        output.document({"object": "list", "data": found})
        return
    rows = []
    for job in found:
        x = job.get("x") or {}
        total = x.get("total_steps")
        rows.append(
            (
                job["id"],
                job.get("user_provided_suffix") or "",
                job["status"],
                job["model"],
                f"{x.get('step') or 0}/{total}" if total else "",
                output.ago(job["created_at"]),
                x.get("waiting_for") or "",
            )
        )
    output.table(
        ("job", "suffix", "status", "base", "step", "created", ""),
        rows,
        empty="no jobs; start one with: manylora submit FILE --base BASE",
    )
