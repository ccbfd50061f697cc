"""One stack with everything switched on: a webhook, metrics, the doctor; and nothing secret in any
log of any process, at the level that says most."""

import json
import os
import re
import uuid
from urllib.parse import parse_qs, urlsplit

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import WORDS
from tests.e2e.conftest import Cli
from tests.manylora.test_probe import free_port
from tests.scheduler.receiver import Receiver
from tests.worker.conftest import until

SLOTS = "manylora_slots", (("base", "tiny"),)
DELIVERED = "manylora_webhooks_tries_total", (("outcome", "delivered"),)


def read_env(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


class Lived:
    """A stack that did a job's whole life and is down again; what it left."""

    def __init__(self, folder, model):
        self.cli = cli = Cli(
            folder,
            MANYLORA_WEBHOOK_NETWORKS="127.0.0.0/8",
            MANYLORA_METRICS_PORT=str(free_port()),
            MANYLORA_LOG_LEVEL="debug",
        )
        self.receiver = Receiver()
        try:
            cli("up", "-d", "--slots", "2")
            cli("base", "add", "tiny", "--from", model, "--dtype", "float32")
            self.client = read_env(cli.home / "client.env")
            self.live(folder)
        finally:
            cli.down()
            self.receiver.close()
        self.logs = {path.name: path.read_text() for path in (cli.home / "logs").iterdir()}

    def live(self, folder):
        cli = self.cli
        self.hook = json.loads(cli("webhook", "add", self.receiver.url, "--json").stdout)
        token = f"hook-{uuid.uuid4().hex}"
        away = f"https://{uuid.uuid4().hex}.invalid/x?token={token}"
        self.unreachable = json.loads(cli("webhook", "add", away, "--json").stdout)
        data = folder / "train.jsonl"
        data.write_text(
            "".join(json.dumps({"prompt": f"{a} b", "completion": f" {a}"}) + "\n" for a in WORDS)
        )
        flags = ["--base", "tiny", "--suffix", "mine", "--rank", "4", "--epochs", "1"]
        self.job = json.loads(cli("submit", data, *flags, "-d", "--json").stdout)["id"]
        cli("wait", self.job)
        self.message = self.receiver.next(60)
        cli("fetch", "mine", "-o", folder / "out")
        url, key = self.client["MANYLORA_API_URL"], self.client["MANYLORA_API_KEY"]
        auth = {"Authorization": f"Bearer {key}"}
        adapter = httpx2.get(f"{url}/v1/manylora/adapters/mine", headers=auth, timeout=60).json()
        signed = parse_qs(urlsplit(adapter["manifest"]["url"]).query)
        wrong = f"ml_{'0' * 12}_{uuid.uuid4().hex}{'x' * 11}"
        httpx2.get(f"{url}/v1/models", params={"key": key, "wrong": wrong}, timeout=60)
        httpx2.get(
            f"{url}/v1/models/{wrong}", headers={"Authorization": f"Bearer {wrong}"}, timeout=60
        )
        self.doctor = cli("doctor", "--json")
        # Gauges are read every few seconds, and a resolver may think long about a name.
        until(lambda: self.scrape(url)["scheduler"].get(SLOTS) == 2)
        until(lambda: self.scrape(url)["scheduler"][DELIVERED] == 1)
        self.shown = self.scrape(url)
        listed = f"{url}/v1/manylora/webhooks/{self.unreachable['id']}/deliveries"
        until(lambda: httpx2.get(listed, headers=auth).json()["data"][0]["last_error"])
        told = cli("webhook", "deliveries", self.unreachable["id"], "--json").stdout
        self.deliveries = json.loads(told)["data"]
        kept = json.loads((cli.home / "credentials.json").read_text())
        self.secrets = {
            *(value for value in kept.values() if isinstance(value, str)),
            key.split("_", 2)[2], wrong.split("_", 2)[2], token, signed["X-Amz-Signature"][0],
            self.hook["secret"].removeprefix("whsec_"),
            self.unreachable["secret"].removeprefix("whsec_"),
        }  # fmt: skip

    def scrape(self, url):
        """{part: names of its metrics}, each from where it is shown."""
        log = "".join(
            (self.cli.home / "logs" / f"{name}.log").read_text() for name in ("scheduler", "worker")
        )
        lines = [json.loads(line) for line in log.splitlines() if '"probe.up"' in line]
        found = {"api": httpx2.get(f"{url}/metrics", timeout=60).text}
        for line in lines:
            address = f"http://127.0.0.1:{line['port']}/metrics"
            part = httpx2.get(address, timeout=60).text
            found["worker" if "manylora_worker_slots" in part else "scheduler"] = part
        return {
            part: {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            for part, text in found.items()
        }


@pytest.fixture(scope="module")
def lived(tmp_path_factory, tiny_model_folder):
    return Lived(tmp_path_factory.mktemp("signs"), tiny_model_folder)


def test_the_end_of_a_job_is_told_and_the_openai_client_believes_it(lived):
    _, headers, body = lived.message
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1")
    event = client.webhooks.unwrap(body, headers, secret=lived.hook["secret"])
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", lived.job)
    (other,) = lived.deliveries
    assert other["state"] == "pending"
    assert other["id"] == event.id
    assert other["last_error"] == "its name cannot be resolved"


def test_the_doctor_finds_nothing_that_failed(lived):
    told = json.loads(lived.doctor.stdout)
    assert told["ok"]
    assert {one["name"] for one in told["checks"] if one["state"] == "ok"} >= {
        "database", "schema", "broker", "store", "scheduler", "workers", "clock", "api",
    }  # fmt: skip


def test_every_part_shows_its_metrics(lived):
    shown = lived.shown
    assert set(shown) == {"api", "scheduler", "worker"}
    assert shown["worker"]["manylora_worker_attempts_total", (("outcome", "succeeded"),)] == 1
    assert shown["worker"]["manylora_worker_steps_total", ()] > 0
    assert shown["scheduler"]["manylora_scheduler_dispatched_total", ()] == 1
    assert shown["scheduler"][SLOTS] == 2
    assert shown["scheduler"][DELIVERED] == 1
    submit = (("method", "POST"), ("route", "/v1/fine_tuning/jobs"), ("status", "200"))
    assert shown["api"]["manylora_api_requests_total", submit] == 1


def test_no_secret_is_in_any_log(lived):
    assert {"api.log", "scheduler.log", "worker.log", "postgres.log"} <= set(lived.logs)
    assert len(lived.secrets) >= 10
    assert all(len(secret) >= 16 for secret in lived.secrets)
    found = {
        (name, secret)
        for name, log in lived.logs.items()
        for secret in lived.secrets
        if secret in log
    }
    assert found == set()
    for name, log in lived.logs.items():
        assert not re.search(r"X-Amz-Signature=[0-9a-f]", log), name
        named = re.findall(r"://([^\s\"'@]+)@", log)  # a user, or a user and a password
        assert {who.rpartition(":")[2] for who in named} <= {"***"}, name


def test_the_services_logs_are_json_with_job_and_tenant_bound(lived):
    for name in ("scheduler.log", "worker.log"):
        said = lived.logs[name].splitlines()
        lines = [json.loads(line) for line in said if line.startswith("{")]
        # Celery prints this one itself when it is told to stop.
        assert {line for line in said if line and not line.startswith("{")} <= {
            "worker: Warm shutdown (MainProcess)"
        }
        mine = [line for line in lines if line.get("job_id") == lived.job]
        assert mine, name
        assert {line["event"] for line in mine} >= (
            {"intake.done", "dispatch.sent", "webhook.delivered"}
            if name == "scheduler.log"
            else {"job.claimed", "job.published", "job.left"}
        )
        tenants = {line.get("tenant_id") for line in mine}
        assert len(tenants) == 1
        assert uuid.UUID(tenants.pop())


def test_it_left_no_process(lived):
    assert not os.path.exists(lived.cli.home / "run" / "status.json")
