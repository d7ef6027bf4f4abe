"""Tickets are closed first in, first out; closing times grow strictly, and none is at or before its ticket's arrival."""

import pytest
from conftest import SECOND

import ticketapi


def put_tickets(db, *arrivals):
    """Insert open tickets with the ids 1, 2, ... that arrived at the given microseconds, in the order of their ids."""
    with ticketapi.transaction(db):
        ticketapi.insert_users(db, [(1, "Ann", "a@example.com", ticketapi.format_time(0))])
        rows = [
            (n, 1, n, "Ann", "a@example.com", "s", "c", 1, ticketapi.format_time(t), ticketapi.format_time(t), None, None, n)
            for n, t in enumerate(arrivals, 1)
        ]
        ticketapi.insert_tickets(db, rows)
        ticketapi.rebuild_counters(db)


def closings(db):
    """Return (id, created_at, closed_at) of the closed tickets in the order of their closing, which their numbers tell too."""
    numbers = [number for (number,) in db.execute("SELECT closed_number FROM tickets WHERE status = 2 ORDER BY closed_at")]
    assert numbers == list(range(1, len(numbers) + 1))
    return [
        tuple(row) for row in db.execute("SELECT id, created_at, closed_at FROM tickets WHERE status = 2 ORDER BY closed_at")
    ]


def counts(db):
    """Return how many tickets are open and closed, by the counters and by the rows."""
    by_counter = tuple(ticketapi.count_tickets(db, status) for status in (1, 2))
    by_rows = tuple(db.execute("SELECT count(*) FROM tickets WHERE status = ?", (status,)).fetchone()[0] for status in (1, 2))
    assert by_counter == by_rows
    return by_counter


def assert_closings_are_sound(db):
    """Check that closing times grow strictly, and are later than the arrivals."""
    rows = closings(db)
    times = [closed_at for _, _, closed_at in rows]
    assert len(set(times)) == len(times)
    assert all(closed_at > created_at for _, created_at, closed_at in rows)
    assert [(created_at, ticket_id) for ticket_id, created_at, _ in rows] == sorted((c, i) for i, c, _ in rows)


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        ((10, 20, 30), [1, 2, 3]),
        ((10, 10, 20, 20), [1, 2, 3, 4]),
        ((5, 5, 5), [1, 2, 3]),
    ],
)
def test_the_oldest_is_closed_first_and_the_id_breaks_a_tie(db, clock, arrivals, order):
    put_tickets(db, *arrivals)
    assert [ticketapi.process_tickets(db, 1, clock.now) for _ in arrivals] == [[ticket_id] for ticket_id in order]
    assert_closings_are_sound(db)


@pytest.mark.parametrize("arrivals", [(10, 20, 30), (10, 10, 20, 20)])
def test_the_ids_come_back_in_the_order_of_closing(db, clock, arrivals):
    put_tickets(db, *arrivals)
    ids = ticketapi.process_tickets(db, 100, clock.now)
    assert ids == [ticket_id for ticket_id, _, _ in closings(db)]


def test_a_closed_ticket_says_when(db, clock):
    put_tickets(db, 10)
    ticketapi.process_tickets(db, 1, clock.now)
    row = db.execute("SELECT * FROM tickets").fetchone()
    assert row["status"] == ticketapi.CLOSED
    assert row["closed_at"] == row["updated_at"] == "2025-12-04T12:00:00.000000Z"
    assert row["created_at"] == ticketapi.format_time(10)


def test_closing_times_grow_although_the_clock_stands_still(db, clock):
    put_tickets(db, 1, 2, 3, 4)
    for count in (2, 1, 1):
        ticketapi.process_tickets(db, count, clock.now)
    assert [closed_at for _, _, closed_at in closings(db)] == [ticketapi.format_time(clock.now + more) for more in range(4)]


def test_closing_times_grow_although_the_clock_goes_back(db, clock):
    put_tickets(db, 1, 2, 3)
    ticketapi.process_tickets(db, 1, clock.now)
    ticketapi.process_tickets(db, 2, clock.now - 3600 * SECOND)
    assert [ticket_id for ticket_id, _, _ in closings(db)] == [1, 2, 3]
    assert_closings_are_sound(db)


@pytest.mark.parametrize("ahead", [0, 1, 5, SECOND, 3600 * SECOND])
def test_no_ticket_is_closed_at_or_before_its_arrival(db, clock, ahead):
    put_tickets(db, clock.now - 5, clock.now + ahead, clock.now + ahead + 1, clock.now + ahead + 7)
    ticketapi.process_tickets(db, 4, clock.now)
    assert_closings_are_sound(db)


def test_tickets_made_and_closed_in_the_same_moment_stay_in_order(db, clock):
    ticketapi.generate_tickets(db, 50, clock.now, 1)
    assert ticketapi.process_tickets(db, 50, clock.now) == list(range(1, 51))
    assert_closings_are_sound(db)


def test_several_batches_are_closed_in_one_order(small_batches, db, clock):
    total = 2 * small_batches + 5
    put_tickets(db, *range(total))
    assert ticketapi.process_tickets(db, total - 2, clock.now) == list(range(1, total - 1))
    assert counts(db) == (2, total - 2)
    assert_closings_are_sound(db)


def test_the_batches_are_reported_as_they_are_done(small_batches, db, clock):
    total, reports = 2 * small_batches + 5, []
    put_tickets(db, *range(total))
    ticketapi.process_tickets(db, total, clock.now, reports.append)
    assert reports == [small_batches, 2 * small_batches, total]


@pytest.mark.parametrize("count", [4, 100, 10**12])
def test_more_than_there_are_closes_all(db, clock, count):
    put_tickets(db, 1, 2, 3)
    assert ticketapi.process_tickets(db, count, clock.now) == [1, 2, 3]
    assert counts(db) == (0, 3)


def test_a_whole_batch_that_is_the_last_closes_all(small_batches, db, clock):
    put_tickets(db, *range(1, small_batches + 1))
    assert len(ticketapi.process_tickets(db, small_batches + 1, clock.now)) == small_batches
    assert counts(db) == (0, small_batches)


def test_without_tickets_nothing_is_closed(db, clock):
    assert ticketapi.process_tickets(db, 5, clock.now) == []
    assert counts(db) == (0, 0)


def test_a_count_of_zero_or_less_closes_nothing(db, clock):
    put_tickets(db, 1)
    assert ticketapi.process_tickets(db, 0, clock.now) == ticketapi.process_tickets(db, -3, clock.now) == []
    assert counts(db) == (1, 0)


def test_a_ticket_is_closed_once(db, clock):
    put_tickets(db, 1, 2)
    assert ticketapi.process_tickets(db, 1, clock.now) == [1]
    assert ticketapi.process_tickets(db, 5, clock.now) == [2]
    assert ticketapi.process_tickets(db, 5, clock.now) == []


def test_the_authors_keep_their_counters(db, clock):
    put_tickets(db, 1, 2, 3)
    ticketapi.process_tickets(db, 2, clock.now)
    assert ticketapi.find_user(db, 1)["tickets_count"] == 3
    assert counts(db) == (1, 2)
