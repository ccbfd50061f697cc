"""Which checkpoints are kept, and who may write them."""

import pytest

from manylora.errors import LostError
from manylora.ledger import checkpoints, jobs, leases
from manylora.ledger.tables import Checkpoint


def row(step, loss=None):
    return Checkpoint(step=step, metrics={} if loss is None else {"valid_loss": loss})


@pytest.mark.parametrize(
    ("losses", "kind", "gone"),
    [
        ([None] * 5, "state", [3, 2, 1]),
        ([None] * 5, "epoch", [2, 1]),
        ([0.5, 0.4, 0.3, 0.1, 0.2], "state", [3, 1]),  # step 2 is the best
        ([0.1, 0.4, 0.3, 0.2, 0.2], "state", [3, 2, 1]),  # the best is among the last
        ([0.1], "epoch", []),
        ([], "state", []),
    ],
)
def test_the_last_few_and_the_best_are_kept(losses, kind, gone):
    """`losses` newest first."""
    rows = [row(len(losses) - n, loss) for n, loss in enumerate(losses)]
    assert [r.step for r in checkpoints.spare(rows, kind)] == gone


def test_a_state_and_an_epoch_of_one_step_are_two(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        ledger.checkpoint(tx, job_id, 1, step=5)
        job = ledger.get(job_id)
        checkpoints.add(
            tx, job, step=5, prefix="e", manifest_sha256="0" * 64, metrics={}, kind="epoch"
        )
    with ledger.transaction() as tx:
        assert [c.prefix for c in checkpoints.of_job(tx, job_id, "state")] == ["c/5"]
        assert [c.prefix for c in checkpoints.of_job(tx, job_id, "epoch")] == ["e"]
        checkpoints.drop_states(tx, job_id)
        assert checkpoints.of_job(tx, job_id, "state") == []
        assert len(checkpoints.of_job(tx, job_id, "epoch")) == 1


def test_who_lost_the_job_drops_nothing_and_says_nothing(ledger):
    job_id = ledger.running()
    job = ledger.get(job_id)
    with ledger.transaction() as tx:
        ledger.checkpoint(tx, job_id, 1, step=5)
        leases.release(tx, job_id, 1, actor="scheduler", reason="silence", counts=True)
    ledger.start(job_id)
    rows = None
    before = ledger.books(job_id)
    with ledger.transaction() as tx:
        rows = checkpoints.of_job(tx, job_id)
    with pytest.raises(LostError), ledger.transaction() as tx:
        checkpoints.drop(tx, job, rows)
    with pytest.raises(LostError), ledger.transaction() as tx:
        leases.note(tx, job, "from beyond the grave", actor="w1")
    assert ledger.books(job_id) == before


def test_a_job_put_off_is_not_sent_out_before_its_time(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        leases.release(tx, job_id, 1, actor="w1", reason="elsewhere", counts=False)
        jobs.postpone(tx, job_id, 1, 30.0)
    with pytest.raises(LostError):
        ledger.dispatch(job_id)
    with ledger.transaction() as tx:
        jobs.postpone(tx, job_id, 1, 0.0)  # no wait is no change
    assert ledger.get(job_id).not_before is not None
