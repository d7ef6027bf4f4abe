"""Clients that ask and do not take the answers: they cost one answer each, hold no thread, and are cut in time."""

import select
import socket
import time
import warnings
from contextlib import closing, suppress

import pytest
from attacks import HOST

import ticketapi
from ticketapi import REQUEST_SECONDS

LARGE = 4_000_000  # bytes of an answer: more than a kernel keeps for a client that does not read
ASK = b"GET /%d HTTP/1.1\r\n" % LARGE + HOST + b"\r\n"
LITTLE = ASK.replace(b"%d" % LARGE, b"2")


class Desk:
    """A server of this process that a test turns by hand, and how many requests its app has answered."""

    def __init__(self, threads):
        self.answered = 0
        self.sock = ticketapi.bind_socket("127.0.0.1", 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # or the kernel may keep megabytes, from case to case
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            settings = ticketapi.Settings(threads=threads)
            self.server = ticketapi.Server(self.app, [self.sock], settings, lambda: None)

    def app(self, environ, start_response):
        """Answer with as many letters as the path says."""
        self.answered += 1
        body = b"x" * int(environ["PATH_INFO"][1:])
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def dial(self, small=True):
        """Connect a client; the kernel keeps little of what comes for it."""
        client = socket.socket()
        if small:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.connect(self.sock.getsockname())
        client.settimeout(10)
        return client

    def turn(self, condition, seconds=15):
        """Turn the server until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s"
            self.server._turn(0.01)

    def rest(self):
        """Turn the server until nothing happens any more."""
        for _ in range(30):
            self.server._turn(0.01)


@pytest.fixture(params=[1, 3])
def desk(request):
    desk = Desk(request.param)
    yield desk
    desk.server.stop()
    desk.server._drain = lambda: None
    for channel in desk.server._channels():
        channel.handle_close()
    desk.server._listeners[0].task_dispatcher.shutdown(timeout=5)
    from waitress import wasyncore

    wasyncore.close_all(desk.server._map)


def take(client, desk, size):
    """Take so many bytes, while the server turns."""
    taken = 0

    def all_came():
        nonlocal taken
        while taken < size and select.select([client], [], [], 0)[0]:
            taken += len(client.recv(min(1 << 20, size - taken)))
        return taken == size

    desk.turn(all_came)


def receive(desk, client):
    """Return the little answer that comes, while the server turns; header and body may come one by one."""
    data = b""
    while b"\r\n\r\nxx" not in data:
        desk.turn(lambda: select.select([client], [], [], 0)[0])
        data += client.recv(4096)
    return data


def test_the_next_request_of_a_connection_begins_when_the_answer_before_it_was_taken(desk):
    with closing(desk.dial()) as client:
        client.sendall(ASK * 3)
        desk.turn(lambda: desk.answered)
        desk.rest()
        assert desk.answered == 1
        take(client, desk, 3 * LARGE)
        assert desk.answered == 3


def test_requests_that_come_together_are_kept_as_bytes_and_read_no_further(desk):
    with closing(desk.dial()) as client:
        client.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                client.send(ASK * 100)
                desk.server._turn(0)
        desk.rest()
        [channel] = desk.server._channels()
        assert desk.answered == 1
        assert len(channel.unread) <= 8192
        assert channel.requests in ([], [channel.requests[0]] if channel.requests else [])


def test_requests_that_come_together_are_answered_in_their_order(desk):
    with closing(desk.dial(small=False)) as client:
        client.sendall(b"".join(b"GET /%d HTTP/1.1\r\n" % (n % 7) + HOST + b"\r\n" for n in range(200)))
        client.shutdown(socket.SHUT_WR)
        data = b""

        def all_came():
            nonlocal data
            while select.select([client], [], [], 0)[0] and (chunk := client.recv(65536)):
                data += chunk
            return data.count(b"HTTP/1.1 200") == 200

        desk.turn(all_came)
    lengths = [int(part.partition(b"Content-Length: ")[2].partition(b"\r")[0]) for part in data.split(b"HTTP/1.1 200 OK")[1:]]
    assert lengths == [n % 7 for n in range(200)]


def test_clients_that_do_not_read_hold_no_thread(desk):
    crowd = [desk.dial() for _ in range(8)]
    for client in crowd:
        client.sendall(ASK * 3)
    desk.turn(lambda: desk.answered == len(crowd))
    with closing(desk.dial()) as other:
        other.sendall(LITTLE)
        assert receive(desk, other).endswith(b"\r\n\r\nxx")
    for client in crowd:
        client.close()


@pytest.mark.parametrize("what", ["an answer", "a request", "a body"])
def test_what_takes_too_long_is_cut_just_over_its_time_and_not_just_under(desk, what):
    sent = {
        "an answer": ASK,
        "a request": ASK[:-2],
        "a body": b"POST / HTTP/1.1\r\nContent-Length: 9\r\n" + HOST + b"\r\n12",
    }[what]
    with closing(desk.dial()) as client:
        client.sendall(sent)
        desk.turn(lambda: desk.answered if what == "an answer" else any(c.request for c in desk.server._channels()))
        desk.rest()
        for now, left in ((0.0, 1), (REQUEST_SECONDS, 1), (REQUEST_SECONDS + 0.001, 0)):
            desk.server._cut_slow_clients(now)
            assert len(desk.server._channels()) == left


def test_each_answer_has_the_time_of_its_own(desk):
    with closing(desk.dial()) as client:
        client.sendall(ASK * 3)
        for number in (1, 2, 3):
            desk.turn(lambda number=number: desk.answered >= number)
            desk.rest()
            desk.server._cut_slow_clients(0.9 * REQUEST_SECONDS * number)
            take(client, desk, LARGE)
        assert len(desk.server._channels()) == 1


def test_who_takes_his_answers_stays(desk):
    with closing(desk.dial(small=False)) as client:
        for now in (0.0, 100.0, 200.0):
            client.sendall(LITTLE)
            assert receive(desk, client).endswith(b"\r\n\r\nxx")
            desk.server._cut_slow_clients(now)
        assert len(desk.server._channels()) == 1
