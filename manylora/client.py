"""The service as Python sees it over HTTP: one typed, synchronous client, used by the CLI.

Every failure becomes an error of `manylora.errors`. What is printed about it is the CLI's business.
Downloads go straight to the object store by presigned URL and never carry the API key.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from manylora import errors, keys
from manylora.clock import Clock, SystemClock
from manylora.errors import IntegrityError, ManyloraError, UnavailableError, UsageError

T = TypeVar("T")
Json = dict[str, Any]
#: told the file and how many bytes of how many have passed
Progress = Callable[[str, int, int], None]

_CHUNK = 1 << 20
_BY_STATUS: dict[int, type[ManyloraError]] = {
    400: UsageError,
    401: errors.AuthError,
    403: errors.AuthError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    413: UsageError,
    422: UsageError,
    429: errors.QuotaError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
_KINDS: tuple[type[ManyloraError], ...] = (
    UsageError,
    errors.UnknownBaseError,
    errors.BadSpecError,
    errors.DatasetError,
    errors.AuthError,
    errors.QuotaError,
    errors.NotFoundError,
    errors.StateError,
    errors.ConflictError,
    IntegrityError,
    UnavailableError,
)
_BY_CODE = {kind.code: kind for kind in _KINDS} | {
    "no_adapter": errors.ConflictError,
    "invalid_job_state": errors.StateError,
}

_README = """\
# {name}

A LoRA adapter for the base `{base}` (fingerprint `{fingerprint}`), trained by job `{job}`.
Check the files at any time: `manylora verify .`

Below, `{base}` is the name the service knows the base by. Where that is no name on the hub, put the
base's own folder in its place: `bases/{fingerprint}` in the home of manylora (`~/.manylora`).

## peft

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), ".")
```

## vLLM

```
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {short}=$PWD
```
"""


class Client:
    """One service and one key. Thread-safe as far as its HTTP client is."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = 30.0,
        clock: Clock | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._clock = clock or SystemClock()
        headers = {"Authorization": f"Bearer {key}", "User-Agent": "manylora-client"}
        limits = httpx2.Timeout(timeout, connect=5.0)
        try:
            self._http = httpx2.Client(
                base_url=self.url, headers=headers, timeout=limits, transport=transport
            )
        except httpx2.InvalidURL as error:
            raise UsageError(f"the API's address {url!r} is not a URL: {error}") from error
        # Presigned URLs belong to the store: no key, and time for its last answer.
        self._store = httpx2.Client(timeout=httpx2.Timeout(300.0, connect=5.0))

    def ride_out(
        self,
        seconds: float,
        call: Callable[[], T],
        tell: Callable[[UnavailableError], None] | None = None,
    ) -> T:
        """`call()`, again and again for `seconds` while the service is unavailable.

        `tell` hears of the first failure only. Raises: UnavailableError when time is up.
        """
        started, pause = self._clock.monotonic(), 0.5
        while True:
            try:
                return call()
            except UnavailableError as error:
                left = started + seconds - self._clock.monotonic()
                if left <= 0:
                    raise
                if tell is not None:
                    tell(error)
                    tell = None
                self._clock.wait(Event(), min(pause, left))
                pause = min(pause * 2, 10.0)

    def _call(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = self._http.request(method, path, **request)
        except httpx2.ReadTimeout as error:
            raise UnavailableError(
                f"the API at {self.url} is there, but does not answer",
                hint="a part of the service may hang: manylora status",
            ) from error
        except httpx2.TransportError as error:
            raise UnavailableError(
                f"the API at {self.url} cannot be reached: {error or type(error).__name__}",
                hint="is it running? manylora status      its address: MANYLORA_API_URL",
            ) from error
        except httpx2.InvalidURL as error:
            raise UsageError(f"the API's address {self.url!r} is not a URL: {error}") from error
        if response.status_code >= 400:
            raise _problem(response)
        try:
            return response.json() if response.content else {}
        except ValueError as error:
            raise UnavailableError(
                f"{self.url} answered something that is not JSON: is it the manylora API?"
            ) from error

    # -- files and jobs ---------------------------------------------------------------------

    def upload(self, path: Path, purpose: str = "fine-tune") -> Json:
        """Send a dataset. Tried again on outages: the same bytes are the same file."""

        def once() -> Json:
            with path.open("rb") as stream:
                body = {"file": (path.name, stream, "application/octet-stream")}
                sent: Json = self._call(
                    "POST", "/v1/files", data={"purpose": purpose}, files=body, timeout=300.0
                )
                return sent

        return self.ride_out(15.0, once)

    def create_job(self, body: Json, idempotency_key: str) -> Json:
        """Start a job. Tried again on outages: the same key is the same job."""
        made: Json = self.ride_out(
            15.0,
            lambda: self._call(
                "POST",
                "/v1/fine_tuning/jobs",
                json=body,
                headers={"Idempotency-Key": idempotency_key},
            ),
        )
        return made

    def job(self, job_id: str) -> Json:
        """One job."""
        found: Json = self._call("GET", f"/v1/fine_tuning/jobs/{_part(job_id)}")
        return found

    def jobs(self, limit: int = 20) -> Iterator[Json]:
        """Jobs, newest first, page by page for as long as somebody asks."""
        return self._pages("/v1/fine_tuning/jobs", limit)

    def cancel(self, job_id: str) -> Json:
        """Take a job back."""
        gone: Json = self._call("POST", f"/v1/fine_tuning/jobs/{_part(job_id)}/cancel")
        return gone

    def events(self, job_id: str, limit: int = 100) -> Iterator[Json]:
        """A job's events, newest first."""
        return self._pages(f"/v1/fine_tuning/jobs/{_part(job_id)}/events", limit)

    def metrics(self, job_id: str, after_step: int = 0) -> list[Json]:
        """What was measured after a step, oldest first."""
        path = f"/v1/manylora/jobs/{_part(job_id)}/metrics"
        points: list[Json] = self._call("GET", path, params={"after_step": after_step})["data"]
        return points

    def _pages(self, path: str, limit: int) -> Iterator[Json]:
        after: Json = {}
        while True:
            page = self._call("GET", path, params={"limit": limit, **after})
            yield from page["data"]
            if not page["data"] or not page.get("has_more"):
                return
            after = {"after": page["data"][-1]["id"]}

    def status(self) -> Json:
        """What runs, what waits and why."""
        state: Json = self._call("GET", "/v1/manylora/status")
        return state

    # -- bases ------------------------------------------------------------------------------

    def bases(self) -> list[Json]:
        """The registered bases."""
        found: list[Json] = self._call("GET", "/v1/manylora/bases")["data"]
        return found

    def require_base(self, name: str) -> None:
        """Ask before anything is sent. Raises: UnknownBaseError listing what is registered."""
        self._call("GET", f"/v1/models/{_part(name)}")

    def add_base(self, card: Json, folder: Path, progress: Progress | None = None) -> Json:
        """Register a base and send the files the service does not have yet."""
        body = {name: value for name, value in card.items() if name != "folder"}
        answer = self._call("POST", "/v1/manylora/bases", json=body)
        for asked in answer["uploads"]:
            path = folder / keys.safe_file(asked["name"])
            self.ride_out(60.0, partial(self._put, asked, path, progress))
        name = _part(card["name"])
        done: Json = self._call("POST", f"/v1/manylora/bases/{name}/complete", timeout=600.0)
        return done

    def remove_base(self, name: str) -> Json:
        """Forget a base nobody needs."""
        gone: Json = self._call("DELETE", f"/v1/manylora/bases/{_part(name)}")
        return gone

    def _put(self, asked: Json, path: Path, progress: Progress | None) -> None:
        total = path.stat().st_size

        def chunks() -> Iterator[bytes]:
            sent = 0
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
                    sent += len(chunk)
                    if progress is not None:
                        progress(path.name, sent, total)

        headers = {**(asked.get("headers") or {}), "Content-Length": str(total)}
        try:
            response = self._store.put(asked["url"], content=chunks(), headers=headers)
        except httpx2.TransportError as error:
            raise _store_down(error) from error
        if response.status_code >= 300:
            kind = UnavailableError if response.status_code >= 500 else ManyloraError
            raise kind(f"the object store refused {path.name}: HTTP {response.status_code}")

    # -- adapters ---------------------------------------------------------------------------

    def adapters(self) -> list[Json]:
        """The published adapters, newest first."""
        found: list[Json] = self._call("GET", "/v1/manylora/adapters")["data"]
        return found

    def adapter(self, ref: str) -> Json:
        """One adapter by its name, its job's id or its suffix, with presigned URLs."""
        found: Json = self._call("GET", f"/v1/manylora/adapters/{_part(ref)}")
        return found

    def fetch(self, ref: str, target: Path, progress: Progress | None = None) -> Json:
        """Download an adapter into `target`, whole and checked, or not at all.

        Raises: IntegrityError when any byte is not what the manifest promises.
        """
        from_api = self.adapter(ref)
        if target.exists() and not target.is_dir():
            raise UsageError(f"{target} is a file, not a folder", param="output")
        folder = target.resolve()
        work: Path | None = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            whole = _replaceable(folder)
            place = folder.parent if whole else folder
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=place))
            names = self._download(ref, from_api, work, progress)
            _move(work, folder, whole)
        except OSError as error:
            what = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise ManyloraError(
                f"cannot write {target}: {what}",
                code="cannot_write",
                hint="nothing was left half-made; choose another folder with -o",
            ) from error
        finally:
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)
        return {**from_api, "folder": str(target), "fetched": names}

    def _download(
        self, ref: str, from_api: Json, work: Path, progress: Progress | None
    ) -> list[str]:
        """Fill `work` with the adapter's files, its manifest and a README; return their names."""
        told = from_api["manifest"]
        if told["sha256"] != from_api["manifest_sha256"]:
            raise IntegrityError(f"{from_api['name']}: the API names two digests of one manifest")
        self._get(ref, "manifest.json", told["url"], work, told["sha256"], None, progress)
        try:
            manifest = json.loads((work / "manifest.json").read_bytes())
            wanted = [
                (keys.safe_file(f["name"]), str(f["sha256"]), int(f["bytes"]))
                for f in manifest["files"]
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"manifest.json cannot be read: {error}") from error
        urls = {f["name"]: f["url"] for f in from_api["files"]}
        for name, sha256, count in wanted:
            if name not in urls:
                raise IntegrityError(f"{name} is in the manifest, but the API does not offer it")
            self._get(ref, name, urls[name], work, sha256, count, progress)
        names = [name for name, _, _ in wanted] + ["manifest.json"]
        if "README.md" not in names:
            (work / "README.md").write_text(_readme(from_api, work), encoding="utf-8")
            names.append("README.md")
        return names

    def _get(
        self,
        ref: str,
        name: str,
        url: str,
        work: Path,
        sha256: str,
        count: int | None,
        progress: Progress | None,
    ) -> None:
        """One file by its presigned URL; a URL that ran out meanwhile is asked for once more."""
        link = url

        def once() -> int:
            return self._stream(link, work / name, progress)

        status = self.ride_out(60.0, once)
        if status in (401, 403, 410):
            fresh = self.adapter(ref)
            offered = {f["name"]: f["url"] for f in fresh["files"]}
            link = {**offered, "manifest.json": fresh["manifest"]["url"]}.get(name, url)
            status = self.ride_out(60.0, once)
        if status != 200:
            raise ManyloraError(f"the object store refused {name}: HTTP {status}")
        problem = check_file(work / name, sha256, count)
        if problem:
            raise IntegrityError(
                f"{name}: {problem}", hint="nothing was kept; try again, then tell the operator"
            )

    def _stream(self, url: str, path: Path, progress: Progress | None) -> int:
        try:
            with self._store.stream("GET", url) as response, path.open("wb") as out:
                if response.status_code >= 500:
                    raise UnavailableError(f"the object store answered {response.status_code}")
                total = int(response.headers.get("Content-Length") or 0)
                for chunk in response.iter_bytes(_CHUNK):
                    out.write(chunk)
                    if progress is not None:
                        progress(path.name, out.tell(), total)
                out.flush()
                os.fsync(out.fileno())
                return int(response.status_code)
        except httpx2.TransportError as error:
            raise _store_down(error) from error


def check_file(path: Path, sha256: str, count: int | None = None) -> str | None:
    """What is wrong with a file that should have that digest and size; None if nothing is."""
    if not path.is_file():
        return "missing"
    if count is not None and path.stat().st_size != count:
        return f"{path.stat().st_size} bytes, the manifest says {count}"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if found == sha256 else f"sha256 is {found[:12]}…, should be {sha256[:12]}…"


def _replaceable(folder: Path) -> bool:
    """Whether a finished folder may take this one's place by a rename."""
    if not folder.exists():
        return True
    fixed = os.path.ismount(folder) or folder == Path.cwd()
    return not fixed and not any(folder.iterdir()) and os.access(folder.parent, os.W_OK)


def _move(work: Path, folder: Path, whole: bool) -> None:
    """Put finished files where they belong: at one stroke, or file by file into a full folder."""
    if whole:
        mask = os.umask(0)
        os.umask(mask)
        work.chmod(0o777 & ~mask)
        os.rename(work, folder)
        return
    # The manifest goes last: until then the folder does not claim to hold the new adapter.
    for path in sorted(work.iterdir(), key=lambda p: (p.name == "manifest.json", p.name)):
        os.replace(path, folder / path.name)


def _readme(from_api: Json, work: Path) -> str:
    rank: Any = "<rank>"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        rank = json.loads((work / "adapter_config.json").read_bytes()).get("r", rank)
    name = str(from_api["name"])
    return _README.format(
        name=name,
        base=from_api["base"],
        fingerprint=from_api["base_fingerprint"],
        job=from_api["job_id"],
        rank=rank,
        short=next((part for part in reversed(name.split(":")[3:4]) if part), "adapter"),
    )


def _store_down(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"the object store cannot be reached: {error or type(error).__name__}",
        hint="the service's presigned URLs must be reachable from here",
    )


def _part(value: str) -> str:
    return quote(value, safe=":")


def _problem(response: httpx2.Response) -> ManyloraError:
    """The error a response stands for: by its code, else by its status."""
    told: Any = None
    with contextlib.suppress(ValueError, AttributeError):
        told = response.json().get("error")
    told = told if isinstance(told, dict) else {}
    code = told.get("code")
    kind = _BY_CODE.get(str(code)) or _BY_STATUS.get(response.status_code)
    if kind is None:
        kind = UnavailableError if response.status_code >= 500 and not told else ManyloraError
    hint = told.get("hint")
    if hint is None and issubclass(kind, errors.AuthError):
        hint = "the key comes from MANYLORA_API_KEY"
    message = str(told.get("message") or f"the API answered HTTP {response.status_code}")
    return kind(
        message.removesuffix(f" ({hint})"),  # on the wire the hint ends the message, too
        hint=hint,
        param=told.get("param"),
        code=code,
        details=told.get("details"),
    )
