"""Proof that a server outlives its PostgreSQL: stopped, restarted, cut off, frozen, or waiting for a lost standby.

Run with `pytest -m proof tests/proofs/test_outages.py`. Whatever the database does, each answer comes within three seconds,
is a 200 or a 503 that says when to come again, and two seconds after the database is back every thread of the server is, too.
"""

import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from breakable import BACK_WITHIN, DOWN, LONGEST, PAGE, UP, Cluster, Visit, cluster, command, finish, told
from conftest import ROOT, wait_for


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


@pytest.fixture(scope="module")
def pair():
    """A primary with a synchronous standby, and a desk."""
    with cluster(fsync="off") as primary:
        standby = Cluster(primary, fsync="off")
        try:
            finish(primary.url(), "generate", "--count", 50)
            primary.wait_for_standby()
            yield primary, standby
        finally:
            standby.remove()


def is_held_up(primary):
    """Tell whether a commit waits for a standby."""
    return primary.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")


def test_a_command_waits_for_a_lost_standby_and_requests_do_not(pair, serve):
    primary, standby = pair
    token = finish(primary.url(), "token", "create")
    served = serve("--rate", 0, "--no-scheduler", env={"TICKETAPI_DB": primary.url()})
    seen = Visit(served, token)
    standby.stop(signal.SIGQUIT)
    with command(primary.url(), "token", "create") as waiting:
        wait_for(lambda: is_held_up(primary))
        time.sleep(3)
        assert waiting.poll() is None  # it has not said what may get lost
        standby.start()
        out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, len(out.strip())) == (0, 50), err
    seen.end()
    for visitor in seen.all:
        assert set(visitor.statuses()) == {200}
    assert served.get(PAGE, out.strip()).status == 200
    assert "does not answer" not in served.stop()[2]


def test_a_scheduled_job_waits_for_a_lost_standby_for_no_longer_than_a_server_may_be_away(pair, serve):
    primary, standby = pair
    token = finish(primary.url(), "token", "create")
    served = serve("--rate", 0, "--generate-every", "1s", env={"TICKETAPI_DB": primary.url()})
    seen = Visit(served, token)
    standby.stop(signal.SIGQUIT)
    wait_for(lambda: is_held_up(primary))
    time.sleep(35)  # longer than the scheduler may be away
    with command(primary.url(), "token", "create") as late:
        _, err = late.communicate(timeout=30)
    assert late.returncode == 1 and "database is locked: another program writes to" in err
    standby.start()
    wait_for(lambda: not is_held_up(primary))
    assert len(finish(primary.url(), "token", "create")) == 50
    runs = served.get("/metrics").body.decode()
    seen.end()
    code, _, log = served.stop()
    for visitor in seen.all:
        assert set(visitor.statuses()) == {200}, visitor.path
    assert int(re.search(r'runs_total\{job="generate",result="failed"\} (\d+)', runs)[1]) >= 2
    assert code == 0 and "Traceback" not in log


@pytest.fixture(scope="module")
def on_debian(tmp_path_factory):
    """The zipapp, run by the system's Python with Debian's psycopg, which is older and uses ctypes."""
    python = "/usr/bin/python3"
    found = subprocess.run([python, "-I", "-c", "import psycopg; print(psycopg.__version__)"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("needs Debian's psycopg: apt-get install python3-psycopg")
    target = tmp_path_factory.mktemp("dist") / "ticketapi.pyz"
    subprocess.run([python, ROOT / "packaging" / "build_zipapp.py", target], check=True, capture_output=True)
    return python, "-I", str(target)


def test_the_zipapp_with_debians_psycopg_outlives_a_frozen_database(database, token, serve, on_debian):
    served = serve("--rate", 0, "--threads", 4, env={"TICKETAPI_DB": database.url()}, program=on_debian)
    seen = Visit(served, token)
    back = frozen(database, seen)
    time.sleep(BACK_WITHIN + 1)
    seen.end()
    code, _, err = served.stop()
    seen.assert_bearable()
    seen.assert_back(back + BACK_WITHIN)
    assert (code, len(told(err, DOWN)), len(told(err, UP))) == (0, 1, 1), err


@pytest.mark.parametrize("python", ["of this environment", "of Debian"])
def test_a_host_that_is_frozen_leaves_time_for_the_next(database, python, request):
    program = (sys.executable, "-m", "ticketapi") if python == "of this environment" else request.getfixturevalue("on_debian")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        here = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{database.port}"
        url = database.url().replace(f"127.0.0.1:{database.port}", here)
        done = subprocess.run([*program, "stats", "--db", url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Open ")
