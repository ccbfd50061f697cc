"""Load a base from its folder onto a device. Runs in the trainer child (and in `train`)."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM

from lora_core import attention
from worker.bases.card import read


def load_base(folder: Path, device: str, threads: int | None) -> Any:
    """A frozen causal LM in evaluation mode on `device`.

    Raises: UnknownBaseError, OSError.
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
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, card.dtype),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        attn_implementation=attention.NAME,
    )
    model.requires_grad_(False)
    model.eval()
    return model.to(device)


def numerics(device: str) -> dict[str, Any]:
    """All that sets the bits of a result besides the job itself."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
