"""A file that is shorter than it says is refused, unless a WAL beside it still has what is missing."""

import os
import shutil
import sqlite3
from contextlib import closing

import pytest
from conftest import NOON

import ticketapi

TICKETS = 200
SIDECARS = ("-wal", "-shm", "-journal")


@pytest.fixture
def interrupted(desk, tmp_path):
    """A desk as it is when a checkpoint is killed: its first page says how long it is to be, what is to come is in its WAL."""
    ticketapi.open_database(desk, "desk").close()
    with closing(ticketapi.connect(desk)) as db:
        length = desk.stat().st_size
        db.execute("PRAGMA wal_autocheckpoint = 0")
        ticketapi.generate_tickets(db, TICKETS, NOON, 1)
        kept = shutil.copy(f"{desk}-wal", tmp_path / "kept")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = desk.read_bytes()
    assert len(content) > length
    folder = tmp_path / "interrupted"
    folder.mkdir()
    (folder / "desk.db").write_bytes(content[:length])
    shutil.copy(kept, folder / "desk.db-wal")
    return folder / "desk.db"


def test_with_its_wal_it_is_completed_and_nothing_is_lost(interrupted):
    with closing(ticketapi.open_database(interrupted, "desk")) as db:
        assert db.execute("SELECT count(*) FROM tickets").fetchone()[0] == TICKETS
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


@pytest.mark.parametrize("content", [None, b""])
@pytest.mark.parametrize("missing", [1, 100, 4095])
def test_without_a_wal_not_a_byte_may_be_missing(desk, missing, content):
    ticketapi.open_database(desk, "desk").close()
    length = desk.stat().st_size
    os.truncate(desk, length - missing)
    for suffix in SIDECARS if content is not None else ():
        desk.with_name(f"desk.db{suffix}").write_bytes(content)
    before = desk.read_bytes()
    with pytest.raises(ticketapi.TicketApiError) as caught:
        ticketapi.open_database(desk, "desk").close()
    assert str(caught.value) == f"{desk} is damaged: it has {length - missing} bytes of {length}; restore a backup"
    assert desk.read_bytes() == before


def test_what_cannot_be_opened_is_tried_once_more_at_most_and_said_in_one_line(monkeypatch, desk, db):
    db.close()
    desk.with_name("desk.db-wal").mkdir()
    opened, connect = [], sqlite3.connect

    def count(*given, **more):
        opened.append(given)
        assert len(opened) <= 2
        return connect(*given, **more)

    monkeypatch.setattr(sqlite3, "connect", count)
    told = f"cannot open {desk}; check permissions of the file and its directory, and ulimit -n"
    for opening in (
        lambda: ticketapi.open_database(desk, "desk"),
        lambda: ticketapi.open_read_only(desk, "desk"),
        lambda: ticketapi.open_read_only(desk, "desk", views=True),
    ):
        opened.clear()
        with pytest.raises(ticketapi.TicketApiError) as caught:
            opening()
        assert str(caught.value) == told
