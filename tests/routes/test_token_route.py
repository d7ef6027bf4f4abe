"""GET /api/token: what a token may do, and whose it is, for whoever has it."""

import pytest
from conftest import NOON

import ticketapi
from ticketapi import DAY, FIRST_OWNER_ID


@pytest.mark.parametrize("abilities", [["*"], ["read:tickets"], ["write:tickets", "read:audits"], ["read:metrics"]])
def test_any_valid_token_may_ask(api, db, abilities):
    made = ticketapi.create_token(db, "ann@example.com", "Ann's", abilities, DAY, NOON)
    answer = api.get("/api/token", token=made["token"])
    assert answer.status == 200
    data = answer.json["data"]
    assert list(answer.json) == ["data"]
    assert list(data) == ["id", "name", "abilities", "expires_at", "user"]
    assert data == {
        "id": made["id"],
        "name": "Ann's",
        "abilities": abilities,
        "expires_at": "2025-12-05T12:00:00.000000Z",
        "user": {"id": FIRST_OWNER_ID, "name": "ann", "email": "ann@example.com"},
    }
    assert made["token"] not in answer.body.decode()
    assert ticketapi.hash_token(made["token"]) not in answer.body.decode()


def test_one_that_never_expires_says_so(api, token):
    assert api.get("/api/token", token=token).json["data"]["expires_at"] is None


def test_without_a_valid_token_there_is_nothing_to_tell(api, db, token, clock):
    short = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 60, NOON)["token"]
    clock.advance(61)
    for text in (None, "tkt_wrong", short):
        answer = api.get("/api/token", token=text)
        assert (answer.status, answer.json) == (401, {"message": "Unauthenticated."})
    ticketapi.revoke_token(db, api.get("/api/token", token=token).json["data"]["id"])
    assert api.get("/api/token", token=token).status == 401


def test_it_is_limited_and_audited_like_the_rest(make_api, token):
    api = make_api(rate=1)
    first = api.get("/api/token", token=token)
    assert (first.headers["x-ratelimit-remaining"], api.get("/api/token", token=token).status) == ("0", 429)
    assert [(row["route_name"], row["status_code"]) for row in api.audits()] == [("token", 200), ("token", 429)]


def test_head_etag_and_methods(api, token):
    get, head = api.get("/api/token", token=token), api.request("HEAD", "/api/token", token=token)
    assert (head.status, head.headers["etag"], head.body) == (200, get.headers["etag"], b"")
    assert api.get("/api/token", token=token, headers={"If-None-Match": get.headers["etag"]}).status == 304
    answer = api.request("DELETE", "/api/token", token=token)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
