"""`manylora show`: one job in full. Its events are `logs`."""

from __future__ import annotations

from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.commands.queue import starts
from manylora.cli.flags import command, json_option
from manylora.cli.follow import cost, losses


@command()
@click.argument("job_id")
@json_option
def show(job_id: str, as_json: bool) -> None:
    """Show everything known about one job.

    \b
    Examples:
    $ manylora show ftjob-7f3k2m
    $ manylora show ftjob-7f3k2m --json | jq .status
    """
    client = context.connect()
    job = client.job(job_id)
    if as_json:
        output.document(job)
        return
    x = job.get("x") or {}
    total = x.get("total_steps")
    failure = job.get("error") or {}
    place = x.get("queue") or {}
    output.facts(
        [
            ("job", job["id"]),
            ("suffix", job.get("user_provided_suffix")),
            ("status", job["status"]),
            ("waits for", x.get("waiting_for")),
            ("position", _position(place)),
            ("starts in", starts(place)),
            ("is over in", starts(place, "finish")),
            ("share", _share(place)),
            ("foretold", _kept(place)),
            ("error", failure.get("message")),
            ("base", job["model"]),
            ("step", f"{x.get('step') or 0} of {total}" if total else None),
            ("losses", losses(client.metrics(job_id))),
            ("created", output.ago(job["created_at"])),
            ("finished", output.ago(job.get("finished_at"))),
            ("trained", f"{job['trained_tokens']:,} tokens" if job.get("trained_tokens") else None),
            ("cost", cost(job)),
            ("adapter", job.get("fine_tuned_model")),
            ("stored at", x.get("adapter_uri")),
            ("training file", job.get("training_file")),
            ("validation file", job.get("validation_file")),
            ("seed", job.get("seed")),
        ]
    )
    settings = x.get("hyperparameters") or job.get("hyperparameters") or {}
    output.facts((f"  {name}", value) for name, value in settings.items())


def _position(place: dict[str, Any]) -> str | None:
    if not place:
        return None
    ahead = place["ahead"]
    return (
        f"{place['position']:,}: {ahead['yours']:,} of yours and {ahead['others']:,} others ahead"
    )


def _share(place: dict[str, Any]) -> str | None:
    share = place.get("share")
    return share and f"{share['has']:.1%} of the pool, entitled to {share['entitled']:.1%}"


def _kept(place: dict[str, Any]) -> str | None:
    known = place.get("calibration") or {}
    if not known.get("foretold"):
        return None
    kept, count = known["started_by_p90"], known["foretold"]
    return f"{kept:.0%} of {output.counted(count, 'job')} started by their p90"
