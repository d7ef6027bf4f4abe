"""Proof that dlt and Airbyte read the desk with the snippets of docs/connectors.md, as they stand there, against a real server.

Both are large, so they live in an environment of their own, whose Python CONNECTORS_PYTHON names; without it, in this one:

    python3 -m venv .venv/connectors && .venv/connectors/bin/pip install '.[connectors]'
    CONNECTORS_PYTHON=.venv/connectors/bin/python .venv/bin/pytest -m proof tests/proofs/test_connectors.py
"""

import json
import os
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from manual import snippets

import ticketapi

pytestmark = pytest.mark.proof
PAGE = "connectors.md"
PYTHON = Path(os.environ.get("CONNECTORS_PYTHON", sys.executable)).absolute()
TICKETS = 1000


def need(module, package):
    """Skip where the environment of the connectors lacks a package."""
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    if subprocess.run([PYTHON, "-c", found]).returncode:
        pytest.skip(f"needs {package}: pip install '.[connectors]', in an environment that CONNECTORS_PYTHON names")


@pytest.fixture(scope="module")
def dlt():
    """Dlt is there, with its destination."""
    need("dlt", "dlt[duckdb]")
    need("duckdb", "dlt[duckdb]")


@pytest.fixture(scope="module")
def airbyte_cdk():
    """Airbyte's CDK is there."""
    need("airbyte_cdk", "airbyte-cdk")


needs_dlt = pytest.mark.usefixtures("dlt")
needs_airbyte = pytest.mark.usefixtures("airbyte_cdk")


def desk_of(folder):
    """Open the desk of a folder."""
    return closing(ticketapi.open_database(folder / "ticketapi.db", "desk"))


def process(folder, count):
    """Close tickets of the desk in a folder."""
    with desk_of(folder) as db:
        ticketapi.process_tickets(db, count, ticketapi.wall_microseconds())


def ids(folder, status):
    """Return the ids of the open or the closed tickets on the desk."""
    with desk_of(folder) as db:
        return sorted(row["id"] for row in db.execute("SELECT id FROM tickets WHERE status = ?", (status,)))


def on_the_desk(folder):
    """Return the tickets that the desk has, as the export shows them, by id."""
    with closing(ticketapi.connect(folder / "ticketapi.db", ticketapi.READER)) as db:
        found = [json.loads(row["resource"]) for row in db.execute("SELECT resource FROM ticket_resources WHERE status > 0")]
    return {one["id"]: one for one in found}


def live(folder, turn):
    """Let the desk live a little: tickets are closed, changed, reopened and deleted, and new ones come."""
    with desk_of(folder) as db:
        now = ticketapi.wall_microseconds()
        ticketapi.generate_tickets(db, 5, now, seed=turn)
        ticketapi.process_tickets(db, 3, now)
        for number in range(1 + turn * 7, 1 + turn * 7 + 4):
            ticketapi.delete_ticket(db, number, now)
        ticketapi.update_ticket(db, 400 + turn, {"status": ticketapi.OPEN, "subject": f"Turn {turn}"}, now)


@contextmanager
def living(folder):
    """Let the desk live in a thread, as others write while a connector reads; it has lived twice at least."""
    ending, turns = threading.Event(), iter(range(1, 40))

    def go_on():
        for turn in turns:
            live(folder, turn)
            if ending.wait(0.2) and turn > 1:
                return

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def requests(folder, path):
    """Return (status, query) of the requests for a path, oldest first, from the audit log."""
    with closing(ticketapi.connect(folder / "ticketapi-audit.db")) as db:
        rows = db.execute("SELECT status_code, query FROM api_audits WHERE path = ? ORDER BY id", (path,)).fetchall()
    return [(row["status_code"], json.loads(row["query"])) for row in rows]


class Client:
    """A folder of a client's own, in which snippets of the page run against a server."""

    def __init__(self, served, folder, token):
        """Make the folder; what a tool keeps for itself stays in it, and it calls nobody else."""
        self.served, self.folder, self.token = served, folder, token
        folder.mkdir()
        self.environ = {
            "HOME": str(folder),
            "DLT_DATA_DIR": str(folder / "dlt"),
            "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",
            "TOKEN": token,
            "RUNTIME__DLTHUB_TELEMETRY": "false",
        }

    def here(self, snippet):
        """Return a snippet with this server's address."""
        return snippet.replace("http://127.0.0.1:8000", self.served.url)

    def run(self, *command):
        """Run a program and return what it says; it must succeed."""
        done = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def exhaust(self):
        """Use up the bucket of the client's user."""
        while self.served.get("/api/stats", self.token).status == 200:
            pass

    def python(self, snippet):
        """Run a snippet in Python."""
        return self.run(PYTHON, "-c", self.here(snippet))


@pytest.fixture
def client(serve, tmp_path):
    """A client of a desk with many closed tickets and a few open ones."""
    with desk_of(tmp_path) as db:
        now = ticketapi.wall_microseconds()
        ticketapi.generate_history(db, TICKETS, 30 * ticketapi.DAY, now, seed=7)
        token = ticketapi.create_token(db, "connector@example.com", "connector", ["read:tickets"], 0, now)["token"]
    return Client(serve("--no-scheduler"), tmp_path / "client", token)


# dlt ---------------------------------------------------------------------------------------------


def loaded(client, table):
    """Return the ids in a table that dlt has loaded, sorted."""
    rows = f"duckdb.connect('copy.duckdb').sql('SELECT id FROM desk.{table}').fetchall()"
    program = f"import duckdb, json; print(json.dumps({rows}))"
    return sorted(row[0] for row in json.loads(client.run(PYTHON, "-c", program)))


@needs_dlt
def test_dlt_finds_the_pagination_by_itself(client, tmp_path):
    auto, _ = snippets(PAGE, "dlt", "python")
    said = client.python(auto)
    assert "no failed jobs" in said
    with desk_of(tmp_path) as db:
        customers = [
            row["id"] for row in db.execute("SELECT id FROM users WHERE id < ? ORDER BY id", (ticketapi.FIRST_OWNER_ID,))
        ]
    assert loaded(client, "customers") == customers
    assert loaded(client, "open_tickets") == ids(tmp_path, ticketapi.OPEN)
    assert "Fallback `paginator`" in said  # of the list on one page, as the manual says


@needs_dlt
def test_dlt_follows_the_links_of_a_walk_by_cursor_with_auto(client, tmp_path):
    auto, _ = snippets(PAGE, "dlt", "python")
    client.python(auto.replace("tickets/open", "tickets/closed").replace("open_tickets", "closed_tickets"))
    assert loaded(client, "closed_tickets") == ids(tmp_path, ticketapi.CLOSED)
    walked = requests(tmp_path, "api/tickets/closed")
    assert len(walked) == 5
    assert all(status == 200 and query["per_page"] == "200" and "page" not in query for status, query in walked)


def loaded_tickets(client):
    """Return the tickets that dlt has loaded, by id: what a row of them says."""
    columns = "id, subject, content, status, user__id, user__email"
    rows = f"duckdb.connect('copy.duckdb').sql('SELECT {columns} FROM desk.tickets').fetchall()"
    program = f"import duckdb, json; print(json.dumps({rows}))"
    return {row[0]: row for row in json.loads(client.run(PYTHON, "-c", program))}


def as_rows(tickets):
    """Return tickets of the desk as rows of that kind."""
    told = ("id", "subject", "content", "status")
    return {number: [*(one[name] for name in told), one["user"]["id"], one["user"]["email"]] for number, one in tickets.items()}


@needs_dlt
def test_dlt_copies_a_desk_that_changes_meanwhile_deletes_too(client, tmp_path):
    _, export = snippets(PAGE, "dlt", "python")
    with living(tmp_path):
        client.python(export)
        client.python(export)
    first = requests(tmp_path, "api/tickets/export")
    client.python(export)
    assert loaded_tickets(client) == as_rows(on_the_desk(tmp_path))
    assert loaded_tickets(client).keys().isdisjoint({8, 15})  # they were deleted
    assert all(status == 200 and query["per_page"] == "200" for status, query in first)
    assert len(requests(tmp_path, "api/tickets/export")) == len(first) + 1  # it reads what is new alone


@needs_dlt
def test_dlt_takes_the_latest_of_tickets_that_come_twice_in_a_walk(client, tmp_path):
    _, export = snippets(PAGE, "dlt", "python")
    with desk_of(tmp_path) as db:
        writer = ticketapi.create_token(db, "writer@example.com", "t", ["write:tickets"], 0, ticketapi.wall_microseconds())[
            "token"
        ]
    program = export.replace(
        "        yield page\n",
        """        yield page
        for one in page[:20] if not place.get("after") else ():
            address, headers = f"{desk.base_url}tickets/{one['id']}", {"Authorization": "Bearer WRITER"}
            assert desk.session.delete(address, headers=headers).status_code == 204
""".replace("WRITER", writer),
    )
    assert program != export
    client.python(program)
    assert loaded_tickets(client) == as_rows(on_the_desk(tmp_path))


@needs_dlt
def test_dlt_waits_as_long_as_a_429_asks(client, tmp_path):
    auto, _ = snippets(PAGE, "dlt", "python")
    client.exhaust()
    client.python(auto)
    assert 429 in [status for status, _ in requests(tmp_path, "api/tickets/open") + requests(tmp_path, "api/users")]
    assert loaded(client, "open_tickets") == ids(tmp_path, ticketapi.OPEN)


# Airbyte -----------------------------------------------------------------------------------------


@pytest.fixture
def airbyte(client):
    """A client's folder with the manifest and the catalog of the page."""
    [manifest], [catalog] = snippets(PAGE, "Airbyte", "yaml"), snippets(PAGE, "Airbyte", "json")
    (client.folder / "manifest.yaml").write_text(manifest)
    (client.folder / "catalog.json").write_text(catalog)
    return client


def read(airbyte, more=""):
    """Run the commands of the page; return the records by stream, and the last state of each stream."""
    [commands] = snippets(PAGE, "Airbyte", "sh")
    assert '"SUCCEEDED"' in airbyte.run("sh", "-euc", airbyte.here(commands).replace(" >messages", f" {more} >messages"))
    messages = [json.loads(line) for line in (airbyte.folder / "messages.jsonl").read_text().splitlines()]
    records = {"open_tickets": [], "tickets": []}
    for message in messages:
        if message["type"] == "RECORD":
            records[message["record"]["stream"]].append(message["record"]["data"])
    states = {one["state"]["stream"]["stream_descriptor"]["name"]: one["state"] for one in messages if one["type"] == "STATE"}
    return records, list(states.values())


def dedup(copy, records):
    """Put records into a copy as a destination does that appends and takes out doubles and what was deleted."""
    for record in records:
        copy.pop(record["id"], None)
        if record.pop("_ab_cdc_deleted_at", None) is None:
            copy[record["id"]] = {name: record[name] for name in record if name not in ("closed_at", "deleted_at")}


@needs_airbyte
def test_airbyte_copies_a_desk_that_changes_meanwhile_deletes_too(airbyte, tmp_path):
    copy, more = {}, ""
    with living(tmp_path):
        for _ in range(2):
            records, states = read(airbyte, more)
            dedup(copy, records["tickets"])
            (airbyte.folder / "state.json").write_text(json.dumps(states))
            more = "--state state.json"
    records, _ = read(airbyte, more)
    dedup(copy, records["tickets"])
    assert copy == on_the_desk(tmp_path)
    assert copy.keys().isdisjoint({8, 15})  # they were deleted
    assert sorted(one["id"] for one in records["open_tickets"]) == ids(tmp_path, ticketapi.OPEN)
    walked = requests(tmp_path, "api/tickets/export")
    assert walked[0][1] == {"per_page": "200", "start_time": "1970-01-01T00:00:00.000000Z"}
    assert walked[-1][1]["start_time"] > "2025"  # a later run begins later


@needs_airbyte
def test_airbyte_waits_as_long_as_a_429_asks(airbyte, tmp_path):
    airbyte.exhaust()
    records, _ = read(airbyte)
    assert sorted(one["id"] for one in records["open_tickets"]) == ids(tmp_path, ticketapi.OPEN)
    assert "Retrying in 2.0 seconds" in (airbyte.folder / "messages.jsonl").read_text()
