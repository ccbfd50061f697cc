"""A large file in parts. Unfinished, it is invisible; unfinished and given up, it is aborted here,
or, where the process died, by the sweep."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from manylora import crash

PART_BYTES = 64 << 20


def send(client: Any, bucket: str, key: str, path: Path, condition: dict[str, str]) -> None:
    """Upload `path` part by part, each with its SHA-256; `condition` guards the completion.

    Raises: botocore's errors; the upload is aborted then, as far as that can be done.
    """
    made = client.create_multipart_upload(Bucket=bucket, Key=key, ChecksumAlgorithm="SHA256")
    named = {"Bucket": bucket, "Key": key, "UploadId": made["UploadId"]}
    try:
        parts: list[dict[str, Any]] = []
        with path.open("rb") as stream:
            while body := stream.read(PART_BYTES):
                digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
                number = len(parts) + 1
                done = client.upload_part(
                    **named, PartNumber=number, Body=body, ChecksumSHA256=digest
                )
                parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": digest})
                crash.point("mid_upload")
        client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts}, **condition)
    except BaseException:
        # Also after a completion that was refused: the upload stays listed until it is aborted.
        with suppress(BotoCoreError, ClientError):
            client.abort_multipart_upload(**named)
        raise
