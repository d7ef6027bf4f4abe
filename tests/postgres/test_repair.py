"""Numbers with gaps, in rows that lie in no order, are made dense again, whatever the planner knows of the table."""

import random
from contextlib import closing

import pytest
from conftest import NOON, SECOND

import ticketapi


@pytest.mark.parametrize("seed", range(4))
def test_gaps_are_closed_without_giving_a_number_to_two(databases, seed):
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
        ticketapi.rebuild_counters(db)
        assert ticketapi.counter_problems(db) == []
