"""AdamW for one slot's numbers, and the clipping of their gradient.

"Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019), the update of
`torch.optim.AdamW`. Learning rates come from outside (`schedule.py`), and runs of numbers may have
multiples of them (`variants/loraplus.py`); no amsgrad, nothing shared between jobs: the shape of
every operation is the slot's own.

P numbers of a slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_core.native import Kernels
from lora_core.variants.loraplus import Pace


class AdamW:
    """The optimizer of one slot: `master` float32 [P] and its moments, `mean` and `square` [P];
    `steps` counts the updates made. `low` bf16 [P] follows the master. `paces` are runs of numbers
    and what the learning rate is multiplied with there (by default all, and 1). With native
    `kernels` the numbers do not depend on how many threads there are."""

    def __init__(
        self,
        master: Tensor,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        low: Tensor | None = None,
        paces: Sequence[Pace] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self.master = master
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self.mean = torch.zeros_like(master)
        self.square = torch.zeros_like(master)
        self.paces = paces or [(slice(0, master.numel()), 1.0)]
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
        if scale < 1.0 and self._kernels is None:
            gradient.mul_(scale)
        for run, factor in self.paces:
            self._move(run, gradient[run], rate * factor, scale)
        return norm

    def _move(self, run: slice, gradient: Tensor, rate: float, scale: float) -> None:
        """The update of one run of numbers; torch's has its gradient clipped already."""
        first, second = self.betas
        master, mean, square = self.master[run], self.mean[run], self.square[run]
        low = None if self._low is None else self._low[run]
        correction = math.sqrt(1.0 - second**self.steps)
        decay = 1.0 - rate * self.weight_decay
        pace = rate / (1.0 - first**self.steps)
        if self._kernels is not None:
            self._kernels.adamw(
                master,
                gradient,
                (mean, square),
                scale=scale,
                betas=self.betas,
                decay=decay,
                rate=pace,
                correction=1.0 / correction,
                eps=self.eps,
                low=low,
            )
            return
        mean.lerp_(gradient, 1.0 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        below = square.sqrt().div_(correction).add_(self.eps)
        if self.weight_decay:
            master.mul_(decay)
        master.addcdiv_(mean, below, value=-pace)
        if low is not None:
            low.copy_(master)


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
