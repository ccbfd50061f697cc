"""Events and metric points: appended, paged, never changed."""

import pytest
from sqlalchemy import text

from manylora.ledger import events


def test_pages_are_newest_first_and_follow_each_other(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        everything, more = events.page(tx, ledger.tenant.id, job_id, after=None, limit=9)
        assert [e.to_state for e in everything] == ["running", "dispatched", "validating_files"]
        assert not more
        first, more = events.page(tx, ledger.tenant.id, job_id, after=None, limit=2)
        assert (first, more) == (everything[:2], True)
        rest, more = events.page(tx, ledger.tenant.id, job_id, after=first[-1].id, limit=2)
        assert (rest, more) == (everything[2:], False)
        assert events.page(tx, ledger.tenant.id, job_id, after="ftevent-none", limit=2)[0] == []


def test_an_event_of_another_job_is_no_place_to_go_on_from(ledger):
    mine, other = ledger.job(), ledger.job()
    with ledger.transaction() as tx:
        mark = events.page(tx, ledger.tenant.id, other, after=None, limit=1)[0][0].id
        assert events.page(tx, ledger.tenant.id, mine, after=mark, limit=9)[0] == []


@pytest.mark.parametrize("change", ["UPDATE events SET message = 'x'", "DELETE FROM events"])
def test_the_app_cannot_rewrite_history(ledger, change):
    job_id = ledger.job()
    with pytest.raises(Exception, match="permission denied"), ledger.transaction() as tx:
        tx.execute(text(change))
    assert len(ledger.events(job_id)) == 1


def test_a_step_trained_again_overwrites_its_point(ledger):
    job_id = ledger.running()
    with ledger.transaction() as tx:
        events.add_metrics(tx, job_id, 1, [(2, {"train_loss": 1.0}), (1, {"train_loss": 2.0})])
        events.add_metrics(tx, job_id, 1, [])
    with ledger.transaction() as tx:
        events.add_metrics(tx, job_id, 2, [(2, {"train_loss": 0.5})])
    with ledger.transaction() as tx:
        points = [(m.step, m.attempt, m.data["train_loss"]) for m in events.metrics(tx, job_id)]
        assert points == [(1, 1, 2.0), (2, 2, 0.5)]
        assert [m.step for m in events.metrics(tx, job_id, after_step=1)] == [2]
        assert [m.step for m in events.metrics(tx, job_id, limit=1)] == [1]


def test_the_curve_of_an_ended_job_is_thinned_but_for_evaluations_and_its_end(ledger):
    job_id = ledger.running()
    points = [(step, {"train_loss": 1.0}) for step in range(1, 501)]
    points[122] = 123, {"valid_loss": 0.5}
    with ledger.transaction() as tx:
        events.add_metrics(tx, job_id, 1, points)
        events.thin(tx, job_id, 500)
        assert len(events.metrics(tx, job_id)) == 500
        events.thin(tx, job_id, 100)
        steps = [row.step for row in events.metrics(tx, job_id)]
    assert steps == sorted({*range(5, 501, 5), 123})
