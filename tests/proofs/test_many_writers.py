"""Many programs write to one desk in PostgreSQL at once: whatever their order, it is as if they had come one by one."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from clusters import admin_of
from conftest import wait_for

import ticketapi

PROGRAM = (sys.executable, "-m", "ticketapi")
GENERATED, PROCESSED = 700, 90  # by each command: several batches of inserts, and fewer closings than tickets
SERVER = ("--generate-every", "1s", "--process-every", "1s", "--rate", "0")


def cli(url, folder, *arguments):
    """Run a command as a process of its own; return what it prints as JSON."""
    command = [*PROGRAM, *map(str, arguments), "--json", "--db", url]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def numbers(admin, sql):
    """Return the first column of all rows."""
    return [row[0] for row in admin.execute(sql).fetchall()]


def assert_dense(found):
    """Check that numbers go from 1 without gaps."""
    assert found == list(range(1, len(found) + 1))


def assert_growing(times):
    """Check that each time is later than the one before."""
    assert all(later > earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize("writers", [2, 6])
def test_nobody_gets_in_the_way_of_another(database, serve, tmp_path, writers):
    servers = [serve(*SERVER, "--db", database) for _ in range(2)]
    token = cli(database, tmp_path, "token", "create", "--ability", "*")["token"]
    tasks = [("generate", "--count", GENERATED, "--seed", number) for number in range(writers)]
    tasks += [("process", "--count", PROCESSED) for _ in range(writers)]
    with ThreadPoolExecutor(len(tasks)) as threads:
        done = list(threads.map(lambda task: cli(database, tmp_path, *task), tasks))
    runs = wait_for(lambda: ran(servers, token))
    for server in servers:
        code, _, err = server.stop()
        assert code == 0
        assert "ERROR" not in err and "WARNING" not in err
    closed = [number for result in done for number in result.get("ticket_ids", ())]
    assert len(closed) == len(set(closed))
    assert sum(result.get("generated", 0) for result in done) == writers * GENERATED
    assert_sound(database, tmp_path, writers * GENERATED, closed)
    assert all(count > 0 for count in runs.values())


def ran(servers, token):
    """Return how often the servers have run each job, together, when each has run a few times."""
    jobs = [job for server in servers for job in server.get("/api/schedule", token=token).json["data"]]
    found = {name: sum(job["runs"] for job in jobs if job["name"] == name) for name in ("generate", "process")}
    return found if min(found.values()) >= 3 else None


def assert_sound(database, folder, generated, closed):
    """Check everything that a desk promises, by our own check and by plain SQL."""
    assert {finding["level"] for finding in cli(database, folder, "check")["checks"]} == {ticketapi.OK}
    with admin_of(database) as admin:
        assert_dense(numbers(admin, "SELECT id FROM tickets ORDER BY id"))
        assert_dense(numbers(admin, "SELECT closed_number FROM tickets WHERE status = 2 ORDER BY closed_number"))
        assert_growing(numbers(admin, "SELECT created_at FROM tickets ORDER BY id"))
        assert_growing(numbers(admin, "SELECT closed_at FROM tickets WHERE status = 2 ORDER BY closed_number"))
        assert numbers(admin, "SELECT count(*) FROM tickets WHERE closed_at <= created_at") == [0]
        gaps = "SELECT user_id FROM tickets GROUP BY user_id HAVING max(user_number) <> count(*) OR min(user_number) <> 1"
        assert numbers(admin, gaps) == []
        assert numbers(admin, "SELECT sum(tickets) FROM ticket_counts") == numbers(admin, "SELECT count(*) FROM tickets")
        assert numbers(admin, "SELECT count(*) FROM tickets")[0] >= generated
        assert set(closed) <= set(numbers(admin, "SELECT id FROM tickets WHERE status = 2"))


def test_of_two_servers_one_runs_each_job_at_its_boundary(database, serve, tmp_path):
    servers = [serve("--generate-every", "1s", "--process-every", "1d", "--db", database) for _ in range(2)]
    with admin_of(database) as admin:
        wait_for(lambda: numbers(admin, "SELECT count(*) FROM tickets")[0] >= 4)
        for server in servers:
            assert server.stop()[0] == 0
        times = [ticketapi.parse_second(text) for text in numbers(admin, "SELECT created_at FROM tickets ORDER BY id")]
    assert 4 <= len(times) <= times[-1] - times[0] + 2  # one each second; the first may come late


def test_two_programs_may_make_the_same_desk_at_the_same_moment(database, tmp_path):
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda number: cli(database, tmp_path, "generate", "--count", number), range(1, 7)))
    with admin_of(database) as admin:
        assert_dense(numbers(admin, "SELECT id FROM tickets ORDER BY id"))
        assert numbers(admin, "SELECT count(*) FROM tickets") == [21]
