import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from lora_core import LoraError, Trainer, attention
from lora_core.forward import Forward
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
            model = GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=0.125)).eval()
        else:
            model = CohereForCausalLM(CohereConfig(**shape, logit_scale=4.0)).eval()
    model.set_attn_implementation(attention.NAME)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_agrees_with_the_models_own_logits(kind):
    model, held = tiny(kind), examples(5)
    trainer = Trainer(model, slots=1)
    assert trainer.fused
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


def test_a_softcap_is_seen():
    model, held = tiny("gemma3"), examples(5)
    model.config.final_logit_softcapping = 0.05
    trainer = Trainer(model, slots=1)
    assert trainer.fused
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


@pytest.mark.parametrize("kind", ["granite", "cohere"])
def test_models_that_scale_their_logits_are_noticed_and_right(kind):
    model, held = scaled(kind), examples(5)
    trainer = Trainer(model, slots=1)
    assert trainer.fused
    assert trainer._forward.scale == pytest.approx({"granite": 8.0, "cohere": 4.0}[kind])
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


def test_a_bias_in_the_head():
    model, held = tiny("llama"), examples(5)
    biased = nn.Linear(32, VOCAB)
    biased.load_state_dict(
        {"weight": model.lm_head.weight, "bias": torch.linspace(-1.0, 1.0, VOCAB)}
    )
    model.lm_head = biased
    trainer = Trainer(model, slots=1)
    assert trainer.fused
    assert trainer.evaluate(None, held) == pytest.approx(plain(model, held), rel=1e-5)


def test_a_head_may_be_given():
    model = tiny("llama")
    head = model.lm_head
    model.get_output_embeddings = lambda: None
    with pytest.raises(LoraError, match="no output head"):
        Forward(model)
    assert Forward(model, head).fused


def test_logits_of_another_kind_are_refused():
    model = tiny("llama")
    plain_forward = model.forward

    def bent(**given):
        out = plain_forward(**given)
        out.logits = out.logits**3
        return out

    model.forward = bent
    with pytest.raises(LoraError, match="more to its logits"):
        Forward(model)
