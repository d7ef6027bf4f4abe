"""HTTP/1.1 to the letter, over real sockets, by one thread and by several."""

import logging
import os
import socket
import time
from contextlib import closing

import pytest
from attacks import UP, read_answers, talk

import ticketapi

LAST = b"Host: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module", params=["1", "3"])
def plain(request, tmp_path_factory):
    """A server with one thread, and one with several."""
    from conftest import Served

    served = Served("--no-scheduler", "--threads", request.param, cwd=tmp_path_factory.mktemp("plain"))
    yield served
    assert served.stop()[0] == 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /up HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /up HTTP/1.0\r\n\r\n", 200),
        (b"GET /up HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", 400),
        (b"GET /api/nope HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", 400),
        (b"GET http://b.example/up HTTP/1.1\r\n" + LAST, 200),
        (b"GET http://b.example:/up HTTP/1.1\r\n" + LAST, 200),
        (b"GET http://b.example:99999/up HTTP/1.1\r\n" + LAST, 400),
        (b"GET http://me@b.example/up HTTP/1.1\r\n" + LAST, 400),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 401),
        (b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 401),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /up HTTP/2.0\r\n" + LAST, 505),
        (b"GET /up HTTP/1.2\r\n" + LAST, 200),
    ],
)
def test_host_target_and_version_count_as_the_rfc_has_it(plain, data, status):
    answers = talk(plain.port, data)
    assert (answers.statuses, answers.closed) == ([status], True)


@pytest.mark.parametrize(
    ("fields", "closes"),
    [
        (b"Connection: close, foo\r\n", True),
        (b"Connection: foo, close\r\n", True),
        (b"Connection: foo\r\nConnection: Close\r\n", True),
        (b"Connection: keep-alive, close\r\n", True),
        (b"Connection: keep-alive\r\n", False),
        (b"Connection: foo, keep-alive\r\n", False),
        (b"Connection: closer\r\n", False),
        (b"Connection: \r\n", False),
    ],
)
def test_connection_is_a_list(plain, fields, closes):
    found = talk(plain.port, b"GET /up HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n", 5 if closes else 0.5)
    assert (found.statuses, found.closed) == ([200], closes)
    assert found.answers[0].headers.get("connection", "").lower() == ("close" if closes else "")


@pytest.mark.parametrize(("fields", "closes"), [(b"Connection: foo, keep-alive\r\n", False), (b"", True)])
def test_http_1_0_keeps_a_connection_when_it_is_asked_to(plain, fields, closes):
    found = talk(plain.port, b"GET /up HTTP/1.0\r\n" + fields + b"\r\n", 5 if closes else 0.5)
    assert (found.statuses, found.closed) == ([200], closes)


REFUSED = {
    400: b"GET /up HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\nno colon\r\n\r\n",
    413: b"POST /up HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\nContent-Length: 99999\r\n\r\n",
    431: b"GET /up HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 17_000 + b"\r\n\r\n",
    501: b"POST /up HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\nTransfer-Encoding: gzip\r\n\r\n",
    505: b"PRI * HTTP/2.0\r\nOrigin: https://a.example\r\n\r\n",
}


@pytest.mark.parametrize("status", REFUSED)
def test_pages_may_read_what_the_parser_refuses(plain, status):
    [answer] = talk(plain.port, REFUSED[status]).answers
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "*")
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert answer.json["message"]


def test_only_those_that_may(serve):
    served = serve("--no-scheduler", "--cors-origin", "https://a.example")
    for status, data in REFUSED.items():
        [answer] = talk(served.port, data).answers
        assert answer.headers["vary"] == "Origin"
        if b"Origin" in data and status != 400:  # of a header that cannot be read no field counts
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
        [other] = talk(served.port, data.replace(b"https://a.example", b"https://b.example")).answers
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("length", [b"Content-Length: 99999", b"Content-Length: x", b"Transfer-Encoding: gzip"])
def test_who_asks_whether_to_go_on_is_refused_and_not_told_to(plain, length):
    data = b"POST /api/stats HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + length + b"\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", plain.port), timeout=5)) as sock:
        sock.sendall(data)
        assert sock.recv(65536).startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


def test_a_tls_hello_is_closed_at_once_with_one_line(serve, tmp_path):
    served = serve("--no-scheduler")
    hello = bytes.fromhex("1603010200010001fc0303") + os.urandom(506)
    for data in (hello, hello[:11], UP):
        begin = time.monotonic()
        with closing(socket.create_connection(("127.0.0.1", served.port), timeout=9)) as sock:
            sock.sendall(data)
            if data == UP:
                assert read_answers(sock.recv(65536))[0][0].status == 200
            else:
                assert sock.recv(65536) == b""
                assert time.monotonic() - begin < 5
    err = served.stop()[2]
    assert err.count("127.0.0.1 speaks TLS, which a proxy before this server has to do; closed\n") == 2


def test_bytes_of_tls_within_a_request_are_its_own(plain):
    body = b"\x16\x03\x01"
    data = b"POST /api/stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", plain.port), timeout=5)) as sock:
        sock.sendall(data)
        time.sleep(0.1)
        sock.sendall(body)
        assert sock.recv(65536).startswith((b"HTTP/1.1 405", b"HTTP/1.1 429"))


# A WAL that has grown ----------------------------------------------------------------------------


def grow(path):
    """Let a WAL grow to more than what may stay: a reader keeps its snapshot meanwhile."""
    with closing(ticketapi.connect(path)) as db, closing(ticketapi.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tickets").fetchone()
        ticketapi.generate_tickets(db, 25_000, ticketapi.wall_microseconds(), 1)
        reader.execute("COMMIT")


def test_a_wal_that_has_grown_shrinks_when_nobody_writes_for_a_minute(desk, db):
    wal = ticketapi.sidecars(desk)[0]
    grow(desk)
    size, now = wal.stat().st_size, wal.stat().st_mtime_ns // 1000
    assert size > ticketapi.WAL_KEPT
    ticketapi.shrink_wal(desk, now + 60_000_000)
    assert wal.stat().st_size == size
    with closing(ticketapi.connect(desk)) as other, ticketapi.transaction(other):
        ticketapi.shrink_wal(desk, now + 61_000_000)  # somebody has the right to write: another time
    assert wal.stat().st_size == size
    ticketapi.shrink_wal(desk, now + 61_000_000)
    assert wal.stat().st_size == 0
    ticketapi.shrink_wal(desk.with_name("nothing.db"), now + 61_000_000)
    assert db.execute("SELECT count(*) FROM tickets").fetchone()[0] == 25_000


def test_a_wal_that_has_grown_begins_anew_while_it_is_written_to(desk, db):
    wal = ticketapi.sidecars(desk)[0]
    grow(desk)
    size = wal.stat().st_size
    for _ in range(5):
        ticketapi.shrink_wal(desk, wal.stat().st_mtime_ns // 1000)
        ticketapi.generate_tickets(db, 10, ticketapi.wall_microseconds(), 1)
    with closing(ticketapi.connect(desk)) as other:
        assert other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1] < 100  # pages, of those of the last ten tickets
    assert wal.stat().st_size <= size


def test_what_is_written_in_the_event_loop_moves_no_wal(tmp_path, clock):
    """Which would wait for the disk: neither the audit log, nor the last use of a token."""
    path = tmp_path / "ticketapi-audit.db"
    audit, wal = ticketapi.AuditLog(path), ticketapi.sidecars(path)[0]
    row = dict.fromkeys(("user_id", "token_id", "route_name", "user_agent", "query", "request_body"))
    row |= {"method": "GET", "path": "x" * 2000, "status_code": 200, "ip_address": "", "duration_ms": 1, "request_id": "a"}
    row |= {"created_at": ticketapi.format_time(clock.wall())}
    before = path.read_bytes()
    for number in range(ticketapi.WAL_KEPT // 4096):
        audit.record(row, number)
    assert wal.stat().st_size > ticketapi.WAL_KEPT
    assert path.read_bytes() == before
    audit.close()
    assert ticketapi.NOTER.checkpoint == 0
    assert ticketapi.NOTER.synchronous == ticketapi.NORMAL


def test_a_small_wal_stays(desk, db):
    ticketapi.generate_tickets(db, 10, ticketapi.wall_microseconds(), 1)
    wal = ticketapi.sidecars(desk)[0]
    size = wal.stat().st_size
    ticketapi.shrink_wal(desk, wal.stat().st_mtime_ns // 1000 + 10**9)
    assert wal.stat().st_size == size > 0


# Why a token was none ----------------------------------------------------------------------------


def test_the_debug_log_alone_says_why_a_401_was_one(api, db, caplog):
    tokens = {
        "missing": None,
        "malformed": "tkt_x",
        "unknown": ticketapi.new_token_text(),
        "expired": ticketapi.create_token(db, "a@example.com", "t", ["*"], 1, api.clock.now)["token"],
    }
    api.clock.advance(2)
    for level, told in ((logging.INFO, []), (logging.DEBUG, list(tokens))):
        caplog.set_level(level, "ticketapi")
        answers = [api.get("/api/stats", token=text) for text in tokens.values()]
        assert {answer.body for answer in answers} == {b'{"message":"Unauthenticated."}'}
        lines = [record.getMessage() for record in caplog.records]
        assert [line.removeprefix("no valid token: ") for line in lines if line.startswith("no valid")] == told
        assert not any(text in line for text in tokens.values() if text for line in lines)
