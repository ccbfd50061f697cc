"""What is wrong with a dataset: every bad line, with its number, its place and its fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from manylora.errors import DatasetError

_SHOWN = 20
#: codes that concern the file, not one line
FILE_CODES = frozenset(
    {
        "empty_file",
        "file_too_large",
        "too_few_examples",
        "too_many_examples",
        "too_many_problems",
    }
)
#: codes of files of arrays
ARRAY_CODES = frozenset(
    {
        "bad_dtype",
        "bad_shape",
        "counts_differ",
        "missing_array",
        "not_arrays",
        "not_finite",
        "object_array",
        "out_of_range",
        "unknown_array",
        "wrong_kind",
    }
)
#: every code of lines; docs/datasets.md says what each means, and those of arrays
CODES = FILE_CODES | frozenset(
    {
        "bad_weight",
        "blank_line",
        "data_type",
        "empty_messages",
        "empty_text",
        "missing_content",
        "missing_key",
        "mixed_kinds",
        "no_assistant",
        "not_json",
        "not_object",
        "not_utf8",
        "nothing_weighted",
        "number_too_long",
        "too_deep",
        "too_long",
        "unrecognized_key",
        "unrecognized_role",
    }
)


@dataclass(frozen=True)
class Problem:
    """One problem. `path` is a JSON path ("$" is the whole line); line 0 means the file."""

    line: int
    path: str
    code: str
    message: str
    fix: str


@dataclass
class Report:
    """What a validation found. `kind` is "text", "completion", "messages" or "arrays"."""

    kind: str | None = None
    lines: int = 0
    examples: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def bad_lines(self) -> int:
        """Lines with at least one problem."""
        return len({p.line for p in self.problems if p.line})

    def raise_if_bad(self, filename: str) -> None:
        """Raises: DatasetError naming the first 20 problems."""
        if not self.problems:
            return
        told = []
        for p in self.problems[:_SHOWN]:
            place = f"line {p.line}: " if p.line else ""
            told.append(f"{place}{'' if p.path == '$' else p.path + ' '}{p.message}")
        more = len(self.problems) - _SHOWN
        if self.bad_lines:
            head = f"{filename}: {self.bad_lines} of {self.lines} lines cannot be used"
        else:
            head = f"{filename} cannot be used"
        raise DatasetError(
            f"{head}\n  " + "\n  ".join(told) + (f"\n  and {more} more" if more > 0 else ""),
            hint=self.problems[0].fix,
            param="training_file",
            details=self.as_json(),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, all problems included."""
        return {
            "kind": self.kind,
            "lines": self.lines,
            "examples": self.examples,
            "bad_lines": self.bad_lines,
            "problems": [asdict(p) for p in self.problems],
        }
