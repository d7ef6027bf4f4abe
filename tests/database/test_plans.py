"""No query that a request, a command or a job runs scans a table or sorts: the plans of the statements that really ran."""

import re
import sqlite3
import sys
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import NamedTuple

import pytest
from conftest import NOON, SECOND, Api, HandClock, create_ticket
from receiver import Courier, Receiver
from source import FUNCTIONS, HELPERS, QUERIES, TREE, room_of

import ticketapi

HOUR = 3600 * SECOND
BATCH = 1000  # tickets in one transaction

TOKENS = "sqlite_autoindex_personal_access_tokens_1"

# What the plans may hold in spite of all, by function and line, with the reason.
ALLOWED = {
    ("list_open_tickets", "SCAN page"): "a page, put together from the rows found",
    ("list_closed_tickets", "SCAN page"): "a page, put together from the rows found",
    ("list_user_tickets", "SCAN page"): "a page, put together from the rows found",
    ("find_last_change", "SCAN CONSTANT ROW"): "two look-ups side by side",
    ("find_last_change", "SCAN events"): "from the last row backwards, ends at the first row",
    ("find_event_ends", "SCAN events"): "the first row alone, and the last one",
    ("find_last_comment", "SCAN CONSTANT ROW"): "two look-ups side by side",
    ("find_change_before", "SCAN events"): "from the last row backwards, ends at the first row",
    ("find_change_before", "SCAN found"): "one row",
    ("has_tokens", "SCAN CONSTANT ROW"): "one look-up",
    ("has_tokens", "SCAN personal_access_tokens"): "ends at the first row",
    ("has_tokens", f"SCAN personal_access_tokens USING COVERING INDEX {TOKENS}"): "ends at the first row",
    ("find_newest_ticket", "SCAN tickets"): "from the last row backwards, ends at the first row",
    ("list_customers", "SCAN users USING INDEX users_by_tickets_count"): "skips customers on the index, ends after a page",
    ("list_oldest_open_tickets", "SCAN tickets USING INDEX tickets_open"): "in the list's order, ends after a batch",
    ("list_authors", "SCAN json_each VIRTUAL TABLE INDEX 1:"): "the authors of one batch, handed in as JSON",
    ("list_tickets_by_id", "SCAN json_each VIRTUAL TABLE INDEX 1:"): "the tickets of one page, handed in as JSON",
    ("list_comments_by_id", "SCAN json_each VIRTUAL TABLE INDEX 1:"): "the comments of one page, handed in as JSON",
    ("list_comments", "SCAN page"): "a page, put together from the rows found",
    ("list_changed_tickets", "SCAN page"): "a page, put together from the rows found",
    ("list_taken_emails", "SCAN json_each VIRTUAL TABLE INDEX 1:"): "the addresses of new customers, handed in as JSON",
    ("list_tokens", "SCAN tokens"): "prints all tokens",
    ("delete_expired_tokens", "SCAN personal_access_tokens"): "all tokens are few, and a person asked for it",
    ("delete_old_audits", "SCAN api_audits"): "from the oldest row on, ends after a batch",
    ("delete_old_audits", "SCAN oldest"): "the rows of that batch",
    ("create_schema", "SCAN 2 CONSTANT ROWS"): "the counters of a new desk",
    ("check_tables", "SCAN sqlite_master"): "reads the names of the tables and indexes there are",
    ("read_identity", "SCAN sqlite_master"): "counts the tables of a file that may be another program's",
    ("list_schema", "SCAN sqlite_master"): "lists the tables, for check",
    ("count_ticket_rows", "SCAN CONSTANT ROW"): "two counts side by side",
    ("count_ticket_rows", "SCAN tickets USING INDEX tickets_open"): "check counts rows, on an index",
    ("count_ticket_rows", "SCAN tickets"): "check counts rows; a desk of version 1 has no numbers of closed tickets",
    ("list_ticket_counts", "SCAN ticket_counts"): "two rows",
    ("list_unsound_users", "SCAN users"): "check counts every user's tickets, on an index",
    ("list_ticket_times", "SCAN tickets"): "check compares the counters by the hour with every ticket",
    ("list_misnamed_tickets", "SCAN tickets"): "check compares every ticket's name with its user's",
    ("list_disorder", "SCAN tickets"): "check compares every ticket with those before it",
    ("list_disorder", "SCAN arrivals"): "as they are read",
    ("list_disorder", "SCAN closings"): "as they are read",
    ("list_disorder", "SCAN (subquery-5)"): "as they are read",
    ("list_disorder", "SCAN (subquery-6)"): "as they are read",
    ("list_blocks", "SCAN list_blocks"): "check compares all blocks",
    ("list_filled_blocks", "SCAN tickets"): "check counts the tickets of every block",
    ("list_filled_blocks", "SCAN tickets USING INDEX tickets_open"): "check counts the tickets of every block, on an index",
    ("list_filled_blocks", "SCAN tickets USING COVERING INDEX tickets_by_user"): "check counts every user's tickets by block",
    ("list_filled_blocks", "USE TEMP B-TREE FOR GROUP BY"): "check sorts the blocks of every user",
    ("list_last_numbers", "SCAN tickets"): "check counts the tickets that are not deleted",
    ("list_last_numbers", "SCAN users"): "check looks at every customer",
    ("find_number_ends", "SCAN counters"): "two rows",
    ("delete_arrivals", "SCAN ticket_arrivals"): "a repair makes all of them anew",
    ("delete_closings", "SCAN ticket_closings"): "a repair makes all of them anew",
    ("count_audits", "SCAN api_audits"): "a backup counts what it has copied",
    ("list_webhooks", "SCAN webhooks"): "a hundred at most",
    ("list_webhooks", "SCAN webhook_deliveries USING COVERING INDEX webhook_deliveries_waiting"): "what waits, on an index",
    ("switch_off_webhooks", "SCAN webhooks"): "a hundred at most",
}


OF_POSTGRES = {"take_permission", "list_permissions"}  # where many servers share a desk


class Ran(NamedTuple):
    """A statement that ran, and how."""

    function: str
    sql: str
    plan: tuple[str, ...]


class Watched(sqlite3.Connection):
    """A connection that notes the plan of each statement before it runs it, with the same values and by the same views."""

    ran = None  # a dict of Ran by function and statement

    def note(self, function, sql, values):
        """Note a statement that works on rows."""
        if (function, sql) not in self.ran and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", sql):
            rows = super().execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
            self.ran[function, sql] = Ran(function, sql, tuple(row[3] for row in rows))

    def execute(self, sql, values=()):
        self.note(query_that_runs(), sql, values)
        return super().execute(sql, values)

    def executemany(self, sql, values):
        values = list(values)
        if values:
            self.note(query_that_runs(), sql, values[0])
        return super().executemany(sql, values)


def query_that_runs():
    """Return the name of the function whose statement is being executed, above what all queries share."""
    frame = sys._getframe(2)
    while frame.f_code.co_name in HELPERS:
        frame = frame.f_back
    return frame.f_code.co_name


def offences(ran):
    """Return (function, line of its plan) of what scans or sorts."""
    lines = [(item.function, re.sub(r"SUBQUERY (\d+)$", r"(subquery-\1)", line)) for item in ran for line in item.plan]
    return {(function, line) for function, line in lines if "TEMP B-TREE" in line or line.startswith("SCAN")}


def queries():
    """Return the names of the functions of the rooms of queries whose statements SQLite runs."""
    return (
        {top.name for top in TREE.body if isinstance(top, FUNCTIONS) and room_of(top.lineno) in QUERIES} - HELPERS - OF_POSTGRES
    )


# What a desk lives through -----------------------------------------------------------------------


def run_commands(path):
    """Run every command but `serve`."""
    commands = (
        f"generate --count {BATCH + 50} --since 90d",
        "generate --count 400 --seed 7",
        "process --count 100",
        "token create --user ann@example.com --expires 1s",
        "token create",
        "token list",
        "token revoke 2",
        "token prune",
        "process --json",
        "check",
        "tickets --limit 300",
        "tickets closed",
        "tickets 1",
        "stats",
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        for command in commands:
            assert ticketapi.main([*command.split(), "--db", str(path)]) == 0, err.getvalue()


def read_log(settings):
    """Show, follow and prune the audit log."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        for command in ("audit", "audit --status 1xx --since 1h --json", "audit prune --older-than 1d"):
            assert ticketapi.main([*command.split(), "--db", str(settings.db)]) == 0, err.getvalue()
    assert "Pruned 0 audits" in out.getvalue()
    with closing(ticketapi.open_read_only(settings.audit_db, "audit")) as db:
        assert len(next(ticketapi.follow_audits(db, ticketapi.AuditFilter(), 3))) == 3


def repair_and_back_up(path):
    """Repair a desk whose numbers have gaps, and copy it with its audit log."""
    with closing(sqlite3.connect(path, factory=sqlite3.Connection)) as db, db:
        wrong = "closed_number = closed_number + 10000, user_number = user_number + 10000, user_name = ''"
        db.execute(f"UPDATE tickets SET {wrong}")
    copy = path.with_name("copy.db")
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        assert ticketapi.main(["check", "--repair", "--db", str(path)]) == 0
        assert ticketapi.main(["backup", str(copy), "--audit", "--db", str(path)]) == 0, err.getvalue()
    ticketapi.Settings(db=copy).audit_db.unlink()
    copy.unlink()


def run_jobs(settings, now):
    """Run both jobs of the scheduler at their first boundary."""
    jobs = ticketapi.scheduled_jobs(settings, 1)
    for moment in (now, now + HOUR):
        ticketapi.run_due_jobs(jobs, moment)
    assert len(jobs) == 2


def serve_in_process(path, clock):
    """Return the app with its readers and audit log, as `serve` makes them."""
    settings = replace(ticketapi.Settings(db=path), rate=0)
    readers, audit = ticketapi.Readers(path), ticketapi.AuditLog(settings.audit_db, grouped=True)
    return Api(settings, clock, readers, audit, ticketapi.make_app(settings, readers, audit, clock))


def ask_everything(api, token, author):
    """Send requests of every kind to every route."""
    for path in ("/api/tickets/open", "/api/tickets/closed", f"/api/users/{author}/tickets"):
        for query in ("", "?page=2&per_page=20", "?page=100000", "?per_page=200", "?page=x", "?cursor="):
            answer = api.get(path + query, token=token)
            assert answer.status == (422 if query == "?page=x" else 200)
        follow(api, token, f"{path}?cursor=&per_page=7", "next")
        answer = api.get(path, token=token)
        assert api.get(path, token=token, headers={"If-None-Match": answer.headers["etag"]}).status == 304
        assert api.request("HEAD", path, token=token).status == 200
    found = (
        "/api/stats",
        "/up",
        "/api/tickets/1",
        "/api/users",
        "/api/users?page=2&per_page=5",
        "/api/users?cursor=",
        "/api/users/1",
        "/api/series",
    )
    missing = ("/api/users/999999999/tickets", "/api/tickets/999999999", "/api/users/999999999", "/api/nope")
    for path, status in [*((path, 200) for path in found), *((path, 404) for path in missing)]:
        assert api.get(path, token=token).status == status
    for query in ("", "?user=bob@example.com", "?status=5xx&since=1d"):
        assert api.get(f"/api/audits{query}", token=token).status == 200
    for path in ("/api/audits/summary", "/api/schedule", "/metrics"):
        assert api.get(path, token=token).status == 200
    assert api.get("/api/stats", token=ticketapi.new_token_text()).status == 401
    assert api.request("OPTIONS", "/api/stats").status == 200
    api.audit.commit(0.0)


def write_everything(api, token):
    """Write tickets and comments as clients do, some of it again by the same key, and once more after the keys are gone."""
    new = {"subject": "Written", "content": "By a client.", "user": {"name": "Dora", "email": "dora@example.org"}}
    for _ in range(2):
        made = [api.post("/api/tickets", new, token=token, headers={"Idempotency-Key": '"a"'}) for _ in range(2)]
        assert [answer.status for answer in made] == [201, 201]
        ticket = f"/api/tickets/{made[0].json['data']['id']}"
        assert made[0].body == made[1].body
        assert api.send("PATCH", ticket, {"status": "Closed"}, token=token).status == 200
        assert api.send("PUT", ticket, {"content": "Changed."}, token=token).status == 200
        assert api.post(f"{ticket}/comments", {"content": "A comment."}, token=token).status == 201
        assert api.get(f"{ticket}/comments", token=token).json["data"][0]["content"] == "A comment."
        api.clock.advance(ticketapi.KEYS_KEPT)
    assert api.request("DELETE", ticket, token=token).status == 204


def read_feeds(api, token):
    """Search, export, follow events and ask what a token is."""
    later = ticketapi.format_time(api.clock.wall() - 60 * 24 * HOUR)[:19] + "Z"
    for query in ("", "&sort=-id", "&status=1&user=1&q=e", f"&created_since={later}&updated_since={later}"):
        follow(api, token, f"/api/tickets?per_page=7{query}", "next")
    for path in ("/api/tickets/export", "/api/tickets/export?start_time=1h", "/api/events", "/api/token"):
        assert api.get(path, token=token).status == 200
    url = "/api/events?per_page=200"
    while url:
        page = api.get(url, token=token).json
        url = (page["links"]["next"] or "").removeprefix("http://desk.test:8000")
    assert "comment.created" in {event["type"] for event in page["data"]}


def follow(api, token, url, direction, steps=4):
    """Go some pages along the cursors of a list, and back."""
    for _ in range(steps):
        url = api.get(url, token=token).json["links"][direction].removeprefix("http://desk.test:8000")
    if direction == "next":
        follow(api, token, url, "prev", steps)


def make_gaps(db):
    """Close, reopen, delete and comment on tickets in no order, as agents would, and let one come from a new customer."""
    now, owner = ticketapi.last_closing(db), ticketapi.find_owner(db, "bob@example.com")
    waiting = [row[0] for row in ticketapi.list_oldest_open_tickets(db, 300)]
    for status, ids in ((ticketapi.CLOSED, waiting[3:60:3]), (ticketapi.OPEN, waiting[3:30:6])):
        for ticket_id in ids:
            ticketapi.update_ticket(db, ticket_id, {"status": status}, now)
    ticketapi.update_ticket(db, waiting[1], {"subject": "Changed"}, now)
    for ticket_id in (*waiting[6:60:9], *waiting[100:120]):
        ticketapi.delete_ticket(db, ticket_id, now)
    ticketapi.add_comment(db, waiting[1], owner, "Hello", now)
    brought = [create_ticket(db, ("Carl", "Carl@example.org"), "Subject", "Content", now) for _ in range(40)]
    for ticket_id in brought[::8]:
        ticketapi.delete_ticket(db, ticket_id, now)


def look_at_changes(db):
    """Ask what the log of changes holds."""
    first, last = ticketapi.find_event_ends(db)
    assert ticketapi.find_last_change(db) == last >= first > 0
    assert ticketapi.list_event_rows(db, last - 10, 5)
    assert ticketapi.find_change_before(db, "9999-01-01T00:00:00.000000Z") == last
    assert ticketapi.desk_overview(db, ticketapi.last_closing(db))["opened_last_hour"] > 0


def tell_webhooks(path, clock):
    """Make a webhook, send it tests by a command and as a server does, and delete it."""
    with closing(Receiver()) as receiver, closing(ticketapi.open_database(path, "desk")) as db:
        courier = Courier(path, clock)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
            for command in (f"create {receiver.url}", "list", "test 1", "deliveries 1"):
                assert ticketapi.main(["webhook", *command.split(), "--db", str(path)]) == 0, err.getvalue()
            ticketapi.add_test(db, 1, clock.now, begin=False)
            courier.go()
            with ticketapi.transaction(db):
                ticketapi.switch_off_webhooks(db, "test")
            assert ticketapi.main(["webhook", "delete", "1", "--db", str(path)]) == 0, err.getvalue()
        courier._close()
        assert len(receiver.messages) == 2


def live(path):
    """Let a desk live through everything that is there to live through."""
    settings, clock = ticketapi.Settings(db=path), HandClock(now=ticketapi.wall_microseconds() + 3 * HOUR)
    with closing(ticketapi.open_database(path, "desk")) as db:
        ticketapi.suggest_next_steps(db, settings)
        run_commands(path)
        ticketapi.suggest_next_steps(db, settings)
        ticketapi.generate_history(db, 300, HOUR // SECOND, clock.now, 1)  # closes the backlog first
        ticketapi.generate_tickets(db, 400, clock.now, 1)
        run_jobs(settings, clock.now)
        token = ticketapi.create_token(db, "bob@example.com", "test", ["*"], 0, clock.now)["token"]
        author = ticketapi.find_top_user(db)["id"]
        api = serve_in_process(path, clock)
        with closing(api.readers), closing(api.audit):
            ask_everything(api, token, author)
            make_gaps(db)
            look_at_changes(db)
            ask_everything(api, token, author)
            ask_everything(api, token, ticketapi.FIRST_BROUGHT_ID)
            write_everything(api, token)
            read_feeds(api, token)
        read_log(api.settings)
        tell_webhooks(path, clock)
        live_by_a_clock(path, clock)
        repair_and_back_up(path)


def live_by_a_clock(path, clock):
    """Give the desk a clock of its own, and let an hour pass."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        ticketapi.begin_simulation(db, ticketapi.find_profile("busy"), (None, 1000), 1, 1, clock.now)
        ticketapi.set_clock(db, ticketapi.ClockWish(advance=HOUR), clock.now)
        ticketapi.work_off(db, clock, 1000.0)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What ran while a desk lived."""
    path = tmp_path_factory.mktemp("plans") / "desk.db"
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()):
        patch.setattr(Watched, "ran", {})
        patch.setattr(ticketapi, "BATCH", BATCH)
        patch.setattr(ticketapi.sqlite3, "connect", partial(sqlite3.connect, factory=Watched))
        live(path)
        return tuple(Watched.ran.values())


# The plans ---------------------------------------------------------------------------------------


def test_every_query_was_met(ran):
    assert queries() - {item.function for item in ran} == set()


def test_every_statement_is_a_query_or_belongs_to_opening_or_checking_a_file(ran):
    assert {item.function for item in ran} - queries() == {"create_schema", "check_tables", "read_identity", "list_schema"}


def test_no_query_scans_a_table_or_sorts(ran):
    assert offences(ran) - set(ALLOWED) == set()


def test_what_is_allowed_is_allowed_to_a_query_that_there_is(ran):
    assert {function for function, _ in ALLOWED} <= {item.function for item in ran}


@pytest.mark.parametrize(
    ("function", "index"),
    [
        ("list_open_tickets", "tickets_open (id>? AND id<?)"),
        ("list_closed_tickets", "tickets_closed (closed_number>? AND closed_number<?)"),
        ("list_user_tickets", "tickets_by_user (user_id=? AND user_number>? AND user_number<?)"),
        ("find_ticket", "INTEGER PRIMARY KEY (rowid=?)"),
        ("find_open_ticket", "tickets_open (id>?)"),
        ("find_closed_ticket", "tickets_closed (closed_number>?)"),
        ("find_user_ticket", "tickets_by_user (user_id=? AND user_number>?)"),
        ("find_open_ticket_before", "tickets_open (id<?)"),
        ("find_created_at", "INTEGER PRIMARY KEY (rowid>?)"),
        ("find_closed_at", "tickets_closed (closed_number>?)"),
        ("count_arrived", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("count_closed", "tickets_closed (closed_number>? AND closed_number<?)"),
        ("list_level", "PRIMARY KEY (list=? AND level=? AND block>? AND block<?)"),
        ("sum_blocks", "PRIMARY KEY (list=? AND level=? AND block>? AND block<?)"),
        ("delete_empty_blocks", "PRIMARY KEY (list=? AND level=? AND block>? AND block<?)"),
        ("find_ticket_row", "INTEGER PRIMARY KEY (rowid=?)"),
        ("find_owner", "owners_by_email (<expr>=? AND rowid>?)"),
        ("list_taken_emails", "customers_by_email (<expr>=? AND rowid<?)"),
        ("list_customers_by_id", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("list_event_rows", "INTEGER PRIMARY KEY (rowid>?)"),
        ("delete_old_events", "INTEGER PRIMARY KEY (rowid<?)"),
        ("find_change_before", "PRIMARY KEY (at<?)"),
        ("delete_change_times", "PRIMARY KEY (at<?)"),
        ("find_last_comment", "comments_by_ticket (ticket_id=?)"),
        ("find_top_user", "users_by_tickets_count (tickets_count>?)"),
        ("list_comments", "comments_by_ticket (ticket_id=? AND number>? AND number<?)"),
        ("list_matches", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("list_matches_back", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("list_changed_tickets", "tickets_by_change (change>?)"),
        ("list_tickets_by_id", "INTEGER PRIMARY KEY (rowid=?)"),
        ("list_comments_by_id", "INTEGER PRIMARY KEY (rowid=?)"),
        ("find_kept_answer", "PRIMARY KEY (token_id=? AND route=? AND key=?)"),
        ("delete_kept_answers", "idempotency_keys_by_time (created_at<?)"),
        ("find_token_by_id", "INTEGER PRIMARY KEY (rowid=?)"),
        ("list_audits", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("list_audits_back", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("has_audits_since", "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        ("find_audit_from", "INTEGER PRIMARY KEY (rowid>?)"),
        ("find_last_audit_id", "INTEGER PRIMARY KEY (rowid<?)"),
        ("delete_old_audits", "INTEGER PRIMARY KEY (rowid=?)"),
    ],
)
def test_a_list_is_read_from_its_own_index(ran, function, index):
    [plan] = [item.plan for item in ran if item.function == function]
    assert any(line.startswith("SEARCH") and line.endswith(index) for line in plan), plan


@pytest.fixture(scope="module")
def desks(tmp_path_factory):
    """Readers of two desks, with 500 and 5,000 tickets, half of them closed."""
    with ExitStack() as stack:
        readers = []
        for tickets in (500, 5000):
            path = tmp_path_factory.mktemp("desks") / f"{tickets}.db"
            db = stack.enter_context(closing(ticketapi.open_database(path, "desk")))
            readers.append(stack.enter_context(closing(ticketapi.connect(path, ticketapi.READER))))
            ticketapi.generate_tickets(db, tickets, NOON, 1)
            ticketapi.process_tickets(db, tickets // 2, NOON)
            for _ in range(tickets // 50):
                ticketapi.create_token(db, "ann@example.com", "test", [], 0, NOON)
        yield readers


def steps_of(db, function, *arguments):
    """Return how many steps of SQLite's machine a query takes, in tens."""
    tens = []
    db.set_progress_handler(lambda: tens.append(1), 10)
    function(db, *arguments)
    db.set_progress_handler(None, 10)
    return len(tens)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("find_newest_ticket", ()),
        ("has_tokens", ()),
        ("open_bounds", ()),
        ("closed_bounds", ()),
        ("find_top_user", ()),
        ("find_last_closed_at", ()),
        ("list_oldest_open_tickets", (1,)),
        ("list_open_tickets", (1, 10**9, 50)),
        ("list_closed_tickets", (1, 50, 50)),
        ("list_user_tickets", (1, 1, 3, 3)),
        ("find_user_ticket", (1, 1, 2)),
        ("find_open_ticket", (1, 5)),
        ("find_closed_ticket", (1, 5)),
        ("sum_blocks", (-1, 2, 0, 3)),
        ("get_counter", ("customers",)),
        ("find_ticket_row", (7,)),
        ("find_owner", ("ann@example.com",)),
        ("find_last_change", ()),
        ("find_event_ends", ()),
        ("list_event_rows", (5, 1)),
        ("find_change_before", (ticketapi.format_time(NOON),)),
        ("find_last_comment", (7,)),
        ("list_comments", (7, 1, 10, 10)),
        ("list_tickets_by_id", ([7, 8],)),
        ("list_changed_tickets", (5, 10)),
        ("list_matches", (5, 100, ticketapi.TicketFilter(), 10)),
        ("find_token_by_id", (1,)),
        ("find_kept_answer", (1, "tickets.store", "a")),
        ("count_tickets", (2,)),
        ("find_ticket", (7,)),
        ("find_created_at", (7,)),
        ("find_closed_at", (7,)),
    ],
)
def test_a_query_takes_the_same_steps_on_a_desk_ten_times_as_large(desks, name, arguments):
    small, large = (steps_of(reader, getattr(ticketapi, name), *arguments) for reader in desks)
    assert abs(large - small) <= 2


# The test itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT id FROM tickets WHERE subject = 's'", {"SCAN tickets"}),
        ("SELECT id FROM tickets WHERE id > 5 ORDER BY subject", {"USE TEMP B-TREE FOR ORDER BY"}),
        ("SELECT count(*) FROM users", {"SCAN users USING COVERING INDEX users_by_tickets_count"}),
        ("UPDATE tickets SET status = 1 WHERE content = 'c'", {"SCAN tickets"}),
        ("DELETE FROM tickets WHERE user_number = 1", {"SCAN tickets"}),
        ("SELECT id FROM tickets WHERE id = 1", set()),
    ],
)
def test_a_scan_and_a_sort_would_be_seen(desk, db, sql, found):
    with closing(sqlite3.connect(desk, factory=Watched)) as watched, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watched, "ran", {})
        watched.execute(sql)
        seen = offences(Watched.ran.values())
    function = "test_a_scan_and_a_sort_would_be_seen"
    assert {line for _, line in seen} == found
    assert {name for name, _ in seen} <= {function}
