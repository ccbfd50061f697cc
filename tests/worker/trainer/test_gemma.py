"""Neighbour-proof on the real base: Gemma 3 270M in bf16 on two threads, loaded as the trainer
child loads it. Some jobs alone, then together with others that join late and leave early, under a
budget that cuts their steps; every bit of what they learnt is compared. Then PEFT's loss on the
same examples."""

import json
from pathlib import Path

import peft
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from lora_core import AdapterSpec, Examples, Trainer, TrainingJob
from lora_core.examples import batch
from lora_core.inject import layers
from worker.prepare import tokenizer_of, write_examples
from worker.trainer.load import load_base

pytestmark = pytest.mark.gemma
CUSTOMERS = ("haiku-bakery", "northwind-support", "pirate-tours")


@pytest.fixture(scope="module")
def gemma(gemma_base):
    before = torch.get_num_threads()
    yield load_base(gemma_base[1], "cpu", 2), gemma_base[1]
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def texts(gemma, tmp_path_factory):
    """A few tokenised examples of each customer."""
    folder = tmp_path_factory.mktemp("texts")
    coder = tokenizer_of(gemma[1], None)
    found = []
    for name in CUSTOMERS:
        source = Path("examples", name, "train.jsonl")
        lines = source.read_text(encoding="utf-8").splitlines()[:12]
        (folder / "some.jsonl").write_text("\n".join(map(json.dumps, map(json.loads, lines))))
        write_examples(coder, folder / "some.jsonl", folder / "some.safetensors", 256)
        found.append(Examples.load(folder / "some.safetensors"))
    return found


def jobs(texts):
    """Three jobs of different shapes, one with dropout."""
    shapes = (
        (8, 3, 0.0, "all-linear"),
        (4, 4, 0.1, ("q_proj", "v_proj")),
        (16, 6, 0.0, ("mlp.*",)),
    )
    return [
        TrainingJob(
            CUSTOMERS[index],
            AdapterSpec(
                r=rank,
                alpha=2.0 * rank,
                dropout=dropout,
                seed=index,
                target_modules=r".*mlp\..*" if wanted == ("mlp.*",) else wanted,
            ),
            texts[index],
            batch_size=batch,
            learning_rate=1e-3,
            seed=index,
        )
        for index, (rank, batch, dropout, wanted) in enumerate(shapes)
    ]


def test_three_customers_bits_are_their_own(gemma, texts):
    model, _ = gemma
    trainer = Trainer(model, slots=4)
    assert trainer.fused
    alone = {}
    for mine in jobs(texts):
        trainer.join(mine)
        while not trainer.step()[0].finished:
            pass
        alone[mine.job_id] = trainer.state(mine.job_id).tensors
        trainer.leave(mine.job_id)

    first, second, third = jobs(texts)
    trainer.budget.tokens = 384
    done = {}

    def step():
        reports = trainer.step()
        for report in reports:
            if report.finished:
                done[report.job_id] = trainer.state(report.job_id).tensors
                trainer.leave(report.job_id)
        return len(reports)

    trainer.join(second)
    assert step() == 1
    trainer.join(third)
    trainer.join(TrainingJob("guest", AdapterSpec(r=2, seed=9), texts[0], batch_size=3))
    trainer.join(first)
    assert step() == 4
    trainer.leave("guest")
    while step():
        pass
    for name, tensors in alone.items():
        different = [
            key for key, tensor in tensors.items() if not torch.equal(tensor, done[name][key])
        ]
        assert different == [], name
    assert any(t.abs().max() > 1e-4 for key, t in done[first.job_id].items() if key.endswith("B.w"))


def pefts(folder, held, rank):
    """PEFT's model of the same base with the adapter that `held` starts from."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = peft.get_peft_model(
        plain, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    ).eval()
    for name, module in model.base_model.model.named_modules():
        if name in held and "slot0" in held[name].specs:
            module.lora_A["default"].weight.data.copy_(held[name].lora_A["slot0"])
            module.lora_B["default"].weight.data.copy_(held[name].lora_B["slot0"])
    return model


def summed_loss(model, examples, indices):
    """Summed loss and number of label tokens, each example by itself."""
    total, count = 0.0, 0
    for index in indices:
        ids, mask = examples[index]
        out = model(input_ids=ids[None].long()).logits[0, :-1][mask[1:]].float()
        total = total + F.cross_entropy(out, ids[1:][mask[1:]].long(), reduction="sum")
        count += int(mask[1:].sum())
    return total, count


def test_held_out_loss_after_an_epoch_is_pefts(gemma, texts):
    """PEFT, torch's AdamW, the same start and the same order of examples."""
    model, folder = gemma
    mine = jobs(texts)[0]
    heldout = Examples.of([mine.examples[i] for i in (0, 1)] + [texts[1][i] for i in (0, 1, 2)])
    trainer = Trainer(model, slots=1)
    trainer.join(mine)
    theirs = pefts(folder, layers(model), mine.spec.r)
    learning = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.0, weight_decay=0.0)
    before = trainer.evaluate(mine.job_id, heldout)[0]
    for step in range(1, mine.total_steps + 1):
        trainer.step()
        optimizer.zero_grad()
        indices = batch(len(mine.examples), mine.optimizer_batch, mine.seed, step)
        total, count = summed_loss(theirs, mine.examples, indices)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(learning, mine.max_grad_norm)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - (step - 1) / mine.total_steps)
        optimizer.step()
    ours = trainer.evaluate(mine.job_id, heldout)[0]
    with torch.no_grad():
        total, count = summed_loss(theirs, heldout, range(len(heldout)))
    assert ours == pytest.approx(float(total) / count, rel=1e-2)
    assert ours < before * 0.98
    trainer.leave(mine.job_id)
