"""A desk is one file with one truth, by whatever name it is reached; what is no ordinary file is no desk."""

import fcntl
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest
from conftest import NOON, elsewhere_locked

import ticketapi

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere flock(2) on the desk would meet SQLite's own locks")
IN_USE = "has several names (hard links, bind mounts), and another program uses one; use that same name, or wait for it"
COMMANDS = (
    "generate",
    "process",
    "tickets",
    "stats",
    "token create",
    "token list",
    "token prune",
    "audit",
    "audit prune --older-than 1d",
    "check",
)


@pytest.fixture
def filled(db, desk):
    """The path of a desk with tickets, and an audit log with a row."""
    ticketapi.generate_tickets(db, 20, NOON, 1)
    log = ticketapi.Settings(db=desk).audit_db
    with closing(ticketapi.open_database(log, "audit")) as audit:
        values = (
            "NULL, NULL, NULL, 'GET', 'api/nope', NULL, 404, '::1', NULL, 0, NULL, NULL, '2025-12-04T12:00:00.000000Z', NULL"
        )
        audit.execute(f"INSERT INTO api_audits VALUES ({values})")
    return desk


def forget():
    """Close what this process holds, as a new process holds nothing."""
    while ticketapi.HELD:
        os.close(ticketapi.HELD.popitem()[1])


# Hard links --------------------------------------------------------------------------------------


@linux
def test_a_hard_link_of_a_served_desk_is_refused_by_every_command(serve, tmp_path):
    """All at once, as each waits a second for the lock."""
    served = serve("--generate-every", "0", "--process-every", "0")
    os.link(tmp_path / "ticketapi.db", tmp_path / "b.db")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        started = {
            command: stack.enter_context(
                subprocess.Popen([sys.executable, "-m", "ticketapi", *command.split(), "--db", "b.db"], cwd=tmp_path, **pipes)
            )
            for command in (*COMMANDS, "backup copy.db", "serve --port 0")
        }
        said = {command: (*process.communicate(timeout=60), process.returncode) for command, process in started.items()}
    assert said == dict.fromkeys(started, ("", f"ticketapi: b.db {IN_USE}\n", 1))
    assert not {"b.db-wal", "b.db-shm"} & {path.name for path in tmp_path.iterdir()}
    assert served.get("/up").status == 200


@linux
def test_by_the_name_of_the_server_every_command_goes_on_also_when_there_is_a_link(serve, run, tmp_path):
    serve("--generate-every", "0", "--process-every", "0")
    os.link(tmp_path / "ticketapi.db", tmp_path / "b.db")
    assert run("generate", "--count", 3)[:2] == (0, "Generated 3 tickets\n")
    assert run("stats", "--json")[0] == 0


@linux
@pytest.mark.parametrize("name", ["a.db", "b.db"])
def test_two_commands_on_a_desk_with_two_names_exclude_each_other(run, db, filled, tmp_path, name):
    db.close()
    filled.rename(tmp_path / "a.db")
    os.link(tmp_path / "a.db", tmp_path / "b.db")
    with open(tmp_path / "a.db") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, out, err = run("generate", "--db", name)
    assert (code, out, err) == (1, "", f"ticketapi: {name} {IN_USE}\n")
    assert run("generate", "--db", name)[:2] == (0, "Generated 1 ticket\n")
    with open(tmp_path / "a.db") as other, pytest.raises(BlockingIOError):  # until the end of the process
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@linux
def test_a_command_on_a_desk_with_one_name_keeps_no_lock(run, filled):
    assert run("stats", "--db", filled)[0] == 0
    with open(filled) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@linux
def test_a_server_waits_for_who_only_looks_whether_there_is_one(desk, db):
    script = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); time.sleep(0.2)"
    with subprocess.Popen([sys.executable, "-c", script, desk], stdout=subprocess.PIPE) as looker:
        looker.stdout.readline()
        ticketapi.lock_desk(desk)


@linux
def test_a_server_of_a_desk_that_is_in_use_under_another_name_is_refused(desk, db):
    with open(desk) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ticketapi.TicketApiError, match="has several names"):
            ticketapi.lock_desk(desk)


# One descriptor ----------------------------------------------------------------------------------


def test_no_look_at_a_file_ends_the_locks_of_this_process(desk, db):
    db.execute("BEGIN IMMEDIATE")
    log = ticketapi.Settings(db=desk).audit_db
    ticketapi.check_identity(desk, "desk")
    ticketapi.check_length(desk)
    ticketapi.open_read_only(desk, "desk").close()
    ticketapi.check_file(desk, "desk")
    ticketapi.open_database(log, "audit").close()
    ticketapi.enter_desk(desk)
    assert ticketapi.is_served(desk) is False
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    other = subprocess.run([sys.executable, "-c", script, desk], capture_output=True, text=True)
    assert "database is locked" in other.stderr
    db.execute("ROLLBACK")


def test_each_file_is_held_once_before_its_first_connection(desk, db):
    first = os.fstat(ticketapi.hold_file(desk))
    link = desk.with_name("link.db")
    link.symlink_to(desk)
    assert ticketapi.hold_file(link) == ticketapi.hold_file(desk)
    assert (first.st_dev, first.st_ino) in ticketapi.HELD
    forget()
    with closing(ticketapi.connect(desk)):
        assert (first.st_dev, first.st_ino) in ticketapi.HELD


# Symbolic links ----------------------------------------------------------------------------------


@pytest.fixture
def link(filled, tmp_path):
    """A symbolic link to a filled desk, in a folder of its own."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "link.db").symlink_to(filled)
    return place / "link.db"


def test_through_a_link_a_desk_has_its_audit_log(run, link):
    assert "api/nope" in run("audit", "--db", link)[1]
    assert run("backup", "--audit", link.with_name("copy.db"), "--db", link)[1].count("verified") == 2
    assert run("audit", "prune", "--older-than", "1d", "--db", link)[1] == "Pruned 1 audit\n"
    assert sorted(path.name for path in link.parent.iterdir()) == ["copy-audit.db", "copy.db", "link.db"]


@pytest.mark.parametrize("command", COMMANDS)
def test_through_a_link_every_command_says_what_it_says_without(run, link, filled, command):
    code, out, err = run(*command.split(), "--db", link, "--json")
    assert (code, err if "create" not in command else "") == (0, "")
    assert [path.name for path in link.parent.iterdir()] == ["link.db"]
    if command in ("tickets", "audit", "check"):
        assert run(*command.split(), "--db", filled, "--json") == (code, out, err)


def test_a_link_to_a_desk_that_is_not_there_yet_makes_it(run, tmp_path):
    (tmp_path / "link.db").symlink_to("real.db")
    assert run("generate", "--db", "link.db")[0] == 0
    assert stat.S_IMODE((tmp_path / "real.db").stat().st_mode) == 0o600
    assert run("stats", "--db", "real.db")[0] == 0


@pytest.mark.parametrize("target", ["nowhere/real.db", "link.db"])
def test_a_link_that_leads_nowhere_is_one_line(run, tmp_path, target):
    (tmp_path / "link.db").symlink_to(target)
    code, out, err = run("generate", "--db", "link.db")
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_a_server_and_a_command_through_a_link_share_the_log(serve, run, link):
    served = serve("--db", link, "--no-scheduler")
    assert served.get("/api/stats").status == 401
    assert "api/stats" in run("audit", "--db", link)[1]
    assert run("stats", "--db", link)[0] == 0


# No ordinary files -------------------------------------------------------------------------------


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(path))


def make_device(path):
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_device])
@pytest.mark.parametrize("command", [*COMMANDS, "serve", "backup copy.db"])
def test_what_is_no_ordinary_file_is_refused_at_once(run, tmp_path, make, command):
    make(tmp_path / "x.db")
    code, out, err = run(*command.split(), "--db", "x.db")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is no ordinary file, but a device, a pipe or a socket; choose another --db" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]


@pytest.mark.parametrize("command", ["audit", "audit prune --older-than 1d", "check"])
def test_an_audit_log_is_an_ordinary_file_too(run, filled, command):
    log = ticketapi.Settings(db=filled).audit_db
    log.unlink()
    os.mkfifo(log)
    code, out, err = run(*command.split(), "--db", filled)
    assert (code, "is no ordinary file" in out + err) == (1, True)


# Ids that are given once -------------------------------------------------------------------------


def test_a_cursor_misses_no_row_of_a_log_that_was_pruned_to_its_end(make_api, db):
    api = make_api(rate=0)
    token = ticketapi.create_token(db, "a@example.com", "test", ["read:audits"], 0, api.clock.wall())["token"]
    for _ in range(3):
        api.get("/api/nope")
    newer = api.get("/api/audits?per_page=2", token=token).json["links"]["prev"]
    newest = api.get("/api/audits", token=token).json["data"][0]["id"]
    with closing(ticketapi.open_database(api.settings.audit_db, "audit")) as log:
        assert ticketapi.prune_audits(log, "9999", 100) > 3
    api.get("/api/nope")
    assert [row["id"] for row in api.audits()] == [newest + 2]
    assert newer is None


# Read-only media ---------------------------------------------------------------------------------


@linux
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare, of util-linux")
@pytest.mark.parametrize("command", ["stats", "tickets", "check", "audit", "backup /tmp"])
def test_a_desk_that_was_closed_cleanly_can_be_read_on_read_only_media(filled, tmp_path, command):
    words = command.replace("/tmp", str(tmp_path / "copy.db"))
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("desk.db", "desk-audit.db"):
        with closing(sqlite3.connect(tmp_path / name)) as file:
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(tmp_path / name, disk)
        (disk / name).chmod(0o600)
    script = f'mount --bind {disk} {disk} && mount -o remount,bind,ro {disk} && exec "$@"'
    program = [sys.executable, "-m", "ticketapi", *words.split(), "--db", f"{disk}/desk.db"]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *program], capture_output=True, text=True, timeout=30)
    if command == "check":
        wrong = [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("wrong")]
        assert (done.returncode, wrong) == (1, ["access", "access"])
    else:
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in disk.iterdir()) == ["desk-audit.db", "desk.db"]


def test_a_lock_of_another_process_is_seen_and_ones_own_is_not(desk, db):
    assert not ticketapi.is_served(desk)
    with elsewhere_locked(desk):
        assert ticketapi.is_served(desk)
    ticketapi.lock_desk(desk)
    assert not ticketapi.is_served(desk)
