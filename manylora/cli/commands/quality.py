"""`manylora quality`: what a job's report says, for people or as JSON."""

from __future__ import annotations

from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, json_option

_SHOWN = 400


@command()
@click.argument("job_id", metavar="ID|NAME|SUFFIX")
@json_option
def quality(job_id: str, as_json: bool) -> None:
    """Print a job's quality report: losses beside the base's, over-fitting, ranks, answers.

    Jobs have one that were submitted with --quality.

    \b
    Examples:
    $ manylora quality ftjob-7f3k2m
    $ manylora quality ftjob-7f3k2m --json | jq .heldout.adapter.loss
    """
    found = context.connect().quality(job_id)
    if as_json:
        output.document(found)
        return
    output.facts(
        [
            ("adapter", found["adapter"]),
            *_losses(found.get("heldout")),
            ("over-fitted", _verdict(found.get("overfitting"))),
            *_ranks(found.get("spectrum")),
            ("note", found.get("cut")),
        ]
    )
    for sample in found["samples"]:
        output.data("")
        output.data(f"line {sample['line']}   {_short(sample['prompt'])}")
        output.facts(
            (f"  {name}", _short(sample[name])) for name in ("expected", "base", "adapter")
        )


def _losses(told: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not told:
        return []
    base, mine = told["base"], told["adapter"]
    on = f"{output.counted(told['examples'], told['on'] + ' example')}"
    return [
        ("loss", f"{base['loss']:.3f} → {mine['loss']:.3f}   on {on}"),
        ("accuracy", f"{base['token_accuracy']:.1%} → {mine['token_accuracy']:.1%} of the tokens"),
    ]


def _verdict(told: dict[str, Any] | None) -> str:
    if told is None:
        return "cannot be told: fewer than two validation losses (--val, --eval-every)"
    if told["best_step"] == told["last_step"]:
        return f"no: the validation loss was lowest at the end, {told['last_loss']:.3f}"
    at = f"validation loss {told['best_loss']:.3f} at step {told['best_step']}"
    at += f", {told['last_loss']:.3f} at step {told['last_step']}"
    return f"{'yes' if told['flag'] else 'no'}: {at}"


def _ranks(told: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not told:
        return []
    return [
        ("rank", f"{told['hint']}"),
        ("effective rank", f"{told['effective_rank']:.1f} on average over the layers"),
    ]


def _short(text: str | None) -> str:
    if text is None:
        return "not made"
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"{flat[:_SHOWN]}…"
