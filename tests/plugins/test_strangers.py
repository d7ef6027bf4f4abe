"""Who has no valid token gets thirty answers a minute for each address under /api, whatever is asked, and fills no disk."""

import logging

import pytest
from conftest import SECOND

import ticketapi

ADDRESS = "198.51.100.7"
KINDS = {
    "no token": ("GET", "/api/stats", {}, 401),
    "wrong token": ("GET", "/api/stats", {"Authorization": "Bearer tkt_wrong"}, 401),
    "another scheme": ("GET", "/api/stats", {"Authorization": "Basic YTpi"}, 401),
    "no route": ("GET", "/api/nope", {}, 404),
    "the prefix alone": ("GET", "/api", {}, 404),
    "no such method": ("POST", "/api/stats", {}, 405),
    "options": ("OPTIONS", "/api/stats", {}, 200),
    "options without a route": ("OPTIONS", "/api/nope", {}, 404),
    "half a preflight": ("OPTIONS", "/api/stats", {"Origin": "https://a.example"}, 200),
    "head": ("HEAD", "/api/tickets/open", {}, 401),
}
PREFLIGHT = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}


def ask(api, kind, address=ADDRESS, **headers):
    """Send one request of a kind; return its status."""
    method, url, more, _ = KINDS[kind]
    return api.request(method, url, headers={**more, **headers}, address=address).status


@pytest.mark.parametrize("kind", KINDS)
def test_the_thirty_first_request_of_an_address_is_refused(api, clock, kind):
    expected = KINDS[kind][3]
    assert [ask(api, kind) for _ in range(31)] == [expected] * 30 + [429]
    assert ask(api, kind, address="198.51.100.8") == expected
    clock.advance(2)
    assert [ask(api, kind) for _ in range(2)] == [expected, 429]


def test_all_kinds_draw_from_the_same_bucket(api):
    statuses = [ask(api, kind) for kind in list(KINDS) * 4]
    assert 429 not in statuses[:30]
    assert set(statuses[30:]) == {429}


def test_a_refusal_may_be_read_by_pages_and_says_when_to_come_again(api):
    for _ in range(30):
        ask(api, "no route")
    refused = api.get("/api/nope", address=ADDRESS, headers={"Origin": "https://a.example"})
    assert (refused.status, refused.json) == (429, {"message": "Too Many Attempts."})
    assert refused.headers["retry-after"] == "2"
    assert refused.headers["access-control-allow-origin"] == "*"
    assert refused.headers["content-type"] == "application/json"


@pytest.mark.parametrize("url", ["/up", "/ready", "/metrics", "/openapi.json", "/", "/docs", "/nope"])
def test_what_does_not_lie_under_api_never_draws(api, url):
    before = api.get(url, address=ADDRESS).status
    assert {api.get(url, address=ADDRESS).status for _ in range(40)} == {before}
    assert [ask(api, "no token") for _ in range(30)] == [401] * 30
    assert ask(api, "no token") == 429
    assert api.get(url, address=ADDRESS).status == before


@pytest.mark.parametrize(("origins", "status"), [(("*",), 204), (("https://b.example",), 200), (("off",), 200)])
def test_a_preflight_draws_nothing_and_is_not_audited(make_api, origins, status):
    api = make_api(cors_origin=origins)
    for _ in range(40):
        assert api.request("OPTIONS", "/api/stats", headers=PREFLIGHT, address=ADDRESS).status == status
    assert api.audits() == []
    assert ask(api, "no token") == 401


def test_a_valid_token_is_not_held_up_by_its_address(api, token):
    for _ in range(40):
        ask(api, "no route")
    for url, status in [("/api/stats", 200), ("/api/nope", 404)]:
        assert api.get(url, token=token, address=ADDRESS).status == status
    assert api.request("POST", "/api/stats", token=token, address=ADDRESS).status == 405
    assert ask(api, "no route") == 429


def test_who_a_404_and_a_405_were_for_is_in_the_log(api, token):
    api.get("/api/nope", token=token)
    api.request("POST", "/api/stats", token=token)
    assert {(row["token_id"], row["user_id"]) for row in api.audits()} == {(1, ticketapi.FIRST_OWNER_ID)}


def test_of_the_refusals_of_an_address_the_first_of_each_minute_is_audited(api, clock):
    for _ in range(100):
        ask(api, "no token")
    ask(api, "no token", address="198.51.100.8")
    statuses = [(row["ip_address"], row["status_code"]) for row in api.audits()]
    assert statuses == [(ADDRESS, 401)] * 30 + [(ADDRESS, 429), ("198.51.100.8", 401)]
    assert api.audit.omitted == 69
    for second in (59, 1):  # the minute begins with the first refusal
        before = len(api.audits())
        clock.advance(second)
        for _ in range(40):
            ask(api, "no token")
        added = [row["status_code"] for row in api.audits()[before:]]
        assert added.count(429) == (0 if second == 59 else 1)


def test_the_refusals_of_a_user_are_all_audited(make_api, token):
    api = make_api(rate=1)
    for _ in range(5):
        api.get("/api/stats", token=token, address=ADDRESS)
    assert [row["status_code"] for row in api.audits()] == [200, 429, 429, 429, 429]


def test_what_is_not_audited_is_counted_in_the_log_once_a_minute_and_in_the_metrics(api, clock, caplog):
    caplog.set_level(logging.INFO, "ticketapi")
    for address in (ADDRESS, "198.51.100.8"):
        for _ in range(33):
            ask(api, "no token", address=address)
    told = "over the limit without a valid token, and not audited: {} so far"
    assert [record.getMessage() for record in caplog.records] == [told.format(1)]
    assert b"\nticketapi_audit_rows_omitted_total 4\n" in api.get("/metrics").body
    clock.advance(60)
    for _ in range(33):
        ask(api, "no token")
    assert [record.getMessage() for record in caplog.records] == [told.format(1), told.format(5)]


def test_a_flood_leaves_no_more_rows_than_the_limit_allows(api, clock):
    begin = clock.now
    for _ in range(300):
        ask(api, "no route")
        clock.advance(0.1)
    assert (clock.now - begin) // SECOND == 30
    assert len(api.audits()) <= 30 + 15 + 1


def test_a_desk_that_cannot_be_read_is_said_in_json(api, db):
    db.execute("ALTER TABLE personal_access_tokens RENAME TO gone")
    answer = api.get("/api/nope", token=ticketapi.new_token_text())
    assert (answer.status, answer.json) == (503, {"message": "Service Unavailable"})
    assert answer.headers["retry-after"] == "1"
