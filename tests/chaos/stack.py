"""The whole service as processes that come back when they die, and the ways to hurt them.

PostgreSQL, Valkey, SeaweedFS, the API, a scheduler and workers, all below one home, with leases of
seconds. One thread starts them all: they end with it.
"""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

import psutil
from sqlalchemy import select

from manylora import hyperparameters as hp
from manylora import keys
from manylora.errors import UnavailableError
from manylora.ledger import bases, schema, tenants
from manylora.ledger.database import Database
from manylora.ledger.tables import Job, Worker
from manylora.local import credentials
from manylora.local.servers import Servers
from manylora.local.supervise import Child, Supervisor
from manylora.settings import load_settings
from manylora.storage.store import Store
from tests.conftest import PEPPER, WORDS, Service

LEASE = 3.0
CLI = [sys.executable, "-m", "manylora.cli.main"]
SERVERS = ("postgres", "valkey", "seaweed")
#: columns of a base's card that its row has, too
CARD = (
    "name", "fingerprint", "dtype", "architecture", "source", "parameters", "hidden_size", "bytes",
    "chat_template", "files", "layers",
)  # fmt: skip


def until(condition, what, seconds=90.0):
    """What `condition` answers as soon as it is true; an outage on the way is no answer."""
    deadline = time.monotonic() + seconds
    while True:
        found = None
        with contextlib.suppress(UnavailableError):
            found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s: {what}"
        threading.Event().wait(0.05)


def lines(seed, count):
    """A dataset of `count` lines."""
    draw = random.Random(seed)
    return [
        {"prompt": " ".join(draw.choices(WORDS, k=3)), "completion": " " + draw.choice(WORDS)}
        for _ in range(count)
    ]


class Stack:
    """Everything, up from `start` to `stop`. `workers` of `slots` each."""

    def __init__(self, home, base, *, workers=1, slots=2, **settings):
        self.home = home
        self.card, self.base_folder = base
        home.mkdir(parents=True, exist_ok=True)
        self.secrets = credentials.secrets_of(home)
        self.ports = credentials.ports_of(home, 0)
        self.servers = Servers(home, self.secrets, self.ports)
        self.supervisor = Supervisor(home)
        self.url = f"http://127.0.0.1:{self.ports['api']}"
        self._settings = {"lease_seconds": LEASE, **settings}
        self._names = [f"worker-{n}" for n in range(workers)]
        self._slots = slots
        self._up, self._failed = threading.Event(), None
        self._thread = threading.Thread(target=self._live, name="stack")

    # ---- life

    def start(self):
        self._thread.start()
        until(lambda: self._up.is_set() or self._failed, "the stack to start", 180)
        if self._failed:
            raise self._failed
        until(self.workers_ready, "the workers to be ready", 180)
        return self

    def stop(self):
        self.supervisor.stopping.set()
        self._thread.join(120)
        self.service.database.close()

    def _live(self):
        try:
            self.servers.start(self.supervisor)
            self._furnish()
            for name in ("api", "scheduler", *self._names):
                self.supervisor.start(self._child(name))
            self.supervisor.await_ready(self.child("api"))
            self._up.set()
            while not self.supervisor.stopping.wait(0.05):
                self.supervisor.look_after()
        except BaseException as error:  # told to the thread that waits
            self._failed = error
        finally:
            self.supervisor.stop()

    def _furnish(self):
        urls = self.servers.urls()
        schema.upgrade(urls.database_owner_url)
        self.owner_url = urls.database_owner_url
        given = {
            "home": self.home,
            "database_url": urls.database_url,
            "broker_url": urls.broker_url,
            "s3_endpoint": urls.s3_endpoint,
            "s3_access_key": urls.s3_access_key,
            "s3_secret_key": urls.s3_secret_key,
            "s3_bucket": urls.s3_bucket,
            "api_port": self.ports["api"],
            "key_pepper": PEPPER,
            "threads": 1,
            "tick_seconds": 0.1,
            "heartbeat_seconds": 0.5,
            "dispatch_deadline_seconds": 4.0,
            "resend_seconds": 1.5,
            "checkpoint_seconds": 0.3,
            "stall_seconds": 10.0,
            "log_format": "text",
            **self._settings,
        }
        settings = load_settings(**given)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("MANYLORA_")}
        self.env |= {f"MANYLORA_{k.upper()}": str(v) for k, v in given.items()}
        self.service = Service(
            settings, Database(settings.database_url.get_secret_value()), Store(settings)
        )
        with self.service.database.transaction() as tx:
            self.tenant = tenants.create(tx, "chaos")
            self.key = tenants.mint_key(tx, self.tenant, PEPPER, scopes=("tenant",))
        for file in self.card.files:
            key = keys.base_key(self.card.fingerprint, file["name"])
            self.service.store.put_file(key, self.base_folder / file["name"])
        with self.service.database.transaction() as tx:
            bases.start(tx, **{name: getattr(self.card, name) for name in CARD})
            bases.finish(tx, self.card.name)

    def _child(self, name):
        if name == "api":
            argv, ready = [*CLI, "api"], lambda: self._get("/healthz") is not None
        elif name == "scheduler":
            argv, ready = [*CLI, "scheduler"], lambda: True
        else:
            argv = [*CLI, "worker", "--base", self.card.name, "--slots", str(self._slots)]
            argv, ready = [*argv, "--device", "cpu"], lambda: True
        env = self.env | {"MANYLORA_RUN_DIR": str(self.home / "run" / name)}
        return Child(name, argv, ready, env=env, floor=1, timeout=30.0)

    # ---- what there is

    def child(self, name):
        return next(c for c in self.supervisor.children if c.name == name)

    def pid(self, name):
        """The pid of a part; "trainer" is that of the first worker's child."""
        if name == "trainer":
            notes = sorted((self.home / "run").glob("worker-*/trainer-*.json"))
            found = [json.loads(note.read_text()) for note in notes]
            alive = [n["pid"] for n in found if n["state"] != "stopped" and _alive(n["pid"])]
            return alive[0] if alive else None
        return self.child(name).process.pid

    def workers_ready(self):
        """Whether each worker of those that run now holds its base."""
        pids = {self.pid(name) for name in self._names}
        with self.service.database.transaction() as tx:
            rows = tx.scalars(select(Worker).where(Worker.state == "ready"))
            return pids <= {row.facts["pid"] for row in rows}

    def job(self, job_id):
        with self.service.database.transaction() as tx:
            return tx.get(Job, job_id)

    def log(self, name):
        return self.supervisor.log_of(self.child(name)).read_text(errors="replace")

    # ---- the ways to hurt them

    def kill(self, name, number=signal.SIGKILL):
        """One signal, by default the last, to a part (its whole group, for PostgreSQL has many).
        One that has just ended by itself is hit once it is back."""
        while True:
            pid = self.pid(name)
            if pid is None:
                return None
            if name != "trainer":
                self.child(name).backoff = 0.0
            try:
                (os.killpg if name in SERVERS else os.kill)(pid, number)
                return pid
            except ProcessLookupError:
                until(lambda gone=pid: self.pid(name) != gone, f"{name} to be back")

    def freeze(self, name, seconds):
        """SIGSTOP, and SIGCONT after so long: a true zombie when that is beyond the lease."""
        group = self._group(name)
        for pid in group:
            _signal(pid, signal.SIGSTOP)
        threading.Event().wait(seconds)
        for pid in group:
            _signal(pid, signal.SIGCONT)

    def _group(self, name):
        pid = self.pid(name)
        if pid is None or not _alive(pid):
            return []
        if name not in SERVERS:
            return [pid]
        return [pid, *(p.pid for p in psutil.Process(pid).children(recursive=True))]

    def arm(self, name, point):
        """Kill a part and have it come back with a crash point set; the one after it has none."""
        child = self.child(name)
        clean, restarts = child.env, child.restarts
        child.env = clean | {"MANYLORA_CRASH_AT": point}
        self.kill(name)
        until(lambda: child.restarts > restarts and child.process.poll() is None, f"armed {name}")
        child.env = clean
        if name.startswith("worker"):
            until(self.workers_ready, "the armed worker to be ready")
        elif name == "api":
            until(lambda: self._get("/healthz"), "the armed API to answer")
        return child.restarts

    # ---- the way in

    def upload(self, seed, count):
        return self.service.upload(self.tenant, lines(seed, count)).id

    def submit(self, file, *, seconds=90.0, key=None, **asked):
        """A job's id, acknowledged by the API: asked for again, by the same key, until it is."""
        hyper = {"n_epochs": 1, "batch_size": 4, "lora_r": 4, **asked}
        seed = hyper.pop("seed", 7)
        hp.parse(hyper)  # a mistake here is the test's
        body = {"model": self.card.name, "training_file": file, "seed": seed,
                "hyperparameters": hyper}  # fmt: skip
        key = key or uuid.uuid4().hex
        answer = until(lambda: self._post("/v1/fine_tuning/jobs", body, key), "a submit", seconds)
        return answer["id"]

    def _post(self, path, body, key):
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json",
             "Idempotency-Key": key},
        )  # fmt: skip
        return self._answer(request)

    def _get(self, path):
        return self._answer(urllib.request.Request(self.url + path))

    def _answer(self, request):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=5) as response:
                return json.loads(response.read() or b"{}") or {"ok": True}
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
            return None
        except (OSError, ValueError):
            return None

    def wait(self, ids, seconds=120.0):
        """The rows of jobs once all of them are over; what they did when they are not in time."""
        deadline = time.monotonic() + seconds
        while True:
            with self.service.database.transaction() as tx:
                rows = [tx.get(Job, i) for i in ids]
            assert None not in rows, "an acknowledged job does not exist"
            if all(row.state in ("succeeded", "failed", "cancelled") for row in rows):
                return rows
            assert time.monotonic() < deadline, [
                (r.id, r.state, r.attempt, r.step, r.waiting_for, r.error_message)
                for r in rows
                if r.state != "succeeded"
            ]
            threading.Event().wait(0.1)


def _alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _signal(pid, number):
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
        os.kill(pid, number)
