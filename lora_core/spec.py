"""What one adapter is: rank, scaling, dropout, where it sits, and the seed it starts from.
Values only: no weights, no file format.

LoRA: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), W x + (alpha/r) B A x.
rsLoRA: "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA" (Kalajdzievski, 2023),
alpha / sqrt(r).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_core.errors import SpecError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter's shape. `target_modules` as in PEFT: "all-linear" (every linear layer but the
    output head), a tuple of names or name endings, or one regular expression.

    Raises: SpecError.
    """

    r: int = 32
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    rslora: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise SpecError(f"rank {self.r} is less than 1")
        if not self.alpha > 0 or not math.isfinite(self.alpha):
            raise SpecError(f"alpha {self.alpha} is not a positive number")
        if not 0 <= self.dropout < 1:
            raise SpecError(f"dropout {self.dropout} is not in [0, 1)")
        if not self.target_modules:
            raise SpecError("target_modules is empty")

    @property
    def scaling(self) -> float:
        """The factor before B A x: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)
