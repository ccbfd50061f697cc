"""The whole service on one machine: what is started, in which order, with which settings."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from manylora.errors import StackError
from manylora.ledger import schema, tenants
from manylora.ledger.database import Database
from manylora.local import credentials, seaweed
from manylora.local.ports import LOOPBACK
from manylora.local.postgres import APP, OWNER, Postgres
from manylora.local.seaweed import Seaweed
from manylora.local.supervise import Child, Supervisor
from manylora.local.valkey import Valkey

Progress = Callable[[str], None]
TENANT = "local"


class Stack:
    """One home's stack, run by this process."""

    def __init__(self, home: Path, slots: int, api_port: int, progress: Progress) -> None:
        self.home = home
        self.slots = slots
        self.progress = progress
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = self._take_lock()
        self.secrets = credentials.secrets_of(home)
        self.ports = credentials.ports_of(home, api_port)
        self.supervisor = Supervisor(home)

    def run(self) -> None:
        """Start everything, look after it, stop it at SIGTERM or SIGINT.

        Raises: StackError when a part does not start; everything is stopped then, too.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.supervisor.stopping.set())
        try:
            self._start_servers()
            self._start_service()
            self.progress(f"up at http://{LOOPBACK}:{self.ports['api']}")
            self.supervisor.run()
        except KeyboardInterrupt:
            self.progress("interrupted")
        finally:
            self.progress("stopping")
            self.supervisor.stop()
            (self.home / "run" / "status.json").unlink(missing_ok=True)
            self._lock.close()

    def _take_lock(self) -> IO[str]:
        """One supervisor for each home. Raises: StackError for a second one."""
        (self.home / "run").mkdir(exist_ok=True)
        lock = (self.home / "run" / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            pid = lock.read().strip()
            lock.close()
            raise StackError(
                f"already up (pid {pid}) in {self.home}",
                hint="manylora status; manylora down",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _start_servers(self) -> None:
        self.progress("starting PostgreSQL, Valkey and SeaweedFS")
        word = self.secrets
        self.postgres = Postgres(self.home, self.ports["postgres"], word)
        self.valkey = Valkey(self.home, self.ports["valkey"], word["valkey"])
        self.store = Seaweed(self.home, self.ports["seaweed"], word["s3_access"], word["s3"])
        started = []
        for server in (self.store, self.postgres, self.valkey):
            server.prepare()
            child = Child(
                server.name,
                server.argv(),
                server.ready,
                user=server.user,
                stop_signal=server.stop_signal,
            )
            self.supervisor.start(child)
            started.append(child)
        for child in started:
            self.supervisor.await_ready(child)
        self.postgres.create_database()
        schema.upgrade(self.postgres.url(OWNER), APP)
        self._write_env()

    def _write_env(self) -> None:
        self.service_env = {
            "MANYLORA_DATABASE_URL": self.postgres.url(APP),
            "MANYLORA_DATABASE_OWNER_URL": self.postgres.url(OWNER),
            "MANYLORA_BROKER_URL": self.valkey.url(),
            "MANYLORA_S3_ENDPOINT": self.store.url(),
            "MANYLORA_S3_BUCKET": seaweed.BUCKET,
            "MANYLORA_S3_ACCESS_KEY": self.store.access_key,
            "MANYLORA_S3_SECRET_KEY": self.store.secret_key,
            "MANYLORA_KEY_PEPPER": self.secrets["pepper"],
            "MANYLORA_API_HOST": LOOPBACK,
            "MANYLORA_API_PORT": str(self.ports["api"]),
        }
        credentials.write_env(self.home / "service.env", self.service_env)
        key = self.secrets.get("api_key") or self._mint()
        client = credentials.client_env(self.ports["api"], key)
        credentials.write_env(self.home / "client.env", client)

    def _mint(self) -> str:
        database = Database(self.postgres.url(APP), pool_size=1)
        try:
            with database.transaction() as tx:
                tenant = tenants.find(tx, TENANT) or tenants.create(tx, TENANT)
                key = tenants.mint_key(
                    tx, tenant, self.secrets["pepper"], scopes=("tenant", "operator")
                )
        finally:
            database.close()
        credentials.remember(self.home, api_key=key)
        return key

    def _start_service(self) -> None:
        self.progress("starting the API, the scheduler and a worker")
        # What the stack itself decides must not be overruled by a stray variable of the caller's.
        env = {k: v for k, v in os.environ.items() if k not in self.service_env}
        env |= {"MANYLORA_HOME": str(self.home), "MANYLORA_RUN_DIR": str(self.home / "run")}
        url = f"http://{LOOPBACK}:{self.ports['api']}"
        cli = [sys.executable, "-m", "manylora.cli.main"]
        api = Child("api", [*cli, "api"], lambda: _answers(f"{url}/readyz"), env=env)
        scheduler = Child("scheduler", [*cli, "scheduler"], lambda: True, env=env)
        worker = Child(
            "worker",
            [*cli, "worker", "--slots", str(self.slots)],
            lambda: True,
            env=env,
            timeout=45.0,
        )
        for child in (api, scheduler, worker):
            self.supervisor.start(child)
        self.supervisor.await_ready(api)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  (our own address)
            return bool(response.status == 200)
    except OSError:
        return False
