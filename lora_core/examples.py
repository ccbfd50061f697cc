"""Tokenised examples, and the order a job takes them in. No tokenizer, no text, no padding.

B examples, T tokens of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_core import rng
from lora_core.errors import FormatError
from lora_core.segments import Sequence


@dataclass(frozen=True)
class Examples:
    """Examples end to end: input_ids int32 [T], mask bool [T] (True: a token to be learnt),
    offsets int64 [B + 1]."""

    input_ids: Tensor
    mask: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """input_ids and mask of one example, both [length]."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.input_ids[start:end], self.mask[start:end]

    def sequence(self, index: int, key: int = 0) -> Sequence:
        """One example, its dropout drawn from `key`."""
        return Sequence(*self[index], key=key)

    @classmethod
    def of(cls, rows: list[tuple[list[int], list[bool]]]) -> Examples:
        """From (input_ids, mask) per example."""
        lengths = torch.tensor([0] + [len(ids) for ids, _ in rows], dtype=torch.int64)
        return cls(
            torch.tensor([i for ids, _ in rows for i in ids], dtype=torch.int32),
            torch.tensor([m for _, mask in rows for m in mask], dtype=torch.bool),
            torch.cumsum(lengths, 0),
        )

    def save(self, path: Path | str) -> None:
        """Write as safetensors."""
        save_file(
            {"input_ids": self.input_ids, "mask": self.mask, "offsets": self.offsets}, str(path)
        )

    @classmethod
    def load(cls, path: Path | str) -> Examples:
        """Read what `save` wrote. Raises: FormatError."""
        try:
            tensors = load_file(str(path))
            found = cls(tensors["input_ids"], tensors["mask"].bool(), tensors["offsets"])
        except KeyError as error:
            raise FormatError(f"{path} has no {error}") from error
        except (OSError, SafetensorError) as error:
            raise FormatError(f"{path} is no file of examples: {error}") from error
        offsets, count = found.offsets, len(found.input_ids)
        whole = len(offsets) > 0 and int(offsets[0]) == 0 and int(offsets[-1]) == count
        if not whole or bool((offsets.diff() < 1).any()) or len(found.mask) != count:
            raise FormatError(f"{path}: offsets, input_ids and mask do not fit each other")
        return found


def total_steps(examples: int, batch_size: int, epochs: int) -> int:
    """Optimizer steps of a job; the last batch of an epoch may be short."""
    return math.ceil(examples / batch_size) * epochs


def batch(examples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Indices of the examples of `step` (from 1): each epoch in an order of its own, which the
    key ("order", seed, epoch) alone decides; the last batch of an epoch may be short."""
    per_epoch = math.ceil(examples / batch_size)
    epoch, place = divmod(step - 1, per_epoch)
    order = rng.permutation(("order", seed, epoch), examples)
    return order[place * batch_size : (place + 1) * batch_size]


def batches(examples: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Indices of the examples of every step of a job, first to last."""
    for step in range(1, total_steps(examples, batch_size, epochs) + 1):
        yield batch(examples, batch_size, seed, step)
