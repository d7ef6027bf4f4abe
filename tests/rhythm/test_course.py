"""What happens on a desk follows from profile, seed and start alone, however it is asked for, on every machine."""

import hashlib
import json
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay import DAY, HOUR, NEW_YEAR

import ticketapi

MINUTE = HOUR // 60
YEAR = 365 * DAY
SHIPPED = {name: ticketapi.find_profile(name) for name in ("steady", "office", "busy", "incident")}
NOTHING = {"tickets_a_day": 0, "team": 0}


def weights(count):
    """Weights, of which many may be 0."""
    return st.lists(st.sampled_from([0, 0, 1, 7, 1000]), min_size=count, max_size=count).filter(any)


@st.composite
def profiles(draw):
    """Any profile, of a few tickets a day."""
    data = {
        "tickets_a_day": draw(st.sampled_from([0, 0.5, 3, 40, 200.125])),
        "team": draw(st.sampled_from([0, 0.1, 2])),
        "tickets_an_hour": draw(st.sampled_from([0.3, 4])),
        "hours": draw(weights(24)),
        "weekdays": draw(weights(7)),
        "working_hours": draw(weights(24)),
        "working_days": draw(weights(7)),
        "wait_hours": draw(st.sampled_from([0, 0.001, 8, 40])),
        "bursts_a_month": draw(st.sampled_from([0, 2, 30])),
        "burst_hours": draw(st.sampled_from([0, 1.5, 24])),
        "burst_factor": draw(st.sampled_from([0, 0.5, 9])),
        "growth": draw(st.sampled_from([-100, -3, 0, 12.5, 1000])),
        "arrive_every": draw(st.sampled_from(["0", "0", "7m", "5h"])),
        "close_every": draw(st.sampled_from(["0", "0", "11m", "2d"])),
    }
    return ticketapi.read_profile(data)


any_profile = st.one_of(profiles(), st.sampled_from([profile.scaled(30) for profile in SHIPPED.values()]))
seeds = st.integers(0, 2**63 - 1)
starts = st.integers(0, 60 * 365 * DAY)
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def happenings(profile, seed, start, after, until):
    """Return what a new course has happen in a period."""
    return list(ticketapi.Course(profile, seed, start).happenings(after, until))


# The same, whoever asks and how ------------------------------------------------------------------


@patient
@given(any_profile, seeds, starts, st.integers(0, 40 * DAY), st.lists(st.integers(0, 20 * DAY), max_size=6))
def test_a_period_is_the_sum_of_its_pieces(profile, seed, start, begin, cuts):
    after, until = start + begin, start + begin + 20 * DAY
    whole = happenings(profile, seed, start, after, until)
    moments = [after, *sorted(after + cut for cut in cuts), until]
    course = ticketapi.Course(profile, seed, start)
    assert [one for piece in pairwise(moments) for one in course.happenings(*piece)] == whole
    assert [one for piece in pairwise(moments) for one in happenings(profile, seed, start, *piece)] == whole


@patient
@given(any_profile, seeds, starts)
def test_a_course_that_was_asked_of_later_days_first_says_the_same(profile, seed, start):
    course = ticketapi.Course(profile, seed, start)
    later = list(course.happenings(start + 30 * DAY, start + 35 * DAY))
    earlier = list(course.happenings(start, start + 30 * DAY))
    assert earlier + later == happenings(profile, seed, start, start, start + 35 * DAY)


@patient
@given(any_profile, seeds, starts)
def test_happenings_are_inside_their_period_in_order_and_an_arrival_is_before_a_closing(profile, seed, start):
    found = happenings(profile, seed, start, start + 3 * DAY, start + 13 * DAY)
    assert all(start + 3 * DAY < moment <= start + 13 * DAY for moment, _ in found)
    assert found == sorted(found, key=lambda one: (one[0], not one[1]))


@patient
@given(any_profile, seeds, starts)
def test_nothing_happens_before_the_start_or_at_it(profile, seed, start):
    early = happenings(profile, seed, start, start - 5 * DAY, start + 5 * DAY)
    assert early == happenings(profile, seed, start, start, start + 5 * DAY)
    assert all(moment > start for moment, _ in early)


def test_happenings_come_one_by_one_however_long_the_period():
    course = ticketapi.Course(SHIPPED["office"], 1, NEW_YEAR)
    assert len(list(islice(course.happenings(NEW_YEAR, NEW_YEAR + 10**6 * YEAR), 5))) == 5


def test_another_seed_is_another_life():
    one, other = (happenings(SHIPPED["office"], seed, NEW_YEAR, NEW_YEAR, NEW_YEAR + 5 * DAY) for seed in (1, 2))
    assert not {moment for moment, _ in one} & {moment for moment, _ in other}


def test_tickets_arrive_at_moments_of_their_own():
    arrivals = [at for at, arrives in happenings(SHIPPED["busy"], 1, NEW_YEAR, NEW_YEAR, NEW_YEAR + 60 * DAY) if arrives]
    assert len(set(arrivals)) == len(arrivals) > 60_000


# When ---------------------------------------------------------------------------------------------


def test_steady_is_a_ticket_a_minute_and_a_closing_in_five():
    found = happenings(SHIPPED["steady"], 7, NEW_YEAR, NEW_YEAR + 3 * MINUTE + 1, NEW_YEAR + 10 * MINUTE)
    expected = [(NEW_YEAR + minute * MINUTE, arrives) for minute in range(4, 11) for arrives in (True, False)]
    assert found == [(at, arrives) for at, arrives in expected if arrives or at % (5 * MINUTE) == 0]


@pytest.mark.parametrize("seconds", [1, 7, 90, 3601, 8 * 86_400])
def test_what_comes_every_so_often_comes_at_whole_multiples_since_1970(seconds):
    profile = ticketapi.read_profile({**NOTHING, "arrive_every": f"{seconds}s"})
    course = ticketapi.Course(profile, 1, NEW_YEAR + 12_345_678)
    moments = [moment for moment, _ in islice(course.happenings(NEW_YEAR, NEW_YEAR + 10 * YEAR), 5)]
    first = (NEW_YEAR + 12_345_678) // (seconds * 10**6) + 1
    assert moments == [(first + i) * seconds * 10**6 for i in range(5)]


@settings(patient, max_examples=20)
@given(st.sampled_from([0.5, 3, 40]), weights(24), weights(7), seeds)
def test_as_many_arrive_as_the_profile_says_in_hours_that_weigh_something(tickets, hours, weekdays, seed):
    profile = ticketapi.read_profile({"tickets_a_day": tickets, "hours": hours, "weekdays": weekdays, "team": 0})
    arrivals = [at for at, _ in happenings(profile, seed, NEW_YEAR, NEW_YEAR, NEW_YEAR + 52 * 7 * DAY)]
    assert 0.85 * tickets * 364 - 1 <= len(arrivals) <= 1.15 * tickets * 364 + 1
    assert all(hours[at // HOUR % 24] and weekdays[(at // DAY + 3) % 7] for at in arrivals)


def test_a_team_closes_as_many_as_it_can():
    profile = ticketapi.read_profile({"team": 2.5, "tickets_an_hour": 4, "working_days": [1] * 7, "working_hours": [1] * 24})
    chances = sum(not arrives for _, arrives in happenings(profile, 1, NEW_YEAR, NEW_YEAR, NEW_YEAR + YEAR))
    assert 0.97 < chances / (2.5 * 4 * 24 * 365) < 1.03


@pytest.mark.parametrize(("growth", "third"), [(50, 2), (-30, 0.4), (-100, 0.1), (0, 1), (100, 3)])
def test_growth_adds_to_tickets_and_team_alike_and_leaves_a_tenth(growth, third):
    profile = SHIPPED["office"].scaled(50)._replace(growth=growth * 1000)
    course = ticketapi.Course(profile, 1, NEW_YEAR)
    years = [Counter(arrives for _, arrives in course.happenings(at, at + 28 * DAY)) for at in (NEW_YEAR, NEW_YEAR + 2 * YEAR)]
    for arrives in (True, False):
        assert years[1][arrives] / years[0][arrives] == pytest.approx(third, rel=0.12)


def test_a_burst_brings_more_tickets_for_some_hours_in_hours_when_people_write():
    calm = ticketapi.Course(SHIPPED["office"], 1, NEW_YEAR)
    flooded = ticketapi.Course(
        SHIPPED["office"]._replace(bursts_a_month=2000, burst_hours=4000, burst_factor=5000), 1, NEW_YEAR
    )
    counts = [
        Counter(at // HOUR for at, arrives in course.happenings(NEW_YEAR, NEW_YEAR + YEAR) if arrives)
        for course in (calm, flooded)
    ]
    bursting = [at for at in sorted(counts[0]) if counts[0][at] >= 10 and counts[1][at] > 3 * counts[0][at]]
    begun = [at for at in bursting if at - 1 not in bursting]
    assert 15 <= len(begun) <= 33  # 24 in the mean
    assert 2 < len(bursting) / len(begun) <= 4.5
    assert sum(counts[1][at] for at in bursting) / sum(counts[0][at] for at in bursting) == pytest.approx(5, rel=0.1)
    rest = counts[1].keys() - bursting
    assert sum(counts[1][at] for at in rest) / sum(counts[0][at] for at in rest) == pytest.approx(1, abs=0.05)


@patient
@given(any_profile, seeds, starts)
def test_the_next_of_each_kind_is_the_first_that_will_happen(profile, seed, start):
    course, after = ticketapi.Course(profile, seed, start), start + DAY
    for find, wanted in ((course.next_arrival, True), (course.next_closing, False)):
        coming = [moment for moment, arrives in course.happenings(after, after + 20 * DAY) if arrives == wanted]
        found = find(after)
        assert found == coming[0] if coming else found is None or found > after + 20 * DAY


def test_where_nothing_arrives_or_nobody_works_there_is_no_next_one():
    course = ticketapi.Course(ticketapi.read_profile(NOTHING), 1, NEW_YEAR)
    assert course.next_arrival(NEW_YEAR) is course.next_closing(NEW_YEAR) is None
    assert list(course.happenings(NEW_YEAR, NEW_YEAR + YEAR)) == []


def test_the_rarest_ticket_is_found():
    profile = ticketapi.read_profile({"tickets_a_day": 0.001})
    course, moments = ticketapi.Course(profile, 1, NEW_YEAR), [NEW_YEAR]
    for _ in range(4):
        moments.append(course.next_arrival(moments[-1]))
    assert moments[4] - moments[1] == pytest.approx(3000 * DAY, rel=0.4)


# From when on a ticket may be closed --------------------------------------------------------------


@patient
@given(any_profile, seeds, starts, st.lists(st.integers(-50 * DAY, 50 * DAY), min_size=2, max_size=20))
def test_a_ticket_may_be_closed_after_it_came_and_after_those_before_it(profile, seed, start, offsets):
    course = ticketapi.Course(profile, seed, start)
    came = sorted(start + offset for offset in offsets)
    dues = [course.due(moment) for moment in came]
    assert all(due >= moment for due, moment in zip(dues, came, strict=True))
    assert dues == sorted(dues)


def test_a_ticket_waits_until_the_team_has_worked_for_it():
    flat = {"working_hours": [0] * 9 + [1] * 8 + [0] * 7, "working_days": [1] * 5 + [0, 0]}
    course = ticketapi.Course(ticketapi.read_profile({**flat, "wait_hours": 8}), 1, NEW_YEAR)
    friday = ticketapi.parse_time("2025-03-07T13:00:00.000000Z")
    days = [(course.due(friday + week * 7 * DAY) - friday) / DAY % 7 for week in range(20)]
    assert all(2.8 < day < 3.25 for day in days)  # around noon on Monday, as no two days are equally busy
    assert len(set(days)) > 10


def test_growth_makes_a_team_larger_not_faster():
    office = SHIPPED["office"]
    courses = [ticketapi.Course(office._replace(growth=growth), 1, NEW_YEAR) for growth in (0, 100_000)]
    assert len({course.due(NEW_YEAR + 2 * YEAR) for course in courses}) == 1


@pytest.mark.parametrize("data", [{"wait_hours": 0, "working_hours": [1] * 24, "working_days": [1] * 7}, {"close_every": "5m"}])
def test_a_team_that_lets_nobody_wait_closes_at_once(data):
    course = ticketapi.Course(ticketapi.read_profile(data), 1, NEW_YEAR)
    assert [course.due(NEW_YEAR + i * 12_345_678_901) for i in range(50)] == [NEW_YEAR + i * 12_345_678_901 for i in range(50)]


# The past -----------------------------------------------------------------------------------------

# Arrivals and closings of histories that end in noon of 2025-12-04: seed, tickets, days.
PASTS = {
    (1, 10_000, 90): "4a7533562d20af7eb2905d7f7c6359bc567f105193fe4f51eb981aa9ecef2e68",
    (7, 3000, 400): "3d9613a8052a6a012adb79fce2cc04fecdcc30e08a19a5c12f26df3cb111ee1e",
    (3, 50, 1): "96008739eccaf3f24861e4874016db10decd02428fa6ab0959be90d7cc510c25",
}


@pytest.mark.parametrize(("seed", "count", "days"), PASTS)
def test_a_history_is_what_it_was_before_there_were_profiles(seed, count, days):
    now = ticketapi.parse_time("2025-12-04T12:02:03.456789Z")
    history = ticketapi.plan_history(now - days * DAY, now, seed)
    arrivals = [history.arrival(seed, i, count, i + 1) for i in range(count)]
    written = json.dumps([arrivals, [history.closing(moment) for moment in arrivals]])
    assert hashlib.sha256(written.encode()).hexdigest() == PASTS[seed, count, days]
