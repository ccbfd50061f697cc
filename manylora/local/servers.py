"""The three servers as one: PostgreSQL (roles, database), Valkey and SeaweedFS (bucket).

`servers` is for a test or a script. The stack (stack.py) starts the same `Servers`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.local import credentials, seaweed
from manylora.local.postgres import APP, OWNER, Postgres
from manylora.local.seaweed import Seaweed
from manylora.local.supervise import Child, Supervisor
from manylora.local.valkey import Valkey

#: What would change how a server behaves, or is none of its business.
_NOT_THEIRS = ("MANYLORA_", "OPENAI_", "AWS_", "PG", "WEED_")


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


class Servers:
    """The three servers of a home, with its secrets and ports."""

    def __init__(self, home: Path, words: dict[str, str], ports: dict[str, Any]) -> None:
        self.postgres = Postgres(home, ports["postgres"], words)
        self.valkey = Valkey(home, ports["valkey"], words["valkey"])
        self.store = Seaweed(home, ports["seaweed"], words["s3_access"], words["s3"])

    def start(self, supervisor: Supervisor) -> None:
        """Start them together and wait until each can be used. Raises: StackError."""
        children = []
        env = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_THEIRS)}
        for server in (self.store, self.postgres, self.valkey):
            server.prepare()
            child = Child(
                server.name,
                server.argv(),
                server.ready,
                user=server.user,
                stop_signal=server.stop_signal,
                timeout=server.timeout,
                cwd=server.cwd,
                env=env | {"HOME": str(server.cwd)},  # no settings from a person's own files
            )
            supervisor.start(child)
            children.append(child)
        for child in children:
            supervisor.await_ready(child)
        self.postgres.create_database()

    def urls(self) -> ServerUrls:
        """Where they are."""
        return ServerUrls(
            database_owner_url=self.postgres.url(OWNER),
            database_url=self.postgres.url(APP),
            broker_url=self.valkey.url(),
            s3_endpoint=self.store.url(),
            s3_access_key=self.store.access_key,
            s3_secret_key=self.store.secret_key,
            s3_bucket=seaweed.BUCKET,
        )


@contextmanager
def servers(home: Path) -> Iterator[ServerUrls]:
    """The three servers below `home`, up until the end of the block.

    As root the data of PostgreSQL may have to live outside of `home`; it is removed at the end.

    Raises: StackError.
    """
    home.mkdir(parents=True, exist_ok=True)
    three = Servers(home, credentials.secrets_of(home), credentials.ports_of(home, 0))
    supervisor = Supervisor(home)
    try:
        three.start(supervisor)
        yield three.urls()
    finally:
        supervisor.stop()
        if three.postgres.data.parent != home:
            shutil.rmtree(three.postgres.data, ignore_errors=True)
            (home / "postgres.path").unlink(missing_ok=True)
