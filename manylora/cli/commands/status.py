"""`manylora status`: the service as a whole. One job is `show`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option


@command()
@click.option("--home", type=folder, help="Where the local service lives  [~/.manylora]")
@json_option
def status(home: Path | None, as_json: bool) -> None:
    """Show what runs on this machine, and what the service is doing.

    Exit code: 0 when the service answers, 6 when it does not.

    \b
    Examples:
    $ manylora status
    $ manylora status --json | jq .service
    """
    from manylora.errors import ManyloraError, UsageError

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
    if as_json:
        shown = {"message": problem.message, "code": problem.error_code} if problem else None
        output.document({"local": local, "service": service, "error": shown})
        click.get_current_context().exit(problem.exit_code if problem else 0)
    output.facts(_flat(local))
    if problem is not None:
        raise problem
    output.facts(_flat(service or {}))


def _flat(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """A tree of plain values as `a.b` and value, in its own order."""
    if isinstance(tree, dict):
        pairs = [(f"{name}.{key}" if name else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        pairs = [(f"{name}.{at}", value) for at, value in enumerate(tree)]
    else:
        return [(name, tree)]
    return [flat for key, value in pairs for flat in _flat(value, key)]
