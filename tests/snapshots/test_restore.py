"""A restore brings back what the desk was, and leaves alone whom it knows: tokens, their owners, webhooks."""

import sqlite3
from contextlib import closing

import pytest
from conftest import NOON, HandClock
from kept import HOUR, OWNERS, ask, assert_whole, counter, fill, folder_of, gone_back, live, rows, stayed
from old_desks import make_old

import ticketapi


@pytest.fixture
def desk(tmp_path):
    """A desk with some of everything."""
    path = tmp_path / "desk.db"
    fill(path)
    return path


def change(path, now=NOON + HOUR):
    """Let more happen on a desk."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        live(db, now)


def save(path, name="one", now=NOON):
    """Save a snapshot."""
    return ticketapi.save_snapshot(path, name, now)


def restore(path, name="one", now=NOON + 2 * HOUR):
    """Restore a snapshot."""
    return ticketapi.restore_snapshot(path, name, now)


def test_what_happened_since_is_undone(desk):
    before = gone_back(desk)
    save(desk)
    change(desk)
    assert gone_back(desk) != before
    restore(desk)
    assert gone_back(desk) == before
    assert_whole(desk)


def test_tokens_owners_and_webhooks_stay_as_they_are(desk):
    save(desk)
    change(desk)
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.revoke_token(db, 1)
        ticketapi.delete_webhook(db, 1)
    before = stayed(desk)
    restore(desk)
    assert stayed(desk) == before
    with closing(ticketapi.open_database(desk, "desk")) as db:
        made = ticketapi.create_token(db, "eve@example.com", "t", ["*"], 0, NOON)
        hook = ticketapi.create_webhook(db, {"url": "https://[2000::1]/", "private": 0, "events": "[]"}, None, NOON)
    assert (made["id"], hook["id"]) == (3, 3)  # no id is given twice, not even after those that were deleted since


def test_no_token_that_was_revoked_works_again(desk, make_api):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        old = ticketapi.create_token(db, "a@example.com", "t", ["*"], 0, NOON)
        save(desk)
        ticketapi.revoke_token(db, old["id"])
        new = ticketapi.create_token(db, "b@example.com", "t", ["*"], 0, NOON)["token"]
    api = make_api()
    assert api.request("POST", "/api/snapshots/one/restore", token=new).status == 200
    assert [api.get("/api/stats", token=token).status for token in (old["token"], new)] == [401, 200]


def test_numbers_of_changes_go_on_from_the_higher_and_none_is_given_twice(desk):
    given = set()

    def note():
        changes = {
            number for first, last in ask(desk, "SELECT first_change, last_change FROM events") for number in (first, last)
        }
        new = changes - known
        assert not new & given
        given.update(new)
        return changes

    known = set()
    known = note()
    save(desk)
    for number in range(1, 4):
        change(desk, NOON + number * HOUR)
        last = max(note())
        restore(desk)
        with closing(ticketapi.open_database(desk, "desk")) as db:
            assert ticketapi.find_last_change(db) > last
            assert ticketapi.find_epoch(db) == number


def test_the_higher_number_may_be_that_of_the_snapshot(desk):
    change(desk)
    change(desk, NOON + 2 * HOUR)
    save(desk, "late")
    with closing(ticketapi.open_database(desk, "desk")) as db:
        last = ticketapi.find_last_change(db)
    other = desk.with_name("other.db")
    fill(other)
    folder_of(other).mkdir()
    (folder_of(other) / "late.db").write_bytes((folder_of(desk) / "late.db").read_bytes())
    ticketapi.restore_snapshot(other, "late", NOON)
    with closing(ticketapi.open_database(other, "desk")) as db:
        assert ticketapi.find_last_change(db) > last
        assert ticketapi.find_epoch(db) == 1  # of the desk itself, whatever the snapshot says
    assert_whole(other)


def test_a_snapshot_can_be_restored_again_and_another_after_it(desk):
    states = {}
    for name in ("one", "two", "three"):
        states[name] = gone_back(desk)
        save(desk, name)
        change(desk, NOON + len(states) * HOUR)
    for name in ("two", "one", "one", "three", "two"):
        restore(desk, name)
        assert gone_back(desk) == states[name]
    assert counter(desk, "epoch") == 5
    assert_whole(desk)


def test_owners_that_the_snapshot_alone_knows_stay_with_their_comments(desk, tmp_path):
    save(desk)
    new = tmp_path / "new.db"
    ticketapi.open_database(new, "desk").close()
    folder_of(new).mkdir()
    (folder_of(new) / "one.db").write_bytes((folder_of(desk) / "one.db").read_bytes())
    restore(new)
    assert rows(new, [OWNERS]) == rows(desk, [OWNERS])
    assert ask(new, "SELECT count(*) FROM personal_access_tokens") == [(0,)]
    assert_whole(new)


def test_a_snapshot_of_a_desk_whose_owners_have_other_numbers_is_refused(desk, tmp_path):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.create_token(db, "second@example.com", "t", ["*"], 0, NOON)
    save(desk)
    new = tmp_path / "new.db"
    with closing(ticketapi.open_database(new, "desk")) as db:
        ticketapi.create_token(db, "second@example.com", "t", ["*"], 0, NOON)  # here the first
    folder_of(new).mkdir()
    (folder_of(new) / "one.db").write_bytes((folder_of(desk) / "one.db").read_bytes())
    before = rows(new, ["users", "tickets", "counters"])
    with pytest.raises(ticketapi.InvalidFields, match=r"^The snapshot one: UNIQUE constraint failed"):
        restore(new)
    assert rows(new, ["users", "tickets", "counters"]) == before


@pytest.mark.parametrize("version", [1, 2, 3])
def test_one_of_an_older_version_is_brought_up_to_date_on_its_way(desk, version):
    save(desk)
    old = make_old(folder_of(desk) / "old.db", version, 100)
    before, kept = old.read_bytes(), stayed(desk)
    assert restore(desk, "old")["tickets"] == 100
    assert old.read_bytes() == before
    assert stayed(desk) == kept
    assert ask(desk, "SELECT count(*) FROM tickets") == [(100,)]
    assert_whole(desk)
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.process_tickets(db, 1, ticketapi.wall_microseconds())
    assert_whole(desk)


def test_a_desk_of_an_older_version_is_upgraded_and_restored(tmp_path):
    desk = make_old(tmp_path / "desk.db", 3, 50)
    save(desk)
    restore(desk)
    assert ask(desk, "PRAGMA user_version") == [(ticketapi.KINDS["desk"].version,)]
    assert ask(desk, "SELECT count(*) FROM tickets") == [(50,)]
    assert_whole(desk)


def test_a_backup_that_is_put_into_the_folder_is_a_snapshot(desk, run):
    state = gone_back(desk)
    save(desk)
    assert run("backup", folder_of(desk) / "copied.db", "--db", desk)[0] == 0
    change(desk)
    assert restore(desk, "copied")["name"] == "copied"
    assert gone_back(desk) == state


def test_an_empty_desk_and_one_that_has_grown_much_take_each_others_place(tmp_path):
    desk = tmp_path / "desk.db"
    ticketapi.open_database(desk, "desk").close()
    save(desk, "empty")
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 3000, NOON, seed=1)
    save(desk, "full")
    size = desk.stat().st_size
    assert restore(desk, "empty")["tickets"] == 0
    assert desk.stat().st_size < size
    assert restore(desk, "full")["tickets"] == 3000
    assert desk.stat().st_size == size
    assert_whole(desk)


@pytest.mark.parametrize("size", [512, 1024, 8192, 65_536])
def test_pages_of_any_size_will_do(tmp_path, size):
    desk = tmp_path / "desk.db"
    with closing(sqlite3.connect(desk)) as db:
        db.execute(f"PRAGMA page_size = {size}")
        db.execute(f"PRAGMA application_id = {ticketapi.KINDS['desk'].application_id}")
        db.execute("VACUUM")
    desk.chmod(0o600)
    with closing(ticketapi.connect(desk)) as db:
        ticketapi.create_schema(db, "desk")
        assert ask(desk, "PRAGMA page_size") == [(size,)]
        save(desk)
        ticketapi.create_token(db, "a@example.com", "t", ["*"], 0, NOON)
        ticketapi.generate_tickets(db, 50, NOON, seed=1)
    before = stayed(desk)
    restore(desk)
    assert stayed(desk) == before
    assert ask(desk, "SELECT count(*) FROM tickets") == [(0,)]
    assert_whole(desk)


def test_a_running_clock_goes_on_from_what_it_showed(desk):
    with closing(ticketapi.connect(desk)) as db:
        db.execute(f"INSERT INTO simulation VALUES (1, 7, '', 0, 0, 'running', 60000, {NOON}, {NOON}, NULL, NULL)")
    save(desk)
    with closing(ticketapi.connect(desk)) as db:
        db.execute("UPDATE simulation SET base = base + 1, written = written + 1")
    restore(desk, now=NOON + HOUR)
    assert ask(desk, "SELECT status, base, written FROM simulation") == [("running", NOON, NOON + HOUR)]


def test_what_a_snapshot_says_of_itself(desk):
    clock = HandClock()
    made = save(desk, now=clock.now)
    path = folder_of(desk) / "one.db"
    tickets = ask(desk, "SELECT sum(tickets) FROM ticket_counts")[0][0]
    told = {"name": "one", "created_at": ticketapi.format_time(NOON), "size": path.stat().st_size, "tickets": tickets}
    assert made == told
    assert ticketapi.list_snapshots(desk) == ticketapi.list_snapshots(desk, "one") == [told]
    assert restore(desk) == told
    assert ticketapi.delete_snapshot(desk, "one") == told
    assert ticketapi.list_snapshots(desk) == []


def test_a_snapshot_is_a_desk_of_its_own_that_commands_read(desk, run):
    save(desk)
    before = (folder_of(desk) / "one.db").read_bytes()
    code, out, err = run("tickets", "all", "--limit", "0", "--db", folder_of(desk) / "one.db", "--format", "csv")
    assert (code, err) == (0, "")
    assert out == run("tickets", "all", "--limit", "0", "--db", desk, "--format", "csv")[1]
    assert (folder_of(desk) / "one.db").read_bytes() == before


def test_a_copy_of_a_restored_desk_goes_on_with_its_numbers(desk, run):
    save(desk)
    change(desk)
    restore(desk)
    assert run("copy", "copy.db", "--db", desk)[0] == 0
    with (
        closing(ticketapi.open_database(desk, "desk")) as one,
        closing(ticketapi.open_database(desk.with_name("copy.db"), "desk")) as two,
    ):
        assert ticketapi.find_last_change(one) == ticketapi.find_last_change(two)
        assert ticketapi.find_epoch(one) == ticketapi.find_epoch(two) == 1
        assert ticketapi.get_counter(two, "change") > 0


def test_a_repair_leaves_epoch_and_numbers_alone(desk, run):
    save(desk)
    change(desk)
    restore(desk)
    before = ask(desk, "SELECT name, value FROM counters ORDER BY name")
    with closing(ticketapi.connect(desk)) as db:
        db.execute("UPDATE ticket_counts SET tickets = tickets + 1")
    assert run("check", "--repair", "--db", desk)[0] == 0
    assert ask(desk, "SELECT name, value FROM counters ORDER BY name") == before


def test_events_of_the_snapshot_stay_whatever_numbers_were_left_out(desk, monkeypatch):
    monkeypatch.setattr(ticketapi, "EVENTS_KEPT", 3000)
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 1000, NOON, 1)
        first, last = ticketapi.event_ends(db)
    save(desk)
    for number in range(1, 4):
        with closing(ticketapi.open_database(desk, "desk")) as db:
            ticketapi.generate_tickets(db, 2500, NOON + number * HOUR, 1)
        restore(desk)
        with closing(ticketapi.open_database(desk, "desk")) as db:
            begin = ticketapi.find_last_change(db)
            assert ticketapi.event_ends(db) == (first, begin)
            ticketapi.generate_tickets(db, 500, NOON + number * HOUR, 1)
            assert ticketapi.event_ends(db)[0] == first
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 2000, NOON + 9 * HOUR, 1)
        begin = counter(desk, "change")
        assert ticketapi.event_ends(db)[0] == last - (3000 - 2500)  # so many of before are left
        ticketapi.generate_tickets(db, 1000, NOON + 10 * HOUR, 1)
        assert ticketapi.event_ends(db) == (begin + 500, begin + 3500)
