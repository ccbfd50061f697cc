"""`manylora wait`: for scripts that must not go on before jobs have ended."""

from __future__ import annotations

from functools import partial
from threading import Event

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option
from manylora.cli.follow import FATES, OUTAGE_SECONDS, outage, why


@command()
@click.argument("job_ids", nargs=-1, required=True)
@json_option
def wait(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Wait until every job has ended. An outage of up to ten minutes is ridden out.

    Exit code: the worst fate: 100 if one failed, else 103 if one was cancelled, else 0.

    \b
    Examples:
    $ manylora wait ftjob-7f3k2m && manylora fetch ftjob-7f3k2m -o out
    $ manylora wait ftjob-7f3k2m ftjob-9q1x0c --json
    """
    client = context.connect()
    ended: dict[str, dict[str, object]] = {}
    pause = Event()
    while len(ended) < len(set(job_ids)):
        for job_id in dict.fromkeys(job_ids):
            if job_id in ended:
                continue
            job = client.ride_out(OUTAGE_SECONDS, partial(client.job, job_id), outage)
            if job["status"] in FATES:
                ended[job_id] = job
                reason = f": {why(job)}" if job["status"] == "failed" else ""
                if not as_json:
                    output.data(f"{job_id}   {job['status']}{reason}")
        if len(ended) < len(set(job_ids)):
            output.progress(f"{len(ended)} of {len(set(job_ids))} jobs have ended")
            pause.wait(1.0)
    if as_json:
        output.document(
            {"object": "list", "data": [ended[name] for name in dict.fromkeys(job_ids)]}
        )
    fates = {FATES[str(job["status"])] for job in ended.values()}
    click.get_current_context().exit(next((code for code in (100, 103) if code in fates), 0))
