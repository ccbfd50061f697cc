"""LoRA (Low Rank Adaptation): A Deeper Dive (Rajan Ghimire). A regression 1001 to 1000 to 1000
whose truth shifts by one everywhere, and a rank-1 adapter that follows it.

X [10000, 1001], theta [1001, 1000]. Of the base only its fit is claimed, not the way to it: it is
set to theta's singular vectors, which takes a second instead of minutes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claims.row import Claim, Found, Place, near
from lora_core import (
    AdapterSpec,
    ArrayExamples,
    ArrayTask,
    Trainer,
    TrainingJob,
    activate,
    merge,
    unmerge,
)

DOCUMENT = "LoRA (Low Rank Adaptation): A Deeper Dive"
COUNT, IN, HIDDEN, OUT = 10_000, 1_001, 1_000, 1_000
EPOCHS = 100


def _base(theta: Tensor) -> nn.Module:
    u, s, vh = torch.linalg.svd(theta, full_matrices=False)
    model = nn.Sequential(nn.Linear(IN, HIDDEN, bias=False), nn.Linear(HIDDEN, OUT, bias=False))
    with torch.no_grad():
        model[0].weight.copy_((u * s.sqrt()).T)
        model[1].weight.copy_((s.sqrt()[:, None] * vh).T)
    return model


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(F.mse_loss(model(x), y))


def _dive(_: Place) -> Found:
    torch.manual_seed(0)
    theta = torch.randn(IN, OUT)
    x = torch.randn(COUNT, IN)
    shifted = torch.randn(COUNT, IN)
    target = shifted @ (theta + 1)
    model = _base(theta)
    fitted = _loss(model, x, x @ theta)
    start = _loss(model, shifted, target)
    trainer = Trainer(model, 1, arrays=ArrayTask("regression", (IN,)))
    spec = AdapterSpec(r=1, alpha=1)
    trainer.join(
        TrainingJob("a", spec, ArrayExamples(shifted, target), epochs=EPOCHS, batch_size=128,
                    learning_rate=1e-2, schedule="constant", max_grad_norm=float("inf"))
    )  # fmt: skip
    loss, epoch = start, 0
    per_epoch = -(-COUNT // 128)
    while loss >= 1 and epoch < EPOCHS:
        for _step in range(per_epoch):
            trainer.step()
        epoch += 1
        activate(model, "slot0")
        loss = _loss(model, shifted, target)
    activate(model, None)
    apart = _loss(model, shifted, target)
    merge(model, "slot0")
    merged = _loss(model, shifted, target)
    unmerge(model)
    said = (
        f"base {fitted:.1e}; shifted {start:,.0f}; rank 1 {loss:.2f} after {epoch} epochs; base "
        f"before merging {apart:,.0f}, after merging {merged:.2f}"
    )
    holds = fitted < 1e-3 and 850 < start < 1150 and loss < 1
    return said, holds and apart == start and near(merged, loss, 1e-3)


CLAIMS = [
    Claim(
        "theta plus one",
        DOCUMENT,
        "loss about 1,000, under 1 with rank 1 within 100 epochs, and so once merged",
        _dive,
        cheap=False,
    )
]
