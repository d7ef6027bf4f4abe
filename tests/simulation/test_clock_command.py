"""`ticketapi clock` shows and sets the clock of a desk, beside a server and without one; other commands follow it."""

import json
from contextlib import closing

import pytest
from conftest import wait_for

import ticketapi
from simulation.conftest import START, begin
from ticketapi import format_time

HOUR = 3600 * 10**6


@pytest.fixture
def place(desk):
    """How the command line names the desk."""
    return getattr(desk, "url", desk)


@pytest.fixture
def timed_desk(db, place):
    """A desk whose clock stands at the first of January 2025."""
    begin(db, ticketapi.wall_microseconds())
    ticketapi.set_clock(db, ticketapi.ClockWish(status="frozen", now=START + 60 * 10**6), ticketapi.wall_microseconds())
    ticketapi.work_off(db, ticketapi.Clock(), 1000.0)
    return place


def shown(run, place, *words):
    """Return what a command says of the clock, as JSON."""
    code, out, err = run("clock", *words, "--db", place, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_it_shows_the_clock(run, timed_desk):
    assert run("clock", "--db", timed_desk) == (0, "2025-01-01T00:01:00.000000Z, frozen\n", "")
    assert list(shown(run, timed_desk)) == ["now", "real_now", "status", "speed", "target", "progress"]


def test_it_says_of_a_desk_without_one_that_there_is_none(run, db, place):
    code, out, err = run("clock", "--db", place)
    assert (code, "this desk has no clock of its own" in out, err) == (0, True, "")
    code, out, err = run("clock", "freeze", "--db", place)
    assert (code, out, "start its server with --clock" in err) == (1, "", True)


def test_each_word_sets_it(run, timed_desk):
    assert shown(run, timed_desk, "speed", "3600x")["speed"] == 3600
    assert shown(run, timed_desk, "resume")["status"] == "running"
    frozen = shown(run, timed_desk, "freeze")
    assert frozen["status"] == "frozen"
    advanced = shown(run, timed_desk, "advance", "2d")
    assert ticketapi.parse_time(advanced["now"]) == ticketapi.parse_time(frozen["now"]) + 2 * 86_400 * 10**6
    assert shown(run, timed_desk, "set", "2025-02-01T00:00:00Z")["now"] == "2025-02-01T00:00:00.000000Z"
    assert run("clock", "speed", "1.5", "--db", timed_desk)[1].endswith("frozen at 1.5 times the real speed\n")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("speed", "0"), 2, "write 60x or 60"),
        (("speed", "fast"), 2, "write 60x or 60"),
        (("advance", "a while"), 2, "30d"),
        (("set", "tomorrow"), 2, "write 2025-12-04T11:30:16Z"),
        (("set", "2024-01-01T00:00:00Z"), 1, "must not be before the time of the desk"),
        (("advance", "9999d"), 1, "ten years"),
        (("advance",), 2, "DURATION"),
    ],
)
def test_what_makes_no_sense_is_one_line(run, timed_desk, words, code, told):
    found, out, err = run("clock", *words, "--db", timed_desk)
    assert (found, out, told in err, len(err.splitlines())) == (code, "", True, 1)


@pytest.mark.files
def test_a_desk_that_is_not_there_is_not_made(run, tmp_path):
    assert run("clock", "freeze")[0] == 1
    assert run("clock")[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_an_advance_that_was_cut_short_is_ended_first(run, db, timed_desk, monkeypatch):
    ticketapi.set_clock(db, ticketapi.ClockWish(advance=86_400 * 10**6), ticketapi.wall_microseconds())
    assert shown(run, timed_desk)["status"] == "advancing"
    assert shown(run, timed_desk, "advance", "1d")["now"] == "2025-01-03T00:01:00.000000Z"


def test_other_commands_follow_it(run, db, timed_desk):
    assert run("generate", "--count", "3", "--db", timed_desk)[0] == 0
    rows = db.execute("SELECT created_at, subject FROM tickets ORDER BY id").fetchall()
    first = ticketapi.parse_time("2025-01-01T00:01:00.000000Z")
    assert [row[0] for row in rows] == [format_time(first + i) for i in range(3)]
    composed = [ticketapi.compose_ticket(ticketapi.load_words(), 1, i)[1] for i in (1, 2, 3)]
    assert [row[1] for row in rows] == composed  # by the seed of the desk
    run("process", "--count", "1", "--db", timed_desk)
    stats = json.loads(run("stats", "--json", "--db", timed_desk)[1])
    assert (stats["oldest_open_age"], stats["last_closed_age"]) == (0, 0)
    assert stats["last_closed_at"].startswith("2025-01-01T00:01:00")
    assert shown(run, timed_desk)["now"] == "2025-01-01T00:01:00.000000Z"


def test_what_is_imported_without_a_time_comes_now(run, db, tmp_path, timed_desk):
    (tmp_path / "new.csv").write_text("subject,content,name,email\nA,B,Ana,ana@example.com\n")
    assert run("import", tmp_path / "new.csv", "--db", timed_desk)[0] == 0
    (created_at,) = db.execute("SELECT created_at FROM tickets").fetchone()
    assert created_at.startswith("2025-01-01T00:01:00")


# A real server -----------------------------------------------------------------------------------


@pytest.mark.files
def test_a_server_begins_a_clock_and_the_next_goes_on_from_where_it_was(serve, run, tmp_path):
    db = tmp_path / "desk.db"
    first = serve("--db", db, "--clock", "2025-01-01,100000x", "--seed", "4", "--profile", "office", "--rate", "0")
    with closing(ticketapi.open_database(db, "desk")) as connection:
        made = ticketapi.create_token(connection, "ann@example.com", "t", ["*"], 0, ticketapi.wall_microseconds())
    token = made["token"]

    def clock(server):
        return server.get("/api/clock", token=token).json["data"]

    assert wait_for(lambda: first.get("/api/stats", token=token).json["total_tickets"])
    code, _, err = first.stop()
    assert (code, "passed over" in err) == (0, False)
    stood = json.loads(run("clock", "--db", db, "--json")[1])["now"]
    assert "2025-01-01T0" < stood < "2025-03"
    assert json.loads(run("clock", "--db", db, "--json")[1])["now"] == stood
    second = serve("--db", db, "--clock", "2025-01-01", "--seed", "5")
    seen = clock(second)
    assert (seen["speed"], seen["status"], seen["now"] >= stood) == (100_000, "running", True)
    frozen = second.get("/api/clock", token=token, method="PUT", body=b'{"status": "frozen"}').json["data"]
    advanced = json.loads(run("clock", "advance", "1d", "--db", db, "--json")[1])
    assert ticketapi.parse_time(advanced["now"]) == ticketapi.parse_time(frozen["now"]) + 86_400 * 10**6
    assert clock(second)["now"] == advanced["now"]
    _, _, err = second.stop()
    assert "the desk has the seed 4; --seed is passed over" in err
    assert "the desk has a clock, which shows" in err
    assert run("check", "--db", db)[0] == 0


@pytest.mark.files
def test_a_clock_cannot_begin_before_the_newest_ticket(run, serve, tmp_path):
    run("generate", "--count", "2", "--db", tmp_path / "desk.db")
    with pytest.raises(AssertionError, match=r"--clock begins at .* before the newest ticket"):  # there is no Listening line
        serve("--db", tmp_path / "desk.db", "--clock", "2025-01-01")
    assert serve("--db", tmp_path / "desk.db", "--clock", "now").get("/ready").status == 200


@pytest.mark.files
def test_a_demo_lives_on_in_the_rhythm_that_it_was_made_with_unless_told_otherwise(serve, tmp_path):
    for number, (arguments, profile, status) in enumerate(
        [
            ((), ticketapi.find_profile("office").scaled(10_000 / 90), None),
            (("--profile", "busy"), ticketapi.find_profile("busy"), None),
            (("--clock", "2025-06-01,5x"), ticketapi.find_profile("office").scaled(10_000 / 90), "running"),
        ]
    ):
        db = tmp_path / f"{number}.db"
        serve("--db", db, "--demo", *arguments).stop()
        with closing(ticketapi.connect(db)) as connection:
            simulation = ticketapi.find_simulation(connection)
        assert (simulation.profile, simulation.status) == (profile.text(), status)


@pytest.mark.files
@pytest.mark.parametrize("arguments", [(), ("--profile", "steady"), ("--generate-every", "10s")])
def test_a_plain_desk_has_nothing_of_it(serve, tmp_path, arguments):
    serve("--db", tmp_path / "desk.db", *arguments).stop()
    with closing(ticketapi.connect(tmp_path / "desk.db")) as connection:
        assert ticketapi.find_simulation(connection) is None


@pytest.mark.files
def test_a_demo_comes_as_often_as_it_is_told_from_the_first_start_on_and_the_log_says_so(serve, tmp_path):
    db = tmp_path / "desk.db"
    for _ in range(2):
        _, _, log = serve("--db", db, "--demo", "--generate-every", "10s").stop()
        assert "a ticket every 10s, a closing every 300s" in log
        assert "passed over" not in log
        with closing(ticketapi.connect(db)) as connection:
            assert ticketapi.find_simulation(connection) is None


@pytest.mark.files
def test_the_intervals_of_the_options_are_those_of_a_clock_too(serve, tmp_path):
    db = tmp_path / "desk.db"
    serve("--db", db, "--clock", "2025-01-01", "--generate-every", "10s", "--process-every", "0").stop()
    with closing(ticketapi.connect(db)) as connection:
        profile = ticketapi.read_profile(json.loads(ticketapi.find_simulation(connection).profile))
    assert (profile.arrive_every, profile.close_every) == (10, 0)


def test_one_waits_for_another_that_was_faster(run, timed_desk, monkeypatch):
    begun, taken, set_clock = shown(run, timed_desk)["now"], [], ticketapi.set_clock

    def others_first(db, wish, real):
        if not taken:
            taken.append(set_clock(db, ticketapi.ClockWish(advance=HOUR), real))
        return set_clock(db, wish, real)

    monkeypatch.setattr(ticketapi, "set_clock", others_first)
    ended = shown(run, timed_desk, "advance", "2h")["now"]
    assert ticketapi.parse_time(ended) == ticketapi.parse_time(begun) + 3 * HOUR


def test_an_advance_that_a_restore_has_ended_has_failed(run, db, timed_desk, monkeypatch):
    pass_time, turns = ticketapi.pass_time, []

    def restored(connection, clock):
        pass_time(connection, clock)
        turns.append(1)
        if len(turns) == 2:
            with ticketapi.transaction(db):
                ticketapi.add_to_counter(db, "epoch", 1)

    monkeypatch.setattr(ticketapi, "pass_time", restored)
    code, out, err = run("clock", "advance", "2h", "--db", timed_desk)
    assert (code, out) == (1, "")
    assert err == "ticketapi: a snapshot was restored meanwhile, and the clock shows what it was saved with; set it anew\n"
