"""`manylora fetch`: an adapter, whole and checked, in a folder."""

from __future__ import annotations

from pathlib import Path

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option


@command()
@click.argument("ref", metavar="ID|NAME|SUFFIX")
@click.option("-o", "--output", "target", type=folder, required=True, help="Folder to fill.")
@json_option
def fetch(ref: str, target: Path, as_json: bool) -> None:
    """Download an adapter. Every byte is checked before a file appears in the folder.

    \b
    Examples:
    $ manylora fetch support -o ./support
    $ manylora fetch ftjob-7f3k2m -o ./support
    """

    def progress(name: str, done: int, total: int) -> None:
        share = done / total if total else 0.0
        output.progress(f"{name}  {output.bar(share)}  {output.size(done)}")

    got = context.connect().fetch(ref, target, progress)
    if as_json:
        keep = ("name", "job_id", "base", "base_fingerprint", "manifest_sha256", "bytes")
        output.document({k: got[k] for k in (*keep, "folder", "fetched") if k in got})
        return
    sizes = {f["name"]: f["bytes"] for f in got["files"]}
    for name in got["fetched"]:
        checked = "sha256 verified" if name in sizes or name == "manifest.json" else ""
        line = f"{target / name}   {output.size(sizes.get(name))}   {checked}"
        output.data(line.rstrip())
    output.talk(f"adapter of base {got['base']}; peft, vLLM: see {target / 'README.md'}")
