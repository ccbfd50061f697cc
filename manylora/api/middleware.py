"""What surrounds every request: its id, the bound on its body, its line in the log, its count.

What a request means is the routes' business; how an error looks is `problems.py`'s.
"""

from __future__ import annotations

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manylora import keys
from manylora.api import problems
from manylora.metrics import ApiMetrics

log = structlog.get_logger(__name__)
JSON_BYTES = 1 << 20
#: room in an upload for the form's other fields and its boundaries
_FORM_BYTES = 1 << 16
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Around:
    """ASGI middleware. Only `POST /v1/files` may send more than `JSON_BYTES`."""

    def __init__(self, app: ASGIApp, max_file_bytes: int, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._max_file_bytes = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counted and timed; one that announces too much is not read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _PLAIN_ID.fullmatch(given) else keys.request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        upload = scope["method"] == "POST" and scope["path"] == "/v1/files"
        limit = self._max_file_bytes + _FORM_BYTES if upload else JSON_BYTES
        began, status, read = time.perf_counter(), 500, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise self._too_large(upload)
            return message

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        length = headers.get("content-length", "0")
        try:
            if not (length.isascii() and length.isdigit()) or int(length) > limit:
                response = problems.from_http(self._too_large(upload))
                await response(scope, receive, stamped)
            else:
                await self._app(scope, counted, stamped)
        finally:
            seconds = time.perf_counter() - began
            # The template, not the path: what clients put into it has no bound.
            template = getattr(scope.get("route"), "path", None)
            code = scope["state"].get("error_code", "internal_error" if status == 500 else None)
            self._metrics.answered(scope["method"], template, status, seconds, code)
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1000, 1),
                request_id=request_id,
            )

    def _too_large(self, upload: bool) -> problems.TooLargeError:
        if upload:
            return problems.TooLargeError(
                400, f"the file is larger than {self._max_file_bytes} bytes", "file_too_large"
            )
        return problems.TooLargeError(
            413, f"the body is larger than {JSON_BYTES} bytes", "body_too_large"
        )
