"""Proof by kill -9 of servers, commands, one backend or all of PostgreSQL: what was acknowledged is there, and fits together.

Run with `pytest -m proof tests/proofs/test_database_kills.py`; PROOF_ROUNDS sets how often, PROOF_SEED repeats a run's moments.
The database syncs to its disk as it does for everybody.
"""

import itertools
import json
import os
import random
import signal
import time

import pytest
from breakable import Numbered, Writers, children, cluster, command, finish
from conftest import wait_for

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "10"))
BESIDE = ("generate --count 3000", "process --count 500", "token create", "check --repair")  # killed, too


@pytest.fixture
def chance():
    """Random moments, others in every run; pytest shows the seed of a test that fails."""
    seed = int(os.environ.get("PROOF_SEED", "0")) or random.randrange(1, 10**9)
    print(f"PROOF_SEED={seed}")
    return random.Random(seed)


def kill_backend(database, chance):
    """Kill one process of a session: PostgreSQL then ends all, and recovers."""
    pids = database.ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'ticketapi'")
    os.kill(int(chance.choice(pids)[0]), signal.SIGKILL)


VICTIMS = {
    "server": lambda served, database, chance: served.stop(signal.SIGKILL),
    "backend": lambda served, database, chance: kill_backend(database, chance),
    "immediate": lambda served, database, chance: database.stop(signal.SIGQUIT),
    "postmaster": lambda served, database, chance: database.stop(signal.SIGKILL),
}


def test_whatever_is_killed_what_was_acknowledged_is_there_and_fits_together(serve, chance):
    kept = 0
    with cluster() as database:
        assert database.ask("SHOW fsync") == [("on",)]
        url = database.url()
        finish(url, "generate", "--count", 500)
        token = finish(url, "token", "create")
        kinds = itertools.cycle(VICTIMS)
        for number in range(ROUNDS):
            kind = next(kinds)
            options = ("--rate", 0, "--generate-every", "1s", "--process-every", "1s", "--threads", 1 + 3 * (number // 4 % 2))
            served = serve(*options, env={"TICKETAPI_DB": url})
            [(before,)] = database.ask("SELECT count(*) FROM tickets", "ticketapi")
            clients, writers = [Numbered(served.port, "", token) for _ in range(3)], Writers(url)
            for client in clients:
                client.start()
            with command(url, *chance.choice(BESIDE).split()) as beside:
                time.sleep(chance.uniform(0.3, 1.2))  # the moment of the kill is the thing under test
                VICTIMS[kind](served, database, chance)
                beside.kill()
            if database.process.poll() is not None:
                wait_for(lambda: not any(children(database.process.pid)))
                database.start()
            wait_for(lambda: database.is_ready() and finish(url, "stats"), 30)
            if kind != "server":
                wait_for(lambda server=served: server.get("/api/stats", token).status == 200)
            writers.end()
            for client in clients:
                client.over.set()
            for client in clients:
                client.join()
            assert "wrong" not in finish(url, "check"), kind
            kept += writers.assert_kept(database, int(before))
            if kind == "server":  # a crash of the database may cost the log its last moments, that of a server none
                rows = database.ask("SELECT query FROM api_audits WHERE query LIKE '%page%'", "ticketapi")
                audited = {int(json.loads(query)["page"]) for (query,) in rows}
                assert set().union(*(client.answered() for client in clients)) <= audited
            elif number % 8 < 4:
                code, _, err = served.stop()
                assert (code, "Traceback" in err) == (0, False), err
            else:
                served.stop(signal.SIGKILL)
        print(f"{ROUNDS} kills, {kept} acknowledged writes kept")
