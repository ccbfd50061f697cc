"""Put adapters into any nn.Module and take them out again. In place; the base is frozen.

Knows nn.Linear and transformers' Conv1D (by its name, without importing transformers).
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from lora_core.errors import SpecError, TargetError
from lora_core.layer import Focus, LoraLinear
from lora_core.spec import ALL_LINEAR, AdapterSpec


def layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Every layer that carries slots, by the name of the layer it stands for."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer an adapter may sit on: linear layers, but not the output head."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = name.rpartition(".")[0]
        if module is head or inside in found:
            continue
        if isinstance(module, nn.Linear | LoraLinear) or type(module).__name__ == "Conv1D":
            found[name] = module
    return found


def targets(model: nn.Module, spec: AdapterSpec) -> list[str]:
    """Names of the layers a spec means.

    Raises: TargetError naming what there is, SpecError for a rank larger than a layer.
    """
    known = candidates(model)
    wanted = spec.target_modules
    if wanted == ALL_LINEAR:
        hit = list(known)
    elif isinstance(wanted, str):
        try:
            hit = [name for name in known if re.fullmatch(wanted, name)]
        except re.error as error:
            raise TargetError(f"{wanted!r} is not a regular expression: {error}") from error
    else:
        hit = [n for n in known if any(n == w or n.endswith(f".{w}") for w in wanted)]
    if not hit:
        there = sorted({name.rpartition(".")[2] for name in known})
        raise TargetError(
            f"target_modules {wanted!r} match no layer; there are: {', '.join(there) or 'none'}"
        )
    for name in hit:
        rows, columns = _shape(known[name])
        if spec.r > min(rows, columns):
            raise SpecError(f"rank {spec.r} is larger than the layer {name} ({rows} x {columns})")
    return hit


def inject(model: nn.Module, spec: AdapterSpec, slot: str = "default") -> list[str]:
    """Freeze the model, put an adapter into `slot` of every target, and set it to work.

    Returns the names of the layers. Raises: TargetError, SpecError; then nothing has changed.
    """
    hit = targets(model, spec)
    present = layers(model)
    if any(slot in layer.specs for layer in present.values()):
        raise SpecError(f"slot {slot!r} is taken")
    focus = focus_of(model) or Focus()
    if not present:
        model.requires_grad_(False)
    for name in hit:
        layer = present.get(name)
        if layer is None:
            parent, _, leaf = name.rpartition(".")
            holder = model.get_submodule(parent) if parent else model
            layer = LoraLinear(getattr(holder, leaf), name, focus)
            setattr(holder, leaf, layer)
        layer.add(slot, spec)
    focus.slot = slot
    return hit


def eject(model: nn.Module, slot: str | None = None) -> None:
    """Empty one slot, or all; a layer whose last slot goes is the base's own layer again."""
    for name, layer in layers(model).items():
        for each in list(layer.specs) if slot is None else [slot]:
            layer.remove(each)
        if not layer.specs:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent) if parent else model, leaf, layer.base)
    focus = focus_of(model)
    if focus is not None and focus.slot == slot:
        focus.slot = None


def focus_of(model: nn.Module) -> Focus | None:
    """The switch all slot-carrying layers of a model share; None when there are none."""
    return next((layer.focus for layer in layers(model).values()), None)


def activate(model: nn.Module, slot: str | None) -> None:
    """Set one slot to work; None is the bare base. No weight is touched."""
    focus = focus_of(model)
    if focus is not None:
        focus.slot = slot
        focus.row_keys = None


def _shape(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return rows, columns
