"""The oracle: what the fast paths compute, written down as the formulas are, with autograd doing
the backward. Slow, obvious, used by tests only.

N rows, D width in, O width out, R rank, H heads, E head width, M label rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Adapter:
    """A [R, D], B [O, R]; `keep` bool [rows, D] is its dropout's mask, at `rate`. Variants:
    `magnitude` [O] of DoRA, `gain` [1] of a learnable scaling, `size` of QA-LoRA's groups, whose
    A is [R, D / size]."""

    a: Tensor
    b: Tensor
    scaling: float
    keep: Tensor | None = None
    rate: float = 0.0
    magnitude: Tensor | None = None
    gain: Tensor | None = None
    size: int = 1


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, owned: list[tuple[slice, Adapter]]
) -> Tensor:
    """x W^T + bias, and for the rows of each adapter + scaling (drop(x) A^T) B^T: [N, O]."""
    parts = [F.linear(row, weight, bias) for row in x]
    y = torch.stack(parts)
    extra = torch.zeros_like(y)
    for rows, adapter in owned:
        given = x[rows]
        if adapter.keep is not None:
            given = given * adapter.keep / (1.0 - adapter.rate)
        shift = scaled(adapter) * (pooled(given, adapter.size) @ adapter.a.T @ adapter.b.T)
        if adapter.magnitude is not None:
            whole = whole_weight(weight, adapter)
            factors = [
                m / row.norm().detach() for m, row in zip(adapter.magnitude, whole, strict=True)
            ]
            shift = shift + (torch.stack(factors) - 1.0) * (given @ weight.T + shift)
        extra = torch.cat([extra[: rows.start], extra[rows] + shift, extra[rows.stop :]])
    return y + extra


def scaled(adapter: Adapter) -> Tensor | float:
    """What multiplies B A."""
    return adapter.scaling if adapter.gain is None else adapter.scaling * adapter.gain


def pooled(x: Tensor, size: int) -> Tensor:
    """QA-LoRA's input of A [rows, D / size]: each group's mean, times the number of groups."""
    if size == 1:
        return x
    groups = x.shape[1] // size
    means = [x[:, size * at : size * (at + 1)].mean(dim=1) for at in range(groups)]
    return torch.stack(means, dim=1) * groups


def whole_weight(weight: Tensor, adapter: Adapter) -> Tensor:
    """W + s B A [O, D], element by element."""
    rows = []
    for own, b in zip(weight, adapter.b, strict=True):
        rows.append(own + scaled(adapter) * sum(b[r] * a for r, a in enumerate(adapter.a)))
    return torch.stack(rows)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: list[slice],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    group: int | None = None,
) -> Tensor:
    """Causal attention of each sequence alone, head by head, query by query: query [N, H, E], key
    and value [N, K, E] to [N, H, E]; rows of no sequence give zeros. With a `group`, LongLoRA's
    shifted groups of so many tokens, in the sequences that are longer."""
    rows: dict[int, Tensor] = {}
    share = query.shape[1] // key.shape[1]
    for sequence in sequences:
        for at in range(sequence.start, sequence.stop):
            near = sequence.start if not window else max(sequence.start, at - window + 1)
            heads = []
            for head in range(query.shape[1]):
                first = near
                if group and sequence.stop - sequence.start > group:
                    # How far the groups of this head are moved to the right.
                    moved = 0 if head < query.shape[1] // 2 else group // 2  # K is 1 or even
                    since = (at - sequence.start - moved) % group
                    first = max(near, at - since)
                scores = key[first : at + 1, head // share] @ query[at, head] * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = torch.softmax(scores, dim=0)
                heads.append(weights @ value[first : at + 1, head // share])
            rows[at] = torch.stack(heads)
    nothing = value.new_zeros(query.shape[1], value.shape[2])
    return torch.stack([rows.get(at, nothing) for at in range(query.shape[0])])


def row_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Cross-entropy of every row from all its logits: [M]."""
    logits = F.linear(hidden, weight, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    picked = logits[torch.arange(len(labels)), labels]
    return torch.log(torch.exp(logits - logits.amax()).sum(dim=-1)) + logits.amax() - picked


def adamw(
    weight: Tensor,
    gradients: list[Tensor],
    rates: list[float],
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """The weight after those updates, term by term as in the paper's algorithm 2."""
    mean = square = torch.zeros_like(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        unbiased = mean / (1 - betas[0] ** step)
        spread = torch.sqrt(square / (1 - betas[1] ** step))
        weight = weight - rate * weight_decay * weight - rate * unbiased / (spread + eps)
    if not math.isfinite(float(weight.sum())):
        raise ValueError("the reference went out of range")
    return weight
