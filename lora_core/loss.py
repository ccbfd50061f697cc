"""Cross-entropy of next tokens, on label rows only and in chunks: the logits of the whole batch
never exist. The head is frozen, so the gradient of the hidden states is made in the forward and
the head gets none. Shifting the labels and averaging are the caller's.

N label rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 64
IGNORED = -100


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else hidden.new_empty(0)
        for start in range(0, hidden.shape[0], rows):
            part, target = hidden[start : start + rows], labels[start : start + rows]
            logits = (part @ weight.T).float()
            if bias is not None:
                logits += bias
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            index = torch.arange(len(target), device=hidden.device)
            norm = torch.logsumexp(logits, dim=-1)
            total += (norm - logits[index, target]).sum()
            correct += (logits.argmax(dim=-1) == target).sum()
            if not wanted:
                continue
            slope = torch.exp(logits - norm[:, None])
            slope[index, target] -= 1.0
            if softcap is not None:
                slope *= 1.0 - (logits / softcap) ** 2
            gradient[start : start + rows] = slope.to(hidden.dtype) @ weight
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0]).to(gradient.dtype), None, None, None, None, None


def token_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (float32 scalar) and the number of tokens predicted right (int64).

    hidden [..., D] are states and labels [...] the tokens that follow them (shifted already);
    rows whose label is -100 never reach the head. head_weight [V, D] and bias [V] are frozen.
    With `softcap` c the logits are c tanh(logits / c). At most `chunk` x V logits exist at once.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    learn = labels != IGNORED
    if not bool(learn.all()):
        hidden, labels = hidden[learn], labels[learn]
    total, correct = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, bias, labels, softcap, chunk
    )
    return total, correct
