#!/usr/bin/env python3
"""Measure whether requests, memory and start depend on how many tickets there are, and pages on how deep they lie.

    python3 benchmarks/scaling.py [--sizes 10000 1000000] [--deep 1000000] [--seconds 2] [--rounds 4]

sizes: CPU time of a request for a page or stats that the server does not remember, on desks of which half is closed; all
servers run at the same time and are asked in turn. A desk is read through before each turn, so that it lies in the kernel's
page cache: what a disk costs is not measured. deep: the same for windows of 200 pages at the start, in the middle and at
the end of the closed tickets of another desk, all of them closed. memory: of those servers before the first request and after
all of them. start: from the start of the process to its first answers, in turn with an empty desk. The least of all rounds
counts. With --sizes 10000 1000000 10000000 it takes 6 GB of disk in the folder for temporary files. Linux only; needs wrk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from harness import (
    Cost,
    Server,
    fetch,
    least,
    make_desk,
    measure_walk,
    need,
    print_head,
    print_machine,
    print_row,
    run,
    serve,
)

OPEN, CLOSED, STATS = "/api/tickets/open", "/api/tickets/closed", "/api/stats"
PER_PAGE = 50
WINDOW = 200  # pages
ENOUGH = 20_000  # paths in a list: asked in turn, none comes again while the server still remembers its answer
SIZE_BOUND, DEEP_BOUND, START_BOUND, IDLE_BOUND, LOADED_BOUND = 1.3, 1.5, 1.5, 70, 140


class Desk(NamedTuple):
    """A desk of a size, and a token for it."""

    size: int
    folder: Path
    token: str


def repeat_paths(paths: Sequence[str]) -> list[str]:
    """Repeat some paths, each time with a query that makes them new to the server."""
    rounds = -(-ENOUGH // len(paths))
    return [f"{path}again={number}" for number in range(rounds) for path in paths]


def page_paths(path: str, first: int, last: int) -> list[str]:
    """Return the pages of a range in an order without neighbours."""
    pages = last - first + 1
    return repeat_paths([f"{path}?page={first + at * 7919 % pages}&" for at in range(pages)])


def prepare_desk(root: Path, size: int, closed: int) -> Desk:
    """Make a desk in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=root))
    if size:
        return Desk(size, folder, make_desk(folder, size, closed))
    return Desk(size, folder, run(folder, "token", "create"))


def compare_loads(
    loads: Mapping[str, tuple[Server, Desk, list[str]]], options: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Return the CPU time of a request in milliseconds for each of some loads, measured in turn."""
    found: dict[str, list[float]] = {name: [] for name in loads}
    for number in range(options.rounds + 1):
        for name, (server, desk, paths) in loads.items():
            start = len(paths) * number // (options.rounds + 1)
            seconds = options.seconds if number else 1
            measured = measure_walk(server, paths, start, desk.token, seconds, folder)
            if number:  # round 0 warms up
                found[name].append(measured.cpu_ms)
    return {name: min(times) for name, times in found.items()}


def print_spread(name: str, times: Mapping[str, float], bound: float) -> None:
    """Print one row: the times and how far apart they are."""
    print_row(name, *times.values(), max(times.values()) / min(times.values()), bound)


def print_sizes(desks: Sequence[Desk], servers: Sequence[Server], options: argparse.Namespace, folder: Path) -> None:
    """Print what requests cost on desks of different sizes."""
    print_head("CPU ms of a request", *(f"{desk.size:,} tickets" for desk in desks), "most / least", "bound")
    for route in (CLOSED, OPEN, STATS):
        loads = {}
        for desk, server in zip(desks, servers, strict=True):
            stats = repeat_paths([f"{STATS}?"])
            paths = stats if route == STATS else page_paths(route, 1, max(1, desk.size // 2 // PER_PAGE))
            loads[str(desk.size)] = (server, desk, paths)
        print_spread(f"{route}, cold", compare_loads(loads, options, folder), SIZE_BOUND)


def print_depths(desk: Desk, server: Server, options: argparse.Namespace, folder: Path) -> None:
    """Print what pages cost at the start, in the middle and at the end of a list."""
    last = max(1, desk.size // PER_PAGE)
    size = min(WINDOW, last)
    starts = {"start": 1, "middle": max(1, (last - size) // 2), "end": last - size + 1}
    loads = {name: (server, desk, page_paths(CLOSED, first, first + size - 1)) for name, first in starts.items()}
    print_head("CPU ms of a request", *starts, "most / least", "bound")
    print_spread(f"{size} closed pages of {last:,}, cold", compare_loads(loads, options, folder), DEEP_BOUND)


def time_start(desk: Desk) -> tuple[Cost, Cost]:
    """Start a server and return what it took to the first answer, and to the first page."""
    began, costs = time.perf_counter(), []
    with serve(desk.folder) as server:
        for path in ("/up", OPEN):
            fetch(server.url + path, desk.token)
            costs.append(Cost(server.cpu_seconds(), time.perf_counter() - began))
    return costs[0], costs[1]


def print_starts(desks: Sequence[Desk], rounds: int) -> None:
    """Print how long servers take to answer, against the first desk of the list."""
    found = {desk.size: [] for desk in desks}
    for _ in range(rounds):
        for desk in desks:
            found[desk.size].append(time_start(desk))
    print_head("tickets", "CPU s to /up", "ratio", "wall s", "ratio", "CPU s to page 1", "ratio", "wall s", "ratio", "bound")
    empty = [least(costs) for costs in zip(*found[desks[0].size], strict=True)]
    for size, costs in found.items():
        cells: list[float] = []
        for cost, base in zip((least(part) for part in zip(*costs, strict=True)), empty, strict=True):
            cells += [cost.cpu, cost.cpu / base.cpu, cost.wall, cost.wall / base.wall]
        print_row(f"{size:,}", *cells, START_BOUND)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000], metavar="TICKETS")
    parser.add_argument("--deep", type=int, default=1_000_000, metavar="TICKETS")
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    need("wrk", "taskset")
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        desks = [prepare_desk(root, size, size // 2) for size in options.sizes]
        deep = prepare_desk(root, options.deep, options.deep)
        with ExitStack() as stack:
            servers = [stack.enter_context(serve(desk.folder)) for desk in [*desks, deep]]
            idle = [server.memory_mb() for server in servers]
            print_sizes(desks, servers[:-1], options, root)
            print()
            print_depths(deep, servers[-1], options, root)
            print()
            print_head("tickets", f"MB idle (bound {IDLE_BOUND})", f"MB after the load (bound {LOADED_BOUND})")
            for desk, before, server in zip([*desks, deep], idle, servers, strict=True):
                print_row(f"{desk.size:,}{', all closed' if desk is deep else ''}", before, server.memory_mb())
        print()
        print_starts([prepare_desk(root, 0, 0), *desks], options.rounds)


if __name__ == "__main__":
    main()
