"""What the scheduler does is seen from outside: /api/schedule tells of its jobs, /up of its thread."""

import json
import sqlite3
from contextlib import closing

import pytest
from conftest import NOON, SECOND, wait_for

import ticketapi

MINUTE, HALF_MINUTE = 60 * SECOND, ticketapi.HEARTBEAT_SECONDS


def go_on(seconds):
    """Wait for nothing, and stop nothing."""
    return False


def fails(now):
    """Fail as a job on a full disk does."""
    raise sqlite3.OperationalError("database or disk is full")


@pytest.fixture
def show(make_api, clock, token):
    """Return a function that gives what /api/schedule says of jobs, by their names."""

    def ask(*jobs):
        api = make_api(ticketapi.Schedule(jobs, clock.monotonic()), rate=0)
        answer = api.get("/api/schedule", token=token)
        assert answer.status == 200
        assert list(answer.json) == ["data"]
        return {job.pop("name"): job for job in answer.json["data"]}

    return ask


def job_that(run, every=60, **more):
    """Return a job."""
    return ticketapi.Job("job", every, run, **more)


# Jobs --------------------------------------------------------------------------------------------


def test_a_job_that_has_not_run_tells_when_it_will(show):
    job = job_that(go_on)
    before = show(job)
    ticketapi.run_due_jobs([job], NOON)
    assert before == show(job)
    assert before["job"] == {
        "every": 60,
        "next_at": "2025-12-04T12:01:00.000000Z",
        "last_at": None,
        "last_status": None,
        "last_result": None,
        "runs": 0,
        "failures": 0,
        "lateness": 0.0,
    }


def test_a_job_that_is_to_run_at_once_is_due_now(show):
    assert show(job_that(go_on, next_at=ticketapi.NEVER))["job"]["next_at"] == "2025-12-04T12:00:00.000000Z"


def test_a_job_that_ran_tells_when_how_late_and_what_it_did(show):
    job = job_that(lambda now: ticketapi.Outcome({"generated": 1}))
    for moment in (NOON, NOON + MINUTE, NOON + 2 * MINUTE + SECOND // 5):
        ticketapi.run_due_jobs([job], moment)
    assert show(job)["job"] == {
        "every": 60,
        "next_at": "2025-12-04T12:03:00.000000Z",
        "last_at": "2025-12-04T12:02:00.200000Z",
        "last_status": "ok",
        "last_result": {"generated": 1},
        "runs": 2,
        "failures": 0,
        "lateness": 0.2,
    }


def test_a_job_that_failed_tells_so_and_its_details_stay_in_the_log(show, caplog):
    job = job_that(fails)
    for minute in range(3):
        ticketapi.run_due_jobs([job], NOON + minute * MINUTE)
    shown = show(job)["job"]
    assert (shown["last_status"], shown["last_result"], shown["runs"], shown["failures"]) == ("failed", None, 2, 2)
    assert "disk" not in json.dumps(shown)
    assert "disk is full" in caplog.text


def test_a_job_that_works_again_keeps_count_of_its_failures(show):
    outcomes = iter([ValueError("no"), ticketapi.Outcome({"generated": 1})])

    def run(now):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    job = job_that(run)
    for minute in range(3):
        ticketapi.run_due_jobs([job], NOON + minute * MINUTE)
    shown = show(job)["job"]
    assert (shown["last_status"], shown["last_result"], shown["runs"], shown["failures"]) == ("ok", {"generated": 1}, 2, 1)


@pytest.mark.parametrize("returned", [None, True, 7, {"generated": 1}])
def test_a_job_need_not_report(show, returned):
    job = job_that(lambda now: returned)
    for moment in (NOON, NOON + MINUTE, NOON + MINUTE + SECOND):
        ticketapi.run_due_jobs([job], moment)
    shown = show(job)["job"]
    assert (shown["last_status"], shown["last_result"], shown["runs"]) == ("ok", None, 1)


def test_a_run_that_goes_on_for_several_turns_is_one_run(show):
    outcomes = iter([ticketapi.Outcome({"pruned": 10}, more=True), ticketapi.Outcome({"pruned": 20}, more=True)])
    job = job_that(lambda now: next(outcomes, ticketapi.Outcome({"pruned": 25})), every=ticketapi.DAY, next_at=ticketapi.NEVER)
    seen = []
    for second in range(4):
        ticketapi.run_due_jobs([job], NOON + second * SECOND)
        shown = show(job)["job"]
        seen.append((shown["runs"], shown["last_result"]["pruned"], shown["last_at"][11:19], shown["next_at"][11:19]))
    assert seen == [
        (1, 10, "12:00:00", "12:00:01"),
        (1, 20, "12:00:00", "12:00:02"),
        (1, 25, "12:00:00", "00:00:00"),
        (1, 25, "12:00:00", "00:00:00"),
    ]
    assert shown["lateness"] == 0.0


def test_a_run_that_fails_on_its_way_is_a_failure_and_the_next_turn_a_new_run(show):
    outcomes = iter([ticketapi.Outcome({"pruned": 10}, more=True), ticketapi.Outcome(None, more=True, failed=True)])
    job = job_that(lambda now: next(outcomes, ticketapi.Outcome({"pruned": 25})), every=ticketapi.DAY, next_at=ticketapi.NEVER)
    seen = []
    for second in range(3):
        ticketapi.run_due_jobs([job], NOON + second * SECOND)
        shown = show(job)["job"]
        seen.append((shown["runs"], shown["failures"], shown["last_status"]))
    assert seen == [(1, 0, "ok"), (1, 1, "failed"), (2, 1, "ok")]
    assert shown["lateness"] == 0.0


# The jobs of a server ----------------------------------------------------------------------------


def test_the_jobs_of_a_server_report_what_their_commands_print(show, desk, db):
    settings = ticketapi.Settings(db=desk, audit_keep=60)
    with closing(ticketapi.AuditLog(settings.audit_db)) as audit:
        old = {"method": "GET", "path": "api/stats", "status_code": 200, "ip_address": "::1", "duration_ms": 1}
        empty = dict.fromkeys(("user_id", "token_id", "route_name", "user_agent", "query", "request_body", "request_id"))
        audit.record({**old, **empty, "created_at": "2020-01-01T00:00:00.000000Z"}, 0.0)
        jobs = ticketapi.scheduled_jobs(settings, 1, audit, go_on)
        for minute in range(6):
            ticketapi.run_due_jobs(jobs, NOON + minute * MINUTE)
    shown = show(*jobs)
    assert list(shown) == ["generate", "process", "prune"]
    assert [job["every"] for job in shown.values()] == [60, 300, 86_400]
    assert [job["runs"] for job in shown.values()] == [5, 1, 1]
    assert [job["last_result"] for job in shown.values()] == [
        {"generated": 1},
        {"processed": 1, "ticket_ids": [1]},
        {"pruned": 1},
    ]


def test_the_rows_of_a_long_prune_are_counted_over_its_turns(tmp_path):
    old = {"method": "GET", "path": "api/stats", "status_code": 200, "ip_address": "::1", "duration_ms": 1}
    empty = dict.fromkeys(("user_id", "token_id", "route_name", "user_agent", "query", "request_body", "request_id"))
    turn = ticketapi.PRUNE_STEPS * ticketapi.AUDIT_STEP
    with closing(ticketapi.AuditLog(tmp_path / "audit.db", grouped=True)) as audit:
        for _ in range(turn + 5):
            audit.record({**old, **empty, "created_at": "2020-01-01T00:00:00.000000Z"}, 0.0)
        audit.commit(0.0)
        pruner = ticketapi.AuditPruner(audit, 60, go_on)
        assert [pruner.run(NOON).result for _ in range(3)] == [{"pruned": turn}, {"pruned": turn + 5}, {"pruned": 0}]


def test_without_the_scheduler_there_is_no_job(api, token):
    assert api.get("/api/schedule", token=token).json == {"data": []}


# The route ---------------------------------------------------------------------------------------


def test_it_needs_a_token_that_may_read_tickets(api, db, token):
    other = ticketapi.create_token(db, "ann@example.com", "test", ["read:audits"], 0, NOON)["token"]
    assert [api.get("/api/schedule", token=text).status for text in (token, other, None)] == [200, 403, 401]
    assert [row["route_name"] for row in api.audits()] == ["schedule"] * 3


def test_it_is_sent_again_only_when_something_ran(make_api, clock, token):
    job = job_that(go_on)
    ticketapi.run_due_jobs([job], NOON)
    api = make_api(ticketapi.Schedule([job], clock.monotonic()))
    headers = {"If-None-Match": api.get("/api/schedule", token=token).headers["etag"]}
    clock.advance(30)
    assert api.get("/api/schedule", token=token, headers=headers).status == 304
    ticketapi.run_due_jobs([job], NOON + MINUTE)
    assert api.get("/api/schedule", token=token, headers=headers).status == 200


def test_the_lists_that_are_remembered_do_not_hold_it_up(make_api, clock, token):
    job = job_that(go_on)
    api = make_api(ticketapi.Schedule([job], clock.monotonic()))
    for minute in range(3):
        ticketapi.run_due_jobs([job], NOON + minute * MINUTE)
        assert api.get("/api/schedule", token=token).json["data"][0]["runs"] == minute


# /up ---------------------------------------------------------------------------------------------


def test_up_tells_when_the_scheduler_has_not_gone_round_for_half_a_minute(make_api, clock):
    schedule = ticketapi.Schedule([job_that(go_on)], clock.monotonic())
    api = make_api(schedule)
    clock.advance(HALF_MINUTE - 1)
    assert api.get("/up").json == {"status": "up"}
    clock.advance(1)
    answer = api.get("/up")
    assert (answer.status, answer.json) == (503, {"message": "The scheduler does not go round."})
    assert answer.headers["retry-after"] == "1"
    schedule.heartbeat = clock.monotonic()
    assert api.get("/up").status == 200


def test_up_does_not_miss_a_scheduler_that_has_nothing_to_do(api, clock):
    clock.advance(10**6)
    assert api.get("/up").status == 200


def test_a_real_server_shows_its_jobs(serve, run, tmp_path):
    served = serve("--generate-every", "1s", "--process-every", "1h")
    token = run("token", "create")[1].strip()

    def generated():
        generate, process = served.get("/api/schedule", token=token).json["data"]
        return generate["runs"] and (generate, process)

    generate, process = wait_for(generated)
    assert (generate["last_status"], generate["last_result"]) == ("ok", {"generated": 1})
    assert 0 <= generate["lateness"] < 5
    assert (process["runs"], process["last_at"]) == (0, None)
    assert served.get("/up").status == 200
