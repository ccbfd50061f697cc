"""A job's checkpoints through the openai client: the adapters of its epochs, newest first."""

import openai
import pytest

from manylora.ledger import checkpoints, jobs, leases
from manylora.ledger.tables import Job

LINES = b'{"prompt": "a", "completion": " b c"}\n' * 3


@pytest.fixture
def running(connect, service, registered):
    """(client, id) of a job in work, with the adapters of four epochs and a state."""
    client = connect()
    file = client.files.create(file=("train.jsonl", LINES), purpose="fine-tune")
    job_id = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, hyperparameters={"lora_r": 4}
    ).id
    with service.database.transaction() as tx:
        jobs.move(tx, job_id, "accept", actor="test", message="taken in")
        attempt = leases.dispatch(tx, job_id, queue="q", deadline_seconds=60)
        leases.claim(tx, job_id, attempt, worker_id="w", ttl_seconds=60)
        job = tx.get(Job, job_id)
        for step in (1, 2, 3, 4):
            checkpoints.add(
                tx, job, step=step, prefix=f"p/{step}", manifest_sha256="ab" * 32, kind="epoch",
                metrics={"train_loss": 1 / step, "valid_loss": 2.0, "grad_norm": 7.0},
                name=f"ft:tiny:t::abcdefgh:ckpt-step-{step}",
            )  # fmt: skip
        checkpoints.add(
            tx, job, step=4, prefix="s/4", manifest_sha256="ab" * 32, metrics={}, kind="state"
        )
    return client, job_id


def test_they_are_listed_page_by_page_with_their_metrics(running, service):
    client, job_id = running
    first = client.fine_tuning.jobs.checkpoints.list(job_id, limit=3)
    assert (first.has_more, [c.step_number for c in first.data]) == (True, [4, 3, 2])
    every = list(client.fine_tuning.jobs.checkpoints.list(job_id, limit=3))
    assert [c.step_number for c in every] == [4, 3, 2, 1]
    one = every[1]
    assert one.object == "fine_tuning.job.checkpoint"
    assert one.fine_tuned_model_checkpoint == "ft:tiny:t::abcdefgh:ckpt-step-3"
    assert one.fine_tuning_job_id == job_id
    assert (one.metrics.step, one.metrics.valid_loss) == (3, 2.0)
    assert one.metrics.train_loss == pytest.approx(1 / 3)
    assert one.x["adapter_uri"] == service.store.uri("p/3")


def test_another_tenant_and_a_mark_of_nothing_find_none(running, connect):
    client, job_id = running
    with pytest.raises(openai.NotFoundError):
        connect().fine_tuning.jobs.checkpoints.list(job_id)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.checkpoints.list(job_id, after="ftckpt_none")
