"""The object store, by boto3. Every put carries a SHA-256 that the store checks; every get is
verified before the file gets its name. What the objects mean stands in `keys.py`."""

from __future__ import annotations

import base64
import builtins
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from manylora import crash, keys
from manylora.errors import IntegrityError, NotFoundError, UnavailableError
from manylora.settings import Settings
from manylora.storage import parts

_CHUNK = 1 << 20
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchUpload"}
#: answers to a condition: it does not hold; it could not be told, ask again
_REFUSED, _RACING = {"PreconditionFailed", "412"}, {"ConditionalRequestConflict", "409"}
_WRITERS = 8


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _b64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise NotFoundError(f"no object {what}") from error
        if code in {"BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest"}:
            raise IntegrityError(f"{what} was changed on its way to the store") from error
        raise UnavailableError(
            f"the object store refused {what}: {code}", hint="check MANYLORA_S3_*"
        ) from error
    except BotoCoreError as error:
        raise UnavailableError(
            f"the object store cannot be reached ({type(error).__name__})",
            hint="is it up? `manylora status` shows the embedded one; then try again",
        ) from error


class _Stream(io.RawIOBase):
    """The bytes of an object as they come; a connection that breaks off is an outage."""

    def __init__(self, what: str, body: Any) -> None:
        super().__init__()
        self._what = what
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _plain_errors(self._what):
            chunk: bytes = self._body.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._body.close()
        super().close()


class Store:
    """One bucket of one endpoint. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self.bucket = settings.s3_bucket
        self._presign_seconds = settings.presign_seconds
        self._multipart_bytes = settings.s3_multipart_bytes
        #: whether the store keeps a conditional put; `probe` finds out. A second lock: no promise
        #: of ours rests on it, the database's guarded transaction decides.
        self.conditional = True
        self._client = self._connect(settings, settings.s3_endpoint)
        public = settings.s3_public_endpoint
        self._public = self._connect(settings, public) if public else self._client
        host = urlparse(settings.s3_endpoint or "").hostname
        self.embedded = host in {"127.0.0.1", "localhost"}

    @staticmethod
    def _connect(settings: Settings, endpoint: str | None) -> Any:
        secrets = settings.s3_access_key, settings.s3_secret_key
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=secrets[0].get_secret_value() if secrets[0] else None,
            aws_secret_access_key=secrets[1].get_secret_value() if secrets[1] else None,
            config=Config(
                signature_version="s3v4",
                connect_timeout=5,
                read_timeout=20,
                retries={"mode": "standard", "max_attempts": 3},
                s3={"addressing_style": "path"} if endpoint else None,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def ensure_bucket(self) -> None:
        """Make the bucket unless it is there."""
        with _plain_errors(f"bucket {self.bucket}"):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError:
                self._client.create_bucket(Bucket=self.bucket)

    def ping(self) -> None:
        """Raises UnavailableError or NotFoundError unless the bucket answers."""
        with _plain_errors(f"bucket {self.bucket}"):
            self._client.head_bucket(Bucket=self.bucket)

    def probe(self) -> bool:
        """Ask the store whether it keeps its word on conditional puts, alone and in a race; what it
        answers decides whether they are used. Raises: UnavailableError.
        """
        key = keys.probe_key(secrets.token_hex(8))
        self.conditional = True
        with _plain_errors("the conditional put"):
            with ThreadPoolExecutor(_WRITERS) as pool:
                won = list(pool.map(lambda n: self._won(key, b"%d" % n), range(_WRITERS)))
            self.conditional = won.count(True) == 1 and not self._won(key, b"late")
        self.delete(key)
        return self.conditional

    def _won(self, key: str, body: bytes) -> bool:
        try:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=body, IfNoneMatch="*")
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code in _REFUSED | _RACING:
                return False
            if code in {"NotImplemented", "501"}:
                return True  # it knows of no conditions: as if everybody won
            raise
        return True

    def put_bytes(self, key: str, body: bytes, *, if_absent: bool = False) -> str:
        """Store a small object; returns its sha256. With `if_absent`, an object that is there
        already must hold the same bytes.

        Raises: IntegrityError when it holds others.
        """
        sha256 = hashlib.sha256(body).hexdigest()

        def put(condition: dict[str, str]) -> None:
            self._client.put_object(
                Bucket=self.bucket, Key=key, Body=body, ChecksumSHA256=_b64(sha256), **condition
            )

        self._put(key, put, sha256 if if_absent else None)
        return sha256

    def put_file(self, key: str, path: Path, *, if_absent: bool = False) -> str:
        """Store a file, in parts when it is large, the store checks each part's SHA-256; returns
        the sha256 of the whole. With `if_absent`, an object that is there already must hold the
        same bytes.

        Raises: IntegrityError when it holds others, OSError.
        """
        sha256 = sha256_of(path)

        def put(condition: dict[str, str]) -> None:
            if path.stat().st_size > self._multipart_bytes:
                parts.send(self._client, self.bucket, key, path, condition)
                return
            with path.open("rb") as stream:
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=key,
                    Body=stream,
                    ChecksumSHA256=_b64(sha256),
                    **condition,
                )

        self._put(key, put, sha256 if if_absent else None)
        return sha256

    def _put(
        self, key: str, put: Callable[[dict[str, str]], None], only: str | None, tries: int = 3
    ) -> None:
        """One put; with `only` (a sha256) on the condition that nothing else lies there. A refusal
        may be the answer to our own first try, which the connection did not bring back."""
        condition = {"IfNoneMatch": "*"} if only is not None and self.conditional else {}
        for left in reversed(range(tries)):
            with _plain_errors(key):
                try:
                    put(condition)
                    return
                except ClientError as error:
                    code = error.response.get("Error", {}).get("Code")
                    if code in _RACING and left:
                        continue
                    if code not in _REFUSED:
                        raise
                    if self.digest(key) != only:
                        raise IntegrityError(f"{key} exists with other bytes") from error
                    return

    def digest(self, key: str) -> str:
        """The sha256 of an object's bytes, read whole. Raises: NotFoundError."""
        digest = hashlib.sha256()
        with self.open(key) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def get_bytes(self, key: str) -> bytes:
        """A small object's bytes. Raises: NotFoundError."""
        with _plain_errors(key):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return body

    def open(self, key: str) -> IO[bytes]:
        """A stream over an object's bytes. Raises: NotFoundError; UnavailableError, also later
        from a read, when the connection breaks off."""
        with _plain_errors(key):
            body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
        return io.BufferedReader(_Stream(key, body), _CHUNK)

    def get_file(self, key: str, path: Path, sha256: str) -> None:
        """Fetch an object into `path`; it appears there only when its digest is `sha256`.

        Raises: NotFoundError, IntegrityError.
        """
        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with _plain_errors(key), part.open("wb") as out:
                body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
                for chunk in body.iter_chunks(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
                    crash.point("in_download")
            if digest.hexdigest() != sha256:
                raise IntegrityError(f"{key} is not what its digest promises")
            os.replace(part, path)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()

    def size(self, key: str) -> int | None:
        """An object's size in bytes; None when there is none."""
        try:
            with _plain_errors(key):
                head = self._client.head_object(Bucket=self.bucket, Key=key)
        except NotFoundError:
            return None
        return int(head["ContentLength"])

    def list(self, prefix: str) -> list[str]:
        """Every key below a prefix."""
        with _plain_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix
            )
            return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens when there is none."""
        with _plain_errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def unfinished(self, prefix: str) -> builtins.list[tuple[str, str, float]]:
        """Uploads in parts that were begun and not completed: key, upload id, and their age in
        seconds by the store's own clock."""
        with _plain_errors(prefix):
            found: builtins.list[tuple[str, str, float]] = []
            where: dict[str, str] = {}
            while True:
                page = self._client.list_multipart_uploads(
                    Bucket=self.bucket, Prefix=prefix, **where
                )
                now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
                for one in page.get("Uploads", []):
                    age = (now - one["Initiated"]).total_seconds()
                    found.append((one["Key"], one["UploadId"], age))
                if not page.get("IsTruncated"):
                    return found
                where = {
                    "KeyMarker": page["NextKeyMarker"],
                    "UploadIdMarker": page["NextUploadIdMarker"],
                }

    def abort(self, key: str, upload_id: str) -> None:
        """Give up an unfinished upload; nothing happens when it is gone."""
        with suppress(NotFoundError), _plain_errors(key):
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)

    def presign_get(self, key: str, filename: str) -> str:
        """A URL that downloads the object under that name for `presign_seconds`."""
        url: str = self._public.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self.bucket,
                "Key": key,
                "ResponseContentDisposition": f'attachment; filename="{filename}"',
            },
            ExpiresIn=self._presign_seconds,
        )
        return url

    def presign_put(self, key: str, sha256: str) -> tuple[str, dict[str, str]]:
        """A URL that takes exactly the bytes of that digest, and the headers to send with it."""
        url: str = self._public.generate_presigned_url(
            "put_object",
            Params={"Bucket": self.bucket, "Key": key, "ChecksumSHA256": _b64(sha256)},
            ExpiresIn=3600,
        )
        return url, {"x-amz-checksum-sha256": _b64(sha256)}

    def uri(self, prefix: str) -> str:
        """The s3:// address of a prefix."""
        return f"s3://{self.bucket}/{prefix}"
