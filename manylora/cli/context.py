"""What commands share: the settings, the client, and parts that are loaded by name when needed.

`manylora.local`, `manylora.api`, `worker` and `scheduler` are never imported here or anywhere in
the CLI; they are found by name at the moment a command needs them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manylora.errors import AuthError, UsageError

if TYPE_CHECKING:
    from manylora.client import Client
    from manylora.settings import Settings


def settings(**flags: Any) -> Settings:
    """The settings with `flags` on top. Raises: UsageError naming each wrong value."""
    import pydantic

    from manylora.settings import load_settings

    try:
        return load_settings(**flags)
    except pydantic.ValidationError as error:
        wrong = [
            f"MANYLORA_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
        ]
        raise UsageError("; ".join(wrong), hint="see: manylora config show") from error


def connect(**flags: Any) -> Client:
    """A client for the API the settings name. Raises: AuthError when there is no key."""
    from manylora.client import Client

    chosen = settings(**flags)
    key = chosen.api_key.get_secret_value() if chosen.api_key else ""
    if not key:
        raise AuthError(
            "no API key: MANYLORA_API_KEY is not set",
            hint="start a service here: manylora up -d      or ask whoever runs yours for a key",
        )
    return Client(chosen.api_url, key)


def load(target: str, extra: str | None = None) -> Any:
    """The thing at `module:name`. `extra` is what to install where a part of it is missing."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        raise UsageError(
            f"{error.name} is not installed here",
            code="missing_extra",
            hint=f"pip install 'manylora[{extra}]'",
        ) from error


def base_folder(name: str) -> Path:
    """A base on this machine: its folder, or its name in the cache. Raises: UnknownBaseError."""
    cache = settings().folder("bases")
    found: Path = load("worker.bases.card:find", extra="worker")(cache, name)
    return found
