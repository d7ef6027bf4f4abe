-- The tables of a desk as ticketapi 1.3.0 to 1.6.0 made them: user_version 3.

-- People. Customers are numbered from 1 in the order in which they first wrote; owners of tokens start at 1,000,000,000,
-- so that a token made before the first ticket shifts no customer's id. tickets_count is a counter kept with the tickets.
CREATE TABLE users (
    id            INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL,
    email         TEXT    NOT NULL UNIQUE,
    tickets_count INTEGER NOT NULL DEFAULT 0 CHECK (tickets_count >= 0),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27)
) STRICT;

-- The customers with the most tickets first, the lowest id first among equals. Owners of tokens, who write none, come last.
CREATE INDEX users_by_tickets_count ON users (tickets_count DESC);

-- Tickets. status: 1 = Open, 2 = Closed. created_at and closed_at each grow strictly over the whole desk, created_at with the
-- id. user_number counts a user's tickets from 1 in the order they came, closed_number the closed tickets of the desk in the
-- order they were closed, both without gaps: a page of these lists is a range of numbers, however deep it lies. user_name and
-- user_email are the customer's: to look up 50 customers of a large desk cost as much as all the rest of a page.
CREATE TABLE tickets (
    id            INTEGER PRIMARY KEY,
    user_id       INTEGER NOT NULL REFERENCES users (id),
    user_number   INTEGER NOT NULL CHECK (user_number >= 1),
    user_name     TEXT    NOT NULL,
    user_email    TEXT    NOT NULL,
    subject       TEXT    NOT NULL,
    content       TEXT    NOT NULL,
    status        INTEGER NOT NULL CHECK (status IN (1, 2)),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27),
    updated_at    TEXT    NOT NULL CHECK (length(updated_at) = 27),
    closed_at     TEXT    CHECK (length(closed_at) = 27),
    closed_number INTEGER CHECK (closed_number >= 1),
    CHECK ((status = 2) = (closed_at IS NOT NULL)),
    CHECK ((status = 2) = (closed_number IS NOT NULL))
) STRICT;

-- One index for each list, in the list's order.
CREATE INDEX        tickets_open    ON tickets (id) WHERE status = 1;
CREATE UNIQUE INDEX tickets_closed  ON tickets (closed_number) WHERE closed_number IS NOT NULL;
CREATE UNIQUE INDEX tickets_by_user ON tickets (user_id, user_number);

-- How many tickets there are of each status, updated in the transaction that changes the tickets, once for each batch.
CREATE TABLE ticket_counts (
    status  INTEGER PRIMARY KEY CHECK (status IN (1, 2)),
    tickets INTEGER NOT NULL CHECK (tickets >= 0)
) STRICT;

INSERT INTO ticket_counts (status, tickets) VALUES (1, 0), (2, 0);

-- How many tickets came in each hour (UTC, 2025-12-04T11), and how many were closed in it after which wait: whole seconds from
-- created_at to closed_at, cut to two digits (12,345 is 12,000). Updated with the tickets, as ticket_counts is.
CREATE TABLE ticket_arrivals (
    hour    TEXT    NOT NULL PRIMARY KEY CHECK (length(hour) = 13),
    tickets INTEGER NOT NULL CHECK (tickets >= 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE ticket_closings (
    hour    TEXT    NOT NULL CHECK (length(hour) = 13),
    wait    INTEGER NOT NULL CHECK (wait >= 0),
    tickets INTEGER NOT NULL CHECK (tickets >= 0),
    PRIMARY KEY (hour, wait)
) STRICT, WITHOUT ROWID;

-- Bearer tokens, as Laravel Sanctum keeps them. token is the SHA-256 of the token's text, in hexadecimal; abilities is a
-- JSON array of texts. AUTOINCREMENT: the id of a revoked token is never given out again, the audit log refers to it.
CREATE TABLE personal_access_tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id      INTEGER NOT NULL REFERENCES users (id),
    name         TEXT    NOT NULL,
    token        TEXT    NOT NULL UNIQUE CHECK (length(token) = 64),
    abilities    TEXT    NOT NULL,
    last_used_at TEXT    CHECK (length(last_used_at) = 27),
    expires_at   TEXT    CHECK (length(expires_at) = 27),
    created_at   TEXT    NOT NULL CHECK (length(created_at) = 27)
) STRICT;
