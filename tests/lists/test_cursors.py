"""A walk by `?cursor=` meets every ticket once, whatever happens to the desk meanwhile; a cursor is good for its list alone."""

import base64
import string
import tempfile
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import IN_CI, NOON, SECOND, Api, HandClock, close_out_of_order, examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ticketapi

HOST = "http://desk.test:8000"
OPEN, CLOSED, OF_A_USER, OF_ANOTHER = "/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/users/2/tickets"
LISTS = {
    OPEN: "SELECT id FROM tickets WHERE status = 1 ORDER BY created_at, id",
    CLOSED: "SELECT id FROM tickets WHERE status = 2 ORDER BY closed_at DESC, id DESC",
    OF_A_USER: "SELECT id FROM tickets WHERE user_id = 1 ORDER BY created_at DESC, id DESC",
}
OTHER_LISTS = [(url, other) for url in (*LISTS, OF_ANOTHER) for other in (*LISTS, OF_ANOTHER) if url != other]
ENVELOPE = {
    "links": ["first", "last", "prev", "next"],
    "meta": ["path", "per_page", "next_cursor", "prev_cursor"],
}


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def filled(db):
    """A desk of 150 tickets, 60 of them closed, the last ten out of order; user 1 and 2 wrote some."""
    ticketapi.generate_tickets(db, 150, NOON, 1)
    ticketapi.process_tickets(db, 50, NOON + SECOND)
    close_out_of_order(db, range(140, 90, -5), NOON + 2 * SECOND)
    return db


def listed(db, url):
    """Return the ids of a list in its order, as a plain query has them."""
    return [row[0] for row in db.execute(LISTS[url])]


def ids_of(page):
    """Return the ids of a page's tickets."""
    return [ticket["id"] for ticket in page["data"]]


def fetch(api, token, url):
    """Return the page under a link or a path."""
    answer = api.get(url.removeprefix(HOST), token=token)
    assert answer.status == 200, answer.body
    return answer.json


def walk(api, token, url, direction="next"):
    """Follow links from a page on and return all pages."""
    pages = []
    while url:
        assert len(pages) < 1000, "a walk without an end"
        pages.append(fetch(api, token, url))
        url = pages[-1]["links"][direction]
    return pages


def some_cursor(api, token, url):
    """Return the cursor behind the first two tickets of a list."""
    return fetch(api, token, f"{url}?cursor=&per_page=2")["meta"]["next_cursor"]


def refused(api, token, url, cursor):
    """Check that a cursor (a text, not yet percent-encoded) is refused by name, in Laravel's envelope."""
    answer = api.get(f"{url}?cursor={quote(cursor, safe='')}", token=token)
    assert answer.status == 422, cursor
    assert list(answer.json) == ["message", "errors"]
    assert list(answer.json["errors"]) == ["cursor"]
    assert answer.json["errors"]["cursor"] == [answer.json["message"]]
    assert "cursor field" in answer.json["message"]


# The envelope ------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize("query", ["?cursor=", "?cursor=&per_page=2", "?cursor=&per_page=200"])
def test_the_envelope_is_that_of_cursor_paginate(api, filled, token, url, query):
    page = fetch(api, token, url + query)
    assert list(page) == ["data", "links", "meta"]
    assert {key: list(page[key]) for key in ENVELOPE} == ENVELOPE
    assert (page["links"]["first"], page["links"]["last"]) == (None, None)
    assert (page["links"]["prev"], page["meta"]["prev_cursor"]) == (None, None)
    assert page["meta"]["path"] == HOST + url


@pytest.mark.parametrize("url", LISTS)
def test_a_ticket_looks_as_it_does_on_a_page(api, filled, token, url):
    assert fetch(api, token, f"{url}?cursor=")["data"] == fetch(api, token, url)["data"]


@pytest.mark.parametrize("url", LISTS)
def test_the_links_hold_the_cursors_of_meta(api, filled, token, url):
    middle = walk(api, token, f"{url}?cursor=&per_page=2")[1]
    links, meta = middle["links"], middle["meta"]
    assert links["next"] == f"{HOST}{url}?cursor={meta['next_cursor']}&per_page=2"
    assert links["prev"] == f"{HOST}{url}?cursor={meta['prev_cursor']}&per_page=2"
    assert meta["next_cursor"] != meta["prev_cursor"]


@pytest.mark.parametrize("url", [OPEN, CLOSED])
def test_links_do_not_mention_per_page_unless_it_was_given(api, filled, token, url):
    page = fetch(api, token, f"{url}?cursor=")
    assert page["links"]["next"] == f"{HOST}{url}?cursor={page['meta']['next_cursor']}"
    assert page["meta"]["per_page"] == len(page["data"]) == 50


@pytest.mark.parametrize(("given_", "used"), [("1000", 200), ("0", 1), ("-5", 1), ("+7", 7)])
def test_links_carry_the_per_page_that_was_used(api, filled, token, given_, used):
    ticketapi.generate_tickets(filled, 200, NOON, 1)
    page = fetch(api, token, f"{OPEN}?cursor=&per_page={quote(given_)}")
    assert page["meta"]["per_page"] == len(page["data"]) == used
    assert page["links"]["next"].endswith(f"&per_page={used}")


def test_a_cursor_is_opaque_and_fits_a_url_as_it_is(api, filled, token):
    for url in LISTS:
        for page in walk(api, token, f"{url}?cursor=&per_page=5"):
            texts = {page["meta"]["next_cursor"], page["meta"]["prev_cursor"]} - {None}
            assert all(set(text) <= set(string.ascii_letters + string.digits + "-_") for text in texts)


@pytest.mark.parametrize("url", LISTS)
def test_an_empty_list_has_no_cursors(api, db, token, url):
    ticketapi.insert_users(db, [(1, "Ann", "ann@example.com", ticketapi.format_time(NOON))])
    page = fetch(api, token, f"{url}?cursor=")
    assert page["data"] == []
    assert set(page["links"].values()) == {None}
    assert (page["meta"]["next_cursor"], page["meta"]["prev_cursor"]) == (None, None)


def test_the_walk_of_an_unknown_user_is_not_found(api, filled, token):
    assert api.get("/api/users/999999/tickets?cursor=", token=token).status == 404


# A walk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize("per_page", [1, 2, 3, 7, 50, 200])
def test_walking_by_next_meets_every_ticket_once_in_order(api, filled, token, url, per_page):
    pages, expected = walk(api, token, f"{url}?cursor=&per_page={per_page}"), listed(filled, url)
    assert [ticket_id for page in pages for ticket_id in ids_of(page)] == expected
    assert len(pages) == -(-len(expected) // per_page)
    assert pages[-1]["meta"]["next_cursor"] is None


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize("per_page", [1, 2, 3, 7])
def test_walking_back_by_prev_ends_exactly_at_the_beginning(api, filled, token, url, per_page):
    last = walk(api, token, f"{url}?cursor=&per_page={per_page}")[-1]
    back = walk(api, token, last["links"]["prev"], "prev")[::-1]
    expected = listed(filled, url)
    assert [ticket_id for page in (*back, last) for ticket_id in ids_of(page)] == expected
    assert ids_of(back[0])[0] == expected[0]
    assert (back[0]["links"]["prev"], back[0]["meta"]["prev_cursor"]) == (None, None)
    assert len(back) == -(-(len(expected) - len(last["data"])) // per_page)


@pytest.mark.parametrize("url", LISTS)
def test_prev_and_next_lead_back_and_forth(api, filled, token, url):
    pages = walk(api, token, f"{url}?cursor=&per_page=3")
    for earlier, later in pairwise(pages):
        assert ids_of(fetch(api, token, later["links"]["prev"])) == ids_of(earlier)
        assert fetch(api, token, fetch(api, token, later["links"]["prev"])["links"]["next"]) == later


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize("per_page", [1, 4, 50])
def test_the_next_cursor_of_a_page_continues_exactly_after_it(api, filled, token, url, per_page):
    expected = listed(filled, url)
    for number in range(1, -(-len(expected) // per_page) + 2):
        cursor = fetch(api, token, f"{url}?page={number}&per_page={per_page}")["meta"]["next_cursor"]
        rest = expected[number * per_page :]
        assert (cursor is None) is (rest == [])
        if cursor:
            assert ids_of(fetch(api, token, f"{url}?cursor={cursor}&per_page=5")) == rest[:5]


@pytest.mark.parametrize("url", LISTS)
def test_a_cursor_wins_over_a_page(api, filled, token, url):
    for cursor in ("", some_cursor(api, token, url)):
        alone = api.get(f"{url}?cursor={cursor}&per_page=3", token=token)
        for both in (f"?cursor={cursor}&per_page=3&page=2", f"?page=9&cursor={cursor}&per_page=3"):
            assert api.get(url + both, token=token).body == alone.body


@pytest.mark.parametrize("url", LISTS)
def test_a_cursor_is_good_under_every_name_of_the_host(api, filled, token, url):
    cursor = some_cursor(api, token, url)
    expected = fetch(api, token, f"{url}?cursor={cursor}")
    for host, scheme, slash in (("other.example", "https", ""), ("[::1]:9", "http", ""), ("desk.test:8000", "http", "/")):
        page = api.get(f"{url}{slash}?cursor={cursor}", token=token, headers={"Host": host}, scheme=scheme).json
        assert page["data"] == expected["data"]
        assert page["meta"] == expected["meta"] | {"path": f"{scheme}://{host}{url}"}


def test_a_cursor_outlives_the_server(make_api, filled, token):
    cursor = some_cursor(make_api(rate=0), token, CLOSED)
    assert ids_of(fetch(make_api(rate=0), token, f"{CLOSED}?cursor={cursor}")) == listed(filled, CLOSED)[2:52]


# The desk lives on meanwhile ---------------------------------------------------------------------


def test_closings_during_a_walk_of_the_closed_tickets_are_seen_on_the_way_back(api, filled, token):
    before = listed(filled, CLOSED)
    cursor = some_cursor(api, token, CLOSED)
    ticketapi.process_tickets(filled, 3, NOON)
    page = fetch(api, token, f"{CLOSED}?cursor={cursor}&per_page=200")
    assert ids_of(page) == before[2:]
    assert ids_of(fetch(api, token, page["links"]["prev"])) == listed(filled, CLOSED)[:5]


def test_a_walk_of_the_open_tickets_goes_on_after_a_ticket_that_was_closed_meanwhile(api, filled, token):
    before = listed(filled, OPEN)
    cursor = some_cursor(api, token, OPEN)
    ticketapi.process_tickets(filled, 5, NOON)
    page = fetch(api, token, f"{OPEN}?cursor={cursor}&per_page=200")
    assert ids_of(page) == before[5:]
    assert page["links"]["prev"] is None


def test_before_a_place_whose_earlier_tickets_are_all_closed_there_is_nothing(api, filled, token):
    link = walk(api, token, f"{OPEN}?cursor=&per_page=3")[1]["links"]["prev"]
    assert len(fetch(api, token, link)["data"]) == 3
    ticketapi.process_tickets(filled, 10, NOON)
    page = fetch(api, token, link)
    assert (page["data"], page["links"]["prev"]) == ([], None)


@contextmanager
def living_desk():
    """Open the app over a desk of its own, with 40 tickets of which 20 are closed; give (api, token, db)."""
    with tempfile.TemporaryDirectory() as folder:
        chosen, clock = ticketapi.Settings(db=Path(folder, "desk.db"), rate=0), HandClock()
        with (
            closing(ticketapi.open_database(chosen.db, "desk")) as db,
            closing(ticketapi.Readers(chosen.db)) as readers,
            closing(ticketapi.AuditLog(chosen.audit_db)) as audit,
        ):
            token = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)["token"]
            ticketapi.generate_tickets(db, 40, NOON, 1)
            ticketapi.process_tickets(db, 20, NOON)
            yield Api(chosen, clock, readers, audit, ticketapi.make_app(chosen, readers, audit, clock)), token, db


events = st.one_of(
    st.just(("nothing", 0)),
    st.tuples(st.just("arrive"), st.integers(1, 12)),
    st.tuples(st.just("process"), st.integers(1, 12)),
    st.tuples(st.just("close"), st.lists(st.integers(0, 39), min_size=1, max_size=5, unique=True)),
)


def happen(db, event):
    """Let tickets arrive, be closed in turn, or be closed out of turn."""
    kind, what = event
    if kind == "arrive":
        ticketapi.generate_tickets(db, what, NOON, 1)
    elif kind == "process":
        ticketapi.process_tickets(db, what, NOON)
    elif kind == "close":
        waiting = listed(db, OPEN)
        close_out_of_order(db, [waiting[index] for index in what if index < len(waiting)], NOON)


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(list(LISTS)),
    st.sampled_from(["next", "prev"]),
    st.sampled_from([1, 2, 3, 7]),
    st.lists(events, max_size=15),
)
@example(OPEN, "next", 3, [("process", 2), ("close", [3, 4, 5]), ("arrive", 5), ("process", 12)])
@example(OPEN, "prev", 3, [("process", 2), ("close", [3, 4, 5]), ("arrive", 5), ("process", 12)])
@example(CLOSED, "next", 2, [("process", 3), ("close", [0, 5]), ("arrive", 5), ("process", 12)])
@example(OF_A_USER, "next", 1, [("arrive", 12), ("arrive", 12)])
@example(OF_A_USER, "prev", 1, [("arrive", 12), ("arrive", 12)])
def test_a_walk_meets_every_ticket_that_stayed_exactly_once(url, direction, per_page, happening):
    with living_desk() as (api, token, db):
        link = f"{url}?cursor=&per_page={per_page}"
        met, stayed = [], set(listed(db, url))
        if direction == "prev":
            last = walk(api, token, link)[-1]
            link, met = last["links"]["prev"], ids_of(last)
        happening = iter(happening)
        while link:
            assert len(met) < 1000, "a walk without an end"
            page = fetch(api, token, link)
            met, link = met + ids_of(page), page["links"][direction]
            if link:
                happen(db, next(happening, ("nothing", 0)))
                stayed &= set(listed(db, url))
        assert len(met) == len(set(met))
        assert stayed <= set(met)


# What is no cursor of the list -------------------------------------------------------------------


@pytest.mark.parametrize(("url", "other"), OTHER_LISTS)
def test_a_cursor_of_another_list_is_refused(api, filled, token, url, other):
    refused(api, token, url, some_cursor(api, token, other))


@pytest.mark.parametrize("url", LISTS)
def test_a_cursor_with_any_character_changed_is_refused(api, filled, token, url):
    """To every other one in CI; elsewhere each place has its turn with some of them."""
    cursor, step = some_cursor(api, token, url), 1 if IN_CI else 5
    for position, kept in enumerate(cursor):
        letters = (string.ascii_letters + string.digits + "-_").replace(kept, "") + "+/=. é\n\x00"
        for letter in letters[position % step :: step]:
            refused(api, token, url, cursor[:position] + letter + cursor[position + 1 :])


@pytest.mark.parametrize("url", LISTS)
def test_a_cursor_that_was_cut_is_refused(api, filled, token, url):
    cursor = some_cursor(api, token, url)
    for length in range(1, len(cursor)):
        refused(api, token, url, cursor[:length])
        refused(api, token, url, cursor[length:])


@pytest.mark.parametrize("url", LISTS)
def test_a_cursor_that_was_lengthened_is_refused(api, filled, token, url):
    cursor = some_cursor(api, token, url)
    for more in [*string.printable, "=", "==", "===", "====", "A==", "AA", "AAAA", "é", "\x00", cursor]:
        refused(api, token, url, cursor + more)
        refused(api, token, url, more + cursor)


@pytest.mark.parametrize("key", ["", "-1", "+1", "1.0", "1e3", "٣", "9" * 19, "9" * 30, "9" * 4000, " 1", "1\n", "0x1", "1,2"])
def test_what_holds_no_number_is_refused_whoever_signs_it(api, filled, token, key):
    for payload in ("n" + key, "p" + key, "N" + key, key, "np" + key):
        signed = f"{payload}.{ticketapi.cursor_check(payload, HOST + OPEN)}"
        refused(api, token, OPEN, base64.urlsafe_b64encode(signed.encode()).decode().rstrip("="))


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize("forward", [True, False])
def test_a_cursor_beside_the_list_breaks_nothing(api, filled, token, url, forward):
    for key in (0, 1, 10**6, 10**18 - 1):
        cursor = ticketapi.encode_cursor(ticketapi.Cursor(key, forward), HOST + url)
        page = fetch(api, token, f"{url}?cursor={cursor}")
        assert set(ids_of(page)) <= set(listed(filled, url))
        for link in filter(None, (page["links"]["next"], page["links"]["prev"])):
            assert ids_of(fetch(api, token, link.removeprefix(HOST)))


@pytest.mark.parametrize("url", LISTS)
def test_what_never_was_a_cursor_is_refused(api, filled, token, url):
    for cursor in ("null", "0", "1", "=", "====", "%", "eyJpZCI6MX0", "a" * 5000, "\ud7ff", "😀", "n1.0", "[]", " "):
        refused(api, token, url, cursor)


def test_no_random_text_is_a_cursor(api, filled, token):
    encoded = st.binary(min_size=1, max_size=40).map(lambda data: base64.urlsafe_b64encode(data).decode())
    plain = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)

    @settings(max_examples=examples(200), deadline=None, database=None)
    @given(st.one_of(encoded, encoded.map(lambda text: text.rstrip("=")), plain))
    def check(text):
        refused(api, token, OPEN, text)

    check()


def test_a_wrong_cursor_is_named_beside_the_other_wrong_fields(api, filled, token):
    answer = api.get(f"{OPEN}?cursor=x&page=y&per_page=z", token=token)
    assert answer.status == 422
    assert set(answer.json["errors"]) == {"page", "per_page", "cursor"}
    assert answer.json["message"].endswith(" (and 2 more errors)")


def test_a_wrong_cursor_is_audited(api, filled, token):
    api.get(f"{OPEN}?cursor=x", token=token)
    [row] = api.audits()
    assert (row["status_code"], row["query"], row["route_name"]) == (422, '{"cursor":"x"}', "tickets.open")
