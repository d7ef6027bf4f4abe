"""Desks as older versions of ticketapi left them behind, made with plain SQL."""

import os
import sqlite3
from collections import Counter
from contextlib import closing

from conftest import NOON, ROOT, SECOND

import ticketapi

SCHEMAS = {version: (ROOT / f"tests/schema-{version}.sql").read_text() for version in (1, 2)}
APPLICATION_ID = 0x544B5444
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


def make_old(path, old_version, tickets=TICKETS):
    """Make a desk as version 1 or 2 left it behind, with plain SQL."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    users, rows = old_rows(tickets)
    waiting, count = sum(row[4] == 1 for row in rows), len(rows)
    tokens = [
        (1, 1_000_000_000, "one", "0" * 64, '["read:tickets"]', moments(1)[0], None, moments(1)[0]),
        (4, 3, "two", "f" * 64, '["*"]', None, moments(2)[1], moments(1)[0]),
    ]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {SCHEMAS[old_version]} COMMIT")
        db.execute("BEGIN")
        db.executemany("INSERT INTO users (id, name, email, tickets_count, created_at) VALUES (?, ?, ?, ?, ?)", users)
        owner = (1_000_000_000, "Operator", ticketapi.OPERATOR_EMAIL, 0, moments(1)[0])
        db.execute("INSERT INTO users (id, name, email, tickets_count, created_at) VALUES (?, ?, ?, ?, ?)", owner)
        if old_version == 2:
            rows = numbered(rows)
        db.executemany(f"INSERT INTO tickets VALUES ({', '.join('?' * (8 if old_version == 1 else 10))})", rows)
        db.executemany("UPDATE ticket_counts SET tickets = ? WHERE status = ?", [(waiting, 1), (count - waiting, 2)])
        db.executemany("INSERT INTO personal_access_tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?)", tokens)
        db.execute("UPDATE sqlite_sequence SET seq = 9")  # tokens up to 9 were revoked
        db.execute("COMMIT")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {old_version}")
    return path
