import pytest
import torch

from lora_core import Trainer, activate, load_adapter
from lora_core.inject import layers
from lora_core.quality import Quality
from tests.lora_core.models import examples, job, tiny

PROMPTS = [[1, 5, 9], [1, 20, 21, 22]]


def to_the_end(trainer):
    while trainer.step():
        pass


def reported(trainer, name, **options):
    report = Quality(trainer, name, PROMPTS, **{"new_tokens": 5, **options})
    turns = 1
    while not report.advance(0.0):
        turns += 1
    return report, turns


@pytest.fixture
def trained():
    trainer = Trainer(tiny("gemma3"), slots=2)
    trainer.join(job("a", 1, validation=examples(9), learning_rate=2e-2, epochs=3))
    to_the_end(trainer)
    return trainer


def test_it_finds_what_the_slow_way_finds(trained, tmp_path):
    report, turns = reported(trained, "a")
    assert report.cut is None
    assert turns > 10  # in small parts
    told = report.facts["heldout"]
    assert (told["on"], told["examples"]) == ("validation", 12)
    for name, which in (("base", None), ("adapter", "a")):
        loss, accuracy = trained.evaluate(which, examples(9))
        assert told[name]["loss"] == pytest.approx(loss, rel=1e-5)
        assert told[name]["token_accuracy"] == pytest.approx(accuracy)
    trained.export("a", tmp_path)
    plain = tiny("gemma3", packed=False)
    load_adapter(plain, tmp_path)
    for name, layer in layers(plain).items():
        dense = torch.linalg.svdvals(layer.delta("default").double())[:4]
        found = report.facts["spectrum"]["layers"][name]["singular_values"]
        torch.testing.assert_close(
            torch.tensor(found, dtype=dense.dtype), dense.detach(), atol=1e-6, rtol=2e-3
        )
    for name, slot in (("base", None), ("adapter", "default")):
        activate(plain, slot)
        for ids, answer in zip(PROMPTS, report.facts["answers"][name], strict=True):
            assert answer == greedily(plain, ids, 5)


def greedily(model, ids, count):
    """The obvious way: the whole sequence again for each token."""
    ends = model.generation_config.eos_token_id
    made = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *made]]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == ends:
            break
        made.append(token)
    return made


def test_the_neighbours_bits_and_its_own_stay(tmp_path):
    def train(report):
        trainer = Trainer(tiny("llama"), slots=2)
        trainer.join(job("a", 1))
        to_the_end(trainer)
        trainer.export("a", tmp_path / "a")
        own = (tmp_path / "a/adapter_model.safetensors").read_bytes()
        trainer.join(job("b", 2, epochs=4, spec_dropout=0.1))
        quality = Quality(trainer, "a", PROMPTS, new_tokens=5)
        while trainer.step():
            if report:
                quality.advance(0.0)
        trainer.export("a", tmp_path / "a")
        assert (tmp_path / "a/adapter_model.safetensors").read_bytes() == own
        trainer.export("b", tmp_path / "b")
        return (tmp_path / "b/adapter_model.safetensors").read_bytes()

    assert train(report=True) == train(report=False)


def test_it_keeps_to_its_time_and_to_what_it_can(trained, monkeypatch):
    report, turns = reported(trained, "a", seconds=0.0)
    assert turns == 1
    assert report.cut == "cut short after 0 s"
    assert "heldout" not in report.facts

    def broken(*_args, **_named):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(trained.model, "forward", broken)
    report, _ = reported(trained, "a")
    assert report.cut == "cut short: RuntimeError: no such kernel"
    assert report.facts["heldout"]["adapter"]["loss"] > 0
