"""Requests that wait are parked: they hold neither the loop nor a thread, and are answered in order, once, and written down."""

import http.client
import json
import socket
import struct
import threading
import time
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from types import SimpleNamespace

import bottle
import pytest
from conftest import Api, HandClock, wait_for
from looped import Looped, running

import ticketapi

POST = b"POST /api/%s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"


class Desk(Looped):
    """A server of this process with the real app, and routes whose writes wait until a test lets them be done."""

    def __init__(self, settings, audit, token, **clock):
        """Start to serve."""
        self.token, self.audit, self.clock = token.encode(), audit, ticketapi.Clock(**clock)
        self.readers = ticketapi.Readers(settings.db)
        self.writer = ticketapi.Writer(settings.db, self.clock)
        self.traffic = ticketapi.Traffic(self.clock.wall())
        self.app = ticketapi.make_app(settings, self.readers, audit, self.clock, self.traffic, writer=self.writer)
        self.gate, self.runs = threading.Event(), []
        shared = SimpleNamespace(writer=self.writer, readers=self.readers)
        routes = {"slow": partial(self.write, self.gate.wait), "quick": partial(self.write, lambda: None), "late": self.wait}
        for name, handler in routes.items():
            self.app.route(f"/api/{name}", ["GET", "POST"], partial(handler, shared), name=name, ability="read:tickets")
        self.serve(self.app, settings, audit, self.clock)

    def write(self, pause, shared):
        """Make a user of the name that is the body, after a pause; answer with the number of users."""
        name = bottle.request.body.read().decode()
        self.runs.append(name)

        def operation(db):
            pause()
            if name == "wrong":
                raise ticketapi.InvalidFields({"name": ["The name is wrong."]})
            ticketapi.insert_users(db, [(1000 + len(name), name, f"{name}@example.com", "2025-12-04T12:00:00.000000Z")])
            return len(name)

        return ticketapi.to_json({"made": ticketapi.perform(shared, operation), "name": name})

    def wait(self, shared):
        """Answer after a moment."""
        ticketapi.delay(0.2)
        return b'"late"'

    def ask(self, path, body=b""):
        """Return the bytes of a request."""
        return POST % (path.encode(), self.token, len(body)) + body

    def dial(self):
        """Connect a client."""
        return closing(socket.create_connection(self.address, timeout=10))

    def get(self, path, method="GET", body=None, headers=None):
        """Send a request over a connection of its own; return its status, headers and body."""
        with closing(http.client.HTTPConnection(*self.address, timeout=10)) as client:
            client.request(method, path, body, {"Authorization": f"Bearer {self.token.decode()}", **(headers or {})})
            answer = client.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    def stop(self):
        """Stop, and wait for the end."""
        self.gate.set()
        super().stop()
        self.writer.close(5)
        self.readers.close()


@pytest.fixture(params=[1, 4])
def settings(request, tmp_path):
    """The settings of a server in the loop, and of one with threads."""
    return ticketapi.Settings(db=tmp_path / "desk.db", threads=request.param)


@pytest.fixture
def desk(settings):
    """A running server."""
    with running(Desk, settings) as desk:
        yield desk


def answers(sock, count):
    """Read so many answers of a connection; return status and body of each."""
    found = []
    with sock.makefile("rb") as stream:
        for _ in range(count):
            status = int(stream.readline().split()[1])
            headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
            found.append((status, json.loads(stream.read(int(headers["content-length"])))))
    return found


def rows(settings):
    """Return the rows of the audit log."""
    with closing(ticketapi.connect(settings.audit_db)) as db:
        return [dict(row) for row in db.execute("SELECT * FROM api_audits ORDER BY id")]


def names(settings):
    """Return the names of the users that the tests make."""
    with closing(ticketapi.connect(settings.db)) as db:
        return [row[0] for row in db.execute("SELECT name FROM users WHERE id >= 1000 AND id < 2000 ORDER BY id")]


def test_others_are_answered_while_one_is_parked(desk):
    with desk.dial() as one, desk.dial() as two, desk.dial() as three, desk.dial() as four, desk.dial() as five:
        clients = [one, two, three, four, five]  # more than there are threads
        for number, client in enumerate(clients, 1):
            client.sendall(desk.ask("slow", b"a" * number))
        wait_for(lambda: len(desk.runs) == 5)
        assert desk.get("/up")[0] == 200
        assert desk.get("/api/stats")[0] == 200
        desk.gate.set()
        assert [answers(client, 1) for client in clients] == [
            [(200, {"made": number, "name": "a" * number})] for number in range(1, 6)
        ]


def test_a_parked_request_is_counted_audited_and_limited_once(desk, settings):
    with desk.dial() as client:
        client.sendall(desk.ask("slow", b"ab"))
        wait_for(lambda: desk.runs)
        assert rows(settings) == []
        assert "slow" not in desk.traffic.routes()
        time.sleep(0.05)  # what has to be seen in the duration
        desk.gate.set()
        assert answers(client, 1) == [(200, {"made": 2, "name": "ab"})]
    (row,) = rows(settings)
    assert (row["route_name"], row["status_code"], row["method"], row["path"]) == ("slow", 200, "POST", "api/slow")
    assert row["duration_ms"] >= 50
    assert desk.traffic.routes()["slow"].requests == 1
    assert desk.runs == ["ab", "ab"]
    status, headers, _ = desk.get("/api/stats")
    assert (status, headers["X-Ratelimit-Remaining"]) == (200, str(settings.rate - 2))


def test_what_an_operation_raises_is_the_answer(desk, settings):
    desk.gate.set()
    status, _, body = desk.get("/api/slow", "POST", b"wrong")
    assert (status, json.loads(body)["errors"]) == (422, {"name": ["The name is wrong."]})
    assert [row["status_code"] for row in rows(settings)] == [422]
    assert names(settings) == []


def test_requests_of_one_connection_are_answered_in_order_one_at_a_time(desk, settings):
    with desk.dial() as client:
        client.sendall(desk.ask("slow", b"a") + desk.ask("quick", b"bb") + desk.ask("slow", b"ccc"))
        wait_for(lambda: desk.runs)
        desk.get("/up")
        assert desk.runs == ["a"]
        desk.gate.set()
        assert [body["name"] for _, body in answers(client, 3)] == ["a", "bb", "ccc"]
        client.sendall(desk.ask("quick", b"dddd"))  # and the connection goes on
        assert answers(client, 1) == [(200, {"made": 4, "name": "dddd"})]
    assert names(settings) == ["a", "bb", "ccc", "dddd"]


def test_head_and_trailing_slashes_and_bodies_stay_what_they_are(desk, settings):
    desk.gate.set()
    status, headers, body = desk.get("/api/quick/?a=%C3%A9", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "20", b"")
    assert [(row["path"], row["query"], row["status_code"]) for row in rows(settings)] == [("api/quick", '{"a":"é"}', 200)]


def test_what_a_client_that_has_gone_asked_for_is_done_and_written_down(desk, settings):
    client = socket.create_connection(desk.address, timeout=10)
    client.sendall(desk.ask("slow", b"gone"))
    wait_for(lambda: desk.runs)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    desk.gate.set()
    wait_for(lambda: rows(settings))
    assert names(settings) == ["gone"]
    assert [(row["route_name"], row["status_code"]) for row in rows(settings)] == [("slow", 200)]
    wait_for(lambda: not desk.server._channels())


def test_a_server_that_stops_finishes_what_is_parked(desk, settings):
    with desk.dial() as client:
        client.sendall(desk.ask("slow", b"last"))
        wait_for(lambda: desk.runs)
        desk.server.call(desk.server.stop)
        wait_for(lambda: desk.server.deadline < float("inf"))
        assert desk.thread.is_alive()
        desk.gate.set()
        assert answers(client, 1) == [(200, {"made": 4, "name": "last"})]
        desk.thread.join(10)
        assert not desk.thread.is_alive()
    assert [row["status_code"] for row in rows(settings)] == [200]


def test_a_writer_that_is_closed_takes_nothing_more(desk):
    desk.writer.close(5)
    status, headers, _ = desk.get("/api/quick", "POST", b"late")
    assert (status, headers["Retry-After"]) == (503, "1")


def test_deadlines_for_slow_and_idle_clients_spare_the_parked(desk):
    with desk.dial() as client:
        client.sendall(desk.ask("slow", b"a"))
        wait_for(lambda: desk.runs)
        (channel,) = desk.server._channels()
        assert ticketapi.is_busy(channel, 100.0)
        for seconds in (0, 100, 200):
            desk.server._cut_slow_clients(time.monotonic() + seconds)
        channel.server.maintenance(time.time() + 1000)
        desk.server._spare = desk.server._connections
        desk.server._cut_idle_connections()
        desk.gate.set()
        assert answers(client, 1) == [(200, {"made": 1, "name": "a"})]


def test_a_delay_holds_up_its_own_connection_alone(desk):
    with desk.dial() as client:
        began = time.monotonic()
        client.sendall(desk.ask("late"))
        assert desk.get("/up")[0] == 200
        assert answers(client, 1) == [(200, "late")]
        assert time.monotonic() - began >= 0.2


def test_without_a_server_an_operation_is_done_at_once(desk, settings):
    desk.gate.set()
    api = Api(settings, HandClock(), desk.readers, desk.audit, desk.app)
    answer = api.request("POST", "/api/slow", token=desk.token.decode(), body=b"here", headers={"Content-Type": "text/plain"})
    assert (answer.status, answer.json) == (200, {"made": 4, "name": "here"})
    assert api.get("/api/late", token=desk.token.decode()).json == "late"
    desk.audit.commit(float("inf"))
    assert [row["status_code"] for row in api.audits()] == [200, 200]


def test_what_waits_is_called_once_whoever_calls_first():
    """A future that is done before the request is parked, or has failed, is taken as well."""
    sock = ticketapi.bind_socket("127.0.0.1", 0)

    def app(environ, start):
        if not environ["ticketapi.outcomes"]:
            future = Future()
            future.set_result(None)
            raise ticketapi.Parked(future)
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = ticketapi.Server(app, [sock], ticketapi.Settings(), lambda: None)
    thread = threading.Thread(target=server.run, args=(lambda: None,))
    thread.start()
    with suppress(OSError), closing(socket.create_connection(sock.getsockname(), timeout=10)) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(1000).endswith(b"ok")
    server.call(server.stop)
    thread.join(10)
    assert not thread.is_alive()
    server.call(lambda: pytest.fail("nothing is called any more"))
