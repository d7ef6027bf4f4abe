#!/usr/bin/env python3
"""Measure bulk work: making and closing tickets, and walking through all of them, next to SQLite's own speed.

    python3 benchmarks/bulk.py [--tickets 1000000] [--rounds 3]

generate: the command, against a bare executemany of the rows that it made, in one transaction, into the same tables and
indexes. process: the command on a tenth of the tickets, against one UPDATE that sets the same columns of the same rows. Both
floors twice: over a connection as `sqlite3.connect` gives it, and over one set up as ticketapi's own (a larger cache, foreign
keys checked), which shows what remains when that is allowed to the floor too.
walk: all tickets, closed, by links.next with 200 a page over one connection, against reading them once in order with plain
SQL and writing each 200 with json.dumps; the walk includes the client, which reads each page with json.loads. Both sides take
turns; the least of each counts. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import Cost, Server, Stopwatch, least, need, print_head, print_machine, print_row, run, run_measured, serve

import ticketapi

BATCH = 10_000  # rows read before they are inserted, so that they need not all be in memory
PER_PAGE = 200
STATUS_NAMES = {1: "Open", 2: "Closed"}

UPDATE = """
UPDATE tickets
SET status = 2, closed_at = :now, updated_at = :now, closed_number = id, change = id + (SELECT max(change) FROM tickets)
WHERE id <= :count AND status = 1
"""

CLOSED_TICKETS = """
SELECT id, subject, content, status, created_at, updated_at, user_id, user_name, user_email
FROM tickets
WHERE closed_number IS NOT NULL
ORDER BY closed_number DESC
"""


def connect(path: Path, tuned: bool) -> sqlite3.Connection:
    """Open a desk with SQLite's own settings, or with ticketapi's."""
    return ticketapi.open_database(path, "desk") if tuned else sqlite3.connect(path, isolation_level=None)


def insert_rows(source: Path, target: Path, tuned: bool) -> Cost:
    """Copy the users and tickets of a desk into a new one; reading them does not count."""
    watch = Stopwatch()
    ticketapi.open_database(target, "desk").close()
    with closing(sqlite3.connect(source)) as reader:
        with watch:
            db = connect(target, tuned)
            db.execute("BEGIN IMMEDIATE")
        for table in ("users", "tickets"):
            rows = reader.execute(f"SELECT * FROM {table} ORDER BY id")
            insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows.description))})"
            while batch := rows.fetchmany(BATCH):
                with watch:
                    db.executemany(insert, batch)
        with watch:
            db.execute("COMMIT")
            db.close()
    return watch.cost


def update_rows(path: Path, count: int, tuned: bool) -> Cost:
    """Close the first tickets of a desk with one statement."""
    watch = Stopwatch()
    with watch, closing(connect(path, tuned)) as db:
        changed = db.execute(UPDATE, {"now": "2030-01-01T00:00:00.000000Z", "count": count}).rowcount
    if changed != count:
        raise SystemExit(f"the UPDATE changed {changed} rows, not {count}")
    return watch.cost


def to_resource(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row as the API shows it."""
    ticket_id, subject, content, status, created_at, updated_at, user_id, name, email = row
    return {
        "id": ticket_id,
        "subject": subject,
        "content": content,
        "status": STATUS_NAMES[status],
        "status_id": status,
        "created_at": created_at,
        "updated_at": updated_at,
        "user": {"id": user_id, "name": name, "email": email},
    }


def read_rows(path: Path) -> tuple[list[int], Cost]:
    """Read all closed tickets in order and write them as JSON; return their ids too."""
    watch, ids = Stopwatch(), []
    with watch, closing(sqlite3.connect(path)) as db:
        rows = db.execute(CLOSED_TICKETS)
        while page := rows.fetchmany(PER_PAGE):
            json.dumps({"data": [to_resource(row) for row in page]})
            ids += [row[0] for row in page]
    return ids, watch.cost


def walk(server: Server, token: str, query: str) -> tuple[list[int], Cost, float]:
    """Follow links.next from the first page; return the ids met, what asking and reading took, and the server's CPU time."""
    watch, ids = Stopwatch(), []
    before = server.cpu_seconds()
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as connection:
        url: str | None = f"{server.url}/api/tickets/closed?per_page={PER_PAGE}&{query}"
        while url:
            with watch:
                connection.request("GET", url.removeprefix(server.url), headers={"Authorization": f"Bearer {token}"})
                answer = connection.getresponse()
                page = json.loads(answer.read())
            if answer.status != 200:
                raise SystemExit(f"{url}: {answer.status} {page}")
            ids += [ticket["id"] for ticket in page["data"]]
            url = page["links"]["next"]
    return ids, watch.cost, server.cpu_seconds() - before


def print_comparison(name: str, ours: list[Cost], floors: dict[bool, list[Cost]], bound: float, memory: str) -> None:
    """Print one row of the table of commands for each floor."""
    mine = least(ours)
    for tuned, costs in floors.items():
        bare, of = least(costs), "ticketapi's settings" if tuned else "SQLite's settings"
        print_row(name, of, mine.cpu, bare.cpu, mine.cpu / bare.cpu, mine.wall, bare.wall, mine.wall / bare.wall, bound, memory)


def compare_generate(folder: Path, options: argparse.Namespace) -> None:
    """Print what `generate` costs; its desk stays in the folder."""
    ours, words = [], ("generate", "--count", str(options.tickets), "--seed", "1")
    floors: dict[bool, list[Cost]] = {False: [], True: []}
    desk, copy = folder / "ticketapi.db", folder / "floor.db"
    for _ in range(options.rounds):
        desk.unlink(missing_ok=True)
        ours.append(run_measured(folder, *words))
        for tuned, costs in floors.items():
            costs.append(insert_rows(desk, copy, tuned))
            copy.unlink()
    memory = f"{least(ours).memory_mb:.0f}"
    print_comparison(f"generate --count {options.tickets}", ours, floors, 2.5, memory)


def compare_process(folder: Path, options: argparse.Namespace) -> None:
    """Print what `process` of a tenth of the tickets costs, on copies of the folder's desk."""
    ours, count, copy = [], options.tickets // 10, folder / "copy.db"
    floors: dict[bool, list[Cost]] = {False: [], True: []}
    for _ in range(options.rounds):
        shutil.copy(folder / "ticketapi.db", copy)
        ours.append(run_measured(folder, "process", "--count", str(count), "--db", copy.name))
        for tuned, costs in floors.items():
            shutil.copy(folder / "ticketapi.db", copy)
            costs.append(update_rows(copy, count, tuned))
    copy.unlink()
    print_comparison(f"process --count {count} of {options.tickets}", ours, floors, 3, "-")


def compare_walk(folder: Path, options: argparse.Namespace) -> None:
    """Print what walking all tickets, closed, costs by page and by cursor."""
    run(folder, "process", "--count", str(options.tickets))
    token = run(folder, "token", "create")
    floor, walls, work = [], {"page=1": [], "cursor=": []}, {"page=1": [], "cursor=": []}
    with serve(folder, rate=0) as server:
        for _ in range(options.rounds):
            wanted, cost = read_rows(folder / "ticketapi.db")
            floor.append(cost)
            for query in walls:
                ids, cost, server_cpu = walk(server, token, query)
                if ids != wanted or len(set(ids)) != options.tickets:
                    raise SystemExit(f"the walk by {query} did not meet every closed ticket once, in order")
                walls[query].append(cost)
                work[query].append(server_cpu)
    for query, costs in walls.items():
        mine, bare, cpu = least(costs), least(floor), min(work[query])
        total = cpu + mine.cpu
        print_row(f"?{query}", cpu, mine.cpu, bare.cpu, total / bare.cpu, mine.wall, bare.wall, mine.wall / bare.wall, 3)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    need("taskset")
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        print_head(
            "command", "floor with", "CPU s", "floor", "ratio", "wall s", "floor", "ratio", "bound", "memory MB (bound 150)"
        )
        compare_generate(Path(name), options)
        compare_process(Path(name), options)
        print(f"\nWalking {options.tickets} closed tickets, {PER_PAGE} a page:\n")
        columns = ("server CPU s", "client CPU s", "floor CPU s", "CPU ratio", "wall s", "floor wall s", "wall ratio", "bound")
        print_head("walk by", *columns)
        compare_walk(Path(name), options)


if __name__ == "__main__":
    main()
