"""Pages have the envelope of the original, key by key: recorded answers are the judge."""

import json
import re
from contextlib import closing

import pytest
from conftest import NOON, ROOT, SECOND
from hypothesis import given
from hypothesis import strategies as st

import ticketapi

CONTRACT = ROOT / "tests/contract"
URL = "http://127.0.0.1/api/tickets/open"


def recorded(name):
    """Return a recorded answer of the original."""
    return json.loads((CONTRACT / name).read_text())


PAGES = recorded("pages.json")


def shape(value):
    """Return keys, order and types of a JSON value; of a list, the shape of its first element."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", value):
        return "time"
    return type(value).__name__


def ask(page=1, per_page=None, url=URL):
    """Return a ListRequest, read from texts as a query has them."""
    query = {"page": str(page)} | ({} if per_page is None else {"per_page": str(per_page)})
    return ticketapi.parse_list_request(url, query)


def envelope(asked, total, rows, after=False):
    """Return a page with so many tickets, each an empty object, out of a list of `total`."""
    tickets = ticketapi.Tickets(b",".join([b"{}"] * rows), rows, 1, rows)
    return json.loads(ticketapi.render_list(asked, total, ticketapi.Slice(tickets, rows, 1, False, after)))


def without_per_page(value):
    """Take `per_page` out of all URLs: the original forgot it."""
    return json.loads(re.sub(r"(\?page=\d+)&per_page=\d+", r"\1", json.dumps(value)))


@pytest.fixture
def reader(desk, db):
    """A connection that only reads, as requests have it."""
    with closing(ticketapi.connect(desk, ticketapi.READER)) as connection:
        yield connection


@pytest.fixture
def busy(db, reader):
    """A connection that reads a desk of 114 tickets, ten of them closed."""
    ticketapi.generate_tickets(db, 114, NOON, 1)
    ticketapi.process_tickets(db, 10, NOON + SECOND)
    return reader


# The envelope -------------------------------------------------------------------------------------


def test_there_are_120_recorded_cases():
    assert len(PAGES) == 120


@pytest.mark.parametrize("case", PAGES, ids=lambda case: f"{case['total']}-{case['per_page']}-{case['page']}")
def test_a_page_links_as_the_original_does(case):
    page = envelope(ask(case["page"], case["per_page"]), case["total"], case["rows"])
    assert list(page) == ["data", "links", "meta"]
    assert len(page["data"]) == case["rows"]
    assert without_per_page(page["links"]) == case["links"]
    assert list(page["links"]) == list(case["links"])
    kept = dict(list(without_per_page(page["meta"]).items())[: len(case["meta"])])
    assert kept == case["meta"]
    assert list(kept) == list(case["meta"])
    assert [list(link) for link in page["meta"]["links"]] == [list(link) for link in case["meta"]["links"]]


@pytest.mark.parametrize("after", [False, True])
def test_what_is_new_stands_after_the_keys_of_the_original(after):
    meta = envelope(ask(1, 7), 100, 7, after)["meta"]
    assert list(meta) == [*PAGES[0]["meta"], "next_cursor"]
    assert (meta["next_cursor"] is not None) is after


@pytest.mark.parametrize("host", ["desk.example.com:8000", "[::1]", "my_desk", 'not"a\\host', "d\u00e9sk\u2028"])
def test_a_page_is_json_under_any_name_of_the_host(host):
    url = f"http://{host}/api/tickets/open"
    page = envelope(ask(2, url=url), 1000, 50, True)
    assert (page["meta"]["path"], page["links"]["next"]) == (url, f"{url}?page=3")
    assert page["meta"]["links"][1]["url"] == f"{url}?page=1"


def test_urls_carry_per_page_when_the_client_gave_it():
    page = envelope(ask(2, 7), 100, 7)
    links = [link["url"] for link in page["meta"]["links"] if link["url"]] + list(page["links"].values())
    assert links
    assert all(re.fullmatch(re.escape(URL) + r"\?page=\d+&per_page=7", link) for link in links)
    assert page["meta"]["path"] == URL


def test_urls_do_without_per_page_when_the_client_did():
    page = envelope(ask(2), 1000, 50)
    assert page["links"]["next"] == URL + "?page=3"
    assert "per_page" not in json.dumps(page["links"])


@pytest.mark.parametrize(("given_", "used"), [("1000", 200), ("0", 1), ("-5", 1)])
def test_urls_carry_the_per_page_that_was_used(given_, used):
    assert envelope(ask(1, given_), 1000, 1)["links"]["next"].endswith(f"?page=2&per_page={used}")


@given(st.integers(0, 10**7), st.integers(1, 10**6), st.integers(1, 200))
def test_every_window_is_that_of_laravel(total, page, per_page):
    last = max(1, -(-total // per_page))
    links = envelope(ask(page, per_page), total, 0)["meta"]["links"]
    pages = [link.get("page") for link in links[1:-1]]
    labels = [link["label"] for link in links[1:-1]]
    assert labels == [str(number) if number else "..." for number in pages]
    if last < 14:
        assert pages == list(range(1, last + 1))
    else:
        assert {1, 2, last - 1, last} <= set(pages)
        assert {number for number in range(page - 3, page + 4) if 1 <= number <= last and page <= last} <= set(pages)
        assert len(pages) == 13
    assert [link["label"] for link in links if link["active"]] == ([str(page)] if page <= last else [])
    assert all(link == {"url": None, "label": "...", "active": False} for link in links if link["label"] == "...")


# What was asked for -------------------------------------------------------------------------------

WHOLE = [
    ("1", 1),
    ("2", 2),
    ("007", 7),
    ("+7", 7),
    (" 7", 7),
    ("7 ", 7),
    ("0", 1),
    ("-1", 1),
    ("-" + "9" * 25, 1),
    ("0" * 5000 + "7", 7),
    ("", None),
]
NO_NUMBERS = ["1.5", "abc", "٣", "1e3", "0x1", "1,000", "7.", "--7", "7-", " ", "null", "1\x00", "²", "7 8", "9" * 5000 + "x"]


@pytest.mark.parametrize(("text", "number"), WHOLE)
def test_a_page_is_a_whole_number_and_at_least_one(text, number):
    assert ticketapi.parse_list_request(URL, {"page": text}).page == (number or 1)


@pytest.mark.parametrize(("text", "number"), [*WHOLE, ("200", 200), ("201", 200), ("9" * 25, 200), ("9" * 5000, 200)])
def test_per_page_is_a_whole_number_from_1_to_200(text, number):
    asked = ticketapi.parse_list_request(URL, {"per_page": text})
    assert asked.per_page == (number or 50)
    assert asked.keep_per_page == (text != "")


def test_without_a_query_it_is_page_1_of_50():
    assert ticketapi.parse_list_request(URL, {}) == ticketapi.ListRequest(URL, 1, 50, False, False, None)


@pytest.mark.parametrize("text", ["1000", "9" * 18, "9" * 19, "9" * 25, "9" * 5000, "+" + "9" * 25])
@pytest.mark.parametrize("per_page", ["1", "200"])
def test_a_page_too_large_is_past_the_end(busy, text, per_page):
    asked = ticketapi.parse_list_request(URL, {"page": text, "per_page": per_page})
    for show, total in ((show_open, 104), (show_closed, 10), (show_user, show_user(busy, ask())["meta"]["total"])):
        page = show(busy, asked)
        assert page["data"] == []
        assert (page["meta"]["from"], page["meta"]["to"], page["meta"]["total"]) == (None, None, total)
        assert (page["links"]["next"], page["meta"]["next_cursor"]) == (None, None)


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize(("field", "label"), [("page", "page"), ("per_page", "per page")])
def test_what_is_no_whole_number_is_refused_by_name(field, label, text):
    with pytest.raises(ticketapi.InvalidFields) as caught:
        ticketapi.parse_list_request(URL, {field: text})
    message = f"The {label} field must be an integer."
    assert caught.value.errors == {field: [message]}
    assert str(caught.value) == message


def test_both_wrong_fields_are_named():
    with pytest.raises(ticketapi.InvalidFields) as caught:
        ticketapi.parse_list_request(URL, {"page": "x", "per_page": "y"})
    assert list(caught.value.errors) == ["page", "per_page"]
    assert str(caught.value) == "The page field must be an integer. (and 1 more error)"


# Lists and figures --------------------------------------------------------------------------------


def show_open(db, asked):
    return json.loads(ticketapi.open_tickets_page(db, asked))


def show_closed(db, asked):
    return json.loads(ticketapi.closed_tickets_page(db, asked))


def show_user(db, asked, user_id=1):
    return json.loads(ticketapi.user_tickets_page(db, user_id, asked))


LISTS = [(ticketapi.OPEN, show_open), (ticketapi.CLOSED, show_closed), (ticketapi.OPEN, show_user)]


@pytest.mark.parametrize(
    ("name", "make"),
    [("tickets-open.json", show_open), ("tickets-closed.json", show_closed), ("user-tickets.json", show_user)],
)
def test_a_list_has_the_keys_order_and_types_of_the_original(busy, name, make):
    answer = recorded(name)
    page = make(busy, ask(url=answer["meta"]["path"]))
    assert shape(page["data"]) == shape(answer["data"])
    assert shape(page["links"]) == shape(answer["links"])
    assert shape(page["meta"])[: len(answer["meta"])] == shape(answer["meta"])
    assert list(page) == list(answer)


def test_a_list_has_as_many_pages_as_the_original(busy):
    answer = recorded("tickets-open.json")
    page = show_open(busy, ask(url=answer["meta"]["path"]))
    assert page["links"] == answer["links"]
    assert dict(list(page["meta"].items())[: len(answer["meta"])]) == answer["meta"]


@pytest.mark.parametrize("per_page", [1, 2, 3, 200])
@pytest.mark.parametrize(("status", "show"), LISTS)
def test_no_page_repeats_or_loses_a_ticket_of_equal_time(db, reader, status, show, per_page):
    noon, closed = ticketapi.format_time(NOON), status == ticketapi.CLOSED
    ids = [1, 2, 3, 5, 7]
    ticketapi.insert_users(db, [(1, "Ann", "a@example.com", noon)])
    end = (lambda number: (noon, number)) if closed else (lambda _: (None, None))
    rows = [
        (n, 1, number, "Ann", "a@example.com", "s", "c", status, noon, noon, *end(number), number)
        for number, n in enumerate(ids, 1)
    ]
    ticketapi.insert_tickets(db, rows)
    ticketapi.rebuild_counters(db)
    shown = [ticket["id"] for page in range(1, 7) for ticket in show(reader, ask(page, per_page))["data"]]
    assert shown == (ids if show is show_open else ids[::-1])


def test_a_ticket_is_shown_with_its_author(busy):
    [ticket] = show_closed(busy, ask(1, 1))["data"]
    user, subject, content = ticketapi.compose_ticket(ticketapi.load_words(), 1, 10)
    assert ticket == {
        "id": 10,
        "subject": subject,
        "content": content,
        "status": "Closed",
        "status_id": 2,
        "created_at": ticketapi.format_time(NOON + 9),
        "updated_at": ticketapi.format_time(NOON + SECOND + 9),
        "user": {key: ticketapi.find_user(busy, user)[key] for key in ("id", "name", "email")},
    }


def test_stats_have_the_keys_order_and_types_of_the_original(busy):
    answer, stats = recorded("stats.json"), ticketapi.desk_stats(busy)
    assert shape(stats) == shape(answer)
    assert (stats["total_tickets"], stats["total_unprocessed_tickets"]) == (114, 104)
    assert stats["most_recent_processed_at"] == "2025-12-04 12:00:01"
    most = busy.execute("SELECT user_id FROM tickets GROUP BY user_id ORDER BY count(*) DESC, user_id LIMIT 1")
    assert stats["top_user"]["id"] == most.fetchone()[0]


def test_the_stats_of_an_empty_desk_have_nothing_to_name(db):
    assert ticketapi.desk_stats(db) == {
        "total_tickets": 0,
        "total_unprocessed_tickets": 0,
        "top_user": None,
        "most_recent_processed_at": None,
    }


def test_an_owner_of_tokens_is_no_customer(db, reader):
    owner = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)["user_id"]
    with pytest.raises(ticketapi.NotFound):
        show_user(reader, ask(), owner)


@pytest.mark.parametrize("user_id", [0, 99, 10**18])
def test_the_tickets_of_nobody_are_not_found(reader, user_id):
    with pytest.raises(ticketapi.NotFound, match=rf"^There is no user with the id {user_id}\.$"):
        show_user(reader, ask(), user_id)
    assert not reader.in_transaction


def test_json_is_compact_and_keeps_every_character():
    value = {"name": "Zoë 😀", "list": [1, None, True]}
    text = ticketapi.to_json(value)
    assert json.loads(text) == value
    assert b": " not in text
    assert b", " not in text
