"""Proof by kill -9: whatever is killed at whatever moment, what was committed or answered is there and fits together.

Run with `pytest -m proof tests/test_durability.py`; PROOF_ROUNDS sets how often each thing is killed.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException

import pytest

import ticketapi

pytestmark = pytest.mark.proof
ROUNDS = int(os.environ.get("PROOF_ROUNDS", "25"))
COUNT = 200_000
PROGRAM = (sys.executable, "-m", "ticketapi")


def command(folder, *arguments):
    """Start a command in a folder."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], cwd=folder, **quiet)


def finish(folder, *arguments):
    """Run a command to its end, which must be a good one."""
    with command(folder, *arguments) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def kill_at(folder, seconds, *arguments):
    """Start a command and kill it -9 after a while; tell whether it was still at work."""
    with command(folder, *arguments) as process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def ask(path, sql):
    """Return the rows that a query finds, as tuples."""
    with closing(ticketapi.connect(path)) as db:
        return [tuple(row) for row in db.execute(sql)]


def assert_sound(desk):
    """Check a desk: structure, references, counters, order; return how many tickets are open and closed."""
    assert ask(desk, "PRAGMA integrity_check") == [("ok",)]
    assert ask(desk, "PRAGMA foreign_key_check") == []
    counters = dict(ask(desk, "SELECT status, tickets FROM ticket_counts"))
    rows = dict(ask(desk, "SELECT status, count(*) FROM tickets GROUP BY status"))
    assert counters == {1: 0, 2: 0} | rows
    counted = "SELECT id, tickets_count FROM users WHERE tickets_count > 0 ORDER BY id"
    assert ask(desk, counted) == ask(desk, "SELECT user_id, count(*) FROM tickets GROUP BY user_id ORDER BY user_id")
    numbers = "SELECT user_id, max(user_number), count(DISTINCT user_number) FROM tickets GROUP BY user_id"
    assert all(last == tickets for _, last, tickets in ask(desk, numbers))
    numbers = "SELECT coalesce(max(closed_number), 0), count(DISTINCT closed_number) FROM tickets"
    assert ask(desk, numbers) == [(rows.get(2, 0), rows.get(2, 0))]
    distinct = "SELECT count(*) - count(DISTINCT created_at), count(closed_at) - count(DISTINCT closed_at) FROM tickets"
    assert ask(desk, distinct) == [(0, 0)]
    return counters[ticketapi.OPEN], counters[ticketapi.CLOSED]


def duration(*arguments, folder):
    """Return how long a command takes when nobody kills it."""
    begin = time.monotonic()
    finish(folder, *arguments)
    return time.monotonic() - begin


@pytest.fixture
def chance():
    """Random moments, the same in every run."""
    return random.Random(1)


@pytest.fixture
def folder(tmp_path):
    """Return a function that gives an empty folder for each round; the one of the round before is deleted."""

    def fresh():
        path = tmp_path / "round"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    return fresh


@pytest.mark.parametrize("more", [(), ("--since", "90d")], ids=["now", "history"])
def test_a_killed_generate_leaves_whole_batches(folder, chance, more):
    arguments = ("generate", "--count", COUNT, *more)
    whole = duration(*arguments, folder=folder())
    totals = []
    for _ in range(ROUNDS):
        place = folder()
        killed = kill_at(place, chance.uniform(0.1, whole / 4), *arguments)
        finish(place, "process", "--count", 0)  # the next command finds a desk that works
        total = sum(assert_sound(place / "ticketapi.db"))
        assert total % ticketapi.BATCH == 0
        assert killed or total == COUNT
        totals.append(total)
    assert any(0 < total < COUNT for total in totals), totals


def test_a_killed_process_leaves_whole_batches_closed_first_in_first_out(folder, tmp_path, chance):
    finish(tmp_path, "generate", "--count", COUNT, "--seed", 1)
    done = folder()
    shutil.copy(tmp_path / "ticketapi.db", done)
    whole = duration("process", "--count", COUNT, folder=done)
    totals = []
    for _ in range(ROUNDS):
        place = folder()
        shutil.copy(tmp_path / "ticketapi.db", place)
        kill_at(place, chance.uniform(0.1, whole * 0.7), "process", "--count", COUNT)
        waiting, closed = assert_sound(place / "ticketapi.db")
        assert waiting + closed == COUNT
        assert closed % ticketapi.BATCH == 0
        assert ask(place / "ticketapi.db", "SELECT max(id) FROM tickets WHERE status = 2") == [(closed or None,)]
        totals.append(closed)
    assert any(0 < closed < COUNT for closed in totals), totals


class Client(threading.Thread):
    """Asks for numbered pages over one connection until the server is gone; keeps the numbers that were answered."""

    def __init__(self, port, token, first):
        super().__init__()
        self.port, self.headers, self.first = port, {"Authorization": f"Bearer {token}"}, first
        self.answered = []

    def run(self):
        number = self.first
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            while True:
                try:
                    connection.request("GET", f"/api/tickets/open?page={number}", headers=self.headers)
                    if connection.getresponse().read().endswith(b"}"):
                        self.answered.append(number)
                except (OSError, HTTPException):
                    return
                number += 1


def test_a_killed_server_has_a_row_for_every_answer(serve, tmp_path, chance):
    finish(tmp_path, "generate", "--count", 1000)
    with closing(ticketapi.open_database(tmp_path / "ticketapi.db", "desk")) as db:
        token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "load", ["*"], 0, ticketapi.wall_microseconds())["token"]
    answered = set()
    for number in range(ROUNDS):
        served = serve("--rate", "0", "--generate-every", "1s", "--process-every", "1s")
        clients = [Client(served.port, token, 1_000_000 * (number * 4 + i + 1)) for i in range(4)]
        for client in clients:
            client.start()
        beside = command(tmp_path, "generate", "--count", COUNT)
        time.sleep(chance.uniform(0.2, 1.0))  # the moment of the kill is the thing under test
        beside.send_signal(signal.SIGKILL)
        served.stop(signal.SIGKILL)
        beside.communicate()
        for client in clients:
            client.join()
            answered.update(client.answered)
        assert_sound(tmp_path / "ticketapi.db")
        assert ask(tmp_path / "ticketapi-audit.db", "PRAGMA integrity_check") == [("ok",)]
        audited = {
            int(page)
            for (page,) in ask(tmp_path / "ticketapi-audit.db", "SELECT substr(query, 10, length(query) - 11) FROM api_audits")
        }
        assert answered <= audited
    assert len(answered) > 10 * ROUNDS
