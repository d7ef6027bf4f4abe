"""An answer from memory is that of this moment, whoever wrote; clients that have it get a 304; memory is bounded."""

import http.client
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import NOON, Api, HandClock, examples, run_sql
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ticketapi

OPEN, CLOSED, OF_A_USER, STATS = "/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/stats"
ROUTES = (OPEN, CLOSED, OF_A_USER, STATS)
URLS = (*ROUTES, f"{OPEN}?cursor=&per_page=3", f"{CLOSED}?per_page=7&page=2", f"{OF_A_USER}?cursor=", f"{STATS}?x=1")
STRONG_ETAG = r'"[\x21\x23-\x7e\x80-\xff]*"'  # RFC 9110, section 8.8.3
WHERE = "WHERE id = (SELECT id FROM personal_access_tokens ORDER BY id LIMIT 1)"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def filled(db):
    """A desk of 120 tickets, 40 of them closed."""
    ticketapi.generate_tickets(db, 120, NOON, 1)
    ticketapi.process_tickets(db, 40, NOON)
    return db


@contextmanager
def fresh(api):
    """Give an app over the same files that remembers nothing."""
    with closing(ticketapi.Readers(api.settings.db)) as readers:
        app = ticketapi.make_app(api.settings, readers, api.audit, api.clock)
        yield replace(api, readers=readers, app=app)


def check(api, token, url, **more):
    """Ask twice, the second time from memory, and compare with what an app without memory answers; return its bytes."""
    answers = [api.get(url, token=token, **more) for _ in range(2)]
    with fresh(api) as other:
        expected = other.get(url, token=token, **more)
    for answer in answers:
        assert (answer.status, answer.body, answer.headers.get("etag")) == (
            expected.status,
            expected.body,
            expected.headers.get("etag"),
        )
    return expected.body


# Never stale -------------------------------------------------------------------------------------


def by_the_scheduler(operation, desk):
    """Write as the scheduler does, in this process."""
    with closing(ticketapi.connect(desk)) as db:
        operation(db)


def by_command(arguments, desk):
    """Write with a command, in a process of its own."""
    command = [sys.executable, "-m", "ticketapi", *arguments, "--db", str(desk)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def by_plain_sql(script, desk):
    """Write with a connection that knows nothing of us; in PostgreSQL it takes the right to write, of which readers hear."""
    if isinstance(desk, ticketapi.Postgres):
        with closing(ticketapi.connect(desk)) as db:
            run_sql(db, script)
        return
    with closing(sqlite3.connect(desk)) as db:
        db.executescript(script)


WRITES = {
    "scheduler generates": (
        partial(by_the_scheduler, lambda db: ticketapi.generate_tickets(db, 60, NOON, 1)),
        [OPEN, OF_A_USER, STATS],
    ),
    "scheduler processes": (
        partial(by_the_scheduler, lambda db: ticketapi.process_tickets(db, 9, NOON)),
        [OPEN, CLOSED, STATS],
    ),
    "command generates": (partial(by_command, ["generate", "--count", "60", "--seed", "1"]), [OPEN, OF_A_USER, STATS]),
    "command processes": (partial(by_command, ["process", "--count", "9"]), [OPEN, CLOSED, STATS]),
    "plain SQL renames": (partial(by_plain_sql, "UPDATE tickets SET user_name = 'Ann \"B\"'"), [OPEN, CLOSED, OF_A_USER]),
    "plain SQL rewrites": (partial(by_plain_sql, "UPDATE tickets SET subject = 'Other'"), [OPEN, CLOSED, OF_A_USER]),
    "plain SQL miscounts": (
        partial(by_plain_sql, "UPDATE ticket_counts SET tickets = tickets + 1 WHERE status = 1"),
        [OPEN, STATS],
    ),
}


@pytest.mark.parametrize(("write", "changed"), WRITES.values(), ids=WRITES)
def test_no_answer_is_stale_after_a_write(api, desk, filled, token, write, changed):
    before = {url: check(api, token, url) for url in URLS}
    write(desk)
    after = {url: check(api, token, url) for url in URLS}
    for url in changed:
        assert after[url] != before[url]


def test_no_answer_is_stale_after_the_first_ticket(api, db, token):
    assert api.get(OPEN, token=token).json["data"] == []
    assert api.get(STATS, token=token).json["top_user"] is None
    assert api.get(OF_A_USER, token=token).status == 404
    ticketapi.generate_tickets(db, 30, NOON, 1)
    assert api.get(OPEN, token=token).json["meta"]["total"] == api.get(STATS, token=token).json["total_tickets"] == 30
    assert api.get(OF_A_USER, token=token).status == 200


def test_what_was_rolled_back_was_never_shown(api, filled, token):
    before = check(api, token, OPEN)
    with pytest.raises(ZeroDivisionError), ticketapi.transaction(filled):
        filled.execute("UPDATE tickets SET subject = 'Never'")
        assert check(api, token, OPEN) == before
        raise ZeroDivisionError
    assert check(api, token, OPEN) == before


def test_every_thread_sees_a_write_at_once(api, filled, token):
    together = threading.Barrier(3)

    def ask(url):
        together.wait(timeout=10)  # so that every thread takes one
        return api.get(url, token=token).body

    with ThreadPoolExecutor(3) as threads:
        for _ in range(4):
            for url in URLS:
                assert len(set(threads.map(ask, [url] * 3))) == 1
                assert set(threads.map(ask, [url] * 3)) == {check(api, token, url)}
            ticketapi.generate_tickets(filled, 3, NOON, 1)
            ticketapi.process_tickets(filled, 1, NOON)


def test_an_answer_under_way_is_never_older_than_its_request(api, desk, filled, token):
    written, done = [120], threading.Event()

    def write():
        with closing(ticketapi.connect(desk)) as db:
            for total in range(121, 161):
                ticketapi.generate_tickets(db, 1, NOON, 1)
                written[0] = total
        done.set()

    def ask():
        asked = 0
        while not done.is_set() or asked < 5:
            known, asked = written[0], asked + 1
            assert api.get(STATS, token=token).json["total_tickets"] >= known
        return api.get(STATS, token=token).json["total_tickets"]

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        threads.submit(write).result(timeout=20)
        assert [future.result(timeout=20) for future in asking] == [160, 160]


@contextmanager
def living_desk():
    """Open two apps over a desk of their own, as two threads have them; give (apps, token, db, plain connection)."""
    with tempfile.TemporaryDirectory() as folder:
        chosen, clock = ticketapi.Settings(db=Path(folder, "desk.db"), rate=0), HandClock()
        with (
            closing(ticketapi.open_database(chosen.db, "desk")) as db,
            closing(sqlite3.connect(chosen.db, isolation_level=None)) as plain,
            closing(ticketapi.AuditLog(chosen.audit_db)) as audit,
            closing(ticketapi.Readers(chosen.db)) as one,
            closing(ticketapi.Readers(chosen.db)) as two,
        ):
            token = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)["token"]
            apps = [Api(chosen, clock, own, audit, ticketapi.make_app(chosen, own, audit, clock)) for own in (one, two)]
            yield apps, token, db, plain


PLAIN_WRITES = [
    "UPDATE tickets SET subject = subject || '!' WHERE id = 1",
    "UPDATE users SET name = name || '!' WHERE id = 1",
    "UPDATE users SET tickets_count = 999 WHERE id = 2",
    "DELETE FROM personal_access_tokens WHERE id > 1",
    "UPDATE personal_access_tokens SET abilities = '[]'",
    "UPDATE personal_access_tokens SET abilities = '[\"read:tickets\"]'",
    "UPDATE personal_access_tokens SET expires_at = '2000-01-01T00:00:00.000000Z'",
    "UPDATE personal_access_tokens SET expires_at = NULL",
]
happenings = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 1), st.sampled_from(URLS)),
    st.tuples(st.just("ask"), st.integers(0, 1), st.sampled_from(URLS)),
    st.tuples(st.just("generate"), st.integers(0, 1), st.integers(1, 9)),
    st.tuples(st.just("process"), st.integers(0, 1), st.integers(1, 9)),
    st.tuples(st.just("sql"), st.just(0), st.sampled_from(PLAIN_WRITES)),
)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(happenings, min_size=5, max_size=25))
def test_whoever_writes_and_asks_in_whatever_order_no_answer_is_stale(happening):
    with living_desk() as (apps, token, db, plain), closing(ticketapi.connect(apps[0].settings.db)) as scheduler:
        for kind, which, what in happening:
            if kind == "ask":
                check(apps[which], token, what)
            elif kind == "generate":
                ticketapi.generate_tickets((db, scheduler)[which], what, NOON, 1)
            elif kind == "process":
                ticketapi.process_tickets((db, scheduler)[which], what, NOON)
            else:
                plain.execute(what)
        for number, url in enumerate(URLS):
            check(apps[number % 2], token, url)


# Tokens ------------------------------------------------------------------------------------------

REVOCATIONS = {
    "command": partial(by_command, ["token", "revoke", "1"]),
    "operation": partial(by_the_scheduler, lambda db: ticketapi.revoke_token(db, 1)),
    "plain SQL": partial(by_plain_sql, "DELETE FROM personal_access_tokens"),
    "expired by plain SQL": partial(by_plain_sql, f"UPDATE personal_access_tokens SET expires_at = created_at {WHERE}"),
    "another hash": partial(by_plain_sql, f"UPDATE personal_access_tokens SET token = '{'0' * 64}' {WHERE}"),
}


@pytest.mark.parametrize("revoke", REVOCATIONS.values(), ids=REVOCATIONS)
def test_a_revoked_token_is_refused_at_once(api, desk, filled, token, revoke):
    etags = {url: api.get(url, token=token).headers["etag"] for url in ROUTES}
    revoke(desk)
    for url, etag in etags.items():
        assert api.get(url, token=token).status == 401
        assert api.get(url, token=token, headers={"If-None-Match": etag}).status == 401


def test_what_a_token_may_do_is_asked_at_once(api, desk, filled, token):
    for abilities, status in (('["other"]', 403), ('["read:tickets"]', 200), ("[]", 403), ('["*"]', 200)):
        by_plain_sql(f"UPDATE personal_access_tokens SET abilities = '{abilities}' {WHERE}", desk)
        assert [api.get(url, token=token).status for url in (*ROUTES, *ROUTES)] == [status] * 8


def test_a_token_expires_by_the_clock_however_often_it_was_used(api, filled, clock):
    token = ticketapi.create_token(filled, "ann@example.com", "t", ["*"], 60, clock.wall())["token"]
    for _ in range(3):
        assert api.get(OPEN, token=token).status == 200
    clock.advance(59)
    assert api.get(OPEN, token=token).status == 200
    clock.advance(1)
    assert [api.get(url, token=token).status for url in ROUTES] == [401] * 4


def test_what_is_remembered_for_one_token_is_not_given_to_another(api, filled, token):
    weak = ticketapi.create_token(filled, "ann@example.com", "t", ["other"], 0, NOON)["token"]
    strong = ticketapi.create_token(filled, "bob@example.com", "t", ["*"], 0, NOON)["token"]
    for url in URLS:
        body = api.get(url, token=token).body
        assert [api.get(url, token=text).status for text in (None, weak, "tkt_" + "0" * 46)] == [401, 403, 401]
        assert api.get(url, token=strong).body == body


def test_every_request_is_audited_also_when_it_is_answered_from_memory(api, filled, token):
    for _ in range(5):
        api.get(f"{OPEN}?page=2", token=token)
    assert [(row["status_code"], row["query"]) for row in api.audits()] == [(200, '{"page":"2"}')] * 5


# What an answer depends on -----------------------------------------------------------------------


@pytest.mark.parametrize("url", ROUTES[:3])
def test_every_host_and_scheme_gets_its_own_links(api, filled, token, url):
    for _ in range(2):
        for scheme in ("http", "https"):
            for host in ("desk.test:8000", "desk.test", "other.test", "DESK.test", "[::1]:8000"):
                page = api.get(url, token=token, headers={"Host": host}, scheme=scheme).json
                assert page["meta"]["path"] == f"{scheme}://{host}{url}"
                assert page["links"]["first"] == f"{scheme}://{host}{url}?page=1"


def test_every_path_and_query_gets_its_own_answer(api, filled, token):
    queries = ["", "?", "?page=1", "?page=2", "?page=1&per_page=50", "?page=1&per_page=2", "?page=%31", "?page=1;per_page=2"]
    queries += ["?cursor=", "?cursor", "?CURSOR=", "?page=2&cursor=", "?per_page=2&page=2", "?page=2&page=1", "?x", "?x=page=2"]
    for _ in range(2):
        for url in (*ROUTES[:3], "/api/users/2/tickets", "/api/tickets/open/"):
            for query in queries:
                check(api, token, url + query)


def test_a_host_that_is_none_is_refused_however_often_it_asks(api, filled, token):
    api.get(OPEN, token=token)
    for _ in range(3):
        assert api.get(OPEN, token=token, headers={"Host": "evil.test/"}).status == 400


# ETags -------------------------------------------------------------------------------------------


def test_every_answer_has_a_strong_etag_and_is_asked_for_again(api, filled, token):
    for url in URLS:
        answer = api.get(url, token=token)
        assert re.fullmatch(STRONG_ETAG, answer.headers["etag"])
        assert answer.headers["cache-control"] == "no-cache, private"


def test_the_same_bytes_have_the_same_etag_and_other_bytes_another(make_api, filled, token):
    seen = {}
    for api in (make_api(rate=0), make_api(rate=0)):
        for url in (*URLS, f"{OPEN}/", f"{OPEN}?page=1", f"{STATS}?x=2", f"{OPEN}?page=2", f"{OPEN}?page=3"):
            answer = api.get(url, token=token)
            assert seen.setdefault(answer.body, answer.headers["etag"]) == answer.headers["etag"]
    assert len(set(seen.values())) == len(seen) >= 9


def test_an_etag_depends_on_the_body_alone(make_api, filled, token, clock):
    api = make_api()
    first = api.get(OPEN, token=token)
    clock.advance(0.5)
    second = api.get(OPEN, token=token, headers={"Origin": "https://a.example", "User-Agent": "x"})
    assert first.headers["x-ratelimit-remaining"] != second.headers["x-ratelimit-remaining"]
    assert (first.body, first.headers["etag"]) == (second.body, second.headers["etag"])


def test_an_etag_outlives_writes_that_do_not_touch_the_answer(api, filled, token):
    etag = api.get(CLOSED, token=token).headers["etag"]
    ticketapi.generate_tickets(filled, 5, NOON, 1)
    assert api.get(CLOSED, token=token, headers={"If-None-Match": etag}).status == 304
    ticketapi.process_tickets(filled, 1, NOON)
    answer = api.get(CLOSED, token=token, headers={"If-None-Match": etag})
    assert (answer.status, answer.headers["etag"] != etag, answer.json["meta"]["total"]) == (200, True, 41)


MATCHING = ["{}", "W/{}", "*", " {} ", " * ", '"x", {}', '{},"x"', '"x",W/{},"y"', '"x" ,\t{} , "y"', 'W/"x",{}']
OTHER = ['"x"', 'W/"x"', '"x", "y"', '"*"', "", " ", ",", '""', "x{}", "{}x", "w/{}", '"x{}"']


@pytest.mark.parametrize("url", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_has_the_answer_gets_304(api, filled, token, method, url):
    etag = api.get(url, token=token).headers["etag"]
    for condition in MATCHING:
        answer = api.request(method, url, token=token, headers={"If-None-Match": condition.format(etag)})
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag), condition


@pytest.mark.parametrize("url", ROUTES)
def test_who_has_another_answer_gets_this_one(api, filled, token, url):
    asked = {"X-Request-Id": "same"}
    plain = api.get(url, token=token, headers=asked)
    for condition in OTHER:
        answer = api.get(url, token=token, headers={**asked, "If-None-Match": condition.format(plain.headers["etag"])})
        assert (answer.status, answer.body, answer.headers) == (200, plain.body, plain.headers), condition


def test_an_etag_without_its_quotes_is_none(api, filled, token):
    etag = api.get(OPEN, token=token).headers["etag"]
    for text in (etag.strip('"'), etag[:-1], etag[1:], etag[:-2] + '"'):
        assert api.get(OPEN, token=token, headers={"If-None-Match": text}).status == 200


def test_the_first_request_of_a_server_can_be_answered_with_304(make_api, filled, token):
    etag = make_api(rate=0).get(OPEN, token=token).headers["etag"]
    assert make_api(rate=0).get(OPEN, token=token, headers={"If-None-Match": etag}).status == 304


def test_a_304_has_the_headers_of_the_answer_but_those_of_its_content(make_api, filled, token, clock):
    api, asked = make_api(), {"Origin": "https://a.example", "X-Request-Id": "same"}
    plain = api.get(OPEN, token=token, headers=asked)
    clock.advance(2)  # the bucket is full again
    answer = api.get(OPEN, token=token, headers={**asked, "If-None-Match": plain.headers["etag"]})
    content = {"content-type", "content-length"}
    assert content & set(answer.headers) == set()
    assert {name: text for name, text in answer.headers.items() if name not in content} == {
        name: text for name, text in plain.headers.items() if name not in content
    }
    kept = {"etag", "cache-control", "x-ratelimit-limit", "x-ratelimit-remaining", "ratelimit", "access-control-allow-origin"}
    assert kept | {"link", "x-total-count"} <= set(answer.headers)
    assert "etag" in answer.headers["access-control-expose-headers"].lower()


def test_a_304_draws_from_the_bucket_and_is_audited(make_api, filled, token):
    api = make_api(rate=5)
    etag = api.get(OPEN, token=token).headers["etag"]
    answers = [api.get(OPEN, token=token, headers={"If-None-Match": etag}) for _ in range(5)]
    assert [answer.status for answer in answers] == [304] * 4 + [429]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["3", "2", "1", "0", "0"]
    rows = api.audits()
    assert [row["status_code"] for row in rows] == [200] + [304] * 4 + [429]
    assert {row["route_name"] for row in rows} == {"tickets.open"}
    assert None not in {row["token_id"] for row in rows}


def test_no_error_has_an_etag_or_becomes_a_304(make_api, filled, token):
    api = make_api(rate=3)
    weak = ticketapi.create_token(filled, "ann@example.com", "t", ["other"], 0, NOON)["token"]
    boss = ticketapi.create_token(filled, "bob@example.com", "t", ["*"], 0, NOON)["token"]
    asked = [(401, "GET", OPEN, None, {}), (403, "GET", OPEN, weak, {}), (404, "GET", "/api/nope", None, {})]
    asked += [(404, "GET", "/api/users/99999/tickets", token, {}), (405, "POST", OPEN, None, {})]
    asked += [(422, "GET", f"{OPEN}?page=x", token, {}), (422, "GET", f"{OPEN}?cursor=x", token, {})]
    asked += [(429, "GET", OPEN, token, {}), (400, "GET", OPEN, boss, {"Host": "a/b"})]
    for status, method, url, text, headers in asked:
        answer = api.request(method, url, token=text, headers={**headers, "If-None-Match": "*"})
        assert (answer.status, "etag" in answer.headers) == (status, False)
    filled.execute("DELETE FROM ticket_counts")
    answer = api.get(STATS, token=boss, headers={"If-None-Match": "*"})
    assert (answer.status, "etag" in answer.headers) == (500, False)


@pytest.mark.parametrize("url", ROUTES)
def test_options_has_no_etag(api, filled, token, url):
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET", "If-None-Match": "*"}
    for headers, status in (({"If-None-Match": "*"}, 200), (preflight, 204)):
        answer = api.request("OPTIONS", url, token=token, headers=headers)
        assert (answer.status, "etag" in answer.headers) == (status, False)


def test_a_connection_goes_on_after_a_304(serve, desk, filled, token):
    served = serve("--db", desk, "--no-scheduler")
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)) as connection:

        def ask(method, **headers):
            connection.request(method, OPEN, headers={"Authorization": f"Bearer {token}", **headers})
            with connection.getresponse() as answer:
                return answer.status, answer.headers["ETag"], answer.read()

        status, etag, body = ask("GET")
        assert (status, len(body) > 1000) == (200, True)
        local = connection.sock.getsockname()
        assert ask("GET", **{"If-None-Match": etag}) == (304, etag, b"")
        assert ask("HEAD", **{"If-None-Match": etag}) == (304, etag, b"")
        assert ask("GET") == (200, etag, body)
        by_command(["process"], desk)
        assert ask("GET", **{"If-None-Match": etag})[0] == 200
        assert connection.sock.getsockname() == local


# Memory is bounded -------------------------------------------------------------------------------


def held(reader):
    """Return how many bytes of answers and of the texts they are kept under a reader holds."""
    keys = sum(len(text or "") for key in reader.answers for text in key)
    return keys + sum(len(answer.body) for answer in reader.answers.values())


def test_more_pages_than_memory_holds_are_all_right(api, filled, token):
    ticketapi.generate_tickets(filled, 200, NOON, 1)
    urls = [f"{OPEN}?per_page={size}" for size in range(1, 201)]
    reader, asked, bodies = api.readers.get(), 0, {}
    for url in urls:
        bodies[url] = api.get(url, token=token).body
        asked += len(bodies[url])
        assert sum(len(answer.body) for answer in reader.answers.values()) <= ticketapi.MAX_CACHED_BYTES
    assert asked > 2 * ticketapi.MAX_CACHED_BYTES
    assert reader.answers
    for url in (*urls[::-20], *urls[::20]):
        assert check(api, token, url) == bodies[url]


def test_an_answer_larger_than_memory_is_given_and_not_kept(api, filled, token):
    filled.execute("UPDATE tickets SET content = ? WHERE id = 120", ("x" * ticketapi.MAX_CACHED_BYTES,))
    for _ in range(2):
        assert len(check(api, token, f"{OPEN}?per_page=200")) > ticketapi.MAX_CACHED_BYTES
        assert held(api.readers.get()) <= ticketapi.MAX_CACHED_BYTES
        check(api, token, CLOSED)


@pytest.mark.parametrize("where", ["query", "host"])
def test_long_and_always_different_requests_are_not_hoarded(api, filled, token, where):
    long = "x" * 15_000  # headers of 16 KiB are let in
    for number in range(400):
        headers = {"Host": f"{long}{number}.test"} if where == "host" else {}
        url = STATS if where == "host" else f"{STATS}?{long}={number}"
        assert api.get(url, token=token, headers=headers).status == 200
    assert held(api.readers.get()) <= ticketapi.MAX_CACHED_BYTES


def test_a_write_lets_go_of_what_was_remembered(api, filled, token):
    reader = api.readers.get()
    for number in range(50):
        api.get(f"{OPEN}?per_page={number}", token=token)
    ticketapi.generate_tickets(filled, 1, NOON, 1)
    body = api.get(STATS, token=token).body
    assert held(reader) < len(body) + 200
    assert len(reader.tokens) == 1


def test_of_very_many_tokens_all_work_and_some_are_remembered(api, filled, clock):
    texts = [ticketapi.new_token_text() for _ in range(ticketapi.MAX_CACHED_TOKENS + 50)]
    used = ticketapi.format_time(clock.wall())  # just now: no request writes that down again
    rows = [(1, ticketapi.hash_token(text), used, used) for text in texts]
    with ticketapi.transaction(filled):
        columns = "(user_id, name, token, abilities, last_used_at, created_at)"
        filled.executemany(f"INSERT INTO personal_access_tokens {columns} VALUES (?, 't', ?, '[\"*\"]', ?, ?)", rows)
    for text in (*texts, texts[0], texts[-1]):
        assert api.get(STATS, token=text).status == 200
    assert 0 < len(api.readers.get().tokens) <= ticketapi.MAX_CACHED_TOKENS
    ticketapi.revoke_token(filled, filled.execute("SELECT max(id) FROM personal_access_tokens").fetchone()[0])
    assert api.get(STATS, token=texts[-1]).status == 401


def test_guessed_tokens_are_not_remembered(api, filled):
    for number in range(100):
        text = ticketapi.new_token_text() if number % 2 else f"tkt_{number:046d}"
        assert api.get(STATS, token=text, address=f"127.0.1.{number}").status == 401
    assert api.readers.get().tokens == {}
