"""CIFAR-10 from disk, or pictures of its shape made from scikit-learn's digits.

B pictures; x float32 [B, 3, 32, 32] in -1 to 1, y int64 [B].
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

MADE = "digits in CIFAR's shape"


class Pictures:
    """Train and test pictures, and what they are."""

    def __init__(self, name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]):
        self.name = name
        self.train = train
        self.test = test


def pictures(cifar: Path | None) -> Pictures:
    """CIFAR-10 from a folder with cifar10.safetensors (x_train [50000, 32, 32, 3] uint8, y_train,
    x_test, y_test), else the digits."""
    return _digits() if cifar is None else _cifar(cifar)


def turned(x: Tensor) -> Tensor:
    """Another corruption of the same pictures: turned by a quarter, noise and less light."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) * 0.2
    return torch.rot90(x, 1, (2, 3)) * 0.7 + noise


def _digits() -> Pictures:
    from sklearn.datasets import load_digits

    held = load_digits()
    x = torch.tensor(held.images, dtype=torch.float32)[:, None] / 8 - 1
    x = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    tint = torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.4
    x, y = x * tint, torch.tensor(held.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    x, y = x[order], y[order]
    return Pictures(MADE, (x[:1400], y[:1400]), (x[1400:], y[1400:]))


def _cifar(folder: Path) -> Pictures:
    held = load_file(str(folder / "cifar10.safetensors"))

    def part(name: str) -> tuple[Tensor, Tensor]:
        x = held[f"x_{name}"].permute(0, 3, 1, 2).float() / 127.5 - 1
        return x, held[f"y_{name}"].long().flatten()

    return Pictures("CIFAR-10", part("train"), part("test"))
