"""An outage is sat out, for a time, by a job that still holds its lease."""

import threading
from types import SimpleNamespace

import pytest

from manylora.errors import LostError, NotFoundError, UnavailableError
from worker.outlast import outlast


class Clock:
    """Its waits pass at once and are counted."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def monotonic(self):
        return self.now

    def wait(self, event, seconds):
        self.waits.append(seconds)
        self.now += seconds
        return event.is_set()


class Flaky:
    def __init__(self, *errors):
        self.errors = list(errors)

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def parts():
    lease = SimpleNamespace(job_id="j", lost=threading.Event())
    return dict(clock=Clock(), lease=lease, draining=threading.Event(), seconds=60.0)


def away():
    return UnavailableError("away")


def test_it_goes_through_at_last_with_longer_and_longer_pauses(parts):
    assert outlast(Flaky(*(away() for _ in range(7))), **parts) == "done"
    assert parts["clock"].waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_the_time_is_over(parts):
    with pytest.raises(UnavailableError):
        outlast(Flaky(*(away() for _ in range(99))), **parts)
    assert 60 <= parts["clock"].now <= 75


def test_whoever_drains_does_not_wait(parts):
    parts["draining"].set()
    with pytest.raises(UnavailableError):
        outlast(Flaky(away()), **parts)
    assert parts["clock"].waits == []


def test_whoever_lost_the_lease_meanwhile_leaves(parts):
    parts["lease"].lost.set()
    with pytest.raises(LostError):
        outlast(Flaky(away()), **parts)


@pytest.mark.parametrize(
    "error", [NotFoundError("none"), UnavailableError("full", code="disk_full")]
)
def test_what_waiting_cannot_mend_is_raised_at_once(parts, error):
    with pytest.raises(type(error)):
        outlast(Flaky(error), **parts)
    assert parts["clock"].waits == []
