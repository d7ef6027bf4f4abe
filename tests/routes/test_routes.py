"""The four lists and figures under /api and the sign of life at /up answer as the original's clients expect."""

import json

import pytest
from conftest import NOON, ROOT, SECOND

import ticketapi

CONTRACT = ROOT / "tests" / "contract"
USER_TICKETS = "/api/users/1/tickets"
LISTS = ("/api/tickets/open", "/api/tickets/closed", USER_TICKETS)
ROUTES = (*LISTS, "/api/stats", "/up")


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def filled(db):
    """A desk as the original's was when it was recorded: 114 tickets, the first 10 of them closed."""
    for minute in (0, 1):
        ticketapi.generate_tickets(db, 57, NOON + minute * 60 * SECOND, seed=7)
        ticketapi.process_tickets(db, 5, NOON + (10 + minute) * 60 * SECOND)
    return db


def ids_of(db, sql):
    """Return the first column of a query."""
    return [row[0] for row in db.execute(sql)]


EXPECTED_IDS = {
    "/api/tickets/open": "SELECT id FROM tickets WHERE status = 1 ORDER BY created_at",
    "/api/tickets/closed": "SELECT id FROM tickets WHERE status = 2 ORDER BY closed_at DESC",
    USER_TICKETS: "SELECT id FROM tickets WHERE user_id = 1 ORDER BY created_at DESC",
}


def shape(value):
    """Return keys in their order and types, at any depth; of a list, the different shapes of its items."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        shapes = [shape(item) for item in value]
        return [item for index, item in enumerate(shapes) if item not in shapes[:index]]
    return type(value).__name__


def as_the_original(page):
    """Return a page without what is new, which stands at the end of `meta`."""
    if "meta" in page:
        *kept, new = page["meta"]
        assert new == "next_cursor"
        page["meta"] = {key: page["meta"][key] for key in kept}
    return page


def walk(api, token, url):
    """Follow `links.next` from a page to the last one and return all answers."""
    pages = []
    while url:
        pages.append(api.get(url.removeprefix("http://desk.test:8000"), token=token).json)
        url = pages[-1]["links"]["next"]
    return pages


# What the routes answer --------------------------------------------------------------------------


@pytest.mark.parametrize("url", LISTS)
def test_a_list_is_in_its_order(api, filled, token, url):
    expected = ids_of(filled, EXPECTED_IDS[url])
    assert len(expected) > 2
    assert [ticket["id"] for ticket in api.get(url, token=token).json["data"]] == expected[:50]


def test_open_tickets_come_oldest_first_and_closed_ones_most_recently_closed_first(api, filled, token):
    waiting = api.get("/api/tickets/open", token=token).json["data"]
    closed = api.get("/api/tickets/closed", token=token).json["data"]
    assert [ticket["created_at"] for ticket in waiting] == sorted(ticket["created_at"] for ticket in waiting)
    assert [ticket["updated_at"] for ticket in closed] == sorted((ticket["updated_at"] for ticket in closed), reverse=True)
    assert {(ticket["status"], ticket["status_id"]) for ticket in waiting} == {("Open", 1)}
    assert {(ticket["status"], ticket["status_id"]) for ticket in closed} == {("Closed", 2)}


def test_a_users_tickets_are_all_theirs_open_and_closed(api, filled, token):
    page = api.get(USER_TICKETS, token=token).json
    assert {ticket["user"]["id"] for ticket in page["data"]} == {1}
    assert page["meta"]["total"] == len(ids_of(filled, EXPECTED_IDS[USER_TICKETS]))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/api/tickets/open", "tickets-open"),
        ("/api/tickets/closed", "tickets-closed"),
        (USER_TICKETS, "user-tickets"),
        ("/api/stats", "stats"),
    ],
)
def test_an_answer_has_the_keys_key_order_and_types_of_the_original(api, filled, token, url, name):
    recorded = json.loads((CONTRACT / f"{name}.json").read_text())
    assert shape(as_the_original(api.get(url, token=token).json)) == shape(recorded)


@pytest.mark.parametrize("url", LISTS[:2])
def test_meta_and_links_are_those_of_the_original(api, filled, token, url):
    name = "tickets-open" if url.endswith("open") else "tickets-closed"
    recorded = (CONTRACT / f"{name}.json").read_text().replace("127.0.0.1:8000", "desk.test:8000")
    page, recorded = as_the_original(api.get(url, token=token).json), json.loads(recorded)
    assert (page["links"], page["meta"]) == (recorded["links"], recorded["meta"])


def test_stats_tell_what_the_tables_hold(api, filled, token):
    user_id, name, email, tickets = filled.execute(
        """
        SELECT users.id, name, email, count(*) FROM users JOIN tickets ON user_id = users.id
        GROUP BY users.id ORDER BY count(*) DESC, users.id LIMIT 1
        """
    ).fetchone()
    assert api.get("/api/stats", token=token).json == {
        "total_tickets": 114,
        "total_unprocessed_tickets": 104,
        "top_user": {"id": user_id, "name": name, "email": email, "tickets_count": tickets},
        "most_recent_processed_at": "2025-12-04 12:11:00",
    }


def test_the_stats_of_an_empty_desk_are_zeros_and_nulls(api, token):
    assert api.get("/api/stats", token=token).json == {
        "total_tickets": 0,
        "total_unprocessed_tickets": 0,
        "top_user": None,
        "most_recent_processed_at": None,
    }


def test_up_needs_no_token(api):
    answer = api.get("/up")
    assert (answer.status, answer.json) == (200, {"status": "up"})


@pytest.mark.parametrize("url", ROUTES)
def test_every_answer_is_json_with_its_length(api, filled, token, url):
    answer = api.get(url, token=token)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))


# Pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize("per_page", [1, 3, 50])
def test_walking_by_next_meets_every_ticket_once_in_order(api, filled, token, url, per_page):
    pages = walk(api, token, f"{url}?per_page={per_page}")
    assert [ticket["id"] for page in pages for ticket in page["data"]] == ids_of(filled, EXPECTED_IDS[url])
    assert len(pages) == pages[0]["meta"]["last_page"]


def test_links_carry_per_page_on(api, filled, token):
    page = api.get("/api/tickets/open?per_page=10&page=2", token=token).json
    base = "http://desk.test:8000/api/tickets/open"
    assert page["links"] == {
        "first": f"{base}?page=1&per_page=10",
        "last": f"{base}?page=11&per_page=10",
        "prev": f"{base}?page=1&per_page=10",
        "next": f"{base}?page=3&per_page=10",
    }
    urls = [link["url"] for link in page["meta"]["links"] if link["url"]]
    assert len(urls) == 13
    assert all(url.endswith("&per_page=10") for url in urls)
    assert page["meta"]["path"] == base


def test_links_do_not_mention_per_page_unless_it_was_given(api, filled, token):
    assert "per_page=" not in api.get("/api/tickets/open?page=2", token=token).body.decode()


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize("page", ["99", "9" * 25])
def test_a_page_past_the_end_is_empty_and_keeps_the_total(api, filled, token, url, page):
    answer = api.get(f"{url}?page={page}", token=token)
    assert answer.status == 200
    assert answer.json["data"] == []
    meta = answer.json["meta"]
    assert (meta["from"], meta["to"], meta["total"]) == (None, None, len(ids_of(filled, EXPECTED_IDS[url])))
    assert answer.json["links"]["next"] is None


def test_the_previous_page_of_one_past_the_end_is_the_page_before(api, filled, token):
    links = api.get("/api/tickets/open?page=99", token=token).json["links"]
    assert links["prev"] == "http://desk.test:8000/api/tickets/open?page=98"


def test_an_empty_list_has_one_page(api, token):
    page = api.get("/api/tickets/open", token=token).json
    assert page["data"] == []
    meta = page["meta"]
    assert (meta["from"], meta["to"], meta["last_page"], meta["total"]) == (None, None, 1, 0)
    assert (page["links"]["prev"], page["links"]["next"]) == (None, None)


@pytest.mark.parametrize(
    ("query", "page", "per_page"),
    [
        ("", 1, 50),
        ("?page=&per_page=", 1, 50),
        ("?page=0&per_page=0", 1, 1),
        ("?page=-3&per_page=-3", 1, 1),
        ("?page=2&per_page=201", 2, 200),
        (f"?per_page={'9' * 25}", 1, 200),
        ("?page=1&page=2", 2, 50),
        ("?page=%32", 2, 50),
        ("?unknown=1&page=2", 2, 50),
    ],
)
def test_page_and_per_page_are_moved_to_what_works(api, filled, token, query, page, per_page):
    meta = api.get(f"/api/tickets/open{query}", token=token).json["meta"]
    assert (meta["current_page"], meta["per_page"]) == (page, per_page)


# URLs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["desk.example.com", "127.0.0.1:9000", "[::1]", "[2001:db8::1]:8000", "my_desk"])
def test_links_are_built_from_the_host_and_the_scheme_of_the_request(api, filled, token, host, scheme):
    page = api.get("/api/tickets/open", token=token, headers={"Host": host}, scheme=scheme).json
    base = f"{scheme}://{host}/api/tickets/open"
    assert page["links"]["next"] == f"{base}?page=2"
    assert page["meta"]["path"] == base


@pytest.mark.parametrize(
    "host",
    [
        "evil.test/path",
        "evil.test?x=1",
        "user@evil.test",
        "a b",
        "evil.test:port",
        "desk.test:123456",
        "[::1",
        "::1",
        '"><script>',
        "a,b",
        "\xe4.test",
        "desk.test\n",
    ],
)
def test_a_host_that_is_none_is_a_400_and_is_not_echoed(api, filled, token, host):
    for url in LISTS:
        answer = api.get(url, token=token, headers={"Host": host})
        assert answer.status == 400
        assert list(answer.json) == ["message"]
        assert host not in answer.body.decode()


@pytest.mark.parametrize("url", ROUTES)
def test_one_trailing_slash_is_accepted(api, filled, token, url):
    plain, slashed = api.get(url, token=token), api.get(f"{url}/", token=token)
    assert slashed.status == 200
    assert slashed.body == plain.body


def test_a_second_trailing_slash_is_not(api, token):
    assert api.get("/api/stats//", token=token).status == 404


@pytest.mark.parametrize("url", [*ROUTES, "/api/nope", "/api/tickets/open?page=x"])
def test_head_has_the_status_and_headers_of_get_and_no_body(api, filled, token, url):
    get, head = (api.request(method, url, token=token, headers={"X-Request-Id": "same"}) for method in ("GET", "HEAD"))
    assert head.body == b""
    assert (head.status, head.headers) == (get.status, get.headers)
    assert head.headers["content-length"] == str(len(get.body))


@pytest.mark.parametrize("url", ROUTES)
def test_options_tells_what_a_route_supports_without_a_token(api, url):
    answer = api.request("OPTIONS", url)
    assert (answer.status, answer.headers["allow"], answer.body) == (200, "GET, HEAD", b"")


# Paths that lead nowhere -------------------------------------------------------------------------


def test_a_user_who_does_not_exist_is_not_found(api, filled, token):
    answer = api.get("/api/users/999999/tickets", token=token)
    assert answer.status == 404
    assert list(answer.json) == ["message"]
    assert "999999" in answer.json["message"]


def test_an_owner_of_tokens_is_no_customer_on_any_route(api, token):
    answers = [api.get(f"/api/users/{ticketapi.FIRST_OWNER_ID}{rest}", token=token) for rest in ("", "/tickets")]
    message = f"There is no user with the id {ticketapi.FIRST_OWNER_ID}."
    assert [(answer.status, answer.json) for answer in answers] == [(404, {"message": message})] * 2


NO_USERS = {
    "negative": "-1",
    "zero": "0",
    "leading zeros": "0001",
    "plus": "+1",
    "Arabic digit": "%D9%A1",
    "full width digit": "%EF%BC%91",
    "5,000 digits": "1" * 5000,
    "18 digits": "9" * 18,
    "19 digits": "9223372036854775807",
    "2^63": "9223372036854775808",
    "trailing line feed": "1%0A",
    "trailing carriage return": "1%0D",
    "trailing NUL": "1%00",
    "trailing space": "1%20",
    "fraction": "1.0",
    "exponent": "1e0",
    "word": "me",
    "slash inside": "1%2F2",
    "nothing": "",
}


@pytest.mark.parametrize("user_id", NO_USERS.values(), ids=NO_USERS)
def test_what_is_no_user_id_is_not_found(api, filled, token, user_id):
    answer = api.get(f"/api/users/{user_id}/tickets", token=token)
    assert answer.status == 404
    assert list(answer.json) == ["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/tickets/op%FFen",
        "/api/tickets/open%FF",
        "/%FFapi/stats",
        "/api/tickets/%C0%AFopen",
        "/api%C0%AFstats",
        "/api/stats%00",
        "/api/st%00ats",
        "/api/stats%0A",
        "/api/stats%0D%0AX-Injected:%201",
        "/api/stats%7F",
        "/api/users/1/tickets%0A",
        "/up%0A",
        "/api/tickets/../stats",
        "/api/tickets/%2E%2E/stats",
        "/api/../up",
        "/..%2F..%2Fetc%2Fpasswd",
        "//api/stats",
        "/api//stats",
        "/API/stats",
        "/api/stats;x=1",
        "/api/statsx",
        "/api",
        "/api/",
    ],
)
def test_a_path_that_only_resembles_a_route_is_not_found(api, token, path):
    answer = api.get(path, token=token)
    assert answer.status == 404
    assert list(answer.json) == ["message"]
    assert "x-injected" not in answer.headers


def test_no_request_writes_to_the_error_stream_of_the_server(api, filled, token):
    for path in ("/api/tickets/op%FFen", "/api/stats%00", "/api/users/1%0A/tickets", "/api/tickets/open"):
        api.get(path, token=token)
    assert api.errors.getvalue() == ""
