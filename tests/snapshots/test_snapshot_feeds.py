"""Export, events and webhooks after a restore: what leads to what is undone is a 410, all else goes on."""

from contextlib import closing

import pytest
from conftest import NOON, create_ticket, wait_for
from receiver import make_webhook, reply, sent, state

import ticketapi

EXPORT, EVENTS = "/api/tickets/export", "/api/events"
AUTHOR = ("Ada", "ada@example.com")


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


def add(db, count=1, now=NOON):
    """Make tickets one by one."""
    return [create_ticket(db, AUTHOR, str(number), "x", now) for number in range(count)]


def restore(desk, now=NOON):
    """Restore the snapshot."""
    ticketapi.restore_snapshot(desk, "one", now)


def walk(api, token, url):
    """Return the rows of all pages, and the cursor after them; no page is empty while there is more."""
    found = []
    while True:
        page = api.get(url, token=token)
        assert page.status == 200, page.body
        found += page.json["data"]
        meta, following = page.json["meta"], page.json["links"]["next"]
        assert meta["count"] == len(page.json["data"])
        assert meta["has_more"] == (following is not None) == (not meta["end_of_stream"])
        assert page.json["data"] or not meta["has_more"]
        if not following:
            return found, meta["after_cursor"]
        url = following.removeprefix("http://desk.test:8000")


@pytest.mark.parametrize("url", [EXPORT, EVENTS])
def test_a_cursor_from_before_is_a_410_that_says_what_to_do(api, db, desk, token, url):
    add(db, 6)
    ticketapi.save_snapshot(desk, "one", NOON)
    middle = api.get(f"{url}?per_page=2", token=token).json["meta"]["after_cursor"]
    _, end = walk(api, token, url)
    add(db, 3)
    _, later = walk(api, token, url)
    restore(desk)
    for cursor in (middle, end, later):
        answer = api.get(f"{url}?cursor={cursor}", token=token)
        assert answer.status == 410
        assert "read the export" in answer.json["message"]
    add(db, 20)
    for cursor in (middle, end, later):  # though there are changes beyond it now
        assert api.get(f"{url}?cursor={cursor}", token=token).status == 410
    assert api.get(f"{url}?cursor=", token=token).status == 200


@pytest.mark.parametrize("per_page", [1, 2, 3, 4, 200])
def test_the_log_of_events_is_that_of_the_snapshot_and_goes_on(api, db, desk, token, per_page):
    add(db, 6)
    before = api.get(EVENTS, token=token).json["data"]
    ticketapi.save_snapshot(desk, "one", NOON)
    add(db, 3)
    last = ticketapi.find_last_change(db)
    restore(desk)
    found, cursor = walk(api, token, f"{EVENTS}?per_page={per_page}")
    assert found == before
    assert walk(api, token, f"{EVENTS}?cursor={cursor}&per_page={per_page}") == ([], cursor)
    new = add(db, 3)
    found, _ = walk(api, token, f"{EVENTS}?cursor={cursor}&per_page={per_page}")
    assert [event["data"]["id"] for event in found] == new
    assert min(event["id"] for event in found) > last
    found, _ = walk(api, token, f"{EVENTS}?per_page={per_page}")
    assert [event["id"] for event in found[:6]] == [event["id"] for event in before]
    assert len(found) == 9


def test_the_export_reads_the_restored_desk_and_then_what_changes(api, db, desk, token):
    add(db, 6)
    before = walk(api, token, EXPORT)[0]
    ticketapi.save_snapshot(desk, "one", NOON)
    ticketapi.delete_ticket(db, 1, NOON)
    ticketapi.process_tickets(db, 3, NOON)
    restore(desk)
    found, cursor = walk(api, token, f"{EXPORT}?per_page=2")
    assert found == before
    assert walk(api, token, f"{EXPORT}?cursor={cursor}") == ([], cursor)
    ticketapi.process_tickets(db, 2, NOON)
    found, cursor = walk(api, token, f"{EXPORT}?cursor={cursor}")
    assert [ticket["id"] for ticket in found] == [1, 2]
    restore(desk)
    assert api.get(f"{EXPORT}?cursor={cursor}", token=token).status == 410


def test_start_time_finds_what_changes_from_then_on(api, db, desk, token, clock):
    add(db, 6, clock.now)
    ticketapi.save_snapshot(desk, "one", NOON)
    clock.advance(3600)
    add(db, 2, clock.now)
    clock.advance(3600)
    restore(desk)
    clock.advance(3600)
    new = add(db, 2, clock.now)
    clock.advance(60)
    for since in ("90m", "70m", "2m"):
        assert [ticket["id"] for ticket in walk(api, token, f"{EXPORT}?start_time={since}")[0]] == new
    assert len(walk(api, token, f"{EXPORT}?start_time=0")[0]) == 8


def test_cursors_of_a_desk_that_was_never_restored_are_what_they_were(db, api, token):
    add(db, 6)
    for url in (EXPORT, EVENTS):
        found = api.get(f"{url}?per_page=2", token=token).json["meta"]["after_cursor"]
        assert found == ticketapi.encode_cursor(ticketapi.Cursor(2, True), f"http://desk.test:8000{url}")
    assert ticketapi.find_last_change(db) == 6


def test_cursors_of_pages_of_tickets_lead_on(api, db, desk, token):
    add(db, 6)
    ticketapi.save_snapshot(desk, "one", NOON)
    cursor = api.get("/api/tickets/open?cursor=&per_page=2", token=token).json["meta"]["next_cursor"]
    restore(desk)
    page = api.get(f"/api/tickets/open?cursor={cursor}&per_page=2", token=token).json
    assert [ticket["id"] for ticket in page["data"]] == [3, 4]


def test_many_changes_may_have_been_undone(api, db, desk, token):
    add(db, 3)
    ticketapi.save_snapshot(desk, "one", NOON)
    with ticketapi.transaction(db):
        ticketapi.set_counters(db, [("change", 10**6)])  # as if so many had come
    restore(desk)
    _, cursor = walk(api, token, EVENTS)
    _, exported = walk(api, token, EXPORT)
    begun = ticketapi.find_last_change(db)
    assert begun > 10**6
    new = add(db, 2)
    assert [event["data"]["id"] for event in walk(api, token, f"{EVENTS}?cursor={cursor}")[0]] == new
    assert [ticket["id"] for ticket in walk(api, token, f"{EXPORT}?cursor={exported}")[0]] == new
    with closing(ticketapi.connect(desk, ticketapi.READER)) as reader:
        lines, after = ticketapi.event_lines(reader, begun)
        assert (lines.count(b"event: ticket.created"), after) == (2, ticketapi.find_last_change(db))


# Webhooks ----------------------------------------------------------------------------------------


def test_webhooks_are_told_of_what_comes_next_and_what_had_been_begun_is_sent_to_its_end(db, desk, courier, receiver, clock):
    webhook = make_webhook(db, receiver.url)
    add(db, 2)
    ticketapi.save_snapshot(desk, "one", NOON)
    receiver.behaviour = receiver.hang
    add(db, 1)
    courier.turn(clock.now)
    wait_for(lambda: receiver.waiting == 3)
    courier.turn(clock.now)
    restore(desk)
    assert state(db, webhook)["enabled"]
    assert ticketapi.list_webhooks(db)[0]["position"] == ticketapi.find_last_change(db)
    receiver.released.set()
    courier.go()
    assert [one["status"] for one in sent(db, webhook)] == ["delivered"] * 3  # also that of the ticket that is gone
    courier.go()
    assert len(receiver.messages) == 3
    [new] = add(db, 1)
    courier.go()
    assert [message.json["data"]["id"] for message in receiver.messages[3:]] == [new]
    assert [one["status"] for one in sent(db, webhook)] == ["delivered"] * 4


def test_a_message_that_failed_before_is_tried_again_after_its_delay(db, desk, courier, receiver, clock):
    webhook = make_webhook(db, receiver.url)
    ticketapi.save_snapshot(desk, "one", NOON)
    receiver.behaviour = reply(500)
    add(db, 1)
    courier.go()
    restore(desk)
    assert [one["status"] for one in sent(db, webhook)] == ["pending"]
    receiver.behaviour = reply()
    clock.advance(10)
    courier.go()
    assert [(one["status"], one["attempt"]) for one in sent(db, webhook)] == [("delivered", 2)]


def test_a_webhook_that_is_off_begins_after_the_restore_when_it_is_turned_on(db, desk, courier, receiver):
    webhook = make_webhook(db, receiver.url)
    ticketapi.save_snapshot(desk, "one", NOON)
    ticketapi.update_webhook(db, webhook["id"], {"enabled": False}, NOON)
    add(db, 3)
    restore(desk)
    ticketapi.update_webhook(db, webhook["id"], {"enabled": True}, NOON)
    [new] = add(db, 1)
    courier.go()
    assert [message.json["data"]["id"] for message in receiver.messages] == [new]
    assert [one["status"] for one in sent(db, webhook)] == ["delivered"]  # and nothing is said to have left the log
