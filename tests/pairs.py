"""The same desk on both engines, and what it takes to compare them."""

from contextlib import ExitStack, closing
from dataclasses import replace
from unittest import mock

import ticketapi

OF_FILES = b"ticketapi_wal_bytes"  # lines of /metrics


def without_files(answer):
    """Return an answer as (status, headers, body), and of figures those that are not of files."""
    headers, body = dict(answer.headers), answer.body
    if headers.get("content-type", "").startswith("text/plain"):
        body = b"\n".join(line for line in body.split(b"\n") if not line.startswith(OF_FILES))
        headers.pop("content-length", None)
        headers.pop("etag", None)
    return answer.status, headers, body


class Pair(ExitStack):
    """A desk in a file and one in PostgreSQL, each behind an app, which are given the same to do at the same time."""

    def __init__(self, folder, databases, clock, make, **settings):
        """Make both; `make` returns an Api over a desk."""
        super().__init__()
        self.clock = clock
        places = folder / "desk.db", databases.fresh()
        clock.listener = databases.tell_clock
        clock.listener(clock.tick)
        self.dbs = [self.enter_context(closing(ticketapi.open_database(place, "desk"))) for place in places]
        self.apis = [make(replace(ticketapi.Settings(db=place), **settings), clock, self) for place in places]

    def do(self, operation):
        """Do the same to both desks; return what came of it, the same on both."""
        file, database = (attempt(operation, db) for db in self.dbs)
        assert database == file
        return file

    def run(self, sql, rows):
        """Run one statement for some rows of values on both."""
        rows = list(rows)
        for db in self.dbs:
            with ticketapi.transaction(db):
                for values in rows:
                    db.execute(sql, values)

    def create_token(self, *arguments):
        """Create a token with the same text on both, and return its record."""
        text = ticketapi.new_token_text()
        with mock.patch.object(ticketapi, "new_token_text", lambda: text):
            return self.do(lambda db: ticketapi.create_token(db, *arguments))

    def request(self, method, url, **more):
        """Ask both; return the answer, the same from both to the byte."""
        more["headers"] = {"X-Request-Id": "the-same"} | (more.get("headers") or {})
        file, database = (api.request(method, url, **more) for api in self.apis)
        for ours, theirs in zip(without_files(file), without_files(database), strict=True):
            assert theirs == ours, f"{method} {url}"
        return file

    def get(self, url, **more):
        """Send a GET request to both."""
        return self.request("GET", url, **more)

    def audits(self):
        """Return the rows of the audit log, the same in both."""
        file, database = (api.audits() for api in self.apis)
        assert database == file
        return file


def attempt(operation, db):
    """Return what an operation returns, or the failure that it raises, as it is told."""
    try:
        return operation(db)
    except ticketapi.TicketApiError as failure:
        return type(failure), str(failure)
