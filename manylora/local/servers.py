"""Just the three servers, for a test or a script: started together, stopped at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manylora.errors import StackError
from manylora.local import seaweed, tether
from manylora.local.ports import free_ports
from manylora.local.postgres import APP, OWNER, Postgres
from manylora.local.seaweed import Seaweed
from manylora.local.valkey import Valkey

Server = Postgres | Valkey | Seaweed


@dataclass(frozen=True)
class ServerUrls:
    """Where the three servers are, and the keys to them."""

    database_owner_url: str
    database_url: str
    broker_url: str
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str
    s3_bucket: str


def spawn(server: Server, log: Path) -> subprocess.Popen[bytes]:
    """Start a prepared server as a child that dies with this process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            tether.command(server.argv(), server.user),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
        )


def stop(process: subprocess.Popen[bytes], number: signal.Signals, timeout: float = 20.0) -> None:
    """Ask a child to end; after `timeout` seconds end its whole group."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_ready(
    server: Server, process: subprocess.Popen[bytes], log: Path, timeout: float = 120.0
) -> None:
    """Wait until a server answers. Raises: StackError with its log when it does not."""
    deadline = time.monotonic() + timeout
    while not server.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise StackError(f"{server.name} did not start:\n{tail}")
        time.sleep(0.1)


@contextmanager
def servers(home: Path) -> Iterator[ServerUrls]:
    """PostgreSQL (roles and database made), Valkey and SeaweedFS (bucket made) below `home`.

    Raises: StackError.
    """
    home.mkdir(parents=True, exist_ok=True)
    ports = free_ports(2 + seaweed.PORTS)
    word = {name: secrets.token_hex(16) for name in ("postgres", OWNER, APP, "valkey", "s3")}
    postgres = Postgres(home, ports[0], word)
    valkey = Valkey(home, ports[1], word["valkey"])
    store = Seaweed(home, ports[2:], secrets.token_hex(10), word["s3"])
    started: list[tuple[Server, subprocess.Popen[bytes]]] = []
    try:
        for server in (store, postgres, valkey):
            server.prepare()
            started.append((server, spawn(server, home / "logs" / f"{server.name}.log")))
        for server, process in started:
            await_ready(server, process, home / "logs" / f"{server.name}.log")
        postgres.create_database()
        yield ServerUrls(
            database_owner_url=postgres.url(OWNER),
            database_url=postgres.url(APP),
            broker_url=valkey.url(),
            s3_endpoint=store.url(),
            s3_access_key=store.access_key,
            s3_secret_key=store.secret_key,
            s3_bucket=seaweed.BUCKET,
        )
    finally:
        for server, process in reversed(started):
            stop(process, server.stop_signal)
        if postgres.data.parent != home:
            shutil.rmtree(postgres.data, ignore_errors=True)
