"""`manylora extract`: the low-rank difference of two checkpoints, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option
from manylora.errors import UsageError

_SHARE = click.FloatRange(0, 1, min_open=True)


@command()
@click.argument("base", metavar="BASE")
@click.argument("tuned", metavar="TUNED")
@click.option("--rank", type=click.IntRange(1, 1024), help="Rank of the adapter.")
@click.option("--energy", type=_SHARE, help="Or the smallest rank that keeps this share.")
@click.option("-o", "--output", "target", type=folder, required=True, help="Adapter's folder.")
@json_option
def extract(
    base: str, tuned: str, rank: int | None, energy: float | None, target: Path, as_json: bool
) -> None:
    """Make an adapter out of a fine-tuned checkpoint and the base it came from.

    BASE and TUNED are names of bases on this machine or folders of safetensors. What is kept is
    told as a share of the difference's energy: its squared singular values.

    \b
    Examples:
    $ manylora extract gemma-3-270m ./tuned --rank 16 -o ./adapter
    $ manylora extract ./base ./tuned --energy 0.95 -o ./adapter
    """
    from manylora.place import placed

    one_of(rank, energy)
    cache = context.settings().folder("bases")
    find = context.load("worker.extract:checkpoint", extra="worker")
    before, after = find(cache, base), find(cache, tuned)
    work = context.load("worker.extract:extract", extra="worker")
    with placed(target, fresh=True) as scratch:
        made = work(before, after, scratch, rank=rank, energy=energy)
    tell(made, target, as_json)
    if made["left_out"] and not as_json:
        names = ", ".join(made["left_out"][:3]) + (", …" if len(made["left_out"]) > 3 else "")
        output.talk(
            f"{output.counted(len(made['left_out']), 'other tensor')} differ, which no adapter "
            f"holds: {names}",
            "note",
        )


def one_of(rank: int | None, energy: float | None) -> None:
    """Raises: UsageError unless just one is given."""
    if (rank is None) == (energy is None):
        raise UsageError("give either --rank or --energy", hint="for instance: --energy 0.95")


def tell(made: dict[str, Any], target: Path, as_json: bool) -> None:
    """What was kept, layer by layer and in all."""
    if as_json:
        output.document({"folder": str(target), **made})
        return
    rows = sorted(made["layers"].items(), key=lambda item: (item[1], item[0]))
    shown = rows[:8]
    output.talk(f"rank {made['rank']} keeps {made['share']:.2%} of the energy of all layers")
    for name, share in shown:
        output.talk(f"  {share:8.2%}   {name}")
    if len(rows) > len(shown):
        output.talk(
            f"  and {output.counted(len(rows) - len(shown), 'layer')} of which more is kept"
        )
    output.data(str(target))
