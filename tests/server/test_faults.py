"""What a small box meets - locks, damaged files, stops, a clock that is set - breaks nothing, and each says so in one line."""

import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import NOON, SECOND, WITHOUT_PRIVILEGES, wait_for
from faults import contents, held, make_desk
from soundness import ask

import ticketapi

HOUR = 3600 * SECOND
PROGRAM = (sys.executable, "-m", "ticketapi")
LISTS = ("/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets")
ROUTES = (*LISTS, "/api/stats")


def cli(folder, *arguments, program=PROGRAM):
    """Run a command as a process of its own in a folder and return (code, stdout, stderr)."""
    done = subprocess.run([*program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


# What is committed is on the disk -----------------------------------------------------------------


class Noting(sqlite3.Connection):
    """A connection that notes, at each commit of a transaction, how it is written to which file."""

    commits: ClassVar = []

    def execute(self, sql, *values):
        """Run a statement."""
        if sql == "COMMIT" and self.total_changes:
            name = Path(super().execute("PRAGMA database_list").fetchone()[2]).name
            self.commits.append((name, super().execute("PRAGMA synchronous").fetchone()[0]))
        return super().execute(sql, *values)


@pytest.fixture
def commits(monkeypatch):
    """What all connections made from now on note."""
    real = sqlite3.connect
    monkeypatch.setattr(Noting, "commits", [])
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: real(*args, **more, factory=Noting))
    return Noting.commits


def test_whoever_writes_to_the_desk_waits_until_it_is_on_the_disk(commits, run, desk, db, make_api, clock):
    ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "expired", [], 1, clock.now)
    for words in ("generate --count 5", "process", "token create", "token revoke 2", "token prune"):
        del commits[:]
        assert run(*words.split(), "--db", desk)[0] == 0
        assert commits == [("desk.db", 2)]
    del commits[:]
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=desk), seed=1)
    for moment in (0, 300 * SECOND):
        ticketapi.run_due_jobs(jobs, clock.now + moment)
    assert commits == [("desk.db", 2)] * 2
    token = run("token", "create", "--db", desk)[1].strip()
    del commits[:]
    assert make_api().get("/api/stats", token=token).status == 200
    # The use of a token, and a row of the audit log, are written in the event loop, which waits for no disk.
    assert sorted(commits) == [("desk-audit.db", 1), ("desk.db", 1)]


# A locked desk ------------------------------------------------------------------------------------


def walk_while_held(served, folder, token):
    """Read twenty pages while the audit log is held; return how long each took."""
    waits = []
    with held(folder / "ticketapi-audit.db"):
        for page in range(1, 21):
            begin = time.monotonic()
            assert served.get(f"/api/tickets/open?page={page}", token=token).status == 200
            waits.append(time.monotonic() - begin)
    return waits


def test_a_locked_audit_log_makes_one_request_half_a_second_late_and_gets_its_rows_once_it_is_free(serve, tmp_path):
    servers = []
    for threads in (1, 3):
        (folder := tmp_path / str(threads)).mkdir()
        token = make_desk(folder / "ticketapi.db")
        servers.append((serve("--no-scheduler", "--rate", "0", "--threads", threads, cwd=folder), folder, token))
    with ThreadPoolExecutor(2) as pool:
        walks = list(pool.map(walk_while_held, *zip(*servers, strict=True)))
    for waits in walks:
        assert sorted(waits)[-1] < 1.0
        assert sorted(waits)[-2] < 0.4
    for served, folder, _ in servers:
        wait_for(lambda folder=folder: len(ask(folder / "ticketapi-audit.db", "SELECT id FROM api_audits")) == 20, 5)
        queries = [text for (text,) in ask(folder / "ticketapi-audit.db", "SELECT query FROM api_audits ORDER BY id")]
        assert queries == [f'{{"page":"{page}"}}' for page in range(1, 21)]
        log = [line for line in served.stop()[2].splitlines() if "audit" in line]
        assert ["wait in memory: database is locked" in log[0], "is written again" in log[1], len(log)] == [True, True, 2]


def test_an_audit_log_without_room_is_counted_once_a_second_and_catches_up_in_order(api, clock, token, caplog):
    with closing(ticketapi.connect(api.settings.audit_db)) as other:
        pages = other.execute("PRAGMA page_count").fetchone()[0]
    api.audit._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says of a full disk
    numbers = [str(page) * 400 for page in range(1, 10)]  # long ones, for which the pages there are do not suffice
    for number in numbers * 2:
        assert api.get(f"/api/nope?page={number}", token=token).status == 404
        clock.advance(0.5)
    assert api.audit.failures > 3
    rows = len(api.audits())
    assert rows < 18
    api.audit._db.execute("PRAGMA max_page_count = 1000000")
    clock.advance(1)
    api.audit.commit(clock.monotonic())
    assert [json.loads(row["query"])["page"] for row in api.audits()] == numbers * 2
    assert api.audit.failures <= (18 - rows) / 2 + 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 1
    assert said[0].startswith("audit rows wait in memory: disk full: ")


# Files that are no desk, or one no longer ---------------------------------------------------------


def patch(path, offset, data):
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def change(path, *statements):
    """Run statements on a file as another program would, and leave no WAL behind."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def replace_by(path, *statements):
    """Put another program's database in a file's place."""
    path.unlink()
    change(path, *statements)


def drop(path, kind):
    """Drop the first table, or index, that is ours."""
    name = {("desk", "TABLE"): "ticket_counts", ("audit", "TABLE"): "api_audits", ("desk", "INDEX"): "tickets_closed"}
    part = "audit" if path.stem.endswith("-audit") else "desk"
    change(path, f"DROP {kind} {name[part, kind]}")


def spoil_schema(path):
    """Make the text of the schema something that SQLite cannot read."""
    change(path, "PRAGMA writable_schema = ON", "UPDATE sqlite_schema SET sql = 'CREATE TABLE (' WHERE name LIKE '%s'")


def cut(path, to):
    """Cut a file to a size, given as a function of the size it has."""
    os.truncate(path, to(path.stat().st_size))


DAMAGE = {
    "no magic": (lambda path: patch(path, 0, bytes(16)), "is not a SQLite database"),
    "one bit of the magic": (lambda path: patch(path, 3, b"j"), "is not a SQLite database"),
    "page size": (lambda path: patch(path, 16, b"\x17\x17"), "is damaged: it has"),
    "format from the future": (lambda path: patch(path, 18, b"\xff\xff"), "is not a SQLite database"),
    "fractions": (lambda path: patch(path, 21, bytes(3)), "is not a SQLite database"),
    "schema format": (lambda path: patch(path, 47, b"\5"), "unsupported file format"),
    "encoding": (lambda path: patch(path, 56, b"\0\0\0\2"), "is damaged"),
    "version 0": (lambda path: patch(path, 60, bytes(4)), "is damaged"),
    "negative version": (lambda path: patch(path, 60, b"\xff\xff\xff\xfe"), "is damaged"),
    "newer version": (lambda path: patch(path, 60, b"\0\0\0\6"), "is from a newer ticketapi"),
    "application": (lambda path: patch(path, 68, b"\xff"), "belongs to another program"),
    "first page": (lambda path: patch(path, 100, b"\xa5" * 3996), "is damaged"),
    "cells of the schema": (lambda path: patch(path, 2048, b"\xa5" * 2048), "is damaged"),
    "text of the schema": (spoil_schema, "is damaged"),
    "a byte short": (lambda path: cut(path, lambda size: size - 1), "is damaged: it has"),
    "cut in a page": (lambda path: cut(path, lambda size: size // 2 + 100), "is damaged"),
    "cut between pages": (lambda path: cut(path, lambda size: size // 8192 * 4096), "is damaged"),
    "one page": (lambda path: cut(path, lambda size: 4096), "is damaged"),
    "header alone": (lambda path: cut(path, lambda size: 100), "is not a SQLite database"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)), "is not a SQLite database"),
    "text": (lambda path: path.write_text("Dear diary\n" * 1000), "is not a SQLite database"),
    "another program": (lambda path: replace_by(path, "CREATE TABLE songs (title)"), "belongs to another program"),
    "another program in WAL mode": (
        lambda path: replace_by(path, "PRAGMA journal_mode = WAL", "CREATE TABLE songs (title)"),
        "belongs to another program",
    ),
    "a table missing": (lambda path: drop(path, "TABLE"), "is damaged: it lacks (ticket_counts|api_audits)"),
    "an index missing": (lambda path: drop(path, "INDEX"), "is damaged: it lacks tickets_closed"),
}
# What the desk's damage does to these commands, and the audit log's to a server, which alone opens it.
REFUSALS = [("desk", "generate"), ("desk", "serve"), ("audit", "serve")]
CASES = [
    (part, command, name)
    for part, command in REFUSALS
    for name in DAMAGE
    if (part, name) not in {("audit", "an index missing"), ("audit", "one page")}  # it has neither index nor more pages
]

# Runs a command in each of several folders and writes down what each said; a server that starts is interrupted.
REFUSER = """
import contextlib, io, json, signal, sys, ticketapi
signal.signal(signal.SIGALRM, signal.default_int_handler)
for command, folder in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        more = ["--port", "0"] if command == "serve" else ["--count", "3"]
        signal.alarm(3)
        code = ticketapi.main([command, "--db", folder + "/ticketapi.db", *more])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Every command on every damaged file: by case, what it said, and the files before and after."""
    sound, folders = tmp_path_factory.mktemp("sound"), []
    make_desk(sound / "ticketapi.db")
    ticketapi.open_database(sound / "ticketapi-audit.db", "audit").close()
    for part, _, name in CASES:
        folders.append(tmp_path_factory.mktemp("damaged"))
        shutil.copytree(sound, folders[-1], dirs_exist_ok=True)
        DAMAGE[name][0](folders[-1] / ("ticketapi.db" if part == "desk" else "ticketapi-audit.db"))
    before = [contents(folder) for folder in folders]
    todo = json.dumps([(command, str(folder)) for (_, command, _), folder in zip(CASES, folders, strict=True)])
    done = subprocess.run([sys.executable, "-c", REFUSER], input=todo, capture_output=True, text=True, timeout=60)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(CASES), (CASES[len(said)], done.stderr)
    after = [contents(folder) for folder in folders]
    return dict(zip(CASES, zip(said, before, after, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_what_is_no_sound_file_of_ours_is_refused_in_one_line(refusals, case):
    part, _, name = case
    (code, out, err), _, _ = refusals[case]
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1
    file = "ticketapi.db" if part == "desk" else "ticketapi-audit.db"
    assert re.search(rf"^ticketapi: .*/{file}:? ({DAMAGE[name][1]})", lines[0])
    assert "Traceback" not in err


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_what_is_refused_stays_as_it_was_with_nothing_beside_it(refusals, case):
    part, _, _ = case
    _, before, after = refusals[case]
    assert sorted(after) == sorted([*before, *(["ticketapi.db-lock"] if part == "audit" else [])])
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(("file", "command"), [("desk", "generate"), ("desk", "serve"), ("audit", "serve")])
def test_a_file_that_may_not_be_written_is_refused_in_one_line(tmp_path, file, command):
    if WITHOUT_PRIVILEGES and not shutil.which(WITHOUT_PRIVILEGES[0]):
        pytest.skip("root may write every file; without setpriv there is no telling what others may")
    make_desk(tmp_path / "ticketapi.db")
    ticketapi.open_database(tmp_path / "ticketapi-audit.db", "audit").close()
    path = tmp_path / ("ticketapi.db" if file == "desk" else "ticketapi-audit.db")
    path.chmod(0o400)
    before = contents(tmp_path)
    program = (*WITHOUT_PRIVILEGES, "timeout", "-s", "INT", "5", *PROGRAM)
    code, out, err = cli(tmp_path, command, *(["--port", "0"] if command == "serve" else []), program=program)
    lines = [line for line in err.splitlines() if not line.startswith("INFO")]
    assert (code, out, len(lines)) == (1, "", 1)
    assert lines[0] == f"ticketapi: {path.name} is read-only; give this user the right to write it and its directory"
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    assert {*contents(tmp_path)} - {*before} <= {"ticketapi.db-lock"}


# Damage in the middle -----------------------------------------------------------------------------

FILLINGS = {"zeros": bytes(4096), "garbage": random.Random(1).randbytes(4096)}


def overwrite(path, ticket_id, filling):
    """Overwrite the page of a file on which a ticket lies, with those beside it."""
    with closing(ticketapi.connect(path)) as db:
        db.execute("UPDATE tickets SET subject = 'here it lies' WHERE id = ?", (ticket_id,))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    patch(path, path.read_bytes().index(b"here it lies") // 4096 * 4096, FILLINGS[filling])


@pytest.mark.parametrize("filling", FILLINGS)
def test_damage_is_a_503_where_it_lies_and_logged_once(desk, make_api, caplog, filling):
    token, api = make_desk(desk, tickets=600), make_api(rate=0)
    overwrite(desk, 300, filling)
    for _ in range(3):
        answers = [api.get(f"/api/tickets/open?per_page=10&page={page}", token=token) for page in range(1, 41)]
        failed = {page: answer for page, answer in enumerate(answers, 1) if answer.status != 200}
        assert {answer.status for answer in failed.values()} == {503}
        assert 10 in failed  # the open tickets begin with 201
        assert len(failed) <= 4
        assert all(answer.headers["retry-after"] == "1" for answer in failed.values())
    assert [api.get(url, token=token).status for url in ("/api/tickets/closed", "/api/stats", "/up", "/ready")] == [200] * 4
    assert [record.getMessage() for record in caplog.records] == ["database: database disk image is malformed"]
    assert [audit["status_code"] for audit in api.audits()].count(503) == 3 * len(failed)


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize(("words", "ticket_id"), [("process --count 600", 300), ("generate --count 3", 600)])
def test_a_command_that_meets_damage_says_so_in_one_line_and_changes_nothing(desk, run, filling, words, ticket_id):
    make_desk(desk, tickets=600)
    overwrite(desk, ticket_id, filling)
    before = contents(desk.parent)
    code, out, err = run(*words.split(), "--db", desk)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.match(rf"ticketapi: {desk} is damaged \(.*\); restore a backup", err)
    assert contents(desk.parent) == before


def test_a_server_whose_desk_is_damaged_while_it_runs_answers_and_logs_once(serve, tmp_path):
    token = make_desk(tmp_path / "ticketapi.db", tickets=600)
    served = serve("--no-scheduler", "--rate", "0")
    assert served.get("/api/stats", token=token).status == 200
    overwrite(tmp_path / "ticketapi.db", 300, "garbage")
    seen = [served.get(f"/api/tickets/open?per_page=10&page={page}", token=token).status for page in (1, 10, 40, 10, 10)]
    assert seen == [200, 503, 200, 503, 503]
    assert served.get("/up").status == 200
    code, _, err = served.stop()
    assert code == 0
    assert [line for line in err.splitlines() if not line.startswith("INFO")] == [
        "ERROR ticketapi: database: database disk image is malformed"
    ]


# Stopping -----------------------------------------------------------------------------------------

FLIGHT = 100


def read_to_end(sock):
    """Return all that a connection brings until the server closes it."""
    chunks = []
    with suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_hundred_requests_in_flight_at_the_stop_are_answered_and_audited(serve, tmp_path, threads):
    token = make_desk(tmp_path / "ticketapi.db", tickets=600)
    served = serve("--no-scheduler", "--rate", "0", "--threads", threads)
    wires = [socket.create_connection(("127.0.0.1", served.port), timeout=15) for _ in range(FLIGHT)]
    os.kill(served.process.pid, signal.SIGSTOP)  # what comes now is all in flight when it goes on
    for page, sock in enumerate(wires, 1):
        head = f"GET /api/tickets/open?page={page} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
        sock.sendall(head.encode())
    served.process.send_signal(signal.SIGTERM)
    os.kill(served.process.pid, signal.SIGCONT)
    begin = time.monotonic()
    for page, sock in enumerate(wires, 1):
        with sock:
            head, _, body = read_to_end(sock).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body)["meta"]["current_page"] == page
    assert served.process.wait(20) == 0
    assert time.monotonic() - begin < 10
    queries = [text for (text,) in ask(tmp_path / "ticketapi-audit.db", "SELECT query FROM api_audits")]
    assert sorted(queries) == sorted(f'{{"page":"{page}"}}' for page in range(1, FLIGHT + 1))


@pytest.mark.parametrize("numbers", [("TERM", "TERM"), ("INT", "TERM")], ids="-".join)
def test_a_second_signal_ends_a_server_that_still_waits_at_once(serve, numbers):
    first, second = (signal.Signals[f"SIG{number}"] for number in numbers)
    served = serve("--no-scheduler")
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
        sock.sendall(b"POST /up HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert b" 100 " in sock.recv(65536)  # its body never comes, so that the stop takes as long as it may
        served.process.send_signal(first)
        wait_for(lambda: refuses_connections(served.port))
        assert served.process.poll() is None
        begin = time.monotonic()
        served.process.send_signal(second)
        served.process.wait(20)
    assert time.monotonic() - begin < 2
    assert served.process.returncode == -second


def refuses_connections(port):
    """Tell whether a server has stopped listening."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return True
    return False


# A clock that is set ------------------------------------------------------------------------------

STEPS = {"forward": [HOUR], "back": [-HOUR], "there and back": [HOUR, -HOUR], "to and fro": [-HOUR, 2 * HOUR, -3 * HOUR, HOUR]}


@pytest.mark.parametrize("hours", [1, 0, -1])
@pytest.mark.parametrize("used", [True, False], ids=["known to the server", "not yet used"])
def test_a_token_expires_early_or_late_by_no_more_than_the_step(api, db, clock, hours, used):
    token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "t", ["*"], 7200, clock.now)["token"]
    if used:
        assert api.get("/api/stats", token=token).status == 200
    clock.now += hours * HOUR
    clock.advance(7200 - hours * 3600 - 0.000001)
    assert api.get("/api/stats", token=token).status == 200
    clock.advance(0.000001)
    assert api.get("/api/stats", token=token).status == 401


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_bucket_knows_nothing_of_the_wall_clock(api, clock, token, steps):
    remaining = []
    for step in [0, *steps] * 4:
        clock.now += step
        clock.tick += 0.5
        remaining.append(int(api.get("/api/stats", token=token).headers["x-ratelimit-remaining"]))
    taken, refilled = len(remaining), (len(remaining) - 1) * 0.25
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] == int(30 - taken + refilled)


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_the_audit_log_keeps_the_order_of_the_requests(api, clock, token, steps):
    for page, step in enumerate([0, *steps], 1):
        clock.now += step
        api.get(f"/api/tickets/open?page={page}", token=token)
    rows = api.audits()
    assert [json.loads(row["query"])["page"] for row in rows] == [str(page) for page in range(1, len(steps) + 2)]
    assert all(row["duration_ms"] == 0 for row in rows)


def list_ids(api, token, url):
    """Return the ids and times of all tickets of a list, page by page."""
    found, page, last = [], 0, 1
    while page < last:
        page += 1
        answer = api.get(f"{url}?per_page=7&page={page}", token=token).json
        found += [(ticket["id"], ticket["created_at"], ticket["updated_at"]) for ticket in answer["data"]]
        last = answer["meta"]["last_page"]
    return found


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_lists_keep_their_order_while_the_clock_is_set(make_api, db, clock, token, steps):
    api, seen = make_api(rate=0), []
    for step in [0, *steps]:
        clock.now += step
        ticketapi.generate_tickets(db, 20, clock.now, seed=1)
        ticketapi.process_tickets(db, 8, clock.now)
        waiting, closed = (list_ids(api, token, url) for url in LISTS[:2])
        ids = [ticket_id for ticket_id, *_ in closed]
        assert ids[len(ids) - len(seen) :] == seen  # what was closed before stands where it stood
        assert ids == sorted(ids, reverse=True)
        assert [at for *_, at in closed] == sorted({at for *_, at in closed}, reverse=True)
        assert [ticket_id for ticket_id, *_ in waiting] == list(range(len(ids) + 1, len(ids) + len(waiting) + 1))
        assert [at for _, at, _ in waiting] == sorted({at for _, at, _ in waiting})
        assert all(created < updated for _, created, updated in closed)
        seen = ids
    own = list_ids(api, token, LISTS[2])
    assert own == sorted(own, reverse=True) != []


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_clock_that_is_set_again_and_again_costs_or_brings_no_more_than_a_run_a_step(steps):
    runs, now, forward = [], NOON, 0
    jobs = [ticketapi.Job("job", 60, runs.append)]
    for step in [0, *steps] * 3:
        now += step
        forward += step > 0
        for _ in range(600):
            ticketapi.run_due_jobs(jobs, now)
            now += SECOND
    minutes, sets = 10 * 3 * (len(steps) + 1), 3 * len(steps)
    assert minutes - 2 * sets - 1 <= len(runs) <= minutes + forward
