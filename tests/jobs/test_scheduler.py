"""Tickets arrive and are closed on the boundaries of the wall clock, once each, whatever the clock or a job does."""

import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from conftest import NOON, SECOND

import ticketapi

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


class Runs(list):
    """A job that notes when it ran."""

    def job(self, every=60, name="job"):
        """Return the job."""
        return ticketapi.Job(name, every, self.append)


def tick(jobs, start, seconds, step=1):
    """Go round as the thread does, once in so many seconds."""
    for second in range(0, seconds, step):
        ticketapi.run_due_jobs(jobs, start + second * SECOND)


def fails(now):
    """Fail as a job on a full disk does."""
    raise sqlite3.OperationalError("database or disk is full")


def tables(path):
    """Return how many tickets are open and closed, by the counters."""
    with closing(ticketapi.connect(path)) as db:
        return ticketapi.count_tickets(db, ticketapi.OPEN), ticketapi.count_tickets(db, ticketapi.CLOSED)


# When a job runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 10, 60, 300])
@pytest.mark.parametrize("offset", [0, 1, 17 * SECOND])
def test_a_job_runs_on_the_boundaries_of_its_interval(every, offset):
    runs = Runs()
    tick([runs.job(every)], NOON + offset, 3 * every + 20)
    boundaries = [moment // (every * SECOND) for moment in runs]
    assert boundaries == list(range(boundaries[0], boundaries[0] + len(boundaries)))
    assert len(runs) >= 3
    assert all(moment % (every * SECOND) < SECOND for moment in runs)


def test_a_job_does_not_run_at_the_start_but_at_the_first_boundary():
    runs = Runs()
    jobs = [runs.job()]
    ticketapi.run_due_jobs(jobs, NOON + 1)
    ticketapi.run_due_jobs(jobs, NOON + MINUTE - 1)
    assert runs == []
    ticketapi.run_due_jobs(jobs, NOON + MINUTE)
    assert runs == [NOON + MINUTE]


def test_a_job_is_given_the_time_of_its_round():
    runs = Runs()
    jobs = [runs.job()]
    ticketapi.run_due_jobs(jobs, NOON)
    ticketapi.run_due_jobs(jobs, NOON + MINUTE + 123)
    assert runs == [NOON + MINUTE + 123]


def test_two_rounds_in_one_second_run_a_job_once():
    runs = Runs()
    jobs = [runs.job()]
    for moment in (0, MINUTE, MINUTE, MINUTE + 1, MINUTE + SECOND):
        ticketapi.run_due_jobs(jobs, NOON + moment)
    assert len(runs) == 1


@pytest.mark.parametrize("missed", [2 * MINUTE, 10 * MINUTE, 1000 * HOUR])
def test_what_was_missed_is_skipped_and_made_up_for_by_one_run(missed):
    runs = Runs()
    jobs = [runs.job()]
    ticketapi.run_due_jobs(jobs, NOON)
    tick(jobs, NOON + missed, 59)
    assert runs == [NOON + missed]
    ticketapi.run_due_jobs(jobs, NOON + missed + MINUTE)
    assert len(runs) == 2


def test_jobs_keep_to_their_own_intervals():
    often, seldom = Runs(), Runs()
    tick([often.job(60), seldom.job(300)], NOON, 901)
    assert (len(often), len(seldom)) == (15, 3)


# A clock that is set -----------------------------------------------------------------------------


@pytest.mark.parametrize("every", [60, 300, 3600])
@pytest.mark.parametrize("shift", [HOUR, -HOUR, 10 * MINUTE, -10 * MINUTE, 30 * SECOND, -30 * SECOND, -90 * SECOND, 1, -1])
def test_a_clock_that_is_set_doubles_no_run_and_stops_none(every, shift):
    runs = Runs()
    jobs = [runs.job(every)]
    real = [*range(0, 4 * every), *range(4 * every, 9 * every)]
    ran_at = []
    for second in real:
        before = len(runs)
        ticketapi.run_due_jobs(jobs, NOON + second * SECOND + (shift if second >= 4 * every else 0))
        ran_at += [second] * (len(runs) - before)
    assert 6 <= len(ran_at) <= 9
    pauses = [after - earlier for earlier, after in pairwise(ran_at)]
    assert max(pauses) <= 3 * every
    assert sum(pause < every / 2 for pause in pauses) <= (1 if shift > 0 else 0)


@pytest.mark.parametrize("hours", [1, -1])
def test_an_hour_forward_or_back_brings_one_ticket_a_minute_as_before(desk, db, hours):
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=desk, process_every=0), seed=1)
    tick(jobs, NOON, 601, step=10)
    assert tables(desk) == (10, 0)
    tick(jobs, NOON + 610 * SECOND + hours * HOUR, 600, step=10)
    assert tables(desk)[0] in (19, 20, 21)


def test_a_clock_set_back_for_good_does_not_stop_a_job():
    runs = Runs()
    jobs = [runs.job(300)]
    tick(jobs, NOON, 301)
    tick(jobs, NOON - 1000 * HOUR, 901)
    assert len(runs) == 1 + 3


# A job that fails --------------------------------------------------------------------------------


def test_a_failing_job_is_logged_in_one_line_and_keeps_neither_itself_nor_others_from_running(caplog):
    attempts, others = Runs(), Runs()
    jobs = [ticketapi.Job("generate", 60, lambda now: (attempts.append(now), fails(now))), others.job()]
    tick(jobs, NOON, 181)
    assert len(attempts) == len(others) == 3
    messages = [record.getMessage() for record in caplog.records]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
    assert all("generate" in message and "disk is full" in message for message in messages)
    assert "2025-12-04T12:02:00" in messages[0]  # when it is tried again
    assert "\n" not in "".join(messages)


def test_a_desk_that_fails_is_survived_until_it_works_again(desk, db, caplog):
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=desk, process_every=0), seed=1)
    db.execute("ALTER TABLE tickets RENAME TO hidden")
    tick(jobs, NOON, 121, step=10)
    db.execute("ALTER TABLE hidden RENAME TO tickets")
    tick(jobs, NOON + 130 * SECOND, 60, step=10)
    assert len(caplog.records) == 2
    assert tables(desk) == (1, 0)


def test_a_desk_that_is_gone_is_not_made_anew(desk, db, caplog):
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=desk), seed=1)
    db.close()
    desk.unlink()
    tick(jobs, NOON, 61, step=10)
    assert len(caplog.records) == 1
    assert not desk.exists()


# The jobs of a server ----------------------------------------------------------------------------


def test_by_default_a_ticket_arrives_every_minute_and_one_is_closed_every_five(desk, db):
    jobs = ticketapi.scheduled_jobs(ticketapi.Settings(db=desk), seed=1)
    assert [(job.name, job.every) for job in jobs] == [("generate", 60), ("process", 300)]
    tick(jobs, NOON, 1801, step=10)
    assert tables(desk) == (24, 6)
    times = [row[0] for row in db.execute("SELECT created_at FROM tickets ORDER BY id LIMIT 2")]
    assert times == ["2025-12-04T12:01:00.000000Z", "2025-12-04T12:02:00.000000Z"]
    assert [row[0] for row in db.execute("SELECT id FROM tickets WHERE status = 2 ORDER BY closed_at")] == [1, 2, 3, 4, 5, 6]


def test_closing_on_an_empty_desk_is_no_failure(desk, db, caplog):
    tick(ticketapi.scheduled_jobs(ticketapi.Settings(db=desk, generate_every=0), seed=1), NOON, 601, step=10)
    assert tables(desk) == (0, 0)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"generate_every": 0}, ["process"]),
        ({"process_every": 0}, ["generate"]),
        ({"generate_every": 0, "process_every": 0}, []),
        ({"no_scheduler": True}, []),
    ],
)
def test_what_is_off_has_no_job(desk, settings, names):
    jobs = ticketapi.scheduled_jobs(replace(ticketapi.Settings(db=desk), **settings), seed=1)
    assert [job.name for job in jobs] == names


# The thread --------------------------------------------------------------------------------------


@contextmanager
def running(jobs, clock):
    """Run a scheduler's thread, and stop it at the end."""
    scheduler = ticketapi.Scheduler(jobs, clock)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


def wait_until(condition):
    """Wait for another thread, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


@pytest.fixture
def clock(clock):
    """A clock that stands just before noon, so that the thread goes round without a pause."""
    clock.now = NOON - 1
    return clock


def test_the_thread_runs_jobs_when_their_time_comes(clock):
    ran = threading.Event()
    job = ticketapi.Job("job", 60, lambda now: ran.set())
    with running([job], clock):
        wait_until(lambda: job.next_at == NOON)
        assert not ran.is_set()
        clock.now = NOON + MINUTE - 1
        assert ran.wait(10)


def test_the_thread_survives_a_failing_job(clock, caplog):
    ran = threading.Event()
    jobs = [ticketapi.Job("failing", 1, fails), ticketapi.Job("job", 60, lambda now: ran.set())]
    with running(jobs, clock) as scheduler:
        wait_until(lambda: jobs[1].next_at == NOON)
        clock.now = NOON + MINUTE - 1
        assert ran.wait(10)
        assert scheduler.alive(clock.monotonic())
    assert caplog.records


def test_the_thread_beats_and_is_alive_while_it_does(clock):
    with running([Runs().job()], clock) as scheduler:
        clock.tick += 1000
        wait_until(lambda: scheduler.heartbeat == clock.tick)
        assert scheduler.alive(clock.monotonic())
        assert scheduler.alive(clock.monotonic() + 29)
        assert not scheduler.alive(clock.monotonic() + 30)


def test_a_job_that_hangs_is_not_alive_and_then_is_again(clock):
    begun, goes_on = threading.Event(), threading.Event()
    job = ticketapi.Job("hanging", 60, lambda now: (begun.set(), goes_on.wait(10)))
    with running([job], clock) as scheduler:
        wait_until(lambda: job.next_at == NOON)
        clock.now = NOON + MINUTE - 1
        assert begun.wait(10)
        clock.tick += 31
        assert not scheduler.alive(clock.monotonic())
        goes_on.set()
        wait_until(lambda: scheduler.alive(clock.monotonic()))


def test_stopping_lets_the_running_job_end_and_begins_no_other(clock):
    begun, ended, runs = threading.Event(), threading.Event(), Runs()

    def work(now):
        begun.set()
        threading.Thread(target=scheduler.stop).start()
        wait_until(lambda: scheduler._stop.is_set())
        clock.now = NOON + HOUR - 1  # the other job would be due in the next round
        ended.set()

    jobs = [ticketapi.Job("working", 1, work), runs.job(every=7)]
    clock.now = NOON - SECOND - 1
    with running(jobs, clock) as scheduler:
        wait_until(lambda: jobs[1].next_at)
        clock.now = NOON - SECOND + 1
        assert begun.wait(10)
    assert ended.is_set()
    assert runs == []


def test_stopping_is_quick_while_nothing_runs(clock):
    clock.now = NOON  # a whole second until the next round
    with running([Runs().job()], clock) as scheduler:
        begun = time.monotonic()
        scheduler.stop()
        assert time.monotonic() - begun < 0.9


def test_a_scheduler_without_jobs_has_no_thread_and_counts_as_alive(clock):
    before = threading.active_count()
    with running([], clock) as scheduler:
        assert threading.active_count() == before
        assert scheduler.alive(clock.monotonic() + 10**6)


def test_a_scheduler_that_was_never_started_can_be_stopped(clock):
    ticketapi.Scheduler([Runs().job()], clock).stop()
