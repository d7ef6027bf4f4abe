"""PATCH and PUT of a ticket: what changes, what stays, in which order tickets are closed and opened again."""

from urllib.parse import urlencode

import pytest
from conftest import NOON, SECOND, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing import FORM, NEW, create, errors_of, events, problems, state

import ticketapi

TICKET = "/api/tickets/1"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def ticket(api, pen):
    """A ticket that is there."""
    return create(api, pen)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_what_is_given_changes_and_the_rest_stays(api, pen, clock, ticket, method):
    clock.advance(60)
    answer = api.send(method, TICKET, {"subject": " New "}, token=pen)
    assert answer.status == 200
    assert answer.json == {"data": ticket | {"subject": "New", "updated_at": "2025-12-04T12:01:00.000000Z"}}
    shown = api.get(TICKET, token=pen)
    assert (answer.body, answer.headers["etag"]) == (shown.body, shown.headers["etag"])
    assert "location" not in answer.headers
    answer = api.send(method, TICKET, {"content": "More", "subject": None}, token=pen)
    assert (answer.json["data"]["subject"], answer.json["data"]["content"]) == ("New", "More")
    assert answer.json["data"]["updated_at"] == "2025-12-04T12:01:00.000001Z"  # while the clock stands still


@pytest.mark.parametrize(
    "fields",
    [{}, {"subject": None}, {"status": "Open"}, {"status": 1}, {"subject": " No sound "}, NEW | {"status": "1"}, {"id": 9}],
)
def test_what_changes_nothing_is_no_change(api, db, pen, clock, ticket, fields):
    before = state(db)
    clock.advance(60)
    answer = api.send("PATCH", TICKET, fields, token=pen)
    assert (answer.status, answer.json) == (200, {"data": ticket})
    assert answer.headers["etag"] == api.get(TICKET, token=pen).headers["etag"]
    assert state(db) == before


@pytest.mark.parametrize(("closed", "opened"), [("Closed", "Open"), (2, 1), ("2", "1")])
def test_a_ticket_is_closed_and_opened_again(api, db, pen, clock, ticket, closed, opened):
    clock.advance(60)
    answer = api.send("PATCH", TICKET, {"status": closed, "subject": "Done"}, token=pen)
    data = answer.json["data"]
    assert (data["status"], data["status_id"], data["subject"]) == ("Closed", 2, "Done")
    assert data["updated_at"] == "2025-12-04T12:01:00.000000Z"
    assert api.get("/api/tickets/export", token=pen).json["data"][0]["closed_at"] == data["updated_at"]
    assert api.get("/api/stats", token=pen).json["most_recent_processed_at"] == "2025-12-04 12:01:00"
    clock.advance(60)
    data = api.send("PATCH", TICKET, {"status": opened}, token=pen).json["data"]
    assert data == ticket | {"subject": "Done", "updated_at": "2025-12-04T12:02:00.000000Z"}
    assert api.get("/api/tickets/export", token=pen).json["data"][0]["closed_at"] is None
    stats = api.get("/api/stats", token=pen).json
    assert (stats["total_unprocessed_tickets"], stats["most_recent_processed_at"]) == (1, None)
    assert events(db) == [("ticket.created", 1), ("ticket.closed", 2), ("ticket.reopened", 3)]


def test_a_closed_ticket_can_be_changed_and_stays_where_it_is_closed(api, pen, clock, ticket):
    create(api, pen)
    for number in (1, 2):
        clock.advance(60)
        api.send("PATCH", f"/api/tickets/{number}", {"status": "Closed"}, token=pen)
    clock.advance(60)
    changed = api.send("PATCH", TICKET, {"content": "P.S."}, token=pen).json["data"]
    assert (changed["status"], changed["updated_at"]) == ("Closed", "2025-12-04T12:03:00.000000Z")
    assert [found["id"] for found in api.get("/api/tickets/closed", token=pen).json["data"]] == [2, 1]
    assert api.get("/api/stats", token=pen).json["most_recent_processed_at"] == "2025-12-04 12:02:00"


@settings(max_examples=examples(24), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from(["Open", "Closed", "delete"])), max_size=30))
def test_tickets_are_closed_opened_and_deleted_in_any_order(api, db, pen, clock, steps):
    first = db.execute("SELECT coalesce(max(id), 0) FROM tickets").fetchone()[0]
    for left in api.get("/api/tickets?per_page=200", token=pen).json["data"]:  # of the example before
        api.request("DELETE", f"/api/tickets/{left['id']}", token=pen)
    waiting, closed, gone = [create(api, pen)["id"] for _ in range(8)], [], []
    for number, step in steps:
        clock.advance(1)
        ticket_id = first + number
        if step == "delete":
            answer = api.request("DELETE", f"/api/tickets/{ticket_id}", token=pen)
            assert answer.status == (404 if ticket_id in gone else 204)
        else:
            answer = api.send("PATCH", f"/api/tickets/{ticket_id}", {"status": step}, token=pen)
            assert answer.status == (404 if ticket_id in gone else 200)
        target = {"Open": waiting, "Closed": closed, "delete": gone}[step]
        if ticket_id not in [*target, *gone]:
            (waiting if ticket_id in waiting else closed).remove(ticket_id)
            target.append(ticket_id)
    lists = {"open": sorted(waiting), "closed": closed[::-1]}
    for name, ids in lists.items():
        page = api.get(f"/api/tickets/{name}?per_page=200", token=pen).json
        assert ([ticket["id"] for ticket in page["data"]], page["meta"]["total"]) == (ids, len(ids))
    everything = api.get("/api/tickets?per_page=200", token=pen).json["data"]
    assert [ticket["id"] for ticket in everything] == sorted([*waiting, *closed])
    user = api.get(f"/api/users/{ticketapi.FIRST_BROUGHT_ID}/tickets?per_page=200", token=pen).json
    assert [ticket["id"] for ticket in user["data"]] == sorted([*waiting, *closed], reverse=True)
    stats = api.get("/api/stats", token=pen).json
    assert (stats["total_tickets"], stats["total_unprocessed_tickets"]) == (len(waiting) + len(closed), len(waiting))
    assert problems(db) == []


def test_those_that_wait_longest_are_closed_first_opened_ones_too(api, db, pen, clock):
    for _ in range(4):
        create(api, pen)
    api.send("PATCH", "/api/tickets/2", {"status": "Closed"}, token=pen)
    api.send("PATCH", "/api/tickets/1", {"status": "Closed"}, token=pen)
    api.send("PATCH", "/api/tickets/2", {"status": "Open"}, token=pen)
    assert ticketapi.process_tickets(db, 2, clock.wall()) == [2, 3]


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_done(api, db, pen, ticket):
    before = state(db)
    answer = api.send("PATCH", TICKET, {"subject": "", "content": "x" * 10_001, "status": "open"}, token=pen)
    assert errors_of(answer) == {
        "subject": ["The subject field is required."],
        "content": ["The content field must not be greater than 10000 characters."],
        "status": ["The selected status is invalid."],
    }
    errors_of(api.send("PATCH", TICKET, {"subject": "fine", "status": 3}, token=pen))
    assert state(db) == before


@pytest.mark.parametrize(
    "status", [0, 3, -1, 1.5, True, False, "", "open", "CLOSED", " 1", [], [1], {}, {"a": 1}, 10**30, "1" * 25]
)
def test_what_is_no_status_is_refused(api, db, pen, ticket, status):
    answer = api.send("PATCH", TICKET, {"status": status}, token=pen)
    assert errors_of(answer) == {"status": ["The selected status is invalid."]}


def test_a_form_changes_it_too(api, pen, ticket):
    body = urlencode({"status": "2", "subject": "Done"}).encode()
    answer = api.request("PATCH", TICKET, token=pen, headers=FORM, body=body)
    assert (answer.status, answer.json["data"]["status"], answer.json["data"]["subject"]) == (200, "Closed", "Done")


@pytest.mark.parametrize("ticket_id", ["2", "9" * 18])
def test_a_ticket_that_is_not_there_is_not_found(api, db, pen, ticket, ticket_id):
    before = state(db)
    for method in ("PATCH", "PUT", "DELETE"):
        answer = api.send(method, f"/api/tickets/{ticket_id}", {"subject": "x"}, token=pen)
        assert (answer.status, answer.json) == (404, {"message": f"There is no ticket with the id {ticket_id}."})
    assert state(db) == before


def test_the_author_of_a_ticket_stays(api, pen, ticket):
    changed = api.send("PATCH", TICKET, {"user": {"name": "B", "email": "b@example.com"}, "user_id": 1}, token=pen)
    assert changed.json["data"] == ticket


def test_times_do_not_go_back_with_the_clock(api, pen, clock, ticket):
    clock.now -= 3600 * SECOND
    assert api.send("PATCH", TICKET, {"subject": "a"}, token=pen).json["data"]["updated_at"] == ticketapi.format_time(NOON + 1)
    closed = api.send("PATCH", TICKET, {"status": 2}, token=pen).json["data"]
    assert closed["updated_at"] == ticketapi.format_time(NOON + 2)
    opened = api.send("PATCH", TICKET, {"status": 1}, token=pen).json["data"]
    assert opened["updated_at"] == ticketapi.format_time(NOON + 3)
