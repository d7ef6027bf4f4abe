"""Tickets come from a file: CSV, JSON Lines, or that of the original application; all of them or none, and as they were."""

import csv
import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from conftest import NOON, SECOND, close_out_of_order, create_ticket, wait_for

import ticketapi
from ticketapi import CLOSED, FIRST_BROUGHT_ID, FIRST_OWNER_ID, OPEN

pytestmark = pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)

HEADER = "subject,content,name,email,status,created_at,closed_at"
NASTY = "quotes \" ' and \\, a\ttab\na line\r\nanother, a comma; =1+1 \u2028 🎟 e\u0301 \x01"
FORMATS = ("csv", "jsonl")
SANCTUM = "12|" + "aB3" * 13 + "x"
SECOND_TOKEN = "7|" + "Zy9" * 16


@pytest.fixture
def into(run, tmp_path):
    """Return a function that writes a file and imports it; it gives exit code, what was printed and what was said."""

    def bring(content, place, *more, name="tickets.csv"):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return run("import", name, "--db", place, *more)

    return bring


def lines(*rows, header=HEADER):
    """Return CSV of rows."""
    out = io.StringIO()
    csv.writer(out).writerows([header.split(","), *rows])
    return out.getvalue()


def rows_of(place):
    """Return what there is of each ticket, in the order of their ids."""
    sql = """
        SELECT subject, content, user_name, user_email, status, created_at, closed_at
        FROM tickets
        WHERE status > 0
        ORDER BY id"""
    with closing(ticketapi.open_database(place, "desk")) as db:
        return [tuple(row) for row in db.execute(sql)]


def assert_sound(db):
    """Check that counters and numbers fit the tickets, and that their times grow."""
    assert ticketapi.counter_problems(db) == []
    with ticketapi.snapshot(db):
        assert ticketapi.order_problems(db) == []


def live(db):
    """Fill a desk with a history of everything that can happen to a ticket."""
    ticketapi.generate_history(db, 300, 30 * ticketapi.DAY, NOON, 3)
    ticketapi.generate_tickets(db, 20, NOON, 3)
    close_out_of_order(db, [318, 310], NOON + SECOND)
    ticketapi.update_ticket(db, 310, {"subject": "an edited one", "content": NASTY}, NOON + 2 * SECOND)
    ticketapi.update_ticket(db, 5, {"status": OPEN}, NOON + 3 * SECOND)
    ticketapi.delete_ticket(db, 7, NOON + 4 * SECOND)
    ticketapi.delete_ticket(db, 320, NOON + 4 * SECOND)
    create_ticket(db, ('Ana, "the" Äbt', "ana@example.com"), "=HYPERLINK(1)", NASTY, NOON + 5 * SECOND)


# There and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_what_tickets_writes_import_reads(run, into, db, desk, tmp_path, form):
    live(db)
    code, out, err = run("tickets", "all", "--limit", 0, "--format", form, "--db", desk)
    assert (code, err) == (0, "")
    other = tmp_path / "other.db"
    assert into(out, other) == (0, "Imported 319 tickets\n", "")
    assert rows_of(other) == rows_of(desk)
    with closing(ticketapi.open_database(other, "desk")) as copied:
        assert_sound(copied)
        order = "SELECT subject, closed_at FROM tickets WHERE status = 2 ORDER BY closed_number"
        assert [tuple(row) for row in copied.execute(order)] == [tuple(row) for row in db.execute(order)]


@pytest.mark.parametrize("form", FORMATS)
def test_the_desk_that_takes_them_may_live_anywhere(run, into, db, desk, tmp_path, form):
    with closing(ticketapi.open_database(tmp_path / "source.db", "desk")) as source:
        live(source)
    text = run("tickets", "all", "--limit", 0, "--format", form, "--db", "source.db")[1]
    assert json.loads(into(text, desk, "--json")[1]) == {"tickets": 319, "tokens": 0, "requests": 0}
    assert rows_of(desk) == rows_of(tmp_path / "source.db")
    assert_sound(db)
    assert db.execute("SELECT count(*) FROM users WHERE id < 500000001").fetchone()[0] == 0


@pytest.mark.parametrize(
    ("form", "start"), [("csv", "id,subject,content,name,email,status,created_at,closed_at,"), ("jsonl", "")]
)
def test_an_empty_desk_is_a_header_line_or_nothing(run, into, db, desk, tmp_path, form, start):
    text = run("tickets", "all", "--format", form, "--db", desk)[1]
    assert (text[: len(start)], text.count("\n")) == (start, bool(start))
    assert into(text, desk) == (0, "Imported 0 tickets\n", "")


def test_a_batch_after_a_batch_is_as_all_at_once(run, into, db, desk, tmp_path, monkeypatch):
    monkeypatch.setattr(ticketapi, "IMPORT_BATCH", 7)
    with closing(ticketapi.open_database(tmp_path / "source.db", "desk")) as source:
        live(source)
    into(run("tickets", "all", "--limit", 0, "--format", "csv", "--db", "source.db")[1], desk)
    assert rows_of(desk) == rows_of(tmp_path / "source.db")
    assert_sound(db)


# Order, times, numbers ---------------------------------------------------------------------------


def test_they_come_by_their_time_then_by_their_line_and_a_tie_moves_on(into, db, desk):
    text = lines(
        ("third", "c", "A", "a@x.org", "Open", "2025-01-02T00:00:00Z", ""),
        ("first", "c", "A", "a@x.org", "", "2025-01-01 00:00:00", ""),
        ("fourth", "c", "A", "a@x.org", "1", "2025-01-02T00:00:00.000000Z", ""),
        ("second", "c", "A", "a@x.org", "Closed", "2025-01-01T00:00:00.5Z", "2025-01-03T00:00:00Z"),
        ("fifth", "c", "A", "a@x.org", "2", "2025-01-02T00:00:00.000001Z", "2025-01-02T00:00:00.000001Z"),
    )
    assert into(text, desk)[0] == 0
    found = db.execute("SELECT id, subject, created_at, closed_at, closed_number, change FROM tickets ORDER BY id")
    assert [tuple(row) for row in found] == [
        (1, "first", "2025-01-01T00:00:00.000000Z", None, None, 1),
        (2, "second", "2025-01-01T00:00:00.500000Z", "2025-01-03T00:00:00.000000Z", 2, 2),
        (3, "third", "2025-01-02T00:00:00.000000Z", None, None, 3),
        (4, "fourth", "2025-01-02T00:00:00.000001Z", None, None, 4),
        (5, "fifth", "2025-01-02T00:00:00.000002Z", "2025-01-02T00:00:00.000003Z", 1, 5),
    ]
    assert_sound(db)


def test_without_a_time_it_is_now_and_a_closed_one_was_closed_now(into, db, desk):
    before = ticketapi.wall_microseconds()
    assert into("email,name,content,subject,status\na@x.org,A,c,one,Closed\na@x.org,A,c,two,\n", desk)[0] == 0
    after = ticketapi.wall_microseconds()
    found = [dict(row) for row in db.execute("SELECT subject, status, created_at, closed_at FROM tickets ORDER BY id")]
    assert [(row["subject"], row["status"]) for row in found] == [("one", CLOSED), ("two", OPEN)]
    times = [ticketapi.parse_time(time) for time in (found[0]["created_at"], found[1]["created_at"], found[0]["closed_at"])]
    assert all(before <= time <= after + 5 for time in times)
    assert times[0] < times[1]
    assert times[0] < times[2]


def test_those_without_a_time_come_after_what_the_desk_has_whatever_that_is(into, db, desk):
    ahead = ticketapi.wall_microseconds() + 3600 * SECOND
    ticketapi.generate_tickets(db, 3, ahead, 1)
    ticketapi.process_tickets(db, 2, ahead + 10)
    assert into("subject,content,name,email,status\none,c,A,a@x.org,closed".replace("closed", "Closed"), desk)[0] == 0
    assert_sound(db)
    assert db.execute("SELECT closed_number FROM tickets WHERE id = 4").fetchone()[0] == 3


def test_each_is_one_change_and_one_event(into, db, desk):
    ticketapi.generate_tickets(db, 3, NOON, 1)
    assert (
        into(
            lines(("s", "c", "A", "a@x.org", "Closed", "2025-12-05T00:00:00Z", ""), ("t", "c", "A", "a@x.org", "", "", "")),
            desk,
        )[0]
        == 0
    )
    events = [tuple(row) for row in db.execute("SELECT first_change, last_change, type, ticket_ids FROM events ORDER BY 1")]
    assert events[-1] == (4, 5, "ticket.created", "[4,5]")
    assert [row[0] for row in db.execute("SELECT change FROM tickets ORDER BY id")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            ("s", "c", "A", "a@x.org", "", "2025-12-04T12:00:00.000002Z", ""),
            "the first created_at is 2025-12-04T12:00:00.000002Z",
        ),
        (("s", "c", "A", "a@x.org", "", "2020-01-01T00:00:00Z", ""), "(2025-12-04T12:00:00.000002Z)"),
        (("s", "c", "A", "a@x.org", "", "2025-12-04T12:00:01Z", "2025-12-04T12:00:02Z"), "the first closed_at is"),
    ],
)
def test_a_first_time_that_is_not_after_the_last_of_the_desk_is_refused(into, db, desk, row, words):
    ticketapi.generate_tickets(db, 3, NOON, 1)
    ticketapi.process_tickets(db, 1, NOON + 60 * SECOND)
    code, out, err = into(lines(row), desk)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert words in err
    assert db.execute("SELECT count(*) FROM tickets").fetchone()[0] == 3


# Customers ---------------------------------------------------------------------------------------


def test_customers_are_found_by_their_address_and_keep_their_name(into, db, desk):
    ticketapi.generate_tickets(db, 3, NOON, 1)
    known = dict(db.execute("SELECT id, name, email FROM users ORDER BY id LIMIT 1").fetchone())
    ticketapi.create_token(db, "ann@x.org", "t", ["*"], 0, NOON)
    count = db.execute("SELECT count(*) FROM users WHERE id < 1000000000").fetchone()[0]
    text = lines(
        ("one", "c", "Somebody else", known["email"].upper(), "", "", ""),
        ("two", "c", "Ann", "ANN@x.org", "", "", ""),
        ("three", "c", "Ann again", "ann@X.org", "", "", ""),
        ("four", "c", "Bob", "bob@x.org", "", "", ""),
    )
    assert into(text, desk)[0] == 0
    found = db.execute("SELECT user_id, user_name FROM tickets WHERE id > 3 ORDER BY id")
    brought = [(FIRST_BROUGHT_ID, "Ann")] * 2 + [(FIRST_BROUGHT_ID + 1, "Bob")]
    assert [tuple(row) for row in found] == [(known["id"], known["name"]), *brought]
    assert ticketapi.get_counter(db, "customers") == count + 2
    assert_sound(db)


# What is wrong -----------------------------------------------------------------------------------

DOTTED = "\u0130"  # which is two characters in lower case
GOOD = "s,c,A,a@x.org,Open,2025-01-01T00:00:00Z,\n"
BAD = {
    "blank": ("\n\n", "line 1: the column subject is missing"),
    "missing column": ("subject,content,name\na,b,c\n", "line 1: the column email is missing"),
    "double column": (f"{HEADER},email\n", "line 1: the column email is there twice"),
    "no subject": (f"{HEADER}\n{GOOD},c,A,a@x.org,,,\n", "line 3: subject is required"),
    "blank content": (f"{HEADER}\ns,  ,A,a@x.org,,,\n", "line 2: content is required"),
    "no name": (f"{HEADER}\ns,c,,a@x.org,,,\n", "line 2: name is required"),
    "no address": (f"{HEADER}\ns,c,A,nobody,,,\n", "line 2: email must be an address"),
    "long subject": (f"{HEADER}\n{'s' * 256},c,A,a@x.org,,,\n", "line 2: subject must not be greater than 255 characters"),
    "long content": (f"{HEADER}\ns,{'c' * 10001},A,a@x.org,,,\n", "line 2: content must not be greater than 10000 characters"),
    "nul": (f"{HEADER}\ns,c\0d,A,a@x.org,,,\n", "line 2: "),
    "status": (f"{HEADER}\ns,c,A,a@x.org,Pending,,\n", "line 2: status must be Open or Closed"),
    "closed while open": (
        f"{HEADER}\ns,c,A,a@x.org,Open,2025-01-01T00:00:00Z,2025-01-02T00:00:00Z\n",
        "line 2: closed_at must not",
    ),
    "closed before": (
        f"{HEADER}\ns,c,A,a@x.org,,2025-01-02T00:00:00Z,2025-01-01T00:00:00Z\n",
        "line 2: closed_at must not be before",
    ),
    "closed before now": (f"{HEADER}\ns,c,A,a@x.org,,,2025-01-01T00:00:00Z\n", "line 2: closed_at must not be before"),
    "no time": (f"{HEADER}\ns,c,A,a@x.org,,yesterday,\n", "line 2: created_at must be a UTC time"),
    "duration": (f"{HEADER}\ns,c,A,a@x.org,,30d,\n", "line 2: created_at must be a UTC time"),
    "30 February": (f"{HEADER}\ns,c,A,a@x.org,,2025-02-30T00:00:00Z,\n", "line 2: created_at must be a UTC time"),
    "other zone": (f"{HEADER}\ns,c,A,a@x.org,,2025-02-03T00:00:00+02:00,\n", "line 2: created_at must be a UTC time"),
    "to come": (f"{HEADER}\ns,c,A,a@x.org,,9999-01-01T00:00:00Z,\n", "line 2: created_at must be a UTC time"),
    "few fields": (f"{HEADER}\n{GOOD}s,c\n", "line 3: it has not as many fields as the header"),
    "many fields": (f"{HEADER}\n{GOOD.strip()},,,\n", "line 2: it has not as many fields as the header"),
    "open quote": (f'{HEADER}\n{GOOD}"s,c,A,a@x.org,,,\nx\ny\n', "line 3: unexpected end of data"),
    "text after quote": (f'{HEADER}\n"s"t,c,A,a@x.org,,,\n', "line 2: "),
    "line after lines": (f'{HEADER}\n"a\nb",c,A,a@x.org,,,\n,c,A,a@x.org,,,\n', "line 4: subject is required"),
    "latin 1": (f"{HEADER}\n{GOOD}".encode() + b"caf\xe9,c,A,a@x.org,,,\n", "line 3: it is not UTF-8"),
    "utf-16": (f"{HEADER}\n{GOOD}".encode("utf-16"), "line 1: it is not UTF-8"),
    "10 MB": (f"{HEADER}\n{GOOD}{'x' * 10_000_000},c,A,a@x.org,,,\n", "line 3: it is longer than 1,048,576 bytes"),
    "large field": (f'{HEADER}\ns,"{(1000 * "x" + chr(10)) * 1100}",A,a@x.org,,,\n', "line 2: field larger"),
    "json array": ("[1, 2]\n", "line 1: it is no JSON object"),
    "json text": ('{"subject": "s"', "line 1: it is no JSON object"),
    "json number": ('{"subject":"s","content":"c","name":"A","email":"a@x.org"}\n7\n', "line 2: it is no JSON object"),
    "json deep": ('{"a":' + "[" * 200_000, "line 1: it is no JSON object"),
    "json subject": ('{"subject": 7, "content": "c", "name": "A", "email": "a@x.org"}', "line 1: subject must be a string"),
    "json surrogate": (
        '{"subject": "\\ud800", "content": "c", "name": "A", "email": "a@x.org"}',
        "line 1: subject must not hold",
    ),
    "json time": (
        '{"subject": "s", "content": "c", "name": "A", "email": "a@x.org", "created_at": 7}',
        "line 1: created_at must",
    ),
    "json status": ('{"subject": "s", "content": "c", "name": "A", "email": "a@x.org", "status": [1]}', "line 1: status must"),
    "json status of nothing": (
        '{"subject": "s", "content": "c", "name": "A", "email": "a@x.org", "status": []}',
        "line 1: status must",
    ),
    **{
        f"json time of {value}": (
            f'{{"subject": "s", "content": "c", "name": "A", "email": "a@x.org", "closed_at": {value}}}',
            "line 1: closed_at must be a UTC time",
        )
        for value in ("{}", "[]", "false", "0", "0.0", "true")
    },
    "json field twice": ('{"subject": "s", "subject": "t"}', "line 1: it has the field subject twice."),
    "carriage returns": (f"{HEADER}\r{GOOD}\r", "line 1: a CR stands alone in it; lines end with LF or CR LF"),
    "a carriage return": (f"{HEADER}\n{GOOD}s,c\rd,A,a@x.org,,,\n", "line 3: a CR stands alone in it"),
    "long address": (f"{HEADER}\ns,c,A,{DOTTED * 200}@x.org,,,\n", "line 2: email must be an address"),
    "json user": ('{"subject": "s", "content": "c", "user": "a@x.org"}', "line 1: name is required"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_by_line_and_field_and_nothing_is_kept(into, tmp_path, case, engine):
    content, expected = BAD[case]
    code, out, err = into(content, tmp_path / "new.db")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"ticketapi: {expected}")
    assert err.rstrip("\n").isprintable()
    assert len(err) < 300
    assert not (tmp_path / "new.db").exists()


def test_of_a_thousand_lines_the_last_one_spoils_all(into, db, desk):
    ticketapi.generate_tickets(db, 3, NOON, 1)
    code, _, err = into(lines(*[("s", "c", "A", "a@x.org", "", "", "")] * 1000, ("s", "c", "A", "", "", "", "")), desk)
    assert (code, "line 1002: email is required" in err) == (1, True)
    assert db.execute("SELECT count(*), max(change) FROM tickets").fetchone()[0] == 3


GOOD_SHAPES = {
    "mark": b"\xef\xbb\xbf" + f"{HEADER}\n{GOOD}".encode(),
    "mark before JSON": b'\xef\xbb\xbf{"subject":"s","content":"c","name":"A","email":"a@x.org"}',
    "crlf": f"{HEADER}\n{GOOD}".replace("\n", "\r\n").encode(),
    "blank lines": f"{HEADER}\n\n{GOOD}\n\n".encode(),
    "no line end": f"{HEADER}\n{GOOD.strip()}".encode(),
    "case and blanks": f"{HEADER}\n{GOOD}".replace("subject", " Subject ").encode(),
    "blank lines before JSON": b'\xef\xbb\xbf\n \n{"subject":"s","content":"c","name":"A","email":"a@x.org"}',
    "of a user name and address alone": b"""{"subject":"s","content":"c","name":null,"user":{"name":"A","email":"a@x.org",
        "status":"active","closed_at":"x","created_at":"2020-01-01T00:00:00Z","content":7}}""".replace(b"\n", b""),
    "json and blank lines": b'{"subject":"s","content":"c","user":{"name":"A","email":"a@x.org"}}\n\n \n',
}


@pytest.mark.parametrize(("column", "shown", "value"), [("", "(without a name)", ""), ("notes", "notes", "x" * 200_000)])
def test_columns_of_others_may_hold_whatever_they_do(into, db, desk, column, shown, value):
    code, out, err = into(f"{HEADER},{column}\n{GOOD.strip()},{value}\n", desk)
    assert (code, out, err) == (0, "Imported 1 ticket\n", f"Columns that are ignored: {shown}\n")


@pytest.mark.parametrize("case", GOOD_SHAPES)
def test_what_programs_write_is_read(into, db, desk, case):
    assert into(GOOD_SHAPES[case], desk) == (0, "Imported 1 ticket\n", "")
    assert rows_of(desk)[0][:5] == ("s", "c", "A", "a@x.org", OPEN)


def test_quotes_and_line_ends_in_a_field_stay(into, db, desk):
    assert into(lines(('a "b", c', NASTY, "A, B", "a@x.org", "", "", "")), desk)[0] == 0
    assert rows_of(desk)[0][:3] == ('a "b", c', NASTY.strip(), "A, B")


def test_columns_that_are_ignored_are_told_but_those_that_tickets_writes(into, db, desk):
    text = f"id,priority,{HEADER},updated_at,user_id,tkt\n7,high,{GOOD.strip()},x,y,z\n"
    assert into(text, desk) == (0, "Imported 1 ticket\n", "Columns that are ignored: priority, tkt\n")


def test_a_token_in_a_bad_file_is_not_repeated(into, desk, engine):
    for text in (f"{SANCTUM},b\n", f"subject,content,name,email,{SANCTUM}\ns,c,A,{SANCTUM},x\n"):
        code, out, err = into(text, desk)
        assert code == 1
        assert SANCTUM[3:] not in out + err


# Where from --------------------------------------------------------------------------------------


def command(*arguments, **more):
    """Start an import in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ticketapi", "import", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def test_standard_input_and_a_pipe_with_a_name_are_read(desk, db, tmp_path):
    process = command("-", "--db", desk, stdin=subprocess.PIPE)
    assert process.communicate(f"{HEADER}\n{GOOD}".encode(), timeout=20) == (b"Imported 1 ticket\n", b"")
    os.mkfifo(tmp_path / "pipe")
    process = command(tmp_path / "pipe", "--db", desk)
    text = '{"subject":"t","content":"c","name":"A","email":"a@x.org"}\n'
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    assert process.communicate(timeout=20) == (b"Imported 1 ticket\n", b"")
    writer.join()
    assert [row[0] for row in rows_of(desk)] == ["s", "t"]


def test_a_directory_and_nothing_are_one_line(run, tmp_path, engine):
    for name, words in ((".", "Is a directory"), ("no.csv", "No such file"), ("", "directory: an empty name")):
        code, out, err = run("import", name, "--db", tmp_path / "new.db")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_sqlite_file_of_another_program_and_a_desk_are_refused(run, desk, tmp_path, engine):
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE things (id INTEGER)")
    with closing(ticketapi.open_database(tmp_path / "ours.db", "desk")):
        pass
    (tmp_path / "cut.db").write_bytes((tmp_path / "other.db").read_bytes()[:50])
    for name, words in (("other.db", "no such table"), ("ours.db", "is a desk"), ("cut.db", "cut.db")):
        code, out, err = run("import", name, "--db", tmp_path / "new.db")
        assert (code, out, err.count("\n")) == (1, "", 1), name
        assert words in err
    process = command("-", "--db", tmp_path / "new.db", stdin=subprocess.PIPE)
    assert b"by its name" in process.communicate((tmp_path / "other.db").read_bytes(), timeout=20)[1]
    assert not (tmp_path / "new.db").exists()


# What comes between ------------------------------------------------------------------------------


def test_a_desk_that_is_locked_is_one_line(into, db, desk, monkeypatch):
    impatient = ticketapi.WRITER._replace(wait_ms=50)
    with ticketapi.transaction(db):
        monkeypatch.setitem(ticketapi.KINDS, "desk", ticketapi.KINDS["desk"]._replace(writer=impatient))
        code, out, err = into(f"{HEADER}\n{GOOD}", desk)
    assert (code, out) == (1, "")
    assert "locked" in err
    assert rows_of(desk) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_one_that_is_ended_in_the_middle_leaves_nothing(into, db, desk, tmp_path, number):
    text = lines(*[("s", "c" * 500, "A", f"a{i}@x.org", "Closed", "", "") for i in range(60_000)])
    (tmp_path / "many.csv").write_text(text)
    script = """
import sys, ticketapi
plain = ticketapi.add_tickets
def slow(db, *more, **options):
    plain(db, *more, **options)
    print("batch", flush=True)
ticketapi.add_tickets = slow
sys.exit(ticketapi.main(sys.argv[1:]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, "import", tmp_path / "many.csv", "--db", str(desk)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == ["batch\n"] * 2
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (1 if number != signal.SIGKILL else -signal.SIGKILL)
    assert err == ("" if number == signal.SIGKILL else "ticketapi: interrupted; nothing was imported\n")
    wait_for(lambda: rows_of(desk) == [])
    assert db.execute("SELECT count(*) FROM users").fetchone()[0] == 0
    assert into(f"{HEADER}\n{GOOD}", desk)[0] == 0
    assert_sound(db)


# The original application's file -------------------------------------------------------------------

ALIKE = "UPDATE personal_access_tokens SET token = (SELECT min(token) FROM personal_access_tokens)"
RETYPED = """
    CREATE TABLE others AS SELECT * FROM tickets LIMIT 1;
    DROP TABLE tickets;
    CREATE TABLE tickets (id, user_id, subject, content, status, created_at, updated_at);
    INSERT INTO tickets SELECT {}, user_id, subject, content, status, created_at, updated_at FROM others;
"""
LARAVEL = """
    CREATE TABLE users (id integer primary key autoincrement not null, name varchar not null, email varchar not null,
        email_verified_at datetime, password varchar not null, created_at datetime, updated_at datetime);
    CREATE UNIQUE INDEX users_email_unique ON users (email);
    CREATE TABLE tickets (id integer primary key autoincrement not null, user_id integer not null, subject varchar not null,
        content text not null, status {status} not null default '{first}', created_at datetime, updated_at datetime);
    CREATE TABLE personal_access_tokens (id integer primary key autoincrement not null, tokenable_type varchar not null,
        tokenable_id integer not null, name text not null, token varchar not null, abilities text, last_used_at datetime,
        expires_at datetime, created_at datetime, updated_at datetime);
    CREATE TABLE api_audits (id integer primary key autoincrement not null, user_id integer, token_id integer,
        method varchar not null, path varchar not null, route_name varchar, status_code integer not null, ip_address varchar,
        user_agent text, duration_ms integer, query text, request_body text, created_at datetime, updated_at datetime);
"""
USERS = [
    (1, "Leon", "Leon@Example.net"),
    (2, "Operator", "op@example.net"),
    (3, "Both", "both@example.net"),
    (9, "Idle", "i@x.org"),
]
TICKETS = [  # id, user, status, created, updated
    (1, 1, 2, "2025-12-04 11:30:16", "2025-12-04 13:20:19"),
    (2, 3, 2, "2025-12-04 11:30:16", "2025-12-04 13:25:20"),
    (5, 1, 1, "2025-12-04 11:30:16", "2025-12-04 11:30:16"),
    (200, 3, 1, "2025-12-04 13:25:12", "2025-12-04 13:25:12"),
]


def digest(text):
    """Return what Sanctum keeps of a token."""
    return hashlib.sha256(text.partition("|")[2].encode()).hexdigest()


@pytest.fixture
def original(tmp_path):
    """Return a function that makes the file of the original application, with a change of its tables made last."""

    def make(change="", status="integer", shift=0):
        path = tmp_path / "database.sqlite"
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as db:
            db.executescript(LARAVEL.format(status=status, first=1 - shift))
            stamp = "2025-12-01 00:00:00"
            db.executemany("INSERT INTO users VALUES (?, ?, ?, NULL, 'hash', ?, ?)", [(*user, stamp, stamp) for user in USERS])
            tickets = [(one[0], one[1], f"s{one[0]}", "c", one[2] - shift, *one[3:]) for one in TICKETS]
            db.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?, ?, ?, ?)", tickets)
            tokens = [
                (12, 2, "dashboard", digest(SANCTUM), '["*"]', "2025-12-04 10:00:00", None),
                (13, 3, "app", digest(SECOND_TOKEN), '["read:tickets","teleport"]', None, None),
                (14, 3, "old", digest("14|" + "o" * 40), '["*"]', None, "2025-12-02 00:00:00"),
            ]
            db.executemany(
                "INSERT INTO personal_access_tokens VALUES (?, 'App\\Models\\User', ?, ?, ?, ?, ?, ?, ?, NULL)",
                [(*token, stamp) for token in tokens],
            )
            db.executescript(change)
            db.commit()
        return path

    return make


def test_tickets_and_customers_keep_their_ids_and_gaps_are_counted(run, original, db, desk):
    assert run("import", original(), "--db", desk) == (0, "Imported 4 tickets, 3 tokens\n", "")
    found = db.execute("SELECT id, user_id, status, created_at, closed_at FROM tickets ORDER BY id")
    assert [tuple(row) for row in found] == [
        (1, 1, 2, "2025-12-04T11:30:16.000000Z", "2025-12-04T13:20:19.000000Z"),
        (2, 3, 2, "2025-12-04T11:30:16.000001Z", "2025-12-04T13:25:20.000000Z"),
        (5, 1, 1, "2025-12-04T11:30:16.000002Z", None),
        (200, 3, 1, "2025-12-04T13:25:12.000000Z", None),
    ]
    customers = db.execute("SELECT id, name, email, tickets_count FROM users WHERE id < 1000000000 ORDER BY id")
    assert [tuple(row) for row in customers] == [
        (1, "Leon", "leon@example.net", 2),
        (3, "Both", "both@example.net", 2),
        (9, "Idle", "i@x.org", 0),
    ]
    owners = db.execute("SELECT id, name, email FROM users WHERE id >= 1000000000 ORDER BY id")
    assert [tuple(row) for row in owners] == [
        (FIRST_OWNER_ID, "Operator", "op@example.net"),
        (FIRST_OWNER_ID + 1, "Both", "both@example.net"),
    ]
    assert_sound(db)
    ticketapi.generate_tickets(db, 300, NOON + 86_400 * SECOND, 1)
    assert_sound(db)


def test_its_tokens_work_as_they_are(run, original, make_api, desk, db, clock):
    assert run("import", original(), "--db", desk)[0] == 0
    api = make_api(rate=0)
    for text in (SANCTUM, f"99|{SANCTUM[3:]}", SECOND_TOKEN):
        assert api.get("/api/stats", token=text).json["most_recent_processed_at"] == "2025-12-04 13:25:20"
    assert api.get("/api/token", token=SECOND_TOKEN).json["data"]["abilities"] == ["read:tickets", "teleport"]
    assert api.get("/api/audits/summary", token=SECOND_TOKEN).status == 403
    assert api.get("/api/audits/summary", token=SANCTUM).status == 200
    wrong = (
        "14|" + "o" * 40,
        SANCTUM[3:],
        f"|{SANCTUM[3:]}",
        f"x|{SANCTUM[3:]}",
        f"1|2|{SANCTUM[3:]}",
        f"12%7C{SANCTUM[3:]}",
        SANCTUM[:-1],
    )
    for text in wrong:
        assert api.get("/api/stats", token=text).status == 401, text
    assert [page["id"] for page in api.get("/api/tickets/closed", token=SANCTUM).json["data"]] == [2, 1]
    assert [page["id"] for page in api.get("/api/tickets/open?page=2&per_page=1", token=SANCTUM).json["data"]] == [200]


def test_a_token_in_a_request_is_redacted_in_the_log(run, original, make_api, desk, db, clock):
    assert run("import", original(), "--db", desk)[0] == 0
    api = make_api(rate=0)
    secret = SANCTUM[3:]
    api.get(f"/api/{SANCTUM}", token=SANCTUM, headers={"User-Agent": f"x {SANCTUM}", "X-Request-Id": "r"})
    api.get(f"/api/stats?q={SANCTUM}&r=12%257C{secret}", token=SANCTUM)
    api.request("POST", "/api/tickets", token=SANCTUM, body=json.dumps({"subject": f"a {SANCTUM}"}).encode())
    rows = api.audits()
    assert len(rows) == 3
    assert secret not in json.dumps(rows)
    assert json.dumps(rows).count("[redacted]") == 5


def test_a_token_of_a_second_import_is_known_already(run, original, desk, db):
    ticketapi.create_token(db, "op@example.net", "ours", ["*"], 0, NOON)
    db.execute("UPDATE personal_access_tokens SET token = :token", {"token": digest(SANCTUM)})
    code, out, err = run("import", original(), "--db", desk)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert rows_of(desk) == []


def test_the_log_comes_too_when_asked_for(run, original, desk, db, tmp_path):
    body = json.dumps({"password": "hunter2", "note": f"see {SANCTUM}"})
    change = f"""
        INSERT INTO api_audits VALUES (1, 2, 12, 'GET', 'api/{SANCTUM}', 'open', 200, '127.0.0.1', 'curl', 7, '{{"page":"2"}}',
            '{body}', '2025-12-04 11:00:00', NULL);
        INSERT INTO api_audits VALUES (2, 1, 99, 'GET', 'api/stats', NULL, 200, NULL, NULL, NULL, NULL, NULL,
            '2025-12-04 11:00:01', NULL);
    """
    assert run("import", original(change), "--db", desk, "--audit")[1] == "Imported 4 tickets, 3 tokens, 2 requests\n"
    with closing(ticketapi.open_database(ticketapi.Settings(db=desk).audit_db, "audit")) as log:
        rows = [dict(row) for row in log.execute("SELECT * FROM api_audits ORDER BY id")]
    token = db.execute("SELECT id FROM personal_access_tokens WHERE name = 'dashboard'").fetchone()[0]
    assert [(row["user_id"], row["token_id"], row["created_at"]) for row in rows] == [
        (FIRST_OWNER_ID, token, "2025-12-04T11:00:00.000000Z"),
        (1, None, "2025-12-04T11:00:01.000000Z"),
    ]
    assert rows[0]["path"] == "api/[redacted]"
    assert json.loads(rows[0]["request_body"]) == {"password": "[redacted]", "note": "see [redacted]"}
    assert (rows[0]["query"], rows[1]["query"], rows[1]["user_agent"]) == ('{"page":"2"}', None, None)


def test_a_log_is_not_asked_of_a_file_without_one(into, desk, db):
    code, out, err = into(f"{HEADER}\n{GOOD}", desk, "--audit")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "--audit" in err
    assert rows_of(desk) == []


@pytest.mark.parametrize("status", ["tinyint(1)", "integer"])
def test_a_status_that_is_a_truth_value_is_understood(run, original, desk, db, status):
    assert run("import", original(status=status, shift=1), "--db", desk)[0] == 0
    assert [row[4] for row in rows_of(desk)] == [CLOSED, CLOSED, OPEN, OPEN]


def test_a_truth_value_is_told_by_its_type_where_all_are_closed(run, original, desk, db):
    run("import", original("DELETE FROM tickets WHERE id > 2", status="tinyint(1)", shift=1), "--db", desk)
    assert [row[4] for row in rows_of(desk)] == [CLOSED, CLOSED]


def test_a_time_of_closing_of_its_own_and_what_was_deleted_softly_count(run, original, desk, db):
    change = """
        ALTER TABLE tickets ADD COLUMN processed_at datetime;
        ALTER TABLE tickets ADD COLUMN deleted_at datetime;
        UPDATE tickets SET processed_at = '2025-12-04 12:00:00' WHERE id = 2;
        UPDATE tickets SET deleted_at = '2025-12-05 12:00:00' WHERE id = 5;
    """
    assert run("import", original(change), "--db", desk)[0] == 0
    assert [row[6] for row in rows_of(desk)] == ["2025-12-04T13:20:19.000000Z", "2025-12-04T12:00:00.000000Z", None]


def test_one_that_came_before_a_lower_id_is_moved_and_told(run, original, desk, db):
    change = "UPDATE tickets SET created_at = '2025-12-04 10:00:00', updated_at = '2025-12-04 10:00:00' WHERE id = 5"
    code, _, err = run("import", original(change), "--db", desk)
    assert (code, err) == (0, "1 tickets were moved by more than a second, to after the one before them\n")
    assert rows_of(desk)[2][5] == "2025-12-04T11:30:16.000002Z"


@pytest.mark.parametrize("filling", ["tickets", "customers"])
def test_it_needs_a_desk_without_tickets_and_customers(run, original, desk, db, filling):
    if filling == "tickets":
        ticketapi.generate_tickets(db, 1, NOON, 1)
    else:
        with ticketapi.transaction(db):
            ticketapi.add_customers(db, 1, {1: NOON})
    code, out, err = run("import", original(), "--db", desk)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "take another --db" in err
    assert not db.execute("SELECT count(*) FROM personal_access_tokens").fetchone()[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE tickets SET subject = '' WHERE id = 2", "ticket 2: subject is required"),
        ("UPDATE tickets SET user_id = 77 WHERE id = 2", "ticket 2: name is required"),
        ("UPDATE tickets SET status = 3 WHERE id = 2", "ticket 2: status must be Open or Closed"),
        ("UPDATE tickets SET id = 4000000000 WHERE id = 200", "ticket 4000000000: id must be 1 to 10000000"),
        ("UPDATE tickets SET created_at = 'x' WHERE id = 2", "ticket 2: created_at must be a UTC time"),
        ("UPDATE users SET email = 'LEON@example.net' WHERE id = 9", "user 9: email is that of user 1, too"),
        ("UPDATE users SET email = 'bad mail' WHERE id = 9", "user 9: email must be an address"),
        ("UPDATE users SET name = x'410042' WHERE id = 9", "user 9: name must be a string"),
        ("UPDATE users SET name = '\N{ZERO WIDTH SPACE}' WHERE id = 9", "user 9: name is required"),
        ("UPDATE users SET name = hex(zeroblob(128)) WHERE id = 9", "user 9: name must not be greater than 255 characters"),
        ("UPDATE users SET created_at = 7 WHERE id = 9", "user 9: created_at must be a UTC time"),
        ("UPDATE users SET email = 'op' WHERE id = 2", "token 12: email must be an address"),
        ("UPDATE users SET name = '' WHERE id = 2", "token 12: owner is required"),
        ("UPDATE personal_access_tokens SET token = 'x'", "token 12: token must be a SHA-256 in hexadecimal"),
        (
            ALIKE,
            "the desk has it already",
        ),
        ("UPDATE personal_access_tokens SET created_at = 'x' WHERE id = 13", "token 13: created_at must be a UTC time"),
        ("UPDATE personal_access_tokens SET expires_at = 'soon' WHERE id = 13", "token 13: expires_at must be a UTC time"),
        ("DROP TABLE personal_access_tokens", "database.sqlite: no such table"),
        (RETYPED.format("'a'"), "ticket a: id must be 1 to 10000000"),
        (RETYPED.format("'1'"), "ticket 1: id must be 1 to 10000000"),
    ],
)
def test_what_is_wrong_with_it_is_one_line_and_nothing_is_kept(run, original, desk, db, change, words):
    code, out, err = run("import", original(change), "--db", desk)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert words in err
    assert rows_of(desk) == []
    assert db.execute("SELECT count(*) FROM users").fetchone()[0] == 0


NO_ABILITIES = ("[", "5", '"*"', '{"*": 1}', "[1, null, {}]", '["*", 1]', '[["*"]]', '["\\ud800"]', '["\\u0000"]', "[" * 5000)


@pytest.mark.parametrize("text", NO_ABILITIES, ids=range(len(NO_ABILITIES)))
def test_a_token_may_do_nothing_but_what_a_list_of_texts_says(run, original, desk, db, text):
    change = f"UPDATE personal_access_tokens SET abilities = '{text}' WHERE id = 13"
    code, out, err = run("import", original(change), "--db", desk)
    assert (code, out, err) == (1, "", "ticketapi: token 13: abilities must be a list of texts\n")
    assert not db.execute("SELECT count(*) FROM users").fetchone()[0]


def test_tokens_of_something_else_than_users_stay_where_they_are(run, original, desk, db):
    change = "UPDATE personal_access_tokens SET tokenable_type = 'App-Models-Team' WHERE tokenable_id = 3"
    assert run("import", original(change), "--db", desk)[1] == "Imported 4 tickets, 1 token\n"
    assert [row[0] for row in db.execute("SELECT name FROM personal_access_tokens")] == ["dashboard"]


def test_a_customer_is_one_whatever_the_case_and_space_of_the_address(run, original, desk, db):
    change = "UPDATE users SET email = '\N{NO-BREAK SPACE}\u00c4\u00d6@B.C\t', name = ' Leon\N{ZERO WIDTH SPACE}' WHERE id = 1"
    assert run("import", original(change), "--db", desk)[0] == 0
    assert tuple(db.execute("SELECT name, email FROM users WHERE id = 1").fetchone()) == ("Leon", "\u00e4\u00f6@b.c")
    with ticketapi.transaction(db):
        assert ticketapi.ensure_customer(db, "x", "\u00c4\u00f6@b.c", NOON) == 1


def test_what_has_no_time_came_when_it_was_imported(run, original, desk, db):
    change = "UPDATE users SET created_at = NULL; UPDATE personal_access_tokens SET created_at = NULL"
    assert run("import", original(change), "--db", desk)[0] == 0
    times = db.execute("SELECT created_at FROM users UNION ALL SELECT created_at FROM personal_access_tokens")
    assert all(ticketapi.parse_time(row[0]) > NOON for row in times)


REQUEST = "INSERT INTO api_audits VALUES (1, 2, 12, 'GET', 'x', 'x', 200, NULL, NULL, 1, NULL, NULL, NULL, NULL);"


def test_what_is_no_text_in_its_log_becomes_one(run, original, desk, db):
    change = f"""{REQUEST}
        UPDATE api_audits SET user_id = 'x', token_id = NULL, path = x'2fff', user_agent = x'39', duration_ms = 'x', query = 5;
    """
    assert run("import", original(change), "--db", desk, "--audit")[1].endswith("1 request\n")
    with closing(ticketapi.open_database(ticketapi.Settings(db=desk).audit_db, "audit")) as log:
        row = dict(log.execute("SELECT * FROM api_audits").fetchone())
    assert (row["path"], row["user_agent"], row["query"], row["request_body"]) == ("/\ufffd", "9", '{"body":"5"}', None)
    assert (row["user_id"], row["token_id"], row["duration_ms"]) == (None, None, 0)


@pytest.mark.parametrize(
    ("column", "words"),
    [("status_code", "status_code must be a whole number"), ("created_at", "created_at must be a UTC time")],
)
def test_what_its_log_must_say_is_named(run, original, desk, db, column, words):
    code, out, err = run("import", original(f"{REQUEST} UPDATE api_audits SET {column} = 'x'"), "--db", desk, "--audit")
    assert (code, out, err.startswith(f"ticketapi: request 1: {words}")) == (1, "", True)
    assert rows_of(desk) == []


def test_the_file_itself_is_only_read(run, original, desk, db, tmp_path):
    path = original()
    before = path.read_bytes()
    assert run("import", path, "--db", desk)[0] == 0
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("database.sqlite-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_file_that_never_ends_is_let_go_of_when_one_is_told_to(original, tmp_path, engine, number):
    endless = """
        DROP TABLE tickets;
        CREATE VIEW tickets AS
        WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)
        SELECT id, 1 AS user_id, 's' AS subject, 'c' AS content, 1 AS status, '2025-12-01 00:00:00' AS created_at,
               '2025-12-01 00:00:00' AS updated_at
        FROM n"""
    command = [sys.executable, "-m", "ticketapi", "import", original(endless), "--db", "new.db"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:

        def used():
            with open(f"/proc/{process.pid}/stat") as file:
                return int(file.read().rpartition(")")[2].split()[11]) > 150  # ticks of CPU time: it is at it

        wait_for(used)
        process.send_signal(number)
        _, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (1, "ticketapi: interrupted; nothing was imported\n")
    assert not (tmp_path / "new.db").exists()
