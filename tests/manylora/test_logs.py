"""What is logged is JSON with job and tenant, and no secret is in it, wherever it was put."""

import json
import subprocess
import sys

import pytest

from manylora.logs import redact
from manylora.settings import Settings

KEY = "ml_0123456789ab_" + "A1b2-_" * 7 + "x"
HOOK = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
SIGNED = (
    "http://s3/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIACANARY%2F20260101"
    "&X-Amz-Security-Token=tokencanary&X-Amz-Signature=deadbeefcanary"
)
#: what is written, and what of it must not be read
CANARIES = [
    (f"sent {KEY} to it", KEY.split("_", 2)[2]),
    (f"signed with {HOOK}", HOOK.removeprefix("whsec_")),
    ("postgresql://app:pw-canary@db/x", "pw-canary"),
    ("redis://:pw/canary%40@broker:6379/0", "pw/canary%40"),
    ("https://tokencanary@host/path", "tokencanary"),
    (SIGNED, "AKIACANARY"),
    (SIGNED, "tokencanary"),
    (SIGNED, "deadbeefcanary"),
    ("http://s3/k?AWSAccessKeyId=AKCANARY&Signature=sigcanary%3D", "sigcanary"),
    ("Authorization: Bearer canary-token-1234", "canary-token-1234"),
]
PLAIN = [
    "GET http://127.0.0.1:8400/v1/models/gemma 200",
    "s3://manylora/t/1/j/ftjob-1 by ops@example.org",
    "ftjob-abc ended as succeeded; evt_1 to we_2",
    "postgresql://db/x",
]


@pytest.mark.parametrize(("said", "secret"), CANARIES)
def test_shapes_of_secrets_are_blotted_out(said, secret):
    shown = redact(said)
    assert secret not in shown
    assert "***" in shown


@pytest.mark.parametrize("said", PLAIN)
def test_what_is_no_secret_stays(said):
    assert redact(said) == said


def test_values_are_blotted_out_unless_they_are_words():
    assert redact("a pepper-canary-1 b", ["pepper-canary-1", "a", ""]) == "a *** b"


def test_the_settings_know_their_secrets():
    settings = Settings(
        database_url="postgresql://app:p%40ss-canary-1@db/x",
        broker_url="redis://:broker-canary@b/0",
        s3_secret_key="s3-secret-canary",
        key_pepper="pepper-canary-1",
        api_key=KEY,
    )
    found = settings.secrets()
    assert found >= {
        "p%40ss-canary-1", "p@ss-canary-1", "broker-canary", "s3-secret-canary",
        "pepper-canary-1", KEY,
    }  # fmt: skip
    assert "" not in found
    assert not any("db" in secret or "://" in secret for secret in found)


SCRIPT = """
import logging, sys, threading
import structlog
from manylora.logs import configure

canaries = [text for text, _ in CANARIES]
configure("debug", sys.argv[1], ["value-canary-1", "value-canary-1-longer"])
log = structlog.get_logger("ours")


class Opaque:
    def __repr__(self):
        return f"<it holds {canaries[0]}>"


def broken():
    held = "value-canary-1"
    raise ValueError(canaries[2] + " " + held)


with structlog.contextvars.bound_contextvars(job_id="ftjob-1", tenant_id="t-1"):
    for text in canaries:
        log.info(text)
        log.info("event", plain=text, nested={"deep": [{text: (text, 1)}]})
        logging.getLogger("theirs").warning("%s and %s", text, {"k": text})
    log.info("opaque", it=Opaque(), number=1, none=None, yes=True)
    log.info("value", x="has value-canary-1-longer and value-canary-1")
    try:
        broken()
    except ValueError as error:
        log.exception("caught", error=error)
        logging.getLogger("theirs").exception("caught")
thread = threading.Thread(target=broken, name="one")
thread.start()
thread.join()
broken()
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_canary_is_in_any_line(form):
    done = subprocess.run(
        [sys.executable, "-c", f"CANARIES = {CANARIES!r}\n{SCRIPT}", form],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1  # it broke at the end, unforeseen
    assert done.stdout == ""
    for _, secret in [*CANARIES, ("", "value-canary-1")]:
        assert secret not in done.stderr, secret
    if form == "text":
        return
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    bound = [line for line in lines if line.get("job_id")]
    assert len(bound) >= 3 * len(CANARIES)
    assert all(line["tenant_id"] == "t-1" and line["timestamp"] for line in bound)
    assert {line["logger"] for line in lines} == {"ours", "theirs", "manylora.logs"}
    assert [line["event"] for line in lines[-2:]] == ["thread.broke", "process.broke"]
    assert lines[-2]["thread"] == "one"
    assert all("Traceback" in line["exception"] for line in lines[-2:])
    opaque = next(line for line in lines if line["event"] == "opaque")
    assert (opaque["number"], opaque["none"], opaque["yes"]) == (1, None, True)
