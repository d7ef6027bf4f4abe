"""A real server that is attacked: requests as bytes, and what came back over the connection."""

import re
import socket
import sys
import time
from contextlib import closing, suppress
from typing import NamedTuple

from conftest import Answer, Served

import ticketapi

HOST = b"Host: desk.test\r\n"
UP = b"GET /up HTTP/1.1\r\n" + HOST + b"\r\n"
LAST_UP = UP.replace(HOST, HOST + b"Connection: close\r\n")
TOKEN = b"{token}"  # stands for a valid token in the requests below
WITH_TOKEN = b"Authorization: Bearer " + TOKEN + b"\r\n"
STATS = b"GET /api/stats HTTP/1.1\r\n" + HOST + WITH_TOKEN + b"\r\n"


# Talking to a server -----------------------------------------------------------------------------

ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3}) [ -~]*\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*\r\n)*)\r\n")


def read_answers(data):
    """Return the answers in what a connection brought, and the rest: nothing unless one is cut or malformed.

    Every body of ours is a JSON object or a page: an answer to HEAD, which has a length but no body, is told by what follows.
    """
    answers = []
    while found := ANSWER.match(data):
        pairs = [line.split(": ", 1) for line in found[2].decode("latin-1").split("\r\n")[:-1]]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), pairs
        rest = data[found.end() :]
        length = int(headers.get("content-length", 0)) if rest.startswith((b"{", b"<!doctype")) else 0
        if length > len(rest) or (rest and not length and not rest.startswith(b"HTTP/")):
            break
        if int(found[1]) != 100:
            answers.append(Answer(int(found[1]), headers, rest[:length]))
        data = rest[length:]
    return answers, data


class Talk(NamedTuple):
    """What came back over one connection."""

    answers: list
    closed: bool  # by the server, before the time was over

    @property
    def statuses(self):
        return [answer.status for answer in self.answers]


def talk(port, data, seconds=5):
    """Send bytes over a connection of its own, and read answers until the server closes it or the time is over."""
    received, closed, end = b"", False, time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        with suppress(ConnectionError):  # refused before all was sent
            sock.sendall(data)
        while not closed and (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                chunk = sock.recv(65536)
            except TimeoutError:
                break
            except ConnectionResetError:  # closed with something of ours unread
                chunk = b""
            received, closed = received + chunk, not chunk
    answers, rest = read_answers(received)
    assert rest == b""
    return Talk(answers, closed)


def rows(path, sql):
    """Return what a query finds in a database file."""
    with closing(ticketapi.connect(path)) as db:
        return [dict(row) for row in db.execute(sql)]


def program(script=""):
    """Return the program as a shell starts it, after a script of settings, with its log in a file."""
    return ("sh", "-c", f'exec 2>>server.log; {script} exec "$0" "$@"', sys.executable, "-m", "ticketapi")


class Target:
    """A real server on a desk with tickets and tokens; its log, at level debug, goes to a file that never holds it up."""

    def __init__(self, folder, *arguments, start=Served, script=""):
        self.folder, self.desk, self.audit = folder, folder / "ticketapi.db", folder / "ticketapi-audit.db"
        now = ticketapi.wall_microseconds()
        with closing(ticketapi.open_database(self.desk, "desk")) as db:
            ticketapi.generate_tickets(db, 5, now, 1)
            self.tokens = {
                kind: ticketapi.create_token(db, f"{kind}@example.com", kind, abilities, lifetime, made)
                for kind, abilities, lifetime, made in (
                    ("valid", ["read:tickets"], 0, now),
                    ("scope", ["other"], 0, now),
                    ("expired", ["*"], 60, now - ticketapi.HOUR * ticketapi.MICROSECONDS),
                    ("revoked", ["*"], 0, now),
                )
            }
            ticketapi.revoke_token(db, self.tokens["revoked"]["id"])
        arguments = ("--no-scheduler", "--log-level", "debug", *arguments)
        self.served = start(*arguments, cwd=folder, program=program(script))
        self.port = self.served.port

    def token(self, kind="valid"):
        """Return the text of a token."""
        return self.tokens[kind]["token"]

    def put(self, data):
        """Put a valid token into a request."""
        return data.replace(TOKEN, self.token().encode())

    def talk(self, data, seconds=5):
        """Send bytes with a valid token in them."""
        return talk(self.port, self.put(data), seconds)

    def audits(self):
        """Return the audit rows, oldest first."""
        return rows(self.audit, "SELECT * FROM api_audits ORDER BY id")

    def log(self):
        """Return the log so far."""
        return (self.folder / "server.log").read_text()


# Requests with a body ----------------------------------------------------------------------------

NO_CHUNKS = b"0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


def post(*fields, version=b"1.1", body=NO_CHUNKS):
    """Write a POST request with the header fields given."""
    head = b"POST /api/stats HTTP/" + version + b"\r\n" + HOST
    return head + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def chunked(body):
    """Write a POST request with a body in chunks as given."""
    return post(CHUNKED, body=body)


# Requests of a page of another origin ------------------------------------------------------------

ORIGIN = b"Origin: https://evil.example\r\nCookie: session=1\r\n"
PREFLIGHT = b"OPTIONS /api/stats HTTP/1.1\r\nAccess-Control-Request-Method: GET\r\n" + HOST + b"\r\n"
