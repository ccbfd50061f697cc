"""One forward of a causal LM on examples: micro-batches, padding, hidden states, loss.

Knows transformers' conventions by duck typing; knows nothing of slots, jobs or optimizers.

B rows (examples), T tokens, D width, V vocabulary, N label rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.loss import token_loss

Row = tuple[Tensor, Tensor]


def micro_batches(rows: list[Row], token_budget: int) -> list[list[Row]]:
    """Split rows, in order, so that B x T with padding stays within the budget; a row longer
    than that goes alone."""
    parts: list[list[Row]] = []
    longest = 0
    for row in rows:
        grown = max(longest, len(row[0]))
        if parts and grown * (len(parts[-1]) + 1) <= token_budget:
            parts[-1].append(row)
            longest = grown
        else:
            parts.append([row])
            longest = len(row[0])
    return parts


class Forward:
    """Summed loss of rows through a model and its frozen head.

    Where the model's logits are plainly softcap(h W^T + b), which is tried out once on four
    tokens, the head runs in chunks on label rows; else (scaled logits and other extras) the
    model's own logits are taken, whole.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None = None) -> None:
        self.model: Any = model
        getter = getattr(model, "get_output_embeddings", None)
        self.head: Any = head or (getter() if callable(getter) else None)
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.chunked = self._head_is_plain()

    def __call__(self, rows: list[Row]) -> tuple[Tensor, Tensor, int]:
        """Summed loss (float32 scalar), tokens predicted right, and label tokens of one
        micro-batch. Padded on the right; the state at t predicts the token at t + 1."""
        ids, attention, wanted = self._pad(rows)
        learn = wanted[:, 1:]
        labels = ids[:, 1:][learn]
        count = int(learn.sum())
        if self.chunked:
            hidden = self._hidden(ids, attention)[:, :-1][learn]
            bias = getattr(self.head, "bias", None)
            total, correct = token_loss(
                hidden, self.head.weight, labels, bias=bias, softcap=self.softcap
            )
            return total, correct, count
        out = self.model(input_ids=ids, attention_mask=attention, use_cache=False)
        logits = out.logits[:, :-1][learn].float()
        total = F.cross_entropy(logits, labels, reduction="sum")
        return total, (logits.detach().argmax(dim=-1) == labels).sum(), count

    def _pad(self, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids int64, attention mask int64, label mask bool, each [B, T]."""
        device = next(self.model.parameters()).device
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        wanted = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, (tokens, mask) in enumerate(rows):
            ids[i, : len(tokens)] = tokens
            attention[i, : len(tokens)] = 1
            wanted[i, : len(mask)] = mask
        return ids.to(device), attention.to(device), wanted.to(device)

    def _hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        decoder = getattr(self.model, self.model.base_model_prefix)
        hidden: Tensor = decoder(
            input_ids=ids, attention_mask=attention, use_cache=False
        ).last_hidden_state
        return hidden

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether hidden states, head and soft cap give the model's own logits."""
        weight = getattr(self.head, "weight", None)
        prefix = getattr(self.model, "base_model_prefix", "")
        if weight is None or not prefix or not hasattr(self.model, prefix):
            return False
        ids = torch.arange(4, device=weight.device)[None] % weight.shape[0]
        attention = torch.ones_like(ids)
        hidden = self._hidden(ids, attention)
        if hidden.shape[-1] != weight.shape[1]:
            return False
        logits = F.linear(hidden, weight, getattr(self.head, "bias", None)).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        own = self.model(input_ids=ids, attention_mask=attention, use_cache=False).logits.float()
        if own.shape != logits.shape:
            return False
        slack = 1e-3 if weight.dtype == torch.float32 else 2e-2
        return bool((own - logits).abs().max() <= slack * own.abs().max())
