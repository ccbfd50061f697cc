"""The decoder's norms on the native kernels, with the slots' own weights where there are any.

A slot's rows go through the kernel once more with its weight. N rows, D width.
"""

from __future__ import annotations

from torch import Tensor

from lora_core import private
from lora_core.decoder.linear import Cast
from lora_core.decoder.plan import Norm
from lora_core.ops import norm as plain


def forward(
    cast: Cast,
    norm: Norm,
    x: Tensor,
    out: Tensor,
    left: Tensor | None = None,
    *,
    labels: bool = False,
) -> Tensor:
    """out = (left +) the norm of x [N, D]; 1 / rms float32 [N]. With `labels` the rows are those
    of the step's labels."""
    inverse = cast.kernels.norm(x, norm.weight, norm.eps, out, left)
    for rows, weight, _ in _owned(cast, norm, labels):
        cast.kernels.norm(
            x[rows],
            (norm.part.plus + weight).contiguous(),
            norm.eps,
            out[rows],
            None if left is None else left[rows],
        )
    return inverse


def backward(
    cast: Cast,
    norm: Norm,
    slope: Tensor,
    x: Tensor,
    inverse: Tensor,
    out: Tensor,
    left: Tensor | None = None,
    *,
    labels: bool = False,
) -> None:
    """out = (left +) the slope of x for that of the norm's output; the slots' own weights get
    their gradients."""
    cast.kernels.norm_back(slope, x, norm.weight, inverse, out, left)
    found = _owned(cast, norm, labels)
    for rows, weight, _ in found:
        cast.kernels.norm_back(
            slope[rows],
            x[rows],
            (norm.part.plus + weight).contiguous(),
            inverse[rows],
            out[rows],
            None if left is None else left[rows],
        )
    plain.collect(slope, x, inverse, found)


def _owned(cast: Cast, norm: Norm, labels: bool) -> list[plain.Own]:
    return private.of_norm(private.owned(norm.part, cast.slots, cast.layout.spans), labels=labels)
