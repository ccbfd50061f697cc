"""Rows in 8 bits by their largest number: "LLM.int8(): 8-bit Matrix Multiplication for Transformers
at Scale" (Dettmers et al., 2022), its vector-wise quantisation of the weights. The paper's other
half is left out: activations are not quantised, so no outliers have to be kept apart.

    weight [O, D] ── row by row ── round(127 w / absmax) (8 bits) + absmax (float32)
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_core.native.kernels import Kernels

#: rows dequantised at once, in numbers
_CHUNK = 1 << 17


class Int8:
    """One scale for each row."""

    name = "int8"

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """codes [O, D], absmax [O]."""
        return {
            "codes": ((rows, columns), torch.int8),
            "absmax": ((rows,), torch.float32),
        }

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a weight [O, D]; a row of zeros stays one."""
        wide = weight.detach().float()
        absmax = wide.abs().amax(dim=1)
        codes = torch.round(wide * (127.0 / absmax.clamp(min=1e-30))[:, None])
        return {"codes": codes.clamp_(-127, 127).to(torch.int8), "absmax": absmax}

    def dequantize(
        self, parts: dict[str, Tensor], out: Tensor, native: Kernels | None = None
    ) -> Tensor:
        """The whole weight into `out`."""
        codes, scale = parts["codes"], parts["absmax"]
        step = max(1, _CHUNK // max(1, codes.shape[1]))
        for start in range(0, codes.shape[0], step):
            rows = slice(start, start + step)
            made = codes[rows].float().mul_(scale[rows, None])
            out[rows].copy_(made.mul_(1.0 / 127.0))
        return out
