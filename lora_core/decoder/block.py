"""One decoder layer by hand, forward and backward, over a flat axis of N rows.

Kept for the backward is what takes products to make again; norms, rotations and activations are
made again. D width, H heads and K key-value heads of E, F width of the gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_core.decoder import attend, linear, norms
from lora_core.decoder.attend import Sequences
from lora_core.decoder.linear import Cast, Trace
from lora_core.decoder.plan import Layer, Norm
from lora_core.native.kernels import rows

Angles = tuple[Tensor, Tensor]


@dataclass
class Kept:
    """What the backward of one layer needs: its input x [N, D], the products' outputs, the
    attention's log-sum-exps, and each group's trace."""

    x: Tensor
    qkv: Tensor
    attended: Tensor
    sums: list[Tensor]
    projected: Tensor
    middle: Tensor
    gated: Tensor
    fallen: Tensor
    lows: tuple[Trace | None, ...]


def forward(
    cast: Cast, layer: Layer, x: Tensor, angles: Angles, sequences: Sequences
) -> tuple[Tensor, Kept]:
    """The layer's output [N, D], and what its backward needs."""
    kernels, count = cast.kernels, len(x)
    normed = rows(*x.shape)
    norms.forward(cast, layer.before_attention, x, normed)
    qkv, low_qkv = linear.forward(cast, layer.qkv, normed)
    turned, _, _ = _turned(cast, layer, qkv, angles)
    q, k, v = _parts(layer, turned, qkv)
    attended = rows(count, layer.heads * layer.width)
    sums = attend.forward(kernels, _heads(layer), sequences, (q, k, v), attended)
    del turned, q, k
    projected, low_o = linear.forward(cast, layer.o, attended)
    middle = rows(*x.shape)
    if layer.after_attention is None:
        kernels.add(x, projected, middle)
    else:
        norms.forward(cast, layer.after_attention, projected, middle, left=x)
    norms.forward(cast, layer.before_mlp, middle, normed)
    gated, low_gate = linear.forward(cast, layer.gate_up, normed)
    active = kernels.gate(gated, layer.act, rows(count, gated.shape[1] // 2))
    fallen, low_down = linear.forward(cast, layer.down, active)
    out = rows(*x.shape)
    if layer.after_mlp is None:
        kernels.add(middle, fallen, out)
    else:
        norms.forward(cast, layer.after_mlp, fallen, out, left=middle)
    lows = (low_qkv, low_o, low_gate, low_down)
    return out, Kept(x, qkv, attended, sums, projected, middle, gated, fallen, lows)


def backward(
    cast: Cast,
    layer: Layer,
    slope: Tensor,
    kept: Kept,
    angles: Angles,
    sequences: Sequences,
    *,
    wanted: bool,
) -> Tensor | None:
    """The slope [N, D] of the layer's input for that of its output, if it is `wanted`."""
    kernels = cast.kernels
    slope = _mlp_back(cast, layer, slope, kept)
    given = slope
    if layer.after_attention is not None:
        given = _norm_back(cast, layer.after_attention, slope, kept.projected)
    attended = linear.backward(cast, layer.o, given, kept.attended, kept.lows[1])
    assert attended is not None
    turned, inverse_q, inverse_k = _turned(cast, layer, kept.qkv, angles)
    q, k, v = _parts(layer, turned, kept.qkv)
    inner = rows(*kept.qkv.shape)
    dq, dk, dv = _cut(inner, layer.qkv.sizes)
    inner.index_fill_(0, sequences.padding, 0)
    attend.backward(
        kernels,
        _heads(layer),
        sequences,
        (attended, kept.attended),
        (q, k, v),
        kept.sums,
        (dq, dk, dv),
    )
    raw_q, raw_k, _ = _cut(kept.qkv, layer.qkv.sizes)
    weight_q = layer.q_norm.weight if layer.q_norm is not None else None
    weight_k = layer.k_norm.weight if layer.k_norm is not None else None
    kernels.rotate_back(dq, raw_q, layer.heads, weight_q, inverse_q, angles, dq)
    kernels.rotate_back(dk, raw_k, layer.groups, weight_k, inverse_k, angles, dk)
    normed = rows(*kept.x.shape)
    before = layer.before_attention
    inverse = norms.forward(cast, before, kept.x, normed)
    back = linear.backward(cast, layer.qkv, inner, normed, kept.lows[0], wanted=wanted)
    if back is None:
        return None
    norms.backward(cast, before, back, kept.x, inverse, normed, left=slope)
    return normed


def _heads(layer: Layer) -> attend.Heads:
    return attend.Heads(layer.heads, layer.groups, layer.width, layer.scale, layer.window)


def _mlp_back(cast: Cast, layer: Layer, slope: Tensor, kept: Kept) -> Tensor:
    """The slope of what lies between attention and MLP."""
    kernels = cast.kernels
    given = slope
    if layer.after_mlp is not None:
        given = _norm_back(cast, layer.after_mlp, slope, kept.fallen)
    active = kernels.gate(kept.gated, layer.act, rows(len(slope), kept.gated.shape[1] // 2))
    risen = linear.backward(cast, layer.down, given, active, kept.lows[3])
    assert risen is not None
    opened = kernels.gate_back(risen, kept.gated, layer.act, kept.gated)
    normed = rows(*slope.shape)
    before = layer.before_mlp
    inverse = norms.forward(cast, before, kept.middle, normed)
    back = linear.backward(cast, layer.gate_up, opened, normed, kept.lows[2])
    assert back is not None
    norms.backward(cast, before, back, kept.middle, inverse, normed, left=slope)
    return normed


def _norm_back(cast: Cast, norm: Norm, slope: Tensor, x: Tensor) -> Tensor:
    """Through a norm on the way out of a branch."""
    out = rows(*x.shape)
    inverse = norms.forward(cast, norm, x, out)
    norms.backward(cast, norm, slope, x, inverse, out)
    return out


def _turned(cast: Cast, layer: Layer, qkv: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
    """q and k side by side, normed and rotated, and the inverses of their norms."""
    raw_q, raw_k, _ = _cut(qkv, layer.qkv.sizes)
    turned = rows(len(qkv), layer.qkv.sizes[0] + layer.qkv.sizes[1])
    q, k = _cut(turned, layer.qkv.sizes[:2])
    inverses = []
    for raw, norm, heads, out in (
        (raw_q, layer.q_norm, layer.heads, q),
        (raw_k, layer.k_norm, layer.groups, k),
    ):
        weight, eps = (norm.weight, norm.eps) if norm is not None else (None, 0.0)
        inverses.append(cast.kernels.rotate(raw, heads, weight, eps, angles, out))
    return turned, inverses[0], inverses[1]


def _parts(layer: Layer, turned: Tensor, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [N, H E], k and v [N, K E]."""
    q, k = _cut(turned, layer.qkv.sizes[:2])
    return q, k, _cut(qkv, layer.qkv.sizes)[2]


def _cut(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Views of x's columns."""
    return torch.split(x, sizes, dim=1)
