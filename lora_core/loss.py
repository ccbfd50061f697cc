"""Cross-entropy of next tokens through a frozen head, on label rows only: the logits of the whole
batch never exist. The head gets no gradient, so that of the hidden states is made in the forward.

    loss = log sum_v exp(h . W_v) - h . W_label       dh = softmax(h W^T) W - W_label

which is attention with keys and values W. Where the head is plain (no bias, no soft cap) torch's
fused attention kernel computes just that, chunk after chunk of the vocabulary; else the same is
done product by product. Rows are padded to whole tiles, so a row's bits are its own.

M label rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_core.segments import TILE

IGNORED = -100
#: vocabulary entries at once
CHUNK = 8192
#: label rows the fused kernel takes at once, where that changes no bit
MOST_ROWS = 1024


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        scale: float,
        most: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        count = hidden.shape[0]
        losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden) if wanted else None
        plain = bias is None and softcap is None and hidden.device.type == "cpu"
        step = most if plain else TILE
        for start in range(0, count, step):
            h = hidden[start : start + step]
            target = labels[start : start + step]
            pull = _fused if plain else _stepwise
            norm, own, dh = pull(_whole(h), weight, bias, _whole(target), softcap, scale, wanted)
            losses[start : start + step] = (norm - own)[: len(h)]
            if slope is not None and dh is not None:
                slope[start : start + step] = dh[: len(h)]
        if slope is not None:
            ctx.save_for_backward(slope)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        dh = (slope * grads[0][:, None]).to(slope.dtype)
        return dh, None, None, None, None, None, None


def _whole(x: Tensor) -> Tensor:
    """Rows padded with zeros to a whole number of tiles."""
    missing = -x.shape[0] % TILE
    return x if not missing else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])


def _fused(
    h: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    labels: Tensor,
    _softcap: float | None,
    scale: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-sum-exp [M], label logit [M] and dh [M, D] by torch's attention kernel for CPUs."""
    outs: list[Tensor] = []
    norms: list[Tensor] = []
    for start in range(0, weight.shape[0], CHUNK):
        keys = weight[None, None, start : start + CHUNK]
        out, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            h[None, None], keys, keys, 0.0, False, scale=scale
        )
        outs.append(out[0, 0])
        norms.append(norm[0, 0])
    stacked = torch.stack(norms)
    norm = torch.logsumexp(stacked, dim=0)
    mine = weight[labels]
    own = (h.float() * mine.float()).sum(dim=-1) * scale
    if not wanted:
        return norm, own, None
    dh = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
    for out, share in zip(outs, (stacked - norm).exp_(), strict=True):
        dh.addcmul_(out.float(), share[:, None])
    return norm, own, dh.sub_(mine.float()).mul_(scale)


def _stepwise(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    scale: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same by products over chunks of the vocabulary, with a running maximum: any head, any
    device, and the oracle of `_fused`."""
    rows = h.shape[0]
    top = torch.full((rows,), -torch.inf, device=h.device)
    total = torch.zeros(rows, device=h.device)
    own = torch.zeros(rows, device=h.device)
    dh = torch.zeros(h.shape, dtype=torch.float32, device=h.device) if wanted else None
    at_label = torch.zeros(rows, device=h.device)
    for start in range(0, weight.shape[0], CHUNK):
        part = weight[start : start + CHUNK]
        logits, bend = _logits(h, part, bias, start, softcap, scale)
        here = (labels >= start) & (labels < start + len(part))
        index = torch.where(here, labels - start, 0)[:, None]
        own = torch.where(here, logits.gather(1, index)[:, 0], own)
        above = torch.maximum(top, logits.amax(dim=1))
        shrink = (top - above).exp_()
        p = logits.sub_(above[:, None]).exp_()
        total = total * shrink + p.sum(dim=1)
        top = above
        if dh is not None:
            if bend is not None:
                at_label = torch.where(here, bend.gather(1, index)[:, 0], at_label)
                p.mul_(bend)
            dh.mul_(shrink[:, None]).add_((p.to(h.dtype) @ part).float())
    if dh is not None:
        mine = weight[labels].float()
        if softcap is not None:
            mine = mine * at_label[:, None]
        dh = dh.div_(total[:, None]).sub_(mine).mul_(scale)
    return top + total.log(), own, dh


def _logits(
    h: Tensor,
    part: Tensor,
    bias: Tensor | None,
    start: int,
    softcap: float | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """float32 logits [M, chunk] and the slope of the soft cap there."""
    logits = (h @ part.T).float()
    if bias is not None:
        logits += bias[start : start + len(part)].float()
    if scale != 1.0:
        logits *= scale
    if softcap is None:
        return logits, None
    bent = torch.tanh_(logits.div_(softcap))
    slope = 1.0 - bent * bent
    return bent.mul_(softcap), slope


def row_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    most: int = MOST_ROWS,
) -> Tensor:
    """Cross-entropy of each row, float32 [M].

    hidden [M, D] are states and labels int64 [M] the tokens that follow them (shifted already);
    head_weight [V, D] and bias [V] are frozen. Logits are softcap(scale (h W^T + b)), where
    softcap c is c tanh(x / c). `most` rows go into one call of the fused kernel.
    """
    losses: Tensor = _RowLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, bias, labels, softcap, scale, most
    )
    return losses


@torch.no_grad()
def rows_at_once(head_weight: Tensor) -> int:
    """How many rows the fused kernel may take at once on this machine: MOST_ROWS if a tile among
    more tiles gets the bits it gets alone, else one tile. Tried out on one chunk of the head."""
    if head_weight.device.type != "cpu":
        return TILE
    part = head_weight[:CHUNK]
    rows = torch.linspace(-1.0, 1.0, MOST_ROWS * part.shape[1]).view(MOST_ROWS, -1)
    rows = rows[torch.arange(MOST_ROWS) * 7 % MOST_ROWS].to(part.dtype)
    labels = torch.arange(MOST_ROWS) % len(part)
    for count in range(TILE, MOST_ROWS + 1, TILE):
        many = _fused(rows[:count], part, None, labels[:count], None, 1.0, True)
        for start in range(0, count, TILE):
            mine = slice(start, start + TILE)
            alone = _fused(rows[mine], part, None, labels[mine], None, 1.0, True)
            pairs = zip(many, alone, strict=True)
            if not all(
                a is not None and b is not None and torch.equal(a[mine], b) for a, b in pairs
            ):
                return TILE
    return MOST_ROWS


@torch.no_grad()
def right(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Whether each row's most probable token is its label: bool [M]. A third of the work of
    `row_loss` again, since its kernel keeps no maximum; scale and soft cap change no order."""
    found = []
    for start in range(0, hidden.shape[0], TILE):
        h = _whole(hidden[start : start + TILE])
        best = torch.full((len(h),), -torch.inf, device=h.device)
        place = torch.zeros(len(h), dtype=torch.int64, device=h.device)
        for at in range(0, head_weight.shape[0], CHUNK):
            logits, _ = _logits(h, head_weight[at : at + CHUNK], bias, at, softcap, 1.0)
            value, index = logits.max(dim=1)
            place = torch.where(value > best, index + at, place)
            best = torch.maximum(best, value)
        found.append(place[: len(hidden) - start])
    return torch.cat(found) == labels if found else labels.bool()


def token_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (float32 scalar) and the number of tokens predicted right (int64).

    hidden [..., D], labels [...]; rows whose label is -100 never reach the head. As `row_loss`.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    learn = labels != IGNORED
    if not bool(learn.all()):
        hidden, labels = hidden[learn], labels[learn]
    losses = row_loss(hidden, head_weight, labels, bias=bias, softcap=softcap)
    hits = right(hidden.detach(), head_weight, labels, bias=bias, softcap=softcap)
    return losses.sum(), hits.sum()
