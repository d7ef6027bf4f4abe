#!/usr/bin/env python3
"""Measure what a request costs the server, next to a bare Waitress that answers the same bytes.

    python3 benchmarks/requests.py [--tickets 1000000] [--rounds 6] [--threads 1 2 4]

hot: one URL of a desk that does not change. cold: every request asks for a page not asked for before, spread over the whole
list, of a desk that lies in the kernel's page cache. The floor is a Waitress with a function that returns the bytes of page 1.
All servers are up at once and loaded in turn, a second each, in rounds; of each the cheapest round counts, and of the floors
the number of threads that is cheapest. Half of the tickets are closed. Every request has a token, takes from a bucket and
leaves an audit row. Linux only; needs wrk.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from harness import (
    FLOOR,
    Measurement,
    Server,
    cheapest,
    fetch,
    make_desk,
    measure,
    measure_walk,
    need,
    print_head,
    print_machine,
    print_row,
    serve,
)

OPEN, CLOSED, USER, STATS = "/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/stats"
USERS = 100  # the busiest, whose pages are asked for
HOT_BOUND, COLD_BOUND = 2.0, 3.5


def cold_paths(path: str, tickets: int, desk: Path) -> list[str]:
    """Return all pages of a list in an order without neighbours, or those of the busiest users."""
    if path != USER:
        pages = max(1, tickets // 2 // 50)
        return [f"{path}?page={1 + at * 7919 % pages}" for at in range(pages)]
    with closing(sqlite3.connect(desk / "ticketapi.db")) as db:
        users = db.execute("SELECT id, tickets_count FROM users ORDER BY tickets_count DESC LIMIT ?", (USERS,)).fetchall()
    found = [(page, f"/api/users/{user}/tickets?page={page}") for user, count in users for page in range(1, count // 50 + 1)]
    return [url for _, url in sorted(found)]


def compare(folder: Path, desks: list[Path], token: str, path: str, options: argparse.Namespace) -> None:
    """Print what hot and cold answers of one route cost, for each number of threads."""
    with ExitStack() as stack:
        ours = {count: stack.enter_context(serve(desk, count)) for count, desk in zip(options.threads, desks, strict=True)}
        body = fetch(ours[options.threads[0]].url + path, token)
        (folder / "body.json").write_bytes(body)
        command = [sys.executable, "-c", FLOOR, str(folder / "body.json")]
        floors = [stack.enter_context(Server([*command, str(count)], folder)) for count in options.threads]
        paths = [] if path == STATS else cold_paths(path, options.tickets, desks[0])
        hot, cold, floor = run_rounds(ours, floors, (path, paths), token, folder, options.rounds)
    for count in options.threads:
        cells = [path, len(body), count, floor, hot[count].cpu_ms, hot[count].cpu_ms / floor, round(hot[count].per_second)]
        if paths:
            cells += [cold[count].cpu_ms, cold[count].cpu_ms / floor, round(cold[count].per_second)]
        print_row(*cells, *["-"] * (10 - len(cells)))


def run_rounds(
    ours: dict[int, Server], floors: list[Server], load: tuple[str, list[str]], token: str, folder: Path, rounds: int
) -> tuple[dict[int, Measurement], dict[int, Measurement], float]:
    """Load all servers in turn; return the cheapest hot and cold rounds by threads, and the cheapest floor in ms."""
    path, paths = load
    hot: dict[int, list[Measurement]] = {count: [] for count in ours}
    cold: dict[int, list[Measurement]] = {count: [] for count in ours}
    floor = []
    for number in range(rounds):
        floor += [measure(server, server.url, "none", 1) for server in floors]
        for count, server in ours.items():
            hot[count].append(measure(server, server.url + path, token, 1))
            if paths:
                start = len(paths) * number // rounds
                cold[count].append(measure_walk(server, paths, start, token, 1, folder))
    best = {count: cheapest(found) for count, found in hot.items()}
    return best, {count: cheapest(found) for count, found in cold.items() if found}, cheapest(floor).cpu_ms


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    need("wrk", "taskset")
    print_machine()
    print(f"Bounds: hot {HOT_BOUND}, cold {COLD_BOUND} times the floor.\n")
    print_head("route", "bytes", "threads", "floor ms", "hot ms", "ratio", "a second", "cold ms", "ratio", "a second")
    with tempfile.TemporaryDirectory() as name:
        desks = [Path(name, str(count)) for count in options.threads]
        desks[0].mkdir()
        token = make_desk(desks[0], options.tickets, options.tickets // 2)
        for copy in desks[1:]:
            shutil.copytree(desks[0], copy)
        for path in (OPEN, CLOSED, USER, STATS):
            compare(Path(name), desks, token, path, options)


if __name__ == "__main__":
    main()
