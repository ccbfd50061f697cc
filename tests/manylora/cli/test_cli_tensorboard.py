"""Event files, read again by TensorBoard's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manylora.cli import main

POINTS = [
    {
        "step": step,
        "train_loss": 3.0 / step,
        "learning_rate": 1e-3 / step,
        "grad_norm": 1.0,
        "seconds": 2.0,
    }
    | ({"valid_loss": 2.0, "valid_mean_token_accuracy": 0.5} if step % 2 == 0 else {})
    for step in range(1, 8)
]


@pytest.fixture
def served(service: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A service with one job, whose answers hold three points at most."""
    monkeypatch.setenv("MANYLORA_API_URL", service.url)
    monkeypatch.setenv("MANYLORA_API_KEY", "k")
    monkeypatch.setenv("MANYLORA_HOME", str(tmp_path / "home"))
    job = {"id": "ftjob-1", "created_at": 1_700_000_000, "x": {"started_at": 1_700_000_100}}
    service.answers["GET", "/v1/fine_tuning/jobs/ftjob-1"] = (200, json.dumps(job).encode())

    def metrics(_body: bytes) -> tuple[int, bytes]:
        after = int(service.asked[-1][1].rpartition("after_step=")[2])
        page = [point for point in POINTS if point["step"] > after][:3]
        return 200, json.dumps({"data": page}).encode()

    service.answers["GET", "/v1/manylora/jobs/ftjob-1/metrics"] = metrics
    return service


def test_tensorboard_reads_every_point_once(
    served: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time it replaces what the first wrote
        assert main.run(["tensorboard", "ftjob-1", "-o", str(tmp_path / "tb"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["data"][0]["points"] == 7 * 3 + 3 * 2
    read = EventAccumulator(str(tmp_path / "tb" / "ftjob-1"))
    read.Reload()
    tags = {"loss/train", "loss/validation", "accuracy/validation", "learning_rate", "grad_norm"}
    assert set(read.Tags()["scalars"]) == tags
    train = read.Scalars("loss/train")
    assert [event.step for event in train] == list(range(1, 8))
    assert [event.value for event in train] == pytest.approx([3.0 / s for s in range(1, 8)])
    assert [event.wall_time for event in train] == [1_700_000_100 + 2 * s for s in range(1, 8)]
    assert [event.step for event in read.Scalars("loss/validation")] == [2, 4, 6]


def test_what_is_missing_is_said(
    served: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main.run(["tensorboard", "nosuch", "-o", str(tmp_path / "tb")]) == 1
    assert not (tmp_path / "tb").exists()
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX.event_file_writer", None)
    capsys.readouterr()
    assert main.run(["tensorboard", "ftjob-1", "-o", str(tmp_path / "tb")]) == 2
    assert "manylora[tensorboard]" in capsys.readouterr().err
