"""`manylora adapters`: the list. Downloading one is `fetch`."""

from __future__ import annotations

from manylora.cli import context, output
from manylora.cli.flags import command, json_option


@command()
@json_option
def adapters(as_json: bool) -> None:
    """List your published adapters, newest first.

    \b
    Examples:
    $ manylora adapters
    $ manylora adapters --json | jq -r '.data[].name'
    """
    found = context.connect().adapters()
    if as_json:
        output.document({"object": "list", "data": found})
        return
    output.table(
        ("adapter", "job", "base", "size", "created"),
        [
            (
                a["name"],
                a["job_id"],
                a["base"],
                output.size(a["bytes"]),
                output.ago(a["created_at"]),
            )
            for a in found
        ],
        empty="no adapters yet",
    )
