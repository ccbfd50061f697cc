"""The manifest of an adapter's folder that was made here and by no job, and the reading of any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manylora import __version__
from manylora.errors import UsageError
from manylora.storage.store import sha256_of

MANIFEST = "manifest.json"


def describe(folder: Path, base: dict[str, Any], **facts: Any) -> None:
    """Write `manifest.json` over all files of the folder; `base` is its name and fingerprint."""
    told = {
        "format": "manylora-adapter/1",
        "base": base,
        **facts,
        "versions": {"manylora": __version__},
        "files": [
            {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
            for p in sorted(folder.iterdir())
        ],
    }
    text = json.dumps(told, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def base_of(adapter: Path) -> dict[str, Any] | None:
    """The base (name, fingerprint) an adapter's manifest names; None without a manifest.

    Raises: UsageError for one that cannot be read.
    """
    path = adapter / MANIFEST
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_bytes())["base"]
        return {"name": str(base["name"]), "fingerprint": str(base["fingerprint"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path} is not a manifest: {error}", hint="fetch the adapter again: manylora fetch"
        ) from error
