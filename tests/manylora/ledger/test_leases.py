"""Leases: who may write what, and when. Time passes by leases that are born expired."""

import threading
import time

import pytest

from manylora.errors import LostError, StateError
from manylora.ledger import adapters, checkpoints, events, jobs, leases, workers
from manylora.ledger.tables import Attempt


def renew(tx, job_id, attempt, **changes):
    given = dict(ttl_seconds=60, step=3, device_seconds=1.5, points=[(3, {"train_loss": 1.0})])
    leases.renew(tx, job_id, attempt, **{**given, **changes})


WRITES = {
    "claim": lambda ledger, tx, job, n: leases.claim(
        tx, job, n, worker_id="zombie", ttl_seconds=60
    ),
    "renew": lambda ledger, tx, job, n: renew(
        tx, job, n, total_steps=9, notes=[("Step 3/9", {"step": 3})]
    ),
    "checkpoint": lambda ledger, tx, job, n: ledger.checkpoint(tx, job, n),
    "publish": lambda ledger, tx, job, n: leases.publish(
        tx, job, n, worker_id="zombie", tokens=1, adapter=ledger.adapter(job, n)
    ),
    "fail": lambda ledger, tx, job, n: leases.fail(
        tx, job, n, worker_id="zombie", code="c", message="m"
    ),
    "release": lambda ledger, tx, job, n: leases.release(
        tx, job, n, actor="zombie", reason="r", counts=False
    ),
    "release that counts": lambda ledger, tx, job, n: leases.release(
        tx, job, n, actor="zombie", reason="r", counts=True
    ),
    "release for the last time": lambda ledger, tx, job, n: leases.release(
        tx, job, n, actor="zombie", reason="r", counts=True, most_failures=1
    ),
}


def second_attempt(ledger, until):
    """A job whose first attempt was lost, taken as far as `until`."""
    job_id = ledger.running(ttl=-1)
    assert ledger.rescue() == [job_id]
    if until == "queued again":
        return job_id
    assert ledger.dispatch(job_id) == 2
    if until == "dispatched":
        return job_id
    with ledger.transaction() as tx:
        leases.claim(tx, job_id, 2, worker_id="w2", ttl_seconds=60)
    if until == "succeeded":
        ledger.publish(job_id, 2)
    elif until == "failed":
        with ledger.transaction() as tx:
            leases.fail(tx, job_id, 2, worker_id="w2", code="c", message="m")
    elif until == "cancelled":
        with ledger.transaction() as tx:
            jobs.cancel(tx, ledger.tenant.id, job_id)
    return job_id


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "until", ["queued again", "dispatched", "running", "succeeded", "failed", "cancelled"]
)
def test_a_zombie_of_a_lost_attempt_writes_nothing(ledger, write, until):
    job_id = second_attempt(ledger, until)
    before = ledger.books(job_id)
    with pytest.raises(LostError), ledger.transaction() as tx:
        WRITES[write](ledger, tx, job_id, 1)
    assert ledger.books(job_id) == before


@pytest.mark.parametrize("write", WRITES)
def test_the_owner_may_write_just_that(ledger, write):
    """The other side of the guard: what the zombie may not, the running attempt may."""
    job_id = second_attempt(ledger, "dispatched" if write == "claim" else "running")
    before = ledger.books(job_id)
    with ledger.transaction() as tx:
        WRITES[write](ledger, tx, job_id, 2)
    assert ledger.books(job_id) != before


def test_closing_a_lost_attempt_again_leaves_the_next_one_open(ledger):
    job_id = second_attempt(ledger, "running")
    with ledger.transaction() as tx:
        leases.close(tx, job_id, 1, "left")
    assert ledger.attempts(job_id) == {1: "lost", 2: None}


def test_of_eight_claims_at_once_one_wins(ledger):
    job_id = ledger.job()
    attempt = ledger.dispatch(job_id)
    outcomes, barrier = [], threading.Barrier(8)

    def claim(worker):
        barrier.wait(20)
        try:
            with ledger.transaction() as tx:
                leases.claim(tx, job_id, attempt, worker_id=worker, ttl_seconds=60)
            outcomes.append(worker)
        except LostError:
            outcomes.append(None)

    threads = [threading.Thread(target=claim, args=(f"w{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    winners = [w for w in outcomes if w]
    assert (len(outcomes), len(winners)) == (8, 1)
    with ledger.transaction() as tx:
        assert tx.get(Attempt, (job_id, attempt)).worker_id == winners[0]


@pytest.mark.parametrize("wrong", [0, 2, 99])
def test_a_forged_wakeup_claims_nothing(ledger, wrong):
    job_id = ledger.job()
    ledger.dispatch(job_id)
    with ledger.transaction() as tx, pytest.raises(LostError):
        leases.claim(tx, job_id, wrong, worker_id="w", ttl_seconds=60)
    assert ledger.get(job_id).state == "dispatched"


def test_a_dispatch_carries_its_new_attempt_everywhere(ledger):
    job_id = ledger.job(attempt=1)
    assert ledger.dispatch(job_id) == 2
    assert ledger.get(job_id).attempt == 2
    assert ledger.events(job_id)[-1][:3] == ("queued", "dispatched", 2)
    assert ledger.attempts(job_id) == {1: None, 2: None}
    with ledger.transaction() as tx, pytest.raises(LostError):
        leases.dispatch(tx, job_id, queue="q", deadline_seconds=60)
    assert ledger.get(job_id).attempt == 2


def test_renewing_extends_the_lease_and_reports(ledger):
    job_id = ledger.running(ttl=1)
    with ledger.transaction() as tx:
        first = tx.get(Attempt, (job_id, 1)).lease_expires_at
    with ledger.transaction() as tx:
        renew(tx, job_id, 1, total_steps=9, notes=[("Step 3/9: told", {"step": 3})])
    with ledger.transaction() as tx:
        attempt = tx.get(Attempt, (job_id, 1))
        assert attempt.lease_expires_at > first
        assert (attempt.last_step, attempt.device_seconds) == (3, 1.5)
        assert [(m.step, m.data) for m in events.metrics(tx, job_id)] == [(3, {"train_loss": 1.0})]
    assert (ledger.get(job_id).step, ledger.get(job_id).total_steps) == (3, 9)
    assert ledger.events(job_id)[-1] == (None, None, 1, "Step 3/9: told")


def test_a_renewal_that_knows_no_total_keeps_it(ledger):
    job_id = ledger.running(total_steps=7)
    with ledger.transaction() as tx:
        renew(tx, job_id, 1)
    assert ledger.get(job_id).total_steps == 7


def test_a_wakeup_nobody_took_in_time_is_queued_again(ledger):
    late, fresh = ledger.job(), ledger.job()
    ledger.dispatch(late, deadline=-1)
    ledger.dispatch(fresh, deadline=60)
    queued_at = ledger.get(late).queued_at
    assert ledger.rescue() == [late]
    now = ledger.get(late)
    assert (now.state, now.attempt, now.failures, now.queued_at) == ("queued", 1, 0, queued_at)
    assert ledger.attempts(late) == {1: "unclaimed"}
    assert ledger.get(fresh).state == "dispatched"
    assert ledger.rescue() == []
    with ledger.transaction() as tx, pytest.raises(LostError):  # the late hint arrives after all
        leases.claim(tx, late, 1, worker_id="w", ttl_seconds=60)
    assert ledger.dispatch(late) == 2


def test_a_live_lease_is_never_taken(ledger):
    job_id = ledger.running(ttl=60)
    before = ledger.books(job_id)
    assert ledger.rescue() == []
    assert ledger.books(job_id) == before


def test_a_lease_renewed_after_its_end_but_before_the_rescue_is_kept(ledger):
    job_id = ledger.running(ttl=-1)
    with ledger.transaction() as tx:
        renew(tx, job_id, 1)
    assert ledger.rescue() == []


def test_a_rescue_passes_over_a_lease_that_is_being_renewed(ledger):
    job_id = ledger.running(ttl=-1)
    with ledger.transaction() as tx:
        renew(tx, job_id, 1)  # not committed yet: its rows are locked
        assert ledger.rescue() == []
    assert ledger.rescue() == []
    assert ledger.get(job_id).state == "running"


def test_a_job_whose_workers_die_is_given_up_after_three(ledger):
    job_id = ledger.job()
    for number in (1, 2):
        ledger.start(job_id, ttl=-1)
        assert ledger.rescue() == [job_id]
        assert (ledger.get(job_id).state, ledger.get(job_id).failures) == ("queued", number)
    ledger.start(job_id, ttl=-1)
    assert ledger.rescue() == []
    now = ledger.get(job_id)
    assert (now.state, now.failures, now.error_code) == ("failed", 3, "attempts_exhausted")
    assert ledger.attempts(job_id) == {1: "lost", 2: "lost", 3: "lost"}


def test_a_drained_job_goes_back_without_a_failure_and_keeps_its_place(ledger):
    job_id = ledger.running()
    queued_at = ledger.get(job_id).queued_at
    with ledger.transaction() as tx:
        leases.release(tx, job_id, 1, actor="w1", reason="shutting down", counts=False)
    now = ledger.get(job_id)
    assert (now.state, now.failures, now.queued_at) == ("queued", 0, queued_at)
    assert ledger.attempts(job_id) == {1: "released"}


def test_publishing_is_all_or_nothing_and_happens_once(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        renew(tx, job_id, 1, device_seconds=2.5)
    ledger.publish(job_id)
    now = ledger.get(job_id)
    assert (now.state, now.trained_tokens, now.device_seconds) == ("succeeded", 9, 2.5)
    assert ledger.attempts(job_id) == {1: "succeeded"}
    with ledger.transaction() as tx:
        assert adapters.of_job(tx, job_id).attempt == 1
    before = ledger.books(job_id)
    with pytest.raises(LostError):
        ledger.publish(job_id)
    assert ledger.books(job_id) == before


def test_a_publish_that_breaks_leaves_nothing(ledger):
    job_id = ledger.running()
    before = ledger.books(job_id)

    def broken():
        with ledger.transaction() as tx:
            leases.publish(tx, job_id, 1, worker_id="w1", tokens=9, adapter=ledger.adapter(job_id))
            tx.flush()
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError):
        broken()
    assert ledger.books(job_id) == before


def test_a_cancelled_job_is_the_workers_no_more(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        assert jobs.cancel(tx, ledger.tenant.id, job_id).state == "cancelled"
    with ledger.transaction() as tx, pytest.raises(LostError) as lost:
        renew(tx, job_id, 1)
    assert lost.value.details == {"state": "cancelled", "attempt": 1}
    for name in WRITES:
        with pytest.raises(LostError), ledger.transaction() as tx:
            WRITES[name](ledger, tx, job_id, 1)
    with ledger.transaction() as tx, pytest.raises(StateError) as again:
        jobs.cancel(tx, ledger.tenant.id, job_id)
    assert again.value.http_status == 400
    # Its slot counts as taken until the worker has left it.
    with ledger.transaction() as tx:
        assert workers.busy(tx)["q"] == 1
        leases.close(tx, job_id, 1, "left")
        assert "q" not in workers.busy(tx)


def in_thread(work):
    """(thread, what it raised) of a call that runs beside this one."""
    raised = []

    def guarded():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread, raised


def until_someone_waits(ledger):
    deadline = time.monotonic() + 20
    while ledger.waiters() == 0:
        assert time.monotonic() < deadline


def test_a_cancel_and_a_publish_at_once_the_first_wins(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        jobs.cancel(tx, ledger.tenant.id, job_id)
        publisher, raised = in_thread(lambda: ledger.publish(job_id))
        until_someone_waits(ledger)
    publisher.join(20)
    assert [type(e) for e in raised] == [LostError]
    assert ledger.get(job_id).state == "cancelled"

    other = ledger.running()

    def cancel():
        with ledger.transaction() as tx:
            jobs.cancel(tx, ledger.tenant.id, other)

    with ledger.transaction() as tx:
        leases.publish(tx, other, 1, worker_id="w1", tokens=9, adapter=ledger.adapter(other))
        tx.flush()
        canceller, raised = in_thread(cancel)
        until_someone_waits(ledger)
    canceller.join(20)
    assert [(type(e), e.error_code) for e in raised] == [(StateError, "invalid_job_state")]
    assert ledger.get(other).state == "succeeded"


def test_a_rescue_closes_the_books_of_attempts_nobody_works_on(ledger):
    before_claim = ledger.job()
    ledger.dispatch(before_claim)
    dead, alive = ledger.running(ttl=-1), ledger.running(ttl=60)
    with ledger.transaction() as tx:
        for job_id in (before_claim, dead, alive):
            jobs.cancel(tx, ledger.tenant.id, job_id)
    assert ledger.rescue() == []
    assert ledger.attempts(before_claim) == {1: "left"}
    assert ledger.attempts(dead) == {1: "left"}
    assert ledger.attempts(alive) == {1: None}  # its worker is about to leave by itself


def test_a_checkpoint_recorded_again_is_the_newer_one(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        ledger.checkpoint(tx, job_id, 1, step=4)
        ledger.checkpoint(tx, job_id, 1, step=8)
    with ledger.transaction() as tx:
        ledger.checkpoint(tx, job_id, 1, step=8, sha256="cd" * 32)
    with ledger.transaction() as tx:
        rows = checkpoints.of_job(tx, job_id)
        assert [(c.step, c.manifest_sha256) for c in rows] == [(8, "cd" * 32), (4, "ab" * 32)]


def test_checkpoints_of_all_attempts_count_newest_step_first(ledger):
    job_id = ledger.running(ttl=-1)
    with ledger.transaction() as tx:
        ledger.checkpoint(tx, job_id, 1, step=8)
    ledger.rescue()
    ledger.start(job_id)
    with ledger.transaction() as tx:
        ledger.checkpoint(tx, job_id, 2, step=4)
        ledger.checkpoint(tx, job_id, 2, step=8)
    with ledger.transaction() as tx:
        rows = checkpoints.of_job(tx, job_id)
        assert [(c.step, c.attempt) for c in rows] == [(8, 2), (8, 1), (4, 2)]
