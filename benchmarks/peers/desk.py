"""What both applications share: connections, tokens, a bucket for each user, pages as Laravel shows them, the audit log."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from datetime import datetime, timezone
from typing import Any

import rows

OPEN, CLOSED = 1, 2
STATUS_NAMES = {OPEN: "Open", CLOSED: "Closed"}
ORDERS = {OPEN: "tickets.created_at", CLOSED: "tickets.closed_at DESC"}
PER_PAGE, MAX_PER_PAGE = 50, 200
RATE, MINUTE = 1_000_000, 60

LIST = """
SELECT tickets.id, subject, content, status, tickets.created_at, updated_at, user_id, name, email
FROM tickets
JOIN users ON users.id = user_id
WHERE status = ?
ORDER BY {order}
LIMIT ? OFFSET ?
"""

TOP_USER = """
SELECT users.id, name, email, tickets_count
FROM (SELECT user_id, COUNT(*) AS tickets_count FROM tickets GROUP BY user_id ORDER BY tickets_count DESC LIMIT 1)
JOIN users ON users.id = user_id
"""

AUDIT = """
INSERT INTO audits (user_id, token_id, method, path, status_code, ip_address, user_agent, duration_ms, query, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Database:
    """One connection for each thread, as a pool would keep them."""

    lock = threading.Lock()  # for who writes: SQLite would have them sleep and try again

    def __init__(self, path: str, synchronous: str = "NORMAL") -> None:
        """Remember the file, and how durable a commit is; NORMAL is the usual one with WAL."""
        self.path, self.synchronous = path, synchronous
        self._local = threading.local()

    def connect(self) -> sqlite3.Connection:
        """Return this thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = sqlite3.connect(self.path)
            db.row_factory = sqlite3.Row
            db.execute(f"PRAGMA synchronous = {self.synchronous}")
            db.execute("PRAGMA foreign_keys = ON")
        return db


class Limiter:
    """A token bucket for each user, in memory."""

    def __init__(self, rate: int) -> None:
        """Allow so many requests a minute."""
        self.rate = rate
        self._buckets: dict[int, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, user_id: int) -> tuple[bool, dict[str, str]]:
        """Take one permission; return whether there was one, and the headers that tell of it."""
        refill = self.rate / MINUTE
        with self._lock:
            now = time.monotonic()
            left, since = self._buckets.get(user_id, (float(self.rate), now))
            left = min(self.rate, left + (now - since) * refill)
            allowed = left >= 1
            left -= allowed
            self._buckets[user_id] = (left, now)
        remaining = int(left)
        next_in = max(1, round((remaining + 1 - left) / refill))
        headers = {
            "X-RateLimit-Limit": str(self.rate),
            "X-RateLimit-Remaining": str(remaining),
            "RateLimit-Policy": f'"default";q={self.rate};w={MINUTE}',
            "RateLimit": f'"default";r={remaining};t={next_in}',
        }
        return allowed, headers if allowed else {**headers, "Retry-After": str(next_in)}


def find_token(db: sqlite3.Connection, text: str) -> sqlite3.Row | None:
    """Return the token behind a secret, or None."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    row: sqlite3.Row | None = db.execute("SELECT id, user_id FROM tokens WHERE token = ?", [digest]).fetchone()
    return row


def save_audit(database: Database, *values: Any) -> None:
    """Write the audit row of a request and commit it."""
    db = database.connect()
    with database.lock:
        db.execute(AUDIT, [*values, datetime.now(timezone.utc).isoformat()])
        db.commit()


def create_ticket(database: Database, user_id: int, subject: str, content: str) -> dict[str, Any]:
    """Write a ticket, on a desk of ticketapi, and return it as the API shows it."""
    with database.lock:
        return rows.write_ticket(database.connect(), user_id, subject, content)


def to_resource(row: sqlite3.Row) -> dict[str, Any]:
    """Return a ticket as the API shows it."""
    return {
        "id": row["id"],
        "subject": row["subject"],
        "content": row["content"],
        "status": STATUS_NAMES[row["status"]],
        "status_id": row["status"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "user": {"id": row["user_id"], "name": row["name"], "email": row["email"]},
    }


def page_window(page: int, last: int) -> list[int | None]:
    """Return the pages that Laravel's paginator links to; None stands for "..."."""
    if last < 14:
        return [*range(1, last + 1)]
    if page <= 7:
        return [*range(1, 11), None, last - 1, last]
    if page > last - 7:
        return [1, 2, None, *range(last - 9, last + 1)]
    return [1, 2, None, *range(page - 3, page + 4), None, last - 1, last]


def paginate(data: list[dict[str, Any]], total: int, url: str, page: int, per_page: int) -> dict[str, Any]:
    """Return a page in Laravel's envelope."""
    last = max(1, -(-total // per_page))

    def link(label: str, target: int | None) -> dict[str, Any]:
        address = f"{url}?page={target}" if target else None
        return {"url": address, "label": label, "page": target, "active": label == str(page)}

    gap = {"url": None, "label": "...", "active": False}
    previous = link("&laquo; Previous", page - 1 if page > 1 else None)
    following = link("Next &raquo;", page + 1 if page < last else None)
    start = (page - 1) * per_page + 1 if data else None
    return {
        "data": data,
        "links": {
            "first": f"{url}?page=1",
            "last": f"{url}?page={last}",
            "prev": previous["url"],
            "next": following["url"],
        },
        "meta": {
            "current_page": page,
            "from": start,
            "last_page": last,
            "links": [previous, *(link(str(at), at) if at else gap for at in page_window(page, last)), following],
            "path": url,
            "per_page": per_page,
            "to": start + len(data) - 1 if start else None,
            "total": total,
        },
    }


def ticket_page(db: sqlite3.Connection, status: int, url: str, page: int, per_page: int) -> dict[str, Any]:
    """Return a page of the tickets of a status."""
    per_page = max(1, min(per_page, MAX_PER_PAGE))
    total = db.execute("SELECT COUNT(*) FROM tickets WHERE status = ?", [status]).fetchone()[0]
    rows = db.execute(LIST.format(order=ORDERS[status]), [status, per_page, (page - 1) * per_page]).fetchall()
    return paginate([to_resource(row) for row in rows], total, url, page, per_page)


def desk_stats(db: sqlite3.Connection) -> dict[str, Any]:
    """Return the figures of the desk."""
    total = db.execute("SELECT COUNT(*) FROM tickets").fetchone()[0]
    waiting = db.execute("SELECT COUNT(*) FROM tickets WHERE status = ?", [OPEN]).fetchone()[0]
    top_user = db.execute(TOP_USER).fetchone()
    closed_at = db.execute("SELECT MAX(closed_at) FROM tickets").fetchone()[0]
    return {
        "total_tickets": total,
        "total_unprocessed_tickets": waiting,
        "top_user": dict(top_user) if top_user else None,
        "most_recent_processed_at": closed_at[:19].replace("T", " ") if closed_at else None,
    }
