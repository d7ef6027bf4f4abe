"""What goes wrong byte by byte, over real sockets, by one thread and by several: others are held up by none of it."""

import http.client
import json
import logging
import socket
import time
from contextlib import closing

import pytest
from conftest import wait_for
from looped import Looped

import ticketapi
from ticketapi import OPERATOR_EMAIL

ASK = b"%b %b HTTP/1.%d\r\nHost: a\r\nAuthorization: Bearer %b\r\n%bContent-Length: %d\r\n\r\n%b"
STATS, TICKETS = b"/api/stats", b"/api/tickets"
TICKET = json.dumps({"subject": "A", "content": "B", "user": {"name": "Ana", "email": "ana@example.com"}}).encode()
NOW = 1_764_849_600_000_000
KEY = b"Idempotency-Key: once\r\n"


class Desk(Looped):
    """A server of this process with the real app, whose faults a test sets."""

    def __init__(self, settings, family=socket.AF_INET):
        """Start to serve."""
        with closing(ticketapi.open_database(settings.db, "desk")) as db:
            self.token = ticketapi.create_token(db, OPERATOR_EMAIL, "test", ["*"], 0, NOW)["token"].encode()
        self.settings, self.clock, self.faults = settings, ticketapi.Clock(), ticketapi.Faults()
        self.audit = ticketapi.AuditLog(settings.audit_db, grouped=settings.threads == 1)
        self.readers, self.writer = ticketapi.Readers(settings.db), ticketapi.Writer(settings.db, self.clock)
        self.broadcast, self.traffic = ticketapi.Broadcast(settings.db, self.clock), ticketapi.Traffic(self.clock.wall())
        parts = (self.clock, self.traffic, None, self.writer, self.broadcast, self.faults)
        self.app = ticketapi.make_app(settings, self.readers, self.audit, *parts)
        self.family = family
        self.serve(self.app, settings, self.audit, self.clock)

    def put(self, **rule):
        """Put one rule into force, for all routes unless it says so."""
        given = {"faults": [{"route": "*", **rule}]}
        self.faults.seed, self.faults.rules = ticketapi.read_faults(given, ticketapi.FAULTY_ROUTES, self.clock.wall())

    def dial(self):
        """Connect a client."""
        sock = socket.socket(self.family)
        sock.settimeout(10)
        sock.connect(self.address)
        return closing(sock)

    def ask(self, path=STATS, method=b"GET", body=b"", more=b"", version=1):
        """Return the bytes of a request."""
        return ASK % (method, path, version, self.token, more, len(body), body)

    def get(self, path=STATS, method=b"GET", body=b"", more=b""):
        """Send a request over a connection of its own and return all that comes until its end."""
        with self.dial() as client:
            client.sendall(self.ask(path, method, body, b"Connection: close\r\n" + more))
            return read_all(client)

    def rows(self):
        """Return method, status and milliseconds of the requests in the audit log."""
        with closing(ticketapi.connect(self.settings.audit_db)) as db:
            rows = db.execute("SELECT method, status_code, duration_ms FROM api_audits ORDER BY id")
            return [tuple(row) for row in rows]

    def tickets(self):
        """Return how many tickets there are."""
        with closing(ticketapi.connect(self.settings.db)) as db:
            return ticketapi.newest_ticket(db)[0]

    def stop(self):
        """Stop, and wait for the end."""
        super().stop()
        for end in (self.writer.close, self.broadcast.close):
            end(5)
        self.readers.close()
        self.audit.close()


@pytest.fixture(params=[1, 4])
def settings(request, tmp_path):
    """The settings of a server in the loop, and of one with threads."""
    return ticketapi.Settings(db=tmp_path / "desk.db", threads=request.param)


@pytest.fixture
def desk(settings):
    """A running server."""
    served = Desk(settings)
    yield served
    if served.thread.is_alive():
        served.stop()


@pytest.fixture
def quick(monkeypatch):
    """Let a slow body take half a second."""
    monkeypatch.setattr(ticketapi, "SLOW_SECONDS", 0.5)


def read_all(sock):
    """Read a connection to its end."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def read_answer(sock):
    """Read one answer, by its Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(1)
    length = int(fields(data)["content-length"])
    while len(body_of(data)) < length:
        data += sock.recv(length - len(body_of(data)))
    return data


def fields(data):
    """Return the header of an answer."""
    lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): text for name, text in (line.split(": ", 1) for line in lines)}


def body_of(data):
    """Return the body of an answer."""
    return data.partition(b"\r\n\r\n")[2]


# Latency -----------------------------------------------------------------------------------------


def test_a_latency_holds_up_its_own_connection_alone(desk):
    desk.put(route="stats", latency={"fixed": "700ms"})
    clients = [desk.dial() for _ in range(5)]  # more than there are threads
    began = time.monotonic()
    for client in clients:
        client.thing.sendall(desk.ask())
    assert desk.get(b"/api/users").startswith(b"HTTP/1.1 200")
    assert time.monotonic() - began < 0.6
    for client in clients:
        with client as sock:
            assert b'"total_tickets":0' in read_answer(sock)
    assert 0.7 <= time.monotonic() - began < 3


def test_a_late_answer_is_counted_drawn_limited_and_written_down_once(desk):
    desk.put(route="stats", latency={"uniform": ["100ms", "300ms"]})
    data = desk.get()
    assert fields(data)["x-ratelimit-remaining"] == "29"
    wait_for(desk.rows)
    [(method, status, took)] = desk.rows()
    assert (method, status) == ("GET", 200)
    assert took >= 100
    assert desk.traffic.routes()["stats"].requests == 1
    assert (desk.faults.rules[0]["requests"], desk.faults.rules[0]["hits"], desk.faults.kinds) == (1, 1, {"latency": 1})


def test_a_write_is_done_before_its_answer_waits(desk):
    desk.put(route="tickets.store", latency={"fixed": "500ms"})
    with desk.dial() as client:
        client.sendall(desk.ask(TICKETS, b"POST", TICKET))
        wait_for(desk.tickets)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(10)
        assert read_answer(client).startswith(b"HTTP/1.1 201")
    assert desk.tickets() == 1


def test_errors_wait_too_and_a_status_may(desk):
    desk.put(latency={"fixed": "200ms"})
    began = time.monotonic()
    assert desk.get(b"/api/users/9").startswith(b"HTTP/1.1 404")
    assert time.monotonic() - began >= 0.2
    desk.put(latency={"fixed": "200ms"}, status=503, retry_after=1)
    began = time.monotonic()
    data = desk.get(TICKETS, b"POST", TICKET)
    assert time.monotonic() - began >= 0.2
    assert (data[:12], fields(data)["retry-after"], desk.tickets()) == (b"HTTP/1.1 503", "1", 0)


def test_what_a_client_that_has_gone_asked_for_is_written_down(desk):
    desk.put(route="tickets.store", latency={"fixed": "300ms"})
    with desk.dial() as client:
        client.sendall(desk.ask(TICKETS, b"POST", TICKET))
        wait_for(desk.tickets)
    wait_for(desk.rows)
    assert [row[:2] for row in desk.rows()] == [("POST", 201)]
    wait_for(lambda: not desk.server._channels())


def test_rules_that_end_meanwhile_end_nothing_that_has_begun(desk):
    desk.put(route="stats", latency={"fixed": "300ms"}, body="truncated")
    with desk.dial() as client:
        client.sendall(desk.ask())
        wait_for(lambda: desk.faults.kinds["latency"])
        desk.faults.rules = ()
        data = read_all(client)
    assert len(body_of(data)) == int(fields(data)["content-length"]) // 2
    assert b'"total_tickets":0' in desk.get()


def test_a_server_that_stops_lets_nobody_wait_beyond_its_end(desk, monkeypatch):
    monkeypatch.setattr(ticketapi, "STOP_SECONDS", 2.5)
    desk.put(latency={"fixed": "60s"})
    with desk.dial() as client:
        client.sendall(desk.ask())
        wait_for(lambda: desk.faults.kinds["latency"])
        began = time.monotonic()
        desk.stop()
        assert b'"total_tickets":0' in read_all(client)
        assert time.monotonic() - began < 5
    with closing(ticketapi.connect(desk.settings.audit_db)) as db:
        assert db.execute("SELECT count(*) FROM api_audits").fetchone()[0] == 1


# Bodies ------------------------------------------------------------------------------------------


def test_a_truncated_body_breaks_off_and_takes_the_connection_with_it(desk, caplog):
    whole = body_of(desk.get())
    desk.put(route="stats", body="truncated")
    with desk.dial() as client:
        client.sendall(desk.ask() * 3)
        data = read_all(client)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert fields(data)["content-length"] == str(len(whole))
    assert "connection" not in fields(data)
    assert body_of(data) == whole[: len(whole) // 2]
    assert desk.faults.kinds == {"body": 1}  # the others were never begun
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_client_sees_that_a_truncated_body_is_not_all(desk):
    desk.put(route="stats", body="truncated")
    with closing(http.client.HTTPConnection(*desk.address, timeout=10)) as client:
        client.request("GET", "/api/stats", headers={"Authorization": f"Bearer {desk.token.decode()}"})
        with pytest.raises(http.client.IncompleteRead):
            client.getresponse().read()


def test_after_an_empty_body_the_connection_goes_on(desk):
    desk.put(route="stats", body="empty", first=1)
    with desk.dial() as client:
        client.sendall(desk.ask() * 2)
        one, two = read_answer(client), read_answer(client)
    assert (fields(one)["content-length"], body_of(one)) == ("0", b"")
    assert b'"total_tickets":0' in body_of(two)


def test_a_slow_body_comes_in_ten_parts_over_five_seconds(tmp_path):
    desk = Desk(ticketapi.Settings(db=tmp_path / "desk.db"))
    desk.put(route="stats", body="slow")
    with desk.dial() as client:
        began, parts = time.monotonic(), []
        client.sendall(desk.ask())
        while data := client.recv(65536):
            parts.append((time.monotonic() - began, data))
        assert time.monotonic() - began < 6
    desk.stop()
    (first, head), *rest = parts
    assert first < 0.4
    assert head.endswith(b"\r\n\r\n")
    assert len(rest) == ticketapi.SLOW_PARTS == 10
    for number, (moment, data) in enumerate(rest, 1):
        assert number / 2 <= moment < number / 2 + 0.4
        assert abs(len(data) - int(fields(head)["content-length"]) / 10) <= 1
    assert json.loads(b"".join(data for _, data in rest))["total_tickets"] == 0
    assert ticketapi.SLOW_SECONDS == 5


@pytest.mark.parametrize("version", [0, 1])
def test_a_slow_body_holds_up_nobody_and_ends_the_connection(desk, quick, version):
    desk.put(route="stats", body="slow")
    with desk.dial() as client:
        client.sendall(desk.ask(version=version, more=b"Connection: keep-alive\r\n") * 2)
        wait_for(lambda: desk.faults.kinds["body"])
        assert desk.get(b"/api/users").startswith(b"HTTP/1.1 200")
        data = read_all(client)
    assert fields(data)["connection"] == "close"
    assert len(body_of(data)) == int(fields(data)["content-length"])
    assert json.loads(body_of(data))["total_tickets"] == 0
    assert desk.faults.kinds == {"body": 1}


def test_a_slow_body_comes_whole_from_a_server_that_stops(desk, quick):
    desk.put(route="stats", body="slow")
    with desk.dial() as client:
        client.sendall(desk.ask())
        wait_for(lambda: desk.faults.kinds["body"])
        desk.stop()
        data = read_all(client)
    assert json.loads(body_of(data))["total_tickets"] == 0


def test_a_slow_client_of_a_slow_body_that_leaves_is_forgotten(desk, quick):
    desk.put(route="stats", body="slow")
    with desk.dial() as client:
        client.sendall(desk.ask())
        wait_for(lambda: desk.faults.kinds["body"])
    wait_for(lambda: not desk.server._channels())
    assert [row[:2] for row in desk.rows()] == [("GET", 200)]


def test_a_latency_comes_before_the_body_that_is_spoilt(desk, quick):
    desk.put(route="stats", body="slow", latency={"fixed": "300ms"})
    with desk.dial() as client:
        began = time.monotonic()
        client.sendall(desk.ask())
        client.recv(1)
        assert time.monotonic() - began >= 0.3
        read_all(client)
        assert 0.8 <= time.monotonic() - began < 3


@pytest.mark.parametrize("body", ["truncated", "slow", "empty"])
def test_a_write_whose_answer_is_spoilt_is_done_and_replayed(desk, quick, body):
    desk.put(route="tickets.store", body=body, first=1)
    for replayed in (None, "true"):
        data = desk.get(TICKETS, b"POST", TICKET, KEY)
        assert (data[:12], fields(data).get("idempotent-replayed")) == (b"HTTP/1.1 201", replayed)
    assert json.loads(body_of(data))["data"]["id"] == desk.tickets() == 1
    assert [row[:2] for row in desk.rows()] == [("POST", 201)] * 2


# Reset connections -------------------------------------------------------------------------------


def assert_reset(client):
    """Check that a connection ends by RST, with nothing before."""
    with pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_reset_sends_nothing_and_is_written_down_with_the_status_it_would_have_had(desk, method):
    desk.put(route="stats", reset=True)
    with desk.dial() as client:
        client.sendall(desk.ask(method=method) * 2)
        assert_reset(client)
    wait_for(desk.rows)
    assert [row[:2] for row in desk.rows()] == [(method.decode(), 200)]
    assert desk.faults.kinds == {"reset": 1}
    wait_for(lambda: not desk.server._channels())


def test_answers_before_a_reset_are_sent(desk):
    desk.put(route="stats", reset=True)
    with desk.dial() as client:
        client.sendall(desk.ask(b"/api/users"))
        assert read_answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(desk.ask())
        assert_reset(client)


def test_a_write_before_a_reset_is_done_and_answered_to_who_asks_again(desk):
    desk.put(route="tickets.store", reset=True, first=1)
    with desk.dial() as client:
        client.sendall(desk.ask(TICKETS, b"POST", TICKET, KEY))
        assert_reset(client)
    assert desk.tickets() == 1
    data = desk.get(TICKETS, b"POST", TICKET, KEY)
    assert (data[:12], fields(data)["idempotent-replayed"]) == (b"HTTP/1.1 201", "true")
    desk.put(route="tickets.destroy", reset=True)
    with desk.dial() as client:
        client.sendall(desk.ask(b"/api/tickets/1", b"DELETE"))
        assert_reset(client)
    assert [row[:2] for row in desk.rows()] == [("POST", 201), ("POST", 201), ("DELETE", 204)]


def test_a_reset_may_come_late_and_after_an_error(desk):
    desk.put(reset=True, latency={"fixed": "300ms"})
    for path, method, body in ((TICKETS, b"POST", TICKET), (b"/api/users/9", b"GET", b"")):
        with desk.dial() as client:
            began = time.monotonic()
            client.sendall(desk.ask(path, method, body))
            assert_reset(client)
            assert time.monotonic() - began >= 0.3
    assert [row[:2] for row in desk.rows()] == [("POST", 201), ("GET", 404)]


def test_a_reset_does_not_wait_for_the_next_turn_of_the_loop(desk):
    desk.put(route="stats", reset=True)
    took = []
    for _ in range(4):
        with desk.dial() as client:
            began = time.monotonic()
            client.sendall(desk.ask())
            assert_reset(client)
            took.append(time.monotonic() - began)
    assert min(took) < 0.5


# Other sockets, streams, requests that wait ------------------------------------------------------


def test_over_a_unix_socket_it_is_the_same_but_that_a_reset_just_ends(settings, tmp_path, monkeypatch, quick):
    def listen(host, port):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "desk.sock"))
        sock.listen()
        return sock

    monkeypatch.setattr(ticketapi, "bind_socket", listen)
    desk = Desk(settings, socket.AF_UNIX)
    whole = body_of(desk.get())
    for fault, body in (({"body": "truncated"}, whole[: len(whole) // 2]), ({"body": "slow"}, whole), ({"body": "empty"}, b"")):
        desk.put(route="stats", **fault)
        assert body_of(desk.get()) == body
    desk.put(route="stats", reset=True)
    assert desk.get() == b""
    assert [row[1] for row in desk.rows()] == [200] * 5
    desk.stop()


STREAM = b"/api/events/stream"


def begin_of(client):
    """Read how a stream begins."""
    data = b""
    while b"\n\n" not in body_of(data):
        data += client.recv(65536)
    return data


def test_a_stream_opens_late_and_once(desk):
    desk.put(route="events.stream", latency={"fixed": "300ms"})
    with desk.dial() as client:
        began = time.monotonic()
        client.sendall(desk.ask(STREAM))
        assert b"retry: 3000" in begin_of(client)
        assert time.monotonic() - began >= 0.3
        assert len(desk.broadcast._followers) == 1
    wait_for(lambda: not desk.broadcast._followers)
    assert [row[:2] for row in desk.rows()] == [("GET", 200)]


@pytest.mark.parametrize("body", ["truncated", "slow"])
def test_a_stream_has_no_length_that_could_be_cut(desk, body):
    desk.put(route="events.stream", body=body)
    with desk.dial() as client:
        client.sendall(desk.ask(STREAM))
        data = begin_of(client)
    assert fields(data)["transfer-encoding"] == "chunked"
    assert b"retry: 3000" in data


def test_a_stream_whose_body_is_empty_or_that_is_reset_is_closed_at_once(desk):
    desk.put(route="events.stream", body="empty")
    assert body_of(desk.get(STREAM)) == b""
    wait_for(lambda: not desk.broadcast._followers)
    desk.put(route="events.stream", reset=True)
    with desk.dial() as client:
        client.sendall(desk.ask(STREAM))
        assert_reset(client)
    wait_for(lambda: not desk.broadcast._followers)
    desk.put(route="events.stream", status=503)
    assert desk.get(STREAM).startswith(b"HTTP/1.1 503")
    assert not desk.broadcast._followers


def test_a_request_that_waits_already_is_spared_by_new_rules(desk):
    with closing(ticketapi.open_database(desk.settings.db, "desk")) as db, desk.dial() as client:
        with ticketapi.transaction(db):  # nobody else may write
            client.sendall(desk.ask(TICKETS, b"POST", TICKET))
            wait_for(lambda: desk.writer._waiting)
            desk.put(status=503)
        assert read_answer(client).startswith(b"HTTP/1.1 201")
    assert desk.tickets() == 1
    assert desk.faults.rules[0]["requests"] == 0


def test_many_at_once_are_each_counted(desk):
    """Threads share the counters."""
    desk.put(route="stats", first=60, status=503)
    clients = [desk.dial() for _ in range(10)]
    for client in clients:
        client.thing.sendall(desk.ask() * 2)
    found = []
    for client in clients:
        with client as sock:
            found += [read_answer(sock)[9:12] for _ in range(2)]
    assert found == [b"503"] * 20
    assert (desk.faults.rules[0]["requests"], desk.faults.kinds) == (20, {"status": 20})
