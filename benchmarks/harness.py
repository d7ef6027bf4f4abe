"""What the benchmarks share: desks of a size, servers on one core, load on another, CPU time of a process, tables."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TICKETAPI = [sys.executable, str(ROOT / "ticketapi.py")]
SERVER_CORE, LOAD_CORE = 0, (os.cpu_count() or 1) - 1
CONNECTIONS = 8
sys.path.insert(0, str(ROOT))  # so that scripts can import ticketapi
ROUNDS = 3  # of each measurement; the cheapest counts, as whatever else the machine does only adds

# A Waitress that answers the same bytes to everybody: what no application around it can beat.
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

# Asks for another path each time, from a place in a list of paths on; the list is longer than the server can remember answers.
WALK = """
local paths, asked = {}, %d
for path in io.lines("paths.txt") do paths[#paths + 1] = path end
function request()
    asked = asked + 1
    return wrk.format(nil, paths[asked %% #paths + 1])
end
"""


class Measurement(NamedTuple):
    """What one run of the load showed."""

    per_second: float
    cpu_ms: float  # of the server, for each request


class Cost(NamedTuple):
    """What one piece of work took."""

    cpu: float  # seconds, as wall
    wall: float
    memory_mb: float = 0.0  # at its highest, of a process


class Stopwatch:
    """Adds up what the blocks under `with` take, so that what lies between them does not count."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.cost = Cost(0.0, 0.0)

    def __enter__(self) -> None:
        """Start to count."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        """Add what the block took."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        self.cost = Cost(self.cost.cpu + cpu, self.cost.wall + wall)


class Server:
    """A server process on its core, reached at `url` once it says where it listens."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path | None = None) -> None:
        """Start the process in a folder; its log goes to standard error, or to a file when it runs for long."""
        self.folder = folder
        with ExitStack() as stack:
            stderr = stack.enter_context(log.open("w")) if log else subprocess.PIPE
            self.process = subprocess.Popen(
                ["taskset", "-c", str(SERVER_CORE), *command],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout
        found = re.search(r"http://\S+", self.process.stdout.readline())
        if not found:
            raise SystemExit(f"{' '.join(command)} did not start: {self.process.communicate()[1]}")
        self.url = found[0].rstrip("/")

    def __enter__(self) -> Server:
        """Give the running server."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.process.terminate()
        self.process.communicate(timeout=30)

    def cpu_seconds(self) -> float:
        """Return the CPU time that all threads, also those that have ended, have used (clock_getcpuclockid(3), Linux)."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def memory_mb(self) -> float:
        """Return the resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def run_wrk(url: str, token: str, seconds: int, *options: str, cwd: Path | None = None) -> tuple[int, float]:
    """Load one URL and return requests and seconds; any answer but 2xx ends the benchmark."""
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s"]
    command += [*options, "-H", f"Authorization: Bearer {token}", url]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{url}: not every request was answered well:\n{text}")
    requests, amount, unit = re.findall(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)[0]
    return int(requests), float(amount) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def measure(server: Server, url: str, token: str, seconds: int, *options: str, cwd: Path | None = None) -> Measurement:
    """Load a server for some seconds."""
    before = server.cpu_seconds()
    requests, passed = run_wrk(url, token, seconds, *options, cwd=cwd)
    return Measurement(requests / passed, (server.cpu_seconds() - before) / requests * 1000)


def cheapest(found: Sequence[Measurement]) -> Measurement:
    """Return the measurement with the least CPU time."""
    return min(found, key=lambda measurement: measurement.cpu_ms)


def measure_hot(server: Server, path: str, token: str, seconds: int) -> Measurement:
    """Load one URL, after a second to warm up; the cheapest of some rounds."""
    run_wrk(server.url + path, token, 1)
    return cheapest([measure(server, server.url + path, token, seconds) for _ in range(ROUNDS)])


def read_through(folder: Path) -> None:
    """Read the databases of a folder from end to end: what a disk costs is not measured, but kernels drop what lies idle."""
    for path in folder.glob("*.db"):
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass


def measure_walk(server: Server, paths: Sequence[str], start: int, token: str, seconds: int, folder: Path) -> Measurement:
    """Ask for one path of a list after the other, from a place in it on."""
    read_through(server.folder)
    (folder / "paths.txt").write_text("\n".join(paths))
    (folder / "walk.lua").write_text(WALK % start)
    return measure(server, server.url, token, seconds, "-s", "walk.lua", cwd=folder)


def measure_cold(server: Server, paths: Sequence[str], token: str, seconds: int, folder: Path) -> Measurement:
    """Ask for another page with every request, after a second to warm up; the cheapest of some rounds."""
    measure_walk(server, paths, 0, token, 1, folder)
    starts = [len(paths) * number // (ROUNDS + 1) for number in range(1, ROUNDS + 1)]
    return cheapest([measure_walk(server, paths, start, token, seconds, folder) for start in starts])


def measure_floor(folder: Path, body: bytes, threads: Sequence[int], seconds: int) -> Measurement:
    """Measure a bare Waitress that answers some bytes, with the number of threads that is cheapest."""
    file = folder / "body.json"
    file.write_bytes(body)
    found = []
    for count in threads:
        with Server([sys.executable, "-c", FLOOR, str(file), str(count)], folder) as server:
            found.append(measure_hot(server, "/", "none", seconds))
    return cheapest(found)


def fetch(url: str, token: str) -> bytes:
    """Return an answer's body."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def run(folder: Path, *words: str) -> str:
    """Run a ticketapi command in a folder and return what it prints."""
    done = subprocess.run([*TICKETAPI, *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def run_measured(folder: Path, *words: str) -> Cost:
    """Run a ticketapi command in a folder, from bytecode as an installed one runs, and return what its process took.

    The memory is never under what this process had at its own highest until then (Linux, on exec): the least of some rounds
    counts, and in the first one this process is small.
    """
    began = time.perf_counter()
    installed = [sys.executable, "-m", "ticketapi"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    process = subprocess.Popen([*installed, *words], cwd=folder, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def least(costs: Sequence[Cost]) -> Cost:
    """Return the least of each figure: whatever else the machine does only adds."""
    return Cost(*map(min, zip(*costs, strict=True)))


def make_desk(folder: Path, tickets: int, closed: int) -> str:
    """Make a desk with some of its tickets closed and return a token for it."""
    run(folder, "generate", "--seed", "1", "--count", str(tickets))
    run(folder, "process", "--count", str(closed))
    return run(folder, "token", "create")


@contextmanager
def serve(folder: Path, threads: int | None = None, rate: int = 1_000_000) -> Iterator[Server]:
    """Serve the desk of a folder without scheduler, and with a limit that nobody reaches; 0 is none."""
    command = [*TICKETAPI, "serve", "--port", "0", "--rate", str(rate), "--no-scheduler"]
    with Server(command + (["--threads", str(threads)] if threads else []), folder) as server:
        yield server


def need(*tools: str) -> None:
    """End with a hint when a tool is missing."""
    for tool in tools:
        if not shutil.which(tool):
            sys.exit(f"this benchmark needs {tool}: sudo apt-get install -y {tool}")


def print_machine() -> None:
    """Print what the figures were taken on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("bottle", "waitress"))
    model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"{model[0] if model else platform.machine()}, {os.cpu_count()} cores; {platform.system()} {platform.release()};")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {packages}\n")


def print_row(*cells: object) -> None:
    """Print one row of a Markdown table; floats with three digits that count."""
    print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True)


def print_head(*cells: str) -> None:
    """Print the head of a Markdown table."""
    print_row(*cells)
    print_row(*["---"] * len(cells))
