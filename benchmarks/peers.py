#!/usr/bin/env python3
"""Measure requests a second next to FastAPI with uvicorn and Flask with Waitress, which do the same job the usual way.

    python3 benchmarks/peers.py [--tickets 1000000] [--closed 50] [--seconds 5] [--rounds 3]

The peers (benchmarks/peers/) look a bearer token up by its SHA-256, keep a token bucket for each user in memory, commit an
audit row for each request, and count, sort and group the same tickets in a plain SQLite file. They and ours run at the same
time, each on the server's core, and are loaded in turn by 8 connections; of each the best round counts.

Ours is measured twice: hot, where each request asks for the first page, which is remembered while the desk stays as it is, and
cold, where each asks for a page that is not remembered. The peers remember nothing, so their first page, the cheapest that
they have, is compared with both. The packages of the peers are installed into a folder that is removed at the end. Linux only;
needs wrk and pip's package index.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from harness import (
    Measurement,
    Server,
    fetch,
    make_desk,
    measure,
    measure_cold,
    need,
    print_head,
    print_machine,
    print_row,
    serve,
)

PEERS = Path(__file__).resolve().parent / "peers"
PACKAGES = ["fastapi", "uvicorn[standard]", "flask", "waitress"]
SCRIPTS = {"FastAPI + uvicorn": "fastapi_app.py", "Flask + Waitress": "flask_app.py"}
BOUNDS = {"/api/tickets/open": 8, "/api/tickets/closed": 100, "/api/stats": 250}


def install_peers(folder: Path) -> Path:
    """Make a virtual environment with the packages of the peers and return its Python."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the packages of the peers could not be installed:\n{done.stderr}")
    return python


def print_packages(python: Path) -> None:
    """Print the versions of the peers."""
    words = "fastapi", "uvicorn", "uvloop", "httptools", "pydantic", "flask", "waitress"
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {words}))"
    print(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)


def make_plain_desk(source: Path, target: Path) -> None:
    """Copy a desk's rows into a plain database."""
    with closing(sqlite3.connect(target, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("ATTACH ? AS desk", [str(source)])
        db.executescript((PEERS / "schema.sql").read_text())


def load_json(server: Server, path: str, token: str) -> Any:
    """Return an answer without what the peers lack or the server's address is part of."""
    answer = json.loads(fetch(server.url + path, token).replace(server.url.encode(), b""))
    answer.get("meta", {}).pop("next_cursor", None)
    if path == "/api/stats":
        answer["top_user"] = answer["top_user"]["tickets_count"]  # among equals anybody may be the first
    return answer


def check_answers(servers: Mapping[str, Server], token: str) -> None:
    """End the benchmark unless all give the same answers."""
    for path in [*BOUNDS, "/api/tickets/closed?page=3"]:
        answers = {name: load_json(server, path, token) for name, server in servers.items()}
        first = next(iter(answers.values()))
        for name, answer in answers.items():
            if answer != first:
                raise SystemExit(f"{name} answers {path} differently")


def wait_until_idle(server: Server) -> None:
    """Wait until the server has done what the load left behind when it ended."""
    before = -1.0
    while (now := server.cpu_seconds()) - before > 0.005:
        before = now
        time.sleep(0.25)


def measure_in_turn(
    servers: Mapping[str, Server], path: str, token: str, options: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Return the most requests a second and the least CPU time in milliseconds of each server for one URL."""
    found: dict[str, list[Measurement]] = {name: [] for name in servers}
    for number in range(options.rounds + 1):
        for name, server in servers.items():
            measured = measure(server, server.url + path, token, options.seconds if number else 1)
            wait_until_idle(server)
            if number:  # round 0 warms up
                found[name].append(measured)
    return {name: (max(m.per_second for m in rounds), min(m.cpu_ms for m in rounds)) for name, rounds in found.items()}


def cold_paths(path: str, options: argparse.Namespace) -> list[str]:
    """Return what to ask for so that no answer is remembered: all pages of a list, or one URL in many ways."""
    open_share = 100 - options.closed if path.endswith("open") else options.closed
    pages = options.tickets * open_share // 100 // 50
    return [f"{path}?page={number}" for number in range(1, pages if "tickets" in path else 10_000)]


def compare(servers: Mapping[str, Server], path: str, token: str, options: argparse.Namespace, folder: Path) -> None:
    """Print one row: ours hot and cold, the peers, and how many times more we answer."""
    found = measure_in_turn(servers, path, token, options)
    (hot, hot_ms), *peers = found.values()
    cold = measure_cold(next(iter(servers.values())), cold_paths(path, options), token, options.seconds, folder)
    cells: list[object] = [path, round(hot), hot_ms, round(cold.per_second), cold.cpu_ms]
    for per_second, cpu_ms in peers:
        cells += [per_second, cpu_ms, hot / per_second, cold.per_second / per_second]
    print_row(*cells, BOUNDS[path])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--closed", type=int, default=50, metavar="PERCENT", help="of the tickets; default 50")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    need("wrk", "taskset")
    print_machine()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        python = install_peers(folder / "venv")
        print_packages(python)
        token = make_desk(folder, options.tickets, options.tickets * options.closed // 100)
        make_plain_desk(folder / "ticketapi.db", folder / "plain.db")
        servers = {"ticketapi": stack.enter_context(serve(folder))}
        for peer, script in SCRIPTS.items():
            command = [str(python), str(PEERS / script), str(folder / "plain.db")]
            servers[peer] = stack.enter_context(Server(command, folder))
        check_answers(servers, token)
        print(f"{options.tickets:,} tickets, {options.closed} % of them closed; ratios to ticketapi:\n")
        heads = [cell for peer in SCRIPTS for cell in (f"{peer} a second", "CPU ms", "hot ratio", "cold ratio")]
        print_head("route", "ticketapi hot a second", "CPU ms", "cold a second", "CPU ms", *heads, "bound (hot ratio)")
        for path in BOUNDS:
            compare(servers, path, token, options, folder)


if __name__ == "__main__":
    main()
