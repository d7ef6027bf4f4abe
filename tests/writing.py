"""What the tests of writes share: a ticket to be, and what a desk tells of itself."""

import ticketapi

NEW = {"subject": "No sound", "content": "It is silent.", "user": {"name": "Ada Bell", "email": "ada@example.com"}}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
STATE = ("tickets", "comments", "events", "users", "idempotency_keys", "ticket_counts", "list_blocks", "counters")


def create(api, token, **changes):
    """Make a ticket and return it."""
    answer = api.post("/api/tickets", NEW | changes, token=token)
    assert answer.status == 201, answer.body
    return answer.json["data"]


def state(db):
    """Return all rows of the desk that a write may change."""
    return {table: sorted(map(repr, map(tuple, db.execute(f"SELECT * FROM {table}")))) for table in STATE}


def events(db):
    """Return type and number of each row of the log."""
    return [tuple(row) for row in db.execute("SELECT type, first_change FROM events ORDER BY first_change")]


def problems(db):
    """Return what is wrong with the counters of a desk."""
    with ticketapi.snapshot(db):
        return [*ticketapi.counter_problems(db), *ticketapi.hour_problems(db), *ticketapi.order_problems(db)]


def errors_of(answer):
    """Return the errors of a 422, by field."""
    assert answer.status == 422, answer.body
    assert list(answer.json) == ["message", "errors"]
    return answer.json["errors"]
