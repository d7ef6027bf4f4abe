#!/usr/bin/env python3
"""Measure how punctual delayed answers are, and what faults cost the requests that none is about.

    python3 benchmarks/faults.py [--clients 200] [--seconds 10] [--rounds 8] [--against FOLDER/ticketapi.py]

latency  a rule delays each answer by 100 ms, on a server with one thread; 200 clients ask at moments spread evenly, at several
         rates all in all. None may be there before 100 ms have passed, and 99 % must be within 150 ms.
cost     CPU time of a remembered page without faults, with a rule for another route, with one for its own that never hits, with
         a hundred for others, and of an older module (--against). The servers take turns; of each the cheapest round counts.

Server and load have a core each. Linux only; needs wrk.
"""

from __future__ import annotations

import argparse
import json
import selectors
import shutil
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from harness import TICKETAPI, Measurement, Server, cheapest, make_desk, measure, need, print_head, print_machine, print_row

WAIT, BOUND = 0.1, 0.15  # seconds: of the rule, and for 99 % of the answers
RATES = (100, 200, 300)
PATH = "/api/tickets/open"
REQUEST = "GET /api/stats HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n"


def start(folder: Path, rules: list[dict[str, object]], program: list[str] = TICKETAPI) -> Server:
    """Start a server on the desk of a folder, with one thread, without a limit, and with some faults."""
    command = [*program, "serve", "--port", "0", "--rate", "0", "--no-scheduler"]
    if rules:
        (folder / "faults.json").write_text(json.dumps({"seed": 1, "faults": rules}))
        command += ["--faults", str(folder / "faults.json")]
    return Server(command, folder)


def dial(url: str) -> socket.socket:
    """Return a connection that does not block."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 80))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


def ask_evenly(url: str, token: str, clients: int, rate: int, seconds: int) -> list[float]:
    """Let clients ask in turn, at moments spread evenly; return how long each answer took, in seconds."""
    request, took, sent = REQUEST.format(token).encode(), list[float](), dict[socket.socket, float]()
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        socks = [stack.enter_context(dial(url)) for _ in range(clients)]
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        begin, number, total = time.perf_counter() + 0.1, 0, rate * seconds
        while number < total or sent:
            due = begin + number / rate - time.perf_counter() if number < total else 1.0
            for key, _ in selector.select(max(0.0, due)):
                if b'"total_tickets"' in key.fileobj.recv(65536):  # type: ignore[union-attr]
                    took.append(time.perf_counter() - sent.pop(key.fileobj))  # type: ignore[arg-type]
            sock = socks[number % clients]
            if number < total and begin + number / rate <= time.perf_counter():
                if sock in sent:
                    raise SystemExit(f"a client waits for more than {clients / rate:g} s: {rate} a second are too many")
                sent[sock] = time.perf_counter()
                sock.send(request)
                number += 1
    return sorted(took)


def measure_latency(folder: Path, token: str, clients: int, seconds: int) -> None:
    """Print how long delayed answers took, for each rate."""
    print(f"latency of {WAIT * 1000:g} ms, {clients} clients, one thread; aim: none below, 99 % within {BOUND * 1000:g} ms\n")
    print_head("a second", "least ms", "median", "99 %", "most", "CPU of the server, %", "ms a request")
    with start(folder, [{"route": "stats", "latency": {"fixed": f"{WAIT * 1000:g}ms"}}]) as server:
        ask_evenly(server.url, token, clients, 200, 1)  # to warm up
        for rate in (rate for rate in RATES if clients / rate > WAIT):
            cpu, began = server.cpu_seconds(), time.perf_counter()
            took = ask_evenly(server.url, token, clients, rate, seconds)
            cpu, passed = server.cpu_seconds() - cpu, time.perf_counter() - began
            points = [took[0], took[len(took) // 2], took[len(took) * 99 // 100], took[-1]]
            print_row(rate, *(round(point * 1000, 1) for point in points), round(cpu / passed * 100), cpu / len(took) * 1000)
    print()


def measure_cost(folder: Path, token: str, rounds: int, against: Path | None) -> None:
    """Print what a request costs that no fault is about."""
    other: dict[str, object] = {"route": "webhooks.retry", "status": 503}
    sides = {
        "no faults": ([], TICKETAPI),
        "a rule for another route": ([other], TICKETAPI),
        "a hundred for another route": ([other] * 100, TICKETAPI),
        "one for this route that never hits": ([{"route": "tickets.open", "share": 0, "status": 503}], TICKETAPI),
    }
    if against:
        sides = {"before": ([], [sys.executable, str(against.resolve())]), **sides}
    found: dict[str, list[Measurement]] = {name: [] for name in sides}
    with ExitStack() as stack:
        servers = {}
        for number, (name, (rules, program)) in enumerate(sides.items()):
            copy = shutil.copytree(folder, folder.parent / f"desk-{number}")
            servers[name] = stack.enter_context(start(copy, rules, program))
        for number in range(rounds + 1):
            for name, server in servers.items():
                measured = measure(server, server.url + PATH, token, 1)
                found[name] += [measured] if number else []
    print("a remembered page\n")
    print_head("server", "CPU ms", "ratio", "a second")
    first = cheapest(next(iter(found.values()))).cpu_ms
    for name, measurements in found.items():
        best = cheapest(measurements)
        print_row(name, round(best.cpu_ms, 4), round(best.cpu_ms / first, 3), round(best.per_second))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--against", type=Path, metavar="PATH", help="ticketapi.py of a release, beside its schema.sql")
    options = parser.parse_args()
    need("wrk", "taskset")
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "desk")
        folder.mkdir()
        token = make_desk(folder, 10_000, 5_000)
        measure_latency(folder, token, options.clients, options.seconds)
        measure_cost(folder, token, options.rounds, options.against)


if __name__ == "__main__":
    main()
