"""Every function of the ledger that takes a tenant, asked by the wrong one."""

import importlib
import inspect
import pkgutil

import pytest
from sqlalchemy import select

from manylora import ledger as package
from manylora.errors import NotFoundError
from manylora.ledger import (
    adapters,
    bases,
    checkpoints,
    events,
    explain,
    files,
    jobs,
    lines,
    webhooks,
)
from manylora.ledger.tables import Delivery


def hook(tx, job):
    """The endpoint that was told of the job's end."""
    return tx.scalar(select(Delivery.webhook_id).where(Delivery.job_id == job))


#: how a stranger might ask each of them for a thing of this tenant
ASK = {
    "jobs.get": lambda tx, who, job, file: jobs.get(tx, who, job),
    "jobs.pause": lambda tx, who, job, file: jobs.pause(tx, who, job),
    "jobs.resume": lambda tx, who, job, file: jobs.resume(tx, who, job),
    "jobs.cancel": lambda tx, who, job, file: jobs.cancel(tx, who, job),
    "jobs.page": lambda tx, who, job, file: jobs.page(tx, who, after=job, limit=9),
    "files.get": lambda tx, who, job, file: files.get(tx, who, file),
    "files.delete": lambda tx, who, job, file: files.delete(tx, who, file),
    "files.page": lambda tx, who, job, file: files.page(tx, who, after=file, limit=9),
    "adapters.find": lambda tx, who, job, file: adapters.find(tx, who, job),
    "checkpoints.page": lambda tx, who, job, file: checkpoints.page(
        tx, who, job, after=None, limit=9
    ),
    "events.page": lambda tx, who, job, file: events.page(tx, who, job, after=None, limit=9),
    "webhooks.get": lambda tx, who, job, file: webhooks.get(tx, who, hook(tx, job)),
    "webhooks.remove": lambda tx, who, job, file: webhooks.remove(tx, who, hook(tx, job)),
    "webhooks.deliveries": lambda tx, who, job, file: webhooks.deliveries(
        tx, who, hook(tx, job), after=None, limit=9
    ),
}
#: what takes a tenant and looks nothing up: it makes a thing, or lists one's own
OWN = {
    "files.add", "adapters.page", "webhooks.add", "webhooks.page", "lines.of_tenant",
    "explain.lines", "shares.of", "shares.check_queued", "shares.check_bytes",
}  # fmt: skip


def test_none_is_forgotten():
    found = set()
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"manylora.ledger.{module.name}")
        for name, member in inspect.getmembers(loaded, inspect.isfunction):
            public = member.__module__ == loaded.__name__ and not name.startswith("_")
            if public and "tenant_id" in inspect.signature(member).parameters:
                found.add(f"{module.name}.{name}")
    assert found == set(ASK) | OWN


@pytest.mark.parametrize("ask", ASK)
def test_a_stranger_is_told_there_is_no_such_thing(ledger, stranger, ask):
    with ledger.transaction() as tx:
        kinds = set(webhooks.TYPES.values())
        webhooks.add(tx, ledger.tenant.id, url="https://a.example/", types=kinds, most=1)
    job_id = ledger.running(suffix="mine")
    ledger.publish(job_id)
    before = ledger.books(job_id)
    with pytest.raises(NotFoundError) as refused, ledger.transaction() as tx:
        ASK[ask](tx, stranger.id, job_id, ledger.file.id)
    assert refused.value.http_status == 404
    assert ledger.books(job_id) == before
    with ledger.transaction() as tx:
        if ask in {"jobs.cancel", "jobs.pause", "jobs.resume", "files.delete", "webhooks.remove"}:
            return  # the job is over; what becomes of the others is another test's
        assert ASK[ask](tx, ledger.tenant.id, job_id, ledger.file.id)


def test_lists_and_names_are_ones_own(ledger, stranger):
    job_id = ledger.running(suffix="mine")
    ledger.publish(job_id)
    with ledger.transaction() as tx:
        name = adapters.of_job(tx, job_id).name
        for ref in (name, "mine"):
            with pytest.raises(NotFoundError):
                adapters.find(tx, stranger.id, ref)
        assert adapters.page(tx, stranger.id) == []
        assert webhooks.page(tx, stranger.id) == []
        assert lines.of_tenant(tx, stranger.id) == []
        assert explain.lines(tx, stranger.id) == []
        assert jobs.page(tx, stranger.id, after=None, limit=9) == ([], False)
        assert files.page(tx, stranger.id, after=None, limit=9) == ([], False)
        assert bases.get(tx, ledger.base.name)  # bases are everybody's
