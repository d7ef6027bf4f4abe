"""X-Request-Id: taken from the client or made, the same in the answer, the debug log and the audit row."""

import logging
import re

import pytest

import ticketapi

MADE = re.compile("[0-9a-f]{32}")


def rows_of(api):
    """Return the request ids of the audit log."""
    return [row["request_id"] for row in api.audits()]


@pytest.mark.parametrize("request_id", ["a", "8e03978e-40d5-43e8-bc93-6894a57f93", "x" * 128, "Root=1-67891", "a/b+c=:@_."])
def test_one_that_is_given_is_taken(api, token, caplog, request_id):
    caplog.set_level(logging.DEBUG, "ticketapi")
    answer = api.get("/api/stats", token=token, headers={"X-Request-Id": request_id})
    assert answer.headers["x-request-id"] == request_id
    assert rows_of(api) == [request_id]
    assert [record.getMessage() for record in caplog.records if record.getMessage().endswith(f" 200 {request_id}")]


@pytest.mark.parametrize("request_id", [None, "", " ", "x" * 129, "a b", "a\tb", "\x1b[31m", "é", '"a"', "a,b", "<a>", "a\nb"])
def test_else_one_is_made(api, token, request_id):
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    answers = [api.get("/api/stats", token=token, headers=headers) for _ in range(2)]
    made = [answer.headers["x-request-id"] for answer in answers]
    assert all(MADE.fullmatch(text) for text in made)
    assert made[0] != made[1]
    assert rows_of(api) == made


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/up", 200),
        ("GET", "/api/nope", 404),
        ("POST", "/api/stats", 405),
        ("GET", "/api/stats", 401),
        ("OPTIONS", "/api/stats", 200),
        ("HEAD", "/openapi.json", 200),
        ("GET", "/", 200),
    ],
)
def test_every_answer_has_one(api, method, url, status):
    answer = api.request(method, url, headers={"X-Request-Id": "mine"})
    assert (answer.status, answer.headers["x-request-id"]) == (status, "mine")


def test_a_preflight_and_a_refusal_have_one(api):
    headers = {"X-Request-Id": "mine", "Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    assert api.request("OPTIONS", "/api/stats", headers=headers).headers["x-request-id"] == "mine"
    assert api.get("/api/stats", headers={"X-Request-Id": "mine", "Host": "a b"}).headers["x-request-id"] == "mine"


def test_one_that_is_a_token_is_not_taken(api, token, caplog):
    caplog.set_level(logging.DEBUG, "ticketapi")
    for text in (token, f"a:{token}:b"):
        answer = api.get("/api/stats", token=token, headers={"X-Request-Id": text})
        assert MADE.fullmatch(answer.headers["x-request-id"])
        assert token not in caplog.text
        assert rows_of(api)[-1] == answer.headers["x-request-id"]


def test_an_answer_from_memory_has_its_own(api, token):
    first, second = (api.get("/api/stats", token=token, headers={"X-Request-Id": name}) for name in "ab")
    assert first.headers["etag"] == second.headers["etag"]
    assert (first.headers["x-request-id"], second.headers["x-request-id"]) == ("a", "b")


def test_the_audit_log_shows_it(api, db, clock):
    token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "t", ["*"], 0, clock.wall())["token"]
    api.get("/api/stats", token=token, headers={"X-Request-Id": "mine"})
    assert api.get("/api/audits", token=token).json["data"][0]["request_id"] == "mine"
