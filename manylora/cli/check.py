"""Checking a dataset before it is sent, and saying what is wrong with it. The rules themselves
are in `manylora.datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from manylora.cli import context, output
from manylora.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from manylora.datasets.problems import Report

SHOWN = 20


def read(
    path: Path, good: IO[bytes] | None = None, network: dict[str, Any] | None = None
) -> Report:
    """Read a dataset under the limits of the settings; `good` gets the lines that can be used.
    Arrays are held against `network`, if it is told."""
    from manylora.datasets.arrays import is_arrays, validate_arrays
    from manylora.datasets.limits import Limits
    from manylora.datasets.validate import validate_path

    limits = Limits.from_settings(context.settings())
    if is_arrays(path.name):
        if good is not None:
            raise UsageError("--fix is for files of lines", param="fix")
        return validate_arrays(path, limits, network)
    return validate_path(path, limits, good)


def checked(path: Path, network: dict[str, Any] | None = None) -> Report:
    """A dataset that can be used, by a base with that network if it is told. Raises: DatasetError
    after listing the bad lines on stderr."""
    report = read(path, network=network)
    if report.problems:
        for row in rows(report):
            output.talk(row)
        raise DatasetError(summary(path, report), hint=f"manylora validate {output.quoted(path)}")
    return report


def summary(path: Path, report: Report) -> str:
    """One line: how many lines, or that the file, cannot be used."""
    if not report.bad_lines:
        return f"{path} cannot be used"
    return f"{path}: {report.bad_lines:,} of {output.counted(report.lines, 'line')} cannot be used"


def rows(report: Report) -> list[str]:
    """The bad lines, aligned; the first few of many."""
    shown = [(f"line {p.line}" if p.line else "file", p.path, p) for p in report.problems[:SHOWN]]
    width = max((len(where) for where, _, _ in shown), default=0)
    at = min(max((len(path) for _, path, _ in shown), default=0), 32)
    lines = [f"  {where.ljust(width)}   {path.ljust(at)}   {p.message}" for where, path, p in shown]
    if len(report.problems) > len(shown):
        lines.append(f"  and {len(report.problems) - len(shown):,} more; all with --json")
    return lines
