"""A desk with a clock of its own, which starts on the first of January 2025, in the rhythm of a small office."""

import hashlib
from contextlib import closing
from pathlib import Path

import pytest

import ticketapi

START = ticketapi.parse_moment("2025-01-01T00:00:00Z")
DAY = 86_400 * ticketapi.MICROSECONDS
YEAR = 365 * DAY
SMALL = ticketapi.find_profile("office").scaled(10)
TABLES = {
    "tickets": "id",
    "users": "id",
    "counters": "name",
    "ticket_counts": "status",
    "list_blocks": "list, level, block",
    "ticket_arrivals": "hour",
    "ticket_closings": "hour, wait",
    "change_times": "at",
}


def begin(db, now, start=START, speed=1000, profile=SMALL, seed=1):
    """Give a desk a clock."""
    assert ticketapi.begin_simulation(db, profile, (start, speed), seed, 0, now) == []


def ask(db, now, **wish):
    """Set the clock of a desk."""
    return ticketapi.set_clock(db, ticketapi.ClockWish(**wish), now)


def digest(db):
    """Return a digest of all that a desk holds, its events as they are answered."""
    found = hashlib.sha256()
    for table, order in TABLES.items():
        for row in db.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall():
            found.update(repr(tuple(row)).encode())
    place = db.place if isinstance(db, ticketapi.PostgresConnection) else Path(db.execute("PRAGMA database_list").fetchone()[2])
    with closing(ticketapi.connect(place, ticketapi.READER)) as reader:
        after = ticketapi.event_ends(reader)[0]
        while events := ticketapi.read_events(reader, after, 1000):
            for event in events:
                found.update(event.json())
            after = events[-1].id
    return found.hexdigest()


@pytest.fixture
def master(db, clock):
    """The text of a token that may do everything."""
    return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "master", ["*"], 0, clock.wall())["token"]


@pytest.fixture
def timed(make_api, db, clock):
    """The app over a desk with a clock; no requests are too many."""
    begin(db, clock.now)
    return make_api(rate=0)


@pytest.fixture
def move(timed, master):
    """Return a function that sets the clock over HTTP and gives the answer."""
    return lambda **wish: timed.send("PUT", "/api/clock", wish, token=master)


@pytest.fixture
def look(timed, master):
    """Return a function that gives the clock as the API shows it."""
    return lambda: timed.get("/api/clock", token=master).json["data"]
