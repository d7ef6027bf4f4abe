"""GET /api/events: one change, one number, one event, in the order of their numbers, the last 100,000 of them."""

import json
from contextlib import closing

import pytest
from conftest import NOON, SECOND, close_out_of_order
from writing import create

import ticketapi
from ticketapi import EVENTS_KEPT, format_time

URL, HOST = "/api/events", "http://desk.test:8000"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


def fetch(api, token, url=URL):
    """Return the page under a link or a path."""
    answer = api.get(url.removeprefix(HOST), token=token)
    assert answer.status == 200, answer.body
    meta = answer.json["meta"]
    assert list(meta) == ["path", "per_page", "count", "has_more", "end_of_stream", "after_cursor"]
    assert meta["has_more"] == (answer.json["links"]["next"] is not None) != meta["end_of_stream"]
    assert answer.json["data"] or not meta["has_more"]
    return answer.json


def walk(api, token, url=f"{URL}?per_page=200"):
    """Follow links to the end; return all events, and the cursor to poll with."""
    found = []
    while url:
        page = fetch(api, token, url)
        found += page["data"]
        url = page["links"]["next"]
    return found, page["meta"]["after_cursor"]


def at_change(change):
    """Return the URL of the events after a change."""
    return f"{URL}?cursor={ticketapi.encode_cursor(ticketapi.Cursor(change, True), HOST + URL)}"


def test_an_empty_desk_has_none_and_a_cursor(api, pen):
    found, cursor = walk(api, pen)
    assert found == []
    create(api, pen)
    assert [event["id"] for event in walk(api, pen, f"{URL}?cursor={cursor}")[0]] == [1]


def test_each_change_is_one_event_of_its_type(api, pen, clock):
    steps = [
        ("POST", "/api/tickets", {"subject": "a", "content": "b", "user": {"name": "A", "email": "a@b.example"}}),
        ("PATCH", "/api/tickets/1", {"subject": "c"}),
        ("PATCH", "/api/tickets/1", {"subject": "c"}),  # no change
        ("PATCH", "/api/tickets/1", {"subject": "d", "status": 2}),
        ("PATCH", "/api/tickets/1", {"content": "e"}),
        ("PATCH", "/api/tickets/1", {"content": "f", "status": 1}),
        ("POST", "/api/tickets/1/comments", {"content": "g"}),
        ("PATCH", "/api/tickets/1", {"subject": ""}),  # refused
        ("DELETE", "/api/tickets/1", {}),
    ]
    moments = []
    for method, url, value in steps:
        clock.advance(1)
        moments.append(format_time(clock.wall()))
        api.send(method, url, value, token=pen)
    found, _ = walk(api, pen)
    told = [(event["id"], event["type"], event["at"]) for event in found]
    assert told == [
        (1, "ticket.created", moments[0]),
        (2, "ticket.updated", moments[1]),
        (3, "ticket.closed", moments[3]),
        (4, "ticket.updated", moments[4]),
        (5, "ticket.reopened", moments[5]),
        (6, "comment.created", moments[6]),
        (7, "ticket.deleted", moments[8]),
    ]
    data = found[0]["data"]
    assert {json.dumps(event["data"]) for event in found} == {json.dumps(data)}  # each as it is now
    assert list(data)[-1] == "closed_at"
    assert (data["subject"], data["content"], data["status"], data["updated_at"]) == ("d", "f", "Open", moments[8])
    assert [list(event) for event in found] == [
        ["id", "type", "at", "data", *(["comment"] if event["type"] == "comment.created" else [])] for event in found
    ]


def test_each_comment_stands_beside_its_event(api, pen):
    create(api, pen)
    said = [api.post("/api/tickets/1/comments", {"content": text}, token=pen).json["data"] for text in "abc"]
    assert [event["comment"] for event in walk(api, pen)[0][1:]] == said


def test_a_batch_has_the_order_of_ids_or_of_closing(api, db, pen):
    ticketapi.generate_tickets(db, 1200, NOON, seed=1)
    close_out_of_order(db, [5, 3, 900, 4], NOON + SECOND)
    ticketapi.process_tickets(db, 700, NOON + 2 * SECOND)
    found, _ = walk(api, pen)
    assert [event["id"] for event in found] == list(range(1, 1905))
    created = [(event["type"], event["data"]["id"], event["at"]) for event in found[:1200]]
    assert created == [("ticket.created", number, format_time(NOON + number - 1)) for number in range(1, 1201)]
    assert {event["type"] for event in found[1200:]} == {"ticket.closed"}
    closed = [event["data"]["id"] for event in found[1200:]]
    assert closed[:4] == [5, 3, 900, 4]
    assert closed[4:] == [number for number in range(1, 706) if number not in (5, 3, 4)][:700]
    assert [event["at"] for event in found[1200:]] == [event["data"]["closed_at"] for event in found[1200:]]


@pytest.mark.parametrize("per_page", [1, 7, 200])
def test_pages_of_any_size_meet_each_once(api, db, pen, per_page):
    ticketapi.generate_tickets(db, 30, NOON, seed=1)
    with ticketapi.transaction(db):
        for number in (3, 9, 3):
            ticketapi.add_comment(db, number, ticketapi.FIRST_OWNER_ID, "x", NOON)
    ticketapi.process_tickets(db, 20, NOON)
    found, cursor = walk(api, pen, f"{URL}?per_page={per_page}")
    assert [event["id"] for event in found] == list(range(1, 54))
    assert fetch(api, pen, f"{URL}?cursor={cursor}")["data"] == []


def test_from_within_a_batch_it_goes_on(api, db, pen):
    ticketapi.generate_tickets(db, 1000, NOON, seed=1)
    for change in (0, 1, 250, 499, 500, 501, 999, 1000):
        page = fetch(api, pen, at_change(change))
        assert [event["id"] for event in page["data"]] == list(range(change + 1, min(1000, change + 50) + 1))


def test_numbers_of_many_histories_are_dense(api, db, pen, clock):
    ticketapi.generate_history(db, 700, 86_400 * 10, NOON, seed=1)
    create(api, pen)
    found, _ = walk(api, pen)
    assert [event["id"] for event in found] == list(range(1, len(found) + 1))
    assert {event["type"] for event in found} == {"ticket.created"}  # tickets of the past came closed
    assert len(found) == 701


def test_the_last_are_kept_and_who_asks_for_older_ones_is_told(api, db, pen, monkeypatch):
    assert EVENTS_KEPT == 100_000
    monkeypatch.setattr(ticketapi, "EVENTS_KEPT", 2000)
    ticketapi.generate_tickets(db, 3300, NOON, seed=1)
    last = 3300
    oldest = fetch(api, pen, f"{URL}?per_page=1")["data"][0]["id"]
    assert oldest == 1301
    assert fetch(api, pen, at_change(1300))["data"][0]["id"] == 1301
    for change in (0, 800, 1299):
        answer = api.get(at_change(change), token=pen)
        assert (answer.status, list(answer.json)) == (410, ["message"])
        assert "read the export" in answer.json["message"]
        assert api.get(f"{URL}/stream?after={change}", token=pen).status == 410
    create(api, pen)
    assert fetch(api, pen, f"{URL}?per_page=1")["data"][0]["id"] == 1302
    assert fetch(api, pen, at_change(last))["data"][0]["id"] == last + 1
    assert db.execute("SELECT count(*) FROM events").fetchone()[0] <= 6


def test_a_cursor_beyond_the_end_is_gone(api, db, pen):
    ticketapi.generate_tickets(db, 5, NOON, seed=1)
    assert api.get(at_change(5), token=pen).status == 200
    assert api.get(at_change(6), token=pen).status == 410
    assert api.get(at_change(10**17), token=pen).status == 410


def test_a_desk_of_before_begins_with_none(api, db, pen):
    ticketapi.generate_tickets(db, 5, NOON, seed=1)
    with ticketapi.transaction(db):
        db.execute("DELETE FROM events")  # as an upgrade leaves it
        db.execute("DELETE FROM change_times")
    found, cursor = walk(api, pen)
    assert found == []
    assert api.get(at_change(4), token=pen).status == 410
    create(api, pen)
    (event,), _ = walk(api, pen, f"{URL}?cursor={cursor}")
    assert (event["id"], event["data"]["id"]) == (6, 6)
    assert [event["id"] for event in walk(api, pen)[0]] == [6]
    assert [ticket["id"] for ticket in api.get("/api/tickets/export", token=pen).json["data"]] == [1, 2, 3, 4, 5, 6]


def test_a_deleted_ticket_keeps_its_keys_and_last_status(api, pen):
    for status in ("Open", "Closed"):
        ticket = create(api, pen)
        url = f"/api/tickets/{ticket['id']}"
        last = api.send("PATCH", url, {"status": status}, token=pen).json["data"]
        api.request("DELETE", url, token=pen)
        data = walk(api, pen)[0][-1]["data"]
        assert data.keys() == last.keys() | {"closed_at"}
        assert {name: data[name] for name in last if name != "updated_at"} == {
            name: last[name] for name in last if name != "updated_at"
        }


def test_texts_are_as_in_the_ticket(api, pen):
    text = '"\\\n\u2028</script>😀\x01'
    ticket = create(api, pen, subject=f"<{text}>", content=f"<{text}>")
    api.post("/api/tickets/1/comments", {"content": f"<{text}>"}, token=pen)
    created, said = walk(api, pen)[0]
    assert created["data"] == ticket | {"closed_at": None}
    assert said["comment"]["content"] == f"<{text}>"


def test_of_a_row_that_is_kept_in_part_the_rest_is_not_told(db, desk, monkeypatch):
    ticketapi.generate_tickets(db, 450, NOON, seed=1)  # one row of the log
    monkeypatch.setattr(ticketapi, "EVENTS_KEPT", 100)
    with closing(ticketapi.connect(desk, ticketapi.READER)) as reader:
        assert [event.id for event in ticketapi.read_events(reader, 0, 3)] == [351, 352, 353]
        assert ticketapi.event_lines(reader, 10) == (b"", 10)  # what was to come next is gone
        assert ticketapi.event_lines(reader, 350)[1] > 350
