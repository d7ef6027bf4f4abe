-- The tables of ticketapi: two SQLite files, 3.37 or newer (STRICT tables).
--
-- The desk (ticketapi.db) holds users, tickets and tokens. The audit log (ticketapi-audit.db) holds one row for every
-- request; it is a file of its own because a commit in the desk's file would throw away every reader's page cache.
-- ticketapi.py runs the part of this file that belongs to the database it creates, then sets user_version. Other parts bring a
-- database of an older user_version up to the next, when it is opened.
--
-- Times are UTC text with six decimals, 2025-12-04T11:30:16.000000Z: what the API shows, and sortable as it stands.

-- part: desk

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

-- part: reader

-- A ticket as the API shows it, and the numbers that lists look it up by. Temporary, as SQLite lets no view of a file call
-- json_object when it is told to trust no schema.
CREATE TEMPORARY VIEW ticket_resources AS
SELECT id, status, user_id, user_number, closed_number,
       json_object('id', id, 'subject', subject, 'content', content,
                   'status', CASE status WHEN 1 THEN 'Open' ELSE 'Closed' END, 'status_id', status,
                   'created_at', created_at, 'updated_at', updated_at,
                   'user', json_object('id', user_id, 'name', user_name, 'email', user_email)) AS resource
FROM tickets;

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

-- As ticket_resources of the part `reader`, to the byte.
CREATE VIEW ticket_resources AS
SELECT id, status, user_id, user_number, closed_number,
       concat('{"id":', id, ',"subject":', to_json(subject), ',"content":', to_json(content),
              ',"status":"', CASE status WHEN 1 THEN 'Open' ELSE 'Closed' END, '","status_id":', status,
              ',"created_at":"', created_at, '","updated_at":"', updated_at,
              '","user":{"id":', user_id, ',"name":', to_json(user_name), ',"email":', to_json(user_email), '}}') AS resource
FROM tickets;

-- The index of open tickets keeps an entry for each that was closed until a VACUUM, and every first page walks past them.
ALTER TABLE tickets SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
ALTER TABLE users SET (fillfactor = 80);

-- part: audit

-- One row for every request under /api. user_id and token_id refer to the desk's file, or are NULL for a request without a
-- valid token; route_name is NULL where no route matched; query and request_body are JSON objects, secrets redacted.
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
    created_at   TEXT    NOT NULL CHECK (length(created_at) = 27)
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
