"""A pool played: what it must be exactly where that can be told, and the goals under a flood."""

import math
from array import array

import pytest

from manylora.errors import UsageError
from scheduler.forecast.compare import Question, ask
from scheduler.forecast.demand import Demand, generate
from scheduler.forecast.judge import alone, classes, judge
from scheduler.forecast.play import play


def demand(*rows):
    times, tenants, seconds = zip(*rows, strict=True)
    return Demand(
        array("d", times), array("l", tenants), array("d", seconds), array("h", [0] * len(rows)),
        array("d", [math.inf] * len(rows)), ["a", "b", "c"],
    )  # fmt: skip


def test_one_slot_takes_one_after_the_other_and_the_one_that_has_had_less_first():
    asked = demand((0.5, 0, 100.0), (1.5, 0, 100.0), (2.5, 0, 100.0), (3.5, 1, 10.0))
    fair = play(asked, 1, end=400.0)
    assert list(fair.starts) == [1.0, 113.0, 214.0, 102.0]
    fifo = play(asked, 1, policy="fifo", end=400.0)
    assert list(fifo.starts) == [1.0, 102.0, 203.0, 304.0]
    assert fair.busy == pytest.approx(fifo.busy) == pytest.approx(310.0)


def test_what_has_not_started_by_the_end_never_did():
    played = play(demand((0.0, 0, 50.0), (0.0, 1, 50.0)), 1, end=20.0)
    assert sorted(played.starts) == [1.0, math.inf]
    assert played.busy == pytest.approx(19.0)


def test_a_play_is_always_the_same():
    asked = generate(2, tenants=30, jobs=800, days=0.5, mean=100.0)
    one, two = play(asked, 3), play(asked, 3)
    assert (one.starts, one.p90, one.busy, one.seen) == (two.starts, two.p90, two.busy, two.seen)


@pytest.fixture(scope="module")
def flooded():
    """The policies on one pool, 300 tenants and one that floods it."""
    asked = generate(1, tenants=300, jobs=8000, days=3.0, mean=0.8 * 32 * 3 * 86_400 / 8000,
                     flood=1500)  # fmt: skip
    found = {}
    for policy in ("fair", "fifo"):
        played = play(asked, 32, policy=policy, end=3 * 86_400.0)
        found[policy] = judge(asked, played, slots_per_device=4, price=0.1), played
    return asked, found


def test_shares_hold_under_a_flood_and_without_them_they_would_not(flooded):
    _, found = flooded
    assert found["fair"][0]["jain"] >= 0.95
    assert found["fifo"][0]["jain"] < 0.8
    small = found["fair"][0]["waits"]["small"]
    assert small["p95"] <= 2 * found["fair"][0]["small_alone_p95"]
    assert small["p95"] < found["fifo"][0]["waits"]["small"]["p95"] / 10


def test_no_slot_idles_while_a_job_waits(flooded):
    assert flooded[1]["fair"][0]["idle_while_waiting"] < 0.02


def test_nine_of_ten_start_by_their_p90(flooded):
    assert 0.85 <= flooded[1]["fair"][0]["started_by_p90"] <= 0.95


def test_no_job_starves(flooded):
    """Of a tenant other than the flood, none that came in the first two days waits at the end."""
    asked, found = flooded
    starts = found["fair"][1].starts
    late = [
        i for i, at in enumerate(asked.times)
        if at < 2 * 86_400 and math.isinf(starts[i]) and asked.tenants[i] != asked.flooding
    ]  # fmt: skip
    assert late == []


def test_never_more_at_once_than_slots(flooded):
    asked, found = flooded
    starts = found["fair"][1].starts
    moves = sorted(
        move
        for i, at in enumerate(starts) if not math.isinf(at)
        for move in ((at, 1), (at + asked.seconds[i], -1))
    )  # fmt: skip
    at_work = most = 0
    for _, change in moves:
        at_work += change
        most = max(most, at_work)
    assert most == 32


def test_alone_with_half_a_slot_is_one_slot_of_half_the_speed():
    asked = demand((0.0, 0, 10.0), (0.0, 0, 10.0), (50.0, 1, 1.0))
    kinds = classes(asked, 1, 100.0)
    assert kinds == {0: "small", 1: "small"}
    assert alone(asked, 1, kinds) == 20.0


def test_pools_and_policies_side_by_side_and_bad_questions_refused(tmp_path):
    found = ask(devices=(1, 2), policies=("fair", "fifo"), tenants=5, jobs=60, days=0.1)
    assert [(row["devices"], row["policy"]) for row in found] == [
        (1, "fair"), (1, "fifo"), (2, "fair"), (2, "fifo"),
    ]  # fmt: skip
    assert found[2]["utilisation"] < found[0]["utilisation"]
    for bad in ({"slots": 0}, {"days": -1.0}, {"policies": ("best",)}, {"devices": ()}):
        with pytest.raises(UsageError):
            Question(**bad).check()
    trace = tmp_path / "t.csv"
    trace.write_text("time,tenant,seconds\n1,a,x\n")
    with pytest.raises(UsageError, match="line 2: seconds 'x'"):
        ask(trace=trace)
