"""`manylora submit`: from a file on this machine to a job that trains."""

from __future__ import annotations

import math
import time
import uuid
from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import (
    asked,
    command,
    existing_file,
    hyperparameters,
    json_option,
    metadata,
)

#: about how many bytes of a dataset make a token of it
_BYTES_A_TOKEN = 4


@command()
@click.argument("file", type=existing_file)
@click.option("--base", required=True, help="A registered base: manylora base list.")
@click.option("--suffix", help="Your name for the adapter, up to 64 characters.")
@hyperparameters
@click.option("--val", type=existing_file, help="Validation file.")
@click.option("--auto", is_flag=True, help="Choose the rest by the dataset's size; say why.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="[chosen by the service]")
@click.option("--priority", type=int, help="Order among your own jobs; higher goes first  [0]")
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    help="Hours in which you want it done; it goes before your own that can wait  [none]",
)
@click.option("--metadata", "pairs", multiple=True, metavar="K=V", help="Repeat it for more.")
@click.option(
    "--idempotency-key", help="The same key is the same job, however often it is sent  [random]"
)
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and leave.")
@json_option
def submit(
    file: Path,
    base: str,
    suffix: str | None,
    val: Path | None,
    auto: bool,
    seed: int | None,
    priority: int | None,
    deadline: float | None,
    pairs: tuple[str, ...],
    idempotency_key: str | None,
    detach: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Check a dataset, send it, start a job and follow it. Ctrl-C leaves the job running.

    Exit code: 0 succeeded or detached, 3 bad dataset, 100 failed, 103 cancelled.

    \b
    Examples:
    $ manylora submit support.jsonl --base gemma-3-270m --suffix support
    $ manylora submit support.jsonl --base gemma-3-270m --rank 8 --epochs 1 --val val.jsonl
    $ manylora submit support.jsonl --base gemma-3-270m --auto
    $ id=$(manylora submit support.jsonl --base gemma-3-270m -d)
    """
    from manylora.cli.check import checked
    from manylora.cli.commands.watch import follow
    from manylora.datasets.arrays import is_arrays, require_kind

    body: dict[str, Any] = {
        "model": base,
        "suffix": suffix,
        "seed": seed,
        "metadata": metadata(pairs) or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": asked(flags)}},
    }
    if priority is not None:
        body["priority"] = priority
    if deadline is not None:
        body["deadline"] = math.ceil(time.time() + deadline * 3600)
    client = context.connect()
    # Arrays are held against what the base reads; lines need no base.
    asked_first = any(path is not None and is_arrays(path.name) for path in (file, val))
    network = client.network_of(base) if asked_first else None
    for param, path in (("training_file", file), ("validation_file", val)):
        if path is not None:
            if asked_first:
                require_kind(path.name, network, param)
            report = checked(path, network)
            output.talk(f"{path}: {output.counted(report.examples, 'example')}", "checked")
    if not asked_first:
        client.require_base(base)
    if auto:
        hyper = body["method"]["supervised"]["hyperparameters"]
        hyper |= _advised(client, base, file, hyper)
    body["training_file"] = client.upload(file)["id"]
    if val is not None:
        body["validation_file"] = client.upload(val)["id"]
    sent = {name: value for name, value in body.items() if value is not None}
    job = client.create_job(sent, idempotency_key or str(uuid.uuid4()))
    waiting = (job.get("x") or {}).get("waiting_for")
    output.talk("   ".join(part for part in (job["id"], waiting) if part), "queued")
    if not detach:
        follow(client, job["id"], as_json)
    elif as_json:
        output.document(job)
    else:
        output.data(job["id"])


def _advised(client: Any, base: str, file: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What the dataset's size suggests for whatever was not given; says why, a line each."""
    from manylora.advice import Room, Size, advise
    from manylora.cli.check import read
    from manylora.hyperparameters import default_learning_rate

    row = next(each for each in client.bases() if each["name"] == base)
    size = Size(read(file).examples, max(1, file.stat().st_size // _BYTES_A_TOKEN))
    room = Room(row["numbers_per_rank"], row["largest_rank"])
    told = advise(size, room, default_learning_rate(row["hidden_size"]))
    chosen = {}
    for name, (value, why) in told.items():
        if name in given or (name == "lora_alpha" and "lora_r" in given):
            continue
        chosen[name] = value
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        output.talk(f"{name.ljust(15)} {shown.ljust(10)} {why}", "auto")
    return chosen
