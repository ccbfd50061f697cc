"""AdamW for one job's parameters, and the clipping of its gradients.

"Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019), the update of
`torch.optim.AdamW`. Learning rates come from outside (`schedule.py`); no parameter groups, no
amsgrad, nothing shared between jobs.

P numbers of all parameters together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class AdamW:
    """The optimizer of one job. Moments are two flat float32 tensors [P], in the order of the
    parameters; `steps` counts the updates made."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self._sizes = [parameter.numel() for parameter in self.parameters]
        device = self.parameters[0].device if self.parameters else None
        self.mean = torch.zeros(sum(self._sizes), dtype=torch.float32, device=device)
        self.square = torch.zeros_like(self.mean)

    def moments(self, index: int) -> tuple[Tensor, Tensor]:
        """Mean and mean square of one parameter's gradient, as views of its shape."""
        start = sum(self._sizes[:index])
        end = start + self._sizes[index]
        shape = self.parameters[index].shape
        return self.mean[start:end].view(shape), self.square[start:end].view(shape)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One update at learning rate `rate`; `gradients` are shaped as the parameters."""
        self.steps += 1
        first, second = self.betas
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.mean.lerp_(flat, 1.0 - first)
        self.square.mul_(second).addcmul_(flat, flat, value=1.0 - second)
        correction = math.sqrt(1.0 - second**self.steps)
        below = (self.square.sqrt() / correction).add_(self.eps)
        size = rate / (1.0 - first**self.steps)
        means, belows = torch.split(self.mean, self._sizes), torch.split(below, self._sizes)
        for parameter, mean, divisor in zip(self.parameters, means, belows, strict=True):
            if self.weight_decay:
                parameter.mul_(1.0 - rate * self.weight_decay)
            shape = parameter.shape
            parameter.addcdiv_(mean.view(shape), divisor.view(shape), value=-size)


@torch.no_grad()
def clip_(gradients: Sequence[Tensor], max_norm: float) -> float:
    """Scale the gradients, in place, so that their joint 2-norm is at most `max_norm`.

    Returns the norm before. A norm that is no finite number is returned and nothing is scaled.
    """
    if not gradients:
        return 0.0
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    norm = float(torch.linalg.vector_norm(norms))
    factor = max_norm / (norm + 1e-6)
    if math.isfinite(norm) and factor < 1.0:
        for gradient in gradients:
            gradient.mul_(factor)
    return norm
