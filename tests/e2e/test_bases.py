"""One worker that is pinned to nothing, and two bases: it goes where the work is, and comes back
as the same worker without leaving anything behind."""

import os
import shutil
import signal
import uuid
from pathlib import Path

import pytest

from manylora import keys
from manylora.ledger import adapters, bases, jobs, leases
from manylora.ledger.tables import Base, Worker
from tests.conftest import write_tokenizer
from tests.e2e.test_jobs import SCHEDULER, WORKER, alone, lines, processes, submit, wait_for
from tests.lora_core.models import tiny
from tests.worker.conftest import until
from worker.bases import register

__all__ = ["processes"]  # a fixture
COLUMNS = (
    "name", "fingerprint", "dtype", "architecture", "source", "parameters", "hidden_size",
    "bytes", "chat_template", "files", "layers", "quantization",
)  # fmt: skip


def make_base(service, kind, name, tiny_model_folder, tmp_path, **options):
    """(row, folder) of a tiny base of another architecture, registered under that name."""
    source = tmp_path / f"source-{kind}"
    tiny(kind).save_pretrained(source)
    write_tokenizer(source / "tokenizer.json")
    shutil.copy(tiny_model_folder / "tokenizer_config.json", source)
    options = {"dtype": "float32", "progress": lambda _: None} | options
    card, folder = register.prepare(name, str(source), tmp_path / "made", **options)
    for file in card.files:
        service.store.put_file(keys.base_key(card.fingerprint, file["name"]), folder / file["name"])
    with service.database.transaction() as tx:
        bases.start(tx, **{k: getattr(card, k) for k in COLUMNS})
        return bases.finish(tx, name), folder


@pytest.fixture
def other(service):
    """The name of a base that is gone when the test is over."""
    name = f"other-{uuid.uuid4().hex[:8]}"
    yield name
    with service.database.transaction() as tx:
        row = tx.get(Base, name)
        if row is not None:
            bases.remove(tx, name)


def children(pid):
    """The pids of a process's living children."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(p) for path in listed for p in path.read_text().split()}


def weights(service, job):
    with service.database.transaction() as tx:
        return adapters.of_job(tx, job.id).weights_sha256


def test_an_idle_worker_goes_to_the_base_that_has_work(
    service, registered, tiny_base, tiny_model_folder, processes, other, tmp_path
):
    tenant, _ = service.tenant(f"t-{uuid.uuid4().hex[:8]}")
    first = submit(service, tenant, registered, service.upload(tenant, lines(1)))
    processes(SCHEDULER)
    worker = processes(WORKER, "2")
    (done,) = wait_for(service, [first.id], {"succeeded", "failed"})
    assert weights(service, done) == alone(done, lines(1), tiny_base[1], tmp_path)

    def row():
        with service.database.transaction() as tx:
            return tx.query(Worker).where(Worker.facts["pid"].as_integer() == worker.pid).one()

    before = row()
    (trainer,) = children(worker.pid)
    assert (before.assigned_base, before.facts["trainer_pid"]) == ("tiny", trainer)

    base, folder = make_base(service, "qwen2", other, tiny_model_folder, tmp_path)
    second = submit(service, tenant, base, service.upload(tenant, lines(2)))
    (done,) = wait_for(service, [second.id], {"succeeded", "failed"})
    assert (done.state, done.error_message) == ("succeeded", None)
    assert weights(service, done) == alone(done, lines(2), folder, tmp_path)
    now = row()  # one row, one process: it took itself anew in place
    assert (now.id, now.assigned_base, now.fingerprint) == (before.id, other, base.fingerprint)
    assert worker.poll() is None
    until(lambda: not Path(f"/proc/{trainer}").exists())
    (trainer,) = children(worker.pid)
    assert now.facts["trainer_pid"] == trainer

    # The same name with other files is another base, too.
    with service.database.transaction() as tx:
        bases.remove(tx, other)
    base, folder = make_base(service, "gpt2", other, tiny_model_folder, tmp_path)
    third = submit(service, tenant, base, service.upload(tenant, lines(3)))
    (done,) = wait_for(service, [third.id], {"succeeded", "failed"})
    assert (done.state, done.error_message) == ("succeeded", None)
    assert weights(service, done) == alone(done, lines(3), folder, tmp_path)
    assert row().fingerprint == base.fingerprint

    with service.database.transaction() as tx:
        (tried,) = jobs.attempts(tx, second.id)
        assert (tried.attempt, tried.outcome) == (1, "succeeded")
        assert leases.rescue(tx) == []
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(60) == 0
    assert row().state == "gone"
