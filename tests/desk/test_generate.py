"""Generated tickets read as people write, and depend on a seed and their ids alone; counters are always true."""

import hashlib
import json
import re
from collections import Counter
from contextlib import closing
from unittest.mock import patch

import pytest
from conftest import create_ticket
from hypothesis import given
from hypothesis import strategies as st

import ticketapi

HOUR = 3600 * 1_000_000
SEEDS = [0, 1, 7, 2**63 - 1]

# What the first 1,000 tickets and customers of seed 1 are, on every machine and Python. Whoever changes the vocabulary or
# the dice changes every desk that somebody made with a seed: that is a new major version.
FIRST_THOUSAND = "fb0134b8d37ad0a1b9f4916864097a975e61be10fac2c08e5bd68217aec989cd"


@pytest.fixture(scope="module")
def words():
    """The vocabulary."""
    return ticketapi.load_words()


@pytest.fixture(scope="module")
def composed(words):
    """A hundred thousand tickets of one seed: (customer, subject, content)."""
    return [ticketapi.compose_ticket(words, 1, ticket_id) for ticket_id in range(1, 100_001)]


def generated(path, counts, seed=1, now=HOUR):
    """Return the tickets and customers of a new desk, made by one call for each count."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        for count in counts:
            assert ticketapi.generate_tickets(db, count, now, seed) == count
        tickets = [dict(row) for row in db.execute("SELECT * FROM tickets ORDER BY id")]
        return tickets, [tuple(row) for row in db.execute("SELECT id, name, email, tickets_count FROM users ORDER BY id")]


def assert_counters_are_true(db):
    """Compare every counter and every number with the rows."""
    rows = db.execute("SELECT status, count(*) FROM tickets GROUP BY status")
    assert dict(db.execute("SELECT status, tickets FROM ticket_counts")) == {1: 0, 2: 0} | dict(rows)
    counted = Counter(user_id for (user_id,) in db.execute("SELECT user_id FROM tickets"))
    assert {user: count for user, count in db.execute("SELECT id, tickets_count FROM users") if count} == counted
    so_far = Counter()
    for user, number in db.execute("SELECT user_id, user_number FROM tickets ORDER BY id"):
        so_far[user] += 1
        assert number == so_far[user]
    numbers = [number for (number,) in db.execute("SELECT closed_number FROM tickets WHERE status = 2 ORDER BY closed_at")]
    assert numbers == list(range(1, len(numbers) + 1))


# What a ticket says -------------------------------------------------------------------------------


def test_a_ticket_has_two_to_five_sentences(composed):
    for _, _, content in composed[::10]:
        sentences = re.findall(r"[^.?!]+(?:[.](?=\d|\w)[^.?!]+)*[.?!]+(?:\s|$)", content)
        assert 2 <= len(sentences) <= 5, content
        assert "".join(sentences) == content


def test_a_ticket_has_nothing_left_to_fill_in(composed):
    texts = {text for _, subject, content in composed for text in (subject, content)}
    assert [text for text in texts if "{" in text or "}" in text] == []
    assert [text for text in texts if not text or text != " ".join(text.split())] == []


def test_a_subject_is_one_line_that_fits_into_a_list(composed):
    lengths = {len(subject) for _, subject, _ in composed}
    assert min(lengths) >= 10
    assert max(lengths) <= 100


def test_a_ticket_starts_with_a_capital_letter_and_ends_as_a_sentence(composed):
    for _, subject, content in composed[::10]:
        assert subject[0].isupper() or subject[0].isdigit(), subject
        assert content[0].isupper() or content[0].isdigit(), content
        assert content[-1] in ".?!", content


def test_most_tickets_are_the_only_one_of_their_kind(composed):
    assert len({content for _, _, content in composed}) >= 50_000


def test_every_story_can_be_told(words):
    assert len(words.stories) >= 50
    for story in words.stories:
        for kind in story:
            assert kind
            for text in kind:
                assert "{product}" not in text
                assert text.format_map(ticketapi.compose_facts(1 << 99))


# The same on every machine ------------------------------------------------------------------------


def test_a_seed_means_the_same_tickets_and_customers_everywhere(words):
    numbers = range(1, 1001)
    tickets = [ticketapi.compose_ticket(words, 1, number) for number in numbers]
    customers = [ticketapi.compose_customer(words, 1, number) for number in numbers]
    assert hashlib.sha256(json.dumps([tickets, customers]).encode()).hexdigest() == FIRST_THOUSAND


@given(st.integers(0, 2**64), st.integers(1, 10**9))
def test_what_is_thrown_depends_on_seed_purpose_and_number_alone(seed, number):
    first = ticketapi.throw(seed, "ticket", number)
    assert first == ticketapi.throw(seed, "ticket", number)
    assert 0 <= first < 2**256
    others = [(seed + 1, "ticket", number), (seed, "customer", number), (seed, "ticket", number + 1)]
    assert all(first != ticketapi.throw(*other) for other in others)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((6,), (1, 2, 3)),
        ((100,), (1,) * 100),
        ((101,), (100, 1)),
        ((101,), (1, 100)),
        ((1050,), (990, 60)),
    ],
)
def test_it_does_not_matter_in_how_many_goes_tickets_are_made(small_batches, tmp_path, one, other):
    assert generated(tmp_path / "one.db", one) == generated(tmp_path / "other.db", other)


def test_another_seed_makes_other_tickets_and_other_customers(tmp_path):
    (tickets, users), (other_tickets, other_users) = (generated(tmp_path / f"{s}.db", [200], s) for s in (1, 2))
    assert not {ticket["content"] for ticket in tickets} & {ticket["content"] for ticket in other_tickets}
    assert [ticket["user_id"] for ticket in tickets] != [ticket["user_id"] for ticket in other_tickets]
    assert len({user[2] for user in users} & {user[2] for user in other_users}) < len(users) / 10


# Customers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tickets", [10_000, 100_000])
def test_few_customers_write_much_and_many_a_little(composed, tickets):
    counts = sorted(Counter(customer for customer, _, _ in composed[:tickets]).values(), reverse=True)
    assert sum(counts[: len(counts) // 5]) > 0.4 * tickets
    assert counts[0] < 0.1 * tickets
    assert counts[-1] == 1


@given(st.integers(0, 10**12))
def test_the_number_of_customers_only_ever_grows(tickets):
    assert 5 <= ticketapi.customer_pool(tickets) <= ticketapi.customer_pool(tickets + 1)


def test_a_ticket_comes_from_a_customer_that_its_desk_has(composed):
    for ticket_id, (customer, _, _) in enumerate(composed, 1):
        assert 1 <= customer <= ticketapi.customer_pool(ticket_id)


def test_customers_have_addresses_of_their_own(words):
    addresses = {ticketapi.compose_customer(words, 1, number)[1] for number in range(1, 200_001)}
    assert len(addresses) == 200_000


def test_names_come_round_again_only_when_all_have_been_given(words):
    all_names = len(words.first_names) * len(words.last_names)
    name, address = ticketapi.compose_customer(words, 1, 17)
    again, other_address = ticketapi.compose_customer(words, 1, 17 + all_names)
    assert again == name
    assert other_address.partition("@")[0] == address.partition("@")[0] + "2"


@pytest.mark.parametrize("seed", SEEDS)
def test_an_address_is_built_from_the_name(words, seed):
    for number in range(1, 2001):
        name, address = ticketapi.compose_customer(words, seed, number)
        first, last = name.split(" ")
        found = re.fullmatch(r"([a-z]+)\.([a-z]+)@example\.(com|net|org)", address)
        assert found, address
        assert (len(found[1]), len(found[2])) == (len(first), len(last)), f"{name} has letters that {address} lacks"


def test_no_name_loses_a_letter_in_an_address(words):
    lost = [name for name in words.first_names + words.last_names if len(ticketapi.plain_letters(name)) != len(name)]
    assert lost == []


def test_customers_are_numbered_from_one_although_a_token_owner_came_first(db, clock):
    owner = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, clock.now)["user_id"]
    ticketapi.generate_tickets(db, 300, clock.now, 1)
    ids = [user_id for (user_id,) in db.execute("SELECT id FROM users ORDER BY id")]
    assert ids == [*range(1, ticketapi.customer_pool(300) + 1), owner]
    assert ticketapi.find_user(db, owner)["tickets_count"] == 0
    assert_counters_are_true(db)


def test_an_owner_of_a_token_and_a_customer_may_have_the_same_address(db, clock, words):
    name, address = ticketapi.compose_customer(words, 1, 3)
    owner = ticketapi.create_token(db, address.upper(), "t", ["*"], 0, clock.now)["user_id"]
    ticketapi.generate_tickets(db, 10, clock.now, 1)
    assert (ticketapi.find_owner(db, address), ticketapi.list_taken_emails(db, [address])[address]) == (owner, 3)
    assert (ticketapi.find_user(db, 3)["name"], ticketapi.find_user(db, 3)["email"]) == (name, address)


def test_an_address_that_came_with_a_request_is_not_given_to_another_customer(db, clock, words):
    name, address = ticketapi.compose_customer(words, 1, 3)
    ticket = create_ticket(db, ("Somebody", address.upper()), "s", "c", clock.now)
    first = ticketapi.find_ticket_row(db, ticket)["user_id"]
    ticketapi.generate_tickets(db, 10, clock.now, 1)
    assert first == ticketapi.list_taken_emails(db, [address])[address] == ticketapi.FIRST_BROUGHT_ID
    customer = ticketapi.find_user(db, 3)
    assert customer["name"] == name
    assert customer["email"].lower() != address.lower()
    assert_counters_are_true(db)


def test_seeds_may_change_on_one_desk(db, clock):
    for seed in range(30):
        ticketapi.generate_tickets(db, 50, clock.now, seed)
    assert ticketapi.count_tickets(db, ticketapi.OPEN) == 1500
    assert_counters_are_true(db)


# When tickets arrive ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(0, 0, 0), (1, 1, 1), (0, -HOUR, -HOUR), (HOUR, -5 * HOUR, 10), (0, 1, -1)])
def test_arrivals_grow_whatever_the_clock_does(db, clock, steps):
    for step in steps:
        clock.now += step
        ticketapi.generate_tickets(db, 5, clock.now, 1)
    times = [text for (text,) in db.execute("SELECT created_at FROM tickets ORDER BY id")]
    assert len(set(times)) == 15
    assert times == sorted(times)


def test_a_ticket_arrives_now_and_those_after_it_a_microsecond_apart(db, clock):
    ticketapi.generate_tickets(db, 3, clock.now, 1)
    clock.advance(60)
    ticketapi.generate_tickets(db, 1, clock.now, 1)
    times = [ticketapi.parse_time(text) for (text,) in db.execute("SELECT created_at FROM tickets ORDER BY id")]
    assert times == [clock.now - 60_000_000, clock.now - 59_999_999, clock.now - 59_999_998, clock.now]


def test_a_new_ticket_is_open_and_unchanged(db, clock):
    ticketapi.generate_tickets(db, 20, clock.now, 1)
    for row in db.execute("SELECT * FROM tickets"):
        assert (row["status"], row["closed_at"], row["updated_at"]) == (ticketapi.OPEN, None, row["created_at"])
    assert [ticket_id for (ticket_id,) in db.execute("SELECT id FROM tickets ORDER BY id")] == list(range(1, 21))


def test_counters_are_true_after_several_batches(small_batches, db, clock):
    ticketapi.generate_tickets(db, 1001, clock.now, 1)
    ticketapi.process_tickets(db, 400, clock.now)
    assert_counters_are_true(db)
    assert ticketapi.count_tickets(db, ticketapi.OPEN) == 601


def test_no_ticket_at_all_is_possible(db, clock):
    assert ticketapi.generate_tickets(db, 0, clock.now, 1) == 0
    assert_counters_are_true(db)


@patch.object(ticketapi, "BATCH_PAUSE", 0)
@given(st.integers(-5, 10**6))
def test_batches_are_bounded_and_add_up(count):
    sizes = list(ticketapi.batches(count))
    assert sum(sizes) == max(count, 0)
    assert all(0 < size <= ticketapi.BATCH for size in sizes)
