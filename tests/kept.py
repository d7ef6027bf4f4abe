"""What the tests of snapshots share: a desk with some of everything, all that it holds, the folder beside it."""

import sqlite3
from contextlib import closing

from conftest import NOON, create_ticket

import ticketapi

HOUR = 3600 * 10**6
GOES_BACK = (
    *("tickets", "ticket_counts", "list_blocks", "ticket_arrivals", "ticket_closings", "comments", "events"),
    *("change_times", "idempotency_keys", "simulation"),
)
STAYS = ("personal_access_tokens", "webhooks", "webhook_deliveries", "sqlite_sequence")
CUSTOMERS = "users WHERE id < 1000000000"
OWNERS = "users WHERE id >= 1000000000"
HOOK = {"url": "https://[2000::1]/hooks", "private": 0, "events": '["ticket.created"]'}


def ask(path, sql):
    """Return the rows that a query finds, as tuples, without ticketapi."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def rows(path, tables):
    """Return what tables of a desk hold."""
    return {table: sorted(ask(path, f"SELECT * FROM {table}"), key=repr) for table in tables}


def counter(path, name):
    """Return one of the other counters of a desk."""
    return dict(ask(path, "SELECT name, value FROM counters"))[name]


def gone_back(path):
    """Return all that a restore brings back."""
    counters = {name: counter(path, name) for name in ("customers", "closed_number")}
    return rows(path, (*GOES_BACK, CUSTOMERS)) | counters


def stayed(path):
    """Return all that a restore leaves as it is, positions of webhooks aside."""
    found = rows(path, (*STAYS, OWNERS))
    return found | {"webhooks": ask(path, "SELECT id, name, url, secret, enabled, busy_until FROM webhooks ORDER BY id")}


def live(db, now):
    """Let something of every kind happen on a desk."""
    ticketapi.generate_tickets(db, 30, now, seed=now % 1000)
    ticketapi.process_tickets(db, 10, now)
    first = ticketapi.find_open_ticket(db, 1, 0)
    owner = ticketapi.create_token(db, f"clerk{now}@example.com", "t", ["*"], 0, now)["user_id"]
    ticketapi.add_comment(db, first, owner, f"Said at {now}", now)
    ticketapi.update_ticket(db, first, {"subject": f"Changed at {now}"}, now)
    ticketapi.delete_ticket(db, ticketapi.find_open_ticket(db, first + 1, 0), now)
    ticketapi.update_ticket(db, ticketapi.find_closed_ticket(db, 1, 0) and 1, {"status": ticketapi.OPEN}, now)
    create_ticket(db, ("New", f"new{now}@example.com"), "Of a new customer", "x", now)
    hook = ticketapi.create_webhook(db, HOOK, owner, now)
    ticketapi.add_test(db, hook["id"], now, begin=False)
    answer = {
        "token_id": 1,
        "route": "POST /api/tickets",
        "key": str(now),
        "body_digest": "0" * 64,
        "status": 201,
        "body": "{}",
    }
    with ticketapi.transaction(db):
        ticketapi.keep_answer(db, answer | {"location": None, "created_at": ticketapi.format_time(now)})


def fill(path, now=NOON):
    """Make a desk with some of everything, and leave it closed."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        live(db, now)


def folder_of(path):
    """Return the folder of a desk's snapshots."""
    return path.with_name(f"{path.name}-snapshots")


def assert_whole(path):
    """Check a desk: structure, references, counters, order."""
    findings = ticketapi.check_file(path, "desk")
    assert [found for found in findings if found.level == "wrong"] == []
