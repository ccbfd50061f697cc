"""Products with frozen weights over all rows of a step, in tiles of one height.

A library's kernel for a product may depend on the number of its rows, and with it the order of its
sums. So each call sees exactly `tile` rows (the layout pads the last), and a row's bits do not
depend on what lies beside it. On CUDA one call takes all rows.

N rows, K width in, O width out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None, tile: int | None) -> Tensor:
    """x [N, K] times weight [K, O], plus bias [O]; `tile` None takes all rows at once."""
    out = x.new_empty(x.shape[0], weight.shape[1])
    step = tile if tile and x.device.type == "cpu" else max(1, x.shape[0])
    for start in range(0, x.shape[0], step):
        rows = x[start : start + step]
        if bias is None:
            torch.mm(rows, weight, out=out[start : start + step])
        else:
            torch.addmm(bias, rows, weight, out=out[start : start + step])
    return out
