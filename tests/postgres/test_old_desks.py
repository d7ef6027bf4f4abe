"""A desk of an older version in PostgreSQL is upgraded when it is opened for writing, in one transaction, and once."""

import subprocess
import sys
import threading
from contextlib import closing

import pytest
from clusters import admin_of
from conftest import NOON
from old_desks import MERGED, OWNER, TICKETS, PlainSession, add_owners, make_old, make_old_postgres
from upgrades import KEPT, kept, upgrade

import ticketapi

SHAPE = """
    SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, collname
    FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid
    LEFT JOIN pg_collation ON pg_collation.oid = attcollation
    WHERE relnamespace = CAST('public' AS regnamespace) AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped
    ORDER BY 1, 2"""
CONSTRAINTS = """
    SELECT CAST(conrelid AS regclass)::text, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE connamespace = CAST('public' AS regnamespace)
    ORDER BY 1, 2"""
INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
OPTIONS = "SELECT relname, reloptions FROM pg_class WHERE relnamespace = CAST('public' AS regnamespace) ORDER BY 1"
VIEWS = "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1"


def ask(url, sql):
    """Return the rows that a query finds, without ticketapi."""
    with admin_of(url) as session:
        return session.execute(sql).fetchall()


def kept_of(url):
    """Return what an upgrade keeps, by table."""
    return {table: ask(url, sql) for table, sql in KEPT.items() if table != "sqlite_sequence"}


def versions(url):
    """Return the versions of the desk and its log."""
    return dict(ask(url, "SELECT kind, schema_version FROM desk"))


@pytest.fixture
def old(database):
    """A desk of version 3."""
    return make_old_postgres(database)


def test_an_upgraded_desk_has_what_a_new_one_has(old, databases):
    new = databases.create()
    place = databases.place(new)
    upgrade(place)
    upgrade(old)
    for sql in (SHAPE, CONSTRAINTS, INDEXES, OPTIONS, VIEWS):
        assert ask(old.url, sql) == ask(place.url, sql) != []
    assert "autovacuum_vacuum_threshold=10000" in dict(ask(old.url, OPTIONS))["tickets"]
    assert dict(ask(old.url, OPTIONS))["users"] == ["fillfactor=80"]
    databases.drop(new)


@pytest.mark.parametrize("tickets", [0, TICKETS])
def test_an_upgrade_keeps_what_was_there_and_is_sound(database, tickets, run):
    old = make_old_postgres(database, tickets)
    before = kept_of(database)
    assert run("token", "list", "--db", database)[0] == 0  # as any command that writes
    assert kept_of(database) == before
    assert versions(database) == {kind: known.version for kind, known in ticketapi.KINDS.items()}
    code, out, err = run("check", "--db", database)
    assert (code, "wrong" in out, err) == (0, False, "")
    with closing(ticketapi.open_database(old, "desk")) as db:
        assert ticketapi.find_last_change(db) == tickets
        assert ticketapi.create_token(db, "new@x.org", "new", [], 0, NOON)["id"] == 10
        ticketapi.generate_tickets(db, 20, NOON, 1)
        ticketapi.update_ticket(db, tickets + 1, {"status": 2}, NOON)
        ticketapi.delete_ticket(db, tickets + 2, NOON)
        assert ticketapi.counter_problems(db) == []


def test_both_engines_upgrade_to_the_same_rows(old, tmp_path):
    file = make_old(tmp_path / "old.db", 3)
    upgrade(old)
    upgrade(file)
    with (
        closing(ticketapi.connect(old, ticketapi.VISITOR)) as one,
        closing(ticketapi.connect(file, ticketapi.VISITOR)) as other,
        ticketapi.snapshot(one),
        ticketapi.snapshot(other),
    ):
        for table in ticketapi.TABLES["desk"]:
            rows = [sorted(map(tuple, ticketapi.read_table(db, table)), key=repr) for db in (one, other)]
            assert rows[0] == rows[1]


def test_of_owners_whose_addresses_differ_in_case_alone_the_first_gets_the_tokens(old):
    with admin_of(old.url) as session:
        add_owners(PlainSession(session))
    upgrade(old)
    assert ask(old.url, "SELECT id FROM users WHERE id >= 1000000000 ORDER BY id") == [(OWNER,), (OWNER + 1,), (OWNER + 2,)]
    assert dict(ask(old.url, "SELECT id, user_id FROM personal_access_tokens")) == MERGED


def test_an_upgrade_is_told_in_the_log(old, caplog):
    with caplog.at_level("INFO", "ticketapi"):
        upgrade(old)
        upgrade(old)
    assert [record.getMessage() for record in caplog.records if "upgrading" in record.getMessage()] == [
        "upgrading the schema: desk 3 to 4",
        "upgrading the schema: desk 4 to 5",
        "upgrading the schema: audit 2 to 3",
    ]


@pytest.mark.parametrize("command", ["tickets", "stats", "copy copy.db"])
def test_a_command_that_only_reads_says_how_to_upgrade_and_changes_nothing(old, run, tmp_path, command):
    before = kept_of(old.url)
    code, out, err = run(*command.split(), "--db", old.url)
    assert (code, out) == (1, "")
    fix = "another command, such as `token list`, upgrades it when it opens it"
    assert err == f"ticketapi: {old} is from an older ticketapi (schema 3, this one reads 5); {fix}\n"
    assert (versions(old.url), kept_of(old.url)) == ({"desk": 3, "audit": 2}, before)
    file = make_old(tmp_path / "old.db", 3)
    assert run(*command.split(), "--db", file)[2] == err.replace(str(old), str(file))


def test_an_upgrade_that_fails_leaves_the_desk_as_it_was(old):
    with admin_of(old.url) as session:
        session.execute("CREATE TABLE idempotency_keys (id bigint)")
    before = kept_of(old.url)
    with pytest.raises(ticketapi.TicketApiError, match="already exists"):
        upgrade(old)
    assert (versions(old.url), kept_of(old.url)) == ({"desk": 3, "audit": 2}, before)
    with admin_of(old.url) as session:
        session.execute("DROP TABLE idempotency_keys")
    upgrade(old)
    assert (versions(old.url)["desk"], kept_of(old.url)) == (5, before)


def test_a_program_that_is_ended_while_it_upgrades_leaves_the_desk_as_it_was(old):
    """Another session holds a table that the upgrade changes, so that it is met in the middle of it."""
    before = kept_of(old.url)
    with admin_of(old.url) as session, admin_of(old.url) as watcher:
        session.execute("BEGIN; LOCK TABLE tickets IN ACCESS SHARE MODE")
        command = [sys.executable, "-m", "ticketapi", "token", "list", "--db", old.url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            while not (found := watcher.execute(waiting).fetchone()):
                assert program.poll() is None
            program.kill()
            program.wait()
        watcher.execute("SELECT pg_terminate_backend(%s)", found)
        session.execute("ROLLBACK")
    assert (versions(old.url), kept_of(old.url)) == ({"desk": 3, "audit": 2}, before)
    upgrade(old)
    assert (versions(old.url)["desk"], kept_of(old.url)) == (5, before)


def test_two_programs_at_once_upgrade_once(old, caplog):
    before, errors = kept_of(old.url), []

    def open_it():
        try:
            upgrade(old)
        except Exception as error:  # whatever it is, the test fails
            errors.append(error)

    with caplog.at_level("INFO", "ticketapi"):
        threads = [threading.Thread(target=open_it) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert [record.getMessage() for record in caplog.records].count("upgrading the schema: desk 3 to 4") == 1
    assert (versions(old.url)["desk"], kept_of(old.url)) == (5, before)


def test_a_desk_in_a_file_of_version_3_is_copied_once_it_is_upgraded(run, tmp_path, database):
    file = make_old(tmp_path / "old.db", 3)
    before = kept(file)
    upgrade(file)
    assert run("copy", database, "--db", file)[0] == 0
    after = kept_of(database)
    assert after == {table: rows for table, rows in before.items() if table != "sqlite_sequence"}
