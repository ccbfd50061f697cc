"""Validate a JSONL dataset as a stream: every bad line is found, no input raises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import msgspec

from manylora.datasets import formats
from manylora.datasets.limits import Limits
from manylora.datasets.problems import Problem, Report

_CHUNK = 1 << 20
_MAX_PROBLEMS = 100_000
_PER_LINE = 20  # problems told of one line
_LONG_NUMBER = re.compile(rb"[0-9.]{65}")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BOM = b"\xef\xbb\xbf"


@runtime_checkable
class Readable(Protocol):
    """Anything that yields bytes by `read(n)`: a file, an upload, an object's body."""

    def read(self, n: int, /) -> bytes:
        """At most `n` bytes; none at the end."""
        ...


def validate_path(path: Path | str, limits: Limits, good: IO[bytes] | None = None) -> Report:
    """`validate` for a file on disk."""
    with open(path, "rb") as stream:
        return validate(stream, limits, good=good)


def validate(
    stream: Readable | Iterable[bytes], limits: Limits, *, good: IO[bytes] | None = None
) -> Report:
    """Read every line; `good`, if given, gets the usable ones. No bytes make it raise.

    `stream` is read by chunks, or is the chunks. Blank lines at the end of the file are not
    counted. Memory stays within two chunks, one line's limit and 100,000 problems.
    """
    report = Report()
    total = blank = 0
    for raw, size in _lines(stream, limits.max_line_bytes):
        total += size + 1
        if size <= limits.max_line_bytes and not raw.strip() and total <= limits.max_file_bytes:
            blank += 1
            continue
        _blanks(report, blank)
        blank = 0
        report.lines += 1
        if total - 1 > limits.max_file_bytes:
            _file_problem(
                report,
                "file_too_large",
                f"is larger than {limits.max_file_bytes} bytes",
                "split it into several jobs",
            )
            break
        if len(report.problems) >= _MAX_PROBLEMS:
            message = f"has more than {_MAX_PROBLEMS:,} problems; the rest was not read"
            _file_problem(report, "too_many_problems", message, "fix these first")
            break
        found = list(islice(_check_line(raw, size, report, limits), _PER_LINE))
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


def _blanks(report: Report, count: int) -> None:
    """Blank lines turned out to be inside the file."""
    for _ in range(min(count, max(0, _MAX_PROBLEMS - len(report.problems)))):
        report.lines += 1
        problem = Problem(report.lines, "$", "blank_line", "is blank", "remove the line")
        report.problems.append(problem)


def _file_problem(report: Report, code: str, message: str, fix: str) -> None:
    report.problems.append(Problem(0, "$", code, f"the file {message}", fix))


def _lines(stream: Readable | Iterable[bytes], longest: int) -> Iterator[tuple[bytes, int]]:
    """Lines without their ends, and their size in bytes; of one longer than `longest` only the
    beginning is kept."""
    held, size, first = b"", 0, True
    for chunk in _chunks(stream):
        if first:
            chunk, first = chunk.removeprefix(_BOM), False
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            yield (held + part)[: longest + 1].removesuffix(b"\r"), size + len(part)
            held, size = b"", 0
        held, size = (held + rest)[: longest + 1], size + len(rest)
    if size:
        yield held.removesuffix(b"\r"), size


def _chunks(stream: Readable | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(stream, Readable):
        while chunk := stream.read(_CHUNK):
            yield chunk
    else:
        yield from stream


def _check_line(raw: bytes, size: int, report: Report, limits: Limits) -> Iterator[formats.Found]:
    if size > limits.max_line_bytes:
        message = f"is {size} bytes long, at most {limits.max_line_bytes} are allowed"
        yield "$", "too_long", message, "shorten or split the example"
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
    if _LONG_NUMBER.search(raw) and _LONG_NUMBER.search(_STRING.sub(b"", raw)):
        yield "$", "number_too_long", "has a number of more than 64 digits", "put it in quotes"
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
