#!/usr/bin/env python3
"""Measure what open tabs of the dashboard cost the server: CPU seconds and requests a minute with 0, 1 and 10 tabs.

    python3 benchmarks/tabs.py [--seconds 60] [--tickets 100000]

A real Chromium shows the page of a desk on which a ticket arrives, and one is closed, every five seconds, with the limit as it
is by default. No tab is hidden, as if they were windows side by side. Needs Chromium and Playwright for Python. Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from harness import TICKETAPI, Server, make_desk, need, print_head, print_machine, print_row, run
from playwright.sync_api import BrowserContext, expect, sync_playwright

TABS = 0, 1, 10
SERVE = ["serve", "--port", "0", "--generate-every", "5s", "--process-every", "5s"]
ABILITIES = ["--ability", "read:tickets", "--ability", "read:audits"]


class Cost(NamedTuple):
    """What some tabs cost in a minute."""

    cpu_seconds: float
    requests: float
    unchanged: float  # of them answered by 304
    refused: float  # of them answered by 429


@contextmanager
def browser_context() -> Iterator[BrowserContext]:
    """Give the windows of one Chromium, which share what tabs share."""
    arguments = [] if os.getuid() else ["--no-sandbox"]  # which Chromium refuses to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser.new_context()
        browser.close()


def open_tab(context: BrowserContext, url: str, token: str) -> None:
    """Open a tab, sign in and wait until it shows the desk."""
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#open-list tbody tr").first).to_be_visible()


def last_request(folder: Path) -> int:
    """Return the id of the latest row of the audit log."""
    with closing(sqlite3.connect(folder / "ticketapi-audit.db")) as db:
        return int(db.execute("SELECT coalesce(max(id), 0) FROM api_audits").fetchone()[0])


def statuses_after(folder: Path, after: int) -> Counter[int]:
    """Return how many requests were answered how since a row of the audit log."""
    with closing(sqlite3.connect(folder / "ticketapi-audit.db")) as db:
        rows = db.execute("SELECT status_code, count(*) FROM api_audits WHERE id > ? GROUP BY status_code", (after,))
        return Counter(dict(rows.fetchall()))


def watch(server: Server, folder: Path, seconds: float) -> Cost:
    """Let time pass and return what it cost, by the minute."""
    after, cpu, began = last_request(folder), server.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    cpu, minutes = server.cpu_seconds() - cpu, (time.monotonic() - began) / 60
    statuses = statuses_after(folder, after)
    return Cost(*(value / minutes for value in (cpu, statuses.total(), statuses[304], statuses[429])))


def measure(tabs: int, tickets: int, seconds: float) -> Cost:
    """Measure a number of tabs on a desk and a server of their own."""
    with tempfile.TemporaryDirectory() as name, browser_context() as context:
        folder = Path(name)
        make_desk(folder, tickets, tickets // 2)
        token = run(folder, "token", "create", *ABILITIES)
        with Server([*TICKETAPI, *SERVE], folder, folder / "server.log") as server:
            for _ in range(tabs):
                open_tab(context, server.url, token)
            time.sleep(10)  # until all is loaded and the bucket is fuller again
            return watch(server, folder, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tickets", type=int, default=100_000)
    options = parser.parse_args()
    need("taskset", "chromium")
    print_machine()
    print_head("tabs", "server CPU s a minute", "requests a minute", "of them 304", "of them 429")
    for tabs in TABS:
        cost = measure(tabs, options.tickets, options.seconds)
        print_row(tabs, cost.cpu_seconds, round(cost.requests), round(cost.unchanged), round(cost.refused))


if __name__ == "__main__":
    main()
