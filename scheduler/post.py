"""One message to one endpoint: signed by the Standard Webhooks scheme, sent once, judged by its
status. Whether it is tried again is `deliver.py`'s business.

The endpoint is a stranger's: its name is looked up here, every address of it must be an allowed
one, and the connection goes to the very address that was looked at, so that a name which answers
differently the next time gains nothing. No redirect is followed, no proxy asked, and of the answer
only the status is read, all within `SECONDS`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import httpcore2

from manylora import __version__
from manylora.clock import Clock
from manylora.destinations import Allowed, Destination, parse
from manylora.errors import UsageError
from manylora.ledger.webhooks import Claimed

#: for all of one try together, once the name is looked up
SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 5.0
_MOST_ADDRESSES: Final = 4


@dataclass(frozen=True)
class Answer:
    """What came of a try: an HTTP status, or why there was none."""

    status: int | None
    error: str

    @property
    def taken(self) -> bool:
        """Whether the endpoint has taken the message."""
        return self.status is not None and 200 <= self.status < 300


class RefusedError(OSError):
    """No address of the name may be connected to."""


def body(one: Claimed) -> bytes:
    """The message: the same bytes at every try."""
    said = {
        "id": one.message_id,
        "object": "event",
        "created_at": int(one.created_at.timestamp()),
        "type": one.type,
        "data": {"id": one.job_id},
    }
    return json.dumps(said, separators=(",", ":")).encode()


def sign(secret: str, message_id: str, timestamp: int, content: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 over `id.timestamp.content`.
    https://www.standardwebhooks.com"""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + content
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order to try them. Raises: OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Stream(httpcore2.NetworkStream):
    """A stream that ends when no time is `left`, however slowly the other side speaks."""

    def __init__(self, inner: httpcore2.NetworkStream, left: Callable[[], float]) -> None:
        self._inner = inner
        self._left = left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._left())
        return _Stream(inner, self._left)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Pinned(httpcore2.NetworkBackend):
    """Connects to the first of the given addresses that answers, whatever name is asked for."""

    def __init__(self, addresses: list[str], left: Callable[[], float]) -> None:
        self._addresses = addresses
        self._left = left
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        *firsts, last = self._addresses
        for address in firsts:
            try:
                return self._connect(address, port)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return self._connect(last, port)

    def _connect(self, address: str, port: int) -> httpcore2.NetworkStream:
        stream = self._sockets.connect_tcp(
            address, port, min(self._left(), _CONNECT_SECONDS), None, []
        )
        return _Stream(stream, self._left)


class Post:
    """Sends messages to endpoints whose addresses are `allowed`. Thread-safe."""

    def __init__(
        self,
        allowed: Allowed,
        clock: Clock,
        *,
        resolve: Resolve = resolve,
        now: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`now` is the time that is signed, seconds since 1970: receivers refuse one far off."""
        self._allowed = allowed
        self._clock = clock
        self._resolve = resolve
        self._now = now
        self._tls = tls or httpcore2.default_ssl_context()

    def __call__(self, one: Claimed) -> Answer:
        """Try once. Never raises for what an endpoint does."""
        try:
            to = parse(one.url)
            status = self._send(to, self._addresses(to), one)
        except UsageError as error:  # by older rules it was a good URL
            return Answer(None, error.message)
        except (socket.gaierror, UnicodeError):
            return Answer(None, "its name cannot be resolved")
        except RefusedError as error:
            return Answer(None, str(error))
        except httpcore2.TimeoutException as error:
            return Answer(None, f"no answer within {SECONDS:.0f} s ({type(error).__name__})")
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
            return Answer(None, f"the connection failed ({type(error).__name__})")
        if 200 <= status < 300:
            return Answer(status, "")
        more = ": redirects are not followed" if 300 <= status < 400 else ""
        return Answer(status, f"it answered HTTP {status}{more}")

    def _addresses(self, to: Destination) -> list[str]:
        found = self._resolve(to.host, to.port)
        if not found or not all(self._allowed(address) for address in found):
            # One forbidden address is enough: which of them is dialled must not be chance.
            raise RefusedError("its name stands for an address that webhooks may not go to")
        return found[:_MOST_ADDRESSES]

    def _send(self, to: Destination, addresses: list[str], one: Claimed) -> int:
        ends = self._clock.monotonic() + SECONDS

        def left() -> float:
            seconds = ends - self._clock.monotonic()
            if seconds <= 0:
                raise httpcore2.ReadTimeout("time is up")
            return seconds

        content, timestamp = body(one), int(self._now())
        headers: dict[bytes | str, bytes | str] = {
            "Host": _host(to),
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "User-Agent": f"manylora/{__version__}",
            "Connection": "close",
            "webhook-id": one.message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(one.secret, one.message_id, timestamp, content),
        }
        url = httpcore2.URL(
            scheme=to.scheme.encode(),
            host=to.host.encode(),
            port=to.port,
            target=to.path.encode(),
        )
        backend = _Pinned(addresses, left)
        with (
            httpcore2.ConnectionPool(ssl_context=self._tls, network_backend=backend) as pool,
            pool.stream("POST", url, headers=headers, content=content) as response,
        ):
            return int(response.status)


def _host(to: Destination) -> str:
    host = f"[{to.host}]" if ":" in to.host else to.host
    return host if to.port == {"http": 80, "https": 443}[to.scheme] else f"{host}:{to.port}"
