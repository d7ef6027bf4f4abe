"""Whatever is done to a desk in whatever order, it holds and shows exactly what a plain list of tickets would."""

import json
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from conftest import NOON, SECOND, create_ticket, examples
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
        self.log, self.closings, self.touched = [], 0, False  # (type, id) of each change; how often a ticket was closed
        self.copy, self.heard, self.cursors = {}, [], {}  # what who follows the export and the events has, and where he is
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
            made_up = ticketapi.compose_ticket(ticketapi.load_words(), self.seed, len(self.tickets) + 1)
            self.add(*made_up, max(self.now, newest + 1))

    @rule(count=st.integers(0, 60))
    def process(self, count):
        expected = sorted(self.open_tickets(), key=by_arrival)[:count]
        for ticket in expected:
            self.close(ticket)
        assert ticketapi.process_tickets(self.db, count, self.now) == [ticket["id"] for ticket in expected]

    def add(self, user, subject, content, created_at):
        """Note that a ticket came."""
        ticket = {"id": len(self.tickets) + 1, "user_id": user, "subject": subject, "content": content}
        self.tickets.append(
            ticket | {"created_at": created_at, "updated_at": created_at, "closed_at": None, "deleted_at": None}
        )
        self.log.append(("ticket.created", ticket["id"]))

    def close(self, ticket):
        """Note that a ticket is closed now."""
        last = max((ticket["closed_at"] for ticket in self.closed_tickets()), default=0)
        ticket["closed_at"] = ticket["updated_at"] = max(self.now, last + 1, ticket["updated_at"] + 1)
        self.log.append(("ticket.closed", ticket["id"]))
        self.closings += 1

    @rule(number=st.integers(0, 3))
    def create(self, number):
        newest = self.tickets[-1]["created_at"] if self.tickets else 0
        author, text = (f"Person {number}", f"person{number}@example.com"), f"Written by {number}"
        found = create_ticket(self.db, author, text, text, self.now)
        assert found == len(self.tickets) + 1
        user = self.db.execute("SELECT user_id FROM tickets WHERE id = ?", (found,)).fetchone()[0]
        assert user >= ticketapi.FIRST_BROUGHT_ID
        assert ticketapi.find_user(self.db, user)["email"] == author[1]
        self.add(user, text, text, max(self.now, newest + 1))

    def any_ticket(self, data):
        """Return a ticket that is there, most often an old or a new one, or None."""
        alive = [ticket for ticket in self.tickets if not ticket["deleted_at"]]
        return data.draw(st.sampled_from(alive)) if alive else None

    @rule(data=st.data(), changes=st.sampled_from([{"subject": "x"}, {"content": "y"}, {"subject": "x", "content": "y"}, {}]))
    def edit(self, data, changes):
        if ticket := self.any_ticket(data):
            if any(ticket[name] != text for name, text in changes.items()):
                ticket |= changes | {"updated_at": max(self.now, ticket["updated_at"] + 1)}
                self.log.append(("ticket.updated", ticket["id"]))
            ticketapi.update_ticket(self.db, ticket["id"], changes, self.now)

    @rule(
        data=st.data(),
        status=st.sampled_from([ticketapi.OPEN, ticketapi.CLOSED]),
        texts=st.sampled_from([{}, {"subject": "z"}]),
    )
    def set_status(self, data, status, texts):
        ticket = self.any_ticket(data)
        if not ticket or (ticket["closed_at"] is None) == (status == ticketapi.OPEN):
            return
        self.touched = True
        ticketapi.update_ticket(self.db, ticket["id"], {"status": status, **texts}, self.now)
        ticket |= texts
        if status == ticketapi.CLOSED:
            self.close(ticket)
        else:
            ticket |= {"closed_at": None, "updated_at": max(self.now, ticket["updated_at"] + 1)}
            self.log.append(("ticket.reopened", ticket["id"]))

    @rule(data=st.data())
    def delete(self, data):
        if ticket := self.any_ticket(data):
            self.touched = True
            ticketapi.delete_ticket(self.db, ticket["id"], self.now)
            ticket["deleted_at"] = ticket["updated_at"] = max(self.now, ticket["updated_at"] + 1)
            self.log.append(("ticket.deleted", ticket["id"]))

    @rule(data=st.data())
    def comment(self, data):
        if ticket := self.any_ticket(data):
            with ticketapi.transaction(self.db):
                owner = ticketapi.ensure_owner(self.db, "agent@example.com", self.now)
                ticketapi.add_comment(self.db, ticket["id"], owner, "Hello", self.now)
            self.log.append(("comment.created", ticket["id"]))

    @rule(number=st.integers(1, 60))
    def ask_for_what_is_deleted(self, number):
        if number > len(self.tickets) or self.tickets[number - 1]["deleted_at"]:
            for operation in (
                ticketapi.delete_ticket,
                lambda *given: ticketapi.update_ticket(*given[:2], {"status": 1}, given[2]),
            ):
                with pytest.raises(ticketapi.NotFound):
                    operation(self.db, number, self.now)

    @rule(count=st.integers(1, 40), since=st.integers(1, 10 * DAY))
    def tell_a_history(self, count, since):
        start = self.now - since * SECOND
        before = self.stored()
        if self.tickets and self.tickets[-1]["created_at"] >= start:
            with pytest.raises(ticketapi.TicketApiError, match="before the newest ticket"):
                ticketapi.generate_history(self.db, count, since, self.now, self.seed)
            assert self.stored() == before
            return
        backlog = [ticket["id"] for ticket in self.open_tickets()]
        assert ticketapi.generate_history(self.db, count, since, self.now, self.seed)[0] == count
        after = self.stored()
        assert len(after) == len(before) + count
        for old, new in zip(before, after, strict=False):
            end = {"closed_at": new["closed_at"], "updated_at": new["closed_at"]}
            assert new == old or (old["closed_at"] is None and not old["deleted_at"] and new == old | end)
        assert all(ticket["closed_at"] or ticket["deleted_at"] for ticket in after[: len(before)])
        self.log += [("ticket.closed", ticket_id) for ticket_id in backlog]
        self.log += [("ticket.created", ticket["id"]) for ticket in after[len(before) :]]
        self.closings += sum(ticket["closed_at"] is not None for ticket in after[len(before) :]) + len(backlog)
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

    @rule(page=pages, size=sizes, user=st.one_of(st.integers(1, 30), st.integers(500_000_001, 500_000_004)))
    def show_tickets_of_a_user(self, page, size, user):
        if ticketapi.find_user(self.db, user) is None:
            with pytest.raises(ticketapi.NotFound, match=f"There is no user with the id {user}"):
                ticketapi.user_tickets_page(self.reader, user, self.asked(page, size))
            return
        shown = ticketapi.user_tickets_page(self.reader, user, self.asked(page, size))
        mine = (t for t in self.tickets if t["user_id"] == user and not t["deleted_at"])
        expected = sorted(mine, key=by_arrival, reverse=True)
        self.compare(shown, expected, page, size)

    def next_page(self, read, size):
        """Return the data of the next page of a feed, and whether it is the last one for now."""
        answer = json.loads(read(self.reader, ticketapi.FeedRequest(URL, size, True, self.cursors.get(read), None)))
        self.cursors[read] = ticketapi.decode_cursor(answer["meta"]["after_cursor"], URL).key
        return answer["data"], answer["meta"]["end_of_stream"]

    @rule(size=sizes, most=st.sampled_from([1, 1000]))
    def follow_the_export(self, size, most):
        for _ in range(most):
            tickets, is_end = self.next_page(ticketapi.export_page, size)
            self.copy |= {ticket["id"]: ticket for ticket in tickets}
            if is_end:
                break
        if is_end:  # what was copied is the desk
            assert self.copy.keys() == {ticket["id"] for ticket in self.tickets}
            for ticket in self.tickets:
                found, deleted = self.copy[ticket["id"]], ticket["deleted_at"]
                assert found["deleted_at"] == (deleted and ticketapi.format_time(deleted))
                assert found["updated_at"] == ticketapi.format_time(ticket["updated_at"])
                if not deleted:
                    assert (found["subject"], found["content"]) == (ticket["subject"], ticket["content"])
                    assert found["status"] == ("Open" if ticket["closed_at"] is None else "Closed")

    @rule(size=sizes, most=st.sampled_from([1, 1000]))
    def follow_the_events(self, size, most):
        for _ in range(most):
            events, is_end = self.next_page(ticketapi.events_page, size)
            self.heard += [(event["id"], event["type"], event["data"]["id"]) for event in events]
            if is_end:
                break
        told = [(number, *change) for number, change in enumerate(self.log, 1)]
        assert self.heard == (told if is_end else told[: len(self.heard)])

    @rule()
    def show_stats(self):
        stats = ticketapi.desk_stats(self.db)
        last = max((ticket["closed_at"] for ticket in self.closed_tickets()), default=None)
        assert stats["total_tickets"] == len(self.open_tickets()) + len(self.closed_tickets())
        assert stats["total_unprocessed_tickets"] == len(self.open_tickets())
        assert stats["most_recent_processed_at"] == (last and ticketapi.format_time(last)[:19].replace("T", " "))
        counts = Counter(ticket["user_id"] for ticket in self.tickets if not ticket["deleted_at"])
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
        assert counters == Counter(ticket["user_id"] for ticket in self.tickets if not ticket["deleted_at"])
        given = {user: n for user, n in self.db.execute("SELECT id, last_number FROM users") if n}
        assert given == Counter(ticket["user_id"] for ticket in self.tickets)
        assert ticketapi.get_counter(self.db, "closed_number") == self.closings
        assert ticketapi.counter_problems(self.db) == []
        assert ticketapi.order_problems(self.db) == []

    @invariant()
    def every_list_is_numbered_in_its_order_and_no_number_is_given_twice(self):
        rows = self.db.execute("SELECT user_id, user_number, closed_at, closed_number FROM tickets ORDER BY id").fetchall()
        seen = Counter()
        for row, ticket in zip(rows, self.tickets, strict=True):
            seen[row["user_id"]] += 1
            assert row["user_number"] == (None if ticket["deleted_at"] else seen[row["user_id"]])
        closed = sorted((row["closed_at"], row["closed_number"]) for row in rows if row["closed_number"] is not None)
        numbers = [number for _, number in closed]
        assert numbers == sorted(set(numbers))
        assert self.touched or numbers == list(range(1, len(closed) + 1))

    @invariant()
    def each_change_is_one_event(self):
        found, expected = [], 1
        for row in ticketapi.list_event_rows(self.db, 0, 10**6):
            assert row["first_change"] == expected
            expected = row["last_change"] + 1
            found += [(kind, ticket_id) for _, kind, ticket_id, _ in ticketapi.row_changes(row)]
        assert found == self.log
        changes = {ticket_id: n for n, (kind, ticket_id) in enumerate(self.log, 1) if kind != "comment.created"}
        assert dict(map(tuple, self.db.execute("SELECT id, change FROM tickets"))) == changes

    @invariant()
    def the_orders_are_total(self):
        arrivals = [ticket["created_at"] for ticket in self.tickets]
        assert arrivals == sorted(set(arrivals))
        closed = sorted(self.closed_tickets(), key=lambda t: t["closed_at"])
        assert len({ticket["closed_at"] for ticket in closed}) == len(closed)
        assert self.touched or closed == self.tickets[: len(closed)]
        assert all(ticket["closed_at"] > ticket["created_at"] for ticket in closed)

    # Helpers --------------------------------------------------------------------------------------

    def open_tickets(self):
        return [ticket for ticket in self.tickets if ticket["closed_at"] is None and not ticket["deleted_at"]]

    def closed_tickets(self):
        return [ticket for ticket in self.tickets if ticket["closed_at"] is not None and not ticket["deleted_at"]]

    def stored(self):
        """Return the file's tickets as the model has them."""
        times = ("created_at", "updated_at", "closed_at", "deleted_at")
        rows = self.db.execute(f"SELECT id, user_id, subject, content, {', '.join(times)} FROM tickets ORDER BY id")
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
            assert ticket["updated_at"] == ticketapi.format_time(model["updated_at"])
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
