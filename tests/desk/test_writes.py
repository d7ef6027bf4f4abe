"""What people change, one ticket at a time: rows, counters, hours, blocks, events and change numbers go together."""

import json
from contextlib import closing
from itertools import pairwise

import pytest
from conftest import NOON, SECOND, close_out_of_order, create_ticket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ticketapi
from ticketapi import CLOSED, OPEN, format_time

LATER = NOON + 3600 * SECOND
MINUTE = 60 * SECOND


def row(db, ticket_id):
    """Return all columns of a ticket."""
    return dict(db.execute("SELECT * FROM tickets WHERE id = ?", (ticket_id,)).fetchone())


def events(db, after=0):
    """Return the events after a change number, one by one, as (change, type, ticket, time of the row)."""
    rows = ticketapi.list_event_rows(db, after, 10**6)
    found = []
    for first, last, kind, at, ids, _ in map(tuple, rows):
        assert len(json.loads(ids)) == last - first + 1
        found += [(first + i, kind, ticket_id, at) for i, ticket_id in enumerate(json.loads(ids)) if first + i > after]
    return found


def everything(db):
    """Return all rows of a desk, by table."""
    return {
        table: sorted((tuple(row) for row in db.execute(f"SELECT * FROM {table}").fetchall()), key=repr)
        for table in ticketapi.TABLES["desk"]
    }


def stats(db):
    """Return the counters of open and closed tickets, and those by the hour that are not zero."""
    hours = [[entry for entry in read(db, "") if entry[-1]] for read in (ticketapi.list_arrivals, ticketapi.list_closings)]
    return ticketapi.count_tickets(db, OPEN), ticketapi.count_tickets(db, CLOSED), *hours


@pytest.fixture(autouse=True)
def sound(request):
    """After each test that has a desk, its counters are what its rows say, and its times are in order."""
    db = request.getfixturevalue("db")
    yield
    assert ticketapi.counter_problems(db) == []
    with ticketapi.snapshot(db):
        assert ticketapi.order_problems(db) == []


@pytest.fixture
def ten(db):
    """A desk with ten tickets, of which three are closed; returns the last change number."""
    ticketapi.generate_tickets(db, 10, NOON, 1)
    ticketapi.process_tickets(db, 3, NOON + 10 * SECOND)
    return ticketapi.find_last_change(db)


# Creating ----------------------------------------------------------------------------------------


def test_a_ticket_of_a_new_customer(db, ten):
    ticket_id = create_ticket(db, ("Ann", "ann@example.com"), "Subject", "Content", LATER)
    found = row(db, ticket_id)
    assert ticket_id == 11
    assert found == {
        "id": 11,
        "user_id": ticketapi.FIRST_BROUGHT_ID,
        "user_number": 1,
        "user_name": "Ann",
        "user_email": "ann@example.com",
        "subject": "Subject",
        "content": "Content",
        "status": OPEN,
        "created_at": format_time(LATER),
        "updated_at": format_time(LATER),
        "closed_at": None,
        "closed_number": None,
        "change": ten + 1,
        "deleted_at": None,
    }
    assert events(db, ten) == [(ten + 1, "ticket.created", 11, format_time(LATER))]
    assert stats(db)[:2] == (8, 3)
    assert stats(db)[2] == [("2025-12-04T12", 10), ("2025-12-04T13", 1)]


def test_a_known_address_keeps_its_customer_and_name_whatever_its_case(db):
    first = create_ticket(db, ("Ann", "Ann@Example.com"), "s", "c", NOON)
    again = create_ticket(db, ("Somebody Else", "aNN@example.COM"), "s", "c", NOON)
    rows = [row(db, ticket_id) for ticket_id in (first, again)]
    assert [(found["user_id"], found["user_name"], found["user_number"]) for found in rows] == [
        (ticketapi.FIRST_BROUGHT_ID, "Ann", 1),
        (ticketapi.FIRST_BROUGHT_ID, "Ann", 2),
    ]
    assert ticketapi.get_counter(db, "customers") == 1


def test_the_address_of_an_owner_of_a_token_makes_a_customer(db):
    owner = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)["user_id"]
    ticket = create_ticket(db, ("Ann", "ann@example.com"), "s", "c", NOON)
    assert row(db, ticket)["user_id"] == ticketapi.FIRST_BROUGHT_ID != owner


def test_brought_customers_get_ids_above_those_made_up_which_stay_as_they_are(db):
    create_ticket(db, ("Ann", "ann@example.com"), "s", "c", NOON)
    create_ticket(db, ("Bob", "bob@example.com"), "s", "c", NOON)
    ticketapi.generate_tickets(db, 300, NOON, 1)
    ids = [user_id for (user_id,) in db.execute("SELECT id FROM users ORDER BY id").fetchall()]
    made_up = ids[:-2]
    assert made_up == list(range(1, len(made_up) + 1))
    assert ids[-2:] == [ticketapi.FIRST_BROUGHT_ID, ticketapi.FIRST_BROUGHT_ID + 1]
    assert ticketapi.get_counter(db, "customers") == len(ids)


def test_a_ticket_of_a_customer_by_id(db, ten):
    before = ticketapi.find_user(db, 1)
    ticket_id = create_ticket(db, 1, "s", "c", NOON)
    after = ticketapi.find_user(db, 1)
    assert (after["tickets_count"], after["last_number"]) == (before["tickets_count"] + 1, before["last_number"] + 1)
    assert row(db, ticket_id)["user_number"] == after["last_number"]


def test_arrivals_grow_although_the_clock_stands_still_or_goes_back(db):
    ids = [create_ticket(db, ("Ann", "a@x"), "s", "c", now) for now in (NOON, NOON, NOON - 5 * SECOND, NOON + 1)]
    assert [row(db, ticket_id)["created_at"] for ticket_id in ids] == [format_time(NOON + i) for i in range(4)]


def test_tickets_made_together_are_those_made_one_by_one(db, desk, tmp_path):
    tickets = [(("Ann", "a@x"), "s", "c", NOON), (("Bob", "b@x"), "t", "d", NOON - SECOND), (("Ann", "A@x"), "u", "e", NOON)]
    with closing(ticketapi.open_database(tmp_path / "other.db", "desk")) as other:
        for ticket in tickets:
            create_ticket(other, *ticket)
        assert list(ticketapi.create_tickets(db, tickets)) == [1, 2, 3]
        single = everything(other)
    together = everything(db)
    assert together.pop("events") != single.pop("events")  # one row instead of three, which tells the same:
    assert events(db) == [(i, "ticket.created", i, format_time(NOON)) for i in (1, 2, 3)]
    assert together == single


def test_after_the_newest_was_deleted_id_number_and_time_go_on(db, ten):
    user_id = row(db, 10)["user_id"]
    last = row(db, 10)
    ticketapi.delete_ticket(db, 10, NOON)
    again = row(db, create_ticket(db, user_id, "s", "c", NOON))
    assert again["id"] == 11
    assert again["user_number"] == last["user_number"] + 1
    assert again["created_at"] > last["created_at"]


# Editing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticket_id", [1, 10])
@pytest.mark.parametrize("changes", [{"subject": "New"}, {"content": "New"}, {"subject": "New", "content": "New too"}])
def test_texts_are_changed_and_nothing_else(db, ten, ticket_id, changes):
    before, figures = row(db, ticket_id), stats(db)
    ticketapi.update_ticket(db, ticket_id, changes, LATER)
    assert row(db, ticket_id) == before | changes | {"updated_at": format_time(LATER), "change": ten + 1}
    assert events(db, ten) == [(ten + 1, "ticket.updated", ticket_id, format_time(LATER))]
    assert stats(db) == figures


@pytest.mark.parametrize("ticket_id", [1, 10])
def test_what_is_so_already_is_no_change_and_writes_nothing(db, ten, ticket_id):
    ticket = row(db, ticket_id)
    before = everything(db)
    for names in ((), ("subject",), ("content", "status"), ("subject", "content", "status")):
        ticketapi.update_ticket(db, ticket_id, {name: ticket[name] for name in names}, LATER)
    assert everything(db) == before


def test_updated_at_is_now_but_always_grows(db, ten):
    before = ticketapi.parse_time(row(db, 10)["updated_at"])
    for count, now in enumerate((before, before - SECOND, NOON - 100 * SECOND), 1):
        ticketapi.update_ticket(db, 10, {"subject": f"{count}"}, now)
        assert row(db, 10)["updated_at"] == format_time(before + count)
    ticketapi.update_ticket(db, 10, {"subject": "now"}, LATER)
    assert row(db, 10)["updated_at"] == format_time(LATER)


# Closing and reopening ---------------------------------------------------------------------------


def test_tickets_are_closed_in_any_order_beside_process(db, ten):
    order = [7, 5, 4, 6, 10]
    ticketapi.update_ticket(db, 7, {"status": CLOSED}, LATER)
    ticketapi.update_ticket(db, 5, {"status": CLOSED}, LATER)
    assert ticketapi.process_tickets(db, 2, LATER) == [4, 6]
    ticketapi.update_ticket(db, 10, {"status": CLOSED}, LATER)
    rows = [row(db, ticket_id) for ticket_id in order]
    assert [found["closed_number"] for found in rows] == [4, 5, 6, 7, 8]
    assert [found["closed_at"] for found in rows] == [format_time(LATER + i) for i in range(5)]
    assert all(found["updated_at"] == found["closed_at"] for found in rows)
    assert [found["change"] for found in rows] == [ten + 1 + i for i in range(5)]
    assert [event[:3] for event in events(db, ten)] == [(ten + 1 + i, "ticket.closed", order[i]) for i in range(5)]
    assert stats(db)[:2] == (2, 8)
    assert ticketapi.process_tickets(db, 10, LATER) == [8, 9]


def test_closing_with_new_texts_is_one_change(db, ten):
    ticketapi.update_ticket(db, 5, {"status": CLOSED, "subject": "New", "content": "Text"}, LATER)
    found = row(db, 5)
    assert (found["subject"], found["content"], found["status"], found["change"]) == ("New", "Text", CLOSED, ten + 1)
    assert found["closed_at"] == found["updated_at"] == format_time(LATER)
    assert [event[1] for event in events(db, ten)] == ["ticket.closed"]


def test_reopening_takes_the_closing_out_of_its_hour_and_of_the_figures(db, ten):
    ticketapi.update_ticket(db, 8, {"status": CLOSED}, LATER)
    before, created = stats(db), row(db, 8)["created_at"]
    assert ticketapi.desk_stats(db)["most_recent_processed_at"] == "2025-12-04 13:00:00"
    ticketapi.update_ticket(db, 8, {"status": OPEN}, LATER + SECOND)
    found, after = row(db, 8), stats(db)
    assert ticketapi.desk_stats(db)["most_recent_processed_at"] == "2025-12-04 12:00:10"
    assert (found["status"], found["closed_at"], found["closed_number"], found["created_at"]) == (OPEN, None, None, created)
    assert found["updated_at"] == format_time(LATER + SECOND)
    assert [event[:3] for event in events(db, ten)] == [(ten + 1, "ticket.closed", 8), (ten + 2, "ticket.reopened", 8)]
    assert before[:2] == (6, 4)
    assert after[:2] == (7, 3)
    assert after[2] == before[2]
    assert [entry for entry in before[3] if entry not in after[3]] == [("2025-12-04T13", 3600, 1)]


def test_reopening_with_new_texts_is_one_change(db, ten):
    ticketapi.update_ticket(db, 2, {"status": OPEN, "subject": "Again"}, LATER)
    assert (row(db, 2)["subject"], row(db, 2)["status"], row(db, 2)["change"]) == ("Again", OPEN, ten + 1)
    assert [event[1] for event in events(db, ten)] == ["ticket.reopened"]


def test_a_number_of_a_closing_is_not_given_again(db, ten):
    for number in (4, 5, 6):
        ticketapi.update_ticket(db, 9, {"status": CLOSED}, LATER)
        assert row(db, 9)["closed_number"] == number
        ticketapi.update_ticket(db, 9, {"status": OPEN}, LATER)
    assert ticketapi.get_counter(db, "closed_number") == 6


def test_a_reopened_ticket_is_the_oldest_again_and_closed_later_than_before(db, ten):
    first = row(db, 1)["closed_at"]
    ticketapi.update_ticket(db, 1, {"status": OPEN}, NOON)
    reopened = row(db, 1)["updated_at"]
    assert ticketapi.process_tickets(db, 1, NOON) == [1]
    assert first < reopened < row(db, 1)["closed_at"]


@pytest.mark.parametrize("back", [0, 1, 3600 * SECOND])
def test_closing_times_grow_over_the_desk_whatever_the_clock_says(db, ten, back):
    for count, ticket_id in enumerate((9, 4, 7)):
        ticketapi.update_ticket(db, ticket_id, {"status": CLOSED}, LATER - count * back)
    times = [row(db, ticket_id)["closed_at"] for ticket_id in (1, 2, 3, 9, 4, 7)]
    assert times == sorted(set(times))


# Deleting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ticket_id", "status", "left"), [(2, CLOSED, (7, 2)), (8, OPEN, (6, 3))])
def test_a_deleted_ticket_leaves_lists_and_counters_and_keeps_its_row(db, ten, ticket_id, status, left):
    before, user = row(db, ticket_id), ticketapi.find_user(db, row(db, ticket_id)["user_id"])
    ticketapi.delete_ticket(db, ticket_id, LATER)
    at = format_time(LATER)
    gone = {"status": -status, "deleted_at": at, "updated_at": at, "change": ten + 1}
    assert row(db, ticket_id) == before | gone | {"user_number": None, "closed_number": None}
    assert events(db, ten) == [(ten + 1, "ticket.deleted", ticket_id, at)]
    after = ticketapi.find_user(db, user["id"])
    assert (after["tickets_count"], after["last_number"]) == (user["tickets_count"] - 1, user["last_number"])
    assert stats(db)[:2] == left
    assert sum(count for _, count in stats(db)[2]) == 9
    assert sum(count for *_, count in stats(db)[3]) == left[1]


@pytest.mark.parametrize("ticket_id", [2, 8, 99, 10**17])
def test_what_is_not_there_any_more_is_not_found_and_nothing_is_written(db, ten, ticket_id):
    owner = ticketapi.create_token(db, "a@x", "t", ["*"], 0, NOON)["user_id"]
    if ticket_id < 11:
        ticketapi.delete_ticket(db, ticket_id, LATER)
    before = everything(db)
    for operation in (
        lambda: ticketapi.delete_ticket(db, ticket_id, LATER),
        lambda: ticketapi.update_ticket(db, ticket_id, {"status": OPEN}, LATER),
        lambda: ticketapi.add_comment(db, ticket_id, owner, "c", LATER),
        lambda: ticketapi.get_ticket(db, ticket_id),
    ):
        with pytest.raises(ticketapi.NotFound, match=f"There is no ticket with the id {ticket_id}"):
            operation()
    assert everything(db) == before


def test_a_deleted_ticket_is_not_processed(db, ten):
    ticketapi.delete_ticket(db, 4, LATER)
    assert ticketapi.process_tickets(db, 2, LATER) == [5, 6]


def test_all_tickets_can_be_deleted_and_the_desk_goes_on(db, ten):
    for ticket_id in range(1, 11):
        ticketapi.delete_ticket(db, ticket_id, LATER)
    assert stats(db) == (0, 0, [], [])
    assert ticketapi.desk_stats(db)["top_user"] is None
    ticketapi.generate_tickets(db, 5, LATER, 1)
    assert ticketapi.process_tickets(db, 1, LATER) == [11]
    assert row(db, 11)["closed_number"] == 4


# Comments ----------------------------------------------------------------------------------------


def test_a_comment_takes_a_number_of_the_desk_and_leaves_its_ticket_alone(db, ten):
    owner = ticketapi.create_token(db, "agent@example.com", "t", ["*"], 0, NOON)["user_id"]
    before = [row(db, ticket_id) for ticket_id in (2, 8)]
    ids = [ticketapi.add_comment(db, ticket_id, owner, f"To {ticket_id}", LATER) for ticket_id in (8, 2, 8)]
    assert [row(db, ticket_id) for ticket_id in (2, 8)] == before
    rows = [tuple(found) for found in db.execute("SELECT * FROM comments ORDER BY id").fetchall()]
    at = format_time(LATER)
    assert rows == [(1, 8, 1, owner, "To 8", at), (2, 2, 1, owner, "To 2", at), (3, 8, 2, owner, "To 8", at)]
    assert ids == [1, 2, 3]
    assert [event[:3] for event in events(db, ten)] == [
        (ten + 1, "comment.created", 8),
        (ten + 2, "comment.created", 2),
        (ten + 3, "comment.created", 8),
    ]
    assert [found["comment_id"] for found in ticketapi.list_event_rows(db, ten, 10)] == [1, 2, 3]
    ticketapi.update_ticket(db, 8, {"subject": "x"}, LATER)
    assert row(db, 8)["change"] == ten + 4


def test_what_fails_within_a_transaction_takes_everything_back(db, ten):
    before = everything(db)
    with pytest.raises(ZeroDivisionError), ticketapi.transaction(db):
        create_ticket(db, ("Ann", "a@x"), "s", "c", LATER)
        ticketapi.update_ticket(db, 1, {"status": OPEN}, LATER)
        ticketapi.delete_ticket(db, 5, LATER)
        raise ZeroDivisionError
    assert everything(db) == before


# The log of changes ------------------------------------------------------------------------------


def test_a_batch_is_logged_in_rows_of_500(db):
    ticketapi.generate_tickets(db, 1201, NOON, 1)
    ticketapi.process_tickets(db, 700, LATER)
    rows = [tuple(found)[:4] for found in ticketapi.list_event_rows(db, 0, 100)]
    assert rows == [
        (1, 500, "ticket.created", format_time(NOON)),
        (501, 1000, "ticket.created", format_time(NOON + 500)),
        (1001, 1201, "ticket.created", format_time(NOON + 1000)),
        (1202, 1701, "ticket.closed", format_time(LATER)),
        (1702, 1901, "ticket.closed", format_time(LATER + 500)),
    ]
    assert [change for change, *_ in events(db)] == list(range(1, 1902))
    assert [ticket_id for _, _, ticket_id, _ in events(db)] == [*range(1, 1202), *range(1, 701)]
    assert [row(db, ticket_id)["change"] for ticket_id in (1, 700, 701, 1201)] == [1202, 1901, 701, 1201]


def test_a_row_tells_the_times_of_closings_that_are_not_a_microsecond_apart(db, ten):
    with ticketapi.transaction(db):
        tickets = ticketapi.list_oldest_open_tickets(db, 6)
        ticketapi.close_in_order(db, tickets, [LATER, LATER, LATER + 2, LATER + 9, LATER + 9, LATER + 9], LATER)
    (found,) = ticketapi.list_event_rows(db, ten, 100)
    assert tuple(found)[:4] == (ten + 1, ten + 6, "mixed", format_time(LATER))
    changes = list(ticketapi.row_changes(found))
    assert [at - LATER for _, _, _, at in changes] == [0, 1, 2, 9, 10, 11]
    for number, kind, ticket_id, at in changes:
        closed = row(db, ticket_id)
        assert (kind, closed["change"], closed["closed_at"]) == ("ticket.closed", number, format_time(at))


def test_a_history_is_logged_as_it_is_told(db):
    ticketapi.generate_history(db, 600, 86_400, LATER, 1)
    found = events(db)
    assert [(change, kind, ticket_id) for change, kind, ticket_id, _ in found] == [
        (n, "ticket.created", n) for n in range(1, 601)
    ]
    assert ticketapi.find_change_before(db, format_time(LATER)) == 0
    assert ticketapi.find_change_before(db, format_time(LATER + MINUTE)) == 600


def test_the_log_keeps_the_last_100_000_changes(db, monkeypatch):
    assert (ticketapi.EVENTS_KEPT, ticketapi.EVENTS_IN_A_ROW) == (100_000, 500)
    monkeypatch.setattr(ticketapi, "EVENTS_KEPT", 1000)
    for count in (700, 500, 1, 499, 1, 1, 3000, 2):
        ticketapi.generate_tickets(db, count, NOON, 1)
        first, last = ticketapi.find_event_ends(db)
        assert last == ticketapi.find_last_change(db) == ticketapi.newest_ticket(db)[0]
        assert first <= max(1, last - 999)
        assert last - first < 1000 + 2 * 500
        assert [change for change, *_ in events(db)] == list(range(first, last + 1))
    for after in (0, last - 1500, last - 700, last - 1, last):
        assert [change for change, *_ in events(db, after)] == list(range(max(after + 1, first), last + 1))


def test_a_change_number_is_not_given_again_when_its_ticket_is_changed_or_deleted(db, ten):
    owner = ticketapi.create_token(db, "agent@example.com", "t", ["*"], 0, NOON)["user_id"]
    ticketapi.delete_ticket(db, 10, LATER)
    ticketapi.add_comment(db, 9, owner, "c", LATER)
    create_ticket(db, 1, "s", "c", LATER)
    close_out_of_order(db, [8], LATER)
    changes = [change for change, *_ in events(db)]
    assert changes == list(range(1, ten + 5))
    numbers = [change for (change,) in db.execute("SELECT change FROM tickets").fetchall()]
    assert len(set(numbers)) == len(numbers) == 11


# When the desk was told --------------------------------------------------------------------------


@pytest.mark.files
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(-200 * SECOND, 200 * SECOND), st.integers(1, 3)), min_size=1, max_size=25), st.data())
def test_a_time_finds_a_change_never_late_and_up_to_a_minute_early(tmp_path_factory, steps, data):
    """While the clock goes forward it is a minute at most; when it goes back nothing is late all the same."""
    backwards = data.draw(st.booleans())
    with closing(ticketapi.connect(tmp_path_factory.mktemp("times") / "x.db", MAKER)) as db:
        ticketapi.create_schema(db, "desk")
        told, now = [], NOON
        for step, count in steps:
            now += step if backwards else abs(step)
            ticketapi.generate_tickets(db, count, now, 1)
            told += [now] * count
        moments = [
            moment + offset for moment in (*told, NOON) for offset in (-MINUTE, -1, 0, 1, MINUTE - 1, MINUTE, MINUTE + 1)
        ]
        for moment in moments:
            found = ticketapi.find_change_before(db, format_time(moment))
            assert all(change > found for change, at in enumerate(told, 1) if at >= moment)
            if not backwards and moment >= told[0]:
                assert all(change <= found for change, at in enumerate(told, 1) if at < moment - MINUTE)
        rows = [at for (at,) in db.execute("SELECT at FROM change_times ORDER BY at").fetchall()]
        times = list(map(ticketapi.parse_time, rows))
        assert all(later - earlier >= MINUTE for earlier, later in pairwise(times))


MAKER = ticketapi.Access(mode="mode=rwc", wal=False, synchronous=ticketapi.OFF)
