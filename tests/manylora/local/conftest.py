"""Homes and waiting, for tests of the embedded stack. No fixture here starts a server."""

import shutil
import tempfile
import time
from pathlib import Path

import pytest


def await_true(condition, seconds=60.0, what="the condition"):
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def open_home():
    """A home with a space and a comma in its path, which every user can reach."""
    above = Path(tempfile.mkdtemp(prefix="manylora, a test "))
    above.chmod(0o755)
    yield above / "the home"
    shutil.rmtree(above, ignore_errors=True)
