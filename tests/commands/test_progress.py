"""Long work tells on a terminal how far it is, on one line that goes away at its end; anywhere else it says nothing."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager

import pytest
from conftest import NOON, HandClock

import ticketapi

ERASE = "\r\x1b[K"
LINE = re.compile(r"([\d,]+) of ([\d,]+) tickets, ([\d,]+) a second, (\d+) s left")
BATCH = 1000  # tickets in one transaction; as many as there are otherwise would take most of the time
PROGRAM = (
    sys.executable,
    "-c",
    f"import sys, ticketapi; ticketapi.BATCH = {BATCH}; print('ready', flush=True); sys.stdin.readline(); "
    "sys.exit(ticketapi.main())",
)


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def watch(reports, total, stream=None, seconds=1.0):
    """Return what a progress writes when it gets reports that lie so many seconds apart."""
    clock, stream = HandClock(), stream or Terminal()
    with ticketapi.Progress(total, stream, clock.monotonic) as progress:
        for done in reports:
            clock.advance(seconds)
            progress(done)
    return stream.getvalue()


# The line ----------------------------------------------------------------------------------------


def test_it_tells_how_many_are_done_how_fast_and_how_long_it_takes_yet():
    assert watch([10_000], 1_000_000, seconds=2) == f"{ERASE}10,000 of 1,000,000 tickets, 5,000 a second, 198 s left{ERASE}"


def test_each_report_takes_the_place_of_the_one_before_and_the_last_clears_the_line():
    *lines, last = watch([10, 40, 90, 100], 100).split(ERASE)[1:]
    assert [LINE.fullmatch(line).groups() for line in lines] == [
        ("10", "100", "10", "9"),
        ("40", "100", "20", "3"),
        ("90", "100", "30", "0"),
    ]
    assert last == ""


def test_it_is_silent_for_the_first_second():
    assert watch([1] * 9, 100, seconds=0.11) == ""
    assert LINE.search(watch([1] * 10, 100, seconds=0.11))


def test_work_that_is_done_within_a_second_leaves_no_trace():
    assert watch([50, 100], 100, seconds=0.4) == ""


@pytest.mark.parametrize("total", [0, 100])
def test_nothing_done_is_nothing_to_tell(total):
    assert watch([0, 0], total) == ""


def test_it_is_silent_where_there_is_no_terminal():
    assert watch([10, 20, 100], 100, stream=io.StringIO()) == ""


def test_it_is_one_line_without_a_line_feed():
    assert "\n" not in watch(range(0, 1_000_001, 10_000), 1_000_000)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (
            lambda db, report: ticketapi.generate_tickets(db, 2 * BATCH + 100, NOON, 1, report),
            [BATCH, 2 * BATCH, 2 * BATCH + 100],
        ),
        (lambda db, report: ticketapi.generate_history(db, BATCH + 100, 86_400, NOON, 1, report), [BATCH, BATCH + 100]),
        (lambda db, report: ticketapi.generate_tickets(db, 1, NOON, 1, report), [1]),
        (lambda db, report: ticketapi.process_tickets(db, 5, NOON, report), [0]),
    ],
    ids=["generate", "history", "one ticket", "nothing to process"],
)
def test_every_batch_is_reported_once_it_is_kept(monkeypatch, desk, db, work, expected):
    monkeypatch.setattr(ticketapi, "BATCH", BATCH)
    reports = []

    def report(done):
        with closing(ticketapi.connect(desk)) as other:
            assert other.execute("SELECT count(*) FROM tickets").fetchone()[0] == done
        reports.append(done)

    work(db, report)
    assert reports == expected


# Commands on a real terminal ---------------------------------------------------------------------


class Command:
    """A real command that waits to be let go, whose stderr may be a terminal."""

    def __init__(self, path, *arguments, terminal=True):
        self.master, slave = pty.openpty() if terminal else os.pipe()
        # Without coverage, which an interruption at the wrong moment locks up for ever.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        self.process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments), "--db", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=slave,
            env=environ,
            text=True,
        )
        os.close(slave)
        self.path, self.shown = path, ""
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End the command if something went wrong."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    @contextmanager
    def held(self):
        """Let the command go, but hold its desk for a block."""
        with closing(ticketapi.connect(self.path)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            yield

    def read(self, until):
        """Return what stderr shows until a moment, or its end."""
        data = b""
        while (left := until - time.monotonic()) > 0 and select.select([self.master], [], [], left)[0]:
            try:
                chunk = os.read(self.master, 65536)
            except OSError:  # the terminal has no other side any more
                break
            if not chunk:
                break
            data += chunk
        return data.decode()

    def read_line(self):
        """Return what stderr shows until there is a line of progress."""
        shown, end = "", time.monotonic() + 20
        while not LINE.search(shown) and time.monotonic() < end:
            shown += self.read(time.monotonic() + 0.02)
        return shown

    def finish(self):
        """Return (exit code, stdout, stderr) of the command."""
        out = []
        reader = threading.Thread(target=lambda: out.append(self.process.communicate(timeout=20)[0]))
        reader.start()
        self.shown += self.read(time.monotonic() + 20)
        reader.join()
        os.close(self.master)
        return self.process.returncode, out[0], self.shown


def screen(text):
    """Return the lines that a terminal shows in the end."""
    return [line.rpartition(ERASE)[2] for line in text.split("\r\n")]


def hold(*commands):
    """Let commands go and hold their desks until their first second has passed; they are silent so long."""
    with ExitStack() as stack:
        for command in commands:
            stack.enter_context(command.held())
        until = time.monotonic() + 1.4
        assert [command.read(until) for command in commands] == [""] * len(commands)


LONG_COUNT = BATCH + 100
LONG = {
    "generate": ("generate", "--count", LONG_COUNT, "--json"),
    "history": ("generate", "--count", LONG_COUNT, "--since", "90d", "--json"),
    "process": ("process", "--count", 1_000_000, "--json"),
    "piped": ("generate", "--count", LONG_COUNT),
    "interrupted": ("generate", "--count", 10_000_000),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The (exit code, stdout, stderr) of long commands that ran at once.

    For `process` there are that many tickets, `piped` has no terminal, and `interrupted` is once it has shown a line.
    """
    commands = {}
    with ExitStack() as stack:
        for name, arguments in LONG.items():
            path = tmp_path_factory.mktemp("long") / "desk.db"
            with closing(ticketapi.open_database(path, "desk")) as db:
                ticketapi.generate_tickets(db, LONG_COUNT * (name == "process"), NOON, 1)
            commands[name] = stack.enter_context(Command(path, *arguments, terminal=name != "piped"))
        hold(*commands.values())
        commands["interrupted"].shown += commands["interrupted"].read_line()
        commands["interrupted"].process.send_signal(signal.SIGINT)
        return {name: (*command.finish(), command.path) for name, command in commands.items()}


@pytest.mark.parametrize("name", ["generate", "history", "process"])
def test_a_long_command_shows_its_progress_on_one_line_and_takes_it_away(finished, name):
    code, _, err, _ = finished[name]
    assert code == 0
    assert {(done, total) for done, total, _, _ in LINE.findall(err)} == {(f"{BATCH:,}", f"{LONG_COUNT:,}")}, err
    assert screen(err) == [""]
    assert "\n" not in err


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("generate", {"generated": LONG_COUNT, "closed": 0}),
        ("history", {"generated": LONG_COUNT}),
        ("process", {"processed": LONG_COUNT}),
    ],
)
def test_the_result_on_stdout_is_the_json_document_alone(finished, name, counts):
    _, out, _, _ = finished[name]
    assert counts.items() <= json.loads(out).items()


def test_a_long_command_without_a_terminal_says_nothing_but_its_result(finished):
    assert finished["piped"][:3] == (0, f"Generated {LONG_COUNT} tickets\n", "")


def test_a_short_command_shows_no_progress(desk, db, run, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("generate", "--count", 3, "--db", desk)[:2] == (0, "Generated 3 tickets\n")
    assert terminal.getvalue() == ""


def test_an_interruption_leaves_its_own_line_alone_on_the_terminal(finished):
    code, out, err, path = finished["interrupted"]
    assert (code, out) == (1, "")
    line, end = screen(err)
    done = re.fullmatch(
        r"ticketapi: interrupted; what was committed before is kept \(([0-9,]+) of 10,000,000 tickets were committed\)", line
    )
    with closing(ticketapi.connect(path)) as db:
        assert int(done[1].replace(",", "")) == ticketapi.newest_ticket(db)[0] > 0
    assert end == ""
