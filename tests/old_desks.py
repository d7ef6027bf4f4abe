"""Desks as older versions of ticketapi left them behind, made with plain SQL."""

import os
import sqlite3
from collections import Counter
from contextlib import closing

from conftest import NOON, ROOT, SECOND

import ticketapi

SCHEMAS = {version: (ROOT / f"tests/schema-{version}.sql").read_text() for version in (1, 2, 3)}
POSTGRES_SCHEMA = (ROOT / "tests/schema-3-postgres.sql").read_text()
APPLICATION_ID = 0x544B5444
OWNER = 1_000_000_000
TICKETS = 300


def moments(count, step=SECOND):
    """Return times that grow, but for four equal ones at the start of each ten."""
    return [ticketapi.format_time(NOON + (n // 10 * 10 + max(0, n % 10 - 3)) * step) for n in range(count)]


def old_rows(tickets):
    """Return users and tickets as the columns of version 1; two of three tickets are closed, first in, first out."""
    arrivals, endings = moments(tickets), moments(tickets, 2 * SECOND)
    rows = []
    for n in range(tickets):
        closed_at = endings[n] if n < tickets * 2 // 3 else None
        author = 1 + n * n % 11
        text = (f"Subject {n} \u00e9", f'Content "{n}"\nof a ticket')
        rows.append((n + 1, author, *text, 2 if closed_at else 1, arrivals[n], closed_at or arrivals[n], closed_at))
    written = Counter(author for _, author, *_ in rows)
    names = [
        (n, f"Customer {n}", f"c{n}@example.com", written[n], arrivals[0] if rows else moments(1)[0]) for n in range(1, 13)
    ]
    return names, rows


def numbered(rows):
    """Return tickets of version 1 as the columns of version 2, with their numbers among their user's and the closed ones."""
    so_far, wide = Counter(), []
    for n, (ticket_id, author, subject, content, status, *times) in enumerate(rows, 1):
        so_far[author] += 1
        wide.append((ticket_id, author, so_far[author], subject, content, status, *times, n if status == 2 else None))
    return wide


def named(rows):
    """Return tickets of version 2 as the columns of version 3, with the name and address of their user."""
    return [(*row[:3], f"Customer {row[1]}", f"c{row[1]}@example.com", *row[3:]) for row in rows]


def hours(rows):
    """Return the counters by the hour of version 3: of arrivals, and of closings by their waits."""
    arrivals = Counter(row[8][:13] for row in rows)
    closings = Counter()
    for *_, created_at, _, closed_at, _ in rows:
        if closed_at:
            wait = ticketapi.parse_second(closed_at) - ticketapi.parse_second(created_at)
            closings[closed_at[:13], wait if wait < 100 else wait - wait % 10 ** (len(str(wait)) - 2)] += 1
    return sorted(arrivals.items()), [(*place, count) for place, count in sorted(closings.items())]


def make_old(path, old_version, tickets=TICKETS):
    """Make a desk as version 1, 2 or 3 left it behind, with plain SQL."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {SCHEMAS[old_version]} COMMIT")
        db.execute("BEGIN")
        fill_old(db, old_version, tickets)
        db.execute("UPDATE sqlite_sequence SET seq = 9")  # tokens up to 9 were revoked
        db.execute("COMMIT")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {old_version}")
    return path


def make_old_postgres(url, tickets=TICKETS):
    """Make a desk of version 3 as it was in PostgreSQL, with plain SQL."""
    import psycopg

    with psycopg.connect(url) as session:
        session.execute(POSTGRES_SCHEMA)
        fill_old(PlainSession(session), 3, tickets)
        session.execute("SELECT setval('personal_access_tokens_id_seq', 9)")  # tokens up to 9 were revoked
    return ticketapi.Postgres(url)


class PlainSession:
    """A session of psycopg that takes what a connection to SQLite does."""

    def __init__(self, session):
        """Take the session."""
        self.session = session

    def executemany(self, sql, rows):
        """Run one statement for many rows of values."""
        self.session.cursor().executemany(sql.replace("?", "%s"), rows)


def add_owners(db):
    """Put owners whose addresses differ in case alone, with tokens of theirs, into a desk of an old version."""
    at = moments(1)[0]
    owners = [(OWNER + n, f"Owner {n}", email) for n, email in enumerate(("Ann@x.org", "c1@Example.com", "ann@X.org"), 1)]
    owners.append((OWNER + 4, "Owner 4", "ANN@x.org"))
    db.executemany(
        "INSERT INTO users (id, name, email, tickets_count, created_at) VALUES (?, ?, ?, ?, ?)",
        [(*owner, 0, at) for owner in owners],
    )
    db.executemany(
        "INSERT INTO personal_access_tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(n, OWNER + n - 4, f"token {n}", f"{n}" * 64, '["*"]', None, None, at) for n in (5, 6, 7, 8)],
    )


MERGED = {
    1: OWNER,
    4: 3,
    5: OWNER + 1,
    6: OWNER + 2,
    7: OWNER + 1,
    8: OWNER + 1,
}  # whose tokens they are then


def fill_old(db, old_version, tickets):
    """Put users, tickets, counters and tokens into the tables of an old version."""
    users, rows = old_rows(tickets)
    waiting, count = sum(row[4] == 1 for row in rows), len(rows)
    tokens = [
        (1, OWNER, "one", "0" * 64, '["read:tickets"]', moments(1)[0], None, moments(1)[0]),
        (4, 3, "two", "f" * 64, '["*"]', None, moments(2)[1], moments(1)[0]),
    ]
    users.append((OWNER, "Operator", ticketapi.OPERATOR_EMAIL, 0, moments(1)[0]))
    if old_version > 1:
        rows = numbered(rows)
    if old_version > 2:
        rows = named(rows)
        arrivals, closings = hours(rows)
        db.executemany("INSERT INTO ticket_arrivals VALUES (?, ?)", arrivals)
        db.executemany("INSERT INTO ticket_closings VALUES (?, ?, ?)", closings)
    db.executemany("INSERT INTO users (id, name, email, tickets_count, created_at) VALUES (?, ?, ?, ?, ?)", users)
    db.executemany(f"INSERT INTO tickets VALUES ({', '.join('?' * (8, 10, 12)[old_version - 1])})", rows)
    db.executemany("UPDATE ticket_counts SET tickets = ? WHERE status = ?", [(waiting, 1), (count - waiting, 2)])
    db.executemany("INSERT INTO personal_access_tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?)", tokens)
