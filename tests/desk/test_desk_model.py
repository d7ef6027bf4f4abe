"""Whatever is done to a desk in whatever order, it holds and shows exactly what a plain list of tickets would."""

import json
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from conftest import NOON, SECOND, examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import ticketapi

DAY = 86_400
URL = "http://desk.test/api/list"
pages = st.integers(1, 9)
sizes = st.sampled_from([1, 2, 7, 50, 200])


def by_arrival(ticket):
    """Order tickets by their arrival."""
    return ticket["created_at"], ticket["id"]


class DeskMachine(RuleBasedStateMachine):
    """A desk in a file, and a model of it: a list of dicts and the time."""

    @initialize(seed=st.integers(0, 3), owner_first=st.booleans())
    def open_desk(self, seed, owner_first):
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name, "desk.db")
        self.db, self.reader = ticketapi.open_database(path, "desk"), ticketapi.connect(path, ticketapi.READER)
        self.seed, self.now, self.tickets = seed, NOON, []
        if owner_first:
            ticketapi.create_token(self.db, "ann@example.com", "t", ["*"], 0, NOON)

    def teardown(self):
        if hasattr(self, "db"):
            self.reader.close()
            self.db.close()
            self.directory.cleanup()

    # What is done ---------------------------------------------------------------------------------

    @rule(seconds=st.one_of(st.sampled_from([0, 1e-6, -1e-6]), st.integers(-2 * DAY, 5 * DAY)))
    def move_the_clock(self, seconds):
        self.now += round(seconds * SECOND)

    @rule(count=st.integers(1, 40))
    def generate(self, count):
        assert ticketapi.generate_tickets(self.db, count, self.now, self.seed) == count
        for _ in range(count):
            newest = self.tickets[-1]["created_at"] if self.tickets else 0
            user, subject, content = ticketapi.compose_ticket(ticketapi.load_words(), self.seed, len(self.tickets) + 1)
            self.tickets.append(
                {
                    "id": len(self.tickets) + 1,
                    "user_id": user,
                    "subject": subject,
                    "content": content,
                    "created_at": max(self.now, newest + 1),
                    "closed_at": None,
                }
            )

    @rule(count=st.integers(0, 60))
    def process(self, count):
        expected = sorted(self.open_tickets(), key=by_arrival)[:count]
        last = max((ticket["closed_at"] for ticket in self.closed_tickets()), default=0)
        for ticket in expected:
            last = ticket["closed_at"] = max(self.now, last + 1, ticket["created_at"] + 1)
        assert ticketapi.process_tickets(self.db, count, self.now) == [ticket["id"] for ticket in expected]

    @rule(count=st.integers(1, 40), since=st.integers(1, 10 * DAY))
    def tell_a_history(self, count, since):
        start = self.now - since * SECOND
        before = self.stored()
        if self.tickets and self.tickets[-1]["created_at"] >= start:
            with pytest.raises(ticketapi.TicketApiError, match="before the newest ticket"):
                ticketapi.generate_history(self.db, count, since, self.now, self.seed)
            assert self.stored() == before
            return
        assert ticketapi.generate_history(self.db, count, since, self.now, self.seed)[0] == count
        after = self.stored()
        assert len(after) == len(before) + count
        for old, new in zip(before, after, strict=False):
            assert new == old or (old["closed_at"] is None and new == old | {"closed_at": new["closed_at"]})
        assert all(ticket["closed_at"] for ticket in after[: len(before)])
        self.tickets = after

    # What is shown --------------------------------------------------------------------------------

    @rule(page=pages, size=sizes)
    def show_open_tickets(self, page, size):
        shown = ticketapi.open_tickets_page(self.reader, self.asked(page, size))
        self.compare(shown, sorted(self.open_tickets(), key=by_arrival), page, size)

    @rule(page=pages, size=sizes)
    def show_closed_tickets(self, page, size):
        shown = ticketapi.closed_tickets_page(self.reader, self.asked(page, size))
        expected = sorted(self.closed_tickets(), key=lambda t: (t["closed_at"], t["id"]), reverse=True)
        self.compare(shown, expected, page, size)

    @rule(page=pages, size=sizes, user=st.integers(1, 30))
    def show_tickets_of_a_user(self, page, size, user):
        if ticketapi.find_user(self.db, user) is None:
            with pytest.raises(ticketapi.NotFound, match=f"There is no user with the id {user}"):
                ticketapi.user_tickets_page(self.reader, user, self.asked(page, size))
            return
        shown = ticketapi.user_tickets_page(self.reader, user, self.asked(page, size))
        expected = sorted((t for t in self.tickets if t["user_id"] == user), key=by_arrival, reverse=True)
        self.compare(shown, expected, page, size)

    @rule()
    def show_stats(self):
        stats = ticketapi.desk_stats(self.db)
        last = max((ticket["closed_at"] for ticket in self.closed_tickets()), default=None)
        assert stats["total_tickets"] == len(self.tickets)
        assert stats["total_unprocessed_tickets"] == len(self.open_tickets())
        assert stats["most_recent_processed_at"] == (last and ticketapi.format_time(last)[:19].replace("T", " "))
        counts = Counter(ticket["user_id"] for ticket in self.tickets)
        top = min(counts.items(), key=lambda item: (-item[1], item[0]), default=None)
        shown = stats["top_user"]
        assert (shown and (shown["id"], shown["tickets_count"])) == top

    # What is always true --------------------------------------------------------------------------

    @invariant()
    def the_file_is_sound(self):
        assert self.db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert self.db.execute("PRAGMA foreign_key_check").fetchall() == []

    @invariant()
    def the_file_holds_what_the_model_holds(self):
        assert self.stored() == self.tickets

    @invariant()
    def the_counters_are_true(self):
        assert ticketapi.count_tickets(self.db, ticketapi.OPEN) == len(self.open_tickets())
        assert ticketapi.count_tickets(self.db, ticketapi.CLOSED) == len(self.closed_tickets())
        counters = {user: n for user, n in self.db.execute("SELECT id, tickets_count FROM users") if n}
        assert counters == Counter(ticket["user_id"] for ticket in self.tickets)

    @invariant()
    def every_list_is_numbered_without_gaps_in_its_order(self):
        rows = self.db.execute("SELECT user_id, user_number, closed_number FROM tickets ORDER BY id").fetchall()
        seen = Counter()
        for row in rows:
            seen[row["user_id"]] += 1
            assert row["user_number"] == seen[row["user_id"]]
        closed = [row["closed_number"] for row in rows if row["closed_number"] is not None]
        assert closed == list(range(1, len(closed) + 1))

    @invariant()
    def the_orders_are_total(self):
        arrivals = [ticket["created_at"] for ticket in self.tickets]
        assert arrivals == sorted(set(arrivals))
        closed = sorted(self.closed_tickets(), key=lambda t: t["closed_at"])
        assert len({ticket["closed_at"] for ticket in closed}) == len(closed)
        assert closed == self.tickets[: len(closed)]
        assert all(ticket["closed_at"] > ticket["created_at"] for ticket in closed)

    # Helpers --------------------------------------------------------------------------------------

    def open_tickets(self):
        return [ticket for ticket in self.tickets if ticket["closed_at"] is None]

    def closed_tickets(self):
        return [ticket for ticket in self.tickets if ticket["closed_at"] is not None]

    def stored(self):
        """Return the file's tickets as the model has them."""
        rows = self.db.execute("SELECT id, user_id, subject, content, created_at, closed_at FROM tickets ORDER BY id")
        times = ("created_at", "closed_at")
        return [dict(row) | {name: row[name] and ticketapi.parse_time(row[name]) for name in times} for row in rows]

    def asked(self, page, size):
        return ticketapi.ListRequest(URL, page, size, True)

    def compare(self, shown, expected, page, size):
        """Compare a page with the model's slice of the whole list."""
        shown, part = json.loads(shown), expected[(page - 1) * size : page * size]
        assert [ticket["id"] for ticket in shown["data"]] == [ticket["id"] for ticket in part]
        for ticket, model in zip(shown["data"], part, strict=True):
            assert (ticket["subject"], ticket["content"]) == (model["subject"], model["content"])
            assert ticket["user"]["id"] == model["user_id"]
            assert ticket["created_at"] == ticketapi.format_time(model["created_at"])
            assert ticket["updated_at"] == ticketapi.format_time(model["closed_at"] or model["created_at"])
            assert ticket["status"] == ("Open" if model["closed_at"] is None else "Closed")
        meta = shown["meta"]
        assert (meta["total"], meta["last_page"]) == (len(expected), max(1, -(-len(expected) // size)))
        first = (page - 1) * size + 1
        assert (meta["from"], meta["to"]) == ((first, first + len(part) - 1) if part else (None, None))


DeskMachine.TestCase.settings = settings(
    max_examples=examples(50), stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class TestDesk(DeskMachine.TestCase):
    """The machine, run by pytest."""


def test_all_pages_together_are_the_list(tmp_path):
    with closing(ticketapi.open_database(tmp_path / "desk.db", "desk")) as db:
        ticketapi.generate_tickets(db, 103, NOON, 1)
        ticketapi.process_tickets(db, 51, NOON)
        reader = ticketapi.connect(tmp_path / "desk.db", ticketapi.READER)
    with closing(reader):
        lists = ((ticketapi.open_tickets_page, range(52, 104)), (ticketapi.closed_tickets_page, range(51, 0, -1)))
        for show, expected in lists:
            for size in (1, 10, 50, 200):
                asked = (ticketapi.ListRequest(URL, page, size, True) for page in range(1, 105))
                shown = [ticket["id"] for request in asked for ticket in json.loads(show(reader, request))["data"]]
                assert shown == list(expected)
