"""Networks that are no language model through scheduler, worker and trainer: two jobs fused on one
base, their bytes those of training alone; and what is refused on the way."""

import hashlib
import uuid

import numpy as np
import pytest
from safetensors.torch import save_file

from lora_core import Trainer
from manylora import hyperparameters as hp
from manylora import keys
from manylora.ledger import adapters, bases, files, jobs
from tests.e2e.test_jobs import SCHEDULER, WORKER, processes, wait_for
from tests.lora_core.networks import arrays, network
from worker.bases.network import prepare, task_of
from worker.prepare import write_arrays
from worker.trainer.child import training_job
from worker.trainer.load import load_base

__all__ = ["processes"]  # a fixture
HERE = "tests.lora_core.networks"


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    """Workers may build the networks of `HERE`."""
    monkeypatch.setenv("MANYLORA_FACTORIES", HERE)


def registered_network(service, kind, folder):
    """(row, folder) of a network, in the ledger and in the store."""
    made, task = network(kind)
    save_file(made.state_dict(), str(folder / f"{kind}.safetensors"))
    card, where = prepare(
        f"{kind}-{uuid.uuid4().hex[:8]}", folder / "cache",
        factory=f"{HERE}:{kind}", args={}, weights=folder / f"{kind}.safetensors", task=task.kind,
        shape=task.shape, input_dtype="float32", dtype="float32", tokenizer=None,
        chat_template=None, progress=lambda _: None,
    )  # fmt: skip
    for file in card.files:
        service.store.put_file(keys.base_key(card.fingerprint, file["name"]), where / file["name"])
    with service.database.transaction() as tx:
        bases.start(tx, **vars(card))
        return bases.finish(tx, card.name), where


def upload(service, tenant, kind, seed, folder):
    held = arrays(kind, seed, 24)
    path = folder / f"{kind}-{seed}.npz"
    np.savez(path, x=held.x.numpy(), y=held.y.numpy())
    body = path.read_bytes()
    sha256 = hashlib.sha256(body).hexdigest()
    service.store.put_bytes(keys.dataset_key(str(tenant.id), sha256), body)
    with service.database.transaction() as tx:
        row = files.add(
            tx, tenant.id, filename=path.name, purpose="fine-tune", size=len(body), sha256=sha256
        )
    return row, path


def submit(service, tenant, base, file, validation=None):
    asked = hp.parse({"lora_r": 2, "n_epochs": 3, "learning_rate": 0.01})
    resolved = hp.resolve(asked, hidden_size=base.hidden_size, layers=base.layers)
    with service.database.transaction() as tx:
        return jobs.create(
            tx, tenant_id=tenant.id, base=base.name, base_fingerprint=base.fingerprint,
            training_file=file.id, validation_file=validation and validation.id, suffix="s",
            seed=7, asked={}, hyperparameters=resolved.as_json(), job_metadata=None, priority=0,
            idempotency_key=None,
        )  # fmt: skip


def alone(job, base, where, source, validation, folder):
    folder.mkdir()
    write_arrays(source, folder / "train.safetensors", base.network)
    write_arrays(validation, folder / "validation.safetensors", base.network)
    trainer = Trainer(load_base(where, "cpu", 2, HERE), slots=1, arrays=task_of(base.network))
    order = {"hyperparameters": job.hyperparameters, "seed": job.seed, "folder": str(folder)}
    trainer.join(training_job("x", order, arrays=True))
    while not trainer.step()[0].finished:
        pass
    trainer.export("x", folder / "out", base_model_name=job.base)
    return hashlib.sha256((folder / "out" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_jobs_of_arrays_are_published_with_the_bytes_of_training_alone(
    kind, service, processes, tmp_path
):
    tenant, _ = service.tenant(f"t-{uuid.uuid4().hex[:8]}")
    base, where = registered_network(service, kind, tmp_path)
    sent = [upload(service, tenant, kind, seed, tmp_path) for seed in (1, 2, 3)]
    held_out = sent[2]
    wanted = [submit(service, tenant, base, row, held_out[0]) for row, _ in sent[:2]]
    other = {"mlp": "convnet", "convnet": "mlp"}[kind]
    unfit = submit(service, tenant, base, upload(service, tenant, other, 1, tmp_path)[0])
    text = submit(service, tenant, base, service.upload(tenant, [{"text": "a"}]))
    processes(SCHEDULER)
    processes(WORKER, "4")
    done = wait_for(service, [job.id for job in wanted], {"succeeded", "failed"})
    assert [(job.state, job.error_message) for job in done] == [("succeeded", None)] * 2
    refused = wait_for(service, [unfit.id, text.id], {"failed"})
    assert [job.error_code for job in refused] == ["invalid_training_file"] * 2
    assert "has x of shape" in refused[0].error_message
    assert "the base reads arrays" in refused[1].error_message
    for number, (job, (_, source)) in enumerate(zip(done, sent[:2], strict=True)):
        with service.database.transaction() as tx:
            adapter = adapters.of_job(tx, job.id)
        mine = alone(job, base, where, source, held_out[1], tmp_path / f"alone-{number}")
        assert adapter.weights_sha256 == mine
        assert job.trained_tokens == 3 * 24
