"""Try an adapter (or the bare base) at a prompt. Greedy, so the same words give the same answer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

from lora_core import load_adapter
from worker.bases.network import require_text
from worker.trainer.load import load_base


def generate(
    base_folder: Path, adapter_dir: Path | None, prompt: str, max_new_tokens: int = 64
) -> str:
    """What follows the prompt, without the prompt. Raises: LoraError, UnknownBaseError."""
    require_text(base_folder)
    model = load_base(base_folder, "cpu", None)
    if adapter_dir is not None:
        load_adapter(model, adapter_dir)
    tokenizer = AutoTokenizer.from_pretrained(base_folder, local_files_only=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=model.config.eos_token_id
            if isinstance(model.config.eos_token_id, int)
            else 0,
        )
    answer: str = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer
