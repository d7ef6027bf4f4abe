#!/usr/bin/env python3
"""Measure what bodies of 64 KiB cost the server, which reads them for the audit log alone, next to a plain text as long.

    python3 benchmarks/bodies.py [--requests 300]

POST requests with a valid token over one keep-alive connection; CPU time is the server's own. The kinds take turns, and of each
the cheapest of three rounds counts. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
from pathlib import Path

from harness import Server, make_desk, need, print_head, print_machine, print_row, serve

SIZE, BOUND = 64 * 1024, 3.0  # times the plain text
FORM = "application/x-www-form-urlencoded"


def fill(start: str, middle: str, end: str) -> bytes:
    """Repeat a piece between two others, up to SIZE bytes."""
    room = SIZE - len((start + end).encode())
    return (start + middle * (room // len(middle.encode())) + end).encode()


BODIES = {
    "plain text": (fill('"', "x", '"'), "application/json"),
    "[0,0,…]": (fill("[", "0,", "0]"), "application/json"),
    "[{},{},…]": (fill("[", "{},", "{}]"), "application/json"),
    "distinct keys": (("{" + ",".join(f'"{n:x}":0' for n in range(6500)) + "}").encode(), "application/json"),
    "distinct form fields": ("&".join(f"{n:x}=1" for n in range(9300)).encode()[:SIZE], FORM),
    "percent-encoded form": (fill("a=", "%e2%80%ae", ""), FORM),
    "unprintable text": (fill('"', "\u202e", '"'), "application/json"),
    "escaped text": (fill('"', "\\u202e", '"'), "application/json"),
    "our tokens": (json.dumps(["tkt_" + "A" * 46] * 1200).encode(), "application/json"),
    "nested": (fill("[" * 900, "0,", "0" + "]" * 900), "application/json"),
}


def cost(server: Server, token: str, body: bytes, kind: str, requests: int) -> float:
    """Return milliseconds of CPU time that one such request takes the server."""
    host, port = server.url.removeprefix("http://").split(":")
    client = http.client.HTTPConnection(host, int(port))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
    before = server.cpu_seconds()
    for _ in range(requests):
        client.request("POST", "/api/stats", body, headers)
        client.getresponse().read()
    return (server.cpu_seconds() - before) / requests * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="of each kind in a round")
    requests = parser.parse_args().requests
    need()
    print_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        token = make_desk(folder, 100, 50)
        with serve(folder) as server:
            found: dict[str, list[float]] = {kind: [] for kind in BODIES}
            for _ in range(3):
                for kind, (body, content_type) in BODIES.items():
                    found[kind].append(cost(server, token, body, content_type, requests))
    plain = min(found["plain text"])
    print_head("body of 64 KiB", "CPU ms a request", "times the plain text", "bound")
    for kind, costs in found.items():
        print_row(kind, round(min(costs), 3), round(min(costs) / plain, 2), BOUND)


if __name__ == "__main__":
    main()
