"""Hey there, language model enthusiasts! Where to apply LoRA, how to scale it, which rank, and how
it compares with full fine-tuning: on the network and the pictures of `road.py`, all jobs in one
trainer.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from claims.digits import turned
from claims.road import accuracy, count, examples, pretrained, trainer
from claims.row import Claim, Found, Place
from lora_core import (
    AdapterSpec,
    ArrayExamples,
    Trainer,
    TrainingJob,
    activate,
    weights_digest,
)
from lora_core.inject import layers

DOCUMENT = "LoRA for language model enthusiasts"
EPOCHS = 3
#: of the comparison with full fine-tuning
_LONG = 6
#: of full fine-tuning; an adapter takes ten times as much (LoRA Without Regret)
_FULL_RATE = 1e-3


def trained(
    place: Place, specs: dict[str, AdapterSpec], rate: float = 2e-3, epochs: int = EPOCHS
) -> tuple[dict[str, float], float]:
    """Test accuracy by name, all specs trained side by side; and the seconds that took."""
    began = time.perf_counter()
    engine, held_out = taught(place, specs, rate, epochs)
    spent = time.perf_counter() - began
    return {name: engine.evaluate(name, held_out)[1] for name in specs}, spent


def taught(
    place: Place, specs: dict[str, AdapterSpec], rate: float = 2e-3, epochs: int = EPOCHS
) -> tuple[Trainer, ArrayExamples]:
    """A trainer whose jobs, one for each spec, are done; and what to test them on."""
    base, data = pretrained(place.cifar)
    x, y = turned(data.train[0]), data.train[1]
    engine = trainer(copy.deepcopy(base), len(specs))
    for name, spec in specs.items():
        engine.join(TrainingJob(name, spec, examples(x, y), epochs=epochs, batch_size=32,
                                learning_rate=rate))  # fmt: skip
    while engine.step():
        pass
    return engine, examples(turned(data.test[0]), data.test[1])


def _selective(place: Place) -> Found:
    chosen: dict[str, str | tuple[str, ...]] = {
        "l1": ("l1",), "l2": ("l2",), "l3": ("l3",), "all": "all-linear"
    }  # fmt: skip
    found, _ = trained(
        place, {n: AdapterSpec(r=8, alpha=8, target_modules=t) for n, t in chosen.items()}
    )
    start = _start(place.cifar)
    said = f"frozen {start:.0%}; " + ", ".join(f"{n} {a:.0%}" for n, a in found.items())
    return said, all(a > start for a in found.values())


@cache
def _start(cifar: Path | None) -> float:
    base, data = pretrained(cifar)
    return accuracy(base, turned(data.test[0]), data.test[1])


def _sweep(place: Place) -> Found:
    specs = {
        f"r={r} alpha/r={scale:g}": AdapterSpec(r=r, alpha=r * scale)
        for r in (1, 4, 8)
        for scale in (0.01, 1, 4)
    }
    found, _ = trained(place, specs)
    said = ", ".join(f"{name} {share:.0%}" for name, share in found.items())
    # A scale of 0.01 is to be seen: it hardly learns, whatever the rank.
    weak = max(a for n, a in found.items() if n.endswith("=0.01"))
    best = max(found.values())
    return said, best > weak and found["r=8 alpha/r=1"] >= found["r=1 alpha/r=1"]


def _learnable(place: Place) -> Found:
    fixed = AdapterSpec(r=8, alpha=8)
    specs = {"fixed": fixed, "learnt": replace(fixed, learnable_scaling=True)}
    engine, held_out = taught(place, specs)
    found = {name: engine.evaluate(name, held_out)[1] for name in specs}
    gains = engine.state("learnt").gains()
    moved = ", ".join(f"{name} {gain:.2f}" for name, gain in gains.items())
    said = f"fixed {found['fixed']:.0%}, learnt {found['learnt']:.0%}; the factors went to {moved}"
    learnt = all(abs(gain - 1) > 0.01 for gain in gains.values())
    return said, learnt and len(gains) == 3 and found["learnt"] > found["fixed"] - 0.03


def _full(place: Place) -> Found:
    base, data = pretrained(place.cifar)
    x, y = turned(data.train[0]), data.train[1]
    test = turned(data.test[0])
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_FULL_RATE)
    began = time.perf_counter()
    for epoch in range(_LONG):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    whole = accuracy(model, test, data.test[1])
    found, spent = trained(place, {"a": AdapterSpec(r=8, alpha=8)}, 10 * _FULL_RATE, _LONG)
    numbers = count(list(model.parameters()))
    own = sum(8 * (layer.in_features + layer.out_features) for layer in _layers(base))
    # gradient and two moments in float32
    memory, small = 12 * numbers / 1e6, 12 * own / 1e6
    said = (
        f"full: {whole:.0%}, {seconds:.1f} s, {4 * numbers / 1e6:.2f} MB a copy, {memory:.2f} MB "
        f"of gradients and moments; LoRA r = 8: {found['a']:.0%}, {spent:.1f} s, "
        f"{4 * own / 1e6:.2f} MB, {small:.2f} MB"
    )
    return said, found["a"] > whole - 0.05 and own < numbers / 5


def _layers(model: torch.nn.Module) -> list[torch.nn.Linear]:
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear)]


def _switch(place: Place) -> Found:
    base, data = pretrained(place.cifar)
    engine = trainer(copy.deepcopy(base), 2)
    tasks = {"upright": data.train[0], "turned": turned(data.train[0])}
    for name, x in tasks.items():
        # the second task's classes count backwards, so that one adapter is no use for the other
        y = data.train[1] if name == "turned" else 9 - data.train[1]
        engine.join(TrainingJob(name, AdapterSpec(r=8, alpha=8), examples(x, y), epochs=EPOCHS,
                                batch_size=32, learning_rate=2e-3))  # fmt: skip
    before = weights_digest(engine.model)
    while engine.step():
        pass
    tests = {
        "upright": (data.test[0], 9 - data.test[1]),
        "turned": (turned(data.test[0]), data.test[1]),
    }
    found = {}
    for slot, name in (("slot0", "upright"), ("slot1", "turned")):
        activate(engine.model, slot)
        found[name] = {task: accuracy(engine.model, *held) for task, held in tests.items()}
    same = weights_digest(engine.model) == before and len(layers(engine.model)) == 3
    said = "; ".join(
        f"{name}: {own[name]:.0%} on its task, {min(own.values()):.0%} on the other"
        for name, own in found.items()
    )
    return said, same and all(own[name] == max(own.values()) for name, own in found.items())


CLAIMS = [
    Claim("selective", DOCUMENT, "LoRA on some layers only is a trade-off", _selective, False),
    Claim("rank and scaling", DOCUMENT, "rank and scale matter; 0.01 is a choice", _sweep, False),
    Claim("learnable scaling", DOCUMENT, "the scale can be learnt", _learnable, False),
    Claim("against full", DOCUMENT, "comparable results with far fewer parameters", _full, False),
    Claim("adapters on one base", DOCUMENT, "switching keeps the same base", _switch, False),
]
