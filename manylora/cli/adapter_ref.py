"""An adapter as a command names it: a folder on this machine, or one to be fetched first."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manylora.cli import context, output
from manylora.errors import UsageError


@contextlib.contextmanager
def adapter_folder(ref: str) -> Iterator[Path]:
    """The folder `ref` is, or one that holds the adapter of that name, job or suffix meanwhile.

    Raises: UsageError for a folder without an adapter; what `fetch` raises.
    """
    path = Path(ref)
    if path.exists() or ref.startswith((".", "/", "~")):
        path = path.expanduser()
        if not (path / "adapter_config.json").is_file():
            raise UsageError(
                f"{ref} is no adapter's folder: it has no adapter_config.json",
                hint="manylora adapters lists what can be fetched",
            )
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="manylora-") as scratch:
        output.talk(ref, "fetching")
        target = Path(scratch) / "adapter"
        context.connect().fetch(ref, target)
        yield target


def base_of(adapter: Path) -> str:
    """The base an adapter names in its manifest, or in its config. Raises: UsageError."""
    for name, key in (
        ("manifest.json", "base"),
        ("adapter_config.json", "base_model_name_or_path"),
    ):
        try:
            found: Any = json.loads((adapter / name).read_bytes()).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        # A manifest may describe its base instead of naming it.
        found = found.get("name") if isinstance(found, dict) else found
        if found:
            return str(found)
    raise UsageError(
        f"{adapter} names no base: is it an adapter's folder?", hint="or give --base NAME"
    )
