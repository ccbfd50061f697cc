"""What the CLI's tests share: a shell-like call, and a tiny HTTP service on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CODE = "from manylora.cli.main import main; main()"
Answer = tuple[int, bytes]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `manylora …` as a process that knows nothing of the caller's settings."""

    def call(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MANYLORA_")}
        for name in ("NO_COLOR", "FORCE_COLOR"):
            clean.pop(name, None)
        clean |= {"MANYLORA_HOME": str(tmp_path / "home"), "COLUMNS": "100"} | env
        clean["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
        return subprocess.run(
            [sys.executable, "-c", CODE, *args],
            capture_output=True,
            text=True,
            env=clean,
            cwd=tmp_path,
            timeout=60,
        )

    return call


class Service:
    """Answers by (method, path without query); remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Answer | Callable[[bytes], Answer]] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                service.asked.append((self.command, self.path, dict(self.headers), body))
                found: Any = service.answers.get((self.command, path))
                if found is None:
                    found = (404, b'{"error":{"message":"no such thing","code":"not_found"}}')
                status, content = found(body) if callable(found) else found
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[Service]:
    """A service without any answers yet."""
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()
