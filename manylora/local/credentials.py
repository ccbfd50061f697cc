"""The stack's secrets and ports: made once, kept in files below the home.

Every file with a secret has mode 600; no secret is ever in a command line or a log.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from manylora.local import seaweed
from manylora.local.files import write_private
from manylora.local.ports import LOOPBACK, free_ports, is_free, require_free
from manylora.local.postgres import APP, OWNER
from manylora.settings import Settings


def secrets_of(home: Path) -> dict[str, str]:
    """The stack's passwords and keys."""
    path = home / "credentials.json"
    if path.exists():
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    made = {name: secrets.token_hex(16) for name in ("postgres", OWNER, APP, "valkey", "s3")}
    made |= {"s3_access": secrets.token_hex(10), "pepper": secrets.token_hex(32)}
    write_private(path, json.dumps(made))
    return made


def remember(home: Path, **more: str) -> None:
    """Add to the stack's secrets."""
    write_private(home / "credentials.json", json.dumps(secrets_of(home) | more))


def ports_of(home: Path, api_port: int) -> dict[str, Any]:
    """Last time's ports while they are free, else new ones; `api_port` for the API.

    Raises: StackError when `api_port` was chosen by somebody (it is neither the default nor last
    time's) and is taken.
    """
    path = home / "ports.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    chosen = api_port not in (0, Settings.model_fields["api_port"].default, kept.get("api"))
    spare = iter(free_ports(3 + seaweed.PORTS))

    def still(port: int | None) -> int:
        return port if port and is_free(port) else next(spare)

    last = [*kept.get("seaweed", []), *[None] * seaweed.PORTS][: seaweed.PORTS]
    made = {
        "api": require_free(api_port) if chosen else still(api_port or kept.get("api")),
        "postgres": still(kept.get("postgres")),
        "valkey": still(kept.get("valkey")),
        "seaweed": [still(port) for port in last],
    }
    write_private(path, json.dumps(made))
    return made


def write_env(path: Path, values: dict[str, str]) -> None:
    """Plain KEY=value lines, mode 600."""
    write_private(path, "".join(f"{key}={value}\n" for key, value in values.items()))


def client_env(port: int, key: str) -> dict[str, str]:
    """What a client needs: ours and the openai client's names for it."""
    url = f"http://{LOOPBACK}:{port}"
    return {
        "MANYLORA_API_URL": url,
        "MANYLORA_API_KEY": key,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": key,
    }
