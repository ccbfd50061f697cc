"""The bench's pieces import, its plan is whole, and its tables say what made-up rows say. It is not
run here: `make bench-quick` does that."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from bench import cuda, engine, figures, measure, memory, plot, report, rows, tables
from tests.house.sources import ROOT

GIB = 2**30
MODULES = sorted(
    f"bench.{path.stem}" for path in (ROOT / "bench").glob("*.py") if path.stem != "__init__"
)


def made_up():
    """Two rounds of everything, with numbers that are easy to divide."""
    found = []
    for number, drift in enumerate((1.0, 2.0)):
        common = {"round": number, "part": "jobs", "length": 31, "rank": 8, "batch": 4}

        def rate(steady, drift=drift):
            return {
                "tokens_per_second": 0.8 * steady * drift,
                "steady_tokens_per_second": steady * drift,
                "loop_seconds": 20.0,
            }

        found.append(
            {"what": "trainer_peft", **common, **rate(80), "wall_seconds": 25.0, "jobs": 1}
            | {"peak_bytes": 4 * GIB}
        )
        for dtype, steady in (("float32", 90), ("bfloat16", 100)):
            peer = {"adapter_dtype": dtype, "jobs": 8, "trained": 2, "peak_bytes": 5 * GIB}
            for part in ("jobs", "llama"):
                found.append(
                    {"what": "set_adapter", **common, **rate(steady), **peer, "part": part}
                )
        general = {"native": False}
        for part, jobs, steady, named in (
            ("jobs", 1, 300, {}),
            ("jobs", 8, 700, {}),
            ("jobs", 32, 900, {}),
            ("jobs", 8, 400, general),
            ("jobs", 8, 420, {**general, "exact": False}),
            ("cold", 8, 500, {"compile": True}),
            ("warm", 8, 500, {"known": True}),
            ("llama", 8, 550, {}),
        ):
            mine = {
                "jobs": jobs,
                "padding": 0.08,
                "head_padding": 0.02,
                "cold_seconds": 1.5,
                "load_seconds": 0.5,
                "kernels_seconds": 0.1,
                "construct_seconds": 0.5,
                "calibrate_seconds": 1.0,
                "peak_bytes": 2 * GIB,
                "steps_peak_bytes": GIB,
                "passes_per_step": 1.0,
                "seconds_per_job": 3.0,
            }
            found.append({"what": "ours", **common, **rate(steady), **mine, **named, "part": part})
        floors = {str(n): {"tokens_per_second": 1000.0 * drift} for n in (1, 8, 32)}
        for part in ("jobs", "llama"):
            found.append(
                {"what": "floor", **common, "jobs": [1, 8, 32], "floors": floors, "part": part}
            )
    for length, steady in ((16, 500), (512, 900)):
        long = {"part": "length", "round": 0, "length": length, "rank": 8, "jobs": 8}
        value = {"steady_tokens_per_second": steady, "peak_bytes": GIB, "padding": 0.1}
        found.append({"what": "ours", **long, **value})
        found.append({"what": "set_adapter", **long, **value, "steady_tokens_per_second": 100})
        floor = {"8": {"tokens_per_second": 1000.0}}
        found.append({"what": "floor", **long, "jobs": [8], "floors": floor})
    seconds = {
        name: [0.5] * 8
        for name in (
            "created_to_claim_seconds",
            "claim_to_first_step_seconds",
            "claim_to_published_seconds",
        )
    }
    found.append(
        {"what": "service", "round": 0, "jobs": 8, "wall_seconds": 20.0, "sent_seconds": 1.0}
        | {"alone_seconds": 25.0, "first_step_alone_seconds": 0.5}
        | seconds
    )
    for least, most in ((1.1, 1.2), (0.9, 1.1), (1.0, 1.4)):
        where = {"length": 16, "jobs": 8, "batch": 4, "rank": 8}
        told = {"least_ratio": least, "most_ratio": most, "steps": [[2 * GIB, GIB], [GIB, GIB]]}
        found.append({"what": "memory", **where, **told})
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_piece_imports(module):
    assert importlib.import_module(module).__doc__


def test_who_asks_for_measurements_stays_without_torch():
    code = (
        "import sys\nfrom bench import engine, measure, memory, rows, service, report\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_plan_has_every_number_of_jobs_length_and_rank():
    plan = engine.plan(3)
    ours = [v.order for v in plan if v.what == "ours"]
    assert {o["jobs"] for o in ours if o["part"] == "jobs"} == {1, 2, 4, 8, 16, 32}
    assert {o["length"] for o in ours if o["part"] == "length"} >= {16, 512}
    assert {o["rank"] for o in ours if o["part"] == "rank"} >= {4, 64}
    assert [o for o in ours if o.get("exact") is False]
    assert {v.what for v in plan} == {"ours", "set_adapter", "trainer_peft", "floor"}
    for variant in [*plan, *engine.smoke(), *engine.cuda()]:
        assert importlib.util.find_spec(variant.module) is not None
    assert max(p["length"] * p["jobs"] * p["batch"] for p in memory.grid()) <= 16384


def test_figures_are_ratios_within_a_round():
    every = made_up()
    found = {figure.name: figure.value(every) for figure in figures.FIGURES}
    wanted = {
        "engine, 8 jobs, steady, against set_adapter": 7.0,
        "engine, 32 jobs, steady, against set_adapter": 9.0,
        "engine, one job alone, steady, against set_adapter": 3.0,
        "share of the floor, 8 jobs, steady": 0.7,
        "peak memory, 8 jobs, against one Trainer+PEFT process": 0.5,
        "cost of exactness, 8 jobs, steady, without native kernels": 1 - 400 / 420,
        "the same with the kernels to be compiled": 1.5,
        "predicted peak memory by measured, the least of the grid": 0.9,
        "predicted peak memory by measured, the most of the grid": 1.4,
        "the same, a Llama of Gemma's size, steady": 5.5,
    }
    for name, value in wanted.items():
        spread = found[name]
        assert spread is not None
        assert spread.middle == pytest.approx(value), name
        if not name.startswith("predicted"):
            assert spread.least == pytest.approx(spread.most), "drift is the same for both"
    served = found[
        "8 jobs through the warm service, against 8 Trainer+PEFT processes one after another"
    ]
    assert served == figures.Spread(10.0, 10.0, 10.0)


def test_tables_say_what_the_rows_say():
    every = made_up()
    blocks = {name: write(every) for name, write in tables.BLOCKS.items()}
    assert "7.00" in blocks["goals"]
    assert "not reached" in blocks["goals"]
    assert "1,050 (700 to 1,400)" in blocks["workload"]
    assert "8 jobs, no native kernels, not exact" in blocks["workload"]
    assert "| 512 | 900 | 100 | 9.0 | 90 % |" in blocks["length"]
    assert blocks["rank"] == tables.NOTHING
    assert [mark for mark in ("under", "over") if mark in blocks["predicted"]] == ["under", "over"]
    for block in blocks.values():
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


def test_nothing_measured_is_said_and_not_guessed():
    for name, write in tables.BLOCKS.items():
        assert "ot measured" in write([]), name
    assert all(figure.reached([]) is None for figure in figures.FIGURES)
    assert not any(points for lines in plot.lines([]).values() for points in lines.values())


def test_the_page_has_a_place_for_every_block_and_keeps_the_rest():
    page = report.PAGE.read_text(encoding="utf-8")
    blocks = {name: f"block {name}" for name in report.blocks_of(ROOT / "nowhere")}
    made = report.filled(page, blocks)
    assert all(text in made for text in blocks.values())
    assert report.filled(made, blocks) == made
    assert made.startswith("# Performance")
    with pytest.raises(ValueError, match="has no"):
        report.filled("# nothing", blocks)


def test_rows_are_on_disk_after_each_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_told", {"machine": {"cpu": "made up"}, "base": "nowhere"})
    kept = rows.Rows(tmp_path / "rows.json", "a command")
    for number in range(2):
        kept.add({"number": number})
        held = json.loads((tmp_path / "rows.json").read_text())
        assert held["rows"] == [{"number": n} for n in range(number + 1)]
        assert held["machine"] == {"cpu": "made up"}
    assert rows.read(tmp_path / "none.json") == {"rows": []}
    assert rows.machine()["cores"] == len(os.sched_getaffinity(0))


def test_rates_leave_the_first_two_steps_out():
    found = measure.rates([(100, 10.0), (100, 10.0), (100, 1.0), (100, 1.0)])
    assert found["tokens_per_second"] == pytest.approx(400 / 22)
    assert found["steady_tokens_per_second"] == pytest.approx(100)
    assert measure.rates([(1, 1.0)])["steady_tokens_per_second"] is None


def test_a_measurement_that_fails_says_why(tmp_path):
    with pytest.raises(measure.FailedError, match="KeyError"):
        measure.fresh("bench.floor", {}, logs=tmp_path)


def test_the_high_water_mark_survives_a_reset():
    before = measure.high_water()
    measure.keep_mark(lambda: None)()
    assert measure.high_water() >= before


def test_the_check_for_gpus_finds_no_difference_on_a_cpu():
    assert cuda.worst("llama", torch.float32, "cpu", schedules=1) == 0.0


def test_four_bits_are_compared_with_bitsandbytes_in_the_same_round():
    found = []
    for number, drift in enumerate((1, 2)):
        common = {"round": number, "part": "quantized", "jobs": 1, "base_bytes": 387_000_000}
        four = {**common, "bits": "nf4"}
        found += [
            {"what": "ours", **four, "peak_bytes": GIB * drift},
            {"what": "set_adapter", **four, "four_bits": True, "peak_bytes": 2 * GIB * drift},
            {"what": "set_adapter", **four, "saved": True, "peak_bytes": 4 * GIB * drift},
        ]
    lines = tables.quantized(found).splitlines()[2:]
    ratios = {line.split(" | ")[0].strip("| "): line.split(" | ")[2] for line in lines}
    assert ratios == {
        "PEFT on bitsandbytes, quantised as it loads": "1.00",
        "PEFT on bitsandbytes, saved quantised": "2.00",
        "1 job, NF4": "0.50",
    }
    assert tables.quantized(made_up()) == tables.NOTHING
