"""What was acknowledged exists, once, though the API is killed in the middle of many submits."""

import pytest
from sqlalchemy import select

from manylora.ledger.tables import Job
from tests.chaos.stack import Stack
from tests.chaos.submits import storm


@pytest.fixture(scope="module")
def stack(tmp_path_factory, tiny_base):
    one = Stack(tmp_path_factory.mktemp("submits"), tiny_base, workers=0)
    try:
        yield one.start()
    finally:
        one.stop()


def test_none_is_lost_when_the_api_is_killed_in_the_middle(stack):
    file = stack.upload(1, 20)
    killed = []
    seen = storm(stack, file, clients=8, each=20, midway=lambda: killed.append(stack.kill("api")))
    assert killed[0] is not None
    assert seen.again > 0
    assert len(seen.ids) == 160
    with stack.service.database.transaction() as tx:
        made = list(tx.scalars(select(Job.id)))
    assert sorted(made) == sorted(seen.ids.values())
