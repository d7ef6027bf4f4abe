"""The thread that writes for requests: what waits is one transaction, what fails fails alone, nobody waits in vain."""

import threading
from concurrent.futures import wait
from contextlib import closing, contextmanager

import pytest
from conftest import wait_for

import ticketapi
from ticketapi import FAILURES, GROUP, WRITE_SECONDS, DeskBusy

SECONDS = 15
MOMENT = "2025-12-04T12:00:00.000000Z"


@pytest.fixture
def writer(desk, db, clock):
    """A writer of the desk, which goes by a clock that a test moves."""
    writer = ticketapi.Writer(desk, clock)
    yield writer
    writer.close(SECONDS)
    assert not (writer._thread and writer._thread.is_alive())


def adding(number, *errors):
    """Return an operation that makes a user, then raises if it is to; it returns the user's number."""

    def operation(db):
        assert db.in_transaction
        ticketapi.insert_users(db, [(number, "Ada", f"{number}@example.com", MOMENT)])
        for error in errors:
            raise error
        return number

    return operation


def users(db):
    """Return the numbers of the users."""
    return [row[0] for row in db.execute("SELECT id FROM users ORDER BY id")]


@contextmanager
def locked(desk):
    """Have the desk's lock, as another program has."""
    with closing(ticketapi.connect(desk)) as other, ticketapi.transaction(other):
        yield


def together(desk, writer, *operations):
    """Submit operations that wait for each other, hence go into one transaction; return their futures when all are done."""
    with locked(desk):
        futures = [writer.submit(operation) for operation in operations]
    wait(futures, SECONDS)
    return futures


def break_commit(db):
    """Make the commit of a transaction fail."""
    if isinstance(db, ticketapi.PostgresConnection):
        db.run("CREATE TEMPORARY TABLE twice (n bigint UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        db.run("INSERT INTO twice VALUES (1), (1)")
    else:
        db.execute("PRAGMA defer_foreign_keys = ON")
        token = {"user_id": 99_999, "token": "0" * 64, "at": MOMENT}
        columns, values = "user_id, token, created_at, name, abilities", ":user_id, :token, :at, '', ''"
        db.execute(f"INSERT INTO personal_access_tokens ({columns}) VALUES ({values})", token)


def end_transaction(db):
    """Fail as an engine does that ends the transaction itself."""
    if isinstance(db, ticketapi.PostgresConnection):
        db.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    db.execute("ROLLBACK")
    raise ticketapi.sqlite3.OperationalError("database or disk is full")


def test_an_operation_is_done_and_its_value_returned(db, writer):
    assert writer.submit(adding(7)).result(SECONDS) == 7
    assert users(db) == [7]


def test_what_fails_alone_leaves_nothing(db, writer):
    with pytest.raises(ticketapi.NotFound):
        writer.submit(adding(7, ticketapi.NotFound("gone"))).result(SECONDS)
    assert users(db) == []
    assert writer.submit(adding(8)).result(SECONDS) == 8


def test_one_of_a_group_that_fails_fails_alone(desk, db, writer):
    wrong, odd = ticketapi.InvalidFields({"name": ["Wrong."]}), TypeError("a mistake of ours")
    twice = adding(1)  # the number is taken by then, which the engine refuses
    futures = together(desk, writer, adding(1), adding(2, wrong), adding(3), twice, adding(4, odd), adding(5))
    assert [future.exception() or future.result() for future in futures if future is not futures[3]] == [1, wrong, 3, odd, 5]
    assert isinstance(futures[3].exception(), FAILURES)
    assert users(db) == [1, 3, 5]


def test_nobody_hears_before_the_commit_and_a_group_is_one_transaction(desk, db, writer):
    heard, futures = [], []

    def look(connection):
        heard.append([future.done() for future in futures])
        with closing(ticketapi.connect(desk, ticketapi.READER)) as reader:
            heard.append(users(reader))

    with locked(desk):
        futures += [writer.submit(adding(number)) for number in (1, 2, 3)]
        futures.append(writer.submit(look))
    wait(futures, SECONDS)
    assert heard == [[False] * 4, []]
    assert users(db) == [1, 2, 3]


def test_an_operation_that_ends_the_transaction_fails_alone(desk, db, writer):
    futures = together(desk, writer, adding(1), end_transaction, adding(3))
    assert [isinstance(future.exception(), FAILURES) for future in futures][1]
    wait_for(lambda: not writer.submit(adding(4)).exception(SECONDS))  # PostgreSQL's session is made anew meanwhile
    assert users(db)[-1] == 4
    assert [future.exception() or future.result() for future in futures if future.exception() is None] == users(db)[:-1]


def test_when_the_commit_fails_all_of_its_group_hear_so(desk, db, writer):
    futures = together(desk, writer, adding(1), break_commit, adding(3))
    assert all(isinstance(future.exception(), FAILURES) for future in futures)
    assert len({id(future.exception()) for future in futures}) == 1
    assert users(db) == []
    wait_for(lambda: not writer.submit(adding(4)).exception(SECONDS))  # PostgreSQL's session is made anew meanwhile
    assert users(db) == [4]


def test_a_commit_that_fails_is_the_outcome_of_one_alone(db, writer):
    error = writer.submit(break_commit).exception(SECONDS)
    assert isinstance(error, FAILURES)
    assert "FOREIGN KEY constraint failed" in str(error) or "duplicate key" in str(error)
    assert writer.submit(adding(4)).result(SECONDS) == 4


def test_each_waits_five_seconds_for_the_lock(desk, db, writer, clock):
    with locked(desk):
        first = writer.submit(adding(1))
        clock.advance(WRITE_SECONDS - 1)
        second = writer.submit(adding(2))
        assert not first.done()
        clock.advance(1)
        assert isinstance(first.exception(SECONDS), DeskBusy)
        assert first.exception().status == 503
        assert not second.done()
    assert second.result(SECONDS) == 2
    assert users(db) == [2]


def test_a_transaction_takes_a_bounded_number(desk, db, writer):
    groups = []

    def operation(connection):
        groups.append(ticketapi.get_data_version(connection) if writer._waiting else None)

    together(desk, writer, *[adding(number) for number in range(1, GROUP + 1)], *[operation] * (2 * GROUP + 10))
    assert len(users(db)) == GROUP
    assert groups.count(None) == 10  # the last transaction
    assert len(groups) == 2 * GROUP + 10


def test_even_what_is_no_exception_is_told_and_the_thread_goes_on(desk, db, writer):
    ending = SystemExit(3)
    futures = together(desk, writer, adding(1), adding(2, ending), adding(3))
    assert [future.exception() or future.result() for future in futures] == [1, ending, 3]
    assert writer.submit(adding(4)).result(SECONDS) == 4
    assert users(db) == [1, 3, 4]


def test_a_callback_that_fails_holds_up_nobody(desk, db, writer):
    futures = []
    with locked(desk):
        futures += [writer.submit(adding(number)) for number in (1, 2)]
        futures[0].add_done_callback(lambda future: 1 / 0)
    wait(futures, SECONDS)
    assert writer.submit(adding(3)).result(SECONDS) == 3


def test_what_was_taken_is_finished_at_the_end_and_no_more_is_taken(desk, db, writer):
    with locked(desk):
        future = writer.submit(adding(1))
        ending = threading.Thread(target=writer.close, args=(SECONDS,))
        ending.start()
        wait_for(lambda: writer._closing)
        late = writer.submit(adding(2))
        assert isinstance(late.exception(0), DeskBusy)
        assert not future.done()
    ending.join(SECONDS)
    assert future.result(0) == 1
    assert users(db) == [1]


def test_without_a_first_write_there_is_no_thread(desk, db, clock):
    before = threading.active_count()
    writer = ticketapi.Writer(desk, clock)
    assert threading.active_count() == before
    writer.close(1)


def test_an_operation_can_be_done_at_once(db, writer):
    assert writer.run(adding(1)) == 1
    with pytest.raises(ticketapi.NotFound):
        writer.run(adding(2, ticketapi.NotFound("gone")))
    assert users(db) == [1]


def test_what_is_submitted_together_is_one_transaction_though_nobody_holds_the_lock(desk, db, writer):
    calls = []
    futures = [writer.submit(adding(number), calls.append) for number in (1, 2, 3)]
    futures.append(writer.submit(lambda connection: users(db), calls.append))  # what another connection sees meanwhile
    assert not any(future.done() for future in futures)
    for call in calls:
        call()
    assert futures[-1].result(SECONDS) == []
    assert users(db) == [1, 2, 3]


def test_operations_of_a_kind_that_came_together_are_done_in_one_go(desk, db, writer):
    goes = []

    def add(connection, numbers):
        goes.append(list(numbers))
        return [adding(number)(connection) for number in numbers]

    joint = [ticketapi.Joint(add, number) for number in (1, 2, 3, 4)]
    futures = together(desk, writer, joint[0], joint[1], adding(7), joint[2], joint[3])
    assert [future.result() for future in futures] == [1, 2, 7, 3, 4]
    assert goes == [[1, 2], [3, 4]]
    assert writer.run(ticketapi.Joint(add, 5)) == 5


def test_when_one_of_a_kind_fails_the_others_are_done(desk, db, writer):
    def add(connection, numbers):
        return [adding(number, *[ValueError("odd")] * (number % 2))(connection) for number in numbers]

    futures = together(desk, writer, *[ticketapi.Joint(add, number) for number in (2, 3, 4)])
    assert [str(future.exception() or future.result()) for future in futures] == ["2", "odd", "4"]
    assert users(db) == [2, 4]
