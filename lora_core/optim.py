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


class AdamW:
    """The optimizer of one slot: `master` float32 [P] and its moments, `mean` and `square` [P];
    `steps` counts the updates made."""

    def __init__(
        self,
        master: Tensor,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.master = master
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self.mean = torch.zeros_like(master)
        self.square = torch.zeros_like(master)

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """One update at learning rate `rate`; `gradient` is float32 [P]."""
        self.steps += 1
        first, second = self.betas
        self.mean.lerp_(gradient, 1.0 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        correction = math.sqrt(1.0 - second**self.steps)
        below = self.square.sqrt().div_(correction).add_(self.eps)
        if self.weight_decay:
            self.master.mul_(1.0 - rate * self.weight_decay)
        self.master.addcdiv_(self.mean, below, value=-rate / (1.0 - first**self.steps))


@torch.no_grad()
def clip_(gradient: Tensor, max_norm: float) -> float:
    """Scale the gradient [P], in place, so that its 2-norm is at most `max_norm`.

    Returns the norm before. A norm that is no finite number is returned and nothing is scaled.
    """
    norm = float(torch.linalg.vector_norm(gradient))
    factor = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and factor < 1.0:
        gradient.mul_(factor)
    return norm
