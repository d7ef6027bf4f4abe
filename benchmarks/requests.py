#!/usr/bin/env python3
"""Measure what a request costs the server, next to a bare Waitress that answers the same bytes.

    python3 benchmarks/requests.py [--tickets 100000] [--seconds 4] [--threads 1 2 4]

For each answer two servers run one after the other, on one core, with the load (wrk, 8 keep-alive connections) on another:
ticketapi (token, bucket off, audit row, page) and the floor: Waitress with a function that returns the same bytes, its queue
logger silenced. The figure is CPU time of the server process (user and system, from /proc) for each request. The floor of a
row is the cheapest of the numbers of threads given. Linux only; needs wrk (Debian package of that name).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TICKETAPI = [sys.executable, str(ROOT / "ticketapi.py")]
SERVER_CORE, LOAD_CORE = 0, (os.cpu_count() or 1) - 1
CONNECTIONS = 8
FLOOR = """
import logging, sys
from pathlib import Path
from waitress.server import create_server

body = Path(sys.argv[1]).read_bytes()
headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]

def app(environ, start_response):
    start_response("200 OK", headers)
    return [body]

logging.getLogger("waitress.queue").setLevel(logging.ERROR)
server = create_server(app, host="127.0.0.1", port=0, threads=int(sys.argv[2]), asyncore_use_poll=True)
print(f"Listening on http://127.0.0.1:{server.effective_port}", flush=True)
server.run()
"""


class Measurement(NamedTuple):
    """What one run of the load showed."""

    requests: int
    per_second: float
    cpu_ms: float  # for each request


class Server:
    """A server process on its core, reached at `url` once it says where it listens."""

    def __init__(self, command: list[str], folder: Path) -> None:
        """Start the process."""
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=pin_server
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().split()[-1]

    def __enter__(self) -> Server:
        """Give the running server."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.process.terminate()
        self.process.communicate(timeout=20)

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin_server() -> None:
    """Keep a server on its core."""
    os.sched_setaffinity(0, {SERVER_CORE})


def pin_load() -> None:
    """Keep the load on the other core."""
    os.sched_setaffinity(0, {LOAD_CORE})


def measure(server: Server, path: str, token: str, seconds: int) -> Measurement:
    """Load one URL for some seconds and return what it cost."""
    load = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-H", f"Authorization: Bearer {token}", server.url + path]
    subprocess.run([*load[:3], "-d1s", *load[4:]], check=True, capture_output=True, preexec_fn=pin_load)  # warm up
    before = server.cpu_seconds()
    text = subprocess.run(load, check=True, capture_output=True, text=True, preexec_fn=pin_load).stdout
    used = server.cpu_seconds() - before
    if "Non-2xx" in text:
        raise SystemExit(f"{path}: not every answer was 200:\n{text}")
    requests = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    return Measurement(requests, requests / seconds, used / requests * 1000)


def fetch(url: str, token: str) -> bytes:
    """Return an answer's body."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def prepare_desk(folder: Path, tickets: int) -> str:
    """Make a desk with half of its tickets closed and return a token for it."""
    subprocess.run([*TICKETAPI, "generate", "--seed", "1", "--count", str(tickets)], cwd=folder, check=True)
    subprocess.run([*TICKETAPI, "process", "--count", str(tickets // 2)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    create = subprocess.run([*TICKETAPI, "token", "create"], cwd=folder, check=True, capture_output=True, text=True)
    return create.stdout.strip()


def serve_command(threads: int) -> list[str]:
    """Return the command line of a ticketapi without limit and scheduler."""
    return [*TICKETAPI, "serve", "--port", "0", "--rate", "0", "--no-scheduler", "--threads", str(threads)]


def floor_command(body: Path, threads: int) -> list[str]:
    """Return the command line of the floor."""
    return [sys.executable, "-c", FLOOR, str(body), str(threads)]


def compare(folder: Path, path: str, token: str, options: argparse.Namespace) -> None:
    """Measure one URL with each number of threads and print its rows."""
    ours, floors = {}, {}
    body = folder / "body.json"
    for threads in options.threads:
        with Server(serve_command(threads), folder) as server:
            body.write_bytes(fetch(server.url + path, token))
            ours[threads] = measure(server, path, token, options.seconds)
        with Server(floor_command(body, threads), folder) as server:
            floors[threads] = measure(server, path, token, options.seconds)
    floor = min(found.cpu_ms for found in floors.values())
    for threads in options.threads:
        here, bare = ours[threads], floors[threads]
        print(
            f"| {path} | {body.stat().st_size} | {threads} | {here.cpu_ms:.3f} | {here.per_second:.0f} "
            f"| {bare.cpu_ms:.3f} | {bare.per_second:.0f} | {here.cpu_ms / floor:.2f} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("requests.py needs wrk: sudo apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        token = prepare_desk(folder, options.tickets)
        print("| path | bytes | threads | CPU ms/request | requests/s | floor: CPU ms | floor: requests/s | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for path in ("/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/stats"):
            compare(folder, path, token, options)


if __name__ == "__main__":
    main()
