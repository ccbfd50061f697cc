"""The numbers of one slot: all its adapters end to end in one float32 tensor, its gradient in
another, and the copies the products run on. What an update does with them is `optim.py`'s.

P numbers of the slot, R ranks of a group's members together, D width in, O width out of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_core.group import LinearGroup
from lora_core.inject import layers
from lora_core.layer import LoraLinear
from lora_core.spec import AdapterSpec


@dataclass
class Pair:
    """A slot's adapters on one group, in the base's dtype: A [R, D] and B [O, R], where a member's
    ranks reach its own rows of B only. `grad_a` [R, D] and `grads_b` [O of the member, R of the
    member] are float32 views of the slot's gradient. `places` says which members have one:
    (member, its rows of B, its ranks)."""

    a: Tensor
    b: Tensor
    grad_a: Tensor
    grads_b: list[Tensor]
    places: list[tuple[LoraLinear, slice, slice]]
    masters_b: list[Tensor]
    master_a: Tensor


class SlotWeights:
    """One slot's parameters as views of `master` [P], their gradient `grad` [P]."""

    def __init__(self, model: nn.Module, slot: str) -> None:
        held = {name: layer for name, layer in layers(model).items() if slot in layer.specs}
        groups: list[LinearGroup] = []
        for layer in held.values():
            if layer.group is not None and layer.group not in groups:
                groups.append(layer.group)
        first = next(iter(held.values()))
        self.slot = slot
        self.spec: AdapterSpec = first.specs[slot]
        self.scaling = self.spec.scaling
        #: `<layer>.<A|B>` in the order of the model: the names of a state
        self.parameters: dict[str, nn.Parameter] = {}
        for name, layer in held.items():
            self.parameters[f"{name}.A"] = layer.lora_A[slot]
            self.parameters[f"{name}.B"] = layer.lora_B[slot]
        size = sum(parameter.numel() for parameter in self.parameters.values())
        device, dtype = first.weight.device, first.weight.dtype
        self.master = torch.empty(size, device=device)
        self.grad = torch.zeros_like(self.master)
        self.places: dict[str, slice] = {}
        #: in the base's dtype, kept up to date by the optimizer; None where that is float32
        self.low = None if dtype == torch.float32 else self.master.to(dtype)
        self._pairs: dict[int, Pair] = {}
        at = 0
        for group in groups:
            at = self._lay(group, at)
        self.refresh()

    def pair(self, group: LinearGroup) -> Pair | None:
        """This slot's adapters on a group, if it has any there."""
        return self._pairs.get(id(group))

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring all copies up to date after the masters changed."""
        if self.low is not None:
            self.low.copy_(self.master)
        self.spread()

    @torch.no_grad()
    def spread(self) -> None:
        """Bring each pair's B up to date after `low` was."""
        for pair in self._pairs.values():
            for (_, rows, ranks), master in zip(pair.places, pair.masters_b, strict=True):
                pair.b[rows, ranks].copy_(master)

    def _lay(self, group: LinearGroup, at: int) -> int:
        """Lay a group's parameters out from number `at` on: all A, then all B."""
        slot, r = self.slot, self.spec.r
        members = [member for member in group.members if slot in member.specs]
        start = at
        for member in members:
            at = self._move(f"{member.name}.A", member.lora_A[slot], at)
        stop = at
        width = group.in_features
        total = r * len(members)
        places, masters, grads = [], [], []
        for index, member in enumerate(members):
            row = sum(group.sizes[: member.place])
            rows = slice(row, row + member.out_features)
            places.append((member, rows, slice(index * r, (index + 1) * r)))
            parameter = member.lora_B[slot]
            begin, at = at, self._move(f"{member.name}.B", parameter, at)
            masters.append(self.master[begin:at].view(parameter.shape))
            grads.append(self.grad[begin:at].view(parameter.shape))
        low = self.master if self.low is None else self.low
        self._pairs[id(group)] = Pair(
            a=low[start:stop].view(total, width),
            b=torch.zeros(group.out_features, total, dtype=low.dtype, device=self.master.device),
            grad_a=self.grad[start:stop].view(total, width),
            grads_b=grads,
            places=places,
            masters_b=masters,
            master_a=self.master[start:stop].view(total, width),
        )
        return at

    def _move(self, name: str, parameter: nn.Parameter, at: int) -> int:
        stop = at + parameter.numel()
        view = self.master[at:stop].view(parameter.shape)
        view.copy_(parameter.detach())
        parameter.data = view
        self.places[name] = slice(at, stop)
        return stop
