"""Every request under /api is in the audit log before its answer is sent, without secrets, and its failure breaks nothing."""

import json
import logging
import sqlite3
from contextlib import closing
from wsgiref.util import setup_testing_defaults

import pytest
from conftest import NOON

import ticketapi

CANARY = "canary-7f3a9c51"
REDACTED = "[redacted]"


def make_token(db, *, abilities=("read:tickets",), email=ticketapi.OPERATOR_EMAIL):
    """Return the record of a token made at noon."""
    return ticketapi.create_token(db, email, "test", list(abilities), 0, NOON)


def only_audit(api):
    """Return the one row of the audit log."""
    (audit,) = api.audits()
    return audit


def audit_bytes(api):
    """Return all that the files, or the table, of the audit log hold."""
    if isinstance(api.settings.audit_db, ticketapi.Postgres):
        return "".join(str(text) for audit in api.audits() for text in audit.values()).encode()
    folder, name = api.settings.audit_db.parent, api.settings.audit_db.name
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{name}*")))


@pytest.fixture
def log_text(caplog):
    """Return a function that gives all that was logged, at whatever level, as `serve` writes it."""
    caplog.set_level(logging.DEBUG, logger="ticketapi")
    return lambda: "\n".join(map(ticketapi.OneLine("%(levelname)s %(name)s: %(message)s").format, caplog.records))


# A row for every request -------------------------------------------------------------------------


def test_a_row_tells_all_about_a_request(api, db, clock):
    record = make_token(db)
    clock.advance(0.25)
    headers = {"User-Agent": "curl/8.5.0", "Content-Type": "application/json"}
    answer = api.request(
        "GET",
        "/api/tickets/open?page=2&per_page=10",
        token=record["token"],
        headers=headers,
        body=b'{"a": 1, "b": [true, "x", null]}',
        address="198.51.100.7",
    )
    expected = {
        "id": 1,
        "user_id": record["user_id"],
        "token_id": record["id"],
        "method": "GET",
        "path": "api/tickets/open",
        "route_name": "tickets.open",
        "status_code": 200,
        "ip_address": "198.51.100.7",
        "user_agent": "curl/8.5.0",
        "duration_ms": 0,
        "query": '{"page":"2","per_page":"10"}',
        "request_body": '{"a":"1","b":["true","x","null"]}',
        "created_at": "2025-12-04T12:00:00.250000Z",
        "request_id": answer.headers["x-request-id"],
    }
    assert list(only_audit(api).items()) == list(expected.items())


def test_what_a_request_does_not_have_is_null(api):
    api.get("/api/nope")
    audit = only_audit(api)
    empty = {"user_id", "token_id", "route_name", "user_agent", "query", "request_body"}
    assert {name for name, value in audit.items() if value is None} == empty


STATUSES = {
    "200": ("GET", "/api/stats", 200),
    "200 of HEAD": ("HEAD", "/api/stats", 200),
    "200 of OPTIONS": ("OPTIONS", "/api/stats", 200),
    "404 of a route": ("GET", "/api/nope", 404),
    "404 of a user": ("GET", "/api/users/404/tickets", 404),
    "404 of HEAD": ("HEAD", "/api/nope", 404),
    "404 of the root": ("GET", "/api", 404),
    "405": ("POST", "/api/stats", 405),
    "422": ("GET", "/api/tickets/open?page=x", 422),
}


@pytest.mark.parametrize("kind", STATUSES)
def test_every_request_under_api_has_its_row(api, token, kind):
    method, url, status = STATUSES[kind]
    assert api.request(method, url, token=token).status == status
    audit = only_audit(api)
    assert (audit["method"], audit["path"], audit["status_code"]) == (method, url.partition("?")[0][1:], status)


def test_a_request_without_a_valid_token_has_its_row_too(api):
    api.get("/api/stats")
    api.get("/api/stats", token=ticketapi.new_token_text())
    rows = [(audit["status_code"], audit["route_name"], audit["user_id"], audit["token_id"]) for audit in api.audits()]
    assert rows == [(401, "stats", None, None)] * 2


def test_refusals_for_lack_of_ability_are_their_users(api, db):
    record = make_token(db, abilities=[])
    api.get("/api/stats", token=record["token"])
    audit = only_audit(api)
    assert (audit["status_code"], audit["user_id"], audit["token_id"]) == (403, record["user_id"], record["id"])


def test_requests_over_the_limit_have_their_rows(make_api, token):
    api = make_api(rate=1)
    for _ in range(3):
        api.get("/api/stats", token=token)
    for _ in range(31):
        api.get("/api/stats")
    statuses = [(audit["status_code"], audit["user_id"] is None) for audit in api.audits()]
    assert statuses == [(200, False), *[(429, False)] * 2, *[(401, True)] * 30, (429, True)]


@pytest.mark.parametrize(("statement", "status"), [("DELETE FROM ticket_counts", 500), ("DROP TABLE ticket_counts", 503)])
def test_requests_that_failed_in_here_have_their_rows(api, db, token, statement, status):
    db.execute(statement)
    api.get("/api/stats", token=token)
    assert only_audit(api)["status_code"] == status


def test_what_is_not_under_api_has_none(api):
    for url in ("/up", "/", "/nope", "/apinope", "//api/stats"):
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            api.request(method, url)
    assert api.audits() == []


def test_a_preflight_has_none(api):
    headers = {"Origin": "https://a.example.com", "Access-Control-Request-Method": "GET"}
    assert api.request("OPTIONS", "/api/stats", headers=headers).status == 204
    assert api.audits() == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/api/tickets/open", "tickets.open"),
        ("/api/tickets/closed/", "tickets.closed"),
        ("/api/users/1000000000/tickets", "users.tickets"),
        ("/api/stats", "stats"),
    ],
)
def test_a_row_names_the_route_and_the_path_without_slashes_around_it(api, token, url, name):
    api.get(url, token=token)
    audit = only_audit(api)
    assert (audit["route_name"], audit["path"]) == (name, url.strip("/"))


def test_the_row_is_committed_before_the_answer_is_sent(api, token):
    seen = []
    environ = {"PATH_INFO": "/api/stats", "HTTP_AUTHORIZATION": f"Bearer {token}"}
    setup_testing_defaults(environ)
    api.app(environ, lambda status, headers, exc_info=None: seen.append((status, len(api.audits()))))
    assert seen == [("200 OK", 1)]


def test_the_duration_is_whole_milliseconds_of_the_monotonic_clock(make_api, clock, token):
    api, moments = make_api(), iter((10.0, 10.0129))
    clock.monotonic = lambda: next(moments)
    api.get("/api/stats", token=token)
    assert only_audit(api)["duration_ms"] == 12


def test_a_form_is_kept_as_an_object(api):
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    api.request("POST", "/api/stats", body=b"subject=Caf%C3%A9&empty=", headers=headers)
    assert only_audit(api)["request_body"] == '{"subject":"Café","empty":""}'


# What is not there: secrets ----------------------------------------------------------------------

SECRET_KEYS = ("authorization", "token", "password", "secret", "key", "cookie", "api_token", "X-API-Key", "user[password]")


def assert_kept_nowhere(api, secret, log):
    """Check that a text is in no file of the audit log and in no line of the log."""
    assert len(api.audits()) == 1
    assert secret.encode() not in audit_bytes(api)
    assert secret not in log


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_the_value_of_a_secret_key_in_the_query_is_kept_nowhere(api, log_text, key):
    api.get(f"/api/stats?{key}={CANARY}&page=1")
    assert_kept_nowhere(api, CANARY, log_text())
    assert json.loads(only_audit(api)["query"]) == {key: REDACTED, "page": "1"}


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_the_value_of_a_secret_key_in_the_body_is_kept_nowhere(api, log_text, key):
    body = json.dumps({"a": [{"b": {key.upper(): {"c": [CANARY]}}}], "page": 1}).encode()
    api.request("POST", "/api/stats", body=body, headers={"Content-Type": "application/json"})
    assert_kept_nowhere(api, CANARY, log_text())
    assert json.loads(only_audit(api)["request_body"]) == {"a": [{"b": {key.upper(): REDACTED}}], "page": "1"}


@pytest.mark.parametrize(
    ("url", "headers", "body"),
    [
        ("/api/stats", {"Authorization": "Bearer TOKEN"}, ""),
        ("/api/stats", {"Authorization": "TOKEN"}, ""),
        ("/api/stats", {"Cookie": "session=TOKEN", "X-Api-Key": "TOKEN", "Referer": "http://x/?TOKEN"}, ""),
        ("/api/stats", {"User-Agent": "agent TOKEN"}, ""),
        ("/api/stats", {"User-Agent": "TOKEN" * 20}, ""),
        ("/api/stats?page=TOKEN", {}, ""),
        ("/api/stats?TOKEN=1", {}, ""),
        ("/api/stats?note=Bearer+TOKEN", {}, ""),
        ("/api/users/TOKEN/tickets", {}, ""),
        ("/api/TOKEN", {}, ""),
        ("/api/%74REST", {}, ""),
        ("/api/stats", {"Content-Type": "application/json"}, '{"note": ["xTOKENx"]}'),
        ("/api/stats", {"Content-Type": "application/json"}, '{"TOKEN": 1}'),
        ("/api/stats", {"Content-Type": "application/json"}, '"TOKEN"'),
        ("/api/stats", {"Content-Type": "application/json"}, '{"broken": "TOKEN"'),
        ("/api/stats", {"Content-Type": "text/plain"}, "TOKEN"),
        ("/api/stats", {"Content-Type": "application/x-www-form-urlencoded"}, "note=TOKEN"),
        ("/api/stats", {"Content-Type": "multipart/form-data; boundary=x"}, "--x\r\n\r\nTOKEN\r\n--x--"),
    ],
)
def test_a_token_is_kept_nowhere_wherever_it_is_sent(api, token, log_text, url, headers, body):
    def put_in(text):
        return text.replace("TOKEN", token).replace("REST", token[1:])

    headers = {name: put_in(value) for name, value in headers.items()}
    api.request("GET", put_in(url), headers=headers, body=put_in(body).encode())
    assert_kept_nowhere(api, token[4:-6], log_text())


def test_a_body_that_cannot_be_read_leaves_its_length_alone(api, log_text):
    body = f'{{"password": "{CANARY}"'.encode()
    api.request("POST", "/api/stats", body=body, headers={"Content-Type": "application/json"})
    assert_kept_nowhere(api, CANARY, log_text())
    assert f"{len(body)} bytes" in only_audit(api)["request_body"]


# What is too long or no text ---------------------------------------------------------------------


def test_texts_are_capped(api):
    long = "x" * 20_000
    headers = {"User-Agent": long, "Content-Type": "application/json"}
    api.request("POST", f"/api/{long}?a={long}", headers=headers, body=json.dumps({"a": long}).encode())
    audit = only_audit(api)
    assert audit["user_agent"] == "x" * 255
    assert len(audit["path"]) <= 4096
    for column in ("query", "request_body"):
        assert len(audit[column].encode()) <= 4096
        assert isinstance(json.loads(audit[column]), dict)


@pytest.mark.parametrize("character", ["%C3%A9", "%F0%9F%98%80", "%22", "%5C"])
def test_a_query_of_any_characters_stays_json_within_4_kib(api, character):
    api.get(f"/api/stats?a={character * 3000}")
    query = only_audit(api)["query"]
    assert isinstance(json.loads(query), dict)
    assert len(query.encode()) <= 4096


@pytest.mark.parametrize(
    ("url", "headers", "body"),
    [
        ("/api/%FF%FE?%FF=%FE", {}, b""),
        ("/api/%00%01?a=%00", {}, b""),
        ("/api/%ED%A0%80?a=%ED%A0%80", {}, b""),
        ("/api/stats", {"User-Agent": "\xff\xfe\x80"}, b""),
        ("/api/stats", {"Content-Type": "application/json"}, b'{"a": "\\ud800", "\\udfff": 1}'),
        ("/api/stats", {"Content-Type": "application/json"}, b"[" * 30_000),
        ("/api/stats", {"Content-Type": "application/json"}, b"[" * 900 + b"]" * 900),
        ("/api/stats", {"Content-Type": "application/json"}, b"1" * 10_000),
        ("/api/stats", {"Content-Type": "application/json"}, b"\xff\xfe\x00"),
        ("/api/stats", {"Content-Type": "application/json"}, b'[NaN, Infinity, 1e999, "\\u0000"]'),
        ("/api/stats", {"Content-Type": "application/x-www-form-urlencoded"}, b"%FF=%FE&\xff"),
        ("/api/stats", {"Content-Type": "\xff"}, b"x"),
        ("/api/stats?" + "&" * 5000 + "a=1" * 1000, {}, b""),
    ],
)
def test_bytes_that_are_no_text_cost_no_row(api, caplog, url, headers, body):
    assert api.request("POST", url, headers=headers, body=body).status in (404, 405)
    assert only_audit(api)["status_code"] in (404, 405)
    assert api.audit.failures == 0
    assert caplog.records == []


# A failing audit log -----------------------------------------------------------------------------


def drop_table(api):
    """Drop the table of the audit log over another connection."""
    with closing(ticketapi.connect(api.settings.audit_db)) as other:
        other.execute("DROP TABLE api_audits")


def close_file(api):
    """Close the audit log under the app."""
    api.audit.close()


def spoil_row(api):
    """Have every row of the audit log refused."""
    with closing(ticketapi.connect(api.settings.audit_db)) as other:
        other.execute("ALTER TABLE api_audits ADD COLUMN wanted TEXT NOT NULL DEFAULT 'x' CHECK (wanted <> 'x')")


@pytest.mark.parametrize("damage", [drop_table, pytest.param(close_file, marks=pytest.mark.files)])
@pytest.mark.parametrize(("url", "status"), [("/api/stats", 200), ("/api/nope", 404)])
def test_a_failing_audit_breaks_no_answer_is_tried_each_second_and_logged_once(api, clock, token, caplog, damage, url, status):
    damage(api)
    for _ in range(2):
        for _ in range(3):
            assert api.get(url, token=token).status == status
        clock.advance(1)
    assert api.audit.failures == 2
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(f"audit rows wait in memory: {api.settings.audit_db}")


def test_a_row_that_can_never_be_written_breaks_no_answer_and_is_counted_as_lost(api, token, caplog):
    spoil_row(api)
    for count in (1, 2):
        assert api.get("/api/stats", token=token).status == 200
        assert (api.audit.failures, api.audit.lost) == (count, count)
        assert f"audit rows lost, {count} so far: {api.settings.audit_db}" in caplog.text


def test_a_locked_audit_log_breaks_no_answer_and_gets_every_row_once_it_is_let_go(api, clock, token, caplog):
    caplog.set_level("INFO")
    ticketapi.set_busy_timeout(api.audit._db, 20)  # or this would take half a second
    with closing(ticketapi.connect(api.settings.audit_db, ticketapi.LOG_WRITER)) as other, ticketapi.transaction(other):
        for page in (1, 2, 3):
            assert api.get(f"/api/tickets/open?page={page}", token=token).status == 200
    assert "database is locked: another program " in caplog.records[0].getMessage()
    assert api.audits() == []
    clock.advance(1)
    api.audit.commit(clock.monotonic())  # as the server does every second
    assert [json.loads(audit["query"])["page"] for audit in api.audits()] == ["1", "2", "3"]
    assert (api.audit.failures, api.audit.lost) == (1, 0)
    assert "is written again" in caplog.records[-1].getMessage()
    assert api.audit._db.execute("PRAGMA busy_timeout").fetchone()[0] == ticketapi.AUDIT_WAIT_MS


def test_of_rows_that_wait_too_many_the_oldest_are_lost(api, clock, token, caplog):
    api.get("/api/stats", token=token)
    row = only_audit(api)
    drop_table(api)
    for _ in range(ticketapi.MAX_WAITING_AUDITS + 5):
        api.audit.record(row, clock.monotonic())
    clock.advance(1)
    api.audit.record(row, clock.monotonic())
    assert api.audit.lost == 6
    assert "audit rows lost, 6 so far" in caplog.text


def test_rows_that_still_wait_when_the_server_ends_are_written_if_they_can_be(api, clock, token):
    ticketapi.set_busy_timeout(api.audit._db, 0)
    with closing(ticketapi.connect(api.settings.audit_db, ticketapi.LOG_WRITER)) as other, ticketapi.transaction(other):
        assert api.get("/api/stats", token=token).status == 200
    api.audit.close()
    assert [audit["path"] for audit in api.audits()] == ["api/stats"]
    assert api.audit.lost == 0


@pytest.mark.files
def test_the_audit_log_is_a_file_beside_the_desk_that_only_its_owner_reads(api, desk, token):
    api.get("/api/stats", token=token)
    assert api.settings.audit_db == desk.with_name("desk-audit.db")
    for path in desk.parent.glob("desk-audit.db*"):
        assert path.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(desk)) as db:
        assert not db.execute("SELECT name FROM sqlite_master WHERE name = 'api_audits'").fetchall()
