"""Segments through any network from an array to an array: one forward of the base for all slots of
a micro-batch, their examples stacked on axis 0, and the loss of every example.

`forward.py` does the same for causal LMs; the trainer sees no difference. A network is tried out
once with two slots of probe adapters and a neighbour full of NaN: where each slot's losses and
gradients come out, to the last bit on a CPU, as by itself, forwards are fused; where not (it mixes
examples, or keeps them on another axis), each segment goes through the base by itself. Layers stay
in evaluation mode, so a batch norm keeps its statistics.

N examples and filling, D width, M examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lora_core import rng
from lora_core.arrays import ArrayExamples, ArrayTask
from lora_core.errors import LoraError, SpecError
from lora_core.examples import Examples
from lora_core.forward import Found
from lora_core.group import find_groups
from lora_core.inject import carry_all, eject, focus_of, inject
from lora_core.layer import Focus, LoraLinear
from lora_core.segments import SEGMENT_ROWS, Row, Segment, Span, cut, whole_rows
from lora_core.spec import AdapterSpec
from lora_core.weights import SlotWeights
from lora_core.work import Pass

#: examples of the try-out's segments; together they reach several threads
_PROBES = (5, 40, 230)
_NAMES = ("probe0", "probe1", "probe2")


class Stack:
    """One micro-batch: x [N, ...] of whole segments, each filled up with copies of its own first
    example (`padded` False: of nothing but its examples), and y [M, ...]."""

    def __init__(
        self,
        segments: list[Segment],
        *,
        padded: bool,
        training: bool,
        widths: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.training = training
        self.spans: list[Span] = []
        rows: list[Row] = []
        labels: list[Tensor] = []
        for segment in segments:
            own = [each for each in segment.sequences if isinstance(each, Row)]
            start, found = len(rows), len(labels)
            rows += own
            labels += [row.y for row in own]
            if padded:
                rows += [replace(own[0], key=0)] * (segment.rows - len(own))
            self.spans.append(Span(segment.slot, start, len(rows), found, len(labels)))
        x = torch.stack([row.x for row in rows])
        count = whole_rows(len(x), widths, torch.get_num_threads()) if padded else len(x)
        if count > len(x):
            x = torch.cat([x, x.new_zeros(count - len(x), *x.shape[1:])])
        keys = [row.key for row in rows] + [0] * (count - len(rows))
        self.x = x.to(device)
        self.y = torch.stack(labels).to(device)
        self.keys = torch.tensor(keys, device=device)
        self.positions = torch.zeros(count, dtype=torch.int64, device=device)


class ArrayForward:
    """A network made ready: every linear layer, convolution and embedding carries slots.

    `fused` says whether segments share a forward, `passes` counts the base's forwards, `outputs` is
    the shape of one example's output, and `below` what integer inputs must stay under (None: no
    embedding reads them). Raises: LoraError for a network that does not take what `task` says.
    """

    def __init__(self, model: nn.Module, task: ArrayTask) -> None:
        self.model = model
        self.task = task
        first = next(model.parameters(), None)
        if first is None:
            raise LoraError("the network has no parameters")
        self.device, self.dtype = first.device, first.dtype
        self.passes = 0
        self.native = self.kernels = None
        self.below: int | None = None
        self.outputs, self._widths = self._look()
        self.carriers: list[LoraLinear] = carry_all(model)
        found = focus_of(model)
        if found is None:
            raise LoraError("the network has no layer an adapter could sit on")
        self._focus: Focus = found
        find_groups(model, self.carriers, lambda: self._plain(self._inputs(2)))
        self._anchor = torch.zeros((), device=self.device, requires_grad=True)
        self.fused = True
        self.fused = self._can_fuse()

    def __call__(
        self, segments: list[Segment], slots: dict[str, SlotWeights], *, training: bool = True
    ) -> Found:
        """The segments through the network with the weights of every slot they name (`slots`).
        Taken backward, the losses leave their gradients there."""
        self.passes += 1
        stack = Stack(
            segments,
            padded=self.fused,
            training=training,
            widths=self._widths,
            device=self.device,
        )
        with self._at_work(Pass(stack, slots, self._anchor)):
            outputs = self._run(stack.x)
        losses, hits = [], []
        for span in stack.spans:
            count = span.label_stop - span.label_start
            own = outputs[span.start : span.start + count]
            y = stack.y[span.label_start : span.label_stop]
            losses.append(self.task.losses(own, y))
            if self.task.kind == "classification":
                hits.append(self.task.hits(own.detach(), y))
        known = torch.cat(hits) if hits else None
        return Found(
            stack, torch.cat(losses), known.__getitem__ if known is not None else None, cheap=True
        )

    def rehearse(self, segments: list[Segment]) -> None:
        """A forward and a backward without adapters, to no effect but the time and memory."""
        for part in [segments] if self.fused else [[each] for each in segments]:
            losses = self(part, {}).losses
            torch.autograd.backward(losses, torch.ones_like(losses))

    def probe_segments(self, count: int, length: int) -> list[Segment]:
        """`count` examples, in no slot."""
        return cut(None, self._rows(count))

    def admit(self, names: list[str]) -> None:
        """Every layer an adapter may sit on takes part."""

    def largest(self, examples: Examples | ArrayExamples, at_once: int) -> list[Segment]:
        """A segment that takes most memory; `at_once` examples make a step. Raises: SpecError for
        examples the network cannot read."""
        if not isinstance(examples, ArrayExamples):
            raise SpecError("the base reads arrays, and the examples are text")
        task, x, y = self.task, examples.x, examples.y
        if tuple(x.shape[1:]) != task.shape:
            raise SpecError(f"an example is {tuple(x.shape[1:])}, and the base reads {task.shape}")
        if x.is_floating_point() != task.dtype.is_floating_point:
            raise SpecError(f"the examples are {x.dtype}, and the base reads {task.dtype}")
        low, high = (x.min(), x.max()) if len(x) else (0, 0)
        if self.below is not None and not 0 <= int(low) <= int(high) < self.below:
            raise SpecError(f"an id is not in 0 … {self.below - 1}, which the base knows")
        wanted = self.outputs
        if task.kind == "classification":
            classes, wanted = wanted[0], wanted[1:]
            if y.is_floating_point() or (len(y) and not 0 <= y.min() <= y.max() < classes):
                raise SpecError(f"y is not class ids from 0 to {classes - 1}")
        if tuple(y.shape[1:]) != wanted:
            raise SpecError(f"a target is {tuple(y.shape[1:])}, and the base makes {wanted}")
        count = min(len(examples), at_once, SEGMENT_ROWS)
        return cut(None, [examples.sequence(index) for index in range(count)])

    @contextmanager
    def _at_work(self, work: Pass) -> Iterator[None]:
        self._focus.work = work
        try:
            yield
        finally:
            self._focus.work = None
            for carrier in self.carriers:
                if carrier.group is not None:
                    carrier.group.forget()

    def _run(self, x: Tensor) -> Tensor:
        """The network's outputs [N, ...]."""
        made: Any = self.model(x.to(self.dtype) if x.is_floating_point() else x)
        if not isinstance(made, Tensor) or made.shape[:1] != x.shape[:1]:
            raise LoraError("the network does not map [B, ...] to one tensor [B, ...]")
        return made

    @torch.no_grad()
    def _plain(self, x: Tensor) -> Tensor:
        return self._run(x.to(self.device))

    def _inputs(self, count: int, salt: int = 0) -> Tensor:
        """Inputs of a few examples: between -1 and 1, or ids the network knows."""
        drawn = rng.uniform(("probe", salt), (count, *self.task.shape))
        if self.task.dtype.is_floating_point:
            return (drawn * 2 - 1).to(self.task.dtype)
        return (drawn * (self.below or 1)).to(self.task.dtype)

    def _rows(self, count: int, salt: int = 0) -> list[Row]:
        x = self._inputs(count, salt)
        if self.task.kind == "classification":
            shape, dtype = self.outputs[1:], torch.int64
        else:
            shape, dtype = self.outputs, torch.float32
        y = torch.zeros(count, *shape, dtype=dtype)
        return [Row(x[i], y[i], key=i + 1) for i in range(count)]

    def _look(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of one example's output, and how many numbers of an example each module makes
        or is given."""
        x = self._inputs(2).to(self.device)
        widths: set[int] = set()

        def seen(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            if isinstance(module, nn.Embedding) and given[0] is x:
                self.below = min(self.below or module.num_embeddings, module.num_embeddings)
            for each in (*given, made):
                if isinstance(each, Tensor) and each.is_floating_point() and not each.numel() % 2:
                    widths.add(each.numel() // 2)

        hooks = [m.register_forward_hook(seen) for m in self.model.modules()]
        try:
            made = self._plain(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise LoraError(
                f"the network does not take {self.task.dtype} [B, "
                f"{', '.join(map(str, self.task.shape))}]: {error}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if self.task.kind == "classification" and made.dim() < 2:
            raise LoraError("a classification's outputs are [B, classes, ...]")
        return tuple(made.shape[1:]), tuple(sorted(widths))

    def _can_fuse(self) -> bool:
        """The try-out; the probe adapters are gone afterwards."""
        names = tuple(carrier.name for carrier in self.carriers)
        try:
            held = {}
            for salt, slot in enumerate(_NAMES):
                inject(self.model, AdapterSpec(r=1, alpha=1, target_modules=names), slot)
                held[slot] = SlotWeights(self.model, slot)
                drawn = rng.uniform(("probe adapter", salt), (held[slot].master.numel(),))
                held[slot].master.copy_((drawn - 0.5).to(self.device))
                held[slot].refresh()
            return self._alike(held)
        finally:
            for slot in _NAMES:
                eject(self.model, slot)

    def _alike(self, held: dict[str, SlotWeights]) -> bool:
        """Whether slots get beside others what they get alone, and alone what the network with
        their adapters gives."""
        own = [
            cut(slot, self._rows(count, salt))[0]
            for salt, (slot, count) in enumerate(zip(_NAMES, _PROBES, strict=True))
        ]
        try:
            alone = {segment.slot: self._found([segment], held) for segment in own}
            if not all(self._near(segment, alone[segment.slot][segment.slot]) for segment in own):
                return False
            for packing in (own, [own[2], self._poison(), own[0]], [own[1], own[0]]):
                for slot, found in self._found(packing, held).items():
                    if not self._same(found, alone[slot][slot]):
                        return False
        except LoraError:  # some layer sees rows that are nobody's
            return False
        return True

    def _found(
        self, segments: list[Segment], held: dict[str, SlotWeights]
    ) -> dict[str | None, tuple[Tensor, Tensor]]:
        """Losses and gradient of each slot."""
        for weights in held.values():
            weights.grad.zero_()
        found = self(segments, held)
        torch.autograd.backward(found.losses, torch.ones_like(found.losses))
        return {
            span.slot: (
                found.losses.detach()[span.label_start : span.label_stop],
                held[span.slot].grad.clone(),
            )
            for span in found.layout.spans
            if span.slot is not None
        }

    def _same(self, found: tuple[Tensor, Tensor], alone: tuple[Tensor, Tensor]) -> bool:
        if self.device.type == "cpu":
            return all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
        return all(_near(a, b, self._slack) for a, b in zip(found, alone, strict=True))

    @torch.no_grad()
    def _near(self, segment: Segment, found: tuple[Tensor, Tensor]) -> bool:
        """Whether the losses are those of the network with the slot at work."""
        rows = [row for row in segment.sequences if isinstance(row, Row)]
        before, self._focus.slot = self._focus.slot, segment.slot
        try:
            outputs = self._plain(torch.stack([row.x for row in rows]))
        finally:
            self._focus.slot = before
        y = torch.stack([row.y for row in rows]).to(self.device)
        return _near(found[0], self.task.losses(outputs, y), self._slack)

    @property
    def _slack(self) -> float:
        return 1e-3 if self.dtype == torch.float32 else 0.1

    def _poison(self) -> Segment:
        """A neighbour whose numbers are none."""
        rows = self._rows(20, salt=9)
        if self.task.dtype.is_floating_point:
            rows = [replace(row, x=torch.full_like(row.x, float("nan"))) for row in rows]
        return cut(None, rows)[0]


def _near(found: Tensor, wanted: Tensor, slack: float) -> bool:
    return bool((found - wanted).float().norm() <= slack * wanted.float().norm().clamp_min(1e-30))
