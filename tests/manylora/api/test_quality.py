"""A job's quality report over HTTP: the job's own tenant gets it, nobody else."""

import json
import uuid

from manylora import keys
from manylora.ledger import adapters, jobs, leases
from manylora.ledger.tables import Adapter
from tests.manylora.api.conftest import problem

REPORT = {"format": "manylora-quality/1", "samples": [], "cut": None}


def published(http, service, dataset, report):
    """(client, job id) of a job that has an adapter, with or without a report."""
    client = http()
    body = {"model": "tiny", "training_file": dataset(client), "hyperparameters": {"lora_r": 4}}
    job_id = client.post("/v1/fine_tuning/jobs", json=body | {"suffix": "mine"}).json()["id"]
    with service.database.transaction() as tx:
        jobs.move(tx, job_id, "accept", actor="test", message="taken in")
        attempt = leases.dispatch(tx, job_id, queue="q", deadline_seconds=60)
        job = leases.claim(tx, job_id, attempt, worker_id="w", ttl_seconds=60)
        prefix = keys.adapter_prefix(str(job.tenant_id), job_id, attempt)
        adapter = Adapter(
            name=f"ft:tiny:t:mine:{uuid.uuid4().hex[:8]}", tenant_id=job.tenant_id, job_id=job_id,
            attempt=attempt, source_attempt=attempt, base="tiny",
            base_fingerprint=job.base_fingerprint, prefix=prefix, manifest_key="m",
            manifest_sha256="ab" * 32, weights_sha256="cd" * 32, bytes=1,
        )  # fmt: skip
        leases.publish(tx, job_id, attempt, worker_id="w", tokens=1, adapter=adapter)
        assert adapters.of_job(tx, job_id) is not None
    if report:
        service.store.put_bytes(f"{prefix}/quality.json", json.dumps(REPORT).encode())
    return client, job_id


def test_the_tenant_gets_it_by_id_or_suffix_and_no_other_does(http, service, registered, dataset):
    client, job_id = published(http, service, dataset, report=True)
    for ref in (job_id, "mine"):
        answer = client.get(f"/v1/fine_tuning/jobs/{ref}/quality")
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["job_id"] == job_id
        assert REPORT.items() <= told.items()
    problem(http().get(f"/v1/fine_tuning/jobs/{job_id}/quality"), 404, "not_found")


def test_without_a_report_it_says_how_to_have_one(http, service, registered, dataset):
    client, job_id = published(http, service, dataset, report=False)
    error = problem(client.get(f"/v1/fine_tuning/jobs/{job_id}/quality"), 404, "no_quality_report")
    assert "--quality" in error["message"]
