"""The audit log is shown, followed and pruned: filtered, safe for a terminal, bounded, and without holding up a request."""

import fcntl
import io
import json
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from itertools import count, islice

import pytest
from conftest import NOON, SECOND, Api, wait_for

import ticketapi
from ticketapi import AUDIT_LOOK, AUDIT_PAGE, AUDIT_SPAN, AUDIT_STEP, PRUNE_STEPS, AuditFilter

MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
COLUMNS = [
    "id", "user_id", "token_id", "method", "path", "route_name", "status_code", "ip_address", "user_agent", "duration_ms",
    "query", "request_body", "created_at", "request_id",
]  # fmt: skip
ROW = {
    "user_id": 1_000_000_000,
    "token_id": 1,
    "method": "GET",
    "path": "api/stats",
    "route_name": "stats",
    "status_code": 200,
    "ip_address": "198.51.100.7",
    "user_agent": "curl/8.14.1",
    "duration_ms": 3,
    "query": None,
    "request_body": None,
    "request_id": None,
}
HOSTILE = "a\nb\r\x1b[31m\x00\x7f\x85\x9b2J\u2028\u202eevil\u2066\u200f\ufeff\U000e0001 |\tZoë 東京"


def now():
    """Return the time, in microseconds; what the commands go by."""
    return ticketapi.wall_microseconds()


def row(age=0.0, **changes):
    """Return a row of the log that is so many seconds old."""
    created_at = ticketapi.format_time(now() - int(age * SECOND))
    return {**ROW, "created_at": created_at, "request_id": "0af7651916cd43dd", **changes}


@pytest.fixture
def path(tmp_path):
    """The path of the audit log that commands in the folder of the test use."""
    return tmp_path / "ticketapi-audit.db"


@pytest.fixture
def log(path):
    """Return a function that adds rows to the log, which it makes."""

    def add(*rows):
        with closing(ticketapi.open_database(path, "audit")) as db, ticketapi.transaction(db):
            ticketapi.insert_audits(db, rows)

    return add


@pytest.fixture
def reader(log, path):
    """A connection to an empty log, as the command opens it."""
    log()
    with closing(ticketapi.open_read_only(path, "audit")) as db:
        yield db


def ids_in(path):
    """Return the ids of the rows of a log."""
    with closing(ticketapi.connect(path)) as db:
        return [found[0] for found in db.execute("SELECT id FROM api_audits ORDER BY id")]


def shown(result):
    """Return the objects that a command printed as JSON Lines."""
    code, out, err = result
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def ids(result):
    """Return the ids of the rows that a command printed as JSON Lines."""
    return [found["id"] for found in shown(result)]


def files(folder):
    """Return the names of what lies in a folder."""
    return sorted(found.name for found in folder.iterdir())


def assert_refused(result, code, *words):
    """Check that a command failed with nothing on stdout and one line on stderr that holds some words."""
    found, out, err = result
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert not [word for word in words if word not in err], err


# The table ---------------------------------------------------------------------------------------


def test_the_newest_request_comes_first_under_titles(run, log):
    log(row(path="api/one"), row(path="api/two", status_code=404))
    code, out, err = run("audit")
    titles, *lines = out.splitlines()
    assert (code, err) == (0, "")
    assert titles.split() == ["TIME", "STATUS", "METHOD", "PATH", "USER", "TOKEN", "IP", "MS", "AGENT"]
    assert [line.split()[1:4] for line in lines] == [["404", "GET", "api/two"], ["200", "GET", "api/one"]]


def test_a_line_tells_who_asked_for_what_and_when(run, log):
    log(row(created_at="2025-12-04T11:30:16.123456Z", user_agent="Mozilla/5.0 (X11)"))
    assert re.split(r"  +", run("audit")[1].splitlines()[1]) == [
        "2025-12-04T11:30:16Z", "200", "GET", "api/stats", "1000000000", "1", "198.51.100.7", "3", "Mozilla/5.0 (X11)",
    ]  # fmt: skip


def test_what_a_request_does_not_have_is_a_dash(run, log):
    log(row(user_id=None, token_id=None, user_agent=None))
    assert [run("audit")[1].splitlines()[1].split()[index] for index in (4, 5, 8)] == ["-", "-", "-"]


def test_columns_stand_below_each_other_over_all_pages(run, log):
    log(*(row(path="api/" + "x" * (n % 30)) for n in range(2 * AUDIT_PAGE + 1)))
    _, *lines = run("audit", "--limit", 0)[1].splitlines()
    assert len(lines) == 2 * AUDIT_PAGE + 1
    assert len({line.index("curl") for line in lines}) == 1


def test_a_value_that_is_too_long_moves_only_its_own_line_in_a_pipe(run, log):
    log(row(path="api/" + "x" * 500), row())
    _, short, long = run("audit")[1].splitlines()
    assert "x" * 500 in long
    assert len(short) < 160


@pytest.mark.parametrize(("arguments", "rows"), [((), 50), (("--limit", 1), 1), (("--limit", 0), 450), (("--limit", 449), 449)])
def test_there_are_as_many_rows_as_the_limit_says_and_50_without_one(run, log, arguments, rows):
    log(*(row() for _ in range(450)))
    assert ids(run("audit", "--json", *arguments)) == list(range(450, 450 - rows, -1))


# JSON Lines --------------------------------------------------------------------------------------


def test_a_json_line_has_the_columns_of_the_table_and_objects_for_query_and_body(run, log):
    written = row(query='{"page":"2"}', request_body='{"a":{"b":["1"]}}', user_agent="Zoë 東京 \U0001f600")
    log(written)
    [found] = shown(run("audit", "--json"))
    assert list(found) == COLUMNS
    assert found == {"id": 1, **written, "query": {"page": "2"}, "request_body": {"a": {"b": ["1"]}}}


@pytest.mark.parametrize("payload", ["{broken", "[" * 5000, "[NaN]", "", '"\\ud800"'])
def test_a_payload_of_any_kind_is_a_line_of_json(run, log, payload):
    log(row(query=payload))

    def refuse(name):
        raise AssertionError(name)

    code, out, err = run("audit", "--json")
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    json.loads(out, parse_constant=refuse)


def test_no_rows_are_no_lines(run, log):
    log(row())
    assert run("audit", "--json", "--status", "5xx") == (0, "", "")


# Filters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--user", "7"], [2]),
        (["--user", "8"], []),
        (["--token", "5"], [3]),
        (["--status", "404"], [4]),
        (["--status", "4xx"], [5, 4]),
        (["--status", "4XX"], [5, 4]),
        (["--status", "5xx"], []),
        (["--path", "api/tickets"], [6]),
        (["--path", "/api/tickets"], [6]),
        (["--path", "Stats"], [7]),
        (["--path", "/Stats"], []),
        (["--path", "pen"], [6]),
        (["--path", "%"], []),
        (["--since", "90m"], [7, 6, 5, 4, 3]),
        (["--since", "90m", "--limit", "2"], [7, 6]),
        (["--since", "90m", "--status", "429", "--path", "stats", "--user", "1000000000"], [5]),
        (["--since", "0"], [7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_a_filter_leaves_the_rows_that_fit_all_of_it(run, log, arguments, found):
    log(
        row(3 * 3600),
        row(2 * 3600, user_id=7),
        row(3600, token_id=5, user_id=None),
        row(status_code=404),
        row(status_code=429),
        row(path="api/tickets/open"),
        row(path="api/myStats"),
    )
    assert ids(run("audit", "--json", *arguments)) == found


def test_a_user_is_found_by_address_too(run, log):
    run("token", "create", "--user", "ann@example.com")
    log(row(), row(user_id=7))
    assert ids(run("audit", "--json", "--user", "Ann@Example.com")) == [1]


@pytest.mark.parametrize("desk", [True, False])
def test_an_unknown_address_is_refused(run, tmp_path, desk):
    if desk:
        run("token", "create")
    before = files(tmp_path)
    assert_refused(run("audit", "--user", "ann@example.com"), 1, "ann@example.com", "token list")
    assert files(tmp_path) == before


def test_variables_of_other_commands_do_not_filter(run, log, monkeypatch):
    for name, text in (("USER", "ann@example.com"), ("SINCE", "1s"), ("PATH", "/nope"), ("TOKEN", "9")):
        monkeypatch.setenv(f"TICKETAPI_{name}", text)
    log(row(60))
    assert ids(run("audit", "--json")) == [1]
    monkeypatch.setenv("TICKETAPI_AUDIT_SINCE", "1s")
    assert ids(run("audit", "--json")) == []


# No log, no rows, no touch -----------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--limit", 0), ("--status", "4xx", "--since", "1h")])
def test_without_a_log_there_are_no_audits_and_nothing_is_made(run, tmp_path, arguments):
    for before in ([], ["ticketapi.db"]):
        assert run("audit", *arguments) == (0, "No audits\n", "")
        assert run("audit", "--json", *arguments) == (0, "", "")
        assert files(tmp_path) == before
        run("generate")


def test_an_empty_log_and_a_filter_that_nothing_fits_give_no_audits(run, log, path):
    path.touch()
    assert run("audit") == (0, "No audits\n", "")
    assert path.stat().st_size == 0
    log()
    assert run("audit") == (0, "No audits\n", "")
    log(row())
    assert run("audit", "--token", 7) == (0, "No audits\n", "")


def test_reading_leaves_the_folder_as_it_was(run, log, tmp_path, path):
    log(row())
    before, content = files(tmp_path), path.read_bytes()
    assert len(ids(run("audit", "--json"))) == 1
    assert (files(tmp_path), path.read_bytes()) == (before, content)


def test_reading_cannot_write(reader):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM api_audits")


def test_what_is_no_audit_log_is_refused_by_its_name(run, tmp_path, path):
    path.write_text("no database" * 100)
    for words in (("audit",), ("audit", "prune", "--older-than", "1d")):
        assert_refused(run(*words), 1, path.name, "not a SQLite database")
    with closing(sqlite3.connect(tmp_path / "other-audit.db")) as db:
        db.execute("CREATE TABLE api_audits (id INTEGER)")
    assert_refused(run("audit", "--db", "other.db"), 1, "other-audit.db", "another program")


def test_a_log_that_is_damaged_is_one_line_that_names_it(run, log, path):
    log(row())
    with closing(ticketapi.connect(path)) as db:
        db.execute("DROP TABLE api_audits")
    assert_refused(run("audit"), 1, path.name)


# Safe for a terminal -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202e", r"\u202e"),
        ("\u2028", r"\u2028"),
        ("\U000e0001", r"\U000e0001"),
        ("\udcff", r"\udcff"),
        ("a\r\nb\t\x00", r"a\r\nb\t\x00"),
        ("Zoë 東京 \U0001f600 \\n", "Zoë 東京 \U0001f600 \\n"),
    ],
)
def test_what_a_terminal_would_act_on_is_written_by_its_number(text, written):
    assert ticketapi.escape(text) == written
    assert ticketapi.one_line("x" + text.strip("\r\n\u2028")).isprintable()


@pytest.mark.parametrize("column", ["method", "path", "ip_address", "user_agent"])
def test_a_stored_text_is_printable_in_the_table_whatever_it_holds(run, log, column):
    log(row(**{column: HOSTILE}), row())
    code, out, err = run("audit")
    assert (code, err, len(out.split("\n"))) == (0, "", 4)
    assert all(line.isprintable() for line in out.split("\n"))
    assert r"\u202eevil" in out
    assert "Zoë 東京" in out


def test_a_json_line_is_plain_ascii_whatever_is_stored(run, log):
    texts = dict.fromkeys(("method", "path", "ip_address", "user_agent", "route_name"), HOSTILE)
    log(row(**texts, query=json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False)))
    out = run("audit", "--json")[1]
    assert re.fullmatch(r"[ -~]*\n", out)
    assert json.loads(out)["user_agent"] == HOSTILE
    assert json.loads(out)["query"] == {HOSTILE: HOSTILE}


def test_a_text_that_is_no_utf_8_is_shown(run, log, path):
    log(row())
    with closing(ticketapi.connect(path)) as db:
        db.execute("UPDATE api_audits SET path = CAST(x'6170692fff' AS TEXT)")
    assert [found["path"] for found in shown(run("audit", "--json"))] == ["api/\ufffd"]
    assert run("audit")[0] == 0


def environment(measured=True, **more):
    """Return the environment of a command, without variables for it and without colours.

    One that is to be interrupted is not measured: coverage locks up when that hits it at the wrong moment.
    """
    unwanted = ("TICKETAPI", "COLUMNS", *(() if measured else ("COVERAGE",)))
    return {**{name: value for name, value in os.environ.items() if not name.startswith(unwanted)}, "NO_COLOR": "1", **more}


def test_a_terminal_that_cannot_write_a_character_gets_its_number(log, tmp_path):
    log(row(user_agent="Zoë 東京"))
    command = [sys.executable, "-m", "ticketapi", "audit"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(PYTHONIOENCODING="ascii"), capture_output=True, check=True)
    assert done.stdout.decode("ascii").rstrip().endswith(r"Zo\xeb \u6771\u4eac")


def on_terminal(folder, width, *arguments):
    """Return the lines that a command writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [sys.executable, "-m", "ticketapi", "audit", *arguments]
    running = subprocess.Popen(command, cwd=folder, env=environment(PYTHONUTF8="1"), stdout=slave)
    os.close(slave)
    data = b""
    try:
        while chunk := os.read(master, 65536):
            data += chunk
    except OSError:  # the terminal has no other side any more
        pass
    os.close(master)
    assert running.wait(timeout=20) == 0
    return data.decode().split("\r\n")[:-1]


@pytest.mark.parametrize("width", [20, 132])
def test_each_row_fits_a_line_of_the_terminal(log, tmp_path, width):
    log(row(path="api/" + "東京" * 100, user_agent="e\u0301" * 100), row(path="api/" + "x" * 1000, user_agent="y" * 255), row())
    lines = on_terminal(tmp_path, width)
    assert len(lines) == 4
    assert max(map(ticketapi.text_columns, lines)) <= width
    assert all(line.endswith("…") for line in lines[2:])


def test_a_long_path_leaves_the_columns_after_it_in_their_places(log, tmp_path):
    log(row(path="api/" + "東京" * 100), row(path="api/" + "x" * 1000), row())
    _, *lines = on_terminal(tmp_path, 200)
    assert len({ticketapi.text_columns(line.partition("198.51")[0]) for line in lines}) == 1


@pytest.mark.parametrize(
    ("text", "width", "fitted"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("ab  cd", 5, "ab…"),
        ("東京都", 6, "東京都"),
        ("東京都", 5, "東京…"),
        ("東京都", 4, "東…"),
    ],
)
def test_a_text_is_cut_to_columns(text, width, fitted):
    assert ticketapi.fit_text(text, width) == fitted


# Bounded -----------------------------------------------------------------------------------------


def test_a_rare_row_is_found_far_back(run, log):
    log(row(status_code=500), *(row() for _ in range(2 * AUDIT_SPAN + 5)))
    assert ids(run("audit", "--json", "--status", "5xx")) == [1]


def test_gaps_between_ids_cost_nothing(run, log, path):
    log(*(row() for _ in range(5)))
    with closing(ticketapi.connect(path)) as db:
        db.execute("UPDATE api_audits SET id = id * 1000000000000")
    assert ids(run("audit", "--json")) == [n * 10**12 for n in (5, 4, 3, 2, 1)]
    with closing(ticketapi.open_read_only(path, "audit")) as db:
        found, last = [], 0
        while last < 4 * 10**12:
            page, last = ticketapi.step_forward(db, AuditFilter(), last, 4 * 10**12, AUDIT_PAGE)
            found += [each["id"] for each in page]
        assert found == [n * 10**12 for n in (1, 2, 3, 4)]


def test_a_time_is_looked_for_as_long_as_there_are_rows_of_it_among_so_many(reader, log):
    log(row(60), *(row(7200) for _ in range(AUDIT_SPAN - 1)), row(30), row(7200))
    since = ticketapi.format_time(now() - HOUR)

    def found(**more):
        pages = ticketapi.newest_audits(reader, AuditFilter(since=since, **more))
        return [each["id"] for page in pages for each in page]

    assert found() == [AUDIT_SPAN + 1, 1]  # a clock that was set back is survived
    assert found(lowest_status=500) == []
    log(*(row(7200) for _ in range(AUDIT_SPAN)))
    assert found() == []  # but a log of millions is not read to its start


@pytest.mark.parametrize("read", [ticketapi.newest_audits, partial(ticketapi.follow_audits, limit=0)], ids=["newest", "follow"])
def test_no_read_is_open_between_two_pages_so_that_checkpoints_go_on(reader, log, path, read):
    log(*(row() for _ in range(2 * AUDIT_PAGE + 1)))
    pages = read(reader, AuditFilter())
    with closing(ticketapi.connect(path)) as writer:
        for size in (AUDIT_PAGE, AUDIT_PAGE, 1):
            assert len(next(pages)) == size
            writer.execute("UPDATE api_audits SET duration_ms = 4")
            assert tuple(writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()) == (0, 0, 0)


# --follow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "first"), [(2, [2, 3]), (0, [1, 2, 3]), (50, [1, 2, 3])])
def test_following_begins_with_the_newest_in_the_order_they_came(reader, log, limit, first):
    log(row(), row(), row())
    pages = ticketapi.follow_audits(reader, AuditFilter(), limit)
    assert [found["id"] for found in next(pages)] == first
    assert next(pages) == []
    log(row(), row())
    assert [found["id"] for found in next(pages)] == [4, 5]
    assert [next(pages), next(pages)] == [[], []]


def test_following_a_filter_shows_what_fits_it_alone(reader, log):
    log(row(), row(status_code=404), row())
    pages = ticketapi.follow_audits(reader, AuditFilter(lowest_status=400), 50)
    assert [found["id"] for found in next(pages)] == [2]
    assert next(pages) == []
    log(row(), row(status_code=500), row())
    assert [found["id"] for found in next(pages)] == [5]


def test_following_a_filter_that_nothing_fits_yet_starts_at_the_end(reader, log):
    log(row(), row())
    pages = ticketapi.follow_audits(reader, AuditFilter(path="/api/tickets"), 50)
    assert next(pages) == []
    log(row())
    assert next(pages) == []
    log(row(path="api/tickets/open"))
    assert [found["id"] for found in next(pages)] == [4]


def test_following_goes_on_when_all_was_pruned(reader, log, path):
    log(*(row(7200) for _ in range(5)))
    pages = ticketapi.follow_audits(reader, AuditFilter(), 1)
    assert [len(next(pages)), next(pages)] == [1, []]
    with closing(ticketapi.open_database(path, "audit")) as db:
        assert ticketapi.prune_audits(db, ticketapi.format_time(now()), AUDIT_STEP) == 5
    log(row(path="api/new"))
    assert [(found["id"], found["path"]) for found in next(pages)] == [(6, "api/new")]


class Following:
    """A real `ticketapi audit --follow`, with its stdout at the other end of a pipe."""

    def __init__(self, folder, *arguments, measured=False):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ticketapi", "audit", "--follow", *map(str, arguments)],
            cwd=folder,
            env=environment(measured),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def lines(self, number):
        """Return so many lines of stdout."""
        return [self.process.stdout.readline() for _ in range(number)]

    def end(self, number=None):
        """Return exit code and stderr, after a signal if one is given."""
        if number:
            self.process.send_signal(number)
        err = self.process.stderr.read()
        return self.process.wait(timeout=20), err


def test_a_follower_prints_rows_as_they_come_until_ctrl_c(log, tmp_path):
    log(row(path="api/one"), row(path="api/two"), row(path="api/three"))
    with Following(tmp_path, "--limit", 2) as following:
        assert [line.split()[3] for line in following.lines(3)] == ["PATH", "api/two", "api/three"]
        log(row(path="api/four"))
        assert following.lines(1)[0].split()[3] == "api/four"
        assert following.end(signal.SIGINT) == (0, "")


def test_a_follower_of_json_waits_for_the_log_and_writes_whole_lines(log, tmp_path):
    with Following(tmp_path, "--json", "--limit", 0) as following:
        assert "Waiting for ticketapi-audit.db" in following.process.stderr.readline()
        assert files(tmp_path) == []
        log(row(path="api/one"))
        assert json.loads(following.lines(1)[0])["path"] == "api/one"
        assert following.end(signal.SIGINT) == (0, "")


def test_a_follower_ends_when_its_reader_leaves_even_if_no_row_comes(log, tmp_path):
    with Following(tmp_path, measured=True) as following:
        following.process.stderr.readline()
        log(row())
        following.lines(2)
        following.process.stdout.close()
        assert following.end() == (1, "")
        following.process.stdout = None


def test_a_follower_writes_to_a_file(log, tmp_path):
    log(row(path="api/one"))
    with open(tmp_path / "out", "w") as out:
        command = [sys.executable, "-m", "ticketapi", "audit", "--follow", "--json"]
        running = subprocess.Popen(command, cwd=tmp_path, env=environment(measured=False), stdout=out, stderr=subprocess.PIPE)
    wait_for(lambda: (tmp_path / "out").stat().st_size)
    log(row(path="api/two"))
    wait_for(lambda: (tmp_path / "out").read_text().count("\n") == 2)
    running.send_signal(signal.SIGINT)
    assert (running.communicate(timeout=20)[1], running.returncode) == (b"", 0)


def test_waiting_for_more_ends_after_a_moment_where_output_is_a_file(tmp_path, monkeypatch):
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        out.write("row")
        ticketapi.wait_for_more(0.01)
        assert (tmp_path / "out").read_text() == "row"


# audit prune -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "words"), [(1, "Pruned 1 audit\n"), (0, "Pruned 0 audits\n"), (613, "Pruned 613 audits\n")])
def test_prune_deletes_what_is_older_and_leaves_the_rest(run, log, path, old, words):
    log(*(row(2 * 86_400) for _ in range(old)), row(3600), row())
    assert run("audit", "prune", "--older-than", "1d") == (0, words, "")
    assert ids_in(path) == [old + 1, old + 2]


def test_prune_reports_as_an_object(run, log):
    log(row(7200), row())
    code, out, err = run("audit", "prune", "--older-than", "1h", "--json")
    assert (code, json.loads(out), err) == (0, {"pruned": 1}, "")


def test_prune_without_a_log_makes_none(run, tmp_path):
    assert run("audit", "prune", "--older-than", "1h") == (0, "Pruned 0 audits\n", "")
    assert files(tmp_path) == []


def test_prune_must_be_told_what_is_old(run, log, path, monkeypatch):
    log(row(10**9))
    assert_refused(run("audit", "prune"), 2, "--older-than 90d")
    assert_refused(run("audit", "prune", "--older-than", "0"), 2, "--older-than 0", "90d")
    assert ids_in(path) == [1]
    monkeypatch.setenv("TICKETAPI_OLDER_THAN", "1h")
    assert run("audit", "prune")[1] == "Pruned 1 audit\n"


@pytest.mark.parametrize("flag", ["--user", "--token", "--limit"])
def test_a_filter_before_prune_is_refused_instead_of_ignored(run, log, path, flag):
    log(row(7200))
    assert_refused(run("audit", flag, 7, "prune", "--older-than", "1h"), 2, flag, "audit prune")
    assert ids_in(path) == [1]


def test_a_desk_named_before_prune_is_the_one_that_is_meant(run, log, path):
    log(row(7200))
    assert json.loads(run("audit", "--db", "other.db", "--json", "prune", "--older-than", "1h")[1]) == {"pruned": 0}
    assert json.loads(run("audit", "--db", "ticketapi.db", "--json", "prune", "--older-than", "1h")[1]) == {"pruned": 1}


def test_the_help_of_audit_shows_its_options_and_prune(run):
    code, out, _ = run("audit", "--help")
    assert code == 0
    assert re.search(r"^ +prune ", out, re.MULTILINE)
    assert re.search(r"^  --status STATUS ", out, re.MULTILINE)
    assert_refused(run("audit", "purne"), 2, "'purne'", "prune")


def test_rows_of_a_clock_that_was_wrong_stay_and_those_around_them_go(run, log, path):
    log(row(7200), row(-3600), row(7200), row(7200), row(60), row(7200), row())
    assert run("audit", "prune", "--older-than", "1h")[1] == "Pruned 4 audits\n"
    assert ids_in(path) == [2, 5, 7]


@pytest.mark.parametrize(("young", "pruned"), [(AUDIT_LOOK - 1, 3), (AUDIT_LOOK, 0)])
def test_prune_ends_where_nothing_is_old_among_so_many(run, log, path, young, pruned):
    log(*(row() for _ in range(young)), *(row(7200) for _ in range(3)))
    assert run("audit", "prune", "--older-than", "1h")[1] == f"Pruned {pruned} audits\n"
    assert len(ids_in(path)) == young + 3 - pruned


def test_others_write_between_two_steps(log, path):
    log(*(row(7200) for _ in range(3 * AUDIT_STEP)))
    before = ticketapi.format_time(now() - HOUR)
    with closing(ticketapi.open_database(path, "audit")) as db, closing(ticketapi.connect(path, ticketapi.NOTER)) as other:
        for left in (2, 1, 0):
            assert ticketapi.prune_audits(db, before, AUDIT_STEP) == AUDIT_STEP
            with ticketapi.transaction(other):  # it waits for nobody
                ticketapi.insert_audits(other, [row()])
            assert len(ids_in(path)) == left * AUDIT_STEP + 3 - left
        assert ticketapi.prune_audits(db, before, AUDIT_STEP) == 0


@pytest.mark.parametrize(("ages", "old"), [([], 0), ([9, 8, 7], 3), ([9, 8, 1], 2), ([1, 1], 0)])
def test_how_many_rows_will_go_is_known_beforehand(reader, log, ages, old):
    log(*(row(age * 3600) for age in ages))
    assert ticketapi.count_old_audits(reader, ticketapi.format_time(now() - 5 * HOUR)) == old


def test_how_many_will_go_is_known_across_gaps(reader, log, path):
    log(*(row(7200) for _ in range(20)), row())
    with closing(ticketapi.connect(path)) as db:
        db.execute("DELETE FROM api_audits WHERE id BETWEEN 5 AND 14 OR id = 21")
    assert 10 <= ticketapi.count_old_audits(reader, ticketapi.format_time(now() - HOUR)) <= 20


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def test_a_long_prune_tells_on_a_terminal_how_far_it_is(run, log, monkeypatch):
    rows = 240 * AUDIT_STEP  # and a pause after each step: more than the second for which it is silent
    log(*(row(7200) for _ in range(rows)))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("audit", "prune", "--older-than", "1h")[1] == f"Pruned {rows} audits\n"
    assert re.search(rf"[\d,]+ of {rows:,} audits, [\d,]+ a second, \d+ s left", terminal.getvalue())
    assert terminal.getvalue().endswith("\r\x1b[K")


# serve --audit-keep ------------------------------------------------------------------------------


def go_on(seconds):
    """Wait for nothing, and stop nothing."""
    return False


@pytest.fixture
def audit(path):
    """The audit log as a server holds it."""
    with closing(ticketapi.AuditLog(path)) as opened:
        yield opened


def test_a_turn_takes_so_many_steps_and_tells_whether_there_is_more(audit, log, path):
    turn = PRUNE_STEPS * AUDIT_STEP
    log(*(row(7200) for _ in range(turn + 1)), row())
    pruner = ticketapi.AuditPruner(audit, 3600, go_on)
    assert pruner.run(now()) == ticketapi.Outcome({"pruned": turn}, more=True)
    assert len(ids_in(path)) == 2
    assert pruner.run(now()) == ticketapi.Outcome({"pruned": turn + 1})
    assert ids_in(path) == [turn + 2]


def test_it_stops_between_two_steps(audit, log, path):
    log(*(row(7200) for _ in range(4 * AUDIT_STEP)))
    answers = iter([False, True])
    pruner = ticketapi.AuditPruner(audit, 3600, lambda seconds: next(answers))
    assert pruner.run(now()).more
    assert len(ids_in(path)) == 2 * AUDIT_STEP


def test_a_log_that_is_locked_is_logged_once_not_waited_for_and_tried_again(audit, log, path, caplog):
    log(row(7200))
    pruner = ticketapi.AuditPruner(audit, 3600, go_on)
    for episode in (1, 2):
        with closing(ticketapi.connect(path)) as holder, ticketapi.transaction(holder):
            begun = time.monotonic()
            assert {pruner.run(now()) for _ in range(3)} == {ticketapi.Outcome(None, more=True, failed=True)}
            assert time.monotonic() - begun < ticketapi.BUSY_TIMEOUT_MS / 1000
        assert len(caplog.records) == episode
        assert path.name in caplog.records[-1].getMessage()
        assert "locked" in caplog.records[-1].getMessage()
        assert not pruner.run(now()).more
        assert ids_in(path) == []
        log(row(7200))


def test_a_step_leaves_the_patience_of_the_connection_as_it_was(audit, path):
    def patience():
        return audit._db.execute("PRAGMA busy_timeout").fetchone()[0]

    before = patience()
    audit.prune("2025", AUDIT_STEP)
    with closing(ticketapi.connect(path)) as holder, ticketapi.transaction(holder), pytest.raises(sqlite3.OperationalError):
        audit.prune("2025", AUDIT_STEP)
    assert patience() == before > 0


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["generate", "process"]),
        ({"audit_keep": 60}, ["generate", "process", "prune"]),
        ({"audit_keep": 60, "generate_every": 0, "process_every": 0}, ["prune"]),
        ({"audit_keep": 60, "no_scheduler": True}, []),
    ],
)
def test_the_scheduler_prunes_when_it_is_told_to(desk, audit, settings, names):
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=desk, **settings), 1, audit, go_on)
    assert [job.name for job in jobs] == names


def pruning_jobs(audit, keep=3600):
    """Return the jobs of a server that does nothing but prune."""
    settings = ticketapi.Settings(audit_keep=keep, generate_every=0, process_every=0)
    return ticketapi.scheduled_jobs(settings, 1, audit, go_on)


FAR_NOON = NOON + 10**5 * DAY  # to which every row is old


def test_it_prunes_at_the_first_turn_and_then_once_a_day(audit, log, path):
    jobs, left = pruning_jobs(audit), []
    for hours in (0, 1, 11, 12, 13, 35, 36):
        log(row())
        ticketapi.run_due_jobs(jobs, FAR_NOON + hours * HOUR)
        left.append(len(ids_in(path)))
    assert left == [0, 1, 2, 0, 1, 2, 0]


def test_what_is_not_done_goes_on_at_the_next_turn(audit, log, path):
    turn = PRUNE_STEPS * AUDIT_STEP
    log(*(row(7200) for _ in range(2 * turn + 1)))
    jobs, left = pruning_jobs(audit), []
    for second in range(4):
        ticketapi.run_due_jobs(jobs, FAR_NOON + second * SECOND)
        left.append(len(ids_in(path)))
    assert left == [turn + 1, 1, 0, 0]
    assert jobs[0].next_at == FAR_NOON + DAY // 2


def test_other_jobs_have_their_turn_while_much_is_pruned(audit, log, path):
    log(*(row(7200) for _ in range(3 * PRUNE_STEPS * AUDIT_STEP)))
    runs = []
    jobs = [ticketapi.Job("other", 1, runs.append), *pruning_jobs(audit)]
    moments = [now() + second * SECOND for second in range(3)]
    for moment in moments:
        ticketapi.run_due_jobs(jobs, moment)
    assert runs == moments[1:]
    assert ids_in(path) == []


@contextmanager
def scheduling(jobs, clock, stop):
    """Run a scheduler's thread, and stop it at the end."""
    scheduler = ticketapi.Scheduler(jobs, clock, stop)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


def test_a_scheduler_that_stops_leaves_the_rest_undone(audit, log, clock, path):
    log(*(row(7200) for _ in range(3 * AUDIT_STEP)))
    stop, paused = threading.Event(), threading.Event()

    def pause(seconds):
        paused.set()
        return stop.wait(20)  # as long as it takes to be stopped

    settings = ticketapi.Settings(audit_keep=3600, generate_every=0, process_every=0)
    clock.now = now()
    with scheduling(ticketapi.scheduled_jobs(settings, 1, audit, pause), clock, stop):
        assert paused.wait(10)
    assert len(ids_in(path)) == 2 * AUDIT_STEP


@pytest.fixture
def api_with_log(make_api, log, tmp_path):
    """An app whose audit log, beside a desk of the same folder, holds old and young rows."""
    log(*(row(7200) for _ in range(PRUNE_STEPS * AUDIT_STEP)), *(row(60) for _ in range(10)))
    (tmp_path / "ticketapi-audit.db").rename(tmp_path / "desk-audit.db")
    return make_api(rate=0)


@pytest.mark.files
def test_requests_are_answered_and_audited_between_the_steps_of_a_prune(api_with_log: Api, token):
    api, states = api_with_log, []
    reader = ticketapi.open_read_only(api.settings.audit_db, "audit")

    def pause(seconds):
        status = api.get("/api/stats", token=token).status
        states.append((status, reader.execute("SELECT count(*) FROM api_audits").fetchone()[0]))
        return False

    api.clock.now = now()
    with closing(reader):
        assert ticketapi.AuditPruner(api.audit, 3600, pause).run(api.clock.now).more
    rows = PRUNE_STEPS * AUDIT_STEP + 10
    assert states == [(200, rows - n * AUDIT_STEP + n) for n in range(1, PRUNE_STEPS + 1)]
    assert [found["duration_ms"] for found in api.audits()[:10]] == [3] * 10  # the young ones


@pytest.mark.files
def test_requests_are_answered_and_audited_while_another_thread_prunes(api_with_log: Api, token):
    api, begun, asked = api_with_log, threading.Event(), threading.Event()

    def pause(seconds):
        begun.set()
        asked.wait(20)  # the first request falls between two steps whatever the machine does
        return False

    api.clock.now = now()
    pruner = ticketapi.AuditPruner(api.audit, 3600, pause)
    thread = threading.Thread(target=lambda: [pruner.run(api.clock.now) for _ in range(2)])
    thread.start()
    assert begun.wait(20)
    statuses = []
    while thread.is_alive():
        statuses.append(api.get("/api/stats", token=token).status)
        asked.set()
    thread.join()
    assert set(statuses) == {200}
    assert api.audit.failures == 0
    assert len(api.audits()) == 10 + len(statuses)


def test_a_server_prunes_what_is_older_and_audits_every_request_meanwhile(serve, run, log, path):
    old = (PRUNE_STEPS + 1) * AUDIT_STEP  # two turns
    log(*(row(7200) for _ in range(old)), *(row(60, path="api/young") for _ in range(10)))
    token = run("token", "create")[1].strip()
    served = serve("--audit-keep", "1h", "--generate-every", "0", "--process-every", "0")
    deadline = time.monotonic() + 30
    for number in count(1):
        assert served.get(f"/api/nope/{number}", token=token).status == 404
        if ids_in(path)[0] > old:
            break
        assert time.monotonic() < deadline
    code, _, err = served.stop()
    assert code == 0
    assert "audit rows kept for 3600 s" in err
    with closing(ticketapi.connect(path)) as db:
        paths = [found[0] for found in db.execute("SELECT path FROM api_audits ORDER BY id")]
    assert paths == ["api/young"] * 10 + [f"api/nope/{n}" for n in range(1, number + 1)]


def test_a_server_without_scheduler_prunes_nothing(serve, log, path):
    log(*(row(10**8) for _ in range(3)))
    served = serve("--audit-keep", "1h", "--no-scheduler")
    assert served.get("/up").status == 200
    assert served.stop()[0] == 0
    assert ids_in(path) == [1, 2, 3]


def test_a_command_prunes_beside_a_server(serve, run, log, path):
    log(*(row(7200) for _ in range(3 * AUDIT_STEP)))
    served = serve()
    assert served.get("/api/nope").status == 404
    assert run("audit", "prune", "--older-than", "1h")[1] == f"Pruned {3 * AUDIT_STEP} audits\n"
    assert served.get("/api/nope").status == 404
    assert [found["status_code"] for found in islice(shown(run("audit", "--json")), 5)] == [404, 404]
    assert served.stop()[0] == 0
