"""`manylora verify`: is a downloaded adapter still what its job published? Needs no server."""

from __future__ import annotations

import json
from pathlib import Path

import click

from manylora.cli import output
from manylora.cli.flags import command, folder, json_option


@command()
@click.argument("where", metavar="DIR", type=folder)
@json_option
def verify(where: Path, as_json: bool) -> None:
    """Check every file in DIR against DIR/manifest.json, offline.

    \b
    Examples:
    $ manylora verify ./support
    $ manylora verify ./support --json | jq .ok
    """
    from manylora.errors import IntegrityError, UsageError
    from manylora.fetch import check_file
    from manylora.keys import safe_file

    path = where / "manifest.json"
    try:
        files = [
            (safe_file(f["name"]), str(f["sha256"]), int(f["bytes"]))
            for f in json.loads(path.read_bytes())["files"]
        ]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", hint="manylora fetch writes one"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{path} is not a manifest: {error}") from error
    found = [(name, check_file(where / name, sha256, size)) for name, sha256, size in files]
    bad = {name: problem for name, problem in found if problem}
    if as_json:
        checked = [{"name": name, "ok": not problem, "problem": problem} for name, problem in found]
        output.document({"ok": not bad, "folder": str(where), "files": checked})
        click.get_current_context().exit(1 if bad else 0)
    for name, problem in found:
        output.data(f"{where / name}   {problem or 'sha256 verified'}")
    if bad:
        raise IntegrityError(
            f"{where}: {output.counted(len(bad), 'file')} of {len(found)} not as published",
            hint="fetch it again: manylora fetch NAME -o DIR",
        )
