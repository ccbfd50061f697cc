"""The stack's secrets and ports: made once, kept in files of mode 600 below the home."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from manylora.local import seaweed
from manylora.local.ports import LOOPBACK, free_ports, is_free
from manylora.local.postgres import APP, OWNER


def write_secret(path: Path, text: str) -> None:
    """Write a file only its owner may read, all or nothing."""
    part = path.with_name(f".{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(part, path)


def secrets_of(home: Path) -> dict[str, str]:
    """The stack's passwords and keys."""
    path = home / "credentials.json"
    if path.exists():
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    made = {name: secrets.token_hex(16) for name in ("postgres", OWNER, APP, "valkey", "s3")}
    made |= {"s3_access": secrets.token_hex(10), "pepper": secrets.token_hex(32)}
    write_secret(path, json.dumps(made))
    return made


def remember(home: Path, **more: str) -> None:
    """Add to the stack's secrets."""
    write_secret(home / "credentials.json", json.dumps(secrets_of(home) | more))


def ports_of(home: Path, api_port: int) -> dict[str, Any]:
    """Last time's ports while they are free, else new ones; `api_port` for the API if free."""
    path = home / "ports.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        every = [kept["api"], kept["postgres"], kept["valkey"], *kept["seaweed"]]
        if all(is_free(port) for port in every):
            return kept
    found = free_ports(3 + seaweed.PORTS)
    made = {
        "api": api_port if is_free(api_port) else found[0],
        "postgres": found[1],
        "valkey": found[2],
        "seaweed": found[3:],
    }
    path.write_text(json.dumps(made), encoding="utf-8")
    return made


def write_env(path: Path, values: dict[str, str]) -> None:
    """Plain KEY=value lines, mode 600."""
    write_secret(path, "".join(f"{key}={value}\n" for key, value in values.items()))


def client_env(port: int, key: str) -> dict[str, str]:
    """What a client needs: ours and the openai client's names for it."""
    url = f"http://{LOOPBACK}:{port}"
    return {
        "MANYLORA_API_URL": url,
        "MANYLORA_API_KEY": key,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": key,
    }
