"""The connectors page: its snippets run as they stand there, and its figures are what a run gives."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from manual import section, snippets

import ticketapi

PAGE = "connectors.md"
OPENED, CLOSED_MEANWHILE = 264, 30
RULES = " ".join(section(PAGE, "Four rules").split())
PROGRAMS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def token(tmp_path):
    """The text of a token for the desk in the folder of the test."""
    command = [sys.executable, "-m", "ticketapi", "token", "create", "--user", "connector@example.com"]
    return subprocess.check_output(command, cwd=tmp_path, text=True, stderr=subprocess.DEVNULL).strip()


def desk_of(folder):
    """Open the desk of a folder."""
    return closing(ticketapi.open_database(folder / "ticketapi.db", "desk"))


def process(folder, count):
    """Close tickets of the desk in a folder."""
    with desk_of(folder) as db:
        ticketapi.process_tickets(db, count, ticketapi.wall_microseconds())


def walk(served, folder, token, path):
    """Return the ids that a walk meets; tickets are closed once its first page has been read."""
    ids = []
    while path:
        page = served.get(path, token).json
        if not ids:
            process(folder, CLOSED_MEANWHILE)
        ids += [ticket["id"] for ticket in page["data"]]
        path = (page["links"]["next"] or "").removeprefix(served.url)
    return ids


# Four rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "missing"), [("?page=1", CLOSED_MEANWHILE), ("?cursor=", 0)])
def test_a_walk_by_page_misses_tickets_while_some_are_closed_and_one_by_cursor_none(serve, tmp_path, token, query, missing):
    with desk_of(tmp_path) as db:
        ticketapi.generate_tickets(db, OPENED, ticketapi.wall_microseconds(), seed=7)
    met = walk(serve("--no-scheduler"), tmp_path, token, f"/api/tickets/open{query}")
    open_throughout = set(range(CLOSED_MEANWHILE + 1, OPENED + 1))
    assert len(open_throughout - set(met)) == missing
    assert len(met) == len(set(met))
    assert f"{OPENED} open tickets, read the first page and closed {CLOSED_MEANWHILE} tickets" in RULES
    assert f"`?{query.strip('?=1')}=` {'then ' if missing else ''}missed {missing}" in RULES


def test_the_times_of_a_walk_follow_from_the_limit():
    rate = ticketapi.Settings().rate
    small, large = (ticketapi.DEMO_TICKETS // size for size in (ticketapi.PER_PAGE, ticketapi.MAX_PER_PAGE))
    seconds = [(requests - rate) * 60 // rate for requests in (large, small)]
    assert f"per_page={ticketapi.MAX_PER_PAGE}" in RULES
    assert f"{ticketapi.DEMO_TICKETS:,} tickets are {large} requests then, instead of {small}." in RULES
    assert f"take {seconds[0]} seconds instead of {seconds[1]}" in RULES


# Plain Python ------------------------------------------------------------------------------------


def asked(folder, path):
    """Return (status, query) of the requests for a path, oldest first, from the audit log."""
    with closing(ticketapi.connect(folder / "ticketapi-audit.db")) as db:
        rows = db.execute("SELECT status_code, query FROM api_audits WHERE path = ? ORDER BY id", (path,)).fetchall()
    return [(row["status_code"], json.loads(row["query"])) for row in rows]


def copied(folder):
    """Return what sync.py keeps: ids by status."""
    with closing(sqlite3.connect(folder / "copy.db")) as db:
        rows = db.execute("SELECT id, status, ticket FROM tickets").fetchall()
    assert all(json.loads(text)["status"] == status for _, status, text in rows)
    return {status: {number for number, kept, _ in rows if kept == status} for status in ("Open", "Closed")}


def on_the_desk(folder):
    """Return what the desk has: ids by status."""
    with desk_of(folder) as db:
        rows = [tuple(row) for row in db.execute("SELECT id, status FROM tickets")]
    return {name: {n for n, kept in rows if kept == status} for name, status in (("Open", 1), ("Closed", 2))}


@pytest.fixture
def sync(serve, tmp_path, token):
    """Return a function that runs sync.py of the page against a server."""
    desk, program = snippets(PAGE, "Plain Python", "python")

    def run(served):
        folder = tmp_path / "client"
        folder.mkdir(exist_ok=True)
        (folder / "desk.py").write_text(desk.replace("http://127.0.0.1:8000", served.url))
        (folder / "sync.py").write_text(program)
        environ = {**os.environ, "TOKEN": token}
        done = subprocess.run([sys.executable, "sync.py"], cwd=folder, env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return copied(folder)

    return run


def test_plain_python_copies_the_desk_and_then_reads_what_has_been_closed_since(serve, tmp_path, sync):
    with desk_of(tmp_path) as db:
        ticketapi.generate_history(db, 1000, 30 * ticketapi.DAY, ticketapi.wall_microseconds(), seed=7)
    served = serve("--no-scheduler")
    assert sync(served) == on_the_desk(tmp_path)
    first = asked(tmp_path, "api/tickets/closed")
    assert all(query.keys() == {"cursor", "per_page"} and query["per_page"] == "200" for _, query in first)
    process(tmp_path, 5)
    assert sync(served) == on_the_desk(tmp_path)
    assert (len(first), len(asked(tmp_path, "api/tickets/closed"))) == (5, 6)


def test_plain_python_waits_where_the_limit_says_so(serve, tmp_path, token, sync):
    with desk_of(tmp_path) as db:
        ticketapi.generate_tickets(db, 300, ticketapi.wall_microseconds(), seed=7)
    served = serve("--no-scheduler", "--rate", "30")
    while served.get("/api/stats", token).status == 200:
        pass  # until the bucket is empty
    assert sync(served) == on_the_desk(tmp_path)
    assert asked(tmp_path, "api/tickets/open")[0][0] == 429


# Somebody's own test suite -----------------------------------------------------------------------


@pytest.fixture
def suite(tmp_path):
    """A folder with nothing but the two files of the page, and how to run pytest there."""
    fixture, test = snippets(PAGE, "Your own test suite", "python")
    (tmp_path / "conftest.py").write_text(fixture)
    (tmp_path / "test_stats.py").write_text(test)
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", tmp_path, tmp_path]


def test_the_fixture_starts_a_desk_for_the_tests_of_an_empty_folder_and_ends_it(suite, tmp_path):
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "COV_", "TICKETAPI_"))}
    listing = tmp_path / "test_last.py"
    listing.write_text("def test_last(desk):\n    print('url', desk[0])\n    assert desk[1].startswith('tkt_')\n")
    done = subprocess.run([*suite, "-s"], cwd=tmp_path, env={**environ, "PATH": PROGRAMS}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    port = int(re.search(r"url http://127\.0\.0\.1:(\d+)", done.stdout)[1])
    with closing(socket.socket()) as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0


def test_the_fixture_has_ten_lines():
    fixture = snippets(PAGE, "Your own test suite", "python")[0]
    assert len(fixture.partition("@pytest")[2].splitlines()) == 10
