"""The connectors page: its snippets run as they stand there, and its figures are what a run gives."""

import json
import os
import re
import shutil
import signal
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
RULES = " ".join(section(PAGE, "Five rules").split())
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


# Five rules --------------------------------------------------------------------------------------


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
    """Return the tickets that sync.py keeps, by id."""
    with closing(sqlite3.connect(folder / "copy.db")) as db:
        rows = db.execute("SELECT id, status, ticket FROM tickets").fetchall()
    tickets = {number: json.loads(text) for number, _, text in rows}
    assert all(tickets[number]["status"] == status for number, status, _ in rows)
    return tickets


def on_the_desk(folder):
    """Return the tickets that the desk has, as the export shows them, by id."""
    with closing(ticketapi.connect(folder / "ticketapi.db", ticketapi.READER)) as db:
        found = [json.loads(row["resource"]) for row in db.execute("SELECT resource FROM ticket_resources WHERE status > 0")]
        closed_at = {row["id"]: row["closed_at"] for row in db.execute("SELECT id, closed_at FROM tickets")}
    return {one["id"]: {**one, "closed_at": closed_at[one["id"]], "deleted_at": None} for one in found}


def live(folder):
    """Let the desk live a little: tickets are closed, come, are deleted and reopened."""
    now = ticketapi.wall_microseconds()
    with desk_of(folder) as db:
        ticketapi.process_tickets(db, 5, now)
        for number in (3, 500, 999):
            ticketapi.delete_ticket(db, number, now)
        for number in (1, 2):
            ticketapi.update_ticket(db, number, {"status": ticketapi.OPEN}, now)
        ticketapi.generate_tickets(db, 7, now, seed=8)


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


def test_plain_python_copies_the_desk_and_then_reads_what_has_changed_since(serve, tmp_path, sync):
    with desk_of(tmp_path) as db:
        ticketapi.generate_history(db, 1000, 30 * ticketapi.DAY, ticketapi.wall_microseconds(), seed=7)
    served = serve("--no-scheduler")
    assert sync(served) == on_the_desk(tmp_path)
    first = asked(tmp_path, "api/tickets/export")
    assert all(query.keys() == {"cursor", "per_page"} and query["per_page"] == "200" for _, query in first)
    live(tmp_path)
    assert sync(served) == on_the_desk(tmp_path)
    assert (len(first), len(asked(tmp_path, "api/tickets/export"))) == (5, 6)


def test_plain_python_begins_anew_when_a_snapshot_was_restored(serve, tmp_path, sync):
    with desk_of(tmp_path) as db:
        ticketapi.generate_history(db, 1000, 30 * ticketapi.DAY, ticketapi.wall_microseconds(), seed=7)
    served = serve("--no-scheduler")
    ticketapi.save_snapshot(tmp_path / "ticketapi.db", "kept", ticketapi.wall_microseconds())
    live(tmp_path)
    assert len(sync(served)) > 1000
    ticketapi.restore_snapshot(tmp_path / "ticketapi.db", "kept", ticketapi.wall_microseconds())
    for _ in range(2):
        assert sync(served) == on_the_desk(tmp_path)


def test_plain_python_waits_where_the_limit_says_so(serve, tmp_path, token, sync):
    with desk_of(tmp_path) as db:
        ticketapi.generate_tickets(db, 300, ticketapi.wall_microseconds(), seed=7)
    served = serve("--no-scheduler", "--rate", "30")
    while served.get("/api/stats", token).status == 200:
        pass  # until the bucket is empty
    assert sync(served) == on_the_desk(tmp_path)
    assert asked(tmp_path, "api/tickets/export")[0][0] == 429


# The page of the API -----------------------------------------------------------------------------


@pytest.fixture
def shell(serve, tmp_path):
    """Return a function that gives lines of a page, against a server, and how to run them as they stand there."""
    with desk_of(tmp_path) as db:
        ticketapi.generate_tickets(db, 300, ticketapi.wall_microseconds(), seed=7)
        made = ticketapi.create_token(db, "reader@example.com", "shell", ["*"], 0, ticketapi.wall_microseconds())
    served = serve("--no-scheduler", "--rate", "0")
    environ = {**os.environ, "PATH": PROGRAMS, "TOKEN": made["token"]}

    def lines(title, language="sh", which=0, command=("sh", "-euc"), page="api.md"):
        script = snippets(page, title, language)[which].replace("http://127.0.0.1:8000", served.url)
        return command, script, {"cwd": tmp_path, "env": environ, "text": True}

    return lines


def run_lines(command, script, options):
    """Run a script to its end and return what it says."""
    done = subprocess.run([*command, script], capture_output=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_that_write_do_what_they_say(shell, tmp_path):
    command, script, options = shell("Writing")
    out = run_lines(command, script.replace("/10001 ", "/301 "), options)
    with closing(ticketapi.connect(tmp_path / "ticketapi-audit.db")) as db:
        rows = db.execute("SELECT method, status_code, request_body FROM api_audits ORDER BY id").fetchall()
    told = [(row["method"], row["status_code"]) for row in rows]
    assert told == [("POST", 201), ("PATCH", 200), ("PATCH", 412), ("POST", 201), ("GET", 200), ("DELETE", 204)]
    assert "The printer is on fire" in out
    assert "The ticket has changed; get it again" in out
    assert out.count("We have sent somebody with a bucket.") == 2


def test_the_lines_that_make_a_webhook_do_what_they_say(shell, tmp_path):
    out = run_lines(*shell("By the API", page="webhooks.md"))
    with closing(ticketapi.connect(tmp_path / "ticketapi-audit.db")) as db:
        told = [row["status_code"] for row in db.execute("SELECT status_code FROM api_audits ORDER BY id")]
    assert told == [201, 200, 202, 200, 202, 204]
    assert '"secret":"whsec_' in out
    assert '"name":"the pager"' in out


@pytest.mark.parametrize(("title", "has"), [("Search", "data"), ("Export", "deleted_at"), ("Events", "ticket.created")])
def test_the_lines_that_read_changes_are_answered(shell, title, has):
    out = run_lines(*shell(title))
    assert f'"{has}"' in out
    assert '"message"' not in out


def test_the_lines_that_save_and_restore_do_what_they_say(shell, tmp_path):
    command, script, options = shell("Snapshots", page="simulation.md")
    desk = tmp_path / "new"
    desk.mkdir()
    lines = [line for line in script.splitlines() if not line.startswith("ticketapi serve")]
    out = run_lines(command, "\n".join(lines), options | {"cwd": desk})
    done = [line.partition(":")[0] for line in out.splitlines()]
    assert done[2:-1] == [
        "Saved monday",
        "Processed 20 tickets",
        "Ticket IDs",
        "Restored monday",
        "NAME    CREATED AT                   TICKETS  SIZE",
    ]
    assert out.splitlines()[-1].startswith("monday  ")


def test_the_lines_that_save_and_restore_over_http_do_what_they_say(shell, tmp_path):
    out = run_lines(*shell("Snapshots", which=1, page="simulation.md"))
    with closing(ticketapi.connect(tmp_path / "ticketapi-audit.db")) as db:
        told = [row["status_code"] for row in db.execute("SELECT status_code FROM api_audits ORDER BY id")]
    assert told == [201, 200, 200, 204]
    assert out.count('"name":"tuesday"') == 3


def first_lines(command, script, options, count):
    """Start a script that does not end by itself, and return the first lines that it says."""
    with subprocess.Popen([*command, script], stdout=subprocess.PIPE, start_new_session=True, **options) as process:
        try:
            return [process.stdout.readline() for _ in range(count)]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_stream_is_read_by_curl(shell):
    lines = first_lines(*shell("Events", which=1), count=2)
    assert lines[0] == "retry: 3000\n"
    assert re.fullmatch("id: [1-9][0-9]*\n", lines[1])  # it begins with what comes next


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node: apt-get install nodejs")
def test_the_stream_is_read_by_fetch(shell):
    command, script, options = shell("Events", "js", command=("node", "-e"))
    script += '; follow(process.env.TOKEN, (event) => console.log(event.id, event.type), "2");'
    assert first_lines(command, script, options, 2) == ["3 ticket.created\n", "4 ticket.created\n"]


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
