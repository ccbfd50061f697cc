"""`manylora doctor`: how every part is, seen from this machine. An operator's command: it reads the
servers' addresses and secrets, as the service does."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option

if TYPE_CHECKING:
    from manylora.doctor import Finding

_COLOURS = {"ok": output.ACCENT, "warn": output.RED, "fail": output.RED, "skip": output.DIM}


@command()
@json_option
def doctor(as_json: bool) -> None:
    """Ask settings, disk, servers, scheduler, workers and API how they are, and say what to do.

    Exit code: 0 when nothing failed (warnings do not count), else 1.

    \b
    Examples:
    $ manylora doctor
    $ manylora doctor --json | jq -r '.checks[] | select(.state == "fail") | .hint'
    """
    chosen = context.settings()
    found: list[Finding] = context.load("manylora.doctor:examine")(chosen)
    failed = any(one.state == "fail" for one in found)
    if as_json:
        output.document({"ok": not failed, "checks": [asdict(one) for one in found]})
    else:
        _show(found)
    click.get_current_context().exit(1 if failed else 0)


def _show(found: list[Finding]) -> None:
    wide = max(len(one.name) for one in found)
    for one in found:
        state = output.paint(one.state.ljust(4), _COLOURS[one.state])
        output.data(f"{state}  {one.name.ljust(wide)}  {one.message}")
        if one.hint:
            output.data(f"{' ' * (wide + 8)}{one.hint}")
