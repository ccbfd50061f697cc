"""Products with frozen weights over all rows of a step, in tiles of one height.

A library's kernel for a product may depend on the number of its rows, and with it the order of its
sums. So each call sees exactly TILE rows, the last ones filled up with zeros, and a row's bits do
not depend on what lies beside it. On CUDA one call takes all rows.

Processors with AMX take bfloat16 in blocks of 32 along K and read over the end of a row into the
next one, times zero: a neighbour's NaN would come through. So K is filled up to whole blocks.

N rows, K width in, O width out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_core.segments import TILE

_BLOCK = 32


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, K] times weight [K, O], plus bias [O]."""
    if x.device.type != "cpu":
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    beyond = -x.shape[1] % _BLOCK if x.dtype == torch.bfloat16 else 0
    if beyond:
        x, weight = F.pad(x, (0, beyond)), F.pad(weight, (0, 0, 0, beyond))
    out = x.new_empty(x.shape[0], weight.shape[1])
    whole = x.shape[0] - x.shape[0] % TILE
    for start in range(0, whole, TILE):
        _into(out[start : start + TILE], x[start : start + TILE], weight, bias)
    if whole < x.shape[0]:
        rest = x.new_zeros(TILE, x.shape[1])
        rest[: x.shape[0] - whole] = x[whole:]
        made = _into(x.new_empty(TILE, weight.shape[1]), rest, weight, bias)
        out[whole:] = made[: x.shape[0] - whole]
    return out


def _into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.mm(x, weight, out=out)
    return torch.addmm(bias, x, weight, out=out)
