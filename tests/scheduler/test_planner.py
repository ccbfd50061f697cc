"""The planner's promises, for any snapshot hypothesis can think of."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.planner import Snapshot, Waiting, WorkerView, plan

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
