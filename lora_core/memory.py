"""How much memory a step takes: measured once on a few probes, then predicted.

    peak = now + fixed + row * N + square * sum of L^2

for N rows and sequences of (padded) length L: activations grow with the rows, the attention weights
that are kept, up to LONG tokens, with the squares. The three factors are solved from probe steps on
the model at hand, so no architecture is known here. What a slot holds is counted. All in bytes.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lora_core import private
from lora_core.layer import LoraLinear, dtype_of, shape_of
from lora_core.segments import Segment
from lora_core.spec import AdapterSpec

#: a prediction is this much over the fit: allocators round and keep
MARGIN = 1.12
#: bytes that no probe shows: what the interpreter and an update hold for a moment
SLACK = 32 << 20
#: float32 master, gradient and two moments, and the copies the products run on
_SLOT_BYTES_PER_NUMBER = 16 + 6
#: a variant's own A or B and its gradient, both float32 at most
_COPY_BYTES_PER_NUMBER = 8
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Costs:
    """The factors of the formula above."""

    fixed: float
    row: float
    square: float

    def of(self, segments: Iterable[Segment]) -> int:
        """Bytes a micro-batch of these segments takes on top of what is held before it."""
        rows, squares = amounts(segments)
        return SLACK + int(MARGIN * (self.fixed + self.row * rows + self.square * squares))


def amounts(segments: Iterable[Segment]) -> tuple[int, int]:
    """Rows and squared lengths of a micro-batch."""
    rows = squares = 0
    for segment in segments:
        rows += segment.rows
        squares += sum(sequence.square for sequence in segment.sequences)
    return rows, squares


@dataclass(frozen=True)
class Size:
    """What an adapter is made of: trainable `numbers`; numbers in `copies` that its variant runs on
    beside them; and the bytes that each of its rows `keeps` for the backward."""

    numbers: int
    copies: int = 0
    keeps: int = 0


def size_of(model: nn.Module, spec: AdapterSpec, names: Iterable[str]) -> Size:
    """The size of an adapter of that spec on those layers."""
    numbers = copies = keeps = 0
    groups: set[int] = set()
    for name in names:
        layer = model.get_submodule(name)
        carrier = layer if isinstance(layer, LoraLinear) else None
        base = carrier.base if carrier else layer
        shape = shape_of(base)
        rows, columns = shape[0], shape[1:].numel()
        turned = carrier.transposed if carrier else type(layer).__name__ == "Conv1D"
        out, inside = (columns, rows) if turned else (rows, columns)
        numbers += spec.r * (out + inside // (spec.qalora_group_size or 1))
        if spec.qalora_group_size is not None:
            copies += spec.r * inside
        if spec.learnable_scaling:
            numbers += 1
            copies += spec.r * out
        if spec.dora:
            numbers += out
            copies += 2 * out
            group = carrier.group if carrier else None
            if group is None or id(group) not in groups:
                width = group.out_features if group else out
                keeps += width * dtype_of(base).itemsize
                groups.add(id(group))
    return Size(numbers + private.numbers(model, spec), copies, keeps)


def slot_bytes(size: Size, keeps_best: bool = False) -> int:
    """What a slot of that size holds; a job with patience keeps its best, too."""
    each = _SLOT_BYTES_PER_NUMBER + (4 if keeps_best else 0)
    return size.numbers * each + size.copies * _COPY_BYTES_PER_NUMBER


def fit(points: Sequence[tuple[int, int, int]]) -> Costs:
    """The factors nearest to (rows, squares, bytes) of the probes; none is below zero."""
    left = torch.tensor([[1.0, rows, squares] for rows, squares, _ in points], dtype=torch.float64)
    right = torch.tensor([float(size) for _, _, size in points], dtype=torch.float64)
    # Short models make probes of one length: then the smallest of many solutions is taken.
    solved = torch.linalg.lstsq(left, right[:, None], driver="gelsd").solution
    fixed, row, square = solved[:, 0].tolist()
    return Costs(max(0.0, fixed), max(0.0, row), max(0.0, square))


def held(device: torch.device) -> int:
    """What the process holds now: allocated on the GPU, or resident once what is free is given
    back."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def peak_of(device: torch.device, work: Callable[[], object]) -> int | None:
    """The most that is held while `work` runs; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device))
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return None
    work()
    return _status("VmHWM")


def available(device: torch.device) -> int:
    """What the device has in all: GPU memory, or this machine's (the cgroup's, if smaller)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    sizes = [int(_line(Path("/proc/meminfo"), "MemTotal")) * 1024]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        sizes.append(int(text))
    return min(sizes)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(
        re.search(r"can't allocate memory|not enough memory|out of memory", str(error))
    )


def _status(key: str) -> int:
    return int(_line(_STATUS, key)) * 1024


def _line(path: Path, key: str) -> str:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return line.split()[1]
    raise OSError(f"{path} says nothing of {key}")
