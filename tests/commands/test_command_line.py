"""Commands print their result alone to stdout, tell the rest in one line each, and exit 0 (done), 1 (failed) or 2 (usage)."""

import json
import logging
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import NOON, SECOND, wait_for

import ticketapi

PROGRAM = (sys.executable, "-m", "ticketapi")
DAY = 86_400
COMMANDS = {command.words: command for command in ticketapi.COMMANDS}
START = ticketapi.parse_moment("2025-01-01T00:00:00Z")
NEEDED = {"audit prune": ("--older-than", "90d")}  # options that it cannot do without
CALLS = {
    **{f"snapshot {word}": f"snapshot {word} monday" for word in ("save", "restore", "delete")},
    "clock speed": "clock speed 60",
    "clock advance": "clock advance 1d",
    "clock set": "clock set 2025-02-01T00:00:00Z",
    "token revoke": "token revoke 1",
    "webhook create": "webhook create http://127.0.0.1:9/",
    **{f"webhook {word}": f"webhook {word} 1" for word in ("delete", "test", "deliveries")},
    "backup": "backup copy.db",
    "copy": "copy other.db",
    "import": "import tickets.csv",
}  # a command with what it cannot do without


def call(words):
    """Return the arguments of a valid call of a command."""
    return CALLS.get(words, words).split()


def assert_refused(result, code, *words):
    """Check that a command failed with nothing on stdout and one line on stderr that holds some words."""
    found, out, err = result
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("ticketapi: ")
    assert err.endswith("\n")
    assert not [word for word in words if word not in err]


def files(folder):
    """Return what lies in a folder, with its content."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def counted(path):
    """Return how many tickets are open and closed, by the rows."""
    with closing(ticketapi.connect(path)) as db:
        return tuple(db.execute("SELECT count(*) FROM tickets WHERE status = ?", (status,)).fetchone()[0] for status in (1, 2))


def process(*arguments, **more):
    """Start a command as a process of its own, which buffers its output as it does for everybody.

    One that is to be interrupted is not measured: coverage locks up when that hits it at the wrong moment.
    """
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED" and "TICKETAPI" not in name}
    if not more.pop("measured", True):
        environ = {name: value for name, value in environ.items() if not name.startswith("COVERAGE")}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **more}
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], env=environ, text=True, **streams)


# generate and process ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "printed", "tickets"),
    [
        ((), "Generated 1 ticket\n", 1),
        (("--count", "1"), "Generated 1 ticket\n", 1),
        (("--count", "3"), "Generated 3 tickets\n", 3),
        (("--count=1001",), "Generated 1001 tickets\n", 1001),
    ],
)
def test_generate_says_how_many_tickets_came(run, tmp_path, arguments, printed, tickets):
    assert run("generate", *arguments) == (0, printed, "")
    assert counted(tmp_path / "ticketapi.db") == (tickets, 0)


def test_process_says_which_tickets_it_closed(run, tmp_path):
    run("generate", "--count", 4)
    assert run("process", "--count", 3) == (0, "Processed 3 tickets\nTicket IDs: 1, 2, 3\n", "")
    assert run("process") == (0, "Processed 1 ticket\nTicket ID: 4\n", "")
    assert run("process") == (0, "No tickets to process\n", "")
    assert counted(tmp_path / "ticketapi.db") == (0, 4)


def test_process_closes_what_there_is_and_names_every_id(run):
    run("generate", "--count", 1002)
    ids = ", ".join(map(str, range(1, 1003)))
    assert run("process", "--count", 2000) == (0, f"Processed 1002 tickets\nTicket IDs: {ids}\n", "")


@pytest.mark.parametrize("count", ["0", "-1", "-999999999"])
def test_a_count_below_one_is_invalid_for_generate_and_nothing_to_do_for_process(run, tmp_path, count):
    assert_refused(run("generate", "--count", count), 2, "Invalid ticket count")
    assert files(tmp_path) == {}
    run("generate")
    assert run("process", "--count", count) == (0, "No tickets to process\n", "")
    assert counted(tmp_path / "ticketapi.db") == (1, 0)


def test_the_same_seed_gives_the_same_tickets(run, tmp_path):
    for name, seed in (("a.db", 7), ("b.db", 7), ("c.db", 8)):
        assert run("generate", "--count", 20, "--seed", seed, "--db", name)[0] == 0
    told = []
    for name in ("a.db", "b.db", "c.db"):
        with closing(ticketapi.connect(tmp_path / name)) as db:
            told.append([tuple(row) for row in db.execute("SELECT user_id, subject, content FROM tickets ORDER BY id")])
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize("seed", [0, 10**18 - 1, 10**18, 10**18 + 1, 2**63 - 1])
def test_a_seed_is_taken_to_the_last_digit(seed):
    assert resolve("generate", "--seed", str(seed)).seed == seed


def test_a_history_lies_within_its_period_and_is_closed_but_for_a_backlog(run, tmp_path):
    before = ticketapi.wall_microseconds()
    code, out, err = run("generate", "--count", 500, "--since", "30d", "--seed", 1)
    after = ticketapi.wall_microseconds()
    waiting, closed = counted(tmp_path / "ticketapi.db")
    assert (code, out.splitlines()[0], err) == (0, "Generated 500 tickets", "")
    assert f"{closed} tickets" in out.splitlines()[1]
    assert waiting + closed == 500
    assert 0 < waiting < 100
    with closing(ticketapi.connect(tmp_path / "ticketapi.db")) as db:
        times = [ticketapi.parse_time(row[0]) for row in db.execute("SELECT created_at FROM tickets ORDER BY id")]
    assert before - 30 * DAY * SECOND <= times[0]
    assert times[-1] <= after
    assert times == sorted(set(times))


def test_a_history_cannot_begin_before_the_newest_ticket(run, tmp_path):
    run("generate", "--count", 3)
    before = counted(tmp_path / "ticketapi.db")
    assert_refused(run("generate", "--count", 5, "--since", "1d"), 1, "--since", "newest ticket", "another --db")
    assert counted(tmp_path / "ticketapi.db") == before


def test_too_many_tickets_for_a_short_period_are_an_invalid_count(run, tmp_path):
    assert_refused(run("generate", "--count", 500_001, "--since", "1s"), 2, "Invalid ticket count", "--since")
    assert files(tmp_path) == {}


def test_a_history_may_be_as_short_as_its_option_allows(run, tmp_path):
    assert run("generate", "--count", 10, "--since", "1s")[0] == 0
    assert sum(counted(tmp_path / "ticketapi.db")) == 10


# token -------------------------------------------------------------------------------------------


def test_the_token_alone_is_on_stdout_and_what_it_is_on_stderr(run):
    code, out, err = run("token", "create")
    assert code == 0
    assert re.fullmatch(r"tkt_[0-9A-Za-z]{46}\n", out)
    assert len(err.splitlines()) == 1
    assert out.strip() not in err


def test_a_token_works_until_it_is_revoked(run, api, desk):
    text = run("token", "create", "--db", desk)[1].strip()
    assert api.get("/api/stats", token=text).status == 200
    code, out, _ = run("token", "revoke", 1, "--db", desk)
    assert (code, "1" in out) == (0, True)
    assert api.get("/api/stats", token=text).status == 401


def test_a_token_may_what_its_abilities_say(run, api, desk):
    texts = [
        run("token", "create", "--db", desk, *rest)[1].strip()
        for rest in (["--ability", "read:audits", "--ability", "*"], ["--ability", "read:audits"])
    ]
    assert [api.get("/api/stats", token=text).status for text in texts] == [200, 403]


def test_a_token_expires_when_it_should(run):
    record = json.loads(run("token", "create", "--expires", "12h", "--json")[1])
    assert ticketapi.parse_time(record["expires_at"]) - ticketapi.parse_time(record["created_at"]) == 12 * 3600 * SECOND
    assert abs(ticketapi.parse_time(record["created_at"]) - ticketapi.wall_microseconds()) < 60 * SECOND


def test_tokens_belong_to_one_operator_or_to_the_user_named(run):
    create = ("token", "create", "--json")
    one, two = (json.loads(run(*create)[1]) for _ in range(2))
    ann, again = (json.loads(run(*create, "--user", user)[1]) for user in ("ann@example.com", "Ann@Example.com"))
    assert one["user_id"] == two["user_id"] != ann["user_id"] == again["user_id"]


def test_the_list_names_every_token_and_no_secret(run):
    secrets = [run("token", "create", "--name", name, "--user", "ann@example.com")[1].strip() for name in ("one", "two")]
    code, out, err = run("token", "list")
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    assert header == header.upper()
    assert [("one" in line, "two" in line, "ann@example.com" in line) for line in lines] == [
        (True, False, True),
        (False, True, True),
    ]
    for secret in secrets:
        assert secret not in out
        assert ticketapi.hash_token(secret) not in out


def test_a_desk_without_tokens_lists_none(run):
    code, out, err = run("token", "list")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1


def test_revoking_an_unknown_token_fails_and_says_where_to_look(run):
    run("token", "create")
    assert_refused(run("token", "revoke", 9), 1, "9", "token list")
    assert len(json.loads(run("token", "list", "--json")[1])) == 1


@pytest.mark.parametrize("token_id", [10**18, 2**63 - 1])
def test_an_unknown_token_is_named_to_the_last_digit(run, token_id):
    assert_refused(run("token", "revoke", token_id), 1, f" {token_id};")


@pytest.mark.parametrize("token_id", ["0", "-1", "abc", "1.5", "", "9" * 25, "1\n2"])
def test_what_is_no_token_id_is_a_usage_error(run, tmp_path, token_id):
    assert_refused(run("token", "revoke", token_id), 2, "ID")
    assert files(tmp_path) == {}


def test_prune_deletes_expired_tokens_alone(run, db, desk):
    for expires in (1, 2, 0):
        ticketapi.create_token(db, "ann@example.com", "x", ["*"], expires, NOON)
    run("token", "create", "--expires", "1h", "--db", desk)
    code, out, err = run("token", "prune", "--db", desk)
    assert (code, err) == (0, "")
    assert re.search(r"\b2 tokens\n", out)
    ticketapi.create_token(db, "ann@example.com", "x", ["*"], 1, NOON)
    assert re.search(r"\b1 token\n", run("token", "prune", "--db", desk)[1])
    assert [token["id"] for token in json.loads(run("token", "list", "--json", "--db", desk)[1])] == [3, 4]


# --json ------------------------------------------------------------------------------------------


def json_of(result):
    """Return the one JSON document on stdout of a command that was done and had nothing else to say."""
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def test_generate_and_process_report_as_objects(run):
    assert json_of(run("process", "--json")) == {"processed": 0, "ticket_ids": []}
    assert json_of(run("generate", "--count", 3, "--json")) == {"generated": 3, "closed": 0}
    assert json_of(run("process", "--count", 2, "--json")) == {"processed": 2, "ticket_ids": [1, 2]}


def test_a_history_reports_how_many_it_closed(run, tmp_path):
    report = json_of(run("generate", "--count", 200, "--since", "30d", "--json"))
    assert report == {"generated": 200, "closed": counted(tmp_path / "ticketapi.db")[1]}


def test_tokens_are_reported_with_the_names_of_their_columns(run):
    assert json_of(run("token", "list", "--json")) == []
    made = json_of(run("token", "create", "--name", "n", "--user", "ann@example.com", "--expires", "1d", "--json"))
    assert list(made) == ["id", "user_id", "token", "name", "abilities", "expires_at", "created_at"]
    (listed,) = json_of(run("token", "list", "--json"))
    assert list(listed) == ["id", "user_id", "email", "name", "abilities", "last_used_at", "expires_at", "created_at"]
    shared = made.keys() & listed.keys()
    assert {name: made[name] for name in shared} == {name: listed[name] for name in shared}
    assert (listed["email"], listed["abilities"], listed["last_used_at"]) == ("ann@example.com", ["read:tickets"], None)
    assert json_of(run("token", "prune", "--json")) == {"pruned": 0}
    assert json_of(run("token", "revoke", 1, "--json")) == {"revoked": 1}


def test_names_of_any_script_come_back_as_they_were(run):
    json_of(run("token", "create", "--name", "Zoë 東京 😀", "--json"))
    assert json_of(run("token", "list", "--json"))[0]["name"] == "Zoë 東京 😀"
    assert "Zoë 東京 😀" in run("token", "list")[1]


# Options: flag, variable, default ----------------------------------------------------------------

# For each option: a flag's text and what it means, a variable's text and what that means.
VALUES = {
    "db": ("a.db", Path("a.db"), "b.db", Path("b.db")),
    "reset": ("monday", "monday", "tuesday", "tuesday"),
    "clock": ("2025-01-01,60x", (START, 60_000), "now", (None, 1000)),
    "json": (True, True, "1", True),
    "host": ("::1", "::1", "0.0.0.0", "0.0.0.0"),
    "port": ("0", 0, "65535", 65_535),
    "rate": ("0", 0, "1000", 1000),
    "threads": ("2", 2, "64", 64),
    "no_scheduler": (True, True, "yes", True),
    "generate_every": ("90s", 90, "0", 0),
    "process_every": ("12h", 12 * 3600, "30d", 30 * DAY),
    "profile": ("busy", ticketapi.find_profile("busy"), "steady", ticketapi.find_profile("steady")),
    "cors_origin": ("https://a.example.com", ("https://a.example.com",), "http://b:1, null://c", ("http://b:1", "null://c")),
    "trusted_proxy": ("10.0.0.1", "10.0.0.1", "::1", "::1"),
    "log_level": ("debug", "debug", "error", "error"),
    "demo": (True, True, "on", True),
    "faults": ("a.json", "a.json", "b.json", "b.json"),
    "count": ("7", 7, "8", 8),
    "seed": ("0", 0, "42", 42),
    "since": ("90d", 90 * DAY, "5m", 300),
    "tickets_limit": ("0", 0, "1000", 1000),
    "watch": (True, True, "1", True),
    "name": ("a name", "a name", "other", "other"),
    "user": ("Ann@Example.com", "ann@example.com", "b@x", "b@x"),
    "ability": ("*", ("*",), "read:audits,read:tickets", ("read:audits", "read:tickets")),
    "expires": ("1s", 1, "36500d", 36_500 * DAY),
    "event": ("ticket.created", ("ticket.created",), "ticket.closed,ticket.deleted", ("ticket.closed", "ticket.deleted")),
    "webhook_name": ("a name", "a name", "other", "other"),
    "deliveries_limit": ("0", 0, "1000", 1000),
    "audit_keep": ("90d", 90 * DAY, "1h", 3600),
    "audit_user": ("7", 7, "Ann@Example.com", "ann@example.com"),
    "audit_token": ("1", 1, "9223372036854775807", 2**63 - 1),
    "audit_status": ("404", range(404, 405), "5xx", range(500, 600)),
    "audit_path": ("/api", "/api", "Users/7", "Users/7"),
    "audit_since": ("1h", 3600, "90d", 90 * DAY),
    "audit_limit": ("0", 0, "1000", 1000),
    "follow": (True, True, "1", True),
    "older_than": ("90d", 90 * DAY, "1s", 1),
    "repair": (True, True, "true", True),
    "audit": (True, True, "1", True),
    "force": (True, True, "yes", True),
    "format": ("csv", "csv", "jsonl", "jsonl"),
    "import_audit": (True, True, "on", True),
}
PLACES = [(words, field) for words, command in COMMANDS.items() for field in command.options]


PARSER = ticketapi.build_parser()


def resolve(words, *arguments, **environ):
    """Return the settings of a command line and environment."""
    return ticketapi.resolve_settings(PARSER.parse_args([*call(words), *arguments]), environ)


def test_there_is_a_value_for_every_option():
    assert sorted(VALUES) == sorted(ticketapi.OPTIONS) == sorted({field for _, field in PLACES})


@pytest.mark.parametrize(("words", "field"), PLACES)
def test_the_flag_wins_over_the_variable_and_the_variable_over_the_default(words, field):
    text, meant, variable_text, variable_meant = VALUES[field]
    flag, variable = ticketapi.OPTIONS[field].flag, ticketapi.OPTIONS[field].variable
    flags, environ = ([flag] if text is True else [flag, text]), {variable: variable_text}
    default = getattr(ticketapi.Settings(), field)
    assert getattr(resolve(words), field) == default
    assert getattr(resolve(words, **environ), field) == variable_meant != default
    assert getattr(resolve(words, *flags, **environ), field) == meant != default
    assert getattr(resolve(words, **dict.fromkeys(environ, "")), field) == default


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "OFF"])
def test_a_variable_can_leave_a_switch_off(text):
    assert not resolve("serve", TICKETAPI_NO_SCHEDULER=text).no_scheduler


def test_options_may_be_repeated_where_that_makes_sense():
    origins = ["--cors-origin", "https://a.example.com", "--cors-origin", "https://b.example.com"]
    assert resolve("serve", *origins).cors_origin == ("https://a.example.com", "https://b.example.com")
    abilities = ["--ability", "read:audits", "--ability", "read:tickets"]
    assert resolve("token create", *abilities).ability == ("read:audits", "read:tickets")


def test_a_command_takes_its_settings_from_the_environment(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TICKETAPI_DB", "mine.db")
    monkeypatch.setenv("TICKETAPI_COUNT", "2")
    monkeypatch.setenv("TICKETAPI_JSON", "1")
    assert json_of(run("generate"))["generated"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]


BAD = {
    "json": [],
    "host": ["", " ", "a\nb", "\x1b[31m", "x" * 256],
    "port": ["-1", "65536", "http", "80.0", "", "\uff19"],
    "rate": ["-1", "1000001", "1/s", ""],
    "threads": ["0", "65", "many"],
    "no_scheduler": [],
    "generate_every": ["1", "1.5m", "5 m", "m", "1w", "36501d", "99999999999d", "\u0663m", "1m\n"],
    "process_every": ["5", "5M", "", "9" * 5000 + "s"],
    "cors_origin": ["example.com", "https://", "https://a/b", "https://a b", "**", "https://a\nb", "OFF"],
    "trusted_proxy": ["localhost", "10.0.0.0/8", "10.0.0.256", "::g", "1\n2"],
    "log_level": ["verbose", "DEBUG", ""],
    "demo": [],
    "count": ["abc", "1.5", "", "1e3", "9" * 25, "\u0661"],
    "seed": ["-1", "x", "9" * 25],
    "since": ["90", "yesterday", "36501d"],
    "tickets_limit": ["-1", "all", "1000000001", ""],
    "watch": [],
    "name": ["", "  ", "a\nb", "a\x07b", "x" * 256, "\udcff"],
    "user": ["ann", "@", "a@", "@b", "a b@c", "a@b\n", "a\x1b[31m@b", "a\x00@b", "\udcff@b"],
    "ability": ["", "read:ticket", "READ:TICKETS", "tickets"],
    "expires": ["30", "-1d", "soon"],
    "audit_keep": ["90", "-90d", "for ever"],
    "audit_user": ["ann", "", "0", "-7", "1.5", "9" * 25, "a\nb@x", "\u0667"],
    "audit_token": ["0", "-1", "tkt_abc", "", "9" * 25],
    "audit_status": ["", "99", "600", "6xx", "0xx", "40x", "4x", "xx", "4xxx", "404\n", "OK", "\u0664xx"],
    "audit_path": ["", " ", "a\nb", "a\x1b[31mb", "x" * 256],
    "audit_since": ["90", "yesterday", "36501d"],
    "audit_limit": ["-1", "all", "1000000001", ""],
    "follow": [],
    "older_than": ["90", "-90d", "36501d", ""],
}
BAD_FLAGS = [(field, text) for field, texts in BAD.items() for text in texts]
BAD_VARIABLES = [(field, text) for field, text in BAD_FLAGS if text and "\x00" not in text]
BAD_SWITCHES = [(field, "maybe") for field in ("json", "no_scheduler", "demo", "follow", "watch")]


def command_with(field):
    """Return a valid call of a command that has an option."""
    return call(next(words for words, name in PLACES if name == field))


@pytest.mark.parametrize(("field", "text"), BAD_FLAGS)
def test_a_bad_value_is_one_line_that_names_the_option(run, tmp_path, field, text):
    flag = ticketapi.OPTIONS[field].flag
    assert_refused(run(*command_with(field), f"{flag}={text}"), 2, flag)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("field", "text"), BAD_VARIABLES + BAD_SWITCHES)
def test_a_bad_variable_is_one_line_that_names_the_variable(run, monkeypatch, tmp_path, field, text):
    variable = ticketapi.OPTIONS[field].variable
    monkeypatch.setenv(variable, text)
    assert_refused(run(*command_with(field)), 2, variable)
    assert files(tmp_path) == {}


def test_off_stands_alone_among_origins(run, monkeypatch):
    assert_refused(run("serve", "--cors-origin", "off", "--cors-origin", "*"), 2, "--cors-origin", "off")
    monkeypatch.setenv("TICKETAPI_CORS_ORIGIN", "off,*")
    assert_refused(run("serve"), 2, "TICKETAPI_CORS_ORIGIN", "off")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genrate"], ["'genrate'", "generate"]),
        (["token", "crate"], ["'crate'", "create"]),
        (["token", "revoke"], ["ID"]),
        (["generate", "--cuont", "3"], ["--cuont"]),
        (["generate", "--coun", "3"], ["--coun"]),
        (["generate", "--port", "3"], ["--port"]),
        (["generate", "--count"], ["--count"]),
        (["generate", "--since", "-5m"], ["--since"]),
        (["process", "3"], ["3"]),
        (["serve", "--no-scheduler=1"], ["--no-scheduler"]),
        (["--db", "x.db", "generate"], ["--db", "after the command"]),
        (["generate", "a\nb"], []),
        (["generate", "\x1b[31m"], []),
        (["a\nb"], []),
    ],
)
def test_what_is_mistyped_is_one_line(run, tmp_path, arguments, words):
    result = run(*arguments)
    assert_refused(result, 2, *words)
    assert result[2].rstrip("\n").isprintable()
    assert files(tmp_path) == {}


# Desks that cannot be used -----------------------------------------------------------------------


def make_directory(path):
    """Make a directory."""
    path.mkdir()
    return "directory"


def make_text(path):
    """Make a text file."""
    path.write_text("Dear desk,\n" * 1000)
    return "not a SQLite database"


def make_newer(path):
    """Make a desk of a newer version."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA user_version = 6")
    return "newer"


def make_foreign(path):
    """Make a database of another program."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE tickets (id INTEGER)")
    return "another program"


@pytest.mark.parametrize("make", [make_directory, make_text, make_newer, make_foreign])
def test_what_is_no_desk_is_refused_by_every_command_and_stays_as_it_was(run, tmp_path, make):
    """But for `check`, which is there to tell what it is, and what looks for a snapshot first."""
    word = make(tmp_path / "it.db")
    before = files(tmp_path)
    for words in COMMANDS:
        if words not in ("serve", "check", "snapshot restore", "snapshot list", "snapshot delete"):
            assert_refused(run(*call(words), *NEEDED.get(words, ()), "--db", "it.db"), 1, "it.db", word)
    serving = process("serve", "--port", "0", "--db", "it.db", cwd=tmp_path)
    out, err = serving.communicate(timeout=30)
    assert_refused((serving.returncode, out, err), 1, "it.db", word)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["", ".", "no/such/folder/it.db", "no\nsuch/it.db", "\x1b[31m/it.db"])
def test_a_path_that_leads_nowhere_is_one_line(run, tmp_path, name):
    result = run("generate", "--db", name)
    assert_refused(result, 1)
    assert result[2].rstrip("\n").isprintable()
    assert files(tmp_path) == {}


def test_a_desk_that_fails_is_one_line(run, db, desk):
    db.execute("ALTER TABLE tickets RENAME TO hidden")
    assert_refused(run("generate", "--db", desk), 1, str(desk), "tickets")


def test_a_lock_file_that_cannot_be_opened_is_one_line_that_names_it(tmp_path):
    (tmp_path / "ticketapi.db-lock").mkdir()
    serving = process("serve", "--port", "0", cwd=tmp_path)
    out, err = serving.communicate(timeout=30)
    assert_refused((serving.returncode, out, err), 1, "ticketapi.db-lock")


# Help --------------------------------------------------------------------------------------------


def help_of(run, *words):
    """Return the help of a command, with every run of blanks as one."""
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    return out, " ".join(out.split())


@pytest.mark.parametrize("words", COMMANDS)
def test_the_help_of_a_command_has_every_option_with_its_variable_and_default(run, words):
    _, text = help_of(run, *words.split())
    for field in COMMANDS[words].options:
        option = ticketapi.OPTIONS[field]
        assert re.search(rf"{option.flag} .*?\[{option.variable}\]", text)
    if "generate_every" in COMMANDS[words].options:
        assert re.search(r"--generate-every DURATION [^\[]*default 1m \[", text)


@pytest.mark.parametrize("words", COMMANDS)
def test_the_examples_of_the_help_can_be_typed(run, words):
    out, _ = help_of(run, *words.split())
    examples = [shlex.split(line) for line in re.findall(r"^  (ticketapi .*)$", out, re.MULTILINE)]
    assert examples
    for program, *arguments in examples:
        assert program == "ticketapi"
        assert arguments[: len(words.split())] == words.split()
        args = ticketapi.build_parser().parse_args(arguments)
        assert isinstance(ticketapi.resolve_settings(args, {}), ticketapi.Settings)


@pytest.mark.parametrize("words", [[], ["token"]])
def test_help_without_a_command_names_the_commands(run, words):
    _, text = help_of(run, *words)
    below = {name.split()[len(words)] for name in COMMANDS if name.split()[: len(words)] == words}
    assert not [name for name in below if not re.search(rf"\b{name}\b", text)]


def test_the_version_is_that_of_the_module(run):
    assert run("--version") == (0, f"ticketapi {ticketapi.__version__}\n", "")


# What the program says to a person ---------------------------------------------------------------


def hinted(text):
    """Return the command lines in a hint, as arguments."""
    return [shlex.split(line) for line in re.findall(r": (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", ["ticketapi.db", "other.db", "it's my desk.db", "folder/$HOME.db"])
@pytest.mark.parametrize("program", ["/usr/bin/ticketapi", "ticketapi.pyz", "/opt/my tools/ticketapi.py"])
def test_a_hint_can_be_pasted_and_concerns_the_desk_that_was_meant(capsys, monkeypatch, tmp_path, run, name, program):
    monkeypatch.setattr(sys, "argv", [program, "serve"])
    (tmp_path / "folder").mkdir()
    with closing(ticketapi.open_database(tmp_path / name, "desk")) as db:
        ticketapi.suggest_next_steps(db, ticketapi.Settings(db=Path(name)))
        commands = hinted(capsys.readouterr().err)
        expected = ["ticketapi"] if program.endswith("ticketapi") else ["python3", program]
        assert [command[: len(expected)] for command in commands] == [expected, expected]
        for command in commands:
            assert run(*command[len(expected) :])[0] == 0
        assert (ticketapi.count_tickets(db, ticketapi.OPEN) > 0, ticketapi.has_tokens(db)) == (True, True)
        ticketapi.suggest_next_steps(db, ticketapi.Settings(db=Path(name)))
        assert capsys.readouterr() == ("", "")


def test_a_demo_on_a_desk_with_tickets_changes_nothing_and_names_the_desk(capsys, db, desk):
    ticketapi.generate_tickets(db, 1, NOON, seed=1)
    ticketapi.fill_demo_desk(db, ticketapi.Settings(db=desk), "http://127.0.0.1:8000")
    assert f"token create --db {shlex.quote(str(desk))}" in capsys.readouterr().err
    assert ticketapi.count_tickets(db, ticketapi.OPEN) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["60", "300"]),
        ({"no_scheduler": True}, ["no scheduler"]),
        ({"generate_every": 10, "process_every": 0}, ["10", "0"]),
        ({"audit_keep": 7777}, ["7777"]),
    ],
)
def test_the_schedule_is_described(settings, words):
    text = ticketapi.describe_schedule(ticketapi.Settings(**settings), "http://127.0.0.1:8000")
    assert not [word for word in words if word not in text]
    assert len(text.splitlines()) == 1


# Output that nobody reads, and interruptions ------------------------------------------------------


@pytest.mark.parametrize("arguments", ["--version", "process --help", "generate", "token create", "process --count 10000"])
def test_a_reader_that_leaves_is_no_traceback(tmp_path, arguments):
    with closing(ticketapi.open_database(tmp_path / "ticketapi.db", "desk")) as db:
        ticketapi.generate_tickets(db, 10_000 if "process --count" in arguments else 1, NOON, seed=1)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        running = process(*arguments.split(), cwd=tmp_path, stdout=writer)
    finally:
        os.close(writer)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 1
    assert len(err.splitlines()) == (1 if arguments == "token create" else 0)  # the hint
    assert "BrokenPipe" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this system")
@pytest.mark.parametrize("arguments", ["--version", "generate", "token list --json"])
def test_output_that_cannot_be_written_is_one_line_and_exit_1(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        running = process(*arguments.split(), cwd=tmp_path, stdout=full)
        _, err = running.communicate(timeout=30)
    assert_refused((running.returncode, "", err), 1, "No space left")
    assert "None" not in err


def test_an_interrupted_command_is_one_line_and_keeps_whole_batches(tmp_path):
    path = tmp_path / "ticketapi.db"
    running = process("generate", "--count", 5_000_000, cwd=tmp_path, measured=False)
    wait_for(lambda: running.poll() is not None or (path.exists() and path.stat().st_size > 10**6), seconds=30)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert_refused((running.returncode, out, err), 1, "interrupted")
    with closing(ticketapi.connect(path)) as db:
        assert ticketapi.count_tickets(db, ticketapi.OPEN) == counted(path)[0]
    assert counted(path)[0] % ticketapi.BATCH == 0


# The log -----------------------------------------------------------------------------------------


def record_of(message, *arguments, error=None):
    """Return a log record."""
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("ticketapi", logging.ERROR, "file.py", 1, message, arguments, info)


def test_a_log_line_says_what_was_raised_and_where_without_the_source():
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        line = ticketapi.OneLine("%(levelname)s %(name)s: %(message)s").format(record_of("failed", error=error))
    assert len(line.splitlines()) == 1
    assert line.startswith("ERROR ticketapi: failed")
    assert not [word for word in ("ValueError: first", "second", f"{Path(__file__).name}:") if word not in line]
    assert "Traceback" not in line


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\x00b", "a\x07b", "a\x85b", "a\u2028b", "a\u202eb", "a\x9bb", "a\x7fb"]
)
def test_a_log_line_is_printable_whatever_is_logged(text):
    line = ticketapi.OneLine("%(message)s").format(record_of("%s", text))
    assert line.isprintable()
    assert line.startswith("a")
    assert line.endswith("b")


def test_a_log_line_leaves_other_text_alone():
    text = "GET /api/tickets/open 200 Zoë 東京 \\n %s"
    assert ticketapi.OneLine("%(message)s").format(record_of(text)) == text
