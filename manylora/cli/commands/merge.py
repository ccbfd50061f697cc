"""`manylora merge`: an adapter and its base as one model, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from manylora.cli import context, output
from manylora.cli.adapter_ref import adapter_folder, base_of
from manylora.cli.flags import command, folder, json_option


@command()
@click.argument("adapter", metavar="DIR|ID|NAME|SUFFIX")
@click.option("--base", metavar="NAME|DIR", help="The base; default the adapter's own.")
@click.option("-o", "--output", "target", type=folder, required=True, help="Model's folder.")
@click.option("--force", is_flag=True, help="Take an adapter that has no manifest.")
@json_option
def merge(adapter: str, base: str | None, target: Path, force: bool, as_json: bool) -> None:
    """Fold an adapter into its base and write a model that needs no adapter any more.

    The folder loads with plain transformers. The base must be on this machine, and it must be the
    one the adapter's manifest names.

    \b
    Examples:
    $ manylora merge ./support -o ./support-model
    $ manylora merge support --base gemma-3-270m -o ./support-model
    """
    from manylora.place import placed

    with adapter_folder(adapter) as where:
        chosen = context.base_folder(base or base_of(where))
        work = context.load("worker.merge:merge", extra="worker")
        with placed(target, last="config.json", fresh=True) as scratch:
            made = work(where, chosen, scratch, force=force)
    if as_json:
        output.document({"folder": str(target), **made})
        return
    output.talk(f"{output.size(made['bytes'])} in {made['dtype']}, base {made['base']}", "merged")
    output.data(str(target))
