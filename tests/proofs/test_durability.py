"""Proof by kill -9: whatever is killed at whatever moment, what was committed or answered is there and fits together.

Run with `pytest -m proof tests/proofs/test_durability.py`; PROOF_ROUNDS sets how often each thing is killed, and PROOF_SEED
repeats a run's random moments. A power cut cannot be made here: that what it would take away has been synced is read from
strace.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException

import pytest
from soundness import ask, assert_sound

import ticketapi

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "20"))
COUNT, BATCH = 20_000, 1000
# In small batches a round is short and has many commits, one of which is likely to be what the kill meets.
PROGRAM = (sys.executable, "-c", f"import sys, ticketapi; ticketapi.BATCH = {BATCH}; sys.exit(ticketapi.main())")


def command(folder, *arguments):
    """Start a command in a folder."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], cwd=folder, text=True, **pipes)


def finish(folder, *arguments):
    """Run a command to its end, which must be a good one."""
    with command(folder, *arguments) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def kill_at(folder, seconds, *arguments):
    """Start a command and kill it -9 after a while; return what it had said, and whether it was still at work."""
    with command(folder, *arguments) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            out, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return out, process.returncode != 0


def duration(*arguments, folder):
    """Return how long a command takes when nobody kills it."""
    begin = time.monotonic()
    finish(folder, *arguments)
    return time.monotonic() - begin


@pytest.fixture
def chance():
    """Random moments, others in every run; pytest shows the seed of a test that fails."""
    seed = int(os.environ.get("PROOF_SEED", "0")) or random.randrange(1, 10**9)
    print(f"PROOF_SEED={seed}")
    return random.Random(seed)


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
        out, killed = kill_at(place, chance.uniform(0.1, whole * 0.8), *arguments)
        finish(place, "process", "--count", 0)  # the next command finds a desk that works
        total = sum(assert_sound(place / "ticketapi.db"))
        assert total % BATCH == 0
        assert total == COUNT or (killed and not out)
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
        out, _ = kill_at(place, chance.uniform(0.1, whole * 0.9), "process", "--count", COUNT)
        waiting, closed = assert_sound(place / "ticketapi.db")
        assert waiting + closed == COUNT
        assert closed % BATCH == 0
        assert closed == COUNT or not out
        assert ask(place / "ticketapi.db", "SELECT max(id) FROM tickets WHERE status = 2") == [(closed or None,)]
        totals.append(closed)
    assert any(0 < closed < COUNT for closed in totals), totals


def test_a_token_that_was_shown_is_there_although_its_maker_was_killed(tmp_path, chance):
    whole, shown = duration("token", "create", folder=tmp_path), []
    for _ in range(ROUNDS):
        out, _ = kill_at(tmp_path, chance.uniform(0.05, whole * 1.2), "token", "create", "--name", "made")
        shown += [ticketapi.hash_token(line) for line in out.splitlines()]
        assert_sound(tmp_path / "ticketapi.db")
        kept = [digest for (digest,) in ask(tmp_path / "ticketapi.db", "SELECT token FROM personal_access_tokens")]
        assert {*shown} <= {*kept}
        assert len(kept) <= ROUNDS + 1
    assert 0 < len(shown) < ROUNDS


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


BESIDE = (("generate", "--count", 2000), ("process", "--count", 1500), ("token", "create"), ("generate",))


def kill_under_load(serve, folder, token, number, chance):
    """Kill a server, its four clients' requests under way, and a command beside it; return the requests it has answered."""
    served = serve("--rate", "0", "--generate-every", "1s", "--process-every", "1s", "--threads", 1 + number % 2)
    clients = [Client(served.port, token, 1_000_000 * (number * 4 + i + 1)) for i in range(4)]
    for client in clients:
        client.start()
    beside = command(folder, *BESIDE[number % len(BESIDE)])
    time.sleep(chance.uniform(0.1, 0.6))  # the moment of the kill is the thing under test
    beside.send_signal(signal.SIGKILL)
    served.stop(signal.SIGKILL)
    beside.communicate()
    for client in clients:
        client.join()
    return {page for client in clients for page in client.answered}


def test_a_killed_server_has_a_row_for_every_answer(serve, tmp_path, chance):
    desk, audit = tmp_path / "ticketapi.db", tmp_path / "ticketapi-audit.db"
    finish(tmp_path, "generate", "--count", 1000)
    with closing(ticketapi.open_database(desk, "desk")) as db:
        token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "load", ["*"], 0, ticketapi.wall_microseconds())["token"]
    answered = 0
    for number in range(ROUNDS):
        pages = kill_under_load(serve, tmp_path, token, number, chance)
        assert_sound(desk)
        assert ask(audit, "PRAGMA integrity_check") == [("ok",)]
        audited = {int(page) for (page,) in ask(audit, "SELECT substr(query, 10, length(query) - 11) FROM api_audits")}
        assert pages <= audited
        answered += len(pages)
    assert answered > 10 * ROUNDS


# A power cut ---------------------------------------------------------------------------------------

CALL = re.compile(r"^\d+ +(\w+)\((\d+)<([^>]*)>")


def unsynced_at_the_end(trace):
    """Return the files that were written to after their last sync when a process had said what it did, or had not."""
    written, said = set(), False
    for line in trace.splitlines():
        call = CALL.match(line)
        if not call:
            continue
        name, number, path = call.groups()
        if name in ("pwrite64", "write", "ftruncate") and "ticketapi.db" in path and not path.endswith("-shm"):
            written.add(path)
        elif name in ("fsync", "fdatasync"):
            written.discard(path)
        elif name == "write" and number == "1":
            said = True
            break
    assert said
    return written


@pytest.mark.parametrize("words", ["generate --count 3000", "generate --count 500 --since 9d", "process", "token create"])
@pytest.mark.parametrize("new", [True, False], ids=["new desk", "old desk"])
def test_what_a_command_says_it_did_has_been_synced_to_the_disk(tmp_path, words, new):
    if not shutil.which("strace"):
        pytest.skip("this proof reads the system calls of a command: it needs strace")
    if not new:
        finish(tmp_path, "token", "create")
        if "since" not in words:  # a history begins after the newest ticket
            finish(tmp_path, "generate", "--count", 3)
    calls = "--trace=write,pwrite64,ftruncate,fsync,fdatasync"
    strace = ("strace", "--follow-forks", "--decode-fds=path", calls, "--output=trace.txt", "--", *PROGRAM)
    done = subprocess.run([*strace, *words.split()], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"this proof needs the right to trace a process: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    trace = (tmp_path / "trace.txt").read_text()
    assert trace.count("ticketapi.db") > 10
    assert unsynced_at_the_end(trace) == set()
