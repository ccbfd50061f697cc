"""Which URLs and which addresses a webhook may have."""

import pytest

from manylora.destinations import Allowed, check, parse
from manylora.errors import UsageError

PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"]
INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.8", "198.18.0.1", "203.0.113.5", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1",
    "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address):
    assert Allowed()(address)


@pytest.mark.parametrize("address", INSIDE)
def test_no_other_may(address):
    assert not Allowed()(address)


def test_a_network_may_be_allowed_and_nothing_beside_it():
    allowed = Allowed.from_setting(" 127.0.0.0/8, 10.1.0.0/16,fd00::/8 ")
    for address in ("127.0.0.1", "10.1.2.3", "fd00::5", "::ffff:10.1.2.3", "8.8.8.8"):
        assert allowed(address), address
    for address in ("10.2.0.1", "169.254.169.254", "::1", "::ffff:10.2.0.1", "fc00::1"):
        assert not allowed(address), address
    assert not Allowed.from_setting("")("127.0.0.1")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://a.example", ("https", "a.example", 443, "/")),
        ("http://a.example:8080/x/y?k=v&w", ("http", "a.example", 8080, "/x/y?k=v&w")),
        ("HTTPS://A.Example/?q", ("https", "a.example", 443, "/?q")),
        ("http://[2606:4700::1]:81/h#part", ("http", "2606:4700::1", 81, "/h")),
    ],
)
def test_a_url_has_four_parts(url, parts):
    found = parse(url)
    assert (found.scheme, found.host, found.port, found.path) == parts


@pytest.mark.parametrize(
    "url",
    [
        "", "a.example", "ftp://a.example", "file:///etc/passwd", "gopher://a/", "https://",
        "https:///path", "http://user@a.example", "http://user:pw@a.example", "http://:pw@a.example",
        "http://a.example:0", "http://a.example:99999", "http://a.example:x", "http://[::1",
        "http://a.example/\r\nHost: b", "http://a.example/ b", "http://a\\@b", "http://ä.example",
        "http://a.example/" + "x" * 2048,
    ],
)  # fmt: skip
def test_what_is_no_such_url_is_refused(url):
    with pytest.raises(UsageError) as refused:
        parse(url)
    assert refused.value.param == "url"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "[::1]", "169.254.169.254", "localhost", "a.LOCALHOST."]
)
def test_an_inner_address_that_is_written_out_is_refused_at_once(host):
    with pytest.raises(UsageError, match="not a public address") as refused:
        check(f"http://{host}/", Allowed())
    assert "MANYLORA_WEBHOOK_NETWORKS" in refused.value.hint
    everything = Allowed(("0.0.0.0/0", "::/0"))
    assert check(f"http://{host}/", everything).path == "/"
