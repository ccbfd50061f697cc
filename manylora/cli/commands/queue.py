"""`manylora queue`: what of yours waits, why, and when it starts. One job is `show`."""

from __future__ import annotations

from typing import Any

from manylora.cli import context, output
from manylora.cli.flags import command, json_option


@command()
@json_option
def queue(as_json: bool) -> None:
    """Show what waits for each base, your share of it, and when the next job starts.

    \b
    Examples:
    $ manylora queue
    $ manylora queue --json | jq '.data[0].start'
    """
    found = context.connect().queue()
    if as_json:
        output.document({"object": "list", "data": found})
        return
    output.table(
        ("base", "waiting", "running", "share", "of", "ahead", "next starts in", "why"),
        [_row(item) for item in found],
        empty="nothing of yours waits or runs",
    )


def _row(item: dict[str, Any]) -> tuple[Any, ...]:
    share, ahead = item.get("share") or {}, item.get("ahead") or {}
    return (
        item["base"],
        item["queued"] + item["held"],
        item["running"],
        f"{share['has']:.1%}" if share else "",
        f"{share['entitled']:.1%}" if share else "",
        ahead.get("others", ""),
        starts(item),
        item.get("reason") or "",
    )


def starts(place: dict[str, Any], when: str = "start") -> str:
    """`2 min, at most 6 min 9 times out of 10`."""
    told = place.get(when)
    if not told:
        return ""
    return f"{output.span(told['p50'])}; by {output.span(told['p90'])} 9 times out of 10"
