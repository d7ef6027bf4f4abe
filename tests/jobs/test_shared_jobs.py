"""Of many servers of one desk one runs a job at a boundary, whatever their clocks say and however long one hangs."""

from contextlib import closing

import pytest

import ticketapi
from ticketapi import MINUTE_MICROSECONDS as MINUTE


@pytest.fixture
def claim(database):
    """Return a function that tells whether a run at a boundary is ours to do; and the boundary of this moment."""
    place = ticketapi.Postgres(database)
    ticketapi.open_database(place, "desk").close()
    now = ticketapi.wall_microseconds() // MINUTE * MINUTE

    def ask(minutes, job="generate"):
        with closing(ticketapi.connect(place)) as db, ticketapi.transaction(db):
            return ticketapi.claim_boundary(db, job, now + minutes * MINUTE, MINUTE)

    return ask


def test_a_boundary_is_taken_once_for_each_job(claim):
    assert [claim(0), claim(0), claim(0, "process"), claim(0, "process")] == [True, False, True, False]
    assert [claim(1), claim(0), claim(1)] == [True, False, False]


def test_who_hung_since_it_read_its_clock_takes_nothing_back(claim):
    assert [claim(-60), claim(0), claim(-60), claim(-3), claim(0)] == [True, True, False, False, False]


def test_a_boundary_of_a_clock_that_was_far_ahead_holds_up_nobody(claim):
    assert [claim(60), claim(0), claim(0), claim(1)] == [True, True, False, True]


def test_what_fails_leaves_its_boundary_to_the_next(database, claim):
    with closing(ticketapi.connect(ticketapi.Postgres(database))) as db:
        with pytest.raises(ZeroDivisionError), ticketapi.transaction(db):
            assert ticketapi.claim_boundary(db, "generate", MINUTE, MINUTE)
            raise ZeroDivisionError
        assert ticketapi.claim_boundary(db, "generate", MINUTE, MINUTE)
        assert not ticketapi.claim_boundary(db, "generate", MINUTE, MINUTE)
