"""When silence may be held against a worker: by times handed in."""

import pytest

from scheduler.contact import Contact

UP = 10_000.0


def ticks(contact, start, seconds, ahead=0.0, up=UP):
    """A round every second; the database's time is `ahead` of ours."""
    for second in range(int(seconds) + 1):
        contact.saw(start + second, start + second + ahead, up + second)


def test_one_ttl_of_contact_is_needed():
    contact = Contact(60)
    assert not contact.settled
    ticks(contact, 100, 59)
    assert not contact.settled
    contact.saw(160, 160, UP)
    assert contact.settled


def test_a_failed_round_begins_it_anew():
    contact = Contact(60)
    ticks(contact, 0, 60)
    contact.broke()
    assert not contact.settled
    ticks(contact, 61, 59)
    assert not contact.settled
    contact.saw(121, 121, UP)
    assert contact.settled


@pytest.mark.parametrize("jump", [200.0, -200.0, 5.5])
def test_so_does_a_clock_that_jumps(jump):
    contact = Contact(60)
    ticks(contact, 0, 60)
    contact.saw(61, 61 + jump, UP)
    assert not contact.settled
    ticks(contact, 62, 58, ahead=jump)
    assert not contact.settled
    contact.saw(121, 121 + jump, UP)
    assert contact.settled


def test_so_does_a_long_silence_of_its_own_but_not_a_short_one():
    contact = Contact(60)
    ticks(contact, 0, 60)
    contact.saw(90, 90, UP)
    assert contact.settled
    contact.saw(121, 121, UP)
    assert not contact.settled


def test_a_database_started_anew_between_two_rounds_is_noticed():
    contact = Contact(60)
    ticks(contact, 0, 100)
    contact.saw(101, 101, 0.5)
    assert not contact.settled
    ticks(contact, 102, 58, up=1.5)
    assert not contact.settled
    contact.saw(161, 161, 60.5)
    assert contact.settled


def test_a_lease_is_silent_once_its_end_has_stood_still_for_a_ttl_of_ours():
    contact = Contact(60)
    assert contact.silent(0, [("a", 1, 50), ("b", 1, 50)]) == set()
    assert contact.silent(59, [("a", 1, 50), ("b", 1, 110)]) == set()
    assert contact.silent(60, [("a", 1, 50), ("b", 1, 110)]) == {("a", 1)}
    assert contact.silent(61, [("a", 2, 50), ("b", 1, 90)]) == set(), "another attempt, another end"
    assert contact.silent(100, []) == set()
    assert contact.silent(121, [("a", 2, 50)]) == set(), "it was gone in between"
