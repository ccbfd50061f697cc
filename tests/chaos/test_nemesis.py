"""The nemesis, for a short while."""

from tests.chaos.__main__ import settings
from tests.chaos.nemesis import rage
from tests.chaos.stack import Stack


def test_whatever_dies_no_job_is_lost_and_none_is_published_twice(tmp_path, tiny_base):
    stack = Stack(tmp_path / "a stack", tiny_base, **settings())
    try:
        report = rage(stack.start(), faults=10, jobs=6, seed=4, say=print)
    finally:
        stack.stop()
    print(report.table())
    assert sum(report.faults.values()) == 10
    assert report.jobs >= 6
