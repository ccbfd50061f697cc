"""Every Python file of the project as text and syntax tree; what is asked of them is elsewhere."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: what is installed; the rest is tests, examples and tools
PACKAGES = ("lora_core", "manylora", "scheduler", "worker", "migrations")
REVISIONS = "migrations/versions/"


@dataclass(frozen=True)
class Source:
    """One file: its path from the root with `/`, its text and its tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def packaged(self) -> bool:
        """Whether it is part of what is installed."""
        return self.name.split("/")[0] in PACKAGES

    def calls(self) -> Iterator[ast.Call]:
        """Every call in the file."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))


@cache
def sources() -> tuple[Source, ...]:
    """All of them, whether git knows them yet or not; environments and builds left out."""
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [
            b
            for b in below
            if not b.startswith(".")
            and b not in ("build", "dist", "__pycache__")
            and not Path(folder, b, "pyvenv.cfg").exists()
        ]
        for name in names:
            if name.endswith(".py"):
                path = Path(folder, name)
                text = path.read_text(encoding="utf-8")
                relative = path.relative_to(ROOT).as_posix()
                found.append(Source(relative, text, ast.parse(text, relative)))
    return tuple(sorted(found, key=lambda source: source.name))


def packaged() -> Iterator[Source]:
    """Those that are installed."""
    return (source for source in sources() if source.packaged)


def dotted(node: ast.expr) -> str:
    """`os.environ` for the expression of that name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""
