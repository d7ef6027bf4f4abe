"""Who waited before a history begins is served evenly over its first working day, neither at its start nor in a heap."""

from itertools import pairwise

import pytest
from conftest import NOON, SECOND

import ticketapi

DAY = 86_400


def closings(db, waiting):
    """Return when the tickets that waited were closed, in microseconds, the oldest first."""
    rows = db.execute("SELECT closed_at FROM tickets WHERE id <= ? ORDER BY id", (waiting,))
    return [ticketapi.parse_time(closed_at) for (closed_at,) in rows]


@pytest.mark.parametrize("days", [2, 10, 90])
@pytest.mark.parametrize("waiting", [1, 2, 3, 20, 150])
def test_a_backlog_is_closed_in_equal_shares_of_work(db, small_batches, waiting, days):
    start = NOON - days * DAY * SECOND
    ticketapi.generate_tickets(db, waiting, start - DAY * SECOND, 1)
    ticketapi.generate_history(db, 50, days * DAY, NOON, 1)
    history = ticketapi.plan_history(start, NOON, 1)
    work = [0, *map(history.work.weight, closings(db, waiting)), history.delay]
    shares = [later - earlier for earlier, later in pairwise(work)]
    assert all(moment > start for moment in closings(db, waiting))
    assert max(shares) - min(shares) <= 0.01 * history.delay / (waiting + 1)
