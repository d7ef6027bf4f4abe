"""A connection to PostgreSQL takes what one to SQLite takes, and a row has the face of SQLite's."""

import sqlite3
from contextlib import closing

import pytest
from conftest import examples, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

import ticketapi
from ticketapi import DeskBusy, PostgresError, RowFault, Unreachable, translate, write_array

TEXTS = ["", " ", "a,b", '"', '""', "\\", "\\\\", '\\"', "{}", '{"a"}', "NULL", "null", "\\N", "\\.", "\t", "\n", "\r", "\r\n"]
TEXTS += ["\x01\x1f\x7f", "\u2028\u2029", "e\u0301", "😀", "'", "''", "$1", ":a", "?", "%s", "x" * 100_000]
MANY = ticketapi.COPIED_ROWS


@pytest.fixture
def place(databases):
    """An empty desk."""
    return databases.fresh()


@pytest.fixture
def db(place):
    """A connection to it with a table to play with, which is gone afterwards."""
    with closing(ticketapi.connect(place)) as connection:
        connection.run("CREATE TEMPORARY TABLE kept (id bigint PRIMARY KEY, text text CHECK (text <> 'wrong'), n bigint)")
        yield connection


def kept(db):
    """Return what the table holds."""
    return [tuple(row) for row in db.execute("SELECT id, text, n FROM kept ORDER BY id")]


# Statements ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "keys"),
    [
        ("SELECT 1", "SELECT 1", []),
        ("a = :a AND b = :b OR a > :a", "a = $1 AND b = $2 OR a > $1", ["a", "b"]),
        ("VALUES (?, ?, 'x', ?)", "VALUES ($1, $2, 'x', $3)", [0, 1, 2]),
        ("?2 ?1 ?2", "$1 $2 $1", [1, 0]),
        ("'12:30'", "'12:30'", []),
        ("CAST(resource AS BLOB)", "resource", []),
        ("CAST(group_concat(resource) AS BLOB)", "string_agg(resource, ',')", []),
        ("PRAGMA busy_timeout = 0", "SET lock_timeout = 1", []),
        ("PRAGMA busy_timeout = 500", "SET lock_timeout = 500", []),
    ],
)
def test_a_statement_is_put_into_the_words_of_postgres(ours, theirs, keys):
    assert translate(ours) == (theirs, keys)


def test_every_word_of_the_dialect_is_taken_by_the_server(place):
    with closing(ticketapi.connect(place)) as db:
        for sql in ("PRAGMA foreign_key_check", "PRAGMA data_version", "PRAGMA busy_timeout", "SELECT name FROM sqlite_master"):
            assert isinstance(db.execute(sql).fetchall(), list)


def test_values_come_by_name_or_by_place(db):
    assert tuple(db.execute("SELECT CAST(:b AS text), CAST(:a AS bigint)", {"a": 7, "b": "x", "c": None})[0]) == ("x", 7)
    assert tuple(db.execute("SELECT CAST(? AS text), CAST(? AS bigint)", ("x", 7))[0]) == ("x", 7)


@pytest.mark.parametrize("text", [*TEXTS, None])
def test_a_value_comes_back_as_it_was(db, text):
    assert db.execute("SELECT CAST(? AS text)", (text,)).fetchone()[0] == text


def test_a_nul_which_no_text_of_postgres_holds_is_replaced(db):
    assert db.execute("SELECT CAST(? AS text)", ("a\0b",)).fetchone()[0] == "a\x1ab"
    db.executemany("INSERT INTO kept (id, text) VALUES (?, ?)", [(1, "a\0b")])
    db.executemany("INSERT INTO kept (id, text) VALUES (?, ?)", [(number, "\0") for number in range(2, MANY + 2)])
    assert {text for _, text, _ in kept(db)} == {"a\x1ab", "\x1a"}


# Many rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], b"{}"),
        ([1, None, -3], b'{"1",NULL,"-3"}'),
        (["", "NULL", 'a"b', "a\\b", "{,}"], b'{"","NULL","a\\"b","a\\\\b","{,}"}'),
        (["a\0b"], b'{"a\x1ab"}'),
    ],
)
def test_an_array_is_written_as_postgres_reads_it(values, text):
    assert write_array(values) == text


@pytest.mark.parametrize("count", [1, 2, MANY - 1, MANY, MANY + 1, 3 * MANY], ids=lambda count: f"{count}-rows")
def test_rows_come_in_as_they_are_however_many(db, count):
    rows = [(number, TEXTS[number % len(TEXTS)], None if number % 3 else -number) for number in range(count)]
    db.executemany("INSERT INTO kept (id, text, n) VALUES (?, ?, ?)", rows)
    assert kept(db) == rows


def test_more_rows_than_one_message_of_copy_holds_come_in(db):
    count = 2 * ticketapi.FETCHED_ROWS + 1
    db.executemany("INSERT INTO kept (id, text) VALUES (?, ?)", ((number, "x" * 50) for number in range(count)))
    assert db.execute("SELECT count(*), sum(length(text)) FROM kept").fetchone() == (count, 50 * count)


@pytest.mark.parametrize("count", [1, MANY])
def test_no_row_at_all_is_no_statement_and_a_column_may_be_all_null(db, count):
    db.executemany("INSERT INTO kept (id, text, n) VALUES (?, ?, ?)", [])
    assert kept(db) == []
    rows = [(number, None, None) for number in range(count)]
    db.executemany("INSERT INTO kept (id, text, n) VALUES (?, ?, ?)", iter(rows))
    assert kept(db) == rows


def test_rows_may_come_by_name(db):
    sql = "INSERT INTO kept (id, text, n) VALUES (:id, :text, :n)"
    db.executemany(sql, [{"id": number, "text": text, "n": 0} for number, text in enumerate(TEXTS)])
    assert [text for _, text, _ in kept(db)] == TEXTS


@pytest.mark.parametrize("count", [3, MANY])
def test_many_rows_are_updated_each_with_its_values(db, count):
    db.executemany("INSERT INTO kept (id, text, n) VALUES (?, ?, ?)", [(number, "a", number) for number in range(count)])
    db.executemany("UPDATE kept SET n = n + ?, text = ? WHERE id = ?", [(10, f"{n}", n) for n in range(1, count)])
    assert kept(db) == [(0, "a", 0), *((number, f"{number}", number + 10) for number in range(1, count))]


def test_a_row_that_is_there_can_be_added_to(db):
    sql = "INSERT INTO kept (id, n) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET n = kept.n + excluded.n"
    db.executemany(sql, [(1, 1), (2, 2)])
    db.executemany(sql, [(2, 20), (3, 30)])
    assert [(number, n) for number, _, n in kept(db)] == [(1, 1), (2, 22), (3, 30)]


@settings(deadline=None, database=None, max_examples=examples(100))
@given(st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=30)), min_size=1, max_size=8))
def test_any_texts_are_taken_by_array_and_by_copy(texts):
    assert read_array(write_array(texts).decode()) == [text and text.replace("\0", "\x1a") for text in texts]


def read_array(text):
    """Read an array as PostgreSQL does (https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO)."""
    found, at = [], 1
    while text[at] != "}":
        if text[at] == '"':
            at, item = at + 1, ""
            while text[at] != '"':
                at += text[at] == "\\"
                item, at = item + text[at], at + 1
            found.append(item)
            at += 1
        else:
            assert text[at : at + 4] == "NULL"
            found.append(None)
            at += 4
        at += text[at] == ","
    return found


# Rows ---------------------------------------------------------------------------------------------


def test_a_row_has_the_face_of_sqlites(db):
    row = db.execute("SELECT 7 AS id, 'ann' AS name, NULL AS gone").fetchone()
    file = sqlite3.connect(":memory:")
    file.row_factory = sqlite3.Row
    with closing(file):
        other = file.execute("SELECT 7 AS id, 'ann' AS name, NULL AS gone").fetchone()
    for one in (row, other):
        assert one.keys() == ["id", "name", "gone"]
        assert dict(one) == {"id": 7, "name": "ann", "gone": None}
        assert (one["id"], one[1], one[-1], len(one)) == (7, "ann", None, 3)
        assert tuple(one) == (7, "ann", None)
        number, name, _ = one
        assert (number, name) == (7, "ann")


def test_numbers_truths_and_json_have_the_types_that_sqlite_gives_them(db):
    sql = """
        SELECT 1 = 1 AS yes, 1 = 2 AS no, CAST(7 AS smallint) AS small, 2147483648 AS big, sum(CAST(5 AS bigint)) AS sum,
               CAST(0.5 AS double precision) AS half, '{"a":1}' AS json, 'x' AS text"""
    row = db.execute(sql).fetchone()
    assert tuple(row) == (1, 0, 7, 2**31, 5, 0.5, b'{"a":1}', "x")
    assert [type(value) for value in row] == [int, int, int, int, int, float, bytes, str]


def test_a_result_is_read_all_at_once_or_row_by_row(db):
    db.executemany("INSERT INTO kept (id) VALUES (?)", [(1,), (2,)])
    sql = "SELECT id FROM kept ORDER BY id"
    assert [number for (number,) in db.execute(sql)] == [row["id"] for row in db.execute(sql).fetchall()] == [1, 2]
    assert db.execute(f"{sql} OFFSET 9").fetchone() is None
    assert db.execute("UPDATE kept SET n = 1").rowcount == 2
    assert db.execute("DELETE FROM kept WHERE id = 9").rowcount == 0


def test_a_large_result_comes_piece_by_piece_in_a_snapshot(db):
    count = 2 * ticketapi.FETCHED_ROWS + 1
    with ticketapi.snapshot(db):
        one = ticketapi.stream(db, f"SELECT n FROM generate_series(1, {count}) AS n")
        other = ticketapi.stream(db, "SELECT n FROM generate_series(1, 3) AS n")
        assert next(one)["n"] == 1
        assert [n for (n,) in other] == [1, 2, 3]
        assert sum(n for (n,) in one) == count * (count + 1) // 2 - 1
    with pytest.raises(PostgresError, match="transaction"):
        next(ticketapi.stream(db, "SELECT 1"))


# Transactions -------------------------------------------------------------------------------------


def insert(db, number, text="x"):
    """Insert one row."""
    db.execute("INSERT INTO kept (id, text) VALUES (?, ?)", (number, text))


def test_a_block_is_written_as_a_whole_or_not_at_all_and_a_nested_one_is_part_of_it(db):
    with pytest.raises(ZeroDivisionError), ticketapi.transaction(db):
        insert(db, 1)
        with ticketapi.transaction(db):
            insert(db, 2)
        raise ZeroDivisionError
    assert kept(db) == []
    with ticketapi.transaction(db), ticketapi.transaction(db), ticketapi.snapshot(db):
        insert(db, 1)
    assert kept(db) == [(1, "x", None)]


def test_a_connection_knows_that_it_is_in_a_transaction_even_in_a_failed_one(db):
    assert not db.in_transaction
    db.execute("BEGIN IMMEDIATE")
    assert db.in_transaction
    with pytest.raises(PostgresError):
        db.execute("SELECT nothing")
    assert db.in_transaction
    db.execute("ROLLBACK")
    assert not db.in_transaction
    insert(db, 1)
    assert len(kept(db)) == 1


def test_a_snapshot_sees_one_state_and_writes_nothing(place, db):
    with ticketapi.snapshot(db):
        before = db.execute("SELECT count(*) FROM users").fetchone()[0]
        with closing(ticketapi.connect(place)) as other:
            ticketapi.generate_tickets(other, 5, 10**15, 1)
        assert db.execute("SELECT count(*) FROM users").fetchone()[0] == before
        with pytest.raises(PostgresError, match="read-only"):
            db.execute("DELETE FROM users")
    assert db.execute("SELECT count(*) FROM users").fetchone()[0] > before


@pytest.mark.parametrize(
    ("values", "code"), [((None, "x"), "23502"), ((1, "x"), "23505"), ((2, "wrong"), "23514"), ((2**63, "x"), "22003")]
)
def test_a_value_that_its_table_does_not_take_is_a_fault_of_its_row(db, values, code):
    insert(db, 1)
    with pytest.raises(RowFault) as caught:
        insert(db, *values)
    assert str(caught.value).endswith(f"({code})") or f"[{code}]" in str(caught.value)
    assert kept(db) == [(1, "x", None)]


@pytest.mark.parametrize("sql", ["SELEC", "SELECT * FROM nothing", "SELECT nothing"])
def test_any_other_fault_is_none_of_a_row_and_the_connection_goes_on(db, sql):
    with pytest.raises(PostgresError) as caught:
        db.execute(sql)
    assert not isinstance(caught.value, (RowFault, Unreachable))
    assert kept(db) == []


def test_many_rows_of_which_one_is_wrong_leave_none(db):
    rows = [(number, "x") for number in range(MANY)] + [(0, "x")]
    for sent in (rows, rows[-2:] + rows[-2:]):
        with pytest.raises(RowFault):
            db.executemany("INSERT INTO kept (id, text) VALUES (?, ?)", sent)
        assert kept(db) == []
    insert(db, 1)


# Who may write ------------------------------------------------------------------------------------


def test_who_writes_writes_alone_and_another_is_told_that_the_desk_is_busy(place):
    with closing(ticketapi.connect(place)) as one, closing(ticketapi.connect(place)) as other:
        ticketapi.set_busy_timeout(other, 20)
        with ticketapi.transaction(one):
            with pytest.raises(DeskBusy) as caught, ticketapi.explained(place), ticketapi.transaction(other):
                pass
            assert str(caught.value) == f"database is locked: another program writes to {place}; try again when it is done"
            with (
                ticketapi.without_waiting(other),
                pytest.raises(PostgresError, match="lock timeout"),
                ticketapi.transaction(other),
            ):
                pass
            assert other.execute("PRAGMA busy_timeout").fetchone()[0] == 20
        assert not other.in_transaction
        with ticketapi.transaction(other):
            pass


def test_who_writes_the_log_keeps_nobody_from_the_desk(place):
    with closing(ticketapi.connect(place)) as one, closing(ticketapi.connect(place, ticketapi.LOG_WRITER)) as other:
        ticketapi.set_busy_timeout(other, 1)
        with ticketapi.transaction(one), ticketapi.transaction(other):
            assert one.in_transaction and other.in_transaction


def test_readers_hear_of_what_was_committed_and_of_nothing_else(place):
    with closing(ticketapi.connect(place)) as writer, closing(ticketapi.connect(place, ticketapi.READER)) as reader:
        versions = [ticketapi.get_data_version(reader)]
        with pytest.raises(ZeroDivisionError), ticketapi.transaction(writer):
            raise ZeroDivisionError
        versions.append(ticketapi.get_data_version(reader))
        with ticketapi.transaction(writer):
            versions.append(ticketapi.get_data_version(reader))
        versions.append(ticketapi.get_data_version(reader))
    assert versions[0] == versions[1] == versions[2] != versions[3]


WARN = """
    CREATE FUNCTION pg_temp.warn() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE WARNING ''late''; RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON kept DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        EXECUTE FUNCTION pg_temp.warn()"""


def test_a_commit_with_a_warning_as_when_no_standby_confirms_it_is_told(db):
    db.run(WARN)
    with pytest.raises(PostgresError, match="no standby has confirmed this commit"), ticketapi.transaction(db):
        insert(db, 1)
    assert len(kept(db)) == 1


# Connections that break ---------------------------------------------------------------------------


def end_session(place, db):
    """Let the server end a session."""
    number = db.execute("SELECT pg_backend_pid()").fetchone()[0]
    with closing(ticketapi.connect(place)) as other:
        other.execute("SELECT pg_terminate_backend(CAST(? AS integer))", (number,))


def test_a_session_that_was_ended_is_unreachable_from_then_on(place, db):
    end_session(place, db)
    for _ in range(2):
        with pytest.raises(Unreachable):
            db.execute("SELECT 1")
    assert not db.in_transaction
    assert place.down == ""  # as nobody waits for it


def test_a_kept_connection_is_made_anew_and_tells_its_readers(place, db, caplog):
    caplog.set_level("INFO")
    ticketapi.keep(db)
    before = ticketapi.get_data_version(db)
    end_session(place, db)
    with pytest.raises(Unreachable, match="terminating connection"):
        db.execute("SELECT 1")
    wait_for(lambda: place.restored)
    assert db.execute("SELECT 1").fetchone()[0] == 1
    assert ticketapi.get_data_version(db) != before
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[0] for line in lines] == ["the database does not answer", "the database answers again"]


def test_a_server_that_does_not_answer_is_not_waited_for(place):
    with closing(ticketapi.connect(place, ticketapi.READER._replace(seconds=0.05))) as db:
        with pytest.raises(Unreachable, match=r"no answer within 0\.05 s"):
            db.execute("SELECT pg_sleep(30)")
        with pytest.raises(Unreachable):
            db.execute("SELECT 1")


def test_an_interrupt_ends_the_session_as_nobody_would_hear_its_answer(db):
    def interrupt(link):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db._ask(interrupt)
    with pytest.raises(Unreachable):
        db.execute("SELECT 1")


@pytest.mark.parametrize(
    ("access", "commit"),
    [(ticketapi.WRITER, "on"), (ticketapi.LOG_WRITER, "off"), (ticketapi.READER, "off"), (ticketapi.NOTER, "off")],
)
def test_a_session_is_set_up_as_its_access_says(place, access, commit):
    with closing(ticketapi.connect(place, access)) as db:
        assert 1 <= db.execute("PRAGMA busy_timeout").fetchone()[0] <= max(1, access.wait_ms)  # 0 would be for ever
        names = ("synchronous_commit", "application_name")
        assert [db.execute(f"SHOW {name}").fetchone()[0] for name in names] == [commit, "ticketapi"]
        assert db.execute("SHOW server_version").fetchone()[0].startswith(db.version)
