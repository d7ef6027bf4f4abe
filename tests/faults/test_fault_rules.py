"""Which requests go wrong follows from rules, seed and count alone: shares, the first n, for a time, latencies, by turns."""

import math
import statistics
from collections import Counter

import pytest
from conftest import NOON, SECOND

import ticketapi

STATS = ("stats", "GET", 7)
PINNED = [1, 3, 8, 10, 11, 12, 16, 22, 24, 32, 33, 36]  # of the first fifty, by a share of 0.2 and the seed 3
SHARED = ({"route": "stats", "share": 0.5, "status": 503}, {"route": "users", "share": 0.5, "status": 503})


def plan(*rules, seed=3):
    """Return the faults of some rules, in force from noon on."""
    return ticketapi.Faults(*ticketapi.read_faults({"seed": seed, "faults": list(rules)}, ticketapi.FAULTY_ROUTES, NOON))


def hits(faults, count, about=STATS, now=NOON):
    """Tell of so many requests, one after the other, which go wrong."""
    return [bool(faults.find(about, now)) for _ in range(count)]


def drawn(latency, count=4000, seed=3):
    """Return the seconds that a latency gives to so many requests, in order of size."""
    faults = plan({"route": "*", "latency": latency}, seed=seed)
    return sorted(faults.find(STATS, NOON)["latency"] for _ in range(count))


# Which requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "hit", "spared"),
    [
        ({"route": "*"}, [STATS, ("tickets.store", "POST", None)], []),
        ({"route": "stats"}, [STATS, ("stats", "HEAD", None)], [("tickets", "GET", 7)]),
        ({"route": "*", "method": "GET"}, [STATS], [("stats", "HEAD", 7), ("tickets.store", "POST", 7)]),
        ({"route": "*", "token": 7}, [STATS], [("stats", "GET", 8), ("stats", "GET", None)]),
        ({"route": "stats", "method": "HEAD", "token": 7}, [("stats", "HEAD", 7)], [STATS, ("stats", "HEAD", 8)]),
    ],
)
def test_a_rule_is_about_a_route_a_method_and_a_token(rule, hit, spared):
    faults = plan({**rule, "status": 503})
    assert [faults.find(about, NOON) for about in hit] == [{"status": 503}] * len(hit)
    assert [faults.find(about, NOON) for about in spared] == [{}] * len(spared)
    assert faults.rules[0]["requests"] == len(hit)


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.9])
def test_a_share_is_kept_in_the_long_run(share):
    count = 5000
    found = sum(hits(plan({"route": "*", "share": share, "status": 503}), count))
    assert abs(found / count - share) < 4 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize(("share", "found"), [(0, 0), (1, 200), (None, 200), (1e-9, 0)])
def test_a_share_of_0_is_none_and_without_one_it_is_all(share, found):
    assert sum(hits(plan({"route": "*", "share": share, "status": 503}), 200)) == found


def test_the_same_requests_in_the_same_order_fail_in_every_run():
    rules = (
        {"route": "stats", "share": 0.3, "status": 503},
        {"route": "*", "share": 0.3, "latency": {"uniform": ["1ms", "9s"]}},
    )
    asked = [("stats" if number % 3 else "users", "GET", number % 2) for number in range(300)]
    runs = [[faults.find(about, NOON) for about in asked] for faults in (plan(*rules), plan(*rules), plan(*rules, seed=4))]
    assert runs[0] == runs[1] != runs[2]
    assert Counter(map(tuple, runs[0])).keys() == {(), ("status",), ("latency",)}


def test_these_fail_on_every_machine_and_in_every_version():
    faults = plan({"route": "*", "share": 0.2, "status": 503})
    assert [number for number, hit in enumerate(hits(faults, 50)) if hit] == PINNED


def test_two_rules_of_one_share_hit_different_requests():
    one, two = (hits(plan(*rules), 200, about) for rules, about in ((SHARED, STATS), (SHARED, ("users", "GET", 7))))
    assert one != two


def test_the_first_n_requests_fail_then_it_has_healed():
    faults = plan({"route": "stats", "first": 3, "status": 503})
    assert hits(faults, 2, ("users", "GET", 7)) == [False, False]
    assert hits(faults, 5) == [True, True, True, False, False]
    assert faults.in_force(NOON) == []


def test_a_share_of_the_first_n_is_a_share_of_them():
    faults = plan({"route": "*", "first": 100, "share": 0.5, "status": 503})
    found = hits(faults, 1000)
    assert 30 < sum(found[:100]) < 70
    assert not any(found[100:])


def test_a_rule_heals_after_its_time_whether_or_not_there_were_requests():
    faults = plan({"route": "*", "for": "30s", "status": 503})
    assert faults.rules[0]["until"] == "2025-12-04T12:00:30.000000Z"
    assert hits(faults, 1, now=NOON + 30 * SECOND - 1) == [True]
    assert hits(faults, 1, now=NOON + 30 * SECOND) == [False]
    assert len(faults.in_force(NOON + 30 * SECOND - 1)) == 1
    assert faults.in_force(NOON + 30 * SECOND) == []


def test_the_first_rule_that_hits_wins_and_those_after_it_do_not_see_the_request():
    faults = plan(
        {"route": "stats", "first": 2, "status": 429},
        {"route": "*", "first": 1, "status": 503},
        {"route": "stats", "body": "empty"},
    )
    found = [faults.find(STATS, NOON) for _ in range(5)]
    assert found == [{"status": 429}, {"status": 429}, {"status": 503}, {"body": "empty"}, {"body": "empty"}]
    assert [(rule["requests"], rule["hits"]) for rule in faults.rules] == [(2, 2), (1, 1), (2, 2)]


def test_what_a_rule_lets_pass_comes_to_the_next():
    faults = plan({"route": "*", "share": 0.5, "status": 429}, {"route": "*", "status": 503})
    found = Counter(faults.find(STATS, NOON)["status"] for _ in range(200))
    first, second = ((rule["requests"], rule["hits"]) for rule in faults.rules)
    assert found.keys() == {429, 503}
    assert first == (200, found[429])
    assert second == (found[503], found[503])


def test_all_effects_of_a_rule_come_together():
    effects = {"status": 503, "retry_after": 0, "latency": {"fixed": "300ms"}, "body": "truncated"}
    faults = plan({"route": "*", **effects}, seed=0)
    assert faults.find(STATS, NOON) == {**effects, "latency": 0.3}
    assert faults.kinds == {"status": 1, "latency": 1, "body": 1}


@pytest.mark.parametrize("field", ["status", "latency", "route"])
def test_no_value_is_too_deep_to_be_refused(field):
    """What is read may nest as deeply as can just be read."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ticketapi.InvalidFields) as refused:
        plan({"route": "*", "status": 503, field: nested})
    assert f"faults.0.{field}" in refused.value.errors


# How late ----------------------------------------------------------------------------------------


def test_a_fixed_latency_is_the_same_each_time():
    assert set(drawn({"fixed": "300ms"}, 50)) == {0.3}
    assert set(drawn({"fixed": "60s"}, 5)) == {60.0}


def test_a_uniform_latency_is_anywhere_between_its_bounds():
    found = drawn({"uniform": ["100ms", "2s"]})
    assert 0.1 <= found[0] < 0.11
    assert 1.99 < found[-1] <= 2.0
    for quarter in (1, 2, 3):
        assert found[len(found) * quarter // 4] == pytest.approx(0.1 + 1.9 * quarter / 4, abs=0.06)


@pytest.mark.parametrize(("median", "p99"), [("120ms", "2s"), ("5ms", "60s"), ("1s", "1s")])
def test_a_lognormal_latency_has_its_median_and_its_99th_percentile(median, p99):
    found = drawn({"lognormal": {"p99": p99, "median": median}}, 20_000)  # the order of keys does not matter
    middle, most = (int(text.strip("ms")) / (1000 if text.endswith("ms") else 1) for text in (median, p99))
    assert statistics.median(found) == pytest.approx(middle, rel=0.1)
    assert found[len(found) * 99 // 100] == pytest.approx(most, rel=0.25)
    assert 0 < found[0] <= middle
    assert found[-1] <= ticketapi.MAX_LATENCY


def test_no_latency_is_over_a_minute():
    assert drawn({"lognormal": {"median": "50s", "p99": "60s"}})[-1] == ticketapi.MAX_LATENCY == 60


def test_latencies_are_drawn_apart_from_shares():
    """Those who are hit are not always the quick ones."""
    faults = plan({"route": "*", "share": 0.1, "latency": {"uniform": ["1ms", "10s"]}})
    found = [fault["latency"] for fault in (faults.find(STATS, NOON) for _ in range(2000)) if fault]
    assert min(found) < 1
    assert max(found) > 9


# What one request asks for itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("status=503", {"status": 503}),
        (
            "status=503; retry-after=2; latency=300ms; body=truncated",
            {"status": 503, "retry_after": 2, "latency": 0.3, "body": "truncated"},
        ),
        ("reset", {"reset": True}),
        (" latency = 2s ;reset;", {"latency": 2.0, "reset": True}),
        ("body=empty", {"body": "empty"}),
        ("status=429;retry_after=0", {"status": 429, "retry_after": 0}),
    ],
)
def test_a_request_may_ask_for_what_a_rule_may(text, fault):
    faults = plan({"route": "*", "status": 500})
    assert faults.find(STATS, NOON, text) == fault
    assert faults.rules[0]["requests"] == 0  # rules are not asked then
    assert faults.kinds == dict.fromkeys(fault.keys() - {"retry_after"}, 1)
