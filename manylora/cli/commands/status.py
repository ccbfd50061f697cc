"""`manylora status`: the service as a whole. One job is `show`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option

if TYPE_CHECKING:
    from manylora.settings import Settings


@command()
@click.option("--home", type=folder, help="Where the local service lives  [~/.manylora]")
@json_option
def status(home: Path | None, as_json: bool) -> None:
    """Show what runs on this machine, and what the service is doing.

    Exit code: 0 when the local stack is up or the service answers, else 6.

    \b
    Examples:
    $ manylora status
    $ manylora status --json | jq .processes
    """
    from manylora.errors import ManyloraError, UnavailableError, UsageError

    where = context.settings(home=home).home
    local: dict[str, Any] = {}
    # Whoever uses a service elsewhere may have none of the embedded servers installed.
    with contextlib.suppress(UsageError):
        local = context.load("manylora.local.commands:status", extra="local")(home=where)
    service: dict[str, Any] | None = None
    problem: ManyloraError | None = None
    try:
        service = context.connect(home=home).status()
    except ManyloraError as error:
        problem = error
        if local.get("state") == "down" and _is_local(context.settings(home=home)):
            problem = UnavailableError(f"nothing is up in {where}", hint="manylora up -d")
    up = local.get("state") not in (None, "down")
    if as_json:
        shown = {"message": problem.message, "code": problem.error_code} if problem else None
        output.document({"processes": [], **local, **(service or {}), "error": shown})
        click.get_current_context().exit(problem.exit_code if problem and not up else 0)
    _show(local, service)
    if problem is not None and up:
        output.talk(problem.message, "api")
    elif problem is not None:
        raise problem


def _is_local(chosen: Settings) -> bool:
    """Whether the service that is meant is the one of this machine's home."""
    url = chosen.api_url
    return chosen.api_key is None or url.startswith(("http://127.0.0.1", "http://localhost"))


def _show(local: dict[str, Any], service: dict[str, Any] | None) -> None:
    """The local processes, then the service's queue and its workers."""
    if local.get("processes"):
        output.table(
            ["process", "pid", "state", "restarts"],
            [[str(p[k]) for k in ("name", "pid", "state", "restarts")] for p in local["processes"]],
        )
    if service is None:
        return
    waiting = "  ".join(f"{count} {state}" for state, count in service["queue"].items() if count)
    output.facts(
        [
            ("version", f"{service['version']}, schema {service['schema']}"),
            ("queue", waiting or "empty"),
            ("slots", f"{service['busy']} of {service['slots']} busy"),
        ]
    )
    if service["workers"]:
        output.table(
            ["worker", "device", "slots", "base", "state", "note"],
            [
                [
                    w["id"],
                    w["device_kind"],
                    str(w["slots"]),
                    w["assigned_base"] or "none yet",
                    w["state"],
                    w["note"] or "",
                ]
                for w in service["workers"]
            ],
        )
