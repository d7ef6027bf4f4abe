"""/ready tells whether the desk can be read and its disk written; /up says no more than that the process answers."""

import os
from contextlib import closing

import pytest

import ticketapi


def test_a_desk_that_works_is_ready_and_asks_for_no_token(api):
    answer = api.get("/ready")
    assert (answer.status, answer.json) == (200, {"status": "ready"})
    assert answer.headers["cache-control"] == "no-cache, private"


def test_it_leaves_no_file_and_no_audit_row(api, tmp_path):
    before = sorted(os.listdir(tmp_path))
    api.get("/ready")
    assert sorted(os.listdir(tmp_path)) == before
    assert api.audits() == []


@pytest.mark.files
def test_what_a_killed_look_left_does_not_matter(api, desk):
    left = desk.with_name("desk.db-probe")
    left.symlink_to(desk)
    before = desk.read_bytes()
    assert api.get("/ready").status == 200
    assert desk.read_bytes() == before
    assert not left.is_symlink()


def test_a_desk_that_cannot_be_read_is_not_ready_but_up(api, db, desk):
    db.execute("ALTER TABLE tickets RENAME TO elsewhere")
    answer = api.get("/ready")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json == {"message": "The database does not answer."}
    assert api.get("/up").status == 200


@pytest.fixture
def moved(make_api, desk, tmp_path):
    """An app whose desk's directory is gone; what it has open still works."""
    api = make_api()
    api.get("/ready")
    yield api, lambda: desk.parent.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    tmp_path.with_name(f"{tmp_path.name}-moved").rename(tmp_path)


@pytest.mark.files
def test_a_disk_that_cannot_be_written_is_not_ready_and_the_answer_names_no_path(moved, clock, caplog):
    api, move = moved
    move()
    clock.advance(1)
    answer = api.get("/ready")
    assert (answer.status, answer.json) == (503, {"message": "The disk cannot be written: No such file or directory."})
    assert str(api.settings.db) in caplog.text


def test_it_looks_once_a_second_however_often_it_is_asked(api, db, clock, caplog):
    assert api.get("/ready").status == 200
    db.execute("ALTER TABLE tickets RENAME TO elsewhere")
    assert api.get("/ready").status == 200
    clock.advance(1)
    assert [api.get("/ready").status for _ in range(3)] == [503, 503, 503]
    db.execute("ALTER TABLE elsewhere RENAME TO tickets")
    clock.advance(1)
    assert api.get("/ready").status == 200
    assert len(caplog.records) == 1


def test_a_locked_desk_is_ready_as_reading_goes_on(api, desk):
    with closing(ticketapi.connect(desk)) as other, ticketapi.transaction(other):
        assert api.get("/ready").status == 200


@pytest.mark.files
def test_the_probe_tells_when_it_cannot_be_written(desk):
    ticketapi.probe_disk(desk)
    with pytest.raises(FileNotFoundError):
        ticketapi.probe_disk(desk.parent / "nowhere" / "desk.db")


def test_a_failing_database_is_logged_once_an_hour_and_not_with_every_request(api, db, token, clock, caplog):
    db.execute("DROP TABLE ticket_counts")
    for _ in range(5):
        assert api.get("/api/stats", token=token).status == 503
    assert len(caplog.records) == 1
    clock.advance(ticketapi.REPEAT_SECONDS)
    assert api.get("/api/stats", token=token).status == 503
    assert len(caplog.records) == 2
