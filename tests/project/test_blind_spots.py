"""Kinds of assertion that are easily missing: waiting is bounded on both sides, silence is silence, an end is an end."""

import errno
import hashlib
import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import pytest
from conftest import NOON, SECOND, close_out_of_order

import ticketapi

PROGRAM = (sys.executable, "-m", "ticketapi")


# Bounds of waiting, above and below --------------------------------------------------------------


@contextmanager
def shut(path, mode):
    """Hold a file so that nobody else can even read it, before it has a WAL or while it has one."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"PRAGMA journal_mode = {mode}")
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE IF NOT EXISTS held (a)")
        yield


def seconds_of(path, access):
    """Return how long it takes until a connection is refused the right to write, and check that it is for the lock."""
    begin = time.monotonic()
    refused = pytest.raises(sqlite3.OperationalError, match=r"^database is locked$")
    with refused, closing(ticketapi.connect(path, access)) as db:
        db.execute("BEGIN IMMEDIATE")
    return time.monotonic() - begin


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
@pytest.mark.parametrize("access", [ticketapi.NOTER, ticketapi.LOG_READER, ticketapi.NOTER._replace(wal=False)])
def test_who_waits_for_nobody_is_back_at_once(tmp_path, mode, access):
    path = tmp_path / "file.db"
    with shut(path, mode):
        assert seconds_of(path, access) < 1


def test_everybody_else_waits_five_seconds(tmp_path):
    paths = {mode: tmp_path / f"{mode}.db" for mode in ("DELETE", "WAL")}
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        for mode, path in paths.items():
            stack.enter_context(shut(path, mode))
        waits = pool.map(lambda path: seconds_of(path, ticketapi.WRITER), paths.values())
        assert all(4 < seconds < 12 for seconds in waits)


def test_an_idle_server_stops_at_once():
    sock = ticketapi.bind_socket("127.0.0.1", 0)
    server = ticketapi.Server(lambda environ, start: [], [sock], ticketapi.Settings(), lambda: None)
    thread = threading.Thread(target=server.run, args=(lambda: None,))
    thread.start()
    begin = time.monotonic()
    server.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - begin < 0.5


# Silence -----------------------------------------------------------------------------------------


def test_a_sound_run_of_requests_logs_nothing(api, db, token, caplog):
    caplog.set_level(logging.INFO)
    ticketapi.generate_tickets(db, 60, NOON, 1)
    for url in ("/api/tickets/open", "/api/tickets/closed", "/api/stats", "/api/series", "/api/users", "/api/users/1", "/up"):
        assert api.get(url, token=token).status == 200
    for url, status in (("/api/nope", 404), ("/api/tickets/open?page=x", 422), ("/ready", 200), ("/metrics", 200), ("/", 200)):
        assert api.get(url, token=token).status == status
    assert api.get("/api/stats").status == 401
    assert api.request("POST", "/api/stats", token=token).status == 405
    assert caplog.records == []


@pytest.mark.parametrize("error", [RuntimeError("secret"), ticketapi.TicketApiError("secret"), KeyError("secret")])
def test_each_500_logs_exactly_one_error(api, token, caplog, monkeypatch, error):
    caplog.set_level(logging.INFO)

    def fail(db):
        raise error

    monkeypatch.setattr(ticketapi, "desk_stats", fail)
    for count in (1, 2):
        answer = api.get("/api/stats", token=token)
        assert (answer.status, answer.json) == (500, {"message": "Server Error"})
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("ERROR", "request failed")] * count
        assert all(record.exc_info[1] is error for record in caplog.records)


# An end by exception -----------------------------------------------------------------------------


def test_a_server_whose_loop_fails_is_gone_and_says_so(tmp_path):
    script = "import ticketapi\ndef fail(*_): raise RuntimeError('the loop')\nticketapi.Server._turn = fail\n"
    command = [sys.executable, "-c", f"{script}raise SystemExit(ticketapi.main(['serve', '--port', '0']))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=15)
    assert done.returncode not in (0, 2)
    assert "the loop" in done.stderr
    assert subprocess.run([*PROGRAM, "check"], cwd=tmp_path, capture_output=True, timeout=30).returncode == 0


# Cheap doubles of the proofs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "The disk is full."),
        (errno.EDQUOT, "The disk is full."),
        (errno.EROFS, "The disk cannot be written: Read-only file system."),
    ],
)
def test_a_disk_that_is_full_makes_a_desk_not_ready(api, clock, monkeypatch, number, reason):
    def fail(path):
        raise OSError(number, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(ticketapi, "probe_disk", fail)
        answer = api.get("/ready")
        assert (answer.status, answer.json, answer.headers["retry-after"]) == (503, {"message": reason}, "1")
        assert api.get("/up").status == 200
    assert api.get("/ready").status == 503  # it looks at most once a second
    clock.advance(1)
    assert api.get("/ready").status == 200


# The value in branches of collision --------------------------------------------------------------


def test_a_customer_whose_address_is_taken_gets_one_with_the_number_once_and_twice_over(db):
    words = ticketapi.load_words()
    (_, first), (_, second) = (ticketapi.compose_customer(words, 7, number) for number in (1, 2))
    name, _, domain = second.partition("@")
    with ticketapi.transaction(db):
        for taken in (first, second.upper(), f"{name}.2@{domain}"):
            ticketapi.ensure_customer(db, "Who came before", taken, NOON)
        ticketapi.add_customers(db, 7, {1: NOON, 2: NOON})
    found = [email for (email,) in db.execute("SELECT email FROM users WHERE id < 10 ORDER BY id")]
    assert found == [first.replace("@", ".1@"), f"{name}.2.2@{domain}"]


# The limit and one beyond ------------------------------------------------------------------------


@pytest.mark.parametrize(("read", "make"), [(ticketapi.read_text, "x"), (ticketapi.read_path_text, "x")])
def test_255_characters_fit_and_256_do_not(read, make):
    assert read(make * 255) == make * 255
    with pytest.raises(ValueError):
        read(make * 256)


def test_an_address_has_255_characters_at_most():
    assert ticketapi.read_email("x" * 253 + "@y") == "x" * 253 + "@y"
    with pytest.raises(ValueError):
        ticketapi.read_email("x" * 254 + "@y")


def test_a_since_equal_to_the_time_of_a_row_takes_the_row_and_a_microsecond_later_does_not(api, db):
    token = ticketapi.create_token(db, "a@example.com", "t", ["read:audits"], 0, NOON)["token"]
    api.get("/api/nope")
    api.clock.advance(60)
    for later, paths in ((0, ["api/nope"]), (1, [])):
        since = ticketapi.format_time(NOON + later)
        page = api.get(f"/api/audits?path=nope&since={since}", token=token).json
        assert [row["path"] for row in page["data"]] == paths


# The smallest irregularity -----------------------------------------------------------------------


@pytest.mark.parametrize("place", [1, 2, 5, 9, 10])
@pytest.mark.parametrize("per_page", [1, 3, 9, 10])
def test_exactly_one_ticket_closed_out_of_order_is_in_no_page_and_none_else_is_missing(api, db, token, place, per_page):
    ticketapi.generate_tickets(db, 10, NOON, 1)
    close_out_of_order(db, [place], NOON + SECOND)
    api.clock.advance(2)
    found, page = [], 1
    while data := api.get(f"/api/tickets/open?page={page}&per_page={per_page}", token=token).json["data"]:
        found, page = found + [ticket["id"] for ticket in data], page + 1
    assert found == [number for number in range(1, 11) if number != place]
    closed = api.get("/api/tickets/closed", token=token)
    assert [ticket["id"] for ticket in json.loads(closed.body)["data"]] == [place]


# Tables of numbers -------------------------------------------------------------------------------


def test_a_history_of_a_seed_is_this_one_on_every_machine_and_in_every_version(db):
    ticketapi.generate_history(db, 2000, 90 * 86_400, NOON, 7)
    rows = db.execute("SELECT id, user_id, subject, content, created_at, closed_at FROM tickets ORDER BY id")
    digest = hashlib.sha256("\n".join(map(str, map(tuple, rows))).encode()).hexdigest()
    assert digest == "befe0fadb8c3b4f773081e222aeb3c49efbf559480555cc065df91da8e5bc3e9"
