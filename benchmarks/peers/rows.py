"""What one new ticket writes on a desk of ticketapi, row for row, in one bare durable transaction."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta, timezone
from typing import Any

AUTHOR = "SELECT name, email, last_number FROM users WHERE id = ?"
LAST = "SELECT id, created_at FROM tickets ORDER BY id DESC LIMIT 1"
LAST_CHANGE = "SELECT last_change FROM events ORDER BY first_change DESC LIMIT 1"

TICKET = """
INSERT INTO tickets (id, user_id, user_number, user_name, user_email, subject, content, status, created_at, updated_at, change)
VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)
"""

EVENT = "INSERT INTO events (first_change, last_change, type, at, ticket_ids) VALUES (?, ?, 'ticket.created', ?, ?)"

TIME = """
INSERT INTO change_times (at, change)
SELECT ?, ?
WHERE NOT EXISTS (SELECT 1 FROM change_times WHERE at > ?)
"""

AUTHOR_COUNT = "UPDATE users SET tickets_count = tickets_count + 1, last_number = last_number + 1 WHERE id = ?"
COUNT = "UPDATE ticket_counts SET tickets = tickets + 1 WHERE status = 1"

ARRIVAL = """
INSERT INTO ticket_arrivals (hour, tickets)
VALUES (?, 1)
ON CONFLICT (hour) DO UPDATE SET tickets = tickets + 1
"""

BLOCK = """
INSERT INTO list_blocks (list, level, block, tickets)
VALUES (-1, ?, ?, 1)
ON CONFLICT (list, level, block) DO UPDATE SET tickets = tickets + 1
"""


def shift(text: str, **by: int) -> str:
    """Return the time that lies so much after another."""
    return (datetime.fromisoformat(text[:-1]) + timedelta(**by)).isoformat(timespec="microseconds") + "Z"


def write_ticket(db: sqlite3.Connection, user_id: int, subject: str, content: str) -> dict[str, Any]:
    """Write a ticket and all that is counted and told of it, commit, and return the ticket as the API shows it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        name, email, number = db.execute(AUTHOR, [user_id]).fetchone()
        last_id, last_created = db.execute(LAST).fetchone()
        change = db.execute(LAST_CHANGE).fetchone()[0] + 1
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")[:26] + "Z"
        ticket_id, now = last_id + 1, now if now > last_created else shift(last_created, microseconds=1)
        db.execute(EVENT, [change, change, now, f"[{ticket_id}]"])
        db.execute(TIME, [now, change - 1, shift(now, minutes=-1)])
        db.execute(TICKET, [ticket_id, user_id, number + 1, name, email, subject, content, now, now, change])
        db.execute(AUTHOR_COUNT, [user_id])
        db.execute(ARRIVAL, [now[:13]])
        for level in (1, 2, 3):
            db.execute(BLOCK, [level, ticket_id >> 6 * level])
        db.execute(COUNT)
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
    return {
        "id": ticket_id,
        "subject": subject,
        "content": content,
        "status": "Open",
        "status_id": 1,
        "created_at": now,
        "updated_at": now,
        "user": {"id": user_id, "name": name, "email": email},
    }
