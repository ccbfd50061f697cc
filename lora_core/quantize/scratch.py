"""Room for one whole weight, which all quantised layers of a model share.

A product reads its weight once, from start to end, and nobody keeps it: so one buffer of the
largest group's size serves them all, and a group's weight is made when its product comes, for all
jobs' rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_core.native.kernels import Kernels
from lora_core.quantize.layer import QuantizedLinear


class Scratch:
    """The buffer, and whose weight it holds. `made` counts how often one was made whole. What
    `weight` returns is good until it is asked for another. `native` kernels make it where they
    suit."""

    def __init__(self, native: Kernels | None = None) -> None:
        self.made = 0
        self._native = native
        self._room: Tensor | None = None
        self._holds: list[tuple[Tensor, int]] = []

    def weight(self, layers: Sequence[QuantizedLinear]) -> Tensor:
        """The weights of these layers one below the other, [O of all, D], contiguous."""
        rows, columns = sum(layer.out_features for layer in layers), layers[0].in_features
        room = self._sized(rows * columns, layers[0].dtype, layers[0].device)
        whole = room[: rows * columns].view(rows, columns)
        parts = [(part, part._version) for layer in layers for part in layer.parts.values()]
        if not _same(parts, self._holds):
            self._holds = []
            start = 0
            for layer in layers:
                mine = whole[start : start + layer.out_features]
                layer.method.dequantize(layer.parts, mine, self._native)
                start += layer.out_features
            self._holds = parts
            self.made += 1
        return whole

    def _sized(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        room = self._room
        if room is None or room.numel() < size or (room.dtype, room.device) != (dtype, device):
            self._room = room = torch.empty(size, dtype=dtype, device=device)
            self._holds = []
        return room


def _same(one: list[tuple[Tensor, int]], other: list[tuple[Tensor, int]]) -> bool:
    return len(one) == len(other) and all(
        a is b and version == known for (a, version), (b, known) in zip(one, other, strict=True)
    )
