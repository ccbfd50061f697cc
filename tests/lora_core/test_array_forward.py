"""Array networks in the trainer: neighbour-proof as a property, equal to a plain torch loop, and
what is refused."""

import hashlib
import itertools
import random

import peft
import pytest
import torch

from lora_core import (
    AdapterSpec,
    ArrayExamples,
    ArrayTask,
    DivergedError,
    FormatError,
    LoraError,
    SpecError,
    State,
    Trainer,
    batches,
    weights_digest,
)
from lora_core.array_forward import ArrayForward
from tests.lora_core.models import examples as texts
from tests.lora_core.models import tiny
from tests.lora_core.networks import CLASSES, arrays, job, network

SEEDS = 4
FUSED = ("mlp", "convnet", "signal", "words")
_TARGETS = {
    "mlp": ("all-linear", ("first",), ("last",)),
    "convnet": ("all-linear", ("first", "second"), ("second", "last")),
    "signal": ("all-linear", ("wide",)),
    "words": ("all-linear", ("words",), ("words", "mix", "last")),
    "crowd": ("all-linear",),
    "sideways": ("all-linear",),
}


def trainer(kind, slots, dtype=torch.float32, **given):
    made, task = network(kind, dtype)
    return Trainer(made, slots, arrays=task, **given)


def digest(trainer, name, folder):
    trainer.export(name, folder)
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def drawn_job(draw, kind, name):
    seed = draw.randrange(2**20)
    return job(
        kind, name, seed,
        epochs=draw.randint(1, 3),
        batch_size=draw.choice((2, 5, 16, 300)),
        examples=arrays(kind, seed, draw.choice((3, 9, 40, 270))),
        validation=arrays(kind, seed + 1, 5) if draw.random() < 0.4 else None,
        eval_every=draw.choice((None, 1)),
        patience=None,
        learning_rate=draw.choice((1e-3, 1e-2)),
        weight_decay=draw.choice((0.0, 0.1)),
        max_grad_norm=draw.choice((0.1, 1.0)),
        spec_r=draw.randint(1, 2),
        spec_dropout=draw.choice((0.0, 0.0, 0.3)),
        spec_target_modules=draw.choice(_TARGETS[kind]),
    )  # fmt: skip


def play(crowd, kind, seed, folder):
    """name -> (job, digest) of every job that came to its end among others that joined, left,
    diverged, were cancelled, or were killed and resumed."""
    draw = random.Random(seed)
    waiting = [(drawn_job(draw, kind, f"j{i}"), None) for i in range(8)]
    wild = arrays(kind, 1)
    if wild.x.is_floating_point():
        wild = ArrayExamples(torch.full_like(wild.x, float("nan")), wild.y)
        waiting.append((job(kind, "wild", 1, examples=wild), None))
    draw.shuffle(waiting)
    going, done, resumed = {}, {}, 0
    while waiting or going:
        while len(going) < crowd.slots and waiting:
            mine, state = waiting.pop()
            crowd.join(mine, state)
            going[mine.job_id] = mine
        for report in crowd.step():
            name = report.job_id
            if report.error is not None:
                assert name == "wild"
                assert isinstance(report.error, DivergedError)
            elif report.finished:
                done[name] = (going[name], digest(crowd, name, folder))
            elif draw.random() < 0.1:
                path = folder / f"{name}-state"
                crowd.state(name).save(path)
                waiting.insert(0, (going[name], State.load(path)))
                resumed += 1
            elif draw.random() > 0.03:
                continue
            del going[name]
            crowd.leave(name)
    assert "wild" not in done
    return done, resumed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", _TARGETS)
def test_a_jobs_bytes_are_its_own(kind, dtype, tmp_path):
    crowd, alone = trainer(kind, 5, dtype), trainer(kind, 1, dtype)
    assert crowd.fused == alone.fused == (kind in FUSED)
    before = weights_digest(crowd.model)
    finished = resumptions = 0
    for seed in range(SEEDS):
        crowd.budget.tokens = random.Random(seed).choice((2048, 128, 16))
        done, resumed = play(crowd, kind, seed, tmp_path)
        resumptions += resumed
        for name, (mine, found) in done.items():
            alone.join(mine)
            while not alone.step()[0].finished:
                pass
            assert digest(alone, name, tmp_path) == found, (seed, name)
            alone.leave(name)
            finished += 1
    assert finished >= 3 * SEEDS
    assert resumptions > 1
    assert weights_digest(crowd.model) == before


@pytest.mark.parametrize("kind", FUSED)
def test_several_jobs_take_one_forward(kind):
    made = trainer(kind, 3)
    for seed in range(3):
        made.join(job(kind, f"j{seed}", seed))
    before = made.passes
    assert len(made.step()) == 3
    assert made.passes == before + 1


@pytest.mark.parametrize("kind", FUSED)
def test_fifty_steps_equal_a_plain_loop_of_peft_and_adamw(kind, tmp_path):
    # PEFT's forward knows neither a convolution's dilation nor its way of padding
    of = {"words": ("words", "mix", "last"), "convnet": ("first", "last"), "signal": ("back",)}
    targets = of.get(kind, "all-linear")
    mine = job(
        kind, "a", 5,
        epochs=10, schedule="constant", learning_rate=1e-3, weight_decay=0.01, max_grad_norm=0.5,
        spec_target_modules=targets,
    )  # fmt: skip
    ours = trainer(kind, 2)
    ours.join(mine)
    ours.join(job(kind, "b", 6, epochs=10))
    ours.export("a", tmp_path)
    base, task = network(kind)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    theirs.eval()
    optimizer = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad],
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
    )  # fmt: skip
    steps = list(itertools.islice(batches(20, 4, 10, 5), 50))
    assert len(steps) == 50
    for rows in steps:
        outputs = theirs(mine.examples.x[rows])
        y = mine.examples.y[rows]
        if task.kind == "classification":
            loss = torch.nn.functional.cross_entropy(outputs, y)
        else:
            loss = torch.nn.functional.mse_loss(outputs, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        report = next(r for r in ours.step() if r.job_id == "a")
        assert report.loss == pytest.approx(loss.item(), abs=1e-5)
        if task.kind == "classification":
            assert report.token_accuracy == pytest.approx(
                float((outputs.argmax(1) == y).float().mean())
            )
        else:
            assert report.token_accuracy is None
    ours.export("a", tmp_path / "after")
    after = peft.PeftModel.from_pretrained(network(kind)[0], tmp_path / "after").eval()
    probe = mine.examples.x
    torch.testing.assert_close(after(probe), theirs(probe), rtol=0, atol=1e-5)


def test_evaluation_early_stopping_and_what_an_evaluation_counts():
    made = trainer("words", 1)
    held_out = arrays("words", 3, 50)
    mine = job(
        "words", "a", 3,
        validation=held_out, eval_every=1, patience=2, epochs=40, learning_rate=0.2, batch_size=20,
    )  # fmt: skip
    made.join(mine)
    best = 9e9
    while True:
        (report,) = made.step()
        best = min(best, report.validation_loss)
        assert 0 <= report.validation_accuracy <= 1
        assert (report.tokens, report.input_tokens) == (20, 20)
        if report.finished:
            break
    assert report.stopped_early
    loss, accuracy = made.evaluate("a")
    assert loss == pytest.approx(best)
    assert accuracy * 50 == pytest.approx(round(accuracy * 50))
    made.leave("a")
    regression = trainer("mlp", 1)
    regression.join(job("mlp", "a", 1, validation=arrays("mlp", 2), epochs=1, batch_size=20))
    (report,) = regression.step()
    assert report.validation_loss > 0
    assert report.validation_accuracy is None


def test_memory_is_measured_and_bounds_a_step(tmp_path):
    made = trainer("convnet", 2)
    costs = made.calibrate()
    made.join(job("convnet", "a", 1))
    made.step()
    if costs is not None:
        assert made.predicted_peak() > 0
    tight = trainer("convnet", 2, memory_limit=2**40)
    tight.costs_are(costs or type(costs)(0.0, 1.0, 0.0))
    tight.join(job("convnet", "a", 1))
    tight.step()
    assert digest(tight, "a", tmp_path / "t") == digest(made, "a", tmp_path / "m")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("mlp", dict(x=torch.zeros(4, 11), y=torch.zeros(4, 3)), "the base reads \\(12,\\)"),
        ("mlp", dict(x=torch.zeros(4, 12), y=torch.zeros(4, 2)), "the base makes \\(3,\\)"),
        ("mlp", dict(x=torch.zeros(4, 12).long(), y=torch.zeros(4, 3)), "torch.int64"),
        ("words", dict(x=torch.full((4, 7), 31), y=torch.zeros(4).long()), "not in 0 … 30"),
        ("words", dict(x=torch.zeros(4, 7).long(), y=torch.full((4,), CLASSES)), "class ids"),
        ("words", dict(x=torch.zeros(4, 7).long(), y=torch.zeros(4)), "class ids"),
    ],
)
def test_examples_that_do_not_fit_are_refused(kind, changes, said):
    made = trainer(kind, 1)
    with pytest.raises(SpecError, match=said):
        made.join(job(kind, "a", 1, examples=ArrayExamples(**changes)))
    made.join(job(kind, "a", 1))  # nothing stayed behind


def test_text_and_arrays_are_told_apart():
    with pytest.raises(SpecError, match="are text"):
        trainer("mlp", 1).join(job("mlp", "a", 1, examples=texts(1)))
    with pytest.raises(SpecError, match="are arrays"):
        Trainer(tiny("llama"), 1).join(job("mlp", "a", 1))
    with pytest.raises(SpecError, match="no embedding"):
        Trainer(tiny("llama"), 1).join(
            job("mlp", "a", 1, examples=texts(1), spec_target_modules=("embed_tokens",))
        )


def test_a_network_must_take_what_its_task_says():
    made, _ = network("mlp")
    with pytest.raises(LoraError, match="does not take"):
        ArrayForward(made, ArrayTask("regression", (13,)))
    with pytest.raises(LoraError, match="no layer"):
        ArrayForward(torch.nn.BatchNorm1d(3), ArrayTask("regression", (3,)))
    with pytest.raises(SpecError, match="none of"):
        ArrayTask("segmentation", (3,))
    with pytest.raises(SpecError, match="holds nothing"):
        ArrayTask("regression", (0,))


def test_arrays_on_disk(tmp_path):
    mine = arrays("words", 1)
    mine.save(tmp_path / "a.safetensors")
    again = ArrayExamples.load(tmp_path / "a.safetensors")
    assert torch.equal(again.x, mine.x)
    assert torch.equal(again.y, mine.y)
    texts(1).save(tmp_path / "t.safetensors")
    with pytest.raises(FormatError, match="has no"):
        ArrayExamples.load(tmp_path / "t.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(FormatError, match="no file of arrays"):
        ArrayExamples.load(tmp_path / "b.safetensors")
    with pytest.raises(FormatError, match="same number"):
        ArrayExamples(torch.zeros(2, 1), torch.zeros(3, 1))


def test_a_spec_says_where_an_adapter_may_sit():
    made, _ = network("convnet")
    trained = Trainer(made, 1, arrays=ArrayTask("classification", (3, 9, 9)))
    with pytest.raises(LoraError, match="8 groups"):
        trained.join(job("convnet", "a", 1, spec_target_modules=("deep",)))
    assert AdapterSpec().target_modules == "all-linear"
