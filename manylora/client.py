"""The service as Python sees it over HTTP: one typed, synchronous client, used by the CLI.

Every failure becomes an error of `manylora.errors`. What is printed about it is the CLI's business;
how an adapter's files come down and are verified is in fetch.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from manylora import errors, keys
from manylora.clock import Clock, SystemClock
from manylora.errors import ManyloraError, UnavailableError, UsageError
from manylora.fetch import Fetcher, Progress, store_down

T = TypeVar("T")
Json = dict[str, Any]

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
    errors.IntegrityError,
    UnavailableError,
)
_BY_CODE = {kind.code: kind for kind in _KINDS} | {
    "queued_quota_exceeded": errors.QuotaError,
    "storage_quota_exceeded": errors.QuotaError,
    "rate_limit_exceeded": errors.QuotaError,
    "no_adapter": errors.ConflictError,
    "invalid_job_state": errors.StateError,
}


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

    def pause(self, job_id: str) -> Json:
        """Hold a job back; one that runs is paused at its next checkpoint."""
        held: Json = self._call("POST", f"/v1/fine_tuning/jobs/{_part(job_id)}/pause")
        return held

    def resume(self, job_id: str) -> Json:
        """Let a paused job go on."""
        going: Json = self._call("POST", f"/v1/fine_tuning/jobs/{_part(job_id)}/resume")
        return going

    def events(self, job_id: str, limit: int = 100) -> Iterator[Json]:
        """A job's events, newest first."""
        return self._pages(f"/v1/fine_tuning/jobs/{_part(job_id)}/events", limit)

    def quality(self, job_id: str) -> Json:
        """A job's quality report. Raises: NotFoundError when none was wished."""
        found: Json = self._call("GET", f"/v1/fine_tuning/jobs/{_part(job_id)}/quality")
        return found

    def metrics(self, job_id: str, after_step: int = 0) -> list[Json]:
        """What was measured after a step, oldest first."""
        path = f"/v1/manylora/jobs/{_part(job_id)}/metrics"
        points: list[Json] = self._call("GET", path, params={"after_step": after_step})["data"]
        return points

    def all_metrics(self, job_id: str) -> list[Json]:
        """Every metric point, oldest first, answer by answer."""
        points: list[Json] = []
        while more := self.metrics(job_id, int(points[-1]["step"]) if points else 0):
            points += more
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

    def queue(self) -> list[Json]:
        """For each base: what waits and runs, the share, the reason, when the next one starts."""
        found: list[Json] = self._call("GET", "/v1/manylora/queue")["data"]
        return found

    def tenants(self) -> list[Json]:
        """Every tenant's weight and quotas; for operators."""
        found: list[Json] = self._call("GET", "/v1/manylora/tenants")["data"]
        return found

    def set_tenant(self, name: str, changes: Json) -> Json:
        """Set a tenant's weight or quotas; for operators."""
        set_: Json = self._call("PATCH", f"/v1/manylora/tenants/{_part(name)}", json=changes)
        return set_

    # -- bases ------------------------------------------------------------------------------

    def bases(self) -> list[Json]:
        """The registered bases."""
        found: list[Json] = self._call("GET", "/v1/manylora/bases")["data"]
        return found

    def require_base(self, name: str) -> None:
        """Ask before anything is sent. Raises: UnknownBaseError listing what is registered."""
        self._call("GET", f"/v1/models/{_part(name)}")

    def network_of(self, name: str) -> Json | None:
        """What a base that a function builds reads and makes; None for a causal LM by transformers.
        Raises: UnknownBaseError listing what is registered."""
        self.require_base(name)
        found = next((item for item in self.bases() if item["name"] == name), {})
        network: Json | None = found.get("network")
        return network

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
            raise store_down(error) from error
        if response.status_code >= 300:
            kind = UnavailableError if response.status_code >= 500 else ManyloraError
            raise kind(f"the object store refused {path.name}: HTTP {response.status_code}")

    # -- webhooks ---------------------------------------------------------------------------

    def add_webhook(self, url: str, events: list[str]) -> Json:
        """A new endpoint, with its secret; no events means all."""
        body = {"url": url, "events": events or None}
        made: Json = self._call("POST", "/v1/manylora/webhooks", json=body)
        return made

    def webhooks(self) -> list[Json]:
        """The endpoints, without their secrets."""
        found: list[Json] = self._call("GET", "/v1/manylora/webhooks")["data"]
        return found

    def remove_webhook(self, webhook_id: str) -> Json:
        """Forget an endpoint."""
        gone: Json = self._call("DELETE", f"/v1/manylora/webhooks/{_part(webhook_id)}")
        return gone

    def deliveries(self, webhook_id: str, limit: int = 20) -> Iterator[Json]:
        """Messages to an endpoint, newest first, page by page for as long as somebody asks."""
        return self._pages(f"/v1/manylora/webhooks/{_part(webhook_id)}/deliveries", limit)

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
        return Fetcher(self.adapter, self.ride_out, self._store).fetch(ref, target, progress)


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
