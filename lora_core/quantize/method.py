"""What every quantisation does, and which there are. Their arithmetic is in their own files.

O width out, D width in.
"""

from __future__ import annotations

import re
from typing import Protocol

import torch
from torch import Tensor

from lora_core.errors import SpecError
from lora_core.native.kernels import Kernels
from lora_core.quantize.int4 import GROUP, Int4
from lora_core.quantize.int8 import Int8
from lora_core.quantize.nf4 import Nf4

METHODS = ("nf4", "int8", "int4")
Parts = dict[str, Tensor]


class Method(Protocol):
    """One quantisation. Its parts are the tensors it keeps of a weight [O, D], by name."""

    @property
    def name(self) -> str:
        """How cards, tables and manifests call it."""

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each part. Raises: SpecError for a weight it cannot take."""

    def quantize(self, weight: Tensor) -> Parts:
        """The parts of a weight [O, D] of any float dtype. Raises: SpecError."""

    def dequantize(self, parts: Parts, out: Tensor, native: Kernels | None = None) -> Tensor:
        """The whole weight into `out` [O, D] (contiguous, of any float dtype); returns it. It is
        worked out in float32 and rounded once. `native` kernels are used where they suit; the
        numbers are the same."""


def method_of(name: str) -> Method:
    """The quantisation a name stands for: "nf4", "int8", "int4" or "int4-g<group size>".

    Raises: SpecError for a name that is none.
    """
    if name == "nf4":
        return Nf4()
    if name == "int8":
        return Int8()
    found = re.fullmatch(r"int4(?:-g(\d{1,5}))?", name)
    if found is None:
        raise SpecError(f"{name!r} is no quantisation; there are {', '.join(METHODS)}")
    return Int4(int(found[1] or GROUP))


def name_of(kind: str, group_size: int | None = None) -> str:
    """The whole name of a kind with its group size, if it has one.

    Raises: SpecError for an unknown kind, and for a group size where there are no groups.
    """
    if kind == "int4":
        return Int4(group_size or GROUP).name
    if group_size is not None:
        raise SpecError(f"{kind} has no groups: a group size is for int4")
    return method_of(kind).name
