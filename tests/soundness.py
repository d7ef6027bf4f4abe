"""Whether a desk on disk is whole: structure, references, counters and order, asked with plain SQL."""

from contextlib import closing

import ticketapi


def ask(path, sql):
    """Return the rows that a query finds, as tuples."""
    with closing(ticketapi.connect(path)) as db:
        return [tuple(row) for row in db.execute(sql)]


def assert_sound(desk):
    """Check a desk: structure, references, counters, order; return how many tickets are open and closed."""
    assert ask(desk, "PRAGMA integrity_check") == [("ok",)]
    assert ask(desk, "PRAGMA foreign_key_check") == []
    counters = dict(ask(desk, "SELECT status, tickets FROM ticket_counts"))
    rows = dict(ask(desk, "SELECT status, count(*) FROM tickets GROUP BY status"))
    assert counters == {1: 0, 2: 0} | rows
    counted = "SELECT id, tickets_count FROM users WHERE tickets_count > 0 ORDER BY id"
    assert ask(desk, counted) == ask(desk, "SELECT user_id, count(*) FROM tickets GROUP BY user_id ORDER BY user_id")
    numbers = "SELECT user_id, max(user_number), count(DISTINCT user_number) FROM tickets GROUP BY user_id"
    assert all(last == tickets for _, last, tickets in ask(desk, numbers))
    numbers = "SELECT coalesce(max(closed_number), 0), count(DISTINCT closed_number) FROM tickets"
    assert ask(desk, numbers) == [(rows.get(2, 0), rows.get(2, 0))]
    distinct = "SELECT count(*) - count(DISTINCT created_at), count(closed_at) - count(DISTINCT closed_at) FROM tickets"
    assert ask(desk, distinct) == [(0, 0)]
    return counters[ticketapi.OPEN], counters[ticketapi.CLOSED]
