"""The API's process: the app put together, and how it is served."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from manylora import __version__, crash
from manylora.api import problems
from manylora.api.context import Context
from manylora.api.middleware import Around
from manylora.api.routes import (
    adapters,
    bases,
    checkpoints,
    files,
    health,
    jobs,
    models,
    queue,
    webhooks,
)
from manylora.errors import UnavailableError
from manylora.ledger.database import Database
from manylora.logs import configure
from manylora.metrics import ApiMetrics
from manylora.settings import Settings
from manylora.storage.store import Store


def create_app(settings: Settings) -> FastAPI:
    """The whole API over one ledger and one store."""
    database = Database(settings.database_url.get_secret_value(), pool_size=20)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        database.close()

    app = FastAPI(title="manylora", version=__version__, lifespan=lifespan)
    metrics = ApiMetrics()
    app.state.context = Context(settings, database, Store(settings), metrics)
    problems.install(app)
    for part in (health, files, jobs, checkpoints, models, bases, adapters, webhooks, queue):
        app.include_router(part.router)

    app.add_middleware(Around, max_file_bytes=settings.max_file_bytes, metrics=metrics)
    return app


def serve(settings: Settings) -> None:
    """Answer on api_host:api_port until SIGTERM. Raises: UnavailableError for a taken port."""
    configure(settings.log_level, settings.log_format, settings.secrets())
    crash.arm(settings.crash_at)
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
