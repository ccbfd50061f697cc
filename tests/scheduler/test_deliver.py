"""The sender on a real ledger with a real receiver: once, again, and never lost."""

import os
import signal
import subprocess
import sys
import threading

import openai
import pytest
from sqlalchemy import select, text

from manylora.clock import SystemClock
from manylora.destinations import Allowed
from manylora.ledger import jobs, webhooks
from manylora.ledger.tables import Delivery
from scheduler.deliver import AT_ONCE, Sender
from scheduler.loop import Scheduler
from scheduler.post import Answer, Post
from tests.manylora.ledger.conftest import make_ledger
from tests.scheduler.receiver import Receiver

ALL = set(webhooks.TYPES.values())


@pytest.fixture
def receiver():
    one = Receiver()
    yield one
    one.close()


class Outbox:
    """A tenant with endpoints, and jobs of its that end."""

    def __init__(self, database):
        self.database = database
        self.ledger = make_ledger(database)

    def endpoint(self, url):
        with self.database.transaction() as tx:
            return webhooks.add(tx, self.ledger.tenant.id, url=url, types=ALL, most=100)

    def end(self):
        job_id = self.ledger.job()
        with self.database.transaction() as tx:
            jobs.cancel(tx, self.ledger.tenant.id, job_id)
        return job_id

    def rows(self):
        with self.database.transaction() as tx:
            return list(tx.scalars(select(Delivery).order_by(Delivery.created_at)))

    def make_due(self):
        with self.database.transaction() as tx:
            tx.execute(text("UPDATE deliveries SET next_at = clock_timestamp()"))

    def sender(self, post=None):
        told = []
        post = post or Post(Allowed(("127.0.0.0/8",)), SystemClock())
        sender = Sender(self.database, post, SystemClock(), told=told.append)
        return sender, told


@pytest.fixture
def outbox(service):
    with service.database.transaction() as tx:
        tx.execute(text("DELETE FROM deliveries"))
    return Outbox(service.database)


def go(sender):
    """One round, and all that it began."""
    begun = sender.begin()
    sender.finish(30)
    return begun


def test_a_message_is_delivered_once(outbox, receiver):
    secret = outbox.endpoint(receiver.url).secret
    job_id = outbox.end()
    sender, told = outbox.sender()
    assert [go(sender), go(sender)] == [1, 0]
    _, headers, body = receiver.next()
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1")
    event = client.webhooks.unwrap(body, headers, secret=secret)
    assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job_id)
    assert receiver.got.empty()
    assert told == ["delivered"]
    (row,) = outbox.rows()
    assert (row.state, row.attempts, row.last_status) == ("delivered", 1, 204)
    assert (event.id, headers["webhook-id"]) == (row.message_id, row.message_id)


def test_failures_of_every_kind_are_tried_again_with_the_same_id(outbox, receiver):
    receiver.answers = [500, 302, lambda handler: None, 200]
    outbox.endpoint(receiver.url)
    outbox.end()
    sender, told = outbox.sender()
    for _ in range(4):
        outbox.make_due()
        assert go(sender) == 1
        assert go(sender) == 0  # not before its time
    assert told == ["failed", "failed", "failed", "delivered"]
    got = [receiver.next() for _ in range(4)]
    assert len({headers["webhook-id"] for _, headers, _ in got}) == 1
    assert len({body for _, _, body in got}) == 1
    assert outbox.rows()[0].attempts == 4


def test_a_refused_connection_is_tried_again(outbox):
    gone = Receiver()
    url = gone.url
    gone.close()
    outbox.endpoint(url)
    outbox.end()
    sender, told = outbox.sender()
    assert go(sender) == 1
    (row,) = outbox.rows()
    assert (row.state, row.last_status, told) == ("pending", None, ["failed"])
    assert "connection failed" in row.last_error


def test_messages_of_one_endpoint_that_fail_do_not_stop_the_later_ones(outbox, receiver):
    receiver.answers = [500, 200]
    outbox.endpoint(receiver.url)
    jobs_ended = [outbox.end(), outbox.end()]
    sender, _ = outbox.sender()
    assert [go(sender), go(sender)] == [1, 1]
    assert [row.state for row in outbox.rows()] == ["pending", "delivered"]
    outbox.make_due()
    go(sender)
    assert {row.job_id for row in outbox.rows() if row.state == "delivered"} == set(jobs_ended)


def test_an_endpoint_that_hangs_holds_up_no_other(outbox, receiver):
    slow, fast = outbox.endpoint("http://slow/"), outbox.endpoint(receiver.url)
    outbox.end()
    outbox.end()
    release = threading.Event()
    real = Post(Allowed(("127.0.0.0/8",)), SystemClock())

    def post(one):
        if one.webhook_id == slow.id:
            assert release.wait(60)
            return Answer(200, "")
        return real(one)

    sender, _ = outbox.sender(post)
    assert sender.begin() == 2
    receiver.next()
    while not sender.begin():  # as soon as the fast one's first is settled
        assert sender.ended.wait(30)
    receiver.next()
    release.set()
    sender.finish(30)
    states = {(row.webhook_id, row.state) for row in outbox.rows()}
    assert (fast.id, "pending") not in states
    assert (slow.id, "delivered") in states


def test_so_many_at_once_and_no_more(outbox):
    for number in range(AT_ONCE + 3):
        outbox.endpoint(f"http://slow/{number}")
    outbox.end()
    release = threading.Event()
    sender, told = outbox.sender(lambda one: release.wait(60) and Answer(200, ""))
    assert [sender.begin(), sender.begin()] == [AT_ONCE, 0]
    release.set()
    sender.finish(30)
    assert go(sender) == 3
    assert len(told) == AT_ONCE + 3


def test_a_sender_that_breaks_is_a_failure_and_not_for_ever(outbox):
    outbox.endpoint("http://a.example/")
    outbox.end()
    sender, told = outbox.sender(lambda one: 1 / 0)
    go(sender)
    assert told == ["failed"]
    assert outbox.rows()[0].last_error == "it could not be sent (ZeroDivisionError)"


def test_two_senders_deliver_each_message_once(outbox, receiver):
    for path in "abc":
        outbox.endpoint(f"http://127.0.0.1:{receiver.port}/{path}")
    for _ in range(6):
        outbox.end()
    stopping = threading.Event()
    senders = [outbox.sender()[0] for _ in range(2)]
    threads = [threading.Thread(target=s.run, args=(stopping, 0.05)) for s in senders]
    for thread in threads:
        thread.start()
    got = [receiver.next() for _ in range(18)]
    stopping.set()
    for sender, thread in zip(senders, threads, strict=True):
        sender.ended.set()
        thread.join(30)
        assert not thread.is_alive()
    assert len({(path, headers["webhook-id"]) for path, headers, _ in got}) == 18
    assert receiver.got.empty()
    assert {row.state for row in outbox.rows()} == {"delivered"}


DIES = """
import os, signal, sys
from manylora.clock import SystemClock
from manylora.destinations import Allowed
from manylora.ledger.database import Database
from scheduler.deliver import Sender
from scheduler.post import Post

real = Post(Allowed(("127.0.0.0/8",)), SystemClock())


def post(one):
    answer = real(one)
    assert answer.taken
    os.kill(os.getpid(), signal.SIGKILL)  # sent, and not yet settled


sender = Sender(Database(sys.stdin.read()), post, SystemClock())
sender.begin()
sender.finish(30)
"""


def test_a_sender_killed_between_sending_and_settling_sends_again(outbox, receiver, urls):
    outbox.endpoint(receiver.url)
    outbox.end()
    done = subprocess.run(
        [sys.executable, "-c", DIES], input=urls.database_url, text=True,
        cwd=os.getcwd(), capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    first = receiver.next()
    (row,) = outbox.rows()
    assert (row.state, row.attempts) == ("pending", 1)
    sender, told = outbox.sender()
    assert go(sender) == 0  # the dead one's lease still holds
    outbox.make_due()
    assert go(sender) == 1
    second = receiver.next()
    assert first[1]["webhook-id"] == second[1]["webhook-id"] == row.message_id
    assert first[2] == second[2]
    assert told == ["delivered"]
    assert outbox.rows()[0].attempts == 2


def test_the_scheduler_sends_them(service, outbox, receiver):
    """The whole process: its thread sends, and stops with it."""
    settings = service.settings.model_copy(update={"webhook_networks": "127.0.0.0/8"})
    outbox.endpoint(receiver.url)
    scheduler = Scheduler(settings)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        job_id = outbox.end()
        _, headers, body = receiver.next()
        assert job_id.encode() in body
        assert headers["user-agent"].startswith("manylora/")
    finally:
        scheduler.stop()
        thread.join(30)
    assert not thread.is_alive()


def test_by_default_the_scheduler_goes_to_no_loopback(service, outbox, receiver):
    scheduler = Scheduler(service.settings)
    outbox.endpoint(receiver.url)
    outbox.end()
    assert go(scheduler.sender) == 1
    (row,) = outbox.rows()
    assert row.state == "pending"
    assert "may not go to" in row.last_error
    assert receiver.got.empty()
    scheduler.app.close()
    scheduler.database.close()
