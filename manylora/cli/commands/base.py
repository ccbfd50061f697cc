"""`manylora base`: the base models that adapters are trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, existing_file, group, json_option
from manylora.errors import UsageError


@group()
def base() -> None:
    """Add, list and remove base models.

    \b
    Examples:
    $ manylora base add gemma-3-270m
    $ manylora base list
    """


@command()
@click.argument("name")
@click.option(
    "--from",
    "source",
    help="Hub id, folder, .gguf file or the name of a built-in base  [the name]",
)
@click.option("--chat-template", help="Name of a chat template  [the base's own]")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    help="Numbers the weights are kept in  [bfloat16; float32 with --factory]",
)
@click.option("--factory", help="package.module:function that builds the network.")
@click.option("--factory-args", default="{}", show_default=True, help="Its arguments, as JSON.")
@click.option("--weights", type=existing_file, help="The network's .safetensors file.")
@click.option(
    "--task",
    type=click.Choice(["regression", "classification", "causal-lm"]),
    help="What a network with --factory is trained for.",
)
@click.option("--input-shape", help="One example's x, as in 3,32,32.")
@click.option(
    "--input-dtype",
    type=click.Choice(["float32", "int64"]),
    default="float32",
    show_default=True,
    help="Numbers or ids.",
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the tokenizer.json of a causal-lm with --factory.",
)
@click.option(
    "--quantize",
    type=click.Choice(["nf4", "int8", "int4"]),
    help="Keep the linear layers' weights in few bits.",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=2),
    help="Inputs that share a scale, with --quantize int4  [32]",
)
@json_option
def add(
    name: str,
    source: str | None,
    chat_template: str | None,
    dtype: str | None,
    quantize: str | None,
    group_size: int | None,
    factory: str | None,
    factory_args: str,
    weights: Path | None,
    task: str | None,
    input_shape: str | None,
    input_dtype: str,
    tokenizer: Path | None,
    as_json: bool,
) -> None:
    """Convert a base on this machine, send it to the service and register it.

    \b
    Examples:
    $ manylora base add gemma-3-270m
    $ manylora base add gemma-nf4 --from gemma-3-270m --quantize nf4
    $ manylora base add mine --from ./my-model --dtype float32
    $ manylora base add qwen --from Qwen/Qwen3-0.6B
    $ manylora base add digits --factory nets:cnn --weights cnn.safetensors --task classification \\
        --input-shape 1,28,28
    """
    if (factory is None) != (weights is None) or (factory is None) != (task is None):
        raise UsageError("--factory, --weights and --task go together", param="factory")
    client = context.connect()
    told = {"chat_template": chat_template, "progress": lambda text: output.talk(text, "base")}
    cache = context.settings().folder("bases")
    if factory is None:
        prepare = context.load("worker.bases.register:prepare", extra="worker")
        few = {"quantize": quantize, "group_size": group_size}
        card, folder = prepare(name, source, cache, dtype=dtype or "bfloat16", **few, **told)
    else:
        prepare = context.load("worker.bases.network:prepare", extra="worker")
        card, folder = prepare(
            name,
            cache,
            factory=factory,
            args=_json(factory_args),
            weights=weights,
            task=task,
            shape=_shape(input_shape),
            input_dtype=input_dtype,
            tokenizer=tokenizer,
            dtype=dtype or "float32",
            **told,
        )

    def sending(file: str, done: int, total: int) -> None:
        share = done / total if total else 1.0
        output.progress(f"sending {file}  {output.bar(share)}  {output.size(done)}")

    made = client.add_base(asdict(card), folder, sending)
    if as_json:
        output.document(made)
    else:
        output.talk(f"{name} is registered, {output.size(card.bytes)}", "base")


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--factory-args is not JSON: {error}", param="factory_args") from error
    if not isinstance(found, dict):
        raise UsageError("--factory-args is not a JSON object", param="factory_args")
    return found


def _shape(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(size) for size in text.split(",") if size)
    except ValueError as error:
        raise UsageError(f"--input-shape {text!r} is not like 3,32,32") from error


@command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the registered bases.

    \b
    Examples:
    $ manylora base list
    $ manylora base list --json | jq -r '.data[].name'
    """
    found = context.connect().bases()
    if as_json:
        output.document({"object": "list", "data": found})
        return
    output.table(
        ("base", "architecture", "parameters", "dtype", "size", "fingerprint"),
        [_row(item) for item in found],
        empty="no bases; add one with: manylora base add NAME --from …",
    )


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    count = item.get("parameters") or 0
    return (
        item["name"],
        item.get("architecture") or "",
        _parameters(count) if count else "",
        ", ".join(filter(None, (item.get("dtype"), item.get("quantization")))),
        output.size(item.get("bytes")),
        (item.get("fingerprint") or "")[:12],
    )


def _parameters(count: int) -> str:
    return f"{count / 1e6:,.0f} M" if count >= 1e6 else f"{count / 1e3:,.0f} k"


@command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Forget a base. Refused while a job that is not over needs it; adapters stay.

    \b
    Examples:
    $ manylora base remove gemma-3-270m
    """
    gone = context.connect().remove_base(name)
    if as_json:
        output.document(gone)
    else:
        output.talk(f"{name} is removed", "base")


for _verb in (add, list_, remove):
    base.add_command(_verb)
