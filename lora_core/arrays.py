"""Examples that are arrays, and what a network makes of them. No forward here: that is
`array_forward.py`'s.

B examples; x [B, *shape] into the network, its outputs [B, ...], targets y: for a regression of the
outputs' shape, for a classification class ids [B, *rest] where the outputs are [B, C, *rest].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from lora_core.errors import FormatError, SpecError
from lora_core.segments import Row

Kind = Literal["regression", "classification"]


@dataclass(frozen=True)
class ArrayTask:
    """What a network is asked for: "regression" (mean squared error) or "classification"
    (cross-entropy on class ids), from one example's x of `shape` and `dtype` (float, or int64 for
    ids). Raises: SpecError."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SpecError(f"task {self.kind!r} is none of {', '.join(get_args(Kind))}")
        if any(size < 1 for size in self.shape):
            raise SpecError(f"an example of shape {self.shape} holds nothing")

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, float32 [B]: the mean over what it is asked for."""
        if self.kind == "classification":
            each = F.cross_entropy(outputs.float(), y.long(), reduction="none")
        else:
            each = (outputs.float() - y.float()).square()
        return each.reshape(len(y), -1).mean(1)

    def hits(self, outputs: Tensor, y: Tensor) -> Tensor:
        """How much of each example is classified right, float32 [B]."""
        right = outputs.argmax(1) == y
        return right.reshape(len(y), -1).float().mean(1)


@dataclass(frozen=True)
class ArrayExamples:
    """x [B, ...] and y [B, ...]. Raises: FormatError when they do not count the same."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dim() == 0 or self.y.dim() == 0 or len(self.x) != len(self.y):
            raise FormatError("x and y do not hold the same number of examples")

    def __len__(self) -> int:
        return len(self.x)

    def sequence(self, index: int, key: int = 0) -> Row:
        """One example, its dropout drawn from `key`."""
        return Row(self.x[index], self.y[index], key=key)

    def save(self, path: Path | str) -> None:
        """Write as safetensors."""
        save_file({"x": self.x.contiguous(), "y": self.y.contiguous()}, str(path))

    @classmethod
    def load(cls, path: Path | str) -> ArrayExamples:
        """Read what `save` wrote. Raises: FormatError."""
        try:
            tensors = load_file(str(path))
            return cls(tensors["x"], tensors["y"])
        except KeyError as error:
            raise FormatError(f"{path} has no {error}") from error
        except (OSError, SafetensorError) as error:
            raise FormatError(f"{path} is no file of arrays: {error}") from error
