"""Of several sockets and addresses the first is listened on and told of, whatever their number."""

import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest
from test_systemd import LAUNCHER

import ticketapi

COMMAND = (sys.executable, "-m", "ticketapi", "serve", "--no-scheduler")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_the_sockets_that_are_handed_over_the_first_is_told(tmp_path, count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        handles = [sock.fileno() for sock in sockets]
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        program = (sys.executable, "-c", LAUNCHER, ",".join(map(str, handles)), "0", *COMMAND)
        pipe = subprocess.PIPE
        with subprocess.Popen(program, cwd=tmp_path, pass_fds=handles, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                assert process.stdout.readline() == f"Listening on {url}\n"
                process.send_signal(signal.SIGTERM)
                _, err = process.communicate(timeout=20)
            finally:
                process.kill()
    assert process.returncode == 0
    assert f"dashboard: {url}/" in err


@pytest.mark.parametrize("order", [("127.0.0.1", "127.0.0.2", "127.0.0.3"), ("127.0.0.3", "127.0.0.1")])
def test_of_the_addresses_of_a_name_the_resolver_says_which_is_best(monkeypatch, order):
    if sys.platform != "linux":
        pytest.skip("the other loopback addresses are Linux's alone")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in order]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with closing(ticketapi.bind_socket("desk.test", 0)) as sock:
        assert sock.getsockname()[0] == order[0]
