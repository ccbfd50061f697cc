"""Faster ways to make an NF4 weight whole, chosen here and nowhere else; where there is none, plain
torch does it (`nf4.py`). All of them compute the same numbers.

On a CPU with native kernels theirs writes a bfloat16 weight; on CUDA bitsandbytes', where it is
installed.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from lora_core.native.kernels import Kernels

#: numbers of a block the native kernel knows
_BLOCK = 64


def dequantize_nf4(
    codes: Tensor, levels: Tensor, scales: Tensor, block: int, out: Tensor, native: Kernels | None
) -> bool:
    """Whether a kernel wrote levels[codes] * scales, block by block, into `out` [O, D], which is
    contiguous; if not, it is to be done."""
    if out.device.type == "cuda" and _bitsandbytes() is not None:
        torch.ops.bitsandbytes.dequantize_4bit.out(
            codes.view(-1, 1), scales, block, "nf4", list(out.shape), out.dtype, out=out
        )
        return True
    suits = out.dtype == torch.bfloat16 and block == _BLOCK and out.numel() % _BLOCK == 0
    if out.device.type == "cpu" and native is not None and suits:
        native.nf4(codes, levels, scales, out)
        return True
    return False


@cache
def _bitsandbytes() -> ModuleType | None:
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError):  # not there, or without a library for this machine
        return None
