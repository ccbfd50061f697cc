"""Files: found by their tenant, paged in order, deleted once nobody needs them."""

import pytest

from manylora.errors import NotFoundError, StateError
from manylora.ledger import files
from manylora.ledger.tables import Job


def add(ledger, name="f", sha256="cd" * 32, purpose="fine-tune"):
    with ledger.transaction() as tx:
        return files.add(
            tx, ledger.tenant.id, filename=name, purpose=purpose, size=4, sha256=sha256
        )


def delete(ledger, file):
    with ledger.transaction() as tx:
        return files.delete(tx, ledger.tenant.id, file.id)[1]


def test_pages_go_both_ways_and_by_purpose(ledger):
    made = [ledger.file, *(add(ledger, f"f{n}") for n in range(3))]
    other = add(ledger, purpose="fine-tune-results")
    with ledger.transaction() as tx:

        def page(**options):
            rows, more = files.page(tx, ledger.tenant.id, **{"after": None, "limit": 9, **options})
            return [f.id for f in rows], more

        ids = [f.id for f in made]
        assert page(purpose="fine-tune") == (ids[::-1], False)
        assert page(purpose="fine-tune", ascending=True, limit=2) == (ids[:2], True)
        assert page(purpose="fine-tune", ascending=True, after=ids[1]) == (ids[2:], False)
        assert page(limit=1) == ([other.id], True)


def test_a_deleted_file_is_gone(ledger):
    file = add(ledger)
    assert delete(ledger, file) is True
    with ledger.transaction() as tx:
        with pytest.raises(NotFoundError):
            files.get(tx, ledger.tenant.id, file.id)
        assert file.id not in {
            f.id for f in files.page(tx, ledger.tenant.id, after=None, limit=9)[0]
        }
    with pytest.raises(NotFoundError):
        delete(ledger, file)


def test_bytes_two_files_share_go_with_the_last_of_them(ledger):
    first, second = add(ledger, sha256="ef" * 32), add(ledger, sha256="ef" * 32)
    assert delete(ledger, first) is False
    assert delete(ledger, second) is True


@pytest.mark.parametrize("role", ["training_file", "validation_file"])
def test_a_file_an_open_job_needs_stays(ledger, role):
    file = add(ledger)
    job_id = ledger.job(**{role: file.id})
    with pytest.raises(StateError, match=job_id):
        delete(ledger, file)
    with ledger.transaction() as tx:
        tx.get(Job, job_id).state = "failed"
    assert delete(ledger, file) is True
