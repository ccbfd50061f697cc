"""The bases that are measured, with the attention of this engine or as transformers loads them.

`gemma` is the real Gemma 3 270M; `llama` is a Llama of about its size with random weights: what
an architecture without Gemma's special pieces (wide vocabulary, four norms a layer) makes of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lora_core import attention

VOCABULARY = {"gemma": 0, "llama": 128256}
_LLAMA = dict(
    vocab_size=VOCABULARY["llama"],
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=26,
    num_attention_heads=12,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)


def packed(kind: str, folder: Path, device: str) -> Any:
    """A base as the worker loads it, with this engine's attention."""
    from worker.trainer.load import load_base

    if kind == "gemma":
        return load_base(folder, device, None)
    torch.use_deterministic_algorithms(device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    AttentionInterface.register(attention.NAME, attention.packed)
    model = _llama()
    model.set_attn_implementation(attention.NAME)
    return model.to(device)


def plain(kind: str, folder: Path, device: str, *, four_bits: bool = False) -> Any:
    """The same base as anybody loads it; with `four_bits`, put into NF4 by bitsandbytes."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if kind == "gemma":
        more: dict[str, Any] = {}
        if four_bits:
            more["device_map"] = {"": device}
            more["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True, **more
        )
        if getattr(model, "is_quantized", False):
            return model
    else:
        model = _llama()
    return model.to(device)


def _llama() -> Any:
    torch.manual_seed(7)
    return LlamaForCausalLM(LlamaConfig(**_LLAMA)).to(torch.bfloat16).eval()
