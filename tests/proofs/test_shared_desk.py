"""Proof that many servers of one desk are as one: whoever is killed or hangs, each run comes once, and each row is in the log.

Run with `pytest -m proof tests/proofs/test_shared_desk.py`; PROOF_SECONDS sets how long two servers are under load.
"""

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise

import pytest
from breakable import Numbered, Visitor, cluster, command, finish
from conftest import wait_for

import ticketapi

SECONDS = int(os.environ.get("PROOF_SECONDS", "60"))
STOPPED = 10  # seconds that a server hangs
# What each transaction did, as the database itself saw it.
WITNESS = """
    CREATE SCHEMA proof;
    CREATE TABLE proof.runs (job text, boundary bigint, tx xid8 DEFAULT pg_current_xact_id(), at timestamptz DEFAULT now());
    CREATE TABLE proof.changes (kind text, tx xid8 DEFAULT pg_current_xact_id());
    CREATE FUNCTION proof.note_run() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO proof.runs (job, boundary) VALUES (NEW.job, NEW.boundary); RETURN NULL; END';
    CREATE FUNCTION proof.note_change() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO proof.changes (kind) VALUES (TG_ARGV[0]); RETURN NULL; END';
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON job_boundaries FOR EACH ROW EXECUTE FUNCTION proof.note_run();
    CREATE TRIGGER note_arrival AFTER INSERT ON tickets FOR EACH ROW EXECUTE FUNCTION proof.note_change('generate');
    CREATE TRIGGER note_closing AFTER UPDATE ON tickets FOR EACH ROW EXECUTE FUNCTION proof.note_change('process');
"""


@pytest.fixture(scope="module")
def database():
    """A cluster with a desk."""
    with cluster(fsync="off") as made:
        finish(made.url(), "generate", "--count", 300)
        yield made


@pytest.fixture
def start(serve, database):
    """Return a function that starts a server of the desk."""
    return lambda *options: serve(*options, env={"TICKETAPI_DB": database.url()})


@pytest.fixture
def db(database):
    with closing(ticketapi.connect(ticketapi.Postgres(database.url()))) as connection:
        yield connection


class Walker(threading.Thread):
    """Walks back through the log to what it has met already, again and again, one page from each server in turn."""

    def __init__(self, servers, token):
        super().__init__(daemon=True)
        self.servers, self.token, self.over, self.found = servers, token, threading.Event(), [0]
        self.numbers = itertools.count()

    def page(self, query):
        """Return a page of the log, of the first server that gives it."""
        while True:
            visitor = Visitor(self.servers[next(self.numbers) % 2].port, f"/api/audits?per_page=100{query}", self.token)
            status, _, body = visitor.ask()
            if status == 200:
                return json.loads(body)

    def run(self):
        while not self.over.wait(0.02):
            page = self.page("")
            ids = [row["id"] for row in page["data"]]
            while page["meta"]["next_cursor"] and ids[-1] > self.found[-1]:
                page = self.page(f"&cursor={page['meta']['next_cursor']}")
                ids += [row["id"] for row in page["data"]]
            self.found += sorted(number for number in ids if number > self.found[-1])


class Commands(threading.Thread):
    """Runs commands, one after the other, and counts what they said they did."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.over, self.done = url, threading.Event(), Counter()

    def run(self):
        words = itertools.cycle(
            (("generate", "--count", 3), ("process", "--count", 2), ("token", "create"), ("stats",), ("audit", "--limit", 5))
        )
        while not self.over.is_set():
            chosen = next(words)
            with command(self.url, *chosen) as process:
                out, err = process.communicate(timeout=60)
            assert process.returncode == 0 or "database is locked" in err, err
            self.done[chosen[0]] += process.returncode == 0
            if chosen[0] == "process" and "Ticket IDs" in out:
                self.done["closed"] += 2


def test_whoever_is_killed_or_hangs_each_run_comes_once_and_each_row_is_in_the_log(start, database, db):
    url = database.url()
    database.ask(WITNESS, "ticketapi")
    token = finish(url, "token", "create", "--ability", "*")
    options = ("--rate", 0, "--generate-every", "1s", "--process-every", "2s")
    servers = [start(*options, "--threads", threads) for threads in (1, 4)]
    walker, commands, visitors = Walker(servers, token), [Commands(url) for _ in range(2)], []

    def visit(served):
        visitors.extend(Numbered(served.port, "", token) for _ in range(3))
        for visitor in visitors[-3:]:
            visitor.start()

    for served in servers:
        visit(served)
    for thread in (walker, *commands):
        thread.start()
    end = time.monotonic() + SECONDS
    with command(url, "audit", "--follow", "--json", "--limit", 1) as follower:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(follower.stdout), daemon=True)
        reader.start()
        for number in itertools.count():
            time.sleep(5)  # undisturbed
            victim = number // 2 % 2
            if number % 2:
                servers[victim].process.send_signal(signal.SIGSTOP)
                time.sleep(STOPPED)
                servers[victim].process.send_signal(signal.SIGCONT)
            else:
                servers[victim].stop(signal.SIGKILL)
                servers[victim] = start(*options, "--threads", 1 + 3 * victim)
                visit(servers[victim])
            if time.monotonic() > end and number:
                break
        time.sleep(3)
        for thread in (*visitors, *commands):
            thread.over.set()
        for thread in (*visitors, *commands):
            thread.join(90)
            assert not thread.is_alive()
        [(last,)] = db.execute("SELECT max(id) FROM api_audits WHERE path = 'api/tickets/open'")
        wait_for(lambda: walker.found[-1] >= last, 30)
        wait_for(lambda: lines and json.loads(lines[-1])["id"] >= last, 30)
        walker.over.set()
        walker.join()
        follower.send_signal(signal.SIGINT)
        reader.join()
    for served in servers:
        code, _, err = served.stop()
        assert (code, "Traceback" in err) == (0, False), err
        assert "audit rows lost" not in err
    assert "wrong" not in finish(url, "check")
    # Each run came once, and did one thing.
    runs = [tuple(row) for row in db.execute("SELECT job, boundary, CAST(CAST(tx AS text) AS bigint) FROM proof.runs")]
    changes = Counter(tuple(row) for row in db.execute("SELECT kind, CAST(CAST(tx AS text) AS bigint) FROM proof.changes"))
    missed = {}
    for job, step in (("generate", 1), ("process", 2)):
        boundaries = [boundary // 1_000_000 for name, boundary, _ in runs if name == job]
        assert len(boundaries) == len(set(boundaries)) and boundaries == sorted(boundaries)
        assert all(boundary % step == 0 for boundary in boundaries)
        assert {changes[job, tx] for name, _, tx in runs if name == job} == {1}
        missed[job] = (boundaries[-1] - boundaries[0]) // step + 1 - len(boundaries)
        longest = max(after - before for before, after in pairwise(boundaries))
        assert longest <= 8 * step, boundaries  # a server that hangs in a transaction is cut off after four seconds
    scheduled = sum(name == "generate" for name, _, _ in runs)
    [(tickets,)] = db.execute("SELECT count(*) FROM tickets")
    assert tickets >= 300 + scheduled + 3 * sum(one.done["generate"] for one in commands)
    # Each answered request is in the log, once, and every walk has met every row.
    rows = db.execute("SELECT query FROM api_audits WHERE path = 'api/tickets/open' AND query IS NOT NULL")
    audited = Counter(int(json.loads(query)["page"]) for (query,) in rows)
    answered = set().union(*(visitor.answered() for visitor in visitors))
    assert answered <= audited.keys()
    assert set(audited.values()) == {1}
    ids = [number for (number,) in db.execute("SELECT id FROM api_audits ORDER BY id")]
    assert [number for number in ids if number <= walker.found[-1]] == walker.found[1:]
    followed = [json.loads(line)["id"] for line in lines]
    assert [number for number in ids if followed[0] <= number <= followed[-1]] == followed
    gaps = ids[-1] - ids[0] + 1 - len(ids)
    assert gaps <= len(ids) // 100 + 100
    print(f"{SECONDS} s: {len(answered)} answers, {len(ids)} rows, {gaps} ids not given, {len(runs)} runs, missed {missed}")


def test_no_server_is_ever_behind_a_commit(start, database, db):
    token = finish(database.url(), "token", "create")
    servers = [start("--rate", 0, "--no-scheduler", "--threads", threads) for threads in (1, 4)]
    [(total,)] = db.execute("SELECT count(*) FROM tickets")
    etags = dict.fromkeys(servers, "")
    for number in range(100):
        ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), number)
        for served in servers:
            answer = served.get("/api/stats", token, {"If-None-Match": etags[served]})
            assert (answer.status, answer.json["total_tickets"]) == (200, total + number + 1)
            etags[served] = answer.headers["etag"]
            assert served.get("/api/stats", token, {"If-None-Match": etags[served]}).status == 304


def test_a_revoked_token_is_refused_by_all_at_once(start, database, db):
    servers = [start("--rate", 0, "--no-scheduler", "--threads", threads) for threads in (1, 4)]
    for number in range(ticketapi.STRANGERS_RATE // 2 - 1):  # more refusals than that are a 429
        made = ticketapi.create_token(db, "ann@example.com", "short", ["read:tickets"], 0, ticketapi.wall_microseconds())
        for served in servers * 4:
            assert served.get("/api/stats", made["token"]).status == 200
        ticketapi.revoke_token(db, made["id"])
        assert [served.get("/api/stats", made["token"]).status for served in servers * 2] == [401] * 4, number


@pytest.mark.parametrize("round_", range(3))
def test_the_limit_is_that_of_the_desk_whoever_is_asked(start, database, db, round_):
    made = ticketapi.create_token(db, f"limit{round_}@example.com", "load", ["*"], 0, ticketapi.wall_microseconds())
    servers = [start("--rate", 30, "--no-scheduler", "--threads", threads) for threads in (1, 4)]
    clients = [Visitor(servers[number % 2].port, "/api/stats", made["token"]) for number in range(8)]
    begun = time.monotonic()
    for client in clients:
        client.start()
    time.sleep(9)
    for client in clients:
        client.over.set()
    for client in clients:
        client.join()
    took = time.monotonic() - begun
    statuses = Counter(status for client in clients for status in client.statuses())
    assert set(statuses) == {200, 429} and statuses[429] > 100
    assert abs(statuses[200] - 30 - took // 2) <= 1, (statuses, took)
    assert all(retry for client in clients for _, _, status, retry, _ in client.answers if status == 429)
