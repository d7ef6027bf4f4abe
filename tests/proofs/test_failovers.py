"""Proof by failover: a primary is killed -9 under load, its standby promoted: what was acknowledged is there, service is back.

Run with `pytest -m proof tests/proofs/test_failovers.py`; PROOF_ROUNDS sets how often. The standby is synchronous, the URL has
both hosts, the server is one and the same all the time. The old primary becomes the standby of the next round.
"""

import json
import os
import random
import threading
import time
from contextlib import closing, suppress

import pytest
from breakable import BACK_WITHIN, DOWN, UP, Cluster, Visit, cluster, command, finish, told

import ticketapi

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "3"))


class Writers:
    """Commands, and two threads that are faster, that write to a desk; they keep what was acknowledged."""

    def __init__(self, url):
        self.url, self.over = url, threading.Event()
        self.tickets, self.closed, self.tokens, self.generated = set(), set(), set(), 0
        work = [self.generate, self.process, self.create_tokens, self.write_fast, self.write_fast]
        self.threads = [threading.Thread(target=one, daemon=True) for one in work]
        for thread in self.threads:
            thread.start()

    def command(self, *words):
        """Run a command to its end; return what it said it did, or nothing."""
        with command(self.url, *words) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode in (0, 1) and "Traceback" not in err, err
        return out if process.returncode == 0 else ""

    def generate(self):
        while not self.over.is_set():
            if out := self.command("generate", "--count", 1, "--json"):
                self.generated += json.loads(out)["generated"]

    def process(self):
        while not self.over.is_set():
            if out := self.command("process", "--count", 2, "--json"):
                self.closed.update(json.loads(out)["ticket_ids"])

    def create_tokens(self):
        while not self.over.is_set():
            if out := self.command("token", "create"):
                self.tokens.add(ticketapi.hash_token(out.strip()))

    def write_fast(self):
        """Write a ticket a transaction over one connection, for as long as it lasts."""
        while not self.over.wait(0.05):
            with suppress(*ticketapi.FAILURES), closing(ticketapi.connect(ticketapi.Postgres(self.url))) as db:
                while not self.over.wait(0.002):
                    with ticketapi.transaction(db):
                        ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), 1)
                        [(newest,)] = db.execute("SELECT max(id) FROM tickets")
                    self.tickets.add(newest)

    def end(self):
        """Let all finish what they are at."""
        self.over.set()
        for thread in self.threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in self.threads)

    def assert_kept(self, primary, before):
        """See that all that was acknowledged is there; return how much it was."""
        rows = {int(number): int(status) for number, status in primary.ask("SELECT id, status FROM tickets", "ticketapi")}
        assert self.tickets <= rows.keys()
        assert len(rows) >= before + len(self.tickets) + self.generated
        assert all(rows[number] == ticketapi.CLOSED for number in self.closed)
        kept = {token for (token,) in primary.ask("SELECT token FROM personal_access_tokens", "ticketapi")}
        assert self.tokens <= kept
        return len(self.tickets) + self.generated + len(self.closed) + len(self.tokens)


@pytest.mark.parametrize("threads", [1, 4])
def test_no_acknowledged_write_is_lost_and_service_is_back_two_seconds_after_the_promotion(serve, threads):
    with cluster(fsync="off") as first:
        second = Cluster(first, fsync="off")
        pair, kept, away = [first, second], 0, []
        try:
            url = f"postgresql://postgres@127.0.0.1:{first.port},127.0.0.1:{second.port}/ticketapi"
            finish(url, "generate", "--count", 200)
            token = finish(url, "token", "create")
            served = serve("--rate", 0, "--threads", threads, "--generate-every", "1s", env={"TICKETAPI_DB": url})
            for _ in range(-(-ROUNDS // 2)):  # half of them with each number of threads
                primary, standby = pair
                primary.wait_for_standby()
                [(before,)] = primary.ask("SELECT count(*) FROM tickets", "ticketapi")
                seen, writers = Visit(served, token), Writers(url)
                time.sleep(random.uniform(1, 2.5))  # the moment of the kill is the thing under test
                primary.stop(9)
                time.sleep(random.uniform(0.5, 1.5))
                promoted = standby.promote()
                time.sleep(BACK_WITHIN + 2)
                writers.end()
                seen.end()
                seen.assert_bearable()
                seen.assert_back(promoted + BACK_WITHIN)
                kept += writers.assert_kept(standby, int(before))
                away.append(
                    max(begun for one in seen.pages for begun, _, status, _, _ in one.answers if status == 503) - promoted
                )
                assert "wrong" not in finish(standby.url(), "check")
                primary.rebuild(standby)
                pair = [standby, primary]
            code, _, err = served.stop()
            print(f"{len(away)} failovers, {kept} acknowledged writes kept, back {max(away):.2f} s after the promotion at most")
            assert (code, "Traceback" in err) == (0, False)
            assert (len(told(err, DOWN)), len(told(err, UP))) == (len(away), len(away)), err
        finally:
            second.remove()
