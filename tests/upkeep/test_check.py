"""`ticketapi check` finds what is wrong with the two files and changes nothing; --repair rebuilds the counters."""

import json
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial

import pytest
from conftest import NOON, WITHOUT_PRIVILEGES, create_ticket
from old_desks import make_old

import ticketapi

PAGE = 4096
TICKETS = 300
DAMAGED = "is damaged (database disk image is malformed); restore a backup"
PROGRAM = (sys.executable, "-m", "ticketapi")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A desk with open and closed tickets and a token, and an audit log with a row; both closed."""
    path = tmp_path_factory.mktemp("model") / "desk.db"
    with closing(ticketapi.open_database(path, "desk")) as db:
        ticketapi.generate_tickets(db, TICKETS, NOON, 1)
        ticketapi.process_tickets(db, 100, NOON)
        ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["*"], 0, NOON)
    with closing(ticketapi.open_database(ticketapi.Settings(db=path).audit_db, "audit")) as db:
        row = {"method": "GET", "path": "api/stats", "status_code": 200, "ip_address": "::1", "duration_ms": 1}
        columns = ("user_id", "token_id", "route_name", "user_agent", "query", "request_body", "request_id")
        more = {**dict.fromkeys(columns), "created_at": ticketapi.format_time(NOON)}
        with ticketapi.transaction(db):
            ticketapi.insert_audits(db, [row | more])
    return path


@pytest.fixture
def desk(model, tmp_path):
    """A copy of that desk, with its audit log."""
    for path in (model, ticketapi.Settings(db=model).audit_db):
        shutil.copy(path, tmp_path)
    return tmp_path / "desk.db"


@pytest.fixture
def audit(desk):
    """The audit log of the desk."""
    return ticketapi.Settings(db=desk).audit_db


@pytest.fixture
def check(run, desk):
    """Return a function that runs the command with --json and gives its exit code and findings."""

    def command(*arguments):
        code, out, err = run("check", "--db", desk, "--json", *arguments)
        assert err == ""
        document = json.loads(out)
        assert list(document) == ["ok", "checks"]
        assert document["ok"] == (code == 0) == all(found["level"] != "wrong" for found in document["checks"])
        return code, [ticketapi.Finding(**found) for found in document["checks"]]

    return command


def change(path, *statements):
    """Change a file with plain SQL, against its own rules if need be."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            db.execute(statement)


def ask(path, sql):
    """Return the rows that a query finds, without ticketapi."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def wrong(findings):
    """Return what is wrong, as (name of the file, check) and detail."""
    return {
        (found.file and found.file.rpartition("/")[2], found.check): found.detail
        for found in findings
        if found.level == "wrong"
    }


def contents(folder):
    """Return the bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# A sound desk ------------------------------------------------------------------------------------


def test_every_check_of_a_sound_desk_is_a_line_that_says_ok(run, desk, tmp_path):
    code, out, err = run("check", "--db", "desk.db")
    lines = [line for line in out.splitlines() if line.startswith("ok     desk")]
    both = ("mode", "access", "schema: version {}", "tables", "extras", "integrity")
    expected = [
        f"ok     desk.db: {check}".format(ticketapi.KINDS["desk"].version)
        for check in (*both, "references", "counters", "order")
    ]
    expected += [f"ok     desk-audit.db: {check}".format(ticketapi.KINDS["audit"].version) for check in both]
    assert (code, lines, err) == (0, expected, "")


def test_a_check_changes_nothing_and_leaves_nothing_behind(check, desk, tmp_path):
    before = contents(tmp_path)
    assert check()[0] == 0
    assert contents(tmp_path) == before


def test_a_finding_is_an_object_with_four_texts(run, desk):
    _, out, _ = run("check", "--db", "desk.db", "--json")
    assert {"level": "ok", "file": "desk.db", "check": "integrity", "detail": ""} in json.loads(out)["checks"]
    assert all(list(found) == ["level", "file", "check", "detail"] for found in json.loads(out)["checks"])


def test_a_missing_audit_log_is_fine_and_said_so(check, audit):
    audit.unlink()
    code, findings = check()
    assert code == 0
    assert findings[-1] == ticketapi.Finding("ok", str(audit), "file", "there is none yet; serve makes it")
    assert not audit.exists()


@pytest.mark.parametrize("arguments", [(), ("--repair",), ("--json",)])
def test_a_missing_desk_is_one_line_and_is_not_made(run, tmp_path, arguments):
    code, out, err = run("check", "--db", "nowhere.db", *arguments)
    assert (code, out, err) == (1, "", "ticketapi: there is no desk at nowhere.db; --db names its file\n")
    assert list(tmp_path.iterdir()) == []


def test_a_check_runs_beside_a_server_that_writes(desk, run, serve):
    served = serve("--db", desk, "--generate-every", "1s", "--rate", "0")
    for _ in range(5):
        code, out, _ = run("check", "--db", desk)
        assert (code, "wrong" in out) == (0, False)
        assert served.get("/api/stats").status == 401
    assert served.stop()[0] == 0


def leave_wal(path, statement):
    """Change a file as a program does that is killed before what it wrote into the WAL gets into the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)
        left = {file: file.read_bytes() for file in path.parent.glob(f"{path.name}*")}
    for file, content in left.items():
        file.write_bytes(content)
        file.chmod(0o600)
    assert left[path.with_name(f"{path.name}-wal")]


def test_what_a_killed_server_left_in_the_wal_is_checked_and_stays_there(check, desk, tmp_path):
    leave_wal(desk, "UPDATE ticket_counts SET tickets = 7 WHERE status = 1")
    before = contents(tmp_path)
    assert "the counter says 7" in wrong(check()[1])["desk.db", "counters"]
    after = contents(tmp_path)
    assert [after[name] == before[name] for name in ("desk.db", "desk.db-wal")] == [True, True]


# Counters ----------------------------------------------------------------------------------------

BROKEN = {
    "one too many": ("UPDATE ticket_counts SET tickets = 201 WHERE status = 1", "200 tickets are open, the counter says 201"),
    "closed": ("UPDATE ticket_counts SET tickets = 0 WHERE status = 2", "100 tickets are closed, the counter says 0"),
    "none": ("DELETE FROM ticket_counts WHERE status = 2", "100 tickets are closed, the counter says nothing"),
    "one": (
        "UPDATE users SET tickets_count = tickets_count + 1 WHERE id = 1",
        "user 1 wrote {wrote}, the counter says {one_more}",
    ),
    "many": (
        "UPDATE users SET tickets_count = 1000",
        "user 1 wrote {wrote}, the counter says 1000 (and {others} more users)",
    ),
    "two": (
        "UPDATE users SET tickets_count = 1000 WHERE id < 3",
        "user 1 wrote {wrote}, the counter says 1000 (and 1 more user)",
    ),
    "last number of a user": (
        "UPDATE users SET last_number = 2 WHERE id = 1",
        "the tickets of user 1 are numbered up to {wrote}, the counter says 2; "
        "the blocks of list 1 differ from its tickets at 0 (level 1) (and 2 more blocks)",
    ),
    "last number of the closed": (
        "UPDATE counters SET value = 99 WHERE name = 'closed_number'",
        "the counter closed_number says 99, there are 100; "
        "the blocks of list 0 differ from its tickets at 1 (level 1) (and 2 more blocks)",
    ),
    "customers": (
        "UPDATE counters SET value = 5000 WHERE name = 'customers'",
        "the counter customers says 5000, there are {users}",
    ),
    "block of the open": (
        "UPDATE list_blocks SET tickets = tickets - 1 WHERE list = -1 AND level = 1 AND block = 2",
        "the blocks of list -1 differ from its tickets at 2 (level 1)",
    ),
    "block too many": (
        "INSERT INTO list_blocks VALUES (0, 1, 1, -3), (1, 2, 0, -3)",
        "the blocks of list 0 differ from its tickets at 1 (level 1) (and 1 more block)",
    ),
    "no blocks": (
        "DELETE FROM list_blocks",
        "the blocks of list -1 differ from its tickets at 1 (level 1) (and 5 more blocks)",
    ),
    "arrivals of an hour": (
        "UPDATE ticket_arrivals SET tickets = tickets + 1",
        "the counters of the hour {hour} differ from its tickets",
    ),
    "closings of two hours": (
        "INSERT INTO ticket_closings VALUES ('2001-01-01T00', 5, 1), ('2001-01-01T01', 5, 1)",
        "the counters of the hour 2001-01-01T00 differ from its tickets (and 1 more hour)",
    ),
    "waits": (
        "UPDATE ticket_closings SET wait = wait + 1000",
        "the counters of the hour {hour} differ from its tickets",
    ),
    "names": (
        "UPDATE tickets SET user_name = 'Somebody' WHERE id IN (2, 3)",
        "ticket 2 shows another name or address than user {second} has (and 1 more ticket)",
    ),
}


COUNTERS = ("ticket_counts", "users", "counters", "list_blocks", "ticket_arrivals", "ticket_closings")


@pytest.mark.parametrize("name", BROKEN)
def test_counters_that_differ_from_the_rows_are_found_and_repaired(check, run, desk, name):
    statement, detail = BROKEN[name]
    [(wrote, users)] = ask(desk, "SELECT max(tickets_count) FILTER (WHERE id = 1), count(*) FROM users WHERE id < 1000000000")
    [(hour, second)] = ask(desk, "SELECT max(hour), (SELECT user_id FROM tickets WHERE id = 2) FROM ticket_closings")
    numbers = {"wrote": wrote, "one_more": wrote + 1, "users": users, "others": users}
    detail = detail.format(**numbers, hour=hour, second=second)
    kept = ask(desk, "SELECT id, subject, status, closed_at, user_name, user_email FROM tickets ORDER BY id")
    counters = [ask(desk, f"SELECT * FROM {table}") for table in COUNTERS]
    order = (
        ask(desk, "SELECT id FROM tickets ORDER BY user_id, user_number"),
        ask(desk, "SELECT id FROM tickets ORDER BY closed_number"),
    )
    change(desk, statement)
    code, findings = check()
    assert (code, wrong(findings)) == (1, {("desk.db", "counters"): f"{detail}; run ticketapi check --repair"})
    code, findings = check("--repair")
    assert (code, findings[0]) == (0, ticketapi.Finding("note", str(desk), "repair", f"repaired: {detail}"))
    assert run("check", "--db", desk)[0] == 0
    assert counters == [ask(desk, f"SELECT * FROM {table}") for table in COUNTERS]
    assert kept == ask(desk, "SELECT id, subject, status, closed_at, user_name, user_email FROM tickets ORDER BY id")
    assert order == (
        ask(desk, "SELECT id FROM tickets ORDER BY user_id, user_number"),
        ask(desk, "SELECT id FROM tickets ORDER BY closed_number"),
    )
    numbers = "SELECT closed_number FROM tickets WHERE status = 2 ORDER BY 1"
    assert [number for (number,) in ask(desk, numbers)] == list(range(1, 101))


def test_the_line_names_the_fix(run, desk):
    change(desk, "UPDATE tickets SET status = 1, closed_at = NULL, closed_number = NULL WHERE id > 1")
    code, out, _ = run("check", "--db", "desk.db")
    expected = (
        "wrong  desk.db: counters: 299 tickets are open, the counter says 200; 1 ticket is closed, the counter says 100; "
    )
    [line] = [line for line in out.splitlines() if line.startswith(expected)]
    assert (code, line.endswith("; run ticketapi check --repair")) == (1, True)


def test_numbers_with_gaps_stay_as_they_are_and_pages_find_their_way_again(desk):
    change(desk, "UPDATE tickets SET user_id = 1, user_number = 10000 - id, closed_number = 5000 - id * 2 WHERE status = 2")
    change(desk, "UPDATE tickets SET user_number = 100000 + id WHERE status = 1")
    change(desk, "UPDATE tickets SET user_number = NULL, status = -1, deleted_at = updated_at WHERE id BETWEEN 150 AND 170")
    order = ask(desk, "SELECT id, closed_number FROM tickets WHERE status = 2 ORDER BY closed_number")
    numbers = ask(desk, "SELECT id, user_number FROM tickets ORDER BY id")
    with closing(ticketapi.connect(desk)) as db:
        assert len(ticketapi.counter_problems(db)) > 5
        ticketapi.rebuild_counters(db)
        assert ticketapi.counter_problems(db) == []
    assert ask(desk, "SELECT id, closed_number FROM tickets WHERE status = 2 ORDER BY closed_number") == order
    assert ask(desk, "SELECT id, user_number FROM tickets ORDER BY id") == numbers
    with closing(ticketapi.connect(desk, ticketapi.READER)) as db:
        for listing, status in ((ticketapi.open_listing(db), 1), (ticketapi.closed_listing(db), 2)):
            key = "id" if status == 1 else "closed_number"
            keys = [key for (key,) in ask(desk, f"SELECT {key} FROM tickets WHERE status = {status} ORDER BY {key}")]
            assert [ticketapi.find_key(db, listing, rank) for rank in range(len(keys))] == keys
    findings = wrong(ticketapi.check_everything(ticketapi.Settings(db=desk)))
    assert findings == {("desk.db", "order"): "ticket 99 was closed too early (and 98 more faults); restore a backup"}


def test_numbers_that_were_given_are_not_given_again_after_a_repair(desk):
    change(desk, "UPDATE users SET last_number = 7777 WHERE id = 1", "UPDATE counters SET value = 8888 WHERE value = 100")
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.rebuild_counters(db)
        assert ticketapi.counter_problems(db) == []
        create_ticket(db, 1, "s", "c", NOON)
        ticketapi.process_tickets(db, 1, NOON)
        assert ask(desk, "SELECT max(user_number), max(closed_number) FROM tickets") == [(7778, 8889)]
        assert ticketapi.counter_problems(db) == []


EARLY, LATE = "'2024-01-01T00:00:00.000000Z'", "'2035-01-01T00:00:00.000000Z'"
OUT_OF_ORDER = {
    f"UPDATE tickets SET created_at = {EARLY} WHERE id = 150": "ticket 150 came before the one with the lower id",
    "UPDATE tickets SET closed_at = created_at WHERE id = 1": None,  # in one go, as version 1 did
    f"UPDATE tickets SET closed_at = {EARLY} WHERE id = 1": "ticket 1 was closed too early",
    f"UPDATE tickets SET closed_at = {EARLY} WHERE id IN (99, 100)": "ticket 99 was closed too early (and 1 more fault)",
    f"UPDATE tickets SET closed_at = {LATE} WHERE id = 99": "ticket 100 was closed too early",
}


@pytest.mark.parametrize(("statement", "detail"), OUT_OF_ORDER.items())
def test_times_that_do_not_grow_are_found(check, desk, statement, detail):
    change(desk, statement)
    details = {found.check: found.detail for found in check()[1] if found.level == "wrong"}
    assert details.get("order") == (detail and f"{detail}; restore a backup")


@pytest.mark.parametrize("gone", [(5,), (1, 5, 6)])
def test_missing_customers_are_found(check, desk, gone):
    [(customers,)] = ask(desk, "SELECT count(*) FROM users WHERE id < 1000000000")
    [(orphans,)] = ask(desk, f"SELECT count(*) FROM tickets WHERE user_id IN ({', '.join(map(str, gone))})")
    change(desk, *(f"DELETE FROM users WHERE id = {user_id}" for user_id in gone))
    details = {found.check: found.detail for found in check()[1] if found.level == "wrong"}
    assert orphans
    assert details["references"].startswith("row ")
    assert f"the counter customers says {customers}, there are {customers - len(gone)}" in details["counters"]


def test_a_sound_desk_has_nothing_to_repair(check, desk, tmp_path):
    before = contents(tmp_path)
    code, findings = check("--repair")
    assert (code, findings[0].detail) == (0, "there is nothing to repair")
    assert contents(tmp_path) == before


def test_a_damaged_desk_is_not_repaired(check, desk, tmp_path):
    change(desk, "UPDATE users SET tickets_count = 1000")
    damage(desk, 3)
    before = contents(tmp_path)
    code, findings = check("--repair")
    assert (code, findings[0].level, findings[0].check) == (1, "wrong", "repair")
    assert findings[0].detail == "not tried, as the file is damaged or of another version"
    assert contents(tmp_path) == before


def test_a_repair_beside_a_writer_waits_for_it(check, desk):
    change(desk, "UPDATE users SET tickets_count = 1000")
    with closing(ticketapi.connect(desk)) as db:
        writer = subprocess.Popen([*PROGRAM, "check", "--repair", "--db", desk], stdout=subprocess.PIPE, text=True)
        with ticketapi.transaction(db):
            ticketapi.add_tickets(db, TICKETS + 1, [ticketapi.Draft(1, "s", "c", NOON + 10**9)], NOON)
        out, _ = writer.communicate(timeout=20)
    assert (writer.returncode, "note   " in out) == (0, True)
    assert check()[0] == 0


# Damage ------------------------------------------------------------------------------------------


def damage(path, page, fill=b"\xa5"):
    """Overwrite a page; pages are counted from 0."""
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(fill * PAGE if len(fill) == 1 else fill)


def test_damage_anywhere_is_found_without_a_traceback(check, desk, model):
    chance, sound = random.Random(1), model.read_bytes()
    for page in range(len(sound) // PAGE):
        for fill in (b"\0", b"\xff", chance.randbytes(PAGE)):
            desk.write_bytes(sound)
            damage(desk, page, fill)
            code, findings = check()
            assert code == 1, (page, fill[:1])
            assert {file for file, _ in wrong(findings)} == {"desk.db"}


def test_damage_of_the_audit_log_is_found(check, audit):
    damage(audit, 1)
    code, findings = check()
    assert code == 1
    assert wrong(findings)["desk-audit.db", "integrity"].endswith("; restore a backup")


@pytest.mark.parametrize("size", [1, 50, 107, 4096, 5000, 100_000])
def test_a_file_that_was_cut_is_found(check, desk, size):
    with desk.open("r+b") as file:
        file.truncate(size)
    assert check()[0] == 1


def test_small_damage_never_ends_in_a_traceback(check, desk, model):
    chance, sound = random.Random(2), model.read_bytes()
    codes = set()
    for _ in range(80):
        place = chance.randrange(len(sound))
        size = chance.choice((1, 2, 4, 16, 64))
        desk.write_bytes(sound[:place] + chance.randbytes(size) + sound[place + size :])
        codes.add(check()[0])
    assert codes == {0, 1}


def test_the_first_lines_of_the_integrity_check_are_told(check, desk):
    right = "CREATE INDEX tickets_open ON tickets (id) WHERE status = "
    change(desk, "DROP INDEX tickets_open", f"{right}2")
    change(desk, f"UPDATE sqlite_master SET sql = '{right}1' WHERE name = 'tickets_open'")
    detail = wrong(check()[1])["desk.db", "integrity"]
    assert "index tickets_open" in detail
    assert detail.count("; ") == 3


def test_lines_that_come_before_damage_ends_the_integrity_check_are_told(desk):
    [(root,)] = ask(desk, "SELECT rootpage FROM sqlite_master WHERE name = 'tickets'")
    damage(desk, root - 1, b"\x05\0\0\0\x02")
    with closing(ticketapi.open_to_inspect(desk)) as db:
        lines = ticketapi.integrity_problems(db, 3)
    assert 1 <= len(lines) <= 3
    assert not any(line.startswith("***") for line in lines)


def damage_name(sound):
    """Damage the name of a table and its statement."""
    damaged = re.sub(rb"(?<=table)tickets(?=tickets.CREATE TABLE tickets)", b"\xff\xb5ckets", sound, flags=re.DOTALL)
    return damaged.replace(b"CREATE TABLE tickets (", b"CREATE TABLE tickets )")


def damage_column(sound):
    """Damage the name of a column in a condition."""
    return sound.replace(b"CHECK (tickets_count", b"CHECK (tick\xdats_count")


@pytest.mark.parametrize(("change_bytes", "check_name"), [(damage_name, "schema"), (damage_column, "tables")])
def test_a_message_of_sqlite_that_is_no_text_is_damage_too(check, run, desk, change_bytes, check_name):
    sound = desk.read_bytes()
    desk.write_bytes(change_bytes(sound))
    assert desk.read_bytes() != sound
    code, findings = check()
    assert (code, wrong(findings)) == (1, {("desk.db", check_name): DAMAGED})
    assert run("process", "--db", desk) == (1, "", f"ticketapi: {desk} {DAMAGED}\n")
    code, out, err = run("backup", "copy.db", "--db", desk)
    assert (code, out, err.count("\n"), "database disk image is malformed" in err) == (1, "", 1, True)


def fail(kind):
    """Raise an error."""
    raise kind


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (MemoryError(), "it is too damaged for this check"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "is damaged (database disk image is malformed)"),
    ],
)
def test_what_damage_makes_of_a_check_is_wrong(desk, error, detail):
    found = ticketapi.attempt(desk, "integrity", "wrong", "fix", partial(fail, error))
    assert (found.level, found.detail) == ("wrong", f"{detail}; restore a backup")


def test_an_interruption_ends_a_long_statement(desk):
    endless = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with closing(ticketapi.open_to_inspect(desk)) as db:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt), ticketapi.interruptible(db):
                db.execute(endless)
            with pytest.raises(sqlite3.OperationalError, match="no such table"), ticketapi.interruptible(db):
                db.execute("SELECT 1 FROM nowhere")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_reference_to_nobody_is_found(check, desk):
    change(desk, "PRAGMA foreign_keys = OFF", "DELETE FROM users WHERE id = 1000000000")
    _, findings = check()
    assert wrong(findings) == {
        (
            "desk.db",
            "references",
        ): "row 1 of personal_access_tokens refers to a row of users that is not there; restore a backup"
    }


# Schema ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "detail"),
    [
        ("DROP INDEX users_by_tickets_count", "users_by_tickets_count is missing"),
        ("ALTER TABLE users ADD COLUMN phone TEXT", "users is unlike schema.sql"),
    ],
)
def test_a_table_or_index_that_is_not_as_in_schema_sql_is_found(check, desk, statement, detail):
    change(desk, statement)
    _, findings = check()
    assert wrong(findings) == {("desk.db", "tables"): f"{detail}; restore a backup"}


def test_what_others_have_added_is_worth_a_note(check, desk):
    change(desk, "CREATE INDEX mine ON tickets (subject)", "ANALYZE")
    code, findings = check()
    assert code == 0
    assert ticketapi.Finding("note", str(desk), "extras", "mine is none of ours; see that it does no harm") in findings


def test_an_older_desk_is_not_upgraded_but_told_that_it_would_be(run, tmp_path):
    path = make_old(tmp_path / "old.db", 1)
    before = path.read_bytes()
    code, out, _ = run("check", "--db", "old.db")
    assert (code, path.read_bytes()) == (0, before)
    assert f"note   old.db: schema: version 1; opening it will upgrade it to version {ticketapi.KINDS['desk'].version}\n" in out
    assert "ok     old.db: integrity\n" in out
    code, out, _ = run("check", "--repair", "--db", "old.db")
    assert (code, path.read_bytes()) == (1, before)
    assert out.startswith("wrong  old.db: repair: not tried, as the file is damaged or of another version\n")


@pytest.mark.parametrize(
    ("change_file", "detail"),
    [
        (
            lambda path: change(path, "PRAGMA user_version = 99"),
            "is from a newer ticketapi (schema 99, this one knows {}); upgrade ticketapi",
        ),
        (lambda path: change(path, "PRAGMA application_id = 7"), "belongs to another program; choose another --db"),
        (lambda path: path.write_text("a text\n" * 100), "is not a SQLite database; choose another --db"),
        (lambda path: path.write_bytes(b""), "is empty; restore a backup, or let another command make it anew"),
    ],
    ids=["newer", "another's", "no database", "empty"],
)
def test_a_file_that_is_no_desk_is_wrong_and_untouched(check, desk, tmp_path, change_file, detail):
    change_file(desk)
    before = desk.read_bytes()
    code, findings = check()
    expected = {("desk.db", "schema"): detail.format(ticketapi.KINDS["desk"].version)}
    assert (code, wrong(findings), desk.read_bytes()) == (1, expected, before)


# Modes and versions ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
@pytest.mark.parametrize("name", ["desk.db", "desk-audit.db", "desk.db-wal", "desk.db-shm"])
def test_a_file_that_others_can_get_at_is_wrong_and_the_fix_works(check, desk, audit, name, mode):
    leave_wal(desk, "UPDATE tickets SET subject = 'Changed' WHERE id = 1")
    desk.with_name(name).chmod(mode)
    code, findings = check()
    [(found, detail)] = wrong(findings).items()
    assert (code, found) == (1, (name, "mode"))
    assert detail.startswith(f"{mode:04o} lets other users at it; run chmod 600 ")
    subprocess.run(shlex.split(detail.partition("run ")[2]), check=True)
    assert check()[0] == 0


@pytest.mark.skipif(bool(WITHOUT_PRIVILEGES) and not shutil.which("setpriv"), reason="needs setpriv, of util-linux")
@pytest.mark.parametrize(("mode", "check"), [(0o400, "access: this user cannot write"), (0o200, "schema: cannot be read:")])
def test_a_file_that_this_user_cannot_write_or_read_is_wrong(desk, mode, check):
    desk.chmod(mode)
    done = subprocess.run([*WITHOUT_PRIVILEGES, *PROGRAM, "check", "--db", desk], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert [line for line in done.stdout.splitlines() if line.startswith(f"wrong  {desk}: {check}")]


@pytest.mark.skipif(bool(WITHOUT_PRIVILEGES) and not shutil.which("setpriv"), reason="needs setpriv, of util-linux")
def test_a_desk_in_a_folder_where_nothing_can_be_made_is_wrong_in_a_line(desk, tmp_path):
    tmp_path.chmod(0o500)
    try:
        done = subprocess.run([*WITHOUT_PRIVILEGES, *PROGRAM, "check", "--db", desk], capture_output=True, text=True)
    finally:
        tmp_path.chmod(0o700)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"wrong  {desk}: access: this user cannot write {tmp_path};" in done.stdout


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 36, 0), "wrong"),
        ((3, 37, 0), "note"),
        ((3, 40, 1), "note"),
        ((3, 44, 5), "note"),
        ((3, 44, 6), "ok"),
        ((3, 45, 0), "note"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "note"),
        ((3, 51, 3), "ok"),
        ((3, 52, 0), "ok"),
    ],
)
def test_versions_of_sqlite_are_judged_by_their_known_problems(version, level):
    found = ticketapi.judge_sqlite(version)
    assert (found.level, found.file, found.check) == (level, None, "sqlite")
    assert found.detail.startswith(".".join(map(str, version)))


@pytest.mark.parametrize(
    ("name", "version", "level", "reason"),
    [
        ("bottle", "0.13.4", "ok", ""),
        ("bottle", "0.12.25", "note", "CVE-2022-31799"),
        ("bottle", None, "note", "not installed"),
        ("waitress", "3.0.2", "ok", ""),
        ("waitress", "3.0.1", "note", "before 3.0.2"),
        ("waitress", "3.0.0", "note", "CVE-2024-49769"),
        ("waitress", "4.0.0b1", "ok", ""),
    ],
)
def test_versions_of_packages_are_judged_by_their_known_problems(name, version, level, reason):
    found = ticketapi.judge_package(name, version)
    assert (found.level, found.check) == (level, name)
    assert reason in found.detail


def test_the_versions_here_are_those_that_run(check):
    _, findings = check()
    details = {found.check: found.detail for found in findings if found.file is None}
    assert details["sqlite"].startswith(sqlite3.sqlite_version)
    assert details["waitress"] == ticketapi.package_version("waitress")
    assert ticketapi.package_version("a-package-that-is-not-there") is None
