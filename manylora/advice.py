"""Hyperparameters for a dataset whose size is known, each with its reason.

"LoRA Without Regret" (Schulman et al., 2025): adapters on all linear layers, enough of them for
what the data holds, alpha 32 whatever the rank so that the best learning rate does not depend on
it, ten times the rate of full fine-tuning (fifteen for a short training), small batches, about 100
steps at least. A LoRA holds about 2 bits a parameter ("Physics of Language Models: Part 3.3",
Allen-Zhu and Li, 2024), a token of a dataset needs about 1. Pure; nothing is read here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

ALPHA = 32.0
STEPS, MOST_EPOCHS = 100, 10
RANKS = (8, 16, 32, 64, 128)
_BITS_A_PARAMETER, _BITS_A_TOKEN = 2.0, 1.0
_SHORT = 1.5


@dataclass(frozen=True)
class Size:
    """How much there is to learn: training examples, and about how many tokens they have."""

    examples: int
    tokens: int


@dataclass(frozen=True)
class Room:
    """What a base offers: numbers of an adapter for each rank, on all linear layers, and the
    largest rank its narrowest layer takes."""

    per_rank: int
    largest: int

    @classmethod
    def of(cls, layers: dict[str, list[int]]) -> Room:
        """From module names and [in_features, out_features]."""
        shapes = list(layers.values())
        return cls(sum(map(sum, shapes)), min((min(s) for s in shapes), default=1))


def advise(size: Size, room: Room, rate: float) -> dict[str, tuple[Any, str]]:
    """Hyperparameters as the wire spells them, each with its reason in a line. `rate` is the
    learning rate for the base's width."""
    rank = next((r for r in RANKS if _holds(r, room) >= size.tokens), RANKS[-1])
    rank = min(rank, room.largest)
    holds = _holds(rank, room)
    fits = "room for" if holds >= size.tokens else "less than there is; room for"
    batch = next(b for b in (16, 8, 4, 2, 1) if b == 1 or size.examples >= b * _EXAMPLES_A_PLACE)
    once = math.ceil(size.examples / batch)
    epochs = min(MOST_EPOCHS, max(3 if once < 10 * STEPS else 1, math.ceil(STEPS / once)))
    steps = once * epochs
    found: dict[str, tuple[Any, str]] = {
        "target_modules": ("all-linear", "on every linear layer: attention alone learns less"),
        "lora_r": (rank, f"{fits} about {holds:,} tokens; the data has about {size.tokens:,}"),
        "lora_alpha": (ALPHA, "whatever the rank: the best learning rate stays the same"),
        "batch_size": (batch, f"small: LoRA pays for large batches; {once:,} steps an epoch"),
        "n_epochs": (epochs, f"{steps:,} steps in all; at least about {STEPS} where 10 epochs do"),
    }
    why = "ten times that of full fine-tuning, by the base's width"
    if steps < STEPS:
        rate, why = float(f"{rate * _SHORT:.3g}"), f"{why}, half more for a short training"
    found["learning_rate"] = (rate, why)
    return found


#: examples there should be for each place in a batch, so that an epoch has enough steps
_EXAMPLES_A_PLACE = 50


def _holds(rank: int, room: Room) -> int:
    return int(rank * room.per_rank * _BITS_A_PARAMETER / _BITS_A_TOKEN)
