import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from lora_core import Trainer
from lora_core.forward import Forward, micro_batches
from tests.lora_core.models import KINDS, VOCAB, examples, tiny


def plain(model, held):
    """Every example on its own, through the model's own logits."""
    total, right, count = 0.0, 0, 0
    for i in range(len(held)):
        ids, mask = held[i]
        logits = model(input_ids=ids[None].long()).logits[0, :-1][mask[1:]]
        labels = ids[1:][mask[1:]].long()
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return total / count, right / count


def scaled(kind):
    shape = dict(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "granite":
            return GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=0.125)).eval()
        return CohereForCausalLM(CohereConfig(**shape, logit_scale=4.0)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_known_models_take_the_head_in_chunks_and_agree_with_their_logits(kind):
    model, held = tiny(kind), examples(5)
    trainer = Trainer(model, slots=1)
    assert trainer._forward.chunked
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


def test_a_softcap_is_seen():
    model, held = tiny("gemma3"), examples(5)
    model.config.final_logit_softcapping = 0.05
    trainer = Trainer(model, slots=1)
    assert trainer._forward.chunked
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


@pytest.mark.parametrize("kind", ["granite", "cohere"])
def test_models_that_scale_their_logits_are_noticed_and_right(kind):
    model, held = scaled(kind), examples(5)
    trainer = Trainer(model, slots=1)
    assert not trainer._forward.chunked
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


def test_a_bias_in_the_head():
    model, held = tiny("llama"), examples(5)
    biased = nn.Linear(32, VOCAB)
    biased.load_state_dict(
        {"weight": model.lm_head.weight, "bias": torch.linspace(-1.0, 1.0, VOCAB)}
    )
    model.lm_head = biased
    trainer = Trainer(model, slots=1)
    assert trainer._forward.chunked
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


def test_a_head_may_be_given():
    model = tiny("llama")
    head = model.lm_head
    model.get_output_embeddings = lambda: None
    assert not Forward(model).chunked
    assert Forward(model, head).chunked


def test_micro_batches_keep_order_and_budget():
    rows = [(torch.zeros(n), torch.zeros(n)) for n in (3, 5, 2, 9, 1, 1)]
    parts = micro_batches(rows, 10)
    assert [[len(ids) for ids, _ in part] for part in parts] == [[3, 5], [2], [9], [1, 1]]
    assert [[len(ids) for ids, _ in part] for part in micro_batches(rows, 1)] == [
        [n] for n in (3, 5, 2, 9, 1, 1)
    ]
