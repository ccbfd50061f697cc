"""Groups of a row in 4 bits between their least and largest number, and a merge that keeps them:
"QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models" (Xu et al., 2023).

    weight [O, D] ── groups of g along D ── w = scale q + zero,  q in 0..15
    scale = (max - min) / 15,  zero = min                        float32 [O, D / g] each

A QA-LoRA adapter reads the sums (or means) of the groups of x, so what it adds to a weight is one
number a group, and that is the zero point's to take up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_core.errors import SpecError
from lora_core.native.kernels import Kernels

GROUP = 32
LARGEST = 15
#: rows dequantised at once, in numbers
_CHUNK = 1 << 17


class Int4:
    """Groups of `group_size` inputs. Raises: SpecError for a size that is odd or below 2."""

    def __init__(self, group_size: int = GROUP) -> None:
        if group_size < 2 or group_size % 2:
            raise SpecError(f"the group size {group_size} is not an even number from 2 on")
        self.group_size = group_size

    @property
    def name(self) -> str:
        """With the size of the groups."""
        return f"int4-g{self.group_size}"

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """codes [O, D / 2] two to a byte, scales and zeros [O, D / g]."""
        groups = self._groups(columns)
        return {
            "codes": ((rows, columns // 2), torch.uint8),
            "scales": ((rows, groups), torch.float32),
            "zeros": ((rows, groups), torch.float32),
        }

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a weight [O, D]; a group of equal numbers is kept as it is."""
        rows, columns = weight.shape
        wide = weight.detach().float().view(rows, self._groups(columns), self.group_size)
        zeros, top = wide.amin(dim=2), wide.amax(dim=2)
        scales = (top - zeros) / LARGEST
        share = (wide - zeros[..., None]) / scales.clamp(min=1e-30)[..., None]
        codes = torch.round(share).clamp_(0, LARGEST).to(torch.uint8).view(rows, columns)
        return {
            "codes": (codes[:, ::2] << 4) | codes[:, 1::2],
            "scales": scales,
            "zeros": zeros,
        }

    def dequantize(
        self, parts: dict[str, Tensor], out: Tensor, native: Kernels | None = None
    ) -> Tensor:
        """The whole weight into `out`; float64 where that is asked for."""
        codes, wide = parts["codes"], _wide(out)
        rows, columns = out.shape
        step = max(1, _CHUNK // max(1, columns))
        for start in range(0, rows, step):
            some = slice(start, start + step)
            packed = codes[some]
            made = torch.stack([packed >> 4, packed & LARGEST], dim=2).to(wide)
            made = made.view(-1, columns // self.group_size, self.group_size)
            made.mul_(parts["scales"][some, :, None]).add_(parts["zeros"][some, :, None])
            out[some].copy_(made.view(-1, columns))
        return out

    def _groups(self, columns: int) -> int:
        if columns % self.group_size:
            raise SpecError(f"groups of {self.group_size} do not divide a width of {columns}")
        return columns // self.group_size


def merge_qalora(
    parts: dict[str, Tensor], a: Tensor, b: Tensor, *, scaling: float, factor: float = 1.0
) -> dict[str, Tensor]:
    """The parts of the weight with a QA-LoRA adapter folded in: the same codes and scales, other
    zero points. Exactly, but for the rounding of the zero points themselves.

    The adapter computes scaling * B A (factor * sum of each group of x), a [R, D / g], b [O, R];
    `factor` is 1 for sums and 1 / g for means. Its addition to the weight is, in every column of
    group l, scaling * factor * (B A)[:, l]. zeros keep their dtype (float64 parts stay so).
    Raises: SpecError for an adapter whose groups are others.
    """
    zeros = parts["zeros"]
    if (b.shape[0], a.shape[1]) != tuple(zeros.shape) or a.shape[0] != b.shape[1]:
        raise SpecError(
            f"an adapter of {tuple(a.shape)} and {tuple(b.shape)} does not fit "
            f"zero points of {tuple(zeros.shape)}"
        )
    added = (b.double() @ a.double()).mul_(scaling * factor)
    return {**parts, "zeros": (zeros.double() + added).to(zeros.dtype)}


def _wide(out: Tensor) -> torch.dtype:
    return torch.float64 if out.dtype == torch.float64 else torch.float32
