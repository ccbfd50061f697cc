"""The planner's promises, for any snapshot hypothesis can think of."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.planner import plan
from scheduler.views import Running, Snapshot, Waiting, WorkerView

BASES = ("alpha", "beta", "gamma")
waiting = st.builds(
    lambda i, base, priority, at: Waiting(f"job{i}", base, f"fp-{base}", priority, at),
    st.integers(0, 10**6),
    st.sampled_from(BASES),
    st.integers(-3, 3),
    st.floats(0, 100),
)
worker = st.builds(
    lambda i, slots, base, ready, pinned: WorkerView(
        f"w{i}", slots, pinned, base, f"fp-{base}" if ready and base else None,
        f"q-{base}" if ready and base else None, ready and base is not None,
    ),
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from((*BASES, None)),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
snapshots = st.builds(
    lambda jobs, workers, busy: Snapshot(tuple(jobs), tuple(workers), busy, BASES),
    st.lists(waiting, max_size=20, unique_by=lambda j: j.job_id),
    st.lists(worker, max_size=5, unique_by=lambda w: w.worker_id),
    st.dictionaries(st.sampled_from([f"q-{b}" for b in BASES]), st.integers(0, 5)),
)


@given(snapshots)
def test_never_more_out_than_slots_and_never_a_free_slot_while_a_job_waits(snapshot):
    result = plan(snapshot)
    sent = dict(result.dispatches)
    assert set(sent) | set(result.reasons) == {j.job_id for j in snapshot.waiting}
    assert not set(sent) & set(result.reasons)
    for base in BASES:
        slots = sum(w.slots for w in snapshot.workers if w.queue == f"q-{base}")
        free = max(0, slots - snapshot.busy.get(f"q-{base}", 0))
        wanted = [j for j in snapshot.waiting if j.base == base]
        assert sum(q == f"q-{base}" for q in sent.values()) == min(free, len(wanted))


@given(snapshots, st.randoms())
def test_the_order_of_rows_decides_nothing(snapshot, draw: random.Random):
    rows = list(snapshot.waiting)
    draw.shuffle(rows)
    again = plan(Snapshot(tuple(rows), snapshot.workers, snapshot.busy, BASES))
    assert again.dispatches == plan(snapshot).dispatches


@given(snapshots)
def test_priority_then_age(snapshot):
    sent = {job for job, _ in plan(snapshot).dispatches}
    for held in snapshot.waiting:
        for gone in snapshot.waiting:
            if gone.base == held.base and gone.job_id in sent and held.job_id not in sent:
                assert (-gone.priority, gone.queued_at) <= (-held.priority, held.queued_at)


def view(name, base=None, queue=None, pinned=False):
    return WorkerView(name, 2, pinned, base, base and f"fp-{base}", queue, queue is not None)


def test_an_empty_worker_gets_the_base_most_jobs_wait_for():
    jobs = tuple(
        Waiting(f"j{i}", base, f"fp-{base}", 0, i)
        for i, base in enumerate(("beta", "alpha", "beta"))
    )
    result = plan(Snapshot(jobs, (view("w"),), {}, BASES))
    assert result.assignments == [("w", "beta")]
    assert result.reasons["j1"] == "no worker serves alpha"


def test_an_idle_worker_is_given_another_base_but_never_a_busy_or_a_pinned_one():
    jobs = (Waiting("j", "beta", "fp-beta", 0, 1.0),)
    idle = view("w", "alpha", "q-alpha")
    assert plan(Snapshot(jobs, (idle,), {}, BASES)).assignments == [("w", "beta")]
    assert plan(Snapshot(jobs, (idle,), {"q-alpha": 1}, BASES)).assignments == []
    pinned = view("w", "alpha", "q-alpha", pinned=True)
    assert plan(Snapshot(jobs, (pinned,), {}, BASES)).assignments == []


def running(name, priority, started=0.0, wish=None, preemptions=0, queue="q-alpha", on="w"):
    return Running(name, 1, queue, priority, started, wish, preemptions, on)


def crowded(waiting_, running_, **more):
    """A pool of two slots, both taken."""
    workers = (view("w", "alpha", "q-alpha"),)
    given = {"most_preemptions": 3, **more}
    return plan(Snapshot(waiting_, workers, {"q-alpha": 2}, BASES, running=running_, **given))


def urgent(name="u", priority=5):
    return Waiting(name, "alpha", "fp-alpha", priority, 1.0)


def test_the_lowest_and_of_equals_the_latest_makes_room():
    low, late = running("low", 0, 1.0), running("late", 0, 2.0)
    result = crowded((urgent(),), (low, late))
    assert result.preemptions == [("late", 1)]
    assert result.dispatches == []
    assert result.reasons["u"] == "a job of lower priority is making room"
    result = crowded((urgent(),), (running("lower", -1, 0.0), late))
    assert result.preemptions == [("lower", 1)]
    result = crowded((urgent("u"), urgent("v")), (low, late))
    assert sorted(result.preemptions) == [("late", 1), ("low", 1)]


def test_nobody_makes_room_for_an_equal_or_twice_or_for_ever_or_in_another_pool():
    assert crowded((urgent(priority=0),), (running("a", 0), running("b", 0))).preemptions == []
    leaving = (running("a", 0, wish="preempt"), running("b", 9))
    result = crowded((urgent(),), leaving)
    assert result.preemptions == []
    assert result.reasons["u"] == "a slot of alpha is about to be free"
    spent = (running("a", 0, preemptions=3), running("b", 9))
    assert crowded((urgent(),), spent).preemptions == []
    assert crowded((urgent(),), (running("a", 0, queue="q-beta"),)).preemptions == []


def test_jobs_on_a_worker_that_drains_or_is_silent_take_nobodys_slot_and_make_no_room():
    gone = (running("a", 0, on="gone"), running("b", 0, on="gone"))
    assert crowded((urgent(),), gone).dispatches == [("u", "q-alpha")]
    stays = running("c", 0, 0.0)
    workers = (view("w", "alpha", "q-alpha"),)
    three = Snapshot(
        (urgent("u"), urgent("v"), urgent("x")), workers, {"q-alpha": 3}, BASES,
        running=(*gone, stays), most_preemptions=3,
    )  # fmt: skip
    result = plan(three)
    assert result.dispatches == [("u", "q-alpha")]
    assert result.preemptions == [("c", 1)]
    assert result.reasons["x"].startswith("all 2 slots of alpha are taken")


def test_nothing_is_taken_from_anybody_before_contact_is_settled():
    assert crowded((urgent(),), (running("a", 0),), settled=False).preemptions == []
    jobs = (Waiting("j", "beta", "fp-beta", 0, 1.0),)
    idle, empty = view("w", "alpha", "q-alpha"), view("e")
    given = Snapshot(jobs, (idle, empty), {}, BASES, settled=False)
    assert plan(given).assignments == [("e", "beta")]
    only = Snapshot(jobs, (idle,), {}, BASES, settled=False)
    assert plan(only).assignments == []


@given(snapshots, st.lists(st.integers(-3, 3), max_size=6))
def test_who_makes_room_is_of_lower_priority_than_who_waits(snapshot, priorities):
    ready = [w.worker_id for w in snapshot.workers if w.queue == "q-alpha"] or ["none"]
    rows = tuple(running(f"r{i}", p, float(i), on=ready[0]) for i, p in enumerate(priorities))
    given_ = Snapshot(
        snapshot.waiting, snapshot.workers, snapshot.busy, BASES, running=rows, most_preemptions=1
    )
    result = plan(given_)
    asked = [int(name[1:]) for name, _ in result.preemptions]
    assert len(set(asked)) == len(asked)
    waiting_ = sorted(
        (j.priority for j in snapshot.waiting if j.base == "alpha"
         and j.job_id not in dict(result.dispatches)), reverse=True,
    )  # fmt: skip
    for wants, index in zip(waiting_, asked, strict=False):
        assert priorities[index] < wants
