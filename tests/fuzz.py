"""Anything at all, made out of valid requests or of nothing, and a server that it is sent to."""

import select
import socket
import time
from contextlib import closing, contextmanager, suppress

from attacks import (
    CHUNKED,
    HOST,
    LAST_UP,
    NO_CHUNKS,
    ORIGIN,
    PREFLIGHT,
    STATS,
    UP,
    WITH_TOKEN,
    Target,
    post,
    read_answers,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

VALID = (
    STATS,
    UP,
    UP.replace(b"GET", b"HEAD").replace(b"1.1", b"1.0"),
    STATS.replace(b"/api/stats", b"/api/tickets/open?page=2&per_page=3&cursor=bjI"),
    STATS.replace(b"/api/stats", b"/api/users/1/tickets").replace(HOST, HOST + b'If-None-Match: W/"a", *\r\n'),
    STATS.replace(b"/api/stats", b"http://desk.test:80/api/tickets/closed/"),
    PREFLIGHT.replace(HOST, HOST + ORIGIN + b"Access-Control-Request-Headers: x-a\r\n"),
    post(b"Content-Type: application/json", b"Content-Length: 17", body=b'{"password": "x"}'),
    post(b"Content-Type: application/x-www-form-urlencoded", CHUNKED, body=b"5\r\na=b&c\r\n0\r\n\r\n"),
    post(b"Expect: 100-continue", b"Connection: keep-alive", b"Content-Length: 2", body=b"[]"),
)
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"/",
        b"//",
        b"?",
        b"#",
        b"%",
        b"%00",
        b"%FF",
        b"[",
        b"]",
        b"@",
        b",",
        b";",
    ),
    *(
        b"\xff",
        b"\xc2\x9b",
        b"\xe2\x80\xae",
        b"0",
        b"-1",
        b"9" * 30,
        b"9" * 5000,
        b"{",
        b'"',
        b"[" * 2000,
        b"HTTP/1.1",
        b"HTTP/9.9",
    ),
    *(
        b"http://[",
        b"\r\n\r\n",
        b"\r\n X",
        CHUNKED + b"\r\n",
        b"Content-Length: 3\r\n",
        HOST,
        WITH_TOKEN,
        b"Expect: 100-continue\r\n",
    ),
    *(b"Connection: close\r\n", b"Origin: null\r\n", b"User-Agent: ", b"Range: bytes=0-", b"A" * 17_000, UP, STATS, NO_CHUNKS),
)
pieces = st.one_of(st.sampled_from(PIECES), st.sampled_from(VALID), st.binary(min_size=1, max_size=6))
places = st.integers(0, 400)
edits = st.one_of(
    st.tuples(st.just("insert"), places, pieces),
    st.tuples(st.just("replace"), places, st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("delete"), places, st.integers(1, 40)),
    st.tuples(st.just("double"), places, st.integers(1, 200)),
    st.tuples(st.just("cut"), places, st.none()),
)


def edit(data, kind, place, what):
    """Change bytes at a place in one of some ways."""
    place %= len(data) + 1
    before, after = data[:place], data[place:]
    if kind == "insert":
        return before + what + after
    if kind == "replace":
        return before + what + after[len(what) :]
    if kind == "delete":
        return before + after[what:]
    return before + after[:what] + after if kind == "double" else before


@st.composite
def attacks(draw):
    """Make bytes out of valid requests, or out of nothing."""
    data = draw(st.one_of(st.sampled_from(VALID), st.binary(max_size=300)))
    for change in draw(st.lists(edits, max_size=6)):
        data = edit(data, *change)
    return data + draw(st.sampled_from((b"", b"\r\n\r\n", LAST_UP)))


class Attacked:
    """A server that is sent anything, and what it has to say about it."""

    def __init__(self, target):
        self.target = target
        self.neighbour = socket.create_connection(("127.0.0.1", target.port), timeout=5)
        self.log = (target.folder / "server.log").open(encoding="utf-8")

    def close(self):
        """Let go of the server."""
        self.neighbour.close()
        self.log.close()

    def ask_beside(self):
        """Have a plain request answered over a connection that stays open; what came before it has been read by then."""
        self.neighbour.sendall(UP)
        data = b""
        while not data.endswith(b"}"):
            chunk = self.neighbour.recv(65536)
            assert chunk, "the neighbour was cut"
            data += chunk
        assert [answer.status for answer in read_answers(data)[0]] == [200]

    def attack(self, data):
        """Send bytes and return the answers, each of them whole and well formed."""
        received, end = b"", time.monotonic() + 5
        with socket.create_connection(("127.0.0.1", self.target.port), timeout=5) as sock:
            with suppress(ConnectionError):
                sock.sendall(self.target.put(data))
            for _ in range(3):  # turns of its loop: to accept, to read, to answer
                self.ask_beside()
            while select.select([sock], [], [], end - time.monotonic() if read_answers(received)[1] else 0.002)[0]:
                try:
                    chunk = sock.recv(65536)
                except ConnectionResetError:
                    break
                if not chunk:
                    break
                received += chunk
        answers, rest = read_answers(received)
        assert rest == b""
        return answers

    def check(self, data):
        """Attack, and check that nothing worse than a refusal came of it."""
        for answer in self.attack(data):
            assert answer.status < 500 or answer.status == 501
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert not answer.body or answer.body.startswith(b"<!doctype") or isinstance(answer.json, dict)
        lines = self.log.read()
        assert "Traceback" not in lines
        assert "ERROR" not in lines
        assert self.target.served.process.poll() is None


@contextmanager
def under_attack(folder, threads):
    """Start a server to be sent anything; in the end nothing worse than refusals may have come of it."""
    target = Target(folder, "--rate", "0", "--threads", threads)
    with closing(Attacked(target)) as attacked:
        yield attacked
    assert target.served.stop()[0] == 0
    audits = target.audits()
    assert audits
    assert [row for row in audits if row["status_code"] >= 500] == []
    assert [text for row in audits for text in row.values() if isinstance(text, str) and not text.isprintable()] == []


def bounded(examples):
    """Return the settings of a search with so many attacks."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
