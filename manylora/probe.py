"""The small HTTP server beside a scheduler or a worker: /metrics, /healthz, /readyz.

It knows no keys, so it listens on loopback unless told otherwise, and answers GET only.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final

import structlog

from manylora import __version__
from manylora.checks import Check, all_good, ask
from manylora.errors import UnavailableError
from manylora.metrics import CONTENT_TYPE

log = structlog.get_logger(__name__)
#: so many processes on one machine may be given the same port to start from
PORTS: Final = 32
_JSON: Final = "application/json"
#: seconds a client may take to send its few lines
_PATIENCE: Final = 5.0


class Probe:
    """Answers from threads of its own until `stop`."""

    def __init__(
        self,
        metrics: Callable[[], bytes],
        checks: Mapping[str, Check],
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """`metrics` gives the text to show, `alive` whether this process still does its work."""
        self._metrics = metrics
        self._checks = checks
        self._alive = alive
        self._server: ThreadingHTTPServer | None = None

    def show(self, host: str, port: int) -> None:
        """As `start`, for a process that has better to do than to be looked at: where it cannot
        listen, its log says so, and it goes on unseen. Port 0 is none."""
        if not port:
            return
        try:
            self.start(host, port)
        except UnavailableError as error:
            log.error("probe.not_up", error=error.message, hint=error.hint)

    def start(self, host: str, port: int) -> int:
        """Listen on the first free port of `PORTS` from this one on; returns it.

        Raises: UnavailableError when none can be had.
        """
        probe = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one client."""

            timeout = _PATIENCE

            def do_GET(self) -> None:
                status, kind, content = probe.answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Nothing: a scrape every few seconds is no news."""

        for number in range(port, min(port + PORTS, 65536)):
            try:
                server = ThreadingHTTPServer((host, number), Handler)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise UnavailableError(
                    f"{host}:{number} cannot be listened on: {error.strerror}",
                    hint="check MANYLORA_METRICS_HOST and MANYLORA_METRICS_PORT",
                ) from error
            server.daemon_threads = True
            self._server = server
            Thread(target=server.serve_forever, name="probe", daemon=True).start()
            log.info("probe.up", host=host, port=server.server_port)
            return int(server.server_port)
        raise UnavailableError(
            f"no port of {port} to {port + PORTS - 1} is free on {host}",
            hint="choose others with MANYLORA_METRICS_PORT",
        )

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and content for a path."""
        if path == "/metrics":
            return 200, CONTENT_TYPE, self._metrics()
        if path == "/healthz":
            good = self._alive()
            body = {"status": "ok" if good else "stuck", "version": __version__}
            return 200 if good else 503, _JSON, json.dumps(body).encode()
        if path == "/readyz":
            found = ask(self._checks)
            good = all_good(found)
            body_ready = {"ready": good, "checks": found}
            return 200 if good else 503, _JSON, json.dumps(body_ready).encode()
        return 404, _JSON, b'{"error": "there are /metrics, /healthz and /readyz"}'

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
