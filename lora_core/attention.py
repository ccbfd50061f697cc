"""Causal attention over a flat axis of many sequences, none of which sees another.

`packed` has the signature transformers' attention functions have: register it there under `NAME`
and load a model with `attn_implementation=NAME`. Within `over(layout)` it takes the layout's
sequences apart; without, it is plain causal attention over [B, T], so the same model generates.

H query heads, K key-value heads, G = H / K, N rows, n sequences of one bucket of L rows, E head
width (of values it may be another). Softmax runs in float32. Long sequences go through torch's own
fused kernel, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_core import segments
from lora_core.segments import Bucket, Layout

NAME = "manylora"
_LAYOUT: ContextVar[Layout | None] = ContextVar("layout", default=None)


@dataclass(frozen=True)
class Asked:
    """What a model's layer asks of its attention."""

    scale: float
    window: int | None
    softcap: float | None


_SEEN: ContextVar[dict[int, Asked] | None] = ContextVar("seen", default=None)


@contextmanager
def recorded() -> Iterator[dict[int, Asked]]:
    """What each attention module (by id) that runs within this block asks for."""
    seen: dict[int, Asked] = {}
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


@contextmanager
def over(layout: Layout) -> Iterator[None]:
    """Attention within this block is over the layout's sequences."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, N, E], key and value [1, K, N, E] to [1, N, H, E]."""
    scale = scaling if scaling is not None else 1.0 / math.sqrt(query.shape[-1])
    seen = _SEEN.get()
    if seen is not None:
        seen[id(module)] = Asked(scale, sliding_window, softcap)
    layout = _LAYOUT.get()
    if layout is None:
        mask = _window(query.shape[2], key.shape[2], sliding_window, query.device)
        out = _plain(query, key, value, mask, scale, softcap)
        return out.transpose(1, 2).contiguous(), None
    out = _Packed.apply(query, key, value, layout, scale, sliding_window, softcap)  # type: ignore[no-untyped-call]
    return out, None


def _window(rows: int, columns: int, window: int | None, device: torch.device) -> Tensor:
    """bool [rows, columns]: what the last `rows` of `columns` positions may see."""
    at = torch.arange(columns - rows, columns, device=device)[:, None]
    to = torch.arange(columns, device=device)[None]
    seen = to <= at
    return seen & (at - to < window) if window else seen


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """The reference: [B, H, T, E] by the textbook."""
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    weights = (query @ key.transpose(2, 3)).float() * scale
    if softcap is not None:
        weights = softcap * torch.tanh(weights / softcap)
    weights = weights.masked_fill(~mask, -math.inf)
    return torch.softmax(weights, dim=-1).to(query.dtype) @ value


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        shape = query.shape
        flat = [each[0].transpose(0, 1) for each in (query, key, value)]
        out = query.new_zeros(shape[2], shape[1], value.shape[3])
        kept: list[Tensor] = []
        for bucket in layout.buckets:
            heads = _Heads.of(bucket, shape[1], key.shape[1])
            q, k, v = heads.take(flat, bucket)
            if bucket.length > segments.LONG:
                made = _long(q, k, v, bucket, scale, window, softcap)
                kept += [q, k, v]
            else:
                p, slope = _weights(q, k, bucket, scale, window, softcap)
                made = torch.bmm(p, v)
                kept += [q, k, v, p] if slope is None else [q, k, v, p, slope]
            out[:, heads.queries].index_copy_(0, bucket.rows, _give(made, bucket, heads.count))
        ctx.save_for_backward(*kept)
        ctx.facts = (layout, scale, window, softcap, shape, value.shape)
        return out[None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout, scale, window, softcap, shape, value_shape = ctx.facts
        kept = list(ctx.saved_tensors)
        given = grads[0][0]
        sums = [
            given.new_zeros(shape[2], heads, width)
            for heads, width in (
                (shape[1], shape[3]),
                (value_shape[1], shape[3]),
                (value_shape[1], value_shape[3]),
            )
        ]
        for bucket in layout.buckets:
            heads = _Heads.of(bucket, shape[1], value_shape[1])
            q, k, v = kept[:3]
            del kept[:3]
            do = _take_zero(given[:, heads.queries], bucket, heads.groups)
            if bucket.length > segments.LONG:
                made = _long_backward(do, q, k, v, bucket, scale, window, softcap)
            else:
                p = kept.pop(0)
                slope = kept.pop(0) if softcap is not None else None
                made = _weights_backward(do, q, k, v, p, slope, scale)
            heads.add(sums, made, bucket)
        dq, dk, dv = (total.transpose(0, 1)[None] for total in sums)
        return dq, dk, dv, None, None, None, None


def half_of(heads: int, groups: int) -> int:
    """How many heads are the first half: whole groups that share keys, where there are more groups
    than one."""
    return groups // 2 * (heads // groups) if groups > 1 else heads // 2


@dataclass(frozen=True)
class _Heads:
    """The heads a bucket is for: all of them, keys and values shared within their groups; or one
    half, where each query head gets keys and values of its own."""

    queries: slice
    groups: int
    #: of each query head, where it is one half
    shared: list[int] | None

    @property
    def count(self) -> int:
        return int(self.queries.stop - self.queries.start)

    @classmethod
    def of(cls, bucket: Bucket, heads: int, groups: int) -> _Heads:
        if bucket.half is None:
            return cls(slice(0, heads), groups, None)
        edge = half_of(heads, groups)
        own = slice(0, edge) if bucket.half == 0 else slice(edge, heads)
        shared = [head // (heads // groups) for head in range(own.start, own.stop)]
        return cls(own, len(shared), shared)

    def take(self, flat: list[Tensor], bucket: Bucket) -> list[Tensor]:
        """q [K n, G L, E], k and v [K n, L, E] of query, key and value [N, heads, E]."""
        query, key, value = flat
        query = query[:, self.queries]
        if self.shared is not None:
            key, value = key[:, self.shared], value[:, self.shared]
        return [_take(each, bucket, self.groups) for each in (query, key, value)]

    def add(self, sums: list[Tensor], made: tuple[Tensor, Tensor, Tensor], bucket: Bucket) -> None:
        """Put dq, dk, dv where they belong. The two halves' dk and dv add up, in their order."""
        dq, dk, dv = made
        rows = bucket.rows
        sums[0][:, self.queries].index_copy_(0, rows, _give(dq, bucket, self.count))
        for total, part in zip(sums[1:], (dk, dv), strict=True):
            given = _give(part, bucket, self.groups)
            if self.shared is None:
                total.index_copy_(0, rows, given)
                continue
            for own, group in enumerate(self.shared):
                total[:, group].index_add_(0, rows, given[:, own])


def _take(flat: Tensor, bucket: Bucket, groups: int) -> Tensor:
    """Rows [N, H, E] of a bucket's sequences as [K n, G L, E]; keys and values have G = 1."""
    n, length = bucket.count, bucket.length
    rows = flat.index_select(0, bucket.gather).view(n, length, groups, -1, flat.shape[2])
    return rows.permute(2, 0, 3, 1, 4).reshape(groups * n, -1, flat.shape[2])


def _take_zero(flat: Tensor, bucket: Bucket, groups: int) -> Tensor:
    """As `_take`, with zeros where a sequence is padded."""
    rows = flat.new_zeros(len(bucket.gather), *flat.shape[1:])
    rows.index_copy_(0, bucket.valid, flat.index_select(0, bucket.rows))
    rows = rows.view(bucket.count, bucket.length, groups, -1, flat.shape[2])
    return rows.permute(2, 0, 3, 1, 4).reshape(groups * bucket.count, -1, flat.shape[2])


def _give(made: Tensor, bucket: Bucket, heads: int) -> Tensor:
    """[K n, G L, E] back to the real rows [_, H, E]."""
    n, length = bucket.count, bucket.length
    groups = made.shape[0] // n
    rows = made.view(groups, n, heads // groups, length, -1).permute(1, 3, 0, 2, 4)
    return rows.reshape(n * length, heads, -1).index_select(0, bucket.valid)


def _weights(
    q: Tensor, k: Tensor, bucket: Bucket, scale: float, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Softmax weights [K n, G L, L] in the model's dtype, and the slope of the soft cap."""
    length = bucket.length
    scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(scale)
    slope = None
    if softcap is not None:
        scores = torch.tanh_(scores.div_(softcap))
        slope = 1.0 - scores * scores
        scores = scores.mul_(softcap)
    hidden = ~_window(length, length, window, q.device)
    scores = scores.view(q.shape[0], -1, length, length)
    scores.masked_fill_(hidden, -math.inf)
    p = torch.softmax(scores, dim=-1).to(q.dtype)
    return p.view(q.shape[0], -1, length), slope


def _weights_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, slope: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dv = torch.bmm(p.transpose(1, 2), do)
    dp = torch.bmm(do, v.transpose(1, 2)).float()
    weights = p.float()
    ds = dp.sub_((dp * weights).sum(dim=-1, keepdim=True)).mul_(weights)
    if slope is not None:
        ds.mul_(slope)
    low = ds.mul_(scale).to(q.dtype)
    return torch.bmm(low, k), torch.bmm(low.transpose(1, 2), q), dv


def _long(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Bucket,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One sequence and one group of heads after the other, nothing kept."""
    made = [
        _one_long(q[i : i + 1], k[i : i + 1], v[i : i + 1], bucket.length, scale, window, softcap)
        for i in range(q.shape[0])
    ]
    return torch.cat(made)


def _one_long(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    heads = q.view(1, -1, length, q.shape[-1])
    mask = _window(length, length, window, q.device) if window or softcap is not None else None
    if softcap is not None:
        assert mask is not None
        made = _plain(heads, k[None], v[None], mask, scale, softcap)
    else:
        made = F.scaled_dot_product_attention(
            heads,
            k[None].expand(1, heads.shape[1], -1, -1),
            v[None].expand(1, heads.shape[1], -1, -1),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
    return made.reshape(1, -1, v.shape[-1])


def _long_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Bucket,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward once more, one sequence at a time, with autograd."""
    parts: list[tuple[Tensor, ...]] = []
    for i in range(q.shape[0]):
        with torch.enable_grad():
            one, two, three = (each[i : i + 1].detach().requires_grad_() for each in (q, k, v))
            out = _one_long(one, two, three, bucket.length, scale, window, softcap)
        parts.append(torch.autograd.grad(out, (one, two, three), do[i : i + 1]))
    dq, dk, dv = (torch.cat(each) for each in zip(*parts, strict=True))
    return dq, dk, dv
