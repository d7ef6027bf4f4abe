"""What the tests of webhooks share: a receiver that answers as it is told, a log of events, deliveries without their thread."""

import json
import secrets
import socket
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

import ticketapi


@dataclass
class Message:
    """One request that a receiver got."""

    line: str
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


def reply(status=204, body=b"", **headers):
    """Return a behaviour: an answer with a status; names of headers have underscores."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    return lambda sock: sock.sendall(head.encode() + body)


def raw(data):
    """Return a behaviour: these bytes, then the end."""
    return lambda sock: sock.sendall(data)


class Receiver:
    """An HTTP server on 127.0.0.1 whose answers a test decides, and that counts who waits for one."""

    def __init__(self, wrap=lambda sock: sock):
        """Start it; `wrap` makes a connection of TLS."""
        self.messages, self.behaviour, self.waiting, self.most = [], reply(), 0, 0
        self.released, self.lock = threading.Event(), threading.Lock()
        receiver = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with suppress(OSError, ValueError), wrap(self.request) as sock:
                    receiver.take(sock)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, allow_reuse_address, request_queue_size = True, True, 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks?from=desk"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, sock):
        """Read a request, and answer it."""
        file = sock.makefile("rb")
        line = file.readline().decode().strip()
        headers = dict(text.decode().strip().split(": ", 1) for text in iter(file.readline, b"\r\n"))
        message = Message(line, headers, file.read(int(headers["Content-Length"])))
        with self.lock:
            self.messages.append(message)
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            behaviour = self.behaviour(message) if getattr(self.behaviour, "by_message", False) else self.behaviour
        try:
            behaviour(sock)
        finally:
            with self.lock:
                self.waiting -= 1

    def hang(self, sock):
        """A behaviour: no answer until the test says so, then 204."""
        self.released.wait(30)
        reply()(sock)

    def drip(self, sock):
        """A behaviour: an answer that comes byte by byte, and never to its end."""
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X" * 10_000:
            sock.sendall(bytes([byte]))
            if self.released.wait(0.05):
                return

    def close(self):
        """Let everybody go."""
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    """A receiver that answers 204 unless it is told otherwise."""
    made = Receiver()
    yield made
    made.close()


@dataclass
class Log:
    """The log of a desk's events."""

    events: list = field(default_factory=list)
    last: int = 0
    kept: int = 10**6

    def add(self, *types, comment=None):
        """Add events of some types, and return their ids."""
        for kind in types:
            self.last += 1
            ticket = json.dumps({"id": self.last, "subject": "Größe"}, ensure_ascii=False).encode()
            self.events.append(ticketapi.Event(self.last, kind, ticketapi.format_time(self.last), ticket, comment))
        del self.events[: -self.kept]
        return [event.id for event in self.events[-len(types) :]]

    def read(self, db, after, limit):
        """Return the events after an id."""
        return [event for event in self.events if event.id > after][:limit]


@pytest.fixture
def events(monkeypatch):
    """A log of events that a test fills."""
    log = Log()
    monkeypatch.setattr(ticketapi, "read_events", log.read)
    monkeypatch.setattr(ticketapi, "find_last_change", lambda db: log.last)
    monkeypatch.setattr(ticketapi, "event_ends", lambda db: (log.events[0].id - 1 if log.events else log.last, log.last))
    return log


def without_jitter(count):
    """Return random bits where they are many, as for an id, else none."""
    return secrets.randbits(count) if count > 16 else 0


class Courier(ticketapi.Deliveries):
    """Deliveries whose turns a test takes, at the times of its clock."""

    def __init__(self, place, clock, resolve=ticketapi.resolve_host):
        """Begin; the delays are the shortest, and the deadlines those of the real clock."""
        super().__init__(place, ticketapi.Clock(clock.wall, time.monotonic), without_jitter, resolve)

    def under_way(self):
        """Return how many tries are."""
        return sum(map(len, self._flying.values()))

    def go(self, seconds=15):
        """Take turns until all there is to do now is done."""
        end = time.monotonic() + seconds
        while True:
            self._wake.clear()
            self.turn(self.clock.wall())
            if not self.under_way():
                return
            self._wake.wait(0.1 if self._replies else 1)
            assert time.monotonic() < end


@pytest.fixture
def courier(desk, db, clock):
    """Deliveries of the desk."""
    made = Courier(desk, clock)
    yield made
    made._close()


@pytest.fixture
def webhook(db, events, receiver):
    """A webhook of the receiver."""
    return make_webhook(db, receiver.url)


def make_webhook(db, url, now=0, **given):
    """Make a webhook that may lead to this machine."""
    fields = ticketapi.read_webhook({"url": url, **given}, private=True)
    return ticketapi.create_webhook(db, fields, None, now)


def sent(db, webhook):
    """Return the deliveries of a webhook as the API shows them, oldest first."""
    rows = ticketapi.list_deliveries(db, webhook["id"], ticketapi.MAX_ID, 10_000)
    return [ticketapi.delivery_resource(row) for row in reversed(rows)]


def state(db, webhook):
    """Return a webhook as the API shows it."""
    return ticketapi.webhook_resource(ticketapi.get_webhook(db, webhook["id"]))


def unused_port():
    """Return a port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
