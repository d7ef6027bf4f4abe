"""Proof by failover: a primary is killed -9 under load, its standby promoted: what was acknowledged is there, service is back.

Run with `pytest -m proof tests/proofs/test_failovers.py`; PROOF_ROUNDS sets how often. The standby is synchronous, the URL has
both hosts, the server is one and the same all the time. The old primary becomes the standby of the next round.
"""

import os
import random
import time

import pytest
from breakable import BACK_WITHIN, DOWN, UP, Cluster, Visit, Writers, cluster, finish, told

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "3"))


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
