-- part: audit

-- One row for every request under /api. user_id and token_id refer to the desk's file, or are NULL for a request without a
-- valid token; route_name is NULL where no route matched; query and request_body are JSON objects, secrets redacted.
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
