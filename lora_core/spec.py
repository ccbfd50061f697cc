"""What one adapter is: rank, scaling, dropout, where it sits, and the seed it starts from.
Values only: no weights, no file format.

LoRA: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), W x + (alpha/r) B A x.
rsLoRA: "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA" (Kalajdzievski, 2023),
alpha / sqrt(r). The other variants' papers are named in `variants/`.
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

    `dora`: DoRA, a magnitude for each output; `learnable_scaling`: a trainable factor beside the
    scaling of each layer; `qalora_group_size`: QA-LoRA's adapter on means of so many inputs;
    `loraplus_lr_ratio`: LoRA+, B's learning rate over A's. `train_norms` and `trainable_tokens`
    (ids; PEFT's `trainable_token_indices`) are what LongLoRA trains beside A and B: the weights of
    the norms over the hidden state, and the input embedding's vectors of those tokens.

    Raises: SpecError.
    """

    r: int = 32
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    rslora: bool = False
    seed: int = 0
    dora: bool = False
    learnable_scaling: bool = False
    qalora_group_size: int | None = None
    loraplus_lr_ratio: float = 1.0
    train_norms: bool = False
    trainable_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.r < 1:
            raise SpecError(f"rank {self.r} is less than 1")
        if not self.alpha > 0 or not math.isfinite(self.alpha):
            raise SpecError(f"alpha {self.alpha} is not a positive number")
        if not 0 <= self.dropout < 1:
            raise SpecError(f"dropout {self.dropout} is not in [0, 1)")
        if not self.target_modules:
            raise SpecError("target_modules is empty")
        if self.qalora_group_size is not None and self.qalora_group_size < 2:
            raise SpecError(f"qalora_group_size {self.qalora_group_size} is less than 2")
        if not 0 < self.loraplus_lr_ratio < math.inf:
            raise SpecError(f"loraplus_lr_ratio {self.loraplus_lr_ratio} is not a positive number")
        if self.dora and self.qalora_group_size is not None:
            raise SpecError(
                "DoRA and QA-LoRA cannot be one adapter: DoRA scales whole rows of the base, and "
                "QA-LoRA's point is that merging leaves the quantised base's numbers as they are"
            )
        if self.dora and self.learnable_scaling:
            raise SpecError(
                "DoRA with a learnable scaling has two parameters for one thing: its magnitudes "
                "learn the scale of every row already"
            )

    @property
    def scaling(self) -> float:
        """The factor before B A x: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)
