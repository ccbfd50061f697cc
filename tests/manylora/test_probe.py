"""The server beside a process: what it answers, where it listens, what it leaves alone."""

import socket

import httpx2
import pytest
import structlog

from manylora.errors import UnavailableError
from manylora.metrics import SchedulerMetrics
from manylora.probe import PORTS, Probe


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(probe.getsockname()[1], 65535 - PORTS)


@pytest.fixture
def start():
    """start(checks, alive) -> the address of a probe."""
    running = []

    def make(checks=None, alive=lambda: True, port=None):
        probe = Probe(SchedulerMetrics().text, checks or {}, alive)
        running.append(probe)
        return f"http://127.0.0.1:{probe.start('127.0.0.1', port or free_port())}"

    yield make
    for probe in running:
        probe.stop()
        probe.stop()  # harmless


def refuse():
    raise UnavailableError("it is away", hint="bring it back")


def test_metrics_are_text_prometheus_reads(start):
    answer = httpx2.get(f"{start()}/metrics?x=1", timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'manylora_part_info{part="scheduler"' in answer.content
    assert b"process_resident_memory_bytes" in answer.content


def test_alive_and_stuck(start):
    turning = [True]
    url = start(alive=lambda: turning[0])
    assert httpx2.get(f"{url}/healthz", timeout=60).json()["status"] == "ok"
    turning[0] = False
    answer = httpx2.get(f"{url}/healthz", timeout=60)
    assert (answer.status_code, answer.json()["status"]) == (503, "stuck")


def test_ready_and_not(start):
    answer = httpx2.get(f"{start({'a': lambda: None})}/readyz", timeout=60)
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "checks": {"a": "ok"}})
    answer = httpx2.get(f"{start({'a': lambda: None, 'b': refuse})}/readyz", timeout=60)
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "checks": {"a": "ok", "b": "it is away; bring it back"},
    }


def test_nothing_else_is_answered(start):
    url = start()
    assert httpx2.get(f"{url}/", timeout=60).status_code == 404
    assert httpx2.get(f"{url}/../etc/passwd", timeout=60).status_code == 404
    assert httpx2.post(f"{url}/metrics", timeout=60).status_code == 501


def test_each_process_takes_the_next_free_port(start):
    first = free_port()
    urls = {start(port=first) for _ in range(3)}
    assert len(urls) == 3
    assert all(first <= int(url.rpartition(":")[2]) < first + PORTS for url in urls)


def test_an_address_that_is_not_here_is_said_so():
    with pytest.raises(UnavailableError, match="cannot be listened on") as refused:
        Probe(bytes, {}).start("192.0.2.1", free_port())
    assert "MANYLORA_METRICS_HOST" in refused.value.hint


def test_a_process_that_cannot_be_looked_at_goes_on():
    with structlog.testing.capture_logs() as said:
        Probe(bytes, {}).show("192.0.2.1", free_port())
        Probe(bytes, {}).show("192.0.2.1", 0)
    (line,) = said
    assert (line["event"], line["log_level"]) == ("probe.not_up", "error")


def test_no_free_port_is_said_so(monkeypatch):
    monkeypatch.setattr("manylora.probe.PORTS", 1)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UnavailableError, match="is free") as refused,
    ):
        Probe(bytes, {}).start("127.0.0.1", taken.getsockname()[1])
    assert "MANYLORA_METRICS_PORT" in refused.value.hint
