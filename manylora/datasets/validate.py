"""Validate a JSONL dataset as a stream: every bad line is found, no input raises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from manylora.datasets import formats
from manylora.datasets.limits import Limits
from manylora.datasets.problems import Problem, Report

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


class Readable(Protocol):
    """Anything that yields bytes by `read(n)`: a file, an upload, an object's body."""

    def read(self, n: int, /) -> bytes: ...


def validate_path(path: Path | str, limits: Limits, good: IO[bytes] | None = None) -> Report:
    """`validate` for a file on disk."""
    with open(path, "rb") as stream:
        return validate(stream, limits, good=good)


def validate(stream: Readable, limits: Limits, *, good: IO[bytes] | None = None) -> Report:
    """Read every line; `good`, if given, gets the usable ones.

    Memory stays within two lines' limit and what the problems take.
    """
    report = Report()
    total = 0
    for raw, size in _lines(stream, limits.max_line_bytes):
        report.lines += 1
        total += size
        if total > limits.max_file_bytes:
            _file_problem(
                report,
                "file_too_large",
                f"is larger than {limits.max_file_bytes} bytes",
                "split it into several jobs",
            )
            break
        found = list(_check_line(raw, size, report, limits))
        report.problems.extend(Problem(report.lines, *each) for each in found)
        if found:
            continue
        report.examples += 1
        if report.examples > limits.max_examples:
            _file_problem(
                report,
                "too_many_examples",
                f"has more than {limits.max_examples} examples",
                "split it into several jobs",
            )
            break
        if good is not None:
            good.write(raw + b"\n")
    if report.lines == 0:
        _file_problem(report, "empty_file", "is empty", "put one JSON object on each line")
    elif report.examples < limits.min_examples and not report.problems:
        _file_problem(
            report,
            "too_few_examples",
            f"has {report.examples} example(s), at least {limits.min_examples} are needed",
            "add examples",
        )
    return report


def _file_problem(report: Report, code: str, message: str, fix: str) -> None:
    report.problems.append(Problem(0, "$", code, f"the file {message}", fix))


def _lines(stream: Readable, longest: int) -> Iterator[tuple[bytes, int]]:
    """Lines without their ends, and their size in bytes; of one longer than `longest` only the
    beginning is kept."""
    held, size, first = b"", 0, True
    while chunk := stream.read(_CHUNK):
        if first:
            chunk, first = chunk.removeprefix(_BOM), False
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            yield (held + part)[: longest + 1].removesuffix(b"\r"), size + len(part) + 1
            held, size = b"", 0
        held, size = (held + rest)[: longest + 1], size + len(rest)
    if size:
        yield held.removesuffix(b"\r"), size


def _check_line(raw: bytes, size: int, report: Report, limits: Limits) -> Iterator[formats.Found]:
    if size - 1 > limits.max_line_bytes:
        message = f"is {size - 1} bytes long, at most {limits.max_line_bytes} are allowed"
        yield "$", "too_long", message, "shorten or split the example"
        return
    if not raw.strip():
        yield "$", "blank_line", "is blank", "remove the line"
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        yield "$", "not_utf8", f"is not UTF-8 (byte {error.start + 1})", "save the file as UTF-8"
        return
    brackets = raw.count(b"[") + raw.count(b"{")  # cheap: few lines need the walk
    if brackets > limits.max_json_depth and _depth(raw) > limits.max_json_depth:
        message = f"is nested deeper than {limits.max_json_depth} levels"
        yield "$", "too_deep", message, "flatten it"
        return
    try:
        line: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        yield "$", "not_json", f"is not JSON: {error}", "one JSON object on each line"
        return
    if not isinstance(line, dict):
        message = f"is not a JSON object: it begins with {text.strip()[:20]!r}"
        yield "$", "not_object", message, "one JSON object on each line"
        return
    kind = formats.kind_of(line)
    if kind is None:
        message = "has none of messages, prompt and completion, text"
        yield "$", "missing_key", message, "see the formats in docs/datasets.md"
        return
    if report.kind is None:
        report.kind = kind
    elif kind != report.kind:
        message = f"is of the kind {kind!r} in a file of {report.kind!r}"
        yield "$", "mixed_kinds", message, "one kind of line in each file"
        return
    yield from formats.check(line, kind)


def _depth(raw: bytes) -> int:
    """Deepest nesting of brackets outside of strings, without decoding."""
    deepest = depth = 0
    inside = escaped = False
    for byte in raw:
        if inside:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                inside = False
        elif byte == 0x22:
            inside = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest
