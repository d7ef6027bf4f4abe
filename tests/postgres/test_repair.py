"""Numbers with gaps, in rows that lie in no order, keep their places, whatever the planner knows of the table."""

import random
from contextlib import closing

import pytest
from conftest import NOON, SECOND

import ticketapi


@pytest.mark.parametrize("seed", range(4))
def test_gaps_are_counted_and_every_number_stays(databases, seed):
    chance = random.Random(seed)
    with closing(ticketapi.open_database(databases.fresh(), "desk")) as db:
        ticketapi.generate_tickets(db, 1500, NOON, 1)
        closed = ticketapi.process_tickets(db, 1000, NOON + SECOND)
        with ticketapi.transaction(db):
            db.execute("UPDATE tickets SET closed_number = closed_number + 1000000 WHERE status = 2")
            for ticket_id, number in zip(chance.sample(closed, 1000), chance.sample(range(1, 3000), 1000), strict=True):
                db.execute("UPDATE tickets SET closed_number = ? WHERE id = ?", (number, ticket_id))
            db.execute("UPDATE tickets SET user_number = user_number + 1000000")
            db.execute("UPDATE tickets SET user_number = (user_number - 1000000) * 3")
        if seed % 2:
            db.run("ANALYZE")
        before = [tuple(row) for row in db.execute("SELECT id, user_number, closed_number FROM tickets ORDER BY id").fetchall()]
        ticketapi.rebuild_counters(db)
        assert ticketapi.counter_problems(db) == []
        assert [tuple(row) for row in db.execute("SELECT id, user_number, closed_number FROM tickets ORDER BY id")] == before
        numbers = sorted(number for _, _, number in before if number)
        listing = ticketapi.closed_listing(db)
        assert [ticketapi.find_key(db, listing, rank) for rank in range(1000)] == numbers
