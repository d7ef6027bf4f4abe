"""Lists can be paged through by their headers: Link (RFC 8288), and X-Total-Count where a total is known."""

import re

import pytest
from conftest import NOON

import ticketapi

HOST = "http://desk.test:8000"
COUNTED = ("/api/tickets/open", "/api/tickets/closed", "/api/users", "/api/users/1/tickets", "/api/tickets/1/comments")
BY_CURSOR = ("/api/tickets", "/api/tickets/open?cursor=", "/api/tickets/closed?cursor=", "/api/users/1/tickets?cursor=",
             "/api/tickets/1/comments?cursor=", "/api/audits")  # fmt: skip
FEEDS = ("/api/tickets/export", "/api/events")


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def everything(db, clock):
    """A token that may read everything, on a desk with some of it."""
    ticketapi.generate_tickets(db, 60, NOON, seed=1)
    ticketapi.process_tickets(db, 20, NOON)
    token = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "t", ["*"], 0, NOON)["token"]
    for number in range(12):
        ticketapi.add_comment(db, 1, ticketapi.FIRST_OWNER_ID, str(number), NOON)
    return token


def links_of(answer):
    """Return the links of a Link header, by their relation."""
    text = answer.headers.get("link", "")
    found = re.findall(r'<([^>]*)>; rel="(\w+)"', text)
    assert ", ".join(f'<{url}>; rel="{rel}"' for url, rel in found) == text
    return {rel: url for url, rel in found}


@pytest.mark.parametrize("url", [*COUNTED, *BY_CURSOR, *FEEDS])
def test_the_header_has_the_links_of_the_body(api, everything, url):
    url = f"{url}{'&' if '?' in url else '?'}per_page=4"
    seen = 0
    for _ in range(6):  # rows of the audit log
        api.get("/api/stats", token=everything)
    for _ in range(4):
        answer = api.get(url, token=everything)
        assert links_of(answer) == {rel: link for rel, link in answer.json["links"].items() if link}
        seen += "next" in links_of(answer)
        if "next" not in links_of(answer):
            break
        url = links_of(answer)["next"].removeprefix(HOST)
    assert seen


@pytest.mark.parametrize("url", COUNTED)
def test_where_there_is_a_total_it_is_in_a_header(api, everything, url):
    for query in ("", "?page=2&per_page=3", "?page=99"):
        answer = api.get(url + query, token=everything)
        assert answer.headers["x-total-count"] == str(answer.json["meta"]["total"]) != "0"


@pytest.mark.parametrize("url", [*BY_CURSOR, *FEEDS, "/api/stats", "/api/tickets/1", "/api/series"])
def test_elsewhere_there_is_none(api, everything, url):
    answer = api.get(url, token=everything)
    assert answer.status == 200
    assert "x-total-count" not in answer.headers


@pytest.mark.parametrize("url", [*COUNTED, *FEEDS])
def test_an_answer_from_memory_and_head_and_304_have_them_too(api, everything, url):
    first, again = (api.get(f"{url}?per_page=4", token=everything) for _ in range(2))
    names = ("link", "x-total-count", "etag")
    wanted = {name: first.headers.get(name) for name in names}
    assert {name: again.headers.get(name) for name in names} == wanted
    head = api.request("HEAD", f"{url}?per_page=4", token=everything)
    assert ({name: head.headers.get(name) for name in names}, head.body) == (wanted, b"")
    unchanged = api.get(f"{url}?per_page=4", token=everything, headers={"If-None-Match": wanted["etag"]})
    assert (unchanged.status, {name: unchanged.headers.get(name) for name in names}) == (304, wanted)


def test_scripts_of_other_pages_may_read_them(api, everything):
    answer = api.get("/api/tickets/open", token=everything, headers={"Origin": "https://elsewhere.example"})
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    needed = {"link", "x-total-count", "location", "etag", "idempotent-replayed", "x-request-id", "retry-after", "ratelimit"}
    assert needed <= set(exposed)


def test_what_a_client_puts_into_a_query_is_escaped_in_the_header(api, everything):
    for _ in range(2):
        answer = api.get("/api/tickets?q=%3E%22%2C%20%3Chttp%3A%2F%2Fevil.test%3E&per_page=1", token=everything)
        assert answer.status == 200
        assert links_of(answer).keys() <= {"next"}
    page = api.get("/api/tickets?q=e&per_page=1&sort=-id", token=everything)
    assert links_of(page)["next"] == page.json["links"]["next"]
    assert "<>" not in api.get("/api/tickets/open?per_page=1&x=%3E", token=everything).headers["link"]
