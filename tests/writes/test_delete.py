"""DELETE of a ticket: it is gone from everywhere but from the export and the events, which tell that it is."""

import pytest
from writing import NEW, create, events, problems, state

import ticketapi

TICKET = "/api/tickets/2"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def filled(api, pen, clock):
    """Three tickets of one customer, an hour apart; the second has a comment."""
    tickets = []
    for _ in range(3):
        tickets.append(create(api, pen))
        clock.advance(3600)
    assert api.post(f"{TICKET}/comments", {"content": "Hm"}, token=pen).status == 201
    return tickets


def figures(api, token):
    """Return what the desk counts."""
    series = api.get("/api/series?since=1d", token=token).json["data"]
    user = api.get(f"/api/users/{ticketapi.FIRST_BROUGHT_ID}", token=token).json["data"]
    stats = api.get("/api/stats", token=token).json
    sums = {name: sum(bucket[name] or 0 for bucket in series) for name in ("opened", "closed") if name in series[0]}
    assert sums
    return stats["total_tickets"], stats["total_unprocessed_tickets"], user["tickets_count"], *sums.values()


@pytest.mark.parametrize("status", ["Open", "Closed"])
def test_it_is_gone_from_everywhere(api, db, pen, clock, filled, status):
    api.send("PATCH", TICKET, {"status": status}, token=pen)
    answer = api.request("DELETE", TICKET, token=pen)
    assert (answer.status, answer.body) == (204, b"")
    assert not {"content-type", "content-length", "etag"} & answer.headers.keys()
    message = {"message": "There is no ticket with the id 2."}
    for method, url in (
        *[(method, TICKET) for method in ("GET", "PATCH", "PUT", "DELETE")],
        ("GET", f"{TICKET}/comments"),
        ("POST", f"{TICKET}/comments"),
    ):
        answer = api.get(url, token=pen) if method == "GET" else api.send(method, url, {"content": "x"}, token=pen)
        assert (answer.status, answer.json) == (404, message), (method, url)
    for url, ids in (
        ("/api/tickets", [1, 3]),
        ("/api/tickets?sort=-id", [3, 1]),
        ("/api/tickets/open", [1, 3]),
        ("/api/tickets/open?cursor=", [1, 3]),
        ("/api/tickets/closed", []),
        (f"/api/users/{ticketapi.FIRST_BROUGHT_ID}/tickets", [3, 1]),
        (f"/api/tickets?user={ticketapi.FIRST_BROUGHT_ID}&q=sound", [1, 3]),
    ):
        page = api.get(url, token=pen).json
        assert [ticket["id"] for ticket in page["data"]] == ids, url
        assert page["meta"].get("total", len(ids)) == len(ids), url
    assert figures(api, pen) == (2, 2, 2, 2, 0)
    assert api.get("/api/stats", token=pen).json["most_recent_processed_at"] is None


@pytest.mark.parametrize("status", ["Open", "Closed"])
def test_export_and_events_tell_it(api, pen, clock, filled, status):
    last = api.send("PATCH", TICKET, {"status": status}, token=pen).json["data"]
    clock.advance(3600)
    api.request("DELETE", TICKET, token=pen)
    moment = ticketapi.format_time(clock.wall())
    told = api.get("/api/tickets/export", token=pen).json["data"]
    assert [ticket["id"] for ticket in told] == [1, 3, 2]
    closed_at = last["updated_at"] if status == "Closed" else None
    assert list(told[2].items())[-2:] == [("closed_at", closed_at), ("deleted_at", moment)]
    assert told[2] == last | {"updated_at": told[2]["updated_at"], "closed_at": closed_at, "deleted_at": moment}
    assert [ticket["deleted_at"] for ticket in told[:2]] == [None, None]
    event = api.get("/api/events", token=pen).json["data"][-1]
    assert (event["type"], event["at"], event["data"]["id"], event["data"]["status"]) == ("ticket.deleted", moment, 2, status)
    assert event["data"].keys() == last.keys() | {"closed_at"}


def test_its_number_is_not_given_again(api, db, pen, clock, filled):
    api.request("DELETE", "/api/tickets/3", token=pen)
    assert create(api, pen)["id"] == 4
    ticketapi.generate_tickets(db, 1, clock.wall(), seed=1)
    assert [ticket["id"] for ticket in api.get("/api/tickets", token=pen).json["data"]] == [1, 2, 4, 5]


def test_the_last_one_can_go_too(api, pen):
    create(api, pen)
    api.request("DELETE", "/api/tickets/1", token=pen)
    for url in ("/api/tickets", "/api/tickets/open", "/api/tickets/closed"):
        page = api.get(url, token=pen).json
        assert (page["data"], page["links"]["next"]) == ([], None)
    assert create(api, pen)["id"] == 2


def test_it_happens_once(api, db, pen, filled):
    assert api.request("DELETE", TICKET, token=pen).status == 204
    before = state(db)
    assert api.request("DELETE", TICKET, token=pen).status == 404
    assert api.send("PATCH", TICKET, {"status": "Open"}, token=pen).status == 404
    assert state(db) == before
    assert [kind for kind, _ in events(db)].count("ticket.deleted") == 1


def test_what_is_sent_with_it_is_not_read(api, pen, filled):
    headers = {"Content-Type": "text/plain", "Idempotency-Key": ""}
    assert api.request("DELETE", TICKET, token=pen, headers=headers, body=b"{no json").status == 204


def test_its_customer_may_write_again(api, pen, filled):
    for ticket in filled:
        api.request("DELETE", f"/api/tickets/{ticket['id']}", token=pen)
    user = api.get(f"/api/users/{ticketapi.FIRST_BROUGHT_ID}", token=pen).json["data"]
    assert (user["email"], user["tickets_count"]) == (NEW["user"]["email"], 0)
    ticket = create(api, pen)
    assert [found["id"] for found in api.get(f"/api/users/{user['id']}/tickets", token=pen).json["data"]] == [ticket["id"]]


def test_the_counters_agree_with_the_rows(api, db, pen, filled):
    api.send("PATCH", "/api/tickets/1", {"status": "Closed"}, token=pen)
    for ticket in filled[:2]:
        api.request("DELETE", f"/api/tickets/{ticket['id']}", token=pen)
    assert problems(db) == []
