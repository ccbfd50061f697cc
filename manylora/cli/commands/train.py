"""`manylora train`: one adapter, here and now, without the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import asked, command, existing_file, folder, hyperparameters, json_option


@command()
@click.argument("file", type=existing_file)
@click.option("--base", metavar="NAME|DIR", required=True, help="A base on this machine.")
@click.option("-o", "--output", "target", type=folder, required=True, help="Adapter's folder.")
@hyperparameters
@click.option("--val", type=existing_file, help="Validation file.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N.")
@json_option
def train(
    file: Path,
    base: str,
    target: Path,
    val: Path | None,
    seed: int,
    device: str,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train one adapter on this machine, without a service.

    \b
    Examples:
    $ manylora train support.jsonl --base gemma-3-270m -o ./support
    $ manylora train support.jsonl --base ./my-base -o ./out --rank 8 --epochs 1
    """
    from manylora.cli.check import checked
    from manylora.cli.follow import losses
    from manylora.cli.plot import loss_plot

    wanted = asked(flags)
    for path in (file, val):
        if path is not None:
            checked(path)
    where = context.base_folder(base)
    points: list[dict[str, Any]] = []

    def progress(point: dict[str, Any]) -> None:
        points.append(point)
        step, total = point["step"], point["total_steps"]
        output.progress(f"step {step}/{total}  {output.bar(step / total)}  {losses(points)}")

    run = context.load("worker.train:train", extra="worker")
    made = run(
        file=file,
        base_folder=where,
        out=target,
        hyperparameters=wanted,
        validation=val,
        seed=seed,
        device=device,
        kernels=context.settings().folder("kernels"),
        factories=context.settings().factories,
        progress=progress,
        warn=lambda text: output.talk(text, "note"),
    )
    loss_plot(points)
    if as_json:
        output.document({"folder": str(target), **(made or {})})
        return
    output.talk(losses(points), "done")
    output.data(str(target))
