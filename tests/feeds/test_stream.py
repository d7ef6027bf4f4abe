"""GET /api/events/stream: events as they happen, for as many clients as there may be, each as long as it reads and may."""

import json
import re
import socket
import threading
from contextlib import closing, suppress

import pytest
from conftest import NOON, Served, create_ticket, make_served, wait_for
from looped import Looped

import ticketapi
from ticketapi import BEAT_SECONDS, MAX_STREAMS, MAX_USER_STREAMS, format_time

URL = "/api/events/stream"
ASK = "{} {}{} HTTP/1.1\r\nHost: desk.test\r\nAuthorization: Bearer {}\r\n{}\r\n"
AUTHOR = ("Ada", "ada@example.com")


class ByHand(ticketapi.Broadcast):
    """Takes its turns when a test says so."""

    def _loop(self):
        """Wait for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing)


class Client:
    """Who follows a stream."""

    def __init__(self, address, token, query="", headers="", method="GET", buffer=None):
        """Connect, and ask for the stream."""
        self.sock = socket.socket()
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(10)
        self.sock.connect(address)
        self.sock.sendall(ASK.format(method, URL, query, token, headers).encode())
        self.data = b""
        while b"\r\n\r\n" not in self.data:
            self.more()
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def more(self):
        """Take what has come; tell whether there was anything."""
        data = self.sock.recv(65536)
        self.data += data
        return bool(data)

    @property
    def text(self):
        """Return the chunks that are complete, and whether the last one has come."""
        rest, body = self.data, b""
        while (match := re.match(rb"([0-9a-fA-F]+)\r\n", rest)) and len(rest) >= match.end() + int(match[1], 16) + 2:
            size = int(match[1], 16)
            if not size:
                return body.decode(), True
            body, rest = body + rest[match.end() : match.end() + size], rest[match.end() + size + 2 :]
        return body.decode(), False

    def until(self, condition):
        """Read until a condition holds for the text; return it."""
        while not condition(self.text[0]):
            assert self.more(), self.data[-300:]
        return self.text[0]

    def to_end(self):
        """Read to the end of the answer; return the text."""
        while not self.text[1]:
            assert self.more(), "the answer has no end"
        return self.text[0]

    def ids(self, last):
        """Read up to the event with an id; return the ids of all."""
        text = self.until(lambda text: f"id: {last}\nevent" in text and text.endswith("\n\n"))
        return [int(number) for number in re.findall(r"^id: (\d+)\nevent", text, re.M)]

    def close(self):
        """Leave."""
        self.sock.close()


class Desk(Looped):
    """A server of this process, whose streams get what there is when a test says so."""

    def __init__(self, api_parts, desk, clock, settings):
        """Start to serve."""
        self.clock, self.settings = clock, settings
        self.broadcast = ByHand(desk, clock)
        readers, audit = api_parts.readers, api_parts.audit
        self.app = ticketapi.make_app(settings, readers, audit, clock, broadcast=self.broadcast)
        self.serve(self.app, settings, audit, clock)
        self.reader, self.clients = ticketapi.Reader(desk), []

    def follow(self, token, *more, **options):
        """Return a new client; its stream has begun when this returns."""
        self.clients.append(Client(self.address, token, *more, **options))
        return self.clients[-1]

    def turn(self, count=1):
        """Give the streams what there is."""
        for _ in range(count):
            behind = self.broadcast.turn(self.reader, self.clock.monotonic(), format_time(self.clock.wall()))
        return behind

    def turn_until(self, condition):
        """Take turns until a condition holds."""
        wait_for(lambda: (self.turn(), condition())[1])

    @property
    def open(self):
        """How many streams there are."""
        return len(self.broadcast._followers)

    def stop(self):
        """Stop, and wait for the end."""
        for client in self.clients:
            client.close()
        super().stop()
        self.broadcast.close(5)
        self.reader.db.close()


@pytest.fixture
def served(desk, db, clock, empty_log, tmp_path):
    """A running server without a limit."""
    settings = ticketapi.Settings(db=desk, rate=0)
    if isinstance(settings.audit_db, ticketapi.Path):
        ticketapi.shutil.copy(empty_log, settings.audit_db)
    with ticketapi.ExitStack() as stack:
        running = Desk(make_served(settings, clock, stack), desk, clock, settings)
        yield running
        running.stop()


def add(db, count=1):
    """Make tickets."""
    for number in range(count):
        create_ticket(db, AUTHOR, str(number), "x", NOON)


def audits(served):
    """Return status and route of each request."""
    with closing(ticketapi.connect(served.settings.audit_db)) as log:
        return [tuple(row) for row in log.execute("SELECT status_code, route_name FROM api_audits ORDER BY id")]


def test_it_begins_with_what_comes_next(served, db, pen):
    add(db, 3)
    client = served.follow(pen)
    assert client.status == 200
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["x-accel-buffering"] == "no"
    assert client.headers["cache-control"].startswith("no-cache")
    assert "content-length" not in client.headers
    begun = client.until(lambda text: text.endswith("\n\n"))
    assert begun == "retry: 3000\nid: 3\n\n"  # to go on from, should it be cut before the first event
    served.turn()
    add(db)
    ticketapi.update_ticket(db, 1, {"status": 2, "content": 'a\nb\r"\u2028c'}, NOON)
    ticketapi.add_comment(db, 2, ticketapi.FIRST_OWNER_ID, "Hm", NOON)
    served.turn()
    assert client.ids(6) == [4, 5, 6]
    lines = client.text[0].split("\n\n")
    assert (lines[0], lines[-1]) == ("retry: 3000\nid: 3", "")
    found = [dict(line.split(": ", 1) for line in block.split("\n")) for block in lines[1:-1]]
    assert [list(event) for event in found] == [["id", "event", "data"]] * 3
    assert [event["event"] for event in found] == ["ticket.created", "ticket.closed", "comment.created"]
    with closing(socket.create_connection(served.address, timeout=10)) as sock:
        sock.sendall(f"GET /api/events HTTP/1.0\r\nAuthorization: Bearer {pen}\r\n\r\n".encode())
        body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")[2]
    assert [json.loads(event["data"]) for event in found] == json.loads(body)["data"][3:]


@pytest.mark.parametrize("after", [0, 1, 3, 5])
@pytest.mark.parametrize("way", ["query", "header", "both"])
def test_it_goes_on_after_an_event(served, db, pen, after, way):
    add(db, 5)
    query = {"query": f"?after={after}", "header": "", "both": "?after=2"}[way]
    client = served.follow(pen, query, "" if way == "query" else f"Last-Event-ID: {after}\r\n")
    served.turn()
    add(db)
    served.turn()
    assert client.ids(6) == list(range(after + 1, 7))


@pytest.mark.parametrize(("text", "status"), [("x", 422), ("1.5", 422), ("6", 410), ("9" * 25, 410), ("-1", 410)])
def test_after_what_is_no_event_there_is_nothing(served, db, pen, text, status):
    add(db, 5)
    for query, headers in ((f"?after={text}", ""), ("", f"Last-Event-ID: {text}\r\n")):
        client = served.follow(pen, query, headers)
        assert (client.status, client.headers["content-type"]) == (status, "application/json")
    assert served.open == 0


@pytest.mark.parametrize(
    ("query", "headers", "named"),
    [
        ("?after=x", "", "after field"),
        ("?after=x", "Last-Event-ID: 2\r\n", "after field"),
        ("", "Last-Event-ID: x\r\n", "Last-Event-ID header"),
    ],
)
def test_what_is_no_id_is_named(served, db, pen, query, headers, named):
    add(db, 5)
    client = served.follow(pen, query, headers)
    assert client.status == 422
    while len(client.data) < int(client.headers["content-length"]):
        client.more()
    assert json.loads(client.data)["message"] == f"The {named} must be the id of an event."


def test_head_opens_none(served, db, pen):
    client = served.follow(pen, method="HEAD")
    assert (client.status, client.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert served.open == 0


def test_it_is_audited_as_it_opens_and_costs_one_request(served, db, pen):
    add(db)
    client = served.follow(pen, "?after=0")
    assert audits(served) == [(200, "events.stream")]
    served.turn()
    assert client.ids(1) == [1]
    client.close()
    served.turn_until(lambda: served.open == 0)
    assert audits(served) == [(200, "events.stream")]


def test_it_draws_one_from_the_limit(desk, db, clock, pen, empty_log):
    settings = ticketapi.Settings(db=desk, rate=5)
    if isinstance(settings.audit_db, ticketapi.Path):
        ticketapi.shutil.copy(empty_log, settings.audit_db)
    with ticketapi.ExitStack() as stack:
        served = Desk(make_served(settings, clock, stack), desk, clock, settings)
        left = [served.follow(pen).headers["x-ratelimit-remaining"] for _ in range(5)]
        status = served.follow(pen).status
        served.stop()
    assert (left, status) == (["4", "3", "2", "1", "0"], 429)


def test_it_needs_the_ability(served, db, clock):
    writer = ticketapi.create_token(db, "w@example.com", "w", ["write:tickets"], 0, NOON)["token"]
    assert served.follow(writer).status == 403
    assert served.follow("tkt_wrong").status == 401
    assert served.open == 0


def test_a_comment_comes_every_fifteen_seconds(served, db, pen, clock):
    client = served.follow(pen)
    for beat in range(1, 4):
        clock.advance(BEAT_SECONDS - 0.1)
        served.turn()
        clock.advance(0.1)
        served.turn(3)
        text = client.until(lambda text, beat=beat: text.count("\n: ") == beat)
    assert text.count(": so") == 3
    assert all(line.startswith((":", "retry:", "id: ")) for line in text.split("\n") if line)


def test_a_token_that_is_revoked_or_expires_ends_its_streams_within_fifteen_seconds(served, db, pen, token, clock):
    short = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 20, NOON)["token"]
    revoked, expiring, other = served.follow(token), served.follow(short), served.follow(pen)
    ticketapi.revoke_token(db, ticketapi.find_token(db, ticketapi.hash_token(token))["id"])
    clock.advance(BEAT_SECONDS)
    served.turn()
    assert revoked.to_end() == "retry: 3000\nid: 0\n\n"
    assert served.open == 2
    clock.advance(BEAT_SECONDS)
    served.turn()
    expiring.to_end()
    assert served.open == 1
    add(db)
    served.turn()
    assert other.ids(1) == [1]


def test_a_users_twenty_first_is_refused_and_others_are_not(served, db, pen, token, clock):
    other = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)["token"]
    clients = [served.follow(text) for text in (pen, token) * (MAX_USER_STREAMS // 2)]
    refused = served.follow(token)
    assert (refused.status, refused.headers["content-type"]) == (503, "application/json")
    assert int(refused.headers["retry-after"]) > 0
    assert b"Too many streams" in refused.data
    assert served.follow(other).status == 200
    clients[0].close()
    served.turn_until(lambda: served.open == MAX_USER_STREAMS)
    assert served.follow(token).status == 200
    assert audits(served)[MAX_USER_STREAMS] == (503, "events.stream")


def test_a_hundred_get_every_event_and_one_more_is_refused(served, db, clock):
    tokens = [ticketapi.create_token(db, f"{number}@b.example", "t", ["*"], 0, NOON)["token"] for number in range(6)]
    clients = [served.follow(tokens[number % 5]) for number in range(MAX_STREAMS)]
    assert served.follow(tokens[5]).status == 503
    assert served.follow(tokens[5], method="HEAD").status == 200
    for _ in range(20):
        add(db)
        served.turn()
    assert [client.ids(20) for client in clients] == [list(range(1, 21))] * MAX_STREAMS
    for client in clients[:3]:
        client.close()
    served.turn_until(lambda: served.open == MAX_STREAMS - 3)
    assert served.follow(tokens[5]).status == 200


def test_a_long_backlog_is_caught_up_with_by_who_reads(served, db, pen, clock):
    ticketapi.generate_tickets(db, 3000, NOON, seed=1)
    client, found = served.follow(pen, "?after=0"), []
    reader = threading.Thread(target=lambda: found.extend(client.ids(3000)))
    reader.start()

    def turned():
        clock.advance(1)  # longer than a client may leave everything unread, in all
        return served.turn() is False and not reader.is_alive()

    wait_for(turned, 60)
    assert found == list(range(1, 3001))
    assert served.open == 1


def test_who_does_not_read_is_cut_and_holds_up_nobody(served, db, pen, clock):
    ticketapi.generate_tickets(db, 3000, NOON, seed=1)
    idle, client = served.follow(pen, "?after=0", buffer=4096), served.follow(pen, "?after=2990")
    (stream,) = [follower.stream for follower in served.broadcast._followers if follower.after == 0]
    served.turn_until(lambda: stream.connection.total_outbufs_len > ticketapi.STREAM_BATCH)
    assert client.ids(3000) == list(range(2991, 3001))
    served.turn(200)
    wait_for(lambda: not stream._waiting)
    assert stream.connection.total_outbufs_len < ticketapi.MAX_UNREAD
    assert served.open == 2
    clock.advance(BEAT_SECONDS + 1)
    served.turn_until(lambda: served.open == 1)
    with suppress(ConnectionError):
        idle.to_end()  # what is left of it, and that was all
    add(db)
    served.turn()
    assert client.ids(3001)[-1] == 3001


def test_who_falls_behind_the_log_is_ended_and_told_when_it_comes_back(served, db, pen, monkeypatch):
    client = served.follow(pen)
    monkeypatch.setattr(ticketapi, "EVENTS_KEPT", 100)
    ticketapi.generate_tickets(db, 3000, NOON, seed=1)
    served.turn()
    assert client.to_end() == "retry: 3000\nid: 0\n\n"
    assert served.follow(pen, "", "Last-Event-ID: 0\r\n").status == 410


def test_what_fails_now_is_tried_again(desk, db, clock):
    broadcast, failing = ticketapi.Broadcast(desk, ticketapi.Clock()), [ticketapi.DeskBusy("not now")] * 2
    plain = broadcast.turn

    def turn(*arguments):
        if failing:
            raise failing.pop()
        return plain(*arguments)

    broadcast.turn = turn
    token_id = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)["id"]
    stream = broadcast.follow(ticketapi.Token(token_id, 1, frozenset("*"), None, None), 0)
    add(db)
    found = []
    wait_for(lambda: found.append(stream.read()) or b"id: 1\n" in b"".join(found))
    broadcast.close(5)
    assert not broadcast._thread.is_alive()


@pytest.mark.files
@pytest.mark.parametrize("threads", [1, 3])
def test_a_real_server_streams_what_other_processes_write(tmp_path, threads):
    place = tmp_path / "desk.db"
    with closing(ticketapi.open_database(place, "desk")) as db:
        abilities = ["read:tickets", "write:tickets"]
        pen = ticketapi.create_token(db, "a@b.example", "t", abilities, 0, ticketapi.wall_microseconds())["token"]
        served = Served("--db", place, "--no-scheduler", "--rate", "0", "--threads", threads, cwd=tmp_path)
        clients = [Client(("127.0.0.1", served.port), pen) for _ in range(5)]
        add(db)
        assert [client.ids(1) for client in clients] == [[1]] * 5
        body = json.dumps({"status": "Closed"}).encode()
        assert served.get("/api/tickets/1", pen, method="PATCH", body=body).status == 200
        assert [client.ids(2) for client in clients] == [[1, 2]] * 5
        assert served.stop()[0] == 0
        for client in clients:
            client.to_end()
            client.close()


def test_a_stream_has_its_first_bytes_before_anybody_can_give_it_an_event(desk, clock):
    class Followers(list):
        def append(self, follower):
            begun.append(follower.stream.read())

    begun, token = [], ticketapi.Token(1, ticketapi.FIRST_OWNER_ID, frozenset("*"), None, None)
    broadcast = ticketapi.Broadcast(desk, ticketapi.Clock(clock.wall, clock.monotonic), _followers=Followers())
    broadcast.follow(token, 7)
    broadcast.close(5)
    assert begun == [b"retry: 3000\nid: 7\n\n"]
