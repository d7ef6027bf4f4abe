-- The desk as a plain database: the same rows, counted and sorted when asked, with the indexes that its queries ask for.

CREATE TABLE users (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    email      TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL
);

CREATE TABLE tickets (
    id         INTEGER PRIMARY KEY,
    user_id    INTEGER NOT NULL REFERENCES users (id),
    subject    TEXT    NOT NULL,
    content    TEXT    NOT NULL,
    status     INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    closed_at  TEXT
);

CREATE TABLE tokens (
    id      INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id),
    token   TEXT    NOT NULL UNIQUE
);

CREATE TABLE audits (
    id          INTEGER PRIMARY KEY,
    user_id     INTEGER,
    token_id    INTEGER,
    method      TEXT    NOT NULL,
    path        TEXT    NOT NULL,
    status_code INTEGER NOT NULL,
    ip_address  TEXT,
    user_agent  TEXT,
    duration_ms INTEGER NOT NULL,
    query       TEXT,
    created_at  TEXT    NOT NULL
);

INSERT INTO users SELECT id, name, email, created_at FROM desk.users;
INSERT INTO tickets SELECT id, user_id, subject, content, status, created_at, updated_at, closed_at FROM desk.tickets;
INSERT INTO tokens SELECT id, user_id, token FROM desk.personal_access_tokens;

CREATE INDEX tickets_status ON tickets (status);
CREATE INDEX tickets_user_id ON tickets (user_id);
CREATE INDEX tickets_created_at ON tickets (created_at);
CREATE INDEX tickets_closed_at ON tickets (closed_at);

-- With the four alone, page 1 sorts all tickets of its status: 0.3 seconds for half a million open ones. These two spare that.
CREATE INDEX tickets_status_created_at ON tickets (status, created_at);
CREATE INDEX tickets_status_closed_at ON tickets (status, closed_at);
