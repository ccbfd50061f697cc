"""`manylora sweep`: hyperparameters on a budget, as ordinary jobs that share the base."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import (
    asked,
    command,
    existing_file,
    folder,
    hyperparameters,
    json_option,
    metadata,
)


@command()
@click.argument("file", type=existing_file)
@click.option("--base", required=True, help="A registered base: manylora base list.")
@click.option("--validation", type=existing_file, required=True, help="What trials are judged by.")
@click.option(
    "--over",
    "axes",
    multiple=True,
    required=True,
    metavar="NAME=V,V",
    help="What is tried: lora_r, lora_alpha, learning_rate, target_modules, …; repeat it.",
)
@click.option("--budget", type=click.IntRange(1), help="Most optimizer steps in all.")
@click.option("--random", "count", type=click.IntRange(1, 256), help="Draw so many trials.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--eta", type=click.IntRange(2, 10), default=2, show_default=True, help="1/eta go on")
@click.option("--metadata", "pairs", multiple=True, metavar="K=V", help="Repeat it for more.")
@click.option("-o", "--output", "target", type=folder, help="Folder for report, CSV and plot.")
@click.option("--cancel-on-exit", is_flag=True, help="Ctrl-C cancels the jobs, too.")
@hyperparameters
@json_option
def sweep(
    file: Path,
    base: str,
    validation: Path,
    axes: tuple[str, ...],
    budget: int | None,
    count: int | None,
    seed: int,
    eta: int,
    pairs: tuple[str, ...],
    target: Path | None,
    cancel_on_exit: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Try hyperparameters; the losers are stopped early (successive halving).

    The trials are jobs like any others, trained side by side on the shared base. The same call
    again goes on where it was. Ctrl-C leaves the jobs running. A range, learning_rate=1e-5..1e-3,
    is drawn from with --random; layers are joined by +: target_modules=all-linear,q_proj+v_proj.

    \b
    Examples:
    $ manylora sweep d.jsonl --base gemma-3-270m --validation v.jsonl --over lora_r=4,8,16
    $ manylora sweep d.jsonl --base b --validation v.jsonl --over learning_rate=1e-4,5e-4,2e-3 \\
        --over lora_r=4,16 --budget 300 -o ./sweep
    """
    from manylora.cli.check import checked
    from manylora.cli.plot import curves
    from manylora.cli.sweeping import Sweeping
    from manylora.hyperparameters import parse, resolve
    from manylora.place import placed
    from manylora.sweep import halving, report, space

    shared = asked(flags)
    params = space.trials([space.axis(text) for text in axes], count, seed)
    for one in params:
        parse({**shared, **space.hyperparameters(one)})
    found, judged = checked(file), checked(validation)
    plain = resolve(parse(shared), hidden_size=1024)
    size = plain.batch_size * plain.gradient_accumulation_steps
    steps = math.ceil(found.examples / size) * plain.n_epochs
    plan = halving.plan(len(params), steps, eta, budget)
    client = context.connect()
    client.require_base(base)
    body: dict[str, Any] = {
        "model": base,
        "training_file": client.upload(file)["id"],
        "validation_file": client.upload(validation)["id"],
        "seed": seed,
        "metadata": metadata(pairs) or None,
    }
    hyper = {
        **shared,
        "n_epochs": plain.n_epochs,
        "batch_size": plain.batch_size,
        "eval_every": plan.rungs[0],
    }
    body["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
    # Files are named by their content here: an upload sent again may have another id.
    digests = [_sha256(path) for path in (file, validation)]
    name = space.digest([base, digests, params, hyper, body["seed"], body["metadata"]])
    output.talk(
        f"{output.counted(found.examples, 'example')}, judged by {judged.examples:,}", "checked"
    )
    rungs = ", ".join(f"{n} to step {r}" for n, r in zip(plan.entering, plan.rungs, strict=True))
    output.talk(f"{rungs}: {plan.cost:,} steps; a full grid is {plan.full:,}", "plan")
    going = Sweeping(client, name, plan, params, body, budget)
    going.start()
    output.talk(f"{name}: {output.counted(len(params), 'job')}", "sweep")
    try:
        outcome = going.follow()
    except KeyboardInterrupt:
        output.end_progress()
        if cancel_on_exit:
            going.cancel()
            output.talk(f"sweep {name}: its jobs are cancelled")
        else:
            output.talk(f"detached; the jobs of sweep {name} go on. The same call follows them")
        click.get_current_context().exit(130)
    written = []
    if target is not None:
        with placed(target, last="report.md") as scratch:
            written = report.write(outcome, scratch)
        if "sweep.png" not in written:
            output.talk("no sweep.png: pip install 'manylora[plots]'", "note")
    if as_json:
        output.document(outcome.document())
        return
    curves(outcome.curves())
    output.table(report.COLUMNS, outcome.rows())
    output.talk(outcome.cost(), "spent")
    pick = outcome.pick
    if pick is not None:
        output.talk(f"{space.label(params[pick])}: {outcome.reason}", "picked")
        output.talk(f"manylora fetch {outcome.jobs[pick]['id']} -o DIR")
    for each in written:
        output.talk(str((target or Path()) / each), "written")


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
