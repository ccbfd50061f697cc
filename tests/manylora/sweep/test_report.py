import csv

import pytest

from manylora.sweep.halving import Trial, plan, stand
from manylora.sweep.report import COLUMNS, Outcome, write


@pytest.fixture
def outcome():
    found = plan(4, 8, 2, None)
    trials = [
        Trial({2: 3.0}, 3, ended=True),
        Trial({2: 2.0, 4: 1.8}, 4, ended=True),
        Trial({2: 1.5, 4: 1.2, 6: 1.1, 8: 1.0}, 8, ended=True),
        Trial({}, 1, ended=True),
    ]
    states = ["cancelled", "cancelled", "succeeded", "failed"]
    jobs = [{"id": f"ftjob-{i}", "status": status} for i, status in enumerate(states)]
    jobs[3]["error"] = {"code": "diverged", "message": "x"}
    params = [{"lora_r": 2 ** (i + 1)} for i in range(4)]
    return Outcome("abc", found, params, jobs, trials, stand(found, trials), 20)


def test_the_table_is_best_first_and_says_what_became_of_each(outcome):
    assert [(row[0], row[3], row[6]) for row in outcome.rows()] == [
        ("002", 8, "picked"),
        ("001", 4, "stopped at step 4"),
        ("000", 3, "stopped at step 2"),
        ("003", 1, "failed: diverged"),
    ]
    assert outcome.pick == 2
    assert outcome.reason.startswith("lowest validation loss, 1.0000 at step 8")
    assert outcome.cost() == "16 steps of 20 in the budget; every trial to its end would be 32 " + (
        "(50% of that)"
    )


def test_files(outcome, tmp_path):
    assert write(outcome, tmp_path) == ["trials.csv", "report.md", "sweep.png"]
    with (tmp_path / "trials.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == list(COLUMNS)
    assert len(rows) == 5
    text = (tmp_path / "report.md").read_text()
    assert "Picked: trial 002, `lora_r=8`: lowest validation loss" in text
    assert "| 001 | ftjob-1 | lora_r=4 | 4 | 1.8000 | 4 | stopped at step 4 |" in text
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    told = outcome.document()
    assert told["pick"] == {"trial": 2, "job_id": "ftjob-2", "lora_r": 8}
    assert (told["steps_spent"], told["steps_full_grid"], told["done"]) == (16, 32, True)


def test_without_any_loss_nothing_is_picked(outcome):
    trials = [Trial(ended=True) for _ in range(4)]
    none = Outcome(
        "abc", outcome.plan, outcome.params, outcome.jobs, trials, stand(outcome.plan, trials), None
    )
    assert none.pick is None
    assert none.reason == "no trial has a validation loss"
    assert none.document()["pick"] is None
