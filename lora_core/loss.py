"""Cross-entropy of next tokens, on label rows only and in chunks: the logits of the whole batch
never exist. The head is frozen, so the gradient of the hidden states is made in the forward.

N label rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 64


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
        gradient = torch.empty_like(hidden)
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
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (float32 scalar) and the number of tokens predicted right.

    hidden [N, D] are the states of label rows only, labels [N] the tokens that follow them,
    weight [V, D] the frozen head.
    """
    total, correct = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, softcap, chunk_rows
    )
    return total, correct
