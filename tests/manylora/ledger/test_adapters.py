"""Adapters are found by name, by their job's id, or by suffix, the newest first."""

import pytest

from manylora.errors import ConflictError, NotFoundError
from manylora.ledger import adapters


def test_found_by_name_by_job_and_by_the_newest_of_a_suffix(ledger):
    old, new = (ledger.running(suffix="support") for _ in range(2))
    ledger.publish(old)
    ledger.publish(new)
    with ledger.transaction() as tx:
        row = adapters.find(tx, ledger.tenant.id, "support")
        assert row.job_id == new
        assert adapters.find(tx, ledger.tenant.id, row.name).job_id == new
        assert adapters.find(tx, ledger.tenant.id, old).job_id == old
        page = adapters.page(tx, ledger.tenant.id)
        assert [(a.job_id, j.id) for a, j in page] == [(new, new), (old, old)]
        assert len(adapters.page(tx, ledger.tenant.id, limit=1)) == 1


def test_a_job_without_one_says_how_far_it_is(ledger):
    job_id = ledger.job(suffix="soon")
    with ledger.transaction() as tx:
        for ref in (job_id, "soon"):
            with pytest.raises(ConflictError, match="it is queued") as told:
                adapters.find(tx, ledger.tenant.id, ref)
            assert told.value.error_code == "no_adapter"
        with pytest.raises(NotFoundError):
            adapters.find(tx, ledger.tenant.id, "nothing")
        assert adapters.of_job(tx, job_id) is None
