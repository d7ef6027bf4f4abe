#!/usr/bin/env python3
"""Load a server for minutes while its scheduler and a loop of commands change the desk, and check that nothing gives way.

    python3 benchmarks/soak.py [--minutes 10] [--clients 16] [--tickets 100000]

The clients ask over kept connections for random pages of all lists, follow cursors, repeat requests with If-None-Match and
ask for stats. The scheduler lets a ticket arrive and closes one every second; `process --count 1` and `generate --count 5` run
in turn without pause. Exits with 1 when a check fails. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from harness import TICKETAPI, Server, make_desk, need, print_head, print_machine, print_row

OPEN, CLOSED, STATS = "/api/tickets/open", "/api/tickets/closed", "/api/stats"
SERVE = ["serve", "--port", "0", "--rate", "0", "--generate-every", "1s", "--process-every", "1s"]
COMMANDS = ("process", "--count", "1"), ("generate", "--count", "5")
FILES = "ticketapi.db", "ticketapi-audit.db"
USERS = 100  # of the busiest
WAL_BOUND, GROWTH_BOUND, GROWTH_PART = 64, 10, 0.1  # MB, MB, of the memory after the first quarter
LOCKED = "database is locked"


class Sample(NamedTuple):
    """What was seen at one moment."""

    seconds: float
    memory_mb: float
    wal_mb: float  # of the larger one


class Client(threading.Thread):
    """Asks one thing after the other over a connection that it keeps."""

    def __init__(self, url: str, token: str, pages: int, seed: int, ended: threading.Event) -> None:
        """Take where to ask, how many pages a list has, and when to end."""
        super().__init__()
        self.netloc, self.token, self.pages, self.ended = urlsplit(url).netloc, token, pages, ended
        self.dice = random.Random(seed)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0  # seconds, since it was last asked for
        self._cursors: dict[str, str] = {}  # by list, where its walk is
        self._known: tuple[str, str] = STATS, '""'  # a URL and the ETag that it had

    def run(self) -> None:
        """Ask until told to end."""
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        while not self.ended.is_set():
            try:
                self.ask(connection)
            except Exception as error:  # whatever it is, it is a failed check and not the end of this client
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def choose_list(self) -> tuple[str, int]:
        """Return one of the lists and how many pages it may have."""
        user = f"/api/users/{self.dice.randint(1, USERS)}/tickets"
        return self.dice.choice([(OPEN, self.pages), (CLOSED, self.pages), (user, 5)])

    def choose(self) -> tuple[str, dict[str, str]]:
        """Return what to ask for next: a path and headers."""
        path, pages = self.choose_list()
        kind = self.dice.choice(["page", "page", "page", "cursor", "conditional", "stats"])
        if kind == "conditional":
            return self._known[0], {"If-None-Match": self._known[1]}
        if kind == "stats":
            return STATS, {}
        if kind == "cursor":
            return f"{path}?cursor={self._cursors.get(path, '')}", {}
        return f"{path}?page={self.dice.randint(1, pages + 2)}&per_page={self.dice.choice([10, 50, 200])}", {}

    def ask(self, connection: http.client.HTTPConnection) -> None:
        """Ask once and look at the answer."""
        path, headers = self.choose()
        began = time.perf_counter()
        connection.request("GET", path, headers={**headers, "Authorization": f"Bearer {self.token}"})
        answer = connection.getresponse()
        body = answer.read()
        self.slowest = max(self.slowest, time.perf_counter() - began)
        self.statuses[answer.status] += 1
        if answer.status == 200:
            self._known = path, answer.headers["ETag"]
            if "?cursor=" in path:
                self._cursors[path.partition("?")[0]] = json.loads(body)["meta"]["next_cursor"] or ""
        elif answer.status != 304:
            self.failures.append(f"{path}: {answer.status} {body.decode(errors='replace')[:200]}")


class Changes(threading.Thread):
    """Runs the commands that change the desk, one after the other."""

    def __init__(self, folder: Path, ended: threading.Event) -> None:
        """Take the desk's folder and when to end."""
        super().__init__()
        self.folder, self.ended = folder, ended
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        """Run commands until told to end."""
        while not self.ended.is_set():
            words = COMMANDS[self.done % len(COMMANDS)]
            done = subprocess.run([*TICKETAPI, *words], cwd=self.folder, capture_output=True, text=True)
            self.done += 1
            if done.returncode or done.stderr:
                self.failures.append(f"{' '.join(words)}: {done.returncode} {done.stderr.strip()}")


def take_sample(folder: Path, server: Server, began: float) -> Sample:
    """Look at the server's memory and the files of its write-ahead logs."""
    sizes = []
    for name in FILES:
        try:
            sizes.append((folder / f"{name}-wal").stat().st_size / 2**20)
        except FileNotFoundError:
            sizes.append(0.0)
    return Sample(time.monotonic() - began, server.memory_mb(), max(sizes))


def print_minute(at: Sample, clients: Sequence[Client], changes: Changes, before: int) -> int:
    """Print one row of the table of minutes and return how many answers there were until now."""
    answers = sum(client.statuses.total() for client in clients)
    slowest = max(client.slowest for client in clients)
    for client in clients:
        client.slowest = 0.0
    print_row(f"{at.seconds / 60:.1f}", answers, answers - before, slowest * 1000, at.memory_mb, at.wal_mb, changes.done)
    return answers


def watch(look: Callable[[], Sample], clients: Sequence[Client], changes: Changes, seconds: float) -> list[Sample]:
    """Take samples until the time is over, and print a row for each minute."""
    samples, answers, minutes = [look()], 0, 1
    print_head("minute", "answers", "in this minute", "slowest ms", "memory MB", "WAL MB", "commands")
    while samples[-1].seconds < seconds:
        time.sleep(0.2)
        samples.append(look())
        if samples[-1].seconds >= min(60 * minutes, seconds):
            answers = print_minute(samples[-1], clients, changes, answers)
            minutes += 1
    return samples


def query_one(path: Path, statement: str) -> object:
    """Return the one value of a query."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(statement).fetchone()[0]


def check_memory(samples: Sequence[Sample]) -> tuple[str, str, bool]:
    """Return the check of the memory: after the first quarter against the end."""
    quarter = next(sample for sample in samples if sample.seconds >= samples[-1].seconds / 4).memory_mb
    growth = samples[-1].memory_mb - quarter
    found = f"{quarter:.1f} to {samples[-1].memory_mb:.1f} MB"
    wanted = f"growth under {GROWTH_BOUND} MB and {GROWTH_PART:.0%}"
    return f"memory after a quarter, at the end: {found}", wanted, growth < GROWTH_BOUND and growth < quarter * GROWTH_PART


def make_checks(
    folder: Path, clients: Sequence[Client], changes: Changes, samples: Sequence[Sample]
) -> list[tuple[str, str, bool]]:
    """Return what was found, what was wanted, and whether it is so."""
    statuses = sum((client.statuses for client in clients), Counter[int]())
    problems = [text for client in clients for text in client.failures]
    log = (folder / "server.log").read_text()
    errors = re.findall(r"^(?:WARNING|ERROR|CRITICAL).*", log, re.MULTILINE)
    locked = sum(text.count(LOCKED) for text in (*problems, *changes.failures, log))
    for text in [*problems[:5], *changes.failures[:5], *errors[:5]]:
        print(text, file=sys.stderr)
    seen = ", ".join(f"{count} of {status}" for status, count in sorted(statuses.items()))
    server_errors = sum(count for status, count in statuses.items() if status >= 500)
    highest = max(sample.wal_mb for sample in samples)
    rows = query_one(folder / FILES[1], "SELECT count(*) FROM api_audits")
    whole = [query_one(folder / name, "PRAGMA integrity_check") for name in FILES]
    return [
        (f"answers: {seen}", "200 and 304", not problems),
        (f"answers of 5xx: {server_errors}", "none", not server_errors),
        (f"{LOCKED!r} in answers and logs: {locked}", "none", not locked),
        (f"warnings and errors in the server's log: {len(errors)}", "none", not errors),
        (f"commands: {changes.done}, failed: {len(changes.failures)}", "none failed", not changes.failures),
        (f"largest WAL: {highest:.1f} MB", f"under {WAL_BOUND} MB", highest < WAL_BOUND),
        check_memory(samples),
        (f"audit rows: {rows}", f"as many as answers, {statuses.total()}", rows == statuses.total()),
        (f"integrity_check: {', '.join(map(str, whole))}", "ok", whole == ["ok"] * len(FILES)),
    ]


def soak(folder: Path, options: argparse.Namespace) -> list[tuple[str, str, bool]]:
    """Run everything for the time asked for, then return the checks."""
    token = make_desk(folder, options.tickets, options.tickets // 2)
    ended, pages = threading.Event(), max(1, options.tickets // 2 // 50)
    with Server([*TICKETAPI, *SERVE], folder, folder / "server.log") as server:
        clients = [Client(server.url, token, pages, seed, ended) for seed in range(options.clients)]
        changes = Changes(folder, ended)
        began = time.monotonic()
        try:
            for thread in (*clients, changes):
                thread.start()
            samples = watch(lambda: take_sample(folder, server, began), clients, changes, options.minutes * 60)
        finally:
            ended.set()
            for thread in (*clients, changes):
                thread.join()
    return make_checks(folder, clients, changes, samples)


def main() -> None:
    """Print the tables; exit with 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tickets", type=int, default=100_000)
    options = parser.parse_args()
    need("taskset")
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        checks = soak(Path(name), options)
    print()
    print_head("found", "wanted", "holds")
    for found, wanted, holds in checks:
        print_row(found, wanted, "yes" if holds else "NO")
    sys.exit(not all(holds for _, _, holds in checks))


if __name__ == "__main__":
    main()
