from lora_core import Trainer
from lora_core.variants.loraplus import paces
from tests.lora_core.models import job, tiny


def test_runs_cover_every_number_once_and_are_few():
    places = {
        "x.A": slice(0, 4),
        "x.B": slice(9, 12),
        "y.A": slice(4, 9),
        "x.gain": slice(12, 13),
    }
    assert paces(places, 8.0) == [(slice(0, 9), 1.0), (slice(9, 13), 8.0)]
    assert paces(places, 1.0) == [(slice(0, 13), 1.0)]


def test_a_slots_numbers_are_two_runs():
    trainer = Trainer(tiny("llama"), slots=2)
    for name, ratio, runs in (("a", 8.0, 2), ("b", 1.0, 1)):
        trainer.join(job(name, 1, spec_dora=True, spec_loraplus_lr_ratio=ratio))
        optimizer = trainer._active[name].optimizer
        assert len(optimizer.paces) == runs
        assert optimizer.paces[0][0].start == 0
        assert optimizer.paces[-1][0].stop == optimizer.master.numel()
