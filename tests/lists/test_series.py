"""GET /api/series: the desk by the hour or day, from counters kept as tickets are written."""

from collections import Counter
from contextlib import closing

import pytest
from conftest import NOON, SECOND, close_out_of_order
from hypothesis import given, settings
from hypothesis import strategies as st

import ticketapi

HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
ANY_WAIT = st.integers(0, 10**10)


def series(api, token, query=""):
    """Return data and meta of an answer."""
    answer = api.get(f"/api/series{query}", token=token)
    assert answer.status == 200, answer.json
    return answer.json["data"], answer.json["meta"]


def cut(seconds):
    """Return a wait as the counters have it: its first two digits, then zeros."""
    text = str(seconds)
    return int(text[:2] + "0" * (len(text) - 2)) if len(text) > 2 else seconds


def plain_series(db, keys, digits):
    """Return the same figures for some hours or days, by looking at every ticket."""
    rows = db.execute("SELECT created_at, closed_at FROM tickets").fetchall()
    points = []
    for key in keys:
        waits = sorted(
            (ticketapi.parse_time(closed) // SECOND - ticketapi.parse_time(created) // SECOND)
            for created, closed in rows
            if closed and closed[:digits] == key
        )
        backlog = sum(created[:digits] <= key and not (closed and closed[:digits] <= key) for created, closed in rows)
        opened = sum(created[:digits] == key for created, _ in rows)
        points.append(
            (opened, len(waits), backlog, *(waits[-(-len(waits) * p // 100) - 1] if waits else None for p in (50, 95)))
        )
    return points


def assert_close(found, exact):
    """Check a wait told to two digits against the exact one."""
    assert (found is None) == (exact is None)
    if exact is not None:
        assert abs(found - exact) <= 0.05 * exact


@pytest.fixture
def lived(db):
    """A desk with a history of ten days that ends at noon, and some tickets closed out of order since."""
    ticketapi.generate_history(db, 700, 10 * DAY // SECOND, NOON, seed=3)
    ids = [row[0] for row in ticketapi.list_oldest_open_tickets(db, 20)]
    close_out_of_order(db, ids[::-3], NOON)
    return db


@pytest.mark.parametrize(
    ("query", "count", "digits"),
    [
        ("", 25, 13),
        ("?since=24h", 25, 13),
        ("?since=11d", 265, 13),
        ("?since=11d&bucket=day", 12, 10),
        ("?since=5d&bucket=hour", 121, 13),
        ("?since=2025-11-30T05:06:07Z&bucket=day", 5, 10),
        ("?since=2025-12-04T11:59:59.5Z", 2, 13),
        ("?since=0&bucket=day", 1, 10),
    ],
)
def test_it_tells_of_every_hour_or_day_what_the_tickets_tell(api, lived, token, query, count, digits):
    data, meta = series(api, token, query)
    assert (len(data), data[0]["at"], meta["bucket"]) == (count, meta["since"], "hour" if digits == 13 else "day")
    exact = plain_series(lived, [point["at"][:digits] for point in data], digits)
    assert [(point["opened"], point["closed"], point["backlog"]) for point in data] == [point[:3] for point in exact]
    for point, (*_, p50, p95) in zip(data, exact, strict=True):
        assert_close(point["wait_p50"], p50)
        assert_close(point["wait_p95"], p95)
    assert data[-1]["at"][:digits] == ticketapi.format_time(NOON)[:digits]
    assert data[-1]["backlog"] == ticketapi.count_tickets(lived, ticketapi.OPEN)


def test_the_hours_of_a_day_are_that_day(api, lived, token):
    hours, _ = series(api, token, "?since=10d")
    days, _ = series(api, token, "?since=10d&bucket=day")
    for name in ("opened", "closed"):
        by_day = Counter()
        for hour in hours:
            by_day[hour["at"][:10]] += hour[name]
        assert [by_day[day["at"][:10]] for day in days[1:]] == [day[name] for day in days[1:]]


def test_an_empty_desk_has_hours_in_which_nothing_happened(api, token):
    data, meta = series(api, token, "?since=2h")
    assert [point["at"] for point in data] == [f"2025-12-04T{hour}:00:00.000000Z" for hour in (10, 11, 12)]
    nothing = {"opened": 0, "closed": 0, "backlog": 0, "wait_p50": None, "wait_p95": None}
    assert [{**point, "at": ""} for point in data] == [{"at": "", **nothing}] * 3
    assert meta["closed_last_hour"] == 0


@pytest.mark.parametrize(("after", "closed"), [(0, 5), (3599, 5), (3600, 5), (3605, 0)])
def test_it_counts_what_was_closed_within_the_hour_before(api, db, clock, token, after, closed):
    ticketapi.generate_tickets(db, 9, NOON - 2 * HOUR, seed=1)
    ticketapi.process_tickets(db, 3, NOON - HOUR - 10 * SECOND)
    ticketapi.process_tickets(db, 5, NOON)
    clock.advance(after)
    assert series(api, token)[1]["closed_last_hour"] == closed


def test_a_clock_that_was_set_back_loses_nothing(api, db, clock, token):
    ticketapi.generate_tickets(db, 4, NOON + 5 * HOUR, seed=1)
    ticketapi.process_tickets(db, 1, NOON + 6 * HOUR)
    data, _ = series(api, token, "?since=1h")
    assert [(point["opened"], point["closed"], point["backlog"]) for point in data] == [(0, 0, 0), (4, 1, 3)]
    clock.now += 7 * HOUR
    later, _ = series(api, token, "?since=7h")
    assert [(point["opened"], point["closed"], point["backlog"]) for point in later[-3:]] == [(4, 0, 4), (0, 1, 3), (0, 0, 3)]


def test_it_is_good_for_a_minute_and_new_when_the_desk_changes(api, db, clock, token):
    first = api.get("/api/series", token=token)
    same = {"If-None-Match": first.headers["etag"]}
    assert api.get("/api/series", token=token, headers=same).status == 304
    ticketapi.generate_tickets(db, 1, NOON, seed=1)
    assert api.get("/api/series", token=token, headers=same).json["data"][-1]["opened"] == 1
    clock.advance(3600)
    assert series(api, token)[0][-1]["at"] == "2025-12-04T13:00:00.000000Z"


NO_TIME = "The since field must be a duration such as 7d, or a UTC time such as 2025-12-04T11:30:16Z."


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("?bucket=week", {"bucket": "The bucket field must be hour or day."}),
        ("?since=yesterday", {"since": NO_TIME}),
        ("?since=-5d", {"since": NO_TIME}),
        ("?since=2025-13-04T11:30:16Z", {"since": NO_TIME}),
        ("?since=2025-12-04T24:30:16Z", {"since": NO_TIME}),
        ("?since=2025-12-04T12:00:01Z", {"since": "The since field must not lie in the future."}),
        ("?since=100d", {"since": "The since field must lie less than 2400 hours back."}),
        ("?since=3653d&bucket=day", {"since": "The since field must lie less than 3653 days back."}),
        ("?since=9&bucket=9", {"bucket": "The bucket field must be hour or day.", "since": NO_TIME}),
    ],
)  # fmt: skip
def test_what_it_cannot_use_is_named(api, token, query, errors):
    answer = api.get(f"/api/series{query}", token=token)
    assert (answer.status, answer.json["errors"]) == (422, {name: [text] for name, text in errors.items()})


@pytest.mark.parametrize(
    ("query", "count"), [("?since=99d&bucket=hour", 2377), ("?since=3652d&bucket=day", 3653), ("?since=&bucket=", 25)]
)
def test_it_reaches_as_far_back_as_it_says(api, token, query, count):
    assert len(series(api, token, query)[0]) == count


@settings(deadline=None, database=None)
@given(ANY_WAIT)
def test_a_wait_is_kept_to_two_digits(seconds):
    assert ticketapi.cut_wait(seconds) == cut(seconds)
    assert 0 <= seconds - ticketapi.cut_wait(seconds) < max(1, 0.1 * seconds)


@settings(deadline=None, database=None)
@given(st.lists(ANY_WAIT, min_size=1), st.sampled_from([50, 95]))
def test_a_typical_wait_is_within_a_twentieth_of_the_exact_one(waits, percent):
    exact = sorted(waits)[-(-len(waits) * percent // 100) - 1]
    found = ticketapi.typical_wait(Counter(map(ticketapi.cut_wait, waits)), percent)
    assert abs(found - exact) <= 0.05 * exact


@pytest.mark.files
def test_it_reads_nothing_but_the_hours_asked_for(desk, lived):
    asked = ticketapi.parse_series_request({"since": "2h"}, NOON)
    steps = []
    with closing(ticketapi.connect(desk, ticketapi.READER)) as db:
        db.set_progress_handler(lambda: steps.append(1), 100)
        ticketapi.desk_series(db, asked, NOON)
    assert len(steps) < 20
