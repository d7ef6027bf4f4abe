"""The files of snapshots: whole or not there, for their owner alone, in the desk's own folder; what is no desk is refused."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from conftest import NOON, wait_for
from kept import HOUR, ask, assert_whole, counter, fill, folder_of, gone_back, live, rows

import ticketapi

GOOD = ["a", "A", "0", "_", "-x", "a.b", "a..b", "v1.2-rc_3", "x.db", "x.part", "con", "a" * 64]
BAD = [
    *("", ".", "..", ".a", "../a", "a/b", "/a", "a\\b", "a b", " a", "a\n", "\n", "a\0b", "\0", "a" * 65, "a" * 5000),
    *("é", "\uff41", "٣", "a\u202eb", "😀", "a*", "*", "?", "[a]", "~", "$HOME", "a:b", "%2e%2e", "a;b", '"', "'"),
]


@pytest.fixture
def desk(tmp_path):
    """A desk with some of everything."""
    path = tmp_path / "desk.db"
    fill(path)
    return path


def save(path, name="one", **more):
    """Save a snapshot."""
    return ticketapi.save_snapshot(path, name, NOON, **more)


def restore(path, name="one"):
    """Restore a snapshot."""
    return ticketapi.restore_snapshot(path, name, NOON)


def names(path):
    """Return the names of the files beside a desk and in its folder."""
    folder = folder_of(path)
    inside = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    return sorted(file.name for file in path.parent.iterdir()), inside


def refusal(path, name="one"):
    """Restore a snapshot that cannot be; return why, after a look that the desk is as it was."""
    before, files = gone_back(path) | {"epoch": counter(path, "epoch")}, names(path)
    with pytest.raises(ticketapi.InvalidFields) as refused:
        restore(path, name)
    assert gone_back(path) | {"epoch": counter(path, "epoch")} == before
    assert names(path) == files
    assert refused.value.errors == {"name": [str(refused.value)]}
    return str(refused.value)


# Names and places --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_can_be(desk, name):
    assert ticketapi.read_snapshot_name(name) == name
    assert save(desk, name)["name"] == name
    assert names(desk) == (["desk.db", "desk.db-snapshots"], [f"{name}.db"])
    assert restore(desk, name)["name"] == name
    assert [one["name"] for one in ticketapi.list_snapshots(desk)] == [name]
    ticketapi.delete_snapshot(desk, name)
    assert names(desk) == (["desk.db", "desk.db-snapshots"], [])


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_cannot_be(name):
    with pytest.raises(ValueError, match="is no name of a snapshot; write up to 64 letters"):
        ticketapi.read_snapshot_name(name)


def test_upper_and_lower_case_are_two_names(desk):
    save(desk, "Monday")
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 1, NOON + HOUR, seed=1)
    save(desk, "monday")
    lower, upper = ticketapi.list_snapshots(desk, "monday"), ticketapi.list_snapshots(desk, "Monday")
    assert lower[0]["tickets"] == upper[0]["tickets"] + 1


def test_two_desks_side_by_side_have_each_its_own(tmp_path):
    desks = [tmp_path / name for name in ("desk.db", "desk.sqlite", "desk", "desk.db.db")]
    for number, desk in enumerate(desks, 1):
        with closing(ticketapi.open_database(desk, "desk")) as db:
            ticketapi.generate_tickets(db, number, NOON, seed=1)
        save(desk)
    for number, desk in enumerate(desks, 1):
        assert [one["tickets"] for one in ticketapi.list_snapshots(desk)] == [number]


def test_they_lie_beside_the_file_that_a_link_leads_to(desk, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link.db").symlink_to(desk)
    save(elsewhere / "link.db")
    assert names(desk)[1] == ["one.db"]
    assert [file.name for file in elsewhere.iterdir()] == ["link.db"]
    assert restore(elsewhere / "link.db")["name"] == "one"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_folder_and_files_are_for_their_owner_alone(desk, umask):
    before = os.umask(umask)
    try:
        save(desk)
    finally:
        os.umask(before)
    assert folder_of(desk).stat().st_mode & 0o777 == 0o700
    assert (folder_of(desk) / "one.db").stat().st_mode & 0o777 == 0o600
    assert desk.stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_the_folder_is_refused(desk, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    fill(target / "one.db")
    folder_of(desk).symlink_to(target)
    before = rows(desk, ["tickets"])
    for work in (save, restore, ticketapi.delete_snapshot, ticketapi.list_snapshots):
        with pytest.raises(ticketapi.TicketApiError, match="must be a directory for snapshots, and is not; move it away"):
            work(desk, "one")
    assert [file.name for file in target.iterdir()] == ["one.db"]
    assert rows(desk, ["tickets"]) == before


def test_a_file_in_the_place_of_the_folder_is_refused(desk):
    folder_of(desk).write_text("mine")
    with pytest.raises(ticketapi.TicketApiError, match="must be a directory"):
        save(desk)
    assert folder_of(desk).read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_link_in_the_place_of_a_snapshot_is_neither_followed_nor_replaced(desk, tmp_path, force):
    target = tmp_path / "target.db"
    fill(target)
    before = target.read_bytes()
    folder_of(desk).mkdir()
    for name, leads in (("one", target), ("dangling", tmp_path / "nowhere.db")):
        (folder_of(desk) / f"{name}.db").symlink_to(leads)
        with pytest.raises(ticketapi.InvalidFields, match="already been taken"):
            save(desk, name, force=force)
        for work in (restore, ticketapi.delete_snapshot, ticketapi.list_snapshots):
            with pytest.raises(ticketapi.NotFound):
                work(desk, name)
    assert ticketapi.list_snapshots(desk) == []
    assert target.read_bytes() == before
    assert not (tmp_path / "nowhere.db").exists()


def test_what_somebody_else_has_put_into_the_folder_stays(desk):
    save(desk)
    for name in ("README", ".hidden.db", "has blank.db", "one.db-wal.txt"):
        (folder_of(desk) / name).write_text("mine")
    (folder_of(desk) / "directory.db").mkdir()
    save(desk, "two")
    restore(desk, "two")
    ticketapi.delete_snapshot(desk, "two")
    assert [one["name"] for one in ticketapi.list_snapshots(desk)] == ["one"]
    assert len(names(desk)[1]) == 6


# Whole, or not there -----------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused_and_with_force_replaced_when_the_new_one_is_whole(desk, monkeypatch):
    first = save(desk)
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 1, NOON + HOUR, seed=1)
    with pytest.raises(ticketapi.InvalidFields, match="The name has already been taken"):
        save(desk)
    assert ticketapi.list_snapshots(desk) == [first]
    assert save(desk, force=True)["tickets"] == first["tickets"] + 1
    kept = ticketapi.list_snapshots(desk)

    def fail(path):
        raise OSError(ticketapi.errno.EIO, "broken", str(path))

    monkeypatch.setattr(ticketapi, "read_seal", fail)
    with pytest.raises(ticketapi.TicketApiError, match="broken; the desk is as it was"):
        save(desk, force=True)
    assert ticketapi.list_snapshots(desk) == kept
    assert names(desk)[1] == ["one.db"]


SAVER = """
import sys, ticketapi
from pathlib import Path

plain = ticketapi.copy_database

def stop_before_the_end(*given):
    plain(*given)
    print("half", flush=True)
    sys.stdin.read()

ticketapi.copy_database = stop_before_the_end
ticketapi.save_snapshot(Path(sys.argv[1]), "one", 0)
"""


@pytest.fixture
def saver(desk):
    """A process that saves a snapshot and stops before its end, with a file that has no name yet."""
    command = [sys.executable, "-c", SAVER, str(desk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        yield process
        process.kill()


def test_a_save_that_is_killed_leaves_nothing_under_the_name_and_the_next_one_copes(desk, saver):
    saver.kill()
    saver.wait()
    [left] = names(desk)[1]
    assert left.endswith(".part")
    assert ticketapi.list_snapshots(desk) == []
    for work in (restore, ticketapi.delete_snapshot):
        with pytest.raises(ticketapi.NotFound):
            work(desk, "one")
    save(desk, "two")
    assert names(desk)[1] == ["two.db"]


def test_one_goes_on_at_a_time_and_who_comes_meanwhile_takes_nothing_away(desk, saver):
    for work in (save, restore, ticketapi.delete_snapshot):
        if work is not save:
            (folder_of(desk) / "two.db").write_bytes(b"")
        with pytest.raises(ticketapi.DeskBusy, match=r"another snapshot of .* is being saved or restored"):
            work(desk, "two")
    assert [one["name"] for one in ticketapi.list_snapshots(desk)] == ["two"]  # a list waits for nobody
    saver.stdin.close()
    assert saver.wait(30) == 0
    assert [one["name"] for one in ticketapi.list_snapshots(desk)] == ["one", "two"]


def test_who_waits_a_moment_has_its_turn(desk):
    save(desk)
    done, failed = [], []

    def work(number):
        try:
            done.append(restore(desk) if number % 2 else save(desk, f"s{number}"))
        except ticketapi.DeskBusy as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(failed) == 6
    assert len(done) >= 2
    assert not [name for name in names(desk)[1] if "part" in name]
    assert_whole(desk)


def test_thousands_of_restores_keep_no_descriptor(desk):
    save(desk)
    restore(desk)
    before = len(os.listdir("/dev/fd"))
    for number in range(20):
        restore(desk)
        save(desk, f"s{number}")
        ticketapi.delete_snapshot(desk, f"s{number}")
    assert len(os.listdir("/dev/fd")) == before


def test_nothing_of_a_restore_is_left_on_the_disk(desk):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 20_000, NOON, seed=1)
        save(desk)
        restore(desk)
        assert names(desk)[1] == ["one.db"]
        assert ticketapi.wal_bytes(desk) < ticketapi.WAL_KEPT  # while the desk is in use
    assert names(desk)[0] == ["desk.db", "desk.db-snapshots"]


# What is no snapshot -----------------------------------------------------------------------------


def damage(path, at, data=b"\xff" * 64):
    """Overwrite some bytes of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_damage_anywhere_is_found(desk):
    save(desk)
    path = folder_of(desk) / "one.db"
    whole = path.read_bytes()
    for at in range(0, len(whole), 4096 * 3 + 77):
        path.write_bytes(whole)
        damage(path, at)
        assert refusal(desk) in ("The snapshot one is damaged.", "The snapshot one is not a SQLite database.")
    path.write_bytes(whole)
    assert restore(desk)["name"] == "one"


@pytest.mark.parametrize("left", [0, 1, 31, 32, 33, 99, 100, 512, 544, 4096, 4128, 40_960, -4096, -4128, -33, -32, -1])
def test_a_file_that_was_cut_short_is_refused(desk, left):
    save(desk)
    path = folder_of(desk) / "one.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    if left == -32:  # the seal is gone, the desk is whole
        assert restore(desk)["name"] == "one"
    else:
        assert refusal(desk).startswith("The snapshot one is ")


def test_damage_of_a_backup_that_was_put_there_is_found_by_sqlite(desk):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 500, NOON, seed=1)
    folder_of(desk).mkdir()
    path = folder_of(desk) / "one.db"
    shutil.copy(desk, path)
    assert restore(desk)["name"] == "one"
    root = ask(desk, "SELECT rootpage FROM sqlite_master WHERE name = 'tickets_by_change'")[0][0]
    damage(path, (root - 1) * 4096, bytes(4096))
    assert refusal(desk) == "The snapshot one is damaged."


def test_another_programs_database_is_refused(desk):
    folder_of(desk).mkdir()
    with closing(sqlite3.connect(folder_of(desk) / "one.db")) as db:
        db.execute("CREATE TABLE theirs (x)")
    assert refusal(desk) == "The snapshot one belongs to another program."
    assert [one["tickets"] for one in ticketapi.list_snapshots(desk)] == [None]


def test_an_audit_log_is_no_desk(desk):
    folder_of(desk).mkdir()
    ticketapi.open_database(folder_of(desk) / "one.db", "audit").close()
    assert refusal(desk) == "The snapshot one belongs to another program."


def test_one_of_a_newer_version_is_refused(desk):
    save(desk)
    path, known = folder_of(desk) / "one.db", ticketapi.KINDS["desk"].version
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {known + 1}")
    path.write_bytes(path.read_bytes()[:-32])
    expected = f"The snapshot one is from a newer ticketapi (schema {known + 1}, this one knows {known})."
    assert refusal(desk) == expected


def test_one_that_lacks_a_table_is_refused(desk):
    folder_of(desk).mkdir()
    shutil.copy(desk, folder_of(desk) / "one.db")
    with closing(sqlite3.connect(folder_of(desk) / "one.db")) as db:
        db.execute("DROP TABLE simulation")
    assert refusal(desk) == "The snapshot one is damaged: it lacks simulation."


@pytest.mark.parametrize(
    ("step", "error", "said"),
    [
        (
            "shutil.copyfile",
            OSError(errno.ENOSPC, "No space left on device", "a file"),
            "a file: No space left on device; the desk",
        ),
        ("run_part", sqlite3.OperationalError("database or disk is full"), "disk full: make room where .* lies"),
    ],
)
def test_a_full_disk_is_said_whichever_step_meets_it(desk, monkeypatch, step, error, said):
    save(desk)

    def full(*_, **__):
        raise error

    before = gone_back(desk)
    monkeypatch.setattr(f"ticketapi.{step}", full)
    with pytest.raises(ticketapi.DiskFull, match=said):
        restore(desk)
    monkeypatch.undo()
    assert gone_back(desk) == before
    assert names(desk)[1] == ["one.db"]


def test_who_writes_all_the_time_is_waited_for_but_not_for_ever(desk, monkeypatch):
    save(desk)
    before = gone_back(desk)
    monkeypatch.setattr(ticketapi, "WRITE_SECONDS", 0.2)
    with closing(sqlite3.connect(desk, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(ticketapi.DeskBusy, match=r"could not be written for 0\.2 s: others write to it"):
            restore(desk)
        db.execute("ROLLBACK")
    assert gone_back(desk) == before
    with closing(sqlite3.connect(desk, isolation_level=None, check_same_thread=False)) as db:
        db.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(ticketapi, "WRITE_SECONDS", 10)
        thread = threading.Thread(target=restore, args=(desk,))
        thread.start()
        wait_for(lambda: any(name.endswith(".part") for name in names(desk)[1]))
        db.execute("UPDATE personal_access_tokens SET name = 'changed at the last moment'")
        db.execute("COMMIT")
        thread.join()
    assert ask(desk, "SELECT DISTINCT name FROM personal_access_tokens") == [("changed at the last moment",)]
    assert counter(desk, "epoch") == 1


def test_a_save_holds_one_moment_while_others_write(desk):
    stop = threading.Event()

    def write():
        number = 1
        with closing(ticketapi.open_database(desk, "desk")) as db:
            while not stop.is_set():
                live(db, NOON + number * HOUR)
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    for number in range(5):
        save(desk, f"s{number}")
    stop.set()
    thread.join()
    for number in range(5):
        assert_whole(folder_of(desk) / f"s{number}.db")
