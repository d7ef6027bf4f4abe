"""Whatever is done to two desks in whatever order, the one in PostgreSQL does and answers what the one in a file does."""

import tempfile
from pathlib import Path

import pytest
from conftest import NOON, HandClock, close_out_of_order, create_ticket, examples, make_served
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pairs import Pair

import ticketapi

DAY = ticketapi.DAY
LISTS = ("/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/users/2/tickets", "/api/users")
FEEDS = ("/api/audits", "/api/tickets", "/api/tickets/export", "/api/events")
TABLES = ticketapi.TABLES["desk"]
FIGURES = ("/api/stats", "/api/series?since=30d", "/api/series?bucket=day&since=60d", "/api/audits/summary")
WAITING = "SELECT id FROM tickets WHERE status = 1 ORDER BY id"
urls, sizes = st.sampled_from(LISTS), st.sampled_from([1, 2, 7, 50, 200])


class BothDesks(RuleBasedStateMachine):
    """A desk in a file and one in PostgreSQL, which get the same steps at the same times."""

    databases = None  # of the run, given by the test

    @initialize(seed=st.integers(0, 3), rate=st.sampled_from([0, 5, 30]))
    def open_desks(self, seed, rate):
        self.directory = tempfile.TemporaryDirectory()
        self.pair = Pair(Path(self.directory.name), self.databases, HandClock(), make_served, rate=rate)
        self.seed, self.links, self.etags = seed, [], {}
        self.tokens = [self.pair.create_token("ann@example.com", "first", ["*"], 0, NOON)]

    def teardown(self):
        if hasattr(self, "pair"):
            self.pair.close()
            self.directory.cleanup()

    @property
    def now(self):
        return self.pair.clock.wall()

    def get(self, url, **more):
        return self.pair.get(url, token=self.tokens[-1]["token"] if self.tokens else None, **more)

    # What is done ---------------------------------------------------------------------------------

    @rule(seconds=st.one_of(st.sampled_from([0.000001, 1, 60]), st.integers(0, 5 * DAY)))
    def wait(self, seconds):
        self.pair.clock.advance(seconds)

    @rule(count=st.sampled_from([1, 2, 30, 150]))
    def generate(self, count):
        self.pair.do(lambda db: ticketapi.generate_tickets(db, count, self.now, self.seed))

    @rule(count=st.integers(1, 150), days=st.integers(1, 10))
    def tell_a_history(self, count, days):
        self.pair.do(lambda db: ticketapi.generate_history(db, count, days * DAY, self.now, self.seed))

    @rule(count=st.sampled_from([0, 1, 20, 120]))
    def process(self, count):
        self.pair.do(lambda db: ticketapi.process_tickets(db, count, self.now))

    @rule(data=st.data())
    def close_some(self, data):
        waiting = [row["id"] for row in self.pair.do(lambda db: rows_of(db, WAITING))]
        if waiting:
            chosen = data.draw(st.lists(st.sampled_from(waiting), unique=True, max_size=5))
            self.pair.do(lambda db: close_out_of_order(db, chosen, self.now))

    @rule(number=st.integers(1, 3))
    def create_a_ticket(self, number):
        author = (f"Person {number}", f"Person{number}@example.com")
        self.pair.do(lambda db: create_ticket(db, author, "S\u00fcbject", "Content", self.now))

    @rule(number=st.integers(1, 200), changes=st.sampled_from([{"status": 1}, {"status": 2}, {"subject": "x", "status": 2}]))
    def change_a_ticket(self, number, changes):
        self.pair.do(lambda db: ticketapi.update_ticket(db, number, changes, self.now))

    @rule(numbers=st.lists(st.integers(1, 200), unique=True, max_size=8))
    def delete_tickets(self, numbers):
        for number in numbers:
            self.pair.do(lambda db, number=number: ticketapi.delete_ticket(db, number, self.now))

    @rule(number=st.integers(1, 200))
    def comment(self, number):
        self.pair.do(lambda db: comment_as_agent(db, number, self.now))

    @rule(expires=st.sampled_from([0, 1, DAY]), name=st.sampled_from(["a", 'b"c', "ü\\'"]))
    def create_a_token(self, expires, name):
        self.tokens.append(self.pair.create_token(f"{len(self.tokens)}@example.com", name, ["*"], expires, self.now))

    @rule(number=st.integers(0, 9))
    def revoke_a_token(self, number):
        self.pair.do(lambda db: ticketapi.revoke_token(db, number))
        self.tokens = [token for token in self.tokens if token["id"] != number]

    @rule()
    def prune_tokens(self):
        self.pair.do(lambda db: ticketapi.prune_tokens(db, self.now))

    @rule(seconds=st.integers(0, DAY), limit=st.integers(1, 30))
    def prune_the_log(self, seconds, limit):
        before = ticketapi.format_time(self.now - seconds * 1_000_000)
        assert len({api.audit.prune(before, limit) for api in self.pair.apis}) == 1

    # What is shown --------------------------------------------------------------------------------

    @rule(url=urls, size=sizes, page=st.integers(1, 5))
    def show_a_page(self, url, size, page):
        self.keep(self.get(f"{url}?page={page}&per_page={size}"))

    @rule(url=st.sampled_from([*LISTS, *FEEDS]), size=sizes)
    def begin_a_walk(self, url, size):
        self.keep(self.get(f"{url}?cursor=&per_page={size}"))

    @rule(data=st.data())
    def follow_a_link(self, data):
        if self.links:
            self.keep(self.get(data.draw(st.sampled_from(self.links))))

    @rule(
        url=st.sampled_from(["/api/stats", "/api/series?since=30d", "/api/series?bucket=day&since=60d", "/api/audits/summary"])
    )
    def show_figures(self, url):
        self.keep(self.get(url), url)

    @rule(number=st.integers(1, 200), kind=st.sampled_from(["tickets", "users"]))
    def show_one(self, number, kind):
        self.get(f"/api/{kind}/{number}")

    @rule(query=st.sampled_from(["user=ann@example.com", "status=4xx", "token=1", "path=tickets", "since=1h", "status=200"]))
    def show_audits(self, query):
        self.keep(self.get(f"/api/audits?per_page=5&{query}"))

    @rule(data=st.data())
    def ask_again(self, data):
        if self.etags:
            url = data.draw(st.sampled_from(sorted(self.etags)))
            self.get(url, headers={"If-None-Match": self.etags[url]})

    def keep(self, answer, url=None):
        """Keep the links of an answer, to be followed later, when the desks have changed."""
        if answer.status == 200:
            links = answer.json.get("links", {}).values()
            self.links = [*self.links, *(link.removeprefix("http://desk.test:8000") for link in links if link)][-20:]
            if url:
                self.etags[url] = answer.headers["etag"]

    # What is always true --------------------------------------------------------------------------

    @invariant()
    def both_hold_the_same(self):
        for table in TABLES:
            self.pair.do(lambda db, table=table: rows_of(db, f"SELECT * FROM {table}"))
        self.pair.audits()

    @invariant()
    def the_desk_is_sound(self):
        assert self.pair.do(ticketapi.counter_problems) == []
        assert self.pair.do(lambda db: ticketapi.reference_problems(db, 3)) == []


def comment_as_agent(db, ticket_id, now):
    """Add a comment of an owner of tokens."""
    with ticketapi.transaction(db):
        owner = ticketapi.ensure_owner(db, "agent@example.com", now)
        return ticketapi.add_comment(db, ticket_id, owner, "Hello", now)


def rows_of(db, sql):
    """Return all rows of a statement, as dicts, in an order that is the same on both engines."""
    return sorted((dict(row) for row in db.execute(sql)), key=repr)


@pytest.fixture
def machine(databases):
    """The machine, with databases to work in."""
    BothDesks.databases = databases
    yield BothDesks
    BothDesks.databases = None


def test_both_desks_do_the_same_whatever_is_done(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(60),
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
