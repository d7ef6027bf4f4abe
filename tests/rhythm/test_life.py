"""A desk that lives by a profile is believable: its backlog stays, its weeks are weeks, and it goes on as its history went."""

from bisect import bisect_right
from collections import Counter
from itertools import pairwise

import pytest
from manual import code, section, table
from replay import DAY, HOUR, NEW_YEAR, hour, replay, weekday

import ticketapi

WARM = NEW_YEAR + 28 * DAY


# What happens in 2025 with seed 1, on every machine and Python.
YEARS = {
    "steady": "271d1b0ed922ff1a80dd0218a82685777e786cd37d1d60816a7203fcd9b9e417",
    "office": "00629c2c1f22796c6cd7b5d117c4426732d7dbf67744a597f50925059344ece4",
    "busy": "dc0ba2efe58591ce879b92b3a5c314b8d3388b36c8f95dfd9a20001fcff4d437",
    "incident": "dc486da577aff0d1d5a119413b88402af23371e83fe1a13c452f63116b323cf8",
}


def live(profile, days, seed=1):
    """Return what becomes of an empty desk from the start of 2025 on."""
    return replay(ticketapi.Course(profile, seed, NEW_YEAR), NEW_YEAR, NEW_YEAR + days * DAY)


@pytest.fixture(scope="module")
def years():
    """A year of each profile."""
    return {name: live(ticketapi.find_profile(name), 365) for name in YEARS}


@pytest.mark.parametrize("name", YEARS)
def test_a_year_is_the_same_on_every_machine(years, name):
    assert years[name].digest == YEARS[name]


@pytest.mark.parametrize("name", YEARS)
def test_the_figures_of_the_manual_are_those_of_a_year(years, name):
    desk = years[name]
    row = next(row for row in table(section("simulation.md", "Profiles")) if code(row[0]) == name)
    assert row[1:3] == [f"{len(desk.arrivals):,}", f"{len(desk.closings):,}"]
    if name != "steady":
        waits, backlog = desk.waits, desk.at_noon(WARM)
        assert row[3] == f"{waits[len(waits) // 2]:.0f} h, one in ten {waits[len(waits) * 9 // 10]:.0f} h"
        assert row[4] == f"{min(backlog):,} to {max(backlog):,}"


def test_a_steady_desk_grows_by_48_an_hour(years):
    counts = list(years["steady"].backlog.values())
    assert {later - earlier for earlier, later in pairwise(counts)} == {48}


@pytest.mark.parametrize("name", ["office", "busy", "incident"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_backlog_neither_grows_nor_vanishes(name, seed):
    counts = live(ticketapi.find_profile(name).scaled(100), 2 * 365, seed).at_noon(WARM)
    half = len(counts) // 2
    first, second = (sorted(part)[half // 2] for part in (counts[:half], counts[half:]))
    assert second == pytest.approx(first, rel=0.1)
    assert min(counts) > 0.6 * first
    if name != "incident":
        assert max(counts) < 1.6 * first


def test_an_incident_floods_the_desk_now_and_then_and_is_worked_off(years):
    counts = years["incident"].at_noon(WARM)
    calm = sorted(counts)[len(counts) // 4]
    flooded = [count > 2 * calm for count in counts]
    assert max(counts) > 3 * calm
    assert 5 <= sum(now and not before for before, now in pairwise(flooded)) <= 26
    assert sum(flooded) < 0.4 * len(flooded)


def test_a_busy_team_has_hardly_an_hour_to_spare_and_an_office_has(years):
    idle = {name: 1 - len(desk.closings) / desk.chances for name, desk in years.items()}
    assert idle["busy"] < 0.03
    assert 0.2 < idle["office"] < 0.3


def test_tickets_arrive_and_are_closed_by_day_and_on_weekdays(years):
    desk = years["office"]
    arrived, closed = Counter(map(hour, desk.arrivals)), Counter(hour(at) for _, at in desk.closings)
    assert min(arrived[h] for h in range(9, 17)) > 5 * max(arrived[h] for h in range(6))
    assert sum(closed[h] for h in range(7, 19)) > 0.9 * len(desk.closings)
    assert sum(weekday(at) >= 5 for at in desk.arrivals) / len(desk.arrivals) == pytest.approx(24 / 177, abs=0.01)
    assert sum(weekday(at) >= 5 for _, at in desk.closings) < 0.1 * len(desk.closings)


# A history and what comes after it ----------------------------------------------------------------


@pytest.fixture(scope="module", params=["2025-12-04T12:00", "2025-12-07T23:59", "2025-03-12T15:30", "2024-02-29T02:00"])
def seam(request):
    """Ten thousand tickets of ninety days as --demo makes them, and eight weeks in which the desk goes on as an office."""
    now = ticketapi.parse_time(f"{request.param}:00.000000Z")
    history = ticketapi.plan_history(now - 90 * DAY, now, 1)
    arrivals = [history.arrival(1, i, 10_000, i + 1) for i in range(10_000)]
    closings = [history.closing(moment) for moment in arrivals]
    waiting = [came for came, closed in zip(arrivals, closings, strict=True) if closed is None]
    course = ticketapi.Course(ticketapi.find_profile("office").scaled(10_000 / 90), 1, now)
    return now, arrivals, [moment for moment in closings if moment], replay(course, now, now + 56 * DAY, waiting)


def test_the_backlog_of_a_history_stays_as_it_was(seam):
    now, arrivals, closings, desk = seam
    noons = [at for at in range((now - 60 * DAY) // DAY * DAY + DAY // 2, now, DAY) if weekday(at) < 5]
    before = sorted(bisect_right(arrivals, at) - bisect_right(closings, at) for at in noons)
    after = sorted(desk.at_noon())
    assert 60 <= after[0] <= after[-1] <= 200
    assert after[len(after) // 2] == pytest.approx(before[len(before) // 2], rel=0.15)
    fortnights = [[count for at, count in desk.backlog.items() if at // (14 * DAY) == now // (14 * DAY) + i] for i in (1, 3)]
    assert sum(fortnights[1]) / len(fortnights[1]) == pytest.approx(sum(fortnights[0]) / len(fortnights[0]), rel=0.15)


def test_tickets_wait_as_long_as_they_did(seam):
    _, arrivals, closings, desk = seam
    before = sorted((closed - came) / HOUR for came, closed in zip(arrivals, closings, strict=False))
    after = desk.waits
    for share in (0.5, 0.9):
        assert after[int(len(after) * share)] == pytest.approx(before[int(len(before) * share)], rel=0.15)


@pytest.mark.parametrize(("part", "arriving", "closing"), [(hour, 0.01, 0.045), (weekday, 0.04, 0.06)])
def test_hours_and_weekdays_have_the_shares_that_they_had(seam, part, arriving, closing):
    _, arrivals, closings, desk = seam
    for before, after, tolerance in (
        (arrivals, desk.arrivals, arriving),
        (closings, [at for _, at in desk.closings], closing),
    ):
        counts, later = Counter(map(part, before)), Counter(map(part, after))
        for key, count in counts.items():
            assert later[key] / len(after) == pytest.approx(count / len(before), abs=tolerance)


def test_as_many_tickets_arrive_as_did(seam):
    _, arrivals, _, desk = seam
    assert len(desk.arrivals) / 56 == pytest.approx(len(arrivals) / 90, rel=0.08)


def test_an_empty_desk_fills_within_days():
    counts = live(ticketapi.find_profile("office"), 28).at_noon()
    assert counts[0] < 0.5 * counts[-1]
    assert max(counts) < 450
