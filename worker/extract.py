"""Adapters out of checkpoints, and adapters of another rank: `lora_core` with names and manifests
around it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_core import LoraError
from lora_core import extract as extract_adapter
from lora_core import resize as resize_adapter
from manylora.errors import BadSpecError, UnknownBaseError, UsageError
from worker.bases.card import CARD, find, read
from worker.describe import base_of, describe

#: what a difference or an adapter can be, where it cannot be what was asked
_HINT = "ranks go up to the smallest side of a layer; --energy 0.95 finds one"


def checkpoint(cache: Path, name: str) -> Path:
    """The folder of a model: a base in the cache by its name, or any folder of safetensors.

    Raises: UnknownBaseError, UsageError.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        if not any(path.glob("*.safetensors")):
            raise UsageError(f"{path} holds no .safetensors", hint="pickled weights are refused")
        return path
    if path.is_dir():
        raise UsageError(f"{path} is no model's folder: it has no config.json")
    try:
        return find(cache, name)
    except UnknownBaseError as error:
        raise UnknownBaseError(
            f'"{name}" is neither a model\'s folder nor a base in {cache}', hint=error.hint
        ) from error


def extract(
    base: Path, tuned: Path, out: Path, *, rank: int | None, energy: float | None
) -> dict[str, Any]:
    """Fill `out` with the adapter that leads from one folder of weights to the other.

    Raises: BadSpecError for checkpoints that are not alike and ranks that cannot be, OSError.
    """
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{base} is no causal LM that can be read: {first}") from error
    card = read(base) if (base / CARD).is_file() else None
    try:
        kept, others = extract_adapter(
            model,
            base,
            tuned,
            out,
            rank=rank,
            energy=energy,
            base_model_name=card.name if card else str(base),
        )
    except LoraError as error:
        raise BadSpecError(str(error), code=error.code, hint=_HINT) from error
    if card is not None:
        named = {"name": card.name, "fingerprint": card.fingerprint}
        describe(out, named, extracted={"rank": kept.rank, "energy_kept": kept.share})
    return {**asdict(kept), "left_out": others}


def resize(adapter: Path, out: Path, *, rank: int | None, energy: float | None) -> dict[str, Any]:
    """Fill `out` with the adapter at another rank. Raises: BadSpecError, OSError."""
    base = base_of(adapter)
    try:
        kept = resize_adapter(adapter, out, rank=rank, energy=energy)
    except LoraError as error:
        raise BadSpecError(str(error), code=error.code, hint=_HINT) from error
    if base is not None:
        describe(out, base, resized={"rank": kept.rank, "energy_kept": kept.share})
    return asdict(kept)
