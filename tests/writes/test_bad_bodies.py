"""What hostile clients send is refused with a word on what is wrong; nothing is written but one audit row without secrets."""

import json
from urllib.parse import quote, urlencode

import pytest
from conftest import Served
from writing import FORM, NEW, create, errors_of, state

import ticketapi

JSON = {"Content-Type": "application/json"}
DEEP = b'{"subject":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
NO_OBJECT = "The request body must be a JSON object."
SECRET = "tkt_Secret0123456789"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


def text_body(subject):
    """Return the JSON of a ticket with a subject that is JSON already."""
    return b'{"subject":%b,"content":"c","user":{"name":"a","email":"a@b.example"}}' % subject


# Body, the headers if it is no JSON, status, and what the answer names: a field of `errors`, or a part of the message.
BODIES = {
    "nothing": (b"", {}, 400, NO_OBJECT),
    "no JSON": (b"subject", {}, 400, NO_OBJECT),
    "half of it": (b'{"subject":"a"', {}, 400, NO_OBJECT),
    "more than one": (b'{"a":1}{"b":2}', {}, 400, NO_OBJECT),
    "list": (b'[{"subject":"a"}]', {}, 400, NO_OBJECT),
    "text": (b'"subject"', {}, 400, NO_OBJECT),
    "number": (b"7", {}, 400, NO_OBJECT),
    "null": (b"null", {}, 400, NO_OBJECT),
    "single quotes": (b"{'subject':'a'}", {}, 400, NO_OBJECT),
    "deep lists": (DEEP, {}, 400, NO_OBJECT),
    "deep lists, open": (b"[" * 50_000, {}, 400, NO_OBJECT),
    "deep objects": (b'{"a":' * 13_000, {}, 400, NO_OBJECT),
    "deep in a form": (b"a=" + b"[" * 50_000, FORM, 422, "subject"),
    "deep JSON called a form": (b"{" + DEEP, FORM, 400, NO_OBJECT),
    "no UTF-8": (b'{"subject":"\xff"}', {}, 400, NO_OBJECT),
    "UTF-16": ('{"subject":"a"}'.encode("utf-16"), {}, 400, NO_OBJECT),
    "surrogates as bytes": (b'{"subject":"\xed\xa0\x80"}', {}, 400, NO_OBJECT),
    "no UTF-8 in a form": (b"subject=%ff", FORM, 400, "The request body must be a form in UTF-8."),
    "byte order mark": (b"\xef\xbb\xbf{}", {}, 400, NO_OBJECT),
    "NaN": (text_body(b"NaN"), {}, 400, NO_OBJECT),
    "infinity": (text_body(b"-Infinity"), {}, 400, NO_OBJECT),
    "5,000 digits": (text_body(b"1" * 5000), {}, 422, "subject"),
    "5,000 digits as an id": (b'{"subject":"a","content":"c","user_id":%b}' % (b"1" * 5000), {}, 422, "user_id"),
    "an address that is too long in lower case": (
        ('{"subject":"a","content":"c","user":{"name":"a","email":"%s@e.example"}}' % ("\u0130" * 200)).encode(),
        {},
        422,
        "user.email",
    ),
    "twice": (b'{"subject":"a","subject":"b"}', {}, 400, "field subject twice"),
    "twice inside": (b'{"user":{"email":"a@b.example","email":"c@d.example"}}', {}, 400, "field email twice"),
    "twice in other words": (b'{"subject":"a","\\u0073ubject":"b"}', {}, 400, "field subject twice"),
    "twice in a form": (b"subject=a&content=b&subject=c", FORM, 400, "field subject twice"),
    "twice in escapes": (b"subject=a&%73ubject=c", FORM, 400, "field subject twice"),
    "twice what is odd": (b'{"\\ud800\\u001b":1,"\\ud800\\u001b":2}', {}, 400, "twice"),
    "NUL": (text_body(b'"a\\u0000b"'), {}, 422, "subject"),
    "NUL in a form": (b"subject=a%00b&content=c", FORM, 422, "subject"),
    "half a pair": (text_body(b'"\\ud83d"'), {}, 422, "subject"),
    "pair the wrong way": (text_body(b'"\\ude00\\ud83d"'), {}, 422, "subject"),
    "number for a text": (text_body(b"1"), {}, 422, "subject"),
    "huge number": (text_body(b"1e999"), {}, 422, "subject"),
    "bool": (text_body(b"true"), {}, 422, "subject"),
    "list for a text": (text_body(b'["a"]'), {}, 422, "subject"),
    "one byte over": (b'{"subject":"' + b"x" * (65_537 - 14) + b'"}', {}, 413, "65536 bytes"),
    "64 KiB": (b'{"subject":"' + b"x" * (65_536 - 14) + b'"}', {}, 422, "subject"),
    "multipart": (b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "application/json"),
    "plain text": (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
    "XML": (b"<a/>", {"Content-Type": "application/xml"}, 415, "application/json"),
    "nearly JSON": (b"{}", {"Content-Type": "application/jsonx"}, 415, "application/json"),
    "two types": (b"{}", {"Content-Type": "application/json, text/plain"}, 415, "application/json"),
    "odd type": (b"{}", {"Content-Type": "application/ /+json"}, 415, "application/json"),
    "long key": (json.dumps(NEW).encode(), {"Idempotency-Key": "k" * 256}, 400, "Idempotency-Key"),
    "empty key": (json.dumps(NEW).encode(), {"Idempotency-Key": ""}, 400, "Idempotency-Key"),
    "empty quoted key": (json.dumps(NEW).encode(), {"Idempotency-Key": '""'}, 400, "Idempotency-Key"),
    "tab in a key": (json.dumps(NEW).encode(), {"Idempotency-Key": "a\tb"}, 400, "Idempotency-Key"),
    "letter in a key": (json.dumps(NEW).encode(), {"Idempotency-Key": "\xe9"}, 400, "Idempotency-Key"),
    "id of 25 digits": (b'{"subject":"a","content":"b","user_id":%b}' % (b"9" * 25), {}, 422, "user_id"),
    "negative id": (b'{"subject":"a","content":"b","user_id":-1}', {}, 422, "user_id"),
    "id as a fraction": (b'{"subject":"a","content":"b","user_id":1e0}', {}, 422, "user_id"),
}


def check_refusal(answer, status, named):
    """Check that a refusal is JSON and says what is wrong."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert "Traceback" not in answer.body.decode()
    assert named in answer.json.get("errors", answer.json["message"])


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_refused_and_audited_once(api, db, pen, name):
    body, headers, status, named = BODIES[name]
    before = state(db)
    answer = api.request("POST", "/api/tickets", token=pen, headers=JSON | headers, body=body)
    check_refusal(answer, status, named)
    assert state(db) == before
    (row,) = api.audits()
    assert (row["status_code"], row["route_name"]) == (status, "tickets.store")
    assert row["request_body"] or len(body) < 6  # what holds nothing is none
    assert len(row["request_body"] or "") <= 4096


@pytest.mark.parametrize(
    "name", [name for name in BODIES if name not in ("64 KiB", "id as a fraction") and BODIES[name][2] != 422]
)
@pytest.mark.parametrize(
    ("method", "path"), [("PATCH", "/api/tickets/1"), ("PUT", "/api/tickets/1"), ("POST", "/api/tickets/1/comments")]
)
def test_other_writes_refuse_the_same(api, db, pen, method, path, name):
    body, headers, status, named = BODIES[name]
    create(api, pen)
    before = state(db)
    answer = api.request(method, path, token=pen, headers=JSON | headers, body=body)
    if "Idempotency-Key" in headers and method != "POST":
        assert answer.status == 200  # changes take no key
    else:
        check_refusal(answer, status, named)
        assert state(db) == before
    assert len(api.audits()) == 2


@pytest.mark.parametrize("body", [b'{"subject":"x","password":"hunter2","note":"%b"}', b"password=hunter2&note=%b"])
def test_secrets_in_refused_bodies_are_not_kept(api, token, pen, body):
    kind = JSON if body.startswith(b"{") else FORM
    answer = api.request("POST", "/api/tickets", token=pen, headers=kind, body=body.replace(b"%b", token.encode()))
    assert answer.status == 422
    (row,) = api.audits()
    assert "note" in row["request_body"]
    assert "hunter2" not in row["request_body"]
    assert token not in row["request_body"]


def test_a_refusal_does_not_repeat_what_a_terminal_would_act_on(api, pen):
    body = b'{"\\u001b[31m":1,"\\u001b[31m":2}'
    answer = api.request("POST", "/api/tickets", token=pen, headers=JSON, body=body)
    assert answer.json["message"] == "The request body has the field \\x1b[31m twice."


@pytest.mark.parametrize("ticket_id", ["9" * 19, "9" * 25, "0", "-1", "01", "1.0", "1e0", "%D9%A1", "1%00", "1%0a", "one", ""])
@pytest.mark.parametrize("rest", ["", "/comments"])
def test_what_is_no_id_is_no_route(api, db, pen, ticket_id, rest):
    create(api, pen)
    before = state(db)
    for method in ("GET", "PATCH", "DELETE") if not rest else ("GET", "POST"):
        path = f"/api/tickets/{ticket_id}{rest}"
        answer = api.send(method, path, NEW, token=pen) if method != "GET" else api.get(path, token=pen)
        assert answer.status == (404 if ticket_id or rest else 200 if method == "GET" else 405), (method, path)
    assert state(db) == before


def cursor(api, pen, url):
    """Return a cursor of a list that goes on."""
    meta = api.get(url, token=pen).json["meta"]
    return meta.get("next_cursor") or meta["after_cursor"]


CURSORS = ("/api/tickets", "/api/tickets/export", "/api/events", "/api/tickets/open", "/api/tickets/1/comments")


@pytest.mark.parametrize("url", CURSORS)
def test_a_cursor_of_another_list_or_of_none_is_refused(api, db, pen, url):
    for _ in range(3):
        create(api, pen)
        api.post("/api/tickets/1/comments", {"content": "a"}, token=pen)
    others = [cursor(api, pen, f"{other}?per_page=1") for other in CURSORS if other != url]
    mine = cursor(api, pen, f"{url}?per_page=1")
    assert api.get(f"{url}?cursor={mine}&per_page=1", token=pen).status == 200
    for text in (*others, "x", "null", mine + "=", mine[:-1], mine.swapcase(), "bjE", "../..", "\0", "é", "1" * 5000):
        answer = api.get(f"{url}?cursor={quote(text)}", token=pen)
        assert errors_of(answer) == {"cursor": ["The cursor field must be a cursor of this list."]}


SENSELESS = {
    "/api/tickets": {
        "status": ["open", "3", "0", "Open ", "1.0", "[1]", "\0"],
        "user": ["0", "-1", "me", "1.5", "9" * 25, "\0", "a@b.example"],
        "created_since": [
            "yesterday",
            "7",
            "1764849600",
            "2025-12-04",
            "2025-02-30T00:00:00Z",
            "9" * 30 + "d",
            "2025-12-04T12:00:00+01:00",
        ],
        "updated_since": ["tomorrow", "-1d", "2025-12-04T24:00:00Z", "2025-12-04T12:00:60Z", "0000-01-01T00:00:00Z"],
        "q": ["x" * 256, "a\0b"],
        "sort": ["created_at", "+id", "id,-id", "--id", "ID"],
        "per_page": ["x", "1.5"],
    },
    "/api/tickets/export": {
        "start_time": [
            "x",
            "-1",
            "9" * 25,
            "1764849601",
            "2025-12-04T12:00:01Z",
            "2025-13-01T00:00:00Z",
            "99999d",
            "1.5",
            "1e9",
            "\0",
        ],
        "per_page": ["x"],
    },
    "/api/events": {"per_page": ["x", "\0"]},
    "/api/events/stream": {"after": ["x", "1.5", "null", "\0"]},
}


@pytest.mark.parametrize(
    ("url", "name", "text"),
    [(url, name, text) for url in SENSELESS for name, texts in SENSELESS[url].items() for text in texts],
)
def test_a_senseless_parameter_is_refused_by_name(api, pen, url, name, text):
    create(api, pen)
    answer = api.get(f"{url}?{urlencode({name: text})}", token=pen)
    errors = errors_of(answer)
    assert list(errors) == [name]
    assert name.replace("_", " ") in errors[name][0]
    assert [row["status_code"] for row in api.audits()] == [201, 422]


@pytest.mark.parametrize("text", ["x" * 256, "a\0b"])
def test_a_text_that_cannot_be_searched_for_is_told_why(api, pen, text):
    errors = errors_of(api.get(f"/api/tickets?{urlencode({'q': text})}", token=pen))
    assert errors == {"q": ["The q field must be a text of 1 to 255 characters, none of them NUL."]}


def test_all_parameters_that_are_wrong_are_said_at_once(api, pen):
    errors = errors_of(api.get("/api/tickets?status=x&user=x&created_since=x&q=%00&sort=x&per_page=x&cursor=x", token=pen))
    assert list(errors) == ["status", "user", "created_since", "q", "sort", "per_page", "cursor"]
    errors = errors_of(api.get("/api/tickets/export?start_time=x&per_page=x", token=pen))
    assert sorted(errors) == ["per_page", "start_time"]


@pytest.mark.files
@pytest.mark.parametrize("threads", [1, 3])
def test_a_real_server_refuses_the_same(tmp_path, threads):
    place = tmp_path / "desk.db"
    db = ticketapi.open_database(place, "desk")
    abilities = ["read:tickets", "write:tickets"]
    pen = ticketapi.create_token(db, "a@b.example", "t", abilities, 0, ticketapi.wall_microseconds())["token"]
    served = Served("--db", place, "--no-scheduler", "--rate", "0", "--threads", threads, cwd=tmp_path)
    try:
        before, statuses = state(db), []
        for body, headers, status, named in BODIES.values():
            answer = served.get("/api/tickets", pen, JSON | headers, "POST", body)
            check_refusal(answer, status, named)
            statuses += [status] * (status != 413)  # that is the parser's
        assert state(db) == before
        with ticketapi.closing(ticketapi.connect(ticketapi.log_path(place))) as log:
            assert [row[0] for row in log.execute("SELECT status_code FROM api_audits ORDER BY id")] == statuses
    finally:
        db.close()
        code, _, err = served.stop()
        assert (code, "Traceback" in err) == (0, False)
