"""Small parts of the base that a slot has of its own: the weights of the norms over the hidden
state, and rows of the input embedding.

"LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models" (Chen et al., 2023) found
that these have to be trained beside A and B before a model reads longer texts than it was made
for. Here they are kept, and the rows of a fused step find them; the arithmetic is `ops/norm.py`'s
and `ops/tokens.py`'s. The norms of queries and keys, and output heads, stay the base's.

N rows, D width, U tokens of a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lora_core.errors import SpecError, TargetError
from lora_core.layer import Focus
from lora_core.ops import norm, tokens
from lora_core.ops.norm import Norm
from lora_core.ops.tokens import Tokens
from lora_core.segments import Span
from lora_core.spec import AdapterSpec

Part = Norm | Tokens


class Holder(Protocol):
    """A step's slot (`weights.SlotWeights`)."""

    parameters: dict[str, nn.Parameter]

    def gradient(self, name: str) -> Tensor:
        """The gradient of a parameter, in its shape."""


@dataclass(frozen=True)
class Owned:
    """A segment whose slot has a part of its own: the part's value and its gradient."""

    span: Span
    value: Tensor
    grad: Tensor

    @property
    def slot(self) -> str:
        """The slot."""
        assert self.span.slot is not None
        return self.span.slot

    @property
    def rows(self) -> slice:
        """Its rows of the flat axis."""
        return slice(self.span.start, self.span.stop)

    @property
    def labels(self) -> slice:
        """Its rows among the labels."""
        return slice(self.span.label_start, self.span.label_stop)


def check(model: nn.Module, spec: AdapterSpec) -> None:
    """Raises TargetError or SpecError where the model has not what a spec wants of its own."""
    if spec.train_norms and (norm.take_over(model) == 0 or not norms(model)):
        raise TargetError("train_norms: the model has no RMS norm over its hidden state")
    if not spec.trainable_tokens:
        return
    embedding = _embedding(model)
    head = _call(model, "get_output_embeddings")
    if head is not None and head.weight is embedding.weight:
        raise TargetError(
            "trainable_tokens: the output head is tied to the input embedding, and the head stays "
            "frozen"
        )
    most = embedding.weight.shape[0]
    if not 0 <= min(spec.trainable_tokens) <= max(spec.trainable_tokens) < most:
        raise SpecError(f"trainable_tokens: the base knows the tokens 0 to {most - 1}")
    tokens.carry(embedding)


def add(model: nn.Module, spec: AdapterSpec, slot: str, focus: Focus) -> None:
    """Give a slot copies of what its spec wants; they start as the base's. `check` first."""
    if spec.train_norms:
        for name, part in norms(model).items():
            part.add(slot, name, focus)
    if spec.trainable_tokens:
        embedding = _embedding(model)
        name = next(name for name, module in model.named_modules() if module is embedding)
        tokens.carry(embedding).add(slot, name, focus, spec.trainable_tokens)


def remove(model: nn.Module, slot: str) -> None:
    """Take a slot's copies away."""
    for part in parts(model).values():
        if part.own.pop(slot, None) is not None:
            part.kept = None


def parts(model: nn.Module) -> dict[str, Part]:
    """What slots may have of their own, by the module's name."""
    return {
        name: made
        for name, module in model.named_modules()
        if isinstance(made := module.__dict__.get("forward"), Norm | Tokens)
    }


def parameters_of(model: nn.Module, slot: str) -> dict[str, nn.Parameter]:
    """A slot's copies as `<module>.<weight|tokens>`, in the order of the model: float32 [D] each,
    of an embedding [U, D]."""
    return {
        f"{name}.{part.part}": part.own[slot]
        for name, part in parts(model).items()
        if slot in part.own
    }


def numbers(model: nn.Module, spec: AdapterSpec) -> int:
    """Trainable numbers of what a spec wants."""
    count = 0
    if spec.train_norms:
        count += sum(each.weight.numel() for each in norms(model).values())
    if spec.trainable_tokens:
        count += len(spec.trainable_tokens) * int(_embedding(model).weight.shape[1])
    return count


def norms(model: nn.Module) -> dict[str, Norm]:
    """The norms that read the hidden state."""
    width = _embedding(model).weight.shape[1]
    return {
        name: part
        for name, part in parts(model).items()
        if isinstance(part, Norm) and part.weight.shape[0] == width
    }


def _embedding(model: nn.Module) -> Any:
    found = _call(model, "get_input_embeddings")
    if not isinstance(found, nn.Embedding):
        raise TargetError("the model names no input embedding")
    return found


def _call(model: nn.Module, name: str) -> Any:
    getter = getattr(model, name, None)
    return getter() if callable(getter) else None


def owned(part: Part, held: Mapping[str, Holder], spans: list[Span]) -> list[Owned]:
    """Where in a step's segments slots have that part of their own; `held` are the step's slots."""
    if not part.own:
        return []
    name = f"{part.name}.{part.part}"
    found = []
    for span in spans:
        if span.slot in part.own and span.slot in held:
            weights = held[span.slot]
            own = weights.parameters[name].detach()
            found.append(Owned(span, own, weights.gradient(name)))
    return found


def of_norm(found: list[Owned], *, labels: bool = False) -> list[norm.Own]:
    """As `ops/norm.py` takes them: in the rows of the flat axis, or in those of the labels."""
    return [(each.labels if labels else each.rows, each.value, each.grad) for each in found]


def of_tokens(part: Tokens, found: list[Owned]) -> list[tokens.Own]:
    """As `ops/tokens.py` takes them."""
    return [(each.rows, part.ids[each.slot], each.value, each.grad) for each in found]


@torch.no_grad()
def fold(model: nn.Module, slot: str) -> None:
    """Put a slot's copies into the base's own weights. What they take the place of is kept, until
    `restore` or until the slot is emptied."""
    for part in parts(model).values():
        if slot in part.own:
            part.put(slot)


@torch.no_grad()
def restore(model: nn.Module, slot: str) -> None:
    """The base's own weights as they were before `fold`."""
    for part in parts(model).values():
        if slot in part.own:
            part.take_back(slot)
