"""/v1/manylora/bases: list, register in two steps, remove."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from manylora import keys
from manylora.api import wire
from manylora.api.context import Operator, Parts, Tenant
from manylora.errors import StateError, UsageError
from manylora.ledger import bases
from manylora.ledger.tables import Base

router = APIRouter(prefix="/v1/manylora/bases")
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BaseFile(BaseModel):
    """One file of a base."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    sha256: _Hex
    bytes: int = Field(ge=0)


class Input(BaseModel):
    """What a network reads of one example; ids stay under `below`."""

    shape: list[Annotated[int, Field(ge=1)]] = Field(max_length=8)
    dtype: str = Field(pattern=r"^(float32|int64)$")
    below: int | None = Field(None, ge=1)


class Network(BaseModel):
    """A network that a function on the worker builds. An operator's word: workers call that
    function, where their own MANYLORA_FACTORIES names its module."""

    task: str = Field(pattern=r"^(regression|classification|causal-lm)$")
    factory: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=200)
    args: dict[str, Any]
    input: Input | None
    output: list[Annotated[int, Field(ge=1)]] | None = Field(max_length=8)

    @model_validator(mode="after")
    def _whole(self) -> Network:
        """Refuse a network of arrays that does not say what it reads and makes."""
        if self.task != "causal-lm" and (self.input is None or self.output is None):
            raise ValueError("a network of arrays has an input and an output")
        if self.task == "classification" and not self.output:
            raise ValueError("a classification has classes")
        return self


class Card(BaseModel):
    """A base, as `base add` describes it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    fingerprint: _Hex
    dtype: str = Field(pattern=r"^(bfloat16|float32)$")
    architecture: str = Field(max_length=100)
    source: str = Field(max_length=500)
    parameters: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    bytes: int = Field(ge=1)
    chat_template: str | None = None
    files: list[BaseFile] = Field(min_length=1, max_length=500)
    layers: dict[str, tuple[int, int]]
    quantization: str | None = Field(None, pattern=r"^(nf4|int8|int4-g[1-9][0-9]{0,4})$")
    network: Network | None = None


def _missing(parts: Parts, fingerprint: str, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        f for f in files if parts.store.size(keys.base_key(fingerprint, f["name"])) != f["bytes"]
    ]


@router.get("")
def page(parts: Parts, _: Tenant) -> dict[str, Any]:
    """Every base that is ready."""
    with parts.database.transaction() as tx:
        return {"object": "list", "data": [wire.base(row) for row in bases.ready(tx)]}


@router.post("")
def start(parts: Parts, _: Operator, card: Card) -> dict[str, Any]:
    """Announce a base; answers where to put the files the store lacks."""
    facts: dict[str, Any] = {"dtype": card.dtype, "files": {f.name: f.sha256 for f in card.files}}
    if card.quantization is not None:
        facts["quantization"] = card.quantization
    if card.network is not None:
        facts["network"] = card.network.model_dump()
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(canonical.encode()).hexdigest() != card.fingerprint:
        raise UsageError("the fingerprint does not belong to these files", param="fingerprint")
    columns = card.model_dump() | {"layers": {k: list(v) for k, v in card.layers.items()}}
    with parts.database.transaction() as tx:
        shown = wire.base(_flushed(bases.start(tx, **columns), tx))
    uploads = []
    for file in _missing(parts, card.fingerprint, columns["files"]):
        key = keys.base_key(card.fingerprint, file["name"])
        url, headers = parts.store.presign_put(key, file["sha256"])
        uploads.append({"name": file["name"], "url": url, "headers": headers})
    return {"base": shown, "uploads": uploads}


def _flushed(row: Base, tx: Any) -> Base:
    tx.refresh(row)
    return row


@router.post("/{name}/complete")
def complete(parts: Parts, _: Operator, name: str) -> dict[str, Any]:
    """All files are up: the base may be trained on."""
    with parts.database.transaction() as tx:
        row = tx.get(Base, name)
        files, fingerprint = (row.files, row.fingerprint) if row else ([], "")
    lacking = _missing(parts, fingerprint, files)
    if lacking:
        raise StateError(f"not uploaded yet: {', '.join(f['name'] for f in lacking)}")
    with parts.database.transaction() as tx:
        return wire.base(bases.finish(tx, name))


@router.delete("/{name}")
def remove(parts: Parts, _: Operator, name: str) -> dict[str, Any]:
    """Forget a base that no open job needs; adapters trained on it stay."""
    with parts.database.transaction() as tx:
        bases.remove(tx, name)
    return {"name": name, "deleted": True}
