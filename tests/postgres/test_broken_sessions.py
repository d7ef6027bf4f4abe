"""What becomes of a session that PostgreSQL ends, and what the surroundings of a program may not change."""

import logging
import os
from contextlib import closing

import pytest
from conftest import NOON, wait_for

import ticketapi

ROW = {
    **dict.fromkeys(("user_id", "token_id", "route_name", "user_agent", "query", "request_body", "request_id")),
    **{"method": "GET", "path": "api/x", "status_code": 200, "ip_address": "::1", "duration_ms": 1},
    "created_at": ticketapi.format_time(NOON),
}


@pytest.fixture
def place(databases):
    """The place of an empty desk."""
    return databases.fresh()


def end_sessions(databases):
    """End every session of ticketapi."""
    sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'ticketapi'"
    assert databases.cluster.admin.execute(sql).fetchone()[0]


def test_the_log_goes_on_after_its_session_was_ended_and_the_end_is_told_once(databases, place, caplog):
    caplog.set_level(logging.INFO)
    with closing(ticketapi.AuditLog(place)) as audit:
        audit.record(ROW, 1.0)
        end_sessions(databases)
        audit.record(ROW, 2.0)
        assert audit.waiting == 1
        wait_for(lambda: not place.down)
        audit.commit(10.0)
        assert (audit.waiting, audit.lost, place.restored) == (0, 0, 1)
        audit.record(ROW, 11.0)
        assert (audit.waiting, place.restored) == (0, 1)
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition(": ")[0] for text in told] == ["the database does not answer", "the database answers again"]


@pytest.mark.parametrize("write", ["execute", "executemany"])
def test_a_kept_connection_takes_its_new_session_whatever_is_asked_first(databases, place, write):
    with closing(ticketapi.open_database(place, "audit")) as db:
        ticketapi.keep(db)
        end_sessions(databases)
        with pytest.raises(ticketapi.Unreachable):
            db.execute("SELECT 1")
        wait_for(lambda: not place.down)
        if write == "execute":
            assert db.execute("SELECT 1").fetchone()[0] == 1
        else:
            ticketapi.insert_audits(db, [ROW])
        assert place.restored == 1


def test_a_copy_whose_session_is_ended_says_so_and_keeps_nothing(databases, place):
    def rows():
        for number in range(1, 100_000):
            if number == 300:
                end_sessions(databases)
            yield (number, "Ann", f"{number}@example.com", 0, ticketapi.format_time(NOON))

    with closing(ticketapi.open_database(place, "desk")) as db, pytest.raises(ticketapi.Unreachable), ticketapi.transaction(db):
        db.copy_in("users", rows())
    with closing(ticketapi.open_database(place, "desk")) as db:
        assert db.execute("SELECT count(*) FROM users").fetchone()[0] == 0


def test_what_reads_for_long_may_be_idle_in_its_transaction_as_long():
    for access in (ticketapi.INSPECTOR, ticketapi.VISITOR, ticketapi.COPIER):
        assert access.hangs >= access.seconds >= 3600


@pytest.mark.parametrize(
    ("setting", "value"),
    [("client_encoding", "latin1"), ("client_min_messages", "error"), ("default_transaction_isolation", "serializable")],
)
def test_what_a_role_is_set_to_changes_nothing(databases, place, setting, value):
    databases.cluster.admin.execute(f"ALTER ROLE postgres SET {setting} = '{value}'")
    try:
        with closing(ticketapi.connect(place)) as db:
            assert db.execute(f"SELECT current_setting('{setting}')").fetchone()[0].lower() != value
            assert db.execute("SELECT CAST(? AS text)", ("Žydrūnas 🎟",)).fetchone()[0] == "Žydrūnas 🎟"
    finally:
        databases.cluster.admin.execute(f"ALTER ROLE postgres RESET {setting}")


def test_the_encoding_of_the_environment_changes_nothing(place, monkeypatch):
    monkeypatch.setitem(os.environ, "PGCLIENTENCODING", "LATIN1")
    with closing(ticketapi.open_database(place, "desk")) as db:
        ticketapi.insert_users(db, [(n, "Žydrūnas 🎟", f"{n}@example.com", ticketapi.format_time(NOON)) for n in range(1, 300)])
        assert (
            db.execute("SELECT count(*) FROM users WHERE name = ? AND length(name) = 10", ("Žydrūnas 🎟",)).fetchone()[0] == 299
        )


def test_a_try_that_fails_in_an_unknown_way_is_not_the_last(databases, place, monkeypatch):
    dial, failures = ticketapi.PostgresConnection.dial, [OSError("too many open files"), ValueError("anything")]

    def unlucky(db):
        if failures:
            raise failures.pop()
        return dial(db)

    with closing(ticketapi.open_database(place, "audit")) as db:
        ticketapi.keep(db)
        monkeypatch.setattr(ticketapi.PostgresConnection, "dial", unlucky)
        end_sessions(databases)
        with pytest.raises(ticketapi.Unreachable):
            db.execute("SELECT 1")
        wait_for(lambda: not place.down)
        assert db.execute("SELECT 1").fetchone()[0] == 1


def test_writes_are_refused_at_once_while_the_database_is_down_and_go_on_then(databases, place):
    writer = ticketapi.Writer(place, ticketapi.Clock())
    assert writer.submit(lambda db: 1).result(15) == 1
    place.down = "no answer"
    refused = [writer.submit(lambda db: 2) for _ in range(2)]
    assert [type(future.exception(15)) for future in refused] == [ticketapi.Unreachable] * 2
    place.down = ""
    wait_for(lambda: not writer.submit(lambda db: 3).exception(15))
    writer.close(15)
    assert place.kept == []
