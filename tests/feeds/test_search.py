"""GET /api/tickets: all tickets by arrival, those that filters want, in bounded work, there and back by cursors."""

from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from conftest import NOON, SECOND, create_ticket, examples, queries_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing import errors_of

import ticketapi

URL, HOST = "/api/tickets", "http://desk.test:8000"
HOUR = 3600


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def filled(api, db, pen):
    """A desk of 60 tickets, an hour apart every ten; some are closed, changed, opened again or deleted."""
    for batch in range(6):
        ticketapi.generate_tickets(db, 10, NOON + batch * HOUR * SECOND, seed=3)
    ticketapi.process_tickets(db, 15, NOON + 7 * HOUR * SECOND)
    with ticketapi.transaction(db):
        for number in (20, 40, 41, 59):
            ticketapi.update_ticket(db, number, {"status": 2}, NOON + 8 * HOUR * SECOND)
        for number in (3, 41):
            ticketapi.update_ticket(db, number, {"status": 1, "content": "100%_sure? It's Ä'x"}, NOON + 9 * HOUR * SECOND)
        for number in (1, 15, 30, 60):
            ticketapi.delete_ticket(db, number, NOON + 9 * HOUR * SECOND)
    return db


def fetch(api, token, url):
    """Return the page under a link or a path."""
    answer = api.get(url.removeprefix(HOST), token=token)
    assert answer.status == 200, answer.body
    return answer.json


def ids(page):
    """Return the ids of a page's tickets."""
    return [ticket["id"] for ticket in page["data"]]


def walk(api, token, url, direction="next"):
    """Follow links and return all pages."""
    pages = []
    while url:
        assert len(pages) < 1000, "a walk without an end"
        pages.append(fetch(api, token, url))
        url = pages[-1]["links"][direction]
    return pages


def wanted(db, filters):
    """Return the ids that filters want, as plain Python has them."""
    found = []
    since = {name: filters.get(name, "") for name in ("created_since", "updated_since")}
    for row in db.execute("SELECT * FROM tickets WHERE status > 0 ORDER BY id").fetchall():
        text, status = filters.get("q", ""), row["status"]
        if (
            filters.get("status", status) in (status, str(status), ("Open", "Closed")[status - 1])
            and filters.get("user", row["user_id"]) == row["user_id"]
            and row["created_at"] >= since["created_since"].replace("Z", ".000000Z")
            and row["updated_at"] >= since["updated_since"].replace("Z", ".000000Z")
            and (text in row["subject"] or text in row["content"])
        ):
            found.append(row["id"])
    return found[::-1] if filters.get("sort") == "-id" else found


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["Open", "Closed", "1", "2"]),
        "user": st.integers(1, 12),
        "created_since": st.sampled_from([f"2025-12-04T{hour}:00:00Z" for hour in range(11, 20)]),
        "updated_since": st.sampled_from([f"2025-12-04T{hour}:00:00Z" for hour in range(11, 23)]),
        "q": st.sampled_from(["a", "The", "the", "%", "_", "100%_sure", "It's", "Ä", "?", "zzz", "'"]),
        "sort": st.sampled_from(["id", "-id"]),
    },
)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILTERS, st.integers(1, 70))
def test_filters_do_what_plain_python_does_there_and_back(api, filled, pen, filters, per_page):
    expected = wanted(filled, filters)
    pages = walk(api, pen, f"{URL}?{urlencode(filters | {'per_page': per_page})}")
    assert [ticket_id for page in pages for ticket_id in ids(page)] == expected
    assert all(len(page["data"]) == per_page for page in pages[:-1])
    back = walk(api, pen, pages[-1]["links"]["prev"], "prev") if pages[-1]["links"]["prev"] else []
    before = len(expected) - len(pages[-1]["data"])
    assert [ticket_id for page in reversed(back) for ticket_id in ids(page)] == expected[:before]


def test_a_page_has_cursors_and_no_numbers(api, filled, pen):
    answer = api.get(f"{URL}?per_page=10", token=pen)
    assert list(answer.json) == ["data", "links", "meta"]
    assert list(answer.json["links"]) == ["first", "last", "prev", "next"]
    assert list(answer.json["meta"]) == ["path", "per_page", "next_cursor", "prev_cursor"]
    assert answer.json["links"]["prev"] is None
    assert answer.json["links"]["next"] == f"{HOST}{URL}?per_page=10&cursor={answer.json['meta']['next_cursor']}"
    assert answer.headers["link"] == f'<{answer.json["links"]["next"]}>; rel="next"'
    assert "x-total-count" not in answer.headers
    assert api.get(f"{URL}?per_page=10&page=3", token=pen).json == answer.json


def test_a_ticket_is_as_elsewhere(api, filled, pen):
    for ticket in fetch(api, pen, URL)["data"]:
        assert fetch(api, pen, f"{URL}/{ticket['id']}")["data"] == ticket


def test_the_last_page_offers_no_next_one(api, filled, pen):
    page = walk(api, pen, f"{URL}?per_page=28")[-1]  # 56 tickets
    assert (len(page["data"]), page["links"]["next"], page["meta"]["next_cursor"]) == (28, None, None)


def test_an_empty_desk_has_an_empty_page(api, pen):
    for query in ("", "?sort=-id", "?q=x&created_since=1d"):
        page = fetch(api, pen, f"{URL}{query}")
        assert (page["data"], page["links"]["next"], page["links"]["prev"]) == ([], None, None)


def test_links_carry_filters_on(api, filled, pen):
    query = {"status": "Open", "q": "é&=#+ /x", "sort": "-id", "per_page": "7"}
    create_ticket(filled, ("A", "a@b.example"), "é&=#+ /x", "b", NOON)
    for number in range(9):
        create_ticket(filled, ("A", "a@b.example"), f"é&=#+ /x {number}", "b", NOON)
    pages = walk(api, pen, f"{URL}?{urlencode(query)}")
    assert [len(page["data"]) for page in pages] == [7, 3]
    found = parse_qs(urlsplit(pages[0]["links"]["next"]).query)
    assert {name: texts[0] for name, texts in found.items() if name != "cursor"} == query


@pytest.mark.parametrize(
    "other", ["", "status=Open&", "status=2&", "status=Closed&sort=-id&", "status=Closed&q=a&", "status=Closed&user=1&"]
)
def test_a_cursor_with_other_filters_is_refused(api, filled, pen, other):
    cursor = fetch(api, pen, f"{URL}?status=Closed&per_page=2")["meta"]["next_cursor"]
    assert len(ids(fetch(api, pen, f"{URL}?status=Closed&per_page=9&cursor={cursor}"))) == 9
    assert list(errors_of(api.get(f"{URL}?{other}cursor={cursor}", token=pen))) == ["cursor"]


def test_durations_count_back_from_now(api, filled, pen, clock):
    clock.now = NOON + 4 * HOUR * SECOND
    assert ids(fetch(api, pen, f"{URL}?created_since=1h")) == wanted(filled, {"created_since": "2025-12-04T15:00:00Z"})
    assert len(ids(fetch(api, pen, f"{URL}?created_since=36500d&per_page=200"))) == 56


def test_the_moment_itself_is_since_then(api, filled, pen):
    moment = fetch(api, pen, f"{URL}/20")["data"]
    for name in ("created", "updated"):
        at, later = moment[f"{name}_at"], ticketapi.format_time(ticketapi.parse_time(moment[f"{name}_at"]) + 1)
        assert 20 in ids(fetch(api, pen, f"{URL}?{name}_since={at}&per_page=200"))
        assert 20 not in ids(fetch(api, pen, f"{URL}?{name}_since={later}&per_page=200"))


def test_new_tickets_are_met_by_who_has_come_to_the_end(api, filled, pen):
    last = walk(api, pen, f"{URL}?per_page=28")[-1]
    newer = fetch(api, pen, f"{URL}?sort=-id&per_page=10")
    create_ticket(filled, ("A", "a@b.example"), "new", "b", NOON)
    assert ids(fetch(api, pen, newer["links"]["next"]))[0] == ids(newer)[-1] - 1
    back = fetch(api, pen, fetch(api, pen, newer["links"]["next"])["links"]["prev"])
    assert ids(back) == ids(newer)
    assert ids(fetch(api, pen, back["links"]["prev"])) == [61]
    assert last["links"]["next"] is None


def test_where_a_ticket_was_deleted_a_cursor_goes_on(api, filled, pen):
    page = fetch(api, pen, f"{URL}?per_page=10")
    with ticketapi.transaction(filled):
        ticketapi.delete_ticket(filled, ids(page)[-1], NOON)
    assert ids(fetch(api, pen, page["links"]["next"]))[0] == ids(page)[-1] + 1


@pytest.mark.parametrize(
    "text", ["न\u200dम", "12\u202f€", "東京\u3000タワー", "a\tb\nc", "\u00ad", "👩\u200d💻", "\x1b[2J", " "]
)
def test_whatever_a_ticket_holds_can_be_searched_for(api, filled, pen, text):
    made = api.post("/api/tickets", {"subject": f"x{text}y", "content": "c", "user_id": 1}, token=pen).json["data"]
    assert ids(fetch(api, pen, f"{URL}?sort=-id&q={quote(f'x{text}y')}")) == [made["id"]]
    assert made["id"] in ids(fetch(api, pen, f"{URL}?sort=-id&q={quote(text)}"))


def test_what_is_searched_for_is_taken_literally(api, filled, pen):
    assert ids(fetch(api, pen, f"{URL}?q={quote('%_sure')}")) == [3, 41]
    assert ids(fetch(api, pen, f"{URL}?q={quote('100_')}")) == []
    assert ids(fetch(api, pen, f"{URL}?q={quote('SURE?')}")) == []


@pytest.mark.parametrize("sort", ["id", "-id"])
def test_a_search_that_finds_nothing_is_done_in_pieces(api, db, pen, monkeypatch, sort):
    monkeypatch.setattr(ticketapi, "SEARCH_SPAN", 100)
    ticketapi.generate_tickets(db, 2000, NOON, seed=3)
    statements = queries_of(api.readers.get().db)
    url, requests = f"{URL}?q=no+such+words&sort={sort}", 0
    while url:
        statements.clear()
        page = fetch(api, pen, url)
        assert sum("instr(" in sql for sql in statements) <= ticketapi.SEARCH_SPANS
        assert page["data"] == []
        url, requests, last = page["links"]["next"], requests + 1, page
    assert requests == 4
    with ticketapi.transaction(db):
        ticketapi.update_ticket(db, 1000, {"subject": "no such words"}, NOON)
    back = walk(api, pen, last["links"]["prev"], "prev")
    assert [ids(page) for page in back if page["data"]] == [[1000]]


def test_two_hundred_thousand_ids_are_read_through_in_several_requests(api, db, pen):
    ticketapi.generate_tickets(db, 2, NOON, seed=3)
    with ticketapi.transaction(db):
        db.execute("UPDATE tickets SET id = 200000 WHERE id = 2")
    for sort in ("id", "-id"):
        pages = walk(api, pen, f"{URL}?q=no+such+words&sort={sort}")
        assert [page["data"] for page in pages] == [[]] * 4
        assert all(page["meta"]["next_cursor"] for page in pages[:-1])


def test_a_cursor_may_lead_anywhere(api, filled, pen):
    scope = f"{HOST}{URL}?"
    for key in (0, 1, 59, 60, 61, 10**17):
        for forward in (True, False):
            cursor = ticketapi.encode_cursor(ticketapi.Cursor(key, forward), scope)
            page = fetch(api, pen, f"{URL}?cursor={cursor}&per_page=200")
            expected = [number for number in wanted(filled, {}) if (number > key if forward else number < key)]
            assert ids(page) == expected
            for direction in ("prev", "next"):
                walk(api, pen, f"{URL}?cursor={cursor}&per_page=9", direction)


def test_head_and_conditions_work_as_elsewhere(api, filled, pen):
    get = api.get(f"{URL}?status=Open", token=pen)
    head = api.request("HEAD", f"{URL}?status=Open", token=pen)
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", get.headers["etag"])
    assert api.get(f"{URL}?status=Open", token=pen, headers={"If-None-Match": get.headers["etag"]}).status == 304
