"""Random numbers by counter: each is a pure function of a key and its index (splitmix64, Steele
et al., "Fast Splittable Pseudorandom Number Generators", 2014). No generator, no state, no
dependence on what else draws; equal on every device. Not for secrets.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

Key = tuple[int | str, ...]


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def seed_of(key: Key) -> int:
    """64 bits (signed) from a key of numbers and words."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift right of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser over an int64 tensor of any shape."""
    z = (z ^ _shift(z, 30)) * _M1
    z = (z ^ _shift(z, 27)) * _M2
    return z ^ _shift(z, 31)


def uniform_from(seeds: Tensor, count: int) -> Tensor:
    """float32 in [0, 1) of shape [*seeds.shape, count] from int64 seeds."""
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _GOLDEN
    bits = mix(seeds.unsqueeze(-1) + counters)
    return _shift(bits, 40).to(torch.float32) * (1.0 / (1 << 24))


def uniform_at(seeds: Tensor, starts: Tensor, count: int) -> Tensor:
    """The numbers `starts` to `starts + count` (int64 [N]) of each of N sequences: float32
    [N, count], equal to `uniform_from(seeds, …)` at those places."""
    first = seeds + starts * _GOLDEN
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _GOLDEN
    return _shift(mix(first.unsqueeze(-1) + counters), 40).to(torch.float32) * (1.0 / (1 << 24))


def uniform(key: Key, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """float32 in [0, 1) of that shape."""
    count = 1
    for size in shape:
        count *= size
    seed = torch.tensor(seed_of(key), dtype=torch.int64, device=device)
    return uniform_from(seed, count).reshape(shape)


def permutation(key: Key, n: int) -> list[int]:
    """The numbers 0..n-1 in an order that only the key decides."""
    seed = torch.tensor(seed_of(key), dtype=torch.int64)
    counters = torch.arange(1, n + 1, dtype=torch.int64) * _GOLDEN
    order: list[int] = torch.argsort(mix(seed + counters), stable=True).tolist()
    return order
