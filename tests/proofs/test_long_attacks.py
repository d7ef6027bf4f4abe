"""What attackers send for a long time: some thousand random requests, and guesses from a million addresses."""

import tracemalloc

import pytest
from fuzz import attacks, bounded, under_attack
from hypothesis import given

import ticketapi


@pytest.fixture(scope="module", params=[1, 3], ids=["1 thread", "3 threads"])
def attacked(request, tmp_path_factory):
    """A server to be sent anything."""
    with under_attack(tmp_path_factory.mktemp("fuzzed"), request.param) as attacked:
        yield attacked


@bounded(3000)
@given(attacks())
def test_whatever_is_sent_for_a_long_time_is_answered_soundly_or_cut(attacked, data):
    """It takes about a quarter of a minute for each number of threads."""
    attacked.check(data)


def guessing_keys(addresses):
    """Return what so many addresses, as many of IPv4 as of IPv6, are told apart by."""
    for n in range(addresses // 2):
        yield ticketapi.address_key(f"11.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}").encode()
        yield ticketapi.address_key(f"2001:db8:{n >> 16:x}:{n & 65535:x}:1234:5678:9abc:def0").encode()


def test_the_limiter_stays_under_25_mb_when_a_million_addresses_guess():
    """Tracing the memory takes half a minute."""
    bucket = ticketapi.TokenBucket(ticketapi.STRANGERS_RATE, "address")
    keys = list(guessing_keys(1_000_000))
    assert len(set(keys)) == 1_000_000
    tracemalloc.start()
    try:
        for number, key in enumerate(keys):
            bucket.take(key.decode(), number / 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1_000_000 < peak < 25_000_000
