"""A token bucket lets a burst through and then an even stream, for each key by itself, in bounded memory."""

import math
import sys
import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ticketapi

quarters = st.lists(st.integers(0, 400), min_size=1, max_size=120)  # pauses in quarters of a second


class PlainBucket:
    """What a bucket is, in exact numbers."""

    def __init__(self, size):
        self.size, self.refill = size, Fraction(size, 60)
        self.left, self.since = Fraction(size), Fraction(0)

    def take(self, now):
        """Tell whether one is allowed, and take it."""
        self.left = min(self.size, self.left + (now - self.since) * self.refill)
        self.since = now
        allowed = self.left >= 1
        self.left -= allowed
        return allowed

    def seconds_until(self, wanted):
        """Return the whole seconds until there are so many again."""
        return math.ceil((wanted - self.left) / self.refill)


@given(st.integers(1, 240), quarters, st.integers(0, 10**6))
def test_a_bucket_does_what_exact_numbers_say(size, pauses, start):
    bucket, model = ticketapi.TokenBucket(size, "default"), PlainBucket(size)
    now = Fraction(start)
    model.since = now
    for pause in pauses:
        now += Fraction(pause, 4)
        allowed, limit = model.take(now), bucket.take("ann", float(now))
        assert limit.allowed == allowed
        assert limit.remaining == math.floor(model.left)
        assert limit.next_in == max(1, model.seconds_until(math.floor(model.left) + 1))


@given(st.integers(1, 240), quarters)
def test_retry_after_is_enough_and_no_more_than_needed(size, pauses):
    now, bucket = 0.0, ticketapi.TokenBucket(size, "default")
    for _ in range(size):
        assert bucket.take("ann", now).allowed
    for pause in pauses[:10]:
        limit = bucket.take("ann", now)
        if limit.allowed:
            continue
        if limit.next_in > 1:
            assert not bucket.take("ann", now + limit.next_in - 1).allowed
        now += limit.next_in
        assert bucket.take("ann", now).allowed
        now += pause / 4


@pytest.mark.parametrize("size", [1, 2, 30, 60, 1000])
def test_a_burst_is_as_large_as_the_bucket(size):
    bucket = ticketapi.TokenBucket(size, "default")
    limits = [bucket.take("ann", 5.0) for _ in range(size + 3)]
    assert [limit.allowed for limit in limits] == [True] * size + [False] * 3
    assert [limit.remaining for limit in limits] == [*range(size - 1, -1, -1), 0, 0, 0]


def test_thirty_a_minute_is_one_every_two_seconds():
    bucket = ticketapi.TokenBucket(30, "default")
    first = bucket.take("ann", 0.0)
    assert first == ("default", True, 30, 29, 2, False)
    for _ in range(29):
        bucket.take("ann", 0.0)
    assert bucket.take("ann", 0.0) == ("default", False, 30, 0, 2, True)
    assert [bucket.take("ann", second).allowed for second in range(1, 9)] == [False, True] * 4


def test_a_bucket_is_never_more_than_full():
    bucket = ticketapi.TokenBucket(5, "default")
    bucket.take("ann", 0.0)
    assert [bucket.take("ann", 1e9).allowed for _ in range(6)] == [True] * 5 + [False]


def test_a_refused_request_costs_nothing():
    bucket = ticketapi.TokenBucket(30, "default")
    for _ in range(30):
        bucket.take("ann", 0.0)
    assert not any(bucket.take("ann", 1.0).allowed for _ in range(1000))
    assert bucket.take("ann", 2.0).allowed


def test_keys_are_independent():
    bucket = ticketapi.TokenBucket(1, "default")
    keys = [1, "1", ("user", 1), ("address", 1), "ann", None]
    assert all(bucket.take(key, 0.0).allowed for key in keys)
    assert not any(bucket.take(key, 0.0).allowed for key in keys)


def test_the_policy_is_named():
    assert ticketapi.TokenBucket(3, "guesses").take("ann", 0.0).policy == "guesses"


def test_at_most_so_many_keys_are_kept_and_the_least_recently_used_is_forgotten():
    bucket = ticketapi.TokenBucket(1, "default")
    for key in range(ticketapi.BUCKETS):
        bucket.take(key, 0.0)
    assert not bucket.take(0, 0.0).allowed  # still known, and now the most recently used
    assert bucket.take("one more", 0.0).allowed  # forgets 1
    assert not bucket.take(0, 0.0).allowed
    assert not bucket.take(2, 0.0).allowed
    assert bucket.take(1, 0.0).allowed


@pytest.fixture
def restless():
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_together_get_exactly_what_there_is(restless):
    bucket, size = ticketapi.TokenBucket(1000, "default"), 1000
    barrier, allowed = threading.Barrier(8), []

    def take_many():
        barrier.wait()
        allowed.append(sum(bucket.take("ann", 0.0).allowed for _ in range(size)))

    threads = [threading.Thread(target=take_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(allowed) == 8
    assert sum(allowed) == size


# What counts as one source ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:DB8:0001:2::1", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::1", "127.0.0.1", False),
        ("", "@", False),
        ("unix socket", "unix socket", True),
        ("192.0.2.7", "192.0.2.7.8", False),
    ],
)
def test_a_source_is_an_ipv4_address_or_a_network_of_ipv6(one, other, same):
    assert (ticketapi.address_key(one) == ticketapi.address_key(other)) == same


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_a_whole_64_network_is_one_source(address, host):
    if address.ipv4_mapped is None and int(address) >> 64:
        neighbour = type(address)((int(address) >> 64 << 64) + host)
        assert ticketapi.address_key(str(address)) == ticketapi.address_key(str(neighbour))


@given(st.text())
def test_what_is_no_address_is_a_source_all_the_same(text):
    assert isinstance(ticketapi.address_key(text), str)
