"""Change the rank of an adapter's folder, by QR and SVD of B A; the big product is never formed.

A [R, D], B [O, R] as in the file; K the rank that is asked for. No base is needed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_core import rng
from lora_core.errors import FormatError, SpecError
from lora_core.peft_format import CONFIG, WEIGHTS, from_peft_config
from lora_core.spectrum import energy_kept, factored, halves, rank_for

_A, _B = ".lora_A.weight", ".lora_B.weight"
_PREFIX = "base_model.model."
_PER_LAYER = ("use_dora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Kept:
    """What is left of B A (or of a difference) at `rank`: the share of its energy, the squared
    singular values, per layer and in all."""

    rank: int
    share: float
    layers: dict[str, float]


def resize(
    folder: Path | str, out: Path | str, *, rank: int | None = None, energy: float | None = None
) -> Kept:
    """Write the adapter in `folder` to `out` at another rank, in the dtype it has.

    `rank` may grow, which is exact: A and B stay bit by bit, B gets zero columns and A rows a
    training could use. `energy` (0 to 1) takes the smallest rank that keeps so much of all layers
    together. The scaling stays as it was. Raises: FormatError for a folder that is no plain LoRA,
    SpecError for a rank larger than a layer, OSError.
    """
    if (rank is None) == (energy is None):
        raise SpecError("either a rank or a share of the energy")
    config, tensors = _read(Path(folder))
    spec = from_peft_config(config)
    names = sorted(key.removesuffix(_A) for key in tensors if key.endswith(_A))
    pairs = {name: (tensors[name + _A], tensors[name + _B]) for name in names}
    parts = {name: factored(a.float(), b.float()) for name, (a, b) in pairs.items()}
    spectra = {name: s for name, (_, s, _) in parts.items()}
    new = rank if rank is not None else rank_for(spectra.values(), energy or 1.0)
    made = {}
    for name, (a, b) in pairs.items():
        if new > min(a.shape[1], b.shape[0]):
            raise SpecError(
                f"rank {new} is larger than the layer {name.removeprefix(_PREFIX)} "
                f"({b.shape[0]} x {a.shape[1]})"
            )
        grown = _grown(name, a, b, new) if new >= len(a) else halves(*parts[name], new)
        made[name + _A], made[name + _B] = (part.to(a.dtype).contiguous() for part in grown)
    alpha = spec.scaling * (math.sqrt(new) if spec.rslora else new)
    config = {**config, "r": new, "lora_alpha": int(alpha) if alpha.is_integer() else alpha}
    write(Path(out), config, made)
    return kept(spectra, new)


def kept(spectra: dict[str, Tensor], rank: int) -> Kept:
    """What `rank` keeps of layers with these singular values."""
    total = sum(float(s.square().sum()) for s in spectra.values())
    held = sum(float(s[:rank].square().sum()) for s in spectra.values())
    return Kept(
        rank,
        held / total if total > 0 else 1.0,
        {name.removeprefix(_PREFIX): energy_kept(s, rank) for name, s in spectra.items()},
    )


def write(out: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """An adapter's folder from its parts. Raises: OSError."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, str(out / WEIGHTS))
    except SafetensorError as error:
        raise OSError(f"{out} cannot be written: {error}") from error
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (out / CONFIG).write_text(text, encoding="utf-8")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FormatError(f"{folder} has no {name}: is it an adapter's folder?")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(str(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise FormatError(f"{folder} cannot be read: {error}") from error
    from_peft_config(config)
    for key in _PER_LAYER:
        if config.get(key):
            raise FormatError(f"the rank of an adapter with {key} cannot be changed")
    for key in tensors:
        other = key.replace(_A, _B) if key.endswith(_A) else key.replace(_B, _A)
        if not key.endswith((_A, _B)) or other not in tensors:
            raise FormatError(f"{WEIGHTS} is of no plain LoRA: {key}")
    return config, tensors


def _grown(name: str, a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same B A with more ranks: zeros in B, and in A what `LoraLinear.add` would draw."""
    more = rank - len(a)
    bound = 1.0 / math.sqrt(a.shape[1])
    drawn = (rng.uniform(("grown", name), (more, a.shape[1])) * 2 - 1) * bound if more else a[:0]
    return (
        torch.cat([a, drawn.to(a.dtype)]),
        torch.cat([b, torch.zeros(b.shape[0], more, dtype=b.dtype)], dim=1),
    )
