"""A thousand clients that ask for much and take nothing: memory stays bounded, and others are served within ten seconds."""

import resource
import select
import socket
import sys
import time
from contextlib import closing

import pytest
from attacks import UP, read_answers

ASK = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
PIPELINE = ASK * 200  # 8 kB
CLIENTS = 1000


def memory_mb(pid):
    """Return the resident memory of a process, in MB (proc(5))."""
    with open(f"/proc/{pid}/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_thousand_clients_that_never_read_cost_less_than_150_mb_and_hold_nobody_up(serve, threads):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    served = serve("--no-scheduler", "--threads", threads)
    before, crowd, most = memory_mb(served.process.pid), [], 0.0
    try:
        for _ in range(CLIENTS):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            client.send(PIPELINE)
            crowd.append(client)
        begin = time.monotonic()
        with closing(socket.create_connection(("127.0.0.1", served.port), timeout=12)) as other:
            other.sendall(UP)
            while not select.select([other], [], [], 0.2)[0]:
                most = max(most, memory_mb(served.process.pid))
                assert time.monotonic() - begin < 12
            assert read_answers(other.recv(65536))[0][0].status == 200
    finally:
        for client in crowd:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert most - before < 150
