"""One ticket, the customers and one customer: the same objects as in lists, in the same envelopes."""

import contextlib

import pytest
from conftest import NOON, run_sql

import ticketapi


@pytest.fixture
def filled(db):
    """A desk with tickets of several customers, some of them closed, and an owner of tokens."""
    ticketapi.generate_tickets(db, 120, NOON, seed=7)
    ticketapi.process_tickets(db, 20, NOON)
    ticketapi.create_token(db, "clerk@example.com", "clerk", ["read:tickets"], 0, NOON)
    return db


# Foreign keys of PostgreSQL are there for every connection.
LOOSEN = "ALTER TABLE tickets DROP CONSTRAINT tickets_user_id_fkey; DELETE FROM users WHERE id = 3"


def ids(answer):
    """Return the ids of a page's entries."""
    return [entry["id"] for entry in answer.json["data"]]


def test_a_ticket_is_what_its_list_shows(api, filled, token):
    for path in ("/api/tickets/open", "/api/tickets/closed"):
        for ticket in api.get(f"{path}?per_page=3", token=token).json["data"]:
            assert api.get(f"/api/tickets/{ticket['id']}", token=token).json == {"data": ticket}


def test_a_ticket_that_is_closed_says_so_at_once(api, filled, token):
    before = api.get("/api/tickets/21", token=token)
    same = {"If-None-Match": before.headers["etag"]}
    assert api.get("/api/tickets/21", token=token, headers=same).status == 304
    ticketapi.process_tickets(filled, 1, NOON)
    after = api.get("/api/tickets/21", token=token, headers=same).json["data"]
    assert (before.json["data"]["status"], after["status"], after["status_id"]) == ("Open", "Closed", 2)


@pytest.mark.parametrize("ticket_id", [121, 10**18 - 1])
def test_a_ticket_that_is_not_there_is_named(api, filled, token, ticket_id):
    answer = api.get(f"/api/tickets/{ticket_id}", token=token)
    assert (answer.status, answer.json) == (404, {"message": f"There is no ticket with the id {ticket_id}."})


@pytest.mark.parametrize(
    "path", ["tickets/0", "tickets/01", "tickets/x", "tickets/1x", f"tickets/{10**18}", "users/0", "users/x"]
)
def test_what_is_no_id_is_no_route(api, filled, token, path):
    assert api.get(f"/api/{path}", token=token).json == {"message": f"The route api/{path} could not be found."}


def test_customers_come_with_the_most_tickets_first_and_the_lowest_id_among_equals(api, filled, token):
    rows = filled.execute("SELECT id FROM users WHERE id < 1000000000 ORDER BY tickets_count DESC, id").fetchall()
    assert ids(api.get("/api/users?per_page=200", token=token)) == [user_id for (user_id,) in rows]
    first, *_, last = api.get("/api/users?per_page=200", token=token).json["data"]
    assert list(first) == ["id", "name", "email", "tickets_count", "created_at"]
    assert first["id"] == api.get("/api/stats", token=token).json["top_user"]["id"]
    assert last["tickets_count"] == 0


@pytest.mark.parametrize("per_page", [1, 7, 18, 19, 200])
def test_the_pages_of_customers_are_the_whole_list(api, make_api, filled, token, per_page):
    api = make_api(rate=0)
    everybody, found, url = ids(api.get("/api/users?per_page=200", token=token)), [], f"/api/users?per_page={per_page}"
    while url:
        page = api.get(url, token=token)
        found += ids(page)
        assert page.json["meta"]["total"] == len(everybody)
        url = (page.json["links"]["next"] or "").removeprefix("http://desk.test:8000")
    assert found == everybody
    past = api.get("/api/users?page=999", token=token).json
    assert (past["data"], past["meta"]["from"], past["meta"]["total"]) == ([], None, len(everybody))


def test_a_desk_without_customers_has_an_empty_page(api, token):
    page = api.get("/api/users", token=token).json
    assert (page["data"], page["meta"]["last_page"], page["meta"]["total"]) == ([], 1, 0)


@pytest.mark.parametrize("per_page", [1, 7, 18, 19, 200])
def test_a_walk_by_cursor_meets_every_customer_once_in_the_order_of_ids_both_ways(make_api, filled, token, per_page):
    api = make_api(rate=0)
    everybody = sorted(ids(api.get("/api/users?per_page=200", token=token)))
    url, parts = f"/api/users?per_page={per_page}&cursor=", []
    while url:
        parts.append(api.get(url, token=token))
        url = (parts[-1].json["links"]["next"] or "").removeprefix("http://desk.test:8000")
    assert [one for part in parts for one in ids(part)] == everybody
    for later, earlier in zip(parts[:0:-1], parts[-2::-1], strict=True):
        back = api.get(later.json["links"]["prev"].removeprefix("http://desk.test:8000"), token=token)
        assert ids(back) == ids(earlier)
    assert parts[0].json["links"]["prev"] is None
    assert parts[0].json["meta"]["per_page"] == per_page


def test_a_walk_of_customers_ends_and_takes_no_foreign_cursor(api, filled, token):
    assert "next_cursor" not in api.get("/api/users", token=token).json["meta"]
    foreign = api.get("/api/tickets/open?per_page=1", token=token).json["meta"]["next_cursor"]
    for cursor in ("x", foreign):
        answer = api.get(f"/api/users?cursor={cursor}", token=token)
        assert (answer.status, answer.json["errors"]) == (422, {"cursor": ["The cursor field must be a cursor of this list."]})
    end = ticketapi.encode_cursor(ticketapi.Cursor(10**6, True), "http://x/api/users")
    page = api.get(f"/api/users?cursor={end}", token=token).json
    assert (page["data"], page["links"]["next"]) == ([], None)


def test_an_empty_desk_has_nothing_to_walk(api, token):
    page = api.get("/api/users?cursor=", token=token).json
    assert (page["data"], page["links"]) == ([], {"first": None, "last": None, "prev": None, "next": None})


def test_no_owner_of_tokens_is_listed_where_a_customer_is_missing(api, engine, filled, token):
    with contextlib.closing(ticketapi.connect(api.settings.db)) as db:
        run_sql(db, "DELETE FROM users WHERE id = 3" if engine == "sqlite" else LOOSEN)
    for url in ("/api/users?per_page=200", "/api/users?per_page=200&cursor="):
        found = ids(api.get(url, token=token))
        assert found and 3 not in found and max(found) < ticketapi.FIRST_OWNER_ID


def test_a_customer_is_what_the_list_shows(api, filled, token):
    for customer in api.get("/api/users?per_page=3", token=token).json["data"]:
        assert api.get(f"/api/users/{customer['id']}", token=token).json == {"data": customer}


@pytest.mark.parametrize("user_id", [999, ticketapi.FIRST_OWNER_ID, ticketapi.FIRST_OWNER_ID + 1])
def test_who_is_no_customer_is_not_shown_the_owners_of_tokens_neither(api, filled, token, user_id):
    answer = api.get(f"/api/users/{user_id}", token=token)
    assert (answer.status, answer.json) == (404, {"message": f"There is no user with the id {user_id}."})
    assert user_id not in ids(api.get("/api/users?per_page=200", token=token))
