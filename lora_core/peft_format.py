"""The PEFT format on disk: `adapter_config.json` and `adapter_model.safetensors`.

The weights file holds weights and nothing that names the job: equal training gives equal bytes.
A learnable scaling's gain is folded into B; DoRA and QA-LoRA are laid out as PEFT lays them out.
Norms and tokens a slot has of its own are `modules_to_save` and `trainable_token_indices`. Loads
what PEFT saved, too; refuses biases, other extra modules and pickles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_core import private
from lora_core.errors import FormatError
from lora_core.inject import candidates, eject, focus_of, inject, layers
from lora_core.layer import MAGNITUDE, dtype_of
from lora_core.ops.norm import Norm
from lora_core.ops.tokens import Tokens
from lora_core.spec import AdapterSpec

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_REFUSED = (
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "exclude_modules",
    "layers_to_transform",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "megatron_config",
)
# These start from a changed base, which the folder does not hold.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


def save_adapter(
    model: nn.Module,
    folder: Path | str,
    *,
    slot: str = "default",
    dtype: torch.dtype | None = None,
    base_model_name: str | None = None,
) -> None:
    """Write a slot's adapter as PEFT and vLLM load it: A [R, in] (QA-LoRA [R, in / group]),
    B [out, R] per layer, and with DoRA the magnitudes [out], which no reader but PEFT knows.

    `dtype` defaults to bf16 for a bf16 base and to float32 for any other; magnitudes and norms stay
    float32, for what is learnt of them is less than bf16 can tell. Equal weights give equal bytes.
    Raises: FormatError when no layer has the slot, OSError.
    """
    hit = {n: layer for n, layer in layers(model).items() if slot in layer.specs}
    if not hit:
        raise FormatError(f"no layer has a slot {slot!r}")
    first = next(iter(hit.values()))
    half = dtype_of(first.base) == torch.bfloat16
    chosen = dtype or (torch.bfloat16 if half else torch.float32)
    tensors = {}
    for name, layer in sorted(hit.items()):
        for key, value, shape in layer.stored(slot):
            kept = torch.float32 if key == MAGNITUDE else chosen
            made = value.detach().to(device="cpu", dtype=kept)
            tensors[f"{_PREFIX}{name}.{key}"] = made.contiguous().view(shape)
    for name, value in _private(model, slot).items():
        kept = chosen if value.dim() > 1 else torch.float32
        tensors[name] = value.detach().to(device="cpu", dtype=kept).contiguous()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, str(folder / WEIGHTS))
    except SafetensorError as error:
        raise OSError(f"{folder} cannot be written: {error}") from error
    config = to_peft_config(
        first.specs[slot],
        target_modules=_shortest(model, set(hit)),
        base_model_name=base_model_name,
        fan_in_fan_out=any(layer.of_conv1d and layer.joins for layer in hit.values()),
        task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
    ) | _private_config(model, slot)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def load_adapter(model: nn.Module, folder: Path | str, slot: str = "default") -> AdapterSpec:
    """Inject an adapter, ours or one PEFT saved, from its folder, and set it to work.

    Raises: FormatError for what is missing, broken, pickled or of a kind not supported,
    TargetError and SpecError for one that does not fit the model; then nothing has changed.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FormatError(f"{folder} has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        raise FormatError(f"{folder} has no {WEIGHTS} (pickled weights are refused)")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(str(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(f"{folder} cannot be read: {error}") from error
    spec = from_peft_config(config)
    _refuse_other_modules(model, spec, config)
    focus = focus_of(model)
    before = focus.slot if focus is not None else None
    hit = inject(model, spec, slot)
    try:
        _fill(model, hit, slot, tensors)
    except FormatError:
        eject(model, slot)
        if focus is not None:
            focus.slot = before
        raise
    return spec


def to_peft_config(
    spec: AdapterSpec,
    *,
    target_modules: list[str] | None = None,
    base_model_name: str | None = None,
    fan_in_fan_out: bool = False,
    task_type: str | None = "CAUSAL_LM",
) -> dict[str, Any]:
    """The content of `adapter_config.json`. `target_modules` are the names actually reached,
    which readers other than PEFT want; by default the spec's own."""
    alpha = float(spec.alpha)
    wanted = spec.target_modules
    own = wanted if isinstance(wanted, str) else sorted(wanted)
    grouped = spec.qalora_group_size
    qalora = {} if grouped is None else {"use_qalora": True, "qalora_group_size": grouped}
    return {
        **qalora,
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": spec.r,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "bias": "none",
        "lora_bias": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": own if target_modules is None else target_modules,
    }


def from_peft_config(config: dict[str, Any]) -> AdapterSpec:
    """The spec an `adapter_config.json` describes; its seed is not in there and is 0.

    Raises: FormatError for a kind of adapter not supported or fields that are missing,
    SpecError for values out of range.
    """
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise FormatError(f"peft_type {kind!r} is not LORA")
    for key in _REFUSED:
        if config.get(key):
            raise FormatError(f"adapters with {key} are not supported")
    if config.get("bias", "none") != "none":
        raise FormatError("adapters with biases are not supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGE_THE_BASE):
        raise FormatError(f"adapters with init_lora_weights {start!r} are not supported")
    try:
        wanted = config["target_modules"]
        return AdapterSpec(
            r=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout") or 0.0),
            target_modules=wanted if isinstance(wanted, str) else tuple(sorted(wanted)),
            rslora=bool(config.get("use_rslora", False)),
            dora=bool(config.get("use_dora", False)),
            qalora_group_size=int(config["qalora_group_size"])
            if config.get("use_qalora")
            else None,
            train_norms=bool(config.get("modules_to_save")),
            trainable_tokens=_token_ids(config.get("trainable_token_indices")),
        )
    except (KeyError, TypeError) as error:
        raise FormatError(f"{CONFIG} lacks a usable field: {error}") from error


def _fill(model: nn.Module, hit: list[str], slot: str, tensors: dict[str, Tensor]) -> None:
    present = layers(model)
    left = set(tensors)
    with torch.no_grad():
        for name in hit:
            layer = present[name]
            for part, held, shape in layer.stored(slot):
                key = f"{_PREFIX}{name}.{part}"
                if key not in tensors or tensors[key].shape != shape:
                    raise FormatError(f"{WEIGHTS} has no {key} of shape {shape}")
                held.copy_(tensors[key].view_as(held))
                left.discard(key)
        for key, value in _private(model, slot).items():
            if key not in tensors or tensors[key].shape != value.shape:
                raise FormatError(f"{WEIGHTS} has no {key} of shape {tuple(value.shape)}")
            value.copy_(tensors[key])
            left.discard(key)
    if left:
        raise FormatError(f"{WEIGHTS} holds tensors of no target: {min(left)}")


def _private(model: nn.Module, slot: str) -> dict[str, Tensor]:
    """What a slot has of its own besides adapters, by PEFT's keys: norms as whole modules, and
    vectors of the embedding (which PEFT calls a delta, and are none)."""
    found: dict[str, Tensor] = {}
    for name, parameter in private.parameters_of(model, slot).items():
        module, _, part = name.rpartition(".")
        last = "token_adapter.trainable_tokens_delta" if part == "tokens" else part
        found[f"{_PREFIX}{module}.{last}"] = parameter
    return found


def _private_config(model: nn.Module, slot: str) -> dict[str, Any]:
    held = {name: part for name, part in private.parts(model).items() if slot in part.own}
    norms = [name for name, part in held.items() if isinstance(part, Norm)]
    tokens = {n: p.ids[slot].tolist() for n, p in held.items() if isinstance(p, Tokens)}
    found: dict[str, Any] = {"modules_to_save": norms or None}
    return found | ({"trainable_token_indices": tokens} if tokens else {})


def _token_ids(listed: Any) -> tuple[int, ...]:
    """The ids of `trainable_token_indices`: a list, or one by the name of the embedding."""
    if isinstance(listed, dict):
        if len(listed) > 1:
            raise FormatError("adapters with tokens of several modules are not supported")
        listed = next(iter(listed.values()), None)
    return tuple(sorted(int(each) for each in listed or ()))


def _refuse_other_modules(model: nn.Module, spec: AdapterSpec, config: dict[str, Any]) -> None:
    """Raises FormatError unless `modules_to_save` are just the norms a slot can have."""
    if not spec.train_norms:
        return
    private.check(model, spec)
    norms, wanted = set(private.norms(model)), list(config["modules_to_save"])
    hit = {name for name, _ in model.named_modules() if any(name.endswith(w) for w in wanted)}
    if hit != norms:
        other = ", ".join(sorted(hit ^ norms)[:3])
        raise FormatError(
            f"adapters with modules_to_save other than all norms of the hidden state are not "
            f"supported ({other})"
        )


def _shortest(model: nn.Module, hit: set[str]) -> list[str]:
    """The distinct last parts of the names where these mean the same layers, else full names."""
    endings = {name.rpartition(".")[2] for name in hit}
    reached = {name for name in candidates(model) if name.rpartition(".")[2] in endings}
    return sorted(endings if reached == hit else hit)
