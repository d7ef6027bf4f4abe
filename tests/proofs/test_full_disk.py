"""Proof on a real full disk: reads go on, writes say so and leave no half batch, and all recovers when there is room again.

Run with `pytest -m proof tests/proofs/test_full_disk.py`. The disk is a small tmpfs in a mount namespace of its own, for which
one has to be root or to have the right to make user namespaces.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import Served, wait_for
from soundness import ask, assert_sound

import ticketapi

# How to get a place where one may mount, and how to get into it: as root, and as anybody else.
WAYS = (
    (("unshare", "--mount"), ("--mount",)),
    (("unshare", "--map-root-user", "--mount"), ("--user", "--mount", "--preserve-credentials")),
)
AUDITED = 40  # requests while the disk is full


class Disk:
    """A small disk that only the commands run inside its namespace see."""

    def __init__(self, folder, size, way):
        """Mount it on a folder."""
        enter, flags = way
        self.folder = folder
        script = f"mount -t tmpfs -o size={size} tmpfs '{folder}' && echo ready && exec cat"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.holder = subprocess.Popen([*enter, "sh", "-c", script], text=True, **pipes)
        self.mounted = self.holder.stdout.readline() == "ready\n"
        self.inside = ("nsenter", "--target", str(self.holder.pid), *flags)
        self.program = (*self.inside, sys.executable, "-m", "ticketapi")
        self.desk = folder / "ticketapi.db"

    def run(self, *command, program=()):
        """Run a command inside and return (code, stdout, stderr)."""
        done = subprocess.run(
            [*(program or self.inside), *map(str, command)], capture_output=True, text=True, timeout=120, cwd=self.folder
        )
        return done.returncode, done.stdout, done.stderr

    def ticketapi(self, *arguments):
        """Run a command of ticketapi on the desk."""
        return self.run(*arguments, "--db", self.desk, program=self.program)

    def fill(self, leaving="0"):
        """Use up every byte but some, given as `12M`."""
        code, _, err = self.run("dd", "if=/dev/zero", f"of={self.folder}/ballast", "bs=4k")
        assert code == 1
        assert "No space left" in err
        assert self.run("truncate", f"--size=-{leaving}", f"{self.folder}/ballast")[0] == 0

    def free(self):
        """Make room again."""
        assert self.run("rm", f"{self.folder}/ballast")[0] == 0

    def copy(self, destination):
        """Copy the files of desk and audit log out of the namespace."""
        destination.mkdir()
        script = f"cp -r '{self.folder}'/ticketapi* '{destination}'"
        assert self.run("sh", "-c", script)[0] == 0
        return destination

    def close(self):
        """Give everything up; the disk goes with its namespace."""
        self.holder.communicate()


@pytest.fixture
def make_disk(tmp_path):
    """Return a function that makes a Disk of a size."""
    if not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("a small disk needs unshare and nsenter of util-linux")
    made = []

    def make(size):
        (folder := tmp_path / "disk").mkdir()
        for way in WAYS[os.getuid() != 0 :]:
            made.append(Disk(folder, size, way))
            if made[-1].mounted:
                return made[-1]
        pytest.skip("a small disk needs root, or a user who may make user namespaces (unshare --map-root-user --mount)")

    yield make
    for disk in made:
        disk.close()


@pytest.fixture
def serve_on():
    """Return a function that serves the desk of a disk; it is ended after the test."""
    started = []

    def start(disk, *more):
        arguments = ("--db", disk.desk, "--no-scheduler", "--rate", "0", *more)
        started.append(Served(*arguments, cwd=disk.folder, program=disk.program))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.process.kill()
        served.process.communicate()


def assert_full(answer):
    """Check that a command found the disk full, and said so in one line and no traceback."""
    code, out, err = answer
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.match(r"ticketapi: disk full: make room where \S+ticketapi(-audit)?\.db lies; ", err)


def ready(served):
    """Return the status and the message of /ready."""
    answer = served.get("/ready")
    return answer.status, answer.json.get("message")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_server_lives_through_a_full_disk_and_recovers_unaided(make_disk, serve_on, tmp_path, threads):
    disk = make_disk("4m")
    assert disk.ticketapi("generate", "--count", 500)[0] == 0
    token = disk.ticketapi("token", "create")[1].strip()
    served = serve_on(disk, "--threads", threads)
    assert served.get("/api/stats", token=token).status == 200
    assert ready(served) == (200, None)
    disk.fill()
    for page in range(1, AUDITED + 1):
        answer = served.get(f"/api/tickets/open?per_page=10&page={page}", token=token)
        assert (answer.status, answer.json["meta"]["total"]) == (200, 500)
    for words in ("generate --count 3000", "process --count 500", "token create"):
        assert_full(disk.ticketapi(*words.split()))
    wait_for(lambda: ready(served) == (503, "The disk is full."))
    assert served.get("/up").status == 200
    disk.free()
    wait_for(lambda: ready(served) == (200, None))
    assert disk.ticketapi("generate", "--count", 3)[0] == 0
    assert disk.ticketapi("process")[1] == "Processed 1 ticket\nTicket ID: 1\n"
    assert served.get("/api/stats", token=token).json["total_tickets"] == 503
    code, _, err = served.stop()
    assert code == 0
    assert_told_once(err)
    assert_nothing_lost(disk.copy(tmp_path / "copy"))


def assert_told_once(err):
    """Check that the log tells once that audit rows wait, and once that they are written."""
    told = [line for line in err.splitlines() if "audit" in line]
    assert len(told) == 2
    assert re.match(r"ERROR ticketapi: audit rows wait in memory: disk full: make room where \S+-audit\.db lies; ", told[0])
    assert re.match(r"INFO ticketapi: the audit log is written again: ", told[1])
    assert "Traceback" not in err


def assert_nothing_lost(copy):
    """Check that every request has its row, in their order, and that the desk fits together."""
    audit = copy / "ticketapi-audit.db"
    assert ask(audit, "PRAGMA integrity_check") == [("ok",)]
    pages = [text for (text,) in ask(audit, "SELECT query FROM api_audits WHERE path LIKE '%open' ORDER BY id")]
    assert pages == [f'{{"per_page":"10","page":"{page}"}}' for page in range(1, AUDITED + 1)]
    assert ask(audit, "SELECT count(*) FROM api_audits") == [(AUDITED + 2,)]
    assert assert_sound(copy / "ticketapi.db") == (502, 1)
    assert ask(copy / "ticketapi.db", "SELECT count(*) FROM personal_access_tokens") == [(1,)]


@pytest.mark.parametrize("more", [(), ("--since", "90d")], ids=["now", "history"])
def test_a_disk_that_fills_up_in_a_large_generate_keeps_whole_batches_and_says_how_many_tickets(make_disk, tmp_path, more):
    disk = make_disk("44m")
    answer = disk.ticketapi("generate", "--count", 200_000, *more)
    assert_full(answer)
    waiting, closed = assert_sound(disk.copy(tmp_path / "copy") / "ticketapi.db")
    kept = waiting + closed
    assert 0 < kept < 200_000
    assert kept % ticketapi.BATCH == 0
    assert f"({kept:,} of 200,000 tickets were committed)" in answer[2]


def test_a_disk_that_fills_up_in_a_large_process_keeps_whole_batches_and_says_how_many_tickets(make_disk, tmp_path):
    disk = make_disk("72m")
    assert disk.ticketapi("generate", "--count", 100_000, "--seed", 1)[0] == 0
    disk.fill(leaving="12M")
    answer = disk.ticketapi("process", "--count", 100_000)
    assert_full(answer)
    waiting, closed = assert_sound(disk.copy(tmp_path / "copy") / "ticketapi.db")
    assert waiting + closed == 100_000
    assert 0 < closed < 100_000
    assert closed % ticketapi.BATCH == 0
    assert f"({closed:,} of 100,000 tickets were committed)" in answer[2]


@pytest.mark.parametrize("leaving", ["1M", "8M", "14M", "20M"])
def test_a_disk_that_fills_up_in_a_restore_leaves_the_desk_as_it_was_and_its_room_is_given_back(
    make_disk, serve_on, tmp_path, leaving
):
    disk = make_disk("80m")
    assert disk.ticketapi("generate", "--count", 25_000, "--seed", 1)[0] == 0
    token = disk.ticketapi("token", "create", "--ability", "*")[1].strip()
    assert disk.ticketapi("snapshot", "save", "one")[0] == 0
    assert disk.ticketapi("generate", "--count", 5_000, "--seed", 2)[0] == 0
    served = serve_on(disk)
    assert served.get("/api/stats", token=token).json["total_tickets"] == 30_000
    disk.fill(leaving=leaving)
    code, out, err = disk.ticketapi("snapshot", "restore", "one")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.search("disk full: make room where|No space left on device: |No space left on device; the desk is as it was", err)
    answer = served.get("/api/snapshots/one/restore", token=token, method="POST")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert served.get("/api/stats", token=token).json["total_tickets"] == 30_000
    wait_for(lambda: ready(served) == (200, None))  # there is as much room as before
    assert disk.ticketapi("generate", "--count", 1)[0] == 0
    disk.free()
    assert served.get("/api/snapshots/one/restore", token=token, method="POST").status == 200
    assert served.get("/api/stats", token=token).json["total_tickets"] == 25_000
    assert served.stop()[0] == 0
    assert assert_sound(disk.copy(tmp_path / "copy") / "ticketapi.db") == (25_000, 0)


def test_a_disk_that_fills_up_in_a_save_leaves_no_snapshot(make_disk):
    disk = make_disk("44m")
    assert disk.ticketapi("generate", "--count", 25_000, "--seed", 1)[0] == 0
    disk.fill(leaving="8M")
    code, out, err = disk.ticketapi("snapshot", "save", "one")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.search("disk full: make room where|No space left on device", err)
    assert disk.ticketapi("snapshot", "list")[1] == "No snapshots\n"
    assert disk.ticketapi("generate", "--count", 1)[0] == 0  # its room is given back
    disk.free()
    assert disk.ticketapi("snapshot", "save", "one")[0] == 0


@pytest.mark.parametrize("words", ["serve --port 0", "generate", "token create"])
@pytest.mark.parametrize("there", [True, False], ids=["a desk", "no desk yet"])
def test_what_starts_on_a_full_disk_says_so_in_one_line_and_works_when_there_is_room(make_disk, tmp_path, words, there):
    disk = make_disk("2m")
    if there:
        assert disk.ticketapi("generate", "--count", 50)[0] == 0
    disk.fill()
    assert_full(disk.ticketapi(*words.split()))
    disk.free()
    assert disk.ticketapi("generate", "--count", 3)[0] == 0
    assert assert_sound(disk.copy(tmp_path / "copy") / "ticketapi.db") == (53 if there else 3, 0)


def test_a_server_on_a_full_disk_with_room_for_the_desk_alone_says_which_file_has_no_room(make_disk):
    disk = make_disk("2m")
    assert disk.ticketapi("generate")[0] == disk.ticketapi("token", "create")[0] == 0
    disk.fill(leaving="40K")  # which SQLite needs to read a desk
    answer = disk.ticketapi("serve", "--port", "0")
    assert_full(answer)
    assert "ticketapi-audit.db" in answer[2]
