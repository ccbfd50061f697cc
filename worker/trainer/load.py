"""Load a base from its folder onto a device. Runs in the trainer child (and in `train`)."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from worker.bases.card import read


def load_base(folder: Path, device: str, threads: int | None) -> Any:
    """A frozen causal LM in evaluation mode on `device`.

    Raises: UnknownBaseError, OSError.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(device == "cpu")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    card = read(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, card.dtype),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        attn_implementation="eager" if device == "cpu" else "sdpa",
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
