"""A desk may have a clock of its own, which is frozen, set going at any speed, and advanced; two servers share it."""

from dataclasses import replace

import pytest
from writing import NEW, create, errors_of, problems

import ticketapi
from simulation.conftest import DAY, START, ask, begin
from ticketapi import format_time

FIELDS = ["now", "real_now", "status", "speed", "target", "progress"]


def test_a_desk_without_one_shows_the_real_time_and_cannot_be_set(api, clock, master):
    shown = api.get("/api/clock", token=master).json["data"]
    now = format_time(clock.now)
    assert shown == {"now": now, "real_now": now, "status": "running", "speed": None, "target": None, "progress": None}
    assert list(shown) == FIELDS
    answer = api.send("PUT", "/api/clock", {"advance": "1d"}, token=master)
    assert (answer.status, "--clock" in answer.json["message"]) == (409, True)


def test_it_goes_as_fast_as_it_was_told(timed, db, clock, look, move):
    assert look() == {
        **{"now": format_time(START), "real_now": format_time(clock.now), "status": "running", "speed": 1},
        **{"target": None, "progress": None},
    }
    clock.advance(5)
    assert look()["now"] == format_time(START + 5 * 10**6)
    assert move(speed="60x").json["data"]["speed"] == 60
    clock.advance(2)
    assert look()["now"] == format_time(START + (5 + 2 * 60) * 10**6)
    assert move(speed=0.5).json["data"]["speed"] == 0.5
    clock.advance(4)
    assert look()["now"] == format_time(START + (125 + 2) * 10**6)


def test_it_stands_still_ten_seconds_after_it_was_written_last_and_goes_on_from_there(timed, db, clock, look):
    clock.advance(3600)
    assert look()["now"] == format_time(START + 10 * 10**6)
    ticketapi.work_off(db, clock, 1.0)
    clock.advance(3)
    assert look()["now"] == format_time(START + 13 * 10**6)


def test_a_frozen_one_stands_and_goes_on_from_there(timed, clock, look, move):
    clock.advance(4)
    frozen = move(status="frozen").json["data"]
    assert (frozen["status"], frozen["now"]) == ("frozen", format_time(START + 4 * 10**6))
    clock.advance(9)
    assert look()["now"] == frozen["now"]
    assert move(status="running").json["data"]["now"] == frozen["now"]
    clock.advance(1)
    assert look()["now"] == format_time(START + 5 * 10**6)


def test_an_advance_lets_happen_all_that_would_have_happened(timed, db, clock, look, move, master):
    answer = move(status="frozen", advance="10d")
    assert (answer.status, list(answer.json["data"])) == (200, FIELDS)
    assert look() | {"real_now": ""} == {
        **{"now": format_time(START + 10 * DAY), "real_now": "", "status": "frozen", "speed": 1},
        **{"target": None, "progress": None},
    }
    stats = timed.get("/api/stats", token=master).json
    assert 60 < stats["total_tickets"] < 140
    assert 0 < stats["total_unprocessed_tickets"] < 40
    tickets = timed.get("/api/tickets?per_page=200", token=master).json["data"]
    times = [ticket["created_at"] for ticket in tickets]
    assert times == sorted(times)
    assert format_time(START) < times[0] < times[-1] < format_time(START + 10 * DAY)
    assert problems(db) == []


def test_a_moment_may_be_given_instead_and_the_present_one_is_fine(clock, look, move):
    move(status="frozen")
    assert move(now=look()["now"]).status == 200
    assert move(now="2025-02-01T08:00:00Z").json["data"]["now"] == "2025-02-01T08:00:00.000000Z"
    assert look()["now"] == "2025-02-01T08:00:00.000000Z"


BAD = [
    ({}, "status"),
    ({"other": 1}, "status"),
    ({"status": "stopped"}, "status"),
    ({"status": []}, "status"),
    ({"status": 1}, "status"),
    ({"speed": 0}, "speed"),
    ({"speed": -1}, "speed"),
    ({"speed": "fast"}, "speed"),
    ({"speed": 1e300}, "speed"),
    ({"speed": True}, "speed"),
    ({"speed": 100_001}, "speed"),
    ({"speed": "0.0001"}, "speed"),
    ({"speed": {}}, "speed"),
    ({"advance": "a while"}, "advance"),
    ({"advance": "-1d"}, "advance"),
    ({"advance": "3654d"}, "advance"),
    ({"advance": "9999999999d"}, "advance"),
    ({"advance": {"d": 1}}, "advance"),
    ({"now": "2024-12-31T23:59:59Z"}, "now"),
    ({"now": "2035-06-01T00:00:00Z"}, "now"),
    ({"now": "9999-06-01T00:00:00Z"}, "now"),
    ({"now": "2025-02-30T00:00:00Z"}, "now"),
    ({"now": "tomorrow"}, "now"),
    ({"now": 5}, "now"),
    ({"now": "2025-02-01T00:00:00Z", "advance": "1d"}, "now"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=[str(body) for body, _ in BAD])
def test_what_makes_no_sense_is_refused_and_nothing_moves(timed, db, look, master, body, field):
    before = look()
    answer = timed.send("PUT", "/api/clock", body, token=master)
    assert list(errors_of(answer)) == [field]
    assert look() == before
    assert ticketapi.find_newest_ticket(db) is None


def test_only_who_may_control_the_clock_sets_it(timed, db, clock, token, pen):
    assert timed.get("/api/clock", token=token).status == 200
    assert timed.get("/api/clock").status == 401
    for text in (token, pen):
        assert timed.send("PUT", "/api/clock", {"status": "frozen"}, token=text).status == 403
    keeper = ticketapi.create_token(db, "ann@example.com", "k", [ticketapi.CONTROL_CLOCK], 0, clock.now)["token"]
    assert timed.send("PUT", "/api/clock", {"status": "frozen"}, token=keeper).json["data"]["status"] == "frozen"


def test_a_long_advance_is_told_to_go_on_and_every_state_between_is_sound(timed, db, clock, look, move, monkeypatch):
    monkeypatch.setattr(ticketapi, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(ticketapi, "FIRST_STEP", 10)
    answer = move(status="frozen", advance="3d")
    assert (answer.status, answer.json["data"]["status"]) == (202, "advancing")
    assert answer.json["data"]["target"] == format_time(START + 3 * DAY)
    again = move(advance="1d")
    assert (again.status, format_time(START + 3 * DAY) in again.json["message"]) == (409, True)
    seen = [answer.json["data"]]
    while look()["status"] == "advancing":
        ticketapi.work_off(db, clock, 0.0)
        assert problems(db) == []
        seen.append(look())
    assert len(seen) > 3
    assert [shown["now"] for shown in seen] == sorted(shown["now"] for shown in seen)
    progress = [shown["progress"] for shown in seen[:-1]]
    assert progress == sorted(progress)
    assert 0 < progress[0] < 1
    assert (seen[-1]["status"], seen[-1]["now"]) == ("frozen", format_time(START + 3 * DAY))


def test_what_follows_the_clock_of_the_desk_and_what_does_not(timed, db, clock, move, master):
    move(status="frozen", now="2025-03-01T12:00:00Z")
    at = "2025-03-01T12:00:00.00000"
    ticket = create(timed, master)
    assert ticket["created_at"].startswith(at)
    url = f"/api/tickets/{ticket['id']}"
    assert timed.post(f"{url}/comments", {"content": "x"}, token=master).json["data"]["created_at"].startswith(at)
    assert timed.send("PATCH", url, {"status": "Closed"}, token=master).json["data"]["updated_at"].startswith(at)
    url = "/api/events?per_page=200"
    while (page := timed.get(url, token=master).json)["meta"]["has_more"]:
        url = page["links"]["next"].removeprefix("http://desk.test:8000")
    assert [event["at"][:25] for event in page["data"][-3:]] == [at] * 3
    assert timed.get("/api/stats", token=master).json["most_recent_processed_at"].startswith("2025-03-01 12:00:00")
    assert timed.get("/api/tickets?created_since=1h", token=master).json["data"][-1]["id"] == ticket["id"]
    assert timed.get("/api/tickets/export?start_time=1h", token=master).json["data"][-1]["id"] == ticket["id"]
    assert timed.get("/api/tickets/export?start_time=2025-03-01T12:00:01Z", token=master).status == 422
    assert timed.get("/api/series", token=master).json["data"][-1]["at"].startswith("2025-03-01T")
    users = timed.get(f"/api/users/{ticket['user']['id']}", token=master).json["data"]
    assert users["created_at"].startswith(at)
    assert {row["created_at"][:10] for row in timed.audits()} == {"2025-12-04"}
    assert timed.get("/api/audits?since=1h", token=master).json["data"]
    assert timed.get("/api/token", token=master).status == 200


def test_idempotency_keys_are_kept_by_the_real_time(timed, clock, move, master):
    key = {"Idempotency-Key": "one"}
    move(status="frozen")
    first = timed.post("/api/tickets", NEW, token=master, headers=key)
    move(advance="30d")
    again = timed.post("/api/tickets", NEW, token=master, headers=key)
    assert (again.status, again.body) == (first.status, first.body)
    clock.advance(ticketapi.DAY + 1)
    assert timed.post("/api/tickets", NEW, token=master, headers=key).json["data"]["id"] != first.json["data"]["id"]


def test_two_servers_of_a_desk_share_its_clock(make_api, timed, clock, move, master):
    other = make_api(rate=0)
    move(status="frozen", advance="1d")
    assert other.get("/api/clock", token=master).json["data"]["now"] == format_time(START + DAY)
    other.send("PUT", "/api/clock", {"advance": "1d"}, token=master)
    assert timed.get("/api/clock", token=master).json["data"]["now"] == format_time(START + 2 * DAY)


def test_a_server_that_stops_leaves_it_where_it_is(timed, db, clock, look):
    clock.advance(5)
    simulator = ticketapi.Simulator(timed.settings.db, clock, [])
    simulator.rest()
    stood = look()["now"]
    clock.advance(3600)
    assert look()["now"] == stood == format_time(START + 5 * 10**6)
    ticketapi.work_off(db, clock, 1.0)
    clock.advance(1)
    assert look()["now"] == format_time(START + 6 * 10**6)


def test_a_running_clock_lets_the_desk_live_and_counts_as_runs_of_the_schedule(make_api, db, clock, master):
    begin(db, clock.now, speed=3_600_000)
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=db.place if hasattr(db, "place") else make_api().settings.db), 7)
    scheduler = ticketapi.Scheduler(jobs, clock, simulator=ticketapi.Simulator(make_api().settings.db, clock, jobs))
    api = make_api(schedule=scheduler, rate=0)
    for _ in range(60):
        clock.advance(1)
        ticketapi.run_due_jobs(scheduler.jobs, clock.now)
        scheduler.simulator.turn()
    scheduler.simulator.close()
    total = api.get("/api/stats", token=master).json["total_tickets"]
    assert 10 < total < 40
    made, closed = api.get("/api/schedule", token=master).json["data"]
    assert (made["name"], made["every"], made["runs"]) == ("generate", None, total)
    assert (closed["name"], closed["every"], closed["runs"] > 0) == ("process", None, True)
    now = api.get("/api/clock", token=master).json["data"]["now"]
    assert made["last_at"] <= now < made["next_at"] < "2025-01-06"
    assert problems(db) == []


def test_an_idle_server_ends_an_advance_and_lets_nothing_else_happen(timed, db, clock, look, monkeypatch):
    idle = ticketapi.Simulator(timed.settings.db, clock, [], idle=True)
    clock.advance(9)
    idle.turn()
    assert ticketapi.find_simulation(db).worked == START
    ask(db, clock.now, status="frozen", advance=DAY)
    idle.turn()
    idle.close()
    assert look()["now"] == format_time(START + DAY + 9 * 10**6)
    assert ticketapi.find_newest_ticket(db)


def test_what_was_due_while_nobody_served_a_desk_of_the_real_time_does_not_happen(db, clock):
    steady = ticketapi.find_profile("steady")
    ticketapi.begin_simulation(db, steady, None, None, 3, clock.now)
    clock.advance(7200)
    ticketapi.work_off(db, clock, 1.0)
    assert ticketapi.find_newest_ticket(db)["id"] == 1
    clock.advance(120)
    for _ in range(2):
        ticketapi.work_off(db, clock, 1.0)
    assert ticketapi.find_newest_ticket(db)["id"] == 2 or ticketapi.find_newest_ticket(db)["id"] == 3


def test_a_simulation_that_fails_is_told_once_and_tried_again(timed, clock, caplog):
    broken = ticketapi.Simulator(replace(timed.settings).db, replace(ticketapi.Clock(), wall=lambda: 1 // 0), [])
    for _ in range(3):
        broken.turn()
    assert [record.getMessage()[:30] for record in caplog.records] == ["the simulation cannot go on, t"]


@pytest.mark.parametrize("speed", [1000, 3_600_000, 100_000_000])
def test_all_that_is_due_happens_each_second_while_the_clock_runs(db, clock, speed):
    begin(db, clock.now, speed=speed, profile=ticketapi.find_profile("busy"))
    simulation = ticketapi.find_simulation(db)
    course = ticketapi.course_of(simulation)
    for _ in range(3):
        clock.advance(1)
        ticketapi.work_off(db, clock, 1000.0)
        now = ticketapi.desk_now(db, clock.now)
        came = sum(arrives for _, arrives in course.happenings(START, now))
        assert (ticketapi.newest_ticket(db)[0], now) == (came, ticketapi.find_simulation(db).now(clock.now))
    assert came >= 0 and now >= START + 3 * speed * 1000


def test_at_the_end_of_time_it_stands_and_can_be_frozen(db, clock, move, look):
    last = ticketapi.END_OF_TIME - 1
    ticketapi.save_simulation(
        db, ticketapi.find_simulation(db)._replace(start=last - 10**6, base=last - 10**6, worked=last - 10**6)
    )
    clock.advance(5)
    assert look()["now"] == format_time(last) == "9998-12-31T23:59:59.999999Z"
    assert move(status="frozen").json["data"]["status"] == "frozen"
    assert move(speed=3).json["data"]["speed"] == 3


def test_what_only_freezes_or_speeds_up_is_in_nobody_elses_way(timed, db, clock):
    for wish in ({"status": "frozen"}, {"status": "frozen"}, {"speed": 2000}):
        assert ask(db, clock.now, **wish).target is None
