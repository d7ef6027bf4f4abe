"""Proof by kill -9 at random moments of restores and saves: the desk is as before or restored, a snapshot whole or not there.

Run with `pytest -m proof tests/proofs/test_snapshot_kills.py`; PROOF_ROUNDS sets how often, PROOF_SEED repeats a run's moments.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException

import pytest
from conftest import NOON, wait_for
from kept import ask, assert_whole, counter, folder_of

import ticketapi

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "10"))
BEFORE, AFTER = 20_000, 30_000  # tickets in the snapshot, and on the desk


@pytest.fixture
def chance():
    """Random moments, which PROOF_SEED repeats."""
    seed = int(os.environ.get("PROOF_SEED", "0")) or random.randrange(1, 10**9)
    print(f"PROOF_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def desk(tmp_path):
    """A desk that has a snapshot and many more tickets since."""
    path = tmp_path / "ticketapi.db"
    with closing(ticketapi.open_database(path, "desk")) as db:
        ticketapi.generate_tickets(db, BEFORE, NOON, seed=1)
        ticketapi.save_snapshot(path, "one", NOON)
        ticketapi.generate_tickets(db, AFTER - BEFORE, NOON + 10**9, seed=2)
        ticketapi.process_tickets(db, 5000, NOON + 2 * 10**9)
        ticketapi.save_snapshot(path, "two", NOON)
    return path


def state(desk):
    """Return how many tickets are open and closed, which the rows must agree with, and how often a snapshot was restored."""
    assert_whole(desk)
    counts = dict(ask(desk, "SELECT status, tickets FROM ticket_counts"))
    return (counts[ticketapi.OPEN], counts[ticketapi.CLOSED]), counter(desk, "epoch")


STATES = {"one": (BEFORE, 0), "two": (AFTER - 5000, 5000)}


def command(desk, *words):
    """Start a command of snapshots in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ticketapi", "snapshot", *words, "--db", str(desk)], stdout=subprocess.DEVNULL
    )


def kill_within(process, seconds):
    """Kill a process, unless it ends before; tell whether it was killed."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def test_a_restore_that_is_killed_happened_or_did_not(desk, chance):
    begun = time.monotonic()
    assert command(desk, "restore", "one").wait() == 0
    whole, kills, seen = time.monotonic() - begun, 0, [0, 0]
    found, epoch = state(desk)
    assert (found, epoch) == (STATES["one"], 1)
    for number in range(ROUNDS):
        name = ("two", "one")[number % 2]
        kills += kill_within(command(desk, "restore", name), chance.uniform(0.3, 1.1) * whole)
        now, then = state(desk)
        happened = then - epoch
        assert happened in (0, 1)
        assert now == (STATES[name] if happened else found)
        found, epoch = now, then
        seen[happened] += 1
    print(f"{kills} kills of {ROUNDS} restores, {seen[1]} happened")
    assert command(desk, "restore", "two").wait() == 0
    assert state(desk) == (STATES["two"], epoch + 1)
    assert sorted(path.name for path in folder_of(desk).iterdir()) == ["one.db", "two.db"]


def test_a_server_that_is_killed_while_it_restores_comes_back_with_one_of_both(serve, desk, chance):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        token = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)["token"]
    headers, whole, epoch = {"Authorization": f"Bearer {token}"}, 0.0, 0
    for number in range(ROUNDS + 1):
        name = ("one", "two")[number % 2]
        served = serve("--db", desk, "--no-scheduler", "--rate", "0")
        answers = []

        def ask_for(name=name, served=served, answers=answers):
            with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection:
                connection.request("POST", f"/api/snapshots/{name}/restore", headers=headers)
                answers.append(connection.getresponse().status)

        begun, asking = time.monotonic(), threading.Thread(target=ask_for)
        asking.start()
        if number:
            asking.join(chance.uniform(0.2, 1.1) * whole)
            served.process.send_signal(signal.SIGKILL)
            served.process.wait()
        asking.join()
        whole = whole or time.monotonic() - begun
        served.stop()
        now, then = state(desk)
        assert then - epoch == 1 if answers else then - epoch in (0, 1)
        assert now in STATES.values()
        assert now == STATES[name] or not answers
        epoch = then
    served = serve("--db", desk, "--no-scheduler", "--rate", "0")
    assert served.get("/api/snapshots/one/restore", token, method="POST").status == 200
    assert served.get("/api/stats", token).json["total_tickets"] == BEFORE
    assert not list(folder_of(desk).glob("*.part*"))


def test_a_save_that_is_killed_leaves_a_whole_snapshot_or_none(desk, chance):
    begun = time.monotonic()
    assert command(desk, "save", "whole").wait() == 0
    whole, made = time.monotonic() - begun, 0
    for number in range(ROUNDS):
        kill_within(command(desk, "save", f"s{number}"), chance.uniform(0.3, 1.1) * whole)
        names = {one["name"]: one["tickets"] for one in ticketapi.list_snapshots(desk)}
        assert names.get(f"s{number}", AFTER) == AFTER
        if f"s{number}" in names:
            made += 1
            assert ticketapi.restore_snapshot(desk, f"s{number}", NOON)["tickets"] == AFTER
        else:
            wait_for(lambda number=number: ticketapi.save_snapshot(desk, f"s{number}", NOON))
    print(f"{made} of {ROUNDS} saves happened")
    assert {one["tickets"] for one in ticketapi.list_snapshots(desk)} == {BEFORE, AFTER}
    assert not list(folder_of(desk).glob("*.part*"))
    assert_whole(desk)
