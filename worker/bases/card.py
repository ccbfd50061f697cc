"""A base's card: what is known of its files without loading them. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manylora.errors import UnknownBaseError

CARD = "base.json"


@dataclass(frozen=True)
class Card:
    """One base. `files` lists {name, sha256, bytes}; `layers` maps module names to
    [in_features, out_features]; `network` is what builds a base that transformers does not know:
    {task, factory, args, input, output} (`network.py`)."""

    name: str
    fingerprint: str
    dtype: str
    architecture: str
    source: str
    parameters: int
    hidden_size: int
    bytes: int
    chat_template: str | None
    files: list[dict[str, Any]]
    layers: dict[str, list[int]]
    #: what the layers' weights are kept in ("nf4", "int8", "int4-g32"); None: in `dtype`
    quantization: str | None = None
    network: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Put the card into the base's folder; a folder with a card is complete."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        part = folder / f".{CARD}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / CARD)

    def keep(self, made: Path, cache: Path) -> Path:
        """Move a base's folder, card and all, to its place in the cache; the place."""
        self.write(made)
        target = cache / self.fingerprint
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
        return target


def fingerprint(
    dtype: str,
    files: list[dict[str, Any]],
    *,
    quantization: str | None = None,
    network: dict[str, Any] | None = None,
) -> str:
    """sha256 over the dtype, the quantisation if there is one, the digest of every file, and what
    builds the network if something does."""
    facts: dict[str, Any] = {"dtype": dtype, "files": {f["name"]: f["sha256"] for f in files}}
    if quantization is not None:
        facts["quantization"] = quantization
    if network is not None:
        facts["network"] = network
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read(folder: Path) -> Card:
    """The card in a folder. Raises: UnknownBaseError when there is none."""
    path = folder / CARD
    if not path.is_file():
        raise UnknownBaseError(f"{folder} holds no base", hint="manylora base add makes one")
    return Card(**json.loads(path.read_text(encoding="utf-8")))


def find(cache: Path, name: str) -> Path:
    """The cached folder of a base by its name, or `name` itself when it is such a folder.

    Raises: UnknownBaseError listing what is cached.
    """
    if (Path(name) / CARD).is_file():
        return Path(name)
    known = {}
    for path in sorted(cache.glob(f"*/{CARD}")):
        known[read(path.parent).name] = path.parent
    if name not in known:
        raise UnknownBaseError(
            f'no base called "{name}" is in {cache}',
            hint=f"cached: {', '.join(sorted(known)) or 'none'}; manylora base add NAME",
        )
    return known[name]
