"""Linear layers that read one input (q, k, v; gate, up), as one product with all slots' adapters.

    x [N, D] ─┬─ W (all members' rows, frozen) ──────────── + ── y [N, O] ── cut by member
              └─ per segment: A [R, D] ── B [O, R] ── × s ──┘

N rows, D width in, O width out of all members, R ranks of all members of one slot. Which members
there are is found here; the arithmetic is in `ops/`, a slot's numbers are in `weights.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lora_core.layer import LoraLinear, device_of
from lora_core.native.kernels import Kernels
from lora_core.quantize.scratch import Scratch

if TYPE_CHECKING:
    from lora_core.layer import Focus


class LinearGroup:
    """One or more layers side by side. `weight` [O, D] and `bias` [O] or None are the members'
    own: a layer's weight is a view of the group's, so nothing is held twice. Where the members are
    quantised it is made whole in `scratch` when it is read, and good until another's is."""

    def __init__(self, members: list[LoraLinear], scratch: Scratch | None = None) -> None:
        self.members = members
        self.name = "+".join(member.name for member in members)
        self.sizes = [member.out_features for member in members]
        self.in_features = members[0].in_features
        self.out_features = sum(self.sizes)
        self._kept: tuple[Tensor, list[Tensor | None]] | None = None
        self._quantized = [member.quantized for member in members if member.quantized is not None]
        self._scratch = scratch or Scratch()
        if len(members) > 1:
            if not self._quantized:
                self._share("weight")
            self._share("bias")
        for index, member in enumerate(members):
            member.group, member.place = self, index

    @property
    def weight(self) -> Tensor:
        """[O, D], whatever way round the layers keep it."""
        first = self.members[0]
        if self._quantized:
            return self._scratch.weight(self._quantized)
        if len(self.members) > 1:
            return self._weight
        return first.weight.T if first.transposed else first.weight

    @property
    def bias(self) -> Tensor | None:
        """[O], or None."""
        if len(self.members) > 1:
            return self._bias
        return self.members[0].bias

    def outputs(self, place: int, x: Tensor, focus: Focus) -> Tensor:
        """The output [..., O of the member]; the first member that is asked works for all."""
        if self._kept is None or self._kept[0] is not x or self._kept[1][place] is None:
            assert focus.work is not None
            made: list[Tensor | None] = list(focus.work.product(self, x))
            if len(made) == 1:
                only = made[0]
                assert only is not None
                return only
            self._kept = (x, made)
        kept = self._kept[1]
        mine, kept[place] = kept[place], None
        if all(other is None for other in kept):
            self._kept = None
        assert mine is not None
        return mine

    def forget(self) -> None:
        """Drop outputs nobody came for (a forward that was broken off)."""
        self._kept = None

    def _share(self, part: str) -> None:
        held = [getattr(member.base, part) for member in self.members]
        if held[0] is None:
            self._bias = None
            return
        whole = torch.cat([each.detach() for each in held])
        for each, view in zip(held, torch.split(whole, self.sizes), strict=True):
            each.data = view
        if part == "weight":
            self._weight = whole
        else:
            self._bias = whole


@torch.no_grad()
def find_groups(
    model: nn.Module,
    carriers: list[LoraLinear],
    probe: Callable[[], object],
    native: Kernels | None = None,
) -> None:
    """Put every carrier into a group. `probe` runs the model once; carriers that follow each
    other in it, have one parent and are handed the same tensor belong together. `native` kernels
    help with quantised weights."""
    seen: list[tuple[LoraLinear, Tensor]] = []
    hooks = [
        carrier.register_forward_pre_hook(lambda module, given: seen.append((module, given[0])))
        for carrier in carriers
    ]
    try:
        probe()
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[list[LoraLinear]] = []
    last: Tensor | None = None
    placed: set[str] = set()
    for carrier, given in seen:
        if carrier.name in placed:
            continue
        placed.add(carrier.name)
        if groups and given is last and _fit(groups[-1][0], carrier):
            groups[-1].append(carrier)
        else:
            groups.append([carrier])
        last = given
    groups += [[carrier] for carrier in carriers if carrier.name not in placed]
    scratch = Scratch(native)
    for group in groups:
        LinearGroup(group, scratch)


def _fit(one: LoraLinear, other: LoraLinear) -> bool:
    if not (one.joins and other.joins):
        return False
    plain = not one.transposed and not other.transposed
    same_parent = one.name.rpartition(".")[0] == other.name.rpartition(".")[0]
    like = _traits(one) == _traits(other)
    return plain and same_parent and like and one.in_features == other.in_features


def _traits(layer: LoraLinear) -> tuple[object, ...]:
    held = layer.quantized
    kind = (held.dtype, held.method.name) if held is not None else (layer.weight.dtype, None)
    return (*kind, device_of(layer.base), layer.bias is None)
