"""/api/audits shows the audit log to tokens for it, by cursor, a bounded part a request; its summary shows the traffic."""

import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import pairwise
from urllib.parse import quote

import pytest
from conftest import NOON, SECOND

import ticketapi
from ticketapi import AUDIT_SPANS

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
ROW = {
    "user_id": None,
    "token_id": None,
    "method": "GET",
    "path": "api/stats",
    "route_name": "stats",
    "status_code": 200,
    "ip_address": "192.0.2.1",
    "user_agent": None,
    "duration_ms": 3,
    "query": None,
    "request_body": None,
}


def row(age=0, **more):
    """Return a row of so many seconds before noon."""
    return {**ROW, "created_at": ticketapi.format_time(NOON - age * SECOND), "request_id": "0af7651916cd43dd", **more}


@pytest.fixture
def log(api):
    """Return a function that writes rows into the log of the app."""

    def write(*rows):
        with closing(ticketapi.connect(api.settings.audit_db)) as db, ticketapi.transaction(db):
            ticketapi.insert_audits(db, rows)

    return write


@pytest.fixture
def api(make_api):
    """An app without a limit, whose own requests stay out of the log."""
    api = make_api(rate=0)
    api.audit.grouped = True  # they wait for a commit that does not come
    return api


@pytest.fixture
def auditor(db):
    """The text of a token that may read the audit log."""
    return ticketapi.create_token(db, "auditor@example.com", "test", ["read:audits"], 0, NOON)["token"]


@pytest.fixture
def page(api, auditor):
    """Return a function that gives the answer to a query."""

    def ask(query="", status=200):
        url = query.removeprefix("http://desk.test:8000") if "://" in query else f"/api/audits{query}"
        answer = api.get(url, token=auditor)
        assert answer.status == status, answer.json
        return answer.json

    return ask


@pytest.fixture
def ids(page):
    """Return a function that gives the ids of the rows that answer a query."""
    return lambda query="": [found["id"] for found in page(query)["data"]]


# Rows --------------------------------------------------------------------------------------------


def test_rows_come_newest_first_with_all_their_columns(page, log):
    log(row(20), row(10, user_id=7, token_id=1, query='{"page":"2"}', request_body='{"a":["b"]}', user_agent="curl/8"))
    newest, oldest = page()["data"]
    assert newest == {"id": 2, **row(10, user_id=7, token_id=1), "user_agent": "curl/8"} | {
        "query": {"page": "2"},
        "request_body": {"a": ["b"]},
    }
    assert list(newest) == ["id", *ROW, "created_at", "request_id"]
    assert oldest == {"id": 1, **row(20)}


def test_an_empty_log_is_an_empty_page(page):
    assert page() == {
        "data": [],
        "links": {"first": None, "last": None, "prev": None, "next": None},
        "meta": {"path": "http://desk.test:8000/api/audits", "per_page": 50, "next_cursor": None, "prev_cursor": None},
    }


def test_real_requests_are_shown_with_their_secrets_redacted(make_api, auditor):
    api = make_api()
    api.get("/api/stats?api_key=hush&page=2", token="wrong", headers={"User-Agent": "tëst\x1b"})
    [shown] = api.get("/api/audits", token=auditor).json["data"]
    assert (shown["path"], shown["route_name"], shown["status_code"]) == ("api/stats", "stats", 401)
    assert shown["query"] == {"api_key": "[redacted]", "page": "2"}
    assert api.audits()[-1]["route_name"] == "audits"


@pytest.mark.files
def test_what_is_no_json_and_no_utf_8_is_shown_as_text(page, log, api):
    log(row(query="{", request_body='{"a": NaN}'))
    with closing(ticketapi.connect(api.settings.audit_db)) as db:
        db.execute("UPDATE api_audits SET path = CAST(x'6170692fff' AS TEXT)")
    [shown] = page()["data"]
    assert (shown["path"], shown["query"], shown["request_body"]) == ("api/\ufffd", "{", {"a": "NaN"})


# Filters: those of the command -------------------------------------------------------------------


@pytest.fixture
def mixed(log, db):
    """A log with rows of several kinds."""
    owner = ticketapi.find_owner(db, "auditor@example.com")
    log(
        row(90_000, path="api/old", status_code=404),
        row(7200, user_id=owner, token_id=1, path="api/tickets/open", status_code=429),
        row(600, user_id=owner, token_id=2, path="api/Tickets/closed"),
        row(60, user_id=5, token_id=3, path="api/users/5/tickets", status_code=404),
        row(1, path="api/nope", status_code=401),
    )


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", [5, 4, 3, 2, 1]),
        ("?user=5", [4]),
        ("?user=auditor@example.com", [3, 2]),
        ("?user=AUDITOR%40example.com", [3, 2]),
        ("?user=999", []),
        ("?token=2", [3]),
        ("?status=404", [4, 1]),
        ("?status=4xx", [5, 4, 2, 1]),
        ("?status=2XX", [3]),
        ("?path=/api/tickets", [2]),
        ("?path=ickets", [4, 3, 2]),
        ("?path=%25", []),
        ("?path=a%00b", []),
        ("?path=%FF%E2%80%AE", []),
        ("?path=+users%0A&status=+404%09&since=1h+&user=+5", [4]),
        ("?since=1h", [5, 4, 3]),
        ("?since=90s", [5, 4]),
        ("?since=2d", [5, 4, 3, 2, 1]),
        ("?since=0", [5, 4, 3, 2, 1]),
        ("?since=0s", [5, 4, 3, 2, 1]),
        ("?since=2025-12-04T12:00:00Z", []),  # the present moment is a filter as any other
        ("?since=0999-12-31T23:59:59Z", [5, 4, 3, 2, 1]),
        ("?since=2025-12-04T11:00:00Z", [5, 4, 3]),
        ("?since=2025-12-04T11:59:59.000000Z", [5]),
        ("?since=2025-12-04T11:59:59.5Z", []),
        ("?since=1h&status=404&user=5&token=3&path=users", [4]),
        ("?user=&token=&status=&path=&since=&per_page=&cursor=", [5, 4, 3, 2, 1]),
        ("?page=2&unknown=x", [5, 4, 3, 2, 1]),
    ],
)
def test_a_filter_takes_what_the_option_of_the_command_takes(auditor, mixed, ids, query, wanted):
    assert ids(query) == wanted


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("user", "ann", "The user field must be a user's id or e-mail address."),
        ("user", "0", "The user field must be a user's id or e-mail address."),
        ("user", "nobody@example.com", "The selected user is invalid."),
        ("token", "tkt_", "The token field must be the id of a token."),
        ("token", "9223372036854775808", "The token field must be the id of a token."),
        ("status", "999", "The status field must be an HTTP status such as 404, or 4xx."),
        ("status", "4x", "The status field must be an HTTP status such as 404, or 4xx."),
        ("path", "a" * 256, "The path field must be a text of at most 255 characters."),
        ("since", "yesterday", "The since field must be a duration such as 24h, or a UTC time such as 2025-12-04T11:30:16Z."),
        (
            "since",
            "2025-13-04T11:30:16Z",
            "The since field must be a duration such as 24h, or a UTC time such as 2025-12-04T11:30:16Z.",
        ),
        ("per_page", "many", "The per page field must be an integer."),
        ("cursor", "x", "The cursor field must be a cursor of this list."),
    ],
)
def test_a_value_that_cannot_be_used_is_named(auditor, page, field, text, message):
    assert page(f"?{field}={quote(text)}", 422) == {"message": message, "errors": {field: [message]}}


def test_all_wrong_fields_are_named_at_once(page):
    answer = page("?status=x&since=x&per_page=x", 422)
    assert list(answer["errors"]) == ["status", "since", "per_page"]
    assert answer["message"].endswith(" (and 2 more errors)")


# Cursors -----------------------------------------------------------------------------------------


def walk(page, query, direction="next"):
    """Return the ids that a walk meets, page by page."""
    met, answer = [], page(query)
    while True:
        met.append([found["id"] for found in answer["data"]])
        if answer["links"][direction] is None:
            return met, answer
        answer = page(answer["links"][direction])


def test_a_walk_there_and_back_meets_every_row_once(page, log):
    log(*(row(100 - n) for n in range(10)))
    there, last = walk(page, "?per_page=4")
    assert there == [[10, 9, 8, 7], [6, 5, 4, 3], [2, 1]]
    back, _ = walk(page, last["links"]["prev"], "prev")
    assert back == [[6, 5, 4, 3], [10, 9, 8, 7]]


def test_links_carry_filters_and_the_size_of_the_page(page, log):
    log(*(row(9, status_code=404, path="api/é&x") for _ in range(5)), *(row(9) for _ in range(5)))
    query = "?status=4xx&since=1h&path=%C3%A9%26x&per_page=2"
    there, _ = walk(page, query)
    assert there[:2] == [[5, 4], [3, 2]]
    assert there[2] == [1]
    link = page(query)["links"]["next"]
    assert link.startswith("http://desk.test:8000/api/audits?status=4xx&path=%C3%A9%26x&since=1h&per_page=2&cursor=")
    assert "per_page" not in page("?per_page=")["links"]


def test_rows_that_have_come_since_are_met_by_the_previous_link(page, ids, log):
    log(row(), row())
    assert page()["links"]["prev"] is None
    second = page(page("?per_page=1")["links"]["next"])
    log(row(), row(), row())
    assert ids(f"?cursor={second['meta']['prev_cursor']}") == [5, 4, 3, 2]
    assert ids(f"?cursor={second['meta']['prev_cursor']}&per_page=3") == [4, 3, 2]


def test_rows_that_were_pruned_leave_no_trace_in_a_walk(page, log, api):
    log(*(row() for _ in range(9)))
    link = page("?per_page=2")["links"]["next"]
    with closing(ticketapi.connect(api.settings.audit_db)) as db:
        db.execute("DELETE FROM api_audits WHERE id < 7 AND id <> 3")
    answer = page(link)
    assert [found["id"] for found in answer["data"]] == [7, 3]
    assert answer["links"]["next"] is None
    with closing(ticketapi.connect(api.settings.audit_db)) as db:
        db.execute("DELETE FROM api_audits")
    answer = page(link)
    assert (answer["data"], answer["links"]["next"], answer["links"]["prev"]) == ([], None, None)


def test_a_cursor_of_another_list_is_refused(page, log):
    log(row(), row())
    text = ticketapi.encode_cursor(ticketapi.Cursor(1, True), "http://desk.test:8000/api/tickets/open")
    page(f"?cursor={text}", 422)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("key", [0, 1, 5, 10**18 - 1])
def test_a_cursor_may_lead_anywhere(page, ids, log, key, forward):
    log(*(row() for _ in range(4)))
    text = ticketapi.encode_cursor(ticketapi.Cursor(key, forward), "http://desk.test:8000/api/audits")
    wanted = [n for n in (4, 3, 2, 1) if (n < key if forward else n > key)]
    assert ids(f"?cursor={text}") == wanted
    links = page(f"?cursor={text}")["links"]
    assert all(page(link) for link in (links["next"], links["prev"]) if link)  # no cursor that we refuse ourselves


@pytest.mark.parametrize(("given", "size"), [("0", 1), ("-3", 1), ("2", 2), ("201", 200), ("9" * 30, 200), ("", 50)])
def test_the_size_of_a_page_is_moved_to_the_nearest_that_works(page, log, given, size):
    log(*(row() for _ in range(203)))
    answer = page(f"?per_page={given}")
    assert len(answer["data"]) == answer["meta"]["per_page"] == size


# A log of any size -------------------------------------------------------------------------------

SPAN = 200  # ids that one statement reads through here
FAR = SPAN * AUDIT_SPANS


@pytest.fixture
def sparse(log, api, monkeypatch):
    """A log longer than one request reads through, of which the oldest and the newest row alone were refused."""
    monkeypatch.setattr(ticketapi, "AUDIT_SPAN", SPAN)
    with closing(ticketapi.connect(api.settings.audit_db)) as db, ticketapi.transaction(db):
        ticketapi.insert_audits(db, [row(60, status_code=404)])
        ticketapi.insert_audits(db, [row(50) for _ in range(FAR + 10)])
        ticketapi.insert_audits(db, [row(40, status_code=404)])


def test_a_page_may_be_short_or_empty_while_the_walk_goes_on(sparse, page):
    there, last = walk(page, "?status=404")
    assert there == [[FAR + 12], [1]]
    assert walk(page, last["links"]["prev"], "prev")[0] == [[FAR + 12]]
    assert walk(page, "?status=500")[0] == [[], []]


def test_going_back_reads_no_more_at_once_either(sparse, page):
    text = ticketapi.encode_cursor(ticketapi.Cursor(0, False), "http://desk.test:8000/api/audits")
    assert walk(page, f"?status=404&cursor={text}", "prev")[0] == [[1], [FAR + 12]]


@pytest.mark.files
def test_one_request_reads_a_bounded_number_of_rows(sparse, api):
    wanted = ticketapi.make_audit_filter(None, None, range(500, 501), None, None)
    with closing(ticketapi.connect(api.settings.audit_db, ticketapi.LOG_READER)) as db:
        read = []
        for spans in (1, 2, AUDIT_SPANS):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ticketapi, "AUDIT_SPANS", spans)
                steps = []
                db.set_progress_handler(lambda steps=steps: steps.append(1), 100)
                assert ticketapi.audits_before(db, wanted, ticketapi.MAX_ID, 50)[0] == []
                assert ticketapi.audits_after(db, wanted, 0, 50)[0] == []
                read.append(len(steps))
    assert read[0] < read[1] < read[2] < read[0] * (AUDIT_SPANS + 1)


def test_what_is_too_old_is_not_read_to_its_end(sparse, page):
    answer = page("?since=45s&status=404")
    assert [found["id"] for found in answer["data"]] == [FAR + 12]
    assert answer["links"]["next"] is None


def test_it_takes_no_lock_and_makes_nobody_wait(api, page, log):
    log(row())
    with closing(ticketapi.connect(api.settings.audit_db, ticketapi.LOG_WRITER)) as other, ticketapi.transaction(other):
        begun = time.monotonic()
        assert len(page()["data"]) == 1
        assert time.monotonic() - begun < 1
    log(row())
    assert len(page()["data"]) == 2


@pytest.mark.files
def test_the_connection_that_looks_cannot_write(api):
    with (
        closing(ticketapi.connect(api.settings.audit_db, ticketapi.LOG_READER)) as db,
        pytest.raises(Exception, match="readonly"),
    ):
        db.execute("DELETE FROM api_audits")


@pytest.mark.files
def test_the_locks_of_the_connection_that_writes_stay(api, page, log):
    """A process that closes a file loses its POSIX locks on it; another program could then write in between."""
    attempt = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
    with ticketapi.transaction(api.audit._db):
        page()
        done = subprocess.run([sys.executable, "-c", attempt, str(api.settings.audit_db)], capture_output=True, text=True)
    assert "locked" in done.stderr


@pytest.mark.files
def test_a_log_that_is_gone_is_a_503(make_api, auditor):
    api = make_api()
    api.settings.audit_db.rename(api.settings.audit_db.with_name("elsewhere.db"))
    answer = api.get("/api/audits", token=auditor)
    assert (answer.status, answer.json) == (503, {"message": "Service Unavailable"})


# Who may see it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/audits", "/api/audits/summary"])
def test_it_needs_the_ability(api, db, auditor, token, path):
    everything = ticketapi.create_token(db, "ann@example.com", "test", ["*"], 0, NOON)["token"]
    assert [api.get(path, token=text).status for text in (auditor, everything, token, None)] == [200, 200, 403, 401]
    assert api.get(path, token=token).headers["www-authenticate"].endswith('scope="read:audits"')


def test_it_is_sent_again_only_when_there_are_new_rows(api, auditor, log):
    log(row())
    headers = {"If-None-Match": api.get("/api/audits", token=auditor).headers["etag"]}
    assert api.get("/api/audits", token=auditor, headers=headers).status == 304
    log(row())
    assert api.get("/api/audits", token=auditor, headers=headers).status == 200


def test_links_name_the_host_that_the_client_used(api, auditor, log):
    log(row(), row())
    answer = api.get("/api/audits?per_page=1", token=auditor, headers={"Host": "a.example"}, scheme="https")
    assert answer.json["links"]["next"].startswith("https://a.example/api/audits?per_page=1&cursor=")
    assert api.get("/api/audits", token=auditor, headers={"Host": "a b"}).status == 400


def test_a_real_server_shows_its_log(serve, run):
    served = serve("--no-scheduler")
    token = run("token", "create", "--ability", "read:audits")[1].strip()
    for number in range(5):
        served.get(f"/api/nope/{number}")
    answer = served.get("/api/audits?status=404&per_page=3", token=token)
    assert [found["path"] for found in answer.json["data"]] == ["api/nope/4", "api/nope/3", "api/nope/2"]
    following = answer.json["links"]["next"].removeprefix(served.url)
    assert [found["path"] for found in served.get(following, token=token).json["data"]] == ["api/nope/1", "api/nope/0"]
    shown = [json.loads(line) for line in run("audit", "--json", "--status", "404")[1].splitlines()]
    assert shown[:3] == answer.json["data"]


# The summary -------------------------------------------------------------------------------------


@pytest.fixture
def summary(api, auditor):
    """Return a function that gives the summary."""
    return lambda: api.get("/api/audits/summary", token=auditor).json["data"]


def test_the_last_hour_is_counted_by_minute_and_status_with_the_empty_ones(api, clock, summary, auditor):
    for _ in range(3):
        api.get("/api/stats")
    clock.advance(120)
    api.get("/up")
    shown = summary()
    assert shown["since"] == "2025-12-04T12:00:00.000000Z"
    assert len(shown["minutes"]) == ticketapi.TRAFFIC_MINUTES == 60
    times = [ticketapi.parse_time(minute["at"]) for minute in shown["minutes"]]
    assert times[-1] == NOON + 2 * MINUTE
    assert {after - before for before, after in pairwise(times)} == {MINUTE}
    assert shown["minutes"][-3:] == [
        {"at": "2025-12-04T12:00:00.000000Z", "requests": 3, "statuses": {"401": 3}},
        {"at": "2025-12-04T12:01:00.000000Z", "requests": 0, "statuses": {}},
        {"at": "2025-12-04T12:02:00.000000Z", "requests": 1, "statuses": {"200": 1}},
    ]


def test_a_minute_is_forgotten_after_an_hour(api, clock, summary):
    api.get("/up")
    clock.advance(59 * 60)
    assert sum(minute["requests"] for minute in summary()["minutes"]) == 1
    clock.advance(60)
    assert [minute["requests"] for minute in summary()["minutes"]][-2:] == [1, 0]
    assert sum(minute["requests"] for minute in summary()["minutes"]) == 2


def test_a_clock_that_is_set_makes_no_minute_of_the_future_and_keeps_few():
    traffic = ticketapi.Traffic(NOON)
    for shift in (0, HOUR, -HOUR, 0, *(n * MINUTE for n in range(200)), -5 * HOUR):
        traffic.count("up", 200, NOON + shift, 0.001)
        assert sum(count for _, statuses in traffic.minutes(NOON + shift) for count in statuses.values()) >= 1
        assert len(traffic._minutes) <= ticketapi.TRAFFIC_MINUTES
    assert traffic.routes()["up"].requests == 205


def test_routes_are_listed_slowest_mean_first_and_ten_at_most():
    traffic, bucket = ticketapi.Traffic(NOON), ticketapi.TokenBucket(30, "default")
    for number in range(12):
        for _ in range(number + 1):
            traffic.count(f"route{number}", 200, NOON, (number + 1) / 1000)
    routes = ticketapi.summarize_traffic(traffic, bucket, bucket, NOON, 0.0)["routes"]
    assert [route["route"] for route in routes] == [f"route{number}" for number in range(11, 1, -1)]
    assert routes[0] == {"route": "route11", "requests": 12, "mean_ms": 12.0, "p95_ms": 12.0, "max_ms": 12.0}


@pytest.mark.parametrize(
    ("seconds", "p95"),
    [
        ([0.003], 3.0),
        ([0.0004] * 99 + [5.0], 0.49),
        ([0.0004] * 80 + [0.08] * 20, 80.0),
        ([0.0] * 10, 0.0),
        ([2.0, 4.0], 3850.0),
    ],
)
def test_the_95th_percentile_lies_in_its_bucket_and_never_above_the_slowest(seconds, p95):
    traffic = ticketapi.Traffic(NOON)
    for one in seconds:
        traffic.count("stats", 200, NOON, one)
    counters = traffic.routes()["stats"]
    resource = ticketapi.route_resource("stats", counters)
    assert resource["p95_ms"] == pytest.approx(p95, abs=0.002)
    assert resource["p95_ms"] <= resource["max_ms"] == max(seconds) * 1000


def test_the_limiter_shows_the_emptiest_buckets(make_api, db, auditor, clock):
    api = make_api(rate=10)
    busy = ticketapi.create_token(db, "busy@example.com", "test", ["read:tickets"], 0, NOON)["token"]
    for _ in range(12):
        api.get("/api/stats", token=busy)
    for number, times in ((7, 4), (8, 2)):
        for _ in range(times):
            api.get("/api/stats", address=f"192.0.2.{number}")
    api.get("/api/stats", address="2001:db8::5")
    limiter = api.get("/api/audits/summary", token=auditor).json["data"]["limiter"]
    owners = [ticketapi.find_owner(db, email) for email in ("busy@example.com", "auditor@example.com")]
    assert limiter == {
        "limit": 10,
        "window": 60,
        "refused": 2,
        "users": [{"user_id": owners[0], "remaining": 0}, {"user_id": owners[1], "remaining": 9}],
        "addresses": [
            {"address": "192.0.2.7", "remaining": 26},
            {"address": "192.0.2.8", "remaining": 28},
            {"address": "2001:db8::/64", "remaining": 29},
        ],
    }


def test_buckets_that_are_full_again_are_left_out_and_no_more_than_ten_are_shown(make_api, auditor, clock):
    api = make_api(rate=10)
    for number in range(15):
        api.get("/api/stats", address=f"192.0.2.{number}")
    assert len(api.get("/api/audits/summary", token=auditor).json["data"]["limiter"]["addresses"]) == 10
    clock.advance(60)
    limiter = api.get("/api/audits/summary", token=auditor).json["data"]["limiter"]
    assert (limiter["addresses"], [bucket["remaining"] for bucket in limiter["users"]]) == ([], [9])


def test_looking_draws_nothing_from_a_bucket():
    bucket = ticketapi.TokenBucket(30, "default")
    bucket.take("ann", 0.0)
    assert [bucket.emptiest(10, 0.0) for _ in range(3)] == [[("ann", 29)]] * 3
    assert bucket.take("ann", 0.0).remaining == 28


def test_without_a_limit_there_is_none_to_show(api, summary):
    api.get("/api/stats")
    limiter = summary()["limiter"]
    assert (limiter["limit"], limiter["users"], limiter["refused"]) == (None, [], 0)
    assert len(limiter["addresses"]) == 1


def test_counting_from_several_threads_loses_nothing():
    traffic = ticketapi.Traffic(NOON)

    def count():
        for _ in range(2000):
            traffic.count("stats", 200, NOON, 0.001)
            traffic.refuse(400)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traffic.routes()["stats"].requests == sum(traffic.refusals().values()) == 8000
