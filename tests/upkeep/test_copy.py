"""A desk moves from one place to another: all of it or nothing, verified, and into an empty desk alone."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import NOON, SECOND, close_out_of_order, wait_for

import ticketapi

AUDIT_COLUMNS = ("user_id", "token_id", "route_name", "user_agent", "query", "request_body", "request_id")
AUDIT = {"method": "GET", "path": "api/x", "status_code": 200, "ip_address": "::1", "duration_ms": 1}
AUDIT["created_at"] = ticketapi.format_time(NOON)
KEY = "INSERT INTO idempotency_keys VALUES (1, 'POST /api/tickets', 'k', :digest, 201, :body, NULL, :at)"
WITH_LAST_IDS = {"desk": "personal_access_tokens", "audit": "api_audits"}
FILLED = {*ticketapi.TABLES["desk"], *ticketapi.TABLES["audit"]} - {"webhooks"}
WAYS = [(source, target) for source in ("file", "database") for target in ("file", "database")]


@pytest.fixture
def place(tmp_path, databases):
    """Return a function that gives a place where there is no desk yet."""
    made = []

    def new(kind, name):
        if kind == "file":
            return tmp_path / name
        made.append(databases.create())
        return ticketapi.Postgres(databases.cluster.url(made[-1]))

    yield new
    for name in made:
        databases.drop(name)


def fill(where):
    """Make a desk with everything that a desk may have; return a token that is not revoked."""
    with closing(ticketapi.open_database(where, "desk")) as db:
        ticketapi.generate_history(db, 700, 30 * ticketapi.DAY, NOON, 3)
        ticketapi.generate_tickets(db, 50, NOON, 3)
        close_out_of_order(db, [740, 735], NOON + SECOND)
        nasty = "quotes \" ' and \\ back\\slashes, a\ttab, a\nline, \r, \u2028, 🎟, e\u0301, \x01 and \\N"
        with ticketapi.transaction(db):
            db.execute("UPDATE tickets SET subject = :text, content = :text WHERE id = 7", {"text": nasty})
        tokens = [ticketapi.create_token(db, "ann@example.com", f"t{i}", ["read:tickets"], i * 60, NOON) for i in range(4)]
        ticketapi.revoke_token(db, tokens[-1]["id"])
        ticketapi.update_ticket(db, 3, {"status": ticketapi.OPEN}, NOON + SECOND)
        for ticket_id in (5, 745):
            ticketapi.delete_ticket(db, ticket_id, NOON + SECOND)
        ticketapi.add_comment(db, 7, tokens[0]["user_id"], nasty, NOON + 100 * SECOND)
        with ticketapi.transaction(db):
            db.execute(KEY, {"body": nasty, "digest": "0" * 64, "at": ticketapi.format_time(NOON)})
            db.execute("INSERT INTO simulation VALUES (1, 2, '{}', 3, 4, 'running', 5, 6, 7, 8, 9)")
    log = ticketapi.Settings(db=where).audit_db
    with closing(ticketapi.open_database(log, "audit")) as db, ticketapi.transaction(db):
        row = dict.fromkeys(AUDIT_COLUMNS) | AUDIT
        ticketapi.insert_audits(db, [{**row, "created_at": ticketapi.format_time(NOON + i)} for i in range(5)])
        db.execute("DELETE FROM api_audits WHERE id = 5")
    return tokens[0]["token"]


def contents(where):
    """Return all rows of all tables, and the last ids that were given to tokens and requests."""
    settings, found = ticketapi.Settings(db=where), {}
    for kind in ("desk", "audit"):
        with closing(ticketapi.open_database(settings.db if kind == "desk" else settings.audit_db, kind)) as db:
            with ticketapi.snapshot(db):
                for table in ticketapi.TABLES[kind]:
                    found[table] = [tuple(row) for row in ticketapi.read_table(db, table)]
            sql = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = :name), 0)"
            found[f"last id of {kind}"] = db.execute(sql, {"name": WITH_LAST_IDS[kind]}).fetchone()[0]
    return found


@pytest.fixture
def copy(run):
    """Return a function that copies a desk; it gives exit code, what was printed and what was said."""
    written = lambda where: where.url if isinstance(where, ticketapi.Postgres) else str(where)  # noqa: E731
    return lambda source, target, *more: run("copy", written(target), "--db", written(source), *more)


def is_empty(where):
    """Tell whether there is nothing at a place, or a desk with nothing in it."""
    if isinstance(where, Path):
        return not list(where.parent.glob(f"{where.stem}*"))
    with closing(ticketapi.open_database(where, "desk")) as db, ticketapi.snapshot(db):
        return not any(list(ticketapi.read_table(db, table)) for table in ("users", "tickets", "personal_access_tokens"))


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_a_copy_has_the_same_rows_ids_and_sequences_and_is_sound(place, copy, source, target):
    here, there = place(source, "a.db"), place(target, "b.db")
    token = fill(here)
    code, out, err = copy(here, there, "--audit")
    assert (code, err) == (0, "")
    assert out == f"Copied 748 tickets, {len(contents(here)['users'])} users, 3 tokens, 4 requests to {there}\n"
    assert contents(there) == contents(here)
    assert [table for table in FILLED if not contents(there)[table]] == []
    assert contents(there)["last id of desk"] == 4  # the fourth was revoked
    assert ticketapi.main(["check", "--db", there.url if target == "database" else str(there)]) == 0
    readers = ticketapi.Readers(there)
    with closing(readers):
        assert ticketapi.authenticate_token(readers.get(), token, NOON)


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_without_audit_the_log_stays_behind(place, copy, source, target):
    here, there = place(source, "a.db"), place(target, "b.db")
    fill(here)
    code, out, _ = copy(here, there, "--json")
    assert code == 0
    found = json.loads(out)
    assert found == {"db": str(there), "tickets": 748, "users": found["users"], "tokens": 3, "requests": None}
    assert contents(there)["api_audits"] == []


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_an_empty_desk_is_taken_and_any_other_is_left_alone(place, copy, source, target):
    here, there = place(source, "a.db"), place(target, "b.db")
    fill(here)
    ticketapi.open_database(there, "desk").close()
    assert copy(here, there)[0] == 0
    before = contents(there)
    code, out, err = copy(here, there)
    assert (code, out) == (1, "")
    assert err == f"ticketapi: {there} has a desk already; DEST must be new or empty\n"
    assert contents(there) == before


def test_a_desk_that_has_a_token_alone_is_not_empty(place, copy):
    here, there = place("file", "a.db"), place("file", "b.db")
    fill(here)
    with closing(ticketapi.open_database(there, "desk")) as db:
        ticketapi.create_token(db, "ann@example.com", "x", ["*"], 0, NOON)
    assert copy(here, there)[0] == 1


@pytest.mark.parametrize("target", ["file", "database"])
def test_rows_that_arrive_changed_are_noticed_and_nothing_is_kept(place, target, monkeypatch):
    here, there = place("file", "a.db"), place(target, "b.db")
    fill(here)
    write = ticketapi.write_table

    def damage(db, table, rows):
        tally = write(db, table, rows)
        if table == "tickets":
            db.execute("UPDATE tickets SET content = content || '.' WHERE id = 600")
        return tally

    monkeypatch.setattr(ticketapi, "write_table", damage)
    with pytest.raises(ticketapi.TicketApiError, match=r"^tickets differs from what was copied; nothing was kept$"):
        ticketapi.copy_desk(ticketapi.Settings(db=here), there, ticketapi.silent)
    assert is_empty(there)


@pytest.mark.parametrize("target", ["file", "database"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_copy_that_is_ended_leaves_nothing(place, copy, target, number, tmp_path):
    here, there = place("file", "a.db"), place(target, "b.db")
    fill(here)
    script = (
        "import sys, ticketapi\n"
        "read = ticketapi.read_table\n"
        "def slow(db, table):\n"
        "    for row in read(db, table):\n"
        "        yield row\n"
        "        if table == 'tickets':\n"
        "            print('reading', flush=True)\n"
        "            sys.stdin.readline()\n"
        "ticketapi.read_table = slow\n"
        "sys.exit(ticketapi.main(sys.argv[1:]))\n"
    )
    to = there.url if target == "database" else str(there)
    command = [sys.executable, "-c", script, "copy", to, "--db", str(here)]
    environment = {**os.environ, "PYTHONPATH": str(Path(ticketapi.__file__).parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "reading\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 1)
    if number != signal.SIGKILL:
        assert err == "ticketapi: interrupted; nothing was copied\n"
    if target == "database":
        wait_for(lambda: is_empty(there))  # its session ends when the server notices
    else:
        assert not there.exists()
        assert number == signal.SIGKILL or is_empty(there)
    for left in tmp_path.glob("b.db.*"):
        left.unlink()
    assert copy(here, there)[0] == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a.db", "a.db belongs to the desk itself; choose another DEST"),
        ("a-audit.db", "a-audit.db belongs to the desk itself; choose another DEST"),
        ("nowhere/b.db", "there is no directory nowhere; create it, or choose another DEST"),
        (".", "is no ordinary file; choose another DEST"),
        ("text.db", "is not a SQLite database"),
    ],
)
def test_what_is_no_place_for_a_desk_is_refused(run, tmp_path, target, message):
    fill(tmp_path / "a.db")
    (tmp_path / "text.db").write_text("no database " * 100)
    code, out, err = run("copy", target, "--db", "a.db")
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "text.db").read_text() == "no database " * 100


@pytest.mark.parametrize("arguments", [["copy", "b.db"], ["copy", "b.db", "--audit"]])
def test_a_source_that_is_not_there_is_named(run, tmp_path, arguments):
    code, out, err = run(*arguments, "--db", "gone.db")
    assert (code, out) == (1, "")
    assert err.startswith("ticketapi: there is no desk at gone.db")
    assert list(tmp_path.iterdir()) == []


def test_a_target_of_another_kind_is_refused_by_its_scheme(run):
    code, _, err = run("copy", "mysql://me:secret@db/desk")
    assert code == 2
    assert "mysql:// is no database of ours" in err
    assert "secret" not in err


def test_files_that_are_made_are_private(place, copy, tmp_path):
    here, there = place("file", "a.db"), place("file", "b.db")
    fill(here)
    assert copy(here, there, "--audit")[0] == 0
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("b*")} == {"b.db": 0o600, "b-audit.db": 0o600}


@pytest.mark.parametrize("target", ["file", "database"])
def test_a_log_that_has_rows_is_left_alone_and_nothing_is_copied(place, copy, target):
    here, there = place("file", "a.db"), place(target, "b.db")
    fill(here)
    log = ticketapi.Settings(db=there).audit_db
    with closing(ticketapi.open_database(log, "audit")) as db:
        ticketapi.insert_audits(db, [{**dict.fromkeys(AUDIT_COLUMNS), **AUDIT}])
    code, out, err = copy(here, there, "--audit")
    assert (code, out) == (1, "")
    assert err == f"ticketapi: {log} has an audit log already; DEST must be new or empty\n"
    if target == "file":
        assert not there.exists()
    with closing(ticketapi.open_database(log, "audit")) as db:
        assert ticketapi.count_audits(db) == 1


@pytest.mark.parametrize("target", ["file", "database"])
def test_ids_are_not_given_twice_where_the_source_does_not_tell_its_last(place, copy, target):
    """As a role that may not read a sequence is told nothing."""
    here, there = place("file", "a.db"), place(target, "b.db")
    fill(here)
    with closing(ticketapi.open_database(here, "desk")) as db:
        db.execute("DELETE FROM sqlite_sequence")
    assert copy(here, there)[0] == 0
    with closing(ticketapi.open_database(there, "desk")) as db:
        assert ticketapi.create_token(db, "ann@example.com", "x", ["*"], 0, NOON)["id"] == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["copy", "postgresql:/me:secret@h/db"],
        ["copy", "host=h password=secret"],
        ["backup", "postgresql://me:secret@h/db"],
        ["stats", "--db", "postgresql:/me:secret@h/db"],
        ["stats", "--db", "postgresql://me:x@secret/y@h/db"],
        ["stats", "--db", "postgresql://h/db?password=x&secret"],
        ["stats", "--db", " postgresql://me:secret@127.0.0.1:1/db"],
    ],
)
def test_what_may_be_a_password_is_not_repeated(run, tmp_path, arguments):
    fill(tmp_path / "ticketapi.db")
    code, out, err = run(*arguments)
    assert code in (1, 2)
    assert out == ""
    assert "secret" not in err
    assert err.count("\n") == 1
