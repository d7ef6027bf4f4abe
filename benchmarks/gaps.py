#!/usr/bin/env python3
"""Measure what a page costs where lists have gaps, next to the same desk without them, at every depth.

    python3 benchmarks/gaps.py [--tickets 200000] [--rounds 5] [--seed 1]

Half of the tickets of the desk are closed, in the order in which they came. In a copy of it a third of all tickets, in no
order, are then closed out of turn, reopened or deleted, one by one. Requests for pages of 50, by number and by a cursor both
ways, go through the whole app, in this process, with an audit row each; the columns before tell what reading and writing the
page itself takes of that. They ask for 60 places that lie close together, each once in a round, with a query that makes them
new to the server. The desks are asked in turn; the least of all rounds counts. --tickets 1000000 takes a few minutes and 2 GB
of disk.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

from harness import print_head, print_machine, print_row, run

import ticketapi

PER_PAGE, PLACES = 50, 60
BOUND = 1.5
BATCH = 5000  # tickets that are changed in one transaction
MICROSECONDS = 1_000_000
DEPTHS = {"first": 0.0, "middle": 0.5, "last": 1.0}
URL = "http://localhost/api/list"


class List(NamedTuple):
    """A list of a desk: its path, what a slice of it is read with, and what a server remembers of it."""

    path: str
    listing: ticketapi.Listing
    bounds: ticketapi.Bounds

    def read(self, db: ticketapi.Connection, asked: ticketapi.ListRequest) -> bytes:
        """Return a slice, as a handler gets it."""
        return ticketapi.list_page(db, self.listing, self.bounds, asked)


class Desk:
    """A desk with its app, asked in this process."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """Open the desk and make the app, with a token and without a limit."""
        with closing(ticketapi.open_database(path, "desk")) as db:
            token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "t", ["read:tickets"], 0, 0)["token"]
            self.user_id = ticketapi.find_top_user(db)["id"]
        self.db = stack.enter_context(closing(ticketapi.connect(path, ticketapi.READER)))
        settings = replace(ticketapi.Settings(db=path), rate=0)
        readers = stack.enter_context(closing(ticketapi.Readers(path)))
        self.audit = stack.enter_context(closing(ticketapi.AuditLog(settings.audit_db, grouped=True)))
        self.app = ticketapi.make_app(settings, readers, self.audit, ticketapi.Clock())
        self.asked = 0
        self.environ: dict[str, Any] = {"REMOTE_ADDR": "127.0.0.1", "HTTP_AUTHORIZATION": f"Bearer {token}"}
        setup_testing_defaults(self.environ)
        self.lists: dict[str, List] = {}

    def look(self, user_id: int) -> None:
        """Look at the three lists."""
        user = f"/api/users/{user_id}/tickets"
        for name, path, listing in (
            ("open", "/api/tickets/open", ticketapi.open_listing(self.db)),
            ("closed", "/api/tickets/closed", ticketapi.closed_listing(self.db)),
            ("a user's", user, ticketapi.user_listing(self.db, user_id)),
        ):
            self.lists[name] = List(path, listing, ticketapi.get_bounds(listing))

    def get(self, path: str, query: str) -> None:
        """Send a request that the server does not remember."""
        self.asked += 1
        environ = self.environ | {"PATH_INFO": path, "QUERY_STRING": f"{query}&again={self.asked}"}
        for chunk in self.app(environ, must_be_ok):
            len(chunk)


def must_be_ok(status: str, headers: object, exc_info: object = None) -> None:
    """End the benchmark at any answer but 200."""
    if not status.startswith("200"):
        raise SystemExit(f"a page was answered with {status}")


def make_gaps(path: Path, seed: int) -> dict[str, int]:
    """Close, reopen and delete a third of a desk's tickets; return how many of each."""
    chance, done = random.Random(seed), {"closed": 0, "reopened": 0, "deleted": 0}
    with closing(ticketapi.open_database(path, "desk")) as db:
        now = ticketapi.last_closing(db) + 3600 * MICROSECONDS
        ids = [row[0] for row in db.execute("SELECT id FROM tickets")]
        chosen = chance.sample(ids, len(ids) // 3)
        for start in range(0, len(chosen), BATCH):
            with ticketapi.transaction(db):
                for ticket_id in chosen[start : start + BATCH]:
                    done[change(db, ticket_id, chance.random() < 0.4, now)] += 1
    return done


def change(db: ticketapi.Connection, ticket_id: int, leaves: bool, now: int) -> str:
    """Delete a ticket, or close it where it is open and reopen it where it is closed; return which it was."""
    if leaves:
        ticketapi.delete_ticket(db, ticket_id, now)
        return "deleted"
    is_open = ticketapi.get_ticket(db, ticket_id)["status"] == ticketapi.OPEN
    ticketapi.update_ticket(db, ticket_id, {"status": ticketapi.CLOSED if is_open else ticketapi.OPEN}, now)
    return "closed" if is_open else "reopened"


def ask(page: int, cursor: ticketapi.Cursor | None = None) -> ticketapi.ListRequest:
    """Return what asks for a page, or for what comes after or before a cursor."""
    return ticketapi.ListRequest(URL, page, PER_PAGE, True, cursor is not None, cursor)


def requests_at(db: ticketapi.Connection, found: List, depth: float) -> dict[str, list[ticketapi.ListRequest]]:
    """Return requests for the pages around a depth of a list, by their numbers, and by cursors forward and back."""
    last = max(1, found.bounds[0] // PER_PAGE)  # whole pages
    places = min(PLACES, last)
    first = 1 + round((last - places) * depth)
    pages = list(range(first, first + places))
    random.Random(1).shuffle(pages)
    keys = [ticketapi.find_slice(db, found.listing, found.bounds, ask(page))[0] for page in pages]
    return {
        "page": [ask(page) for page in pages],
        "cursor, next": [ask(1, ticketapi.Cursor(key.first, True)) for key in keys],
        "cursor, prev": [ask(1, ticketapi.Cursor(key.last, False)) for key in keys],
    }


def query_of(asked: ticketapi.ListRequest, path: str) -> str:
    """Return the query that asks for a slice."""
    if asked.cursor is None:
        return f"page={asked.page}"
    return f"cursor={ticketapi.encode_cursor(asked.cursor, f'http://127.0.0.1{path}')}"


def measure(desk: Desk, found: List, requests: list[ticketapi.ListRequest]) -> tuple[float, float]:
    """Return the CPU time of a request, and of reading and writing its page alone, in microseconds."""
    queries = [query_of(asked, found.path) for asked in requests]
    before = time.process_time()
    for query in queries:
        desk.get(found.path, query)
    desk.audit.commit(0.0)
    between = time.process_time()
    for asked in requests:
        found.read(desk.db, asked)
    ended = time.process_time()
    return (between - before) / len(requests) * 1e6, (ended - between) / len(requests) * 1e6


def check_pages(db: ticketapi.Connection, found: List, wanted: str, values: tuple[int, ...]) -> None:
    """Compare some pages with what plain SQL says; the benchmark of wrong pages would be worth nothing."""
    ids = [row[0] for row in db.execute(wanted, values)]
    if len(ids) != found.bounds[0]:
        raise SystemExit(f"a list has {len(ids)} tickets, its counter says {found.bounds[0]}")
    for depth in (0.0, 0.3, 0.5, 0.8, 1.0):
        page = 1 + round((max(1, -(-len(ids) // PER_PAGE)) - 1) * depth)
        shown = [ticket["id"] for ticket in json.loads(found.read(db, ask(page)))["data"]]
        if shown != ids[(page - 1) * PER_PAGE : page * PER_PAGE]:
            raise SystemExit(f"page {page} of a list is not what plain SQL says")


def check_lists(desk: Desk, user_id: int) -> None:
    """Check the lists of a desk."""
    check_pages(desk.db, desk.lists["open"], "SELECT id FROM tickets WHERE status = 1 ORDER BY id", ())
    check_pages(desk.db, desk.lists["closed"], "SELECT id FROM tickets WHERE status = 2 ORDER BY closed_at DESC", ())
    written = "SELECT id FROM tickets WHERE user_id = ? AND status > 0 ORDER BY id DESC"
    check_pages(desk.db, desk.lists["a user's"], written, (user_id,))


def compare(desks: dict[str, Desk], name: str, rounds: int) -> None:
    """Print what requests cost at each depth of a list of two desks, and what depth costs."""
    loads = {
        (label, place, way): (desk, desk.lists[name], requests)
        for label, desk in desks.items()
        for place, depth in DEPTHS.items()
        for way, requests in requests_at(desk.db, desk.lists[name], depth).items()
    }
    costs: dict[tuple[str, str, str], list[tuple[float, float]]] = {load: [] for load in loads}
    for _ in range(rounds + 1):  # the first one warms up
        for load, (desk, found, requests) in loads.items():
            costs[load].append(measure(desk, found, requests))
    least = {load: tuple(map(min, zip(*found, strict=True))) for load, found in costs.items()}
    for way in dict.fromkeys(way for _, _, way in least):
        for place in DEPTHS:
            (dense, bare), (gaps, bare_gaps) = least["dense", place, way], least["gaps", place, way]
            to_first = gaps / least["gaps", "first", way][0]
            print_row(name, way, place, dense, gaps, gaps / dense, to_first, BOUND, bare, bare_gaps, bare_gaps / bare)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, "generate", "--count", str(options.tickets), "--seed", "1")
        run(folder, "process", "--count", str(options.tickets // 2))
        files = {"dense": folder / "ticketapi.db", "gaps": folder / "gaps.db"}
        shutil.copy(files["dense"], files["gaps"])
        done = make_gaps(files["gaps"], options.seed)
        told = ", ".join(f"{count:,} {what}" for what, count in done.items())
        print(f"{options.tickets:,} tickets; with gaps: {told}\n")
        with ExitStack() as stack:
            desks = {label: Desk(path, stack) for label, path in files.items()}
            for desk in desks.values():
                desk.look(desks["gaps"].user_id)
                check_lists(desk, desks["gaps"].user_id)
            head = ("list", "by", "place", "request, dense, CPU us", "with gaps", "ratio", "to the first", "bound of both")
            print_head(*head, "page alone, dense", "with gaps", "ratio")
            for list_name in desks["dense"].lists:
                compare(desks, list_name, options.rounds)


if __name__ == "__main__":
    main()
