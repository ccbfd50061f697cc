"""Entry of `manylora`: the table of commands and what an error becomes. No command lives here.

A command's module is imported when it is called, so that `manylora --help` reads this table only.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click
import rich_click
from rich_click.rich_panel import RichCommandPanel

from manylora import __version__
from manylora.cli import output
from manylora.errors import ManyloraError, UsageError

#: panel -> name -> (module under `commands`, short help)
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Jobs": {
        "submit": ("submit:submit", "Check a dataset, send it, start a job and follow it."),
        "sweep": ("sweep:sweep", "Try hyperparameters on a budget; losers are stopped early."),
        "validate": ("validate:validate", "Check a dataset; nothing is sent."),
        "jobs": ("jobs:jobs", "List jobs, newest first."),
        "queue": ("queue:queue", "What waits, why, and when it starts."),
        "show": ("show:show", "Everything known about one job."),
        "watch": ("watch:watch", "Follow a job: progress, losses and a plot."),
        "logs": ("logs:logs", "A job's events, oldest first."),
        "tensorboard": ("tensorboard:tensorboard", "Write a job's curves for TensorBoard."),
        "wait": ("wait:wait", "Wait until jobs end; exit with the worst of their fates."),
        "cancel": ("cancel:cancel", "Take jobs back."),
        "pause": ("pause:pause", "Hold jobs back."),
        "resume": ("resume:resume", "Let paused jobs go on."),
        "webhook": ("webhook:webhook", "Be told by HTTP when jobs end."),
    },
    "Adapters": {
        "adapters": ("adapters:adapters", "List published adapters."),
        "fetch": ("fetch:fetch", "Download an adapter and check every byte of it."),
        "verify": ("verify:verify", "Check a downloaded adapter, offline."),
        "merge": ("merge:merge", "Fold an adapter into its base: a model of its own."),
        "extract": ("extract:extract", "An adapter from two checkpoints."),
        "resize": ("resize:resize", "Change an adapter's rank."),
        "quality": ("quality:quality", "What a job's quality report says."),
        "generate": ("generate:generate", "Try a prompt on a base or an adapter, on this machine."),
    },
    "Bases": {"base": ("base:base", "Add, list and remove base models.")},
    "Service": {
        "up": ("up:up", "Start the whole service on this machine."),
        "down": ("down:down", "Stop what `up` started."),
        "tenants": ("tenants:tenants", "Weights and quotas of tenants."),
        "status": ("status:status", "What runs, what waits and why."),
        "api": ("api:api", "Run the HTTP API."),
        "scheduler": ("scheduler:scheduler", "Run the scheduler."),
        "worker": ("worker:worker", "Run a worker for one base."),
        "doctor": ("doctor:doctor", "Ask every part how it is, and say what to do."),
        "db": ("db:db", "Create or upgrade the database."),
    },
    "On this machine": {
        "train": ("train:train", "Train one adapter here, without the service."),
        "simulate": ("simulate:simulate", "What a pool would do, before it is bought."),
        "config": ("config:config", "Show the settings and where each comes from."),
    },
}


class LazyCommand(rich_click.RichCommand):
    """A command's line in the table; the command itself is loaded when it is called."""

    def __init__(self, name: str, target: str, short_help: str) -> None:
        super().__init__(name=name, help=short_help, short_help=short_help)
        self.target = target

    def load(self) -> click.Command:
        """The real command."""
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(f"manylora.cli.commands.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        return self.load().make_context(info_name, args, parent=parent, **extra)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        output.data(f"manylora {__version__}")
        ctx.exit()


@click.group(
    cls=rich_click.RichGroup,
    name="manylora",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "rich_help_config": {"text_paragraph_linebreaks": "\n\n", "max_width": 100},
    },
    panels=[RichCommandPanel(title, commands=list(table)) for title, table in COMMANDS.items()],
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Fine-tune many LoRA adapters on one shared, frozen base.

    \b
    Examples:
    $ manylora up -d
    $ manylora submit support.jsonl --base gemma-3-270m --suffix support
    $ manylora fetch support -o ./support
    """


for _table in COMMANDS.values():
    for _name, (_target, _help) in _table.items():
        cli.add_command(LazyCommand(_name, _target, _help))


def _report(error: ManyloraError, as_json: bool) -> int:
    hint = error.hint or error.default_hint
    if as_json:
        body = {
            "message": error.message,
            "type": type(error).__name__,
            "code": error.error_code,
            "param": error.param,
            "hint": hint,
            "exit_code": error.exit_code,
        }
        output.document({"error": body})
    else:
        output.error(error.message, hint)
    return error.exit_code


def _usage(error: click.ClickException) -> ManyloraError:
    ctx = getattr(error, "ctx", None)
    hint = f"see: {ctx.command_path} --help" if ctx is not None else None
    known = UsageError(error.format_message().rstrip("."), hint=hint)
    known.exit_code = error.exit_code  # type: ignore[misc]
    return known


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    output.setup()
    # Judged from the words alone: an error may come before any option is parsed.
    words = list(args)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        result = cli.main(args=words, prog_name="manylora", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ManyloraError as error:
        return _report(error, as_json)
    except click.exceptions.Abort:
        output.end_progress()
        return 130
    except click.ClickException as error:
        return _report(_usage(error), as_json)
    except ValueError as error:
        pydantic = sys.modules.get("pydantic")
        if pydantic is None or not isinstance(error, pydantic.ValidationError):
            raise
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return _report(UsageError("; ".join(lines), hint="see: manylora config show"), as_json)


def main() -> None:
    """The `manylora` of the shell."""
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read us has gone; nothing is left to say to anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except Exception:
        # Libraries turn a Ctrl-C while they are imported into errors of their own.
        if not interrupted:
            raise
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
