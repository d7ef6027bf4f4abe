"""`ticketapi snapshot` and `serve --reset`: what they do and print, and the one line that says what cannot be."""

import json
import subprocess
import sys
from contextlib import closing

import pytest
from conftest import NOON, make_served
from kept import ask, fill, folder_of, gone_back

import ticketapi


@pytest.fixture
def desk(tmp_path, run):
    """A desk with some of everything."""
    path = tmp_path / "desk.db"
    fill(path)
    return path


@pytest.fixture
def snapshot(run, desk):
    """Return a function that runs a command on the desk."""
    return lambda *words: run("snapshot", *words, "--db", "desk.db")


def more(desk):
    """Make a ticket."""
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), seed=1)


def test_each_command_says_what_it_did(snapshot, desk):
    state = gone_back(desk)
    code, out, err = snapshot("save", "monday")
    tickets = sum(count for (count,) in ask(desk, "SELECT tickets FROM ticket_counts"))
    size = ticketapi.size_text((folder_of(desk) / "monday.db").stat().st_size)
    assert (code, out, err) == (0, f"Saved monday: {tickets} tickets, {size}\n", "")
    more(desk)
    assert snapshot("restore", "monday") == (0, f"Restored monday: {tickets} tickets, {size}\n", "")
    assert gone_back(desk) == state
    title, line = snapshot("list")[1].splitlines()
    assert title.split() == ["NAME", "CREATED", "AT", "TICKETS", "SIZE"]
    assert line.split()[0] == "monday"
    assert line.split()[2:] == [str(tickets), *size.split()]
    assert snapshot("delete", "monday") == (0, f"Deleted monday: {tickets} tickets, {size}\n", "")
    assert snapshot("list") == (0, "No snapshots\n", "")


def test_json_is_what_the_api_shows(snapshot, desk):
    saved = json.loads(snapshot("save", "monday", "--json")[1])
    assert list(saved) == ["name", "created_at", "size", "tickets"]
    assert json.loads(snapshot("restore", "monday", "--json")[1]) == saved
    assert json.loads(snapshot("list", "--json")[1]) == [saved]
    assert json.loads(snapshot("delete", "monday", "--json")[1]) == saved
    assert json.loads(snapshot("list", "--json")[1]) == []


def test_a_name_that_is_taken_is_replaced_with_force_alone(snapshot, desk):
    snapshot("save", "monday")
    more(desk)
    message = "ticketapi: The name has already been taken. --force replaces that snapshot.\n"
    assert snapshot("save", "monday") == (1, "", message)
    code, out, _ = snapshot("save", "monday", "--force")
    assert (code, out[:13]) == (0, "Saved monday:")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("restore", "none"), 1, "There is no snapshot with the name none."),
        (("delete", "none"), 1, "There is no snapshot with the name none."),
        (("save", "../x"), 2, "argument NAME: '../x' is no name of a snapshot; write up to 64 letters"),
        (("save", ""), 2, "argument NAME: '' is no name of a snapshot"),
        (("save",), 2, "the following arguments are required: NAME"),
        (("store", "x"), 2, "'store' is no command of snapshot; did you mean `snapshot restore`?"),
        (("restore", "x", "--force"), 2, "snapshot restore has no option --force"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(snapshot, words, code, message):
    found, out, err = snapshot(*words)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(f"ticketapi: {message}")


def test_where_there_is_no_desk_nothing_is_made(run, tmp_path):
    for words in (("save", "x"), ("restore", "x"), ("delete", "x"), ("list",)):
        code, out, err = run("snapshot", *words, "--db", "none.db")
        assert (code, out, err) == (1, "", "ticketapi: there is no desk at none.db; --db names its file\n")
    assert list(tmp_path.iterdir()) == []


def test_without_a_word_after_it_the_help_is_shown(run):
    code, _, err = run("snapshot")
    assert code == 2
    assert "Keep a desk, and bring it back." in err


def test_what_is_damaged_is_said_and_can_be_deleted(snapshot, desk):
    snapshot("save", "monday")
    (folder_of(desk) / "monday.db").write_bytes(b"x" * 5000)
    assert snapshot("restore", "monday") == (1, "", "ticketapi: The snapshot monday is damaged.\n")
    assert snapshot("list")[1].splitlines()[1].split()[2] == "-"
    assert snapshot("delete", "monday") == (0, "Deleted monday: 0 tickets, 5.0 kB\n", "")


def test_serve_reset_restores_before_it_listens_each_time(serve, desk, snapshot, tmp_path):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        token = ticketapi.create_token(db, "a@example.com", "t", ["*"], 0, ticketapi.wall_microseconds())["token"]
    snapshot("save", "monday")
    state = gone_back(desk)
    for way in (("--reset", "monday"), ()):
        more(desk)
        served = serve("--db", desk, "--no-scheduler", *way, env={} if way else {"TICKETAPI_RESET": "monday"})
        tickets = served.get("/api/stats", token).json["total_tickets"]
        assert tickets == sum(count for (count,) in ask(desk, "SELECT tickets FROM ticket_counts"))
        code, _, err = served.stop()
        assert code == 0
        assert "Restored monday\n" in err
        assert gone_back(desk) == state


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("none", 1, "There is no snapshot with the name none."),
        ("../x", 2, "--reset: '../x' is no name of a snapshot"),
        ("bad", 1, "The snapshot bad is damaged."),
    ],
)
def test_serve_with_what_cannot_be_restored_does_not_begin(desk, tmp_path, name, code, message):
    folder_of(desk).mkdir()
    (folder_of(desk) / "bad.db").write_bytes(b"bad")
    state = gone_back(desk)
    command = [sys.executable, "-m", "ticketapi", "serve", "--db", "desk.db", "--port", "0", "--reset", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"ticketapi: {message}")
    assert gone_back(desk) == state


def test_a_desk_in_postgresql_names_what_to_use_instead(databases, run, clock, tmp_path):
    place = databases.fresh()
    message = "a desk in PostgreSQL has no snapshots; copy the database: createdb -T DESK COPY, or pg_dump"
    with closing(ticketapi.open_database(place, "desk")) as db:
        token = ticketapi.create_token(db, "a@example.com", "t", ["control:desk"], 0, NOON)["token"]
    for words in (("save", "x"), ("restore", "x"), ("delete", "x"), ("list",)):
        assert run("snapshot", *words, "--db", place.url) == (1, "", f"ticketapi: {message}\n")
    with ticketapi.ExitStack() as stack:
        api = make_served(ticketapi.Settings(db=place, rate=0), clock, stack)
        asked = [("GET", ""), ("GET", "/x"), ("DELETE", "/x"), ("POST", "/x/restore")]
        answers = [api.request(method, f"/api/snapshots{path}", token=token) for method, path in asked]
        answers.append(api.post("/api/snapshots", {"name": "x"}, token=token))
        assert [(one.status, one.json) for one in answers] == [(501, {"message": message})] * 5
    assert not [path for path in tmp_path.iterdir() if "snapshots" in path.name]
