"""Structured logs on stderr, with job and tenant bound by context, and secrets kept out."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog

_SECRET = re.compile(
    r"(ml_[a-z0-9]{12}_)[A-Za-z0-9_-]{43}|(://[^:/@\s]*:)[^@\s]+(?=@)"
    r"|((?:X-Amz-Signature|X-Amz-Credential)=)[^&\s\"']+"
)


def redact(text: str) -> str:
    """`text` with keys, passwords in URLs and presigned signatures blotted out."""
    return _SECRET.sub(lambda m: f"{m[1] or m[2] or m[3]}***", text)


def _redact(_: Any, __: str, entry: Any) -> Any:
    return {k: redact(v) if isinstance(v, str) else v for k, v in entry.items()}


def configure(level: str, form: str) -> None:
    """Set logging up for a service process; call it once, at its entry."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("botocore", "boto3", "urllib3", "s3transfer", "celery.app.trace", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
