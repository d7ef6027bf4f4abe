"""What an upgrade of a desk has to keep, and a process that upgrades one and dies where it is told to."""

import sqlite3
import subprocess
import sys
from contextlib import closing

from old_desks import APPLICATION_ID

import ticketapi

CURRENT = 5
COLUMNS = "id, user_id, subject, content, status, created_at, updated_at, closed_at"
KEPT = {
    "users": "SELECT id, name, email, tickets_count, created_at FROM users ORDER BY id",
    "tickets": f"SELECT {COLUMNS} FROM tickets ORDER BY id",
    "ticket_counts": "SELECT * FROM ticket_counts ORDER BY status",
    "personal_access_tokens": "SELECT * FROM personal_access_tokens ORDER BY id",
    "sqlite_sequence": "SELECT * FROM sqlite_sequence",
}

# Opens a desk when told to, says what came of it, and kills itself before the Nth statement or after so many steps of one.
OPENER = """
import os, re, signal, sqlite3, sys, ticketapi
from functools import partial
from pathlib import Path
_, path, before, steps, kind = sys.argv

STATEMENT = re.compile(r"\\s*(--|ALTER|CREATE|DELETE|DROP|INSERT|UPDATE|COMMIT|PRAGMA user_version =)")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Deadly(sqlite3.Connection):
    left = int(before)

    def execute(self, sql, *values):
        if STATEMENT.match(sql):
            Deadly.left -= 1
            if Deadly.left == 0:
                die()
            if int(steps) and any(part in sql for part in ("row_number", "tickets_2.id", "FROM tickets_3")):
                self.set_progress_handler(die, int(steps))
        return super().execute(sql, *values)

ticketapi.sqlite3.connect = partial(sqlite3.connect, factory=Deadly)
ticketapi.configure_log("info")
print("ready", flush=True)
sys.stdin.readline()
try:
    ticketapi.open_database(Path(path), kind).close()
    print("opened")
except ticketapi.TicketApiError as error:
    print(error)
"""


def ask(path, sql):
    """Return the rows that a query finds, as tuples, without ticketapi."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def kept(path):
    """Return what an upgrade keeps, by table."""
    return {table: ask(path, sql) for table, sql in KEPT.items()}


def version(path):
    """Return the version of a file's schema."""
    return ask(path, "PRAGMA user_version")[0][0]


def start_opener(path, before=0, steps=0, kind="desk", **more):
    """Start a process that opens a desk once it gets a line."""
    command = [sys.executable, "-c", OPENER, str(path), str(before), str(steps), kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes, **more)
    assert process.stdout.readline() == "ready\n"
    return process


def upgrade(path):
    """Open a desk as every command does."""
    ticketapi.open_database(path, "desk").close()


def assert_upgraded(path, before):
    """Check that a desk is of the current version, sound, and holds what it held, with counters and names that fit."""
    assert version(path) == CURRENT
    assert ask(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert ask(path, "PRAGMA foreign_key_check") == []
    assert kept(path) == before
    findings = ticketapi.check_file(path, "desk")
    assert [finding for finding in findings if finding.level != "ok" and finding.check != "mode"] == []


def assert_untouched(path, before, old_version):
    """Check that a desk is of its old version as it was, and can be upgraded yet."""
    assert version(path) == old_version
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert kept(path) == before
    upgrade(path)
    assert_upgraded(path, before)
