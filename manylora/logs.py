"""Structured logs on stderr, with job and tenant bound by context, and secrets kept out.

What must not be read is blotted out twice: by its shape (keys, secrets of webhooks, users and
passwords in URLs, what signs a presigned URL), and by its value, for the secrets of this process.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Final

import structlog

#: a secret shorter than that might be a word of everybody's: it is known by its shape only
_LEAST_CHARACTERS: Final = 12
#: what may be said stands in a group, what follows it may not
_SHAPES: Final = re.compile(
    r"(ml_[a-z0-9]{12}_)[A-Za-z0-9_-]{43}"
    r"|(whsec_)[A-Za-z0-9+/=_-]{16,}"
    r"|(://[^:/?#@\s]*:)[^@\s]+(?=@)"
    r"|(://)[^:/?#@\s]+(?=@)"
    r"|((?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature)=)[^&\s\"']+"
    r"|((?:Bearer|Basic) )[A-Za-z0-9._~+/=-]{8,}",
    re.IGNORECASE,
)
_PLAIN: Final = (bool, int, float, type(None))


def redact(text: str, hidden: Collection[str] = ()) -> str:
    """`text` with every secret blotted out: those of a known shape, and the values in `hidden`."""
    for value in hidden:
        if len(value) >= _LEAST_CHARACTERS:
            text = text.replace(value, "***")
    return _SHAPES.sub(lambda m: f"{next((g for g in m.groups() if g is not None), '')}***", text)


def _clean(value: Any, hidden: Collection[str]) -> Any:
    """`value` as it may be shown, however deep a secret lies in it."""
    if isinstance(value, str):
        return redact(value, hidden)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {redact(str(k), hidden): _clean(v, hidden) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(one, hidden) for one in value]
    return redact(repr(value), hidden)


def _cleaner(hidden: Collection[str]) -> Callable[[Any, str, Any], Any]:
    longest_first = sorted(hidden, key=len, reverse=True)

    def clean(_: Any, __: str, entry: Any) -> Any:
        # What begins with _ is structlog's own, and is taken out before it is shown.
        return {k: v if k.startswith("_") else _clean(v, longest_first) for k, v in entry.items()}

    return clean


def configure(level: str, form: str, hidden: Collection[str] = ()) -> None:
    """Set logging up for a service process; call it once, at its entry. What ends a thread or the
    process unforeseen is logged in the same way."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _cleaner(hidden),
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
    logging.captureWarnings(True)
    sys.excepthook = _ended
    threading.excepthook = _thread_ended


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    structlog.get_logger(__name__).critical("process.broke", exc_info=(kind, error, trace))


def _thread_ended(told: threading.ExceptHookArgs) -> None:
    structlog.get_logger(__name__).critical(
        "thread.broke",
        thread=told.thread.name if told.thread else None,
        exc_info=(told.exc_type, told.exc_value, told.exc_traceback),
    )
