"""An I/O error is said to be a full disk where the disk is full, and nothing else ever is."""

import errno
import sqlite3

import pytest

import ticketapi

IO_ERROR = "disk I/O error"
OTHERS = {
    "database is locked": "database is locked: another program holds {path}; try again when it is done",
    "attempt to write a readonly database": "{path} is read-only; give this user the right to write it and its directory",
    "database disk image is malformed": "{path} is damaged (database disk image is malformed); restore a backup",
    "file is not a database": "{path} is not a SQLite database; choose another --db",
    "no such table: tickets": "{path}: no such table: tickets",
}
FULL = "disk full: make room where {path} lies; what was committed before is kept"


@pytest.fixture(params=[None, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def number(request, monkeypatch):
    """What is wrong with the disk, if anything is."""

    def probe(path):
        if request.param:
            raise OSError(request.param, "")

    monkeypatch.setattr(ticketapi, "probe_disk", probe)
    return request.param


@pytest.mark.parametrize("text", [IO_ERROR, "database or disk is full", *OTHERS])
def test_only_an_io_error_is_asked_about_the_disk(tmp_path, number, text):
    path = tmp_path / "desk.db"
    with pytest.raises(ticketapi.TicketApiError) as caught, ticketapi.explained(path):
        raise sqlite3.OperationalError(text)
    is_full = number in (errno.ENOSPC, errno.EDQUOT)
    expected = {IO_ERROR: FULL if is_full else "{path}: disk I/O error", "database or disk is full": FULL} | OTHERS
    assert str(caught.value) == expected[text].format(path=path)
