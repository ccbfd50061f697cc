"""/v1/files: upload, list, get, content, delete."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData, UploadFile

from manylora import keys
from manylora.api import lookups, wire
from manylora.api.context import Parts, Tenant
from manylora.datasets.arrays import is_arrays, validate_arrays
from manylora.datasets.limits import Limits
from manylora.errors import DatasetError, UsageError
from manylora.ledger import files, shares

router = APIRouter(prefix="/v1/files")
_CHUNK = 1 << 20


async def _form(request: Request, _: Tenant) -> AsyncIterator[FormData]:
    """The form, read only once the key is known to be good: a stranger's bytes fill no disk."""
    async with request.form(max_files=1, max_fields=10) as form:
        yield form


@router.post("")
def upload(
    parts: Parts, caller: Tenant, form: Annotated[FormData, Depends(_form)]
) -> dict[str, Any]:
    """Store a dataset under its digest, then record it. Sending it again is harmless."""
    purpose, file = form.get("purpose"), form.get("file")
    if not isinstance(file, UploadFile):
        raise UsageError("file: a file is required", param="file")
    name = Path((file.filename or "").replace("\0", "")).name[:255] or "dataset.jsonl"
    if purpose != "fine-tune":
        raise UsageError(f"purpose {purpose!r} is not supported", hint="fine-tune", param="purpose")
    digest, size = hashlib.sha256(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        with path.open("wb") as out:
            while chunk := file.file.read(_CHUNK):
                size += len(chunk)
                if size > parts.settings.max_file_bytes:
                    raise DatasetError(
                        f"the file is larger than {parts.settings.max_file_bytes} bytes",
                        code="file_too_large",
                        param="file",
                    )
                digest.update(chunk)
                out.write(chunk)
        if size == 0:
            raise DatasetError("the file is empty", code="empty_file", param="file")
        if is_arrays(name):
            named = path.rename(path.with_suffix(Path(name).suffix))
            validate_arrays(named, Limits.from_settings(parts.settings)).raise_if_bad(name)
            path = named
        key = keys.dataset_key(str(caller.tenant_id), digest.hexdigest())
        if parts.store.size(key) != size:
            parts.store.put_file(key, path)
        with parts.database.transaction() as tx:
            # Whoever deletes the last file with these bytes holds this, too.
            lookups.lock(tx, key)
            if parts.store.size(key) != size:
                parts.store.put_file(key, path)
            shares.check_bytes(tx, caller.tenant_id, size)
            row = files.add(
                tx,
                caller.tenant_id,
                filename=name,
                purpose=purpose,
                size=size,
                sha256=digest.hexdigest(),
            )
            return wire.file(row)


@router.get("")
def page(
    parts: Parts,
    caller: Tenant,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """The tenant's files."""
    with parts.database.transaction() as tx:
        rows, more = files.page(
            tx,
            caller.tenant_id,
            after=after,
            limit=limit,
            purpose=purpose,
            ascending=order == "asc",
        )
        return wire.listing(rows, more, wire.file)


@router.get("/{file_id}")
def get(parts: Parts, caller: Tenant, file_id: str) -> dict[str, Any]:
    """One file."""
    with parts.database.transaction() as tx:
        return wire.file(files.get(tx, caller.tenant_id, file_id))


@router.get("/{file_id}/content")
def content(parts: Parts, caller: Tenant, file_id: str) -> RedirectResponse:
    """Its bytes, straight from the object store."""
    with parts.database.transaction() as tx:
        row = files.get(tx, caller.tenant_id, file_id)
    key = keys.dataset_key(str(caller.tenant_id), row.sha256)
    name = f"{row.id}{Path(row.filename).suffix or '.jsonl'}"
    return RedirectResponse(parts.store.presign_get(key, name), 307)


@router.delete("/{file_id}")
def delete(parts: Parts, caller: Tenant, file_id: str) -> dict[str, Any]:
    """Delete a file, and its bytes when no other file of the tenant shares them."""
    with parts.database.transaction() as tx:
        row, alone = files.delete(tx, caller.tenant_id, file_id)
    if alone:
        key = keys.dataset_key(str(caller.tenant_id), row.sha256)
        with parts.database.transaction() as tx:
            lookups.lock(tx, key)
            if not lookups.bytes_needed(tx, caller.tenant_id, row.sha256):
                parts.store.delete(key)
    return {"id": file_id, "object": "file", "deleted": True}
