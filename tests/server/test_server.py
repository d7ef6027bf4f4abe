"""Room 8 and `serve` as a real process: listening, refusing, stopping, surviving, and living beside other commands."""

import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime

import pytest
from conftest import Answer, Served, wait_for

import ticketapi

HOST = b"Host: desk.test\r\n"
UP = b"GET /up HTTP/1.1\r\n" + HOST + b"\r\n"
PROGRAM = (sys.executable, "-m", "ticketapi")


def cli(folder, *arguments, program=PROGRAM):
    """Run a command as a process of its own in a folder and return (code, stdout, stderr)."""
    done = subprocess.run([*program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def open_desk(folder):
    """Open the desk of a folder from outside its server."""
    return closing(ticketapi.open_database(folder / "ticketapi.db", "desk"))


def new_token(folder):
    """Make a token and return its text."""
    with open_desk(folder) as db:
        now = ticketapi.wall_microseconds()
        return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["read:tickets"], 0, now)["token"]


def add_tickets(folder, count):
    """Let tickets arrive on the desk of a folder."""
    with open_desk(folder) as db:
        ticketapi.generate_tickets(db, count, ticketapi.wall_microseconds(), 1)


def rows(path, sql):
    """Return what a query finds in a database file, as dicts."""
    with closing(ticketapi.connect(path)) as db:
        return [dict(row) for row in db.execute(sql)]


def audits(folder):
    """Return the audit rows of the desk in a folder, oldest first."""
    return rows(folder / "ticketapi-audit.db", "SELECT * FROM api_audits ORDER BY id")


def request_bytes(path, token, *more):
    """Write a GET request as it goes over the wire."""
    lines = [f"GET {path} HTTP/1.1", "Host: desk.test", f"Authorization: Bearer {token}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def read_to_end(sock):
    """Return all that a connection brings until the server closes it."""
    chunks = []
    with suppress(ConnectionResetError):  # closed with something of ours unread
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


def split_answers(data):
    """Return the answers in what a connection brought."""
    answers = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        answers.append(Answer(int(first.split()[1]), headers, rest[:length]))
        data = rest[length:]
    return answers


def exchange(sock, data):
    """Send bytes and return the answers until the server closes the connection."""
    sock.sendall(data)
    return split_answers(read_to_end(sock))


def ask_up(sock):
    """Have one request answered over a connection that stays open."""
    sock.sendall(UP)
    data = b""
    while not data.endswith(b"}"):
        data += sock.recv(65536)
    assert [answer.status for answer in split_answers(data)] == [200]


@contextmanager
def frozen(served):
    """Stop the process for a block: what happens in it happens for the server in one moment."""
    os.kill(served.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(served.process.pid, signal.SIGCONT)


# Starting ----------------------------------------------------------------------------------------


class Plain(Served):
    """A server by its defaults that many tests use, without a scheduler; its log goes to a file."""

    def __init__(self, folder):
        super().__init__("--no-scheduler", cwd=folder, program=("sh", "-c", 'exec 2>>server.log "$0" "$@"', *PROGRAM))
        self.folder = folder

    def refusals(self):
        """Return the lines of the log so far that tell of refused requests."""
        lines = (self.folder / "server.log").read_text().splitlines()
        return [line for line in lines if "refused a request from" in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A server for tests that leave nothing behind; it must end as if nothing had happened."""
    served = Plain(tmp_path_factory.mktemp("plain"))
    yield served
    assert served.stop()[0] == 0
    assert "Traceback" not in (served.folder / "server.log").read_text()


def test_the_listening_line_names_the_real_port_and_is_all_of_stdout(serve):
    served = serve("--no-scheduler")
    assert served.get("/up").json == {"status": "up"}
    code, rest, _ = served.stop()
    assert (code, rest) == (0, "")


def test_a_port_that_is_taken_is_refused_in_one_line(plain, tmp_path):
    taken = str(plain.port)
    code, out, err = cli(tmp_path, "serve", "--db", "other.db", "--port", taken)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert taken in err
    assert "--port" in err


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.1", "a..b", "x" * 64])
def test_a_host_that_cannot_be_used_is_refused_in_one_line(tmp_path, host):
    code, out, err = cli(tmp_path, "serve", "--host", host, "--port", "0")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert host in err
    assert "--host" in err


@pytest.mark.parametrize("alias", [False, True], ids=["same path", "symbolic link"])
def test_a_second_server_on_the_same_desk_is_refused(plain, alias):
    name = "ticketapi.db"
    if alias:
        name = "alias.db"
        (plain.folder / name).symlink_to(plain.folder / "ticketapi.db")
    code, out, err = cli(plain.folder, "serve", "--db", name, "--port", "0")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "ticketapi.db; stop it, or choose another --db" in err
    assert plain.get("/up").status == 200


def test_a_desk_can_be_served_again_after_its_server_was_killed(serve):
    first = serve()
    first.stop(signal.SIGKILL)
    assert serve().get("/up").status == 200


def test_it_listens_on_ipv6(serve):
    try:
        with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    served = serve("--host", "::1")
    assert served.url == f"http://[::1]:{served.port}"
    assert served.get("/up").status == 200


# First steps -------------------------------------------------------------------------------------


def hinted_commands(text):
    """Return the command lines that a first start names, ready to be run."""
    lines = re.findall(r": (python3 \S+ .*)", text)
    return [(sys.executable, *shlex.split(line)[1:]) for line in lines]


def test_an_empty_desk_is_told_what_to_do_first_and_a_full_one_nothing(serve, tmp_path):
    arguments = ("--db", "my desk.db", "--no-scheduler", "--log-level", "warning")
    _, _, err = serve(*arguments).stop()
    commands = hinted_commands(err)
    assert [command[2] for command in commands] == ["generate", "token"]
    for command in commands:
        assert cli(tmp_path, program=command)[0] == 0
    assert serve(*arguments).stop() == (0, "", "")


def test_demo_fills_an_empty_desk_and_its_curl_line_works(serve):
    served = serve("--demo", "--no-scheduler")
    figures = re.search(r"(\d+) tickets .* (\d+) of them closed", served.process.stderr.readline())
    curl, _, header, url = shlex.split(served.process.stderr.readline())
    assert curl == "curl"
    assert url.startswith(served.url)
    answer = served.get(url[len(served.url) :], headers=[header.split(": ")])
    link, token = re.fullmatch(r"Open (\S+) and paste the token: (\S+)\n", served.process.stderr.readline()).groups()
    assert (link, header) == (f"{served.url}/", f"Authorization: Bearer {token}")
    assert served.get("/").headers["content-type"] == "text/html; charset=utf-8"
    total, waiting = answer.json["total_tickets"], answer.json["total_unprocessed_tickets"]
    assert (total, total - waiting) == (int(figures[1]), int(figures[2]))
    assert total == 10_000
    assert 0 < waiting < total / 10
    code, rest, _ = served.stop()
    assert (code, rest) == (0, "")


def test_demo_changes_nothing_on_a_desk_with_tickets_and_says_how_to_make_a_token(serve, tmp_path):
    add_tickets(tmp_path, 3)
    _, _, err = serve("--demo", "--no-scheduler").stop()
    hints = [line for line in err.splitlines() if not line.startswith("INFO")]
    assert len(hints) == 1
    assert "tickets already" in hints[0]
    assert hinted_commands(err)[0][2:4] == ("token", "create")
    assert [row["tickets"] for row in rows(tmp_path / "ticketapi.db", "SELECT tickets FROM ticket_counts")] == [3, 0]
    assert rows(tmp_path / "ticketapi.db", "SELECT id FROM personal_access_tokens") == []


# Stopping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_0_and_closed_files(serve, tmp_path, number):
    served = serve("--generate-every", "1s")
    served.get("/api/stats", token=new_token(tmp_path))
    code, _, err = served.stop(number)
    assert code == 0
    assert err.splitlines()[-1] == "INFO ticketapi: stopped"
    assert not list(tmp_path.glob("*-wal")) + list(tmp_path.glob("*-shm"))


@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
@pytest.mark.parametrize("padding", [0, 12_000], ids=["short headers", "12 kB of headers"])
def test_twenty_requests_in_flight_at_the_stop_are_answered_and_audited(serve, dial, tmp_path, kept, padding):
    served, token = serve("--no-scheduler", "--rate", "0"), new_token(tmp_path)
    early = [dial(served) for _ in range(20 * kept)]
    for sock in early:
        ask_up(sock)
    with frozen(served):
        connections = early or [dial(served) for _ in range(20)]
        for page, sock in enumerate(connections, 1):
            sock.sendall(request_bytes(f"/api/tickets/open?page={page}", token, f"X-Padding: {'a' * padding}"))
        served.process.send_signal(signal.SIGTERM)
    for page, sock in enumerate(connections, 1):
        answers = split_answers(read_to_end(sock))
        assert [(answer.status, answer.json["meta"]["current_page"]) for answer in answers] == [(200, page)]
    assert served.process.wait(20) == 0
    assert sorted(row["query"] for row in audits(tmp_path)) == sorted(f'{{"page":"{page}"}}' for page in range(1, 21))


def begin_body(sock):
    """Send the headers of a POST request with five bytes of body to come, and wait until the server has read them."""
    sock.sendall(post(b"Content-Length: 5", b"Expect: 100-continue"))
    assert b" 100 " in sock.recv(65536)


def refuses_connections(served):
    """Tell whether a server has stopped listening."""
    try:
        socket.create_connection(("127.0.0.1", served.port), timeout=5).close()
    except ConnectionError:
        return True
    return False


def test_a_request_whose_body_is_under_way_at_the_stop_is_answered_and_told_that_it_is_the_last(serve, dial):
    served = serve("--no-scheduler")
    sock = dial(served)
    begin_body(sock)
    served.process.send_signal(signal.SIGTERM)
    wait_for(lambda: refuses_connections(served))
    assert [(answer.status, answer.headers.get("connection")) for answer in exchange(sock, b"hello")] == [(405, "close")]
    assert served.process.wait(20) == 0


def test_idle_and_half_open_connections_do_not_delay_the_stop(serve, dial):
    served = serve("--no-scheduler")
    connections = [dial(served) for _ in range(6)]
    for sock in connections[:3]:
        ask_up(sock)
    connections[3].sendall(UP[:20])
    begin = time.monotonic()
    assert served.stop()[0] == 0
    assert time.monotonic() - begin < ticketapi.STOP_SECONDS / 3


def test_kill_9_leaves_the_desk_intact_and_a_row_for_every_answered_request(serve, tmp_path):
    add_tickets(tmp_path, 5)
    served, token = serve("--rate", "0"), new_token(tmp_path)
    for page in range(1, 21):
        assert served.get(f"/api/tickets/open?page={page}", token=token).status == 200
    served.stop(signal.SIGKILL)
    assert [row["query"] for row in audits(tmp_path)] == [f'{{"page":"{page}"}}' for page in range(1, 21)]
    for name in ("ticketapi.db", "ticketapi-audit.db"):
        assert rows(tmp_path / name, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert serve("--no-scheduler").get("/api/stats", token=token).json["total_tickets"] == 5


# What the parser refuses -------------------------------------------------------------------------


def post(*headers, body=b""):
    """Write a POST request with the headers given."""
    return b"".join((b"POST /api/stats HTTP/1.1\r\n", HOST, *(header + b"\r\n" for header in headers), b"\r\n", body))


REFUSED = {
    "no request line": (400, b"NONSENSE\r\n\r\n"),
    "a method in lower case": (400, b"get /up HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a header without a colon": (400, b"GET /up HTTP/1.1\r\nnonsense\r\n\r\n"),
    "an unclosed bracket": (400, b"GET http://[::1 HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a negative length": (400, post(b"Content-Length: -1")),
    "two lengths": (400, post(b"Content-Length: 3", b"Content-Length: 0")),
    "chunked twice": (400, post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
    "chunked twice in one header": (400, post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")),
    "a bad chunk": (400, post(b"Transfer-Encoding: chunked", body=b"zz\r\n\r\n")),
    "headers over 16 KiB": (431, b"GET /up HTTP/1.1\r\nX: " + b"a" * 16 * 1024 + b"\r\n\r\n"),
    "a body over 64 KiB": (413, post(b"Content-Length: 65537")),
    "chunks over 64 KiB": (413, post(b"Transfer-Encoding: chunked", body=b"10001\r\n" + b"a" * 0x10001 + b"\r\n")),
    "an unknown transfer coding": (501, post(b"Transfer-Encoding: gzip")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_parser_refusal_is_json_closes_the_connection_and_is_logged_in_one_line(plain, dial, name):
    status, data = REFUSED[name]
    before = plain.refusals()
    answers = exchange(dial(plain), data + UP)  # the second request must not be read
    assert [answer.status for answer in answers] == [status]
    assert answers[0].headers["content-type"] == "application/json"
    request_id = answers[0].headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert list(answers[0].json) == ["message"]
    assert not re.search(r"waitress|traceback", answers[0].body.decode(), re.IGNORECASE)
    assert plain.get("/up").status == 200
    told = wait_for(lambda: plain.refusals()[len(before) :])
    assert len(told) == 1
    assert f"127.0.0.1: {status}" in told[0]
    assert told[0].endswith(f" {request_id}")
    assert audits(plain.folder) == []


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (200, b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: ".ljust(16 * 1024 - 4, b"a") + b"\r\n\r\n"),
        (405, post(b"Connection: close", b"Content-Length: 65536", body=b"a" * 65536)),
    ],
    ids=["16 KiB of headers", "64 KiB of body"],
)
def test_the_largest_headers_and_body_are_accepted(plain, dial, status, data):
    assert [answer.status for answer in exchange(dial(plain), data)] == [status]


AMBIGUOUS = {
    "two framings": post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks in HTTP 1.0": post(b"Connection: keep-alive", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n").replace(
        b"1.1", b"1.0", 1
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_request_that_a_proxy_may_read_otherwise_ends_the_connection(plain, dial, name):
    """RFC 9112, section 6.1: what follows might be part of this request for a proxy in between."""
    assert len(exchange(dial(plain), AMBIGUOUS[name] + UP)) == 1


# Beside other commands ---------------------------------------------------------------------------


def test_a_revoked_token_is_refused_at_once(serve, tmp_path):
    served, token, other = serve("--no-scheduler"), new_token(tmp_path), new_token(tmp_path)
    assert served.get("/api/stats", token=token).status == 200
    assert cli(tmp_path, "token", "revoke", "1")[0] == 0
    assert served.get("/api/stats", token=token).status == 401
    assert served.get("/api/stats", token=other).status == 200


def test_tickets_generated_and_closed_beside_the_server_show_at_once(serve, tmp_path):
    served, token = serve("--no-scheduler"), new_token(tmp_path)

    def totals():
        lists = (served.get(f"/api/tickets/{name}", token=token).json for name in ("open", "closed"))
        return [page["meta"]["total"] for page in lists]

    assert totals() == [0, 0]
    cli(tmp_path, "generate", "--count", "7")
    assert totals() == [7, 0]
    cli(tmp_path, "process", "--count", "2")
    assert totals() == [5, 2]
    first = served.get("/api/tickets/open?per_page=1", token=token).json["data"][0]
    assert first["id"] == 3


def test_the_scheduler_lets_tickets_arrive_and_closes_them_and_without_it_nothing_happens(serve, tmp_path):
    """The server without one has been there for as many boundaries of a second as the other has used."""
    folders = [tmp_path / name for name in ("resting", "lively")]
    for folder in folders:
        folder.mkdir()
    resting = serve("--generate-every", "1s", "--no-scheduler", cwd=folders[0])
    served = serve("--generate-every", "1s", "--process-every", "2s", "--rate", "0", cwd=folders[1])
    tokens = [new_token(folder) for folder in folders]

    def lively():
        stats = served.get("/api/stats", token=tokens[1]).json
        return stats["total_tickets"] >= 2 and stats["most_recent_processed_at"]

    assert wait_for(lively)
    assert resting.get("/api/stats", token=tokens[0]).json["total_tickets"] == 0


# Behind a proxy ----------------------------------------------------------------------------------

FORWARDED = {
    "X-Forwarded-For": "198.51.100.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "desk.example.com",
}


@pytest.mark.parametrize(
    ("arguments", "believed"),
    [((), False), (("--trusted-proxy", "127.0.0.1"), True), (("--trusted-proxy", "127.0.0.2"), False)],
    ids=["no proxy named", "from the proxy", "from another address"],
)
def test_forwarded_headers_are_believed_from_the_named_proxy_alone(serve, tmp_path, arguments, believed):
    served, token = serve("--no-scheduler", *arguments), new_token(tmp_path)
    answer = served.get("/api/tickets/open", token=token, headers=FORWARDED)
    base = "https://desk.example.com" if believed else served.url
    assert answer.json["links"]["first"] == f"{base}/api/tickets/open?page=1"
    assert [row["ip_address"] for row in audits(tmp_path)] == ["198.51.100.7" if believed else "127.0.0.1"]


def test_guesses_through_the_proxy_are_limited_by_the_clients_address(serve):
    served = serve("--no-scheduler", "--trusted-proxy", "127.0.0.1")

    def guess(address):
        return served.get("/api/stats", headers={"X-Forwarded-For": address}).status

    assert [guess("198.51.100.7") for _ in range(31)] == [401] * 30 + [429]
    assert guess("198.51.100.8") == 401


# The log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "expected"), [("debug", 2), ("info", 0)])
def test_the_log_has_a_line_for_each_request_at_debug_alone_without_secrets(serve, tmp_path, level, expected):
    served, token = serve("--no-scheduler", "--log-level", level), new_token(tmp_path)
    served.get("/api/tickets/open?page=1&note=private", token=token)
    served.get(f"/api/{token}?page=1&note=private")
    err = served.stop()[2]
    assert len(re.findall(r"^DEBUG ticketapi: 127\.0\.0\.1 GET /api/", err, re.MULTILINE)) == expected
    assert token not in err
    assert "private" not in err


# The wire ----------------------------------------------------------------------------------------

PAGE = 50  # tickets on a page


class Wire:
    """One connection to a server, on which answers are read one by one."""

    def __init__(self, port, timeout=10):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.data = b""

    def send(self, *requests):
        """Send requests in one go."""
        self.sock.sendall(b"".join(requests))

    def more(self):
        """Read something more; false at the end."""
        chunk = self.sock.recv(65536)
        self.data += chunk
        return bool(chunk)

    def answer(self, head=False):
        """Read one answer, as RFC 9112 section 6.3 tells where it ends; `head` for one to a HEAD request."""
        while b"\r\n\r\n" not in self.data:
            assert self.more(), "closed before an answer"
        block, _, self.data = self.data.partition(b"\r\n\r\n")
        first, *lines = block.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        status, headers = int(first.split()[1]), {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), lines
        length = 0 if head or status in (204, 304) else int(headers["content-length"])
        while len(self.data) < length:
            assert self.more(), "closed within an answer"
        body, self.data = self.data[:length], self.data[length:]
        return Answer(status, headers, body)

    def ended(self):
        """Tell whether the server has closed the connection, with nothing left to read."""
        return not self.data and not self.more()


class Desk:
    """A server that many tests use, on a desk with 700 tickets."""

    def __init__(self, folder, threads):
        add_tickets(folder, 700)
        with open_desk(folder) as db:
            ticketapi.process_tickets(db, 300, ticketapi.wall_microseconds())
        self.folder, self.token = folder, new_token(folder)
        arguments = ("--no-scheduler", "--rate", "0", "--threads", threads, "--log-level", "warning")
        self.served = Served(*arguments, cwd=folder)
        self.wires = []

    def wire(self):
        """Open a connection."""
        self.wires.append(Wire(self.served.port))
        return self.wires[-1]

    def get(self, path, *more, method="GET", version="1.1"):
        """Write a request with the token."""
        data = request_bytes(path, self.token, *more).decode()
        return data.replace("GET ", f"{method} ", 1).replace("HTTP/1.1", f"HTTP/{version}", 1).encode()


@pytest.fixture(scope="module", params=[1, 3], ids=["1 thread", "3 threads"])
def shared(request, tmp_path_factory):
    """A server with one thread and one with three; neither has anything to log."""
    desk = Desk(tmp_path_factory.mktemp("shared"), request.param)
    yield desk
    for wire in desk.wires:
        wire.sock.close()
    code, _, err = desk.served.stop()
    assert (code, err) == (0, "")


PREFLIGHT = (
    b"OPTIONS /api/stats HTTP/1.1\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n" + HOST + b"\r\n"
)


def test_an_answer_without_a_body_keeps_the_connection_open(shared):
    wire = shared.wire()
    wire.send(shared.get("/api/stats"))
    etag = wire.answer().headers["etag"]
    for request, status in (
        (shared.get("/api/stats", f"If-None-Match: {etag}"), 304),
        (PREFLIGHT, 204),
        (shared.get("/api/stats", f"If-None-Match: {etag}", method="HEAD"), 304),
        (shared.get("/api/stats"), 200),
    ):
        wire.send(request)
        answer = wire.answer()
        assert (answer.status, answer.headers.get("connection")) == (status, None)
        assert ("content-length" in answer.headers) == (status == 200)


@pytest.mark.parametrize("kind", ["200", "304", "204", "404", "HEAD"])
@pytest.mark.parametrize("asked", ["HTTP/1.0", "Connection: close", "Connection: Close"])
def test_a_client_that_wants_the_connection_closed_gets_it_closed(shared, kind, asked):
    wire = shared.wire()
    wire.send(shared.get("/api/stats"))
    etag = wire.answer().headers["etag"]
    request = {
        "200": shared.get("/api/stats"),
        "304": shared.get("/api/stats", f"If-None-Match: {etag}"),
        "204": PREFLIGHT,
        "404": shared.get("/api/nope"),
        "HEAD": shared.get("/api/stats", method="HEAD"),
    }[kind]
    old, new = (b"HTTP/1.1", b"HTTP/1.0") if asked == "HTTP/1.0" else (HOST, HOST + asked.encode() + b"\r\n")
    wire.send(request.replace(old, new, 1), UP)
    answer = wire.answer(head=kind == "HEAD")
    assert answer.status == (200 if kind == "HEAD" else int(kind))
    assert answer.headers["connection"] == "close"
    with suppress(ConnectionResetError):  # closed with a request of ours unread
        assert wire.ended()


def test_http_1_0_may_ask_to_keep_the_connection_open(shared):
    wire = shared.wire()
    for _ in range(2):
        wire.send(shared.get("/api/stats", "Connection: keep-alive", version="1.0"))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"].lower()) == (200, "keep-alive")


@pytest.mark.parametrize(
    "path", ["/api/tickets/open?per_page=200", "/api/stats", "/up", "/api/nope", "/api/users/999999999/tickets"]
)
def test_head_has_the_headers_of_get_and_no_body(shared, path):
    wire = shared.wire()
    wire.send(*(shared.get(path, "X-Request-Id: same", method=method) for method in ("GET", "HEAD", "GET")))
    answers = [wire.answer(), wire.answer(head=True), wire.answer()]
    for answer in answers:
        del answer.headers["date"]
    assert int(answers[1].headers["content-length"]) == len(answers[0].body) == len(answers[2].body) > 0
    assert answers[1].headers == answers[0].headers


KINDS = {
    "a page": ("/api/tickets/open", ()),
    "a kept page": ("/api/tickets/open", ()),
    "a page for a last request": ("/api/tickets/open", ("Connection: close",)),
    "401": ("/api/stats", ("Authorization: Bearer nonsense",)),
    "404": ("/api/nope", ()),
    "422": ("/api/tickets/open?page=x", ()),
    "up": ("/up", ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_says_once_who_answers_when_and_how_much(shared, kind):
    path, more = KINDS[kind]
    wire = shared.wire()
    wire.send(shared.get(path, *more))
    while b"\r\n\r\n" not in wire.data:
        assert wire.more()
    lines = wire.data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    names = [line.partition(":")[0].lower() for line in lines[1:]]
    assert [name for name, times in Counter(names).items() if times > 1] == []
    headers = wire.answer().headers
    assert headers["server"] == "ticketapi"
    assert abs(parsedate_to_datetime(headers["date"]).timestamp() - time.time()) < 5
    assert headers["date"].endswith(" GMT")
    assert {"content-length", "content-type"} <= set(headers)


def test_requests_in_one_segment_are_answered_in_their_order(shared):
    wire = shared.wire()
    wire.send(*(shared.get(f"/api/tickets/open?page={page}&per_page=7") for page in range(1, 21)))
    answers = [wire.answer() for _ in range(20)]
    assert [(answer.status, answer.json["meta"]["current_page"]) for answer in answers] == [(200, n) for n in range(1, 21)]


def test_a_mixture_in_one_segment_is_answered_in_its_order(shared):
    wire, etag = shared.wire(), shared.served.get("/api/stats", token=shared.token).headers["etag"]
    requests = (
        shared.get("/api/stats", f"If-None-Match: {etag}"),
        PREFLIGHT,
        UP,
        shared.get("/api/nope"),
        shared.get("/api/stats"),
    )
    wire.send(*requests * 4)
    assert [wire.answer().status for _ in range(20)] == [304, 204, 200, 404, 200] * 4


def test_large_pages_in_one_segment_are_answered_in_their_order_and_whole(shared):
    wire = shared.wire()
    wire.send(*(shared.get(f"/api/tickets/{name}?page={page}&per_page=200") for name, page in LARGE))
    for name, page in LARGE:
        alone = shared.served.get(
            f"/api/tickets/{name}?page={page}&per_page=200", token=shared.token, headers={"Host": "desk.test"}
        )
        assert wire.answer().body == alone.body
        assert len(alone.body) > 50_000


LARGE = (("open", 1), ("open", 2), ("closed", 1))


def test_a_client_that_reads_nothing_does_not_hold_up_another(shared):
    deaf, requests = shared.wire(), [shared.get("/api/tickets/open?per_page=200") for _ in range(40)]
    deaf.send(*requests)
    for _ in range(20):
        begin = time.monotonic()
        assert shared.served.get("/api/stats", token=shared.token).status == 200
        assert time.monotonic() - begin < 2
    assert {deaf.answer().status for _ in requests} == {200}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_client_that_reads_nothing_of_very_long_tickets_does_not_hold_up_another(serve, tmp_path, threads):
    token = new_token(tmp_path)
    add_tickets(tmp_path, 200)
    with open_desk(tmp_path) as db:
        db.execute("UPDATE tickets SET content = :text", {"text": "long " * 1000})
    served = serve("--no-scheduler", "--rate", "0", "--threads", threads)
    deaf = Wire(served.port)
    with closing(deaf.sock):
        deaf.send(request_bytes("/api/tickets/open?per_page=200", token) * 30)
        wait_for(lambda: select.select([deaf.sock], [], [], 0)[0])
        assert [served.get("/api/stats", token=token).status for _ in range(3)] == [200] * 3
        assert {deaf.answer().status for _ in range(30)} == {200}


class Counting(threading.Thread):
    """A client that looks for the row of each of its requests as soon as the first bytes of the answer are there."""

    def __init__(self, desk, first, requests, seen):
        super().__init__()
        self.desk, self.numbers, self.seen = desk, range(first, first + requests), seen
        self.missing = []

    def run(self):
        wire = Wire(self.desk.served.port)
        with closing(wire.sock), closing(ticketapi.connect(self.desk.folder / "ticketapi-audit.db")) as db:
            for number in self.numbers:
                wire.send(self.desk.get(f"/api/stats?request={number}"))
                wire.more()
                self.seen.append(number)
                answered = len(self.seen)
                written, mine = db.execute(
                    "SELECT count(*), coalesce(sum(query = ?), 0) FROM api_audits WHERE query LIKE '{\"request%'",
                    (f'{{"request":"{number}"}}',),
                ).fetchone()
                if not mine or written < answered:
                    self.missing.append(number)
                assert wire.answer().status == 200


def test_the_row_of_a_request_is_in_the_file_before_its_answer_arrives(shared):
    seen = []
    clients = [Counting(shared, 1000 * n, 50, seen) for n in range(1, 9)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert [number for client in clients for number in client.missing] == []
    assert len(seen) == 400


@pytest.mark.parametrize("threads", [1, 3])
def test_requests_in_one_segment_in_flight_at_the_stop_are_all_answered(serve, tmp_path, threads):
    served, token = serve("--no-scheduler", "--rate", "0", "--threads", threads), new_token(tmp_path)
    wires = [Wire(served.port) for _ in range(5)]
    for wire in wires:
        wire.send(UP)
        assert wire.answer().status == 200
    with frozen(served):
        for wire in wires:
            wire.send(*(request_bytes(f"/api/tickets/open?page={page}", token) for page in range(1, 11)))
        served.process.send_signal(signal.SIGTERM)
    for wire in wires:
        with closing(wire.sock):
            answers = [wire.answer() for _ in range(10)]
            assert [answer.json["meta"]["current_page"] for answer in answers] == list(range(1, 11))
            assert [answer.headers.get("connection") for answer in answers] == [None] * 9 + ["close"]
            assert wire.ended()
    assert served.process.wait(20) == 0
    assert len(audits(tmp_path)) == 50


# Answers wait for what settles them --------------------------------------------------------------


def two_letters(environ, start_response):
    """Answer with as many letters as the query says, two as a rule."""
    body = b"x" * int(environ["QUERY_STRING"] or 2)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def settling():
    """A server in this process, a client, and a list of what had come to the client at each call of `settle`.

    `taken` is what the client has read meanwhile, as it must: a server goes on when its answers are taken.
    """
    sock, seen, taken = ticketapi.bind_socket("127.0.0.1", 0), [], []
    client = socket.create_connection(sock.getsockname(), timeout=10)
    peeping = client.dup()
    peeping.setblocking(False)

    def settle():
        with suppress(BlockingIOError):
            seen.append(b"".join(taken) + peeping.recv(65536, socket.MSG_PEEK))
            return
        seen.append(b"".join(taken))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server = ticketapi.Server(two_letters, [sock], ticketapi.Settings(), settle)
    thread = threading.Thread(target=server.run, args=(lambda: None,))
    thread.start()
    with closing(client), closing(peeping):
        yield client, seen, taken
        server.stop()
        thread.join()


def last(data):
    """Mark a request as the last of its connection."""
    return data.replace(HOST, HOST + b"Connection: close\r\n")


BIG = UP.replace(b"/up", b"/up?1000000")
SETTLED = {
    "one": [last(UP)],
    "several in one segment": [UP] * 5 + [last(UP)],
    "a large answer": [last(BIG)],
    "several large answers": [BIG] * 3 + [last(UP)],
    "more than Waitress likes to keep": [last(UP.replace(b"/up", b"/up?20000000"))],
    "one before a request that is refused": [UP, b"NONSENSE\r\n\r\n"],
}


@pytest.mark.parametrize("kind", SETTLED)
def test_no_byte_of_an_answer_leaves_before_it_is_settled(settling, kind):
    (client, seen, taken), requests = settling, SETTLED[kind]
    client.sendall(b"".join(requests))

    def all_are_settled():
        while select.select([client], [], [], 0.01)[0] and (data := client.recv(1 << 20)):
            taken.append(data)
        return len(seen) == len(requests)

    wait_for(all_are_settled)
    assert all(data.count(b"HTTP/1.1 ") <= settled for settled, data in enumerate(seen))
    assert len(split_answers(b"".join(taken) + read_to_end(client))) == len(requests)


def test_no_answer_leaves_with_the_100_for_the_next_request_before_it_is_settled(settling):
    client, seen, _ = settling
    client.sendall(UP + post(b"Content-Length: 5", b"Expect: 100-continue", b"Connection: close"))
    wait_for(lambda: seen)
    data = b""
    while b" 100 " not in data:
        data += client.recv(65536)
    client.sendall(b"hello")
    assert read_to_end(client).endswith(b"xx")
    assert seen[0] == b""


def test_a_server_needs_nothing_of_waitress_that_is_about_to_go():
    """Waitress warns of what a later release will not have."""
    with closing(ticketapi.bind_socket("127.0.0.1", 0)) as sock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        server = ticketapi.Server(two_letters, [sock], ticketapi.Settings(), lambda: None)
        server.stop()
        server.run(lambda: None)
    assert [str(warning.message) for warning in caught] == []
