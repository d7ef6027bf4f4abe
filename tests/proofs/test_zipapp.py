"""Whichever Python built the zipapp, every Python that is here runs it: the same seed gives the same tickets, and it serves."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from conftest import ROOT, Served

BUILD = ROOT / "packaging" / "build_zipapp.py"
NAMES = [f"python3.{minor}" for minor in range(10, 16)]
TICKETS = 200


def runs(python):
    """Tell whether a program is a Python with SQLite: a name may stand for one that is not installed."""
    return subprocess.run([python, "-I", "-c", "import sqlite3"], capture_output=True).returncode == 0


PYTHONS = [sys.executable, *(python for python in map(shutil.which, NAMES) if python and runs(python))]


def generated(program, desk):
    """Return the tickets that a program generates from one seed."""
    command = [*program, "generate", "--seed", "5", "--count", str(TICKETS), "--db", desk]
    subprocess.run(command, check=True, capture_output=True)
    with closing(sqlite3.connect(desk)) as db:
        return db.execute("SELECT user_id, subject, content FROM tickets ORDER BY id").fetchall()


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    """The tickets that the sources generate, without a zipapp."""
    return generated([sys.executable, ROOT / "ticketapi.py"], tmp_path_factory.mktemp("sources") / "desk.db")


@pytest.fixture(scope="module", params=PYTHONS)
def zipapp(request, tmp_path_factory):
    """The zipapp that one of the Pythons built, twice with the same bytes."""
    first, again = (tmp_path_factory.mktemp("dist") / "ticketapi.pyz" for _ in range(2))
    for target in (first, again):
        subprocess.run([request.param, BUILD, target], check=True, capture_output=True)
    assert first.read_bytes() == again.read_bytes()
    return first


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_runs_what_any_of_them_built(python, zipapp, tickets, tmp_path):
    program = [python, "-I", "-S", str(zipapp)]
    assert len(tickets) == TICKETS
    assert generated(program, tmp_path / "ticketapi.db") == tickets
    token = subprocess.run(
        [*program, "token", "create"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    served = Served("--no-scheduler", cwd=tmp_path, program=program)
    try:
        assert served.get("/api/stats", token).json["total_tickets"] == TICKETS
        assert "/openapi.json" in served.get("/docs").body.decode()
    finally:
        code, _, err = served.stop()
    assert (code, "Traceback" in err) == (0, False)
