"""Answers that go on: they hold neither the loop nor a thread, end when either side wants, and are cut when nobody reads."""

import http.client
import socket
import threading
import time
from contextlib import closing

import bottle
import pytest
from conftest import Api, HandClock, wait_for
from looped import Looped, running

import ticketapi
from ticketapi import MAX_UNREAD

ASK = b"GET /api/feed HTTP/1.%d\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n"


class Desk(Looped):
    """A server of this process with the real app, and a route that opens streams."""

    def __init__(self, settings, audit, token):
        """Start to serve."""
        self.token, self.clock, self.audit = token.encode(), ticketapi.Clock(), audit
        self.readers = ticketapi.Readers(settings.db)
        self.app = ticketapi.make_app(settings, self.readers, audit, self.clock)
        self.streams = []
        self.app.route("/api/feed", "GET", self.feed, name="feed", ability="read:tickets")
        self.serve(self.app, settings, audit, self.clock)

    def feed(self):
        """Open a stream that begins with a word."""
        bottle.response.headers["Content-Type"] = "text/event-stream"
        stream = ticketapi.Stream()
        self.streams.append(stream)
        stream.send(b"hello\n")
        return stream

    def dial(self, version=1, more=b"", buffer=None):
        """Connect a client and open a stream; return the socket, and the stream when it has begun."""
        client = socket.socket()
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(10)
        client.connect(self.address)
        number = len(self.streams)
        client.sendall(ASK % (version, self.token) + more)
        wait_for(lambda: len(self.streams) > number and self.streams[number].connection)
        return closing(client), self.streams[number]

    def up(self):
        """Tell whether another request is answered."""
        with closing(http.client.HTTPConnection(*self.address, timeout=10)) as client:
            client.request("GET", "/up")
            return client.getresponse().status == 200

    def stop(self):
        """Stop, and wait for the end."""
        super().stop()
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


def read_until(sock, end):
    """Read a connection until some bytes have come, or its end; return all that came."""
    data = b""
    while end not in data and (chunk := sock.recv(65536)):
        data += chunk
    return data


def read_all(sock):
    """Read a connection to its end."""
    return b"".join(iter(lambda: sock.recv(65536), b""))


def body_of(data):
    """Return the body of a chunked answer that is complete."""
    rest, body = data.partition(b"\r\n\r\n")[2], b""
    while (size := int(rest.partition(b"\r\n")[0], 16)) > 0:
        rest = rest.partition(b"\r\n")[2]
        body, rest = body + rest[:size], rest[size + 2 :]
    assert rest == b"0\r\n\r\n"
    return body


def rows(settings):
    """Return the rows of the audit log."""
    with closing(ticketapi.connect(settings.audit_db)) as db:
        return [dict(row) for row in db.execute("SELECT * FROM api_audits ORDER BY id")]


def test_what_is_sent_goes_out_as_it_comes(desk, settings):
    connection, stream = desk.dial()
    with connection as client:
        data = read_until(client, b"hello\n\r\n")
        head = data.partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 200 ok\r\n")
        assert b"\r\ncontent-type: text/event-stream\r\n" in head + b"\r\n"
        assert b"\r\ntransfer-encoding: chunked" in head
        assert b"content-length" not in head
        assert [(row["route_name"], row["status_code"]) for row in rows(settings)] == [("feed", 200)]
        for word in (b"one\n", b"two\n"):
            stream.send(word)
            data += read_until(client, word)
        assert desk.up()
        assert not stream.gone
        assert stream.unread == 0
        stream.close()
        stream.send(b"too late")
        stream.close()
        assert body_of(data + read_all(client)) == b"hello\none\ntwo\n"
    wait_for(lambda: stream.gone)
    assert len(rows(settings)) == 1


def test_to_an_old_client_it_ends_with_the_connection(desk):
    connection, stream = desk.dial(version=0)
    with connection as client:
        stream.send(b"more")
        stream.close()
        head, _, body = read_all(client).partition(b"\r\n\r\n")
        assert body == b"hello\nmore"
        assert b"chunked" not in head.lower()


def test_many_are_served_at_a_time_and_all_end_when_the_server_does(desk, settings):
    opened = [desk.dial() for _ in range(12)]  # more than there are threads
    assert desk.up()
    senders = [threading.Thread(target=stream.send, args=(b"more",)) for _, stream in opened]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    began = time.monotonic()
    desk.server.call(desk.server.stop)
    desk.thread.join(10)
    assert not desk.thread.is_alive()
    assert time.monotonic() - began < ticketapi.STOP_SECONDS
    for connection, stream in opened:
        with connection as client:
            assert body_of(read_all(client)) == b"hello\nmore"
        assert stream.gone
        stream.send(b"after the end")
    assert len(rows(settings)) == 12


def test_a_client_that_leaves_is_noticed_and_nothing_is_kept(desk):
    connection, stream = desk.dial()
    with connection as client:
        read_until(client, b"hello\n")
    wait_for(lambda: stream.gone)
    stream.send(b"x" * 100_000)
    assert stream.unread == 0
    wait_for(lambda: not desk.server._channels())


def test_who_does_not_read_is_cut_off(desk):
    connection, stream = desk.dial(buffer=4096)
    with connection as client:
        for _ in range(1000):
            if stream.gone:
                break
            stream.send(b"x" * 10_000)
            wait_for(lambda: not stream._waiting)
            assert stream.unread <= MAX_UNREAD + 10_100 or stream.gone
        assert stream.gone
        with pytest.raises((ConnectionResetError, ValueError)):
            body_of(read_all(client))  # it has not ended as it should
    assert desk.up()


def test_what_a_client_says_after_its_request_is_not_heard(desk):
    connection, stream = desk.dial(more=ASK % (1, desk.token))
    with connection as client:
        read_until(client, b"hello\n")
        client.sendall(ASK % (1, desk.token) * 3 + b"\x16\x03")
        desk.up()
        stream.send(b"still")
        assert read_until(client, b"still")
        assert len(desk.streams) == 1
        stream.close()
        read_all(client)
    assert len(desk.streams) == 1
    wait_for(lambda: not desk.server._behind)


def test_deadlines_spare_streams(desk):
    connection, stream = desk.dial(buffer=4096)
    with connection as client:
        channel = stream.connection
        while not channel.total_outbufs_len:
            stream.send(b"x" * 10_000)
            wait_for(lambda: not stream._waiting)
        for seconds in (0, 100, 200):
            desk.server._cut_slow_clients(time.monotonic() + seconds)
        channel.server.maintenance(time.time() + 1000)
        desk.server._spare = desk.server._connections
        desk.server._cut_idle_connections()
        assert not channel.will_close
        stream.close()
        assert body_of(read_all(client)).startswith(b"hello\nxxx")


def test_without_a_server_it_is_what_was_sent(desk, settings):
    api = Api(settings, HandClock(), desk.readers, desk.audit, desk.app)
    answer = api.get("/api/feed", token=desk.token.decode())
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/event-stream", b"hello\n")


def test_a_stream_begins_after_a_wait_too(desk):
    def feed():
        ticketapi.delay(0.05)
        return desk.feed()

    desk.app.route("/api/later", "GET", feed, name="later", ability="read:tickets")
    with closing(socket.create_connection(desk.address, timeout=10)) as client:
        client.sendall((ASK % (1, desk.token)).replace(b"feed", b"later"))
        assert read_until(client, b"hello\n")
        assert len(desk.streams) == 1


def kept(channel):
    """Return how many bytes the buffers of a connection hold, sent ones too."""
    files = [buffer.buf.getfile() for buffer in channel.outbufs if buffer.buf is not None]
    return sum(file.seek(0, 2) for file in files) + sum(len(getattr(buffer, "strbuf", b"")) for buffer in channel.outbufs)


def test_what_a_client_has_taken_is_kept_no_longer(desk):
    connection, stream = desk.dial()
    with connection as client:
        read_until(client, b"hello\n")
        for number in range(200):
            stream.send(b"x" * 10_000 + b"%d\n" % number)
            read_until(client, b"%d\n" % number)
        wait_for(lambda: not stream.unread)
        assert kept(stream.connection) < 50_000  # of two million


def test_a_client_that_takes_one_piece_that_is_larger_than_the_bound_is_not_cut(desk):
    connection, stream = desk.dial(buffer=2048)
    with connection as client:
        stream.send(b"#" * 4 * MAX_UNREAD + b"end\n")
        wait_for(lambda: stream.unread > MAX_UNREAD)
        assert read_until(client, b"end\n").count(b"#") == 4 * MAX_UNREAD
