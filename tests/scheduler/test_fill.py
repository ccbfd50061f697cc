"""The loop that gives slots away, against its promises and against a slow, obvious one."""

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scheduler.fairness import charged, rank, turn
from scheduler.fill import Account, fill, lines_of
from scheduler.views import HALF_LIFE, LONG, Tenant, Waiting

NOW = 1e6
TENANTS = ("a", "b", "c", "d")
QUEUES = {"p": ("p1",), "q": ("q1", "q2")}
jobs = st.lists(
    st.builds(
        lambda i, base, priority, at, tenant, cost: Waiting(
            f"job{i}", base, base, priority, NOW - at, tenant, cost
        ),
        st.integers(0, 10**6),
        st.sampled_from(("p", "q", "none")),
        st.integers(-3, 3),
        st.floats(0, 5000),
        st.sampled_from(TENANTS),
        st.sampled_from((1.0, 60.0, 900.0)),
    ),
    max_size=25,
    unique_by=lambda j: j.job_id,
)
tenants = st.fixed_dictionaries(
    {
        name: st.builds(
            Tenant,
            weight=st.sampled_from((0.5, 1.0, 3.0)),
            used=st.sampled_from((0.0, 10.0, 500.0, 90_000.0)),
            used_at=st.sampled_from((0.0, NOW - 3600, NOW)),
            active=st.integers(0, 3),
            max_running=st.sampled_from((None, None, 1, 3)),
            left_today=st.sampled_from((None, None, 0.0, 100.0)),
        )
        for name in TENANTS
    }
)
frees = st.fixed_dictionaries({q: st.integers(0, 6) for q in ("p1", "q1", "q2")})


def run(waiting, who, free, **more):
    accounts = {name: Account.of(tenant) for name, tenant in who.items()}
    left = dict(free)
    result = fill(lines_of(waiting), accounts, left, QUEUES, now=NOW, half_life=HALF_LIFE, **more)
    return result, accounts, left


def gone(result):
    return {job.job_id for job, _ in result.dispatches}


def slowly(waiting, who, free):
    """Again and again: of all jobs that may go, the first of the tenant whose turn is lowest."""
    accounts = {name: Account.of(tenant) for name, tenant in who.items()}
    left, rest, order = dict(free), list(waiting), []
    since = {}
    for job in waiting:
        place = job.tenant, job.fingerprint
        since[place] = min(job.queued_at, since.get(place, job.queued_at))
    while True:
        able = [
            job for job in rest
            if accounts[job.tenant].stopped() is None
            and any(left[q] for q in QUEUES.get(job.fingerprint, ()))
        ]  # fmt: skip
        if not able:
            return order
        first = min(
            able,
            key=lambda j: (
                turn(accounts[j.tenant].used, accounts[j.tenant].used_at,
                     since[j.tenant, j.fingerprint], accounts[j.tenant].weight, HALF_LIFE),
                j.tenant, j.fingerprint, rank(j.queued_at, j.priority), j.job_id,
            ),
        )  # fmt: skip
        queue = max(QUEUES[first.fingerprint], key=lambda q: left[q])
        left[queue] -= 1
        account = accounts[first.tenant]
        account.used = charged(account.used, account.used_at, NOW, first.cost, HALF_LIFE)
        account.used_at, account.active = NOW, account.active + 1
        if account.left_today is not None:
            account.left_today -= first.cost
        rest.remove(first)
        order.append((first.job_id, queue))


@given(jobs, tenants, frees)
def test_it_does_what_the_obvious_loop_does(waiting, who, free):
    result, _, _ = run(waiting, who, free)
    assert [(job.job_id, queue) for job, queue in result.dispatches] == slowly(waiting, who, free)


@given(jobs, tenants, frees)
def test_never_over_capacity_and_never_over_quota(waiting, who, free):
    result, accounts, left = run(waiting, who, free)
    sent = Counter(queue for _, queue in result.dispatches)
    assert all(sent[queue] + left[queue] == free[queue] and left[queue] >= 0 for queue in free)
    for name, tenant in who.items():
        went = sum(job.tenant == name for job, _ in result.dispatches)
        if went and tenant.max_running is not None:
            assert tenant.active + went <= tenant.max_running
        if tenant.left_today == 0.0:
            assert went == 0
        assert accounts[name].active == tenant.active + went


@given(jobs, tenants, frees)
def test_work_conserving(waiting, who, free):
    """A slot stays free only if everybody who waits for it may have no more, and is told so."""
    result, _, left = run(waiting, who, free)
    for job in waiting:
        room = any(left[queue] for queue in QUEUES.get(job.fingerprint, ()))
        if room and job.job_id not in gone(result):
            assert job.tenant in result.stops


@given(jobs, tenants, frees, st.randoms())
def test_the_order_of_rows_decides_nothing(waiting, who, free, draw: random.Random):
    again = list(waiting)
    draw.shuffle(again)
    first, second = run(waiting, who, free)[0], run(again, who, free)[0]
    assert first.dispatches == second.dispatches
    assert first.stops == second.stops


@given(jobs, tenants, frees, st.integers(0, 24), st.integers(1, 5))
def test_a_higher_priority_never_makes_a_job_wait(waiting, who, free, index, more):
    if index >= len(waiting):
        return
    job = waiting[index]
    raised = [replace(j, priority=j.priority + more) if j is job else j for j in waiting]
    if job.job_id in gone(run(waiting, who, free)[0]):
        assert job.job_id in gone(run(raised, who, free)[0])


@given(jobs, tenants, st.integers(0, 6))
def test_as_many_lines_as_free_slots_are_enough(waiting, who, free):
    """What lets a round read the head of the queue only: of one base, without stopped tenants."""
    who = {name: replace(t, max_running=None, left_today=None) for name, t in who.items()}
    of_base = [job for job in waiting if job.base == "p"]
    accounts = {name: Account.of(tenant) for name, tenant in who.items()}
    lines = sorted(
        lines_of(of_base),
        key=lambda line: (
            turn(accounts[line.tenant].used, accounts[line.tenant].used_at, line.since,
                 accounts[line.tenant].weight, HALF_LIFE),
            line.tenant,
        ),
    )  # fmt: skip
    heads = [job for line in lines[:free] for job in line.jobs[:free]]
    every = run(of_base, who, {"p1": free, "q1": 0, "q2": 0})[0]
    since = {(line.tenant, line.fingerprint): line.since for line in lines}
    some = fill(
        lines_of(heads, since), accounts, {"p1": free}, QUEUES, now=NOW, half_life=HALF_LIFE
    )
    assert every.dispatches == some.dispatches


def long(name, tenant, at):
    return Waiting(name, "p", "p", 0, at, tenant, LONG)


def test_long_jobs_leave_a_quarter_of_the_slots_to_short_ones_that_wait():
    who = {"a": Tenant(), "b": Tenant()}
    waiting = [long(f"long{i}", "a", i) for i in range(6)]
    waiting += [Waiting(f"short{i}", "p", "p", 0, 100.0 + i, "b", 1.0) for i in range(6)]
    free = {"p1": 4, "q1": 0, "q2": 0}
    bounded, _, _ = run(waiting, who, free, slots={"p1": 4}, long_busy={"p1": 2})
    assert sum(job.cost >= LONG for job, _ in bounded.dispatches) == 1
    assert len(bounded.dispatches) == 4
    # Nobody else wants them: they are not left empty.
    alone, _, _ = run(waiting[:6], who, free, slots={"p1": 4}, long_busy={"p1": 2})
    assert len(alone.dispatches) == 4


def test_a_flood_takes_what_the_others_leave_and_no_more():
    who = {"a": Tenant(), "b": Tenant(), "c": Tenant(weight=2.0)}
    waiting = [Waiting(f"a{i:03}", "p", "p", 0, NOW - 9 + i / 100, "a") for i in range(100)]
    waiting += [Waiting(f"b{i:03}", "p", "p", 0, NOW, "b") for i in range(100)]
    waiting += [Waiting(f"c{i:03}", "p", "p", 0, NOW, "c") for i in range(3)]
    result, _, _ = run(waiting, who, {"p1": 23, "q1": 0, "q2": 0})
    went = Counter(job.tenant for job, _ in result.dispatches)
    assert went == {"a": 10, "b": 10, "c": 3}
