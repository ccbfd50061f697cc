"""Adapters go to PEFT and come back on every architecture at hand, and the trainer trains each: all
slots in one forward, or sequence by sequence, as listed here."""

import hashlib

import peft
import pytest
import torch
import transformers
from transformers import AttentionInterface

from lora_core import AdapterSpec, LoraError, Trainer, attention, inject, load_adapter, save_adapter
from lora_core.inject import candidates
from tests.lora_core.models import VOCAB, job
from tests.lora_core.test_peft_format import logits, randomise

_DECODER = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
_GPT = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)
_NO_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
_MOE = dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
#: class -> what its config needs
MODELS = {
    "Llama": _DECODER,
    "Mistral": _DECODER,
    "Qwen2": _DECODER,
    "Qwen3": _DECODER | dict(head_dim=8),
    "Gemma": _DECODER | dict(head_dim=8),
    "Gemma2": _DECODER | dict(head_dim=8, sliding_window=16),
    "Gemma3": _DECODER | dict(head_dim=8, sliding_window=16),
    "Phi": _DECODER,
    "Phi3": _DECODER,
    "GPT2": _GPT | _NO_DROPOUT,
    "OPT": dict(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.0,
    ),
    "Bloom": dict(hidden_size=32, n_layer=2, n_head=4),
    "Falcon": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "GPTNeoX": _DECODER,
    "GPTJ": _GPT | _NO_DROPOUT | dict(rotary_dim=8),
    "StableLm": _DECODER,
    "Cohere": _DECODER,
    "Granite": _DECODER,
    "Olmo2": _DECODER,
    "Mixtral": _DECODER | _MOE,
    "Qwen3Moe": _DECODER | _MOE | dict(head_dim=8),
}  # fmt: skip
#: their attention is their own, or their tokens are routed: each sequence goes by itself
APART = {"Bloom", "Falcon", "GPTJ", "Mixtral", "Qwen3Moe"}


def made(name):
    """The model, the same weights each time."""
    AttentionInterface.register(attention.NAME, attention.packed)
    shared = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    kind = {"Gemma3": "Gemma3Text"}.get(name, name)
    config = getattr(transformers, f"{kind}Config")(**shared, **MODELS[name])
    model = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return getattr(transformers, model)(config).eval()


@pytest.mark.parametrize("name", MODELS)
def test_to_peft_and_back(name, tmp_path):
    ours, plain = made(name), made(name)
    hit = inject(ours, AdapterSpec(r=2, alpha=6))
    assert hit == [n for n, m in candidates(plain).items() if not isinstance(m, torch.nn.Embedding)]
    randomise(ours)
    assert (logits(ours) - logits(plain)).abs().max() > 1e-3
    save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(made(name), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    back = made(name)
    load_adapter(back, tmp_path / "theirs")
    torch.testing.assert_close(logits(back), logits(ours), rtol=0, atol=1e-6)


def digest(trainer, name, folder):
    trainer.export(name, folder)
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", MODELS)
def test_the_trainer_trains_it_and_no_neighbour_shows(name, tmp_path):
    model = made(name)
    try:
        model.set_attn_implementation(attention.NAME)
    except ValueError:
        assert name in APART
    trainer = Trainer(model, 2)
    assert trainer.fused == (name not in APART)
    digests = []
    for beside in (False, True):
        trainer.join(job("a", 1, epochs=1))
        if beside:
            trainer.join(job("b", 2, epochs=1, learning_rate=0.1))
        while True:
            report = trainer.step()[0]
            assert report.error is None
            if report.finished:
                break
        digests.append(digest(trainer, "a", tmp_path / str(beside)))
        trainer.leave("a")
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("GPT2", "c_attn"), ("Falcon", "query_key_value"), ("Bloom", "query_key_value"),
        ("GPTNeoX", "query_key_value"), ("Phi3", "qkv_proj"),
    ],
)  # fmt: skip
def test_fused_projections_are_wide_linear_layers(name, layer, tmp_path):
    ours = made(name)
    hit = inject(ours, AdapterSpec(r=2, target_modules=(layer,)))
    assert len(hit) == 2
    assert all(ours.get_submodule(n).out_features > 32 for n in hit)
    randomise(ours)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(made(name), tmp_path).eval()
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-4)


def test_what_is_no_causal_lm_is_refused_with_a_sentence():
    with pytest.raises(LoraError, match="no output head over a decoder"):
        Trainer(made("Llama").model, 1)
