"""DoRA: the length of each row of a weight is learnt apart from its direction.

"DoRA: Weight-Decomposed Low-Rank Adaptation" (Liu et al., 2024): W' = m (W + s B A) / |W + s B A|,
row by row, with a magnitude m [O] that starts as |W|. As in section 4.3 and in PEFT the length is
a constant to the gradient. With c = m / |W + s B A| a layer gives

    y = x W^T + bias + s S B^T + (c - 1) u,    u = drop(x) W^T + s S B^T,    S = drop(x) A^T

so where nothing is dropped u is what came out before the bias, and a backward is the plain one of
slopes times c. The length is computed once for each update, from products as thin as the rank:

    |W + s B A|^2 = |W|^2 + s (2 W A^T + s B (A A^T)) . B

N rows, D width in, O width out, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: x [N, K] and a [R, K] to x a^T [N, R]
Times = Callable[[Tensor, Tensor], Tensor]


def times(x: Tensor, a: Tensor) -> Tensor:
    """x a^T by torch."""
    return torch.mm(x, a.t())


@torch.no_grad()
def lengths(weight: Tensor) -> Tensor:
    """The length of each row of weight [O, D]: float32 [O]."""
    found: Tensor = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float32)
    return found


@torch.no_grad()
def lengths_with(
    own: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float, by: Times = times
) -> Tensor:
    """The lengths float32 [O] of the rows of weight + scaling b a, with `own` those of weight
    itself; weight [O, D], a [R, D] and b [O, R] are of one dtype, that of the products."""
    across = by(weight, a).float().mul_(2.0)
    across.add_(by(b, by(a, a)).float(), alpha=scaling).mul_(b.float())
    square = own * own + across.sum(dim=1).mul_(scaling)
    return square.clamp_(min=0.0).sqrt_().clamp_(min=torch.finfo(torch.float32).tiny)


def merged(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """m (W + delta) / |W + delta|, all [O, D] float32, from the dense sum."""
    whole = weight + delta
    return whole * (magnitude / lengths(whole))[:, None]


def turned(y: Tensor, inner: Tensor, turn: Tensor) -> Tensor:
    """y + (c - 1) u: y and u (`inner`) [N, O], c - 1 (`turn`) float32 [O]."""
    return (y + inner * turn).to(y.dtype)


def slope_of(dy: Tensor, turn: Tensor) -> Tensor:
    """c dy."""
    return turned(dy, dy, turn)
