"""Jobs through scheduler, Celery worker and trainer child as real processes, to a published
adapter whose bytes are checked against a training done right here."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid

import pytest
from safetensors.torch import load_file
from sqlalchemy import select

from lora_core import Trainer
from manylora import hyperparameters as hp
from manylora.errors import StateError
from manylora.ledger import adapters, jobs, workers
from manylora.ledger.tables import Attempt, Event, Job
from tests.conftest import PEPPER, WORDS
from worker.prepare import tokenizer_of, write_examples
from worker.trainer.child import training_job
from worker.trainer.load import load_base

RUN = "import sys; from manylora.settings import load_settings; "
SCHEDULER = RUN + "from scheduler.loop import serve; serve(load_settings())"
WORKER = RUN + (
    "from worker.main import serve; "
    "serve(load_settings(), base=None, slots=int(sys.argv[1]), device='cpu')"
)


def lines(seed, count=10):
    draw = random.Random(seed)
    return [
        {"prompt": f"{draw.choice(WORDS)} {draw.choice(WORDS)}",
         "completion": " " + " ".join(draw.choices(WORDS, k=4))}
        for _ in range(count)
    ]  # fmt: skip


@pytest.fixture
def processes(service, tmp_path):
    """start(code, *args) runs a part of the service; all of them end with the test."""
    settings = service.settings
    env = {
        **os.environ,
        "MANYLORA_HOME": str(settings.home),
        "MANYLORA_DATABASE_URL": settings.database_url.get_secret_value(),
        "MANYLORA_BROKER_URL": settings.broker_url.get_secret_value(),
        "MANYLORA_S3_ENDPOINT": settings.s3_endpoint,
        "MANYLORA_S3_ACCESS_KEY": settings.s3_access_key.get_secret_value(),
        "MANYLORA_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "MANYLORA_KEY_PEPPER": PEPPER,
        "MANYLORA_THREADS": "2",
        "MANYLORA_TICK_SECONDS": "0.1",
        "MANYLORA_LOG_FORMAT": "text",
    }
    started = []

    def start(code, *args):
        log = (tmp_path / f"log-{len(started)}.txt").open("w")
        process = subprocess.Popen([sys.executable, "-c", code, *args], env=env, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    codes = [process.wait(60) for process in started]
    for path in sorted(tmp_path.glob("log-*.txt")):
        print(path.name, path.read_text()[-6000:])
    assert codes == [0] * len(codes)


def submit(service, tenant, base, file, **asked):
    asked = hp.parse({"lora_r": 4, "batch_size": 4, "n_epochs": 2, **asked})
    resolved = hp.resolve(asked, hidden_size=base.hidden_size)
    with service.database.transaction() as tx:
        return jobs.create(
            tx, tenant_id=tenant.id, base=base.name, base_fingerprint=base.fingerprint,
            training_file=file.id, validation_file=None, suffix="s", seed=7, asked={},
            hyperparameters=resolved.as_json(), job_metadata=None, priority=0,
            idempotency_key=None,
        )  # fmt: skip


def wait_for(service, ids, states, seconds=240):
    deadline = time.monotonic() + seconds
    while True:
        with service.database.transaction() as tx:
            rows = [tx.get(Job, i) for i in ids]
        if all(r.state in states for r in rows):
            return rows
        assert time.monotonic() < deadline, [
            (r.state, r.error_message, r.waiting_for) for r in rows
        ]
        time.sleep(0.2)


def alone(job, file_lines, base_folder, tmp_path, threads=2):
    """The digest of the weights file when the same job is trained here, by itself."""
    folder = tmp_path / f"alone-{job.id}"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(x) + "\n" for x in file_lines))
    write_examples(
        tokenizer_of(base_folder, None), folder / "train.jsonl", folder / "train.safetensors", 1024
    )
    trainer = Trainer(load_base(base_folder, "cpu", threads), slots=1)
    order = {"hyperparameters": job.hyperparameters, "seed": job.seed, "folder": str(folder)}
    trainer.join(training_job("x", order))
    while not trainer.step()[0].finished:
        pass
    trainer.export("x", folder / "out", base_model_name=job.base)
    return hashlib.sha256((folder / "out" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_eight_jobs_at_once_are_published_with_the_bytes_of_training_alone(
    service, registered, tiny_base, processes, tmp_path
):
    tenant, _ = service.tenant(f"t-{uuid.uuid4().hex[:8]}")
    data = [lines(seed) for seed in range(1, 9)]
    shapes = [{"lora_r": 4}, {"lora_r": 8, "use_dora": True, "lora_dropout": 0.1}]
    shapes += [{"lora_r": 2, "use_qalora": True, "qalora_group_size": 4}]
    shapes += [{"lora_r": 1, "learnable_scaling": True, "loraplus_lr_ratio": 4}]
    shapes += [{"lora_dropout": d} for d in (0.1, 0.3)]
    longlora = {"longlora_group_size": 8, "train_norms": True}
    shapes += [{"target_modules": ["q_proj", "down_proj"]}, {"use_rslora": True, **longlora}]
    wanted = [
        submit(service, tenant, registered, service.upload(tenant, d), **shape)
        for d, shape in zip(data, shapes, strict=True)
    ]
    bad = submit(service, tenant, registered, service.upload(tenant, [{"prompt": 1}]))
    processes(SCHEDULER)
    worker = processes(WORKER, "8")
    done = wait_for(service, [j.id for j in wanted], {"succeeded", "failed"})
    assert [(j.state, j.error_message) for j in done] == [("succeeded", None)] * 8
    (refused,) = wait_for(service, [bad.id], {"failed"})
    assert refused.error_code == "invalid_training_file"
    assert "line 1: $.completion is missing" in refused.error_message
    for job, d, shape in zip(done, data, shapes, strict=True):
        with service.database.transaction() as tx:
            adapter = adapters.find(tx, tenant.id, job.id)
            history = select(Event).where(Event.job_id == job.id).order_by(Event.seq)
            told = [e.message for e in tx.scalars(history)]
            (tried,) = jobs.attempts(tx, job.id)
        manifest = json.loads(service.store.get_bytes(adapter.manifest_key))
        assert manifest["numerics"]["fused"] is True
        assert shape.items() <= manifest["hyperparameters"].items()
        assert ("gains" in manifest) is ("learnable_scaling" in shape)
        listed = {f["name"]: f["sha256"] for f in manifest["files"]}
        stored = service.store.list(adapter.prefix + "/")
        assert {k.rsplit("/", 1)[1] for k in stored} == set(listed)
        target = tmp_path / "weights"
        name = "adapter_model.safetensors"
        service.store.get_file(f"{adapter.prefix}/{name}", target, listed[name])
        parts = {key.rpartition("_proj.")[2] for key in load_file(target)}
        assert ("lora_magnitude_vector" in parts) is ("use_dora" in shape)
        assert adapter.weights_sha256 == listed[name] == alone(job, d, tiny_base[1], tmp_path)
        assert job.step == job.total_steps == 6
        assert job.trained_tokens > 0
        assert (tried.outcome, tried.attempt) == ("succeeded", 1)
        assert job.device_seconds == pytest.approx(tried.device_seconds) != 0
        assert told[0].startswith("Created")
        assert told[-1].endswith("successfully completed")
    assert not any((service.settings.home / "scratch").iterdir())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    with service.database.transaction() as tx:
        assert not [w for w in workers.alive(tx, within_seconds=60) if w.facts["pid"] == worker.pid]


def test_a_cancelled_job_leaves_its_slot_and_publishes_nothing(service, registered, processes):
    tenant, _ = service.tenant(f"t-{uuid.uuid4().hex[:8]}")
    job = submit(service, tenant, registered, service.upload(tenant, lines(5, 200)), n_epochs=50)
    processes(SCHEDULER)
    processes(WORKER, "1")
    wait_for(service, [job.id], {"running"})
    with service.database.transaction() as tx:
        assert jobs.cancel(tx, tenant.id, job.id).state == "cancelled"
    with service.database.transaction() as tx, pytest.raises(StateError):
        jobs.cancel(tx, tenant.id, job.id)
    next_one = submit(service, tenant, registered, service.upload(tenant, lines(6)))
    wait_for(service, [next_one.id], {"succeeded"})
    with service.database.transaction() as tx:
        assert adapters.of_job(tx, job.id) is None
        outcomes = list(tx.scalars(select(Attempt.outcome).where(Attempt.job_id == job.id)))
        assert outcomes == ["left"]
