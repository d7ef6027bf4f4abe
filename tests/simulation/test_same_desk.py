"""The same seed, profile and steps of the clock make the same desk, byte for byte, however the steps are cut."""

from contextlib import closing
from itertools import pairwise

import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ticketapi
from simulation.conftest import DAY, SMALL, START, YEAR, ask, begin, digest

INCIDENT = ticketapi.find_profile("incident").scaled(8)
YEARS = {
    "office": (SMALL, "7ce7ffb5737fad0bedf6394013d6d1f754d88d81eb2ca6c85b10da745562c81a"),
    "busy": (ticketapi.find_profile("busy").scaled(12), "225f39ac36d583edbbfe463e43e488ebda1e16718a9973ac6eb6822befc56626"),
    "incident": (
        ticketapi.find_profile("incident").scaled(8),
        "185ab6821df785fbe11a67ce858e2c1e957f22a3e33d13d30cea496e3f39f423",
    ),
    "steady": (ticketapi.find_profile("steady").scaled(9), "0368129ea2399eef92cb72e24156a0734ed347d2994304308979c8baf1704b17"),
}


def advance(db, clock, *lengths):
    """Advance a frozen clock by some lengths, one after the other."""
    for length in lengths:
        ask(db, clock.now, status="frozen", advance=length)
        assert not ticketapi.work_off(db, clock, 1000.0).more


@pytest.mark.parametrize("name", YEARS)
def test_a_year_is_the_same_everywhere(db, clock, name):
    profile, known = YEARS[name]
    begin(db, clock.now, profile=profile)
    advance(db, clock, YEAR)
    assert digest(db) == known


@pytest.mark.parametrize(
    "lengths",
    [(YEAR // 4,) * 4, (1, DAY - 1, YEAR - DAY), (7 * DAY,) * 52 + (DAY,)],
    ids=["quarters", "a microsecond first", "weeks"],
)
def test_a_year_in_pieces_is_the_same_year(db, clock, lengths):
    assert sum(lengths) == YEAR
    begin(db, clock.now)
    advance(db, clock, *lengths)
    assert digest(db) == YEARS["office"][1]


def test_a_year_in_small_transactions_is_the_same_year(db, clock, monkeypatch):
    monkeypatch.setattr(ticketapi, "FIRST_STEP", 7)
    monkeypatch.setattr(ticketapi, "HELD_SECONDS", 0.0)  # ten at most
    begin(db, clock.now)
    advance(db, clock, YEAR)
    assert digest(db) == YEARS["office"][1]


def test_a_year_that_ran_by_itself_at_some_speed_is_the_same_year(db, clock):
    begin(db, clock.now, speed=100_000_000)
    while (simulation := ticketapi.find_simulation(db)).now(clock.now) < START + YEAR - 3 * DAY:
        clock.advance(1.5)
        ticketapi.work_off(db, clock, 1000.0)
    ask(db, clock.now, status="frozen", advance=START + YEAR - simulation.now(clock.now))
    ticketapi.work_off(db, clock, 1000.0)
    assert simulation.speed == 100_000_000
    assert digest(db) == YEARS["office"][1]


@pytest.mark.files
@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3 * DAY), max_size=6), st.sampled_from(sorted(YEARS)))
def test_any_cut_of_a_fortnight_makes_the_same_desk(tmp_path_factory, clock, cuts, name):
    marks = sorted({0, 14 * DAY, *(min(cut * 5, 14 * DAY) for cut in cuts)})
    found = set()
    for lengths in ([14 * DAY], [b - a for a, b in pairwise(marks)]):
        with closing(ticketapi.open_database(tmp_path_factory.mktemp("cut") / "desk.db", "desk")) as db:
            begin(db, clock.now, profile=YEARS[name][0])
            advance(db, clock, *lengths)
            found.add(digest(db))
    assert len(found) == 1
