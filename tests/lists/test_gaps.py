"""Lists with gaps: whatever was closed out of order, reopened or deleted, each page is what the plain list of tickets says."""

import json
import random
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain

import pytest
from conftest import IN_CI, NOON, SECOND

import ticketapi
from ticketapi import ALL_LIST, CLOSED, CLOSED_LIST, OPEN, OPEN_LIST, format_time

URL = "http://desk.test/api/x"
SIZES = (1, 7, 50, 200)
LARGE = 9000 if IN_CI else 6000  # tickets: more than two blocks of blocks


@dataclass
class Model:
    """Tickets as a plain list knows them, and the desk that must show the same."""

    db: object
    chance: random.Random
    now: int = NOON
    status: dict = field(default_factory=dict)  # by id; deleted ones are not there
    closed: list = field(default_factory=list)  # ids in the order of their closing

    def generate(self, count):
        """Let tickets come."""
        first = max(ticketapi.newest_ticket(self.db)[0], 0) + 1
        ticketapi.generate_tickets(self.db, count, self.now, 1)
        self.status |= dict.fromkeys(range(first, first + count), OPEN)

    def process(self, count):
        """Close the oldest."""
        expected = sorted(ticket for ticket, status in self.status.items() if status == OPEN)[:count]
        assert ticketapi.process_tickets(self.db, count, self.now) == expected
        self.note_closed(expected)

    def note_closed(self, ids):
        """Note that tickets were closed."""
        self.status |= dict.fromkeys(ids, CLOSED)
        self.closed += ids

    def leave(self, ticket):
        """Note that a ticket is not closed any more."""
        if self.status[ticket] == CLOSED:
            self.closed.remove(ticket)

    def turn(self, ticket):
        """Close a ticket, or reopen it."""
        if self.status[ticket] == OPEN:
            ticketapi.update_ticket(self.db, ticket, {"status": CLOSED}, self.now)
            self.note_closed([ticket])
        else:
            ticketapi.update_ticket(self.db, ticket, {"status": OPEN}, self.now)
            self.leave(ticket)
            self.status[ticket] = OPEN

    def delete(self, ticket):
        """Delete a ticket."""
        ticketapi.delete_ticket(self.db, ticket, self.now)
        self.leave(ticket)
        del self.status[ticket]

    def disturb(self, share):
        """Close, reopen and delete a share of the tickets, in no order."""
        chosen = self.chance.sample(sorted(self.status), int(len(self.status) * share))
        for start in range(0, len(chosen), 1000):
            with ticketapi.transaction(self.db):
                for ticket in chosen[start : start + 1000]:
                    self.now += 1
                    (self.delete if self.chance.random() < 0.4 else self.turn)(ticket)


def lists_of(db):
    """Return how each list is read, by name, and the ids that plain SQL finds; the users are those with most and fewest."""
    users = [row[0] for row in db.execute("SELECT id FROM users WHERE tickets_count > 0 ORDER BY tickets_count DESC, id")]
    found = {"open": (ticketapi.open_listing(db), "status = 1 ORDER BY id")}
    found["closed"] = (ticketapi.closed_listing(db), "status = 2 ORDER BY closed_at DESC")
    for user in {*users[:2], *users[-1:]}:
        found[f"user {user}"] = (ticketapi.user_listing(db, user), f"user_id = {user} AND status > 0 ORDER BY id DESC")
    return {
        name: (listing, [row[0] for row in db.execute(f"SELECT id FROM tickets WHERE {plain}").fetchall()])
        for name, (listing, plain) in found.items()
    }


def ask(db, listing, **asked):
    """Return a slice of a list as its JSON says."""
    request = ticketapi.ListRequest(URL, **{"page": 1, "per_page": 50, "keep_per_page": True} | asked)
    return json.loads(ticketapi.list_page(db, listing, ticketapi.get_bounds(listing), request))


def ids_of(answer):
    """Return the ids of a slice."""
    return [ticket["id"] for ticket in answer["data"]]


def walk(db, listing, size, start, direction):
    """Follow the cursors of a list in one direction; return the ids met, and the last answer."""
    answer = ask(db, listing, per_page=size, by_cursor=True, cursor=start)
    met = [ids_of(answer)]
    while text := answer["meta"][f"{direction}_cursor"]:
        answer = ask(db, listing, per_page=size, by_cursor=True, cursor=ticketapi.decode_cursor(text, URL))
        met.append(ids_of(answer))
    return met, answer


def assert_lists_are_plain(db, chance, sizes=SIZES, limit=40):
    """Compare pages of every size, at every depth, and walks along the cursors with what plain SQL says."""
    for name, (listing, plain) in lists_of(db).items():
        for size in sizes:
            last = max(1, -(-len(plain) // size))
            pages = range(1, last + 1)
            chosen = pages if last <= limit else {1, 2, last - 1, last, *chance.sample(pages, limit)}
            for page in chosen:
                answer = ask(db, listing, page=page, per_page=size)
                assert ids_of(answer) == plain[(page - 1) * size : page * size], (name, size, page)
                assert (answer["meta"]["total"], answer["meta"]["last_page"]) == (len(plain), last)
            assert ids_of(ask(db, listing, page=last + 1, per_page=size)) == []
        met, end = walk(db, listing, 97, None, "next")
        assert list(chain(*met)) == plain, name
        back, _ = walk(db, listing, 97, None if not plain else cursor_at(listing, db, plain[-1]), "prev")
        assert [*chain(*back[::-1]), *plain[-1:]] == plain, name
        assert end["meta"]["next_cursor"] is None


def cursor_at(listing, db, ticket):
    """Return the cursor that goes back from a ticket of a list."""
    column = {OPEN_LIST: "id", CLOSED_LIST: "closed_number"}.get(listing.number, "user_number")
    return ticketapi.Cursor(db.execute(f"SELECT {column} FROM tickets WHERE id = ?", (ticket,)).fetchone()[0], False)


def assert_figures_are_plain(db, times):
    """Compare the counts since a time with what plain SQL says."""
    newest, total = ticketapi.newest_ticket(db)[0], sum(ticketapi.list_ticket_counts(db).values())
    for moment in times:
        since = format_time(moment)
        came = "SELECT count(*) FROM tickets WHERE status > 0 AND created_at >= ?"
        ended = "SELECT count(*) FROM tickets WHERE status = 2 AND closed_at >= ?"
        found = ticketapi.count_since(db, ALL_LIST, newest, total, since), ticketapi.count_closed_since(db, since)
        assert found == tuple(db.execute(sql, (since,)).fetchone()[0] for sql in (came, ended)), since


@pytest.fixture
def views(db, desk):
    """A connection that shows tickets."""
    with closing(ticketapi.connect(desk, ticketapi.READER)) as reader:
        yield reader


def moments_of(db, chance):
    """Return some times at which a ticket came or was closed, and some beside them."""
    rows = db.execute("SELECT created_at, updated_at FROM tickets").fetchall()
    chosen = chance.sample(range(len(rows)), min(30, len(rows)))
    moments = [ticketapi.parse_time(text) for number in chosen for text in rows[number]]
    return [moment + step for moment in moments for step in (-1, 0, 1)] + [0, NOON, NOON * 2]


# A random life -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tickets", "seed"), [(50, 1), (50, 2), (50, 3), (700, 4), (700, 5), (4500, 6), (LARGE, 7)])
def test_a_third_closed_out_of_order_reopened_or_deleted(db, views, tickets, seed):
    model = Model(db, random.Random(seed))
    model.generate(tickets)
    model.now += 10 * SECOND
    model.process(tickets // 2)
    for _ in range(3):
        model.now += SECOND
        model.disturb(0.13)
        model.generate(tickets // 20)
        model.process(tickets // 30)
        assert ticketapi.counter_problems(db) == []
        found = lists_of(views)
        assert found["open"][1] == sorted(ticket for ticket, status in model.status.items() if status == OPEN)
        assert found["closed"][1] == model.closed[::-1]
        assert_lists_are_plain(views, model.chance, limit=12)
        with ticketapi.snapshot(views):
            assert_figures_are_plain(views, moments_of(views, model.chance))
    before = blocks(db)
    ticketapi.rebuild_counters(db)
    assert blocks(db) == before


def blocks(db):
    """Return the blocks that count anything."""
    with ticketapi.snapshot(db):
        return sorted(tuple(row) for row in ticketapi.list_blocks(db))


@pytest.mark.parametrize("gone", ["first", "last", "all", "every block but one", "one block"])
@pytest.mark.parametrize("way", ["deleted", "turned"])
def test_gaps_at_the_edges_of_lists_and_blocks(db, views, gone, way):
    model = Model(db, random.Random(1))
    model.generate(600)
    model.process(300)
    for first in (1, 301):  # the closed ones have the numbers of their ids
        ids = range(first, first + 300)
        chosen = {
            "first": ids[:70],
            "last": ids[-70:],
            "all": ids,
            "every block but one": [n for n in ids if not first + 63 <= n < first + 128],
            "one block": [n for n in ids if first + 63 <= n < first + 128],
        }[gone]
        for ticket in chosen:
            (model.delete if way == "deleted" else model.turn)(ticket)
    found = lists_of(views)
    assert found["closed"][1] == model.closed[::-1]
    assert_lists_are_plain(views, model.chance)
    assert ticketapi.counter_problems(db) == []


# Numbers beyond the levels -----------------------------------------------------------------------


def insert_sparse(db, numbers, status):
    """Insert tickets with ids, numbers among the closed ones and numbers of one user that are far apart."""
    with ticketapi.transaction(db):
        ticketapi.insert_users(db, [(1, "Ann", "ann@example.com", format_time(NOON))])
        rows = []
        for n in numbers:
            at, number = format_time(NOON + n), n if status == CLOSED else None
            end = (at, number) if status == CLOSED else (None, None)
            rows.append((n, 1, n, "Ann", "ann@example.com", "s", "c", status, at, at, *end, n))
        ticketapi.insert_tickets(db, rows)
        ticketapi.rebuild_counters(db)


BEYOND = {  # what lies around the ends of blocks of the levels
    "64": [*range(60, 70), *range(125, 131)],
    "4,096": [1, 2, *range(4090, 4102), *range(8188, 8196), 12_288, 12_289],
    "262,144": [5, *range(262_140, 262_150), *range(524_285, 524_292), 700_000, *range(786_430, 786_440)],
    "16,777,216": [1, 64, 262_144, *range(16_777_210, 16_777_222), *range(17_039_355, 17_039_365), 20_000_000],
}


@pytest.mark.parametrize("status", [OPEN, CLOSED])
@pytest.mark.parametrize("beyond", BEYOND)
def test_numbers_around_the_ends_of_blocks(db, views, beyond, status):
    numbers = BEYOND[beyond]
    if status == CLOSED and beyond == "16,777,216":
        numbers = [n - 16_000_000 if n > 16_000_000 else n for n in numbers]  # a row for each block of missing numbers
    insert_sparse(db, numbers, status)
    assert ticketapi.counter_problems(db) == []
    for name, (listing, plain) in lists_of(views).items():
        keys = sorted(plain)
        assert [ticketapi.find_key(views, listing, rank) for rank in range(len(keys))] == keys, name
    assert_lists_are_plain(views, random.Random(1), sizes=(1, 3, 50))
    with ticketapi.snapshot(views):
        assert_figures_are_plain(views, [NOON + n + step for n in numbers for step in (-1, 0, 1)])


@pytest.mark.files
def test_a_long_list_with_few_gaps_is_found_by_what_is_missing(db, desk):
    """Blocks of a long list are made by hand: rows for 20,000,000 tickets would take hours."""
    missing, last = [3, 64, 65, 4097, 262_145, 9_999_999, 16_777_217, 19_999_999], 20_000_000
    with ticketapi.transaction(db):
        ticketapi.count_in_blocks(db, CLOSED_LIST, missing, -1)
    finds = []
    listing = ticketapi.Listing(CLOSED_LIST, None, lambda lowest, skip: finds.append((lowest, skip)) or (lowest, skip), None)
    gone = set(missing)

    def number_at(rank):
        """Return the number before which so many others are there."""
        number = rank + 1
        while number - sum(n < number for n in missing) - 1 < rank or number in gone:
            number += 1
        return number

    for wanted in (1, 2, 4, 63, 66, 128, 129, 4096, 4098, 262_144, 262_146, 10**7, 16_777_216, 16_777_218, last - 2, last):
        rank = wanted - 1 - sum(n < wanted for n in missing)
        assert number_at(rank) == wanted
        found = ticketapi.find_key(db, listing, rank)
        if isinstance(found, tuple):  # within a block where some are missing: it is looked for there
            lowest, skip = found
            there = [n for n in range(lowest, lowest + 64) if n not in gone]
            assert (lowest - 1) % 64 == 0
            found = there[skip]
        assert found == wanted


# Blocks ------------------------------------------------------------------------------------------


def test_dense_lists_and_bulk_work_write_no_row_but_for_open_tickets(db):
    ticketapi.generate_tickets(db, 5000, NOON, 1)
    ticketapi.process_tickets(db, 3000, NOON + SECOND)
    ticketapi.generate_history(db, 1000, 3600, NOON + 7200 * SECOND, 1)
    assert {place[0] for place in blocks(db)} == {OPEN_LIST}
    assert ticketapi.process_tickets(db, 10_000, NOON + 7300 * SECOND)
    assert blocks(db) == []
    assert ticketapi.count_tickets(db, CLOSED) == 6000


def test_blocks_of_open_tickets_that_are_empty_are_deleted(db):
    ticketapi.generate_tickets(db, 10_000, NOON, 1)
    ticketapi.process_tickets(db, 9000, NOON + SECOND)
    count = db.execute("SELECT count(*) FROM list_blocks WHERE list = -1").fetchone()[0]
    assert count <= 1000 // 64 + 2 + 2 + 1
    assert ticketapi.counter_problems(db) == []
