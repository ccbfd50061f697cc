"""One stack for all crash points."""

import pytest

from tests.chaos.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory, tiny_base):
    one = Stack(tmp_path_factory.mktemp("crash points"), tiny_base, s3_multipart_bytes=2048)
    try:
        yield one.start()
    finally:
        one.stop()
