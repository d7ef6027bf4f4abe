"""A history fills a period with the rhythm of a week, closes tickets in their order and leaves a backlog that is plausible."""

from collections import Counter
from contextlib import closing
from datetime import datetime, timezone

import pytest
from conftest import NOON, SECOND
from hypothesis import given
from hypothesis import strategies as st

import ticketapi

DAY = 86_400
HOUR = 3600 * SECOND

TIMES = {
    "Sunday night": "2025-12-07T23:59:59.000000Z",
    "Wednesday afternoon": "2025-03-12T15:30:00.000001Z",
    "Friday noon": "2025-12-05T12:00:00.000000Z",
    "Saturday in a leap year": "2024-03-02T03:14:15.926535Z",
}


def tickets_of(db):
    """Return the tickets by id, their times in microseconds."""
    rows = [dict(row) for row in db.execute("SELECT * FROM tickets ORDER BY id")]
    for row in rows:
        for name in ("created_at", "updated_at", "closed_at"):
            row[name] = row[name] and ticketapi.parse_time(row[name])
    return rows


def dump(db):
    """Return everything that a desk holds."""
    if isinstance(db, ticketapi.PostgresConnection):
        tables = ("users", "tickets", "ticket_counts", "ticket_arrivals", "ticket_closings", "personal_access_tokens")
        return {table: db.execute(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}
    return list(db.iterdump())


def make_history(path, count, days, now, seed=1):
    """Return the tickets of a new desk with a history."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        came, closed = ticketapi.generate_history(db, count, int(days * DAY), now, seed)
        tickets = tickets_of(db)
        assert came == count == len(tickets)
        assert closed == ticketapi.count_tickets(db, ticketapi.CLOSED)
    return tickets


def assert_order(tickets):
    """Check that arrivals and closings grow strictly, and that tickets are closed in the order of their arrival."""
    arrivals = [ticket["created_at"] for ticket in tickets]
    assert arrivals == sorted(set(arrivals))
    closed = sorted((t for t in tickets if t["closed_at"]), key=lambda t: t["closed_at"])
    assert len({t["closed_at"] for t in closed}) == len(closed)
    assert [t["id"] for t in closed] == [t["id"] for t in tickets[: len(closed)]]
    assert [t["closed_number"] for t in closed] == list(range(1, len(closed) + 1))
    assert all(t["closed_at"] > t["created_at"] for t in closed)
    for ticket in tickets:
        assert ticket["status"] == (2 if ticket["closed_at"] else 1)
        assert ticket["updated_at"] == (ticket["closed_at"] or ticket["created_at"])


def assert_inside(tickets, start, now):
    """Check that nothing happens outside the period."""
    assert all(start <= ticket["created_at"] <= now for ticket in tickets)
    assert all(start < ticket["closed_at"] <= now for ticket in tickets if ticket["closed_at"])


@pytest.fixture(scope="module", params=list(TIMES))
def quarter(request, tmp_path_factory):
    """The tickets of ninety days that end at various times of the week, and that end."""
    now = ticketapi.parse_time(TIMES[request.param])
    return make_history(tmp_path_factory.mktemp("history") / "desk.db", 10_000, 90, now), now


# A quarter of a year ------------------------------------------------------------------------------


def test_a_history_happens_inside_its_period_and_in_order(quarter):
    tickets, now = quarter
    assert_order(tickets)
    assert_inside(tickets, now - 90 * DAY * SECOND, now)


def test_a_history_leaves_a_plausible_backlog(quarter):
    tickets, _ = quarter
    waiting = sum(ticket["closed_at"] is None for ticket in tickets)
    assert 30 <= waiting <= 1000


def test_a_history_fills_the_whole_period(quarter):
    tickets, now = quarter
    days = Counter((now - ticket["created_at"]) // (DAY * SECOND) for ticket in tickets)
    assert set(days) == set(range(90))
    assert max(days.values()) < 5 * 10_000 / 90


def test_people_write_by_day_and_on_weekdays(quarter):
    tickets, _ = quarter
    times = [datetime.fromtimestamp(ticket["created_at"] / SECOND, timezone.utc) for ticket in tickets]
    by_day = sum(9 <= t.hour < 17 for t in times)
    by_night = sum(t.hour >= 22 or t.hour < 6 for t in times)
    assert by_day > 4 * by_night
    weekend = sum(t.weekday() >= 5 for t in times) / 2
    assert (len(times) - 2 * weekend) / 5 > 1.5 * weekend


def test_tickets_are_answered_in_working_hours(quarter):
    tickets, _ = quarter
    times = [datetime.fromtimestamp(t["closed_at"] / SECOND, timezone.utc) for t in tickets if t["closed_at"]]
    assert sum(7 <= t.hour < 19 for t in times) > 0.9 * len(times)
    assert sum(t.weekday() < 5 for t in times) > 0.9 * len(times)


def test_no_two_weeks_are_alike(quarter):
    tickets, now = quarter
    weeks = Counter((now - ticket["created_at"]) // (7 * DAY * SECOND) for ticket in tickets)
    assert len({weeks[week] for week in range(12)}) > 6


# Any period ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "seconds"),
    [(1, 1), (1, 90 * DAY), (2, 1), (50, 1), (3000, 1), (100, 59), (200, 3600), (500, DAY), (300, 4 * 365 * DAY)],
)
def test_a_period_of_any_length_holds_any_number_of_tickets(tmp_path, count, seconds):
    tickets = make_history(tmp_path / "desk.db", count, seconds / DAY, NOON)
    assert_order(tickets)
    assert_inside(tickets, NOON - seconds * SECOND, NOON)


def test_more_than_a_batch_is_one_history(small_batches, tmp_path):
    tickets = make_history(tmp_path / "desk.db", small_batches + 7, 30, NOON)
    assert_order(tickets)
    assert_inside(tickets, NOON - 30 * DAY * SECOND, NOON)


def test_seed_and_moment_decide_the_whole_history(tmp_path):
    one, same = (make_history(tmp_path / f"{n}.db", 400, 20, NOON, seed=5) for n in (1, 2))
    assert one == same
    other_seed = make_history(tmp_path / "3.db", 400, 20, NOON, seed=6)
    other_moment = make_history(tmp_path / "4.db", 400, 20, NOON + HOUR, seed=5)
    for other in (other_seed, other_moment):
        assert [t["created_at"] for t in other] != [t["created_at"] for t in one]


def test_a_history_tells_the_stories_that_generate_tells(tmp_path, db):
    ticketapi.generate_tickets(db, 50, NOON, 1)
    told = [(t["user_id"], t["subject"], t["content"]) for t in tickets_of(db)]
    history = make_history(tmp_path / "history.db", 50, 5, NOON)
    assert [(t["user_id"], t["subject"], t["content"]) for t in history] == told


# A desk that has tickets --------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [1, 20, 500])
def test_tickets_that_were_open_before_are_closed_first(db, waiting):
    ticketapi.generate_tickets(db, waiting, NOON - 11 * DAY * SECOND, 1)
    came, closed = ticketapi.generate_history(db, 300, 10 * DAY, NOON, 1)
    tickets = tickets_of(db)
    assert came == 300
    assert closed == ticketapi.count_tickets(db, ticketapi.CLOSED) > waiting
    assert_order(tickets)
    assert_inside(tickets[waiting:], NOON - 10 * DAY * SECOND, NOON)
    assert all(NOON - 10 * DAY * SECOND <= ticket["closed_at"] <= NOON for ticket in tickets[:waiting])


def test_what_was_closed_before_stays_as_it_was(db):
    ticketapi.generate_tickets(db, 20, NOON - 11 * DAY * SECOND, 1)
    ticketapi.process_tickets(db, 20, NOON - 10 * DAY * SECOND - 1)
    before = tickets_of(db)
    ticketapi.generate_history(db, 100, 10 * DAY, NOON, 1)
    tickets = tickets_of(db)
    assert tickets[:20] == before
    assert_order(tickets)


def test_a_closing_inside_the_period_keeps_the_order(db):
    ticketapi.generate_tickets(db, 20, NOON - 11 * DAY * SECOND, 1)
    ticketapi.process_tickets(db, 15, NOON - 5 * DAY * SECOND)
    ticketapi.generate_history(db, 200, 10 * DAY, NOON, 1)
    tickets = tickets_of(db)
    assert_order(tickets)
    assert_inside(tickets[20:], NOON - 10 * DAY * SECOND, NOON)


def test_one_history_follows_another_and_life_goes_on(db):
    ticketapi.generate_history(db, 200, 10 * DAY, NOON - 10 * DAY * SECOND, 1)
    ticketapi.generate_history(db, 200, 10 * DAY, NOON, 1)
    ticketapi.generate_tickets(db, 5, NOON, 1)
    ticketapi.process_tickets(db, 3, NOON)
    assert_order(tickets_of(db))
    assert len(tickets_of(db)) == 405


def test_customers_and_counters_are_those_of_the_tickets(db):
    ticketapi.generate_tickets(db, 30, NOON - 11 * DAY * SECOND, 1)
    ticketapi.generate_history(db, 500, 10 * DAY, NOON, 1)
    tickets = tickets_of(db)
    assert ticketapi.count_tickets(db, 1) == sum(t["status"] == 1 for t in tickets)
    assert ticketapi.count_tickets(db, 2) == sum(t["status"] == 2 for t in tickets)
    counts = Counter(t["user_id"] for t in tickets)
    assert {user: n for user, n in db.execute("SELECT id, tickets_count FROM users") if n} == counts
    assert db.execute("SELECT count(*) FROM users").fetchone()[0] == ticketapi.customer_pool(530)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 5 * DAY * SECOND])
def test_a_period_that_begins_before_the_newest_ticket_is_refused_and_nothing_changes(db, after):
    start = NOON - 10 * DAY * SECOND
    ticketapi.generate_tickets(db, 1, start + after, 1)
    before = dump(db)
    with pytest.raises(ticketapi.TicketApiError) as caught:
        ticketapi.generate_history(db, 100, 10 * DAY, NOON, 1)
    text = str(caught.value)
    assert text.startswith(f"--since begins at {ticketapi.format_time(start)}, before the newest ticket ")
    assert ticketapi.format_time(start + after) in text
    assert text.endswith("take a shorter --since, or another --db")
    assert "\n" not in text
    assert dump(db) == before


def test_a_period_that_begins_just_after_the_newest_ticket_is_taken(db):
    ticketapi.generate_tickets(db, 1, NOON - 10 * DAY * SECOND - 1, 1)
    assert ticketapi.generate_history(db, 100, 10 * DAY, NOON, 1)[0] == 100
    assert_order(tickets_of(db))


@pytest.mark.files
def test_a_ticket_that_another_program_adds_meanwhile_stops_the_history_between_two_batches(small_batches, desk, db):
    begun = []

    def add_one_before_the_second_batch(statement):
        begun.extend([statement] * statement.startswith("BEGIN"))
        if len(begun) == 2 and statement.startswith("BEGIN"):
            with closing(ticketapi.connect(desk)) as other:
                ticketapi.generate_tickets(other, 1, NOON, 1)

    db.set_trace_callback(add_one_before_the_second_batch)
    count = small_batches + 10
    with pytest.raises(
        ticketapi.TicketApiError, match=f"another program added a ticket meanwhile; {small_batches} of {count} tickets"
    ):
        ticketapi.generate_history(db, count, 30 * DAY, NOON, 1)
    db.set_trace_callback(None)
    assert len(begun) == 2
    assert not db.in_transaction
    tickets = tickets_of(db)
    assert len(tickets) == small_batches + 1
    assert sum(ticketapi.count_tickets(db, status) for status in (1, 2)) == len(tickets)
    assert_order(tickets)


# Rhythm -------------------------------------------------------------------------------------------


@st.composite
def rhythms(draw):
    """A rhythm over a period of up to nine days, its start and its end."""
    start = draw(st.integers(0, 3000 * DAY * SECOND))
    end = start + draw(st.integers(1, 9 * DAY * SECOND))
    office = ticketapi.find_profile("office")
    pattern = draw(st.sampled_from([(office.hours, office.weekdays), (office.working_hours, office.working_days)]))
    return ticketapi.Rhythm(start, draw(st.integers(0, 2**63)), *pattern), start, end


@given(rhythms(), st.data())
def test_a_moment_has_a_weight_that_leads_back_to_it(made, data):
    rhythm, start, end = made
    moment = data.draw(st.integers(start, end - 1))
    assert 0 <= rhythm.weight(moment) < rhythm.weight(end)
    assert rhythm.moment(rhythm.weight(moment)) == moment


@given(rhythms(), st.data())
def test_a_weight_has_a_moment_that_leads_back_to_it(made, data):
    rhythm, start, end = made
    weight = data.draw(st.integers(0, rhythm.weight(end) - 1))
    moment = rhythm.moment(weight)
    assert start <= moment < end
    assert rhythm.weight(moment) <= weight < rhythm.weight(moment + 1)


@given(rhythms(), st.data())
def test_a_period_weighs_nothing_before_its_start_and_as_much_as_its_parts(made, data):
    rhythm, start, end = made
    moment = data.draw(st.integers(start, end))
    assert rhythm.weight(start) == 0 <= rhythm.weight(moment) <= rhythm.weight(end)
