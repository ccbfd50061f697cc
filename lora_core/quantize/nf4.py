"""NF4 with double quantisation: "QLoRA: Efficient Finetuning of Quantized LLMs" (Dettmers et al.,
2023), and the 8-bit dynamic tree of "8-Bit Approximations for Parallelism in Deep Learning"
(Dettmers, 2015) for the scales. Codes, scales and dequantised values are those of bitsandbytes.

    weight [O, D], flat ── blocks of 64 ── code of w / absmax (4 bits) + absmax
    absmax less its mean ── blocks of 256 ── code of a / scale (8 bits) + scale (float32)

n numbers of the weight, b = n / 64 rounded up.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lora_core.native.kernels import Kernels
from lora_core.quantize import kernels

BLOCK = 64
#: scales are quantised in blocks of so many
SCALES = 256
#: steps of [-1, 1] that a scale's share of its block's largest is rounded to
_GRID = 65536
#: dequantised at once, so that what lies between codes and weight stays in the cache
_CHUNK = 1 << 17
#: quantiles of the standard normal distribution, scaled to [-1, 1], with an exact zero
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Nf4:
    """Blocks of 64 numbers in 4 bits each, and a scale of 8 bits for each block."""

    name = "nf4"

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """codes [n / 2] two to a byte, absmax [b], scales [b / 256], offset []."""
        size = rows * columns
        blocks = -(-size // BLOCK)
        return {
            "codes": ((-(-size // 2),), torch.uint8),
            "absmax": ((blocks,), torch.uint8),
            "scales": ((-(-blocks // SCALES),), torch.float32),
            "offset": ((), torch.float32),
        }

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a weight [O, D]."""
        flat = weight.detach().reshape(-1).float()
        blocks = _blocks(flat, BLOCK)
        absmax = blocks.abs().amax(dim=1)
        scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
        tail = flat.numel() % BLOCK
        if tail:  # bitsandbytes divides here
            scaled[-1] = (blocks[-1] / absmax[-1].clamp(min=1e-38)).clamp_(-1, 1)
        levels = _levels(flat.device)
        found = torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2, out_int32=True)
        codes = found.to(torch.uint8).reshape(-1)[: flat.numel() + flat.numel() % 2]
        offset = absmax.mean()
        small, scales = _tree_codes(absmax - offset)
        return {
            "codes": (codes[::2] << 4) | codes[1::2],
            "absmax": small,
            "scales": scales,
            "offset": offset,
        }

    def dequantize(
        self, parts: dict[str, Tensor], out: Tensor, native: Kernels | None = None
    ) -> Tensor:
        """The whole weight into `out`."""
        scale = absmax(parts)
        codes = parts["codes"]
        if kernels.dequantize_nf4(codes, _levels(out.device), scale, BLOCK, out, native):
            return out
        flat = out.view(-1)
        table = _pairs(out.device)
        for start in range(0, flat.numel(), _CHUNK):
            into = flat[start : start + _CHUNK]
            size = into.numel()
            taken = codes[start // 2 : (start + size + 1) // 2].int()
            made = table.index_select(0, taken).view(-1)
            first, last = start // BLOCK, -(-(start + size) // BLOCK)
            if size % BLOCK:
                each = scale[first:last].repeat_interleave(BLOCK)[:size]
                into.copy_(made[:size] * each)
            else:
                into.copy_(made.view(-1, BLOCK).mul_(scale[first:last, None]).view(-1))
        return out


def absmax(parts: dict[str, Tensor]) -> Tensor:
    """The scale of each block, float32 [b]."""
    found = tree(parts["absmax"].device)[parts["absmax"].int()]
    each = parts["scales"].repeat_interleave(SCALES)[: found.numel()]
    return found.mul_(each).add_(parts["offset"])


@cache
def tree(device: torch.device) -> Tensor:
    """The 256 levels of the signed dynamic tree, float32, rising: for each power of ten from
    1e-6 to 1 twice as many fractions as for the one before, and an exact 0 and 1."""
    levels = [0.0, 1.0]
    for power in range(7):
        bounds = torch.linspace(0.1, 1, 2**power + 1, dtype=torch.float32)
        middles = (bounds[:-1] + bounds[1:]) / 2.0
        scale = 10 ** (power - 6)
        levels += (scale * middles).tolist()
        levels += (-scale * middles).tolist()
    found = torch.tensor(sorted(levels), dtype=torch.float32)
    return found.to(device)


def _tree_codes(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit codes [b] of float32 [b] in blocks of 256, and the blocks' scales. As bitsandbytes
    does on a CPU, numbers go to the nearest of 65,536 steps before their level is looked up."""
    blocks = _blocks(numbers, SCALES)
    scales = blocks.abs().amax(dim=1)
    share = (blocks * (1.0 / scales.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    grid = ((share + 1.0) * 0.5 * (_GRID - 1) + 0.5).int().float()
    share = -1.0 + (2.0 * grid) / (_GRID - 1)
    levels = tree(numbers.device)
    found = torch.bucketize(share, 0.5 * (levels[:-1] + levels[1:]), out_int32=True)
    codes = found.masked_fill_(scales[:, None] == 0, 0).to(torch.uint8)
    return codes.view(-1)[: numbers.numel()].contiguous(), scales


def _blocks(flat: Tensor, size: int) -> Tensor:
    """[b, size], filled up with zeros."""
    missing = -flat.numel() % size
    return torch.nn.functional.pad(flat, (0, missing)).view(-1, size)


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.float32, device=device)


@cache
def _pairs(device: torch.device) -> Tensor:
    """Both levels of each byte, float32 [256, 2]."""
    levels = torch.tensor(LEVELS, dtype=torch.float32)
    byte = torch.arange(256)
    return torch.stack([levels[byte >> 4], levels[byte & 15]], dim=1).to(device)
