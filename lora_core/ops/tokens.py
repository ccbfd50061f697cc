"""Rows of the input embedding that slots have of their own.

In a fused step a row of the flat axis takes its own slot's vector where the slot trains that row's
token, else the base's. N rows, D width, V vocabulary, U tokens of a slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.errors import TargetError

if TYPE_CHECKING:
    from lora_core.layer import Focus

#: rows of the flat axis, the tokens int64 [U], their vectors and the gradient of those [U, D]
Own = tuple[slice, Tensor, Tensor, Tensor]


class Tokens:
    """Stands in for the forward of an nn.Embedding. `own` are the slots' vectors float32 [U, D],
    `ids` the tokens they are for, int64 [U] in order."""

    part = "tokens"

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.own: dict[str, nn.Parameter] = {}
        self.ids: dict[str, Tensor] = {}
        self.focus: Focus | None = None
        self.name = ""
        self.kept: Tensor | None = None

    def add(self, slot: str, name: str, focus: Focus, ids: tuple[int, ...]) -> None:
        """Give a slot the base's vectors of these tokens; `name` is the module's."""
        self.name, self.focus = name, focus
        self.ids[slot] = torch.tensor(sorted(set(ids)), device=self.weight.device)
        self.own[slot] = nn.Parameter(self.weight.detach()[self.ids[slot]].float())

    def put(self, slot: str) -> None:
        """Write a slot's vectors into the base; `take_back` undoes it."""
        self.kept = self.weight.detach()[self.ids[slot]]
        self.weight[self.ids[slot]] = self.own[slot].detach().to(self.weight.dtype)

    def take_back(self, slot: str) -> None:
        """The base's vectors as they were before the slot's."""
        assert self.kept is not None
        self.weight[self.ids[slot]] = self.kept
        self.kept = None

    def __call__(self, ids: Tensor) -> Tensor:
        focus = self.focus
        out = F.embedding(ids, self.weight)
        if focus is None or not self.own:
            return out
        if focus.work is not None:
            return focus.work.tokens(self, ids, out)
        if focus.slot not in self.own:
            return out
        own, place = self.own[focus.slot], places(self.ids[focus.slot], ids)
        return torch.where((place >= 0)[..., None], own.to(out.dtype)[place.clamp(min=0)], out)


def places(known: Tensor, ids: Tensor) -> Tensor:
    """Where each of `ids` is in `known` (in order), int64; -1 where it is not."""
    at = torch.searchsorted(known, ids).clamp_(max=len(known) - 1)
    return torch.where(known[at] == ids, at, -1)


def carry(embedding: nn.Embedding) -> Tokens:
    """What stands in for an embedding, put there if it is not yet. Raises: TargetError for one
    that does more than look up."""
    found = embedding.__dict__.get("forward")
    if isinstance(found, Tokens):
        return found
    ids = torch.arange(min(3, embedding.num_embeddings), device=embedding.weight.device)
    with torch.no_grad():
        if not torch.equal(embedding(ids), embedding.weight[ids]):
            raise TargetError("trainable_tokens: the model's embedding does more than look up")
    made = Tokens(embedding.weight)
    embedding.forward = made  # type: ignore[method-assign, assignment]
    return made


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, _anchor: Tensor, ids: Tensor, owned: list[Own]) -> Tensor:
        ctx.ids, ctx.owned = ids, owned
        return replace(out.clone(), ids, owned)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        collect(grads[0].reshape(len(ctx.ids), -1), ctx.ids, ctx.owned)
        return None, None, None, None


def replaced(out: Tensor, anchor: Tensor, ids: Tensor, owned: list[Own]) -> Tensor:
    """out [..., D] of N rows with ids [N], the slots' own vectors put in; what comes back for them
    goes into their gradients. `anchor` is any tensor that requires a gradient."""
    made: Tensor = _Replaced.apply(out, anchor, ids, owned)  # type: ignore[no-untyped-call]
    return made


@torch.no_grad()
def replace(out: Tensor, ids: Tensor, owned: list[Own]) -> Tensor:
    """Put the slots' own vectors into out [..., D] of N rows, in place."""
    flat = out.view(len(ids), -1)
    for rows, known, own, _ in owned:
        place = places(known, ids[rows])
        mine = (place >= 0).nonzero().flatten()
        flat[mine + rows.start] = own[place[mine]].to(flat.dtype)
    return out


@torch.no_grad()
def collect(slope: Tensor, ids: Tensor, owned: list[Own]) -> None:
    """Add the slopes [N, D] of the slots' own vectors to their gradients, row by row in order."""
    for rows, known, _, grad in owned:
        place = places(known, ids[rows])
        mine = (place >= 0).nonzero().flatten()
        grad.index_add_(0, place[mine], slope[mine + rows.start].float())
