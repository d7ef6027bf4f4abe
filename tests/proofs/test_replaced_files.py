"""A running server needs none of its files any more: the archive, or the module's folder, may be replaced, emptied, removed."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from conftest import ROOT, Served
from faults import make_desk

BUILD = ROOT / "packaging" / "build_zipapp.py"
FILES = (
    "ticketapi.py",
    "schema.sql",
    "vocabulary.json",
    "profiles.json",
    "openapi.json",
    "dashboard.html",
    "docs.html",
    "page.js",
)
PATHS = ("/api/tickets/open", "/api/audits", "/api/audits/summary", "/api/series", "/api/users", "/api/schedule", "/api/nope")
PAGES = ("/", "/docs", "/openapi.json", "/metrics", "/up", "/ready")


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"PK\x05\x06" + bytes(18))
    other.rename(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A zipapp as it is released."""
    path = tmp_path_factory.mktemp("archive") / "ticketapi.pyz"
    subprocess.run([sys.executable, BUILD, path], check=True, capture_output=True, timeout=120)
    return path


@pytest.mark.parametrize("kind", ["zipapp", "script"])
@pytest.mark.parametrize("damage", [empty, remove, replace])
@pytest.mark.parametrize("threads", ["1", "4"])
def test_every_route_goes_on_and_what_fails_is_said_in_json(archive, tmp_path, kind, damage, threads):
    token, place = make_desk(tmp_path / "ticketapi.db"), tmp_path / "program"
    place.mkdir()
    files = [archive] if kind == "zipapp" else [ROOT / name for name in FILES]
    for file in files:
        shutil.copy(file, place)
    arguments = ("--threads", threads, "--rate", "0", "--generate-every", "1s", "--process-every", "1s")
    served = Served(*arguments, cwd=tmp_path, program=(sys.executable, str(place / files[0].name)))
    try:
        for file in files:
            damage(place / file.name)
        for _ in range(3):  # each thread meets each
            for path in PATHS:
                assert served.get(path, token).status == (404 if path == "/api/nope" else 200)
            assert {served.get(path).status for path in PAGES} == {200}
        with closing(sqlite3.connect(tmp_path / "ticketapi.db", timeout=5)) as db:
            db.execute("DELETE FROM ticket_counts")  # from now on there is something to log
            db.commit()
        for _ in range(8):
            answer = served.get("/api/stats", token)
            assert (answer.status, json.loads(answer.body)) == (500, {"message": "Server Error"})
        assert served.get("/up").status == 200
    finally:
        code, _, err = served.stop()
    assert code == 0
    assert "Traceback" not in err
    assert err.count("ERROR ticketapi: request failed") == 8
