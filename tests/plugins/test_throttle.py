"""Thirty requests a minute for each user and thirty failed guesses for each address, told in the headers of every answer."""

import re

import pytest
from conftest import SECOND

import ticketapi

LARAVEL = ("x-ratelimit-limit", "x-ratelimit-remaining")
DRAFT = ("ratelimit-policy", "ratelimit")
LIMIT_HEADERS = {*LARAVEL, *DRAFT, "x-ratelimit-reset", "retry-after"}
ADDRESS, OTHER_ADDRESS = "198.51.100.7", "198.51.100.8"


def make_token(db, clock, email, abilities=("read:tickets",)):
    """Return the text of a new token of a user."""
    return ticketapi.create_token(db, email, "test", list(abilities), 0, clock.wall())["token"]


def use_up(api, token, requests=30):
    """Send requests that must all be allowed."""
    assert {api.get("/api/stats", token=token).status for _ in range(requests)} == {200}


def remaining(answer):
    """Return how many requests an answer says are left."""
    return int(answer.headers["x-ratelimit-remaining"])


def guess(api, address=ADDRESS, times=1):
    """Send wrong tokens from an address and return the last answer."""
    for _ in range(times):
        answer = api.get("/api/stats", token=ticketapi.new_token_text(), address=address)
    return answer


# Requests of a user ------------------------------------------------------------------------------


def test_thirty_requests_are_allowed_at_once_and_the_next_is_not(api, token):
    answers = [api.get("/api/stats", token=token) for _ in range(31)]
    assert [answer.status for answer in answers] == [200] * 30 + [429]
    assert [remaining(answer) for answer in answers] == [*range(29, -1, -1), 0]


@pytest.mark.parametrize(("rate", "refill"), [(30, 2), (60, 1), (1, 60), (120, 0.5)])
def test_the_rate_is_both_the_burst_and_what_comes_back_in_a_minute(make_api, clock, token, rate, refill):
    api = make_api(rate=rate)
    use_up(api, token, rate)
    assert api.get("/api/stats", token=token).status == 429
    clock.advance(refill)
    assert [api.get("/api/stats", token=token).status for _ in range(2)] == [200, 429]


def test_a_bucket_refills_by_half_a_request_a_second_up_to_thirty(api, clock, token):
    use_up(api, token)
    clock.advance(1.9)
    assert api.get("/api/stats", token=token).status == 429
    clock.advance(0.1)
    assert api.get("/api/stats", token=token).status == 200
    clock.advance(3600)
    assert remaining(api.get("/api/stats", token=token)) == 29


def test_an_allowed_answer_tells_the_limit_in_both_dialects(api, token):
    answer = api.get("/api/stats", token=token)
    told = {name: value for name, value in answer.headers.items() if name in LIMIT_HEADERS}
    assert told == {
        "x-ratelimit-limit": "30",
        "x-ratelimit-remaining": "29",
        "ratelimit-policy": '"default";q=30;w=60',
        "ratelimit": '"default";r=29;t=2',
    }


def test_a_refused_answer_tells_when_to_come_again(api, clock, token):
    use_up(api, token)
    answer = api.get("/api/stats", token=token)
    told = {name: value for name, value in answer.headers.items() if name in LIMIT_HEADERS}
    assert told == {
        "x-ratelimit-limit": "30",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(clock.wall() // SECOND + 2),
        "retry-after": "2",
        "ratelimit-policy": '"default";q=30;w=60',
        "ratelimit": '"default";r=0;t=2',  # not later than Retry-After, as the draft asks
    }


@pytest.mark.parametrize("pause", [0, 0.3, 1, 1.7])
def test_who_waits_as_told_is_let_in(api, clock, token, pause):
    use_up(api, token)
    clock.advance(pause)
    refused = api.get("/api/stats", token=token)
    assert refused.status == 429
    clock.advance(int(refused.headers["retry-after"]))
    assert clock.wall() / SECOND <= int(refused.headers["x-ratelimit-reset"])
    assert api.get("/api/stats", token=token).status == 200


def test_all_tokens_of_a_user_share_a_bucket(api, db, clock):
    one, two = (make_token(db, clock, "ann@example.com") for _ in range(2))
    use_up(api, one, 15)
    use_up(api, two, 15)
    assert api.get("/api/stats", token=one).status == 429
    assert api.get("/api/stats", token=two).status == 429


def test_users_do_not_share_a_bucket(api, db, clock):
    ann, bob = (make_token(db, clock, f"{name}@example.com") for name in ("ann", "bob"))
    use_up(api, ann)
    assert api.get("/api/stats", token=ann).status == 429
    assert remaining(api.get("/api/stats", token=bob)) == 29


def test_a_user_has_one_bucket_from_whatever_address(api, token):
    use_up(api, token)
    assert api.get("/api/stats", token=token, address=OTHER_ADDRESS).status == 429


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/api/users/404/tickets", 404),
        ("GET", "/api/tickets/open?page=x", 422),
        ("HEAD", "/api/stats", 200),
        ("GET", "/api/tickets/closed/", 200),
    ],
)
def test_every_request_that_reaches_its_route_draws(api, token, method, url, status):
    answer = api.request(method, url, token=token)
    assert (answer.status, remaining(answer)) == (status, 29)
    assert remaining(api.get("/api/stats", token=token)) == 28


def test_a_refusal_for_lack_of_ability_draws_too(api, db, clock):
    token = make_token(db, clock, "ann@example.com", abilities=[])
    answers = [api.get("/api/stats", token=token) for _ in range(31)]
    assert [answer.status for answer in answers] == [403] * 30 + [429]
    assert remaining(answers[0]) == 29


@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
def test_what_needs_no_token_draws_nothing(api, token, method):
    answer = api.request(method, "/api/stats", token=token)
    assert not LIMIT_HEADERS & set(answer.headers)
    assert remaining(api.get("/api/stats", token=token)) == 29


def test_up_is_never_limited(api, token):
    use_up(api, token)
    guess(api, times=31)
    answers = [api.get("/up", token=token, address=ADDRESS) for _ in range(40)]
    assert {answer.status for answer in answers} == {200}
    assert not LIMIT_HEADERS & set(answers[-1].headers)


@pytest.mark.parametrize("jump", [-86_400, -1, 86_400 * 365])
def test_a_wall_clock_that_jumps_changes_no_bucket(api, clock, token, jump):
    use_up(api, token)
    guess(api, times=30)
    clock.now += jump * SECOND
    refused = api.get("/api/stats", token=token)
    assert (refused.status, refused.headers["retry-after"]) == (429, "2")
    assert guess(api).status == 429


def test_two_apps_share_the_buckets_of_users_where_they_share_a_database(make_api, token, engine):
    one, two = make_api(), make_api()
    use_up(one, token)
    answer = two.get("/api/stats", token=token)
    assert (answer.status, remaining(answer)) == ((200, 29) if engine == "sqlite" else (429, 0))


# Without a limit ---------------------------------------------------------------------------------


def test_rate_0_is_unlimited_and_has_no_limit_headers(make_api, token):
    api = make_api(rate=0)
    answers = [api.get("/api/stats", token=token) for _ in range(100)]
    assert {answer.status for answer in answers} == {200}
    assert not LIMIT_HEADERS & set(answers[-1].headers)


def test_rate_0_limits_guesses_all_the_same_without_limit_headers(make_api):
    api = make_api(rate=0)
    assert guess(api, times=30).status == 401
    refused = guess(api)
    assert (refused.status, refused.headers["retry-after"]) == (429, "2")
    assert LIMIT_HEADERS & set(refused.headers) == {"retry-after"}


# Failed guesses of an address --------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 1, 30, 1000])
def test_thirty_guesses_a_minute_are_answered_whatever_the_rate(make_api, clock, rate):
    api = make_api(rate=rate)
    assert [guess(api).status for _ in range(31)] == [401] * 30 + [429]
    clock.advance(2)
    assert [guess(api).status for _ in range(2)] == [401, 429]


def test_a_refused_guess_is_told_from_a_refused_user(api):
    refused = guess(api, times=31)
    assert refused.body == b'{"message":"Too Many Attempts."}'
    assert refused.headers["x-ratelimit-limit"] == "30"
    assert refused.headers["retry-after"] == "2"
    assert re.fullmatch(r'"(?!default)[a-z-]+";q=30;w=60', refused.headers["ratelimit-policy"])


def test_missing_tokens_count_as_guesses(api):
    for _ in range(30):
        assert api.get("/api/stats", address=ADDRESS).status == 401
    assert guess(api).status == 429


def test_expired_and_revoked_tokens_count_as_guesses(api, db, clock):
    record = ticketapi.create_token(db, "ann@example.com", "test", ["*"], 1, clock.wall())
    clock.advance(1)
    for _ in range(30):
        assert api.get("/api/stats", token=record["token"]).status == 401
    ticketapi.revoke_token(db, record["id"])
    assert api.get("/api/stats", token=record["token"]).status == 429


def test_addresses_do_not_share_a_bucket(api):
    assert guess(api, ADDRESS, times=31).status == 429
    assert guess(api, OTHER_ADDRESS).status == 401


def test_a_whole_ipv6_network_of_64_bits_shares_a_bucket(api):
    answers = [guess(api, f"2001:db8:0:1::{host:x}") for host in range(1, 32)]
    assert [answer.status for answer in answers] == [401] * 30 + [429]
    assert guess(api, "2001:db8:0:1:ffff:ffff:ffff:ffff").status == 429
    assert guess(api, "2001:db8:0:2::1").status == 401


def test_an_ipv4_address_is_the_same_when_it_is_written_as_ipv6(api):
    assert guess(api, ADDRESS, times=30).status == 401
    assert guess(api, f"::ffff:{ADDRESS}").status == 429
    assert guess(api, f"::ffff:{OTHER_ADDRESS}").status == 401


def test_a_valid_user_is_unharmed_by_guesses_from_the_same_address(api, token):
    assert guess(api, times=100).status == 429
    answer = api.get("/api/stats", token=token, address=ADDRESS)
    assert (answer.status, remaining(answer)) == (200, 29)


def test_a_valid_user_does_not_refill_the_bucket_of_guesses(api, token):
    guess(api, times=30)
    api.get("/api/stats", token=token, address=ADDRESS)
    assert guess(api).status == 429
