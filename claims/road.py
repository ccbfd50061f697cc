"""Road to Efficient LLMs 1: LoRA (JacksonCakes). A three-layer network on CIFAR-10, pretrained,
then adapted at rank 32 by the project's trainer.

x [B, 3, 32, 32] flattened, hidden 128, 10 classes.
"""

from __future__ import annotations

import copy
import shutil
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claims.digits import Pictures, pictures, turned
from claims.row import Claim, Found, Place
from lora_core import (
    AdapterSpec,
    ArrayExamples,
    ArrayTask,
    Trainer,
    TrainingJob,
    activate,
    eject,
    inject,
    merge,
    unmerge,
    weights_digest,
)
from lora_core.inject import layers

DOCUMENT = "Road to Efficient LLMs 1: LoRA"
RANK = 32
EPOCHS = 5


class CifarModel(nn.Module):
    """Three linear layers."""

    def __init__(self, hidden: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.l1 = nn.Linear(32 * 32 * 3, hidden)
        self.l2 = nn.Linear(hidden, hidden)
        self.l3 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] to [B, classes]."""
        x = F.relu(self.l1(x.flatten(1)))
        return self.l3(F.relu(self.l2(x)))


def count(parameters: list[nn.Parameter]) -> int:
    """Numbers."""
    return sum(parameter.numel() for parameter in parameters)


def _first() -> CifarModel:
    torch.manual_seed(0)
    return CifarModel()


@cache
def pretrained(folder: Path | None) -> tuple[CifarModel, Pictures]:
    """The base, by stochastic gradient descent as the document has it."""
    data = pictures(folder)
    model = _first()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = data.train
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model, data


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of pictures named right."""
    return float((model(x).argmax(1) == y).float().mean())


def examples(x: Tensor, y: Tensor) -> ArrayExamples:
    """Pictures as a job takes them."""
    return ArrayExamples(x, y)


def trainer(model: nn.Module, slots: int = 1) -> Trainer:
    """The project's trainer on the network."""
    return Trainer(model, slots, arrays=ArrayTask("classification", (3, 32, 32)))


def _parameters(_: Place) -> Found:
    total = count(list(_first().parameters()))
    return f"{total:,}", total == 411_146


def _adapted() -> tuple[CifarModel, int, int]:
    model = _first()
    inject(model, AdapterSpec(r=RANK, alpha=1))
    adapters = [p for layer in layers(model).values() for p in layer.lora_A.values()]
    adapters += [p for layer in layers(model).values() for p in layer.lora_B.values()]
    return model, count(adapters), count(list(model.parameters()))


def _trainable(_: Place) -> Found:
    model, own, total = _adapted()
    frozen = count([p for p in model.parameters() if not p.requires_grad])
    said = f"{own:,} trainable, {frozen:,} frozen, {total:,} in all"
    return said, (own, frozen, total) == (115_008, 411_146, 526_154)


def _summary(_: Place) -> Found:
    lines = []
    for name, layer in layers(_adapted()[0]).items():
        base = count(list(layer.base.parameters()))
        own = count([*layer.lora_A.values(), *layer.lora_B.values()])
        lines.append((name, layer.in_features, layer.out_features, base, own))
    said = "; ".join(
        f"{name} [B, {wide}] to [B, {out}]: ({base:,}) and {own:,}"
        for name, wide, out, base, own in lines
    )
    wanted = [(393_344, 102_400), (16_512, 8_192), (1_290, 4_416)]
    return said, [(base, own) for *_, base, own in lines] == wanted


def _curves(place: Place) -> Found:
    """Train, with the accuracy after each epoch as TensorBoard reads it."""
    from torch.utils.tensorboard import SummaryWriter

    base, data = pretrained(place.cifar)
    x, y = turned(data.train[0]), data.train[1]
    test_x, test_y = turned(data.test[0]), data.test[1]
    model = copy.deepcopy(base)
    start = accuracy(model, test_x, test_y)
    engine = trainer(model)
    before = weights_digest(model)
    spec = AdapterSpec(r=RANK, alpha=RANK)
    held = examples(x, y)
    engine.join(
        TrainingJob("a", spec, held, examples(test_x, test_y), epochs=EPOCHS, batch_size=32,
                    learning_rate=2e-3, eval_every=-(-len(x) // 32))
    )  # fmt: skip
    folder = place.out / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder / "base")) as writer:
        for epoch in range(EPOCHS):
            writer.add_scalar("Accuracy/test", start, epoch)
    best = 0.0
    with SummaryWriter(str(folder / "lora")) as writer:
        while True:
            (report,) = engine.step()
            writer.add_scalar("Loss/train", report.loss, report.step)
            if report.validation_accuracy is not None:
                best = report.validation_accuracy
                writer.add_scalar("Accuracy/test", best, report.epoch)
            if report.finished:
                break
    same = weights_digest(model) == before
    files = list(folder.rglob("events.out.tfevents.*"))
    said = (
        f"{data.name}, turned and noisy: {start:.0%} frozen, {best:.0%} after {EPOCHS} epochs; "
        f"base weights {'unchanged' if same else 'changed'}; {len(files)} event files"
    )
    return said, best > start and same and len(files) >= 2


def _switching(place: Place) -> Found:
    model = copy.deepcopy(pretrained(place.cifar)[0])
    before = weights_digest(model)
    digests = []
    for seed in (1, 2):
        inject(model, AdapterSpec(r=RANK, seed=seed), f"task{seed}")
        for layer in layers(model).values():
            torch.nn.init.normal_(layer.lora_B[f"task{seed}"], std=0.1)
    x = pictures(place.cifar).test[0][:64]
    agree = True
    for slot in ("task1", "task2"):
        activate(model, slot)
        with torch.no_grad():
            on_the_fly = model(x)
            merge(model, slot)
            agree = agree and bool((model(x) - on_the_fly).abs().max() < 1e-3)
        digests.append(weights_digest(model))
        unmerge(model)
    eject(model)
    back = weights_digest(model) == before
    said = f"two tasks merged in turn; the base's bits are {'the same' if back else 'other'} after"
    return said, back and agree and len({before, *digests}) == 3


def _rank_one(_: Place) -> Found:
    matrix = torch.tensor([[1.0, 2, 3], [3, 6, 9]])
    made = torch.tensor([[1.0], [3]]) @ torch.tensor([[1.0, 2, 3]])
    rank = int(torch.linalg.matrix_rank(matrix))
    return f"rank {rank}, product equal", rank == 1 and torch.equal(made, matrix)


def _thousand(_: Place) -> Found:
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    inject(model, AdapterSpec(r=100))
    (layer,) = layers(model).values()
    own = count([*layer.lora_A.values(), *layer.lora_B.values()])
    full = layer.weight.numel()
    return f"{full:,} to {own:,}", (full, own) == (1_000_000, 200_000)


CLAIMS = [
    Claim("rank one", DOCUMENT, "a 2 x 3 matrix of rank 1 is a column times a row", _rank_one),
    Claim("rank 100 of 1000", DOCUMENT, "1,000,000 numbers become 100,000 + 100,000", _thousand),
    Claim("three layers", DOCUMENT, "CifarModel has 411,146 parameters", _parameters),
    Claim("rank 32", DOCUMENT, "115,008 trainable of 526,154", _trainable),
    Claim("summary", DOCUMENT, "393,344; 16,512; 1,290 and 102,400; 8,192; 4,416", _summary),
    Claim("accuracy", DOCUMENT, "accuracy rises, the weights stay frozen; curves", _curves),
    Claim("switching", DOCUMENT, "BA out, B'A' in, and the base recovered", _switching),
]
