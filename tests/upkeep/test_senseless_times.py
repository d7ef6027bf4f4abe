"""A time of a ticket that is none is a finding of `check` in a line of its own, which a repair does not turn into a number."""

import json
import sqlite3
from contextlib import closing

import pytest
from conftest import NOON

import ticketapi

NO_TIMES = ["x" * 27, "2025-13-41T11:30:16.000000Z", "2025-12-04Txx:30:16.000000Z", "2025-12-04T11:30:\x1b[.000000Z"]


@pytest.fixture
def change(desk, db):
    """Return a function that gives a desk of five tickets, three of them closed, a time in plain SQL."""
    ticketapi.generate_tickets(db, 5, NOON, 1)
    ticketapi.process_tickets(db, 3, NOON)

    def set_time(column, ticket_id, text):
        with closing(sqlite3.connect(desk, isolation_level=None)) as other:
            other.execute(f"UPDATE tickets SET {column} = ? WHERE id = ?", (text, ticket_id))

    return set_time


@pytest.mark.parametrize("text", NO_TIMES)
@pytest.mark.parametrize("column", ["created_at", "closed_at"])
@pytest.mark.parametrize("ticket_id", [1, 2, 3])  # with and without sound ones before
def test_a_time_that_is_none_is_found_and_named(run, desk, db, change, column, ticket_id, text):
    change(column, ticket_id, text)
    db.close()
    before = desk.read_bytes()
    code, out, err = run("check", "--db", desk, "--json")
    [detail] = [found["detail"] for found in json.loads(out)["checks"] if found["check"] == "counters"]
    assert (code, err, detail.isprintable()) == (1, "", True)
    assert detail.startswith("a ticket has a time that is none: ")
    code, out, err = run("check", "--db", desk, "--repair")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("ticketapi: a ticket has a time that is none: ")
    assert desk.read_bytes() == before
