"""Put adapters into any nn.Module and take them out again. In place; the base is frozen.

Knows nn.Linear, transformers' Conv1D (by its name, without importing transformers), quantised
layers, Conv1d and Conv2d with one group, and nn.Embedding. What a layer then does is `layer.py`'s,
`convolution.py`'s and `lookup.py`'s.
"""

from __future__ import annotations

import re

from torch import nn

from lora_core import private
from lora_core.convolution import LoraConv, is_convolution, refuse_groups
from lora_core.errors import LoraError, SpecError, TargetError
from lora_core.layer import Focus, LoraLinear, shape_of
from lora_core.lookup import LoraEmbedding
from lora_core.quantize.layer import QuantizedLinear
from lora_core.spec import ALL_LINEAR, AdapterSpec
from lora_core.variants import qalora


def layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Every layer that carries slots, by the name of the layer it stands for."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer an adapter may sit on: linear layers, convolutions and embeddings, but not the
    output head."""
    head = _head(model)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = name.rpartition(".")[0]
        if module is head or inside in found:
            continue
        linear = isinstance(module, nn.Linear | LoraLinear | QuantizedLinear) or _is_conv1d(module)
        if linear or is_convolution(module) or _is_embedding(module):
            found[name] = module
    return found


def targets(model: nn.Module, spec: AdapterSpec) -> list[str]:
    """Names of the layers a spec means, in the order of the model.

    "all-linear" is every candidate but the embeddings; a tuple takes names and name endings; any
    other string is a regular expression for the whole name. Raises: TargetError naming what there
    is (also for a tuple that asks for the output head, which stays frozen, or a convolution in
    groups), SpecError for a rank larger than both sides of a layer or groups that do not part its
    inputs.
    """
    known = candidates(model)
    wanted = spec.target_modules
    if wanted == ALL_LINEAR:
        hit = [name for name, module in known.items() if not _is_embedding(module)]
    elif isinstance(wanted, str):
        try:
            hit = [name for name in known if re.fullmatch(wanted, name)]
        except re.error as error:
            raise TargetError(f"{wanted!r} is not a regular expression: {error}") from error
    else:
        hit = [name for name in known if _ends(name, wanted)]
        head = _head(model)
        for name, module in model.named_modules():
            if not _ends(name, wanted):
                continue
            if module is head:
                raise TargetError(f"the output head {name!r} cannot carry an adapter")
            refuse_groups(module, name)
    if not hit:
        there = sorted({name.rpartition(".")[2] for name in known})
        raise TargetError(
            f"target_modules {wanted!r} match no layer; there are: {', '.join(there) or 'none'}"
        )
    for name in hit:
        rows, columns = _shape(known[name])
        if spec.r > max(rows, columns):
            raise SpecError(f"rank {spec.r} is larger than the layer {name} ({rows} x {columns})")
        other = is_convolution(known[name]) or _is_embedding(known[name])
        if isinstance(known[name], LoraConv | LoraEmbedding) or other:
            _refuse_variants(name, spec)
        if spec.qalora_group_size is not None:
            inputs = rows if _is_conv1d(getattr(known[name], "base", known[name])) else columns
            qalora.check(name, inputs, spec.r, spec.qalora_group_size)
    return hit


def inject(model: nn.Module, spec: AdapterSpec, slot: str = "default") -> list[str]:
    """Freeze the model, put an adapter into `slot` of every target, and set it to work.

    Every parameter of the base is frozen. A further slot adds a further adapter to the same
    base. Returns the names of the layers. Raises: TargetError, SpecError, or LoraError while an
    adapter is merged; then nothing has changed.
    """
    hit = targets(model, spec)
    private.check(model, spec)
    present = layers(model)
    if any(slot in layer.specs for layer in present.values()):
        raise SpecError(f"slot {slot!r} is taken")
    focus = focus_of(model) or Focus()
    _refuse_merged(focus)
    if not present:
        model.requires_grad_(False)
    for name in hit:
        layer = present.get(name) or _carry(model, name, focus)
        layer.add(slot, spec)
    private.add(model, spec, slot, focus)
    focus.slot = slot
    return hit


def carry_all(model: nn.Module, *, embeddings: bool = True) -> list[LoraLinear]:
    """Put an empty carrier on every layer an adapter may sit on, so that all of them take part in
    fused steps; returns them in the order of the model. The base is frozen."""
    focus = focus_of(model) or Focus()
    _refuse_merged(focus)
    model.requires_grad_(False)
    present = layers(model)
    wanted = [n for n, m in candidates(model).items() if embeddings or not _is_embedding(m)]
    return [present.get(name) or _carry(model, name, focus) for name in wanted]


def eject(model: nn.Module, slot: str | None = None) -> None:
    """Empty one slot, or all (None); a layer whose last slot goes is the base's own layer again,
    unless a trainer's groups hold it.

    Parameters stay frozen. Raises: LoraError while an adapter is merged.
    """
    focus = focus_of(model)
    if focus is not None:
        _refuse_merged(focus)
    present = layers(model)
    for each in {s for layer in present.values() for s in layer.specs} if slot is None else {slot}:
        private.remove(model, each)
    for name, layer in present.items():
        for each in list(layer.specs) if slot is None else [slot]:
            layer.remove(each)
        if not layer.specs and layer.group is None:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent) if parent else model, leaf, layer.base)
    if focus is not None and focus.slot == slot:
        focus.slot = None


def focus_of(model: nn.Module) -> Focus | None:
    """The switch all slot-carrying layers of a model share; None when there are none."""
    return next((layer.focus for layer in layers(model).values()), None)


def activate(model: nn.Module, slot: str | None) -> None:
    """Set one slot to work; None is the bare base. No weight is touched.

    Raises: SpecError when no layer has the slot, LoraError while an adapter is merged.
    """
    focus = focus_of(model)
    if slot is not None and not any(slot in layer.specs for layer in layers(model).values()):
        raise SpecError(f"no layer has a slot {slot!r}")
    if focus is not None:
        if slot is not None:
            _refuse_merged(focus)
        focus.slot = slot


def _carry(model: nn.Module, name: str, focus: Focus) -> LoraLinear:
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent) if parent else model
    base = getattr(holder, leaf)
    kind: type[LoraLinear] = LoraLinear
    if is_convolution(base):
        kind = LoraConv
    elif _is_embedding(base):
        kind = LoraEmbedding
    layer = kind(base, name, focus)
    setattr(holder, leaf, layer)
    return layer


def _head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_embedding(module: nn.Module) -> bool:
    return type(module) is nn.Embedding or isinstance(module, LoraEmbedding)


def _ends(name: str, wanted: tuple[str, ...]) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def _refuse_variants(name: str, spec: AdapterSpec) -> None:
    """Raises SpecError for what sits on linear layers only."""
    asked = {
        "DoRA": spec.dora,
        "QA-LoRA": spec.qalora_group_size is not None,
        "a learnable scaling": spec.learnable_scaling,
    }
    for kind, wanted in asked.items():
        if wanted:
            raise SpecError(f"{kind} sits on linear layers only, and {name} is none")


def _refuse_merged(focus: Focus) -> None:
    if focus.merged is not None:
        raise LoraError(f"slot {focus.merged!r} is merged into the weights; unmerge it first")


def _shape(module: nn.Module) -> tuple[int, int]:
    shape = shape_of(module.base if isinstance(module, LoraLinear) else module)
    rows, columns = shape[0], shape[1:].numel()
    return rows, columns
