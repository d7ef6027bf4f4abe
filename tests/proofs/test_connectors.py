"""Proof that dlt and Airbyte read the desk with the snippets of docs/connectors.md, as they stand there, against a real server.

Both are large, so they live in an environment of their own, whose Python CONNECTORS_PYTHON names; without it, in this one:

    python3 -m venv .venv/connectors && .venv/connectors/bin/pip install '.[connectors]'
    CONNECTORS_PYTHON=.venv/connectors/bin/python .venv/bin/pytest -m proof tests/proofs/test_connectors.py
"""

import json
import os
import subprocess
import sys
from contextlib import closing
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


@needs_dlt
def test_dlt_walks_by_cursor_and_ends_early_in_the_second_run(client, tmp_path):
    _, explicit = snippets(PAGE, "dlt", "python")
    assert "Fallback" not in client.python(explicit)
    assert loaded(client, "closed_tickets") == ids(tmp_path, ticketapi.CLOSED)
    first = requests(tmp_path, "api/tickets/closed")
    assert ["cursor" in query for _, query in first] == [False, True, True, True, True]
    process(tmp_path, 7)
    client.python(explicit)
    assert loaded(client, "closed_tickets") == ids(tmp_path, ticketapi.CLOSED)
    assert loaded(client, "open_tickets") == ids(tmp_path, ticketapi.OPEN)
    assert len(requests(tmp_path, "api/tickets/closed")) == len(first) + 1


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
    records = {"open_tickets": [], "closed_tickets": []}
    for message in messages:
        if message["type"] == "RECORD":
            records[message["record"]["stream"]].append(message["record"]["data"]["id"])
    states = {one["state"]["stream"]["stream_descriptor"]["name"]: one["state"] for one in messages if one["type"] == "STATE"}
    return records, list(states.values())


@needs_airbyte
def test_airbyte_reads_both_lists_and_ends_early_in_the_second_run(airbyte, tmp_path):
    records, states = read(airbyte)
    assert sorted(records["open_tickets"]) == ids(tmp_path, ticketapi.OPEN)
    assert sorted(records["closed_tickets"]) == ids(tmp_path, ticketapi.CLOSED)
    walked = requests(tmp_path, "api/tickets/closed")
    assert len(walked) == 5
    assert all(status == 200 and query["per_page"] == "200" and "page" not in query for status, query in walked)
    newest = records["closed_tickets"][0]
    before = set(records["closed_tickets"])
    process(tmp_path, 7)
    (airbyte.folder / "state.json").write_text(json.dumps(states))
    records, _ = read(airbyte, "--state state.json")
    assert set(records["closed_tickets"]) == set(ids(tmp_path, ticketapi.CLOSED)) - before | {newest}
    assert len(requests(tmp_path, "api/tickets/closed")) == len(walked) + 1


@needs_airbyte
def test_airbyte_waits_as_long_as_a_429_asks(airbyte, tmp_path):
    airbyte.exhaust()
    records, _ = read(airbyte)
    assert sorted(records["open_tickets"]) == ids(tmp_path, ticketapi.OPEN)
    assert "Retrying in 2.0 seconds" in (airbyte.folder / "messages.jsonl").read_text()
