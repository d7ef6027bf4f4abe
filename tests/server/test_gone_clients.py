"""Of a client that has gone nothing is kept and nothing more is answered, however much it has asked for before."""

import socket
import struct
import threading

import pytest
from conftest import wait_for

import ticketapi

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
REQUESTS = 200


class App:
    """An app with answers of a size, which counts them."""

    def __init__(self, size):
        """Begin with none."""
        self.size, self.answered = size, 0

    def __call__(self, environ, start_response):
        """Answer any request."""
        self.answered += 1
        start_response("200 OK", [("Content-Length", str(self.size))])
        return [bytes(self.size)]


@pytest.fixture(params=[4_000_000, 300_000])
def app(request):
    """An app of large answers."""
    return App(request.param)


@pytest.fixture(params=[1, 3])
def server(request, app):
    """A running server; its socket is `listener`."""
    listener = ticketapi.bind_socket("127.0.0.1", 0)
    made = ticketapi.Server(app, [listener], ticketapi.Settings(threads=request.param), lambda: None)
    made.address = listener.getsockname()
    thread = threading.Thread(target=made.run, args=(lambda: None,))
    thread.start()
    yield made
    made.stop()
    thread.join(15)
    assert not thread.is_alive()


def test_what_a_client_still_asked_for_goes_with_it(server, app):
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(REQUEST * REQUESTS)
        wait_for(lambda: server._behind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # an end that does not wait
    wait_for(lambda: not server._channels())
    wait_for(lambda: not server._behind)
    assert app.answered < REQUESTS
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(REQUEST)
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
