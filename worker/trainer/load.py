"""Load a base from its folder onto a device. Runs in the trainer child (and in `train`)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM

from lora_core import Costs, Trainer, attention
from lora_core.native import Kernels, NativeError, load
from worker.bases import network
from worker.bases import quantize as few
from worker.bases.card import read

log = structlog.get_logger(__name__)
#: raise it when `lora_core.memory` changes what its factors mean
_FORMULA = 2


def load_base(folder: Path, device: str, threads: int | None, factories: str = "") -> Any:
    """A frozen model in evaluation mode on `device`: a causal LM by transformers, or what a
    function of one of the modules `factories` builds.

    Raises: UnknownBaseError, UsageError, OSError.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(device == "cpu")
    # Every tensor is written before it is read: filling each with NaN first is a sixth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    card = read(folder)
    AttentionInterface.register(attention.NAME, attention.packed)
    if card.network is not None:
        network.allow(card.network, factories)
        return network.build(card.network, folder / network.WEIGHTS, card.dtype).to(device)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, card.dtype),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        attn_implementation=attention.NAME,
        **few.loading(card),
    )
    model.requires_grad_(False)
    model.eval()
    return model.to(device)


def kernels_in(folder: Path | str | None, device: str) -> Kernels | None:
    """The native kernels, compiled into `folder` if they are not there yet; None without a folder,
    and where this machine has none: then the log says why."""
    if device != "cpu" or folder is None:
        return None
    try:
        return load(folder)
    except NativeError as error:
        log.warning("trainer.no_kernels", why=str(error))
        return None


def calibrate(trainer: Trainer, folder: Path, facts: dict[str, Any]) -> None:
    """Have the trainer know what its steps take: measured once for a base on a machine, then read
    from beside the base. Either way its kernels have run once before the first job comes."""
    key = hashlib.sha256(json.dumps([_FORMULA, facts], sort_keys=True).encode()).hexdigest()[:16]
    note = folder / f"costs-{key}.json"
    try:
        trainer.costs_are(Costs(**json.loads(note.read_text(encoding="utf-8"))))
        return
    except (OSError, ValueError, TypeError) as error:
        log.info("trainer.measures", note=note.name, why=type(error).__name__)
    costs = trainer.calibrate()
    if costs is not None:
        part = note.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(costs)), encoding="utf-8")
        os.replace(part, note)


def numerics(device: str, kernels: Kernels | None) -> dict[str, Any]:
    """All that sets the bits of a result besides the job itself; `kernels` if the trainer runs on
    them."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "kernels": kernels.name if kernels is not None else None,
    }
