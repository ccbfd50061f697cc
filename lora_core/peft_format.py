"""The PEFT format on disk: `adapter_config.json` and `adapter_model.safetensors`.

The weights file holds weights and nothing that names the job: equal training gives equal bytes.
Loads what PEFT saved, too; refuses what vLLM refuses (DoRA, biases, extra modules) and pickles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_core.errors import FormatError
from lora_core.inject import candidates, inject, layers
from lora_core.layer import LoraLinear
from lora_core.spec import AdapterSpec

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def save_adapter(
    model: nn.Module,
    folder: Path | str,
    *,
    slot: str = "default",
    dtype: torch.dtype | None = None,
    base_model_name: str | None = None,
) -> None:
    """Write a slot's adapter. `dtype` defaults to the base's: bf16 for a bf16 base.

    Raises: FormatError when no layer has the slot.
    """
    hit = {n: layer for n, layer in layers(model).items() if slot in layer.specs}
    if not hit:
        raise FormatError(f"no layer has a slot {slot!r}")
    first = next(iter(hit.values()))
    chosen = dtype or first.weight.dtype
    tensors = {}
    for name, layer in sorted(hit.items()):
        for part, held in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            value = held[slot].detach().to(device="cpu", dtype=chosen)
            tensors[f"{_PREFIX}{name}.{part}.weight"] = value.contiguous()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / WEIGHTS))
    config = _config(model, hit, first.specs[slot], base_model_name)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def load_adapter(model: nn.Module, folder: Path | str, slot: str = "default") -> AdapterSpec:
    """Inject an adapter from its folder, and set it to work.

    Raises: FormatError for what is missing, pickled or of a kind not supported.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FormatError(f"{folder} has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        raise FormatError(f"{folder} has no {WEIGHTS} (pickled weights are refused)")
    spec = _spec(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    tensors = load_file(str(folder / WEIGHTS))
    hit = inject(model, spec, slot)
    present = layers(model)
    left = set(tensors)
    with torch.no_grad():
        for name in hit:
            layer = present[name]
            for part, held in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                key = f"{_PREFIX}{name}.{part}.weight"
                if key not in tensors or tensors[key].shape != held[slot].shape:
                    raise FormatError(f"{WEIGHTS} has no {key} of shape {tuple(held[slot].shape)}")
                held[slot].copy_(tensors[key])
                left.discard(key)
    if left:
        raise FormatError(f"{WEIGHTS} holds tensors of no target: {sorted(left)[0]}")
    return spec


def _config(
    model: nn.Module, hit: dict[str, LoraLinear], spec: AdapterSpec, base_model_name: str | None
) -> dict[str, Any]:
    endings = sorted({name.rpartition(".")[2] for name in hit})
    reached = {n for n in candidates(model) if n.rpartition(".")[2] in endings}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if hasattr(model, "get_output_embeddings") else None,
        "base_model_name_or_path": base_model_name,
        "inference_mode": True,
        "r": spec.r,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        "use_dora": False,
        "bias": "none",
        "modules_to_save": None,
        "fan_in_fan_out": any(layer.transposed for layer in hit.values()),
        "target_modules": endings if reached == set(hit) else sorted(hit),
    }


def _spec(config: dict[str, Any]) -> AdapterSpec:
    if config.get("peft_type") != "LORA":
        raise FormatError(f"peft_type {config.get('peft_type')!r} is not LORA")
    for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"):
        if config.get(key):
            raise FormatError(f"adapters with {key} are not supported")
    if config.get("bias", "none") != "none":
        raise FormatError("adapters with biases are not supported")
    wanted = config["target_modules"]
    return AdapterSpec(
        r=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        target_modules=wanted if isinstance(wanted, str) else tuple(sorted(wanted)),
        rslora=bool(config.get("use_rslora", False)),
    )
