#!/usr/bin/env python3
"""Measure how long ticketapi takes to start, next to a Python that does nothing.

    python3 benchmarks/start.py [--rounds 15] [--against OTHER.pyz]

The command as pip installs it, in an environment of its own, the zipapp, built here, and the script, each with `--version`,
with `token list` on a small desk, and with `serve` until it has answered /up. The zipapp and the script run with a Python that
knows no other package (-I -S), and `serve` as a script with one that knows Bottle and Waitress. Another zipapp, of an older
version for instance, can be put beside them. The sides take turns; the least of each figure counts. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import ROOT, Cost, Server, fetch, least, print_head, print_machine, print_row, run

BOUND = 1.5  # the zipapp, times the installed command


def time_process(folder: Path, command: Sequence[str]) -> Cost:
    """Run a command to its end and return what its process took."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def time_serve(folder: Path, command: Sequence[str]) -> Cost:
    """Start a server and return what it took until it had answered /up."""
    began = time.perf_counter()
    with Server([*command, "serve", "--port", "0", "--no-scheduler"], folder) as server:
        fetch(f"{server.url}/up", "none")
        return Cost(server.cpu_seconds(), time.perf_counter() - began, server.memory_mb())


def find_sides(folder: Path, against: Path | None) -> dict[str, list[str]]:
    """Return how each side is called."""
    zipapp, venv = folder / "ticketapi.pyz", folder / "venv"
    for command in (
        [sys.executable, "-m", "venv", venv],
        [venv / "bin/pip", "install", "-q", ROOT],
        [sys.executable, ROOT / "packaging/build_zipapp.py", zipapp],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    bare = [sys.executable, "-I", "-S"]
    sides = {
        "installed": [str(venv / "bin/ticketapi")],
        "zipapp": [*bare, str(zipapp)],
        "script": [*bare, str(ROOT / "ticketapi.py")],
    }
    return sides | ({against.name: [*bare, str(against.resolve())]} if against else {})


def print_costs(what: str, costs: dict[str, list[Cost]]) -> None:
    """Print one row for each side; the ratio is to the installed command."""
    base = least(costs["installed"])
    for side, found in costs.items():
        cost = least(found)
        print_row(what, side, cost.cpu, cost.cpu / base.cpu, cost.wall, cost.memory_mb, BOUND if side == "zipapp" else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--against", type=Path, metavar="OTHER.pyz")
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = find_sides(folder, options.against)
        run(folder, "generate", "--count", "100")
        print_head("command", "side", "CPU s", "ratio", "wall s", "memory MB", "bound")
        nothing = [time_process(folder, [sys.executable, "-I", "-S", "-c", "pass"]) for _ in range(options.rounds)]
        bare = least(nothing)
        print_row("nothing", "bare Python", bare.cpu, "", bare.wall, bare.memory_mb, "")
        for words in (["--version"], ["token", "list"]):
            costs: dict[str, list[Cost]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side, command in sides.items():
                    costs[side].append(time_process(folder, [*command, *words]))
            print_costs(f"`{' '.join(words)}`", costs)
        servers = sides | {"script": [sys.executable, str(ROOT / "ticketapi.py")]}
        costs = {side: [] for side in servers}
        for _ in range(max(1, options.rounds // 3)):
            for side, command in servers.items():
                costs[side].append(time_serve(folder, command))
        print_costs("`serve` until /up", costs)


if __name__ == "__main__":
    main()
