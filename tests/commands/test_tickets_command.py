"""`ticketapi tickets` lists and shows tickets as the API does, only reads, and fits whatever it is printed on."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest
from conftest import NOON, close_out_of_order, drain
from old_desks import SCHEMAS

import ticketapi
from ticketapi import MAX_PER_PAGE

pytestmark = pytest.mark.files  # the desk of these tests is a copy of a file
HOSTILE = "a\r\x1b[31m\x00\x7f\x85\x9b2J\u202eevil\u2066\ufeff |\tZoë 東京"
CODES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A desk of 450 tickets, the first 225 of them closed."""
    path = tmp_path_factory.mktemp("filled") / "desk.db"
    with closing(ticketapi.open_database(path, "desk")) as made:
        ticketapi.generate_tickets(made, 450, NOON, seed=1)
        ticketapi.process_tickets(made, 225, NOON)
    return path


@pytest.fixture
def desk(filled, tmp_path):
    """A copy of that desk."""
    return Path(shutil.copy(filled, tmp_path))


@pytest.fixture
def tickets(run, desk):
    """Return a function that runs `tickets` on the desk and gives (code, stdout, stderr)."""
    return lambda *arguments: run("tickets", *arguments, "--db", desk)


def printed(result):
    """Return the JSON document that a command printed, with nothing else to say."""
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def ids(result):
    """Return the ids of the tickets that a command printed as JSON."""
    return [ticket["id"] for ticket in printed(result)]


def files(folder):
    """Return what lies in a folder, with its content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(result, code, *words):
    """Check that a command failed with nothing on stdout and one line on stderr that holds some words."""
    found, out, err = result
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert not [word for word in words if word not in err], err


def rename_customers(db, name, where=""):
    """Give customers another name, wherever the desk keeps it."""
    db.execute(f"UPDATE users SET name = ? {where}", (name,))
    if "user_name" in [column["name"] for column in db.execute("PRAGMA table_info(tickets)")]:
        db.execute(f"UPDATE tickets SET user_name = ? {where}", (name,))


# Lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("open",)])
def test_the_open_tickets_come_oldest_first_20_without_a_limit(tickets, words):
    assert ids(tickets(*words, "--json")) == list(range(226, 246))


def test_the_closed_tickets_come_most_recently_closed_first(tickets, db):
    close_out_of_order(db, [400, 300], NOON)
    assert ids(tickets("closed", "--json", "--limit", 4)) == [300, 400, 225, 224]
    assert ids(tickets("open", "--json", "--limit", 0)) == [n for n in range(226, 451) if n not in (300, 400)]


@pytest.mark.parametrize("limit", [1, MAX_PER_PAGE - 1, MAX_PER_PAGE, MAX_PER_PAGE + 1, 225, 1000, 0])
@pytest.mark.parametrize(("word", "expected"), [("open", range(226, 451)), ("closed", range(225, 0, -1))])
def test_there_are_as_many_as_the_limit_says_and_0_is_all(tickets, word, expected, limit):
    assert ids(tickets(word, "--json", "--limit", limit)) == list(expected)[: limit or None]


@pytest.mark.parametrize("word", ["open", "closed"])
def test_a_ticket_looks_as_in_the_api(tickets, make_api, token, word):
    shown = make_api(rate=0).get(f"/api/tickets/{word}?per_page=30", token=token).json["data"]
    assert printed(tickets(word, "--json", "--limit", 30)) == shown
    assert printed(tickets(shown[7]["id"], "--json")) == shown[7]


def test_an_array_written_page_by_page_is_that_of_any_other_command(tickets):
    out = tickets("open", "--json", "--limit", 0)[1]
    assert out == json.dumps(json.loads(out), indent=2) + "\n"


def test_the_table_has_a_line_for_each_with_the_time_that_matters(tickets, db):
    titles, line, *_ = tickets("--limit", 3)[1].splitlines()
    assert titles.split() == ["ID", "STATUS", "CREATED", "CUSTOMER", "SUBJECT"]
    user, subject, created = db.execute(
        "SELECT name, subject, tickets.created_at FROM tickets JOIN users ON users.id = user_id WHERE tickets.id = 226"
    ).fetchone()
    assert re.split(r"  +", line) == ["226", "Open", f"{created[:19]}Z", user, subject]
    titles, line, *_ = tickets("closed")[1].splitlines()
    closed = db.execute("SELECT closed_at FROM tickets WHERE id = 225").fetchone()[0]
    assert titles.split()[2] == "CLOSED"
    assert line.split()[:3] == ["225", "Closed", f"{closed[:19]}Z"]


@pytest.mark.parametrize("word", ["open", "closed"])
def test_an_empty_list_says_so_and_is_an_empty_array(run, tmp_path, word):
    ticketapi.open_database(tmp_path / "ticketapi.db", "desk").close()
    assert run("tickets", word) == (0, f"No {word} tickets\n", "")
    assert run("tickets", word, "--json") == (0, "[]\n", "")


def test_the_limit_has_a_variable_of_its_own(tickets, monkeypatch):
    monkeypatch.setenv("TICKETAPI_AUDIT_LIMIT", "1")
    monkeypatch.setenv("TICKETAPI_COUNT", "1")
    assert len(ids(tickets("--json"))) == 20
    monkeypatch.setenv("TICKETAPI_TICKETS_LIMIT", "2")
    assert len(ids(tickets("--json"))) == 2


# Formats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, MAX_PER_PAGE + 1, 0])
def test_all_tickets_come_in_the_order_of_their_ids_without_those_deleted(tickets, db, limit):
    ticketapi.delete_ticket(db, 2, NOON)
    ticketapi.delete_ticket(db, 450, NOON)
    expected = [1, *range(3, 450)][: limit or None]
    assert ids(tickets("all", "--json", "--limit", limit)) == expected
    for form in ("jsonl", "csv"):
        assert [ticket["id"] for ticket in read(form, tickets("all", "--limit", limit, "--format", form))] == expected
    titles, *lines = tickets("all", "--limit", limit)[1].splitlines()
    assert [int(line.split()[0]) for line in lines] == expected
    assert titles.split()[2] == "CREATED"


def read(form, result):
    """Return the tickets that a command printed as CSV or JSON Lines, with whole numbers for ids."""
    code, out, err = result
    assert (code, err) == (0, "")
    if form == "jsonl":
        return list(map(json.loads, out.splitlines()))
    return [{**row, "id": int(row["id"])} for row in csv.DictReader(io.StringIO(out, newline=""), strict=True)]


@pytest.mark.parametrize("word", ["open", "closed", "all", 7])
def test_json_lines_are_tickets_with_closed_at(tickets, db, word):
    closed = dict(map(tuple, db.execute("SELECT id, closed_at FROM tickets").fetchall()))
    shown = printed(tickets(word, "--json"))
    shown = shown if isinstance(shown, list) else [shown]
    assert read("jsonl", tickets(word, "--format", "jsonl")) == [{**one, "closed_at": closed[one["id"]]} for one in shown]


@pytest.mark.parametrize("word", ["open", "closed", "all", 7])
def test_csv_has_what_json_lines_have_and_quotes_what_it_must(tickets, db, word):
    db.execute("UPDATE tickets SET subject = :text, content = :text", {"text": '=1+1, "a"\nb\r\nc \r d'})
    out = tickets(word, "--format", "csv")[1]
    header, *_ = out.split("\r\n")
    assert header == "id,subject,content,name,email,status,created_at,closed_at,updated_at,user_id"
    expected = [
        {
            **{
                name: one[name] or ""
                for name in ("id", "subject", "content", "status", "created_at", "closed_at", "updated_at")
            },
            **{"name": one["user"]["name"], "email": one["user"]["email"], "user_id": str(one["user"]["id"])},
        }
        for one in read("jsonl", tickets(word, "--format", "jsonl"))
    ]
    assert read("csv", tickets(word, "--format", "csv")) == expected


def test_csv_is_utf_8_whatever_the_terminal_is(db, desk):
    rename_customers(db, "Zoë 東京")
    command = [sys.executable, "-m", "ticketapi", "tickets", "--format", "csv", "--limit", "1", "--db", str(desk)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "Zoë 東京" in done.stdout.decode()


def test_a_format_given_wins_over_json_and_json_is_one_of_them(tickets):
    assert tickets("--json", "--format", "csv") == tickets("--format", "csv")
    assert tickets("--format", "json") == tickets("--json")
    assert tickets("--format", "table") == tickets()
    assert_refused(tickets("--format", "xml"), 2, "'xml'", "table, json, jsonl or csv")


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "table"])
def test_an_empty_list_is_empty_in_each_format(run, tmp_path, form):
    ticketapi.open_database(tmp_path / "ticketapi.db", "desk").close()
    header = "id,subject,content,name,email,status,created_at,closed_at,updated_at,user_id\r\n"
    expected = {"json": "[]\n", "jsonl": "", "csv": header, "table": "No tickets\n"}[form]
    assert run("tickets", "all", "--format", form) == (0, expected, "")


def test_a_ticket_that_was_edited_later_shows_when_it_was_closed(tickets, db):
    closed = db.execute("SELECT closed_at FROM tickets WHERE id = 225").fetchone()[0]
    ticketapi.update_ticket(db, 225, {"subject": "other"}, NOON + 10**12)
    assert f"{closed[:19]}Z" in tickets("closed", "--limit", 1)[1]
    assert f"\nClosed    {closed}\n" in tickets(225)[1]


# Pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listing", [ticketapi.open_listing, ticketapi.closed_listing])
def test_pages_are_bounded_and_nothing_is_held_open_between_them(desk, db, listing):
    with closing(ticketapi.open_read_only(desk, "desk", views=True)) as reader:
        for size, page in zip((200, 25), ticketapi.walk_list(listing(reader), 0), strict=True):
            assert len(page) == size
            db.execute("UPDATE users SET name = name")
            assert tuple(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()) == (0, 0, 0)


def test_what_comes_or_is_closed_meanwhile_neither_prolongs_nor_repeats_a_list(desk, db):
    with closing(ticketapi.open_read_only(desk, "desk", views=True)) as reader:
        waiting, closed = (ticketapi.walk_list(read(reader), 0) for read in (ticketapi.open_listing, ticketapi.closed_listing))
        found = [[ticket["id"] for ticket in next(walk)] for walk in (waiting, closed)]
        ticketapi.generate_tickets(db, 500, NOON, seed=2)
        close_out_of_order(db, [226, 440], NOON)
        found += [[ticket["id"] for page in walk for ticket in page] for walk in (waiting, closed)]
    assert found[0] + found[2] == [n for n in range(226, 451) if n != 440]
    assert found[1] + found[3] == list(range(225, 0, -1))


# One ticket --------------------------------------------------------------------------------------


def test_a_ticket_is_shown_in_full(tickets):
    ticket = printed(tickets(226, "--json"))
    code, out, err = tickets(226)
    head, text = out.split("\n\n")
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in head.splitlines())
    assert (code, err) == (0, "")
    assert shown == {
        "Ticket": "226",
        "Subject": ticket["subject"],
        "Status": "Open",
        "Created": ticket["created_at"],
        "Customer": f"{ticket['user']['name']} <{ticket['user']['email']}>, id {ticket['user']['id']}",
    }
    assert text == ticket["content"] + "\n"


def test_a_closed_ticket_tells_when_it_was_closed(tickets, db):
    closed = db.execute("SELECT closed_at FROM tickets WHERE id = 7").fetchone()[0]
    assert f"\nClosed    {closed}\n" in tickets(7)[1]
    assert "\nClosed " not in tickets(226)[1]


@pytest.mark.parametrize("ticket_id", [451, 2**63 - 1])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_ticket_that_is_not_there_is_one_line_and_exit_1(tickets, ticket_id, more):
    assert_refused(tickets(ticket_id, *more), 1, f" {ticket_id};", "tickets open")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("opne", ["'opne'", "did you mean `open`?"]),
        ("close", ["'close'", "did you mean `closed`?"]),
        ("al", ["'al'", "open, closed, all", "did you mean `all`?"]),
        ("", ["open, closed"]),
        ("0", ["'0'", "out of range"]),
        ("-7", []),
        ("1.5", ["'1.5'"]),
        ("9" * 25, ["out of range"]),
        ("a\nb\x1b[31m", []),
    ],
)
def test_what_is_neither_a_list_nor_an_id_is_a_usage_error(tickets, text, words):
    result = tickets(text)
    assert_refused(result, 2, *words)
    assert result[2].rstrip("\n").isprintable()


# Only reading ------------------------------------------------------------------------------------

READERS = [("tickets",), ("tickets", "1"), ("tickets", "closed", "--json"), ("stats",), ("stats", "--json")]


def make_older(path):
    """Make a desk of version 1."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMAS[1])
        db.execute(f"PRAGMA application_id = {ticketapi.KINDS['desk'].application_id}")
        db.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize("words", READERS)
def test_a_desk_that_is_not_there_is_not_made_but_how_to_make_it_is_said(run, tmp_path, words):
    for name, before in (("no.db", None), ("empty.db", b"")):
        path = tmp_path / name
        if before is not None:
            path.write_bytes(before)
        assert_refused(run(*words, "--db", name), 1, f"there is no desk at {name}", f"generate --count 50 --db {name}")
        assert path.exists() == (before is not None)
        assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("words", READERS)
def test_a_desk_of_an_older_version_is_not_upgraded_but_what_does_it_is_said(run, tmp_path, words):
    path = tmp_path / "old.db"
    make_older(path)
    before = path.read_bytes()
    assert_refused(run(*words, "--db", "old.db"), 1, "old.db", "schema 1", "`token list`")
    assert path.read_bytes() == before
    assert run("token", "list", "--db", "old.db")[0] == 0
    assert run(words[0], "--db", "old.db")[0] == 0


@pytest.mark.parametrize("words", READERS)
def test_reading_leaves_the_folder_as_it_was(run, tmp_path, words):
    run("generate", "--count", 3, "--db", "calm.db")
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm.db").rename(tmp_path / "calm" / "calm.db")
    before = files(tmp_path / "calm")
    assert run(*words, "--db", "calm/calm.db")[0] == 0
    assert files(tmp_path / "calm") == before


def test_reading_cannot_write(desk):
    with (
        closing(ticketapi.open_read_only(desk, "desk", views=True)) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        reader.execute("DELETE FROM tickets")


@pytest.mark.parametrize("words", READERS)
def test_a_desk_that_lacks_a_table_is_one_line_that_names_it(run, db, desk, words):
    db.execute("ALTER TABLE tickets RENAME TO hidden")
    assert_refused(run(*words, "--db", desk), 1, str(desk), "tickets")


# On a terminal -----------------------------------------------------------------------------------


def bare(lines):
    """Return lines without their colours."""
    return [CODES.sub("", line) for line in lines]


def test_the_width_is_that_of_the_real_terminal(desk, tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 47, 0, 0))
    environ = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    running = subprocess.Popen(
        [sys.executable, "-m", "ticketapi", "tickets", "--db", desk], stdout=slave, stderr=subprocess.DEVNULL, env=environ
    )
    os.close(slave)
    chunks = []
    drain(master, chunks)
    os.close(master)
    assert running.wait(timeout=20) == 0
    lines = bare(b"".join(chunks).decode().split("\r\n")[:-1])
    assert (len(lines), max(map(ticketapi.text_columns, lines))) == (21, 47)


@pytest.mark.parametrize("width", [20, 40, 80, 132])
@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_each_line_fits_the_terminal_in_colour_or_without(on_terminal, db, desk, width, colour):
    db.execute("UPDATE tickets SET subject = ?, content = ? WHERE id = 226", ("東京" * 60, "e\u0301" * 300 + " 東京" * 90))
    rename_customers(db, "x" * 300)
    for arguments in (("tickets",), ("tickets", "226"), ("stats",), ("tickets", "closed")):
        lines = bare(on_terminal(*arguments, "--db", desk, width=width, **colour))
        assert len(lines) > 5
        assert max(map(ticketapi.text_columns, lines)) <= width


def test_a_long_name_leaves_the_column_after_it_in_its_place(on_terminal, db, desk):
    rename_customers(db, "東" * 300, "WHERE id % 2")
    titles, *lines = bare(on_terminal("tickets", "--db", desk, width=200))
    place = titles.index("SUBJECT")
    for line, ticket in zip(lines, printed_tickets(desk), strict=True):
        assert ticketapi.text_columns(line.partition(ticket["subject"])[0]) == place


def printed_tickets(desk):
    """Return the first open tickets."""
    with closing(ticketapi.open_read_only(desk, "desk", views=True)) as reader:
        return next(ticketapi.walk_list(ticketapi.open_listing(reader), 20))


def test_the_text_of_a_ticket_is_wrapped_between_words(on_terminal, db, desk):
    content = "The first paragraph has some words.\nThe second too, and one more line than the first one has."
    db.execute("UPDATE tickets SET content = ? WHERE id = 226", (content,))
    lines = on_terminal("tickets", 226, "--db", desk, width=30)
    assert lines[lines.index("") + 1 :] == [
        "The first paragraph has some",
        "words.",
        "The second too, and one more",
        "line than the first one has.",
    ]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 10, [""]),
        ("a b", 3, ["a b"]),
        ("  a", 3, ["  a"]),
        ("aa bb cc", 5, ["aa bb", "cc"]),
        ("aa bbbbbbb cc", 5, ["aa", "bbbbb", "bb cc"]),
        ("aa bbbbb cc", 5, ["aa", "bbbbb", "cc"]),
        ("東京都庁 舎", 5, ["東京", "都庁", "舎"]),
        ("東京", 1, ["東", "京", ""]),
        ("e\u0301e\u0301e\u0301", 2, ["e\u0301e\u0301", "e\u0301"]),
    ],
)
def test_a_text_is_wrapped_by_columns(text, width, lines):
    assert ticketapi.wrap_text(text, width) == lines


def test_how_many_more_there_are_is_said_on_a_terminal_alone(on_terminal, desk, tickets, capsys):
    on_terminal("tickets", "--db", desk)
    assert capsys.readouterr().err == "205 more; --limit 0 shows all\n"
    on_terminal("tickets", "--limit", 225, "--db", desk)
    on_terminal("tickets", "--json", "--db", desk)
    assert capsys.readouterr().err == ""
    assert tickets()[2] == ""


# Colour ------------------------------------------------------------------------------------------


def test_on_a_terminal_titles_are_bold_open_is_yellow_and_closed_green(on_terminal, desk):
    titles, line, *_ = on_terminal("tickets", "--db", desk)
    assert titles.startswith("\x1b[1mID\x1b[m ")
    assert "\x1b[33mOpen\x1b[m" in line
    assert "\x1b[32mClosed\x1b[m" in on_terminal("tickets", "closed", "--db", desk)[1]
    assert "\x1b[33mOpen\x1b[m" in "".join(on_terminal("tickets", 226, "--db", desk))


def test_on_a_terminal_what_check_finds_wrong_is_red(on_terminal, desk):
    desk.chmod(0o644)
    lines = on_terminal("check", "--db", desk, expected=1)
    assert [line for line in lines if line.startswith("\x1b[31mwrong\x1b[m  ")]
    assert [line for line in lines if line.startswith("ok     ")]


def test_on_a_terminal_the_status_of_a_failed_request_has_a_colour(on_terminal, api, desk, token):
    api.get("/api/nope", token=token)
    api.get("/api/stats", token=token)
    api.audit.close()
    titles, fine, failed = on_terminal("audit", "--db", desk)
    assert titles.startswith("\x1b[1mTIME\x1b[m ")
    assert "\x1b[33m404\x1b[m" in failed
    assert "\x1b" not in fine


@pytest.mark.files  # the desk is a file
@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({}, True),
        ({"TERM": "xterm-256color"}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "0"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
@pytest.mark.parametrize("words", [("tickets",), ("tickets", "226"), ("stats",), ("token", "list")])
def test_there_is_no_colour_where_it_is_not_wanted(on_terminal, desk, token, words, environ, coloured):
    lines = on_terminal(*words, "--db", desk, **environ)
    assert any(CODES.search(line) for line in lines) == coloured
    assert "\x1b" not in "".join(bare(lines))


@pytest.mark.parametrize("words", READERS)
def test_there_is_no_colour_in_a_pipe(run, desk, monkeypatch, words):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in run(*words, "--db", desk)[1]


# Safe, in any encoding ---------------------------------------------------------------------------


@pytest.fixture
def hostile(db):
    """Texts of clients that a terminal would act on."""
    db.execute("UPDATE tickets SET subject = ?, content = ?", (HOSTILE, f"{HOSTILE}\n{HOSTILE}"))
    rename_customers(db, HOSTILE)


@pytest.mark.parametrize("words", [("tickets",), ("tickets", "226"), ("tickets", "closed"), ("stats",)])
def test_what_a_terminal_would_act_on_is_written_out(run, on_terminal, hostile, desk, words):
    out = run(*words, "--db", desk)[1]
    assert all(line.isprintable() for line in out.split("\n"))
    assert r"\u202eevil" in out
    assert "Zoë 東京" in out
    assert all(line.isprintable() for line in bare(on_terminal(*words, "--db", desk, width=200)))


def test_json_holds_the_texts_as_they_are_in_ascii(tickets, hostile):
    out = tickets("--json")[1]
    assert re.fullmatch(r"[ -~\n]*", out)
    assert json.loads(out)[0]["subject"] == HOSTILE


def test_a_text_that_is_no_utf_8_is_shown(tickets, db):
    db.execute("UPDATE tickets SET subject = CAST(x'6170692fff' AS TEXT) WHERE id = 226")
    assert printed(tickets(226, "--json"))["subject"] == "api/\ufffd"
    assert "api/\ufffd" in tickets(226)[1]
    assert printed(tickets("--json"))[0]["subject"] == "api/\ufffd"


WORDS = [("tickets",), ("tickets", "226"), ("tickets", "--json"), ("stats",), ("token", "list"), ("check",), ("--help",)]


@pytest.mark.parametrize("words", WORDS)
def test_no_command_fails_where_output_is_ascii(run, monkeypatch, db, desk, tmp_path, words):
    run("token", "create", "--name", "Zoë 東京", "--db", desk)
    rename_customers(db, "Zoë 東京")
    db.execute("UPDATE tickets SET subject = 'Zoë 東京', content = 'Zoë 東京'")
    if words == ("check",):
        desk = tmp_path / "東京.db"
        run("generate", "--db", desk)
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    assert ticketapi.main([*words, *(() if words == ("--help",) else ("--db", str(desk)))]) == 0
    text = output.getvalue().decode("ascii")
    assert (r"\u6771\u4eac" in text) == (words != ("--help",))


def test_columns_stand_below_each_other_where_output_is_ascii(on_terminal, db, desk, run):
    for name in ("Zoë 東京", "a", "x" * 60):
        run("token", "create", "--name", name, "--db", desk)
    lines = bare(on_terminal("token", "list", "--db", desk, width=200, encoding="ascii"))
    assert len({line.index("read:tickets") for line in lines[1:]}) == 1
    assert lines[-1].partition("read:")[0].rstrip().endswith("x~")


def test_a_real_token_list_prints_a_name_of_any_script_where_output_is_ascii(run, desk):
    run("token", "create", "--name", "Zoë 東京", "--db", desk)
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ticketapi", "token", "list", "--db", desk]
    done = subprocess.run(command, env=environ, capture_output=True)
    assert done.stderr == b""
    assert rb"Zo\xeb \u6771\u4eac" in done.stdout
