"""The API's process: the app, its middleware, and how it is served."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import uvicorn
from fastapi import FastAPI, Request, Response

from manylora import __version__, keys
from manylora.api import problems
from manylora.api.context import Context
from manylora.api.routes import adapters, bases, files, health, jobs, models
from manylora.errors import UnavailableError
from manylora.ledger.database import Database
from manylora.logs import configure
from manylora.settings import Settings
from manylora.storage.store import Store

log = structlog.get_logger(__name__)
_JSON_BYTES = 1 << 20


def create_app(settings: Settings) -> FastAPI:
    """The whole API over one ledger and one store."""
    database = Database(settings.database_url.get_secret_value(), pool_size=20)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        database.close()

    app = FastAPI(title="manylora", version=__version__, lifespan=lifespan)
    app.state.context = Context(settings, database, Store(settings))
    problems.install(app)
    for part in (health, files, jobs, models, bases, adapters):
        app.include_router(part.router)

    @app.middleware("http")
    async def around(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """A request id in and out, a bound on JSON bodies, one log line without the query."""
        given = request.headers.get("x-request-id", "")
        request_id = given if given.isalnum() and len(given) <= 64 else keys.request_id()
        began = time.perf_counter()
        length = request.headers.get("content-length", "0")
        multipart = request.headers.get("content-type", "").startswith("multipart/")
        if not multipart and (not length.isdigit() or int(length) > _JSON_BYTES):
            response: Response = problems.answer(
                413, f"the body is larger than {_JSON_BYTES} bytes", code="body_too_large"
            )
        else:
            response = await call_next(request)
        response.headers["x-request-id"] = request_id
        log.info(
            "request",
            method=request.method,
            path=request.url.path,
            status=response.status_code,
            ms=round((time.perf_counter() - began) * 1000, 1),
            request_id=request_id,
        )
        return response

    return app


def serve(settings: Settings) -> None:
    """Answer on api_host:api_port until SIGTERM. Raises: UnavailableError for a taken port."""
    configure(settings.log_level, settings.log_format)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.api_host, settings.api_port))
        except OSError as error:
            raise UnavailableError(
                f"{settings.api_host}:{settings.api_port} cannot be listened on: {error.strerror}",
                hint="choose another with --port or MANYLORA_API_PORT",
            ) from error
    uvicorn.run(
        create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
    )
