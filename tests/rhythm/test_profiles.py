"""A profile is read from JSON and written as such; whatever is wrong is told in one line that names the field and the fix."""

import json
import re

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from manual import code, section, snippets, table

import ticketapi

NAMES = ("steady", "office", "busy", "incident")
OFFICE = json.loads((ROOT / "profiles.json").read_text())["office"]
ZEROS = [0] * 24


# What a profile says ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_written_as_json_that_is_read_back(name):
    profile = ticketapi.find_profile(name)
    text = profile.text()
    assert ticketapi.read_profile(json.loads(text)) == profile
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert len({profile, ticketapi.find_profile(name)}) == 1


def test_the_profiles_that_come_along_are_four():
    assert tuple(ticketapi.shipped_profiles()) == NAMES


def test_office_says_everything_and_what_another_leaves_out_is_as_there():
    assert tuple(OFFICE) == ticketapi.Profile._fields
    assert ticketapi.read_profile({}) == ticketapi.find_profile("office")
    assert ticketapi.read_profile({"growth": 2.5}) == ticketapi.find_profile("office")._replace(growth=2500)


@pytest.mark.parametrize(
    ("data", "team"),
    [
        ({"tickets_a_day": 548}, 24_000),
        ({"tickets_a_day": 0}, 0),
        ({"arrive_every": "1m"}, 63_066),
        ({"arrive_every": "1m", "team": 3}, 3000),
        ({"tickets_a_day": 548, "team": 0.125}, 125),
    ],
)
def test_a_team_that_is_left_out_is_in_proportion_to_the_tickets(data, team):
    assert ticketapi.read_profile(data).team == team


numbers = {
    name: st.integers(-100_000 if name == "growth" else 0, highest * 1000).map(lambda number: number / 1000)
    for name, highest in ticketapi.AMOUNTS.items()
}
lists = {
    name: st.lists(st.integers(0, 1000), min_size=count, max_size=count).filter(any)
    for name, count in ticketapi.WEIGHTS.items()
}
durations = dict.fromkeys(("arrive_every", "close_every"), st.integers(0, 36_500 * 86_400).map(lambda seconds: f"{seconds}s"))


@given(st.fixed_dictionaries({}, optional={**numbers, **lists, **durations}))
def test_any_profile_is_read_written_and_read_back(data):
    profile = ticketapi.read_profile(data)
    assert ticketapi.read_profile(json.loads(profile.text())) == profile
    written = json.loads(profile.text())
    assert {name: written[name] for name in data} == data
    assert all(type(one) is int for value in profile for one in (value if isinstance(value, tuple) else (value,)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tickets", [0, 0.001, 1, 111.111, 274, 5000.5])
def test_a_scaled_profile_has_that_many_tickets_and_a_team_in_proportion(name, tickets):
    profile, scaled = ticketapi.find_profile(name), ticketapi.find_profile(name).scaled(tickets)
    assert ticketapi.read_profile(json.loads(scaled.text())) == scaled
    assert scaled.tickets_a_day == round(tickets * 1000)
    if name != "steady":
        assert 0 <= scaled.team - profile.team * tickets * 1000 / profile.tickets_a_day < 1
        rest = dict.fromkeys(("tickets_a_day", "team"), 0)
        assert scaled._replace(**rest) == profile._replace(**rest)


@pytest.mark.parametrize(
    ("tickets", "every"), [(1440, (60, 300)), (720, (120, 600)), (100, (864, 4320)), (10**6, (1, 1)), (0, (0, 0))]
)
def test_a_steady_profile_is_scaled_in_whole_seconds(tickets, every):
    assert ticketapi.find_profile("steady").scaled(tickets)[-2:] == every


# What is wrong ------------------------------------------------------------------------------------

LISTS = [None, True, 7, "9", {}, [], ZEROS, [1] * 23, [1] * 25, [*[1] * 23, -1], [*[1] * 23, 1001], [*[1] * 23, 1.0]]
LISTS += [[*[1] * 23, True], [*[1] * 23, None], [*[1] * 23, "1"], [*[1] * 23, 10**400], [*[1] * 23, float("nan")], [[1]] * 24]
AMOUNTS = [None, True, False, "5", "", [], [5], {}, {"a": 1}, -0.001, 10**6 + 0.001, 10**400, -(10**400)]
AMOUNTS += [float("nan"), float("inf"), -float("inf")]
DURATIONS = [None, True, 60, 1.5, "60", "1w", "-1m", "1 m", "9" * 11 + "s", "36501d", "", [], {}, float("nan"), "1m\n", ["1m"]]


def refusal(data):
    """Return the line with which a profile is refused."""
    with pytest.raises(ticketapi.TicketApiError) as caught:
        ticketapi.read_profile(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    return str(caught.value)


@pytest.mark.parametrize("value", LISTS, ids=repr)
def test_weights_that_are_none_are_refused(value):
    assert refusal({"hours": value}) == "profile: hours must be 24 whole numbers from 0 to 1000, with at least one above 0"
    assert (
        refusal({"working_days": value})
        == "profile: working_days must be 7 whole numbers from 0 to 1000, with at least one above 0"
    )


@pytest.mark.parametrize("value", AMOUNTS, ids=repr)
def test_a_number_that_is_none_is_refused(value):
    assert refusal({"tickets_a_day": value}) == "profile: tickets_a_day must be a number from 0 to 1000000"


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("growth", -100, 1000), ("burst_hours", 0, 24), ("tickets_an_hour", 0, 1000)]
)
def test_each_number_has_its_bounds(name, lowest, highest):
    for value in (lowest, highest):
        assert getattr(ticketapi.read_profile({name: value}), name) == value * 1000
    for value in (lowest - 0.001, highest + 0.001):
        assert refusal({name: value}) == f"profile: {name} must be a number from {lowest} to {highest}"


@pytest.mark.parametrize("value", DURATIONS, ids=repr)
def test_a_duration_that_is_none_is_refused(value):
    assert re.match(
        r"profile: close_every (['\"]).*\1 is (not a duration; write 90s|too long; the longest is)",
        refusal({"close_every": value}),
    )


@pytest.mark.parametrize("data", [None, True, 7, 1.5, "office", [], [{}], float("nan")], ids=repr)
def test_what_is_no_object_is_refused(data):
    assert refusal(data) == 'profile: must be an object of fields, such as {"tickets_a_day": 500}'


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ticket_a_day", "did you mean `tickets_a_day`?"),
        ("working_day", "did you mean `working_days`?"),
        ("xyz", f"write {', '.join(OFFICE)}"),
        ("", f"write {', '.join(OFFICE)}"),
    ],
)
def test_a_field_that_there_is_not_is_named_with_those_that_there_are(name, meant):
    assert refusal({"growth": 1, name: 1}) == f"profile: {name!r} is no field; {meant}"


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nb", "x" * 10**5, "\u202e"], ids=["escape", "line", "long", "turned"])
def test_what_a_file_calls_a_field_cannot_act_on_a_terminal(name):
    assert refusal({name: 1}).startswith("profile: '")


# What the manual says -----------------------------------------------------------------------------


def test_the_fields_of_the_manual_are_those_of_a_profile_with_their_ranges():
    _, begin, text = section("simulation.md", "Profiles").partition("| field |")
    rows = {code(row[0]): row for row in table(begin + text)}
    assert tuple(rows) == ticketapi.Profile._fields
    for name, row in rows.items():
        if name in ticketapi.WEIGHTS:
            assert row[1] == f"{ticketapi.WEIGHTS[name]} weights"
            assert row[2].startswith(str(max(OFFICE[name])))
        elif name in ticketapi.AMOUNTS:
            assert row[1] == f"{-100 if name == 'growth' else 0} to {ticketapi.AMOUNTS[name]:,}"
            assert row[2] == f"{OFFICE[name]}"
        else:
            assert row[1:3] == ["a duration", OFFICE[name]]


def test_the_example_of_the_manual_is_a_profile():
    [example] = snippets("simulation.md", "Profiles", "json")
    assert ticketapi.read_profile(json.loads(example)).burst_hours == 8000
    assert set(json.loads(example)) < set(OFFICE)
