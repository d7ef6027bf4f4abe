#!/usr/bin/env python3
"""Measure a desk in PostgreSQL next to the same desk in SQLite, and to bare statements of PostgreSQL.

    python3 benchmarks/postgres.py [--tickets 1000000] [--rounds 4] [--only requests bulk servers]

requests: CPU time that a request takes of the server, both engines served at once and loaded in turn, a second each, in rounds;
of each the cheapest counts. hot: one URL of a desk that does not change. cold: every request asks for another page. Of a desk
in SQLite the SQL is a part of it; in PostgreSQL it is another process's, which stands beside it.
bulk: `generate`, `process` and `copy`, against a bare COPY of the same rows into the same tables, keys and indexes, and one
UPDATE of the same rows; wall time, least of the rounds.
servers: what one and two servers of one desk answer together, and how many servers fill PostgreSQL's core.
A cluster of its own, with fsync on, is made and removed; it is reached by a Unix socket, as one of the same machine is. Linux
only; needs wrk and PostgreSQL (Debian: postgresql).
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness import (
    LOAD_CORE,
    TICKETAPI,
    Measurement,
    Server,
    cheapest,
    measure,
    measure_walk,
    need,
    print_head,
    print_machine,
    print_row,
    run,
)

import ticketapi

OPEN, CLOSED, STATS = "/api/tickets/open", "/api/tickets/closed", "/api/stats"
HOT_BOUND, COLD_BOUND, GENERATE_BOUND, PROCESS_BOUND, COPY_BOUND = 3.0, 1.2, 2.5, 4.0, 1.5
COLUMNS = {  # as generate made them, for the bare COPY
    "users": "id, name, email, tickets_count, created_at, last_number",
    "tickets": "id, user_id, user_number, user_name, user_email, subject, content, status,"
    " created_at, updated_at, closed_at, closed_number, change",
}
UPDATE = """
UPDATE tickets
SET status = 2, closed_at = '2030-01-01T00:00:00.000000Z', updated_at = '2030-01-01T00:00:00.000000Z', closed_number = id,
    change = id + (SELECT max(change) FROM tickets)
WHERE id <= {count} AND status = 1"""


class Cluster:
    """A PostgreSQL cluster in a folder, with its defaults but for the port."""

    def __init__(self, folder: Path) -> None:
        """Make and start it, as another user than root."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "/").parent]
        self.programs, self.folder, self.data = found[-1], folder, folder / "data"
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = sock.getsockname()[1]
        self.user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
        self.call("initdb", "-D", str(self.data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
        options = f"-p {self.port} -k {folder} -c listen_addresses=127.0.0.1 -c max_wal_size=4GB"
        self.call("pg_ctl", "-D", str(self.data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        self.pid = int((self.data / "postmaster.pid").read_text().split()[0])

    def call(self, program: str, *words: str) -> None:
        """Run one of PostgreSQL's programs."""
        subprocess.run([*self.user, str(self.programs / program), *words], check=True, cwd="/", stdout=subprocess.DEVNULL)

    def psql(self, database: str, *commands: str) -> str:
        """Run SQL and return what it prints."""
        words = [word for command in commands for word in ("-c", command)]
        psql = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", database]
        return subprocess.run([*psql, *words], check=True, stdout=subprocess.PIPE, text=True).stdout

    def url(self, database: str) -> str:
        """Make a database and return its URL."""
        self.psql("postgres", f"CREATE DATABASE {database}")
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def keep_to(self, cores: str) -> None:
        """Let its processes to come run on some cores alone."""
        subprocess.run(["taskset", "-pc", cores, str(self.pid)], check=True, stdout=subprocess.DEVNULL)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the processes that there are."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sum(time.clock_gettime(~int(pid) << 3 | 2) for pid in children)

    def stop(self) -> None:
        """End it."""
        self.call("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")


@contextmanager
def serve(folder: Path, place: str) -> Iterator[Server]:
    """Serve a desk without scheduler, and with a limit that nobody reaches."""
    command = [*TICKETAPI, "serve", "--port", "0", "--rate", "1000000", "--no-scheduler", "--db", place]
    with Server(command, folder) as server:
        yield server


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Return the seconds that something takes."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def fill(folder: Path, places: list[str], tickets: int) -> list[str]:
    """Make the same desk, half of it closed, in several places; return a token for each."""
    for place in places:
        run(folder, "generate", "--seed", "1", "--count", str(tickets), "--db", place)
        run(folder, "process", "--count", str(tickets // 2), "--db", place)
    return [run(folder, "token", "create", "--db", place) for place in places]


def compare_requests(folder: Path, cluster: Cluster, options: argparse.Namespace) -> None:
    """Print what hot and cold answers cost on both engines."""
    places = [str(folder / "desk.db"), cluster.url("requests")]
    tokens = fill(folder, places, options.tickets)
    cluster.psql("requests", "VACUUM ANALYZE")
    pages = options.tickets // 2 // 50
    print_head(
        "route",
        "SQLite hot ms",
        "PostgreSQL hot ms",
        "ratio",
        "its own ms",
        "SQLite cold ms",
        "PostgreSQL cold ms",
        "ratio",
        "its own ms",
    )
    cluster.keep_to(str(LOAD_CORE))  # the server's core is its own: what it uses is measured, not what a neighbour leaves
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(folder, place)) for place in places]
        for path in (OPEN, CLOSED, STATS):
            paths = [f"{path}?page={1 + at * 7919 % pages}" for at in range(pages)] if path != STATS else []
            hot: list[list[Measurement]] = [[], []]
            cold: list[list[Measurement]] = [[], []]
            own: list[float] = []
            for number in range(options.rounds):
                for side, server in enumerate(servers):
                    before = cluster.cpu_seconds()
                    found = measure(server, server.url + path, tokens[side], 1)
                    hot[side].append(found)
                    spent = [(cluster.cpu_seconds() - before) / found.per_second * 1000]
                    if paths:
                        before = cluster.cpu_seconds()
                        found = measure_walk(server, paths, len(paths) * number // options.rounds, tokens[side], 1, folder)
                        cold[side].append(found)
                        spent.append((cluster.cpu_seconds() - before) / found.per_second * 1000)
                own = spent
            cells: list[object] = [path]
            for at, found_of in enumerate((hot, cold) if paths else (hot,)):
                ours, theirs = (cheapest(each).cpu_ms for each in found_of)
                cells += [ours, theirs, theirs / ours, own[at]]
            print_row(*cells, *["-"] * (9 - len(cells)))
    cluster.keep_to(f"0-{LOAD_CORE}")
    print(f"\nBounds: hot {HOT_BOUND}, cold {COLD_BOUND} times SQLite's.\n")


def compare_bulk(folder: Path, cluster: Cluster, options: argparse.Namespace) -> None:
    """Print what bulk work takes, next to bare statements."""
    tickets, closed = options.tickets, options.tickets // 10
    run(folder, "generate", "--seed", "1", "--count", str(tickets), "--db", "source.db")
    names = ("generate", "bare COPY", "process", "bare UPDATE", "copy", "bare COPY of it")
    took: dict[str, list[float]] = {name: [] for name in names}
    for number in range(min(2, options.rounds)):
        ours, bare, copied = (cluster.url(f"{name}{number}") for name in ("ours", "bare", "copied"))
        took["generate"].append(timed(run, folder, "generate", "--seed", "1", "--count", str(tickets), "--db", ours))
        for table, columns in COLUMNS.items():
            cluster.psql(f"ours{number}", f"\\copy (SELECT {columns} FROM {table} ORDER BY id) TO '{folder}/{table}.copy'")
        run(folder, "token", "list", "--db", bare)
        commands = [f"\\copy {table} ({columns}) FROM '{folder}/{table}.copy'" for table, columns in COLUMNS.items()]
        took["bare COPY"].append(timed(cluster.psql, f"bare{number}", "BEGIN", *commands, "COMMIT"))
        for name in ("ours", "bare"):
            cluster.psql(f"{name}{number}", "VACUUM ANALYZE", "CHECKPOINT")
        took["process"].append(timed(run, folder, "process", "--count", str(closed), "--db", ours))
        took["bare UPDATE"].append(timed(cluster.psql, f"bare{number}", UPDATE.format(count=closed)))
        took["copy"].append(timed(run, folder, "copy", copied, "--db", "source.db"))
        again = cluster.url(f"again{number}")
        run(folder, "token", "list", "--db", again)
        took["bare COPY of it"].append(timed(cluster.psql, f"again{number}", "BEGIN", *commands, "COMMIT"))
        for name in ("ours", "bare", "copied", "again"):
            cluster.psql("postgres", f"DROP DATABASE {name}{number}")
    print_head("work", "s", "next to", "s", "ratio", "bound")
    for ours, bare, bound, count in (
        ("generate", "bare COPY", GENERATE_BOUND, tickets),
        ("process", "bare UPDATE", PROCESS_BOUND, closed),
        ("copy", "bare COPY of it", COPY_BOUND, tickets),
    ):
        mine, theirs = min(took[ours]), min(took[bare])
        print_row(f"{ours}, {count:,} tickets", mine, bare.removesuffix(" of it"), theirs, mine / theirs, bound)
    print()


def compare_servers(folder: Path, cluster: Cluster, options: argparse.Namespace) -> None:
    """Print what one server answers, and two at once, and what PostgreSQL uses for it."""
    place = cluster.url("servers")
    (token,) = fill(folder, [place], min(options.tickets, 100_000))
    cluster.psql("servers", "VACUUM ANALYZE")
    print_head(
        "servers", "requests a second", "CPU ms of a server", "CPU ms of PostgreSQL", "servers that fill a core of PostgreSQL"
    )
    for count in (1, 2):
        with ExitStack() as stack:
            servers = [stack.enter_context(serve(folder, place)) for _ in range(count)]
            began, before = [server.cpu_seconds() for server in servers], cluster.cpu_seconds()
            loads = [
                subprocess.Popen(
                    ["wrk", "-t1", "-c8", "-d5s", "-H", f"Authorization: Bearer {token}", server.url + OPEN],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for server in servers
            ]
            requests = sum(int(load.communicate()[0].split(" requests in")[0].split()[-1]) for load in loads)
            cpu = sum(server.cpu_seconds() - start for server, start in zip(servers, began, strict=True))
            theirs = (cluster.cpu_seconds() - before) / requests * 1000
        print_row(count, round(requests / 5), cpu / requests * 1000, theirs, cpu / requests * 1000 / theirs)
    print()


PARTS = {"requests": compare_requests, "bulk": compare_bulk, "servers": compare_servers}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    need("wrk", "taskset", "psql")
    print_machine()
    print(f"ticketapi {ticketapi.__version__}\n")
    with tempfile.TemporaryDirectory(dir="/tmp") as name, tempfile.TemporaryDirectory(dir="/tmp") as home:
        cluster = Cluster(Path(home))
        try:
            for part in options.only:
                PARTS[part](Path(name), cluster, options)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
