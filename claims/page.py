"""The page: docs/claims.md, whole, from rows."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from claims import deeper, economics, enthusiasts, matrices, road
from claims.row import Claim, Row

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "claims.md"
EVERY: list[Claim] = [
    *road.CLAIMS, *matrices.CLAIMS, *economics.CLAIMS, *deeper.CLAIMS, *enthusiasts.CLAIMS
]  # fmt: skip
_HEAD = """# Claims

What the documents behind this project say, done again with its own code. `make claims` measures
every row in a few minutes and writes this page; nothing in it is typed in.

Pictures are CIFAR-10 where its path is given (`make claims CIFAR=folder`, which holds a
`cifar10.safetensors` with x_train, y_train, x_test and y_test), else scikit-learn's digits made
into CIFAR's shape; a row says which. Times are of the machine that wrote the page.
"""


def written(rows: list[Row]) -> str:
    """The page as text."""
    parts = [_HEAD]
    for document, group in groupby(rows, key=lambda row: row.claim.document):
        parts.append(f"## {document}\n")
        parts.append("| row | claim | measured | holds |\n| --- | --- | --- | --- |")
        parts += [
            f"| {row.claim.name} | {row.claim.says} | {row.measured} | "
            f"{'yes' if row.holds else '**no**'} |"
            for row in group
        ]
        parts.append("")
    return "\n".join(parts)
