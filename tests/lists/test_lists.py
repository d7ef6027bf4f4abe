"""Every page of every list is what a plain ORDER BY ... LIMIT ... OFFSET query over the same file says, byte for byte of it."""

import json
import sqlite3
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import NOON, SECOND, close_out_of_order, examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ticketapi

DAY = 86_400
BASE = "http://desk.test"

COLUMNS = """
    SELECT tickets.id, subject, content, status, tickets.created_at, updated_at, user_id, name, email
    FROM tickets JOIN users ON users.id = user_id
"""
OPEN = "WHERE status = 1 ORDER BY tickets.created_at, tickets.id"
CLOSED = "WHERE status = 2 ORDER BY closed_at DESC, tickets.id DESC"
OF_A_USER = "WHERE user_id = {} ORDER BY tickets.created_at DESC, tickets.id DESC"


class Desk(NamedTuple):
    """A desk in a file: the connection that writes, the one that requests read with, and one that knows nothing of us."""

    db: sqlite3.Connection
    reader: sqlite3.Connection
    plain: sqlite3.Connection


@contextmanager
def new_desk():
    """Open a desk in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "desk.db")
        with (
            closing(ticketapi.open_database(path, "desk")) as db,
            closing(ticketapi.connect(path, ticketapi.READER)) as reader,
            closing(sqlite3.connect(path)) as plain,
        ):
            yield Desk(db, reader, plain)


@pytest.fixture
def busy():
    """A desk of 120 tickets, 30 of them closed, the last ten out of order."""
    with new_desk() as desk:
        ticketapi.generate_tickets(desk.db, 120, NOON, 1)
        ticketapi.process_tickets(desk.db, 20, NOON + SECOND)
        close_out_of_order(desk.db, range(100, 50, -5), NOON + 2 * SECOND)
        yield desk


def open_ids(desk):
    """Return the ids of the open tickets."""
    return [row[0] for row in desk.plain.execute("SELECT id FROM tickets WHERE status = 1 ORDER BY id")]


def authors(desk):
    """Return the ids of the users who wrote."""
    return [row[0] for row in desk.plain.execute("SELECT DISTINCT user_id FROM tickets ORDER BY user_id")]


# The judge ---------------------------------------------------------------------------------------


def resource(row):
    """Return a ticket as the API shows it, from a row of COLUMNS."""
    ticket_id, subject, content, status, created_at, updated_at, user_id, name, email = row
    return {
        "id": ticket_id,
        "subject": subject,
        "content": content,
        "status": {1: "Open", 2: "Closed"}[status],
        "status_id": status,
        "created_at": created_at,
        "updated_at": updated_at,
        "user": {"id": user_id, "name": name, "email": email},
    }


def query(desk, order, limit=-1, offset=0):
    """Return what a plain query says of a part of a list."""
    return [resource(row) for row in desk.plain.execute(f"{COLUMNS} {order} LIMIT ? OFFSET ?", (limit, offset))]


def lists(desk):
    """Yield every list of a desk: the function that renders it, its path, and its order in SQL."""
    yield ticketapi.open_tickets_page, "/api/tickets/open", OPEN
    yield ticketapi.closed_tickets_page, "/api/tickets/closed", CLOSED
    for user_id in authors(desk):
        path = f"/api/users/{user_id}/tickets"
        yield (
            lambda db, asked, user_id=user_id: ticketapi.user_tickets_page(db, user_id, asked),
            path,
            OF_A_USER.format(user_id),
        )


def check_page(desk, listed, page, per_page, total):
    """Compare one page with the query: tickets, their fields, the fields' order and types, and the counts."""
    show, path, order = listed
    answer = json.loads(show(desk.reader, ticketapi.ListRequest(BASE + path, page, per_page, True)))
    offset = (page - 1) * per_page
    expected = query(desk, order, per_page, offset)
    assert json.dumps(answer["data"]) == json.dumps(expected)
    meta = answer["meta"]
    assert (meta["total"], meta["last_page"]) == (total, max(1, -(-total // per_page)))
    assert (meta["from"], meta["to"]) == ((offset + 1, offset + len(expected)) if expected else (None, None))
    assert (meta["next_cursor"] is not None) is (0 < len(expected) < total - offset)


def check_every_page(desk, per_page):
    """Compare every page of every list, and the one past its end."""
    for listed in lists(desk):
        total = len(query(desk, listed[2]))
        for page in range(1, max(1, -(-total // per_page)) + 2):
            check_page(desk, listed, page, per_page, total)


# Whatever happened before ------------------------------------------------------------------------

clocks = st.sampled_from([0, 0, -1, -3600, 1, DAY, 30 * DAY])
steps = st.one_of(
    st.tuples(st.just("generate"), clocks, st.integers(1, 40)),
    st.tuples(st.just("history"), clocks, st.integers(1, 40)),
    st.tuples(st.just("process"), clocks, st.integers(0, 30)),
    st.tuples(st.just("close"), clocks, st.lists(st.integers(0, 200), min_size=1, max_size=12, unique=True)),
    st.tuples(st.just("tie"), clocks, st.sampled_from([19, 16, 10])),
)


def take(desk, step, now):
    """Do one thing to a desk; `what` says how much of it, or which."""
    kind, _, what = step
    if kind == "generate":
        ticketapi.generate_tickets(desk.db, what, now, 1)
    elif kind == "history":
        with suppress(ticketapi.TicketApiError):  # there are newer tickets already
            ticketapi.generate_history(desk.db, what, DAY, now, 1)
    elif kind == "process":
        ticketapi.process_tickets(desk.db, what, now)
    elif kind == "close":
        waiting = open_ids(desk)
        close_out_of_order(desk.db, [waiting[index] for index in what if index < len(waiting)], now)
    else:  # all tickets of one second, minute or day came at once
        text = "0000-00-00T00:00:00.000000Z"
        desk.db.execute("UPDATE tickets SET created_at = substr(created_at, 1, ?) || ?", (what, text[what:]))


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=9), st.sampled_from([1, 2, 3, 7, 10, 50, 200]))
@example([("generate", 0, 20), ("close", 0, [3, 1, 2]), ("generate", 0, 5), ("close", -1, [0])], 1)
@example([("generate", 0, 20), ("tie", 0, 10), ("close", 0, [19, 0]), ("process", 0, 5)], 3)
@example([("generate", 0, 20), ("close", DAY, [7]), ("process", -3600, 30), ("history", 30 * DAY, 40)], 7)
def test_every_page_is_what_a_plain_query_says(taken, per_page):
    now = NOON
    with new_desk() as desk:
        for step in taken:
            now += step[1] * SECOND
            take(desk, step, now)
        check_every_page(desk, per_page)


@pytest.mark.parametrize("per_page", [1, 7, 13, 50, 89, 90, 91, 199, 200])
def test_gaps_in_the_open_queue_move_no_ticket_to_another_page(busy, per_page):
    check_every_page(busy, per_page)


@pytest.mark.parametrize("page", [3, 10**6, ticketapi.MAX_PAGE])
def test_far_past_the_end_there_is_nothing(busy, page):
    for listed in lists(busy):
        check_page(busy, listed, page, 200, len(query(busy, listed[2])))


def test_an_empty_desk_has_empty_lists():
    with new_desk() as desk:
        check_every_page(desk, 50)


def test_a_desk_whose_tickets_are_all_closed_has_no_open_ones(busy):
    ticketapi.process_tickets(busy.db, 1000, NOON)
    assert open_ids(busy) == []
    check_every_page(busy, 7)


# Text is shown as it is --------------------------------------------------------------------------

AWKWARD = [
    "",
    " ",
    '"',
    "\\",
    '\\"',
    "\\u0041",
    "/</script>",
    "".join(map(chr, range(32))),
    "\x00",
    "a\x00b",
    "\x7f\x80\x9f\xa0\xad",
    "Zoë Łódź",
    "😀👩‍👩‍👧",
    "\u2028\u2029",
    "\ufeff\ufffd\uffff\U0010ffff",
    "e\u0301\u202e",
    "'; DROP TABLE tickets; --",
    "],[{},",
    "null",
    "{}",
    "x" * 100_000,
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def write_texts(desk, subject, content, name, email):
    """Put texts into the oldest, a middle and the newest ticket and their authors, past all our code."""
    with desk.plain:
        for ticket_id in (1, 55, 120):
            desk.plain.execute("UPDATE tickets SET subject = ?, content = ? WHERE id = ?", (subject, content, ticket_id))
        [author] = desk.plain.execute("SELECT user_id FROM tickets WHERE id = 55").fetchone()
        desk.plain.execute("UPDATE users SET name = ?, email = ? WHERE id = ?", (name, email, author))
        desk.plain.execute("UPDATE tickets SET user_name = ?, user_email = ? WHERE user_id = ?", (name, email, author))


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:20]))
def test_awkward_text_is_shown_as_it_is(busy, text):
    write_texts(busy, text, text, text, text)
    check_every_page(busy, 50)


def test_any_text_is_shown_as_it_is(busy):
    @settings(max_examples=examples(50), deadline=None, database=None)
    @given(st.tuples(texts, texts, texts, texts))
    def check(written):
        write_texts(busy, *written)
        for listed in list(lists(busy))[:2]:
            check_page(busy, listed, 1, 200, len(query(busy, listed[2])))

    check()
