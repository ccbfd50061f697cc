"""Tiny models built from config, and tiny jobs for them."""

import random

import torch
from transformers import (
    AttentionInterface,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lora_core import AdapterSpec, Examples, TrainingJob, attention

VOCAB = 97


def tiny(
    kind: str,
    dtype: torch.dtype = torch.float32,
    packed: bool = True,
    positions: int = 128,
    whole: bool = False,
):
    """A randomly initialised model of that architecture, the same each time; with the attention
    that takes packed sequences, unless told otherwise. `whole` makes its widths multiples of 32,
    as the native kernels need them."""
    AttentionInterface.register(attention.NAME, attention.packed)
    shared = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    decoder = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
    )
    if whole:
        decoder |= dict(hidden_size=64, intermediate_size=96, num_attention_heads=4)
        decoder |= dict(head_dim=32) if kind != "qwen2" else dict(num_attention_heads=2)
        decoder |= dict(num_key_value_heads=1) if kind in ("qwen2", "gemma3") else {}
    make = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shared, **decoder)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shared, **decoder)),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(**shared, **({"head_dim": 8} | decoder), sliding_window=16)
        ),
        "mistral": lambda: MistralForCausalLM(
            MistralConfig(**shared, **decoder, sliding_window=16)
        ),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shared, **decoder)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(
                **shared,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=positions,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        ),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = make().to(dtype).eval()
    if packed:
        model.set_attn_implementation(attention.NAME)
    return model


KINDS = ("llama", "gpt2", "qwen2", "gemma3")


def examples(seed: int, count: int = 12, longest: int = 24) -> Examples:
    """Random examples; the first third of each is a prompt."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randint(4, longest)
        ids = [1] + [draw.randrange(3, VOCAB) for _ in range(length - 1)]
        rows.append((ids, [i >= max(1, length // 3) for i in range(length)]))
    return Examples.of(rows)


def job(name: str, seed: int, **changes) -> TrainingJob:
    """A small job; `spec_*` changes go into its spec."""
    spec = {k.removeprefix("spec_"): v for k, v in changes.items() if k.startswith("spec_")}
    rest = {k: v for k, v in changes.items() if not k.startswith("spec_")}
    given = dict(epochs=2, batch_size=4, learning_rate=2e-3, seed=seed, examples=examples(seed))
    return TrainingJob(
        job_id=name,
        spec=AdapterSpec(**{"r": 4, "alpha": 8.0, "seed": seed, **spec}),
        **{**given, **rest},
    )
