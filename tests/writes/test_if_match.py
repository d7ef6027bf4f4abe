"""If-Match: a change that rests on an older state of the ticket is refused, and nothing is done."""

import pytest
from conftest import create_ticket, wait_for
from writing import create, state

import ticketapi

TICKET = "/api/tickets/1"
METHODS = ("PATCH", "PUT", "DELETE")


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


def change(api, token, method, tags, url=TICKET):
    """Change a ticket on a condition."""
    return api.send(method, url, {"subject": "Changed"}, token=token, headers={} if tags is None else {"If-Match": tags})


@pytest.fixture
def etag(api, pen):
    """The ETag of a ticket."""
    create(api, pen)
    return api.get(TICKET, token=pen).headers["etag"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tags", ["{}", "*", ' "a" , {}', '{}, "b"', '"a",{},"b"', " * ", 'W/"a", {}'])
def test_the_state_that_is_named_may_be_changed(api, pen, etag, method, tags):
    assert change(api, pen, method, tags.format(etag)).status == (204 if method == "DELETE" else 200)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tags", ["", '"a"', "W/{}", "W/{}, W/*", "{}x", "x{}", '"a", "b"', "a", ",", "**", '"*"'])
def test_another_may_not(api, db, pen, etag, method, tags):
    before = state(db)
    answer = change(api, pen, method, tags.format(etag))
    assert (answer.status, list(answer.json)) == (412, ["message"])
    assert state(db) == before
    assert api.audits()[-1]["status_code"] == 412


def test_a_bare_tag_is_none(api, pen, etag):
    assert change(api, pen, "PATCH", etag.strip('"')).status == 412


def test_the_etag_of_a_write_is_that_of_the_next(api, pen, etag):
    tag = create(api, pen) and api.get("/api/tickets/2", token=pen).headers["etag"]
    for subject in ("a", "b", "c"):
        answer = api.send("PATCH", "/api/tickets/2", {"subject": subject}, token=pen, headers={"If-Match": tag})
        assert answer.status == 200
        assert change(api, pen, "PATCH", tag, "/api/tickets/2").status == 412
        tag = answer.headers["etag"]
    answer = api.send("PATCH", "/api/tickets/2", {"status": "Closed"}, token=pen, headers={"If-Match": tag})
    assert change(api, pen, "DELETE", tag, "/api/tickets/2").status == 412
    assert change(api, pen, "DELETE", answer.headers["etag"], "/api/tickets/2").status == 204
    assert change(api, pen, "DELETE", "*", "/api/tickets/2").status == 404


def test_a_comment_makes_no_other_state(api, pen, etag):
    answer = api.post(f"{TICKET}/comments", {"content": "Hm"}, token=pen, headers={"If-Match": '"a"'})
    assert answer.status == 201
    assert change(api, pen, "PATCH", etag).status == 200


def test_back_to_the_state_before_is_another_state(api, pen, etag):
    for status in ("Closed", "Open"):
        api.send("PATCH", TICKET, {"status": status}, token=pen)
    assert change(api, pen, "PATCH", etag).status == 412


def test_of_a_ticket_that_is_not_there_none_is_it(api, pen):
    for tags in ("*", '"a"'):
        assert change(api, pen, "PATCH", tags).status == 404


def test_it_is_looked_at_again_when_its_turn_comes(desk, db, clock):
    with ticketapi.transaction(db):
        create_ticket(db, ("Ada", "ada@example.com"), "a", "b", clock.wall())
    with ticketapi.closing(ticketapi.Reader(desk).db) as reader:
        tag = ticketapi.make_answer(ticketapi.ticket_resource(reader, 1)).etag
    token = ticketapi.Token(1, ticketapi.FIRST_OWNER_ID, frozenset("*"), None, None)
    posted = ticketapi.Posted({"subject": "mine"}, "", "", tag, "PATCH /api/tickets/1", {"ticket_id": 1}, token, clock.wall())
    operation = ticketapi.partial(
        ticketapi.write_once, posted=posted, check=ticketapi.check_changes, write=ticketapi.write_changes
    )
    writer = ticketapi.Writer(desk, clock)
    futures = []
    try:
        with ticketapi.transaction(db):
            futures += [writer.submit(operation), writer.submit(operation)]
        wait_for(lambda: all(future.done() for future in futures))
    finally:
        writer.close(5)
    assert futures[0].result().status == 200
    assert isinstance(futures[1].exception(), ticketapi.PreconditionFailed)
