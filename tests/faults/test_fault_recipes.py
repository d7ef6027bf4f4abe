"""What the manual says of faults: its lines run as they stand there, and docs/faults.json does what its table says."""

import json
import os
import subprocess
import sys
import urllib.error
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT
from manual import code, section, snippets, table

import ticketapi

PAGE, TITLE = "simulation.md", "Faults"
EXAMPLES = ROOT / "docs" / "faults.json"
PROGRAMS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
TICKET = json.dumps({"subject": "A", "content": "B", "user": {"name": "Ana", "email": "ana@example.com"}}).encode()


@pytest.fixture
def token(tmp_path):
    """The text of a token that may do everything, on a desk with tickets in the folder of the test."""
    now = ticketapi.wall_microseconds()
    with closing(ticketapi.open_database(tmp_path / "ticketapi.db", "desk")) as db:
        ticketapi.generate_tickets(db, 300, now, seed=7)
        ticketapi.process_tickets(db, 100, now)
        return ticketapi.create_token(db, "a@example.com", "t", ["*"], 0, now)["token"]


@pytest.fixture
def examples(serve, token):
    """A server with the faults of the file that the page shows."""
    return serve("--faults", EXAMPLES, "--no-scheduler", "--rate", "0")


def audited(folder):
    """Return method, route and status of the requests in the audit log."""
    with closing(ticketapi.connect(folder / "ticketapi-audit.db")) as db:
        rows = db.execute("SELECT method, route_name, status_code FROM api_audits ORDER BY id")
        return [tuple(row) for row in rows]


def run_lines(served, folder, which, **more):
    """Run a snippet of the page against a server, and return what it prints."""
    script = snippets(PAGE, TITLE, "sh")[which].replace("http://127.0.0.1:8000", served.url)
    environ = {**os.environ, "PATH": PROGRAMS, **more}
    return subprocess.run(["sh", "-uc", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=60)


def test_the_lines_that_put_and_end_faults_do_what_they_say(serve, tmp_path, token):
    done = run_lines(serve("--no-scheduler"), tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert audited(tmp_path) == [
        *(("PUT", "faults.replace", 200), ("GET", "stats", 429), ("GET", "faults", 200), ("DELETE", "faults.destroy", 204))
    ]
    assert "Retry-After: 2" in done.stdout
    assert '"requests":1,"hits":1' in done.stdout


def test_the_lines_of_one_request_alone_do_what_they_say(serve, tmp_path, token):
    done = run_lines(serve("--no-scheduler"), tmp_path, 1, TOKEN=token)
    assert done.returncode == 56  # of curl: failure in receiving network data, the last line's reset
    assert "HTTP/1.1 503 Service Unavailable" in done.stdout
    assert done.stdout.endswith('{"message":"Serv')
    assert audited(tmp_path) == [("GET", "stats", 503), ("GET", "stats", 200)]


def test_the_table_of_the_examples_is_the_file():
    shown = [json.loads(code(row[0])) for row in table(section(PAGE, TITLE))]
    assert shown == json.loads(EXAMPLES.read_text())["faults"]


def test_the_table_of_fields_has_those_of_the_code_and_no_other():
    _, _, text = section(PAGE, TITLE).partition("A rule says")
    rows = {code(row[0]): row[1] for row in table(text)}
    assert list(rows) == ["route", *ticketapi.CONDITIONS, *ticketapi.EFFECTS]
    assert "ten parts over five seconds" in rows["body"]
    assert (ticketapi.SLOW_PARTS, ticketapi.SLOW_SECONDS, ticketapi.MAX_LATENCY) == (10, 5, 60)
    assert f"64 KiB and {ticketapi.MAX_RULES} rules" in section(PAGE, TITLE)


def test_the_examples_are_valid_by_the_description_of_the_api():
    from jsonschema import Draft202012Validator

    schemas = json.loads((ROOT / "openapi.json").read_text())
    plan = {**schemas["components"]["schemas"]["FaultPlan"], "components": schemas["components"]}
    Draft202012Validator(plan).validate(json.loads(EXAMPLES.read_text()))
    for wrong in (
        {"route": "*"},
        {"route": "*", "retry_after": 2, "body": "slow"},
        {"route": "*", "reset": True, "status": 503},
    ):
        assert not Draft202012Validator(plan).is_valid({"faults": [wrong]})


# What clients meet -------------------------------------------------------------------------------


def test_three_times_a_429_with_and_without_retry_after(examples, token):
    for path, wait in (("/api/tickets/open", "2"), ("/api/tickets/closed", None)):
        answers = [examples.get(path, token) for _ in range(4)]
        assert [answer.status for answer in answers] == [429, 429, 429, 200]
        assert [answer.headers.get("retry-after") for answer in answers] == [wait, wait, wait, None]


def test_one_502_in_fifty_at_the_same_places_in_every_run(examples, token):
    found = [examples.get("/api/tickets/1", token).status for _ in range(200)]
    assert Counter(found).keys() == {200, 502}
    assert 1 <= found.count(502) <= 10
    faults = ticketapi.Faults(*ticketapi.read_faults(json.loads(EXAMPLES.read_text()), ticketapi.FAULTY_ROUTES, 0))
    again = [faults.find(("tickets.show", "GET", 1), 0).get("status", 200) for _ in range(200)]
    assert found == again
    assert found.index(502) == 12


def test_one_body_in_ten_is_cut(examples, token):
    whole = cut = 0
    for _ in range(60):
        try:
            whole += bool(examples.get("/api/tickets/export", token).json)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise AssertionError(error) from error
        except Exception as error:
            assert type(error).__name__ == "IncompleteRead"
            cut += 1
    assert whole + cut == 60
    assert 1 <= cut <= 15


def test_a_ticket_is_made_whose_answer_is_lost(examples, token):
    headers = {"Idempotency-Key": "once"}
    with pytest.raises(OSError):
        examples.get("/api/tickets", token, headers, "POST", TICKET)
    again = examples.get("/api/tickets", token, headers, "POST", TICKET)
    assert (again.status, again.headers["idempotent-replayed"], again.json["data"]["id"]) == (201, "true", 301)


def test_an_outage_is_told_late_and_deletes_nothing(examples, token):
    answer = examples.get("/api/tickets/1", token, method="DELETE")
    assert (answer.status, answer.headers["retry-after"]) == (503, "30")
    assert examples.get("/api/faults", token).json["data"]["faults"][-1]["hits"] == 1
    assert examples.get("/up").json["faults"] == 8
