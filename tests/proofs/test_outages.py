"""Proof that a server outlives its PostgreSQL: stopped, restarted, cut off, frozen, or waiting for a lost standby.

Run with `pytest -m proof tests/proofs/test_outages.py`. Whatever the database does, each answer comes within three seconds,
is a 200 or a 503 that says when to come again, and two seconds after the database is back every thread of the server is, too.
"""

import re
import signal
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

import pytest
from breakable import Cluster, cluster, command, finish
from conftest import wait_for

LONGEST, BACK_WITHIN = 3.0, 2.0
PAGE = "/api/tickets/open?per_page=1"
DOWN, UP = "the database does not answer: ", "the database answers again: "


class Visitor(threading.Thread):
    """Asks for one path again and again, and keeps when each answer came, how long it took and what it was."""

    def __init__(self, port, path, token=None):
        super().__init__(daemon=True)
        self.port, self.path, self.headers = port, path, {"Authorization": f"Bearer {token}"} if token else {}
        self.answers, self.over = [], threading.Event()

    def run(self):
        while not self.over.wait(0.03):
            begun = time.monotonic()
            with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
                connection.request("GET", self.path, headers=self.headers)
                answer = connection.getresponse()
                body = answer.read().decode()
            now = time.monotonic()
            self.answers.append((begun, now - begun, answer.status, answer.getheader("Retry-After"), body))

    def statuses(self, since=0.0):
        """Return the statuses of what was asked since a time."""
        return [status for begun, _, status, _, _ in self.answers if begun >= since]


class Visit:
    """Visitors of a server, and what they have seen."""

    def __init__(self, served, token):
        self.pages = [Visitor(served.port, PAGE, token) for _ in range(6)]
        self.ready, self.up = Visitor(served.port, "/ready"), Visitor(served.port, "/up")
        self.all = [*self.pages, self.ready, self.up]
        for visitor in self.all:
            visitor.start()
        wait_for(lambda: all(visitor.answers for visitor in self.all))

    def end(self):
        """Let all go."""
        for visitor in self.all:
            visitor.over.set()
        for visitor in self.all:
            visitor.join()

    def assert_bearable(self):
        """Every answer came soon, and none but a 503 told of the outage."""
        for visitor in self.all:
            for _, took, status, retry, body in visitor.answers:
                assert took < LONGEST, (visitor.path, took, status)
                assert status == 200 or (status == 503 and retry and body.startswith('{"message":')), (status, body)
        assert set(self.up.statuses()) == {200}

    def assert_back(self, since):
        """From a time on all was well, for everybody."""
        for visitor in self.all:
            assert visitor.statuses(since) and set(visitor.statuses(since)) == {200}, (visitor.path, visitor.statuses(since))


def told(err, text):
    """Return the lines of a log that say something."""
    return [line for line in err.splitlines() if text in line]


@pytest.fixture(scope="module")
def database():
    """A cluster with a desk; each test leaves it running."""
    with cluster(fsync="off") as made:
        finish(made.url(), "generate", "--count", 50)
        yield made


@pytest.fixture
def token(database):
    return finish(database.url(), "token", "create")


def stopped(database, seen):
    database.stop()
    wait_for(lambda: 503 in seen.ready.statuses(), 5)
    time.sleep(4)  # long enough for every connection to have been tried
    return database.start()


def crashed(database, seen):
    database.stop(signal.SIGQUIT)
    wait_for(lambda: 503 in seen.ready.statuses(), 5)
    return database.start()


def restarted(database, seen):
    database.stop()
    return database.start()


def cut(database, seen):
    database.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ticketapi'")
    return time.monotonic()


def frozen(database, seen):
    database.freeze()
    wait_for(lambda: 503 in seen.ready.statuses(), 5)
    time.sleep(6)
    database.freeze(signal.SIGCONT)
    return time.monotonic()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("outage", [stopped, crashed, restarted, cut, frozen], ids=lambda outage: outage.__name__)
def test_an_outage_is_a_503_for_as_long_as_it_lasts(database, token, serve, outage, threads):
    options = ("--rate", 0, "--threads", threads, "--generate-every", "1s", "--process-every", "1s")
    served = serve(*options, env={"TICKETAPI_DB": database.url()})
    seen = Visit(served, token)
    back = outage(database, seen)
    time.sleep(BACK_WITHIN + 2)
    seen.end()
    code, _, err = served.stop()
    assert code == 0
    seen.assert_bearable()
    seen.assert_back(back + BACK_WITHIN)
    assert outage is cut or any(503 in visitor.statuses() for visitor in seen.pages)
    reasons = {body for _, _, status, _, body in seen.ready.answers if status == 503}
    assert reasons <= {'{"message":"The database does not answer."}'}
    assert outage in (cut, restarted) or reasons
    assert (len(told(err, DOWN)), len(told(err, UP))) == (1, 1), err
    assert "Traceback" not in err


def test_a_first_visit_while_the_database_is_frozen_does_not_wait_for_it_again(database, token, serve):
    served = serve("--rate", 0, "--threads", 4, "--no-scheduler", env={"TICKETAPI_DB": database.url()})
    database.freeze()
    try:
        for number in range(8):  # none of the threads has a connection yet
            begun = time.monotonic()
            answer = served.get(PAGE, token)
            assert (answer.status, answer.json) == (503, {"message": "Service Unavailable"})
            assert time.monotonic() - begun < LONGEST, number
    finally:
        database.freeze(signal.SIGCONT)
    wait_for(lambda: served.get(PAGE, token).status == 200, BACK_WITHIN)


def test_a_lost_standby_holds_up_who_writes_and_nobody_else(serve):
    with cluster(fsync="off") as primary:
        standby = Cluster(primary, fsync="off")
        try:
            finish(primary.url(), "generate", "--count", 50)
            token = finish(primary.url(), "token", "create")
            primary.ask("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            primary.ask("SELECT pg_reload_conf()")
            wait_for(lambda: primary.ask("SELECT sync_state FROM pg_stat_replication") == [("sync",)])
            served = serve("--rate", 0, "--generate-every", "1s", env={"TICKETAPI_DB": primary.url()})
            seen = Visit(served, token)
            standby.stop(signal.SIGQUIT)
            with command(primary.url(), "token", "create") as waiting:
                time.sleep(35)  # longer than the scheduler may be away
                assert waiting.poll() is None or waiting.returncode == 1
                standby.start()
                back = time.monotonic()
                out, err = waiting.communicate(timeout=30)
            time.sleep(BACK_WITHIN + 1)
            runs = served.get("/metrics").body.decode()
            seen.end()
            code, _, log = served.stop()
            seen.assert_bearable()
            seen.assert_back(back + BACK_WITHIN)
            assert (waiting.returncode, len(out.strip())) in ((0, 50), (1, 0)), err
            assert int(re.search(r'runs_total\{job="generate",result="failed"\} (\d+)', runs)[1]) >= 2
            assert code == 0 and "Traceback" not in log
            assert told(log, DOWN) == told(log, UP) == []
        finally:
            standby.remove()
