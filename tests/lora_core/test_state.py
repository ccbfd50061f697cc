import pytest
import torch

from lora_core import FormatError, SpecError, State, Trainer
from tests.lora_core.models import job, tiny


def test_a_folder_holds_what_was_saved(tmp_path):
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1))
    reports = [trainer.step()[0] for _ in range(2)]
    state = trainer.state("j")
    state.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    read = State.load(tmp_path)
    assert read.step == 2
    assert read.counters == {
        "tokens": sum(r.tokens for r in reports),
        "input_tokens": sum(r.input_tokens for r in reports),
    }
    assert read.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(read.tensors[n], t) for n, t in state.tensors.items())
    assert {t.dtype for t in read.tensors.values()} == {torch.float32}


def test_a_state_is_a_copy():
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1))
    trainer.step()
    state = trainer.state("j")
    kept = {n: t.clone() for n, t in state.tensors.items()}
    trainer.step()
    assert all(torch.equal(kept[n], t) for n, t in state.tensors.items())


@pytest.mark.parametrize("broken", ["state.json", "state.safetensors"])
def test_broken_folders_are_refused(broken, tmp_path):
    State(1, {"a": torch.zeros(1)}).save(tmp_path)
    (tmp_path / broken).write_bytes(b"[]")
    with pytest.raises(FormatError, match="no usable state"):
        State.load(tmp_path)
    (tmp_path / broken).unlink()
    with pytest.raises(FormatError, match="no usable state"):
        State.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: State(s.step, {}),
        lambda s: State(99, s.tensors),
        lambda s: State(s.step, s.tensors | {"more.A.w": torch.zeros(1)}),
        lambda s: State(s.step, {n: t.double() for n, t in s.tensors.items()}),
        lambda s: State(s.step, {n: t[:1] for n, t in s.tensors.items()}),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_the_slot_stays_free(change):
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1))
    state = trainer.state("j")
    trainer.leave("j")
    with pytest.raises(SpecError, match="does not fit"):
        trainer.join(job("j", 1), change(state))
    trainer.join(job("j", 1), state)
