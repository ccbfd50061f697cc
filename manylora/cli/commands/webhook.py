"""`manylora webhook`: the endpoints that are told when jobs end."""

from __future__ import annotations

from itertools import islice

import click

from manylora.cli import context, output
from manylora.cli.flags import command, group, json_option

KINDS = ("succeeded", "failed", "cancelled")
_TYPE = "fine_tuning.job."


@group()
def webhook() -> None:
    """Be told by HTTP when jobs end.

    \b
    Examples:
    $ manylora webhook add https://example.org/hooks/manylora
    $ manylora webhook list
    """


@command()
@click.argument("url")
@click.option(
    "--on", "kinds", multiple=True, type=click.Choice(KINDS), help="How a job ended  [all]"
)
@json_option
def add(url: str, kinds: tuple[str, ...], as_json: bool) -> None:
    """Add an endpoint and print its secret, this once. Messages are signed with it.

    \b
    Examples:
    $ manylora webhook add https://example.org/hooks/manylora
    $ manylora webhook add https://example.org/hooks/failed --on failed
    """
    made = context.connect().add_webhook(url, [_TYPE + kind for kind in kinds])
    if as_json:
        output.document(made)
        return
    output.talk(f"{made['id']} is told of {_kinds(made['events'])}", "webhook")
    output.talk("its secret, which is not shown again:")
    output.data(made["secret"])


def _kinds(events: list[str]) -> str:
    return ", ".join(event.removeprefix(_TYPE) for event in events)


@command("list")
@json_option
def list_(as_json: bool) -> None:
    """List your endpoints. Secrets are not shown.

    \b
    Examples:
    $ manylora webhook list
    """
    found = context.connect().webhooks()
    if as_json:
        output.document({"object": "list", "data": found})
        return
    output.table(
        ("webhook", "URL", "on", "created"),
        [(w["id"], w["url"], _kinds(w["events"]), output.ago(w["created_at"])) for w in found],
        empty="no webhooks; add one with: manylora webhook add URL",
    )


@command()
@click.argument("webhook_id")
@json_option
def remove(webhook_id: str, as_json: bool) -> None:
    """Forget an endpoint; what it was still to hear is given up.

    \b
    Examples:
    $ manylora webhook remove we_7f3k2m
    """
    gone = context.connect().remove_webhook(webhook_id)
    if as_json:
        output.document(gone)
    else:
        output.talk(f"{webhook_id} is removed", "webhook")


@command()
@click.argument("webhook_id")
@click.option("-l", "--limit", type=click.IntRange(1), default=20, show_default=True, help="Most.")
@json_option
def deliveries(webhook_id: str, limit: int, as_json: bool) -> None:
    """Show what was sent to an endpoint, newest first, and what came of it.

    \b
    Examples:
    $ manylora webhook deliveries we_7f3k2m
    """
    found = list(islice(context.connect().deliveries(webhook_id, min(limit, 100)), limit))
    if as_json:
        output.document({"object": "list", "data": found})
        return
    output.table(
        ("message", "job", "event", "state", "tries", "created", "last"),
        [
            (
                d["id"],
                d["job_id"],
                d["type"].removeprefix(_TYPE),
                d["state"],
                d["attempts"],
                output.ago(d["created_at"]),
                d["last_error"] or d["last_status"],
            )
            for d in found
        ],
        empty="nothing was sent yet",
    )


for _verb in (add, list_, remove, deliveries):
    webhook.add_command(_verb)
