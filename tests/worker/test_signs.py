"""A worker's metrics while it works a real job, and its probe."""

import httpx2
import pytest

from manylora.ledger import workers
from tests.manylora.test_metrics import value
from tests.manylora.test_probe import free_port
from worker.main import WorkerProcess


def test_a_job_leaves_its_numbers(bench):
    job_id = bench.job(count=8, n_epochs=2, batch_size=4)
    supervisor = bench.supervisor()
    assert supervisor.run(job_id, bench.dispatch(job_id)) == "succeeded"
    show, job = supervisor.metrics, bench.get(job_id)
    assert value(show, "worker_steps_total") == job.total_steps == 4
    assert value(show, "worker_tokens_total") == job.trained_tokens
    assert value(show, "worker_attempts_total", outcome="succeeded") == 1
    assert value(show, "worker_slots_busy") == 0
    assert value(show, "worker_publish_seconds_count") == 1
    assert value(show, "worker_lease_renewals_total", outcome="ok") >= 1
    assert supervisor.run(job_id, 1) == "lost"
    assert value(show, "worker_attempts_total", outcome="lost") == 1
    assert value(show, "worker_publish_seconds_count") == 1


@pytest.fixture
def process(service):
    settings = service.settings.model_copy(update={"metrics_port": free_port()})
    made = WorkerProcess(settings, None, 3, "cpu")
    yield made
    made.database.close()


def test_a_worker_that_stopped_reporting_is_not_alive(process):
    assert process.alive()
    process._reported -= 121
    assert not process.alive()
    process._report()
    assert process.alive()
    process.state = "gone"
    process._report()


def test_its_probe_says_what_it_waits_for(process, service):
    with service.database.transaction() as tx:
        workers.tick(tx, "test")
    probe = process._show()
    try:
        url = f"http://127.0.0.1:{probe._server.server_port}"
        shown = httpx2.get(f"{url}/metrics", timeout=60).text
        assert "manylora_worker_slots 3.0" in shown
        assert "manylora_worker_trainer_restarts 0.0" in shown
        assert httpx2.get(f"{url}/healthz", timeout=60).status_code == 200
        ready = httpx2.get(f"{url}/readyz", timeout=30)
        assert ready.status_code == 503
        checks = ready.json()["checks"]
        assert {name for name, said in checks.items() if said != "ok"} == {"base"}
        assert checks["base"].startswith("the worker is idle;")
    finally:
        probe.stop()
