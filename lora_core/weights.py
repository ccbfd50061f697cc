"""The numbers of one slot: all its parameters end to end in one float32 tensor, their gradient in
another, and what the products run on. What an update does with them is `optim.py`'s, what a variant
makes of its parameters `variants/`'s.

P numbers of the slot, R ranks of a group's members together, D width in, O width out of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_core import memory, private
from lora_core.group import LinearGroup
from lora_core.inject import layers
from lora_core.layer import LoraLinear, device_of, dtype_of
from lora_core.native import Kernels
from lora_core.spec import AdapterSpec
from lora_core.variants import dora, learnable_scaling, qalora


@dataclass
class Pair:
    """A slot's adapters on one group, in the base's dtype: A [R, D] and B [O, R], where a member's
    ranks reach its own rows of B only. `grad_a` [R, D] and `grads_b` [O of the member, R of the
    member] are their float32 gradients. `places` says which members have one: (member, its rows of
    B, its ranks). `turn` is DoRA's."""

    a: Tensor
    b: Tensor
    grad_a: Tensor
    grads_b: list[Tensor]
    places: list[tuple[LoraLinear, slice, slice]]
    turn: Turn | None = None


@dataclass
class Turn:
    """DoRA's c - 1 (`less`, zero where a member has no adapter), the gradient `grad` of c, the
    lengths of the rows of W and of W + s B A; float32 [O] each."""

    less: Tensor
    grad: Tensor
    own: Tensor
    lengths: Tensor


class SlotWeights:
    """One slot's parameters as views of `master` [P], their gradient `grad` [P].

    After each change of the master `spread` makes what the products run on, and after the backwards
    of a step `gather` makes the parameters' gradient of what those left; plain A and B are views
    of the master and its gradient, and need neither. On `kernels` no number depends on how many
    threads there are.
    """

    def __init__(self, model: nn.Module, slot: str, kernels: Kernels | None = None) -> None:
        held = {name: layer for name, layer in layers(model).items() if slot in layer.specs}
        groups: list[LinearGroup] = []
        for layer in held.values():
            if layer.group is not None and layer.group not in groups:
                groups.append(layer.group)
        first = next(iter(held.values()))
        self.slot = slot
        self.spec: AdapterSpec = first.specs[slot]
        self.scaling = self.spec.scaling
        #: `<layer>.<A|B|gain|magnitude>` in the order of the model, and then
        #: `<module>.<weight|tokens>`: the names of a state
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{part}": parameter
            for name, layer in held.items()
            for part, parameter in layer.parameters_of(slot).items()
        } | private.parameters_of(model, slot)
        size = sum(parameter.numel() for parameter in self.parameters.values())
        device, dtype = device_of(first.base), dtype_of(first.base)
        self.master = torch.empty(size, device=device)
        self.grad = torch.zeros_like(self.master)
        self.places: dict[str, slice] = {}
        #: in the base's dtype, kept up to date by the optimizer; None where that is float32
        self.low = None if dtype == torch.float32 else self.master.to(dtype)
        self.size = memory.size_of(model, self.spec, held)
        self._times = kernels.times if kernels is not None else dora.times
        self._pairs: dict[int, Pair] = {}
        self._lay(groups)
        #: gradients that are no views of `grad`
        self._apart = [
            gradient
            for pair in self._pairs.values()
            for gradient in (
                *([pair.grad_a] if self.spec.qalora_group_size is not None else []),
                *(pair.grads_b if self.spec.learnable_scaling else []),
                *([pair.turn.grad] if pair.turn is not None else []),
            )
        ]
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
        """Bring what the products run on up to date after `master` and `low` were."""
        size = self.spec.qalora_group_size
        for pair in self._pairs.values():
            for member, rows, ranks in pair.places:
                b = member.lora_B[self.slot]
                if self.spec.learnable_scaling:
                    b = learnable_scaling.spread(b, member.lora_gain[self.slot])
                pair.b[rows, ranks].copy_(b)
                if size is not None:
                    pair.a[ranks].copy_(qalora.spread(member.lora_A[self.slot], size))
                if pair.turn is not None:
                    self._turn(pair, pair.turn, member, rows, ranks)

    @torch.no_grad()
    def zero(self) -> None:
        """Gradients of nothing yet."""
        self.grad.zero_()
        for gradient in self._apart:
            gradient.zero_()

    @torch.no_grad()
    def gather(self) -> None:
        """Complete `grad` once all backwards of a step are done."""
        if not self._apart:
            return
        size = self.spec.qalora_group_size
        for pair in self._pairs.values():
            for (member, rows, ranks), given in zip(pair.places, pair.grads_b, strict=True):
                if size is not None:
                    self._grad(member, "A").copy_(qalora.gather(pair.grad_a[ranks], size))
                if self.spec.learnable_scaling:
                    b, gain = member.lora_B[self.slot], member.lora_gain[self.slot]
                    grad_b, grad_gain = learnable_scaling.gather(given, b, gain)
                    self._grad(member, "B").copy_(grad_b)
                    self._grad(member, "gain").copy_(grad_gain)
                if pair.turn is not None:
                    slope = pair.turn.grad[rows] / pair.turn.lengths[rows]
                    self._grad(member, "magnitude").copy_(slope)

    def gradient(self, name: str) -> Tensor:
        """The gradient of a parameter, in its shape."""
        return self.grad[self.places[name]].view(self.parameters[name].shape)

    def _grad(self, member: LoraLinear, part: str) -> Tensor:
        return self.gradient(f"{member.name}.{part}")

    def _turn(self, pair: Pair, turn: Turn, member: LoraLinear, rows: slice, ranks: slice) -> None:
        turn.lengths[rows] = dora.lengths_with(
            turn.own[rows],
            member.rows,
            pair.a[ranks],
            pair.b[rows, ranks],
            self.scaling,
            self._times,
        )
        turn.less[rows] = member.lora_magnitude[self.slot] / turn.lengths[rows] - 1.0

    def _lay(self, groups: list[LinearGroup]) -> None:
        """Lay the parameters out: every A, group by group, then every B, then the rest."""
        members = {id(g): [m for m in g.members if self.slot in m.specs] for g in groups}
        carriers = [member for group in groups for member in members[id(group)]]
        at = 0
        for part in ("A", "B"):
            for member in carriers:
                at = self._move(f"{member.name}.{part}", at)
        for name in self.parameters:
            if name not in self.places:
                at = self._move(name, at)
        for group in groups:
            self._pairs[id(group)] = self._pair(group, members[id(group)])

    def _pair(self, group: LinearGroup, members: list[LoraLinear]) -> Pair:
        low = self.master if self.low is None else self.low
        device, spec = self.master.device, self.spec
        total, width, height = spec.r * len(members), group.in_features, group.out_features
        a = slice(
            self.places[f"{members[0].name}.A"].start, self.places[f"{members[-1].name}.A"].stop
        )
        places = []
        for index, member in enumerate(members):
            row = sum(group.sizes[: member.place])
            rows = slice(row, row + member.out_features)
            places.append((member, rows, slice(index * spec.r, (index + 1) * spec.r)))
        apart = spec.qalora_group_size is not None
        pair = Pair(
            a=low.new_empty(total, width) if apart else low[a].view(total, width),
            b=torch.zeros(height, total, dtype=low.dtype, device=device),
            grad_a=(
                torch.zeros(total, width, device=device)
                if apart
                else self.grad[a].view(total, width)
            ),
            grads_b=[
                torch.zeros(member.out_features, spec.r, device=device)
                if spec.learnable_scaling
                else self._grad(member, "B")
                for member in members
            ],
            places=places,
        )
        if spec.dora:
            less, grad, own, lengths = torch.zeros(4, height, device=device)
            for member, rows, _ in places:
                own[rows] = dora.lengths(member.rows)
            pair.turn = Turn(less, grad, own, lengths)
        return pair

    def _move(self, name: str, at: int) -> int:
        parameter = self.parameters[name]
        stop = at + parameter.numel()
        view = self.master[at:stop].view(parameter.shape)
        view.copy_(parameter.detach())
        parameter.data = view
        self.places[name] = slice(at, stop)
        return stop
