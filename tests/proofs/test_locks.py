"""A desk or an audit log that another program holds is waited for, five seconds, and then refused in one line."""

import json
import logging
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import pytest
from conftest import NOON, SECOND, Served
from faults import contents, counters, held, make_desk
from old_desks import make_old
from soundness import ask
from upgrades import assert_untouched, kept

import ticketapi

HOUR = 3600 * SECOND
PROGRAM = (sys.executable, "-m", "ticketapi")
ROUTES = ("/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/stats")


def cli(folder, *arguments):
    """Run a command as a process of its own in a folder and return (code, stdout, stderr)."""
    done = subprocess.run([*PROGRAM, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def assert_refused(result, *words):
    """Check that a command failed with nothing on stdout and one line on stderr that holds some words."""
    code, out, err = result
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert not [word for word in words if word not in err], err


# All at once -------------------------------------------------------------------------------------

WRITING = ("generate --count 3", "process", "token create")
EXCLUSIVE = ("serve --port 0",)  # such a program lets nobody read either


def timed(folder, words):
    """Run a command and return its code, stdout, stderr and seconds."""
    begin = time.monotonic()
    return (*cli(folder, *words.split()), time.monotonic() - begin)


def run_jobs_twice(path):
    """Run the scheduler's first turn while the desk is locked; return its jobs and what it logged."""
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=path, process_every=0), seed=1)
    ticketapi.log.addHandler(handler)
    for moment in (0, 60 * SECOND):
        ticketapi.run_due_jobs(jobs, NOON + HOUR + moment)
    ticketapi.log.removeHandler(handler)
    return jobs, said


def read_while(served, token, waiting):
    """Ask every route again and again while others wait; return the answers' statuses and the longest time of one."""
    statuses, longest = set(), 0.0
    while not all(future.done() for future in waiting):
        for route in (*ROUTES, "/ready", "/up"):
            begin = time.monotonic()
            statuses.add(served.get(route, token=token).status)
            longest = max(longest, time.monotonic() - begin)
        time.sleep(0.2)  # the waiting programs have to start, too
    return statuses, longest


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """Five seconds with a desk that another program holds, for commands, a server and a scheduler at once."""
    folder, apart, alone = (tmp_path_factory.mktemp(name) for name in ("held", "scheduled", "exclusive"))
    tokens = [make_desk(place / "ticketapi.db", now=NOON - HOUR) for place in (folder, apart, alone)]
    served = Served("--no-scheduler", "--rate", "0", cwd=folder)
    files = [place / "ticketapi.db" for place in (folder, apart, alone)]
    before = contents(alone)
    with ThreadPoolExecutor(10) as pool, held(files[0]), held(files[1]), held(files[2], "PRAGMA locking_mode = EXCLUSIVE"):
        commands = {words: pool.submit(timed, folder, words) for words in WRITING}
        commands |= {words: pool.submit(timed, alone, words) for words in EXCLUSIVE}
        turn = pool.submit(run_jobs_twice, files[1])
        statuses, longest = read_while(served, tokens[0], [*commands.values()])
        found = SimpleNamespace(commands={words: future.result() for words, future in commands.items()})
        found.turn = turn.result()
    found.code, _, found.log = served.stop()
    found.statuses, found.longest, found.files = statuses, longest, files
    found.untouched = {name: data for name, data in contents(alone).items() if name in before} == before
    return found


@pytest.mark.parametrize("words", [*WRITING, *EXCLUSIVE])
def test_a_command_waits_five_seconds_for_a_locked_desk_and_says_so_in_one_line(locked, words):
    code, out, err, seconds = locked.commands[words]
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("ticketapi: database is locked: another program holds ticketapi.db; ")
    assert 5 <= seconds < 9


def test_no_request_waits_for_a_program_that_holds_the_desk(locked):
    assert locked.statuses == {200}
    assert locked.longest < 2
    assert locked.code == 0
    assert [line for line in locked.log.splitlines() if not line.startswith("INFO")] == []


def test_a_locked_desk_stays_as_it_was(locked):
    assert locked.untouched
    assert [counters(path) for path in locked.files[::2]] == [(40, 20)] * 2
    assert ask(locked.files[0], "SELECT count(*) FROM personal_access_tokens") == [(1,)]


def test_the_scheduler_tries_again_at_its_next_turn(locked):
    jobs, said = locked.turn
    assert len(said) == 1
    assert "scheduled generate failed, next try at 2025-12-04T13:02:00" in said[0]
    assert "locked" in said[0]
    assert counters(locked.files[1]) == (40, 20)
    ticketapi.run_due_jobs(jobs, NOON + HOUR + 120 * SECOND)
    assert counters(locked.files[1]) == (41, 20)


# One by one --------------------------------------------------------------------------------------


def test_a_desk_that_is_locked_is_one_line(db, desk):
    with ticketapi.transaction(db):
        assert_refused(cli(".", "generate", "--db", desk), str(desk), "locked", "again")


def test_a_desk_that_is_locked_against_readers_is_a_503(desk, db, make_api, token):
    api = make_api()
    db.close()
    with closing(sqlite3.connect(desk, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN IMMEDIATE")
        answer = api.get("/api/stats", token=token)
        assert api.get("/up").status == 200
    assert (answer.status, answer.body) == (503, b'{"message":"Service Unavailable"}')
    assert api.get("/api/stats", token=token).status == 200


def test_a_log_that_another_program_holds_is_one_line_and_stays_as_it_is(run, api, desk):
    api.get("/api/stats")
    path = api.settings.audit_db
    with closing(ticketapi.connect(path)) as holder, ticketapi.transaction(holder):
        assert_refused(run("audit", "prune", "--older-than", "1h", "--db", desk), path.name, "locked", "again")
        assert [json.loads(line)["id"] for line in run("audit", "--json", "--db", desk)[1].splitlines()] == [1]


@pytest.mark.parametrize("old_version", [1, 2])
def test_a_desk_that_another_program_holds_is_refused_in_one_line_and_stays_as_it_was(desk, old_version):
    old = make_old(desk, old_version)
    before = kept(old)
    with closing(sqlite3.connect(old, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        done = subprocess.run([*PROGRAM, "process", "--db", str(old)], capture_output=True, text=True, timeout=30)
        holder.execute("ROLLBACK")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"database is locked: another program holds {old}" in done.stderr
    assert_untouched(old, before, old_version)
