"""AdamW for one slot's numbers, and the clipping of their gradient.

"Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019), the update of
`torch.optim.AdamW`. Learning rates come from outside (`schedule.py`); no parameter groups, no
amsgrad, nothing shared between jobs: the shape of every operation is the slot's own.

P numbers of a slot.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lora_core.native import Kernels


class AdamW:
    """The optimizer of one slot: `master` float32 [P] and its moments, `mean` and `square` [P];
    `steps` counts the updates made. `low` bf16 [P] follows the master. With native `kernels` the
    numbers do not depend on how many threads there are."""

    def __init__(
        self,
        master: Tensor,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        low: Tensor | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self.master = master
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self.mean = torch.zeros_like(master)
        self.square = torch.zeros_like(master)
        self._low = low
        self._kernels = kernels

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float, max_norm: float = math.inf) -> float:
        """One update at learning rate `rate` with the gradient float32 [P] clipped to `max_norm`.

        Returns the gradient's norm; one that is no finite number leaves everything as it was.
        """
        norm = norm_of(gradient, self._kernels)
        if not math.isfinite(norm):
            return norm
        scale = min(1.0, max_norm / (norm + 1e-6))
        self.steps += 1
        first, second = self.betas
        correction = math.sqrt(1.0 - second**self.steps)
        decay = 1.0 - rate * self.weight_decay
        pace = rate / (1.0 - first**self.steps)
        if self._kernels is not None:
            self._kernels.adamw(
                self.master,
                gradient,
                (self.mean, self.square),
                scale=scale,
                betas=self.betas,
                decay=decay,
                rate=pace,
                correction=1.0 / correction,
                eps=self.eps,
                low=self._low,
            )
            return norm
        if scale < 1.0:
            gradient.mul_(scale)
        self.mean.lerp_(gradient, 1.0 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        below = self.square.sqrt().div_(correction).add_(self.eps)
        if self.weight_decay:
            self.master.mul_(decay)
        self.master.addcdiv_(self.mean, below, value=-pace)
        if self._low is not None:
            self._low.copy_(self.master)
        return norm


@torch.no_grad()
def norm_of(gradient: Tensor, kernels: Kernels | None = None) -> float:
    """The 2-norm of float32 [P]."""
    return kernels.length(gradient) if kernels else float(torch.linalg.vector_norm(gradient))


@torch.no_grad()
def clip_(gradient: Tensor, max_norm: float) -> float:
    """Scale the gradient [P], in place, so that its 2-norm is at most `max_norm`.

    Returns the norm before. A norm that is no finite number is returned and nothing is scaled.
    """
    norm = norm_of(gradient)
    factor = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and factor < 1.0:
        gradient.mul_(factor)
    return norm
