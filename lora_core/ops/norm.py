"""Root-mean-square norms with frozen weights, in few passes over the rows.

"Root Mean Square Layer Normalization" (Zhang and Sennrich, 2019): y = x / sqrt(mean(x^2) + eps),
times w (Llama, Qwen, Mistral) or 1 + w (Gemma). A model's own modules do this in a dozen float32
passes, twice as many with the backward; this one keeps x in its own dtype and one number a row.
A module is taken over only when trying it out shows which of the two it computes. A slot may have
a w of its own (`private.py`).

D width; rows are whatever comes before it, N of them in a fused step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lora_core.layer import Focus

#: rows of the flat axis, a slot's w for them and its gradient, float32 [D]
Own = tuple[slice, Tensor, Tensor]


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


class _Owned(torch.autograd.Function):
    """As `_Norm` over x [N, D], where some rows have a factor of their own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor,
        weight: Tensor,
        eps: float,
        plus: float,
        owned: list[Own],
    ) -> Tensor:
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        r = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, r, weight)
        ctx.plus, ctx.owned = plus, owned
        out = wide * r
        made = out * weight
        for rows, own, _ in owned:
            made[rows] = out[rows] * (plus + own)
        low: Tensor = made.to(x.dtype)
        return low

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, r, weight = ctx.saved_tensors
        wide, slope = x.float(), grads[0].float()
        given = slope * weight
        for rows, own, _ in ctx.owned:
            given[rows] = slope[rows] * (ctx.plus + own)
        collect(slope, wide, r[:, 0], ctx.owned)
        dot = torch.linalg.vecdot(given, wide, dim=-1).unsqueeze(-1)
        back = dot.mul_(r * r * r).div_(-x.shape[-1])
        dx = given.mul_(r).addcmul_(wide, back).to(x.dtype)
        return dx, None, None, None, None, None


def owned_norm(x: Tensor, anchor: Tensor, norm: Norm, owned: list[Own]) -> Tensor:
    """x [..., D] of N rows over its root mean square, times the norm's factor, or in the rows of
    `owned` a slot's; the slopes of those go into their gradients. `anchor` is any tensor that
    requires a gradient."""
    flat = x.reshape(-1, x.shape[-1])
    made: Tensor = _Owned.apply(  # type: ignore[no-untyped-call]
        flat, anchor, norm.factor, norm.eps, norm.plus, owned
    )
    return made.view(x.shape)


@torch.no_grad()
def collect(slope: Tensor, x: Tensor, inverse: Tensor, owned: list[Own]) -> None:
    """Add to the gradients of the slots' own w: slope and x [N, D], 1 / rms of each row [N]."""
    for rows, _, grad in owned:
        grad.add_((slope[rows].float() * x[rows].float() * inverse[rows][:, None]).sum(dim=0))


def is_one(module: nn.Module) -> bool:
    """Whether this file computes a module, or might."""
    if isinstance(module.__dict__.get("forward"), Norm):
        return True
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    weight = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and isinstance(eps, float)
    return named and isinstance(weight, Tensor) and weight.dim() == 1


@torch.no_grad()
def take_over(model: nn.Module) -> int:
    """Let this file compute every norm of the model it understands; returns how many."""
    found = 0
    for module in model.modules():
        if not is_one(module):
            continue
        if not isinstance(module.__dict__.get("forward"), Norm):
            made = _tried(module)
            if made is None:
                continue
            module.forward = made
        found += 1
    return found


class Norm:
    """Stands in for a norm's forward: x / rms(x) times `factor` float32 [D], which is `plus` + w.
    `own` are the slots' w, float32 [D]."""

    part = "weight"

    def __init__(self, weight: Tensor, plus: float, eps: float) -> None:
        self.weight = weight
        self.plus = plus
        self.eps = eps
        self.own: dict[str, nn.Parameter] = {}
        self.focus: Focus | None = None
        self.name = ""
        self.kept: Tensor | None = None
        self.renew()

    def renew(self) -> None:
        """Make the factor of the weight as it is."""
        self.factor = (self.plus + self.weight.detach().float()).contiguous()

    def add(self, slot: str, name: str, focus: Focus) -> None:
        """Give a slot the base's w; `name` is the module's."""
        self.name, self.focus = name, focus
        self.own[slot] = nn.Parameter(self.weight.detach().float().clone())

    def put(self, slot: str) -> None:
        """Write a slot's w into the base; `take_back` undoes it."""
        self.kept = self.weight.detach().clone()
        self.weight.copy_(self.own[slot].detach())
        self.renew()

    def take_back(self, slot: str) -> None:
        """The base's w as it was before the slot's."""
        assert slot in self.own
        assert self.kept is not None
        self.weight.copy_(self.kept)
        self.kept = None
        self.renew()

    def __call__(self, x: Tensor) -> Tensor:
        focus = self.focus
        if focus is not None and self.own:
            if focus.work is not None:
                made: Tensor = focus.work.norm(self, x)
                return made
            if focus.slot in self.own:
                wide = x.float()
                r = (wide.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
                return (wide * r * (self.plus + self.own[focus.slot])).to(x.dtype)
        return self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """The base's own norm of x [..., D]."""
        return rms_norm(x, self.factor, self.eps)


def _tried(module: Any) -> Norm | None:
    """A norm that multiplies with w or with 1 + w, or None for something else."""
    weight: Tensor = module.weight
    eps: float = module.eps if hasattr(module, "eps") else module.variance_epsilon
    x = torch.linspace(-2.0, 3.0, 3 * len(weight), device=weight.device).view(3, -1)
    x = x.to(weight.dtype)
    own = module(x).float()
    slack = 1e-5 if weight.dtype == torch.float32 else 1e-2
    best: tuple[float, Norm] | None = None
    for plus in (0.0, 1.0):
        made = Norm(weight, plus, eps)
        # A large weight and one more than it differ little: of the two the nearer one counts.
        error = float((made(x).float() - own).norm() / own.norm().clamp_min(1e-30))
        if best is None or error < best[0]:
            best = (error, made)
    return best[1] if best is not None and best[0] <= slack else None
