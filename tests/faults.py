"""Desks that something goes wrong with, and what lies in them afterwards."""

import sqlite3
from contextlib import closing, contextmanager

from conftest import NOON
from soundness import ask

import ticketapi


def make_desk(path, tickets=60, now=NOON):
    """Make a desk, a third of whose tickets are closed, and return the text of a token."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        ticketapi.generate_tickets(db, tickets, now, seed=1)
        ticketapi.process_tickets(db, tickets // 3, now)
        return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["*"], 0, now)["token"]


def counters(path):
    """Return how many tickets are open and closed, which the rows must agree with."""
    counts = ask(path, "SELECT status, tickets FROM ticket_counts ORDER BY status")
    rows = dict(ask(path, "SELECT status, count(*) FROM tickets GROUP BY status"))
    assert counts == [(status, rows.get(status, 0)) for status in (1, 2)]
    return tuple(count for _, count in counts)


def contents(folder):
    """Return the bytes of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def held(path, *pragmas):
    """Hold a file's lock for writing, as another program does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in pragmas:
            db.execute(pragma)
        db.execute("BEGIN IMMEDIATE")
        yield
