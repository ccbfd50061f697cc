"""Twenty steps on an NF4 base against PEFT on bitsandbytes' Linear4bit, loaded by transformers from
the same folder, on a CPU in float32."""

import peft
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from lora_core import AdapterSpec, Trainer
from lora_core.examples import batch
from lora_core.inject import layers, targets
from lora_core.quantize import method_of, quantize_layers
from tests.lora_core.models import VOCAB, job

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama, its widths multiples of 64: bitsandbytes' CPU kernel is wrong for others."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_twenty_steps_equal_peft_on_bitsandbytes(folder, one_thread):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    quantize_layers(model, targets(model, AdapterSpec(r=1)), method_of("nf4"))
    mine = job("j", 3, epochs=7, spec_rslora=True)
    trainer = Trainer(model, slots=1)
    trainer.join(mine)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=four_bits, device_map={"": "cpu"}
    )
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True)
    theirs = peft.get_peft_model(theirs, config)
    theirs.train()  # not in training it takes another path, in bfloat16
    ours, seen = layers(trainer.model), 0
    for name, module in theirs.base_model.model.named_modules():
        if name in ours:
            assert type(module.base_layer).__name__ == "Linear4bit"
            module.lora_A["default"].weight.data.copy_(ours[name].lora_A["slot0"])
            seen += 1
    assert seen == len(ours) == 14
    learning = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.0, weight_decay=mine.weight_decay)
    for step in range(1, 21):
        report = trainer.step()[0]
        optimizer.zero_grad()
        total, count = 0.0, 0
        for index in batch(len(mine.examples), 4, mine.seed, step):
            ids, mask = mine.examples[index]
            out = theirs(input_ids=ids[None].long()).logits[0, :-1][mask[1:]]
            total = total + F.cross_entropy(out, ids[1:][mask[1:]].long(), reduction="sum")
            count += int(mask[1:].sum())
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, mine.max_grad_norm)
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - (step - 1) / mine.total_steps)
        optimizer.step()
        assert report.tokens == count
        assert report.loss == pytest.approx(loss.item(), rel=1e-5), step
