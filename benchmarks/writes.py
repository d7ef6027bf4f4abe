#!/usr/bin/env python3
"""Measure what writes cost, and what they cost those who read: one table at the end.

    python3 benchmarks/writes.py [--only post streams ...] [--tickets 1000000] [--against FOLDER/ticketapi.py]

post     POST /api/tickets one after another on one connection, next to a bare Waitress that writes the same rows
peers    the same by 8 connections, next to FastAPI with uvicorn and Flask with Waitress, which write the same rows
readers  reading and writing while `generate` makes --count tickets, next to reading a quiet desk
hot      a remembered page while ten tickets a second come, next to the same on a quiet desk
export   the export of all tickets, 200 a page, next to bare SQL and json of the same rows
streams  events to 100 streams, and other requests next to those of a server without streams
pages    remembered pages and others of a quiet desk, next to those of an older module (--against), also without HTTP

All writes are durable (synchronous = FULL), so the folder for temporary files (TMPDIR) must be on a disk. The sides take turns,
and of each the cheapest round counts. CPU time is the server's own. Linux only; needs wrk, and for `peers` pip's package index.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import selectors
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from harness import (
    CONNECTIONS,
    LOAD_CORE,
    SERVER_CORE,
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
    read_through,
    run,
    serve,
)
from peers import PEERS, SCRIPTS, install_peers, print_packages, wait_until_idle

import ticketapi

OPEN, CLOSED, TICKETS = "/api/tickets/open", "/api/tickets/closed", "/api/tickets"
ABILITIES = ["--ability", "read:tickets", "--ability", "write:tickets"]
STREAMS, USERS = 100, 5
TICKET = {"subject": "The printer is on fire", "content": "It began this morning. " * 10, "user_id": 1}

POST = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
"""

PEER_TABLES = "CREATE VIEW tokens AS SELECT id, user_id, token FROM personal_access_tokens;"

# Reads the export of a desk page by page, as JSON of the same keys, and prints what it used.
BARE_EXPORT = """
import json, sqlite3, sys, time

SQL = '''
SELECT id, subject, content, status, created_at, updated_at, user_id, user_name, user_email, closed_at, deleted_at, change
FROM tickets
WHERE change > ?
ORDER BY change
LIMIT 200
'''
cpu, wall = time.process_time(), time.perf_counter()
db, after, count, size = sqlite3.connect(sys.argv[1]), 0, 0, 0
while rows := db.execute(SQL, [after]).fetchall():
    data = [
        {"id": id, "subject": subject, "content": content, "status": "Open" if abs(status) == 1 else "Closed",
         "status_id": abs(status), "created_at": created, "updated_at": updated,
         "user": {"id": user, "name": name, "email": email}, "closed_at": closed, "deleted_at": deleted}
        for id, subject, content, status, created, updated, user, name, email, closed, deleted, _ in rows
    ]
    size += len(json.dumps({"data": data}, ensure_ascii=False, separators=(",", ":")).encode())
    count, after = count + len(rows), rows[-1][-1]
print(time.process_time() - cpu, time.perf_counter() - wall, count, size)
"""

# Asks the app of a module, without HTTP: of each line the path, how many requests, and the page of the first; 0 is none.
ASKER = """
import importlib.util, io, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("ticketapi", sys.argv[1])
module = sys.modules["ticketapi"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
settings, clock = module.Settings(db=Path("ticketapi.db"), rate=1_000_000), module.Clock()
audit = module.AuditLog(settings.audit_db, grouped=True)
app = module.make_app(settings, module.Readers(settings.db), audit, clock)
known = {
    "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:8000", "HTTP_USER_AGENT": "curl/8.5.0",
    "HTTP_AUTHORIZATION": "Bearer " + sys.argv[2], "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr,
}

def answer(status, headers, exc_info=None):
    assert status == "200 OK", status

for line in sys.stdin:
    path, count, first, pages = line.split()
    query = [f"page={1 + (int(first) + i) * 7919 % int(pages)}" if int(pages) else "" for i in range(int(count))]
    environs = [{**known, "PATH_INFO": path, "QUERY_STRING": text, "wsgi.input": io.BytesIO()} for text in query]
    began = time.process_time()
    for i, environ in enumerate(environs):
        app(environ, answer)
        if i % 8 == 7:
            audit.commit(clock.monotonic())
    print((time.process_time() - began) / len(environs) * 1e6, flush=True)
"""


class Row(NamedTuple):
    """A row of the table: a figure, what it stands next to with its own, how many times as much, and what is aimed at."""

    what: str
    figure: float | str
    beside: str = "-"
    other: float | str = "-"
    ratio: float | str = "-"
    bound: str = "-"


def compared(what: str, figure: float, beside: str, other: float, bound: str = "-") -> Row:
    """Return the row of a figure next to another."""
    return Row(what, figure, beside, other, figure / other if other > 0 else "-", bound)


class Bench:
    """Where the desks are made, and as the options say."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        """Begin with no desk."""
        self.folder, self.options, self.base = folder, options, folder / "base"  # the first is another in each part
        self.tokens: list[str] = []  # of users of their own

    def desk(self, name: str) -> Path:
        """Return a folder with a desk of its own, half closed: a copy of one that is made once."""
        if not self.tokens:
            self.base.mkdir()
            run(self.base, "generate", "--seed", "1", "--count", str(self.options.tickets))
            run(self.base, "process", "--count", str(self.options.tickets // 2))
            users = [f"user{i}@example.com" for i in range(USERS)]
            self.tokens = [run(self.base, "token", "create", *ABILITIES, "--user", user) for user in users]
        return Path(shutil.copytree(self.base, self.folder / name))


class Client:
    """One keep-alive connection with a token."""

    def __init__(self, url: str, token: str) -> None:
        """Prepare to connect."""
        self.http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, path: str, method: str = "GET", body: str | None = None) -> tuple[int, bytes, float]:
        """Return status and body of an answer, and how many seconds it took."""
        began = time.perf_counter()
        self.http.request(method, path, body, self.headers)
        answer = self.http.getresponse()
        return answer.status, answer.read(), time.perf_counter() - began

    def post(self) -> tuple[int, float]:
        """Make a ticket; return the status and the seconds."""
        status, _, seconds = self.ask(TICKETS, "POST", json.dumps(TICKET))
        return status, seconds


def run_turns(options: argparse.Namespace, sides: Mapping[str, Callable[[int], Measurement]]) -> dict[str, tuple[float, float]]:
    """Let the sides take turns, one to warm up; return the least CPU ms and the most requests a second of each."""
    found: dict[str, list[Measurement]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, side in sides.items():
            measured = side(number)
            if number:
                found[name].append(measured)
    return {name: (cheapest(rounds).cpu_ms, max(each.per_second for each in rounds)) for name, rounds in found.items()}


def post_side(
    server: Server, token: str, folder: Path, options: argparse.Namespace, *words: str
) -> Callable[[int], Measurement]:
    """Return what loads a server with tickets for a turn."""
    (folder / "post.lua").write_text(POST % json.dumps(TICKET))

    def side(_: int) -> Measurement:
        found = measure(server, server.url + TICKETS, token, options.seconds, "-s", "post.lua", *words, cwd=folder)
        wait_until_idle(server)
        return found

    return side


def bare_command(desk: Path) -> list[str]:
    """Return the command of the Waitress that does nothing but write tickets."""
    return [sys.executable, str(PEERS / "bare_app.py"), str(desk / "ticketapi.db")]


def measure_post(bench: Bench) -> Iterator[Row]:
    """Compare POST /api/tickets on one connection with the floor."""
    ours, bare = bench.desk("ours"), bench.desk("bare")
    with serve(ours) as server, Server(bare_command(bare), bare) as floor:
        sides = {"ours": server, "bare": floor}
        turns = {name: post_side(side, bench.tokens[0], bench.folder, bench.options, "-c1") for name, side in sides.items()}
        (cpu, rate), (floor_cpu, floor_rate) = run_turns(bench.options, turns).values()
    run(bare, "check")  # the same rows, or its counters and lists would not agree
    beside = "bare Waitress and SQLite"
    yield compared("POST, one connection, CPU ms", cpu, beside, floor_cpu, "≤ 3")
    yield compared("POST, one connection, wall ms", 1000 / rate, beside, 1000 / floor_rate)


def prepare_peer(desk: Path) -> None:
    """Give a desk what the peers keep beside its tickets."""
    audits = re.findall(r"(?s)CREATE TABLE audits .*?\);", (PEERS / "schema.sql").read_text())
    with closing(sqlite3.connect(desk / "ticketapi.db")) as db:
        db.executescript(PEER_TABLES + audits[0])


def measure_peers(bench: Bench) -> Iterator[Row]:
    """Compare POST /api/tickets by 8 connections with the peers, and with the floor."""
    python = install_peers(bench.folder / "venv")
    print_packages(python)
    desks = {name: bench.desk(f"peers-{number}") for number, name in enumerate(("ours", *SCRIPTS, "bare Waitress and SQLite"))}
    with ExitStack() as stack:
        servers = {"ours": stack.enter_context(serve(desks["ours"]))}
        for name, script in SCRIPTS.items():
            prepare_peer(desks[name])
            command = [str(python), str(PEERS / script), str(desks[name] / "ticketapi.db")]
            servers[name] = stack.enter_context(Server(command, desks[name], bench.folder / f"{script}.log"))
        for name in desks.keys() - servers.keys():
            servers[name] = stack.enter_context(Server(bare_command(desks[name]), desks[name]))
        turns = {name: post_side(server, bench.tokens[0], bench.folder, bench.options) for name, server in servers.items()}
        (cpu, rate), *others = run_turns(bench.options, turns).values()
    for name, (other_cpu, other_rate) in zip([*servers][1:], others, strict=True):
        is_peer = name in SCRIPTS
        yield compared(f"POST, {CONNECTIONS} connections, a second", rate, name, other_rate, "≥ 3" if is_peer else "-")
        yield compared(f"POST, {CONNECTIONS} connections, CPU ms", cpu, name, other_cpu)


def keep_to_load_core() -> None:
    """Keep a process that measures on the core of the load, before others there if it may."""
    os.sched_setaffinity(0, {LOAD_CORE})
    with suppress(PermissionError):
        os.nice(-10)


@contextmanager
def load_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes for clients whose clocks count: threads of one would wait for each other."""
    with ProcessPoolExecutor(count, get_context("fork"), keep_to_load_core) as pool:
        yield pool


def read_until(url: str, token: str, pages: int, end: Path) -> list[float]:
    """Ask for the first page and others in turn, 200 a second, until a file is there; return what each took in ms."""
    client, found = Client(url, token), []
    while not end.exists():
        path = OPEN if len(found) % 2 else f"{CLOSED}?page={1 + len(found) * 7919 % pages}"
        status, _, seconds = client.ask(path)
        found.append(seconds * 1000 if status == 200 else 1e9)
        time.sleep(max(0.0, 0.005 - seconds))
    return found


def write_until(url: str, token: str, end: Path) -> list[tuple[int, float]]:
    """Make tickets by 8 connections until a file is there; return status and seconds of each."""
    found: list[tuple[int, float]] = []

    def write() -> None:
        client = Client(url, token)
        while not end.exists():
            found.append(client.post())

    threads = [threading.Thread(target=write) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def measure_readers(bench: Bench) -> Iterator[Row]:
    """Read a quiet desk, then one on which a command holds the lock and 8 clients write."""
    desk, options = bench.desk("readers"), bench.options
    quiet_end, end = bench.folder / "quiet", bench.folder / "end"
    pages, token = max(1, options.tickets // 2 // 50), bench.tokens[0]
    with serve(desk) as server, load_processes(2) as pool:
        read_through(desk)
        asked = pool.submit(read_until, server.url, token, pages, quiet_end)
        time.sleep(options.seconds * 2)
        quiet_end.touch()
        quiet = asked.result()
        asked, written = (
            pool.submit(read_until, server.url, token, pages, end),
            pool.submit(write_until, server.url, token, end),
        )
        command = ["taskset", "-c", str(LOAD_CORE), *TICKETAPI, "generate", "--count", str(options.count)]
        generate = subprocess.run(command, cwd=desk, check=False, stdout=subprocess.DEVNULL)
        end.touch()
        busy, writes = asked.result(), written.result()
    if generate.returncode:
        raise SystemExit("generate failed beside the writers")
    run(desk, "check")
    yield compared(f"read beside generate and {CONNECTIONS} writers, median ms", median(busy), "quiet desk", median(quiet))
    yield compared("the worst read, ms", max(busy), "quiet desk", max(quiet), "≤ 50")
    yield Row("reads over 50 ms", f"{sum(each > 50 for each in busy)} of {len(busy)}", bound="0")
    statuses = Counter(status for status, _ in writes)
    yield Row("writes answered", ", ".join(f"{status}: {statuses[status]}" for status in sorted(statuses)), bound="201, 503")
    yield Row("the worst write, s", max(seconds for _, seconds in writes), bound="≤ 5")


@contextmanager
def arrivals(server: Server, token: str, every: float) -> Iterator[list[float]]:
    """Make a ticket every so many seconds; the list is when each was answered (monotonic seconds)."""
    done, moments = threading.Event(), list[float]()

    def make() -> None:
        client = Client(server.url, token)
        while not done.wait(every):
            status, _ = client.post()
            assert status == 201, status
            moments.append(time.monotonic())

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield moments
    finally:
        done.set()
        thread.join()


def measure_hot_page(bench: Bench) -> Iterator[Row]:
    """Ask for one page while ten tickets a second come, and while none do."""
    desk, token, options = bench.desk("hot"), bench.tokens[0], bench.options
    with serve(desk) as server:

        def ask(_: int) -> Measurement:
            return measure(server, server.url + OPEN, token, options.seconds)

        def ask_while_written(number: int) -> Measurement:
            with arrivals(server, token, 0.1):
                return ask(number)

        (quiet, _), (written, _) = run_turns(options, {"quiet": ask, "written": ask_while_written}).values()
        before = server.cpu_seconds()
        with arrivals(server, token, 0.1) as moments:
            time.sleep(options.seconds)
        alone = (server.cpu_seconds() - before) / max(1, len(moments)) * 1000
    yield compared("hot page while 10 tickets a second come, all its CPU ms", written, "quiet desk", quiet)
    yield Row("one of these tickets by itself, CPU ms", alone)


def walk_export(server: Server, token: str) -> tuple[float, float, int, int]:
    """Take the whole export; return the server's CPU seconds, ours on the wall, the tickets and the bytes."""
    client, path, count, size = Client(server.url, token), f"{TICKETS}/export?start_time=0&per_page=200", 0, 0
    cpu, wall = server.cpu_seconds(), time.perf_counter()
    while path:
        status, body, _ = client.ask(path)
        assert status == 200, body
        tail = json.loads(b"{" + body[body.rindex(b'"links":{"first"') :])
        path = (tail["links"]["next"] or "").removeprefix(server.url)
        count, size = count + tail["meta"]["count"], size + len(body)
    return server.cpu_seconds() - cpu, time.perf_counter() - wall, count, size


def measure_export(bench: Bench) -> Iterator[Row]:
    """Compare the export with a script that reads the same rows and writes them as JSON."""
    desk, found, floor = bench.desk("export"), [], []
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-c", BARE_EXPORT, str(desk / "ticketapi.db")]
    with serve(desk) as server:
        for _ in range(bench.options.rounds):
            read_through(desk)
            found.append(walk_export(server, bench.tokens[0]))
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            floor.append(tuple(map(float, output)))
    if found[0][2] != floor[0][2]:
        raise SystemExit(f"the export has {found[0][2]} tickets, the floor {floor[0][2]:.0f}")
    what, beside = f"export of {found[0][2]:,} tickets", "bare SQL and json"
    (cpu, wall, _, size), (bare_cpu, bare_wall, _, bare_size) = min(found), min(floor)
    yield compared(f"{what}, CPU s", cpu, beside, bare_cpu, "≤ 2")
    yield compared(f"{what}, wall s", wall, beside, bare_wall)
    yield compared(f"{what}, MB", size / 1e6, beside, bare_size / 1e6)


def open_stream(url: str, token: str) -> socket.socket:
    """Open a stream of events and read its header."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=30)
    sock.sendall(f"GET /api/events/stream HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    data = b""
    while b"retry: " not in data:
        more = sock.recv(65_536)
        if not more:
            raise SystemExit(f"a stream was refused: {data!r}")
        data += more
    return sock


def follow(url: str, tokens: Sequence[str], ready: Path, end: Path) -> list[float]:
    """Follow events by 100 streams until a file is there; return when the last stream had each (monotonic seconds)."""
    moments: list[float] = []
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for number in range(STREAMS):
            sock = stack.enter_context(open_stream(url, tokens[number % len(tokens)]))
            selector.register(sock, selectors.EVENT_READ, {"seen": 0, "rest": b""})
        ready.touch()
        while not end.exists():
            for key, _ in selector.select(0.1):
                data = key.data["rest"] + key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
                before, found = key.data["seen"], data.count(b"\nevent: ")
                key.data["seen"], key.data["rest"] = before + found, data[data.rfind(b"\n") :]
                now = time.monotonic()
                moments += [0.0] * (before + found - len(moments))
                moments[before : before + found] = [now] * found
        if {key.data["seen"] for key in selector.get_map().values()} != {len(moments)}:
            raise SystemExit("not every stream had every event")
    return moments


def cost_of_arrivals(server: Server, token: str, seconds: float) -> tuple[float, list[float]]:
    """Make two tickets a second for some seconds; return the server's CPU seconds, and when each was answered."""
    before = server.cpu_seconds()
    with arrivals(server, token, 0.5) as moments:
        time.sleep(seconds)
    time.sleep(1)  # until the last stream has the last one
    return server.cpu_seconds() - before, moments


def measure_streams(bench: Bench) -> Iterator[Row]:
    """Send events to 100 streams, and compare other requests with those of a server without streams."""
    ready, end, options = bench.folder / "ready", bench.folder / "streams-end", bench.options
    with serve(bench.desk("followed")) as followed, serve(bench.desk("alone")) as alone, load_processes(1) as pool:
        servers, token = {"followed": followed, "alone": alone}, bench.tokens[0]

        def ask(server: Server) -> Callable[[int], Measurement]:
            return lambda _: measure(server, server.url + OPEN, token, options.seconds)

        for server in servers.values():
            ask(server)(0)
        memory = [followed.memory_mb()]
        moments = pool.submit(follow, followed.url, bench.tokens, ready, end)
        while not (ready.exists() or moments.done()):
            time.sleep(0.05)
        memory.append(followed.memory_mb())
        pace = options.seconds * 4
        (with_streams, told), (without, _) = (cost_of_arrivals(server, token, pace) for server in servers.values())
        (cpu, _), (quiet, _) = run_turns(options, {name: ask(server) for name, server in servers.items()}).values()
        memory.append(followed.memory_mb())
        end.touch()
        heard = moments.result()
    each = (with_streams - without) / max(1, len(told)) / STREAMS * 1e6
    late = max(last - answered for last, answered in zip(heard, told, strict=True))
    yield Row(f"an event to one of {STREAMS} streams, CPU microseconds", each)
    yield Row("from the answer to a write until the last stream has its event, the longest, ms", late * 1000)
    yield compared(f"hot page with {STREAMS} streams, CPU ms", cpu, "without streams", quiet, "≤ 1.2")
    yield compared(f"memory with {STREAMS} streams, MB", memory[1], "before", memory[0])
    yield compared("memory after their events, MB", memory[2], "before", memory[0])


def make_old_desk(folder: Path, module: Path, tickets: int) -> str:
    """Make a desk of an older module's own and return a token for it."""
    folder.mkdir()
    token = ""
    for words in (
        ["generate", "--seed", "1", "--count", str(tickets)],
        ["process", "--count", str(tickets // 2)],
        ["token", "create"],
    ):
        command = [sys.executable, str(module), *words]
        token = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return token


@contextmanager
def start_asker(module: Path, desk: Path, token: str) -> Iterator[Callable[[str, int, int, int], float]]:
    """Give a function that asks a module's app and returns CPU microseconds a request."""
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-c", ASKER, str(module), token]
    with subprocess.Popen(command, cwd=desk, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = pipe(process.stdin), pipe(process.stdout)

        def ask(path: str, count: int, first: int, pages: int) -> float:
            print(path, count, first, pages, file=stdin, flush=True)
            return float(stdout.readline())

        yield ask
        stdin.close()


def pipe(file: IO[str] | None) -> IO[str]:
    """Return a pipe that was asked for."""
    assert file
    return file


def compare_in_process(sides: Sequence[tuple[Path, Path, str]], path: str, options: argparse.Namespace) -> Iterator[Row]:
    """Compare hot and other pages of two modules without HTTP, by turns of 200 requests."""
    pages, turns = max(1, options.tickets // 2 // 50), options.rounds * 20
    with ExitStack() as stack:
        askers = [stack.enter_context(start_asker(*side)) for side in sides]
        for kind, span in (("hot", 0), ("cold", pages)):
            found: list[list[float]] = [[], []]
            for number in range(turns):
                for at in (0, 1) if number % 2 else (1, 0):
                    found[at].append(askers[at](path, 200, number * 200, span))
            bound = "≤ 1.03" if kind == "hot" else "-"
            yield compared(f"{path}, {kind}, in process, CPU microseconds, least", min(found[0]), "older", min(found[1]), bound)
            yield compared("the same, median", median(found[0]), "older", median(found[1]))


def compare_served(servers: Sequence[tuple[Server, str]], path: str, bench: Bench, pages: Sequence[str]) -> Iterator[Row]:
    """Compare hot and other pages of two servers."""

    def hot(server: Server, token: str) -> Callable[[int], Measurement]:
        return lambda _: measure(server, server.url + path, token, bench.options.seconds)

    def cold(server: Server, token: str) -> Callable[[int], Measurement]:
        return lambda number: measure_walk(
            server, pages, len(pages) * number // (bench.options.rounds + 1), token, bench.options.seconds, bench.folder
        )

    for kind, side in (("hot", hot), ("cold", cold)):
        turns = {str(number): side(*server) for number, server in enumerate(servers)}
        (cpu, _), (old, _) = run_turns(bench.options, turns).values()
        yield compared(f"{path}, {kind}, CPU ms", cpu, "older", old)


def measure_pages(bench: Bench) -> Iterator[Row]:
    """Compare pages of a desk that nobody writes to with an older module's, over HTTP and without."""
    options = bench.options
    if not options.against:
        print("pages: left out without --against\n")
        return
    module, desk, old = options.against.resolve(), bench.desk("pages"), bench.folder / "old"
    old_token = make_old_desk(old, module, options.tickets)
    count = max(1, options.tickets // 2 // 50)
    command = [sys.executable, str(module), "serve", "--port", "0", "--rate", "1000000", "--no-scheduler"]
    for path in (OPEN, CLOSED):
        pages = [f"{path}?page={1 + at * 7919 % count}" for at in range(count)]
        with serve(desk) as server, Server(command, old) as older:
            yield from compare_served([(server, bench.tokens[0]), (older, old_token)], path, bench, pages)
        sides = [(Path(ticketapi.__file__), desk, bench.tokens[0]), (module, old, old_token)]
        yield from compare_in_process(sides, path, options)


PARTS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "post": measure_post,
    "peers": measure_peers,
    "readers": measure_readers,
    "hot": measure_hot_page,
    "export": measure_export,
    "streams": measure_streams,
    "pages": measure_pages,
}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tickets", type=int, default=1_000_000, help="of each desk, half of them closed")
    parser.add_argument("--count", type=int, default=1_000_000, help="that are generated beside readers and writers")
    parser.add_argument("--seconds", type=int, default=3, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="PATH", help="ticketapi.py of a release, beside its schema.sql")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options, rows = parse_options(), list[Any]()
    need("wrk", "taskset")
    print_machine()
    print(f"ticketapi {ticketapi.__version__}, {options.tickets:,} tickets\n")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options)
        for part in options.only:
            with tempfile.TemporaryDirectory(dir=name) as inner:
                bench.folder = Path(inner)
                rows += PARTS[part](bench)
    print_head("what", "figure", "next to", "figure", "ratio", "bound")
    for row in rows:
        print_row(*row)


if __name__ == "__main__":
    main()
