"""The trainer child as a process: it starts, dies, comes back, and ends when told."""

import json
import os
import queue
import signal
import threading
from pathlib import Path

import pytest

from manylora.errors import UnavailableError
from tests.worker.conftest import until
from worker.trainer.link import TrainerLink


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("trainer-")]


def test_a_life_of_a_trainer(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("MANYLORA_S3_SECRET_KEY", "a-secret-the-child-must-not-see")
    note = tmp_path / "run" / "trainer.json"
    link = TrainerLink(tiny_base[1], slots=1, device="cpu", threads=1, note=note)
    with pytest.raises(UnavailableError):
        link.send({"op": "leave", "key": "k"})
    link.start()
    assert link.ready.wait(120)
    first = link.pid
    assert link.numerics["threads"] == 1
    assert json.loads(note.read_text()) == {
        "name": "trainer", "pid": first, "state": "running", "restarts": 0,
    }  # fmt: skip
    # It knows no credentials, and has a session of its own.
    assert b"a-secret" not in Path(f"/proc/{first}/environ").read_bytes()
    assert os.getsid(first) == first

    # What it does not hold it is glad to leave; what it cannot join it refuses by itself.
    mailbox = link.listen("k")
    link.send({"op": "leave", "key": "k"})
    assert mailbox.get(timeout=30) == {"ev": "left", "key": "k"}
    order = {"op": "join", "key": "k", "folder": str(tmp_path), "base_name": "b", "seed": 1}
    hyper = dict(
        lora_r=2, lora_alpha=2, lora_dropout=0.0, use_rslora=False, target_modules="all-linear",
        n_epochs=1, batch_size=1, learning_rate=0.1, lr_schedule="constant", warmup_ratio=0.0,
        weight_decay=0.0, max_grad_norm=1.0, eval_every=None,
    )  # fmt: skip
    link.send({**order, "hyperparameters": hyper})
    refused = mailbox.get(timeout=30)
    assert (refused["ev"], refused["key"]) == ("failed", "k")
    link.forget("k")

    waiting = link.listen("other")
    os.kill(first, signal.SIGKILL)
    crashed = {"ev": "crashed", "code": -9, "memory": False, "restarts": 1}
    assert waiting.get(timeout=30) == crashed
    assert mailbox.empty()  # it was forgotten
    assert until(link.ready.is_set)
    assert link.pid != first
    assert json.loads(note.read_text())["restarts"] == 1

    second = link.pid
    link.stop(timeout=10)
    assert link._process.returncode == 0  # it heard, and was not killed
    assert gone(second)
    assert json.loads(note.read_text())["state"] == "stopped"
    with pytest.raises(queue.Empty):
        waiting.get_nowait()
    until(lambda: readers() == [])
    link.start()  # too late: it was stopped for good
    assert link.pid == second


def test_a_base_that_cannot_be_loaded_is_tried_again_and_said(tmp_path):
    link = TrainerLink(tmp_path, slots=1, device="cpu", threads=1, note=None)
    link._argv = [link._argv[0], "-c", "import sys; sys.exit(3)"]
    waiting = link.listen("k")
    link.start()
    first = waiting.get(timeout=30)
    assert (first["ev"], first["code"], first["restarts"]) == ("crashed", 3, 1)
    assert waiting.get(timeout=30)["restarts"] == 2
    link.stop()  # in the middle of the back-off, or of a start
    for thread in readers():
        thread.join(20)
    assert readers() == []
    assert gone(link.pid)
    assert not link.ready.is_set()


def test_a_child_says_what_is_wrong_with_its_base(tiny_base, tmp_path):
    (tmp_path / "base.json").write_bytes((tiny_base[1] / "base.json").read_bytes())
    link = TrainerLink(tmp_path, slots=1, device="cpu", threads=1, note=None)
    link.start()
    try:
        assert "the base cannot be loaded" in until(lambda: link.failure)
    finally:
        link.stop()
