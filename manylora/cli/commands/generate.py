"""`manylora generate`: try a prompt on this machine. Serving adapters is vLLM's trade."""

from __future__ import annotations

import json
from pathlib import Path

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option
from manylora.errors import UsageError


@command()
@click.argument("prompt")
@click.option("--adapter", type=folder, help="A fetched adapter's folder.")
@click.option("--base", metavar="NAME|DIR", help="The base; default the adapter's own.")
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=128, show_default=True)
@json_option
def generate(
    prompt: str, adapter: Path | None, base: str | None, max_tokens: int, as_json: bool
) -> None:
    """Answer a prompt with a base, or with an adapter on its base.

    \b
    Examples:
    $ manylora generate --adapter ./support "My invoice is wrong"
    $ manylora generate --base gemma-3-270m "My invoice is wrong" --max-tokens 64
    """
    base = base or (_base_of(adapter) if adapter is not None else None)
    if base is None:
        raise UsageError("nothing to generate with", hint="give --adapter DIR or --base NAME")
    where = context.base_folder(base)
    answer = context.load("worker.generate:generate", extra="worker")(
        where, adapter, prompt, max_tokens
    )
    if as_json:
        output.document({"prompt": prompt, "text": answer, "base": base})
    else:
        output.data(answer)


def _base_of(adapter: Path) -> str:
    """The base an adapter names in its manifest, or in its config."""
    for name, key in (
        ("manifest.json", "base"),
        ("adapter_config.json", "base_model_name_or_path"),
    ):
        try:
            found = json.loads((adapter / name).read_bytes()).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        # A manifest may describe its base instead of naming it.
        found = found.get("name") if isinstance(found, dict) else found
        if found:
            return str(found)
    raise UsageError(
        f"{adapter} names no base: is it an adapter's folder?", hint="or give --base NAME"
    )
