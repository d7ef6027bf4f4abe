"""Comments: who may write and read them, in which order they come, and what they leave alone."""

import pytest
from conftest import NOON
from writing import FORM, create, errors_of, state

import ticketapi

COMMENTS = "/api/tickets/1/comments"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def ticket(api, pen):
    """A ticket that is there."""
    return create(api, pen)


def say(api, token, content, url=COMMENTS):
    """Write a comment and return it."""
    answer = api.post(url, {"content": content}, token=token)
    assert answer.status == 201, answer.body
    return answer.json["data"]


def test_a_comment_is_written_by_the_owner_of_the_token(api, db, clock, ticket):
    token = ticketapi.create_token(db, "ann@example.com", "t", ["read:tickets", "write:tickets"], 0, clock.wall())["token"]
    clock.advance(60)
    answer = api.post(COMMENTS, {"content": "  Any news?\n", "user_id": 1}, token=token)
    owner = api.get("/api/token", token=token).json["data"]["user"]
    comment = {"id": 1, "ticket_id": 1, "content": "Any news?", "created_at": "2025-12-04T12:01:00.000000Z", "user": owner}
    assert (answer.status, answer.json) == (201, {"data": comment})
    assert api.get(COMMENTS, token=token).json["data"] == [comment]
    assert (
        api.request("POST", COMMENTS, token=token, headers=FORM, body=b"content=Yes+%26+no").json["data"]["content"]
        == "Yes & no"
    )


def test_it_leaves_the_ticket_alone_and_takes_a_number(api, pen, clock, ticket):
    before = api.get("/api/tickets/1", token=pen)
    cursor = api.get("/api/tickets/export", token=pen).json["meta"]["after_cursor"]
    clock.advance(60)
    comment = say(api, pen, "Hm")
    after = api.get("/api/tickets/1", token=pen)
    assert (after.body, after.headers["etag"]) == (before.body, before.headers["etag"])
    page = api.get(f"/api/tickets/export?cursor={cursor}", token=pen).json
    assert (page["data"], page["meta"]["has_more"]) == ([], False)
    event = api.get("/api/events", token=pen).json["data"][-1]
    assert list(event) == ["id", "type", "at", "data", "comment"]
    assert event == {
        **{"id": 2, "type": "comment.created", "at": "2025-12-04T12:01:00.000000Z"},
        **{"data": ticket | {"closed_at": None}, "comment": comment},
    }
    api.send("PATCH", "/api/tickets/1", {"subject": "x"}, token=pen)
    assert api.get("/api/events", token=pen).json["data"][-1]["id"] == 3


def test_they_come_oldest_first_page_by_page(api, pen, ticket):
    create(api, pen)
    for number in range(7):
        say(api, pen, str(number))
        say(api, pen, "elsewhere", "/api/tickets/2/comments")
    assert [comment["content"] for comment in api.get(COMMENTS, token=pen).json["data"]] == list("0123456")
    page = api.get(f"{COMMENTS}?page=2&per_page=3", token=pen)
    assert [comment["content"] for comment in page.json["data"]] == list("345")
    meta = page.json["meta"]
    assert (meta["total"], meta["last_page"], meta["from"], meta["to"]) == (7, 3, 4, 6)
    assert page.headers["x-total-count"] == "7"
    beyond = api.get(f"{COMMENTS}?page=9", token=pen).json
    assert (beyond["data"], beyond["meta"]["total"]) == ([], 7)
    url, found = f"{COMMENTS}?cursor=&per_page=3", []
    while url:
        page = api.get(url.removeprefix("http://desk.test:8000"), token=pen).json
        found += [comment["content"] for comment in page["data"]]
        url, last = page["links"]["next"], page
    assert found == list("0123456")
    back = api.get(last["links"]["prev"].removeprefix("http://desk.test:8000"), token=pen).json
    assert [comment["content"] for comment in back["data"]] == list("345")


def test_a_ticket_without_comments_has_an_empty_list(api, pen, ticket):
    page = api.get(COMMENTS, token=pen)
    assert (page.json["data"], page.json["meta"]["total"], page.headers["x-total-count"]) == ([], 0, "0")
    assert api.get(f"{COMMENTS}?cursor=", token=pen).json["links"]["next"] is None


def test_a_cursor_of_another_tickets_comments_is_refused(api, pen, ticket):
    create(api, pen)
    for number in range(3):
        say(api, pen, str(number))
    cursor = api.get(f"{COMMENTS}?per_page=1", token=pen).json["meta"]["next_cursor"]
    assert api.get(f"{COMMENTS}?cursor={cursor}", token=pen).json["data"][0]["content"] == "1"
    assert "cursor" in errors_of(api.get(f"/api/tickets/2/comments?cursor={cursor}", token=pen))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "The content field is required."),
        ("", "The content field is required."),
        (" \n ", "The content field is required."),
        (7, "The content field must be a string."),
        (["a"], "The content field must be a string."),
        ("x" * 10_001, "The content field must not be greater than 10000 characters."),
        ("a\0", "The content field must not hold NUL or half of a surrogate pair."),
    ],
)
def test_what_is_no_comment_is_refused(api, db, pen, ticket, content, message):
    before = state(db)
    assert errors_of(api.post(COMMENTS, {"content": content}, token=pen)) == {"content": [message]}
    assert state(db) == before


def test_a_closed_ticket_can_be_commented_on(api, pen, ticket):
    api.send("PATCH", "/api/tickets/1", {"status": "Closed"}, token=pen)
    assert say(api, pen, "x" * 10_000)["id"] == 1


@pytest.mark.parametrize("ticket_id", [2, "9" * 18])
def test_without_a_ticket_there_are_none(api, db, pen, ticket, ticket_id):
    before = state(db)
    url = f"/api/tickets/{ticket_id}/comments"
    for answer in (api.get(url, token=pen), api.post(url, {"content": "x"}, token=pen)):
        assert (answer.status, answer.json) == (404, {"message": f"There is no ticket with the id {ticket_id}."})
    assert state(db) == before


def test_who_wrote_stays_when_the_token_is_revoked(api, db, pen, token, ticket):
    comment = say(api, pen, "Hm")
    ticketapi.revoke_token(db, api.get("/api/token", token=pen).json["data"]["id"])
    assert api.get(COMMENTS, token=pen).status == 401
    assert api.get(COMMENTS, token=token).json["data"] == [comment]
    assert comment["created_at"] == ticketapi.format_time(NOON)
