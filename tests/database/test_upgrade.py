"""A desk of an older version is upgraded when it is opened: it keeps all it held, or stays as it was when something fails."""

import json
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing

import pytest
from conftest import NOON, ROOT, SECOND, WITHOUT_PRIVILEGES, elsewhere_locked
from old_desks import MERGED, OWNER, TICKETS, add_owners, make_old
from upgrades import CURRENT, KEPT, ask, assert_untouched, assert_upgraded, kept, start_opener, upgrade, version

import ticketapi

PROGRAM = (sys.executable, "-m", "ticketapi")
LISTS = {
    "open": "WHERE status = 1 ORDER BY created_at, id",
    "closed": "WHERE status = 2 ORDER BY closed_at DESC, id DESC",
    1: "WHERE user_id = 1 ORDER BY created_at DESC, id DESC",
    7: "WHERE user_id = 7 ORDER BY created_at DESC, id DESC",
    12: "WHERE user_id = 12 ORDER BY created_at DESC, id DESC",  # who wrote nothing
}


def schema(path):
    """Return the tables and indexes of a file as they were made."""
    return ask(path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")


def files(directory):
    """Return the bytes of every file of a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(params=[1, 2, 3])
def old_version(request):
    """Each version that was released before."""
    return request.param


@pytest.fixture
def old(desk, old_version):
    """The path of a desk of an old version."""
    return make_old(desk, old_version)


# What an upgrade does ----------------------------------------------------------------------------


def test_the_old_desk_is_what_its_version_made(old, old_version):
    assert version(old) == old_version
    assert {name for _, name, *_ in schema(old)} >= {"tickets", "tickets_open", "users_by_tickets_count"}
    ties = "SELECT count(*) - count(DISTINCT created_at), count(closed_at) - count(DISTINCT closed_at) FROM tickets"
    assert min(ask(old, ties)[0]) > 10
    assert len(ask(old, KEPT["tickets"])) == TICKETS


def test_an_upgrade_keeps_tickets_users_counters_and_tokens(old):
    before = kept(old)
    upgrade(old)
    assert_upgraded(old, before)


def test_an_upgraded_file_has_the_tables_and_indexes_of_a_new_one(old, tmp_path):
    upgrade(old)
    upgrade(tmp_path / "new.db")
    assert schema(old) == schema(tmp_path / "new.db")


def test_the_tickets_of_a_user_are_numbered_in_the_order_they_came(old):
    upgrade(old)
    so_far = Counter()
    for user_id, number in ask(old, "SELECT user_id, user_number FROM tickets ORDER BY created_at, id"):
        so_far[user_id] += 1
        assert number == so_far[user_id]
    assert sum(so_far.values()) == TICKETS


def test_the_closed_tickets_are_numbered_in_the_order_they_were_closed(old):
    upgrade(old)
    numbers = ask(old, "SELECT closed_number FROM tickets WHERE status = 2 ORDER BY closed_at, id")
    assert numbers == [(number,) for number in range(1, TICKETS * 2 // 3 + 1)]
    assert ask(old, "SELECT count(*) FROM tickets WHERE status = 1 AND closed_number IS NOT NULL") == [(0,)]


def pages_of(db, name, per_page):
    """Return the ids of all pages of a list, one after the other, and of one past the end."""
    show = {"open": ticketapi.open_tickets_page, "closed": ticketapi.closed_tickets_page}.get(name)
    page, last, pages = 0, 1, []
    while page <= last:
        page += 1
        asked = ticketapi.parse_list_request("http://desk.test/x", {"page": str(page), "per_page": str(per_page)})
        answer = json.loads(show(db, asked) if show else ticketapi.user_tickets_page(db, name, asked))
        pages.append([ticket["id"] for ticket in answer["data"]])
        last = answer["meta"]["last_page"]
    return pages


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("per_page", [7, 200])
def test_every_page_equals_a_plain_query(old, name, per_page):
    ids = [ticket_id for (ticket_id,) in ask(old, f"SELECT id FROM tickets {LISTS[name]}")]  # of version 1 still
    upgrade(old)
    with closing(ticketapi.connect(old, ticketapi.READER)) as db:
        pages = pages_of(db, name, per_page)
    assert pages == [*([ids[i : i + per_page] for i in range(0, len(ids), per_page)] or [[]]), []]


def test_an_upgraded_desk_lives_on(old):
    upgrade(old)
    with closing(ticketapi.open_database(old, "desk")) as db:
        later = NOON + 3600 * SECOND
        assert ticketapi.generate_tickets(db, 50, later, 1) == 50
        assert ticketapi.process_tickets(db, 120, later) == list(range(TICKETS * 2 // 3 + 1, TICKETS * 2 // 3 + 121))
        assert ticketapi.create_token(db, "c3@example.com", "new", [], 0, later)["id"] == 10
    numbers = ask(old, "SELECT closed_number FROM tickets WHERE status = 2 ORDER BY closed_at, id")
    assert numbers == [(number,) for number in range(1, len(numbers) + 1)]
    wrong = """
        SELECT users.id FROM users JOIN tickets ON users.id = user_id
        GROUP BY users.id HAVING max(user_number) != tickets_count OR count(*) != tickets_count
    """
    assert ask(old, wrong) == []


def test_tickets_are_numbered_by_their_ids_and_no_list_has_gaps(old):
    upgrade(old)
    assert ask(old, "SELECT count(*) FROM tickets WHERE change = id AND deleted_at IS NULL") == [(TICKETS,)]
    assert ask(old, "SELECT name, value FROM counters") == [
        ("change", 0),
        ("closed_number", TICKETS * 2 // 3),
        ("customers", 12),
        ("epoch", 0),
    ]
    assert ask(old, "SELECT count(*) FROM users WHERE last_number <> tickets_count") == [(0,)]
    assert ask(old, "SELECT DISTINCT list FROM list_blocks") == [(ticketapi.OPEN_LIST,)]
    with closing(ticketapi.open_database(old, "desk")) as db:
        assert ticketapi.find_event_ends(db) == (0, 0)
        assert ticketapi.find_last_change(db) == TICKETS
        ticketapi.delete_ticket(db, 5, NOON)
        assert ticketapi.find_event_ends(db) == (TICKETS + 1, TICKETS + 1)


def test_of_owners_whose_addresses_differ_in_case_alone_the_first_gets_the_tokens(old):
    with closing(sqlite3.connect(old)) as db, db:
        add_owners(db)
    tokens = ask(old, "SELECT id, name, token, abilities, last_used_at, expires_at, created_at FROM personal_access_tokens")
    upgrade(old)
    assert ask(old, "SELECT id FROM users WHERE id >= 1000000000 ORDER BY id") == [(OWNER,), (OWNER + 1,), (OWNER + 2,)]
    assert dict(ask(old, "SELECT id, user_id FROM personal_access_tokens")) == MERGED
    after = ask(old, "SELECT id, name, token, abilities, last_used_at, expires_at, created_at FROM personal_access_tokens")
    assert after == tokens
    with closing(ticketapi.open_database(old, "desk")) as db:
        assert ticketapi.create_token(db, "aNN@x.org", "new", [], 0, NOON)["user_id"] == OWNER + 1
        assert ticketapi.create_token(db, "b@x.org", "new", [], 0, NOON)["id"] == 11  # 9 and those before were given
        assert ticketapi.counter_problems(db) == []


def test_an_empty_desk_is_upgraded_too(desk, old_version):
    make_old(desk, old_version, tickets=0)
    before = kept(desk)
    upgrade(desk)
    assert_upgraded(desk, before)


def test_what_lies_in_the_log_yet_is_upgraded_too(old, tmp_path):
    with closing(sqlite3.connect(old, isolation_level=None)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("UPDATE tickets SET subject = 'changed' WHERE id = 5")
        before = kept(old)
        (tmp_path / "killed").mkdir()
        for path in sorted(tmp_path.glob("desk.db*")):  # as after kill -9
            shutil.copy(path, tmp_path / "killed")
    copy = tmp_path / "killed" / "desk.db"
    assert copy.with_name("desk.db-wal").stat().st_size
    upgrade(copy)
    assert_upgraded(copy, before)


# What it leaves alone ----------------------------------------------------------------------------


def test_a_second_opening_changes_nothing(old):
    upgrade(old)
    before = files(old.parent)
    upgrade(old)
    assert files(old.parent) == before


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_the_file_keeps_its_mode(old, mode):
    old.chmod(mode)
    with closing(ticketapi.open_database(old, "desk")):
        assert {path.stat().st_mode & 0o777 for path in old.parent.iterdir()} == {mode}
    assert old.stat().st_mode & 0o777 == mode


# The audit log -----------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def log_version(request):
    """Each version of the audit log that was released before."""
    return request.param


@pytest.fixture
def old_log(desk, log_version):
    """The path of an audit log as an old version made it, with four rows, the first two of which are pruned."""
    path = ticketapi.Settings(db=desk).audit_db
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA journal_mode = WAL; {(ROOT / f'tests/schema-audit-{log_version}.sql').read_text()}")
        values = "NULL, NULL, 'GET', 'api/nope', NULL, 404, '127.0.0.1', NULL, 0, '{}', NULL, '2025-12-04T12:00:00.000000Z'"
        db.executescript(f"{f'INSERT INTO api_audits VALUES (NULL, {values});' * 4} DELETE FROM api_audits WHERE id < 3")
        db.executescript(f"PRAGMA application_id = 0x544B5441; PRAGMA user_version = {log_version}")
    return path


def upgraded(rows):
    """Return the rows of an old log as they are after an upgrade: their requests had no ids."""
    return [(*row, None) for row in rows]


def test_an_old_log_keeps_its_rows_and_gives_no_id_twice_from_now_on(old_log, tmp_path):
    before = upgraded(ask(old_log, "SELECT * FROM api_audits ORDER BY id"))
    with closing(ticketapi.open_database(old_log, "audit")) as db:
        assert ask(old_log, "SELECT * FROM api_audits ORDER BY id") == before != []
        ticketapi.prune_audits(db, "9999", 100)
        ticketapi.insert_audits(db, [dict(zip(COLUMNS, before[0][1:], strict=True))])
    assert ask(old_log, "SELECT id FROM api_audits") == [(5,)]
    ticketapi.open_database(tmp_path / "new.db", "audit").close()
    assert schema(old_log) == schema(tmp_path / "new.db")
    assert version(old_log) == 3


def test_an_old_log_that_was_pruned_to_its_end_gives_no_id_twice_either(old_log, log_version):
    with closing(sqlite3.connect(old_log)) as db, db:
        [row] = db.execute("DELETE FROM api_audits RETURNING *").fetchall()[:1]
    with closing(ticketapi.open_database(old_log, "audit")) as db:
        ticketapi.insert_audits(db, [dict(zip(COLUMNS, upgraded([row])[0][1:], strict=True))])
    assert ask(old_log, "SELECT id FROM api_audits") == [(1 if log_version == 1 else 5,)]  # 1 knew no more


COLUMNS = (
    "user_id", "token_id", "method", "path", "route_name", "status_code",
    "ip_address", "user_agent", "duration_ms", "query", "request_body", "created_at", "request_id",
)  # fmt: skip


def test_an_old_log_can_be_read_as_it_is(run, old_log, log_version, desk):
    assert "api/nope" in run("audit", "--db", desk)[1]
    assert version(old_log) == log_version


@pytest.mark.parametrize(("log_version", "step"), [(1, step) for step in range(1, 13)] + [(2, step) for step in range(1, 9)])
def test_a_log_whose_upgrade_was_killed_is_as_it_was(old_log, log_version, step):
    before = ask(old_log, "SELECT * FROM api_audits ORDER BY id")
    opener = start_opener(old_log, step, kind="audit")
    opener.communicate("go\n")
    assert opener.returncode == -signal.SIGKILL
    assert (version(old_log), ask(old_log, "SELECT * FROM api_audits ORDER BY id")) == (log_version, before)
    ticketapi.AuditLog(old_log).close()
    assert (version(old_log), ask(old_log, "SELECT * FROM api_audits ORDER BY id")) == (3, upgraded(before))


# Beside a server of an older version --------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate", "process", "token create", "token list", "token prune", "token revoke 1"])
def test_what_is_served_is_not_upgraded(run, old, old_version, command):
    with elsewhere_locked(old):
        code, out, err = run(*command.split(), "--db", old)
        assert (code, out) == (1, "")
        assert err == f"ticketapi: {old} is old, and served: try again, or stop the server, which is upgrading it or old, too\n"
        assert version(old) == old_version
    assert run("token", "list", "--db", old)[0] == 0
    assert version(old) == CURRENT


def test_a_log_that_is_served_is_not_upgraded(run, old_log, log_version, desk):
    upgrade(desk)
    with elsewhere_locked(desk):
        code, _, err = run("audit", "prune", "--older-than", "1d", "--db", desk)
        assert (code, "is old, and served" in err, version(old_log)) == (1, True, log_version)
    assert run("audit", "prune", "--older-than", "1d", "--db", desk)[:2] == (0, "Pruned 2 audits\n")


def test_a_second_server_sees_the_first_before_it_upgrades_anything(old, old_version):
    with elsewhere_locked(old):
        command = [*PROGRAM, "serve", "--port", "0", "--db", old]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert (done.returncode, "another serve is running on" in done.stderr, version(old)) == (1, True, old_version)


def test_a_server_upgrades_what_it_serves(serve, old):
    assert serve("--db", old).get("/ready").status == 200
    assert version(old) == CURRENT


def test_a_desk_of_version_6_is_refused_and_stays_as_it_was(old):
    with closing(sqlite3.connect(old)) as db:
        db.execute("PRAGMA user_version = 6")
    before = old.read_bytes()
    with pytest.raises(ticketapi.TicketApiError, match=r"newer ticketapi \(schema 6, this one knows 5\); upgrade ticketapi$"):
        upgrade(old)
    assert old.read_bytes() == before


# Commands ----------------------------------------------------------------------------------------


def test_a_command_upgrades_without_a_word(run, old):
    first = TICKETS * 2 // 3 + 1
    expected = f"Processed 2 tickets\nTicket IDs: {first}, {first + 1}\n"
    assert run("process", "--count", 2, "--db", old) == (0, expected, "")
    assert version(old) == CURRENT


def test_a_server_upgrades_and_tells_so_in_its_log(serve, old, old_version):
    served = serve("--db", old, "--no-scheduler")
    with closing(ticketapi.open_database(old, "desk")) as db:
        token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "t", ["*"], 0, ticketapi.wall_microseconds())["token"]
    stats = served.get("/api/stats", token=token).json
    assert (stats["total_tickets"], stats["total_unprocessed_tickets"]) == (TICKETS, TICKETS // 3)
    told = [line.rpartition("schema: ")[2] for line in served.stop()[2].splitlines() if "upgrading" in line]
    assert told == [f"desk {step} to {step + 1}" for step in range(old_version, CURRENT)]


def test_processes_that_open_at_once_upgrade_once(tmp_path, old_version):
    for round_ in range(3):
        path = make_old(tmp_path / f"{round_}.db", old_version)
        before = kept(path)
        processes = [start_opener(path) for _ in range(2)]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=30) for process in processes]
        assert [out for out, _ in said] == ["opened\n"] * 2
        assert "".join(err for _, err in said).count("desk 3 to 4") == 1
        assert_upgraded(path, before)


# What may fail -----------------------------------------------------------------------------------


LAST = [
    sum(len(ticketapi.schema_statements(f"desk {step} to {step + 1}")) for step in range(first, CURRENT)) + 2
    for first in (1, 2, 3)
]  # how many statements an upgrade runs, with those that end it


@pytest.mark.parametrize(
    ("old_version", "before", "steps"),
    [
        *((1, before, 0) for before in (1, 2, 5, 6, 7, 8, LAST[0] // 2, LAST[0] - 1, LAST[0])),
        *((2, before, 0) for before in (1, 3, 7, 8, 9, LAST[1] - 1, LAST[1])),
        *((3, before, 0) for before in (1, 2, 5, 9, LAST[2] // 2, LAST[2] - 1, LAST[2])),
        (1, 0, 2000),
        (2, 0, 2000),
        (3, 0, 2000),
    ],
)
def test_a_desk_whose_upgrade_was_killed_is_as_it_was(old, old_version, before, steps):
    kept_before = kept(old)
    process = start_opener(old, before, steps)
    process.communicate("go\n", timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert_untouched(old, kept_before, old_version)


def test_a_desk_whose_upgrade_fails_is_as_it_was(old, old_version):
    before = kept(old)
    limit = (20_000, resource.RLIM_INFINITY)

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    process = start_opener(old, preexec_fn=small_disk)
    out, err = process.communicate("go\n", timeout=30)
    assert (process.returncode, out.count("\n")) == (0, 1), err
    assert "opened" not in out
    assert str(old) in out
    assert_untouched(old, before, old_version)


def test_a_desk_that_may_not_be_written_is_refused_in_one_line_and_stays_as_it_was(old):
    before = old.read_bytes()
    old.chmod(0o400)
    command = [*WITHOUT_PRIVILEGES, *PROGRAM, "process", "--db", str(old)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"{old} is read-only" in done.stderr
    assert old.read_bytes() == before
