"""`manylora logs`: a job's events in the order they happened."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option
from manylora.cli.follow import FATES, OUTAGE_SECONDS, newest, outage

if TYPE_CHECKING:
    from manylora.client import Client


@command()
@click.argument("job_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends or Ctrl-C.")
@click.option(
    "-n", "--tail", type=click.IntRange(1), default=1000, show_default=True, help="Newest events."
)
@json_option
def logs(job_id: str, follow: bool, tail: int, as_json: bool) -> None:
    """Print a job's events, oldest first. With --follow --json: one event a line.

    \b
    Examples:
    $ manylora logs ftjob-7f3k2m
    $ manylora logs -f ftjob-7f3k2m
    """
    client = context.connect()
    found = newest(client, job_id, tail)[::-1]
    if as_json and not follow:
        output.document({"object": "list", "data": found})
        return
    _say(found, as_json)
    if follow:
        _follow(client, job_id, {event["id"] for event in found}, as_json)


def _follow(client: Client, job_id: str, seen: set[str], as_json: bool) -> None:
    wait = Event()
    while True:
        # The state first: what is logged after it was read is still read below.
        ended = (
            client.ride_out(OUTAGE_SECONDS, lambda: client.job(job_id), outage)["status"] in FATES
        )
        fresh: list[dict[str, Any]] = []
        for event in client.ride_out(OUTAGE_SECONDS, lambda: newest(client, job_id, 100), outage):
            if event["id"] not in seen:
                seen.add(event["id"])
                fresh.append(event)
        _say(fresh[::-1], as_json)
        if ended:
            return
        wait.wait(1.0)


def _say(events: list[dict[str, Any]], as_json: bool) -> None:
    for event in events:
        if as_json:
            output.line(event)
            continue
        at = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
        level = event.get("level", "info")
        output.data(f"{at}  {level:<5}  {event['message']}")
