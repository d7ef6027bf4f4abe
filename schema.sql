-- The tables of ticketapi: two SQLite files, 3.37 or newer (STRICT tables).
--
-- The desk (ticketapi.db) holds users, tickets and tokens. The audit log (ticketapi-audit.db) holds one row for every
-- request; it is a file of its own because a commit in the desk's file would throw away every reader's page cache.
-- ticketapi.py runs the part of this file that belongs to the database it creates, then sets user_version. Other parts bring a
-- database of an older user_version up to the next, when it is opened.
--
-- Times are UTC text with six decimals, 2025-12-04T11:30:16.000000Z: what the API shows, and sortable as it stands.

-- part: desk

-- People. Customers are numbered from 1: those that were made up below 500,000,001, those that a client or a file brought from
-- there up; owners of tokens start at 1,000,000,000. An address is unique among customers and among owners apart, whatever its
-- case. tickets_count is a counter kept with the tickets, last_number the highest user_number that was ever given.
CREATE TABLE users (
    id            INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL,
    email         TEXT    NOT NULL,
    tickets_count INTEGER NOT NULL DEFAULT 0 CHECK (tickets_count >= 0),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27),
    last_number   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE UNIQUE INDEX customers_by_email ON users (lower(email)) WHERE id < 1000000000;
CREATE UNIQUE INDEX owners_by_email    ON users (lower(email)) WHERE id >= 1000000000;

-- The customers with the most tickets first, the lowest id first among equals. Owners of tokens, who write none, come last.
CREATE INDEX users_by_tickets_count ON users (tickets_count DESC);

-- Tickets. status: 1 = Open, 2 = Closed; negative when the ticket is deleted: its row stays, for those who ask what changed.
-- created_at grows strictly with the id, closed_at with closed_number. user_number counts a user's tickets in the order they came,
-- closed_number the closed tickets of the desk in the order they were closed; neither is given twice, so a list has gaps where
-- tickets were deleted or reopened. change is the number of the latest change of the ticket, among all changes of the desk.
-- user_name and user_email are the customer's: to look up 50 customers of a large desk cost as much as all the rest of a page.
CREATE TABLE tickets (
    id            INTEGER PRIMARY KEY,
    user_id       INTEGER NOT NULL REFERENCES users (id),
    user_number   INTEGER CHECK (user_number >= 1),
    user_name     TEXT    NOT NULL,
    user_email    TEXT    NOT NULL,
    subject       TEXT    NOT NULL,
    content       TEXT    NOT NULL,
    status        INTEGER NOT NULL CHECK (status IN (1, 2, -1, -2)),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27),
    updated_at    TEXT    NOT NULL CHECK (length(updated_at) = 27),
    closed_at     TEXT    CHECK (length(closed_at) = 27),
    closed_number INTEGER CHECK (closed_number >= 1),
    change        INTEGER NOT NULL CHECK (change >= 1),
    deleted_at    TEXT    CHECK (length(deleted_at) = 27),
    CHECK ((abs(status) = 2) = (closed_at IS NOT NULL)),
    CHECK ((status = 2) = (closed_number IS NOT NULL)),
    CHECK ((status > 0) = (user_number IS NOT NULL)),
    CHECK ((status < 0) = (deleted_at IS NOT NULL))
) STRICT;

-- One index for each list, in the list's order.
CREATE INDEX        tickets_open      ON tickets (id) WHERE status = 1;
CREATE UNIQUE INDEX tickets_closed    ON tickets (closed_number) WHERE closed_number IS NOT NULL;
CREATE UNIQUE INDEX tickets_by_user   ON tickets (user_id, user_number);
CREATE UNIQUE INDEX tickets_by_change ON tickets (change);

-- How many tickets there are of each status, updated in the transaction that changes the tickets, once for each batch.
CREATE TABLE ticket_counts (
    status  INTEGER PRIMARY KEY CHECK (status IN (1, 2)),
    tickets INTEGER NOT NULL CHECK (tickets >= 0)
) STRICT;

INSERT INTO ticket_counts (status, tickets) VALUES (1, 0), (2, 0);

-- Other numbers of the desk: the highest closed_number that was ever given, and how many customers there are.
CREATE TABLE counters (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL CHECK (value >= 0)
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, value) VALUES ('closed_number', 0), ('customers', 0);

-- Where the tickets of a list with gaps are: sums over blocks of 64 numbers (level 1), of 64 blocks (2) and of 64 of those (3).
-- list -1 is the open tickets, by id: `tickets` is how many of them the block holds. The others have a row only where a number
-- is missing, and `tickets` is how many are, below zero: list 0 is the closed tickets by closed_number, -2 all that are not deleted
-- by id, and a user's id their tickets by user_number; block 0 of these begins with the number 1.
CREATE TABLE list_blocks (
    list    INTEGER NOT NULL,
    level   INTEGER NOT NULL CHECK (level IN (1, 2, 3)),
    block   INTEGER NOT NULL CHECK (block >= 0),
    tickets INTEGER NOT NULL,
    PRIMARY KEY (list, level, block)
) STRICT, WITHOUT ROWID;

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

-- What people wrote to a ticket later; number counts the comments of a ticket from 1, user_id is who wrote: a token's owner.
CREATE TABLE comments (
    id         INTEGER PRIMARY KEY,
    ticket_id  INTEGER NOT NULL REFERENCES tickets (id),
    number     INTEGER NOT NULL CHECK (number >= 1),
    user_id    INTEGER NOT NULL REFERENCES users (id),
    content    TEXT    NOT NULL,
    created_at TEXT    NOT NULL CHECK (length(created_at) = 27)
) STRICT;

CREATE UNIQUE INDEX comments_by_ticket ON comments (ticket_id, number);

-- The log of changes, its last 100,000. A row stands for the changes first_change to last_change, which are of one type and of the
-- tickets in ticket_ids (a JSON array), in this order. at is the time of the first; each other comes a microsecond after the one
-- before it, but a ticket that was created then at its own created_at. A row of the type `mixed` stands for arrivals, by the ticket's
-- id, and for closings, by [id, microseconds after at].
CREATE TABLE events (
    first_change INTEGER PRIMARY KEY,
    last_change  INTEGER NOT NULL CHECK (last_change >= first_change AND last_change < first_change + 500),
    type         TEXT    NOT NULL,
    at           TEXT    NOT NULL CHECK (length(at) = 27),
    ticket_ids   TEXT    NOT NULL,
    comment_id   INTEGER REFERENCES comments (id)
) STRICT;

-- The last change before a time at which the desk was told something; a row a minute at most.
CREATE TABLE change_times (
    at     TEXT    NOT NULL PRIMARY KEY CHECK (length(at) = 27),
    change INTEGER NOT NULL CHECK (change >= 0)
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

-- The answers to writes with an Idempotency-Key, for a day. body_digest is the SHA-256 of the request's body, in hexadecimal.
CREATE TABLE idempotency_keys (
    token_id    INTEGER NOT NULL,
    route       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    body_digest TEXT    NOT NULL CHECK (length(body_digest) = 64),
    status      INTEGER NOT NULL,
    body        TEXT    NOT NULL,
    location    TEXT,
    created_at  TEXT    NOT NULL CHECK (length(created_at) = 27),
    PRIMARY KEY (token_id, route, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);

-- Whom the desk tells of changes (https://www.standardwebhooks.com). user_id is who made it, NULL for the command line. private: it
-- may lead to an address that is not public. events is a JSON array of types. position is the last event that was begun, disabled
-- why it was turned off, if not by hand. busy_until (microseconds since 1970): until then one server alone delivers.
-- AUTOINCREMENT: what is under way to a webhook that was deleted must not be taken for another's.
CREATE TABLE webhooks (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id       INTEGER,
    name          TEXT    NOT NULL,
    url           TEXT    NOT NULL,
    private       INTEGER NOT NULL CHECK (private IN (0, 1)),
    secret        TEXT    NOT NULL,
    events        TEXT    NOT NULL,
    enabled       INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    disabled      TEXT    CHECK (enabled = 0 OR disabled IS NULL),
    position      INTEGER NOT NULL CHECK (position >= 0),
    busy_until    INTEGER NOT NULL,
    failing_since TEXT    CHECK (length(failing_since) = 27),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27),
    updated_at    TEXT    NOT NULL CHECK (length(updated_at) = 27)
) STRICT;

-- What was sent to a webhook, or is being sent: the latest try, `attempt` of them so far, at `at`. next_at is when to try again,
-- also after a try of which nobody ever tells; NULL when there is nothing more to do. body is the same in all tries. Where attempt
-- is 0 and next_at NULL nothing was sent, and error says why. event_id is NULL for a test.
CREATE TABLE webhook_deliveries (
    id          INTEGER PRIMARY KEY,
    webhook_id  INTEGER NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event_id    INTEGER,
    message_id  TEXT    NOT NULL,
    type        TEXT    NOT NULL,
    body        TEXT    NOT NULL,
    attempt     INTEGER NOT NULL CHECK (attempt >= 0),
    status_code INTEGER,
    error       TEXT,
    duration_ms INTEGER CHECK (duration_ms >= 0),
    at          TEXT    NOT NULL CHECK (length(at) = 27),
    next_at     TEXT    CHECK (length(next_at) = 27)
) STRICT;

CREATE UNIQUE INDEX webhook_deliveries_listed ON webhook_deliveries (webhook_id, id);
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, next_at, id, at) WHERE next_at IS NOT NULL;

-- include: what desk 5 adds

-- part: what desk 5 adds

-- The desk's own rhythm, and its clock if it has one; no row where tickets come as `serve` is told by its options. profile is a JSON
-- object as in profiles.json. Moments are microseconds since 1970: arrivals and closings follow from seed, profile and start, and
-- those until `worked` have happened. status is NULL when the desk follows the real time; else the clock showed `base` at the real
-- time `written`, and goes on at `speed` thousandths of the real one's when running. begun and target: an advance from there to there
-- is under way, and base is how far it is.
CREATE TABLE simulation (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    seed    INTEGER NOT NULL CHECK (seed >= 0),
    profile TEXT    NOT NULL,
    start   INTEGER NOT NULL,
    worked  INTEGER NOT NULL,
    status  TEXT    CHECK (status IN ('running', 'frozen')),
    speed   INTEGER NOT NULL CHECK (speed > 0),
    base    INTEGER NOT NULL,
    written INTEGER NOT NULL,
    begun   INTEGER,
    target  INTEGER,
    CHECK ((begun IS NULL) = (target IS NULL)),
    CHECK (status IS NOT NULL OR target IS NULL)
) STRICT;

-- How often a snapshot was restored: cursors of export and events from before lead nowhere. And the highest number that a change had
-- until then: no number is given twice.
INSERT INTO counters (name, value) VALUES ('epoch', 0), ('change', 0);

-- part: desk 1 to 2

-- Version 2 numbers the tickets of each list; version 1 (ticketapi 1.0.0) found a page by counting its way there.
ALTER TABLE tickets RENAME TO tickets_1;
DROP INDEX tickets_open;
DROP INDEX tickets_closed;
DROP INDEX tickets_by_user;

CREATE TABLE tickets (
    id            INTEGER PRIMARY KEY,
    user_id       INTEGER NOT NULL REFERENCES users (id),
    user_number   INTEGER NOT NULL CHECK (user_number >= 1),
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

INSERT INTO tickets (
    id, user_id, user_number, subject, content, status, created_at, updated_at, closed_at, closed_number
)
SELECT id, user_id, row_number() OVER (PARTITION BY user_id ORDER BY created_at, id), subject, content, status,
       created_at, updated_at, closed_at,
       CASE status WHEN 2 THEN row_number() OVER (PARTITION BY status ORDER BY closed_at, id) END
FROM tickets_1
ORDER BY id;

DROP TABLE tickets_1;

CREATE INDEX        tickets_open    ON tickets (id) WHERE status = 1;
CREATE UNIQUE INDEX tickets_closed  ON tickets (closed_number) WHERE closed_number IS NOT NULL;
CREATE UNIQUE INDEX tickets_by_user ON tickets (user_id, user_number);

-- part: desk 2 to 3

-- Version 3 keeps the customer's name and address with the ticket, counts tickets by the hour, and lists customers, those who
-- have written nothing too.
DROP INDEX users_by_tickets_count;
CREATE INDEX users_by_tickets_count ON users (tickets_count DESC);

ALTER TABLE tickets RENAME TO tickets_2;
DROP INDEX tickets_open;
DROP INDEX tickets_closed;
DROP INDEX tickets_by_user;

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

INSERT INTO tickets (
    id, user_id, user_number, user_name, user_email, subject, content, status, created_at, updated_at, closed_at, closed_number
)
SELECT tickets_2.id, user_id, user_number, name, email, subject, content, status, tickets_2.created_at, updated_at, closed_at,
       closed_number
FROM tickets_2
CROSS JOIN users ON users.id = user_id
ORDER BY tickets_2.id;

DROP TABLE tickets_2;

CREATE INDEX        tickets_open    ON tickets (id) WHERE status = 1;
CREATE UNIQUE INDEX tickets_closed  ON tickets (closed_number) WHERE closed_number IS NOT NULL;
CREATE UNIQUE INDEX tickets_by_user ON tickets (user_id, user_number);

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

INSERT INTO ticket_arrivals (hour, tickets)
SELECT substr(created_at, 1, 13), count(*)
FROM tickets
GROUP BY 1;

INSERT INTO ticket_closings (hour, wait, tickets)
SELECT hour, wait - wait % CAST(substr('1000000000', 1, max(1, length(wait) - 1)) AS INTEGER), count(*)
FROM (
    SELECT substr(closed_at, 1, 13) AS hour,
           strftime('%s', substr(closed_at, 1, 19)) - strftime('%s', substr(created_at, 1, 19)) AS wait
    FROM tickets
    WHERE closed_number IS NOT NULL
)
GROUP BY 1, 2;

-- part: desk 3 to 4

-- Version 4 can be written to: it numbers changes, keeps deleted tickets, finds its way through lists with gaps, and has comments,
-- events and idempotency keys. An address is unique whatever its case; of owners whose addresses differ in case alone, the first
-- one stays. Tickets that were there are numbered by their ids.
ALTER TABLE tickets RENAME TO tickets_3;
ALTER TABLE personal_access_tokens RENAME TO personal_access_tokens_3;
ALTER TABLE users RENAME TO users_3;
DROP INDEX users_by_tickets_count;
DROP INDEX tickets_open;
DROP INDEX tickets_closed;
DROP INDEX tickets_by_user;

CREATE TABLE users (
    id            INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL,
    email         TEXT    NOT NULL,
    tickets_count INTEGER NOT NULL DEFAULT 0 CHECK (tickets_count >= 0),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27),
    last_number   INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO users (id, name, email, tickets_count, created_at, last_number)
SELECT id, name, email, tickets_count, created_at, tickets_count
FROM users_3
WHERE id < 1000000000 OR NOT EXISTS (
    SELECT 1
    FROM users_3 AS others
    WHERE others.id >= 1000000000 AND others.id < users_3.id AND lower(others.email) = lower(users_3.email)
)
ORDER BY id;

CREATE UNIQUE INDEX customers_by_email ON users (lower(email)) WHERE id < 1000000000;
CREATE UNIQUE INDEX owners_by_email    ON users (lower(email)) WHERE id >= 1000000000;
CREATE INDEX users_by_tickets_count ON users (tickets_count DESC);

CREATE TABLE tickets (
    id            INTEGER PRIMARY KEY,
    user_id       INTEGER NOT NULL REFERENCES users (id),
    user_number   INTEGER CHECK (user_number >= 1),
    user_name     TEXT    NOT NULL,
    user_email    TEXT    NOT NULL,
    subject       TEXT    NOT NULL,
    content       TEXT    NOT NULL,
    status        INTEGER NOT NULL CHECK (status IN (1, 2, -1, -2)),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27),
    updated_at    TEXT    NOT NULL CHECK (length(updated_at) = 27),
    closed_at     TEXT    CHECK (length(closed_at) = 27),
    closed_number INTEGER CHECK (closed_number >= 1),
    change        INTEGER NOT NULL CHECK (change >= 1),
    deleted_at    TEXT    CHECK (length(deleted_at) = 27),
    CHECK ((abs(status) = 2) = (closed_at IS NOT NULL)),
    CHECK ((status = 2) = (closed_number IS NOT NULL)),
    CHECK ((status > 0) = (user_number IS NOT NULL)),
    CHECK ((status < 0) = (deleted_at IS NOT NULL))
) STRICT;

INSERT INTO tickets (
    id, user_id, user_number, user_name, user_email, subject, content, status, created_at, updated_at, closed_at, closed_number,
    change
)
SELECT id, user_id, user_number, user_name, user_email, subject, content, status, created_at, updated_at, closed_at, closed_number,
       id
FROM tickets_3
ORDER BY id;

DROP TABLE tickets_3;

CREATE INDEX        tickets_open      ON tickets (id) WHERE status = 1;
CREATE UNIQUE INDEX tickets_closed    ON tickets (closed_number) WHERE closed_number IS NOT NULL;
CREATE UNIQUE INDEX tickets_by_user   ON tickets (user_id, user_number);
CREATE UNIQUE INDEX tickets_by_change ON tickets (change);

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

INSERT INTO personal_access_tokens (id, user_id, name, token, abilities, last_used_at, expires_at, created_at)
SELECT tokens.id, users.id, tokens.name, token, abilities, last_used_at, expires_at, tokens.created_at
FROM personal_access_tokens_3 AS tokens
JOIN users_3 ON users_3.id = user_id
JOIN users ON users.id = user_id OR users.id >= 1000000000 AND user_id >= 1000000000 AND lower(users.email) = lower(users_3.email)
ORDER BY tokens.id;

DELETE FROM sqlite_sequence
WHERE name = 'personal_access_tokens';

INSERT INTO sqlite_sequence (name, seq)
SELECT 'personal_access_tokens', seq
FROM sqlite_sequence
WHERE name = 'personal_access_tokens_3';

DROP TABLE personal_access_tokens_3;
DROP TABLE users_3;

-- include: what desk 4 adds

-- part: desk 4 to 5

-- Version 5 has a rhythm and a clock of its own.
-- include: what desk 5 adds

-- part: what desk 4 adds

-- The tables of version 4, on both engines.
CREATE TABLE counters (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL CHECK (value >= 0)
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, value)
SELECT 'closed_number', coalesce(max(closed_number), 0)
FROM tickets
WHERE closed_number IS NOT NULL;

INSERT INTO counters (name, value)
SELECT 'customers', count(*)
FROM users
WHERE id < 1000000000;

CREATE TABLE list_blocks (
    list    INTEGER NOT NULL,
    level   INTEGER NOT NULL CHECK (level IN (1, 2, 3)),
    block   INTEGER NOT NULL CHECK (block >= 0),
    tickets INTEGER NOT NULL,
    PRIMARY KEY (list, level, block)
) STRICT, WITHOUT ROWID;

INSERT INTO list_blocks (list, level, block, tickets)
SELECT -1, 1, id / 64, count(*)
FROM tickets
WHERE status = 1
GROUP BY 3;

INSERT INTO list_blocks (list, level, block, tickets)
SELECT -1, 2, block / 64, sum(tickets)
FROM list_blocks
WHERE level = 1
GROUP BY 3;

INSERT INTO list_blocks (list, level, block, tickets)
SELECT -1, 3, block / 64, sum(tickets)
FROM list_blocks
WHERE level = 2
GROUP BY 3;

CREATE TABLE comments (
    id         INTEGER PRIMARY KEY,
    ticket_id  INTEGER NOT NULL REFERENCES tickets (id),
    number     INTEGER NOT NULL CHECK (number >= 1),
    user_id    INTEGER NOT NULL REFERENCES users (id),
    content    TEXT    NOT NULL,
    created_at TEXT    NOT NULL CHECK (length(created_at) = 27)
) STRICT;

CREATE UNIQUE INDEX comments_by_ticket ON comments (ticket_id, number);

CREATE TABLE events (
    first_change INTEGER PRIMARY KEY,
    last_change  INTEGER NOT NULL CHECK (last_change >= first_change AND last_change < first_change + 500),
    type         TEXT    NOT NULL,
    at           TEXT    NOT NULL CHECK (length(at) = 27),
    ticket_ids   TEXT    NOT NULL,
    comment_id   INTEGER REFERENCES comments (id)
) STRICT;

CREATE TABLE change_times (
    at     TEXT    NOT NULL PRIMARY KEY CHECK (length(at) = 27),
    change INTEGER NOT NULL CHECK (change >= 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency_keys (
    token_id    INTEGER NOT NULL,
    route       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    body_digest TEXT    NOT NULL CHECK (length(body_digest) = 64),
    status      INTEGER NOT NULL,
    body        TEXT    NOT NULL,
    location    TEXT,
    created_at  TEXT    NOT NULL CHECK (length(created_at) = 27),
    PRIMARY KEY (token_id, route, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);

CREATE TABLE webhooks (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id       INTEGER,
    name          TEXT    NOT NULL,
    url           TEXT    NOT NULL,
    private       INTEGER NOT NULL CHECK (private IN (0, 1)),
    secret        TEXT    NOT NULL,
    events        TEXT    NOT NULL,
    enabled       INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    disabled      TEXT    CHECK (enabled = 0 OR disabled IS NULL),
    position      INTEGER NOT NULL CHECK (position >= 0),
    busy_until    INTEGER NOT NULL,
    failing_since TEXT    CHECK (length(failing_since) = 27),
    created_at    TEXT    NOT NULL CHECK (length(created_at) = 27),
    updated_at    TEXT    NOT NULL CHECK (length(updated_at) = 27)
) STRICT;

CREATE TABLE webhook_deliveries (
    id          INTEGER PRIMARY KEY,
    webhook_id  INTEGER NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event_id    INTEGER,
    message_id  TEXT    NOT NULL,
    type        TEXT    NOT NULL,
    body        TEXT    NOT NULL,
    attempt     INTEGER NOT NULL CHECK (attempt >= 0),
    status_code INTEGER,
    error       TEXT,
    duration_ms INTEGER CHECK (duration_ms >= 0),
    at          TEXT    NOT NULL CHECK (length(at) = 27),
    next_at     TEXT    CHECK (length(next_at) = 27)
) STRICT;

CREATE UNIQUE INDEX webhook_deliveries_listed ON webhook_deliveries (webhook_id, id);
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, next_at, id, at) WHERE next_at IS NOT NULL;

-- part: restore

-- The copy of a snapshot (main) takes over what stays as it is now (live) when it is restored: owners, tokens, and webhooks with what
-- was sent to them. Owners that the desk does not know stay too, as comments name them. Ids of tokens and webhooks go on; changes from
-- the higher number, and one is left out, so that the id of no event is that after which the desk goes on; webhooks go on there, too.
PRAGMA foreign_keys = OFF;
PRAGMA journal_mode = MEMORY;
ATTACH :live AS live;

DELETE FROM main.users WHERE id IN (SELECT id FROM live.users WHERE id >= 1000000000);
INSERT INTO main.users SELECT * FROM live.users WHERE id >= 1000000000;

DELETE FROM main.personal_access_tokens;
INSERT INTO main.personal_access_tokens SELECT * FROM live.personal_access_tokens;

DELETE FROM main.webhook_deliveries;
DELETE FROM main.webhooks;
INSERT INTO main.webhooks SELECT * FROM live.webhooks;
INSERT INTO main.webhook_deliveries SELECT * FROM live.webhook_deliveries;

DELETE FROM main.sqlite_sequence;
INSERT INTO main.sqlite_sequence SELECT * FROM live.sqlite_sequence;

UPDATE main.counters SET value = (SELECT value + 1 FROM live.counters WHERE name = 'epoch') WHERE name = 'epoch';
UPDATE main.counters
SET value = (
    SELECT max(value) + 1
    FROM (
        SELECT value FROM live.counters WHERE name = 'change'
        UNION ALL SELECT max(change) FROM live.tickets
        UNION ALL SELECT * FROM (SELECT last_change FROM live.events ORDER BY first_change DESC LIMIT 1)
        UNION ALL SELECT value FROM main.counters WHERE name = 'change'
        UNION ALL SELECT max(change) FROM main.tickets
        UNION ALL SELECT * FROM (SELECT last_change FROM main.events ORDER BY first_change DESC LIMIT 1)
    )
)
WHERE name = 'change';
UPDATE main.webhooks SET position = (SELECT value FROM main.counters WHERE name = 'change');

-- The desk's clock, if it has one that runs, goes on from what it showed.
UPDATE main.simulation SET written = :now WHERE status = 'running';

DETACH live;

-- part: reader

-- A ticket and a comment as the API shows them, and the numbers that lists look them up by. Temporary, as SQLite lets no view of a
-- file call json_object when it is told to trust no schema.
CREATE TEMPORARY VIEW ticket_resources AS
SELECT id, status, user_id, user_number, closed_number, change, subject, content, created_at, updated_at, closed_at, deleted_at,
       json_object('id', id, 'subject', subject, 'content', content,
                   'status', CASE abs(status) WHEN 1 THEN 'Open' ELSE 'Closed' END, 'status_id', abs(status),
                   'created_at', created_at, 'updated_at', updated_at,
                   'user', json_object('id', user_id, 'name', user_name, 'email', user_email)) AS resource
FROM tickets;

CREATE TEMPORARY VIEW comment_resources AS
SELECT comments.id, ticket_id, number,
       json_object('id', comments.id, 'ticket_id', ticket_id, 'content', content, 'created_at', comments.created_at,
                   'user', json_object('id', user_id, 'name', name, 'email', email)) AS resource
FROM comments
JOIN users ON users.id = user_id;

-- part: postgres desk

-- PostgreSQL takes the tables above, in its own words. A row of `desk` is the right to write the desk, or its audit log: who has
-- updated it writes alone until the end of the transaction. version tells readers that what they remember is stale.
CREATE TABLE IF NOT EXISTS desk (
    kind           text   PRIMARY KEY,
    version        bigint NOT NULL,
    schema_version bigint NOT NULL
) WITH (fillfactor = 10);

INSERT INTO desk VALUES ('desk', 0, 0), ('audit', 0, 0) ON CONFLICT DO NOTHING;

-- part: postgres

-- The last boundary at which each job of the schedule ran, in microseconds since 1970: of many servers one runs it.
CREATE TABLE job_boundaries (
    job      text   PRIMARY KEY,
    boundary bigint NOT NULL
);

-- When each user's bucket of requests will be full again, in microseconds since 1970 (the generic cell rate algorithm), and
-- whether the last request was allowed. Unlogged: after a crash of the database the buckets are full.
CREATE UNLOGGED TABLE rate_limits (
    user_id bigint           PRIMARY KEY,
    full_at double precision NOT NULL,
    allowed boolean          NOT NULL
) WITH (fillfactor = 50);

CREATE FUNCTION rate_clock() RETURNS double precision LANGUAGE sql VOLATILE AS
    'SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS double precision)';

-- What SQLite has and PostgreSQL has not.
CREATE FUNCTION instr(text, text) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT CAST(strpos($1, $2) AS bigint)';

CREATE FUNCTION json_each(text, OUT value text) RETURNS SETOF text LANGUAGE sql IMMUTABLE AS
    'SELECT json_array_elements_text(CAST($1 AS json))';

-- The index of open tickets keeps an entry for each that was closed until a VACUUM, and every first page walks past them.
ALTER TABLE tickets SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
ALTER TABLE users SET (fillfactor = 80);

-- part: postgres views

DROP VIEW IF EXISTS ticket_resources, comment_resources;

-- As the views of the part `reader`, to the byte.
CREATE VIEW ticket_resources AS
SELECT id, status, user_id, user_number, closed_number, change, subject, content, created_at, updated_at, closed_at, deleted_at,
       concat('{"id":', id, ',"subject":', to_json(subject), ',"content":', to_json(content),
              ',"status":"', CASE abs(status) WHEN 1 THEN 'Open' ELSE 'Closed' END, '","status_id":', abs(status),
              ',"created_at":"', created_at, '","updated_at":"', updated_at,
              '","user":{"id":', user_id, ',"name":', to_json(user_name), ',"email":', to_json(user_email), '}}') AS resource
FROM tickets;

CREATE VIEW comment_resources AS
SELECT comments.id, ticket_id, number,
       concat('{"id":', comments.id, ',"ticket_id":', ticket_id, ',"content":', to_json(content),
              ',"created_at":"', comments.created_at,
              '","user":{"id":', user_id, ',"name":', to_json(name), ',"email":', to_json(email), '}}') AS resource
FROM comments
JOIN users ON users.id = user_id;

-- part: postgres desk 4 to 5

-- As `desk 4 to 5`.
-- include: what desk 5 adds

-- part: postgres desk 3 to 4

-- As `desk 3 to 4`.
DROP VIEW ticket_resources;

UPDATE personal_access_tokens
SET user_id = (
    SELECT min(others.id)
    FROM users
    JOIN users AS others ON lower(others.email) = lower(users.email) AND others.id >= 1000000000
    WHERE users.id = user_id
)
WHERE user_id >= 1000000000;

DELETE FROM users
WHERE id >= 1000000000 AND EXISTS (
    SELECT 1
    FROM users AS others
    WHERE others.id >= 1000000000 AND others.id < users.id AND lower(others.email) = lower(users.email)
);

ALTER TABLE users
    DROP CONSTRAINT users_email_key,
    ADD COLUMN last_number INTEGER NOT NULL DEFAULT 0;

UPDATE users SET last_number = tickets_count WHERE tickets_count > 0;

CREATE UNIQUE INDEX customers_by_email ON users (lower(email)) WHERE id < 1000000000;
CREATE UNIQUE INDEX owners_by_email    ON users (lower(email)) WHERE id >= 1000000000;

ALTER TABLE tickets
    ADD COLUMN change     INTEGER CHECK (change >= 1),
    ADD COLUMN deleted_at TEXT CHECK (length(deleted_at) = 27);

-- This writes the table anew, once; an UPDATE would leave all rows in it twice.
ALTER TABLE tickets
    ALTER COLUMN change TYPE INTEGER USING id,
    ALTER COLUMN change SET NOT NULL,
    ALTER COLUMN user_number DROP NOT NULL,
    DROP CONSTRAINT tickets_status_check,
    DROP CONSTRAINT tickets_check,
    ADD CONSTRAINT tickets_status_check CHECK (status IN (1, 2, -1, -2)),
    ADD CHECK ((abs(status) = 2) = (closed_at IS NOT NULL)),
    ADD CHECK ((status > 0) = (user_number IS NOT NULL)),
    ADD CHECK ((status < 0) = (deleted_at IS NOT NULL));

CREATE UNIQUE INDEX tickets_by_change ON tickets (change);

-- include: what desk 4 adds

-- part: audit

-- One row for every request under /api. user_id and token_id refer to the desk's file, or are NULL for a request without a
-- valid token; route_name is NULL where no route matched; query and request_body are JSON objects, secrets redacted;
-- request_id is the client's X-Request-Id, or one that was made.
-- AUTOINCREMENT: the id of a pruned row is never given out again, cursors refer to it.
CREATE TABLE api_audits (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id      INTEGER,
    token_id     INTEGER,
    method       TEXT    NOT NULL,
    path         TEXT    NOT NULL,
    route_name   TEXT,
    status_code  INTEGER NOT NULL,
    ip_address   TEXT    NOT NULL,
    user_agent   TEXT,
    duration_ms  INTEGER NOT NULL CHECK (duration_ms >= 0),
    query        TEXT,
    request_body TEXT,
    created_at   TEXT    NOT NULL CHECK (length(created_at) = 27),
    request_id   TEXT
) STRICT;

-- part: audit 1 to 2

-- Version 2 gives no id twice. Ids of version 1 began anew when the log was pruned to its end.
ALTER TABLE api_audits RENAME TO api_audits_1;

CREATE TABLE api_audits (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id      INTEGER,
    token_id     INTEGER,
    method       TEXT    NOT NULL,
    path         TEXT    NOT NULL,
    route_name   TEXT,
    status_code  INTEGER NOT NULL,
    ip_address   TEXT    NOT NULL,
    user_agent   TEXT,
    duration_ms  INTEGER NOT NULL CHECK (duration_ms >= 0),
    query        TEXT,
    request_body TEXT,
    created_at   TEXT    NOT NULL CHECK (length(created_at) = 27)
) STRICT;

INSERT INTO api_audits
SELECT *
FROM api_audits_1
ORDER BY id;

DROP TABLE api_audits_1;

-- part: audit 2 to 3

-- Version 3 keeps the id of each request.
ALTER TABLE api_audits RENAME TO api_audits_2;

CREATE TABLE api_audits (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id      INTEGER,
    token_id     INTEGER,
    method       TEXT    NOT NULL,
    path         TEXT    NOT NULL,
    route_name   TEXT,
    status_code  INTEGER NOT NULL,
    ip_address   TEXT    NOT NULL,
    user_agent   TEXT,
    duration_ms  INTEGER NOT NULL CHECK (duration_ms >= 0),
    query        TEXT,
    request_body TEXT,
    created_at   TEXT    NOT NULL CHECK (length(created_at) = 27),
    request_id   TEXT
) STRICT;

INSERT INTO api_audits
SELECT *, NULL
FROM api_audits_2
ORDER BY id;

DELETE FROM sqlite_sequence
WHERE name = 'api_audits';

INSERT INTO sqlite_sequence (name, seq)
SELECT 'api_audits', seq
FROM sqlite_sequence
WHERE name = 'api_audits_2';

DROP TABLE api_audits_2;

-- part: postgres audit 2 to 3

ALTER TABLE api_audits ADD COLUMN request_id TEXT;

-- part: import

-- The tickets of a file that is being imported, in a database of their own that is gone afterwards, in the order of the file. Times
-- are microseconds since 1970, and missing where the file has none; id and user_id are those of the original application.
CREATE TABLE lines (
    line    INTEGER PRIMARY KEY,
    id      INTEGER,
    user_id INTEGER,
    status  INTEGER NOT NULL,
    created INTEGER,
    closed  INTEGER,
    name    TEXT    NOT NULL,
    email   TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    content TEXT    NOT NULL
) STRICT;

-- The same in the order in which they come to the desk, and in which they are closed there; both times grow strictly.
CREATE TABLE arrivals (
    place   INTEGER PRIMARY KEY,
    line    INTEGER NOT NULL,
    created INTEGER NOT NULL,
    closed  INTEGER
) STRICT;

CREATE TABLE closings (
    place  INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    closed INTEGER NOT NULL
) STRICT;

CREATE VIEW ordered_lines AS
SELECT arrivals.place, name, user_id, email, subject, content, arrivals.created, closings.closed, number, lines.id
FROM arrivals
CROSS JOIN lines ON lines.line = arrivals.line
LEFT JOIN closings ON closings.place = arrivals.place;

-- How many were moved by more than a second, and when the first came and was closed.
CREATE VIEW line_ends AS
SELECT count(CASE WHEN arrivals.created > lines.created + 1000000 THEN 1 END) AS moved, min(arrivals.created) AS created,
       (SELECT min(closed) FROM closings) AS closed
FROM arrivals
CROSS JOIN lines ON lines.line = arrivals.line;

-- part: import order

-- A time of growing is the highest of its own and all before it, a microsecond more for each place between. :now is the present.
INSERT INTO arrivals (place, line, created, closed)
SELECT place, line, created, CASE status WHEN 2 THEN max(coalesce(closed, :now), created + 1) END
FROM (
    SELECT place, line, status, closed, place + max(moment - place) OVER (ORDER BY place) AS created
    FROM (
        SELECT line, status, closed, coalesce(created, :now) AS moment,
               row_number() OVER (ORDER BY id, coalesce(created, :now), line) AS place
        FROM lines
    )
);

INSERT INTO closings (place, number, closed)
SELECT place, number, number + max(closed - number) OVER (ORDER BY number)
FROM (
    SELECT place, closed, row_number() OVER (ORDER BY closed, place) AS number
    FROM arrivals
    WHERE closed IS NOT NULL
);

-- part: original

-- What is taken from the file of the original application (Laravel with Sanctum). A status that is a truth value, by its type or as
-- there is a 0, tells whether the ticket is closed. A customer is who wrote a ticket, or owns no token.
CREATE TEMPORARY VIEW original_tickets AS
SELECT tickets.id AS place,
       CASE WHEN (
           SELECT max(status) < 2 AND (min(status) = 0 OR EXISTS (
               SELECT 1 FROM pragma_table_info('tickets') WHERE name = 'status' AND lower(type) IN ('tinyint(1)', 'boolean')
           ))
           FROM tickets
       ) THEN tickets.status + 1 ELSE tickets.status END AS status,
       users.name, users.email, tickets.*
FROM tickets
LEFT JOIN users ON users.id = tickets.user_id AND users.id BETWEEN 1 AND 999999999;

CREATE TEMPORARY VIEW original_tokens AS
SELECT tokens.id, tokenable_id, users.name AS owner, email, tokens.name, token, abilities, tokens.created_at, last_used_at, expires_at
FROM personal_access_tokens AS tokens
JOIN users ON users.id = tokenable_id AND lower(tokenable_type) LIKE '%user';

CREATE TEMPORARY VIEW original_customers AS
SELECT id, name, email, created_at
FROM users
WHERE id IN (SELECT user_id FROM tickets)
    OR (id BETWEEN 1 AND 999999999 AND id NOT IN (SELECT tokenable_id FROM original_tokens));

CREATE TEMPORARY VIEW original_audits AS
SELECT id, user_id, token_id, method, path, route_name, status_code, ip_address, user_agent, duration_ms, query, request_body,
       created_at
FROM api_audits;
