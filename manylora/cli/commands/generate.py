"""`manylora generate`: try a prompt on this machine. Serving adapters is vLLM's trade."""

from __future__ import annotations

from pathlib import Path

import click

from manylora.cli import context, output
from manylora.cli.adapter_ref import base_of
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
    base = base or (base_of(adapter) if adapter is not None else None)
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
