"""One message to one endpoint: what is sent, what is believed, and where it never goes."""

import datetime as dt
import json
import socket
import ssl
import threading
import time

import openai
import pytest

from manylora.clock import SystemClock
from manylora.destinations import Allowed
from manylora.ledger.webhooks import Claimed
from scheduler import post as module
from scheduler.post import Post, body
from tests.scheduler.receiver import Receiver

LOOPBACK = Allowed(("127.0.0.0/8",))
SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
#: of receiver.test, signed by itself, for a hundred years; it opens nothing
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBoTCCAUegAwIBAgIUP/HXEOL1MHJ6MUqQS1zD9G02NrwwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNcmVjZWl2ZXIudGVzdDAgFw0yNjExMjUwNDAwMDlaGA8yMTI2
MTEwMTA0MDAwOVowGDEWMBQGA1UEAwwNcmVjZWl2ZXIudGVzdDBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABJZXB5rCB7KxtA1J9k8M4yuPASTemsWAftr/P81xPrz+
kBalqJf+vXkkDImHBQHhYL8LnZKifCB+2JvSxBeW0QijbTBrMB0GA1UdDgQWBBSs
FMtI8TqgnaUGGrI/qhm1kxVRGjAfBgNVHSMEGDAWgBSsFMtI8TqgnaUGGrI/qhm1
kxVRGjAPBgNVHRMBAf8EBTADAQH/MBgGA1UdEQQRMA+CDXJlY2VpdmVyLnRlc3Qw
CgYIKoZIzj0EAwIDSAAwRQIgNvfrZjKFMvnQen6Rn7psI0Us4dBvGxD0zs3BgJ0T
4sgCIQDHX6fBGGiO14IZsmkZ/1Op1y/XQYSe9x3lHJi6Zi3qpQ==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgDXdrGbFPo5wpwvDx
cSoThagEFMkuIwYE4l6W4yeSQzChRANCAASWVweawgeysbQNSfZPDOMrjwEk3prF
gH7a/z/NcT68/pAWpaiX/r15JAyJhwUB4WC/C52Sonwgftib0sQXltEI
-----END PRIVATE KEY-----
"""


@pytest.fixture
def receiver():
    one = Receiver()
    yield one
    one.close()


def message(url, kind="succeeded", **changed):
    given = {
        "message_id": "evt_1", "webhook_id": "we_1", "tenant_id": None, "job_id": "ftjob-1",
        "type": f"fine_tuning.job.{kind}", "created_at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "attempt": 1, "url": url, "secret": SECRET, **changed,
    }  # fmt: skip
    return Claimed(**given)


def post(allowed=LOOPBACK, **options):
    return Post(allowed, SystemClock(), **options)


def unwrap(headers, content, secret=SECRET):
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1")
    return client.webhooks.unwrap(content, headers, secret=secret)


@pytest.mark.parametrize("kind", ["succeeded", "failed", "cancelled"])
def test_the_openai_client_accepts_it(receiver, kind):
    assert post()(message(receiver.url, kind)).taken
    path, headers, content = receiver.next()
    assert path == "/hook?k=v"
    event = unwrap(headers, content)
    assert type(event).__name__ == f"FineTuningJob{kind.capitalize()}WebhookEvent"
    assert (event.id, event.object, event.data.id) == ("evt_1", "event", "ftjob-1")
    assert event.created_at == int(dt.datetime(2026, 1, 2, tzinfo=dt.UTC).timestamp())
    assert headers["webhook-id"] == "evt_1"
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"


def test_it_refuses_whatever_is_forged(receiver):
    post()(message(receiver.url))
    _, headers, content = receiver.next()
    other = json.loads(content) | {"data": {"id": "ftjob-2"}}
    forged = [
        (headers, json.dumps(other), SECRET),
        (headers | {"webhook-id": "evt_2"}, content, SECRET),
        (
            headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)},
            content,
            SECRET,
        ),
        (headers, content, SECRET.replace("MDEy", "MDEz", 1)),
    ]
    for case in forged:
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(*case)
    post(now=lambda: time.time() - 400)(message(receiver.url))
    _, headers, content = receiver.next()
    with pytest.raises(openai.InvalidWebhookSignatureError, match="too old"):
        unwrap(headers, content)


def test_the_body_is_the_same_at_every_try(receiver):
    for attempt in (1, 2):
        post()(message(receiver.url, attempt=attempt))
    first, second = receiver.next(), receiver.next()
    assert first[2] == second[2] == body(message(receiver.url))
    assert first[1]["webhook-id"] == second[1]["webhook-id"]


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_any_2xx_is_taken(receiver, status):
    receiver.answers = [status]
    answer = post()(message(receiver.url))
    assert answer.taken
    assert (answer.status, answer.error) == (status, "")


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 503])
def test_nothing_else_is(receiver, status):
    receiver.answers = [status]
    answer = post()(message(receiver.url))
    assert not answer.taken
    assert (answer.status, answer.error) == (status, f"it answered HTTP {status}")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(receiver, status):
    def away(handler):
        handler.send_response(status)
        handler.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    receiver.answers = [away]
    answer = post()(message(receiver.url))
    assert not answer.taken
    assert "redirects are not followed" in answer.error
    receiver.next()
    assert receiver.got.empty()


def test_a_refused_connection_is_told(receiver):
    receiver.close()
    receiver.server = type(
        "Closed", (), {n: lambda _: None for n in ("shutdown", "server_close")}
    )()
    answer = post()(message(receiver.url))
    assert (answer.status, answer.taken) == (None, False)
    assert "ConnectError" in answer.error


class Turned:
    """A clock whose time passes when the test says so."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def wait(self, event, seconds):
        return event.wait(seconds)


def test_an_endpoint_that_drips_is_left_when_time_is_up(receiver):
    """Each byte comes in time; all of them together do not."""
    clock = Turned()

    def drip(handler):
        for letter in b"HTTP/1.1 200 OK\r\n":
            handler.wfile.write(bytes([letter]))
            handler.wfile.flush()
            clock.now += 1.0

    receiver.answers = [drip]
    answer = Post(LOOPBACK, clock)(message(receiver.url))
    assert not answer.taken
    assert "no answer within 10 s" in answer.error


def test_an_endpoint_that_says_nothing_is_left(receiver, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.2)
    gone = threading.Event()
    receiver.answers = [lambda handler: gone.wait(30)]
    answer = post()(message(receiver.url))
    gone.set()
    assert not answer.taken
    assert "ReadTimeout" in answer.error


@pytest.mark.parametrize("said", [b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200", b"\x00" * 100])
def test_what_is_not_http_is_a_failure(receiver, said):
    receiver.answers = [lambda handler: handler.wfile.write(said)]
    answer = post()(message(receiver.url))
    assert not answer.taken
    assert answer.status is None
    assert "the connection failed" in answer.error


def test_without_leave_it_goes_to_no_inner_address(receiver):
    for url in (
        receiver.url,
        f"http://localhost:{receiver.port}/",
        f"http://2130706433:{receiver.port}/",
    ):
        answer = post(Allowed())(message(url))
        assert not answer.taken
        assert answer.error == "its name stands for an address that webhooks may not go to"
    assert receiver.got.empty()


def test_a_name_with_one_forbidden_address_is_refused(receiver):
    allowed = Allowed(("127.0.0.1/32",))
    answer = post(allowed, resolve=lambda host, port: ["127.0.0.1", "127.0.0.2"])(
        message(f"http://a.example:{receiver.port}/")
    )
    assert "may not go to" in answer.error
    assert receiver.got.empty()


def test_a_name_that_answers_otherwise_the_second_time_gains_nothing(receiver, monkeypatch):
    """It is looked up once, and the connection goes to what was looked at."""
    asked = []

    def rebinding(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    dialled = []
    real = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda at, *a, **k: dialled.append(at) or real(at, *a, **k)
    )
    answer = post(resolve=rebinding)(message(f"http://a.example:{receiver.port}/x"))
    assert answer.taken
    assert asked == ["a.example"]
    assert dialled == [("127.0.0.1", receiver.port)]
    assert receiver.next()[1]["host"] == f"a.example:{receiver.port}"


def test_the_next_address_is_tried_when_one_does_not_answer(receiver):
    found = ["127.0.0.2", "127.0.0.1"]  # nothing listens at the first
    answer = post(resolve=lambda host, port: found)(message(f"http://a.example:{receiver.port}/"))
    assert answer.taken


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a" * 64 + ".example", "a..b"])
def test_a_name_that_cannot_be_resolved_is_a_failure(host):
    answer = post()(message(f"http://{host}/"))
    assert answer.error == "its name cannot be resolved"


def test_no_proxy_is_asked(receiver, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post()(message(receiver.url)).taken


def test_a_certificate_must_be_of_the_name_although_an_address_is_dialled(tmp_path):
    pem = tmp_path / "receiver.pem"
    pem.write_text(CERTIFICATE)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    trusting = ssl.create_default_context(cafile=pem)
    receiver = Receiver(server)
    try:

        def send(name, tls):
            send_to = post(resolve=lambda host, port: ["127.0.0.1"], tls=tls)
            return send_to(message(f"https://{name}:{receiver.port}/"))

        assert send("receiver.test", trusting).taken
        assert not send("other.test", trusting).taken
        assert not send("receiver.test", None).taken  # nobody we trust has signed it
        receiver.next()
        assert receiver.got.empty()
    finally:
        receiver.close()
