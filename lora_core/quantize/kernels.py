"""Another's kernels in the place of plain torch, where there are any: chosen here and nowhere else.

On CUDA, bitsandbytes writes a whole NF4 weight in one kernel; its numbers are those of `nf4.py`.
On a CPU plain torch does it: bitsandbytes is no dependency.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


def dequantize_nf4(codes: Tensor, absmax: Tensor, block: int, out: Tensor) -> bool:
    """Whether a kernel wrote levels[codes] * absmax into `out` [O, D]; if not, it is to be done."""
    if out.device.type != "cuda" or not out.is_contiguous() or _bitsandbytes() is None:
        return False
    torch.ops.bitsandbytes.dequantize_4bit.out(
        codes.view(-1, 1), absmax, block, "nf4", list(out.shape), out.dtype, out=out
    )
    return True


@cache
def _bitsandbytes() -> ModuleType | None:
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError):  # not there, or without a library for this machine
        return None
