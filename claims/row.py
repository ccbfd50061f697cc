"""One line of the table, and how to make one. No measuring here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Found = tuple[str, bool]


@dataclass(frozen=True)
class Place:
    """Where a claim may write, and where CIFAR-10 lies if the user has it."""

    out: Path
    cifar: Path | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence of a document, and what measures it: (measured, holds). `cheap` ones take
    seconds."""

    name: str
    document: str
    says: str
    measure: Callable[[Place], Found]
    cheap: bool = True


@dataclass(frozen=True)
class Row:
    """A claim measured."""

    claim: Claim
    measured: str
    holds: bool


def measured(claim: Claim, place: Place) -> Row:
    """Measure one claim."""
    said, holds = claim.measure(place)
    return Row(claim, said, holds)


def near(found: float, wanted: float, share: float) -> bool:
    """Whether a number is within a share of another."""
    return math.isclose(found, wanted, rel_tol=share)
