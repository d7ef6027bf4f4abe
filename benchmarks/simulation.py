#!/usr/bin/env python3
"""Measure what a clock of the desk's own costs.

    python3 benchmarks/simulation.py [--tickets 1000000] [--rounds 3] [--seconds 5]

advance: 365 days in the rhythm of an office, some 100,000 tickets, on a desk of so many tickets, by the command, against
`generate` and `process` of as many on a copy of the same desk. CPU and wall time; both sides take turns, the least counts.
beside: reads of a server, one after the other, while a year passes by `PUT /api/clock`: the longest, and how many there were.
hot: CPU of a remembered page of a server whose clock runs at 3,600 times the real speed, against one whose clock is frozen.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from harness import (
    TICKETAPI,
    Cost,
    Server,
    fetch,
    least,
    make_desk,
    measure_hot,
    print_head,
    print_machine,
    print_row,
    run,
    run_measured,
)

import ticketapi

PAGE = "/api/tickets/open"
YEAR = 365 * 86_400 * 10**6


def give_clock(folder: Path, speed: int = 1000) -> None:
    """Give the desk of a folder a clock that starts now, in an office's rhythm."""
    office, now = ticketapi.find_profile("office"), ticketapi.wall_microseconds()
    with closing(ticketapi.open_database(folder / "ticketapi.db", "desk")) as db:
        ticketapi.begin_simulation(db, office, (None, speed), 1, 1, now)


def count(folder: Path) -> tuple[int, int]:
    """Return how many tickets there ever were, and how many are closed."""
    with closing(ticketapi.open_database(folder / "ticketapi.db", "desk")) as db:
        return ticketapi.newest_ticket(db)[0], ticketapi.count_tickets(db, ticketapi.CLOSED)


def measure_advance(filled: Path, folder: Path) -> tuple[Cost, Cost]:
    """Return what a year costs, and what as many tickets and closings cost by the bulk commands."""
    copies = [folder / "advance", folder / "bulk"]
    for copy in copies:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(filled, copy)
    give_clock(copies[0])
    before = count(copies[0])
    run_measured(copies[0], "clock", "freeze")
    advance = run_measured(copies[0], "clock", "advance", "365d")
    after = count(copies[0])
    came, closed = after[0] - before[0], after[1] - before[1]
    made = run_measured(copies[1], "generate", "--count", str(came))
    gone = run_measured(copies[1], "process", "--count", str(closed))
    return advance, Cost(*(a + b for a, b in zip(made, gone, strict=True)))


@contextmanager
def served(folder: Path) -> Iterator[tuple[Server, str]]:
    """Serve a desk whose scheduler runs, with a token that may do everything."""
    token = run(folder, "token", "create", "--ability", "*")
    with Server([*TICKETAPI, "serve", "--port", "0", "--rate", "1000000"], folder) as server:
        yield server, token


def put(server: Server, token: str, **wish: object) -> None:
    """Set the clock of a server."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    url, body = f"{server.url}/api/clock", json.dumps(wish).encode()
    urllib.request.urlopen(urllib.request.Request(url, body, headers, method="PUT"), timeout=30).close()


def measure_beside(folder: Path) -> tuple[int, float, float]:
    """Return how many reads came beside an advance of a year, the longest of them in seconds, and the seconds it took."""
    give_clock(folder)
    longest, reads, begun = 0.0, 0, time.monotonic()
    with served(folder) as (server, token):
        put(server, token, status="frozen", advance="365d")
        page = 1
        while json.loads(fetch(f"{server.url}/api/clock", token))["data"]["status"] == "advancing":
            page, start = page % 500 + 1, time.monotonic()
            fetch(f"{server.url}{PAGE}?page={page}", token)
            longest, reads = max(longest, time.monotonic() - start), reads + 1
        return reads, longest, time.monotonic() - begun


def measure_running(filled: Path, folder: Path, seconds: int) -> tuple[float, float]:
    """Return the CPU of a remembered page, in milliseconds, under a clock at 3,600 times the real speed, and a frozen one."""
    found = []
    for status in ("running", "frozen"):
        copy = folder / status
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(filled, copy)
        give_clock(copy, speed=3_600_000)
        with served(copy) as (server, token):
            put(server, token, status=status)
            found.append(measure_hot(server, PAGE, token, seconds).cpu_ms)
    return found[0], found[1]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled = folder / "filled"
        filled.mkdir()
        make_desk(filled, asked.tickets, asked.tickets * 9 // 10)
        print_head("what", "measured", "against", "ratio")
        rounds = [measure_advance(filled, folder) for _ in range(asked.rounds)]
        year, bulk = least([one for one, _ in rounds]), least([other for _, other in rounds])
        print_row("advance 365d, CPU s", f"{year.cpu:.1f}", f"{bulk.cpu:.1f}", f"{year.cpu / bulk.cpu:.2f}")
        print_row("advance 365d, wall s", f"{year.wall:.1f}", f"{bulk.wall:.1f}", f"{year.wall / bulk.wall:.2f}")
        running, frozen = measure_running(filled, folder, asked.seconds)
        print_row("hot page at 3,600x, CPU ms", f"{running:.3f}", f"{frozen:.3f}", f"{running / frozen:.2f}")
        reads, longest, took = measure_beside(filled)
        print_row("reads beside a year", f"{reads} in {took:.0f} s", "", f"longest {longest * 1000:.0f} ms")


if __name__ == "__main__":
    main()
