"""Where a webhook may go: what its URL must look like, and which addresses are refused.

Pure: nothing is looked up here. A name is checked again, by its addresses, when it is connected to
(`scheduler/post.py`), for what a name stands for may change at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from manylora.errors import UsageError

_MOST_CHARACTERS = 2048
_PORTS = {"http": 80, "https": 443}
#: of special use, though not every Python knows that of all of it
_SPECIAL = IPv4Network("192.0.0.0/24")
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Destination:
    """A URL's parts. `host` has no brackets."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True)
class Allowed:
    """Which addresses may be reached: public ones, and those in `networks`."""

    networks: tuple[str, ...] = ()

    @classmethod
    def from_setting(cls, text: str) -> Allowed:
        """Of `webhook_networks`: networks with commas between them."""
        return cls(tuple(part.strip() for part in text.split(",") if part.strip()))

    def __call__(self, address: str) -> bool:
        """Whether this address, an IPv4 or IPv6 literal, may be connected to."""
        found = ip_address(address.partition("%")[0])
        given = [ip_network(network) for network in self.networks]
        # An IPv6 address may carry an IPv4 one: both must be allowed, or the inner one by name.
        inner = _inside(found)
        if any(one in network for one in (found, *inner) for network in given):
            return True
        return all(_public(one) for one in (found, *inner))


def _inside(address: IPv4Address | IPv6Address) -> Sequence[IPv4Address]:
    """The IPv4 addresses an IPv6 address stands for: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, IPv4Address):
        return ()
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def _public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return True  # the address inside decides
        if address.is_site_local:
            return False
    elif address in _SPECIAL:
        return False
    return address.is_global and not (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )


def parse(url: str) -> Destination:
    """A webhook's URL in its parts.

    Raises: UsageError for what is no http(s) URL, is too long, or has a user or a password in it.
    """

    def refuse(why: str) -> UsageError:
        return UsageError(f"the webhook's URL {why}", param="url", hint="https://host/path")

    if len(url) > _MOST_CHARACTERS:
        raise refuse(f"is longer than {_MOST_CHARACTERS} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise refuse("may have printable ASCII characters only, and no blank or backslash")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise refuse(f"is not a URL: {error}") from error
    if parts.scheme not in _PORTS:
        raise refuse("must begin with http:// or https://")
    if not parts.hostname:
        raise refuse("names no host")
    if parts.username is not None or parts.password is not None:
        raise refuse("must not hold a user or a password")
    if port == 0:
        raise refuse("has the port 0")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], path)


def check(url: str, allowed: Allowed) -> Destination:
    """As `parse`, and an address that is written out must be an allowed one. Raises: UsageError."""
    found = parse(url)
    try:
        written = str(ip_address(found.host.partition("%")[0]))
    except ValueError:
        name = found.host.rstrip(".").lower()
        written = "127.0.0.1" if name == "localhost" or name.endswith(".localhost") else ""
    if written and not allowed(written):
        raise UsageError(
            f"webhooks may not go to {found.host}: it is not a public address",
            param="url",
            hint="whoever runs the service may allow its network with MANYLORA_WEBHOOK_NETWORKS",
        )
    return found
