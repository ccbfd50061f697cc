"""Every error in OpenAI's shape: {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from manylora.errors import AuthError, ManyloraError, QuotaError, UnavailableError

log = structlog.get_logger(__name__)


class TooLargeError(HTTPException):
    """A body over its bound; an HTTPException, for FastAPI lets no other pass while it reads."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(status, message)
        self.code = code


class Problem(JSONResponse):
    """An error's answer; it leaves its code where the middleware counts it."""

    def __init__(
        self, body: dict[str, Any], status: int, headers: dict[str, str] | None, code: str | None
    ) -> None:
        super().__init__(body, status, headers=headers)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


def answer(
    status: int,
    message: str,
    *,
    code: str | None,
    param: str | None = None,
    hint: str | None = None,
    details: Any = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """One error; `hint` and `details` ride beside the four keys of OpenAI."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    # A lone surrogate in what a client sent, quoted back, cannot be written as UTF-8.
    message = message.encode("utf-8", "backslashreplace").decode()
    param = param and param.encode("utf-8", "backslashreplace").decode()
    error = {"message": message, "type": kind, "param": param, "code": code}
    more = {"hint": hint, "details": details}
    body = {"error": error | {k: v for k, v in more.items() if v is not None}}
    return Problem(body, status, headers, code)


def from_http(error: HTTPException) -> JSONResponse:
    """The answer to an error of the web framework: no such URL, wrong method, unreadable body."""
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    param = None
    if isinstance(error, TooLargeError):
        code = error.code
        param = "file" if code == "file_too_large" else None
    headers = dict(error.headers) if error.headers else None
    return answer(error.status_code, str(error.detail), code=code, param=param, headers=headers)


def install(app: FastAPI) -> None:
    """Put the handlers on the app."""

    @app.exception_handler(ManyloraError)
    def known(_: Request, error: ManyloraError) -> JSONResponse:
        status = error.http_status
        headers = {}
        if isinstance(error, QuotaError):
            headers["x-should-retry"] = "false"
            after = error.details.get("retry_after") if isinstance(error.details, dict) else None
            if after is not None:
                headers["Retry-After"] = str(after)
        if isinstance(error, UnavailableError):
            headers["Retry-After"] = "2"
        if isinstance(error, AuthError):
            if error.error_code == "insufficient_permissions":
                status = 403
            else:
                headers["WWW-Authenticate"] = "Bearer"
        # Clients that know only OpenAI's four keys must see the hint, too.
        return answer(
            status,
            error.message + (f" ({error.hint})" if error.hint else ""),
            code=error.error_code,
            param=error.param,
            hint=error.hint,
            details=error.details,
            headers=headers,
        )

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(p) for p in first["loc"][1:]) or None
        message = f"{param or 'the request'}: {first['msg']}"
        return answer(400, message, code="invalid_request", param=param)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        return from_http(error)

    @app.exception_handler(DataError)
    def unstorable(_: Request, __: DataError) -> JSONResponse:
        return answer(
            400,
            "a value holds what cannot be stored: a NUL, or a number too large",
            code="invalid_request",
        )

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("api.unexpected", path=request.url.path, exc_info=error)
        # This answer is made outside the middleware: the id must be put on it here.
        return answer(
            500,
            "the server made a mistake; it is in its log",
            code="internal_error",
            headers={"x-request-id": request.scope["state"]["request_id"]},
        )
