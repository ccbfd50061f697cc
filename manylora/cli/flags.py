"""Options that several commands share: `--json`, and the flags that shape an adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import rich_click

F = TypeVar("F", bound=Callable[..., Any])

command = partial(click.command, cls=rich_click.RichCommand)
group = partial(click.group, cls=rich_click.RichGroup)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout; talk on stderr."
)
existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
folder = click.Path(file_okay=False, path_type=Path)

_SHARE = click.FloatRange(0, 1, min_open=True)
_HYPERPARAMETERS = (
    click.option("--epochs", type=click.IntRange(1, 50), help="Passes over the data  [auto: 3]"),
    click.option("--batch-size", type=click.IntRange(1, 256), help="Examples a step  [auto: 4]"),
    click.option("--lr", type=_SHARE, help="Learning rate  [by the base's width]"),
    click.option(
        "--schedule", type=click.Choice(["constant", "linear", "cosine"]), help="[linear]"
    ),
    click.option(
        "--warmup-ratio",
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of the steps that warm up  [0.03]",
    ),
    click.option(
        "--rank", type=click.IntRange(1, 1024), help="Rank of the adapter  [auto: 32 if it fits]"
    ),
    click.option(
        "--alpha", type=click.FloatRange(0, min_open=True), help="Scale is alpha / rank  [rank]"
    ),
    click.option(
        "--dropout",
        type=click.FloatRange(0, 1, max_open=True),
        help="Dropout before the adapter  [0]",
    ),
    click.option(
        "--target-modules",
        multiple=True,
        metavar="NAMES",
        help="Layers that get an adapter; repeat it or use commas  [all-linear]",
    ),
    click.option("--dora", is_flag=True, default=None, help="DoRA: learn each row's length apart"),
    click.option(
        "--learnable-scaling", is_flag=True, default=None, help="Learn the scale of each layer"
    ),
    click.option(
        "--qalora-group",
        type=click.IntRange(2),
        metavar="N",
        help="QA-LoRA: A reads means of N inputs  [off]",
    ),
    click.option(
        "--loraplus-ratio",
        type=click.FloatRange(0, 1000, min_open=True),
        help="LoRA+: B's learning rate over A's  [1]",
    ),
    click.option(
        "--longlora-group",
        type=click.IntRange(2),
        help="LongLoRA: attention in shifted groups of N tokens, an even number  [off]",
    ),
    click.option("--train-norms", is_flag=True, default=None, help="Train the norms, too"),
    click.option(
        "--train-embeddings",
        is_flag=True,
        default=None,
        help="Train the input vectors of the dataset's tokens, too",
    ),
    click.option("--max-length", type=click.IntRange(8), help="Longest example, tokens  [1024]"),
    click.option(
        "--accumulate", type=click.IntRange(1, 256), help="Batches that make one step  [1]"
    ),
    click.option(
        "--eval-every", type=click.IntRange(1), help="Steps between evaluations  [at the end]"
    ),
    click.option(
        "--patience",
        type=click.IntRange(1),
        help="Evaluations without a better loss that end the job  [none]",
    ),
    click.option(
        "--quality", is_flag=True, default=None, help="A quality report beside the adapter."
    ),
)


def hyperparameters(function: F) -> F:
    """Add the flags that `asked` reads."""
    for option in reversed(_HYPERPARAMETERS):
        function = option(function)
    return function


def asked(flags: dict[str, Any]) -> dict[str, Any]:
    """The wire's hyperparameters for the flags that were given, checked before anything is sent.

    Takes its flags out of `flags`. Raises: BadSpecError.
    """
    from manylora.hyperparameters import parse

    modules = [name.strip() for value in flags.pop("target_modules") for name in value.split(",")]
    raw = {
        "n_epochs": flags.pop("epochs"),
        "batch_size": flags.pop("batch_size"),
        "learning_rate": flags.pop("lr"),
        "lr_schedule": flags.pop("schedule"),
        "warmup_ratio": flags.pop("warmup_ratio"),
        "lora_r": flags.pop("rank"),
        "lora_alpha": flags.pop("alpha"),
        "lora_dropout": flags.pop("dropout"),
        "use_dora": flags.pop("dora"),
        "learnable_scaling": flags.pop("learnable_scaling"),
        "use_qalora": True if flags["qalora_group"] else None,
        "qalora_group_size": flags.pop("qalora_group"),
        "loraplus_lr_ratio": flags.pop("loraplus_ratio"),
        "longlora_group_size": flags.pop("longlora_group"),
        "train_norms": flags.pop("train_norms"),
        "train_embeddings": flags.pop("train_embeddings"),
        "target_modules": "all-linear" if modules == ["all-linear"] else modules or None,
        "context_length": flags.pop("max_length"),
        "gradient_accumulation_steps": flags.pop("accumulate"),
        "eval_every": flags.pop("eval_every"),
        "early_stopping_patience": flags.pop("patience"),
        "quality_report": flags.pop("quality"),
    }
    given = {name: value for name, value in raw.items() if value is not None}
    parse(given)
    return given


def metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    """`k=v` pairs as a mapping. Raises: click.BadParameter."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not k=v", param_hint="--metadata")
        found[name] = value
    return found
