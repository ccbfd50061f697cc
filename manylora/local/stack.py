"""The whole service on one machine: what is started, in which order, with which settings."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from manylora.errors import AuthError
from manylora.ledger import schema, tenants
from manylora.ledger.database import Database
from manylora.local import credentials, lock, notes
from manylora.local.ports import LOOPBACK
from manylora.local.postgres import APP
from manylora.local.servers import Servers
from manylora.local.supervise import Child, Supervisor

Progress = Callable[[str], None]
TENANT = "local"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stack:
    """One home's stack, run by this process. Raises: StackError when another one runs it."""

    def __init__(
        self,
        home: Path,
        slots: int,
        api_port: int,
        progress: Progress,
        lock_descriptor: int | None = None,
    ) -> None:
        self.home = home
        self.slots = slots
        self.progress = progress
        # As root, PostgreSQL's own user has to pass through; what is secret in it is closed.
        home.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        self._lock = lock.take(home) if lock_descriptor is None else lock.inherit(lock_descriptor)
        self.secrets = credentials.secrets_of(home)
        self.ports = credentials.ports_of(home, api_port)
        self.url = f"http://{LOOPBACK}:{self.ports['api']}"
        self.servers = Servers(home, self.secrets, self.ports)
        self.supervisor = Supervisor(home)
        self.supervisor.facts = {
            "ports": self.ports,
            "urls": {"api": self.url, "openai": f"{self.url}/v1", "s3": self.servers.store.url()},
        }

    def run(self) -> None:
        """Start everything, look after it, stop it at SIGTERM, SIGINT or SIGHUP.

        Raises: StackError when a part does not start; everything is stopped then, too.
        """
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, lambda *_: self.supervisor.stopping.set())
        try:
            self.supervisor.note()
            self.progress("starting PostgreSQL, Valkey and SeaweedFS")
            self.servers.start(self.supervisor)
            self._open_ledger()
            self.progress("starting the API, the scheduler and a worker")
            self._start_service()
            self.progress(f"up at {self.url}")
            self.supervisor.run()
        except KeyboardInterrupt:
            pass  # told to stop while starting
        finally:
            self.supervisor.stop()
            notes.clear(self.home)
            self._lock.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.progress("stopped")

    def _open_ledger(self) -> None:
        """Bring the schema up to date; write the two files that tell everybody the addresses."""
        urls = self.servers.urls()
        schema.upgrade(urls.database_owner_url, APP)
        self.service_env = {
            "MANYLORA_DATABASE_URL": urls.database_url,
            "MANYLORA_DATABASE_OWNER_URL": urls.database_owner_url,
            "MANYLORA_BROKER_URL": urls.broker_url,
            "MANYLORA_S3_ENDPOINT": urls.s3_endpoint,
            "MANYLORA_S3_BUCKET": urls.s3_bucket,
            "MANYLORA_S3_ACCESS_KEY": urls.s3_access_key,
            "MANYLORA_S3_SECRET_KEY": urls.s3_secret_key,
            "MANYLORA_KEY_PEPPER": self.secrets["pepper"],
            "MANYLORA_API_HOST": LOOPBACK,
            "MANYLORA_API_PORT": str(self.ports["api"]),
        }
        credentials.write_env(self.home / "service.env", self.service_env)
        client = credentials.client_env(self.ports["api"], self._api_key(urls.database_url))
        credentials.write_env(self.home / "client.env", client)

    def _api_key(self, database_url: str) -> str:
        """The key of last time if the ledger still takes it, else a new one."""
        pepper = self.secrets["pepper"]
        database = Database(database_url, pool_size=1)
        try:
            with database.transaction() as tx:
                try:
                    tenants.authenticate(tx, self.secrets.get("api_key"), pepper)
                    return self.secrets["api_key"]
                except AuthError:
                    tenant = tenants.find(tx, TENANT) or tenants.create(tx, TENANT)
                    key = tenants.mint_key(tx, tenant, pepper, scopes=("tenant", "operator"))
        finally:
            database.close()
        credentials.remember(self.home, api_key=key)
        return key

    def _start_service(self) -> None:
        # What the stack itself decides must not be overruled by a stray variable of the caller's.
        env = {k: v for k, v in os.environ.items() if k not in self.service_env}
        env |= {"MANYLORA_HOME": str(self.home), "MANYLORA_RUN_DIR": str(self.home / "run")}
        for name in ("no_proxy", "NO_PROXY"):
            env[name] = ",".join(filter(None, [env.get(name), LOOPBACK]))
        cli = [sys.executable, "-m", "manylora.cli.main"]
        ready = f"{self.url}/readyz"
        api = Child("api", [*cli, "api"], lambda: _answers(ready), env=env, floor=1)
        scheduler = Child("scheduler", [*cli, "scheduler"], lambda: True, env=env, floor=1)
        worker = Child(
            "worker",
            [*cli, "worker", "--slots", str(self.slots)],
            lambda: True,
            env=env,
            timeout=45.0,
            floor=1,
        )
        for child in (api, scheduler, worker):
            self.supervisor.start(child)
        self.supervisor.await_ready(api)


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
