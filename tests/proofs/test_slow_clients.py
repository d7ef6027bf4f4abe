"""Clients that send a byte now and then: they are cut in time, lock nobody out, and do not hold up the stop."""

import select
import time
from contextlib import suppress

import pytest
from attacks import LAST_UP, UP, Target, chunked, post
from conftest import wait_for

import ticketapi


def is_cut(sock):
    """Tell whether the server has closed a connection."""
    if not select.select([sock], [], [], 0)[0]:
        return False
    try:
        return sock.recv(65536) == b""
    except ConnectionResetError:
        return True


SLOW = (  # what comes at once, and what comes byte by byte
    (b"G", b"ET /" + b"a" * 99),
    (b"GET /up HTTP/1.1\r\n", b"X: " + b"a" * 99),
    (post(b"Content-Length: 1000", body=b""), b"a" * 99),
    (chunked(b""), b"1\r\na\r\n" * 20),
)


@pytest.mark.parametrize("threads", [1, 3])
def test_120_clients_that_send_a_byte_a_second_are_cut_within_10_s_while_others_are_served(serve, tmp_path, dial, threads):
    attacked = Target(tmp_path, "--threads", threads, start=serve)
    crowd = {dial(attacked): drops for _, drops in SLOW * 30}
    begin, sent, cut_after = time.monotonic(), 0, {}
    for sock, (start, _) in zip(crowd, SLOW * 30, strict=True):
        sock.sendall(start)
    while len(cut_after) < 120 and (passed := time.monotonic() - begin) < 15:
        cut_after.update((sock, passed) for sock in crowd.keys() - cut_after.keys() if is_cut(sock))
        if passed > sent + 1:
            for sock in crowd.keys() - cut_after.keys():
                with suppress(ConnectionError):
                    sock.sendall(crowd[sock][sent : sent + 1])
            sent += 1
        assert attacked.talk(LAST_UP, 1).statuses == [200]
    assert len(cut_after) == 120
    assert sent >= 5
    assert max(cut_after.values()) < 10.5


def test_a_thousand_connections_that_drip_do_not_lock_others_out(serve, dial):
    served = serve("--no-scheduler")
    crowd = [dial(served) for _ in range(1000)]

    def gets_through():
        for sock in crowd:
            with suppress(OSError):
                sock.sendall(b"G")
        sock = dial(served, timeout=1)
        with suppress(OSError):
            sock.sendall(UP)
            return sock.recv(65536).startswith(b"HTTP/1.1 200")

    assert wait_for(gets_through, seconds=20)


def test_a_body_that_never_ends_delays_the_stop_no_longer_than_promised(serve, dial):
    served = serve("--no-scheduler")
    sock = dial(served)
    sock.sendall(post(b"Content-Length: 5", b"Expect: 100-continue", body=b""))
    assert b" 100 " in sock.recv(65536)
    begin = time.monotonic()
    assert served.stop()[0] == 0
    assert time.monotonic() - begin < ticketapi.STOP_SECONDS + 3
