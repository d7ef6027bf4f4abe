"""A stop has one deadline, whatever is in flight."""

import socket
import time

import pytest
from faults import held, make_desk


@pytest.mark.parametrize("threads", [1, 4])
def test_a_stop_takes_ten_seconds_in_all_whatever_is_in_flight(serve, tmp_path, threads):
    make_desk(tmp_path / "ticketapi.db", 10)
    with held(tmp_path / "ticketapi.db"):
        served = serve("--generate-every", "1s", "--threads", threads)
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"POST /api/stats HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1")
            time.sleep(1.5)  # until a job waits for the desk
            begin = time.monotonic()
            served.process.terminate()
            assert served.process.wait(20) == 0
            assert time.monotonic() - begin < 10


def test_a_stop_does_not_wait_for_who_holds_a_desk_with_a_clock(serve, tmp_path):
    make_desk(tmp_path / "ticketapi.db", 10)
    served = serve("--clock", "now")
    with held(tmp_path / "ticketapi.db"):
        begin = time.monotonic()
        served.process.terminate()
        assert served.process.wait(20) == 0
        assert time.monotonic() - begin < 4
