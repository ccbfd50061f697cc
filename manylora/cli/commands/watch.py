"""`manylora watch`, and the ending `submit` shares with it: bar, losses, plot, exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option
from manylora.cli.follow import FATES, Follower, cost, losses, why

if TYPE_CHECKING:
    from manylora.client import Client


@command()
@click.argument("job_id")
@json_option
def watch(job_id: str, as_json: bool) -> None:
    """Follow a job until it ends. Ctrl-C stops the watching, never the job.

    Exit code: 0 succeeded or detached, 100 failed, 103 cancelled.

    \b
    Examples:
    $ manylora watch ftjob-7f3k2m
    $ manylora watch ftjob-7f3k2m --json 2>/dev/null | jq .fine_tuned_model
    """
    follow(context.connect(), job_id, as_json)


def follow(client: Client, job_id: str, as_json: bool) -> None:
    """Watch `job_id`, then leave with its fate.

    Raises: JobFailedError, JobCancelledError, click's Exit.
    """
    from manylora.cli.plot import loss_plot
    from manylora.errors import JobCancelledError, JobFailedError

    follower = Follower(client, job_id)
    try:
        job = follower.until_final()
    except KeyboardInterrupt:
        output.end_progress()
        output.talk(f"detached; the job goes on. manylora watch {job_id}")
        if as_json:
            output.document(client.job(job_id))
        return
    loss_plot(follower.points)
    if as_json:
        output.document(job)
        click.get_current_context().exit(FATES[job["status"]])
    if job["status"] == "failed":
        raise JobFailedError(f"{job_id} failed: {why(job)}", hint=f"manylora logs {job_id}")
    if job["status"] == "cancelled":
        raise JobCancelledError(f"{job_id} was cancelled")
    parts = [job_id, "succeeded", losses(follower.points), cost(job)]
    output.talk("   ".join(part for part in parts if part), "done")
    output.data(job["fine_tuned_model"])
    output.talk(f"manylora fetch {job_id} -o DIR")
