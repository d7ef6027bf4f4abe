"""A desk in PostgreSQL answers what the same desk in a file answers: status, headers, ETag and body, to the byte."""

import json
import sys

import pytest
from conftest import NOON, SECOND, HandClock, close_out_of_order, examples, make_served
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import Pair

import ticketapi

DAY, HOUR = ticketapi.DAY * SECOND, 3600 * SECOND
LISTS = ("/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/users/3/tickets", "/api/users")
OTHERS = (
    "/api/tickets/1",
    "/api/tickets/250",
    "/api/tickets/9999",
    "/api/tickets/0",
    "/api/tickets/9223372036854775807",
    "/api/tickets/9223372036854775808",
    "/api/tickets/x",
    "/api/users/1",
    "/api/users/9999",
    "/api/users/1000000000",
    "/api/users/9999/tickets",
    "/api/users/1000000000/tickets",
    "/api/stats",
    "/api/series",
    "/api/series?since=2h",
    "/api/series?since=12d",
    "/api/series?since=400d",
    "/api/series?since=2025-12-01T00:00:00Z",
    "/api/series?since=x",
    "/api/series?bucket=day&since=20d",
    "/api/series?bucket=week",
    "/api/series?since=0",
    "/api/schedule",
    "/api/audits/summary",
    "/api/nope",
    "/metrics",
    "/up",
    "/ready",
    "/openapi.json",
    "/",
    "/docs",
)
AUDITS = "/api/audits"
PAGES = [f"page={page}&per_page={size}" for size in (1, 7, 50, 200) for page in (1, 2, 3, 19)]
ODD = [
    "page=0",
    "page=-3",
    "page=99999999999999999999",
    "per_page=0",
    "per_page=1000",
    "page=x&per_page=1.5",
    "cursor=x",
    "page=",
]
FILTERS = [
    "",
    "user=1000000000",
    "user=ANN@example.com",
    "user=nobody@example.com",
    "user=1000000000&token=1",
    "token=2",
    "token=99",
    "status=200",
    "status=4xx",
    "status=2xx&per_page=3",
    "status=600",
    "path=tickets",
    "path=/api/tickets/open",
    "path=%25",
    "path=_",
    "path=%5C",
    "path='",
    "path=%C3%BC",
    "since=1h",
    "since=2025-12-04T12:00:30Z",
    "since=0",
    "since=x&status=y&user=z&token=q&path=" + "x" * 256,
]
CHARACTERS = [chr(code) for code in (*range(1, 0x180), 0x300, 0x5D0, 0x200B, 0x202E, 0x2028, 0x2029, 0xD7FF, 0xE000, 0xFEFF)]
CHARACTERS += [chr(code) for code in (0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1F600, 0x10FFFF)]
NASTY = [
    *(f"a{character}b{character}" for character in CHARACTERS),
    "".join(CHARACTERS),
    *(
        '"',
        "\\",
        "\\\\",
        '\\"',
        "'",
        "''",
        "\\N",
        "\\.",
        "{}",
        '{"a","b"}',
        "NULL",
        "$1",
        ":name",
        "?",
        "%s",
        "\\u0000",
        "\\x00",
    ),
    "e\u0301\u0301 \u0e33\u0e33 👩\u200d👩\u200d👧 🇩🇪",
    "</script><!--",
    " ",
    "\t\n\r\x0b\x0c",
    "long " * 20_000,
    "😀" * 5_000,
]


@pytest.fixture
def pair(tmp_path, databases, clock):
    """Both desks, empty; nobody is limited."""
    with Pair(tmp_path, databases, clock, make_served, rate=0) as both:
        yield both


@pytest.fixture
def filled(pair):
    """Both desks with a history, tickets since, some closed out of order, owners of tokens, and some nasty texts."""
    pair.do(lambda db: ticketapi.generate_history(db, 300, 9 * ticketapi.DAY, NOON - 2 * DAY, 5))
    pair.do(lambda db: ticketapi.generate_tickets(db, 40, NOON - HOUR, 5))
    pair.do(lambda db: close_out_of_order(db, [row[0] for row in newest_open(db)], NOON))
    pair.do(lambda db: ticketapi.process_tickets(db, 3, NOON))
    pair.run("UPDATE tickets SET subject = ?, content = ? WHERE id = ?", zip(NASTY, NASTY[::-1], range(1, 60), strict=False))
    return pair


def newest_open(db):
    """Return some open tickets, the newest first."""
    return db.execute("SELECT id FROM tickets WHERE status = 1 ORDER BY id DESC LIMIT 5").fetchall()


@pytest.fixture
def token(pair):
    """The text of a token that may do everything."""
    return pair.create_token("ann@example.com", "all", ["*"], 0, NOON)["token"]


def walk(pair, url, token):
    """Follow a list by its cursors to its end and back; return the ids of both ways."""
    ways = []
    for side in ("next", "prev"):
        seen = []
        while url:
            page = pair.get(url, token=token).json
            seen += [row["id"] for row in page["data"]]
            last, url = url, relative(page["links"][side])
        ways.append(seen)
        url = last
    return ways


def relative(link):
    """Return a link without its host."""
    return link and link.removeprefix("http://desk.test:8000")


# Every route --------------------------------------------------------------------------------------


def test_every_route_and_page_is_the_same(filled, token):
    for url in (*OTHERS, *(f"{base}?{query}" for base in LISTS for query in (*PAGES, *ODD))):
        answer = filled.get(url, token=token)
        assert answer.status in (200, 404, 422), url
    assert {row["status_code"] for row in filled.audits()} == {200, 404, 422}


def test_every_method_and_every_refusal_is_the_same(filled, token):
    texts = [None, "wrong", ticketapi.new_token_text()]
    texts += [filled.create_token("ann@example.com", "t", abilities, 0, NOON)["token"] for abilities in ([], ["read:audits"])]
    texts += [filled.create_token("bob@example.com", "t", ["*"], 1, NOON - HOUR)["token"]]
    for url in (*(base for base in LISTS), *OTHERS, AUDITS):
        for method in ("HEAD", "POST", "DELETE", "OPTIONS"):
            filled.request(method, url, token=token)
        for number, text in enumerate(texts):
            filled.get(url, token=text, address=f"192.0.2.{number}")
        filled.clock.advance(60)  # who guesses may go on
    assert {200, 204, 401, 403, 404, 405} <= {row["status_code"] for row in filled.audits()} | {204}


def test_who_has_an_answer_gets_304_from_either(filled, token):
    for url in (*LISTS, *OTHERS):
        etag = filled.get(url, token=token).headers.get("etag")
        if etag and url != "/metrics":
            for method in ("GET", "HEAD"):
                again = filled.request(method, url, token=token, headers={"If-None-Match": etag})
                if url not in ("/api/audits/summary",):  # which tells of the requests themselves
                    assert again.status == 304, url


@pytest.mark.parametrize("size", [7, 50])
@pytest.mark.parametrize("url", LISTS)
def test_a_walk_by_cursors_is_the_same_in_both_directions(filled, token, url, size):
    forward, back = walk(filled, f"{url}?cursor=&per_page={size}", token)
    assert len(forward) == len(set(forward)) > 3
    assert sorted(forward) == sorted(back)


# The audit log ------------------------------------------------------------------------------------


def test_the_audit_log_is_the_same_under_every_filter(filled, token):
    agents = ["curl/8", "\x1b[31m", "ü" * 300, "", "a'b\"c\\d"]
    for number, agent in enumerate(agents * 4):
        headers = {"User-Agent": agent.encode().decode("latin-1"), "Content-Type": "application/json"}
        body = json.dumps({"text": NASTY[number * 20], "password": "x"}).encode()
        filled.request("POST", f"/api/tickets/{number}%C3%BC%00?q={number}&token=secret", headers=headers, body=body)
        filled.get(f"/api/tickets/{number}", token=token, headers=headers)
        filled.clock.advance(7)
    assert len(filled.audits()) == 40
    for query in FILTERS:
        answer = filled.get(f"{AUDITS}?{query}", token=token)
        assert answer.status in (200, 422), query
    for query in ("status=2xx&per_page=3", "per_page=7", "user=ann@example.com&per_page=5", "path=/api/tickets/1&per_page=2"):
        forward, back = walk(filled, f"{AUDITS}?{query}", token)
        assert len(forward) == len(set(forward)) > 3
        assert set(forward) <= set(back)


# Texts --------------------------------------------------------------------------------------------


def show_texts(pair, token, texts):
    """Put texts into tickets and users of both desks, and have them shown in every list."""
    rows = [(text, text[::-1], number) for number, text in enumerate(texts, 1)]
    pair.run("UPDATE tickets SET subject = ?, content = ? WHERE id = ?", rows)
    names = [(text, f"{number}@{text[:200]}", number) for number, text in enumerate(texts, 1)]
    pair.run("UPDATE users SET name = ?, email = ? WHERE id = ?", names)
    pair.run("UPDATE tickets SET user_name = ?, user_email = ? WHERE user_id = ?", names)
    for base in ("/api/tickets/open", "/api/users", "/api/users/1/tickets"):
        answer, url = None, f"{base}?per_page=200"
        while url:
            answer = pair.get(url, token=token)
            assert answer.status == 200
            url = relative(answer.json["links"]["next"])
    return [pair.get(f"/api/tickets/{number}", token=token).json["data"]["subject"] for number in range(1, len(texts) + 1)]


def test_any_text_is_shown_as_it_is_and_the_same(pair, token):
    pair.do(lambda db: ticketapi.generate_tickets(db, len(NASTY), NOON, 1))
    assert show_texts(pair, token, NASTY) == NASTY


def test_any_made_up_text_is_the_same(pair, token):
    pair.do(lambda db: ticketapi.generate_tickets(db, 5, NOON, 1))
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)

    @settings(deadline=None, database=None, max_examples=examples(200))
    @given(st.lists(text, min_size=1, max_size=5))
    def look(texts):
        assert show_texts(pair, token, texts) == texts

    look()


# The limiter --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 7, 30, 600])
def test_the_limiter_counts_the_same_whatever_the_gaps(tmp_path, databases, rate):
    gaps = st.one_of(st.integers(0, 130).map(lambda n: n / 2), st.integers(0, 10**9).map(lambda n: n / 1e7))

    with Pair(tmp_path, databases, HandClock(), make_served, rate=rate) as pair:
        token = pair.create_token("ann@example.com", "all", ["*"], 0, NOON)["token"]

        @settings(deadline=None, database=None, max_examples=examples(60))
        @given(st.lists(st.tuples(gaps, st.integers(1, min(2 * rate, 40))), min_size=1, max_size=4))
        def look(steps):
            pair.clock.advance(61)  # the bucket is full
            for gap, requests in steps:
                pair.clock.advance(gap)
                for _ in range(requests):
                    pair.get("/api/stats", token=token)

        look()
        assert {row["status_code"] for row in pair.audits()} >= ({200, 429} if rate < 600 else {200})


def test_the_versions_are_told_apart(pair, token):
    """What differs: the figures of files, and which engine answers."""
    file, database = (api.get("/metrics").body.decode() for api in pair.apis)
    assert "ticketapi_wal_bytes{" in file
    assert "ticketapi_wal_bytes{" not in database
    assert sys.version.split()[0] in database
