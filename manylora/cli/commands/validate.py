"""`manylora validate`: is this dataset fit to train on? Needs no server."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manylora.cli import output
from manylora.cli.flags import command, existing_file, json_option
from manylora.errors import UsageError

if TYPE_CHECKING:
    from manylora.datasets.problems import Report


@command()
@click.argument("file", type=existing_file)
@click.option(
    "--fix",
    "fixed",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the lines that can be used to this file.",
)
@json_option
def validate(file: Path, fixed: Path | None, as_json: bool) -> None:
    """Check a dataset line by line, here, by the rules the service uses.

    Exit code: 0 when every line can be used, 3 otherwise.

    \b
    Examples:
    $ manylora validate support.jsonl
    $ manylora validate support.jsonl --fix good.jsonl
    """
    from manylora.cli.check import read, rows, summary

    if fixed is not None and fixed.exists() and fixed.samefile(file):
        raise click.BadParameter("would overwrite the dataset itself", param_hint="--fix")
    report = _fix(file, fixed) if fixed is not None else read(file)
    bad = bool(report.problems)
    if as_json:
        output.document(
            {"ok": not bad, "file": str(file), **report.as_json(), "fixed": fixed and str(fixed)}
        )
    elif not bad:
        output.data(f"{file}: {output.counted(report.examples, 'example')}, all can be used")
    else:
        output.data(summary(file, report))
        for row in rows(report):
            output.data(row)
    if fixed is not None:
        output.talk(f"{fixed}: {output.counted(report.examples, 'line')}", "written")
    elif bad and report.examples:
        output.talk(
            "fix them, or write the good ones with: "
            f"manylora validate {output.quoted(file)} --fix good.jsonl        (exit 3)"
        )
    click.get_current_context().exit(3 if bad else 0)


def _fix(source: Path, target: Path) -> Report:
    """Check, and write every line that can be used to `target`; whole or not at all."""
    from manylora.cli.check import read

    half = target.with_name(f".{target.name}.part")
    try:
        with half.open("wb") as out:
            report = read(source, out)
        half.replace(target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}", param="fix") from error
    finally:
        with contextlib.suppress(OSError):
            half.unlink()
    return report
