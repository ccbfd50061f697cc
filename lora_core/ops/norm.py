"""Root-mean-square norms with frozen weights, in few passes over the rows.

"Root Mean Square Layer Normalization" (Zhang and Sennrich, 2019): y = x / sqrt(mean(x^2) + eps),
times w (Llama, Qwen, Mistral) or 1 + w (Gemma). A model's own modules do this in a dozen float32
passes, twice as many with the backward; this one keeps x in its own dtype and one number a row.
A module is taken over only when trying it out shows which of the two it computes.

D width; rows are whatever comes before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        r = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, r, weight)
        # For float32 input `wide` is x itself, which is not ours to change.
        out = wide * r if wide is x else wide.mul_(r)
        return out.mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, r, weight = ctx.saved_tensors
        wide = x.float()
        given = grads[0].float() * weight
        dot = torch.linalg.vecdot(given, wide, dim=-1).unsqueeze(-1)
        slope = dot.mul_(r * r * r).div_(-x.shape[-1])
        return given.mul_(r).addcmul_(wide, slope).to(x.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] over its root mean square, times weight float32 [D]."""
    out: Tensor = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


@torch.no_grad()
def take_over(model: nn.Module) -> int:
    """Let this file compute every norm of the model it understands; returns how many."""
    found = 0
    for module in model.modules():
        eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
        weight = getattr(module, "weight", None)
        if not type(module).__name__.endswith("RMSNorm") or not isinstance(eps, float):
            continue
        if not isinstance(weight, Tensor) or weight.dim() != 1:
            continue
        factor = _factor(module, weight, eps)
        if factor is not None:
            module.forward = _Instead(factor, eps)
            found += 1
    return found


class _Instead:
    def __init__(self, factor: Tensor, eps: float) -> None:
        self.factor = factor
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.factor, self.eps)


def _factor(module: nn.Module, weight: Tensor, eps: float) -> Tensor | None:
    """float32 [D] the module multiplies with: w, 1 + w, or None for something else."""
    x = torch.linspace(-2.0, 3.0, 3 * len(weight), device=weight.device).view(3, -1)
    x = x.to(weight.dtype)
    own = module(x).float()
    slack = 1e-5 if weight.dtype == torch.float32 else 1e-2
    best: tuple[float, Tensor] | None = None
    for plus in (0.0, 1.0):
        factor = (plus + weight.float()).contiguous()
        made = rms_norm(x, factor, eps).float()
        # A large weight and one more than it differ little: of the two the nearer one counts.
        error = float((made - own).norm() / own.norm().clamp_min(1e-30))
        if best is None or error < best[0]:
            best = (error, factor)
    return best[1] if best is not None and best[0] <= slack else None
