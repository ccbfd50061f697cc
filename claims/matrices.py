"""LoRA: Fine-tuning Large Matrices with Low Rank Adaptation (Quazi). W + A B merged or on the fly.

W [out, in], A [out, r], B [r, in] as the document names them: our B and A.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from claims.row import Claim, Found, Place
from lora_core import AdapterSpec, inject, merge, unmerge
from lora_core.inject import layers

DOCUMENT = "LoRA: Fine-tuning Large Matrices with Low Rank Adaptation"


def _layer(size: int, r: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size, bias=False))
    inject(model, AdapterSpec(r=r, alpha=r))
    for layer in layers(model).values():
        nn.init.normal_(layer.lora_A["default"])
        nn.init.normal_(layer.lora_B["default"])
    return model


def _six(_: Place) -> Found:
    model = _layer(6, 2)
    (layer,) = layers(model).values()
    a, b = layer.lora_A["default"].detach(), layer.lora_B["default"].detach()
    wanted = layer.weight.detach() + b @ a
    merge(model)
    made = layer.weight.detach()
    rank = int(torch.linalg.matrix_rank(made - (wanted - b @ a)))
    numbers = a.numel() + b.numel()
    near = torch.allclose(made, wanted, atol=1e-6)
    said = f"W + BA within 1e-6, an update of rank {rank}; {numbers} numbers instead of 36"
    return said, near and rank == 2 and numbers == 24


def _seconds(model: nn.Module, x: torch.Tensor) -> float:
    times = []
    with torch.no_grad():
        for _ in range(15):
            began = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


@torch.no_grad()
def _both(_: Place) -> Found:
    model = _layer(1024, 8)
    x = torch.randn(256, 1024)
    flying, fly = model(x), _seconds(model, x)
    merge(model)
    merged, fold = model(x), _seconds(model, x)
    unmerge(model)
    apart = float((flying - merged).abs().max() / merged.abs().max())
    said = (
        f"apart by {apart:.0e} of the largest output; 256 rows through 1024 x 1024 at rank 8: "
        f"{1e3 * fly:.2f} ms on the fly, {1e3 * fold:.2f} ms merged"
    )
    return said, apart < 1e-5


CLAIMS = [
    Claim("six by six", DOCUMENT, "a 6 x 6 matrix and r = 2: W_new = W + A B", _six),
    Claim("merged or on the fly", DOCUMENT, "both ways of inference give the same", _both),
]
