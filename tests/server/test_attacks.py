"""What attackers send to a real server: refused, bounded and logged without harm, while others are served."""

import base64
import json
import re
import resource
import stat
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from attacks import (
    CHUNKED,
    HOST,
    LAST_UP,
    NO_CHUNKS,
    ORIGIN,
    PREFLIGHT,
    STATS,
    TOKEN,
    UP,
    WITH_TOKEN,
    Target,
    chunked,
    post,
    program,
)
from conftest import examples, wait_for
from fuzz import attacks, bounded, under_attack
from hypothesis import given

import ticketapi


@pytest.fixture
def target(serve, tmp_path):
    """Return a function that starts a server on a prepared desk; it is ended after the test."""

    def start(*arguments, script=""):
        return Target(tmp_path, *arguments, start=serve, script=script)

    return start


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server that many tests attack, without a limit for users; it must end as if nothing had happened."""
    target = Target(tmp_path_factory.mktemp("attacked"), "--rate", "0")
    yield target
    assert target.served.stop()[0] == 0
    assert "Traceback" not in target.log()
    assert "ERROR" not in target.log()
    assert [row for row in target.audits() if row["status_code"] >= 500] == []


# One request that can be read as two -------------------------------------------------------------

SMUGGLED = STATS.replace(b"/api/stats", b"/api/stats?smuggled=yes").replace(HOST, HOST + b"Connection: close\r\n")
WHOLE = b"Content-Length: %d" % len(NO_CHUNKS + SMUGGLED)
SMUGGLING = {
    "a length and chunks": post(WHOLE, CHUNKED),
    "chunks and a length": post(CHUNKED, WHOLE),
    "chunks and a length of nothing": post(CHUNKED, b"Content-Length: 0"),
    "one length twice": post(b"Content-Length: 5", b"Content-Length: 5"),
    "two lengths": post(b"Content-Length: 5", WHOLE),
    "two lengths, the larger first": post(WHOLE, b"Content-Length: 5"),
    "two lengths in one field": post(b"Content-Length: 5, 5"),
    "a length with a sign": post(b"Content-Length: +5"),
    "a length with an underscore": post(b"Content-Length: 0_5"),
    "a length in hexadecimal": post(b"Content-Length: 0x5"),
    "a length in Arabic digits": post(b"Content-Length: \xd9\xa5"),
    "an empty length": post(b"Content-Length:"),
    "a length that is none, in HTTP/1.0": post(b"Content-Length: x", b"Connection: keep-alive", version=b"1.0"),
    "a length of 5,000 digits": post(b"Content-Length: " + b"5" * 5000),
    "chunks twice": post(CHUNKED, CHUNKED),
    "chunks twice in one field": post(b"Transfer-Encoding: chunked, chunked"),
    "chunks, then another coding": post(CHUNKED, b"Transfer-Encoding: identity"),
    "another coding, then chunks": post(b"Transfer-Encoding: identity", CHUNKED),
    "an empty coding": post(b"Transfer-Encoding:"),
    "a coding of a comma": post(b"Transfer-Encoding: ,"),
    "chunks with a vertical tab": post(b"Transfer-Encoding:\x0bchunked"),
    "a space before the colon": post(b"Transfer-Encoding : chunked"),
    "a line feed within a field": post(b"X: a\nTransfer-Encoding: chunked"),
    "a carriage return within a field": post(b"X: a\rTransfer-Encoding: chunked"),
    "a NUL within a field": post(b"X: a\0b", b"Content-Length: 5"),
    "chunks in HTTP/1.0": post(CHUNKED, b"Connection: keep-alive", version=b"1.0"),
    "chunks in HTTP/1.2": post(CHUNKED, b"Connection: keep-alive", version=b"1.2"),
    "chunks in HTTP/2.0": post(CHUNKED, b"Connection: keep-alive", version=b"2.0"),
    "a chunk with a sign": chunked(b"+5\r\nhello\r\n" + NO_CHUNKS),
    "a chunk in hexadecimal notation": chunked(b"0x5\r\nhello\r\n" + NO_CHUNKS),
    "a chunk of negative size": chunked(b"-5\r\nhello\r\n" + NO_CHUNKS),
    "a chunk with a space": chunked(b"5 \r\nhello\r\n" + NO_CHUNKS),
    "a chunk without its end": chunked(b"5\r\nhelloX\r\n" + NO_CHUNKS),
    "a chunk extension with a line feed": chunked(b"5;a\nhello\r\n" + NO_CHUNKS),
    "one host twice": post(HOST.strip(), b"Content-Length: 5"),
    "two hosts": post(b"Host: other.test", b"Content-Length: 5"),
    "one token twice": post(WITH_TOKEN.strip(), WITH_TOKEN.strip(), b"Content-Length: 5"),
    "a token and another": post(WITH_TOKEN.strip(), b"Authorization: Bearer x", b"Content-Length: 5"),
    "no token and a token": post(b"authorization: Basic eDp5", WITH_TOKEN.strip(), b"Content-Length: 5"),
    "two keys of one write": post(b"Idempotency-Key: a", b"idempotency-key: b", b"Content-Length: 5"),
    "a field folded with a space": post(b"X: one\r\n two", b"Content-Length: 5"),
    "a field folded with a tab": post(b"X: one\r\n\ttwo", b"Content-Length: 5"),
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked"),
    "a folded token": post(b"Authorization: Bearer\r\n " + TOKEN, b"Content-Length: 5"),
    "a folded first field": post(b"Content-Length: 5").replace(HOST, b" X: y\r\n" + HOST),
}
UNKNOWN_CODINGS = (b"gzip", b"gzip, chunked", b"chunked, gzip", b"identity", b"xchunked", b"chunked;q=1", b'"chunked"')


def assert_only_refused(target, data, status):
    """Check that a request is refused, and that the one behind or within it was not even seen."""
    before = target.audits()
    refused = target.talk(data + SMUGGLED)
    assert (refused.statuses, refused.closed) == ([status], True)
    assert refused.answers[0].headers["connection"] == "close"
    assert target.audits() == before


@pytest.mark.parametrize("name", SMUGGLING)
def test_a_request_that_can_be_read_as_two_is_a_400_and_the_second_is_unseen(shared, name):
    assert_only_refused(shared, SMUGGLING[name], 400)


@pytest.mark.parametrize("coding", UNKNOWN_CODINGS, ids=bytes.decode)
def test_an_unknown_transfer_coding_is_a_501_and_what_follows_is_unseen(shared, coding):
    assert_only_refused(shared, post(b"Transfer-Encoding: " + coding), 501)


@pytest.mark.parametrize(
    "data",
    [STATS, post(b"Content-Length: 5"), post(b"transfer-encoding: Chunked"), chunked(b"5;a=b\r\nhello\r\n" + NO_CHUNKS)],
    ids=["no body", "a length", "chunks", "a chunk with an extension"],
)
def test_behind_a_request_that_can_be_read_in_one_way_the_next_is_answered(shared, data):
    before = len(shared.audits())
    answered = shared.talk(data + SMUGGLED)
    assert (answered.statuses[1:], answered.closed) == ([200], True)
    assert shared.audits()[before + 1]["query"] == '{"smuggled":"yes"}'


# Slow clients and many connections ---------------------------------------------------------------


@pytest.fixture
def many_files():
    """Let this process open some thousand files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not open 4,096 files; raise its hard limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("limit", "connections"), [("ulimit -S -n 1024;", 1300), ("ulimit -n 160;", 300)])
def test_idle_connections_lock_nobody_out_and_cut_no_request_under_way(target, dial, many_files, limit, connections):
    attacked = target(script=limit)
    half, body = dial(attacked), dial(attacked)
    half.sendall(UP[:20])
    body.sendall(post(b"Content-Length: 5", b"Expect: 100-continue", body=b""))
    assert b" 100 " in body.recv(65536)
    crowd = [dial(attacked) for _ in range(connections)]
    assert attacked.talk(LAST_UP, seconds=25).statuses == [200]  # behind them all: each has to be accepted first
    begin = time.monotonic()
    for sock in crowd[:50]:  # some have been of use before
        with suppress(OSError):
            sock.sendall(UP)
    for _ in range(20):
        assert attacked.talk(LAST_UP).statuses == [200]
    assert time.monotonic() - begin < 8
    half.sendall(UP[20:])
    body.sendall(b"hello")
    assert half.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert body.recv(65536).startswith(b"HTTP/1.1 405 ")
    if "-S" in limit:
        assert open_files_limit(attacked.served.process.pid) > 1024


def open_files_limit(pid):
    """Return how many files a process may open, as Linux tells it."""
    limits = Path(f"/proc/{pid}/limits")
    if not limits.exists():
        pytest.skip("this system has no /proc to read the limit of open files from")
    return int(re.search(r"^Max open files\s+(\d+)", limits.read_text(), re.MULTILINE)[1])


def test_a_server_that_many_have_left_serves_as_before(target, dial, many_files):
    attacked = target(script="ulimit -n 160;")
    for _ in range(3):
        crowd = [dial(attacked) for _ in range(120)]
        for number, sock in enumerate(crowd):
            with suppress(OSError):
                sock.sendall((b"", UP[:9], UP)[number % 3])
                sock.close()
    assert attacked.talk(UP * 50 + LAST_UP).statuses == [200] * 51


# Paths -------------------------------------------------------------------------------------------

PATHS = {
    "invalid UTF-8": b"/api/tickets/op%FFen",
    "invalid UTF-8 at the end": b"/api/stats%C3",
    "an overlong slash": b"/api%C0%AFstats",
    "half a surrogate pair": b"/api/%ED%A0%80",
    "a NUL": b"/api/tickets/open%00",
    "a NUL and a suffix": b"/api/stats%00.json",
    "dots": b"/api/../api/nope",
    "dots that lead to a route": b"/api/tickets/../stats",
    "dots that lead out": b"/../../../../etc/passwd",
    "dots in percent signs": b"/api/%2e%2e/%2e%2e/etc/passwd",
    "backslashes": b"/api/..\\..\\etc\\passwd",
    "a file of ours": b"/ticketapi.db",
    "half a percent sign": b"/api/%",
    "a user without id": b"/api/users//tickets",
    "a user of 5,000 digits": b"/api/users/" + b"1" * 5000 + b"/tickets",
    "a user of 5,000 digits, most of them zeros": b"/api/users/" + b"0" * 4999 + b"1/tickets",
    "a user beyond 64 bits": b"/api/users/9223372036854775808/tickets",
    "the greatest user": b"/api/users/9223372036854775807/tickets",
    "a negative user": b"/api/users/-1/tickets",
    "a user with a plus": b"/api/users/+1/tickets",
    "a user with a zero": b"/api/users/01/tickets",
    "user zero": b"/api/users/0/tickets",
    "a user in Arabic digits": b"/api/users/%D9%A1/tickets",
    "a user in wide digits": b"/api/users/%EF%BC%91/tickets",
    "a user with a superscript": b"/api/users/%C2%B9/tickets",
    "a user in exponents": b"/api/users/1e0/tickets",
    "a user in hexadecimal": b"/api/users/0x1/tickets",
    "a user with a fraction": b"/api/users/1.0/tickets",
    "a user with a line feed": b"/api/users/1%0A/tickets",
    "a user with a space": b"/api/users/1%20/tickets",
    "a user with a NUL": b"/api/users/1%00/tickets",
    "a user with SQL": b"/api/users/1%20OR%201=1/tickets",
    "a user with dots": b"/api/users/../1/tickets",
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_none_of_ours_is_a_404(shared, name):
    answered = shared.talk(STATS.replace(b"/api/stats", PATHS[name]) + LAST_UP)
    assert answered.statuses == [404, 200]
    assert list(answered.answers[0].json) == ["message"]


def test_the_first_user_is_found(shared):
    found = shared.talk(STATS.replace(b"/api/stats", b"/api/users/1/tickets") + LAST_UP)
    assert found.statuses == [200, 200]


UNREADABLE = (
    b"http://[::1",
    b"http://[::1]:x/up",
    b"http://",
    b"//[",
    b"http://[v1.x]/up",
    b"?",
    b"#",
    b"*",
    b"%",
    b"/\xff\xfe",
    b"/\xc3\xa9",
)


@pytest.mark.parametrize("uri", UNREADABLE, ids=repr)
def test_a_target_that_can_hardly_be_read_is_answered_all_the_same(shared, uri):
    answered = shared.talk(UP.replace(b"/up", uri) + LAST_UP)
    assert answered.statuses[0] in (200, 400, 404)
    assert answered.closed


# Texts that a terminal would act on --------------------------------------------------------------

CHARACTERS = (
    "\x7f\x80\x85\x9b\x9d\xad\u061c\u200b\u200d\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\ufff9\ue000\U000e0041"
)


@pytest.mark.parametrize("character", CHARACTERS, ids=ascii)
def test_what_a_terminal_would_act_on_is_stored_and_logged_escaped(shared, character):
    raw, quoted = character.encode(), "".join(f"%{byte:02X}" for byte in character.encode()).encode()
    body = json.dumps({"q": character, character: 1}, ensure_ascii=False).encode()
    request = (
        b"POST /api/" + quoted + b"?q=" + quoted + b"&" + quoted + b"=1 HTTP/1.1\r\n"
        b"Host: desk.test\r\nConnection: close\r\nContent-Type: application/json\r\nUser-Agent: evil "
    )
    agent = raw if character != "\x7f" else b"\xc2\x9b"  # DEL ends a request's header field
    length = b" txt\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert shared.talk(request + agent + length + body).statuses == [404]
    row = shared.audits()[-1]
    assert {name: text for name, text in row.items() if isinstance(text, str) and not text.isprintable()} == {}
    assert row["user_agent"] == "evil " + agent.decode().encode("unicode_escape").decode() + " txt"
    if character != "\x7f":  # which no route can hold, and so is replaced
        assert row["path"] == "api/" + character.encode("unicode_escape").decode()
    assert json.loads(row["request_body"]) == {"q": character, character: "1"}
    assert json.loads(row["query"]) == {"q": character, character: "1"}
    assert [line for line in shared.log().splitlines() if not line.isprintable()] == []


@pytest.mark.parametrize("agent", [b"\x9b31m", b"\xff\xfe", b"\xed\xa0\x80", b"\xc2"], ids=repr)
def test_a_user_agent_that_is_no_text_is_stored_as_printable_text(shared, agent):
    data = STATS.replace(HOST, HOST + b"Connection: close\r\nUser-Agent: a" + agent + b"z\r\n")
    assert shared.talk(data).statuses == [200]
    stored = shared.audits()[-1]["user_agent"]
    assert stored.isprintable()
    assert (stored[0], stored[-1]) == ("a", "z")


def test_escaped_texts_keep_within_their_size(shared):
    mark, quoted = "\u202e".encode(), b"%E2%80%AE"
    path, body = b"/api/" + quoted * 500, json.dumps({"q": "\u202e" * 3000}).encode()
    data = b"POST " + path + b"?q=" + quoted * 900 + b" HTTP/1.1\r\nUser-Agent: " + mark * 300 + b"\r\nConnection: close\r\n"
    data += HOST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert shared.talk(data).statuses == [404]
    row = shared.audits()[-1]
    for name, most in (("user_agent", 255), ("path", 1024), ("query", 4096), ("request_body", 4096)):
        assert row[name].isprintable()
        assert most / 4 < len(row[name].encode()) <= most
    assert [*json.loads(row["query"]), *json.loads(row["request_body"])] == ["truncated", "truncated"]


# Guesses -----------------------------------------------------------------------------------------


def ask_with(authorization):
    """Write a request with an Authorization field, or without one."""
    field = b"Authorization: " + authorization.encode() + b"\r\n" if authorization else b""
    return STATS.replace(WITH_TOKEN, field)


def test_a_thousand_wrong_tokens_are_limited_and_a_valid_one_from_the_same_address_goes_on(target):
    attacked = target()
    begin = time.monotonic()
    guesses = b"".join(ask_with(f"Bearer {ticketapi.new_token_text()}") for _ in range(1000))
    statuses = attacked.talk(guesses + SMUGGLED, 30).statuses
    refilled = (time.monotonic() - begin) / 2 + 1
    assert statuses[:30] == [401] * 30
    assert (len(statuses), statuses[-1]) == (1001, 200)
    assert set(statuses[30:-1]) <= {401, 429}
    assert statuses[30:-1].count(401) <= refilled
    assert attacked.talk(SMUGGLED).statuses == [200]


def test_wrong_expired_and_revoked_tokens_and_none_get_one_and_the_same_401(target):
    attacked = target()
    kinds = {
        "wrong": f"Bearer {ticketapi.new_token_text()}",
        "shapeless": "Bearer x",
        "expired": f"Bearer {attacked.token('expired')}",
        "revoked": f"Bearer {attacked.token('revoked')}",
        "missing": "",
        "another scheme": "Basic eDp5",
    }
    asked = [ask_with(text).replace(HOST, HOST + b"X-Request-Id: same\r\n") for text in kinds.values()]
    answers = attacked.talk(b"".join(asked) + LAST_UP).answers[:-1]
    assert {(answer.status, answer.body) for answer in answers} == {(401, b'{"message":"Unauthenticated."}')}
    headers = [{**answer.headers, "date": None} for answer in answers]
    assert headers[1:4] == headers[:1] * 3
    assert headers[5] == headers[4]
    assert headers[4] == {**headers[0], "www-authenticate": "Bearer"}
    assert headers[0]["www-authenticate"] == 'Bearer error="invalid_token"'


def test_forwarded_addresses_give_no_buckets_of_their_own_without_a_trusted_proxy(target):
    attacked = target()
    guesses = [
        ask_with("Bearer x").replace(HOST, HOST + f"{name}: 198.51.100.{number}\r\n".encode())
        for number in range(11)
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP")
    ]
    statuses = attacked.talk(b"".join(guesses) + LAST_UP).statuses
    assert statuses[:30] == [401] * 30
    assert 429 in statuses[30:33]
    assert {row["ip_address"] for row in attacked.audits()} == {"127.0.0.1"}
    assert "198.51.100" not in attacked.log()


# A secret is kept nowhere ------------------------------------------------------------------------

CANARY = b"canary-9f3b7d2e51"
BASIC = base64.b64encode(b"user:" + CANARY)
QUERIES = (b"token=%s", b"password=%s", b"api_key=%s", b"t%%6Fken=%s", b"a%%5Bsecret%%5D=%s", b"page=x&access_token=%s")
FIELDS = (
    b"Authorization: %s",
    b"Authorization: Bearer %s",
    b"Authorization: Digest username=x, response=%s",
    b"Proxy-Authorization: Bearer %s",
    b"X-Api-Key: %s",
    b"Cookie: session=%s",
    b"X-Forwarded-Authorization: %s",
)
BODIES = (
    (b"application/json", b'{"password":"%s"}'),
    (b"application/json", b'{"a":[{"api_key":{"b":["%s"]}}],"access_token":"%s"}'),
    (b"application/json", b'{"password":"%s"'),
    (b"application/json", b'{"password":"%s"} and more'),
    (b"application/x-www-form-urlencoded", b"password=%s&page=2"),
    (b"application/x-www-form-urlencoded", b'{"token":"%s"}'),
    (b"multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n%s\r\n--x--'),
    (b"text/plain", b"password: %s"),
    (b"", b"\xff\x00%s"),
)


def fill(template):
    """Put the secret into a template, wherever it has a place."""
    return template % ((CANARY,) * template.count(b"%s"))


def secret_requests(path):
    """Yield requests with the secret in query, header or body."""
    for query in QUERIES:
        yield STATS.replace(b"/api/stats", path + b"?" + fill(query))
    for field in (*map(fill, FIELDS), b"Authorization: Basic " + BASIC):
        token = b"" if field.startswith(b"Authorization") else WITH_TOKEN
        yield STATS.replace(b"/api/stats", path).replace(WITH_TOKEN, token + field + b"\r\n")
    yield STATS.replace(b"/api/stats", b"http://user:" + CANARY + b"@desk.test" + path)
    for kind, template in BODIES:
        body = fill(template)
        fields = (WITH_TOKEN.strip(), b"Content-Type: " + kind)
        yield post(*fields, b"Content-Length: %d" % len(body), body=body).replace(b"/api/stats", path)
        yield post(*fields, CHUNKED, body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)).replace(b"/api/stats", path)


def refused_secret_requests():
    """Yield requests with the secret that the parser refuses."""
    secret = b"Authorization: Bearer " + CANARY
    for query in QUERIES:
        yield UP.replace(b"/up", b"/api/stats?" + fill(query)).replace(HOST, HOST + HOST)
    yield b"NONSENSE " + CANARY + b" " + CANARY + b"\r\n\r\n"
    yield b"GET http://user:" + CANARY + b"@[::1 HTTP/1.1\r\n" + HOST + b"\r\n"
    yield post(secret, secret, b"Content-Length: 5")
    yield post(secret, b"X: a\r\n b" + CANARY, b"Content-Length: 5")
    yield post(secret, b"Cookie " + CANARY, b"Content-Length: 5")
    yield post(secret, b"Transfer-Encoding: " + CANARY)
    yield post(secret, b"Content-Length: " + CANARY)
    yield post(secret, b"Content-Length: 70000", body=CANARY * 10)
    yield post(secret, b"X: " + CANARY * 1000)
    yield post(secret, CHUNKED, body=CANARY + b"\r\n")


def stored_texts(path):
    """Yield every value in every table of a database file, as bytes."""
    with closing(ticketapi.connect(path)) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in db.execute(f'SELECT * FROM "{table}"'):
                yield from (str(value).encode() for value in row)


def assert_kept_nowhere(target, secrets):
    """Check that no secret is in a table, in the bytes of a file (the log's too), or in the list of processes."""
    texts = {f"a table of {path.name}": b"\n".join(stored_texts(path)) for path in (target.desk, target.audit)}
    texts |= {path.name: path.read_bytes() for path in target.folder.iterdir()}
    process_list = Path(f"/proc/{target.served.process.pid}/cmdline")
    if process_list.exists():
        texts["the list of processes"] = process_list.read_bytes()
    assert {"ticketapi-audit.db-wal", "server.log"} <= texts.keys()
    assert [(place, secret) for place, text in texts.items() for secret in secrets if secret in text] == []


def test_a_secret_in_header_query_or_body_is_kept_nowhere(target):
    attacked = target("--rate", "0")
    requests = [*secret_requests(b"/api/stats"), *secret_requests(b"/api/tickets/open"), *secret_requests(b"/api/nope")]
    answers = attacked.talk(b"".join(requests) + LAST_UP, 10).answers
    with closing(ticketapi.connect(attacked.desk)) as db:
        db.execute("DELETE FROM ticket_counts")  # from now on there is something to log
    failing = list(secret_requests(b"/api/stats"))
    answers += attacked.talk(b"".join(failing) + LAST_UP, 10).answers
    assert len(answers) == len(requests) + len(failing) + 2
    assert {200, 401, 404, 405, 422, 500} <= {answer.status for answer in answers}
    refused = sum(answer.status == 400 for answer in answers)  # for their host, before anything else
    assert len(attacked.audits()) == len(requests) + len(failing) - refused
    assert [answer for answer in answers if CANARY in answer.body + repr(answer.headers).encode()] == []
    assert_kept_nowhere(attacked, [CANARY, BASIC, attacked.token().encode()])


def test_a_secret_in_what_the_parser_refuses_is_kept_nowhere(target):
    attacked = target()
    for data in refused_secret_requests():
        refused = attacked.talk(data)
        assert (len(refused.answers), refused.closed) == (1, True)
        assert 400 <= refused.statuses[0] < 500 or refused.statuses == [501]
        assert CANARY not in refused.answers[0].body + repr(refused.answers[0].headers).encode()
    assert attacked.talk(SMUGGLED).statuses == [200]
    assert_kept_nowhere(attacked, [CANARY, attacked.token().encode()])


# Files -------------------------------------------------------------------------------------------


def test_every_file_beside_the_desk_is_private_whatever_the_umask(serve, tmp_path):
    served = serve("--generate-every", "1s", "--rate", "0", program=program("umask 0;"))
    command = (sys.executable, "-m", "ticketapi", "token", "create")
    token = subprocess.run(command, cwd=tmp_path, umask=0, capture_output=True, text=True, check=True).stdout.strip()
    assert wait_for(lambda: served.get("/api/stats", token=token).json["total_tickets"])
    assert served.get("/ready").status == 200
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir() if path.name != "server.log"}
    assert {f"ticketapi{part}.db{suffix}" for part in ("", "-audit") for suffix in ("", "-wal", "-shm")} < modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o600} == {}


@pytest.mark.parametrize("mode", [0o640, 0o604], ids=oct)
def test_databases_that_others_can_read_draw_a_warning_each_that_names_file_and_cure(serve, tmp_path, mode):
    paths = tmp_path / "desk.db", tmp_path / "desk-audit.db"
    for path, part in zip(paths, ("desk", "audit"), strict=True):
        ticketapi.open_database(path, part).close()
        path.chmod(mode)
    code, _, err = serve("--db", paths[0], "--no-scheduler", "--log-level", "warning").stop()
    warnings = [line for line in err.splitlines() if "chmod 600" in line]
    assert (code, len(warnings)) == (0, 2)
    for path in paths:
        assert any(f"chmod 600 {path}" in line for line in warnings)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        path.chmod(0o600)
    assert "chmod" not in serve("--db", paths[0], "--no-scheduler", "--log-level", "warning").stop()[2]


# Headers of every answer -------------------------------------------------------------------------

KINDS = {
    "200": (200, STATS),
    "304": (304, STATS.replace(HOST, HOST + b"If-None-Match: *\r\n")),
    "up": (200, UP),
    "a preflight": (None, PREFLIGHT),  # 204 where it is allowed
    "a preflight with credentials": (None, PREFLIGHT.replace(HOST, HOST + b"Access-Control-Request-Headers: cookie\r\n")),
    "options": (200, STATS.replace(b"GET", b"OPTIONS")),
    "401": (401, STATS.replace(TOKEN, b"x")),
    "403": (403, STATS.replace(TOKEN, b"{scope}")),
    "404": (404, UP.replace(b"/up", b"/api/nope")),
    "404 outside": (404, UP.replace(b"/up", b"/nope")),
    "405": (405, STATS.replace(b"GET", b"DELETE")),
    "422": (422, STATS.replace(b"/api/stats", b"/api/tickets/open?page=x")),
    "refused with 400": (400, b"NONSENSE\r\n" + HOST + b"\r\n"),
    "a target refused with 400": (400, UP.replace(b"/up", b"http://[::1")),
    "refused with 413": (413, post(b"Content-Length: 65537")),
    "chunks refused with 413": (413, chunked(b"10001\r\n" + b"a" * 0x10001 + b"\r\n")),
    "refused with 431": (431, UP.replace(HOST, HOST + b"X: " + b"a" * 20_000 + b"\r\n")),
    "an endless header refused with 431": (431, b"GET /" + b"a" * 20_000),
    "refused with 501": (501, post(b"Transfer-Encoding: gzip")),
}
CORS = {"allowed for all": (), "for one origin": ("--cors-origin", "https://evil.example"), "off": ("--cors-origin", "off")}


def ask_all(target):
    """Bring about every kind of answer for a page of another origin; each must have its status."""
    answers = {}
    for kind, (status, data) in KINDS.items():
        data = data.replace(HOST, HOST + ORIGIN + b"Connection: close\r\n", 1).replace(
            b"{scope}", target.token("scope").encode()
        )
        [answers[kind]] = target.talk(data).answers
        assert (kind, answers[kind].status) == (kind, status or answers[kind].status)
    limited = target.talk(ask_with("Bearer x") * 40 + LAST_UP).answers
    answers["429"] = next(answer for answer in limited if answer.status == 429)
    return answers


@pytest.mark.parametrize("origins", CORS)
def test_every_answer_is_private_and_never_open_to_credentials(target, origins):
    answers = ask_all(target(*CORS[origins]))
    for kind, answer in answers.items():
        told = (kind, answer.headers.get("cache-control"), answer.headers.get("x-content-type-options"))
        assert told == (kind, "no-cache, private", "nosniff")
        assert "access-control-allow-credentials" not in answer.headers
        if origins == "off":
            assert (kind, [name for name in answer.headers if name.startswith("access-control-")]) == (kind, [])
    preflights = {answers[kind].status for kind in KINDS if kind.startswith("a preflight")}
    assert preflights == ({200} if origins == "off" else {204})
    assert ("access-control-allow-origin" in answers["200"].headers) == (origins != "off")


# Whatever else -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 3], ids=["1 thread", "3 threads"])
def attacked(request, tmp_path_factory):
    """A server to be sent anything."""
    with under_attack(tmp_path_factory.mktemp("fuzzed"), request.param) as attacked:
        yield attacked


@bounded(examples(200))
@given(attacks())
def test_whatever_is_sent_is_answered_soundly_or_cut(attacked, data):
    attacked.check(data)
