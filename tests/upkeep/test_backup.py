"""`ticketapi backup` makes a verified copy while a server writes, or leaves all as it was; the manual restores it."""

import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import NOON, ROOT, WITHOUT_PRIVILEGES, HandClock
from old_desks import make_old

import ticketapi

PAGE = 4096
TICKETS = 400
PROGRAM = (sys.executable, "-m", "ticketapi")
MANUAL = (ROOT / "docs" / "operation.md").read_text()
unprivileged = pytest.mark.skipif(
    bool(WITHOUT_PRIVILEGES) and not shutil.which("setpriv"), reason="needs setpriv, of util-linux"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A desk with 400 tickets, and an audit log with three rows."""
    path = tmp_path_factory.mktemp("model") / "desk.db"
    with closing(ticketapi.open_database(path, "desk")) as db:
        ticketapi.generate_tickets(db, TICKETS, NOON, 1)
        ticketapi.process_tickets(db, 100, NOON)
    audit = ticketapi.Settings(db=path).audit_db
    ticketapi.open_database(audit, "audit").close()
    columns = "method, path, status_code, ip_address, duration_ms, created_at"
    with closing(sqlite3.connect(audit)) as db, db:
        row = ("GET", "api/stats", 200, "::1", 1, ticketapi.format_time(NOON))
        db.executemany(f"INSERT INTO api_audits ({columns}) VALUES (?, ?, ?, ?, ?, ?)", [row] * 3)
    return path


@pytest.fixture
def desk(model, tmp_path):
    """A copy of that desk, with its audit log."""
    for path in (model, ticketapi.Settings(db=model).audit_db):
        shutil.copy(path, tmp_path)
    return tmp_path / "desk.db"


@pytest.fixture
def backup(run, desk):
    """Return a function that runs the command on the desk, and gives exit code, stdout and stderr."""
    return lambda *arguments: run("backup", *arguments, "--db", "desk.db")


def ask(path, sql):
    """Return the rows that a query finds, without ticketapi."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def rows(path):
    """Return all that a desk holds."""
    tables = ask(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return {table: ask(path, f"SELECT * FROM {table} ORDER BY 1") for (table,) in tables}


def contents(folder):
    """Return the bytes of every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_sound(path):
    """Check a desk, which is not to be changed by that."""
    before = path.read_bytes()
    findings = ticketapi.check_file(path, "desk")
    assert [found for found in findings if found.level == "wrong"] == []
    assert path.read_bytes() == before


# The copy ----------------------------------------------------------------------------------------


def test_the_copy_holds_what_the_desk_holds_and_is_a_desk(backup, desk, tmp_path):
    before = contents(tmp_path)
    code, out, err = backup("copy.db")
    size = ticketapi.size_text((tmp_path / "copy.db").stat().st_size)
    assert (code, out, err) == (0, f"Backed up desk.db to copy.db: 400 tickets, {size}, verified\n", "")
    assert contents(tmp_path).keys() - before.keys() == {Path("copy.db")}
    assert rows(tmp_path / "copy.db") == rows(desk)
    assert_sound(tmp_path / "copy.db")


def test_json_tells_where_the_copy_is_and_what_is_in_it(backup, tmp_path):
    code, out, _ = backup("copy.db", "--json")
    size = (tmp_path / "copy.db").stat().st_size
    nothing = {"audit_db": None, "requests": None, "audit_bytes": None}
    assert (code, json.loads(out)) == (0, {"db": "copy.db", "tickets": 400, "bytes": size, **nothing})
    _, out, _ = backup("two.db", "--json", "--audit")
    size, audit_size = ((tmp_path / name).stat().st_size for name in ("two.db", "two-audit.db"))
    expected = {
        "db": "two.db",
        "tickets": 400,
        "bytes": size,
        "audit_db": "two-audit.db",
        "requests": 3,
        "audit_bytes": audit_size,
    }
    assert json.loads(out) == expected


@pytest.mark.parametrize("dest", ["backups", "backups/", "{}/backups"])
def test_in_a_directory_the_copy_has_the_name_of_the_desk(backup, desk, tmp_path, dest):
    (tmp_path / "backups").mkdir()
    assert backup(dest.format(tmp_path))[0] == 0
    assert rows(tmp_path / "backups" / "desk.db") == rows(desk)


def test_the_audit_log_is_copied_to_where_a_desk_of_that_name_would_have_it(backup, tmp_path):
    (tmp_path / "folder").mkdir()
    code, out, _ = backup("folder/monday.sqlite", "--audit")
    assert code == 0
    assert "Backed up desk-audit.db to folder/monday-audit.sqlite: 3 requests, 12.3 kB, verified\n" in out
    assert rows(tmp_path / "folder" / "monday-audit.sqlite") == rows(tmp_path / "desk-audit.db")


def test_without_an_audit_log_the_desk_alone_is_copied_and_that_is_said(backup, tmp_path):
    (tmp_path / "desk-audit.db").unlink()
    code, out, err = backup("copy.db", "--audit")
    assert (code, out.count("\n"), err) == (0, 1, "There is no audit log at desk-audit.db yet; the desk alone was copied\n")
    assert not (tmp_path / "copy-audit.db").exists()


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_copies_are_private_from_their_first_byte_whatever_the_umask(desk, tmp_path, umask):
    settings, modes = ticketapi.Settings(db=desk, audit=True), set()
    folder = tmp_path / "backups"
    folder.mkdir()

    def look(_):
        modes.update(path.stat().st_mode & 0o777 for path in folder.iterdir())

    before = os.umask(umask)
    try:
        ticketapi.make_backup(ticketapi.plan_backups(settings, str(folder)), False, look, look)
    finally:
        os.umask(before)
    look(None)
    assert modes == {0o600}
    assert {path.name for path in folder.iterdir()} == {"desk.db", "desk-audit.db"}


def test_the_copy_does_not_have_its_name_before_it_is_verified(desk, tmp_path):
    seen = []

    def look(_):
        seen.append((tmp_path / "copy.db").exists())

    ticketapi.make_backup(ticketapi.plan_backups(ticketapi.Settings(db=desk), str(tmp_path / "copy.db")), False, look, look)
    assert len(seen) >= 2
    assert not any(seen)


def test_a_desk_of_an_older_version_is_copied_as_it_is(run, tmp_path):
    old = make_old(tmp_path / "old.db", 1)
    assert run("backup", "copy.db", "--db", "old.db")[0] == 0
    assert ask(tmp_path / "copy.db", "PRAGMA user_version") == ask(old, "PRAGMA user_version") == [(1,)]
    assert rows(tmp_path / "copy.db") == rows(old)


@pytest.mark.parametrize("name", ["two words.db", "d\u00e9sk.db", "a?b#c%20.db", os.fsdecode(b"\xff.db"), "file:x.db"])
def test_a_name_may_hold_anything(backup, tmp_path, name):
    assert backup(name)[0] == 0
    assert_sound(tmp_path / name)


def test_what_a_killed_program_left_in_the_wal_is_copied_and_stays_there(backup, desk, tmp_path):
    with closing(sqlite3.connect(desk, isolation_level=None)) as db:
        db.execute("UPDATE users SET name = 'Left in the WAL' WHERE id = 1")
        left = {path: path.read_bytes() for path in tmp_path.glob("desk.db*")}
    for path, content in left.items():
        path.write_bytes(content)
    assert backup("copy.db")[0] == 0
    assert ask(tmp_path / "copy.db", "SELECT name FROM users WHERE id = 1") == [("Left in the WAL",)]
    assert desk.with_name("desk.db-wal").read_bytes() == left[desk.with_name("desk.db-wal")]


# Beside others -----------------------------------------------------------------------------------


@contextmanager
def writing(desk, folder):
    """Let another process generate and process tickets without end."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, desk], cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


WRITER = """
import sys, ticketapi
from pathlib import Path
db = ticketapi.open_database(Path(sys.argv[1]), "desk")
print("writing", flush=True)
while True:
    ticketapi.generate_tickets(db, 40, ticketapi.wall_microseconds(), 1)
    ticketapi.process_tickets(db, 30, ticketapi.wall_microseconds())
"""


def test_a_copy_beside_a_writer_is_one_state_of_the_desk(desk, tmp_path):
    settings, tickets, moments = ticketapi.Settings(db=desk, force=True), [], []
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 5000, NOON, 1)
    with writing(desk, tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ticketapi, "BACKUP_PAGES", 10)  # many steps, between which there is time to write
        for _ in range(4):
            plan = ticketapi.plan_backups(settings, str(tmp_path / "copy.db"))
            [copy] = ticketapi.make_backup(plan, True, moments.append, print)
            assert_sound(tmp_path / "copy.db")
            tickets.append(copy.rows)
    assert tickets == sorted(set(tickets))
    assert len(moments) > 4 * 50


def test_a_copy_is_made_while_a_server_answers(backup, desk, serve, tmp_path):
    served = serve("--db", desk, "--generate-every", "1s")
    code, out, _ = backup("copy.db", "--audit")
    assert (code, out.count("verified")) == (0, 2)
    assert served.get("/up").status == 200
    assert served.stop()[0] == 0
    assert_sound(tmp_path / "copy.db")


# What is not written over ------------------------------------------------------------------------


def test_a_file_that_is_there_is_replaced_with_force_alone(backup, desk, tmp_path):
    (tmp_path / "copy.db").write_text("precious")
    code, out, err = backup("copy.db")
    assert (code, out) == (1, "")
    assert err == "ticketapi: copy.db exists; choose another DEST, or replace it with --force\n"
    assert (tmp_path / "copy.db").read_text() == "precious"
    assert backup("copy.db", "--force")[0] == 0
    assert rows(tmp_path / "copy.db") == rows(desk)


def test_an_audit_log_that_is_there_is_replaced_with_force_alone(backup, tmp_path):
    (tmp_path / "copy-audit.db").write_text("precious")
    before = contents(tmp_path)
    assert backup("copy.db", "--audit")[::2] == (
        1,
        "ticketapi: copy-audit.db exists; choose another DEST, or replace it with --force\n",
    )
    assert contents(tmp_path) == before
    assert backup("copy.db", "--audit", "--force")[0] == 0


def prepare_names(folder):
    """Make other names of the desk and its audit log."""
    (folder / "soft.db").symlink_to("desk.db")
    (folder / "hard.db").hardlink_to(folder / "desk.db")
    (folder / "hard-log.db").hardlink_to(folder / "desk-audit.db")
    (folder / "same").symlink_to(".")
    (folder / "desk.db-wal").touch()


@pytest.mark.parametrize(
    "dest",
    (
        *("desk.db", ".", "./desk.db", "soft.db", "hard.db", "hard-log.db", "desk-audit.db", "same", "same/desk.db"),
        *("desk.db-wal", "desk.db-shm", "desk.db-lock", "desk-audit.db-wal"),
    ),
)
def test_the_desks_own_files_are_refused_by_whatever_name_even_with_force(backup, tmp_path, dest):
    prepare_names(tmp_path)
    before = contents(tmp_path)
    for more in ((), ("--force",), ("--force", "--audit")):
        code, out, err = backup(dest, *more)
        assert (code, out) == (1, "")
        assert re.fullmatch(r"ticketapi: \S+ belongs to the desk itself; choose another DEST\n", err)
    assert contents(tmp_path) == before


def test_the_name_of_an_audit_log_that_is_not_there_yet_is_refused(backup, tmp_path):
    (tmp_path / "desk-audit.db").unlink()
    assert backup("desk-audit.db")[::2] == (1, "ticketapi: desk-audit.db belongs to the desk itself; choose another DEST\n")


def test_a_copy_of_the_audit_log_that_would_be_the_desk_is_refused(run, desk, tmp_path):
    desk.rename(tmp_path / "copy-audit.db")
    (tmp_path / "desk-audit.db").rename(tmp_path / "copy-audit-audit.db")
    before = contents(tmp_path)
    code, _, err = run("backup", "copy.db", "--audit", "--force", "--db", "copy-audit.db")
    assert (code, err) == (1, "ticketapi: copy-audit.db belongs to the desk itself; choose another DEST\n")
    assert contents(tmp_path) == before


def test_a_link_to_another_file_is_replaced_and_not_what_it_points_to(backup, tmp_path):
    (tmp_path / "other").write_text("precious")
    (tmp_path / "copy.db").symlink_to("other")
    assert backup("copy.db")[0] == 1
    assert backup("copy.db", "--force")[0] == 0
    assert not (tmp_path / "copy.db").is_symlink()
    assert (tmp_path / "other").read_text() == "precious"


@pytest.mark.parametrize("left", ["copy.db-wal", "copy.db-journal", "copy.db-shm"])
@pytest.mark.parametrize("there", [True, False])
def test_a_wal_or_journal_beside_dest_would_get_into_the_copy_so_it_is_refused(backup, tmp_path, left, there):
    if there:
        (tmp_path / "copy.db").write_text("precious")
    (tmp_path / left).write_text("pages")
    before = contents(tmp_path)
    code, _, err = backup("copy.db", "--force")
    assert (code, contents(tmp_path)) == (1, before)
    assert err == f"ticketapi: {left} shows that copy.db is or was in use; move both away, or choose another DEST\n"


def test_a_desk_that_is_served_is_not_replaced(backup, desk, serve, tmp_path):
    shutil.copy(desk, tmp_path / "other.db")
    served = serve("--db", "other.db")
    refusal = (1, "", "ticketapi: other.db is the desk of a server that runs; stop it, or choose another DEST\n")
    assert backup("other.db", "--force") == refusal
    assert served.stop()[0] == 0
    assert backup("other.db", "--force")[0] == 0


def make_socket(path):
    """Make a socket, which is no ordinary file."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("dest", "make", "message"),
    [
        ("nowhere/copy.db", None, "there is no directory nowhere; create it, or choose another DEST"),
        ("nowhere/", None, "there is no directory nowhere; create it, or choose another DEST"),
        ("desk.db/copy.db", None, "there is no directory desk.db; create it, or choose another DEST"),
        ("/dev/null", None, "/dev/null is no ordinary file; choose another DEST"),
        ("s", make_socket, "s is no ordinary file; choose another DEST"),
        ("s", lambda path: path.symlink_to("nowhere"), "s is no ordinary file; choose another DEST"),
        ("n" * 254, None, f"cannot write {'n' * 254}: File name too long; no backup was made"),
    ],
    ids=["no directory", "slash", "a file", "device", "socket", "link", "long"],
)
def test_where_no_copy_can_be_one_line_says_why(backup, tmp_path, dest, make, message):
    os.chdir(tmp_path)
    if make:
        make(tmp_path / dest)
    before = contents(tmp_path)
    assert backup(dest, "--force") == (1, "", f"ticketapi: {message}\n")
    assert contents(tmp_path) == before


@unprivileged
def test_a_directory_that_cannot_be_written_is_told_in_a_line(desk, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    command = [*WITHOUT_PRIVILEGES, *PROGRAM, "backup", "shut/copy.db", "--db", "desk.db"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    expected = "ticketapi: cannot write shut/copy.db: Permission denied; no backup was made\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


# What is not copied ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("PRAGMA user_version = 99", "desk.db is from a newer ticketapi"),
        ("PRAGMA application_id = 7", "desk.db belongs to another program"),
        (
            "UPDATE ticket_counts SET tickets = 7 WHERE status = 1",
            "the counters of desk.db differ from its tickets; run ticketapi",
        ),
    ],
)
def test_what_is_no_sound_desk_is_not_copied(backup, desk, tmp_path, change, message):
    with closing(sqlite3.connect(desk)) as db, db:
        db.execute(change)
    before = desk.read_bytes()
    code, out, err = backup("copy.db")
    assert (code, out, err.count("\n"), desk.read_bytes()) == (1, "", 1, before)
    assert err.startswith(f"ticketapi: {message}")
    assert list(tmp_path.glob("copy*")) == []


def test_a_missing_desk_is_one_line_and_is_not_made(run, tmp_path):
    code, out, err = run("backup", "copy.db")
    assert (code, out, err) == (1, "", "ticketapi: there is no desk at ticketapi.db; --db names its file\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fill", [b"\0", b"\xa5"])
def test_a_damaged_desk_takes_the_place_of_no_backup(backup, desk, tmp_path, fill):
    (tmp_path / "copy.db").write_text("precious")
    sound = desk.read_bytes()
    for page in range(len(sound) // PAGE):
        desk.write_bytes(sound[: page * PAGE] + fill * PAGE + sound[(page + 1) * PAGE :])
        code, out, err = backup("copy.db", "--force")
        assert (code, out, err.count("\n"), err[:10]) == (1, "", 1, "ticketapi:"), page
        assert "Traceback" not in err
        assert (tmp_path / "copy.db").read_text() == "precious"
        assert list(tmp_path.glob("*.part*")) == []


def test_a_copy_with_another_identity_is_refused(desk):
    plan = ticketapi.Backup(desk, "desk", desk)
    with pytest.raises(ticketapi.TicketApiError, match="another identity"):
        ticketapi.verify_copy(desk, plan, 99)


@pytest.mark.parametrize(
    ("reported", "line"),
    [
        ("database or disk is full", "disk full: make room where copy.db lies; no backup was made"),
        ("database is locked", "database is locked: another program holds desk.db; try again when it is done"),
        ("disk I/O error", "cannot copy desk.db to copy.db: disk I/O error; run ticketapi check"),
    ],
)
def test_what_sqlite_reports_of_two_files_names_the_right_one(reported, line):
    plan = ticketapi.Backup(Path("desk.db"), "desk", Path("copy.db"))
    assert str(ticketapi.explain_failed_copy(sqlite3.OperationalError(reported), plan)) == line


# Ends in the middle ------------------------------------------------------------------------------

# Runs the command, and sends itself a signal once a part is copied, or while it is verified.
STOPPED = """
import os, signal, sqlite3, sys, ticketapi
from functools import partial
_, number, moment, *arguments = sys.argv

class Stopping(sqlite3.Connection):
    def backup(self, target, *, pages, progress):
        def stop(*done):
            progress(*done)
            os.kill(os.getpid(), int(number))
        super().backup(target, pages=pages, progress=stop if moment == "copy" else progress)

    def execute(self, sql, *values):
        if moment == "verify" and "integrity_check" in sql:
            os.kill(os.getpid(), int(number))
        return super().execute(sql, *values)

ticketapi.sqlite3.connect = partial(sqlite3.connect, factory=Stopping)
sys.exit(ticketapi.main(arguments))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["copy", "verify"])
def test_a_signal_leaves_the_backup_before_and_no_half_one(desk, tmp_path, number, moment):
    (tmp_path / "copy.db").write_text("precious")
    before = contents(tmp_path)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [
        sys.executable,
        "-c",
        STOPPED,
        str(int(number)),
        moment,
        "backup",
        "copy.db",
        "--audit",
        "--force",
        "--db",
        "desk.db",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ticketapi: interrupted; no half backup is left\n"
    assert contents(tmp_path) == before


def test_a_killed_backup_leaves_the_backup_before_and_the_next_one_works(backup, desk, tmp_path):
    (tmp_path / "copy.db").write_text("precious")
    command = [
        sys.executable,
        "-c",
        STOPPED,
        str(int(signal.SIGKILL)),
        "copy",
        "backup",
        "copy.db",
        "--force",
        "--db",
        "desk.db",
    ]
    assert subprocess.run(command, cwd=tmp_path).returncode == -signal.SIGKILL
    assert (tmp_path / "copy.db").read_text() == "precious"
    [left] = tmp_path.glob("copy.db.*.part")
    assert left.stat().st_mode & 0o777 == 0o600
    left.rename(tmp_path / f"copy.db.{os.getpid()}.part")  # as if we had its number
    assert backup("copy.db", "--force")[0] == 0
    assert list(tmp_path.glob("*.part*")) == []


def test_signals_are_as_before_after_a_backup(backup):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert backup("copy.db")[0] == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == handlers


def test_a_file_that_must_not_grow_so_far_leaves_no_half_backup(desk, tmp_path):
    before = contents(tmp_path)
    command = f"ulimit -f 200; exec {sys.executable} -m ticketapi backup copy.db --db desk.db"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("ticketapi: cannot copy desk.db to copy.db: disk I/O error")
    assert contents(tmp_path) == before


def can_mount():
    """Tell whether this user may have file systems of its own."""
    return shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs unshare, of util-linux, and the right to mount in a namespace")
def test_a_full_disk_is_told_in_a_line_and_leaves_the_backup_before(desk, tmp_path):
    (tmp_path / "small").mkdir()
    script = f"""
        mount -t tmpfs -o size=100k none small
        echo precious >small/copy.db
        {sys.executable} -m ticketapi backup small/copy.db --force --db desk.db || echo "exit $?"
        ls small
        cat small/copy.db
    """
    command = ["unshare", "-rm", "sh", "-euc", script]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert done.stderr == "ticketapi: disk full: make room where small/copy.db lies; no backup was made\n"
    assert done.stdout == "exit 1\ncopy.db\nprecious\n"


# Progress ----------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def test_the_bytes_done_are_reported_up_to_the_end(desk):
    reports, notes = [], []
    plan = ticketapi.plan_backups(ticketapi.Settings(db=desk, audit=True), str(desk.with_name("copy.db")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ticketapi, "BACKUP_PAGES", 7)
        copies = ticketapi.make_backup(plan, False, reports.append, notes.append)
    assert reports == sorted(reports)
    assert len(reports) > 5
    assert reports[-1] == sum(copy.bytes for copy in copies)
    assert notes == [f"verifying {backup.destination}" for backup in plan]


def test_progress_tells_megabytes_and_what_is_done_when_there_is_nothing_to_count():
    clock, stream = HandClock(), Terminal()
    with ticketapi.Progress(400, stream, clock.monotonic, "MB") as progress:
        progress.note("too early")
        clock.advance(2)
        progress(100)
        progress.note("verifying copy.db")
    lines = [line for line in stream.getvalue().split("\r\x1b[K") if line]
    assert lines == ["100 of 400 MB, 50 a second, 6 s left", "verifying copy.db"]


@pytest.mark.parametrize(("size", "text"), [(8192, "8.2 kB"), (4_123_456, "4.1 MB"), (2_500_000_000, "2.5 GB")])
def test_a_size_is_written_for_people(size, text):
    assert ticketapi.size_text(size) == text


# Restore -----------------------------------------------------------------------------------------


def manual_blocks():
    """Return the commands of the manual's section about backups: the one that makes them, and the one that restores them."""
    section = MANUAL.partition("\n## Backup and restore\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def shell(script, folder):
    """Run commands of the manual with its paths below a folder, where sudo changes nobody and systemctl stops our server."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    programs = {
        "sudo": 'exec "$@"',
        "systemctl": f'echo "$1" >>{folder}/systemctl; [ "$1" != stop ] || kill "$(cat {folder}/pid)"',
        "ticketapi.pyz": f'exec {sys.executable} -m ticketapi "$@"',
    }
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    for real, ours in {"/opt/ticketapi": tools, "/var/lib": folder / "lib", "/var/backups": folder / "backups"}.items():
        script = script.replace(f"{real}/", f"{ours}/")
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-euc", script], capture_output=True, text=True, env=environ)


@pytest.mark.skipif(sys.platform != "linux", reason="the manual's commands are those of a Linux server")
def test_the_manual_restores_what_it_backed_up(serve, desk, tmp_path):
    home = tmp_path / "lib" / "ticketapi"
    home.mkdir(parents=True)
    (tmp_path / "backups").mkdir()
    desk.rename(home / "ticketapi.db")
    served = serve("--db", home / "ticketapi.db", "--no-scheduler", "--rate", "0")
    (tmp_path / "pid").write_text(str(served.process.pid))
    assert served.get("/api/stats").status == 401
    make, restore = manual_blocks()
    made = shell(make, tmp_path)
    assert (made.returncode, made.stderr, made.stdout.count("verified")) == (0, "", 2)
    kept = rows(home / "ticketapi.db")
    with closing(ticketapi.open_database(home / "ticketapi.db", "desk")) as db:
        ticketapi.process_tickets(db, 200, NOON)  # and this is lost
        waiter = threading.Thread(target=served.process.wait)
        waiter.start()
        restored = shell(restore, tmp_path)
        waiter.join()
    assert (restored.returncode, restored.stderr) == (0, "")
    assert "wrong" not in restored.stdout
    assert (tmp_path / "systemctl").read_text() == "stop\nstart\n"
    assert sorted(path.name for path in home.glob("*.db*")) == ["ticketapi-audit.db", "ticketapi.db"]
    assert rows(home / "ticketapi.db") == kept
    [old] = home.glob("old-*")
    assert {"ticketapi.db", "ticketapi-audit.db"} <= {path.name for path in old.iterdir()}
    again = serve("--db", home / "ticketapi.db", "--no-scheduler")
    assert again.get("/up").status == 200
    assert again.stop()[0] == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.glob("*.db"))
