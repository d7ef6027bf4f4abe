"""`ticketapi stats` tells how the desk stands, in the figures of the API and some more, and `--watch` keeps telling."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest
from conftest import NOON, SECOND

import ticketapi

HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
API_KEYS = ["total_tickets", "total_unprocessed_tickets", "top_user", "most_recent_processed_at"]
KEYS = [
    "total_processed_tickets", "oldest_open_id", "oldest_open_at", "oldest_open_age", "last_closed_at", "last_closed_age",
    "opened_last_hour", "closed_last_hour",
]  # fmt: skip


def overview(db, now=NOON):
    """Return the figures of a desk at a moment."""
    return ticketapi.desk_overview(db, now)


def printed(result):
    """Return the JSON document that a command printed, with nothing else to say."""
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def fields(text):
    """Return the figures of the table by their labels."""
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())


# Figures -----------------------------------------------------------------------------------------


def test_json_has_what_the_api_says_first_and_then_keys_of_its_own(run, api, db, desk, token):
    ticketapi.generate_tickets(db, 30, NOON, seed=1)
    ticketapi.process_tickets(db, 10, NOON)
    found = printed(run("stats", "--json", "--db", desk))
    assert list(found) == API_KEYS + KEYS
    assert {name: found[name] for name in API_KEYS} == api.get("/api/stats", token=token).json


def test_the_figures_are_those_of_the_rows(db):
    ticketapi.generate_tickets(db, 30, NOON, seed=1)
    ticketapi.process_tickets(db, 10, NOON + DAY)
    opened = db.execute("SELECT created_at FROM tickets WHERE id = 11").fetchone()[0]
    closed = db.execute("SELECT max(closed_at) FROM tickets").fetchone()[0]
    found = overview(db, NOON + 2 * DAY)
    assert {name: found[name] for name in KEYS} == {
        "total_processed_tickets": 10,
        "oldest_open_id": 11,
        "oldest_open_at": opened,
        "oldest_open_age": 2 * 86_400 - 1,  # the eleventh is from some microseconds after noon
        "last_closed_at": closed,
        "last_closed_age": 86_400 - 1,
        "opened_last_hour": 0,
        "closed_last_hour": 0,
    }


def test_an_empty_desk_has_zeros_and_nulls(db):
    assert [overview(db)[name] for name in KEYS] == [0, None, None, None, None, None, 0, 0]


def test_where_all_is_closed_nothing_waits(db):
    ticketapi.generate_tickets(db, 3, NOON, seed=1)
    ticketapi.process_tickets(db, 3, NOON)
    assert [overview(db)[name] for name in KEYS[:4]] == [3, None, None, None]


def test_a_clock_that_was_set_back_makes_no_age_negative(db):
    ticketapi.generate_tickets(db, 2, NOON, seed=1)
    ticketapi.process_tickets(db, 1, NOON)
    found = overview(db, NOON - DAY)
    assert [found["oldest_open_age"], found["last_closed_age"]] == [0, 0]


@pytest.fixture(scope="module")
def month(tmp_path_factory):
    """A connection to a desk with thirty days behind it."""
    with closing(ticketapi.open_database(tmp_path_factory.mktemp("month") / "desk.db", "desk")) as db:
        ticketapi.generate_history(db, 5000, 30 * 86_400, NOON, 1)
        yield db


@pytest.mark.parametrize("passed", [0, 1, 1800 * SECOND, HOUR - 1, HOUR, HOUR + 1, 5 * HOUR, 30 * DAY])
def test_the_last_hour_is_counted_to_the_ticket(month, passed):
    since = ticketapi.format_time(NOON + passed - HOUR)
    expected = [
        month.execute(sql, (since,)).fetchone()[0]
        for sql in ("SELECT count(*) FROM tickets WHERE created_at >= ?", "SELECT count(*) FROM tickets WHERE closed_at >= ?")
    ]
    found = overview(month, NOON + passed)
    assert [found["opened_last_hour"], found["closed_last_hour"]] == expected


@pytest.mark.files
def test_what_it_costs_grows_by_look_ups_and_not_by_tickets(db, desk):
    ticketapi.generate_history(db, 20_000, 30 * 86_400, NOON, 1)
    with closing(ticketapi.open_read_only(desk, "desk", views=True)) as reader:
        statements, tens = [], []
        reader.set_trace_callback(statements.append)
        reader.set_progress_handler(lambda: tens.append(1), 10)
        overview(reader)
        reader.set_progress_handler(None, 10)
    assert len(statements) < 60
    assert len(tens) < 200


def test_reads_within_a_snapshot_are_part_of_it(db, desk):
    ticketapi.generate_tickets(db, 1, NOON, seed=1)
    with closing(ticketapi.open_read_only(desk, "desk", views=True)) as reader, ticketapi.snapshot(reader):
        before = overview(reader)
        ticketapi.generate_tickets(db, 1, NOON, seed=1)
        assert overview(reader) == before
        assert reader.in_transaction


# The table ---------------------------------------------------------------------------------------


def test_the_table_says_the_same_for_people(run, db, desk):
    now = ticketapi.wall_microseconds()
    ticketapi.generate_tickets(db, 1234, now - 3 * DAY - 2 * HOUR, seed=1)
    ticketapi.process_tickets(db, 1000, now - 90 * SECOND)
    ticketapi.generate_tickets(db, 5, now - 60 * SECOND, seed=1)
    code, out, err = run("stats", "--db", desk)
    found = printed(run("stats", "--json", "--db", desk))
    assert (code, err) == (0, "")
    shown = fields(out)
    assert [shown[label].strip() for label in ("Open", "Closed", "Total")] == ["239", "1,000", "1,239"]
    assert re.fullmatch(rf"ticket 1001, for 3d 2h, since {found['oldest_open_at'][:19]}Z", shown["Oldest open"])
    assert re.fullmatch(rf"1m 3\ds ago, at {found['last_closed_at'][:19]}Z", shown["Last closed"])
    assert shown["Last hour"] == "5 arrived, 1,000 closed"
    user = found["top_user"]
    assert shown["Top customer"] == f"{user['name']} <{user['email']}>, {user['tickets_count']} tickets"


def test_the_numbers_stand_below_each_other(run, db, desk):
    ticketapi.generate_tickets(db, 1234, NOON, seed=1)
    lines = run("stats", "--db", desk)[1].splitlines()[:3]
    assert len({len(line) for line in lines}) == 1


def test_what_an_empty_desk_does_not_have_is_a_dash(run, db, desk):
    shown = fields(run("stats", "--db", desk)[1])
    assert [shown[label] for label in ("Open", "Oldest open", "Last closed", "Top customer")] == ["0", "-", "-", "-"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3599, "59m 59s"),
        (3600, "1h"),
        (3601, "1h"),
        (86_399, "23h 59m"),
        (86_400 + 59, "1d"),
        (90 * 86_400 + 7200, "90d 2h"),
    ],
)
def test_an_age_is_written_in_its_largest_unit_and_the_next(seconds, text):
    assert ticketapi.age_text(seconds) == text


# --watch -----------------------------------------------------------------------------------------

# The program, which looks more often than every two seconds.
PROGRAM = "import sys, ticketapi; ticketapi.WATCH_SECONDS = 0.05; sys.exit(ticketapi.main())"
HOME, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"


class Watching:
    """A real `ticketapi stats --watch` whose stdout is a pipe or a terminal."""

    def __init__(self, path, *arguments, terminal=False, measured=False, **environ):
        self.output, slave = pty.openpty() if terminal else os.pipe()
        # One that is to be interrupted is not measured: coverage locks up when that hits it at the wrong moment.
        unwanted = ("TICKETAPI", "NO_COLOR", "TERM", *(() if measured else ("COVERAGE",)))
        kept = {name: text for name, text in os.environ.items() if not name.startswith(unwanted)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "stats", "--watch", *arguments, "--db", str(path)],
            env={**kept, "COLUMNS": "80", "LINES": "24", **environ},
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE,
        )
        os.close(slave)
        self.text = ""

    def more(self, seconds):
        """Take what comes within a time; tell whether there can be more."""
        if not select.select([self.output], [], [], max(0, seconds))[0]:
            return True
        try:
            data = os.read(self.output, 65536)
        except OSError:  # a terminal has no other side any more
            data = b""
        self.text += data.decode()
        return bool(data)

    def until(self, condition):
        """Return the output once a condition is true of it."""
        end = time.monotonic() + 20
        while not condition(self.text) and time.monotonic() < end and self.more(end - time.monotonic()):
            pass
        assert condition(self.text), (self.text, self.process.poll())
        return self.text

    def end(self, number=None):
        """Return exit code and stderr, after a signal if one is given; all output is taken."""
        if number:
            self.process.send_signal(number)
        while self.more(20):
            pass
        return self.process.wait(timeout=20), self.process.stderr.read().decode()


@contextmanager
def watching(path, *arguments, **more):
    """Watch a desk; whatever happens the process is ended."""
    watched = Watching(path, *arguments, **more)
    try:
        yield watched
    finally:
        if watched.process.poll() is None:
            watched.process.kill()
        watched.process.communicate()
        os.close(watched.output)


def test_in_a_pipe_there_is_a_line_of_json_each_time_that_something_changed(db, desk):
    with watching(desk, "--json") as watched:
        for count in (1, 2, 3):
            watched.until(lambda text, count=count: text.count("\n") == count)
            ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), seed=1)
        watched.until(lambda text: text.count("\n") == 4)
        assert watched.end(signal.SIGINT) == (0, "")
    records = [json.loads(line) for line in watched.text.splitlines()]
    assert [record["total_tickets"] for record in records] == [0, 1, 2, 3]
    assert {tuple(record) for record in records} == {tuple(API_KEYS + KEYS)}


def test_an_age_that_grows_is_no_change(db, desk):
    ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds() - DAY, seed=1)
    with watching(desk, "--json") as watched:
        first = json.loads(watched.until(lambda text: "\n" in text))
        while ticketapi.desk_overview(db, ticketapi.wall_microseconds())["oldest_open_age"] < first["oldest_open_age"] + 1:
            watched.more(0.1)
        ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), seed=1)
        watched.until(lambda text: text.count("\n") > 1)
        assert watched.end(signal.SIGINT) == (0, "")
    assert [json.loads(line)["total_tickets"] for line in watched.text.splitlines()] == [1, 2]


@pytest.mark.parametrize("more", [{}, {"terminal": True, "TERM": "dumb"}], ids=["pipe", "dumb"])
def test_where_nothing_can_be_written_over_there_is_a_block_for_each_change(db, desk, more):
    with watching(desk, **more) as watched:
        watched.until(lambda text: "Top customer" in text)
        ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), seed=1)
        watched.until(lambda text: text.count("Top customer") == 2 and text.endswith("\n"))
        assert watched.end(signal.SIGINT) == (0, "")
    blocks = watched.text.replace("\r\n", "\n").removesuffix("^C").split("\n\n")
    assert [fields(block)["Total"] for block in blocks if block] == ["0", "1"]
    assert "\x1b" not in watched.text


def frames(text):
    """Return what was written from each move to the upper left corner on."""
    return text.split(HOME)[1:]


@pytest.mark.files
def test_on_a_terminal_the_figures_are_written_over_those_before(db, desk):
    with watching(desk, terminal=True) as watched:
        watched.until(lambda text: len(frames(text)) > 2)
        ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), seed=1)
        watched.until(lambda text: re.search(r"Total\S* +1\b", frames(text)[-1]) and text.endswith(TO_SCREEN_END))
        assert watched.end(signal.SIGINT) == (0, "")
    shown = frames(watched.text)
    *lines, rest = shown[0].split("\r\n")
    assert re.fullmatch(r"\x1b\[2mdesk\.db at \S+Z, until Ctrl-C\x1b\[m\x1b\[K", lines[0])
    assert (lines[1], len(lines)) == (TO_LINE_END, 9)
    assert all(line.endswith(TO_LINE_END) for line in lines)
    assert rest == TO_SCREEN_END
    assert re.search(r"Total\S* +0\b", shown[0])


def test_watching_leaves_the_terminal_as_it_was(db, desk):
    """What was on it moves up, no code turns anything on that would have to be turned off, and no ^C is left."""
    with watching(desk, terminal=True) as watched:
        watched.until(lambda text: len(frames(text)) > 1)
        watched.end(signal.SIGINT)
    assert watched.text.startswith("\r\n" * 24 + HOME)
    assert watched.text.endswith(f"\r{TO_LINE_END}")
    codes = set(re.findall(r"\x1b[^A-Za-z]*[A-Za-z]", watched.text))
    assert {code for code in codes if not code.endswith("m")} == {HOME, TO_LINE_END, TO_SCREEN_END}
    assert watched.text.count("\x1b[m") * 2 == len(re.findall(r"\x1b\[\d*m", watched.text))


def test_a_terminal_of_few_lines_gets_no_more_than_it_has(db, desk):
    with watching(desk, terminal=True, LINES="5") as watched:
        watched.until(lambda text: len(frames(text)) > 1)
        watched.end(signal.SIGINT)
    assert frames(watched.text)[0].count("\r\n") == 4


def test_on_a_terminal_json_stays_lines(db, desk):
    with watching(desk, "--json", terminal=True) as watched:
        watched.until(lambda text: "\n" in text)
        assert watched.end(signal.SIGINT) == (0, "")
    assert json.loads(watched.text.splitlines()[0])["total_tickets"] == 0
    assert "\x1b" not in watched.text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_desk_that_goes_away_ends_it_in_one_line(tmp_path, terminal):
    path = tmp_path / "gone.db"
    ticketapi.open_database(path, "desk").close()
    with watching(path, terminal=terminal, measured=True) as watched:
        watched.until(lambda text: "Top customer" in text)
        path.unlink()
        code, err = watched.end()
    assert (code, len(err.splitlines())) == (1, 1)
    assert f"there is no desk at {path}" in err
    assert not path.exists()


def test_a_desk_that_was_replaced_is_the_one_that_is_watched(tmp_path, db):
    path, other = tmp_path / "it.db", tmp_path / "other.db"
    for name, count in ((path, 1), (other, 7)):
        with closing(ticketapi.open_database(name, "desk")) as made:
            ticketapi.generate_tickets(made, count, NOON, seed=1)
    with watching(path, "--json") as watched:
        watched.until(lambda text: "\n" in text)
        other.rename(path)
        watched.until(lambda text: text.count("\n") == 2)
        watched.end(signal.SIGINT)
    assert [json.loads(line)["total_tickets"] for line in watched.text.splitlines()] == [1, 7]


def test_it_ends_when_its_reader_leaves_even_if_nothing_changes(db, desk):
    reader, writer = os.pipe()
    command = [sys.executable, "-c", PROGRAM, "stats", "--watch", "--db", str(desk)]
    running = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    err = running.communicate(timeout=20)[1]
    assert (running.returncode, err) == (1, b"")
