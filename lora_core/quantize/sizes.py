"""What a quantisation saves: bits of a weight, bytes of a model. Arithmetic only."""

from __future__ import annotations

from math import prod

import torch

from lora_core.quantize.method import method_of

#: a square weight large enough that what is kept once for a matrix does not count
_LARGE = 1 << 15
_PLAIN = {"bfloat16": 16.0, "float32": 32.0}


def bits_per_weight(name: str) -> float:
    """Bits one weight takes, scales and zero points counted in: of a quantisation, or of a dtype
    ("bfloat16", "float32"). Raises: SpecError for a name that is neither."""
    if name in _PLAIN:
        return _PLAIN[name]
    parts = method_of(name).shapes(_LARGE, _LARGE)
    bits = sum(8 * prod(shape) * _bytes(dtype) for shape, dtype in parts.values())
    return bits / (_LARGE * _LARGE)


def weight_bytes(name: str, weights: float) -> float:
    """Bytes of so many weights in a quantisation or dtype."""
    return weights * bits_per_weight(name) / 8


def _bytes(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()
