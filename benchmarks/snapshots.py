#!/usr/bin/env python3
"""Measure what saving and restoring take, and what they cost those who read and write meanwhile.

    python3 benchmarks/snapshots.py [--tickets 1000000] [--small 10000] [--rounds 3]

A server serves a desk, without a limit. Over HTTP a snapshot is saved and restored, round by round, while two clients read,
each five things in turn, and one writes. The slowest read and write of each phase are told, beside those of a phase in which
nothing is saved; a write that gets no turn for 4.75 s is a 503. Then a small desk is asked as a test suite does it: a ticket is
made, the snapshot restored. Server and clients may use all cores, as a restore has a thread of its own. What else the machine
does shows in the slowest, so the load average is told.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from harness import Server, make_desk, print_head, print_machine, print_row, read_through, run, serve

PATHS = ("/api/tickets/open", "/api/tickets/closed?page=7", "/api/stats", "/api/tickets/77", "/api/users/1/tickets")
SECONDS = 5.0  # that a save and a restore of a million tickets may take
READ_MS = 50.0  # that any read may take meanwhile
SMALL_MS = 50.0  # that a restore of ten thousand tickets may take, at the median
BODY = {"subject": "Another one", "content": "It came later.", "user": {"name": "Ann", "email": "ann@example.com"}}


class Client:
    """Asks over a connection that it keeps."""

    def __init__(self, server: Server, token: str) -> None:
        """Take a server and a token."""
        self.connection = http.client.HTTPConnection(server.url.rpartition("/")[2], timeout=120)
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, float]:
        """Return status and seconds of an answer."""
        begun = time.perf_counter()
        self.connection.request(method, path, json.dumps(body) if body else None, self.headers)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - begun

    def want(self, method: str, path: str, status: int, body: Any = None) -> float:
        """Return the seconds of an answer that must have a status."""
        found, seconds = self.ask(method, path, body)
        if found != status:
            raise SystemExit(f"{method} {path} answered {found}")
        return seconds


class Load:
    """Clients that read and write all the time, and how long each answer took, by phase."""

    def __init__(self, server: Server, token: str, readers: int) -> None:
        """Start to ask."""
        self.phase, self.ended = "idle", threading.Event()
        self.reads: dict[str, list[float]] = defaultdict(list)
        self.writes: dict[str, list[float]] = defaultdict(list)
        self.refused = 0
        work = [self.read] * readers + [self.write]
        self.threads = [threading.Thread(target=one, args=(Client(server, token),)) for one in work]
        for thread in self.threads:
            thread.start()

    def read(self, client: Client) -> None:
        """Read one thing after another."""
        number = 0
        while not self.ended.is_set():
            number += 1
            phase = self.phase
            self.reads[phase].append(client.want("GET", PATHS[number % len(PATHS)], 200))
            time.sleep(0.001)

    def write(self, client: Client) -> None:
        """Make a ticket twenty times a second."""
        while not self.ended.is_set():
            phase, (status, seconds) = self.phase, client.ask("POST", "/api/tickets", BODY)
            self.writes[phase].append(seconds)
            self.refused += status == 503
            time.sleep(0.05)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what is asked meanwhile under a phase."""
        self.phase = phase
        yield
        self.phase = "between"

    def end(self) -> None:
        """Stop asking."""
        self.ended.set()
        for thread in self.threads:
            thread.join()


def measure_large(server: Server, token: str, rounds: int) -> bool:
    """Save and restore beside clients; tell whether all is within bounds."""
    keeper, load, took = Client(server, token), Load(server, token, 2), defaultdict[str, list[float]](list)
    time.sleep(3)  # the phase in which nothing is saved
    for number in range(rounds):
        cpu = server.cpu_seconds()
        with load.during("save"):
            took["save"].append(keeper.want("POST", "/api/snapshots", 201, {"name": f"s{number}"}))
        took["save CPU"].append(server.cpu_seconds() - cpu)
        time.sleep(1)
        cpu = server.cpu_seconds()
        with load.during("restore"):
            took["restore"].append(keeper.want("POST", f"/api/snapshots/s{number}/restore", 200))
        took["restore CPU"].append(server.cpu_seconds() - cpu)
        time.sleep(1)
        keeper.want("DELETE", f"/api/snapshots/s{number}", 204)
    load.end()
    print_head(
        "phase", "s", "s, worst", "CPU s with all answers", "reads", "read ms, median", "read ms, worst", "write ms, worst"
    )
    for phase in ("idle", "save", "restore", "between"):
        reads, writes = load.reads[phase], load.writes[phase] or [0.0]
        times = (min(took[phase]), max(took[phase]), min(took[f"{phase} CPU"])) if phase in took else ("-",) * 3
        print_row(phase, *times, len(reads), statistics.median(reads) * 1000, max(reads) * 1000, max(writes) * 1000)
    print(f"\n{load.refused} writes were answered 503.\n")
    worst = max(max(load.reads[phase]) for phase in ("save", "restore", "between")) * 1000
    return min(took["save"]) <= SECONDS and min(took["restore"]) <= SECONDS and worst <= READ_MS


def measure_small(server: Server, token: str) -> bool:
    """Restore again and again after a write; tell whether it is quick enough."""
    client, times = Client(server, token), []
    client.want("POST", "/api/snapshots", 201, {"name": "small"})
    for _ in range(50):
        client.want("POST", "/api/tickets", 201, BODY)
        times.append(client.want("POST", "/api/snapshots/small/restore", 200) * 1000)
    print_head("restores", "ms, least", "ms, median", "ms, worst")
    print_row(len(times), min(times), statistics.median(times), max(times))
    return statistics.median(times) <= SMALL_MS


@contextmanager
def served(folder: Path, tickets: int) -> Iterator[tuple[Server, str]]:
    """Serve a desk of some size on all cores, with a token that may do everything."""
    folder.mkdir()
    make_desk(folder, tickets, tickets // 2)
    token = run(folder, "token", "create", "--ability", "*")
    read_through(folder)
    with serve(folder, rate=0) as server:
        os.sched_setaffinity(server.process.pid, range(os.cpu_count() or 1))
        with closing(Client(server, token).connection):
            yield server, token


def main() -> None:
    """Measure both desks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print_machine()
    good = []
    with tempfile.TemporaryDirectory() as folder:
        for name, tickets in (("large", options.tickets), ("small", options.small)):
            with served(Path(folder) / name, tickets) as (server, token):
                print(f"\n{tickets:,} tickets; load average {os.getloadavg()[0]:.1f}\n")
                good.append(measure_large(server, token, options.rounds) if name == "large" else measure_small(server, token))
    print(f"\nwithin bounds: {'yes' if all(good) else 'no'}")


if __name__ == "__main__":
    main()
