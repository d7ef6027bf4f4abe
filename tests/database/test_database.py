"""The files are private, durable and ours alone: what is no desk of this version is refused and stays as it was."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

import ticketapi

NOBODY = 65534
NOW = 1_764_849_600_000_000
NOON = "2025-12-04T12:00:00.000000Z"

OPENER = """
import os, sqlite3, sys, ticketapi
from contextlib import closing
from pathlib import Path
if sys.argv[2] != "self":
    os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
try:
    with closing(ticketapi.open_database(Path(sys.argv[1]), "desk")) as db, ticketapi.transaction(db):
        db.execute("DELETE FROM tickets")
    print("opened")
except ticketapi.TicketApiError as error:
    print(error)
except sqlite3.Error as error:
    print(ticketapi.explain_failure(error, Path(sys.argv[1])))
"""

LOCKER = """
import sys, ticketapi
from pathlib import Path
try:
    ticketapi.lock_desk(Path(sys.argv[1]))
except ticketapi.TicketApiError as error:
    sys.exit(str(error))
print("ready", flush=True)
sys.stdin.readline()
"""


def python(code, *arguments):
    """Start a Python process that has said `ready`, and waits for a line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def open_elsewhere(path, count=1, user="self"):
    """Open a desk in `count` processes at the same moment and return what they say."""
    processes = [python(OPENER, path, user) for _ in range(count)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=20)[0].strip() for process in processes]


def contents(directory):
    """Return the bytes of every file of a directory."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in directory.iterdir()}


def mode(path):
    """Return the permission bits of a file."""
    return path.stat().st_mode & 0o777


def make_database(path, *statements):
    """Make somebody's SQLite database."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def add_person(db, user_id=1, email="a@example.com"):
    """Insert a user."""
    ticketapi.insert_users(db, [(user_id, "Ann", email, NOON)])


def count_users(db):
    """Count the users."""
    return db.execute("SELECT count(*) FROM users").fetchone()[0]


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request):
    """Set the umask for one test."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def public_directory():
    """A directory that an unprivileged user can enter and owns."""
    with tempfile.TemporaryDirectory() as name:
        if os.getuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)
        os.chmod(name, 0o700)


# Creating -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["desk", "audit"])
def test_a_new_file_is_private_whatever_the_umask(umask, desk, part):
    with closing(ticketapi.open_database(desk, part)) as db, ticketapi.transaction(db):
        db.execute("CREATE TABLE more (x)")
        assert {path.name: mode(path) for path in desk.parent.iterdir()} == {
            "desk.db": 0o600,
            "desk.db-wal": 0o600,
            "desk.db-shm": 0o600,
        }


def test_a_file_that_is_there_keeps_its_mode(desk):
    ticketapi.open_database(desk, "desk").close()
    desk.chmod(0o640)
    ticketapi.open_database(desk, "desk").close()
    assert mode(desk) == 0o640


DESK_TABLES = {
    *("users", "tickets", "ticket_counts", "counters", "list_blocks", "ticket_arrivals", "ticket_closings", "comments"),
    *("events", "change_times", "personal_access_tokens", "idempotency_keys", "webhooks", "webhook_deliveries", "simulation"),
}


@pytest.mark.parametrize(
    ("part", "application_id", "version", "tables"),
    [
        ("desk", 0x544B5444, 5, DESK_TABLES),
        ("audit", 0x544B5441, 3, {"api_audits"}),
    ],
)
def test_a_new_file_says_what_it_is(desk, part, application_id, version, tables):
    with closing(ticketapi.open_database(desk, part)) as db:
        names = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        assert {name for (name,) in names} == tables
        assert db.execute("PRAGMA application_id").fetchone()[0] == application_id
        assert db.execute("PRAGMA user_version").fetchone()[0] == version


def test_an_empty_file_is_adopted(desk):
    desk.touch()
    with closing(ticketapi.open_database(desk, "desk")) as db:
        assert count_users(db) == 0


def test_an_empty_database_is_adopted(desk):
    make_database(desk, "CREATE TABLE x (a)", "DROP TABLE x")
    with closing(ticketapi.open_database(desk, "desk")) as db:
        assert count_users(db) == 0


def test_a_desk_that_is_there_keeps_what_it_holds(desk):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        add_person(db)
    with closing(ticketapi.open_database(desk, "desk")) as db:
        assert count_users(db) == 1


@pytest.mark.parametrize("name", ["a b.db", "a?mode=memory.db", "a#b.db", "a%20b.db", "ü.db", "'quoted'.db"])
def test_a_file_may_have_any_name(tmp_path, name):
    ticketapi.open_database(tmp_path / name, "desk").close()
    ticketapi.open_database(tmp_path / name, "desk").close()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_relative_path_is_taken_from_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ticketapi.open_database(Path("here.db"), "desk").close()
    assert (tmp_path / "here.db").exists()


def test_threads_may_create_the_same_desk_at_once(tmp_path):
    failures = []

    def create(path, barrier):
        barrier.wait()
        try:
            for _ in range(3):  # who closes last moves everything from the WAL into the file, while others open it
                ticketapi.open_database(path, "desk").close()
        except Exception as error:
            failures.append(error)

    for round_ in range(20):
        barrier = threading.Barrier(4)
        arguments = (tmp_path / f"{round_}.db", barrier)
        threads = [threading.Thread(target=create, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_processes_may_create_the_same_desk_at_once(tmp_path):
    answers = [open_elsewhere(tmp_path / f"{round_}.db", count=3) for round_ in range(4)]
    assert answers == [["opened"] * 3] * 4


def kill_while_new(folder, desk):
    """Leave behind what kill -9 leaves of a desk at the first write to its file: an empty database and its journal."""
    with closing(sqlite3.connect(folder / "new.db", isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN")
        for number in range(10):
            db.execute(f"CREATE TABLE t{number} (x)")
        journal = (folder / "new.db-journal").read_bytes()
    ticketapi.create_private_file(desk)
    make_database(desk, "PRAGMA user_version = 1", "PRAGMA user_version = 0")  # one page, without anything in it
    desk.with_name(f"{desk.name}-journal").write_bytes(journal)


def test_a_desk_whose_making_was_killed_at_its_first_write_is_made_anew(tmp_path, desk):
    (tmp_path / "elsewhere").mkdir()
    kill_while_new(tmp_path / "elsewhere", desk)
    with closing(ticketapi.open_database(desk, "desk")) as db:
        assert count_users(db) == 0
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert not desk.with_name(f"{desk.name}-journal").exists()


# Refusing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 99, 100, 511, 512, 5000])
def test_a_text_file_is_refused_and_stays_as_it_was(desk, size):
    desk.write_bytes((b"Dear diary, nothing happened today.\n" * 200)[:size])
    before = contents(desk.parent)
    with pytest.raises(ticketapi.TicketApiError, match=r"desk\.db is not a SQLite database; choose another --db$"):
        ticketapi.open_database(desk, "desk").close()
    assert contents(desk.parent) == before


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE songs (title)"],
        ["CREATE TABLE users (id, name)", "CREATE TABLE tickets (id)"],
        ["PRAGMA application_id = 12345"],
        ["PRAGMA application_id = 12345", "CREATE TABLE songs (title)"],
        ["PRAGMA application_id = 12345", "CREATE TABLE songs (title)", "PRAGMA user_version = 1"],
        ["PRAGMA user_version = 1"],
    ],
)
def test_a_database_of_another_program_is_refused_and_stays_as_it_was(desk, statements):
    make_database(desk, *statements)
    before = contents(desk.parent)
    with pytest.raises(ticketapi.TicketApiError, match=r"desk\.db belongs to another program; choose another --db$"):
        ticketapi.open_database(desk, "desk").close()
    assert contents(desk.parent) == before


def test_a_database_of_another_program_in_wal_mode_gets_no_files_beside_it(desk):
    make_database(desk, "PRAGMA journal_mode = WAL", "CREATE TABLE songs (title)")
    before = contents(desk.parent)
    with pytest.raises(ticketapi.TicketApiError, match="belongs to another program"):
        ticketapi.open_database(desk, "desk").close()
    assert contents(desk.parent) == before


@pytest.mark.parametrize(("made_as", "opened_as"), [("audit", "desk"), ("desk", "audit")])
def test_desk_and_audit_log_are_not_taken_for_each_other(desk, made_as, opened_as):
    ticketapi.open_database(desk, made_as).close()
    before = desk.read_bytes()
    with pytest.raises(ticketapi.TicketApiError, match="belongs to another program; choose another --db"):
        ticketapi.open_database(desk, opened_as).close()
    assert desk.read_bytes() == before


@pytest.mark.parametrize(("part", "known"), [("desk", 5), ("audit", 3)])
def test_a_file_of_a_newer_version_is_refused_and_stays_as_it_was(desk, part, known):
    ticketapi.open_database(desk, part).close()
    make_database(desk, f"PRAGMA user_version = {known + 1}")
    before = desk.read_bytes()
    message = rf"newer ticketapi \(schema {known + 1}, this one knows {known}\); upgrade ticketapi$"
    with pytest.raises(ticketapi.TicketApiError, match=message):
        ticketapi.open_database(desk, part).close()
    assert desk.read_bytes() == before


def test_a_directory_is_refused_and_stays_empty(tmp_path):
    with pytest.raises(ticketapi.TicketApiError, match=r"is a directory; --db names a file, such as .*/ticketapi\.db$"):
        ticketapi.open_database(tmp_path, "desk")
    assert contents(tmp_path) == {}


def test_a_missing_directory_is_named_and_not_created(tmp_path):
    with pytest.raises(ticketapi.TicketApiError, match=r"there is no directory .*/gone; create it, or choose another --db"):
        ticketapi.open_database(tmp_path / "gone" / "desk.db", "desk")
    assert contents(tmp_path) == {}


def test_a_file_instead_of_a_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ticketapi.TicketApiError, match=r"there is no directory .*/file; "):
        ticketapi.open_database(tmp_path / "file" / "desk.db", "desk")


def test_a_directory_without_permission_is_one_line(public_directory):
    public_directory.chmod(0o555)
    path = public_directory / "desk.db"
    assert open_elsewhere(path, user=unprivileged()) == [f"cannot create {path}: Permission denied"]
    assert contents(public_directory) == {}


def test_a_desk_without_permission_is_one_line(public_directory):
    path = private_desk(public_directory, 0o000)
    [said] = open_elsewhere(path, user=unprivileged())
    assert said == f"cannot open {path}; check permissions of the file and its directory, and ulimit -n"


def test_a_desk_that_is_read_only_is_one_line_and_stays_as_it_was(public_directory):
    path = private_desk(public_directory, 0o400)
    before = path.read_bytes() if os.getuid() == 0 else None
    [said] = open_elsewhere(path, user=unprivileged())
    assert said == f"{path} is read-only; give this user the right to write it and its directory"
    assert before is None or path.read_bytes() == before


def unprivileged():
    """Return the user that permissions bind: nobody in place of root, else who runs the tests."""
    return NOBODY if os.getuid() == 0 else "self"


def private_desk(directory, permissions):
    """Make a desk that belongs to the unprivileged user, with a mode."""
    path = directory / "desk.db"
    ticketapi.open_database(path, "desk").close()
    if os.getuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    path.chmod(permissions)
    return path


# Connections --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("busy_timeout", 5000),
        ("journal_size_limit", 16 * 1024 * 1024),
        ("query_only", 0),
    ],
)
def test_a_desk_is_opened_durable_and_careful(db, pragma, value):
    assert db.execute(f"PRAGMA {pragma}").fetchone()[0] == value


def test_the_audit_log_does_without_a_sync_at_every_row(desk):
    with closing(ticketapi.open_database(desk, "audit")) as db:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 1


def test_every_thread_that_reads_has_a_connection_of_its_own(desk, db):
    with closing(ticketapi.Readers(desk)) as readers:
        seen = [readers.get()]
        thread = threading.Thread(target=lambda: seen.append(readers.get()))
        thread.start()
        thread.join()
        assert readers.get() is seen[0]
        assert seen[1] is not seen[0]
        assert seen[1].db is not seen[0].db
    for reader in seen:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            reader.db.execute("SELECT 1")


def test_a_reader_cannot_write(desk, db):
    with closing(ticketapi.Readers(desk)) as readers, pytest.raises(sqlite3.OperationalError, match="readonly"):
        add_person(readers.get().db)


def test_the_views_of_readers_leave_no_trace_in_the_file(desk, db):
    before = db.execute("SELECT name, sql FROM sqlite_master").fetchall()
    with closing(ticketapi.connect(desk, ticketapi.READER)) as reader:
        assert reader.execute("SELECT count(*) FROM ticket_resources").fetchone()[0] == 0
        assert reader.execute("SELECT name, sql FROM sqlite_master").fetchall() == before
    assert db.execute("SELECT name, sql FROM sqlite_master").fetchall() == before


# Transactions -------------------------------------------------------------------------------------


def test_a_transaction_commits_at_its_end(desk, db):
    with ticketapi.transaction(db):
        add_person(db)
    with closing(ticketapi.connect(desk)) as other:
        assert count_users(other) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_transaction_that_raises_leaves_nothing(db, error):
    with pytest.raises(error), ticketapi.transaction(db):
        add_person(db)
        raise error
    assert count_users(db) == 0
    assert not db.in_transaction


def test_a_transaction_that_sqlite_has_ended_passes_its_error_on(db):
    add_person(db)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"), ticketapi.transaction(db):
        add_person(db, 2, "b@example.com")
        db.execute("INSERT OR ROLLBACK INTO users (id, name, email, created_at) VALUES (1, 'Eve', 'e@x', ?)", (NOON,))
    assert count_users(db) == 1
    with ticketapi.transaction(db):
        add_person(db, 2, "b@example.com")
    assert count_users(db) == 2


def test_a_transaction_takes_the_right_to_write_at_once(desk, db):
    with closing(ticketapi.connect(desk, ticketapi.NOTER)) as other, ticketapi.transaction(db):
        with pytest.raises(sqlite3.OperationalError, match="locked"), ticketapi.transaction(other):
            pass
        assert not other.in_transaction


def test_a_snapshot_sees_one_state_while_another_connection_commits(desk, db):
    with closing(ticketapi.connect(desk)) as writer:
        with ticketapi.snapshot(db):
            assert count_users(db) == 0
            add_person(writer)
            assert count_users(db) == 0
        assert count_users(db) == 1


def test_a_snapshot_ends_also_when_its_block_raises(db):
    with pytest.raises(ValueError), ticketapi.snapshot(db):
        raise ValueError
    assert not db.in_transaction


# The lock of a served desk ------------------------------------------------------------------------


def test_a_second_holder_is_refused_until_the_first_has_died(desk):
    holder = python(LOCKER, desk)
    try:
        with pytest.raises(ticketapi.TicketApiError, match=r"another serve is running on .*; stop it, or choose another --db"):
            ticketapi.lock_desk(desk)
    finally:
        holder.kill()
        holder.communicate()
    ticketapi.lock_desk(desk)


def test_a_symbolic_link_and_the_desk_have_one_lock(desk, tmp_path, db):
    (tmp_path / "link.db").symlink_to(desk)
    ticketapi.lock_desk(desk)
    command = [sys.executable, "-c", LOCKER, str(tmp_path / "link.db")]
    assert "another serve is running" in subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr


def test_the_lock_does_not_keep_others_from_the_desk(desk):
    ticketapi.lock_desk(desk)
    assert open_elsewhere(desk) == ["opened"]


# What SQLite reports ------------------------------------------------------------------------------


def cause_locked(path):
    with closing(ticketapi.connect(path)) as one, closing(ticketapi.connect(path, ticketapi.NOTER)) as other:
        one.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")


def cause_readonly(path):
    with closing(ticketapi.connect(path, ticketapi.READER)) as db:
        add_person(db)


def cause_full(path):
    with closing(ticketapi.connect(path)) as db, ticketapi.transaction(db):
        db.execute("PRAGMA max_page_count = 1")
        add_person(db, 1, "x" * 100_000)


def cause_not_a_database(path):
    path.with_name("text").write_text("no database " * 100)
    ticketapi.connect(path.with_name("text"))


def cause_unable_to_open(path):
    ticketapi.connect(path.parent / "gone.db")


def cause_another_error(path):
    with closing(ticketapi.connect(path)) as db:
        db.execute("SELECT * FROM missing")


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (cause_locked, "database is locked: another program holds desk.db; try again when it is done"),
        (cause_readonly, "desk.db is read-only; give this user the right to write it and its directory"),
        (cause_full, "disk full: make room where desk.db lies; what was committed before is kept"),
        (cause_not_a_database, "desk.db is not a SQLite database; choose another --db"),
        (cause_unable_to_open, "cannot open desk.db; check permissions of the file and its directory, and ulimit -n"),
        (cause_another_error, "desk.db: no such table: missing"),
    ],
)
def test_what_sqlite_reports_names_the_file_and_the_fix(desk, db, cause, text):
    with pytest.raises(sqlite3.Error) as caught:
        cause(desk)
    error = ticketapi.explain_failure(caught.value, Path("desk.db"))
    assert str(error) == text
    assert isinstance(error, ticketapi.DeskBusy) == (cause is cause_locked)


def test_a_missing_resource_is_named():
    with pytest.raises(
        ticketapi.TicketApiError, match=r"^nothing\.txt is missing beside ticketapi\.py; install ticketapi again$"
    ):
        ticketapi.read_resource("nothing.txt")


# The schema's own checks --------------------------------------------------------------------------

USER = "INSERT INTO users (id, name, email, created_at, tickets_count) VALUES (:id, :name, :email, :at, :count)"
TICKET = """
    INSERT INTO tickets
    VALUES (:id, :user, :number, 'Ann', :email, 's', 'c', :status, :at, :updated, :closed, :closing, :change, :deleted)
"""
TOKEN = """
    INSERT INTO personal_access_tokens (user_id, name, token, abilities, last_used_at, expires_at, created_at)
    VALUES (:user, 'n', :token, '[]', :used, :expires, :at)
"""
GOOD_USER = {"id": 2, "name": "Bea", "email": "b@example.com", "at": NOON, "count": 0}
NEITHER = {"closed": None, "closing": None, "deleted": None}
GOOD_TICKET = {
    "id": 1,
    "user": 1,
    "number": 1,
    "email": "a@b",
    "status": 1,
    "at": NOON,
    "updated": NOON,
    "change": 1,
    **NEITHER,
}
CLOSED_TICKET = GOOD_TICKET | {"status": 2, "closed": NOON, "closing": 1}
GONE = {"number": None, "deleted": NOON}
DELETED_TICKET = GOOD_TICKET | GONE | {"status": -1}
DELETED_CLOSED = CLOSED_TICKET | GONE | {"status": -2, "closing": None}
COMMENT = "INSERT INTO comments VALUES (1, :ticket, :number, :user, 'c', :at)"
GOOD_COMMENT = {"ticket": 5, "number": 1, "user": 1, "at": NOON}
EVENT = "INSERT INTO events VALUES (:first, :last, 'ticket.created', :at, '[]', :comment)"
GOOD_EVENT = {"first": 7, "last": 506, "at": NOON, "comment": None}
BLOCK = "INSERT INTO list_blocks VALUES (:list, :level, :block, -1)"
GOOD_BLOCK = {"list": 0, "level": 1, "block": 0}
KEY = "INSERT INTO idempotency_keys VALUES (1, 'POST /api/tickets', :key, :digest, 201, '{}', NULL, :at)"
GOOD_KEY = {"key": "k", "digest": "0" * 64, "at": NOON}
GOOD_TOKEN = {"user": 1, "token": "0" * 64, "used": None, "expires": None, "at": NOON}


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (USER, GOOD_USER),
        (USER, GOOD_USER | {"id": 10**9, "email": "a@example.com"}),  # an owner may be a customer too
        (TICKET, GOOD_TICKET),
        (TICKET, CLOSED_TICKET),
        (TICKET, DELETED_TICKET),
        (TICKET, DELETED_CLOSED),
        (TOKEN, GOOD_TOKEN),
        (COMMENT, GOOD_COMMENT),
        (EVENT, GOOD_EVENT),
        (BLOCK, GOOD_BLOCK),
        (KEY, GOOD_KEY),
        ("INSERT INTO change_times VALUES (:at, 0)", {"at": NOON}),
    ],
)
def test_the_schema_takes_what_is_right(db, statement, values):
    add_person(db)
    db.execute(TICKET, GOOD_TICKET | {"id": 5, "number": 5, "change": 5})
    db.execute(statement, values)


@pytest.mark.parametrize(
    ("statement", "good", "wrong"),
    [
        (USER, GOOD_USER, {"id": "one"}),
        (USER, GOOD_USER, {"name": None}),
        (USER, GOOD_USER, {"name": b"bytes"}),
        (USER, GOOD_USER, {"email": "a@example.com"}),
        (USER, GOOD_USER, {"email": "A@Example.com"}),
        (USER, GOOD_USER, {"count": -1}),
        (USER, GOOD_USER, {"at": "2025-12-04"}),
        (TICKET, GOOD_TICKET, {"user": 99}),
        (TICKET, GOOD_TICKET, {"email": None}),
        (TICKET, GOOD_TICKET, {"status": 3}),
        (TICKET, GOOD_TICKET, {"status": 2}),
        (TICKET, GOOD_TICKET, {"closed": NOON}),
        (TICKET, GOOD_TICKET, {"closing": 1}),
        (TICKET, GOOD_TICKET, {"number": None}),
        (TICKET, GOOD_TICKET, {"status": 0}),
        (TICKET, GOOD_TICKET, {"status": -1}),
        (TICKET, GOOD_TICKET, {"deleted": NOON}),
        (TICKET, GOOD_TICKET, {"change": None}),
        (TICKET, GOOD_TICKET, {"change": 0}),
        (TICKET, DELETED_TICKET, {"deleted": None}),
        (TICKET, DELETED_TICKET, {"deleted": "now"}),
        (TICKET, DELETED_TICKET, {"number": 1}),
        (TICKET, DELETED_TICKET, {"closed": NOON}),
        (TICKET, DELETED_TICKET, {"closing": 1}),
        (TICKET, DELETED_CLOSED, {"closed": None}),
        (TICKET, DELETED_CLOSED, {"closing": 1}),
        (TICKET, GOOD_TICKET, {"number": 0}),
        (TICKET, CLOSED_TICKET, {"closed": None}),
        (TICKET, CLOSED_TICKET, {"closing": None}),
        (TICKET, CLOSED_TICKET, {"closing": 0}),
        (TICKET, GOOD_TICKET, {"at": 1_764_849_600}),
        (TICKET, GOOD_TICKET, {"updated": "now"}),
        (TICKET, CLOSED_TICKET, {"closed": "now"}),
        (TOKEN, GOOD_TOKEN, {"user": 99}),
        (TOKEN, GOOD_TOKEN, {"token": "tkt_secret"}),
        (TOKEN, GOOD_TOKEN, {"expires": "tomorrow"}),
        (TOKEN, GOOD_TOKEN, {"used": "today"}),
        (COMMENT, GOOD_COMMENT, {"ticket": 99}),
        (COMMENT, GOOD_COMMENT, {"user": 99}),
        (COMMENT, GOOD_COMMENT, {"number": 0}),
        (COMMENT, GOOD_COMMENT, {"at": "now"}),
        (EVENT, GOOD_EVENT, {"last": 6}),
        (EVENT, GOOD_EVENT, {"last": 507}),
        (EVENT, GOOD_EVENT, {"at": "now"}),
        (EVENT, GOOD_EVENT, {"comment": 99}),
        (BLOCK, GOOD_BLOCK, {"level": 0}),
        (BLOCK, GOOD_BLOCK, {"level": 4}),
        (BLOCK, GOOD_BLOCK, {"block": -1}),
        (KEY, GOOD_KEY, {"digest": "k"}),
        (KEY, GOOD_KEY, {"at": "now"}),
    ],
)
def test_the_schema_refuses_what_is_wrong(db, statement, good, wrong):
    add_person(db)
    db.execute(TICKET, GOOD_TICKET | {"id": 5, "number": 5, "change": 5})
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(statement, good | wrong)
    db.execute(statement, good)


@pytest.mark.parametrize("same", [{"id": 1}, {"number": 1}, {"closing": 1}, {"change": 1}])
def test_the_schema_gives_no_number_of_a_list_twice(db, same):
    add_person(db)
    db.execute(TICKET, CLOSED_TICKET)
    other = CLOSED_TICKET | {"id": 2, "number": 2, "closing": 2, "change": 2}
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        db.execute(TICKET, other | same)
    db.execute(TICKET, other)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM users WHERE id = 1",
        "UPDATE ticket_counts SET tickets = -1 WHERE status = 1",
        "INSERT INTO ticket_counts VALUES (3, 0)",
        "INSERT INTO ticket_arrivals VALUES ('2025-12-04', 1)",
        "INSERT INTO ticket_arrivals VALUES ('2025-12-04T11', -1)",
        "INSERT INTO ticket_closings VALUES ('2025-12-04', 1, 1)",
        "INSERT INTO ticket_closings VALUES ('2025-12-04T11', -1, 1)",
        "INSERT INTO ticket_closings VALUES ('2025-12-04T11', 1, -1)",
        "UPDATE counters SET value = -1 WHERE name = 'customers'",
        "INSERT INTO counters VALUES ('customers', 0)",
        "INSERT INTO change_times VALUES ('2025-12-04', 1)",
        "INSERT INTO change_times VALUES ('2025-12-04T11:00:00.000000Z', -1)",
    ],
)
def test_the_schema_keeps_tickets_with_people_and_counters_true(db, statement):
    add_person(db)
    db.execute(TICKET, GOOD_TICKET)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
