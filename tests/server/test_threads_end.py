"""A server that has stopped leaves no thread behind, and closes what it listened on."""

import socket
import threading

import pytest
from conftest import wait_for

import ticketapi


def answer(environ, start_response):
    """Answer any request."""
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def ask(address):
    """Send a request and return the first line of its answer."""
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        return sock.recv(65536).partition(b"\r\n")[0]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_its_threads_have_ended_when_it_has(threads):
    before = set(threading.enumerate())
    sock = ticketapi.bind_socket("127.0.0.1", 0)
    address = sock.getsockname()
    server = ticketapi.Server(answer, [sock], ticketapi.Settings(threads=threads), lambda: None)
    loop = threading.Thread(target=server.run, args=(lambda: None,))
    loop.start()
    assert ask(address) == b"HTTP/1.1 200 OK"
    server.stop()
    loop.join(10)
    assert not loop.is_alive()
    wait_for(lambda: set(threading.enumerate()) <= before, seconds=2)
    with pytest.raises(ConnectionRefusedError):
        ask(address)
