#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["bottle>=0.13.4", "waitress>=3.0.2,<4"]
# ///
"""ticketapi: a live support desk behind an API, in one file.

It serves a secured, rate-limited, audited and paginated JSON API over a support desk that lives: a ticket arrives every
minute, one is closed every five, and a million more are one command away. Build dashboards, connectors, SDKs and load
tests against it.

Commands
    serve      answer HTTP requests; the built-in scheduler lets tickets arrive and closes them
    generate   add tickets now, or a whole history of them (--since 90d)
    process    close the oldest open tickets
    tickets    list the open or the closed tickets, or show one in full
    stats      show how many tickets wait, for how long, and who wrote most, once or (--watch) on and on
    token      create, list, revoke and prune the tokens that the API asks for
    audit      show and follow the audit log, and prune it
    check      look for damage, wrong counters, open file modes and versions with known problems
    backup     copy the desk, and with --audit its audit log, while a server runs
    copy       copy the desk into another file or database, from SQLite to PostgreSQL or back

Configuration
    Every option can be given as a flag, as an environment variable (--generate-every is TICKETAPI_GENERATE_EVERY), or left
    to its default in `Settings`; the flag wins over the variable. Two SQLite files hold everything: the desk (--db) and
    its audit log beside it. `schema.sql` describes them.

The life of one request
    socket > Waitress > audit hook (clock, path, preflight, token) > CatchErrors > Authenticate > Throttle >
    Authorize > handler > remembered answer, or operation > queries > SQLite > JSON bytes > audit hook (headers, counters,
    audit row) > commit > socket

Security rules
    - A token is shown once; the database holds its SHA-256 alone, compared in constant time. One answer, 401
      "Unauthenticated.", for a missing, wrong, expired and revoked token.
    - Requests under /api draw from a bucket of their user, without a valid token from one of their address.
    - Each is in the audit log before its answer is sent, with secrets redacted; of what strangers get as 429 one a minute is.
    - All files are created 0600. SQL is never put together from input. No answer holds a traceback.
    - A request that a proxy could understand differently is refused: two lengths, hosts or tokens, a folded line.
    - The pages run their own script alone, name it by its hash, and ask this server alone.
    - What clients send is bounded (headers, bodies, connections, time, buckets), and escaped before a person reads it.
    - Only the proxy named by --trusted-proxy may say who the client is. /metrics needs no token from this machine, unless
      the request came through a proxy.

The pages
    / is the dashboard and /docs the reference, one HTML file each with script and style inside, beside this module. They use
    the API as any client does, with a token that is pasted into them.

Rooms, top to bottom; each uses only those above it
     1 Settings and errors    2 PostgreSQL  3 Database    4 Queries            5 Words      6 Clocks
     7 Desk                   8 Lists       9 Keys and limits                 10 Audit     11 Watch
    12 Upkeep                13 Plugins    14 Routes     15 Jobs              16 Server    17 Options
    18 Terminal              19 Commands
"""

from __future__ import annotations

import argparse
import base64
import errno
import fcntl
import hashlib
import heapq
import hmac
import importlib.util
import io
import ipaddress
import json
import logging
import math
import os
import re
import resource
import secrets
import select
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import string
import sys
import textwrap
import threading
import time
import unicodedata
import zlib
from bisect import bisect_left, bisect_right
from calendar import timegm
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import accumulate, chain, islice
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO
from urllib.parse import parse_qsl, urlencode

if sys.version_info < (3, 10):  # noqa: UP036  # or a traceback of a line below would be all that is said
    raise SystemExit(f"ticketapi needs Python 3.10 or newer; this is {sys.version.split()[0]}")

__version__ = "1.6.0"


def import_lazily(name: str) -> Any:
    """Return a module that is loaded at its first use, or None when it is not installed.

    Bottle and Waitress take most of the start-up time and only `serve` needs them. This is the recipe of the importlib
    documentation, "Implementing lazy imports".
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import bottle
else:
    bottle = sys.modules.get("bottle") or import_lazily("bottle")

log = logging.getLogger("ticketapi")


# ======================================================================================================================
# Room 1. Settings and errors: every default, every kind of failure, how values are written and read. Touches nothing.
# ======================================================================================================================

OPEN, CLOSED = 1, 2

MICROSECONDS = 1_000_000  # in a second; times inside the program are whole microseconds since 1970, UTC
MINUTE, HOUR, DAY = 60, 3600, 86_400  # in seconds
MINUTE_MICROSECONDS = MINUTE * MICROSECONDS
NEVER = -(10**18)  # a moment before all others
MAX_ID = 2**63 - 1

ABILITIES = READ_TICKETS, READ_AUDITS, READ_METRICS, _ = "read:tickets", "read:audits", "read:metrics", "*"
FIRST_OWNER_ID = 1_000_000_000  # users from here up own tokens, below are customers
OPERATOR_EMAIL = "operator@localhost"  # owns the tokens made without --user


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do: the sole home of every default. Durations are whole seconds, 0 is off."""

    db: Place = Path("ticketapi.db")
    json: bool = False
    # serve
    host: str = "127.0.0.1"
    port: int = 8000
    rate: int = 30  # requests a minute for each user
    threads: int = 1
    no_scheduler: bool = False
    generate_every: int = MINUTE
    process_every: int = 5 * MINUTE
    audit_keep: int = 0
    cors_origin: tuple[str, ...] = ("*",)
    trusted_proxy: str = ""
    log_level: str = "info"
    demo: bool = False
    # generate, process
    count: int = 1
    seed: int | None = None
    since: int = 0
    # tickets, stats
    tickets_limit: int = 20  # tickets; 0 is all
    watch: bool = False
    # token
    name: str = "token"
    user: str = OPERATOR_EMAIL
    ability: tuple[str, ...] = (READ_TICKETS,)
    expires: int = 0
    # audit
    audit_user: int | str | None = None  # an id or an e-mail address
    audit_token: int | None = None
    audit_status: range | None = None
    audit_path: str = ""
    audit_since: int = 0
    audit_limit: int = 50  # rows; 0 is all
    follow: bool = False
    older_than: int | None = None
    # check
    repair: bool = False
    # backup
    audit: bool = False
    force: bool = False

    @property
    def audit_db(self) -> Place:
        """Where the audit log is: in a file beside the desk's, or in the desk's own database."""
        return log_path(self.db) if isinstance(self.db, Path) else self.db


def log_path(desk: Path) -> Path:
    """Return the file of the audit log: `-audit` before the suffix of the desk's."""
    return desk.with_name(f"{desk.stem}-audit{desk.suffix}")


class TicketApiError(Exception):
    """A failure that a person can act on; its text is one line that names what is wrong and what to do."""

    exit_code = 1
    status = 500


class UsageError(TicketApiError):
    """What the arguments alone show to be wrong."""

    exit_code = 2


class DeskBusy(TicketApiError):
    """The database is locked by somebody else for longer than we wait."""

    status = 503


class NotFound(TicketApiError):
    """What was asked for by id is not there."""

    status = 404


class BadRequest(TicketApiError):
    """A request that makes no sense as a whole."""

    status = 400


class InvalidFields(TicketApiError):
    """Request fields that cannot be used; `errors` lists the messages of each, as Laravel does."""

    status = 422

    def __init__(self, errors: dict[str, list[str]]) -> None:
        """Take the first message as the summary and count the rest, as Laravel's ValidationException."""
        messages = [message for texts in errors.values() for message in texts]
        more = len(messages) - 1
        rest = f" (and {more} more error{'s' if more > 1 else ''})" if more else ""
        super().__init__(messages[0] + rest)
        self.errors = errors


@lru_cache(maxsize=4096)
def format_second(seconds: int) -> str:
    """Write seconds since 1970 as `2025-12-04T11:30:16`."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).zfill(19)  # years below 1000 come without zeros


def format_time(moment: int) -> str:
    """Write microseconds since 1970 as the API and the tables show them: `2025-12-04T11:30:16.000000Z`."""
    seconds, fraction = divmod(moment, MICROSECONDS)
    return f"{format_second(seconds)}.{fraction:06d}Z"


@lru_cache(maxsize=4096)
def parse_day(text: str) -> int:
    """Return the seconds since 1970 of the start of a day such as `2025-12-04`."""
    return timegm(time.strptime(text, "%Y-%m-%d"))


def parse_second(text: str) -> int:
    """Return the whole seconds since 1970 of a time that `format_time` wrote."""
    return parse_day(text[:10]) + int(text[11:13]) * HOUR + int(text[14:16]) * MINUTE + int(text[17:19])


def parse_time(text: str) -> int:
    """Return the microseconds since 1970 of a time that `format_time` wrote."""
    return parse_second(text) * MICROSECONDS + int(text[20:26])


compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # json.dumps makes such an encoder each time
quote = json.encoder.encode_basestring_ascii


def to_json(value: Any) -> bytes:
    """Write a value as compact JSON."""
    return compact(value).encode()


def escape(text: str) -> str:
    """Escape what a terminal would act on: control characters, line breaks, marks that turn the reading direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def whole_number(text: str) -> int | None:
    """Read a whole number of any length, or return None; beyond 19 digits, more than 64 bits hold, it is 10^19."""
    match = re.fullmatch(r"([+-]?)([0-9]+)", text.strip())
    if not match:
        return None
    sign, digits = match[1], match[2].lstrip("0") or "0"
    number = int(digits) if len(digits) <= 19 else 10**19
    return -number if sign == "-" else number


def read_number(text: str, lowest: int, highest: int) -> int:
    """Read a whole number within bounds."""
    number = whole_number(text)
    if number is None:
        raise ValueError(f"{text!r} is not a whole number")
    if not lowest <= number <= highest:
        raise ValueError(f"{text!r} is out of range; give {lowest if lowest >= 0 else 1} to {highest}")
    return number


DURATION_UNITS = (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", 1))


def read_duration(text: str) -> int:
    """Read `90s`, `5m`, `12h`, `30d` or `0` as seconds."""
    match = re.fullmatch(r"([0-9]{1,10})([smhd])", text)
    if text != "0" and not match:
        raise ValueError(f"{text!r} is not a duration; write 90s, 5m, 12h or 30d, or 0 for off")
    seconds = int(match[1]) * dict(DURATION_UNITS)[match[2]] if match else 0
    if seconds > 36_500 * DAY:
        raise ValueError(f"{text!r} is too long; the longest is 36500d")
    return seconds


def read_email(text: str) -> str:
    """Read an address; it is kept in lower case."""
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", text) or not text.isprintable() or len(text) > 255:
        raise ValueError(f"{text!r} is not an e-mail address")
    return text.lower()


def read_text(text: str) -> str:
    """Read a text that is not empty and fits a line."""
    if not text.strip() or not text.isprintable() or len(text) > 255:
        raise ValueError(f"{text!r} is not a text of 1 to 255 printable characters")
    return text


def read_id(text: str) -> int:
    """Read the id of a row."""
    return read_number(text, 1, 2**63 - 1)


def read_user(text: str) -> int | str:
    """Read a user's id or e-mail address."""
    if whole_number(text) is not None:
        return read_id(text)
    try:
        return read_email(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a user's id nor an e-mail address; write 7 or ann@example.com") from None


def read_status(text: str) -> range:
    """Read an HTTP status, or a class of them such as `4xx`."""
    match = re.fullmatch(r"([1-5])(xx|XX|[0-9]{2})", text)
    if not match:
        raise ValueError(f"{text!r} is not an HTTP status; write 404, or 4xx for all from 400 to 499")
    first = int(match[1]) * 100
    return range(first, first + 100) if match[2].lower() == "xx" else range(int(text), int(text) + 1)


def read_moment(text: str, now: int) -> int:
    """Read a UTC time such as `2025-12-04T11:30:16Z`, or a duration before now such as `24h`, as microseconds since 1970."""
    match = re.fullmatch(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3])(?::[0-5][0-9]){2})(?:\.([0-9]{1,6}))?Z", text)
    if match:
        return parse_time(f"{match[1]}.{match[2] or '':0<6}Z")
    return now - read_duration(text) * MICROSECONDS


# ======================================================================================================================
# Room 2. PostgreSQL: a connection that takes what SQLite's does, and what becomes of it when it breaks. Touches psycopg.
# ======================================================================================================================

RETRY_SECONDS = 0.25  # between two tries to reach a database again
CONNECT_SECONDS = 2  # for each host; libpq's least
COPIED_ROWS = 100  # from which on COPY is cheaper than an INSERT
FETCHED_ROWS = 5000  # of a large result, that are in memory at a time
COPYING, FATAL_ERROR = (3, 4), 7  # of libpq's ExecStatusType
SQLSTATE, MESSAGE = ord("C"), ord("M")  # https://www.postgresql.org/docs/current/protocol-error-fields.html
TYPES: dict[int, Callable[[bytes], Any]] = {  # by OID; truth is 1, as SQLite has it
    16: lambda value: int(value == b"t"),
    **dict.fromkeys((20, 21, 23, 1700), int),
    701: float,
}

ORPHANS = """
    SELECT 'tickets', id, 'users', 0
    FROM tickets
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE users.id = user_id)
    UNION ALL
    SELECT 'personal_access_tokens', id, 'users', 0
    FROM personal_access_tokens
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE users.id = user_id)"""
# What SQLite is told, and how PostgreSQL says it: the one place where they differ, but for the part `postgres` of schema.sql.
DIALECT = (
    ("CAST(group_concat(resource) AS BLOB)", "string_agg(resource, ',')"),
    ("CAST(resource AS BLOB)", "resource"),
    ("seq FROM sqlite_sequence WHERE name = :name", "last_value FROM pg_sequences WHERE sequencename = :name || '_id_seq'"),
    ("name FROM sqlite_master", "relname FROM pg_class WHERE relnamespace = to_regnamespace(CAST(current_schema() AS text))"),
    ("PRAGMA foreign_key_check", ORPHANS),
    ("PRAGMA data_version", "SELECT version FROM desk WHERE kind = 'desk'"),
    ("PRAGMA busy_timeout = 0", "SET lock_timeout = 1"),
    ("PRAGMA busy_timeout = ", "SET lock_timeout = "),
    ("PRAGMA busy_timeout", "SELECT CAST(setting AS bigint) FROM pg_settings WHERE name = 'lock_timeout'"),
)
SUBSTITUTE = "\x1a"  # for NUL, which no text of PostgreSQL holds; like any control character, it is nowhere in a desk either
COPY_ESCAPES = {0: SUBSTITUTE, **{ord(char): f"\\{name}" for char, name in zip("\\\b\f\n\r\t\v", "\\bfnrtv", strict=True)}}
# One row is the right to write: who has updated it writes alone until the end of the transaction.
CONTROL = {
    "BEGIN IMMEDIATE": "BEGIN; UPDATE desk SET version = version + 1 WHERE kind = '{}'",
    "BEGIN": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "COMMIT": "COMMIT",
    "ROLLBACK": "ROLLBACK",
}
DDL_DIALECT = (
    (r"INTEGER PRIMARY KEY AUTOINCREMENT", "bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY"),
    (r"\bINTEGER\b", "bigint"),
    (r"\bTEXT\b", 'text COLLATE "C"'),
    (r"\) STRICT(, WITHOUT ROWID)?", ")"),
    (r"users \(tickets_count DESC\)", "users (tickets_count DESC, id)"),
)


class PostgresError(Exception):
    """What PostgreSQL reports, with its SQLSTATE in brackets, or libpq."""


class RowFault(PostgresError):
    """A value that its table does not take (SQLSTATE classes 22 and 23)."""


class Unreachable(PostgresError):
    """The database cannot be reached, does not answer, or has ended the connection."""


class PostgresRow(tuple[Any, ...]):
    """A row with the face of sqlite3.Row; each statement makes a subclass, which knows its columns."""

    places: Mapping[str, int]

    def keys(self) -> list[str]:
        """Return the names of the columns."""
        return list(self.places)

    def __getitem__(self, key: Any) -> Any:
        """Return a column by its place or name."""
        return tuple.__getitem__(self, self.places[key] if isinstance(key, str) else key)


class Result(list[PostgresRow]):
    """The rows of a result, with the face of sqlite3.Cursor."""

    rowcount = 0  # rows that were changed

    def fetchone(self) -> Any:
        """Return the first row, or None."""
        return self[0] if self else None

    def fetchall(self) -> list[PostgresRow]:
        """Return all rows."""
        return self


def row_reader(result: Any) -> Callable[[Any], Result]:
    """Return what reads the results of a statement like this one; a column called json stays bytes, to be sent as they are."""
    names = [result.fname(i).decode() for i in range(result.nfields)]
    row = type("Row", (PostgresRow,), {"places": {name: i for i, name in enumerate(names)}})
    columns = [(i, bytes if name == "json" else TYPES.get(result.ftype(i), bytes.decode)) for i, name in enumerate(names)]

    def read(result: Any) -> Result:
        get = result.get_value
        rows = ([None if (value := get(n, i)) is None else to(value) for i, to in columns] for n in range(result.ntuples))
        found = Result(map(row, rows))
        found.rowcount = result.command_tuples or 0
        return found

    return read


@lru_cache(maxsize=256)
def translate(sql: str) -> tuple[str, list[Any]]:
    """Put a statement into PostgreSQL's words: `:name`, `?` and `?1` become `$1`; return it with the keys of its values."""
    for ours, theirs in DIALECT:
        sql = sql.replace(ours, theirs)
    keys: list[Any] = []

    def place(found: re.Match[str]) -> str:
        name, number = found.groups()
        key = name or (int(number) - 1 if number else len(keys))
        if key not in keys:
            keys.append(key)
        return f"${keys.index(key) + 1}"

    return re.sub(r":([a-z_]+)|\?([0-9]*)", place, sql), keys


def write_array(values: Sequence[Any]) -> bytes:
    """Write numbers or texts as an array."""
    texts = ("NULL" if value is None else '"' + re.sub(r'(["\\])', r"\\\1", str(value)) + '"' for value in values)
    return f"{{{','.join(texts)}}}".replace("\0", SUBSTITUTE).encode()


def kind_of(values: Iterable[Any]) -> str:
    """Return the type of a column of values: bigint, text, or nothing where there is none."""
    first = next((value for value in values if value is not None), None)
    return "" if first is None else "bigint" if isinstance(first, int) else "text"


@lru_cache(maxsize=256)
def for_all(sql: str, kinds: tuple[str, ...], leads: str = "") -> str:
    """Turn a translated statement for one row into one for all rows of some columns: to run it for each took twice as long."""
    arrays = ", ".join(f"CAST(${i} AS {kind or 'text'}[])" for i, kind in enumerate(kinds, 1))
    source = f"FROM unnest({arrays}) AS many({', '.join(f'c{i}' for i in range(1, len(kinds) + 1))})"
    sql = re.sub(r"\$([0-9]+)", lambda found: f"c{found[1]}" if kinds[int(found[1]) - 1] else "NULL", sql)
    if leads:
        lead = f"WITH lead AS (UPDATE desk SET version = version + 1 WHERE kind = '{leads}' RETURNING kind)"  # noqa: S608
        sql, source = f"{lead} {sql}", f"{source}, lead"
    if "VALUES" in sql:
        return re.sub(r"VALUES \((.*?)\)", rf"SELECT \1 {source}", sql, flags=re.DOTALL)
    before, _, after = sql.rpartition("WHERE")
    return f"{before}{source} WHERE{after}"


@dataclass(eq=False)
class Postgres:
    """A database that holds a desk and its audit log, and whether it answers. Written out, it shows no password."""

    url: str = field(repr=False)
    down: str = ""  # why it is not asked at the moment
    restored: int = 0  # times
    kept: list[PostgresConnection] = field(default_factory=list)  # connections that are made anew when they break
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        """Return the URL without its password."""
        shown = re.sub(r"//([^:@/]*):.*@", r"//\1@", self.url)
        return re.sub(r"(?i)(?<=[?&])[^&=]*(%|password)[^&=]*=[^&]*&?", "", shown).rstrip("?&")

    def parameters(self) -> list[dict[str, Any]]:
        """Return how to connect to each host (https://www.postgresql.org/docs/current/libpq-connect.html).

        psycopg before 3.2 gives one that is frozen the time of all. Raises TicketApiError.
        """
        try:
            from psycopg import ProgrammingError
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:
            fix = "pip install 'ticketapi[postgres]', or Debian's python3-psycopg"
            raise TicketApiError(f"a desk in PostgreSQL needs psycopg 3: {fix} ({error})") from None
        try:
            given = conninfo_to_dict(self.url)
            # An @ of a password that was not escaped
            if re.search("[^,]@", str(given.get("host"))) or "@" in str(given.get("dbname")):
                raise ProgrammingError
        except (ProgrammingError, UnicodeError):  # its message may cite a part of the password
            shown = str(self).partition("?")[0]
            raise TicketApiError(f"{shown} is no URL that libpq understands; write postgresql://user@host/database") from None
        hosts, ports = (str(given.get(name) or "").split(",") for name in ("host", "port"))
        ours = {"application_name": "ticketapi", "connect_timeout": CONNECT_SECONDS}
        if len(hosts) == 1 or "hostaddr" in given or len(ports) not in (1, len(hosts)):  # libpq says what does not fit
            return [{**ours, **given}]
        each = zip(hosts, ports if len(ports) > 1 else ports * len(hosts), strict=True)
        return [{**ours, "target_session_attrs": "read-write", **given, "host": host, "port": port} for host, port in each]

    def lost(self, reason: str) -> None:
        """Ask nothing more until new connections are made, by a thread beside: that takes milliseconds, or for ever."""
        with self._lock:
            if self.down:
                return
            self.down = reason.splitlines()[0]
        log.error("the database does not answer: %s: %s", self, self.down)
        threading.Thread(target=self._restore, name="restore", daemon=True).start()

    def _restore(self) -> None:
        """Try until every kept connection has a new session."""
        while kept := list(self.kept):
            try:
                for db in kept:
                    db.replace_session(db.dial())
                break
            except Exception:  # whatever it is, too: without this thread nothing would be asked any more
                time.sleep(RETRY_SECONDS)
        else:
            return  # the server ends
        self.restored += 1
        self.down = ""
        log.info("the database answers again: %s", self)


class PostgresConnection:
    """A connection to PostgreSQL that takes what sqlite3.Connection takes.

    It uses libpq below psycopg's cursors, which cost four times as much a row. Python waits for answers, so that signals are
    heard, and for no longer than it is told: a backend that is frozen, or a commit that waits for a lost standby, would hold
    us for ever (https://www.postgresql.org/docs/current/libpq-async.html).
    """

    def __init__(self, place: Postgres, setup: dict[str, int | str], leads: str, seconds: float) -> None:
        """Connect. `setup` are parameters of the session, `leads` what it may write alone, `seconds` the most to wait."""
        self.place, self.setup, self.leads, self.seconds = place, setup, leads, seconds
        self._fresh: Any = None  # a session made by another thread, taken when no transaction is open
        self._walks = 0
        self.kept = False  # one that is made anew when it breaks
        if place.down:  # who makes the first request of a thread would wait for what is known
            raise Unreachable(place.down)
        try:
            self._use(self.dial())
        except Unreachable as error:
            if place.kept and "timeout" in str(error):  # psycopg's word; others may be about this connection alone
                place.lost(str(error))
                raise
            raise (PostgresError if place.kept else Unreachable)(str(error)) from error  # the former is logged

    def dial(self) -> Any:
        """Return a new session of psycopg, of the first host that gives one. Raises Unreachable."""
        hosts, reasons, session = self.place.parameters(), [], None
        import psycopg

        for parameters in hosts:
            try:
                session = psycopg.connect(autocommit=True, **parameters)
                session.execute("; ".join(f"SET {name} = {value}" for name, value in self.setup.items()))
                return session
            except (psycopg.Error, UnicodeError) as error:
                if session:
                    session.close()
                reasons.append((str(error).strip() or "no answer").splitlines()[0])
        raise Unreachable("; ".join(reasons))

    def _use(self, session: Any) -> None:
        """Go on with a session."""
        self._session, self._link, self._warned = session, session.pgconn, False
        self._prepared: dict[str, tuple[bytes, Sequence[Any]]] = {}
        self._readers: dict[str, Callable[[Any], Result]] = {}
        self._poll = select.poll()
        self._poll.register(self._link.socket, select.POLLIN)
        session.add_notice_handler(self._note)

    def _note(self, notice: Any) -> None:
        """Note a warning: of a commit that was cancelled while it waited for a standby there is nothing else."""
        self._warned |= notice.severity_nonlocalized == "WARNING"

    def replace_session(self, fresh: Any) -> None:
        """Keep a session until it is taken; one that nobody took is closed."""
        fresh, self._fresh = self._fresh, fresh
        if fresh:
            fresh.close()

    def close(self) -> None:
        """End the connection."""
        if self.kept:
            self.kept = False
            self.place.kept.remove(self)
        self.replace_session(None)
        self._session.close()

    @property
    def version(self) -> str:
        """The version of the server, such as 15.18."""
        return "{}.{}".format(*divmod(self._link.server_version, 10_000))

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, or failed and not rolled back."""
        return self._link.transaction_status in (2, 3)

    def execute(self, sql: str, values: Any = (), /) -> Result:
        """Run one statement, prepared the first time. A commit that is not certain raises PostgresError."""
        self._renew()
        if sql in CONTROL:
            self._warned = False
            self.run(CONTROL[sql].format(self.leads))
            if self._warned and sql == "COMMIT":
                raise PostgresError("no standby has confirmed this commit, which may get lost; look before you repeat it")
            return Result()
        name, keys = self._prepared.get(sql) or self._prepare(sql, *translate(sql))
        given = [None if (value := values[key]) is None else str(value).replace("\0", SUBSTITUTE).encode() for key in keys]
        result = self._ask(lambda link: link.send_query_prepared(name, given))
        read = self._readers.get(sql) or self._readers.setdefault(sql, row_reader(result))
        return read(result)

    def _renew(self) -> None:
        """Take the session that was made when the one before broke; called before anything is asked."""
        if self._fresh and not self.in_transaction and not self.place.down:
            self._session.close()
            self._use(self._fresh)
            self._fresh = None

    def _prepare(self, sql: str, text: str, keys: Sequence[Any]) -> tuple[bytes, Sequence[Any]]:
        """Prepare a statement for this session; return its name, and the keys of its values."""
        name = f"s{len(self._prepared)}".encode()
        self._ask(lambda link: link.send_prepare(name, text.encode()))
        return self._prepared.setdefault(sql, (name, keys))

    def run(self, script: str) -> None:
        """Run statements without values or results."""
        self._ask(lambda link: link.send_query(script.encode()))

    def executemany(self, sql: str, rows: Iterable[Any], /, leading: bool = False) -> None:
        """Run one statement for many rows of values, at once; many new rows by COPY.

        With `leading` it is a transaction of its own, without the questions that would begin and end one.
        """
        self._renew()
        text, keys = translate(sql)
        rows = list(rows)
        plain = re.fullmatch(r"\s*INSERT INTO (\w+ \([^)]*\))\s*VALUES \([?, ]*\)", sql)
        if plain and len(rows) >= COPIED_ROWS and not leading:
            self.copy_in(plain[1], rows)
        elif rows:
            columns = [[row[key] for row in rows] for key in keys]
            text = for_all(text, tuple(map(kind_of, columns)), self.leads if leading else "")
            name, _ = self._prepared.get(text) or self._prepare(text, text, keys)
            arrays = [write_array(column) for column in columns]
            self._ask(lambda link: link.send_query_prepared(name, arrays))

    def copy_in(self, table: str, rows: Iterable[Sequence[Any]]) -> list[int]:
        """Insert rows by COPY (https://www.postgresql.org/docs/current/sql-copy.html); return their number, and a hash of them.

        The hash is the same in this process for the same rows in any order. Pieces are small, so that the server works on one
        while the next is written: with 5,000 rows in each it took half as long again.
        """
        self.run(f"COPY {table} FROM STDIN")
        rows, tally = iter(rows), [0, 0]
        while chunk := list(islice(rows, COPIED_ROWS)):
            lines = ["\t".join(map(copy_value, row)).encode() + b"\n" for row in chunk]
            tally = [tally[0] + len(lines), tally[1] + sum(map(hash, lines))]
            self._step(self._link.put_copy_data, b"".join(lines))
            self._step(self._flush, time.monotonic() + self.seconds)
        self._ask(lambda link: link.put_copy_end())
        return tally

    def copy_out(self, table: str) -> list[int]:
        """Return what `copy_in` returned for the rows of a table, as they stand in it."""
        self.run(f"COPY {table} TO STDOUT")
        tally = [0, 0]
        while (size := (found := self._step(self._link.get_copy_data, 1))[0]) >= 0:
            if size:
                tally = [tally[0] + 1, tally[1] + hash(bytes(found[1]))]
            else:
                self._step(self._wait, time.monotonic() + self.seconds)
        self._ask(lambda link: None)
        return tally

    def _step(self, work: Callable[[Any], Any], given: object) -> Any:
        """Do a step of a COPY. Raises Unreachable."""
        try:
            return work(given)
        except Exception as error:
            self._session.close()
            raise Unreachable(str(error).strip() or "the connection is closed") from error

    def stream(self, sql: str) -> Iterator[PostgresRow]:
        """Yield the rows of a large result, in a transaction, without having them all in memory."""
        walk = self._walks = self._walks + 1
        self.run(f"DECLARE walk{walk} NO SCROLL CURSOR FOR {translate(sql)[0]}")
        while rows := self.execute(f"FETCH {FETCHED_ROWS} FROM walk{walk}"):
            yield from rows

    def _ask(self, start: Callable[[Any], object]) -> Any:
        """Send something and return its last result. Raises the first error, and Unreachable, after which all is lost."""
        reason = self.place.down if self.kept else ""
        if not reason:
            try:
                start(self._link)
                result = self._receive(time.monotonic() + self.seconds)
            except BaseException as error:
                self._session.close()  # whatever the server is at, nobody would hear of it
                if not isinstance(error, Exception):
                    raise
                reason = str(error).strip() or "the connection is closed"
            else:
                if result.status != FATAL_ERROR:
                    return result
                code, reason = ((result.error_field(each) or b"").decode() for each in (SQLSTATE, MESSAGE))
                if not self._link.status:
                    raise (RowFault if code[:2] in ("22", "23") else PostgresError)(f"{reason} [{code}]")
        self._session.close()
        if self.kept:
            self.place.lost(reason)
        raise Unreachable(reason)

    def _receive(self, until: float) -> Any:
        """Wait for the results of what was sent; return the first error, or the last."""
        link, found = self._link, None
        self._flush(until)
        while True:
            while link.is_busy():
                self._wait(until)
            result = link.get_result()
            if result is None:
                return found
            if found is None or found.status != FATAL_ERROR:
                found = result
            if result.status in COPYING:
                return found

    def _flush(self, until: float) -> None:
        """Send all that is to be sent, and take what comes meanwhile."""
        while self._link.flush():
            self._poll.modify(self._link.socket, select.POLLIN | select.POLLOUT)
            self._wait(until)
            self._poll.modify(self._link.socket, select.POLLIN)

    def _wait(self, until: float) -> None:
        """Wait for the socket, and read what has come. Raises TimeoutError."""
        left = until - time.monotonic()
        if left <= 0 or not self._poll.poll(left * 1000):
            raise TimeoutError(f"no answer within {self.seconds:g} s")
        self._link.consume_input()


def copy_value(value: Any) -> str:
    """Write a value for COPY; to translate only what needs it takes a third of the time."""
    if value is None:
        return r"\N"
    text = str(value)
    return text if text.isprintable() and "\\" not in text else text.translate(COPY_ESCAPES)


def tallied(rows: Iterable[Any], tally: list[int]) -> Iterator[Any]:
    """Pass rows on; count them in tally[0], and add a hash of each, the same within this process, to tally[1]."""
    for row in rows:
        tally[:] = tally[0] + 1, tally[1] + hash(tuple(row))
        yield row


def read_version(db: PostgresConnection, kind: str, known: int) -> int:
    """Return the version of the schema of a desk or its log, 0 for none. Raises TicketApiError for none of ours or a newer."""
    sql = """
        SELECT (SELECT count(*)
                FROM pg_attribute
                WHERE attrelid = to_regclass(concat(quote_ident(current_schema()), '.desk')) AND attname = 'schema_version'),
               (SELECT count(*)
                FROM pg_class
                WHERE relkind IN ('r', 'p', 'v') AND relnamespace = to_regnamespace(CAST(current_schema() AS text)))"""
    is_ours, tables = db.execute(sql).fetchall()[0]
    if tables and not is_ours:
        raise TicketApiError(f"{db.place} holds another program's tables; choose another database")
    found = db.execute("SELECT schema_version FROM desk WHERE kind = :kind", {"kind": kind}).fetchone() if is_ours else None
    version: int = found[0] if found else 0
    if version > known:
        newer = f"is from a newer ticketapi (schema {version}, this one knows {known}); upgrade ticketapi"
        raise TicketApiError(f"{db.place} {newer}")
    return version


def claim_boundary(db: object, job: str, due: int, step: int) -> bool:
    """Tell whether a run of a job is this server's to do, in the transaction that does it: a desk in a file has no other.

    A boundary more than two steps ahead is that of a clock which was wrong. Ahead of the database's clock, too: who hung since
    it read its own must not take back what others have done meanwhile.
    """
    if not isinstance(db, PostgresConnection):
        return True
    sql = """
        INSERT INTO job_boundaries (job, boundary)
        VALUES (:job, :due)
        ON CONFLICT (job) DO UPDATE SET boundary = excluded.boundary
        WHERE job_boundaries.boundary < excluded.boundary
              OR job_boundaries.boundary > greatest(excluded.boundary, CAST(rate_clock() AS bigint)) + :ahead"""
    return db.execute(sql, {"job": job, "due": due, "ahead": 2 * step}).rowcount == 1


# ======================================================================================================================
# Room 3. Database: opens, creates and locks the files, or the database, of a desk; transactions. Touches sqlite3.
# ======================================================================================================================

BUSY_TIMEOUT_MS = 5000  # how long a writer waits for another one
BACKUP_PAGES = 5000  # copied in one step, for some 50 ms: how long a signal waits
OFF, NORMAL, FULL = 0, 1, 2  # PRAGMA synchronous: FULL survives a power cut, NORMAL kill -9 alone, at a tenth of the cost
WAL_KEPT = 4 * 1024 * 1024  # bytes of a write-ahead log that may stay while nobody writes; SQLite itself lets it grow to that
PROBE_BYTES = 64 * 1024  # that must fit on the disk for the desk to be ready
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


Place = Path | Postgres  # where a desk lives
Connection = sqlite3.Connection | PostgresConnection
Rows = sqlite3.Cursor | Result
Row = Any  # sqlite3.Row or PostgresRow


class Profile(NamedTuple):
    """How a connection is opened, by what it is for. The defaults are those of a connection that writes.

    https://sqlite.org/pragma.html
    """

    mode: str = "mode=rw"  # of the URI: a desk that somebody removed is not made anew behind their back
    wal: bool = True  # switches the file to WAL, which lets readers and the writer work side by side
    wait_ms: int = BUSY_TIMEOUT_MS
    synchronous: int = FULL
    cache_kib: int = 2_000
    views: bool = False  # has the views of schema.sql's part `reader`
    writes: bool = True
    strict: bool = True  # a text that is no UTF-8 is an error, as it is a sign of damage
    leads: str = ""  # which row of the table `desk` a transaction takes, so that nobody else writes meanwhile
    seconds: float = 2.0  # that anything may take; in the event loop everybody waits for it
    hangs: float = 4.0  # seconds that a transaction may do nothing, while others wait for BUSY_TIMEOUT_MS


# The cache of the desk's writers holds the pages that a batch of tickets touches in the index by user: a million bare inserts
# took 10.7 s instead of 14.7 s with SQLite's 2 MB. It is filled as needed, so a small command has a small one.
# The scheduler must go round within HEARTBEAT_SECONDS. A batch of a command takes half a second of Python, or much more.
SCHEDULED = Profile(leads="desk", seconds=10.0)
WRITER = SCHEDULED._replace(cache_kib=49_152, seconds=60.0, hangs=60.0)
LOG_WRITER = Profile(synchronous=NORMAL, leads="audit")
NOTER = Profile(wait_ms=0)  # writes what can wait for another time
READER = Profile(views=True, writes=False, synchronous=NORMAL)
LOG_READER = Profile(
    wait_ms=0, writes=False, strict=False
)  # for a request to this process's own server, which waits for nobody
# That cache takes a quarter off an integrity check.
INSPECTOR = Profile(wal=False, cache_kib=49_152, seconds=3600.0, hangs=3600.0)
VISITOR = INSPECTOR._replace(writes=False, strict=False)
COPIER = WRITER._replace(seconds=3600.0, hangs=3600.0)
COPY = Profile(wal=False, wait_ms=0, synchronous=OFF)  # one that fails is thrown away, one that is done is synced as a whole


class Kind(NamedTuple):
    """One of the two kinds of file."""

    application_id: int  # SQLite's: "TKTD" and "TKTA" in ASCII
    version: int  # of the schema, SQLite's user_version
    writer: Profile


KINDS = {"desk": Kind(0x544B5444, 3, WRITER), "audit": Kind(0x544B5441, 2, LOG_WRITER)}

# What SQLite says, and what we say instead; the path is put in for {path}.
SQLITE_EXPLANATIONS: tuple[tuple[str, type[TicketApiError], str], ...] = (
    ("locked", DeskBusy, "database is locked: another program holds {path}; try again when it is done"),
    ("readonly", TicketApiError, "{path} is read-only; give this user the right to write it and its directory"),
    ("full", TicketApiError, "disk full: make room where {path} lies; what was committed before is kept"),
    ("malformed", TicketApiError, "{path} is damaged ({error}); restore a backup"),
    ("not a database", TicketApiError, "{path} is not a SQLite database; choose another --db"),
    ("unable to open", TicketApiError, "cannot open {path}; check permissions of the file and its directory, and ulimit -n"),
)


POSTGRES_EXPLANATIONS: tuple[tuple[str, type[TicketApiError], str], ...] = (  # by SQLSTATE or text
    ("55P03", DeskBusy, "database is locked: another program writes to {path}; try again when it is done"),
    ("42501", TicketApiError, "{path}: {error}; give the role that right, docs/growing.md has those it needs"),
    ("3F000", TicketApiError, "{path}: {error}; give the role that right, docs/growing.md has those it needs"),
    ("53100", TicketApiError, "disk full: make room for {path}; what was committed before is kept"),
    ("25006", TicketApiError, "{path} is read-only, as a standby is; name the primary, or ?target_session_attrs=read-write"),
    ("password", TicketApiError, "{path}: wrong or no password; PGPASSWORD, PGPASSFILE or a URL in TICKETAPI_DB can hold it"),
    ('  database "', TicketApiError, "{path}: {error}; docs/growing.md shows how to create it"),
    ("[23", TicketApiError, "{path} is damaged: {error}; run ticketapi check"),
    ("", TicketApiError, "{path} does not answer, or not to us: {error}"),
)

# What the engines raise; Python cannot decode a message of SQLite's that cites damaged text, and before 3.11 leaves it out.
FAILURES = (sqlite3.Error, UnicodeDecodeError, PostgresError)


def explain_failure(error: Exception, path: Place) -> TicketApiError:
    """Turn what an engine reports into one line that names the place and the fix."""
    if isinstance(error, UnicodeDecodeError) or not str(error):
        error = sqlite3.DatabaseError("database disk image is malformed")
    if "disk I/O" in str(error) and isinstance(path, Path) and is_disk_full(path):
        error = sqlite3.OperationalError("database or disk is full")
    for fragment, kind, text in POSTGRES_EXPLANATIONS if isinstance(error, PostgresError) else SQLITE_EXPLANATIONS:
        if fragment in str(error):
            return kind(text.format(path=path, error=str(error).partition("\n")[0]))
    return TicketApiError(f"{path}: {error}")


@contextmanager
def explained(path: Place) -> Iterator[None]:
    """Turn what an engine reports in a block into one line about a place."""
    try:
        yield
    except FAILURES as error:
        raise explain_failure(error, path) from error


__loader__: Any  # what has loaded this module, from a folder or a zip archive


@cache
def read_resource(name: str) -> str:
    """Return the text of a file shipped beside this module, kept: the file may be replaced while a server runs.

    Asked of the module's own loader: pkgutil and importlib.resources would load a script a second time to find its files.
    """
    try:
        return str(__loader__.get_data(os.path.join(os.path.dirname(__file__), name)).decode())
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        raise TicketApiError(f"{name} is missing beside ticketapi.py; install ticketapi again") from None


def schema_statements(part: str) -> list[str]:
    """Return the statements of one part of schema.sql: `desk` and `audit` create the files, `desk 1 to 2` upgrades one."""
    _, _, rest = read_resource("schema.sql").partition(f"-- part: {part}\n")
    return [text for text in re.split(r";\s*\n", rest.partition("-- part: ")[0]) if text.strip()]


def create_private_file(path: Path) -> None:
    """Create an empty file that only its owner can read (0600, whatever the umask), unless there is one already."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise TicketApiError(f"cannot create {path}: {error.strerror}") from error
    os.fchmod(handle, 0o600)
    os.close(handle)


def follow_link(path: Path) -> Path:
    """Return where a symbolic link leads, or the path itself: what lies beside a desk lies beside the file, not the link."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def check_path(path: Path) -> None:
    """Refuse a path that cannot name a database file."""
    if os.path.isdir(path):
        raise TicketApiError(f"{path} is a directory; --db names a file, such as {path / 'ticketapi.db'}")
    if os.path.exists(path) and not os.path.isfile(path):  # to open a pipe might wait for ever
        raise TicketApiError(f"{path} is no ordinary file, but a device, a pipe or a socket; choose another --db")
    if not os.path.isdir(path.parent):
        raise TicketApiError(f"there is no directory {path.parent}; create it, or choose another --db")


def require_database(path: Path) -> None:
    """Refuse a path at which there is no file, for commands that must not make one."""
    check_path(path)
    if not os.path.exists(path):
        raise TicketApiError(f"there is no desk at {path}; --db names its file")


SIDECARS = ("-wal", "-shm", "-journal")


def sidecars(path: Path) -> list[Path]:
    """Return the files that SQLite puts beside a database while it is in use."""
    real = follow_link(path)
    return [real.with_name(real.name + suffix) for suffix in SIDECARS]


def is_disk_full(path: Path) -> bool:
    """Tell whether the disk is full: SQLite calls it an I/O error when there is no room for its shared memory (-shm)."""
    try:
        probe_disk(path)
    except OSError as error:
        return error.errno in DISK_FULL
    return False


def probe_disk(path: Path) -> None:
    """Write and remove a small file beside another; raises OSError when the disk is full or cannot be written."""
    probe = path.with_name(path.name + "-probe")  # several may be at it at once, and a kill may have left one
    if probe.is_symlink():
        probe.unlink(missing_ok=True)
    handle = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if os.write(handle, bytes(PROBE_BYTES)) < PROBE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def probe_place(place: Place, db: Connection) -> None:
    """See whether a desk can be written. Raises OSError for its disk, PostgresError for a standby."""
    if isinstance(place, Path):
        probe_disk(place)
    elif db.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
        raise PostgresError("it is a standby [25006]")


IN_USE = "{path} has several names (hard links, bind mounts), and another program uses one; use that same name, or wait for it"
HELD: dict[tuple[int, int], int] = {}  # by device and inode: this process's one descriptor of each file, never closed


def hold_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return this process's descriptor of a file, kept until it ends; nothing else may open or close the file.

    SQLite's locks are POSIX locks, which belong to process and inode: to close any other descriptor of the file ends them all,
    and a commit that was acknowledged is lost (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    check_path(path)
    with suppress(FileNotFoundError):
        found = os.stat(path)
        if (found.st_dev, found.st_ino) in HELD:
            return HELD[found.st_dev, found.st_ino]
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    opened = os.fstat(handle)
    return HELD.setdefault((opened.st_dev, opened.st_ino), handle)


def lock_file(handle: int, operation: int) -> bool:
    """Try to take a flock(2) for a second: others take it for a moment to see whether it is taken."""
    for _ in range(50):
        with suppress(OSError):
            fcntl.flock(handle, operation | fcntl.LOCK_NB)
            return True
        time.sleep(0.02)
    return False


def lock_path(path: Path) -> Path:
    """Return the file beside a desk on which its server has a flock(2)."""
    real = follow_link(path)
    return real.with_name(real.name + "-lock")


def lock_desk(path: Path) -> None:
    """Take the right to serve a desk, which is made when it is not there, until the process ends. Raises TicketApiError.

    The lock stands beside the desk, where every version looks for it, and on Linux on its inode too: a hard link or a bind
    mount is another name with another WAL. Elsewhere flock(2) on the desk itself would meet SQLite's locks.
    """
    check_path(path)
    another = TicketApiError(f"another serve is running on {path}; stop it, or choose another --db")
    try:
        create_private_file(path)
        # The inode first: whoever sees the lock beside the desk takes it for that of a server, by this very name.
        if sys.platform == "linux" and not lock_file(hold_file(path), fcntl.LOCK_EX):
            raise another if is_served(path) else TicketApiError(IN_USE.format(path=path))
        if not lock_file(hold_file(lock_path(path), os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX):
            raise another
    except OSError as error:
        raise TicketApiError(f"cannot open {error.filename}: {error.strerror}; check the permissions") from error


def is_served(path: Path) -> bool:
    """Tell whether another process serves a desk; it may have no connection open."""
    try:
        found = lock_path(path).stat()
        handle = os.open(lock_path(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return (found.st_dev, found.st_ino) not in HELD
    finally:
        os.close(handle)


def enter_desk(path: Place) -> None:
    """Refuse a desk that another program uses under another name; where it has several, no other may use it until we end."""
    if isinstance(path, Postgres) or sys.platform != "linux" or not os.access(path, os.R_OK):
        return
    if not path.is_file() or is_served(path):
        return
    handle = hold_file(path)
    has_links = os.fstat(handle).st_nlink > 1
    if not lock_file(handle, fcntl.LOCK_EX if has_links else fcntl.LOCK_SH) and not is_served(path):
        raise TicketApiError(IN_USE.format(path=path))
    if not has_links:
        fcntl.flock(handle, fcntl.LOCK_UN)


# What a file is, before SQLite may change it ------------------------------------------------------


def read_header(path: Path) -> tuple[int, int, bool]:
    """Return application_id, user_version and whether there are tables, from the bytes of a file, its WAL left aside.

    https://sqlite.org/fileformat.html, sections 1.3 and 1.6. Raises sqlite3.DatabaseError when it is no database.
    """
    header = os.pread(hold_file(path), 108, 0)
    if not header:
        return 0, 0, False
    if len(header) < 108 or not header.startswith(b"SQLite format 3\0"):
        raise sqlite3.DatabaseError("file is not a database")
    is_interior_page, cells = header[100] == 5, header[103:105]
    application_id, version = (int.from_bytes(header[at : at + 4], "big", signed=True) for at in (68, 60))
    return application_id, version, is_interior_page or any(cells)


def read_identity(path: Path, mode: str = "") -> tuple[int, int, bool]:
    """Return what `read_header` returns as SQLite sees it, WAL included, from one snapshot, without changing the file.

    Where there is no WAL the file is opened as immutable, or SQLite would make a WAL that a reader cannot remove again. A desk
    whose making was killed needs mode=rw, as its first write must be rolled back. https://sqlite.org/uri.html
    """
    in_use = any(file.exists() for file in sidecars(path))
    try:
        with closing(connect_file(path, INSPECTOR._replace(mode=mode or ("mode=ro" if in_use else "immutable=1")))) as db:
            db.execute("BEGIN")
            found = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            return found, version, bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except sqlite3.OperationalError as error:
        if mode or "readonly" not in str(error):
            raise
        return read_identity(path, "mode=rw")


def check_identity(path: Path, kind: str) -> int:
    """Return the version of a file's schema, 0 for none; refuse one that is not ours or newer, without changing a byte of it.

    The header is read first: SQLite would put files of its own beside another program's database in WAL mode. What is empty
    by its header may be a new desk of ours that has its tables in the WAL yet.
    """
    application_id, known = KINDS[kind][:2]
    for read in (read_header, read_identity):
        found, version, has_tables = read(path)
        if found != application_id and (found or version or has_tables):
            raise TicketApiError(f"{path} belongs to another program; choose another --db")
    if has_tables and version < 1:
        raise TicketApiError(f"{path} is damaged: it has tables, but no version; restore a backup")
    if version > known:
        raise TicketApiError(f"{path} is from a newer ticketapi (schema {version}, this one knows {known}); upgrade ticketapi")
    return version


def check_length(path: Path) -> None:
    """Refuse a file that was cut short. Beside a WAL its length says nothing: SQLite may still have to lengthen it.

    https://sqlite.org/fileformat.html, sections 1.3.2, 1.3.7 and 1.3.8.
    """
    handle = hold_file(path)
    header, size = os.pread(handle, 100, 0), os.fstat(handle).st_size
    pages = int.from_bytes(header[28:32], "big") if header[24:28] == header[92:96] else 0
    wanted = pages * (int.from_bytes(header[16:18], "big") if header[16:18] != b"\0\1" else 65_536)
    wal = sidecars(path)[0]
    if size < wanted and not (wal.exists() and wal.stat().st_size):
        raise TicketApiError(f"{path} is damaged: it has {size} bytes of {wanted}; restore a backup")


def check_tables(db: Connection, kind: str, path: Place) -> None:
    """Refuse a file, or a database, that lacks one of our tables or indexes."""
    wanted = re.findall(r"CREATE (?:UNIQUE )?(?:TABLE|INDEX) +(\w+)", " ".join(schema_statements(kind)))
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise TicketApiError(f"{path} is damaged: it lacks {', '.join(missing)}; restore a backup")


def enter_wal(db: sqlite3.Connection, wait_ms: int) -> None:
    """Switch a database to WAL, which it then stays in. SQLite does not wait here by itself for others who open a new file."""
    for attempts_left in range(wait_ms // 20, -1, -1):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or not attempts_left:
                raise
        time.sleep(0.02)


def connect(path: Place, profile: Profile = WRITER) -> Connection:
    """Open a connection for a purpose; transactions begin where the code says so."""
    return connect_postgres(path, profile) if isinstance(path, Postgres) else connect_file(path, profile)


def connect_postgres(place: Postgres, profile: Profile) -> PostgresConnection:
    """Open a connection to PostgreSQL (https://www.postgresql.org/docs/current/runtime-config-client.html)."""
    setup = {
        "lock_timeout": max(1, min(profile.wait_ms, int(profile.seconds * 500))),  # 0 would be for ever
        "idle_in_transaction_session_timeout": int(profile.hangs * 1000),
        "synchronous_commit": "on" if profile.synchronous == FULL else "off",
        "client_encoding": "'UTF8'",
        "client_min_messages": "warning",  # as a commit that was cancelled is told by one
        "default_transaction_isolation": "'read committed'",
        "cursor_tuple_fraction": 1,  # what is streamed is read to its end
        "plan_cache_mode": "force_generic_plan",  # to plan a page anew each time took as long again
    }
    return PostgresConnection(place, setup, profile.leads, profile.seconds)


def connect_file(path: Path, profile: Profile) -> sqlite3.Connection:
    """Open a connection to a file."""
    with suppress(OSError):  # SQLite says better what is wrong
        hold_file(path)
    uri = f"{path.absolute().as_uri()}?{profile.mode}"
    db = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        prepare(db, profile)
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection, profile: Profile) -> None:
    """Set up a new connection as its profile says."""
    db.row_factory = sqlite3.Row
    if not profile.strict:
        db.text_factory = partial(str, encoding="utf-8", errors="replace")
    if profile.wal:
        enter_wal(db, profile.wait_ms)
    set_busy_timeout(db, profile.wait_ms)
    db.execute(f"PRAGMA synchronous = {profile.synchronous:d}")
    db.execute(f"PRAGMA cache_size = {-profile.cache_kib:d}")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA journal_size_limit = 16777216")
    for statement in schema_statements("reader") if profile.views else ():
        db.execute(statement)
    if not profile.writes:
        db.execute("PRAGMA query_only = ON")


def set_busy_timeout(db: Connection, wait_ms: int) -> None:
    """Set how long a connection waits for the locks of others, and its sessions to come."""
    if isinstance(db, PostgresConnection):
        db.setup["lock_timeout"] = max(1, wait_ms)
    db.execute(f"PRAGMA busy_timeout = {wait_ms:d}")


def create_schema(db: Connection, kind: str) -> None:
    """Create the tables of a part of schema.sql, or upgrade those of an older version, in one transaction."""
    application_id, wanted = KINDS[kind][:2]
    with transaction(db):
        found: int = db.execute("PRAGMA user_version").fetchone()[0]
        steps = [f"{kind} {version} to {version + 1}" for version in range(found, wanted)] if found else [kind]
        for step in steps:
            if found:
                log.info("upgrading the schema: %s", step)
            for statement in schema_statements(step):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {application_id:d}")
        db.execute(f"PRAGMA user_version = {wanted:d}")


def open_database(path: Place, kind: str) -> Connection:
    """Open the `desk` or the `audit` log for writing; create it when it is not there, upgrade it when it is older.

    Raises TicketApiError, with nothing touched, for what is no database, another program's or a newer one.
    """
    return open_postgres(path, kind) if isinstance(path, Postgres) else open_file(path, kind)


def open_postgres(place: Postgres, kind: str) -> PostgresConnection:
    """Open a desk, or its log, in PostgreSQL for writing, as `open_database` says."""
    with explained(place):
        db = connect_postgres(place, KINDS[kind].writer)
        try:
            if not read_version(db, kind, KINDS[kind].version):
                create_postgres_schema(db)
            check_tables(db, kind, place)
        except BaseException:
            db.close()
            raise
    return db


def create_postgres_schema(db: PostgresConnection) -> None:
    """Create the tables of desk and log in one transaction, unless another program has done so meanwhile."""
    with suppress(RowFault):  # two may make the same table at the same moment
        db.run(";".join(schema_statements("postgres desk")))
    script = ";".join(sql for kind in KINDS for sql in schema_statements(kind))
    for ours, theirs in DDL_DIALECT:
        script = re.sub(ours, theirs, script)
    with transaction(db):
        if not read_version(db, "desk", KINDS["desk"].version):
            db.run(";".join([script, *schema_statements("postgres")]))
            db.executemany(
                "UPDATE desk SET schema_version = ? WHERE kind = ?", [(known.version, kind) for kind, known in KINDS.items()]
            )


def open_file(path: Path, kind: str) -> sqlite3.Connection:
    """Open a file for writing, as `open_database` says."""
    check_path(path)
    create_private_file(path)
    try:
        found = check_identity(path, kind)
        desk = path.with_name(path.stem.removesuffix("-audit") + path.suffix) if kind == "audit" else path
        if 0 < found < KINDS[kind].version and is_served(desk):
            raise TicketApiError(f"{path} is old, and served: try again, or stop the server, which is upgrading it or old, too")
        check_length(path)
        if not os.access(path, os.W_OK):  # SQLite would go on and only read
            raise sqlite3.OperationalError("readonly")
        db = connect_file(path, KINDS[kind].writer)
        try:
            if db.execute("PRAGMA user_version").fetchone()[0] != KINDS[kind].version:
                create_schema(db, kind)
            check_tables(db, kind, path)
        except BaseException:
            db.close()
            raise
    except FAILURES as error:
        raise explain_failure(error, path) from error
    except PermissionError as error:
        raise explain_failure(sqlite3.OperationalError("unable to open"), path) from error
    return db


def open_to_serve(path: Place) -> Connection:
    """Open a desk with the right to serve it; of a file that is refused nothing stays beside it."""
    if isinstance(path, Postgres):
        return open_postgres(path, "desk")
    is_new = not lock_path(path).exists()
    lock_desk(path)
    try:
        return open_database(path, "desk")
    except BaseException:
        if is_new:
            lock_path(path).unlink()
        raise


def open_to_inspect(path: Path, profile: Profile = INSPECTOR) -> sqlite3.Connection:
    """Open a file that is there to read it as it stands: nothing is created, upgraded or moved from its WAL into it.

    SQLite reads a file in WAL mode by way of a WAL and a -shm file; only a connection that could write takes them away again,
    but it would also write back what a killed program left in the WAL.
    """
    wal = sidecars(path)[0]
    if os.path.exists(wal) and wal.stat().st_size:
        profile = profile._replace(mode="mode=ro")
    elif os.statvfs(path).f_flag & os.ST_RDONLY:  # where SQLite can make no -shm, and nobody can write
        profile = profile._replace(mode="immutable=1")
    return connect_file(path, profile)


def open_read_only(path: Place, kind: str, views: bool = False) -> Connection | None:
    """Open the `desk` or the `audit` log to read it and nothing else; None while it is not there or still empty.

    It is neither created nor upgraded. With `views`, which are those of our version, an older one raises TicketApiError.
    """
    if isinstance(path, Postgres):
        with explained(path), ExitStack() as stack:
            db = stack.enter_context(closing(connect_postgres(path, VISITOR)))
            if not read_version(db, kind, KINDS[kind].version):
                return None
            stack.pop_all()
            return db
    check_path(path)
    if not path.exists():
        return None
    with explained(path):
        found, wanted = check_identity(path, kind), KINDS[kind].version
        if not found:
            return None
        if views and found < wanted:
            fix = "another command, such as `token list`, upgrades it when it opens it"
            raise TicketApiError(f"{path} is from an older ticketapi (schema {found}, this one reads {wanted}); {fix}")
        return open_to_inspect(path, VISITOR._replace(views=views))


@contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """Run a block of writes as one: all of it is committed at the end, or nothing when it raises. A nested one is part of it.

    BEGIN IMMEDIATE takes the write lock at once: a transaction that asks for it later fails without waiting.
    """
    if db.in_transaction:
        yield
        return
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite has already rolled back after some errors, "disk full" among them
            db.execute("ROLLBACK")
        raise


@contextmanager
def snapshot(db: Connection) -> Iterator[None]:
    """Let several reads see one state of the database, as a page and its total must. A nested one is part of the outer."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("COMMIT")


def get_data_version(db: Connection, number: int | None = None) -> tuple[int, int]:
    """Return what changes when another connection commits (https://sqlite.org/pragma.html#pragma_data_version).

    PostgreSQL may come back from a failover with a number that it had before.
    """
    version: int = db.execute("PRAGMA data_version").fetchone()[0] if number is None else number
    return version, db.place.restored if isinstance(db, PostgresConnection) else 0


def keep(db: Connection) -> None:
    """Have a connection made anew whenever it breaks."""
    if isinstance(db, PostgresConnection):
        db.kept = True
        db.place.kept.append(db)


@contextmanager
def borrowed(db: Connection, place: Place, profile: Profile) -> Iterator[Connection]:
    """Give a connection to a place for a moment; in PostgreSQL the one there is, as a new one takes 5 ms."""
    if isinstance(place, Postgres):
        yield db
    else:
        with closing(connect(place, profile)) as other:
            yield other


def write_rows(db: Connection, sql: str, rows: Iterable[Any]) -> None:
    """Run one statement for many rows of values, as a transaction of its own."""
    if isinstance(db, PostgresConnection):
        db.executemany(sql, rows, leading=True)
    else:
        with transaction(db):
            db.executemany(sql, rows)


TABLES = {
    "desk": ("users", "tickets", "ticket_counts", "ticket_arrivals", "ticket_closings", "personal_access_tokens"),
    "audit": ("api_audits",),
}


def read_table(db: Connection, table: str) -> Iterator[Any]:
    """Yield the rows of one of TABLES, in a snapshot."""
    return stream(db, f"SELECT * FROM {table} ORDER BY 1, 2")  # noqa: S608


def write_table(db: Connection, table: str, rows: Iterator[Any]) -> list[int]:
    """Put rows into one of TABLES of an empty desk; return what `digest_table` must return then."""
    if isinstance(db, PostgresConnection) and table in TABLES["audit"]:
        db.run("UPDATE desk SET version = version + 1 WHERE kind = 'audit'")  # a server may write to it
    if table == "ticket_counts":  # which alone is never empty
        db.execute("DELETE FROM ticket_counts")
    if isinstance(db, PostgresConnection):
        return db.copy_in(table, rows)
    tally = [0, 0]
    if first := next(rows, None):
        insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(first))})"  # noqa: S608
        db.executemany(insert, tallied(chain([first], rows), tally))
    return tally


def digest_table(db: Connection, table: str) -> list[int]:
    """Return how many rows one of TABLES has, and a hash of them all."""
    if isinstance(db, PostgresConnection):
        return db.copy_out(table)
    tally = [0, 0]
    for _ in tallied(read_table(db, table), tally):
        pass
    return tally


def copy_last_id(source: Connection, target: Connection, table: str) -> None:
    """Let a table of AUTOINCREMENT go on after the last id that another one has given, also to a row that is gone."""
    find = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = :name), 0)"
    highest = target.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0]  # noqa: S608
    last = max(source.execute(find, {"name": table}).fetchone()[0], highest)  # not every role may read a sequence
    if isinstance(target, PostgresConnection):
        go_on = "SELECT setval(CAST(:name AS regclass), greatest(:last, 1), :last > 0)"
        target.execute(go_on, {"name": f"{table}_id_seq", "last": last})
    else:
        target.execute("DELETE FROM sqlite_sequence WHERE name = :name", {"name": table})
        target.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)", {"name": table, "last": last})


def stream(db: Connection, sql: str) -> Iterator[Any]:
    """Yield the rows of a large result, in a snapshot, without having them all in memory."""
    return db.stream(sql) if isinstance(db, PostgresConnection) else db.execute(sql)


@contextmanager
def without_waiting(db: Connection) -> Iterator[None]:
    """Let a block fail at once where another program holds the file."""
    wait_ms: int = db.execute("PRAGMA busy_timeout").fetchone()[0]
    set_busy_timeout(db, 0)
    try:
        yield
    finally:
        set_busy_timeout(db, wait_ms)


@contextmanager
def interruptible(db: Connection) -> Iterator[None]:
    """Let a signal end a long statement: Python handles signals in Python code alone, so SQLite calls some now and then."""
    if isinstance(db, PostgresConnection):
        yield
        return
    db.set_progress_handler(lambda: None, 100_000)
    try:
        yield
    except sqlite3.OperationalError as error:
        if str(error) == "interrupted":  # what SQLite makes of a KeyboardInterrupt in its callback
            raise KeyboardInterrupt from error
        raise
    finally:
        db.set_progress_handler(None, 0)


def shrink_wal(path: Place, now: int) -> None:
    """Give back the room of a WAL that has grown and was not written to for a minute; else it stays until the last one leaves.

    The checkpoint holds the right to write, so that nobody commits at its moment. https://sqlite.org/pragma.html
    """
    if isinstance(path, Postgres):
        return
    with suppress(OSError, *FAILURES):
        wal = sidecars(path)[0].stat()
        if wal.st_size > WAL_KEPT and now - wal.st_mtime_ns // 1000 > MINUTE_MICROSECONDS:
            with closing(connect(path, NOTER)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def integrity_problems(db: Connection, limit: int) -> list[str]:
    """Return the first of what SQLite finds wrong with the structure of a file, its values and its indexes."""
    lines: list[str] = []
    try:
        for (text,) in db.execute(f"PRAGMA integrity_check({limit:d})"):
            lines += str(text).splitlines()
    except sqlite3.DatabaseError as error:  # damage may end the check itself; what it said before tells more
        if not lines or isinstance(error, sqlite3.OperationalError):
            raise
    return [line for line in lines if line != "ok" and not line.startswith("***")][:limit]


def reference_problems(db: Connection, limit: int) -> list[str]:
    """Return the first of the rows that refer to a row that is not there."""
    rows = islice(db.execute("PRAGMA foreign_key_check"), limit)
    return [f"row {row_id} of {table} refers to a row of {parent} that is not there" for table, row_id, parent, _ in rows]


def list_schema(db: Connection) -> dict[str, str]:
    """Return the statements that made the tables and indexes of a file, and anything else in it, by name."""
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {str(name): str(sql) for name, sql in rows if not str(name).startswith("sqlite_")}


def expected_schema(kind: str) -> dict[str, str]:
    """Return the statements that make the tables and indexes of a new file, by name."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        create_schema(db, kind)
        return list_schema(db)


def copy_database(db: sqlite3.Connection, target: Path, report: Callable[[int], object]) -> int:
    """Copy a database as it is at one moment into an empty file, while others write; return the version of its schema.

    `report` gets the bytes done. The copy is one file, without WAL. This is SQLite's online backup within a snapshot, which
    keeps it from beginning anew at every commit of others: 430 MB took 1 to 3 s beside a writer, in one step as in many
    (which a signal can end), and VACUUM INTO 9 to 14 s.
    """
    size: int = db.execute("PRAGMA page_size").fetchone()[0]
    with closing(connect_file(target, COPY)) as copy, snapshot(db):
        copy.execute("PRAGMA journal_mode = OFF")
        version: int = db.execute("PRAGMA user_version").fetchone()[0]  # the snapshot begins
        db.backup(copy, pages=BACKUP_PAGES, progress=lambda _, left, total: report((total - left) * size))
        copy.execute("PRAGMA journal_mode = DELETE")
    return version


# ======================================================================================================================
# Room 4. Queries: one function is one statement, grouped by table. Touches .execute; never commits.
# ======================================================================================================================

# How a statement meets the engine: values come by name; many rows of them by place ------------------


def execute(db: Connection, sql: str, /, **values: Any) -> Rows:
    """Run one statement; its rows can be read one by one."""
    return db.execute(sql, values)


def fetch_one(db: Connection, sql: str, /, **values: Any) -> Row | None:
    """Return the first row of a statement, or None."""
    row: Row | None = db.execute(sql, values).fetchone()
    return row


def fetch_value(db: Connection, sql: str, /, **values: Any) -> Any:
    """Return the first column of the first row of a statement, or None."""
    row = db.execute(sql, values).fetchone()
    return row[0] if row else None


def fetch_all(db: Connection, sql: str, /, **values: Any) -> list[Row]:
    """Return all rows of a statement."""
    return db.execute(sql, values).fetchall()


def execute_many(db: Connection, sql: str, values: Iterable[tuple[Any, ...]] | Iterable[Mapping[str, Any]]) -> None:
    """Run one statement for each of many rows of values."""
    db.executemany(sql, values)


def find_user(db: Connection, user_id: int) -> Row | None:
    """Return one user, or None."""
    return fetch_one(db, "SELECT id, name, email, tickets_count, created_at FROM users WHERE id = :user_id", user_id=user_id)


def find_user_by_email(db: Connection, email: str) -> Row | None:
    """Return the user with an address, or None."""
    return fetch_one(db, "SELECT id, name, email, tickets_count FROM users WHERE email = :email", email=email)


def list_taken_emails(db: Connection, emails: Iterable[str]) -> set[str]:
    """Return those of some addresses that a user has."""
    sql = "SELECT email FROM users WHERE email IN (SELECT value FROM json_each(:emails))"
    return {row[0] for row in fetch_all(db, sql, emails=json.dumps(list(emails)))}


def find_top_user(db: Connection) -> Row | None:
    """Return the user with the most tickets, or None while there is no ticket."""
    sql = """
        SELECT id, name, email, tickets_count
        FROM users
        WHERE tickets_count > 0
        ORDER BY tickets_count DESC, id
        LIMIT 1"""
    return fetch_one(db, sql)


def list_customers(db: Connection, limit: int, offset: int) -> list[Row]:
    """Return customers, most tickets first, the lowest id first among equals; walks the index past those before."""
    sql = """
        SELECT id, name, email, tickets_count, created_at
        FROM users
        WHERE id < :owners
        ORDER BY tickets_count DESC, id
        LIMIT :limit OFFSET :offset"""
    return fetch_all(db, sql, limit=limit, offset=offset, owners=FIRST_OWNER_ID)


def list_customers_by_id(db: Connection, lowest: int, highest: int) -> list[Row]:
    """Return the customers of a range of ids."""
    sql = """
        SELECT id, name, email, tickets_count, created_at
        FROM users
        WHERE id BETWEEN :lowest AND :highest
        ORDER BY id"""
    return fetch_all(db, sql, lowest=lowest, highest=highest)


def find_last_user_id(db: Connection, below: int) -> int | None:
    """Return the highest user id under a bound, or None."""
    last: int | None = fetch_value(db, "SELECT max(id) FROM users WHERE id < :below", below=below)
    return last


def insert_users(db: Connection, users: Iterable[tuple[int, str, str, str]]) -> None:
    """Insert users given as (id, name, email, created_at)."""
    execute_many(db, "INSERT INTO users (id, name, email, created_at) VALUES (?, ?, ?, ?)", users)


def list_authors(db: Connection, user_ids: Iterable[int]) -> list[Row]:
    """Return some users, given by their ids."""
    sql = """
        SELECT id, name, email, tickets_count
        FROM users
        WHERE id IN (SELECT CAST(value AS INTEGER) FROM json_each(:user_ids))"""
    return fetch_all(db, sql, user_ids=json.dumps(list(user_ids)))


def add_user_tickets(db: Connection, counts: Iterable[tuple[int, int]]) -> None:
    """Raise the counters of users, given as (tickets more, user id)."""
    execute_many(db, "UPDATE users SET tickets_count = tickets_count + ? WHERE id = ?", counts)


# The lists are read as JSON, written by SQLite in one step: 50 tickets take 120 microseconds, where reading their rows and
# writing them with json.dumps takes 310 and with a template in Python 170. A page is a range of the numbers that its list
# gives its tickets, its keys, so it costs the same however deep it lies.


class Tickets(NamedTuple):
    """Some tickets of a list, as JSON objects with commas between them, with the lowest and highest of their keys."""

    json: bytes | None  # None when there are no tickets
    size: int
    lowest: int
    highest: int


Bounds = tuple[int, int, int]  # how many tickets are open, from the counter, and their lowest and highest id, 0 for none


def find_open_bounds(db: Connection) -> Bounds:
    """Return how many tickets are open, and their first and last id."""
    sql = """
        SELECT tickets,
               coalesce((SELECT min(id) FROM tickets WHERE status = 1), 0),
               coalesce((SELECT max(id) FROM tickets WHERE status = 1), 0)
        FROM ticket_counts
        WHERE status = 1"""
    row = fetch_all(db, sql)[0]
    return row[0], row[1], row[2]


def list_open_tickets(db: Connection, lowest: int, highest: int, limit: int) -> tuple[Tickets, Bounds]:
    """Return the first open tickets of a range of ids, oldest first, with the bounds of that moment; their key is their id."""
    sql = """
        SELECT CAST(group_concat(resource) AS BLOB) AS json, count(*), min(id), max(id),
               (SELECT tickets FROM ticket_counts WHERE status = 1),
               coalesce((SELECT min(id) FROM tickets WHERE status = 1), 0),
               coalesce((SELECT max(id) FROM tickets WHERE status = 1), 0)
        FROM (
            SELECT resource, id
            FROM ticket_resources
            WHERE id BETWEEN :lowest AND :highest AND status = 1
            ORDER BY id
            LIMIT :limit
        ) AS page"""
    found = tuple(fetch_all(db, sql, lowest=lowest, highest=highest, limit=limit)[0])
    return Tickets(*found[:4]), found[4:]


def find_open_ticket(db: Connection, offset: int) -> int | None:
    """Return the id of the open ticket at an offset from the oldest, or None; walks as many entries of the index."""
    found: int | None = fetch_value(
        db, "SELECT id FROM tickets WHERE status = 1 ORDER BY id LIMIT 1 OFFSET :offset", offset=offset
    )
    return found


def find_open_ticket_before(db: Connection, ticket_id: int, distance: int) -> int | None:
    """Return the id of the open ticket that stands some places before another, or None."""
    sql = """
        SELECT id
        FROM tickets
        WHERE status = 1 AND id < :ticket_id
        ORDER BY id DESC
        LIMIT 1 OFFSET :distance"""
    found: int | None = fetch_value(db, sql, ticket_id=ticket_id, distance=distance - 1)
    return found


def list_closed_tickets(db: Connection, lowest: int, highest: int) -> Tickets:
    """Return the closed tickets of a range of numbers, most recently closed first; their key is their number."""
    sql = """
        SELECT CAST(group_concat(resource) AS BLOB) AS json, count(*)
        FROM (
            SELECT resource
            FROM ticket_resources
            WHERE closed_number BETWEEN :lowest AND :highest
            ORDER BY closed_number DESC
        ) AS page"""
    row = fetch_all(db, sql, lowest=lowest, highest=highest)[0]
    return Tickets(row[0], row[1], lowest, highest)


def list_user_tickets(db: Connection, lowest: int, highest: int, user_id: int) -> Tickets:
    """Return the tickets of one user in a range of numbers, newest first; their key is their number."""
    sql = """
        SELECT CAST(group_concat(resource) AS BLOB) AS json, count(*)
        FROM (
            SELECT resource
            FROM ticket_resources
            WHERE user_id = :user_id AND user_number BETWEEN :lowest AND :highest
            ORDER BY user_number DESC
        ) AS page"""
    row = fetch_all(db, sql, user_id=user_id, lowest=lowest, highest=highest)[0]
    return Tickets(row[0], row[1], lowest, highest)


def find_ticket(db: Connection, ticket_id: int) -> bytes | None:
    """Return one ticket as a JSON object, or None."""
    sql = """
        SELECT CAST(resource AS BLOB) AS json
        FROM ticket_resources
        WHERE id = :ticket_id"""
    found: bytes | None = fetch_value(db, sql, ticket_id=ticket_id)
    return found


def list_oldest_open_tickets(db: Connection, limit: int) -> list[Row]:
    """Return id and created_at of the open tickets that are next to be closed."""
    return fetch_all(db, "SELECT id, created_at FROM tickets WHERE status = 1 ORDER BY id LIMIT :limit", limit=limit)


def find_newest_ticket(db: Connection) -> Row | None:
    """Return id and created_at of the newest ticket, or None."""
    return fetch_one(db, "SELECT id, created_at FROM tickets ORDER BY id DESC LIMIT 1")


def find_last_closed_at(db: Connection) -> str | None:
    """Return when a ticket was closed last, or None."""
    found: str | None = fetch_value(
        db, "SELECT closed_at FROM tickets WHERE closed_number IS NOT NULL ORDER BY closed_number DESC LIMIT 1"
    )
    return found


def find_created_at(db: Connection, ticket_id: int) -> str | None:
    """Return when a ticket came, or None."""
    found: str | None = fetch_value(db, "SELECT created_at FROM tickets WHERE id = :ticket_id", ticket_id=ticket_id)
    return found


def find_closed_at(db: Connection, closed_number: int) -> str | None:
    """Return when the ticket with a closed_number was closed, or None."""
    found: str | None = fetch_value(
        db, "SELECT closed_at FROM tickets WHERE closed_number = :closed_number", closed_number=closed_number
    )
    return found


def insert_tickets(db: Connection, tickets: Iterable[tuple[Any, ...]]) -> None:
    """Insert tickets given as all their columns in order."""
    sql = """
        INSERT INTO tickets (id, user_id, user_number, user_name, user_email, subject, content, status,
            created_at, updated_at, closed_at, closed_number)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
    execute_many(db, sql, tickets)


def close_tickets(db: Connection, closings: Iterable[tuple[str, int, int]]) -> None:
    """Close open tickets, given as (closed_at, closed_number, id)."""
    sql = """
        UPDATE tickets
        SET status = 2, closed_at = ?1, updated_at = ?1, closed_number = ?2
        WHERE id = ?3 AND status = 1"""
    execute_many(db, sql, closings)


def count_tickets(db: Connection, status: int) -> int:
    """Return how many tickets have a status, from its counter."""
    return int(fetch_value(db, "SELECT tickets FROM ticket_counts WHERE status = :status", status=status))


def add_ticket_count(db: Connection, status: int, more: int) -> None:
    """Change the counter of a status by a number, which may be negative."""
    execute(db, "UPDATE ticket_counts SET tickets = tickets + :more WHERE status = :status", status=status, more=more)


def add_arrivals(db: Connection, counts: Iterable[tuple[str, int]]) -> None:
    """Raise the counters of hours, given as (hour, tickets more)."""
    sql = """
        INSERT INTO ticket_arrivals (hour, tickets)
        VALUES (?, ?)
        ON CONFLICT (hour) DO UPDATE SET tickets = ticket_arrivals.tickets + excluded.tickets"""
    execute_many(db, sql, counts)


def add_closings(db: Connection, counts: Iterable[tuple[str, int, int]]) -> None:
    """Raise the counters of hours and waits, given as (hour, wait, tickets more)."""
    sql = """
        INSERT INTO ticket_closings (hour, wait, tickets)
        VALUES (?, ?, ?)
        ON CONFLICT (hour, wait) DO UPDATE SET tickets = ticket_closings.tickets + excluded.tickets"""
    execute_many(db, sql, counts)


def list_arrivals(db: Connection, since: str) -> list[tuple[str, int]]:
    """Return (hour, tickets) of each hour from `since` on."""
    return [
        tuple(row)
        for row in fetch_all(db, "SELECT hour, tickets FROM ticket_arrivals WHERE hour >= :since ORDER BY hour", since=since)
    ]


def list_closings(db: Connection, since: str) -> list[tuple[str, int, int]]:
    """Return (hour, wait, tickets) of each hour from `since` on, the shortest waits of an hour first."""
    sql = """
        SELECT hour, wait, tickets
        FROM ticket_closings
        WHERE hour >= :since
        ORDER BY hour, wait"""
    return [tuple(row) for row in fetch_all(db, sql, since=since)]


def list_ticket_times(db: Connection) -> Iterator[Row]:
    """Yield created_at and closed_at of every ticket."""
    return stream(db, "SELECT created_at, closed_at FROM tickets")


def list_misnamed_tickets(db: Connection) -> Iterator[Row]:
    """Yield id and user_id of the tickets that show another name or address than their user has."""
    sql = """
        SELECT tickets.id, user_id
        FROM tickets
        JOIN users ON users.id = user_id
        WHERE user_name <> name OR user_email <> email"""
    return stream(db, sql)


def list_disorder(db: Connection) -> Iterator[Row]:
    """Yield a text and an id for each customer before whom one is missing, and each ticket whose times do not grow."""
    sql = """
        SELECT 'the customer before {} is missing', id
        FROM users
        WHERE id > 1 AND id < 1000000000 AND NOT EXISTS (SELECT 1 FROM users AS others WHERE others.id = users.id - 1)
        UNION ALL
        SELECT 'ticket {} came before the one with the lower id', tickets.id
        FROM tickets
        JOIN tickets AS others ON others.id = tickets.id - 1
        WHERE tickets.created_at < others.created_at
        UNION ALL
        SELECT 'ticket {} was closed too early', tickets.id
        FROM tickets
        LEFT JOIN tickets AS others ON others.closed_number = tickets.closed_number - 1
        WHERE tickets.closed_at < others.closed_at OR tickets.closed_at < tickets.created_at"""
    return stream(db, sql)


def name_tickets_of(db: Connection, user_ids: Iterable[tuple[int]]) -> None:
    """Give the tickets of users the name and address that the user has."""
    sql = """
        UPDATE tickets
        SET (user_name, user_email) = (SELECT name, email FROM users WHERE id = user_id)
        WHERE user_id = ?"""
    execute_many(db, sql, user_ids)


def delete_arrivals(db: Connection) -> None:
    """Delete the counters of arrivals."""
    execute(db, "DELETE FROM ticket_arrivals")


def delete_closings(db: Connection) -> None:
    """Delete the counters of closings."""
    execute(db, "DELETE FROM ticket_closings")


def count_ticket_rows(db: Connection) -> tuple[int, int]:
    """Return how many tickets are open and how many there are, from the rows."""
    row = fetch_all(db, "SELECT (SELECT count(*) FROM tickets WHERE status = 1), (SELECT count(*) FROM tickets)")[0]
    return row[0], row[1]


def list_ticket_counts(db: Connection) -> dict[int, int]:
    """Return how many tickets there are of each status, from the counters."""
    return {row[0]: row[1] for row in fetch_all(db, "SELECT status, tickets FROM ticket_counts")}


def list_unsound_users(db: Connection) -> Iterator[Row]:
    """Yield the users whose counter is not the number of their tickets (written), or whose highest user_number is not."""
    sql = """
        SELECT users.id, tickets_count, count(user_number) AS written, coalesce(max(user_number), 0) AS highest
        FROM users
        LEFT JOIN tickets ON user_id = users.id
        GROUP BY users.id
        HAVING tickets_count <> count(user_number) OR coalesce(max(user_number), 0) <> count(user_number)"""
    return stream(db, sql)


def find_closed_numbers(db: Connection) -> tuple[int, int]:
    """Return how many tickets have a closed_number, and the highest, 0 for none."""
    row = fetch_all(db, "SELECT count(*), coalesce(max(closed_number), 0) FROM tickets WHERE closed_number IS NOT NULL")[0]
    return row[0], row[1]


def set_ticket_counts(db: Connection, counts: Iterable[tuple[int, int]]) -> None:
    """Set the counters of statuses, given as (status, tickets)."""
    sql = """
        INSERT INTO ticket_counts (status, tickets)
        VALUES (?, ?)
        ON CONFLICT (status) DO UPDATE SET tickets = excluded.tickets"""
    execute_many(db, sql, counts)


def set_user_tickets(db: Connection, counts: Iterable[tuple[int, int]]) -> None:
    """Set the counters of users, given as (tickets, user id)."""
    execute_many(db, "UPDATE users SET tickets_count = ? WHERE id = ?", counts)


def list_user_numbers(db: Connection, user_id: int, after: int, limit: int) -> list[Row]:
    """Return id and number of the first tickets of a user after a number."""
    sql = """
        SELECT id, user_number
        FROM tickets
        WHERE user_id = :user_id AND user_number > :after
        ORDER BY user_number
        LIMIT :limit"""
    return fetch_all(db, sql, user_id=user_id, after=after, limit=limit)


def list_closed_numbers(db: Connection, after: int, limit: int) -> list[Row]:
    """Return id and number of the first closed tickets after a number."""
    sql = """
        SELECT id, closed_number
        FROM tickets
        WHERE closed_number > :after
        ORDER BY closed_number
        LIMIT :limit"""
    return fetch_all(db, sql, after=after, limit=limit)


def set_user_numbers(db: Connection, numbers: Iterable[tuple[int, int]]) -> None:
    """Set the numbers of tickets among their user's, given as (number, id)."""
    execute_many(db, "UPDATE tickets SET user_number = ? WHERE id = ?", numbers)


def set_closed_numbers(db: Connection, numbers: Iterable[tuple[int, int]]) -> None:
    """Set the numbers of tickets among the closed ones, given as (number, id)."""
    execute_many(db, "UPDATE tickets SET closed_number = ? WHERE id = ?", numbers)


class Token(NamedTuple):
    """A token, as a request knows it."""

    id: int
    user_id: int
    abilities: frozenset[str]
    last_used_at: str | None
    expires_at: str | None

    def can(self, ability: str) -> bool:
        """Tell whether the token may do something; `*` may everything."""
        return ability in self.abilities or "*" in self.abilities


def insert_token(db: Connection, token: Mapping[str, Any]) -> int:
    """Insert a token and return its id."""
    sql = """
        INSERT INTO personal_access_tokens (user_id, name, token, abilities, expires_at, created_at)
        VALUES (:user_id, :name, :token, :abilities, :expires_at, :created_at)
        RETURNING id"""
    return int(fetch_value(db, sql, **token))


def find_token(db: Connection, digest: str) -> Row | None:
    """Return the token with a SHA-256, or None."""
    sql = """
        SELECT id, user_id, token, abilities, last_used_at, expires_at
        FROM personal_access_tokens
        WHERE token = :digest"""
    return fetch_one(db, sql, digest=digest)


def list_tokens(db: Connection) -> list[Row]:
    """Return all tokens with the addresses of their owners, but not their hashes."""
    sql = """
        SELECT tokens.id, user_id, email, tokens.name, abilities, last_used_at, expires_at, tokens.created_at
        FROM personal_access_tokens AS tokens
        JOIN users ON users.id = user_id
        ORDER BY tokens.id"""
    return fetch_all(db, sql)


def has_tokens(db: Connection) -> bool:
    """Tell whether there is any token."""
    return bool(fetch_value(db, "SELECT EXISTS (SELECT 1 FROM personal_access_tokens)"))


def touch_token(db: Connection, token_id: int, last_used_at: str) -> None:
    """Note when a token was last used."""
    sql = """
        UPDATE personal_access_tokens
        SET last_used_at = :last_used_at
        WHERE id = :token_id"""
    execute(db, sql, token_id=token_id, last_used_at=last_used_at)


def delete_token(db: Connection, token_id: int) -> bool:
    """Delete a token and tell whether it was there."""
    return execute(db, "DELETE FROM personal_access_tokens WHERE id = :token_id", token_id=token_id).rowcount == 1


def delete_expired_tokens(db: Connection, now: str) -> int:
    """Delete the tokens that have expired and return how many those were."""
    return execute(db, "DELETE FROM personal_access_tokens WHERE expires_at <= :now", now=now).rowcount


def take_permission(db: Connection, user_id: object, size: int) -> tuple[bool, float, int]:
    """Take a permission of a user's bucket, which a minute fills (https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm).

    Returns whether there was one, how many there are now, and the desk's version: one question less for each request.
    """
    sql = """
        INSERT INTO rate_limits AS held (user_id, full_at, allowed)
        SELECT :user_id, rate_clock() + :wait, TRUE
        ON CONFLICT (user_id) DO UPDATE
        SET allowed = greatest(held.full_at + :wait, excluded.full_at) - excluded.full_at <= 60000000.5 - :wait,
            full_at = CASE WHEN greatest(held.full_at + :wait, excluded.full_at) - excluded.full_at <= 60000000.5 - :wait
                      THEN greatest(held.full_at + :wait, excluded.full_at) ELSE held.full_at END
        RETURNING allowed, (60000000 - full_at + rate_clock()) / :wait, (SELECT version FROM desk WHERE kind = 'desk')"""
    row = fetch_all(db, sql, user_id=user_id, wait=60_000_000 / size)[0]
    return bool(row[0]), row[1], row[2]


def list_permissions(db: Connection, limit: int, size: int) -> list[tuple[int, int]]:
    """Return users and the permissions in their buckets, the fewest first; those that are full are left out."""
    sql = """
        SELECT user_id, (60000000 - full_at + rate_clock()) / :wait
        FROM rate_limits
        WHERE full_at > rate_clock()
        ORDER BY full_at DESC
        LIMIT :limit"""
    return [(row[0], int(row[1])) for row in fetch_all(db, sql, limit=limit, wait=60_000_000 / size)]


class AuditFilter(NamedTuple):
    """Which rows of the log are wanted; by default all."""

    user_id: int | None = None
    token_id: int | None = None
    lowest_status: int = 0
    highest_status: int = 10**6
    path: str = ""  # a part of it; the path begins with a slash here
    since: str = ""


def insert_audits(db: Connection, audits: Iterable[Mapping[str, Any]]) -> None:
    """Insert the rows of requests, as a transaction of their own."""
    sql = """
        INSERT INTO api_audits (user_id, token_id, method, path, route_name, status_code,
            ip_address, user_agent, duration_ms, query, request_body, created_at)
        VALUES (:user_id, :token_id, :method, :path, :route_name, :status_code,
            :ip_address, :user_agent, :duration_ms, :query, :request_body, :created_at)"""
    write_rows(db, sql, audits)


def list_audits_back(db: Connection, lowest: int, highest: int, wanted: AuditFilter, limit: int) -> list[Row]:
    """Return the last rows wanted in a range of ids, newest first."""
    sql = """
        SELECT *
        FROM api_audits
        WHERE id BETWEEN :lowest AND :highest
            AND (user_id = :user_id OR :user_id IS NULL)
            AND (token_id = :token_id OR :token_id IS NULL)
            AND status_code BETWEEN :lowest_status AND :highest_status
            AND instr('/' || path, :path) > 0
            AND created_at >= :since
        ORDER BY id DESC
        LIMIT :limit"""
    return fetch_all(db, sql, **wanted._asdict(), lowest=lowest, highest=highest, limit=limit)


def list_audits(db: Connection, lowest: int, highest: int, wanted: AuditFilter, limit: int) -> list[Row]:
    """Return the first rows wanted in a range of ids, oldest first."""
    sql = """
        SELECT *
        FROM api_audits
        WHERE id BETWEEN :lowest AND :highest
            AND (user_id = :user_id OR :user_id IS NULL)
            AND (token_id = :token_id OR :token_id IS NULL)
            AND status_code BETWEEN :lowest_status AND :highest_status
            AND instr('/' || path, :path) > 0
            AND created_at >= :since
        ORDER BY id
        LIMIT :limit"""
    return fetch_all(db, sql, **wanted._asdict(), lowest=lowest, highest=highest, limit=limit)


def has_audits_since(db: Connection, lowest: int, highest: int, since: str) -> bool:
    """Tell whether a range of ids holds a row of a time or later."""
    sql = """
        SELECT 1
        FROM api_audits
        WHERE id BETWEEN :lowest AND :highest AND created_at >= :since
        LIMIT 1"""
    row = fetch_one(db, sql, lowest=lowest, highest=highest, since=since)
    return row is not None


def find_audit_from(db: Connection, audit_id: int) -> Row | None:
    """Return id and created_at of the first row from an id on, or None."""
    return fetch_one(db, "SELECT id, created_at FROM api_audits WHERE id >= :audit_id ORDER BY id LIMIT 1", audit_id=audit_id)


def find_last_audit_id(db: Connection, below: int) -> int | None:
    """Return the highest id under a bound, or None."""
    last: int | None = fetch_value(db, "SELECT max(id) FROM api_audits WHERE id < :below", below=below)
    return last


def delete_old_audits(db: Connection, before: str, limit: int, among: int) -> int:
    """Delete up to `limit` rows from before a time, among the `among` rows with the lowest ids; return how many."""
    sql = """
        DELETE FROM api_audits
        WHERE id IN (
            SELECT id
            FROM (SELECT id, created_at FROM api_audits ORDER BY id LIMIT :among) AS oldest
            WHERE created_at < :before
            LIMIT :limit
        )"""
    return execute(db, sql, before=before, limit=limit, among=among).rowcount


def count_audits(db: Connection) -> int:
    """Return how many rows the audit log has."""
    return int(fetch_value(db, "SELECT count(*) FROM api_audits"))


# ======================================================================================================================
# Room 5. Words: made-up people and tickets, and the rhythm of their weeks, from seed, id and time alone. Touches nothing.
# ======================================================================================================================


class Story(NamedTuple):
    """One problem of one product: sentences of five kinds, which fit together in any combination."""

    subjects: tuple[str, ...]
    openings: tuple[str, ...]
    details: tuple[str, ...]
    attempts: tuple[str, ...]
    impacts: tuple[str, ...]


class Words(NamedTuple):
    """What vocabulary.json holds."""

    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    closings: tuple[str, ...]
    stories: tuple[Story, ...]


def throw(seed: int, purpose: str, number: int) -> int:
    """Return 256 bits that depend on these alone: the same on every machine and Python.

    `divmod(bits, n)` draws a number below n from them and leaves the rest for the next draw.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}:{number}".encode()).digest(), "big")


@lru_cache(maxsize=1)
def load_words() -> Words:
    """Read the vocabulary once and put each product's name into its sentences."""
    data = json.loads(read_resource("vocabulary.json"))
    stories = [
        Story(
            *(
                tuple(text.replace("{product}", product["name"]) for text in texts)
                for texts in (*(problem[kind] for kind in Story._fields[:-1]), product["impacts"])
            )
        )
        for product in data["products"]
        for problem in product["problems"]
    ]
    first_names, last_names, closings = (tuple(data[key]) for key in ("first_names", "last_names", "closings"))
    return Words(first_names, last_names, closings, tuple(stories))


WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
REFERENCE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O, as on real labels


def compose_facts(bits: int) -> dict[str, str]:
    """Return the details that a ticket's sentences may name, drawn from the bits that are left."""
    bits, first = divmod(bits % (24 * 24 * 90_000 * 9 * 20 * 10 * 7 * 24 * 60 * 95), 24)
    bits, second = divmod(bits, 24)
    bits, number = divmod(bits, 90_000)
    bits, major = divmod(bits, 9)
    bits, minor = divmod(bits, 20)
    bits, patch = divmod(bits, 10)
    bits, weekday = divmod(bits, 7)
    bits, hour = divmod(bits, 24)
    count, minute = divmod(bits, 60)
    return {
        "reference": f"{REFERENCE_LETTERS[first]}{REFERENCE_LETTERS[second]}-{number + 10_000}",
        "version": f"{major + 1}.{minor}.{patch}",
        "weekday": WEEKDAYS[weekday],
        "time": f"{hour:02d}:{minute:02d}",
        "number": str(count + 3),
    }


def compose_ticket(words: Words, seed: int, ticket_id: int) -> tuple[int, str, str]:
    """Return customer number, subject and content of a ticket, from the seed and its id alone.

    The content has two to five sentences: what happened, perhaps a detail, what was tried and why it matters, and a wish.
    """
    bits = throw(seed, "ticket", ticket_id)
    bits, draw = divmod(bits, 1 << 32)
    # The square of an even draw makes few customers write much and many a little.
    customer = (draw * draw * customer_pool(ticket_id) >> 64) + 1
    bits, draw = divmod(bits, len(words.stories))
    subjects, openings, *optional = words.stories[draw]
    bits, draw = divmod(bits, len(subjects))
    subject, sentences = subjects[draw], [""]
    for texts in optional:
        bits, wanted = divmod(bits, 2)
        if wanted:
            bits, draw = divmod(bits, len(texts))
            sentences.append(texts[draw])
    bits, draw = divmod(bits, len(openings))
    sentences[0] = openings[draw]
    bits, draw = divmod(bits, len(words.closings))
    content = " ".join((*sentences, words.closings[draw]))
    if "{" not in content and "{" not in subject:
        return customer, subject, content
    facts = compose_facts(bits)
    return customer, subject.format_map(facts), content.format_map(facts)


def customer_pool(tickets: int) -> int:
    """Return how many customers a desk with that many tickets has: about tickets^(3/4), in whole numbers.

    It only ever grows with the tickets, so that a ticket's customer never depends on how many come after it.
    """
    root = math.isqrt(tickets)
    return 5 + root * math.isqrt(root)


@lru_cache(maxsize=16)
def name_order(seed: int, names: int) -> tuple[int, int]:
    """Return step and start of a walk over `names` names that meets each once before it meets any twice."""
    bits, step = divmod(throw(seed, "names", names), names)
    start = bits % names
    while math.gcd(step, names) != 1:
        step += 1
    return step, start


def compose_customer(words: Words, seed: int, number: int) -> tuple[str, str]:
    """Return name and address of a customer, from the seed and the number alone; no two share an address."""
    names = len(words.first_names) * len(words.last_names)
    step, start = name_order(seed, names)
    again = (number - 1) // names
    last, first = divmod((number * step + start) % names, len(words.first_names))
    name = f"{words.first_names[first]} {words.last_names[last]}"
    suffix = str(again + 1) if again else ""
    domain = ("example.com", "example.net", "example.org")[throw(seed, "customer", number) % 3]
    return name, f"{plain_letters(name).replace(' ', '.')}{suffix}@{domain}"


def plain_letters(text: str) -> str:
    """Write a name as addresses do: lower case, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return decomposed.encode("ascii", "ignore").decode()


# How busy the hours of a day (UTC) and the days of a week (Monday first) are: when people write, and when they are answered.
WRITING = (
    (4, 3, 2, 2, 2, 3, 6, 12, 22, 32, 36, 36, 32, 34, 36, 35, 32, 27, 22, 18, 15, 12, 9, 6),
    (32, 32, 31, 30, 28, 13, 11),
)

WORKING = (
    (1, 1, 1, 1, 1, 1, 4, 16, 50, 60, 60, 60, 45, 55, 60, 60, 60, 40, 14, 6, 3, 2, 1, 1),
    (10, 10, 10, 10, 9, 3, 2),
)


class Rhythm:
    """A period whose hours weigh more the busier they are; turns a moment into the weight before it, and back.

    The weight is piecewise linear, an hour a piece, in whole numbers only, so that it is the same on every machine.
    """

    def __init__(self, start: int, end: int, pattern: tuple[Sequence[int], Sequence[int]], seed: int) -> None:
        """Weigh the hours from start to end (microseconds); no two days are equally busy."""
        hours, days = pattern
        self._times, self._sums, self._weights = [start], [0], []
        while self._times[-1] < end:
            hour = self._times[-1] // (HOUR * MICROSECONDS)
            day = hour // 24
            weight = hours[hour % 24] * days[(day + 3) % 7] * (75 + throw(seed, "day", day) % 51)
            until = min((hour + 1) * HOUR * MICROSECONDS, end)
            self._sums.append(self._sums[-1] + weight * (until - self._times[-1]))
            self._times.append(until)
            self._weights.append(weight)
        self.total = self._sums[-1]

    def moment(self, weight: int) -> int:
        """Return the moment before which the period weighs that much; weight is below `total`."""
        piece = bisect_right(self._sums, weight) - 1
        return self._times[piece] + (weight - self._sums[piece]) // self._weights[piece]

    def weight(self, moment: int) -> int:
        """Return what the period weighs before a moment inside it."""
        piece = min(bisect_right(self._times, moment), len(self._weights)) - 1
        return self._sums[piece] + (moment - self._times[piece]) * self._weights[piece]


class History(NamedTuple):
    """The plan of a past: when tickets arrive; each is closed after the same amount of work."""

    arrivals: Rhythm
    work: Rhythm
    delay: int  # in units of work

    def arrival(self, seed: int, position: int, count: int, ticket_id: int) -> int:
        """Return when the ticket at a position among `count` arrives: anywhere in its share of the period."""
        jitter = throw(seed, "arrival", ticket_id) % self.arrivals.total
        return self.arrivals.moment((position * self.arrivals.total + jitter) // count)

    def closing(self, arrival: int) -> int | None:
        """Return when a ticket that arrived then is closed, or None while it still waits."""
        due = self.work.weight(arrival) + self.delay
        return self.work.moment(due) if due < self.work.total else None


def plan_history(start: int, now: int, seed: int) -> History:
    """Plan a period: a ticket waits about a working day, or 3 % of the period when that is less."""
    arrivals, work = Rhythm(start, now, WRITING, seed), Rhythm(start, now, WORKING, seed)
    working_day = 8 * HOUR * MICROSECONDS * 60 * 10 * 100
    return History(arrivals, work, min(working_day, work.total * 3 // 100))


# ======================================================================================================================
# Room 6. Clocks: the real clocks, which the edges read and hand down as `now`. Touches time.
# ======================================================================================================================


def wall_microseconds() -> int:
    """Read the wall clock: microseconds since 1970, UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class Clock:
    """The two clocks of the edges: `wall` for what is written down, `monotonic` (seconds) for intervals and buckets."""

    wall: Callable[[], int] = wall_microseconds
    monotonic: Callable[[], float] = time.monotonic


# ======================================================================================================================
# Room 7. Desk: all that changes a desk: generate and process, now or in the past. Opens transactions.
# ======================================================================================================================

BATCH = 25_000  # tickets in one transaction, for half a second: bounds memory, and how long other writers wait

Report = Callable[[int], object]  # takes how many tickets are done, after each batch
silent: Report = lambda done: None  # noqa: E731


def batches(count: int) -> Iterator[int]:
    """Split a count into the sizes of its transactions."""
    while count > 0:
        yield min(count, BATCH)
        count -= BATCH


def growing(moments: Iterable[int], last: int) -> Iterator[int]:
    """Yield moments, each moved to at least a microsecond after the one before it."""
    for moment in moments:
        last = max(moment, last + 1)
        yield last


def newest_ticket(db: Connection) -> tuple[int, int]:
    """Return id and time (microseconds) of the newest ticket, or 0 and NEVER."""
    row = find_newest_ticket(db)
    return (row["id"], parse_time(row["created_at"])) if row else (0, NEVER)


def last_closing(db: Connection) -> int:
    """Return when a ticket was closed last, in microseconds, or NEVER."""
    closed_at = find_last_closed_at(db)
    return parse_time(closed_at) if closed_at else NEVER


def cut_wait(seconds: int) -> int:
    """Cut a wait in seconds to its first two digits, as the counters by the hour have it: 12,345 is 12,000."""
    return seconds if seconds < 100 else seconds - seconds % wait_width(seconds)


def wait_width(seconds: int) -> int:
    """Return how many waits, in seconds, are cut to the same one as this."""
    return int(10 ** max(0, len(str(seconds)) - 2))


def add_customers(db: Connection, seed: int, wanted: int, now: int) -> None:
    """Bring the pool of customers up to a size."""
    words = load_words()
    have = find_last_user_id(db, FIRST_OWNER_ID) or 0
    rows, made = [], [(number, *compose_customer(words, seed, number)) for number in range(have + 1, wanted + 1)]
    taken = list_taken_emails(db, (email for *_, email in made)) if made else set()
    for number, name, email in made:
        while email in taken:  # a token's owner, or a customer that another seed made, has it
            email = email.replace("@", f".{number}@")
            taken |= list_taken_emails(db, [email])
        rows.append((number, name, email, format_time(now)))
    insert_users(db, rows)


def add_tickets(db: Connection, seed: int, first_id: int, moments: Sequence[tuple[int, int | None]]) -> None:
    """Insert one batch, given as (created, closed or None) in microseconds, with its customers and counters."""
    words = load_words()
    composed = [compose_ticket(words, seed, ticket_id) for ticket_id in range(first_id, first_id + len(moments))]
    add_customers(db, seed, customer_pool(first_id + len(moments) - 1), moments[0][0])
    per_user = Counter(user_id for user_id, _, _ in composed)
    authors = {user_id: (written, name, email) for user_id, name, email, written in list_authors(db, per_user)}
    already_closed = closed_number = count_tickets(db, CLOSED)
    arrivals: Counter[str] = Counter()
    closings: Counter[tuple[str, int]] = Counter()
    rows: list[tuple[Any, ...]] = []
    for ticket_id, ((user_id, subject, content), (created, closed)) in enumerate(zip(composed, moments, strict=True), first_id):
        written, name, email = authors[user_id]
        authors[user_id] = (written + 1, name, email)
        created_at = format_time(created)
        arrivals[created_at[:13]] += 1
        end: tuple[Any, ...] = (OPEN, created_at, created_at, None, None)
        if closed is not None:
            closed_number, closed_at = closed_number + 1, format_time(closed)
            closings[closed_at[:13], cut_wait(closed // MICROSECONDS - created // MICROSECONDS)] += 1
            end = (CLOSED, created_at, closed_at, closed_at, closed_number)
        rows.append((ticket_id, user_id, written + 1, name, email, subject, content, *end))
    insert_tickets(db, rows)
    add_user_tickets(db, [(more, user_id) for user_id, more in per_user.items()])
    add_arrivals(db, arrivals.items())
    add_closings(db, [(*place, more) for place, more in closings.items()])
    add_ticket_count(db, CLOSED, closed_number - already_closed)
    add_ticket_count(db, OPEN, len(rows) - (closed_number - already_closed))


def generate_tickets(db: Connection, count: int, now: int, seed: int, report: Report = silent) -> int:
    """Add open tickets of this moment, in batches that are committed one by one; return how many."""
    done = 0
    for size in batches(count):
        with transaction(db):
            last_id, last_created = newest_ticket(db)
            moments = [(moment, None) for moment in growing([now] * size, last_created)]
            add_tickets(db, seed, last_id + 1, moments)
        done += size
        report(done)
    return done


def close_oldest(db: Connection, moments: Sequence[int]) -> list[int]:
    """Close the oldest open tickets, one for each moment, first in, first out; return their ids."""
    return close_in_order(db, list_oldest_open_tickets(db, len(moments)), moments)


def close_in_order(db: Connection, tickets: Iterable[Any], moments: Iterable[int]) -> list[int]:
    """Close open tickets, given as (id, created_at), each at a moment moved to after the one before; return their ids."""
    closings: list[tuple[str, int, int]] = []
    waits: Counter[tuple[str, int]] = Counter()
    last = last_closing(db)
    for number, ((ticket_id, created_at), moment) in enumerate(
        zip(tickets, moments, strict=False), count_tickets(db, CLOSED) + 1
    ):
        last = max(moment, last + 1)
        closed_at = format_time(last)
        if closed_at <= created_at:  # made in one go, a million tickets reach a second into the future
            last = parse_time(created_at) + 1
            closed_at = format_time(last)
        closings.append((closed_at, number, ticket_id))
        waits[closed_at[:13], cut_wait(last // MICROSECONDS - parse_second(created_at))] += 1
    close_tickets(db, closings)
    add_closings(db, [(*place, more) for place, more in waits.items()])
    add_ticket_count(db, OPEN, -len(closings))
    add_ticket_count(db, CLOSED, len(closings))
    return [ticket_id for _, _, ticket_id in closings]


def process_tickets(db: Connection, count: int, now: int, report: Report = silent) -> list[int]:
    """Close up to `count` tickets, the oldest first, in batches that are committed one by one; return their ids."""
    closed: list[int] = []
    for size in batches(count):
        with transaction(db):
            ids = close_oldest(db, [now] * size)
        closed += ids
        report(len(closed))
        if len(ids) < size:
            break
    return closed


def generate_history(db: Connection, count: int, since: int, now: int, seed: int, report: Report = silent) -> tuple[int, int]:
    """Spread tickets over the last `since` seconds and close all but a backlog; return how many came and were closed.

    Tickets that were open before go first. Raises TicketApiError when the period begins before the newest ticket, or when
    somebody else adds a ticket meanwhile; the batches committed until then stay.
    """
    start = now - since * MICROSECONDS
    _, newest = newest_ticket(db)
    if newest >= start:
        raise TicketApiError(
            f"--since begins at {format_time(start)}, before the newest ticket ({format_time(newest)}); "
            "take a shorter --since, or another --db"
        )
    history = plan_history(start, now, seed)
    closed = close_backlog(db, history, start)
    done = 0
    for size in batches(count):
        with transaction(db):
            newest, closings = add_history_batch(db, history, seed, (done, size, count), newest)
        done += size
        closed += closings
        report(done)
    return count, closed


def close_backlog(db: Connection, history: History, start: int) -> int:
    """Close the tickets that were open before the period, evenly over its first working day; return how many."""
    waiting = count_tickets(db, OPEN)
    dues = (history.delay * (i + 1) // (waiting + 1) for i in range(waiting))
    moments = (max(start, history.work.moment(due)) for due in dues)
    for size in batches(waiting):
        with transaction(db):
            close_oldest(db, list(islice(moments, size)))
    return waiting


def add_history_batch(db: Connection, history: History, seed: int, batch: tuple[int, int, int], newest: int) -> tuple[int, int]:
    """Insert one batch (done, size, count) of a history; return the newest ticket's time and how many are closed."""
    done, size, count = batch
    last_id, last_created = newest_ticket(db)
    if last_created != newest:
        raise TicketApiError(f"another program added a ticket meanwhile; {done} of {count} tickets of the past were kept")
    arrivals = list(growing((history.arrival(seed, done + i, count, last_id + 1 + i) for i in range(size)), last_created))
    due = [moment for moment in map(history.closing, arrivals) if moment is not None]
    closings = list(growing(due, last_closing(db)))
    moments: list[tuple[int, int | None]] = list(zip(arrivals, [*closings, *[None] * (size - len(closings))], strict=True))
    add_tickets(db, seed, last_id + 1, moments)
    return arrivals[-1], len(closings)


# ======================================================================================================================
# Room 8. Lists: all that reads a desk as JSON: pages, cursors, resources, figures, series. Uses queries, in snapshots.
# ======================================================================================================================

PER_PAGE, MAX_PER_PAGE = 50, 200
MAX_PAGE = 10**15  # far past the end of any desk; keeps OFFSET inside SQLite's 64 bits
BUCKETS_BACK = {"hour": (HOUR, 100 * 24), "day": (DAY, 3653)}  # of the series: seconds of one, and how many there may be
MAX_CACHED_BYTES = 1024 * 1024  # of answers, for each thread: some 36 pages; 4 MB made pages not asked for before 10 % dearer


class Answer(NamedTuple):
    """The bytes of an answer and their strong ETag (RFC 9110, section 8.8.3)."""

    body: bytes
    etag: str


def make_answer(body: bytes) -> Answer:
    """Return bytes with an ETag that is a hash of them."""
    return Answer(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


class Reader:
    """One thread's connection for reading, and what it remembers of the desk while the desk stays as it is.

    SQLite tells whether any other connection, of this process or another, has committed since it was asked last. That costs
    2 microseconds, where a page of 50 tickets costs 200.
    """

    def __init__(self, path: Place) -> None:
        """Open the connection."""
        self.db = connect(path, READER)
        keep(self.db)
        self.tokens: dict[str, Token] = {}  # by SHA-256
        self.answers: OrderedDict[tuple[str, ...], Answer] = OrderedDict()
        self.facts: dict[object, Any] = {}
        self._bytes = 0
        self._version = (-1, 0)

    def refresh(self, number: int | None = None) -> None:
        """Forget everything if the desk has changed; who has read its version, with something else, gives the number.

        Called at the start of a request.
        """
        version = get_data_version(self.db, number)
        if version != self._version:
            self._version = version
            self.tokens.clear()
            self.answers.clear()
            self.facts.clear()
            self._bytes = 0

    def recall(self, read: Callable[[Connection], Any]) -> Any:
        """Return what a query has returned since the desk has changed last, or ask it."""
        if read not in self.facts:
            self.facts[read] = read(self.db)
        return self.facts[read]

    def remember(self, key: tuple[str, ...], answer: Answer) -> None:
        """Keep an answer; beyond MAX_CACHED_BYTES the least recently used ones go."""
        self.answers[key] = answer
        self._bytes += cached_bytes(key, answer)
        while self._bytes > MAX_CACHED_BYTES:
            self._bytes -= cached_bytes(*self.answers.popitem(last=False))


def cached_bytes(key: tuple[str, ...], answer: Answer) -> int:
    """Estimate the memory that an answer takes: its body, its key, which a client may make long, and the objects around."""
    return len(answer.body) + sum(map(len, key)) + 1000


@dataclass(eq=False)
class Readers:
    """One Reader for each thread, kept, as opening one costs as much as a small request."""

    path: Place
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: list[Reader] = field(default_factory=list)

    def get(self) -> Reader:
        """Return this thread's reader."""
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = Reader(self.path)
            with self._lock:
                self._open.append(reader)
        return reader

    def close(self) -> None:
        """Close the connections of all threads, which must have ended."""
        with self._lock:
            for reader in self._open:
                reader.db.close()
            self._open.clear()


class Cursor(NamedTuple):
    """A place in a list: just after the ticket with a key (`forward`), or just before it."""

    key: int
    forward: bool


class ListRequest(NamedTuple):
    """Which slice of a list is asked for, and under which URL."""

    url: str  # of the list, without the query
    page: int
    per_page: int
    keep_per_page: bool  # the client gave it, so links carry it on
    by_cursor: bool = False
    cursor: Cursor | None = None  # None: from the start
    has_cursors: bool = True  # a page of the list says by which cursor to go on


class Slice(NamedTuple):
    """A slice of a list: its tickets, the keys of the first and the last, and whether the list goes on on either side."""

    tickets: Tickets
    first: int
    last: int
    before: bool
    after: bool


def read_positive(query: Mapping[str, str], name: str, default: int, highest: int, errors: dict[str, list[str]]) -> int:
    """Read a whole number of a query and clamp it to 1..highest; anything else is noted in `errors`."""
    text = query.get(name, "")
    number = whole_number(text) if text else default
    if number is None:
        errors[name] = [f"The {name.replace('_', ' ')} field must be an integer."]
        return default
    return max(1, min(number, highest))


def read_cursor(query: Mapping[str, str], url: str, errors: dict[str, list[str]]) -> Cursor | None:
    """Read the cursor of a query, None where it has none; what is no cursor of this list is noted in `errors`."""
    text = query.get("cursor", "")
    cursor = decode_cursor(text, url) if text else None
    if text and not cursor:
        errors["cursor"] = ["The cursor field must be a cursor of this list."]
    return cursor


def parse_list_request(url: str, query: Mapping[str, str], has_cursors: bool = True) -> ListRequest:
    """Read `page`, `per_page` and `cursor`; raises InvalidFields for what is no number and no cursor of this list."""
    errors: dict[str, list[str]] = {}
    page = read_positive(query, "page", 1, MAX_PAGE, errors)
    per_page = read_positive(query, "per_page", PER_PAGE, MAX_PER_PAGE, errors)
    cursor = read_cursor(query, url, errors)
    if errors:
        raise InvalidFields(errors)
    return ListRequest(url, page, per_page, bool(query.get("per_page")), "cursor" in query, cursor, has_cursors)


def cursor_check(payload: str, url: str) -> str:
    """Return twelve hexadecimal digits of a hash over a list and a cursor, so that no other list takes the cursor."""
    path = url.rpartition("/api/")[2]  # whatever a proxy has put before it
    return hashlib.sha256(f"api/{path} {payload}".encode()).hexdigest()[:12]


def encode_cursor(cursor: Cursor, url: str) -> str:
    """Write a cursor as opaque text that needs no escaping in a URL."""
    payload = f"{'n' if cursor.forward else 'p'}{cursor.key}"
    return base64.urlsafe_b64encode(f"{payload}.{cursor_check(payload, url)}".encode()).decode().rstrip("=")


def decode_cursor(text: str, url: str) -> Cursor | None:
    """Return the cursor that a text holds, or None unless `encode_cursor` would write this very text for this list."""
    try:
        payload = base64.b64decode(text + "=" * (-len(text) % 4), b"-_").decode("ascii").partition(".")[0]
    except ValueError:
        return None
    if not re.fullmatch(r"[np][0-9]{1,18}", payload):
        return None
    cursor = Cursor(int(payload[1:]), payload[0] == "n")
    return cursor if encode_cursor(cursor, url) == text else None


def page_window(page: int, last: int) -> list[int | None]:
    """Return the pages that Laravel's paginator links to; None stands for "..."."""
    if last < 14:
        return [*range(1, last + 1)]
    if page <= 7:
        return [*range(1, 11), None, last - 1, last]
    if page > last - 7:
        return [1, 2, None, *range(last - 9, last + 1)]
    return [1, 2, None, *range(page - 3, page + 4), None, last - 1, last]


GAP_LINK = '{"url":null,"label":"...","active":false}'


def page_json(asked: ListRequest, total: int, sliced: Slice) -> str:
    """Write `links` and `meta` of a page as Laravel's paginated resources have them, key by key; ours come last.

    A template, as `meta.links` has up to 15 entries: json.dumps of the same takes four times as long.
    """
    page, per_page, count = asked.page, asked.per_page, sliced.tickets.size
    path, last = quote(asked.url), max(1, -(-total // per_page))
    start, end = f"{path[:-1]}?page=", f'&per_page={per_page}"' if asked.keep_per_page else '"'
    previous = ("null", "null") if page == 1 else (f"{start}{page - 1}{end}", page - 1)
    following = ("null", "null") if page >= last else (f"{start}{page + 1}{end}", page + 1)
    window = [
        f'{{"url":{start}{n}{end},"label":"{n}","page":{n},"active":{"true" if n == page else "false"}}}' if n else GAP_LINK
        for n in page_window(page, last)
    ]
    first_row = (page - 1) * per_page + 1 if count else None
    cursor = f',"next_cursor":{compact(next_cursor(asked.url, sliced))}' if asked.has_cursors else ""
    return (
        f'"links":{{"first":{start}1{end},"last":{start}{last}{end},"prev":{previous[0]},"next":{following[0]}}},'
        f'"meta":{{"current_page":{page},"from":{first_row or "null"},"last_page":{last},"links":['
        f'{{"url":{previous[0]},"label":"&laquo; Previous","page":{previous[1]},"active":false}},{",".join(window)},'
        f'{{"url":{following[0]},"label":"Next &raquo;","page":{following[1]},"active":false}}],'
        f'"path":{path},"per_page":{per_page},"to":{first_row + count - 1 if first_row else "null"},"total":{total}{cursor}}}'
    )


def cursor_envelope(
    url: str, per_page: int, link: tuple[str, str], previous: str | None, following: str | None
) -> dict[str, Any]:
    """Return `links` and `meta` as Laravel's cursorPaginate; `link` is what stands before and after a cursor in a URL."""
    prev_url, next_url = (text and f"{link[0]}{text}{link[1]}" for text in (previous, following))
    links = {"first": None, "last": None, "prev": prev_url, "next": next_url}
    return {"links": links, "meta": {"path": url, "per_page": per_page, "next_cursor": following, "prev_cursor": previous}}


def next_cursor(url: str, sliced: Slice) -> str | None:
    """Return the cursor that goes on after a slice of a list, or None at the end of the list."""
    return encode_cursor(Cursor(sliced.last, True), url) if sliced.after else None


def render_list(asked: ListRequest, total: int, sliced: Slice) -> bytes:
    """Write a slice of a list in its envelope, with page numbers or with cursors as it was asked for."""
    if asked.by_cursor:
        link = (f"{asked.url}?cursor=", f"&per_page={asked.per_page}" if asked.keep_per_page else "")
        previous = encode_cursor(Cursor(sliced.first, False), asked.url) if sliced.before else None
        following = next_cursor(asked.url, sliced)
        envelope = compact(cursor_envelope(asked.url, asked.per_page, link, previous, following))[1:-1]
    else:
        envelope = page_json(asked, total, sliced)
    return b'{"data":[%b],%b}' % (sliced.tickets.json or b"", envelope.encode())


NOTHING = Slice(Tickets(None, 0, 0, 0), 0, 0, False, False)


def numbered_slice(read: Callable[[int, int], Tickets], total: int, asked: ListRequest) -> Slice:
    """Return a slice of a list whose tickets are numbered from 1 to `total` without gaps, the highest first."""
    size, cursor = asked.per_page, asked.cursor
    if cursor and not cursor.forward:
        lowest, highest = cursor.key + 1, min(cursor.key + size, total)
    else:
        highest = min(cursor.key - 1, total) if cursor else total - (0 if asked.by_cursor else (asked.page - 1) * size)
        lowest = max(1, highest - size + 1)
    if highest < lowest:
        return NOTHING
    return Slice(read(lowest, highest), highest, lowest, highest < total, lowest > 1)


def open_slice(db: Connection, bounds: Bounds, asked: ListRequest) -> tuple[Slice, Bounds]:
    """Return a slice of the open tickets, which are in the order of their ids, and the bounds when it was read.

    While tickets are closed first in, first out, there are no gaps between the open ids, and a page is a range of them. Once
    some were closed out of order, the start of a page is found by walking the index from the oldest.
    """
    (total, first, last), cursor, size = bounds, asked.cursor, asked.per_page
    offset = 0 if asked.by_cursor else (asked.page - 1) * size
    start, end = first + offset, last
    if cursor and cursor.forward:
        start = cursor.key + 1
    elif cursor:
        start, end = find_open_ticket_before(db, cursor.key, size) or first, cursor.key - 1
    elif offset and last - first + 1 != total:
        start = find_open_ticket(db, offset) or last + 1
    if not total or start > last:
        return NOTHING, bounds
    tickets, then = list_open_tickets(db, start, end, size)
    if not tickets.size:
        return NOTHING, then
    return Slice(tickets, tickets.lowest, tickets.highest, tickets.lowest > first, tickets.highest < last), then


def open_tickets_page(db: Connection, asked: ListRequest, bounds: Bounds | None = None) -> bytes:
    """Return a slice of the open tickets, oldest first. Bounds of a moment ago may be given: they are checked."""
    bounds = bounds or find_open_bounds(db)
    sliced, then = open_slice(db, bounds, asked)
    if then != bounds:
        with snapshot(db):
            bounds = find_open_bounds(db)
            sliced, _ = open_slice(db, bounds, asked)
    return render_list(asked, bounds[0], sliced)


def count_closed(db: Connection) -> int:
    """Return how many tickets are closed."""
    return count_tickets(db, CLOSED)


def closed_tickets_page(db: Connection, asked: ListRequest, total: int | None = None) -> bytes:
    """Return a slice of the closed tickets, most recently closed first. Their total of a moment ago may be given.

    No snapshot is needed: the tickets numbered up to a total stay the same when others are closed meanwhile.
    """
    total = count_closed(db) if total is None else total
    return render_list(asked, total, numbered_slice(partial(list_closed_tickets, db), total, asked))


def user_tickets_page(db: Connection, user_id: int, asked: ListRequest) -> bytes:
    """Return a slice of one user's tickets, newest first, which needs no snapshot either; raises NotFound."""
    total = find_customer(db, user_id)["tickets_count"]
    return render_list(asked, total, numbered_slice(partial(list_user_tickets, db, user_id=user_id), total, asked))


def customers_page(db: Connection, asked: ListRequest) -> bytes:
    """Return a page of the customers, most tickets first, or, by cursor, a slice of them in the order of their ids.

    They are numbered without gaps, so the last id counts them. What a page costs grows with its depth, a slice costs the same.
    """
    size, (key, forward) = asked.per_page, asked.cursor or Cursor(0, True)
    with snapshot(db):
        total = find_last_user_id(db, FIRST_OWNER_ID) or 0
        if asked.by_cursor:
            lowest, highest = (key + 1, key + size) if forward else (key - size, key - 1)
            rows = list_customers_by_id(db, max(1, lowest), min(highest, total))
        else:
            offset = (asked.page - 1) * size
            rows = list_customers(db, min(size, total - offset), offset) if offset < total else []
    first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (0, total)
    customers = to_json(list(map(dict, rows)))[1:-1]
    return render_list(asked, total, Slice(Tickets(customers, len(rows), 0, 0), first, last, first > 1, last < total))


def ticket_resource(db: Connection, ticket_id: int) -> bytes:
    """Return one ticket in its envelope; raises NotFound."""
    ticket = find_ticket(db, ticket_id)
    if ticket is None:
        raise NotFound(f"There is no ticket with the id {ticket_id}.")
    return b'{"data":%b}' % ticket


def find_customer(db: Connection, user_id: int) -> Row:
    """Return one customer; raises NotFound, also for the owner of a token, who is none."""
    user = find_user(db, user_id) if user_id < FIRST_OWNER_ID else None
    if user is None:
        raise NotFound(f"There is no user with the id {user_id}.")
    return user


def customer_resource(db: Connection, user_id: int) -> bytes:
    """Return one customer in an envelope; raises NotFound."""
    return to_json({"data": dict(find_customer(db, user_id))})


def walk_open_tickets(db: Connection, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the open tickets in pages, oldest first, at most `limit` of them; 0 is all. No statement is open between pages."""
    _, first, last = find_open_bounds(db)
    left = limit or MAX_ID
    while left and (page := list_open_tickets(db, first, last, min(left, MAX_PER_PAGE))[0]).size:
        yield parse_tickets(page)
        left -= page.size
        first = page.highest + 1


def walk_closed_tickets(db: Connection, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the closed tickets in pages, most recently closed first, as `walk_open_tickets` does."""
    total = count_tickets(db, CLOSED)
    end = max(0, total - limit) if limit else 0
    for highest in range(total, end, -MAX_PER_PAGE):
        yield parse_tickets(list_closed_tickets(db, max(end, highest - MAX_PER_PAGE) + 1, highest))


def parse_tickets(page: Tickets) -> list[dict[str, Any]]:
    """Return the tickets of a slice of a list as the API shows them."""
    tickets: list[dict[str, Any]] = json.loads(f"[{(page.json or b'').decode(errors='replace')}]")
    return tickets


def desk_stats(db: Connection) -> dict[str, Any]:
    """Return the figures of the desk, from counters and the ends of indexes."""
    with snapshot(db):
        waiting, closed = count_tickets(db, OPEN), count_tickets(db, CLOSED)
        top_user, closed_at = find_top_user(db), find_last_closed_at(db)
    return {
        "total_tickets": waiting + closed,
        "total_unprocessed_tickets": waiting,
        "top_user": dict(top_user) if top_user else None,
        "most_recent_processed_at": closed_at[:19].replace("T", " ") if closed_at else None,
    }


def desk_overview(db: Connection, now: int) -> dict[str, Any]:
    """Return `desk_stats` with ages (seconds) and the last hour. It costs the same however large the desk is."""
    hour_ago = format_time(now - HOUR * MICROSECONDS)
    with snapshot(db):
        stats, oldest, closed_at = desk_stats(db), list_oldest_open_tickets(db, 1), find_last_closed_at(db)
        closed = stats["total_tickets"] - stats["total_unprocessed_tickets"]
        opened_last_hour = count_since(partial(find_created_at, db), newest_ticket(db)[0], hour_ago)
        closed_last_hour = count_since(partial(find_closed_at, db), closed, hour_ago)
    opened_at = oldest[0]["created_at"] if oldest else None
    return {
        **stats,
        "total_processed_tickets": closed,
        "oldest_open_id": oldest[0]["id"] if oldest else None,
        "oldest_open_at": opened_at,
        "oldest_open_age": seconds_since(opened_at, now),
        "last_closed_at": closed_at,
        "last_closed_age": seconds_since(closed_at, now),
        "opened_last_hour": opened_last_hour,
        "closed_last_hour": closed_last_hour,
    }


def count_since(time_of: Callable[[int], str | None], last: int, since: str) -> int:
    """Count the rows from a time on, among rows that are numbered from 1 to `last` in the order of their times.

    A binary search: some twenty look-ups.
    """
    return last - bisect_left(range(1, last + 1), since, key=lambda number: time_of(number) or since)


def seconds_since(time_text: str | None, now: int) -> int | None:
    """Return how many seconds ago a time was, 0 for one in the future, None for None."""
    return max(0, now - parse_time(time_text)) // MICROSECONDS if time_text else None


class SeriesRequest(NamedTuple):
    """Which part of the past is asked for: buckets of `step` seconds from `start` (seconds since 1970) on."""

    bucket: str
    step: int
    start: int


def parse_series_request(query: Mapping[str, str], now: int) -> SeriesRequest:
    """Read `since` and `bucket`; raises InvalidFields for what cannot be read or lies too far back."""
    bucket, errors, since = query.get("bucket") or "hour", {}, now
    if bucket not in BUCKETS_BACK:
        errors["bucket"] = ["The bucket field must be hour or day."]
    step, most = BUCKETS_BACK.get(bucket, BUCKETS_BACK["day"])
    try:
        since = read_moment(query.get("since") or "24h", now)
    except ValueError:
        errors["since"] = ["The since field must be a duration such as 7d, or a UTC time such as 2025-12-04T11:30:16Z."]
    start = since // MICROSECONDS // step * step
    if since > now:
        errors["since"] = ["The since field must not lie in the future."]
    elif now // MICROSECONDS - start >= most * step:
        errors["since"] = [f"The since field must not lie further back than {most} {bucket}s."]
    if errors:
        raise InvalidFields(errors)
    return SeriesRequest(bucket, step, start)


def typical_wait(waits: Mapping[int, int], percent: int) -> int | None:
    """Return a percentile of waits (nearest rank) in seconds, to two digits; None where there are no waits."""
    rank = -(-sum(waits.values()) * percent // 100)
    for wait in sorted(waits):
        rank -= waits[wait]
        if rank <= 0:
            return wait + wait_width(wait) // 2
    return None


def desk_series(db: Connection, asked: SeriesRequest, now: int) -> dict[str, Any]:
    """Return how many tickets came, were closed and waited in each hour or day, and how long the closed ones had waited.

    Only the counters by the hour are read. A counter of a later hour than now, which a clock set back leaves, counts as now's.
    The backlog is computed from today's, backwards.
    """
    since, last = format_second(asked.start)[:13], now // MICROSECONDS // asked.step * asked.step
    with snapshot(db):
        backlog, arrivals, closings = count_tickets(db, OPEN), list_arrivals(db, since), list_closings(db, since)
        hour_ago = format_time(now - HOUR * MICROSECONDS)
        closed_last_hour = count_since(partial(find_closed_at, db), count_tickets(db, CLOSED), hour_ago)
    digits = 13 if asked.step == HOUR else 10  # of a time, that name its bucket
    newest, opened, waits = format_second(last)[:digits], Counter[str](), defaultdict[str, Counter[int]](Counter)
    for hour, tickets in arrivals:
        opened[min(hour[:digits], newest)] += tickets
    for hour, wait, tickets in closings:
        waits[min(hour[:digits], newest)][wait] += tickets
    points = []
    for start in range(last, asked.start - 1, -asked.step):
        key = format_second(start)[:digits]
        closed, typical = waits[key].total(), [typical_wait(waits[key], percent) for percent in (50, 95)]
        point = {"at": format_time(start * MICROSECONDS), "opened": opened[key], "closed": closed, "backlog": backlog}
        points.append({**point, "wait_p50": typical[0], "wait_p95": typical[1]})
        backlog += closed - opened[key]
    meta = {"bucket": asked.bucket, "since": format_time(asked.start * MICROSECONDS), "closed_last_hour": closed_last_hour}
    return {"data": points[::-1], "meta": meta}


# ======================================================================================================================
# Room 9. Keys and limits: tokens, and how many requests each may make. Opens transactions.
# ======================================================================================================================

TOKEN_PATTERN = re.compile(r"tkt_[0-9A-Za-z]{46}")
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
MAX_CACHED_TOKENS = 1000  # for each thread
STRANGERS_RATE = 30  # requests a minute of one address without a valid token, whatever --rate says
BUCKETS = 20_000  # buckets kept in memory; the least recently used is forgotten, which refills it


def token_checksum(body: str) -> str:
    """Return six letters and digits that depend on the token's others: its CRC-32 to the base 62."""
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return digits


def is_well_formed(text: str) -> bool:
    """Tell whether a text has the shape of a token, checksum included."""
    return bool(TOKEN_PATTERN.fullmatch(text)) and token_checksum(text[:-6]) == text[-6:]


def new_token_text() -> str:
    """Return a new secret: `tkt_`, 40 random letters and digits (238 bits), and their checksum."""
    body = "tkt_" + "".join(secrets.choice(BASE62) for _ in range(40))
    return body + token_checksum(body)


def hash_token(text: str) -> str:
    """Return the SHA-256 of a token, which is all that the database knows of it."""
    return hashlib.sha256(text.encode()).hexdigest()


def ensure_owner(db: Connection, email: str, now: int) -> int:
    """Return the id of the user with an address, who is created when unknown."""
    user = find_user_by_email(db, email)
    if user:
        return int(user["id"])
    user_id = (find_last_user_id(db, 2 * FIRST_OWNER_ID) or 0) + 1
    user_id = max(user_id, FIRST_OWNER_ID)
    name = "Operator" if email == OPERATOR_EMAIL else email.partition("@")[0]
    insert_users(db, [(user_id, name, email, format_time(now))])
    return user_id


def create_token(db: Connection, email: str, name: str, abilities: Sequence[str], expires: int, now: int) -> dict[str, Any]:
    """Make a token and return its record with the secret under `token`, which nobody will see again.

    `expires` is the life of the token in seconds, 0 for ever.
    """
    text = new_token_text()
    record: dict[str, Any] = {
        "name": name,
        "abilities": list(abilities),
        "expires_at": format_time(now + expires * MICROSECONDS) if expires else None,
        "created_at": format_time(now),
    }
    with transaction(db):
        user_id = ensure_owner(db, email, now)
        row = {**record, "user_id": user_id, "token": hash_token(text), "abilities": json.dumps(record["abilities"])}
        token_id = insert_token(db, row)
    return {"id": token_id, "user_id": user_id, "token": text, **record}


def authenticate_token(reader: Reader, text: str, now: int) -> Token | None:
    """Return the token behind a secret, or None when it is wrong, expired or revoked.

    The checksum refuses random guesses without a query. The index finds a hash, not the secret, so its timing tells nothing
    of use; the comparison is in constant time all the same. A token that was found is remembered while the desk stays as it
    is: a revocation changes the desk.
    """
    digest = hash_token(text)
    token = reader.tokens.get(digest)
    if token is None:
        if not is_well_formed(text):
            return None
        row = find_token(reader.db, digest)
        if row is None or not hmac.compare_digest(row["token"], digest):
            return None
        abilities = frozenset(json.loads(row["abilities"]))
        token = Token(row["id"], row["user_id"], abilities, row["last_used_at"], row["expires_at"])
        if len(reader.tokens) < MAX_CACHED_TOKENS:
            reader.tokens[digest] = token
    if token.expires_at is not None and token.expires_at <= format_time(now):
        return None
    return token


def explain_refusal(db: Connection, text: str) -> str:
    """Say for the operator why a token is refused; whoever sent it is not told."""
    if not text or not is_well_formed(text):
        return "malformed" if text else "missing"
    return "expired" if find_token(db, hash_token(text)) else "unknown"


def note_token_use(reader: Reader, path: Place, token: Token, now: int) -> None:
    """Write last_used_at, at most once a minute; while the desk is locked leave it to a later request."""
    if token.last_used_at is not None and token.last_used_at > format_time(now - MINUTE_MICROSECONDS):
        return
    with suppress(sqlite3.OperationalError, PostgresError):
        with borrowed(reader.db, path, NOTER) as db, transaction(db):
            touch_token(db, token.id, format_time(now))
        for digest, known in reader.tokens.items():  # in PostgreSQL this is no change of the desk that tells readers of itself
            if known.id == token.id:
                reader.tokens[digest] = known._replace(last_used_at=format_time(now))


def revoke_token(db: Connection, token_id: int) -> None:
    """Delete a token: the next request with it is refused. Raises NotFound."""
    with transaction(db):
        if not delete_token(db, token_id):
            raise NotFound(f"no token has the id {token_id}; `token list` shows those there are")


def prune_tokens(db: Connection, now: int) -> int:
    """Delete expired tokens and return how many those were."""
    with transaction(db):
        return delete_expired_tokens(db, format_time(now))


class Limit(NamedTuple):
    """What a bucket answers."""

    policy: str
    allowed: bool
    size: int
    remaining: int
    next_in: int  # seconds until one more request is allowed than now
    first: bool = False  # the first refusal of its key in a minute


@dataclass(eq=False)
class TokenBucket:
    """A bucket of permissions for each key: `size` at once, refilled evenly within a minute.

    At most BUCKETS keys are kept; the least recently used is forgotten. https://en.wikipedia.org/wiki/Token_bucket
    """

    size: int
    policy: str  # its name in headers
    _buckets: OrderedDict[object, tuple[float, float, float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: object, now: float) -> Limit:
        """Take one permission from a key's bucket, if there is one; `now` is monotonic seconds."""
        refill = self.size / MINUTE
        with self._lock:
            left, since, told = self._buckets.pop(key, (float(self.size), now, -math.inf))
            left = min(self.size, left + (now - since) * refill)
            allowed = left >= 1 - 1e-9
            first = not allowed and now - told >= MINUTE
            left -= allowed
            self._buckets[key] = (left, now, now if first else told)
            if len(self._buckets) > BUCKETS:
                self._buckets.popitem(last=False)
        return self.answer(allowed, left, first)

    def answer(self, allowed: bool, left: float, first: bool = False) -> Limit:
        """Return a bucket's answer; `left` are the permissions in it now."""
        remaining = int(left + 1e-9)
        next_in = math.ceil((remaining + 1 - left) * MINUTE / self.size - 1e-6)
        return Limit(self.policy, allowed, self.size, remaining, max(next_in, 1), first)

    def emptiest(self, count: int, now: float) -> list[tuple[Any, int]]:
        """Return keys and what remains in their buckets, the least first; those that are full are left out."""
        refill = self.size / MINUTE
        with self._lock:
            buckets = list(self._buckets.items())
        filled: list[tuple[float, Any]] = [(left + (now - since) * refill + 1e-9, key) for key, (left, since, _) in buckets]
        return [(key, int(left)) for left, key in heapq.nsmallest(count, filled) if left < self.size]


@dataclass(eq=False, kw_only=True)
class DeskBucket(TokenBucket):
    """The buckets of a desk that many servers answer for: in its database, and by its clock."""

    readers: Readers

    def take(self, key: object, now: float) -> Limit:
        """Take one permission from a user's bucket, if there is one; forget what is remembered if the desk has changed."""
        reader = self.readers.get()
        allowed, left, version = take_permission(reader.db, key, self.size)
        reader.refresh(version)
        return self.answer(allowed, left)

    def emptiest(self, count: int, now: float) -> list[tuple[Any, int]]:
        """Return users and what remains in their buckets, the least first; those that are full are left out."""
        return list_permissions(self.readers.get().db, count, self.size)


def address_key(address: str) -> str:
    """Return what counts as one source: an IPv4 address, or the /64 network of an IPv6 one (RFC 6177)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])  # a zone makes no other source
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return address


# ======================================================================================================================
# Room 10. Audit: what is written down of each request, redacted; reads it back and prunes it. Opens transactions.
# ======================================================================================================================

MAX_AUDIT_BYTES = 4096  # of a query or body
MAX_AUDIT_USER_AGENT, MAX_AUDIT_PATH = 255, 1024  # in characters
MAX_WAITING_AUDITS = 4000  # rows kept in memory while the log cannot be written: 2 MB as a rule, 24 MB at most
AUDIT_WAIT_MS = 500  # how long requests wait, once, for a lock on the log
AUDIT_PAGE = 200  # rows of the log in memory at a time, 9 KB each at most
AUDIT_SPAN = 10_000  # ids that one statement reads through: 1 to 2 ms, 50 ms where every row is as large as can be
AUDIT_SPANS = 5  # of those that one request reads through
AUDIT_STEP = 100  # rows deleted in one transaction: 0.1 ms, 5 ms where every row is as large as can be
AUDIT_LOOK = 1000  # rows from the oldest on that a step looks for them in: 0.2 ms, 8 ms there
AUDIT_PAUSE = 0.005  # seconds between two such transactions, for those who wait to write


SECRET_KEY = re.compile(r"authorization|token|password|secret|key|cookie", re.IGNORECASE)
REDACTED = "[redacted]"
TOKEN_LENGTH = 50
CUT_AUDIT = MAX_AUDIT_BYTES + TOKEN_LENGTH  # characters that are looked at
TOKEN_START = re.compile(r"tkt_[0-9A-Za-z]*\Z")


def write_redacted(value: Any, pieces: list[str], room: int) -> int:
    """Append a value as JSON to pieces until `room` (characters) is used up; return what is left, which may be negative.

    The values of secret keys and texts shaped like our tokens are replaced, at any depth; other scalars are written as texts.
    A body may hold 64 KiB, of which the log keeps 4: to redact all of it took up to 96 ms of the only thread.
    """
    opening = "{" if isinstance(value, dict) else "["
    if isinstance(value, dict):
        for key, inner in value.items():
            pieces.append(f"{opening}{write_scalar(key)}:")
            room, opening = room - len(pieces[-1]), ","
            room = write_redacted(REDACTED if SECRET_KEY.search(key) else inner, pieces, room)
            if room < 0:
                break
        pieces.append("}" if value else "{}")
        room -= 2
    elif isinstance(value, list):
        for inner in value:
            pieces.append(opening)
            room, opening = write_redacted(inner, pieces, room - 1), ","
            if room < 0:
                break
        pieces.append("]" if value else "[]")
        room -= 2
    else:
        pieces.append(write_scalar(value))
        room -= len(pieces[-1])
    return room


def write_scalar(value: Any) -> str:
    """Write a scalar as a redacted JSON text, no more of it than the log can hold, and no token in half."""
    if not isinstance(value, str):
        return f'"{(str(value) if type(value) is int else compact(value))[:CUT_AUDIT]}"'
    return str(compact(cut_text(value, MAX_AUDIT_BYTES)))


def redact_text(text: str) -> str:
    """Replace everything in a text that is shaped like one of our tokens."""
    return TOKEN_PATTERN.sub(REDACTED, text)


def cut_text(text: str, limit: int) -> str:
    """Return a redacted text, of a long one about `limit` characters, with no token in half, at the cost of those alone."""
    if len(text) <= limit + TOKEN_LENGTH:
        return redact_text(text)
    return TOKEN_START.sub(REDACTED, redact_text(text[: limit + TOKEN_LENGTH]))


def audit_payload(value: Any) -> str | None:
    """Write a query or body as the audit log keeps it: a JSON object of at most MAX_AUDIT_BYTES, or None."""
    if not value:
        return None
    try:
        pieces: list[str] = []
        write_redacted(value if isinstance(value, dict) else {"body": value}, pieces, CUT_AUDIT)
    except RecursionError:
        return '{"unreadable":"nested too deeply"}'
    text = "".join(pieces).encode(errors="replace").decode()  # JSON may hold half a surrogate pair, which SQLite cannot keep
    data = escape_json(text).encode()
    if len(data) <= MAX_AUDIT_BYTES:
        return data.decode()
    start = data[: MAX_AUDIT_BYTES // 2 - 16].decode(errors="ignore")  # escaping its quotes may double it
    return compact({"truncated": start})


def escape_json(text: str) -> str:
    """Escape, in a JSON text, what a terminal would act on."""
    if text.isprintable():
        return text
    escaped = (char if char.isprintable() else quote(char)[1:-1] for char in text)
    return "".join(escaped).replace("\x7f", "\\u007f")  # the one control character that JSON allows


def parse_body(raw: bytes, content_type: str) -> Any:
    """Read a request body for the audit log; one that cannot be read is described, as its secrets cannot be found.

    JSON is recognised by its first character too: curl -d sends it as a form.
    """
    if "form-urlencoded" in content_type and not raw.lstrip().startswith((b"{", b"[")):
        return parse_form(raw.decode(errors="replace"))
    try:
        return parse_start(raw[: 4 * CUT_AUDIT].decode(errors="replace")) if len(raw) > CUT_AUDIT else json.loads(raw)
    except (ValueError, RecursionError):
        return {"unreadable": f"{len(raw)} bytes"} if raw else None


def parse_start(text: str) -> dict[str, Any]:
    """Read the start of a long JSON text, completed: a text ends, a bracket is closed, where it is cut. Raises ValueError."""
    start = re.sub(r"\\(u[0-9A-Fa-f]{0,3})?\Z", "", TOKEN_START.sub(REDACTED, text[:CUT_AUDIT]))
    masked = re.sub(r'"(?:[^"\\]|\\.)*("|\Z)', lambda match: ("_" if match[1] else "~") * len(match[0]), start, flags=re.DOTALL)
    cut = masked.rfind(",")
    with suppress(ValueError):
        if masked.endswith(("~", "_", "]", "}")):
            return {"truncated": json.loads(start + '"' * masked.endswith("~") + closing_brackets(masked))}
    return {"truncated": json.loads(start[:cut] + closing_brackets(masked[:cut]))}


def closing_brackets(text: str) -> str:
    """Return the brackets that close those that are open at the end of a JSON text without its strings."""
    closing: list[str] = []
    for bracket in re.findall(r"[\[\]{}]", text):
        if bracket in "[{":
            closing.append("]" if bracket == "[" else "}")
        elif closing:
            closing.pop()
    return "".join(reversed(closing))


def parse_form(text: str) -> dict[str, Any]:
    """Read the fields of a form or query for the audit log: of a long one the first alone, said to be truncated."""
    fields = parse_qsl(text[:CUT_AUDIT], keep_blank_values=True)
    if len(text) <= CUT_AUDIT or not fields:
        return dict(fields)
    fields[-1] = (TOKEN_START.sub(REDACTED, fields[-1][0]), TOKEN_START.sub(REDACTED, fields[-1][1]))
    return {"truncated": dict(fields)}


# What one row can be at fault for; all else lies with the file.
ROW_FAULTS = (RowFault, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError, OverflowError, ValueError)


class AuditLog:
    """The audit log: one connection that all threads share under a lock.

    A commit costs more than a row. A server that answers several requests before it sends the answers therefore sets
    `grouped`: rows wait until it calls `commit`. Otherwise each row is committed at once. While the file cannot be written (it
    is locked, the disk is full), answers go on and up to MAX_WAITING_AUDITS rows wait in memory.
    """

    def __init__(self, path: Place, grouped: bool = False) -> None:
        """Open the log, which is created when it is not there."""
        self.path = path
        self.grouped = grouped
        self.failures = 0  # times that it could not be written
        self.lost = 0  # rows
        self.omitted = 0  # rows
        self._told_at = -math.inf
        self._told = False
        self._retry_at = -math.inf  # beyond all times while nothing fails
        self._db = open_database(path, "audit")
        self._lock = threading.Lock()
        self._waiting: list[Mapping[str, Any]] = []
        keep(self._db)
        set_busy_timeout(self._db, AUDIT_WAIT_MS)

    def record(self, audit: Mapping[str, Any], now: float) -> None:
        """Take the row of one request; `now` is monotonic seconds."""
        with self._lock:
            self._waiting.append(audit)
        if not self.grouped:
            self.commit(now)

    def omit(self, now: float) -> None:
        """Count a row that is not worth one, or strangers would fill the disk; say so once a minute."""
        with self._lock:
            self.omitted += 1
            if now - self._told_at >= MINUTE:
                self._told_at = now
                log.info("over the limit without a valid token, and not audited: %d so far", self.omitted)

    def commit(self, now: float) -> None:
        """Write the rows taken; while that fails, try once a second and raise nothing: a failing audit breaks no answer."""
        with self._lock:
            if self._waiting and now >= self._retry_at:
                self._write(now)

    def _write(self, now: float) -> None:
        """Write what waits, or leave it for later."""
        try:
            try:
                insert_audits(self._db, self._waiting)
            except ROW_FAULTS as error:  # a row that can never be written must not hold up the others, nor take them with it
                self.failures += 1
                lost = 0
                try:
                    while self._waiting:  # what is done is done: the file may fail between two rows
                        lost += not self._is_written(self._waiting[0])
                        del self._waiting[0]
                finally:
                    self._lose(lost, str(error))
        except FAILURES as error:
            self._postpone(error, now)
        else:
            self._waiting.clear()
            if self._retry_at > -math.inf:
                self._retry_at = -math.inf
                set_busy_timeout(self._db, AUDIT_WAIT_MS)
                if self._told:
                    log.info("the audit log is written again: %s", self.path)

    def _is_written(self, row: Mapping[str, Any]) -> bool:
        """Write one row of a group that failed; tell whether that was possible."""
        with suppress(*ROW_FAULTS):
            insert_audits(self._db, [row])
            return True
        return False

    def _postpone(self, error: Exception, now: float) -> None:
        """Keep the rows for another try in a second, without waiting for locks; beyond the bound the oldest are lost."""
        self.failures += 1
        if self._retry_at == -math.inf:
            self._told = not isinstance(error, Unreachable)  # which is told when it begins, and when it ends
            if self._told:
                log.error("audit rows wait in memory: %s", explain_failure(error, self.path))
            with suppress(*FAILURES):
                set_busy_timeout(self._db, 0)
        self._retry_at = now + 1
        excess = max(0, len(self._waiting) - MAX_WAITING_AUDITS)
        del self._waiting[:excess]
        self._lose(excess, "too many wait")

    def _lose(self, rows: int, reason: str) -> None:
        """Count rows that are given up, if there are any, and log it."""
        if rows:
            self.lost += rows
            log.error("audit rows lost, %d so far: %s: %s", self.lost, self.path, reason)

    @property
    def waiting(self) -> int:
        """How many rows are not written yet."""
        return len(self._waiting)

    def prune(self, before: str, limit: int) -> int:
        """Delete some of the rows from before a time, the oldest first; return how many. Raises sqlite3.Error.

        Requests wait for it, so it is one short transaction and does not wait for another program.
        """
        with self._lock, without_waiting(self._db):
            return prune_audits(self._db, before, limit)

    def close(self) -> None:
        """Write what waits, if that can be done, and close the file."""
        self.commit(math.inf)
        with self._lock:
            self._lose(len(self._waiting), "the server has ended")
            self._db.close()


def make_audit_filter(
    user_id: int | None, token_id: int | None, status: range | None, path: str | None, since: int | None
) -> AuditFilter:
    """Return a filter of the log in which None means all; `since` is microseconds since 1970."""
    statuses = status or range(1000)
    since_text = "" if since is None else format_time(since)
    return AuditFilter(user_id, token_id, statuses[0], statuses[-1], path or "", since_text)


def step_back(db: Connection, wanted: AuditFilter, below: int, size: int) -> tuple[list[Row], int]:
    """Read the last AUDIT_SPAN ids below one: return the newest rows wanted, and below which id to go on, 0 at the end.

    The log may hold millions of rows, so no statement reads more than a span. As the clock may have been set back, the search
    ends only after a whole span of rows that are too old.
    """
    highest = find_last_audit_id(db, below)
    if highest is None:
        return [], 0
    lowest = highest - AUDIT_SPAN + 1
    page = list_audits_back(db, lowest, highest, wanted, size)
    if len(page) == size:
        return page, page[-1]["id"]
    too_old = not page and wanted.since and not has_audits_since(db, lowest, highest, wanted.since)
    return page, 0 if too_old else lowest


def step_forward(db: Connection, wanted: AuditFilter, above: int, highest: int, size: int) -> tuple[list[Row], int]:
    """Read the first AUDIT_SPAN ids above one, up to `highest`: return the oldest rows wanted, and above which id to go on."""
    first = find_audit_from(db, above + 1)
    if first is None or first["id"] > highest:
        return [], highest
    end = min(highest, first["id"] + AUDIT_SPAN - 1)
    page = list_audits(db, first["id"], end, wanted, size)
    return page, page[-1]["id"] if len(page) == size else end


def newest_audits(db: Connection, wanted: AuditFilter, limit: int = 0) -> Iterator[list[Row]]:
    """Yield the rows wanted in pages, newest first, at most `limit` of them; 0 is all. No statement is open between two."""
    below, left = MAX_ID, limit or MAX_ID
    while left and below > 0:
        page, below = step_back(db, wanted, below, min(AUDIT_PAGE, left))
        left -= len(page)
        if page:
            yield page


def follow_audits(db: Connection, wanted: AuditFilter, limit: int) -> Iterator[list[Row]]:
    """Yield the newest rows wanted in pages, oldest first, and then those that come; an empty page while there are none."""
    last = find_last_audit_id(db, MAX_ID) or 0 if limit else 0
    for page in newest_audits(db, wanted, limit) if limit else ():
        last = page[-1]["id"] - 1
    while True:
        newest = find_last_audit_id(db, MAX_ID) or 0
        while last < newest:
            page, last = step_forward(db, wanted, last, newest, AUDIT_PAGE)
            if page:
                yield page
        yield []


def read_payload(text: str | None) -> Any:
    """Return the JSON object of a query or body; the text itself where it is none."""
    try:
        return json.loads(text, parse_constant=str) if text else None
    except (ValueError, RecursionError):
        return text


def audit_resource(row: Row) -> dict[str, Any]:
    """Return a row of the log with its query and body as objects."""
    return {**dict(row), "query": read_payload(row["query"]), "request_body": read_payload(row["request_body"])}


def read_path_text(text: str) -> str:
    """Read a text that a path may hold."""
    if len(text) > 255:
        raise ValueError("it is too long")
    return text


def read_since(text: str, now: int) -> int | None:
    """Read what `read_moment` reads; a duration of 0 is no filter."""
    return None if re.fullmatch("0+[smhd]?", text) else read_moment(text, now)


class AuditRequest(NamedTuple):
    """Which slice of the audit log is asked for."""

    url: str  # without the query
    fields: dict[str, str]  # of the query, which links carry on
    wanted: AuditFilter
    per_page: int
    cursor: Cursor | None


def parse_audit_request(desk: Connection, url: str, query: Mapping[str, str], now: int) -> AuditRequest:
    """Read filters, `per_page` and `cursor`; raises InvalidFields, also for an address that no user of the desk has."""
    parsers: dict[str, tuple[Callable[[str], Any], str]] = {
        "user": (read_user, "a user's id or e-mail address"),
        "token": (read_id, "the id of a token"),
        "status": (read_status, "an HTTP status such as 404, or 4xx"),
        "path": (read_path_text, "a text of at most 255 characters"),
        "since": (partial(read_since, now=now), "a duration such as 24h, or a UTC time such as 2025-12-04T11:30:16Z"),
    }
    query = {name: text.strip() for name, text in query.items()}  # as Laravel does
    errors: dict[str, list[str]] = {}
    filters: dict[str, Any] = dict.fromkeys(parsers)
    for name, (read, wanted) in parsers.items():
        if query.get(name):
            try:
                filters[name] = read(query[name])
            except ValueError:
                errors[name] = [f"The {name} field must be {wanted}."]
    per_page = read_positive(query, "per_page", PER_PAGE, MAX_PER_PAGE, errors)
    cursor = read_cursor(query, url, errors)
    if errors:
        raise InvalidFields(errors)
    if isinstance(filters["user"], str):
        user = find_user_by_email(desk, filters["user"])
        if not user:
            raise InvalidFields({"user": ["The selected user is invalid."]})
        filters["user"] = user["id"]
    fields = {name: query[name] for name in parsers if query.get(name)}
    fields |= {"per_page": str(per_page)} if query.get("per_page") else {}
    return AuditRequest(url, fields, make_audit_filter(*filters.values()), per_page, cursor)


AuditSlice = tuple[list[Row], int | None, int | None]  # rows, and the ids at which newer and older ones go on


def audits_before(db: Connection, wanted: AuditFilter, below: int, size: int) -> AuditSlice:
    """Return the newest rows wanted below an id, as many as `size`, from AUDIT_SPANS spans of AUDIT_SPAN ids at most."""
    rows: list[Row] = []
    newest = end = max(1, min(below, (find_last_audit_id(db, MAX_ID) or 0) + 1))
    for _ in range(AUDIT_SPANS):
        page, end = step_back(db, wanted, end, size - len(rows))
        rows += page
        if len(rows) == size or end <= 0:
            break
    newer = None if find_audit_from(db, newest) is None else newest - 1
    return rows, newer, None if find_last_audit_id(db, end) is None else end


def audits_after(db: Connection, wanted: AuditFilter, above: int, size: int) -> AuditSlice:
    """Return the oldest rows wanted above an id, newest first, as bounded as `audits_before`."""
    rows: list[Row] = []
    highest = find_last_audit_id(db, MAX_ID) or 0
    above = end = min(above, highest)
    for _ in range(AUDIT_SPANS):
        page, end = step_forward(db, wanted, end, highest, size - len(rows))
        rows += page
        if len(rows) == size or end >= highest:
            break
    newer = None if find_audit_from(db, end + 1) is None else end
    return rows[::-1], newer, None if find_last_audit_id(db, above + 1) is None else above + 1


def audits_page(desk: Connection, audit_log: Place, asked: AuditRequest) -> bytes:
    """Return a slice of the audit log in the envelope of Laravel's cursorPaginate."""
    wanted, cursor, url = asked.wanted, asked.cursor, asked.url
    with borrowed(desk, audit_log, LOG_READER) as db, snapshot(db):
        if cursor and not cursor.forward:
            rows, newer, older = audits_after(db, wanted, cursor.key, asked.per_page)
        else:
            rows, newer, older = audits_before(db, wanted, cursor.key if cursor else MAX_ID, asked.per_page)
    following = None if older is None else encode_cursor(Cursor(older, True), url)
    previous = None if newer is None else encode_cursor(Cursor(newer, False), url)
    link = (f"{url}?{urlencode({**asked.fields, 'cursor': ''})}", "")
    envelope = cursor_envelope(url, asked.per_page, link, previous, following)
    return to_json({"data": [audit_resource(row) for row in rows], **envelope})


def count_old_audits(db: Connection, before: str) -> int:
    """Estimate how many rows are from before a time, by binary search; exact where times grow with the ids."""
    first, last = find_audit_from(db, 0), find_last_audit_id(db, MAX_ID)
    if first is None or last is None:
        return 0
    later = {"created_at": before}  # past the end
    ids = range(first["id"], last + 1)
    return bisect_left(ids, before, key=lambda audit_id: (find_audit_from(db, audit_id) or later)["created_at"])


def prune_audits(db: Connection, before: str, limit: int) -> int:
    """Delete some of the rows from before a time, the lowest ids first; return how many, 0 at the end of the work.

    Younger rows may lie among them, if the clock was wrong: they stay, and the work ends where AUDIT_LOOK of them come first.
    """
    with transaction(db):
        return delete_old_audits(db, before, limit, AUDIT_LOOK)


# ======================================================================================================================
# Room 11. Watch: how a server fares: its traffic, its jobs, metrics, readiness. Uses queries.
# ======================================================================================================================

TRAFFIC_MINUTES = 60  # for which requests are counted by the minute
DURATIONS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds; bounds of a histogram
SLOWEST_ROUTES, EMPTIEST_BUCKETS = 10, 10  # that a summary lists
HEARTBEAT_SECONDS = 30  # without going round, after which the scheduler counts as dead


@dataclass(slots=True)
class RouteTraffic:
    """How the requests of one route were answered, and how long that took."""

    statuses: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATIONS) + 1))  # the last is of more than the last bound
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def requests(self) -> int:
        """How many requests there were."""
        return sum(self.buckets)

    def quantile(self, share: float) -> float:
        """Return a quantile of the durations in seconds, interpolated within a bucket of the histogram."""
        upto, bounds = list(accumulate(self.buckets)), (0.0, *DURATIONS, max(self.slowest, DURATIONS[-1]))
        wanted = share * upto[-1]
        number = bisect_left(upto, wanted)
        share = 1 - (upto[number] - wanted) / self.buckets[number]
        return min(bounds[number] + (bounds[number + 1] - bounds[number]) * share, self.slowest)


@dataclass(eq=False)
class Traffic:
    """Requests by route and status with a histogram of their durations, and by status for each of the last minutes.

    Its memory is bounded by the numbers of routes, statuses and minutes.
    """

    since: int  # microseconds
    _routes: defaultdict[str, RouteTraffic] = field(default_factory=lambda: defaultdict(RouteTraffic))
    _minutes: dict[int, defaultdict[int, int]] = field(default_factory=dict)  # by their number since 1970
    _refusals: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, route: str, status: int, now: int, seconds: float) -> None:
        """Count a request that began at a time (microseconds) and took so many seconds. Costs 0.7 microseconds."""
        minute = now // MINUTE_MICROSECONDS
        with self._lock:
            of_route = self._routes[route]
            of_minute = self._minutes.get(minute) or self._begin_minute(minute)
            of_minute[status] += 1
            of_route.statuses[status] += 1
            of_route.buckets[bisect_left(DURATIONS, seconds)] += 1
            of_route.seconds += seconds
            if seconds > of_route.slowest:
                of_route.slowest = seconds

    def _begin_minute(self, minute: int) -> defaultdict[int, int]:
        """Begin the counters of a minute; drop those that are too old, or in the future after the clock was set back."""
        kept = range(minute - TRAFFIC_MINUTES + 1, minute)
        self._minutes = {number: counters for number, counters in self._minutes.items() if number in kept}
        counters = self._minutes[minute] = defaultdict(int)
        return counters

    def refuse(self, status: int) -> None:
        """Count a request that was refused before it had a route."""
        with self._lock:
            self._refusals[status] += 1

    def routes(self) -> dict[str, RouteTraffic]:
        """Return what was counted of each route, by name."""
        with self._lock:
            return {
                route: replace(counters, statuses=counters.statuses.copy(), buckets=counters.buckets[:])
                for route, counters in sorted(self._routes.items())
            }

    def minutes(self, now: int) -> list[tuple[int, dict[int, int]]]:
        """Return beginning (microseconds) and requests by status of each of the last minutes, the oldest first."""
        last = now // MINUTE_MICROSECONDS
        with self._lock:
            found = {minute: dict(sorted(counters.items())) for minute, counters in self._minutes.items()}
        numbers = range(last - TRAFFIC_MINUTES + 1, last + 1)
        return [(minute * MINUTE_MICROSECONDS, found.get(minute, {})) for minute in numbers]

    def refusals(self) -> dict[int, int]:
        """Return how many requests were refused before they had a route, by status."""
        with self._lock:
            return dict(sorted(self._refusals.items()))


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)


def route_resource(route: str, counters: RouteTraffic) -> dict[str, Any]:
    """Return what a summary says of a route."""
    return {
        "route": route,
        "requests": counters.requests,
        "mean_ms": milliseconds(counters.seconds / counters.requests),
        "p95_ms": milliseconds(counters.quantile(0.95)),
        "max_ms": milliseconds(counters.slowest),
    }


def summarize_traffic(
    traffic: Traffic, users: TokenBucket | None, addresses: TokenBucket, now: int, tick: float
) -> dict[str, Any]:
    """Return the requests of the last minutes, the slowest routes and the emptiest buckets."""
    found = traffic.routes()
    routes = [route_resource(route, counters) for route, counters in found.items()]
    minutes = [
        {"at": format_time(at), "requests": sum(statuses.values()), "statuses": {str(key): n for key, n in statuses.items()}}
        for at, statuses in traffic.minutes(now)
    ]
    of_users = users.emptiest(EMPTIEST_BUCKETS, tick) if users else []
    limiter = {
        "limit": users.size if users else None,
        "window": MINUTE,
        "refused": sum(counters.statuses.get(429, 0) for counters in found.values()),
        "users": [{"user_id": user_id, "remaining": left} for user_id, left in of_users],
        "addresses": [{"address": address, "remaining": left} for address, left in addresses.emptiest(EMPTIEST_BUCKETS, tick)],
    }
    slowest = sorted(routes, key=lambda route: -route["mean_ms"])[:SLOWEST_ROUTES]
    return {"since": format_time(traffic.since), "minutes": minutes, "routes": slowest, "limiter": limiter}


class Outcome(NamedTuple):
    """What came of a job's turn."""

    result: Mapping[str, Any] | None  # what it did, as its command tells it with --json
    more: bool = False  # there is more to do, at the next turn
    elsewhere: bool = False  # another server has done it
    failed: bool = False  # which the job has logged itself


class JobRuns(NamedTuple):
    """How the runs of a job went. Replaced as a whole, so that another thread never sees half of a run."""

    runs: int = 0
    failures: int = 0  # among them
    last_at: int | None = None  # microseconds
    last_status: str | None = None  # "ok" or "failed"
    last_result: Mapping[str, Any] | None = None
    lateness: float = 0.0  # seconds from when the last run was due to when it began


@dataclass
class Job:
    """Something to do every so many seconds, counted from the epoch, so that `every` 60 is on the minute."""

    name: str
    every: int  # seconds
    run: Callable[[int], object]  # takes the time, in microseconds; may return an Outcome
    next_at: int | None = field(default=None, kw_only=True)  # microseconds; None before the first round
    past: JobRuns = field(default=JobRuns(), kw_only=True)
    goes_on: bool = field(default=False, kw_only=True)  # the last turn left something to do

    def boundary_after(self, moment: int) -> int:
        """Return the first boundary after a moment."""
        step = self.every * MICROSECONDS
        return (moment // step + 1) * step


@dataclass(eq=False)
class Schedule:
    """The jobs of a server, and when the scheduler last looked whether one is due."""

    jobs: Sequence[Job]
    heartbeat: float  # monotonic seconds

    def alive(self, now: float) -> bool:
        """Tell whether the scheduler has looked within HEARTBEAT_SECONDS; true when it has no jobs."""
        return not self.jobs or now - self.heartbeat < HEARTBEAT_SECONDS


def job_resource(job: Job, now: int) -> dict[str, Any]:
    """Return what the API says of a job. One that is to run at once is due now."""
    past, next_at = job.past, job.boundary_after(now) if job.next_at is None else job.next_at
    return {
        "name": job.name,
        "every": job.every,
        "next_at": format_time(now if next_at == NEVER else next_at),
        "last_at": None if past.last_at is None else format_time(past.last_at),
        "last_status": past.last_status,
        "last_result": past.last_result,
        "runs": past.runs,
        "failures": past.failures,
        "lateness": round(past.lateness, 3),
    }


class Metric(NamedTuple):
    """One metric: its name and kind, what it tells, and its samples as (rest of the name, labels, value)."""

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[str, dict[str, str], float]]


def single(value: float) -> list[tuple[str, dict[str, str], float]]:
    """Return the samples of a metric that has one, without labels."""
    return [("", {}, value)]


def write_metrics(metrics: Iterable[Metric]) -> bytes:
    """Write metrics in the text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for suffix, labels, value in metric.samples:
            written = ",".join(f"{name}={quote(text)}" for name, text in labels.items())
            lines.append(f"{metric.name}{suffix}{{{written}}} {value!r}" if written else f"{metric.name}{suffix} {value!r}")
    return "\n".join([*lines, ""]).encode()


def histogram_samples(route: str, counters: RouteTraffic) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the samples of a route's histogram."""
    bounds = [*map(repr, DURATIONS), "+Inf"]
    for bound, requests in zip(bounds, accumulate(counters.buckets), strict=True):
        yield "_bucket", {"route": route, "le": bound}, requests
    yield "_sum", {"route": route}, counters.seconds
    yield "_count", {"route": route}, counters.requests


def request_metrics(traffic: Traffic) -> list[Metric]:
    """Return which program runs since when, the requests by route and status, their durations, and what was refused."""
    routes = traffic.routes()
    python = ".".join(map(str, sys.version_info[:3]))
    versions = ("", {"version": __version__, "python": python, "sqlite": sqlite3.sqlite_version}, 1)
    requests = [
        ("", {"route": route, "status": str(status)}, count)
        for route, counters in routes.items()
        for status, count in sorted(counters.statuses.items())
    ]
    durations = [sample for route, counters in routes.items() for sample in histogram_samples(route, counters)]
    refusals = [("", {"status": str(status)}, count) for status, count in traffic.refusals().items()]
    started, prefix = single(traffic.since / MICROSECONDS), "ticketapi_http"
    return [
        Metric("ticketapi_build_info", "gauge", "The versions that run; always 1.", [versions]),
        Metric("process_start_time_seconds", "gauge", "When the server was started, in Unix time.", started),
        Metric(f"{prefix}_requests_total", "counter", "Requests answered; route is none where none matched.", requests),
        Metric(f"{prefix}_request_duration_seconds", "histogram", "Time from a whole request to its answer.", durations),
        Metric(f"{prefix}_refusals_total", "counter", "Requests that the parser refused, which have no route.", refusals),
    ]


def desk_metrics(readers: Readers) -> list[Metric]:
    """Return the tickets by status; no samples while the desk cannot be read, as that must not hide the other metrics."""
    counts: dict[int, int] = {}
    with suppress(*FAILURES):
        counts = list_ticket_counts(readers.get().db)
    names = {OPEN: "open", CLOSED: "closed"}
    samples = [("", {"status": names[status]}, count) for status, count in counts.items() if status in names]
    return [Metric("ticketapi_tickets", "gauge", "Tickets on the desk.", samples)]


def audit_metrics(audit: AuditLog) -> list[Metric]:
    """Return how the audit log fares."""
    failures, waiting, lost, omitted = map(single, (audit.failures, audit.waiting, audit.lost, audit.omitted))
    return [
        Metric("ticketapi_audit_failures_total", "counter", "Times that the audit log could not be written.", failures),
        Metric("ticketapi_audit_rows_waiting", "gauge", "Rows of the audit log not written yet.", waiting),
        Metric("ticketapi_audit_rows_lost_total", "counter", "Rows of the audit log given up.", lost),
        Metric("ticketapi_audit_rows_omitted_total", "counter", "Refusals of strangers (429) that left no row.", omitted),
    ]


def schedule_metrics(schedule: Schedule, tick: float) -> list[Metric]:
    """Return how the scheduler and its jobs fare."""
    pasts = [({"job": job.name}, job.past) for job in schedule.jobs]
    ran = [(labels, past) for labels, past in pasts if past.last_at is not None]
    runs = [
        ("", {**labels, "result": result}, count)
        for labels, past in pasts
        for result, count in (("ok", past.runs - past.failures), ("failed", past.failures))
    ]
    times = [("", labels, (past.last_at or 0) / MICROSECONDS) for labels, past in ran]
    late = [("", labels, past.lateness) for labels, past in ran]
    prefix = "ticketapi_scheduler"
    return [
        Metric(f"{prefix}_alive", "gauge", "1 while the scheduler goes round.", single(int(schedule.alive(tick)))),
        Metric(f"{prefix}_runs_total", "counter", "Runs of scheduled jobs.", runs),
        Metric(f"{prefix}_last_run_timestamp_seconds", "gauge", "When a job last ran, in Unix time.", times),
        Metric(f"{prefix}_lateness_seconds", "gauge", "How long after it was due a job last ran.", late),
    ]


def wal_metrics(settings: Settings) -> list[Metric]:
    """Return how long the write-ahead logs of both files are."""
    samples: list[tuple[str, dict[str, str], float]] = []
    for kind, path in (("desk", settings.db), ("audit", settings.audit_db)):
        size = 0
        if isinstance(path, Postgres):
            continue
        with suppress(OSError):
            size = sidecars(path)[0].stat().st_size
        samples.append(("", {"file": kind}, size))
    return [Metric("ticketapi_wal_bytes", "gauge", "Size of the write-ahead logs.", samples)]


@dataclass(eq=False)
class Readiness:
    """Whether the desk can be read and written. As anybody may ask, it looks at most once a second."""

    path: Place  # of the desk
    _looked_at: float = -math.inf
    _reason: str | None = None

    def reason_not(self, readers: Readers, now: float) -> str | None:
        """Return why the desk is not ready, or None; `now` is monotonic seconds."""
        if now - self._looked_at >= 1 or (isinstance(self.path, Postgres) and self.path.down):
            self._looked_at, self._reason = now, self._look(readers)
        return self._reason

    def _look(self, readers: Readers) -> str | None:
        """Read a ticket and write a file beside the desk, or see whether PostgreSQL would let us write."""
        try:
            find_newest_ticket(readers.get().db)
            probe_place(self.path, readers.get().db)
        except FAILURES as error:
            if not isinstance(error, Unreachable):
                log.warning("not ready: %s", explain_failure(error, self.path))
            return "The database is read-only." if "25006" in str(error) else "The database does not answer."
        except OSError as error:
            log.warning("not ready: cannot write beside %s: %s", self.path, error.strerror)
            return "The disk is full." if error.errno in DISK_FULL else f"The disk cannot be written: {error.strerror}."
        return None


# ======================================================================================================================
# Room 12. Upkeep: checks a desk, repairs its counters, copies it. Opens transactions.
# ======================================================================================================================

OK, NOTE, WRONG = "ok", "note", "wrong"
RESTORE = "restore a backup"
POSTGRES_CHECKS = ("references", "counters", "order")  # the rest PostgreSQL sees to itself
REPAIR = "run ticketapi check --repair"
WAL_RESET_FIXES = ((3, 44, 6), (3, 50, 7), (3, 51, 3))  # https://sqlite.org/wal.html, "The WAL-Reset Bug"


# Versions below these have a problem worth knowing.
PACKAGE_PROBLEMS = (
    ("bottle", (0, 13, 4), "ticketapi is tested with 0.13.4 and newer, and before 0.12.20 there is CVE-2022-31799"),
    ("waitress", (3, 0, 1), "before 3.0.1 there are CVE-2024-49768 (request smuggling) and CVE-2024-49769 (denial of service)"),
    ("waitress", (3, 0, 2), "before 3.0.2 headers of a proxy that is not trusted get through beside those of one that is"),
)


class Finding(NamedTuple):
    """What one check found: its level is ok, note (worth knowing) or wrong; file is None for what belongs to none."""

    level: str
    file: str | None
    check: str
    detail: str = ""


def judge_sqlite(version: tuple[int, ...]) -> Finding:
    """Say what is known of a version of SQLite."""
    text = ".".join(map(str, version))
    if version < (3, 37):
        return Finding(WRONG, None, "sqlite", f"{text}: ticketapi needs 3.37 or newer; use a newer Python")
    fixed = version >= WAL_RESET_FIXES[-1] or any(version[:2] == fix[:2] and version >= fix for fix in WAL_RESET_FIXES)
    if fixed:
        return Finding(OK, None, "sqlite", text)
    problem = "two connections that commit and checkpoint at the very same moment can damage a file"
    return Finding(NOTE, None, "sqlite", f"{text}: {problem} (WAL-reset bug, very rare); 3.51.3 is cured of it")


def judge_package(name: str, version: str | None) -> Finding:
    """Say what is known of a version of a package, None when it is not installed."""
    if version is None:
        return Finding(NOTE, None, name, "not installed; serve needs it")
    numbers = tuple(map(int, re.findall(r"[0-9]+", version)[:3]))
    for package, cured, problem in PACKAGE_PROBLEMS:
        if package == name and numbers < cured:
            return Finding(NOTE, None, name, f"{version}: {problem}; upgrade it")
    return Finding(OK, None, name, version)


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    import importlib.metadata  # takes longer to load than most commands run

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_modes(path: Path) -> list[Finding]:
    """Check that nobody else can read or write a file and what SQLite has put beside it."""
    wrong = []
    for file in (path, *sidecars(path)):
        with suppress(FileNotFoundError):
            mode = file.stat().st_mode & 0o777
            if mode & 0o077:
                fix = f"run chmod 600 {shlex.quote(str(file))}"
                wrong.append(Finding(WRONG, str(file), "mode", f"{mode:04o} lets other users at it; {fix}"))
    return wrong or [Finding(OK, str(path), "mode")]


def check_access(path: Path) -> Finding:
    """Check that this process could write a file, and beside it."""
    real = os.path.realpath(path)
    shut = [place for place in (real, os.path.dirname(real)) if not os.access(place, os.W_OK)]
    if shut:
        return Finding(WRONG, str(path), "access", f"this user cannot write {shut[0]}; run ticketapi as its owner, or chown it")
    return Finding(OK, str(path), "access")


def explain_damage(error: Exception, path: Place) -> str:
    """Say what SQLite reports of a file that is named already, and the fix."""
    text = str(explain_failure(error, path))
    if text.startswith(f"{path}: "):
        return f"{text.removeprefix(f'{path}: ')}; {RESTORE}"
    return text.removeprefix(f"{path} ")


def attempt(path: Place, check: str, level: str, fix: str, work: Callable[[], list[str]]) -> Finding:
    """Run one check, which returns the problems that it finds; damage that ends it early is a problem, too."""
    try:
        problems = work()
    except FAILURES as error:
        return Finding(WRONG, str(path), check, explain_damage(error, path))
    except MemoryError:  # what a damaged length may ask for
        return Finding(WRONG, str(path), check, f"it is too damaged for this check; {RESTORE}")
    if problems:
        return Finding(level, str(path), check, "; ".join([*problems, fix]))
    return Finding(OK, str(path), check)


def check_schema_version(path: Path, kind: str) -> Finding:
    """Check that a file is ours, not of a newer ticketapi, and not empty; an older one is worth a note."""
    application_id, known = KINDS[kind][:2]
    try:
        check_identity(path, kind)
        found, version, _ = read_identity(path)
    except TicketApiError as error:
        return Finding(WRONG, str(path), "schema", str(error).removeprefix(f"{path} "))
    except FAILURES as error:
        return Finding(WRONG, str(path), "schema", explain_damage(error, path))
    except OSError as error:
        return Finding(WRONG, str(path), "schema", f"cannot be read: {error.strerror}; run check as its owner")
    if found != application_id:
        return Finding(WRONG, str(path), "schema", f"is empty; {RESTORE}, or let another command make it anew")
    if version < known:
        return Finding(NOTE, str(path), "schema", f"version {version}; opening it will upgrade it to version {known}")
    return Finding(OK, str(path), "schema", f"version {version}")


def table_problems(db: Connection, kind: str) -> list[str]:
    """Return which tables and indexes are missing or unlike those of schema.sql."""
    wanted, found = expected_schema(kind), list_schema(db)
    problems = [f"{name} is missing" for name in wanted if name not in found]
    return problems + [f"{name} is unlike schema.sql" for name in wanted if found.get(name, wanted[name]) != wanted[name]]


def extra_tables(db: Connection, kind: str) -> list[str]:
    """Return what somebody else has put into a file: tables, indexes, triggers, views."""
    return [f"{name} is none of ours" for name in list_schema(db).keys() - expected_schema(kind).keys()]


def first_problem(rows: Iterable[Any], text: str, noun: str) -> list[str]:
    """Describe the first of some rows, if there is one, and count the rest."""
    first, more = None, -1
    for row in rows:
        first, more = first or row, more + 1
    rest = f" (and {more} more {noun}{'s' if more > 1 else ''})" if more > 0 else ""
    return [text.format(*first) + rest] if first else []


class HourCounts(NamedTuple):
    """The counters by the hour: tickets that came, by hour, and those closed, by hour and wait."""

    arrivals: Counter[str]
    closings: Counter[tuple[str, int]]


def count_hours(db: Connection) -> HourCounts:
    """Return the counters by the hour as they should be, from the rows. Raises TicketApiError for a time that is none."""
    arrivals: Counter[str] = Counter()
    closings: Counter[tuple[str, int]] = Counter()
    for created_at, closed_at in list_ticket_times(db):
        arrivals[created_at[:13]] += 1
        if closed_at:
            try:
                wait = parse_second(closed_at) - parse_second(created_at)
            except ValueError as error:
                raise TicketApiError(f"a ticket has a time that is none: {escape(str(error))}") from error
            closings[closed_at[:13], cut_wait(max(0, wait))] += 1
    return HourCounts(arrivals, closings)


def hour_problems(db: Connection) -> list[str]:
    """Return how the counters by the hour differ from the rows."""
    try:
        wanted = count_hours(db)
    except TicketApiError as error:
        return [str(error)]
    closed = {(hour, wait): tickets for hour, wait, tickets in list_closings(db, "")}
    found = HourCounts(Counter(dict(list_arrivals(db, ""))), Counter(closed))
    wrong = {hour for hour in wanted.arrivals | found.arrivals if wanted.arrivals[hour] != found.arrivals[hour]}
    wrong |= {place[0] for place in wanted.closings | found.closings if wanted.closings[place] != found.closings[place]}
    return first_problem([(hour,) for hour in sorted(wrong)], "the counters of the hour {0} differ from its tickets", "hour")


def order_problems(db: Connection) -> list[str]:
    """Return where customers are missing and times do not grow, which pages and `opened_last_hour` rely on."""
    return first_problem(((text.format(row_id),) for text, row_id in list_disorder(db)), "{0}", "fault")


def counter_problems(db: Connection) -> list[str]:
    """Return how the counters and the numbers of the lists differ from the rows, in one state of the desk."""
    with snapshot(db):
        waiting, total = count_ticket_rows(db)
        counters = list_ticket_counts(db)
        closed, highest = find_closed_numbers(db)
        unsound = list(list_unsound_users(db))
        misnamed = "ticket {0} shows another name or address than user {1} has"
        more_problems = hour_problems(db) + first_problem(list_misnamed_tickets(db), misnamed, "ticket")
    rows = ((OPEN, "open", waiting), (CLOSED, "closed", total - waiting))
    problems = [
        f"{count} {'ticket is' if count == 1 else 'tickets are'} {word}, the counter says {counters.get(status, 'nothing')}"
        for status, word, count in rows
        if counters.get(status) != count
    ]
    miscounted = (user for user in unsound if user["tickets_count"] != user["written"])
    problems += first_problem(miscounted, "user {0} wrote {2}, the counter says {1}", "user")
    sparse = (user for user in unsound if user["highest"] != user["written"])
    problems += first_problem(sparse, "the tickets of user {0} are numbered up to {3}, there are {2}", "user")
    if highest != closed:
        problems.append(f"closed tickets are numbered up to {highest}, there are {closed}")
    return problems + more_problems


def check_file(path: Path, kind: str) -> list[Finding]:
    """Check the desk or the audit log, without changing it."""
    findings = [*check_modes(path), check_access(path)]
    schema = check_schema_version(path, kind)
    findings.append(schema)
    if schema.level == WRONG:
        return findings
    try:
        db = open_to_inspect(path)
    except FAILURES as error:
        return [*findings, Finding(WRONG, str(path), "tables", explain_damage(error, path))]
    with closing(db), interruptible(db):
        return findings + [attempt(path, *check) for check in checks_of(db, kind, schema.level == OK)]


def checks_of(db: Connection, kind: str, current: bool) -> Iterator[tuple[str, str, str, Callable[[], list[str]]]]:
    """Yield the name, level, fix and function of each check that looks into a file of this or an older version."""
    if current:
        yield "tables", WRONG, RESTORE, partial(table_problems, db, kind)
        yield "extras", NOTE, "see that it does no harm", partial(extra_tables, db, kind)
    yield "integrity", WRONG, RESTORE, partial(integrity_problems, db, 3)
    if kind == "desk":
        yield "references", WRONG, RESTORE, partial(reference_problems, db, 3)
    if kind == "desk" and current:
        yield "counters", WRONG, REPAIR, partial(counter_problems, db)
        yield "order", WRONG, RESTORE, partial(order_problems, db)


def check_everything(settings: Settings) -> list[Finding]:
    """Check versions, the desk and its audit log. Raises TicketApiError when there is no desk."""
    if isinstance(settings.db, Postgres):
        return check_postgres(settings.db)
    require_database(settings.db)
    findings = [judge_sqlite(sqlite3.sqlite_version_info)]
    findings += [judge_package(name, package_version(name)) for name in ("bottle", "waitress")]
    findings += check_file(settings.db, "desk")
    log_file = settings.audit_db
    if isinstance(log_file, Path) and log_file.exists():
        return findings + check_file(log_file, "audit")
    return [*findings, Finding(OK, str(log_file), "file", "there is none yet; serve makes it")]


def check_postgres(place: Postgres) -> list[Finding]:
    """Check versions and a desk in PostgreSQL, in one state of it."""
    findings = [judge_package(name, package_version(name)) for name in ("bottle", "waitress", "psycopg")]
    with explained(place), closing(connect_postgres(place, INSPECTOR)) as db, snapshot(db):
        if not (version := read_version(db, "desk", KINDS["desk"].version)):
            raise TicketApiError(f"there is no desk in {place}; another command, such as `token list`, makes one")
        check_tables(db, "desk", place)
        findings += [Finding(OK, str(place), "server", db.version), Finding(OK, str(place), "schema", f"version {version}")]
        return findings + [attempt(place, *check) for check in checks_of(db, "desk", True) if check[0] in POSTGRES_CHECKS]


def renumber(read: Callable[[int, int], list[Row]], write: Callable[[Iterable[tuple[int, int]]], None]) -> None:
    """Close the gaps in the numbers of a list, in ascending order, so that no number is given away while it is in use."""
    after = done = 0
    while rows := read(after, BATCH):
        write([(number, row_id) for number, (row_id, old) in enumerate(rows, done + 1) if number != old])
        done += len(rows)
        after = rows[-1][1]


def rebuild_counters(db: Connection) -> None:
    """Set the counters and names to what the rows say and number the lists from 1 without gaps, in the order they have."""
    with transaction(db):
        waiting, total = count_ticket_rows(db)
        set_ticket_counts(db, [(OPEN, waiting), (CLOSED, total - waiting)])
        unsound = list(list_unsound_users(db))
        set_user_tickets(db, [(user["written"], user["id"]) for user in unsound])
        for user in unsound:
            if user["highest"] != user["written"]:
                renumber(partial(list_user_numbers, db, user["id"]), partial(set_user_numbers, db))
        closed, highest = find_closed_numbers(db)
        if closed != highest:
            renumber(partial(list_closed_numbers, db), partial(set_closed_numbers, db))
        hours = count_hours(db)
        delete_arrivals(db)
        delete_closings(db)
        add_arrivals(db, hours.arrivals.items())
        add_closings(db, [(*place, tickets) for place, tickets in hours.closings.items()])
        name_tickets_of(db, sorted({(user_id,) for _, user_id in list_misnamed_tickets(db)}))


def repair_counters(path: Place, findings: Iterable[Finding]) -> Finding:
    """Rebuild the counters of a desk when they are all that is wrong with it; say what was done."""
    details = {finding.check: finding.detail for finding in findings if finding.file == str(path) and finding.level != OK}
    if "schema" in details or details.keys() & {"tables", "integrity"}:
        return Finding(WRONG, str(path), "repair", "not tried, as the file is damaged or of another version")
    if "counters" not in details:
        return Finding(OK, str(path), "repair", "there is nothing to repair")
    with closing(open_database(path, "desk")) as db, interruptible(db):
        rebuild_counters(db)
    return Finding(NOTE, str(path), "repair", f"repaired: {details['counters'].removesuffix(f'; {REPAIR}')}")


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the list of a directory, to the disk (fsync). Not for a file that this process has a connection to."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Give an empty file (0600) beside a path, to be filled and renamed to it; remove it if it is still there at the end."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process that had our number
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        temporary.chmod(0o600)  # whatever the umask has taken away
        yield temporary
    finally:
        for file in (temporary, *sidecars(temporary)):
            file.unlink(missing_ok=True)


class Backup(NamedTuple):
    """One file to be copied, and where to."""

    source: Path
    kind: str
    destination: Path


class Copy(NamedTuple):
    """A copy that was checked: how many tickets, or requests, and bytes it has."""

    rows: int
    bytes: int


def plan_backups(settings: Settings, destination: str) -> list[Backup]:
    """Return what to copy where; DEST may be a directory. Refuses what must not be written over."""
    if destination.startswith("postgres"):  # which may hold a password
        raise TicketApiError("DEST of backup is a file; `ticketapi copy` copies into a database")
    if isinstance(settings.db, Postgres) or isinstance(settings.audit_db, Postgres):
        dump = f"pg_dump --format=custom --file={shlex.quote(destination)} {shlex.quote(str(settings.db))}"
        raise TicketApiError(f"a desk in PostgreSQL is copied by its own program: {dump}")
    require_database(settings.db)
    path = Path(destination)
    if destination.endswith("/") or os.path.isdir(path):
        path /= settings.db.name
    backups = [Backup(settings.db, "desk", path)]
    if settings.audit and os.path.exists(settings.audit_db):
        backups.append(Backup(settings.audit_db, "audit", log_path(path)))
    for backup in backups:
        refuse_own_files(settings.db, backup.destination)
        check_destination(backup.destination, settings.force)
    return backups


def refuse_own_files(desk: Place, destination: Path) -> None:
    """Refuse the desk, its audit log and what SQLite puts beside them, by whatever name, there already or not."""
    if isinstance(desk, Postgres):
        return
    for base in (desk, log_path(desk)):
        for file in (base, *sidecars(base), lock_path(base)):
            same = os.path.realpath(destination) == os.path.realpath(file)
            if same or (os.path.exists(file) and os.path.exists(destination) and os.path.samefile(file, destination)):
                raise TicketApiError(f"{destination} belongs to the desk itself; choose another DEST")


def check_destination(destination: Path, force: bool) -> None:
    """Refuse a DEST that cannot hold a copy, or where something is that nobody has given up.

    A WAL or journal beside it is of a database in use, or of one that was killed: SQLite would write it into the new copy. To
    remove it would take from the old one what it holds, so that is left to a person.
    """
    if not os.path.isdir(destination.parent):
        raise TicketApiError(f"there is no directory {destination.parent}; create it, or choose another DEST")
    if os.path.lexists(destination) and not os.path.isfile(destination):
        raise TicketApiError(f"{destination} is no ordinary file; choose another DEST")
    if os.path.lexists(destination) and not force:
        raise TicketApiError(f"{destination} exists; choose another DEST, or replace it with --force")
    if is_served(destination):
        raise TicketApiError(f"{destination} is the desk of a server that runs; stop it, or choose another DEST")
    for file in (destination.with_name(destination.name + suffix) for suffix in SIDECARS):
        if os.path.lexists(file):
            raise TicketApiError(f"{file} shows that {destination} is or was in use; move both away, or choose another DEST")


def verify_copy(copy: Path, backup: Backup, version: int) -> Copy:
    """Return what a copy holds after a check that it is whole; raises TicketApiError."""
    found = read_identity(copy)
    if found[:2] != (KINDS[backup.kind].application_id, version):
        raise TicketApiError(f"{backup.source} is damaged: the copy has another identity; run ticketapi check")
    with closing(open_to_inspect(copy)) as db, interruptible(db):
        problems = integrity_problems(db, 1)
        if problems:
            raise TicketApiError(f"{backup.source} is damaged: {problems[0]}; run ticketapi check")
        if backup.kind == "audit":
            return Copy(count_audits(db), copy.stat().st_size)
        waiting, total = count_ticket_rows(db)
        if list_ticket_counts(db) != {OPEN: waiting, CLOSED: total - waiting}:
            raise TicketApiError(f"the counters of {backup.source} differ from its tickets; {REPAIR}")
        return Copy(total, copy.stat().st_size)


def copy_verified(backup: Backup, copy: Path, done: int, report: Report, note: Callable[[str], object]) -> Copy:
    """Copy one file, put the copy on the disk and verify it; `done` are the bytes of those before."""
    check_identity(backup.source, backup.kind)
    with closing(open_to_inspect(backup.source)) as db, interruptible(db):
        version = copy_database(db, copy, lambda more: report(done + more))
    sync_to_disk(copy)
    note(f"verifying {backup.destination}")
    return verify_copy(copy, backup, version)


def make_backup(backups: Sequence[Backup], force: bool, report: Report, note: Callable[[str], object]) -> list[Copy]:
    """Copy files and give the copies their names when all are done and verified; `report` gets the bytes copied.

    Raises TicketApiError, with nothing changed.
    """
    copies: list[Copy] = []
    try:
        with ExitStack() as stack:
            temporary = [stack.enter_context(temporary_file(backup.destination)) for backup in backups]
            for backup, file in zip(backups, temporary, strict=True):
                copies.append(copy_verified(backup, file, sum(copy.bytes for copy in copies), report, note))
            for backup, file in zip(backups, temporary, strict=True):
                check_destination(backup.destination, force)
                os.replace(file, backup.destination)
            sync_to_disk(backups[0].destination.parent)
    except FAILURES as error:
        raise explain_failed_copy(error, backups[0]) from error
    except OSError as error:
        raise TicketApiError(f"cannot write {backups[0].destination}: {error.strerror}; no backup was made") from error
    return copies


def reported(rows: Iterable[Any], report: Report) -> Iterator[Any]:
    """Pass rows on; `report` gets how many of them, now and then."""
    for done, row in enumerate(rows):
        if not done % BATCH:
            report(done)
        yield row


def copy_tables(source: Connection, target: Connection, kind: str, report: Report) -> dict[str, int]:
    """Copy desk or log within transactions of both, and read it back; return how many rows each table has."""
    copied: dict[str, int] = {}
    for table in TABLES[kind]:
        rows = read_table(source, table)
        sent = write_table(target, table, reported(rows, report) if table == "tickets" else rows)
        if digest_table(target, table) != sent:
            raise TicketApiError(f"{table} differs from what was copied; nothing was kept")
        if table in ("personal_access_tokens", "api_audits"):
            copy_last_id(source, target, table)
        copied[table] = sent[0]
    return copied


def copy_to_postgres(sources: Mapping[str, Connection], target: Postgres, report: Report) -> dict[str, int]:
    """Copy into a database whose desk is empty or not there, all of it or nothing."""
    with explained(target), closing(open_postgres(target, "desk")) as made, closing(connect_postgres(target, COPIER)) as db:
        made.close()
        with transaction(db):
            for kind in sources:
                refuse_filled(db, target, kind)
            copied = {kind: copy_tables(source, db, kind, report) for kind, source in sources.items()}
    return {table: rows for tables in copied.values() for table, rows in tables.items()}


def copy_to_files(sources: Mapping[str, Connection], target: Path, report: Report) -> dict[str, int]:
    """Copy into files that are not there, or hold an empty desk, all of it or nothing."""
    copied: dict[str, int] = {}
    with ExitStack() as stack:
        files = {kind: target if kind == "desk" else log_path(target) for kind in sources}
        parts = {kind: stack.enter_context(temporary_file(file)) for kind, file in files.items()}
        for kind, source in sources.items():
            with closing(connect_file(parts[kind], COPY)) as db:
                create_schema(db, kind)
                with transaction(db):
                    copied |= copy_tables(source, db, kind, report)
            sync_to_disk(parts[kind])
        for kind, file in files.items():
            check_target(file, kind)
        for kind, file in files.items():
            os.replace(parts[kind], file)
        sync_to_disk(target.parent)
    return copied


def check_target(path: Path, kind: str) -> None:
    """Refuse a file that holds anything but an empty desk or log."""
    check_destination(path, force=True)
    if path.exists() and (db := open_read_only(path, kind)):
        with closing(db):
            refuse_filled(db, path, kind)


def refuse_filled(db: Connection, place: Place, kind: str) -> None:
    """Refuse a desk, or a log, that holds anything."""
    if next(read_table(db, TABLES[kind][0]), None):
        name = "a desk" if kind == "desk" else "an audit log"
        raise TicketApiError(f"{place} has {name} already; DEST must be new or empty")


def copy_desk(settings: Settings, target: Place, report: Report) -> dict[str, int]:
    """Copy a desk, and with `audit` its log, to another place; return how many rows each table has."""
    with ExitStack() as stack:
        sources = {}
        for kind in ("desk", "audit") if settings.audit else ("desk",):
            place = settings.db if kind == "desk" else settings.audit_db
            if db := open_read_only(place, kind, views=True):
                stack.enter_context(explained(place))
                stack.enter_context(closing(db))
                stack.enter_context(snapshot(db))
                sources[kind] = db
        if "desk" not in sources:
            raise TicketApiError(f"there is no desk at {settings.db}")
        if isinstance(target, Postgres):
            return copy_to_postgres(sources, target, report)
        refuse_own_files(settings.db, target)
        for kind in sources:
            check_target(target if kind == "desk" else log_path(target), kind)
        return copy_to_files(sources, target, report)


def explain_failed_copy(error: Exception, backup: Backup) -> TicketApiError:
    """Turn what SQLite reports of two files into one line."""
    if "full" in str(error):
        return TicketApiError(f"disk full: make room where {backup.destination} lies; no backup was made")
    explained = explain_failure(error, backup.source)
    if str(explained).startswith(f"{backup.source}: "):
        reason = str(explained).removeprefix(f"{backup.source}: ")
        return TicketApiError(f"cannot copy {backup.source} to {backup.destination}: {reason}; run ticketapi check")
    return explained


# ======================================================================================================================
# Room 13. Plugins: what happens to every request before and after its handler. Touches request and response.
# ======================================================================================================================

MAX_HEADER_BYTES, MAX_BODY_BYTES = 16 * 1024, 64 * 1024
REPEAT_SECONDS = HOUR  # after which a failure of the database that goes on is logged again
PROXIED = {"HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP"}  # with HTTP_X_FORWARDED_*
HOST_PATTERN = re.compile(r"([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]*))?")
NOT_IN_A_PATH = re.compile(r"[\x00-\x1f\x7f]")  # a route's `$` would accept a line feed at the end


COMMON_HEADERS = {
    "Content-Type": "application/json",
    "Cache-Control": "no-cache, private",
    "X-Content-Type-Options": "nosniff",
}


EXPOSED_HEADERS = "ETag, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, RateLimit, RateLimit-Policy"


def is_api(path: str) -> bool:
    """Tell whether a path is audited."""
    return path == "/api" or path.startswith("/api/")


def is_shared(path: str) -> bool:
    """Tell whether pages of other origins may read a path (CORS): the API and its description."""
    return is_api(path) or path == "/openapi.json"


def request_query(environ: dict[str, Any]) -> dict[str, str]:
    """Return the fields of the query, parsed once a request; of a repeated field the last counts, as in PHP."""
    if "ticketapi.query" not in environ:
        text = environ.get("QUERY_STRING", "")
        environ["ticketapi.query"] = dict(parse_qsl(text, keep_blank_values=True)) if text else {}
    query: dict[str, str] = environ["ticketapi.query"]
    return query


def limit_headers(limit: Limit, now: int) -> dict[str, str]:
    """Return the headers of a limit: Laravel's, and those of draft-ietf-httpapi-ratelimit-headers."""
    headers = {
        "X-Ratelimit-Limit": str(limit.size),
        "X-Ratelimit-Remaining": str(limit.remaining),
        "Ratelimit-Policy": f'"{limit.policy}";q={limit.size};w={MINUTE}',
        "Ratelimit": f'"{limit.policy}";r={limit.remaining};t={limit.next_in}',
    }
    if not limit.allowed:
        headers["X-Ratelimit-Reset"] = str(-(-now // MICROSECONDS) + limit.next_in)
    return headers


class Cors:
    """Who may read answers from a script in a page of another origin (https://fetch.spec.whatwg.org/#cors-protocol).

    Credentials are never allowed: the token is the only key.
    """

    def __init__(self, origins: tuple[str, ...]) -> None:
        """Take the origins allowed: `*` for all, `off` for none."""
        self.origins = () if origins == ("off",) else origins

    def headers(self, origin: str) -> dict[str, str]:
        """Return the headers of an answer to a request from an origin (may be empty)."""
        allowed = "*" if "*" in self.origins else origin
        headers = {"Vary": "Origin"} if self.origins and allowed != "*" else {}
        if allowed in self.origins:
            headers |= {"Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": EXPOSED_HEADERS}
        return headers

    def preflight(self, method: str, headers: str) -> dict[str, str]:
        """Return the headers that allow what a preflight asks for, good for a day."""
        vary = ["Access-Control-Request-Method", "Access-Control-Request-Headers"]
        answer = {
            "Access-Control-Allow-Methods": method,
            "Access-Control-Max-Age": str(DAY),
            "Vary": ", ".join(vary if "*" in self.origins else ["Origin", *vary]),
        }
        return {**answer, "Access-Control-Allow-Headers": headers} if headers else answer


# Who asks, and by which URL -----------------------------------------------------------------------


@lru_cache(maxsize=1024)
def split_host(text: str) -> tuple[str, str]:
    """Return name and port of a Host field, "" for none (RFC 9112, section 3.2). Raises BadRequest."""
    match = HOST_PATTERN.fullmatch(text)
    with suppress(ValueError):
        if match and int(match[2] or 0) <= 65_535 and (text[0] != "[" or ipaddress.IPv6Address(match[1][1:-1])):
            return match[1], match[2] or ""
    raise BadRequest("The Host header is not valid.")


def forwarded(environ: Mapping[str, str], name: str, which: int) -> str:
    """Return one value of an X-Forwarded field: of a chain of proxies the first is the client's, the last the nearest's."""
    values = environ.get(f"HTTP_X_FORWARDED_{name}", "").split(",")
    return re.sub(r'^"(.*)"$', r"\1", values[which].strip())


def read_peer(text: str) -> str:
    """Return the address in a value of X-Forwarded-For, without the port that some proxies add. Raises ValueError."""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9.]+):[0-9]+|([0-9A-Fa-f:.]+)", text)
    return str(ipaddress.ip_address(next(filter(None, match.groups()), "") if match else ""))


def believe_proxy(environ: dict[str, Any]) -> None:
    """Take client and URL from X-Forwarded-For, -Proto, -Host, -Port and -Prefix, as Laravel does. Raises ValueError."""
    client, port, prefix = (forwarded(environ, "FOR", -1), forwarded(environ, "PORT", 0), forwarded(environ, "PREFIX", 0))
    if client and client.lower() != "unknown":  # as Squid says (RFC 7239, section 6.2)
        environ["REMOTE_ADDR"] = read_peer(client)
    scheme = environ["wsgi.url_scheme"] = forwarded(environ, "PROTO", 0).lower() or environ["wsgi.url_scheme"]
    host = environ["HTTP_HOST"] = forwarded(environ, "HOST", 0) or environ.get("HTTP_HOST", "")
    name, _ = split_host(host)
    if port:
        usual = int(port) == {"http": 80, "https": 443}.get(scheme)
        environ["HTTP_HOST"] = name + ("" if usual else f":{port}")
        split_host(environ["HTTP_HOST"])
    environ["ticketapi.prefix"] = prefix.rstrip("/")
    if scheme not in ("http", "https") or not re.fullmatch(r"(/[0-9A-Za-z._~-]+)*/?", prefix):
        raise ValueError


def settle_url(environ: dict[str, Any], trusted: str) -> None:
    """Make client, scheme, host and prefix of a request certain, or raise BadRequest."""
    if "HTTP_HOST" not in environ and environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        environ["HTTP_HOST"] = f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
    if trusted and trusted == {"localhost": "unix"}.get(environ["REMOTE_ADDR"], environ["REMOTE_ADDR"]):
        try:
            believe_proxy(environ)
        except (ValueError, BadRequest) as error:
            raise BadRequest("What X-Forwarded-For, -Proto, -Host, -Port or -Prefix says makes no sense.") from error
    name, port = split_host(environ.get("HTTP_HOST", ""))
    environ["HTTP_HOST"] = f"{name}:{port}" if port else name


class AuditHook:
    """Runs before and after each request, whatever becomes of it.

    Before: it notes the time and cleans up the path. After: it adds headers, counts the request and writes its audit row.
    """

    def __init__(
        self, settings: Settings, audit: AuditLog, clock: Clock, traffic: Traffic, admit: Callable[[dict[str, Any]], None]
    ) -> None:
        """Take what the requests of one app share, and what looks at the token of a request under /api."""
        self.settings = settings
        self.admit = admit
        self.audit = audit
        self.traffic = traffic
        self.clock = clock
        self.cors = Cors(settings.cors_origin)

    def before(self) -> None:
        """Start a request; answers a preflight at once."""
        environ = bottle.request.environ
        environ["ticketapi.now"] = self.clock.wall()
        environ["ticketapi.tick"] = self.clock.monotonic()
        # Bottle drops bytes that are no UTF-8; here they become U+FFFD, which no route holds.
        path = environ["bottle.raw_path"].encode("latin-1").decode("utf-8", "replace")
        path = NOT_IN_A_PATH.sub("\ufffd", path)
        environ["PATH_INFO"] = path[:-1] if len(path) > 1 and path.endswith("/") else path
        environ["ticketapi.unaudited"] = True  # what has no client or URL that can be named
        settle_url(environ, self.settings.trusted_proxy)
        environ["ticketapi.unaudited"] = False
        if environ["REQUEST_METHOD"] == "OPTIONS" and is_shared(environ["PATH_INFO"]):
            self.answer_preflight(environ)
        if is_api(environ["PATH_INFO"]) and not environ["ticketapi.unaudited"]:
            self.admit(environ)

    def answer_preflight(self, environ: dict[str, Any]) -> None:
        """Allow what the preflight of an allowed origin asks for; that of another goes on to its route."""
        origin, method = environ.get("HTTP_ORIGIN", ""), environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD", "")
        environ["ticketapi.unaudited"] = bool(origin and method)
        if origin and method and "Access-Control-Allow-Origin" in self.cors.headers(origin):
            asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
            raise bottle.HTTPResponse(status=204, headers=self.cors.preflight(method, asked))

    def after(self) -> None:
        """Finish a request; its audit row is taken before the answer is sent."""
        environ, response = bottle.request.environ, bottle.response
        # Bottle's own dict: a sixth of a cached answer's time went into checking and respelling names and values known here.
        headers: dict[str, list[str]] = response.headers.dict
        for name, value in self.headers(environ).items():
            if name not in headers:  # a page has a type of its own, and a preflight's answer its own Vary
                headers[name] = [value]
        status = response.status_code
        if status == 405:
            methods = {*headers["Allow"][0].split(","), "HEAD"} - {"OPTIONS"}  # as Laravel lists them: OPTIONS goes unsaid
            headers["Allow"] = [", ".join(sorted(methods))]
        tick, route = self.clock.monotonic(), environ.get("bottle.route")
        seconds = tick - environ["ticketapi.tick"]
        self.traffic.count((route and route.name) or "none", status, environ["ticketapi.now"], seconds)
        if is_api(environ["PATH_INFO"]) and not environ["ticketapi.unaudited"]:
            limit: Limit | None = environ.get("ticketapi.limit")
            if limit and not limit.allowed and not limit.first and not environ["ticketapi.token"]:
                self.audit.omit(tick)
            else:
                self.audit.record(audit_row(environ, status, tick), tick)
        if log.isEnabledFor(logging.DEBUG):
            client, path = environ.get("REMOTE_ADDR", "-"), redact_text(environ["PATH_INFO"])
            log.debug("%s %s %s %d", client, environ["REQUEST_METHOD"], path, status)

    def headers(self, environ: dict[str, Any]) -> dict[str, str]:
        """Return the headers that every answer has, with those of CORS and of the limit."""
        headers = COMMON_HEADERS.copy()
        if is_shared(environ["PATH_INFO"]):
            headers.update(self.cors.headers(environ.get("HTTP_ORIGIN", "")))
        limit: Limit | None = environ.get("ticketapi.limit")
        if limit and self.settings.rate:
            headers.update(limit_headers(limit, environ["ticketapi.now"]))
        if limit and not limit.allowed:
            headers["Retry-After"] = str(limit.next_in)
        return headers


def audit_row(environ: dict[str, Any], status: int, tick: float) -> dict[str, Any]:
    """Return the audit log's row of a request; every text that a client chooses is capped, and redacted as room 10 does."""
    token: Token | None = environ.get("ticketapi.token")
    route, query = environ.get("bottle.route"), environ.get("QUERY_STRING", "")
    agent = environ.get("HTTP_USER_AGENT", "").encode("latin-1", "replace").decode("utf-8", "replace")
    return {
        "user_id": token.user_id if token else None,
        "token_id": token.id if token else None,
        "method": environ["REQUEST_METHOD"][:32],
        "path": escape(cut_text(environ["PATH_INFO"].lstrip("/"), MAX_AUDIT_PATH))[:MAX_AUDIT_PATH],
        "route_name": route.name if route else None,
        "status_code": status,
        "ip_address": environ.get("REMOTE_ADDR", ""),
        "user_agent": escape(cut_text(agent, MAX_AUDIT_USER_AGENT))[:MAX_AUDIT_USER_AGENT] or None,
        "duration_ms": int((tick - environ["ticketapi.tick"]) * 1000),
        "query": audit_payload(environ.get("ticketapi.query") or (query and parse_form(query))),
        "request_body": request_body(environ),
        "created_at": format_time(environ["ticketapi.now"]),
    }


def request_body(environ: dict[str, Any]) -> str | None:
    """Return a request's body as the audit log keeps it."""
    if environ.get("CONTENT_LENGTH", "0") in ("", "0"):
        return None
    raw = bottle.request.body.read(MAX_BODY_BYTES)
    return audit_payload(parse_body(raw, environ.get("CONTENT_TYPE", "")))


@dataclass(eq=False)
class CatchErrors:
    """Turns every exception into an answer, so that the hooks see its status. Outermost plugin."""

    name, api = "catch_errors", 2

    _reported: dict[str, float] = field(default_factory=dict)

    def apply(self, callback: Callable[..., Any], route: bottle.Route | None = None) -> Callable[..., Any]:
        """Wrap a handler, or a hook that runs before it."""

        def caught(*args: Any, **kwargs: Any) -> Any:
            try:
                return callback(*args, **kwargs)
            except bottle.HTTPResponse:
                raise
            except FAILURES as error:
                if not isinstance(error, Unreachable):  # that is told when it begins
                    self.report(str(error), bottle.request.environ["ticketapi.tick"])
                raise bottle.HTTPError(503, "Service Unavailable", retry_after="1") from error
            except Exception as error:
                raise http_error(error) from error

        return caught

    def report(self, failure: str, now: float) -> None:
        """Log a failure of the database once in REPEAT_SECONDS: a damaged page may fail every request."""
        if now - self._reported.get(failure, -math.inf) >= REPEAT_SECONDS:
            self._reported[failure] = now
            log.error("database: %s", failure)


def http_error(error: Exception) -> bottle.HTTPError:
    """Return the answer to an exception. What is not the client's fault is logged, and its details stay in the log."""
    if isinstance(error, InvalidFields):
        return bottle.HTTPError(422, {"message": str(error), "errors": error.errors})
    if isinstance(error, BadRequest):
        log.info("refused a request from %s: %s", bottle.request.environ["REMOTE_ADDR"], error)
    if isinstance(error, TicketApiError) and error.status < 500:
        return bottle.HTTPError(error.status, str(error))
    log.error("request failed", exc_info=error)
    return bottle.HTTPError(500, "Server Error")


def error_body(error: bottle.HTTPError) -> bytes:
    """Return an error's JSON; Bottle's own errors get Laravel's words."""
    environ = bottle.request.environ
    path = redact_text(environ["PATH_INFO"].strip("/")) or "/"
    if isinstance(error.body, dict):
        return to_json(error.body)
    if error.status_code == 404 and "bottle.route" not in environ:
        return to_json({"message": f"The route {path} could not be found."})
    if error.status_code == 405:
        method, allowed = environ["REQUEST_METHOD"], error.headers["Allow"]
        return to_json({"message": f"The {method} method is not supported for route {path}. Supported methods: {allowed}."})
    return to_json({"message": "Server Error" if error.status_code == 500 else error.body})


def is_local(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request comes from this machine: from a loopback address, and not through a proxy."""
    if any(name in PROXIED or name.startswith("HTTP_X_FORWARDED_") for name in environ):
        return False
    try:
        ip = ipaddress.ip_address(environ.get("REMOTE_ADDR", ""))
        name = split_host(environ["HTTP_HOST"])[0].strip("[]")  # of another host, a page may have been made to ask (rebinding)
        here = name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # the peer of a Unix socket, which may be a proxy, has no address
        return False
    return here and (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


class Guard:
    """A plugin that checks requests to routes that need an ability, unless the route is open to this machine."""

    name, api = "guard", 2

    def check(self, environ: dict[str, Any], ability: str) -> None:
        """Let a request through, or raise its refusal."""
        raise NotImplementedError

    def apply(self, callback: Callable[..., bytes], route: bottle.Route) -> Callable[..., bytes]:
        """Wrap a handler."""
        ability, open_locally = route.config.get("ability"), route.config.get("open_locally")
        if ability is None:
            return callback

        def guarded(*args: Any, **kwargs: Any) -> bytes:
            environ = bottle.request.environ
            if not (open_locally and is_local(environ)):
                self.check(environ, ability)
            return callback(*args, **kwargs)

        return guarded


class Authenticate(Guard):
    """Finds the token of a request (RFC 6750). What comes under /api without a valid one draws from its address's bucket."""

    name = "authenticate"

    def __init__(self, readers: Readers, late: bool) -> None:
        """Take the connections, and whether Throttle finds out whether the desk has changed."""
        self.readers, self.late = readers, late
        self.strangers = TokenBucket(STRANGERS_RATE, "address")

    def identify(self, environ: dict[str, Any]) -> Token | None:
        """Note the request's token, which is None for a missing and a wrong one, and return it."""
        scheme, _, text = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        environ["ticketapi.given"] = given = text.strip() if scheme.lower() == "bearer" else ""
        reader = self.readers.get()
        if not (self.late and is_api(environ["PATH_INFO"])):
            reader.refresh()
        token = environ["ticketapi.token"] = authenticate_token(reader, given, environ["ticketapi.now"]) if given else None
        if token:
            note_token_use(reader, self.readers.path, token, environ["ticketapi.now"])
        elif log.isEnabledFor(logging.DEBUG):
            log.debug("no valid token: %s", explain_refusal(reader.db, given))
        return token

    def admit(self, environ: dict[str, Any]) -> None:
        """Identify a request under /api, whether or not it has a route; raise 429 for an address that has had its share."""
        if self.identify(environ):
            return
        limit = self.strangers.take(address_key(environ.get("REMOTE_ADDR", "")), environ["ticketapi.tick"])
        if not limit.allowed:
            environ["ticketapi.limit"] = limit
            raise bottle.HTTPError(429, "Too Many Attempts.")

    def check(self, environ: dict[str, Any], ability: str) -> None:
        """Raise 401 for a request without a valid token."""
        if not (environ["ticketapi.token"] if "ticketapi.token" in environ else self.identify(environ)):
            challenge = 'Bearer error="invalid_token"' if environ["ticketapi.given"] else "Bearer"
            raise bottle.HTTPError(401, "Unauthenticated.", www_authenticate=challenge)


class Throttle(Guard):
    """Takes each request with a token from the bucket of the token's user."""

    name = "throttle"

    def __init__(self, authenticate: Authenticate, rate: int) -> None:
        """Allow `rate` requests a minute for each user; 0 is unlimited."""
        self.authenticate, readers = authenticate, authenticate.readers
        buckets = DeskBucket(rate, "default", readers=readers) if authenticate.late else TokenBucket(rate, "default")
        self.buckets = buckets if rate else None

    def check(self, environ: dict[str, Any], ability: str) -> None:
        """Raise 429 for a user whose bucket is empty; what looks after the server, /metrics, draws nothing."""
        if self.buckets and is_api(environ["PATH_INFO"]):
            limit = self.buckets.take(environ["ticketapi.token"].user_id, environ["ticketapi.tick"])
            if self.authenticate.late and not self.authenticate.readers.get().tokens:  # forgotten, as the desk has changed
                self.authenticate.identify(environ)
                self.authenticate.check(environ, ability)
            environ["ticketapi.limit"] = limit
            if not limit.allowed:
                raise bottle.HTTPError(429, "Too Many Attempts.")


class Authorize(Guard):
    """Refuses a token that lacks the ability its route asks for. Innermost, so that a refusal is throttled too."""

    name = "authorize"

    def check(self, environ: dict[str, Any], ability: str) -> None:
        """Raise 403 for a token that may not do this."""
        if not environ["ticketapi.token"].can(ability):
            challenge = f'Bearer error="insufficient_scope", scope="{ability}"'
            raise bottle.HTTPError(403, "Invalid ability provided.", www_authenticate=challenge)


# ======================================================================================================================
# Room 14. Routes: the app and its handlers. Touches request and response; operations get plain values.
# ======================================================================================================================

TICKET = "/api/tickets/<ticket_id:re:[1-9][0-9]{0,17}>"  # 18 digits: inside SQLite's 64 bits
USER = "/api/users/<user_id:re:[1-9][0-9]{0,17}>"


@lru_cache(maxsize=1)
def describe_api() -> bytes:
    """Return openapi.json with the version that runs, which stands in this module alone."""
    document = json.loads(read_resource("openapi.json"))
    document["info"]["version"] = __version__
    return to_json(document)


class Page(NamedTuple):
    """A page for people: its HTML, and the policy that goes with it."""

    answer: Answer
    policy: str


@lru_cache(maxsize=2)
def load_page(name: str) -> Page:
    """Return a page shipped beside this module, with a Content-Security-Policy that names the hashes of its script and style.

    Nothing else may run, and nothing but this server be asked (https://www.w3.org/TR/CSP3/). What the scripts of both pages
    share, page.js, is put in first: the hashes are those of what is sent.
    """
    html = read_resource(name).replace("// include: page.js\n", read_resource("page.js"))
    inner = {tag: text.encode() for tag, text in re.findall(r"(?s)<(script|style)>(.*?)</", html)}
    hashes = {tag: f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for tag, text in inner.items()}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return Page(make_answer(html.encode()), policy)


@dataclass(frozen=True)
class Shared:
    """What the handlers of one app share; each gets it first."""

    settings: Settings
    readers: Readers
    audit: AuditLog
    traffic: Traffic
    schedule: Schedule
    users: TokenBucket | None
    addresses: TokenBucket
    readiness: Readiness
    description: Answer
    dashboard: Page
    reference: Page


def list_url(environ: dict[str, Any]) -> str:
    """Return the URL of a request as the client used it, without the query."""
    prefix = environ.get("ticketapi.prefix", "")
    return f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}{prefix}{environ['PATH_INFO']}"


def reply(app: Shared, render: Callable[[Connection], bytes], *more: str) -> bytes:
    """Answer from memory while the desk stays as it is, else render.

    The key holds everything that the bytes depend on: scheme, host, path and query, and what else a handler names.
    """
    environ, reader = bottle.request.environ, app.readers.get()
    key = (list_url(environ), environ.get("QUERY_STRING", ""), *more)
    answer = reader.answers.get(key)
    if answer is None:
        answer = make_answer(render(reader.db))
        reader.remember(key, answer)
    else:
        reader.answers.move_to_end(key)
    return send(answer)


def send(answer: Answer) -> bytes:
    """Send an answer with its ETag; 304 without a body when the client has these very bytes."""
    bottle.response.headers["ETag"] = answer.etag
    if matches_etag(bottle.request.environ.get("HTTP_IF_NONE_MATCH", ""), answer.etag):
        bottle.response.status = 304
        return b""
    return answer.body


def matches_etag(wanted: str, etag: str) -> bool:
    """Tell whether an If-None-Match header names an ETag; weak comparison, as RFC 9110 section 13.1.2 asks for."""
    return bool(wanted) and (wanted.strip() == "*" or etag in [text.strip().removeprefix("W/") for text in wanted.split(",")])


def asked_list(has_cursors: bool = True) -> ListRequest:
    """Return what the request asks for of a list."""
    environ = bottle.request.environ
    return parse_list_request(list_url(environ), request_query(environ), has_cursors)


def show_open_tickets(app: Shared) -> bytes:
    """GET /api/tickets/open."""
    return reply(app, lambda db: open_tickets_page(db, asked_list(), app.readers.get().recall(find_open_bounds)))


def show_closed_tickets(app: Shared) -> bytes:
    """GET /api/tickets/closed."""
    return reply(app, lambda db: closed_tickets_page(db, asked_list(), app.readers.get().recall(count_closed)))


def show_ticket(app: Shared, ticket_id: str) -> bytes:
    """GET /api/tickets/{id}."""
    return reply(app, lambda db: ticket_resource(db, int(ticket_id)))


def show_users(app: Shared) -> bytes:
    """GET /api/users."""
    return reply(app, lambda db: customers_page(db, asked_list(has_cursors=False)))


def show_user(app: Shared, user_id: str) -> bytes:
    """GET /api/users/{id}."""
    return reply(app, lambda db: customer_resource(db, int(user_id)))


def show_user_tickets(app: Shared, user_id: str) -> bytes:
    """GET /api/users/{id}/tickets."""
    return reply(app, lambda db: user_tickets_page(db, int(user_id), asked_list()))


def show_stats(app: Shared) -> bytes:
    """GET /api/stats."""
    return reply(app, lambda db: to_json(desk_stats(db)))


def show_series(app: Shared) -> bytes:
    """GET /api/series: good for the minute it was asked in."""
    environ = bottle.request.environ
    now = environ["ticketapi.now"]
    asked = parse_series_request(request_query(environ), now)
    return reply(app, lambda db: to_json(desk_series(db, asked, now)), str(now // MINUTE_MICROSECONDS), str(asked.start))


def show_audits(app: Shared) -> bytes:
    """GET /api/audits."""
    environ = bottle.request.environ
    now = environ["ticketapi.now"]
    asked = parse_audit_request(app.readers.get().db, list_url(environ), request_query(environ), now)
    return send(make_answer(audits_page(app.readers.get().db, app.settings.audit_db, asked)))


def show_audits_summary(app: Shared) -> bytes:
    """GET /api/audits/summary."""
    now, tick = bottle.request.environ["ticketapi.now"], bottle.request.environ["ticketapi.tick"]
    return send(make_answer(to_json({"data": summarize_traffic(app.traffic, app.users, app.addresses, now, tick)})))


def show_schedule(app: Shared) -> bytes:
    """GET /api/schedule."""
    now = bottle.request.environ["ticketapi.now"]
    return send(make_answer(to_json({"data": [job_resource(job, now) for job in app.schedule.jobs]})))


def show_up(app: Shared) -> bytes:
    """GET /up: the process answers, and its scheduler goes round."""
    if not app.schedule.alive(bottle.request.environ["ticketapi.tick"]):
        raise bottle.HTTPError(503, "The scheduler does not go round.", retry_after="1")
    return to_json({"status": "up"})


def show_metrics(app: Shared) -> bytes:
    """GET /metrics: figures for Prometheus."""
    metrics = [
        *request_metrics(app.traffic),
        *desk_metrics(app.readers),
        *audit_metrics(app.audit),
        *schedule_metrics(app.schedule, bottle.request.environ["ticketapi.tick"]),
        *wal_metrics(app.settings),
    ]
    bottle.response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
    return write_metrics(metrics)


def show_ready(app: Shared) -> bytes:
    """GET /ready: the desk can be read, and its disk written."""
    reason = app.readiness.reason_not(app.readers, bottle.request.environ["ticketapi.tick"])
    if reason:
        raise bottle.HTTPError(503, reason, retry_after="1")
    return b'{"status":"ready"}'


def show_openapi(app: Shared) -> bytes:
    """GET /openapi.json: this API in the words of OpenAPI 3.1."""
    return send(app.description)


def show_dashboard(app: Shared) -> bytes:
    """GET /: the desk for people."""
    return send_page(app.dashboard)


def show_reference(app: Shared) -> bytes:
    """GET /docs: this API for people."""
    return send_page(app.reference)


def send_page(page: Page) -> bytes:
    """Send a page with the headers that let nothing but its own script and style run."""
    bottle.response.headers["Content-Type"] = "text/html; charset=utf-8"
    bottle.response.headers["Content-Security-Policy"] = page.policy
    bottle.response.headers["Referrer-Policy"] = "no-referrer"
    return send(page.answer)


def show_options(**_: str) -> bytes:
    """OPTIONS on a route that exists: what it supports."""
    bottle.response.headers["Allow"] = "GET, HEAD"
    return b""


class Route(NamedTuple):
    """A route of the app: its rule and name, its handler, the ability that a token needs for it, None for none."""

    rule: str
    name: str
    handler: Callable[..., bytes]
    ability: str | None = None
    open_locally: bool = False  # asks this machine for no token


ROUTES = (
    Route("/api/tickets/open", "tickets.open", show_open_tickets, READ_TICKETS),
    Route("/api/tickets/closed", "tickets.closed", show_closed_tickets, READ_TICKETS),
    Route(TICKET, "tickets.show", show_ticket, READ_TICKETS),
    Route("/api/users", "users", show_users, READ_TICKETS),
    Route(USER, "users.show", show_user, READ_TICKETS),
    Route(f"{USER}/tickets", "users.tickets", show_user_tickets, READ_TICKETS),
    Route("/api/stats", "stats", show_stats, READ_TICKETS),
    Route("/api/series", "series", show_series, READ_TICKETS),
    Route("/api/audits", "audits", show_audits, READ_AUDITS),
    Route("/api/audits/summary", "audits.summary", show_audits_summary, READ_AUDITS),
    Route("/api/schedule", "schedule", show_schedule, READ_TICKETS),
    Route("/metrics", "metrics", show_metrics, READ_METRICS, open_locally=True),
    Route("/up", "up", show_up),
    Route("/ready", "ready", show_ready),
    Route("/openapi.json", "openapi", show_openapi),
    Route("/", "dashboard", show_dashboard),
    Route("/docs", "docs", show_reference),
)


def make_app(
    settings: Settings,
    readers: Readers,
    audit: AuditLog,
    clock: Clock,
    traffic: Traffic | None = None,
    schedule: Schedule | None = None,
) -> bottle.Bottle:
    """Return a WSGI application of its own, which shares nothing with another but what it is given."""
    traffic, schedule = traffic or Traffic(clock.wall()), schedule or Schedule((), clock.monotonic())
    app = bottle.Bottle()
    app.catchall = False  # a failure beyond all plugins is the server's to answer: Bottle would do so in HTML
    app.uninstall(True)  # Bottle's own plugins: handlers return bytes, and one would rewrite the bodies of errors
    app.default_error_handler = error_body
    authenticate = Authenticate(readers, late=settings.rate > 0 and isinstance(settings.db, Postgres))
    throttle, catch_errors = Throttle(authenticate, settings.rate), CatchErrors()
    hook = AuditHook(settings, audit, clock, traffic, authenticate.admit)
    app.add_hook("before_request", catch_errors.apply(hook.before))
    app.add_hook("after_request", hook.after)
    for plugin in (catch_errors, authenticate, throttle, Authorize()):  # outermost first
        app.install(plugin)
    limits, files = (throttle.buckets, authenticate.strangers), (load_page("dashboard.html"), load_page("docs.html"))
    description, readiness = make_answer(describe_api()), Readiness(settings.db)
    shared = Shared(settings, readers, audit, traffic, schedule, *limits, readiness, description, *files)
    for rule, name, handler, ability, open_locally in ROUTES:
        app.route(rule, "GET", partial(handler, shared), name=name, ability=ability, open_locally=open_locally)
        app.route(rule, "OPTIONS", show_options)
    return app


# ======================================================================================================================
# Room 15. Jobs: what a server does by itself, on wall-clock boundaries, in one thread. Uses operations.
# ======================================================================================================================

PRUNE_STEPS = 50  # such transactions in one turn of the scheduler, which takes less than a second
STOP_SECONDS = 8.0  # what requests in flight and the running job get, together, when the server stops: it ends within ten


def run_due_jobs(jobs: Sequence[Job], now: int) -> None:
    """Run each job whose time has come, once, however many boundaries were missed."""
    for job in jobs:
        step = job.every * MICROSECONDS
        if job.next_at is None:
            job.next_at = job.boundary_after(now)
        elif job.next_at - now > 2 * step:  # the clock was set back; half a step keeps the runs apart
            job.next_at = job.boundary_after(now + step // 2)
        if now >= job.next_at:
            run_job(job, job.next_at, now)


def run_job(job: Job, due: int, now: int) -> None:
    """Run a job and note how it went; a failure is logged. A run may take several turns."""
    job.next_at = job.boundary_after(now)
    try:
        returned = job.run(now)
        result, more, elsewhere, failed = returned if isinstance(returned, Outcome) else Outcome(None)
    except Exception as error:
        log.error("scheduled %s failed, next try at %s: %s", job.name, format_time(job.next_at), error)
        result, more, elsewhere, failed = Outcome(None, failed=True)
    if elsewhere:
        return
    if more:
        job.next_at = (now // MICROSECONDS + 1) * MICROSECONDS
    past, status = job.past, "failed" if failed else "ok"
    if job.goes_on:
        job.past = past._replace(failures=past.failures + failed, last_status=status, last_result=result)
    else:
        late = (now - due) / MICROSECONDS if due > NEVER else 0.0
        job.past = JobRuns(past.runs + 1, past.failures + failed, now, status, result, late)
    job.goes_on = more and not failed


@dataclass(eq=False)
class AuditPruner:
    """The job that deletes old rows of the audit log, a few steps a turn, so that neither requests nor other jobs wait."""

    audit: AuditLog
    keep: int  # seconds
    pause: Callable[[float], object]  # waits between two steps, and tells that the scheduler is to stop
    _failing: bool = False
    _pruned: int = 0  # rows, since the last run that came to its end

    def run(self, now: int) -> Outcome:
        """Take a turn. A failure is logged when it begins, and tried again next turn."""
        before = format_time(now - self.keep * MICROSECONDS)
        more = True
        try:
            for _ in range(PRUNE_STEPS):
                deleted = self.audit.prune(before, AUDIT_STEP)
                self._pruned += deleted
                more = deleted > 0
                if not more or self.pause(AUDIT_PAUSE):
                    break
        except FAILURES as error:
            if not self._failing:
                log.error("old audit rows cannot be deleted, tried again every second: %s: %s", self.audit.path, error)
            self._failing = True
            return Outcome(None, more=True, failed=True)
        self._failing = False
        result = {"pruned": self._pruned}
        if not more:
            self._pruned = 0
        return Outcome(result, more)


def scheduled_jobs(
    settings: Settings, seed: int, audit: AuditLog | None = None, pause: Callable[[float], object] = time.sleep
) -> list[Job]:
    """Return the jobs that a server runs: a ticket arrives, a ticket is closed, old rows of the audit log go."""

    def generate(db: Connection, now: int) -> Outcome:
        return Outcome({"generated": generate_tickets(db, 1, now, seed)})

    def process(db: Connection, now: int) -> Outcome:
        ids = process_tickets(db, 1, now)
        return Outcome({"processed": len(ids), "ticket_ids": ids})

    def once(name: str, every: int, run: Callable[[Connection, int], Outcome]) -> Job:
        def run_here(now: int) -> Outcome:
            step = every * MICROSECONDS
            with closing(connect(settings.db, SCHEDULED)) as db, transaction(db):
                return run(db, now) if claim_boundary(db, name, now // step * step, step) else Outcome(None, elsewhere=True)

        return Job(name, every, run_here)

    if settings.no_scheduler:
        return []
    load_words()  # now, while the file that ticketapi was started from is sure to be the same
    jobs = [once("generate", settings.generate_every, generate), once("process", settings.process_every, process)]
    if audit and settings.audit_keep:
        jobs.append(Job("prune", DAY, AuditPruner(audit, settings.audit_keep, pause).run, next_at=NEVER))  # at once, then daily
    return [job for job in jobs if job.every]


class Scheduler(Schedule):
    """The thread around `run_due_jobs`. One thread, so no job ever overlaps itself or another."""

    def __init__(self, jobs: Sequence[Job], clock: Clock, stop: threading.Event | None = None) -> None:
        """Take the jobs, and an event that ends the thread; `start` starts it."""
        super().__init__(jobs, clock.monotonic())
        self.clock = clock
        self._stop = stop or threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to run the jobs, if there are any."""
        if self.jobs:
            self._thread.start()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Let the running job end, for so long, and begin no other."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, seconds))

    def _loop(self) -> None:
        """Look once a second, on the second, whether a job is due."""
        while True:
            run_due_jobs(self.jobs, self.clock.wall())
            self.heartbeat = self.clock.monotonic()
            if self._stop.wait(1 - self.clock.wall() % MICROSECONDS / MICROSECONDS):
                return


# ======================================================================================================================
# Room 16. Server: sockets, Waitress, stopping without losing a request, systemd. Knows nothing of tickets.
# ======================================================================================================================

REQUEST_SECONDS = 8.0  # for a request to arrive, and an answer to be taken; the server looks once a second: cut within ten
MAX_CONNECTIONS, SPARE_CONNECTIONS = 1000, 50  # beyond all but the spare ones, those that are idle are closed
MAX_FILES, RESERVED_FILES = 65_536, 64  # the reserved ones are databases, logs and listening sockets


REFUSALS = {
    400: "The request could not be understood.",
    413: f"The request body is over {MAX_BODY_BYTES} bytes.",
    431: f"The request headers are over {MAX_HEADER_BYTES} bytes.",
    501: "The transfer coding is not supported.",
    505: "This is an HTTP/1.1 server.",
}


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises TicketApiError when the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except UnicodeError as error:  # what the IDNA encoding of a host name makes of dots in the wrong places
        raise TicketApiError(f"cannot listen on --host {host}: this is no host name") from error
    except OSError as error:
        raise TicketApiError(f"cannot listen on --host {host}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise TicketApiError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}; choose another --port or --host"
        ) from error
    return sock


def inherited_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that systemd hands over, none as a rule (sd_listen_fds(3))."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        sockets = [socket.socket(fileno=3 + i) for i in range(read_number(environ.get("LISTEN_FDS", "0"), 0, 1000))]
    except (ValueError, OSError) as error:
        raise TicketApiError(f"LISTEN_FDS names sockets that cannot be used: {error}") from error
    for sock in sockets:
        sock.set_inheritable(False)
    local = {sock.family == socket.AF_UNIX for sock in sockets}
    if len(local) > 1 or any(
        sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in sockets
    ):
        raise TicketApiError("the sockets handed over must be listening stream sockets, all of them Unix sockets or none")
    return sockets


def raise_file_limit() -> int:
    """Let this process open as many files as it may, up to 65,536, and return how many those are (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS refuses more than kern.maxfilesperproc
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def socket_url(sock: socket.socket) -> str:
    """Return where a listening socket is reached."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def notify_systemd(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd about a state such as READY=1, when it wants to know (sd_notify(3))."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # a manager that is slow to read must not hold up the server
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


# Waitress, mended ---------------------------------------------------------------------------------


def check_header(header: bytes) -> None:
    """Refuse a header, in lower case, that a proxy before us could read differently (RFC 9112, sections 5.2, 6.1 and 6.3).

    That is one with no single length for its body, with two hosts or tokens, or with a folded line.
    """
    from waitress.parser import ParsingError

    if b"\n " in header or b"\n\t" in header:
        raise ParsingError("folded line")
    if header.count(b"\nhost:") > 1 or header.count(b"\nauthorization:") > 1:
        raise ParsingError("repeated field")
    codings = header.count(b"\ntransfer-encoding:")
    if codings + header.count(b"\ncontent-length:") > 1:
        raise ParsingError("more than one framing")
    if codings:
        coding = header.partition(b"\ntransfer-encoding:")[2].partition(b"\n")[0]
        is_empty, first_line = not coding.strip(b", \t\r"), header.partition(b"\r\n")[0]
        if is_empty or coding.count(b"chunked") > 1 or not first_line.endswith(b"/1.1"):
            raise ParsingError("no coding, chunked twice, or not HTTP/1.1")


def parse_header(parser: Any, header: bytes) -> None:
    """Parse a request's header; replaces, and calls, the method of Waitress's HTTPRequestParser.

    A target that urllib cannot parse is refused; else the connection would end without an answer. The authority of an absolute
    target counts, not Host (RFC 9112, section 3.2.2). Connection is a list, of which two words concern us (RFC 9110, 7.6.1).
    """
    from waitress.parser import HTTPRequestParser, ParsingError
    from waitress.utilities import Error

    check_header(header.lower())
    try:
        HTTPRequestParser.parse_header(parser, header)
    except ValueError as error:
        raise ParsingError("bad target") from error
    if parser.version and not parser.version.startswith("1."):
        parser.error = type("WrongVersion", (Error,), {"code": 505, "reason": "HTTP Version Not Supported"})(parser.version)
    if parser.proxy_netloc:
        parser.headers["HOST"] = parser.proxy_netloc
    words = {word.strip().lower() for word in parser.headers.pop("CONNECTION", "").split(",")}
    for word in words & {"close", "keep-alive"} if parser.version == "1.0" else words & {"close"}:
        parser.headers["CONNECTION"] = "close" if "close" in words else word


def refuse(task: Any) -> None:
    """Answer a request that the parser refused, in JSON; replaces the `execute` of Waitress's ErrorTask."""
    error = task.request.error
    log.info("refused a request from %s: %d %s", task.channel.addr[0], error.code, error.reason)
    headers = task.channel.server.refused(error.code, task.request.headers.get("ORIGIN", ""))
    body = to_json({"message": REFUSALS.get(error.code, "Server Error")})
    task.status = f"{error.code} {error.reason}"
    task.response_headers.extend((COMMON_HEADERS | headers).items())
    task.request.headers["CONNECTION"] = "close"  # whatever the client wished, or both would be said
    task.set_close_on_finish()
    task.content_length = len(body)
    task.write(body)


@lru_cache(maxsize=2)
def http_date(second: int) -> str:
    """Return the Date of answers that begin in a second (RFC 9110, section 5.6.7)."""
    from waitress.utilities import build_http_date

    return str(build_http_date(second))


def build_header(task: Any) -> bytes:
    """Write the header of an answer; replaces the `build_response_header` of Waitress's Task.

    Waitress would capitalise and sort the names, for nothing. It still writes the header of answers that end the connection or
    have no body. Once the server stops, the last answer of a connection says so, so that no more requests are sent.
    """
    from waitress.task import Task

    channel, headers = task.channel, task.request.headers
    if channel.server.stopping and not channel.unread:
        headers["CONNECTION"] = "close"
    length = ("Content-Length", str(task.content_length))
    if task.version != "1.1" or "CONNECTION" in headers or not task.has_body or length not in task.response_headers:
        return bytes(Task.build_response_header(task))
    lines = [f"HTTP/1.1 {task.status}", *map(": ".join, task.response_headers)]
    lines += ("Server: ticketapi", f"Date: {http_date(int(task.start_time))}", "\r\n")
    return "\r\n".join(lines).encode("latin-1")


def keep_open_without_body(task: Any) -> None:
    """Keep a connection after a 204 or 304; replaces the `set_close_on_finish` of Waitress's WSGITask.

    Waitress closes it, as for any answer without a length, but these end with their headers (RFC 9112, section 6.3).
    """
    from waitress.task import Task

    asked_to_close = task.request.headers.get("CONNECTION", "").lower() == "close"
    if task.has_body or task.version == "1.0" or asked_to_close:
        Task.set_close_on_finish(task)


class LoopDispatcher:
    """Answers requests in the event loop: a task dispatcher for Waitress without threads.

    A worker thread and the event loop would hand the interpreter's lock to and fro: without one a cached page took 0.26 ms of
    CPU time instead of 0.34. Requests that arrived together are answered together: `settle` commits their audit rows in one
    transaction, then the answers are sent (0.20 ms instead of 0.26).
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        """Begin with nothing to do."""
        self._settle = settle
        self._waiting: list[Any] = []

    def add_task(self, channel: Any) -> None:
        """Take a connection that has received a whole request."""
        self._waiting.append(channel)

    def run(self) -> None:
        """Answer what has arrived."""
        channels, self._waiting = self._waiting, []
        for channel in channels:
            channel.holding = True
            channel.service()  # lets no exception out
        if channels:
            self._settle()
        for channel in channels:
            channel.holding = False
            if channel.connected:
                channel.handle_write()

    def shutdown(self, cancel_pending: bool = True, timeout: float = 0) -> None:
        """Do nothing: there is no thread to end."""


def send_unless_held(channel: Any, do_close: bool = True) -> bool:
    """Send what there is to send, but nothing before `settle`; replaces, and calls, Waitress's HTTPChannel._flush_some."""
    from waitress.channel import HTTPChannel

    flush: Callable[..., bool] = HTTPChannel.__dict__["_flush_some"]
    return not channel.holding and flush(channel, do_close)


def receive(channel: Any, data: bytes) -> bool:
    """Take what a client has sent, one request at a time; replaces the `received` of Waitress's HTTPChannel.

    Waitress reads and answers all requests that come together, whether or not the client takes the answers: 273 small requests
    in 8 kB made 21 MB of them. Here the rest waits as bytes until the answers before it are taken, and nothing more is read.
    """
    if data.startswith(b"\x16\x03") and not (channel.unread or channel.request):  # a ClientHello (RFC 8446, section 5.1)
        log.info("%s speaks TLS, which a proxy before this server has to do; closed", channel.addr[0])
        channel.handle_close()
        return False
    channel.unread += data
    while channel.unread and not (channel.requests or channel.will_close or channel.close_when_flushed):
        request = channel.request = channel.request or channel.parser_class(channel.adj)
        channel.unread = channel.unread[request.received(channel.unread) :]
        if request.completed:
            channel.request, channel.sent_continue = None, False
            if not request.empty:
                channel.requests.append(request)
                channel.server.add_task(channel)
        elif request.expect_continue and request.headers_finished and not channel.sent_continue:
            channel.send_continue()
    (channel.server.behind.add if channel.unread else channel.server.behind.discard)(channel)
    return True


def may_go_on(channel: Any) -> bool:
    """Tell whether the next request of a connection may begin: the answer before it is made and taken."""
    return not (channel.requests or channel.total_outbufs_len)


def is_readable(channel: Any) -> bool:
    """Tell whether to read more of a connection; replaces, and calls, the `readable` of Waitress's HTTPChannel."""
    from waitress.channel import HTTPChannel

    return not channel.unread and bool(HTTPChannel.readable(channel))


def serve_request(channel: Any) -> None:
    """Answer a request, and count it; replaces, and calls, the `service` of Waitress's HTTPChannel."""
    from waitress.channel import HTTPChannel

    channel.served += 1
    HTTPChannel.service(channel)


def channel_class() -> type:
    """Return the connection that Waitress is to use, with our parser and answers."""
    from waitress.channel import HTTPChannel
    from waitress.parser import HTTPRequestParser
    from waitress.task import ErrorTask, WSGITask

    answers = {"build_response_header": build_header, "set_close_on_finish": keep_open_without_body}
    parts = {
        "parser_class": type("StrictParser", (HTTPRequestParser,), {"parse_header": parse_header}),
        "task_class": type("AnswerTask", (WSGITask,), answers),
        "error_task_class": type("JsonErrorTask", (ErrorTask,), {"execute": refuse}),
        "holding": False,
        "unread": b"",
        "served": 0,  # requests
        "received": receive,
        "readable": is_readable,
        "service": serve_request,
        "_flush_some": send_unless_held,
    }
    return type("JsonChannel", (HTTPChannel,), parts)


class Server:
    """Waitress around one app: `run` until `stop`, then answer what is in flight."""

    deadline = math.inf  # monotonic seconds, once it stops

    def __init__(
        self,
        app: Any,
        sockets: Sequence[socket.socket],
        settings: Settings,
        settle: Callable[[], None],
        refused: Callable[[int, str], dict[str, str]] = lambda status, origin: {},
    ) -> None:
        """Prepare to serve on listening sockets; nothing is accepted before `run`. `refused` gives a refusal's headers."""
        from waitress.server import create_server

        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of every request that waits
        self._map: dict[int, Any] = {}
        self._connections = max(8, min(MAX_CONNECTIONS, raise_file_limit() - RESERVED_FILES))
        self._spare = min(SPARE_CONNECTIONS, self._connections // 4)
        self._stopping = False
        self._slow: dict[Any, float] = {}  # what arrives or is taken, and when it was first seen
        self._behind: set[Any] = set()  # connections that have sent more requests than have been begun
        self._in_loop = LoopDispatcher(settle) if settings.threads == 1 else None
        # No thread waits for a client to take an answer: one answer of a connection is all that ever waits.
        sending: dict[str, Any] = {"_dispatcher": self._in_loop, "outbuf_high_watermark": 2**31}
        create_server(
            app,
            map=self._map,
            **sending,
            sockets=list(sockets),
            threads=settings.threads,
            server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
            ident="ticketapi",
            max_request_header_size=MAX_HEADER_BYTES + 1,  # Waitress refuses from this size on
            max_request_body_size=MAX_BODY_BYTES + 1,
            connection_limit=self._connections,
            asyncore_use_poll=True,
            clear_untrusted_proxy_headers=False,  # the app sees to them
        )
        self._listeners = [item for item in self._map.values() if hasattr(item, "task_dispatcher")]
        self._adapt_listeners(refused)

    def _adapt_listeners(self, refused: Callable[[int, str], dict[str, str]]) -> None:
        """Let the listeners of Waitress make connections of our class."""
        for listener in self._listeners:
            listener.channel_class = channel_class()
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)  # or the kernel keeps megabytes unread
            listener.refused = refused
            listener.stopping = False
            listener.behind = self._behind
            if self._in_loop:
                listener.pull_trigger = lambda: None  # there is no other thread to wake the loop

    def run(self, beat: Callable[[], None]) -> None:
        """Serve until `stop` is called; `beat` is called about once a second."""
        beaten = time.monotonic()
        while not self._stopping:
            self._turn(1.0)
            if time.monotonic() - beaten >= 1:
                beaten = time.monotonic()
                self._cut_slow_clients(beaten)
                beat()
        self._drain()

    def stop(self) -> None:
        """Ask `run` to end; safe in a signal handler."""
        self._stopping = True
        for listener in self._listeners:
            listener.stopping = True
        self._listeners[0].trigger.pull_trigger()

    def _cut_slow_clients(self, now: float) -> None:
        """Close connections whose request arrives, or whose answer is taken, too slowly: they would use up all there are."""
        slow: dict[Any, Any] = {channel.request: channel for channel in self._channels() if channel.request is not None}
        slow |= {(channel, channel.served): channel for channel in self._channels() if channel.total_outbufs_len}
        self._slow = {key: self._slow.get(key, now) for key in slow}
        for key, since in self._slow.items():
            if now - since > REQUEST_SECONDS:
                slow[key].handle_close()

    def _turn(self, timeout: float) -> None:
        """Wait for sockets and serve those that are ready, and one more request of each connection that has sent several."""
        from waitress import wasyncore

        self._behind -= {channel for channel in self._behind if not channel.connected}
        ready = [channel for channel in self._behind if may_go_on(channel)]
        wasyncore.loop(timeout=0 if ready else timeout, use_poll=True, map=self._map, count=1)
        for channel in filter(may_go_on, ready):
            channel.received(b"")
        if self._in_loop:
            self._in_loop.run()
        if len(self._map) > self._connections - self._spare:
            self._cut_idle_connections()

    def _cut_idle_connections(self) -> None:
        """Close those that have been idle for longest, to make room for the next client, who is idle at first himself."""
        idle = [channel for channel in self._channels() if not is_busy(channel, 0.0)]
        idle.sort(key=lambda channel: channel.last_activity)
        for channel in idle[: min(len(self._map) - self._connections + self._spare, max(0, len(idle) - self._spare // 2))]:
            channel.will_close = True

    def _channels(self) -> list[Any]:
        """Return the open connections."""
        return [channel for listener in self._listeners for channel in listener.active_channels.values()]

    def _drain(self) -> None:
        """Accept who is already waiting, answer what has arrived, close everything."""
        from waitress import wasyncore

        self.deadline = time.monotonic() + STOP_SECONDS
        for listener in self._listeners:
            before = -1
            while before < (before := len(listener.active_channels)):  # until one more try accepts nobody
                listener.handle_accept()
            wasyncore.dispatcher.close(listener)  # not listener.close(): that would end the trigger answers need
        while (left := self.deadline - time.monotonic()) > 0:
            self._turn(0.1)
            if not any(is_busy(channel, STOP_SECONDS - left) for channel in self._channels()):
                break
        self._listeners[0].task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(self._map)


def is_busy(channel: Any, passed: float) -> bool:
    """Tell whether a connection has a request under way or an answer to send.

    A request whose headers are not complete half a second after the stop began is not waited for.
    """
    receiving = channel.request is not None and (channel.request.headers_finished or passed < 0.5)
    return bool(channel.requests or receiving or channel.total_outbufs_len or channel.unread)


# ======================================================================================================================
# Room 17. Options: tables of options and commands, the parser, flag over variable over default. Touches argv and environ.
# ======================================================================================================================


class Option(NamedTuple):
    """One option of the command line, its environment variable, and its field of Settings."""

    flag: str
    help: str
    metavar: str = ""
    read: Callable[[str], Any] | None = None  # None: a switch, without a value
    repeatable: bool = False
    name: str = ""  # of the field, where another option has the flag too, or the flag alone says too little

    @property
    def field(self) -> str:
        """The field of Settings: --generate-every is generate_every."""
        return self.name or self.flag[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable: --generate-every is TICKETAPI_GENERATE_EVERY."""
        return f"TICKETAPI_{self.field.upper()}"


def number_in(lowest: int, highest: int) -> Callable[[str], int]:
    """Return what reads a whole number within bounds."""
    return partial(read_number, lowest=lowest, highest=highest)


def read_place(text: str) -> Place:
    """Read where a desk lives. What may hold a password is not repeated."""
    text = text.strip()
    if re.match(r"postgres(ql)?://", text):
        return Postgres(text)
    if found := re.match(r"([A-Za-z0-9+.-]+)://|postgres(ql)?:|.*password *=", text):
        what = f"{found[1]}:// is no database of ours" if found[1] else "this is no URL of PostgreSQL"
        raise ValueError(f"{what}; write a file, or postgresql://user@host/database")
    return Path(text)


def read_proxy(text: str) -> str:
    """Read which proxy is believed."""
    with suppress(ValueError):
        return text if text == "unix" else str(ipaddress.ip_address(text))
    raise ValueError(f"{text!r} is not the address of one proxy; write 127.0.0.1, or unix for the peer of a Unix socket")


def read_ability(text: str) -> str:
    """Read what a token may do."""
    if text not in ABILITIES:
        raise ValueError(
            f"{text!r} is no ability; write {', '.join(ABILITIES[:-1])} or {ABILITIES[-1]}, one with each --ability"
        )
    return text


def read_origin(text: str) -> str:
    """Read an origin as browsers send it, `*` or `off`."""
    if text not in ("*", "off") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/,]+", text):
        raise ValueError(f"{text!r} is not an origin; write https://dashboard.example.com, * or off")
    return text


def read_level(text: str) -> str:
    """Read the name of a log level."""
    if text not in ("debug", "info", "warning", "error"):
        raise ValueError(f"{text!r} is not a log level; write debug, info, warning or error")
    return text


def read_switch(text: str) -> bool:
    """Read an environment variable that stands for a switch."""
    answers = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in answers:
        raise ValueError(f"{text!r} is neither 1 nor 0")
    return answers[text.lower()]


OPTIONS = {
    option.field: option
    for option in (
        Option("--db", "file of the desk, its audit log beside it, or a postgresql:// URL", "PATH", read_place),
        Option("--json", "print one JSON document; of the audit log and with --watch, one a line"),
        Option("--host", "address to listen on", "HOST", read_text),
        Option("--port", "port to listen on; 0 picks a free one", "PORT", number_in(0, 65_535)),
        Option("--rate", "requests a minute for each user; 0 is unlimited", "N", number_in(0, 10**6)),
        Option("--threads", "threads that answer requests", "N", number_in(1, 64)),
        Option("--no-scheduler", "let no ticket arrive or be closed by itself, and prune no audit log"),
        Option("--generate-every", "how often a ticket arrives; 0 is never", "DURATION", read_duration),
        Option("--process-every", "how often a ticket is closed; 0 is never", "DURATION", read_duration),
        Option("--audit-keep", "how long rows of the audit log are kept; 0 is for ever", "DURATION", read_duration),
        Option("--cors-origin", "whose pages may read answers; may be repeated; * all, off none", "ORIGIN", read_origin, True),
        Option("--trusted-proxy", "address of the proxy whose X-Forwarded-* is believed, or unix", "ADDRESS", read_proxy),
        Option("--log-level", "debug (with a line for each request), info, warning or error", "LEVEL", read_level),
        Option("--demo", "fill an empty desk with 10,000 tickets of 90 days and make a token"),
        Option("--count", "how many tickets", "N", number_in(-(10**9), 10**9)),
        Option("--seed", "number that the tickets are derived from; random without it", "N", number_in(0, 2**63 - 1)),
        Option("--since", "spread the tickets over that time until now and close all but a backlog", "DURATION", read_duration),
        Option("--limit", "how many tickets at most; 0 is all", "N", number_in(0, 10**9), name="tickets_limit"),
        Option("--watch", "look again every 2 seconds, until Ctrl-C; in place on a terminal, elsewhere when something changed"),
        Option("--name", "what the token is for", "NAME", read_text),
        Option("--user", "owner of the token, who is created when unknown", "EMAIL", read_email),
        Option("--ability", "what the token may do; may be repeated; * is everything", "ABILITY", read_ability, True),
        Option("--expires", "how long the token works; 0 is for ever", "DURATION", read_duration),
        Option("--user", "requests of this user alone, by id or e-mail address", "USER", read_user, name="audit_user"),
        Option("--token", "requests with this token alone, by its id", "ID", read_id, name="audit_token"),
        Option("--status", "requests answered so alone: 404, or 4xx", "STATUS", read_status, name="audit_status"),
        Option("--path", "requests whose path holds this text alone", "TEXT", read_text, name="audit_path"),
        Option("--since", "requests of that last time alone; 0 is all", "DURATION", read_duration, name="audit_since"),
        Option("--limit", "how many rows at most; 0 is all", "N", number_in(0, 10**9), name="audit_limit"),
        Option("--follow", "the newest rows last, then those that come, until Ctrl-C"),
        Option("--older-than", "delete the rows older than this", "DURATION", read_duration),
        Option("--repair", "rebuild the counters from the tickets"),
        Option("--audit", "copy the audit log too, with -audit before the suffix of DEST"),
        Option("--force", "replace DEST if it is there"),
    )
}


class Command(NamedTuple):
    """One command: its words, its help, its options and examples."""

    words: str
    help: str
    options: tuple[str, ...]  # names of OPTIONS
    examples: tuple[str, ...]


GROUPS = (
    ("Run it", ("serve",)),
    ("Tickets", ("generate", "process", "tickets", "stats")),
    ("Access", ("token",)),
    ("Look after it", ("audit", "check", "backup", "copy")),
)  # of commands, by their first words


COMMANDS = tuple(
    Command(words, text, tuple(options.split()), examples)
    for words, text, options, examples in (
        (
            "serve",
            "answer HTTP requests and let the desk live",
            "db host port rate threads no_scheduler generate_every process_every audit_keep"
            " cors_origin trusted_proxy log_level demo",
            ("serve --demo", "serve --port 9000 --rate 0", "serve --db /srv/desk.db --generate-every 10s --process-every 15s"),
        ),
        (
            "generate",
            "add tickets now, or a history of them",
            "db count seed since json",
            ("generate --count 50", "generate --count 1000000 --seed 7", "generate --count 10000 --since 90d"),
        ),
        ("process", "close the oldest open tickets", "db count json", ("process", "process --count 100 --json")),
        (
            "tickets",
            "list the open or the closed tickets, or show one",
            "db tickets_limit json",
            ("tickets", "tickets closed --limit 50", "tickets 9842", "tickets open --limit 0 --json"),
        ),
        (
            "stats",
            "show how many tickets wait, for how long, and who wrote most",
            "db watch json",
            ("stats", "stats --watch", "stats --json"),
        ),
        (
            "token create",
            "make a token; it is printed once",
            "db name user ability expires json",
            ("token create", "token create --user ann@example.com --name dashboard --expires 30d"),
        ),
        ("token list", "list tokens, without their secrets", "db json", ("token list", "token list --json")),
        ("token revoke", "delete a token, at once for a running server too", "db json", ("token revoke 3",)),
        ("token prune", "delete the tokens that have expired", "db json", ("token prune",)),
        (
            "audit",
            "show the audit log, newest first",
            "db audit_user audit_token audit_status audit_path audit_since audit_limit follow json",
            ("audit --status 4xx --since 1h", "audit --user ann@example.com --path /tickets/closed", "audit --follow --json"),
        ),
        (
            "audit prune",
            "delete old rows of the audit log, also beside a running server",
            "db older_than json",
            ("audit prune --older-than 90d",),
        ),
        (
            "check",
            "look for damage, wrong counters, open file modes and known problems",
            "db repair json",
            ("check", "check --repair", "check --json"),
        ),
        (
            "backup",
            "copy the desk, while a server runs",
            "db audit force json",
            ("backup ticketapi-monday.db", "backup /var/backups/ticketapi --audit --force"),
        ),
        (
            "copy",
            "copy the desk into another file or database, from SQLite to PostgreSQL or back",
            "db audit json",
            ("copy postgresql://desk@db1/desk --audit", "copy small.db --db postgresql://desk@db1/desk"),
        ),
    )
)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports what is wrong in one line."""

    def __init__(self, *args: Any, **more: Any) -> None:
        """Make the parser; from Python 3.14 on it would colour its help by rules of its own."""
        super().__init__(*args, **more)
        self.color = False

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse would keep to itself that it cannot be printed."""
        file.write(message)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError for `main` to print."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggest a command for one that there is not, where argparse would list them all; no option of ours has choices."""
        if action.choices is None or value in action.choices:
            return
        above = self.prog.partition(" ")[2]
        meant = [f"{above} {name}".strip() for name in closest(value, action.choices)]
        meant = meant or [command.words for command in COMMANDS if command.words.endswith(f" {value}")]
        place = f" of {above}" if above else ""
        self.error(f"{value!r} is no command{place}{did_you_mean(meant)}")


def closest(text: str, known: Iterable[str]) -> list[str]:
    """Return the known text that a mistyped one is closest to, as a list of one, or an empty list."""
    import difflib  # only where something was mistyped

    return difflib.get_close_matches(text, list(known), 1)


def did_you_mean(meant: Sequence[str]) -> str:
    """Return `; did you mean …?` for a mistyped text; nothing without a guess."""
    return f"; did you mean {' or '.join(f'`{text}`' for text in meant)}?" if meant else ""


BARE_NUMBERS = {"serve": "--port", "generate": "--count", "process": "--count"}  # what a number after a command is meant for


def check_flags(argv: Sequence[str]) -> None:
    """Refuse an option that a command does not have, before argparse takes its value for something else."""
    first = argv[0].partition("=")[0] if argv else ""
    if any(option.flag == first for option in OPTIONS.values()):
        raise UsageError(f"{first} stands after the command, as in: ticketapi COMMAND {first} (see ticketapi --help)")
    if first in BARE_NUMBERS and len(argv) > 1 and argv[1].isdecimal():
        raise UsageError(f"{first} takes its number with an option: {first} {BARE_NUMBERS[first]} {argv[1]}")
    commands = [command for command in COMMANDS if command.words.partition(" ")[0] == first]
    exact = [command for command in commands if command.words == " ".join(argv[:2])]
    words = exact[0].words if exact else first
    known = {OPTIONS[name].flag for command in exact or commands for name in command.options}
    for argument in argv[1:] if commands and not {"-h", "--help"} & set(argv) else ():
        flag = argument.partition("=")[0]
        if flag == "--":
            return
        if flag.startswith("--") and flag not in known and " " not in argument:  # what has a blank is a value
            meant = [f"--{name}" for name in closest(flag[2:], [each[2:] for each in known])]
            raise UsageError(f"{words} has no option {flag}{did_you_mean(meant)} (see ticketapi {words} --help)")


def default_text(option: Option) -> str:
    """Write an option's default as one would type it; nothing when there is none."""
    value = getattr(Settings(), option.field)
    if option.read is read_duration and value is not None:
        return next((f"{value // size}{unit}" for unit, size in DURATION_UNITS if value and value % size == 0), "0")
    return " ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)


def add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add options to a command; the default is filled in later, after the environment."""
    for name in names:
        option = OPTIONS[name]
        if option.read is None:
            text = f"{option.help} [{option.variable}]"
            parser.add_argument(option.flag, dest=name, action="store_const", const=True, help=text)
            continue
        default = default_text(option)
        shown = f"; default {default}" if default else ""
        text = f"{option.help}{shown} [{option.variable}]".replace("%", "%%")
        action = "append" if option.repeatable else "store"
        parser.add_argument(option.flag, dest=name, action=action, metavar=option.metavar, help=text)


def argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse say why a positional argument cannot be read."""

    def read_argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_argument


def read_which(text: str) -> str | int:
    """Read which tickets are meant, as an argument: `open`, `closed`, or the id of one."""
    if text in ("open", "closed"):
        return text
    if whole_number(text) is not None:
        return read_id(text)
    meant = did_you_mean(closest(text, ("open", "closed")))
    raise ValueError(f"{text!r} is neither open, closed nor the id of a ticket{meant}")


def list_commands() -> str:
    """Return the commands with what they do, in groups."""
    width, indent = max(40, shutil.get_terminal_size().columns - 2), max(len(command.words) for command in COMMANDS) + 4
    lines = []
    for title, firsts in GROUPS:
        lines += ["", f"{title}:"]
        for command in COMMANDS:
            if command.words.partition(" ")[0] in firsts:
                start = f"  {command.words}".ljust(indent)
                lines += textwrap.wrap(command.help, width, initial_indent=start, subsequent_indent=" " * indent)
    return "\n".join(lines)


def build_parser() -> Parser:
    """Return the parser of the whole command line; `parser` is the one whose help to show when a word is missing."""
    parser = Parser(
        prog="ticketapi",
        usage="ticketapi COMMAND [options]",
        description=f"A live support desk behind an API, in one file.\n{list_commands()}",
        epilog=example_text(("serve --demo", "stats --watch", "token create"))
        + "\n\nticketapi COMMAND --help tells all of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ticketapi {__version__}")
    parser.set_defaults(parser=parser)
    words = parser.add_subparsers(prog="ticketapi", metavar="COMMAND", help=argparse.SUPPRESS)
    token = words.add_parser("token", description="Create, list, revoke and prune tokens.", allow_abbrev=False)
    token.set_defaults(parser=token)
    groups: dict[str, Any] = {"token": token.add_subparsers(metavar="COMMAND", title="commands")}
    for command in COMMANDS:
        first, _, second = command.words.partition(" ")
        made = add_command((groups[first] if second else words).add_parser, second or first, command)
        if any(other.words.startswith(f"{command.words} ") for other in COMMANDS):  # a command that others begin with
            groups[first] = made.add_subparsers(metavar="[COMMAND]", title="commands")
    return parser


def add_command(add_parser: Callable[..., argparse.ArgumentParser], name: str, command: Command) -> argparse.ArgumentParser:
    """Add the parser of one command. An option that is not given leaves what was given before the last word (SUPPRESS)."""
    parser = add_parser(
        name,
        help=command.help,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=example_text(command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if command.words == "token revoke":
        parser.add_argument("token_id", metavar="ID", type=argument(read_id), help="the token's id, as `token list` shows it")
    if command.words == "tickets":
        text = "open (oldest first, the default), closed (most recently closed first), or a ticket's id"
        parser.add_argument("which", nargs="?", default="open", metavar="open|closed|ID", type=argument(read_which), help=text)
    if command.words == "backup":
        parser.add_argument("destination", metavar="DEST", help="file to write, or a directory for one of the desk's name")
    if command.words == "copy":
        text = "file or postgresql:// URL; what is there must be an empty desk"
        parser.add_argument("target", metavar="DEST", type=argument(read_place), help=text)
    add_options(parser, command.options)
    parser.set_defaults(options=command.options, words=command.words)
    return parser


def example_text(examples: Sequence[str]) -> str:
    """Return the examples of a help text."""
    return "examples:\n" + "\n".join(f"  ticketapi {line}" for line in examples)


def program_call(settings: Settings, words: str) -> str:
    """Return a command line that can be pasted, for the program and the desk as they were called."""
    program = sys.argv[0]
    name = f"python3 {shlex.quote(program)}" if program.endswith((".py", ".pyz")) else "ticketapi"
    path = "" if settings.db == Settings().db else f" --db {shlex.quote(str(settings.db))}"
    return f"{name} {words}{path}"


def read_option(option: Option, given: Any, environ: Mapping[str, str]) -> Any:
    """Return an option's value by flag, then environment; None when neither gives one."""
    source, texts = option.flag, given
    if given is None:
        source, text = option.variable, environ.get(option.variable, "")
        if option.field == "port" and text.startswith("tcp://"):  # set by Kubernetes for a Service called ticketapi
            return None
        texts = text.split(",") if option.repeatable and text else text or None
    if texts is None or texts is True:
        return texts
    read = option.read or read_switch
    try:
        if not option.repeatable:
            return read(texts)
        values = tuple(read(text.strip()) for text in texts)
        if read is read_origin and "off" in values and len(values) > 1:
            raise ValueError("off stands alone")
        return values
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None


def resolve_settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Return the settings of a run: flag, then TICKETAPI_* variable, then default.

    What `audit prune` has from before its second word, `audit --user 7 prune`, must not be ignored: more would be deleted.
    """
    for name, option in OPTIONS.items():
        if name in args and name not in args.options:
            raise UsageError(f"{option.flag} does not go with `{args.words}` (see ticketapi {args.words} --help)")
    read = {name: read_option(OPTIONS[name], getattr(args, name, None), environ) for name in args.options}
    return Settings(**{name: value for name, value in read.items() if value is not None})


# ======================================================================================================================
# Room 18. Terminal: tables, colours, wrapped text, progress, the log on standard error. Prints.
# ======================================================================================================================


def one_line(text: str) -> str:
    """Fold a text into one line and escape what a terminal would act on."""
    return escape(" | ".join(text.splitlines()))


def hint(text: str) -> None:
    """Tell a person something that is not the result; whether anybody listens does not matter."""
    with suppress(OSError):
        print(one_line(text), file=sys.stderr)


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2))


def print_result(settings: Settings, record: Any, *lines: str) -> None:
    """Print what a command did, as JSON with --json, else as lines."""
    if settings.json:
        print_json(record)
    else:
        print(*lines, sep="\n")


def print_json_array(pages: Iterable[Sequence[Any]]) -> None:
    """Print a JSON array page by page, as `print_json` would print it whole."""
    separator = "["
    for record in (record for page in pages for record in page):
        text = json.dumps(record, indent=2).replace("\n", "\n  ")
        print(f"{separator}\n  {text}", end="")
        separator = ","
    print("[]" if separator == "[" else "\n]")


def size_text(size: int) -> str:
    """Write a number of bytes for people."""
    unit, scale = ("kB", 10**3) if size < 10**6 else ("MB", 10**6) if size < 10**9 else ("GB", 10**9)
    return f"{size / scale:.1f} {unit}"


def age_text(seconds: int) -> str:
    """Write how long something took in its largest unit and the next: `2d 4h`, `5m 10s`, `0s`."""
    parts: list[tuple[int, str]] = []
    for unit, size in DURATION_UNITS:
        number, seconds = divmod(seconds, size)
        parts += [(number, unit)] if number or parts else []
    return " ".join(f"{number}{unit}" for number, unit in parts[:2] if number) or "0s"


def short_time(text: str | None) -> str | None:
    """Return a time of the API to the second."""
    return f"{text[:19]}Z" if text else None


def wait_for_more(seconds: float) -> None:
    """Flush what was printed and wait so many seconds; raises BrokenPipeError as soon as nobody reads a pipe any more."""
    sys.stdout.flush()
    output = sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(output).st_mode):
        time.sleep(seconds)
        return
    poll = select.poll()
    poll.register(output, 0)  # for POLLERR and POLLHUP, which come unasked
    if poll.poll(seconds * 1000):
        raise BrokenPipeError


def discard_output() -> None:
    """Drop what is still in the buffer of standard output, or Python would complain about it at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


INTERRUPTED = "interrupted; what was committed before is kept"


class Progress:
    """A line on a terminal that tells of long work: done, rate, time left. Silent elsewhere, and for the first second."""

    def __init__(self, total: int, stream: TextIO, clock: Callable[[], float], unit: str = "tickets") -> None:
        """Begin to count; the clock gives seconds."""
        self.total, self.stream, self.clock, self.unit = total, stream, clock, unit
        self.started = clock()
        self.done = 0
        self._shown = False

    def __enter__(self) -> Progress:
        """Return itself, to be called with the number done."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the line, whether the work is done or has failed."""
        if self._shown:
            self._show("")

    def __call__(self, done: int) -> None:
        """Show how far the work is."""
        self.done = done
        passed = self.clock() - self.started
        if self.stream.isatty() and passed >= 1 and 0 < done < self.total:
            left = passed / done * (self.total - done)
            self._show(f"{done:,} of {self.total:,} {self.unit}, {done / passed:,.0f} a second, {left:.0f} s left")

    @contextmanager
    def told(self, path: Place) -> Iterator[None]:
        """Turn a failure in a block of work on a desk into one that says how much was committed before."""
        try:
            yield
        except KeyboardInterrupt as error:
            raise self._add_what_is_done(TicketApiError(INTERRUPTED)) from error
        except FAILURES as error:
            raise self._add_what_is_done(explain_failure(error, path)) from error

    def _add_what_is_done(self, failure: TicketApiError) -> TicketApiError:
        """Add to a failure's text how much was done before it, if anything was."""
        if self.done:
            failure.args = (f"{failure} ({self.done:,} of {self.total:,} {self.unit} were committed)",)
        return failure

    def note(self, text: str) -> None:
        """Show what is being done now, where there is nothing to count."""
        if self.stream.isatty() and self.clock() - self.started >= 1:
            self._show(one_line(text))

    def _show(self, line: str) -> None:
        """Replace the line by a text."""
        self._shown = True
        with suppress(OSError):
            self.stream.write(f"\r\x1b[K{line}")
            self.stream.flush()


STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}  # SGR parameters of ECMA-48
MAX_COLUMN = 40  # a longer value is cut on a terminal, and elsewhere moves its own line's other columns alone


def is_smart_terminal() -> bool:
    """Tell whether standard output is a terminal that knows escape sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def painter() -> Callable[[str, str], str]:
    """Return a function that styles a text; off a terminal and with NO_COLOR (no-color.org) it returns the text as it is."""
    if os.environ.get("NO_COLOR") or not is_smart_terminal():
        return lambda text, style: text
    return lambda text, style: f"\x1b[{STYLES[style]}m{text}\x1b[m" if text and style else text


def printable(value: Any) -> str:
    """Return a value as text without control characters, that standard output can encode; None is a dash."""
    text, encoding = "-" if value is None else escape(str(value)), sys.stdout.encoding or "utf-8"
    return text if text.isascii() else text.encode(encoding, "backslashreplace").decode(encoding)


def char_columns(char: str) -> int:
    """Return how many columns of a terminal a printable character takes (https://www.unicode.org/reports/tr11/)."""
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def text_columns(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    return len(text) if text.isascii() else sum(map(char_columns, text))


def fit_text(text: str, width: int, mark: str = "…") -> str:
    """Cut a printable text to so many columns; a mark in the last one shows that it was cut."""
    if text_columns(text) <= width:
        return text
    ends = list(accumulate(map(char_columns, text)))
    return text[: bisect_right(ends, width - 1)].rstrip() + mark


def wrap_text(text: str, width: int) -> list[str]:
    """Break a printable text into lines of so many columns at most, between words where that can be."""
    if text_columns(text) <= width:
        return [text]
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if text_columns(joined) <= width:
            line = joined
            continue
        lines += [line] if line else []
        while text_columns(word) > width:
            end = max(1, bisect_right(list(accumulate(map(char_columns, word))), width))
            lines.append(word[:end])
            word = word[end:]
        line = word
    return [*lines, line]


def wrap_for_terminal(text: str, indent: int = 0) -> list[str]:
    """Return the lines of a printable text: several on a terminal that is too narrow for it, one elsewhere."""
    return wrap_text(text, max(1, shutil.get_terminal_size().columns - indent)) if sys.stdout.isatty() else [text]


class Table:
    """Prints rows as columns under titles, page by page; on a terminal none is longer than a line of it."""

    def __init__(self, titles: Sequence[str], style: Callable[[int, str], str] = lambda column, text: "") -> None:
        """Begin with columns as wide as their titles; values widen them. `style` gives the style of a text in a column."""
        self.titles, self.style = titles, style
        self.widths = list(map(len, titles))
        self.terminal, self.paint = sys.stdout.isatty(), painter()
        self.mark = "…" if printable("…") == "…" else "~"
        self._begun = False

    def show(self, rows: Sequence[Sequence[Any]]) -> None:
        """Print some rows, the first time with titles."""
        lines = [list(map(printable, row)) for row in rows]
        widest = [min(MAX_COLUMN, max(map(text_columns, column))) for column in zip(*lines, strict=True)]
        self.widths = list(map(max, self.widths, widest))
        if not self._begun:
            print(self._line(self.titles, lambda column, text: "bold"))
        self._begun = True
        for line in lines:
            print(self._line(line, self.style))

    def _line(self, cells: Sequence[str], style: Callable[[int, str], str]) -> str:
        """Return one line, cut where a terminal ends and coloured after that."""
        shown = [*cells]
        if self.terminal:
            shown[:-1] = [fit_text(text, width, self.mark) for text, width in zip(cells[:-1], self.widths, strict=False)]
        padded = [text + " " * (width - text_columns(text)) for text, width in zip(shown[:-1], self.widths, strict=False)]
        line = "  ".join((*padded, shown[-1])).rstrip()
        if not self.terminal:
            return line
        line = fit_text(line, shutil.get_terminal_size().columns, self.mark)
        starts = list(accumulate((len(text) + 2 for text in padded), initial=0))
        for column, start in reversed(list(enumerate(starts))):  # from the end, so that the places before it stay
            end = start + len(shown[column])
            line = line[:start] + self.paint(line[start:end], style(column, cells[column])) + line[end:]
        return line


class Field(NamedTuple):
    """A label with a value, and how to style it."""

    label: str
    value: str | int | None
    style: str = ""


def field_lines(fields: Sequence[Field]) -> list[str]:
    """Return fields as lines, label and value; on a terminal a value that is too long is wrapped in its column."""
    paint, indent = painter(), max(len(field.label) for field in fields) + 2
    lines = []
    for label, value, style in fields:
        first, *rest = wrap_for_terminal(printable(value), indent)
        lines.append(paint(label, "bold") + " " * (indent - len(label)) + paint(first, style))
        lines += [" " * indent + paint(line, style) for line in rest]
    return lines


class OneLine(logging.Formatter):
    """Writes each record, its traceback included, as one line of printable text, as journald likes it."""

    def format(self, record: logging.LogRecord) -> str:
        """Fold the lines of a record."""
        return one_line(super().format(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Write where an exception came from, without source lines: the file that they stood in may have been replaced."""
        places = [f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}" for frame, line in walk_tb(ei[2])]
        return "\n".join([f"{type(ei[1]).__name__}: {ei[1]}", *reversed(places)])


def configure_log(level: str) -> None:
    """Send the log to stderr."""
    logging.raiseExceptions = False  # what cannot be logged breaks nothing
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


# ======================================================================================================================
# Room 19. Commands: one function for each, and main. Prints.
# ======================================================================================================================

DEMO_TICKETS, DEMO_DAYS, DEMO_SEED = 10_000, 90, 1
DEMO_ABILITIES = (READ_TICKETS, READ_AUDITS, READ_METRICS)  # all that there is to see
WATCH_SECONDS = 2.0  # between two looks at the desk
FOLLOW_SECONDS = 0.5  # between two looks for new rows
TICKET_STYLES = {"Open": "yellow", "Closed": "green"}
STATUS_STYLES = {"4": "yellow", "5": "red"}
LEVEL_STYLES = {OK: "", NOTE: "yellow", WRONG: "red"}


def command_generate(settings: Settings) -> int:
    """Add tickets now, or a history of them."""
    if settings.count < 1:
        raise UsageError("Invalid ticket count: --count must be 1 or more")
    if settings.count > settings.since * MICROSECONDS // 2 > 0:
        raise UsageError("Invalid ticket count: --count is too many for so short a --since")
    seed = secrets.randbits(63) if settings.seed is None else settings.seed
    now, progress = wall_microseconds(), Progress(settings.count, sys.stderr, time.monotonic)
    with closing(open_database(settings.db, "desk")) as db, progress, progress.told(settings.db):
        closed = 0
        if settings.since:
            made, closed = generate_history(db, settings.count, settings.since, now, seed, progress)
        else:
            made = generate_tickets(db, settings.count, now, seed, progress)
    lines = [f"Generated {plural(made, 'ticket')}", f"Closed {plural(closed, 'ticket')}"]
    print_result(settings, {"generated": made, "closed": closed}, *lines[: 2 if settings.since else 1])
    return 0


def command_process(settings: Settings) -> int:
    """Close the oldest open tickets."""
    with closing(open_database(settings.db, "desk")) as db:
        total = min(settings.count, count_tickets(db, OPEN))
        progress = Progress(total, sys.stderr, time.monotonic)
        with progress, progress.told(settings.db):
            ids = process_tickets(db, settings.count, wall_microseconds(), progress)
    lines = [f"Processed {plural(len(ids), 'ticket')}", f"Ticket ID{'s' if len(ids) > 1 else ''}: {', '.join(map(str, ids))}"]
    print_result(settings, {"processed": len(ids), "ticket_ids": ids}, *(lines if ids else ["No tickets to process"]))
    return 0


def open_desk(settings: Settings) -> Connection:
    """Open the desk to read its tickets; nothing is created or upgraded. Raises TicketApiError where there is none."""
    with explained(settings.db):
        db = open_read_only(settings.db, "desk", views=True)
    if db is None:
        fix = f"--db names its file, and this makes one: {program_call(settings, 'generate --count 50')}"
        raise TicketApiError(f"there is no desk at {settings.db}; {fix}")
    return db


def command_tickets(settings: Settings, which: str | int) -> int:
    """List the open or the closed tickets, or show the one with an id."""
    with closing(open_desk(settings)) as db, explained(settings.db):
        if isinstance(which, int):
            print_ticket(settings, find_ticket(db, which), which)
        else:
            list_tickets(settings, db, OPEN if which == "open" else CLOSED)
    return 0


def list_tickets(settings: Settings, db: Connection, status: int) -> None:
    """Print the first tickets of a list; on a terminal tell how many more there are."""
    pages = (walk_open_tickets if status == OPEN else walk_closed_tickets)(db, settings.tickets_limit)
    if settings.json:
        print_json_array(pages)
        return
    shown, total = print_tickets(pages, status), count_tickets(db, status)
    if not shown:
        print(f"No {'open' if status == OPEN else 'closed'} tickets")
    elif shown < total and sys.stdout.isatty():
        hint(f"{total - shown:,} more; --limit 0 shows all")


def print_tickets(pages: Iterable[Sequence[Mapping[str, Any]]], status: int) -> int:
    """Print tickets as columns, page by page; return how many. A closed ticket was updated last when it was closed."""
    title, name = ("CREATED", "created_at") if status == OPEN else ("CLOSED", "updated_at")
    styles = ("", TICKET_STYLES["Open" if status == OPEN else "Closed"], "dim", "", "")
    table, shown = Table(("ID", "STATUS", title, "CUSTOMER", "SUBJECT"), lambda column, text: styles[column]), 0
    for page in pages:
        table.show([(one["id"], one["status"], short_time(one[name]), one["user"]["name"], one["subject"]) for one in page])
        shown += len(page)
    return shown


def print_ticket(settings: Settings, found: bytes | None, ticket_id: int) -> None:
    """Print all there is to know of one ticket, its text wrapped on a terminal. Raises NotFound."""
    if found is None:
        raise NotFound(f"no ticket has the id {ticket_id}; `tickets open` and `tickets closed` show those there are")
    ticket = json.loads(found.decode(errors="replace"))
    if settings.json:
        print_json(ticket)
        return
    user, is_open = ticket["user"], ticket["status_id"] == OPEN
    closed = [] if is_open else [Field("Closed", ticket["updated_at"])]
    fields = [
        Field("Ticket", ticket["id"]),
        Field("Subject", ticket["subject"]),
        Field("Status", ticket["status"], TICKET_STYLES[ticket["status"]]),
        Field("Created", ticket["created_at"]),
        *closed,
        Field("Customer", f"{user['name']} <{user['email']}>, id {user['id']}"),
    ]
    print(*field_lines(fields), "", sep="\n")
    for paragraph in ticket["content"].splitlines():
        print(*wrap_for_terminal(printable(paragraph)), sep="\n")


def command_stats(settings: Settings) -> int:
    """Show how the desk stands, once or until Ctrl-C."""
    if settings.watch:
        watch_desk(settings)
    else:
        overview = read_overview(settings)
        print_result(settings, overview, *overview_lines(overview))
    return 0


def read_overview(settings: Settings) -> dict[str, Any]:
    """Return the figures of the desk at this moment; it is opened anew, as it may have been restored since the last time."""
    with closing(open_desk(settings)) as db, explained(settings.db):
        return desk_overview(db, wall_microseconds())


def overview_lines(overview: Mapping[str, Any]) -> list[str]:
    """Return the figures of the desk for people."""
    counts = [f"{overview[f'total_{name}tickets']:,}" for name in ("unprocessed_", "processed_", "")]
    waiting, closed, total = (count.rjust(max(map(len, counts))) for count in counts)
    oldest = last = top = None
    if overview["oldest_open_at"]:
        age = age_text(overview["oldest_open_age"])
        oldest = f"ticket {overview['oldest_open_id']}, for {age}, since {short_time(overview['oldest_open_at'])}"
    if overview["last_closed_at"]:
        last = f"{age_text(overview['last_closed_age'])} ago, at {short_time(overview['last_closed_at'])}"
    if user := overview["top_user"]:
        top = f"{user['name']} <{user['email']}>, {plural(user['tickets_count'], 'ticket')}"
    return field_lines(
        [
            Field("Open", waiting, TICKET_STYLES["Open"]),
            Field("Closed", closed, TICKET_STYLES["Closed"]),
            Field("Total", total),
            Field("Oldest open", oldest),
            Field("Last closed", last),
            Field("Last hour", f"{overview['opened_last_hour']:,} arrived, {overview['closed_last_hour']:,} closed"),
            Field("Top customer", top),
        ]
    )


def watch_desk(settings: Settings) -> None:
    """Show the desk again and again until Ctrl-C: in place on a terminal, elsewhere each time that it has changed."""
    in_place = is_smart_terminal() and not settings.json
    if in_place:  # what the terminal shows moves up, where it can be read again
        print("\n" * shutil.get_terminal_size().lines, end="")
    shown: dict[str, Any] = {}
    with suppress(KeyboardInterrupt):
        while True:
            overview = read_overview(settings)
            facts = {name: value for name, value in overview.items() if not name.endswith("_age")}
            if in_place:
                draw_overview(settings, overview)
            elif facts != shown:
                print(json.dumps(overview) if settings.json else "\n".join([*overview_lines(overview), ""]))
            shown = facts
            wait_for_more(WATCH_SECONDS)
    if in_place:
        print("\r\x1b[K", end="")  # takes away the ^C of the terminal


def draw_overview(settings: Settings, overview: Mapping[str, Any]) -> None:
    """Write the figures over the previous ones, in one write, so that nothing flickers; the cursor ends below them.

    The cursor is never hidden, so whatever ends this program leaves the terminal as it was.
    """
    columns, rows = shutil.get_terminal_size()
    title = printable(f"{Path(str(settings.db)).name} at {short_time(format_time(wall_microseconds()))}, until Ctrl-C")
    lines = [painter()(wrap_text(title, columns)[0], "dim"), "", *overview_lines(overview)]
    print("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines[: rows - 1]) + "\x1b[J", end="")


def command_token_create(settings: Settings) -> int:
    """Make a token; its secret is printed once."""
    with closing(open_database(settings.db, "desk")) as db:
        token = create_token(db, settings.user, settings.name, settings.ability, settings.expires, wall_microseconds())
    if settings.json:
        print_json(token)
        return 0
    expires = f"expires {token['expires_at']}" if token["expires_at"] else "does not expire"
    hint(f"Token {token['id']} of {settings.user} for {', '.join(settings.ability)}; {expires}. It is shown only once:")
    print(token["token"])
    return 0


def command_token_list(settings: Settings) -> int:
    """List the tokens, without their secrets."""
    with closing(open_database(settings.db, "desk")) as db:
        tokens = [{**dict(row), "abilities": json.loads(row["abilities"])} for row in list_tokens(db)]
    if settings.json:
        print_json(tokens)
    elif tokens:
        Table([name.upper() for name in tokens[0]]).show(list(map(token_cells, tokens)))
    else:
        print("No tokens")
    return 0


def token_cells(token: Mapping[str, Any]) -> list[Any]:
    """Return what the table shows of a token."""
    texts = {name: short_time(value) for name, value in token.items() if name.endswith("_at")}
    return list({**token, "abilities": ",".join(token["abilities"]), **texts}.values())


def command_token_revoke(settings: Settings, token_id: int) -> int:
    """Delete a token."""
    with closing(open_database(settings.db, "desk")) as db:
        revoke_token(db, token_id)
    print_result(settings, {"revoked": token_id}, f"Revoked token {token_id}")
    return 0


def command_token_prune(settings: Settings) -> int:
    """Delete the tokens that have expired."""
    with closing(open_database(settings.db, "desk")) as db:
        pruned = prune_tokens(db, wall_microseconds())
    print_result(settings, {"pruned": pruned}, f"Pruned {plural(pruned, 'token')}")
    return 0


def command_audit(settings: Settings) -> int:
    """Show the audit log, newest first; with --follow oldest first and on and on."""
    wanted = audit_filter(settings, wall_microseconds())
    show = print_json_lines if settings.json else audit_table()
    if settings.follow:
        with suppress(KeyboardInterrupt):
            follow_log(settings, wanted, show)
        return 0
    db, shown = open_log(settings), False
    if db:
        with closing(db), explained(settings.audit_db):
            for page in newest_audits(db, wanted, settings.audit_limit):
                show(page)
                shown = True
    if not shown and not settings.json:
        print("No audits")
    return 0


def open_log(settings: Settings) -> Connection | None:
    """Open the audit log to read it; None while there is none. Then the desk is checked, as --db may be mistyped."""
    db = open_read_only(settings.audit_db, "audit")
    if db is None:
        desk = open_read_only(settings.db, "desk")
        if desk:
            desk.close()
    return db


def audit_filter(settings: Settings, now: int) -> AuditFilter:
    """Return what the options ask for. Raises NotFound for an address that no user has."""
    user_id, since = settings.audit_user, now - settings.audit_since * MICROSECONDS if settings.audit_since else None
    if isinstance(user_id, str):
        user_id = find_user_id(settings, user_id)
    return make_audit_filter(user_id, settings.audit_token, settings.audit_status, settings.audit_path, since)


def find_user_id(settings: Settings, email: str) -> int:
    """Return the id of the user with an address; the desk is only read. Raises NotFound."""
    desk = open_read_only(settings.db, "desk")
    if desk:
        with closing(desk), explained(settings.db):
            user = find_user_by_email(desk, email)
        if user:
            return int(user["id"])
    raise NotFound(f"no user of {settings.db} has the address {email}; `token list` shows those who have tokens")


def follow_log(settings: Settings, wanted: AuditFilter, show: Callable[[Sequence[Row]], object]) -> None:
    """Show the newest rows and those that come, until somebody ends it; wait for a log that is not there yet."""
    db = open_log(settings)
    if db is None:
        hint(f"Waiting for {settings.audit_db}, which `serve` makes")
    while db is None:
        wait_for_more(FOLLOW_SECONDS)
        db = open_log(settings)
    with closing(db), explained(settings.audit_db):
        for page in follow_audits(db, wanted, settings.audit_limit):
            if page:
                show(page)
            else:
                wait_for_more(FOLLOW_SECONDS)


def print_json_lines(rows: Sequence[Row]) -> None:
    """Print rows of the audit log as JSON Lines, a row a line; what is no ASCII is escaped (https://jsonlines.org)."""
    for row in rows:
        print(json.dumps(audit_resource(row)))


def audit_table() -> Callable[[Sequence[Row]], None]:
    """Return what prints rows of the audit log as columns, page by page."""
    titles = ("TIME", "STATUS", "METHOD", "PATH", "USER", "TOKEN", "IP", "MS", "AGENT")
    table = Table(titles, lambda column, text: STATUS_STYLES.get(text[:1], "") if column == 1 else "")
    return lambda rows: table.show(list(map(audit_cells, rows)))


def audit_cells(row: Row) -> list[Any]:
    """Return what the table shows of a row."""
    names = ("status_code", "method", "path", "user_id", "token_id", "ip_address", "duration_ms", "user_agent")
    return [short_time(row["created_at"]), *(row[name] for name in names)]


def command_audit_prune(settings: Settings) -> int:
    """Delete the rows of the audit log that are older than a time, in small steps."""
    if settings.older_than is None:
        raise UsageError("audit prune needs --older-than, which says what goes: --older-than 90d")
    if not settings.older_than:
        raise UsageError("--older-than 0 would delete the whole log; give a time, such as 90d")
    before = format_time(wall_microseconds() - settings.older_than * MICROSECONDS)
    there, pruned = open_log(settings), 0
    if there:
        there.close()
        with closing(open_database(settings.audit_db, "audit")) as db, explained(settings.audit_db):
            pruned = prune_log(db, before)
    print_result(settings, {"pruned": pruned}, f"Pruned {plural(pruned, 'audit')}")
    return 0


def prune_log(db: Connection, before: str) -> int:
    """Delete the rows from before a time step by step; return how many. Others may write between two steps."""
    pruned = 0
    with Progress(count_old_audits(db, before), sys.stderr, time.monotonic, "audits") as progress:
        while deleted := prune_audits(db, before, AUDIT_STEP):
            pruned += deleted
            progress(pruned)
            time.sleep(AUDIT_PAUSE)
    return pruned


def command_check(settings: Settings) -> int:
    """Check everything, after a repair if asked for; 1 when anything is wrong."""
    findings = check_everything(settings)
    if settings.repair:
        findings = [repair_counters(settings.db, findings), *check_everything(settings)]
    sound = all(finding.level != WRONG for finding in findings)
    paint = painter()
    lines = [
        paint(f"{level:5}", LEVEL_STYLES[level]) + one_line(f"  {': '.join(filter(None, (file, check, detail)))}")
        for level, file, check, detail in findings
    ]
    print_result(settings, {"ok": sound, "checks": [finding._asdict() for finding in findings]}, *lines)
    return 0 if sound else 1


def command_backup(settings: Settings, destination: str) -> int:
    """Copy the desk, and its audit log if asked for, while others use them."""
    backups = plan_backups(settings, destination)
    total = sum(backup.source.stat().st_size for backup in backups)
    progress = Progress(total // 10**6, sys.stderr, time.monotonic, "MB")
    try:
        with progress:
            copies = make_backup(backups, settings.force, lambda done: progress(done // 10**6), progress.note)
    except KeyboardInterrupt:
        raise TicketApiError("interrupted; no half backup is left") from None
    if settings.audit and len(backups) == 1:
        hint(f"There is no audit log at {settings.audit_db} yet; the desk alone was copied")
    print_result(settings, backup_record(backups, copies), *map(backup_line, backups, copies))
    return 0


def backup_line(backup: Backup, copy: Copy) -> str:
    """Return what a backup reports of one file."""
    rows = plural(copy.rows, "ticket" if backup.kind == "desk" else "request")
    return one_line(f"Backed up {backup.source} to {backup.destination}: {rows}, {size_text(copy.bytes)}, verified")


def backup_record(backups: Sequence[Backup], copies: Sequence[Copy]) -> dict[str, Any]:
    """Return what a backup reports as JSON; what belongs to the audit log is null when that was not copied."""
    record = {"db": str(backups[0].destination), "tickets": copies[0].rows, "bytes": copies[0].bytes}
    if len(backups) == 1:
        return {**record, "audit_db": None, "requests": None, "audit_bytes": None}
    return {**record, "audit_db": str(backups[1].destination), "requests": copies[1].rows, "audit_bytes": copies[1].bytes}


def command_copy(settings: Settings, target: Place) -> int:
    """Copy the desk, and its audit log if asked for, into another file or database."""
    with closing(open_desk(settings)) as db:
        total = sum(list_ticket_counts(db).values())
    try:
        with Progress(total, sys.stderr, time.monotonic) as progress:
            rows = copy_desk(settings, target, progress)
    except KeyboardInterrupt:
        raise TicketApiError("interrupted; nothing was copied") from None
    counts = [plural(rows["tickets"], "ticket"), plural(rows["users"], "user"), plural(rows["personal_access_tokens"], "token")]
    counts += [plural(rows["api_audits"], "request")] if "api_audits" in rows else []
    names = {"tickets": "tickets", "users": "users", "tokens": "personal_access_tokens", "requests": "api_audits"}
    record = {"db": str(target), **{name: rows.get(table) for name, table in names.items()}}
    print_result(settings, record, f"Copied {', '.join(counts)} to {target}")
    return 0


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does; as process 1, in a container, it would ignore them."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def open_streams() -> bool:
    """Open what is closed of the three standard streams, or the next file opened, a desk, would get what is printed.

    Returns whether there is a standard output.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(handle)
    has_output, sys.stderr = sys.stdout is not None, sys.stderr or os.fdopen(2, "w")
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    return has_output


def command_serve(settings: Settings) -> int:
    """Serve the API until SIGTERM or SIGINT."""
    if bottle is None or importlib.util.find_spec("waitress") is None:
        raise TicketApiError("serve needs the packages bottle and waitress: pip install bottle waitress, or use the .pyz")
    configure_log(settings.log_level)
    with closing(open_to_serve(settings.db)) as db:
        sockets = inherited_sockets(os.environ) or [bind_socket(settings.host, settings.port)]
        url = socket_url(sockets[0])
        if settings.demo:
            fill_demo_desk(db, settings, url)
        else:
            suggest_next_steps(db, settings)
    serve(settings, sockets, url)
    return 0


def serve(settings: Settings, sockets: Sequence[socket.socket], url: str) -> None:
    """Run server and scheduler until a signal, and tell systemd how they are."""
    clock, readers = Clock(), Readers(settings.db)
    audit = AuditLog(settings.audit_db, grouped=settings.threads == 1)
    for path in (settings.db, settings.audit_db):
        warn_of_other_readers(path)
    traffic, stop = Traffic(clock.wall()), threading.Event()
    scheduler = Scheduler(scheduled_jobs(settings, secrets.randbits(63), audit, stop.wait), clock, stop)
    app = make_app(settings, readers, audit, clock, traffic, scheduler)
    cors = Cors(settings.cors_origin)

    def refused(status: int, origin: str) -> dict[str, str]:
        traffic.refuse(status)
        return cors.headers(origin)

    server = Server(app, sockets, settings, lambda: audit.commit(clock.monotonic()), refused)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop_once(server, stop))

    def beat() -> None:
        audit.commit(clock.monotonic())  # what could not be written before; there may be no request for long
        for path in (settings.db, settings.audit_db):
            shrink_wal(path, clock.wall())
        if scheduler.alive(clock.monotonic()):
            notify_systemd(os.environ, "WATCHDOG=1")

    readers.get()  # a disk may fill before the first request: what reading needs there must be there
    scheduler.start()
    print(f"Listening on {url}", flush=True)
    page = f"; dashboard: {url}/" if url.startswith("http") else ""  # a browser cannot reach a Unix socket
    log.info("ticketapi %s serves %s with %s%s", __version__, settings.db, describe_schedule(settings), page)
    notify_systemd(os.environ, "READY=1")
    server.run(beat)
    notify_systemd(os.environ, "STOPPING=1")
    scheduler.stop(server.deadline - clock.monotonic())
    readers.close()
    audit.close()
    log.info("stopped")


def warn_of_other_readers(path: Place) -> None:
    """Log a warning when others than its owner may read or write a file."""
    if isinstance(path, Postgres):
        return
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        log.warning("%s is open to other users (mode %04o): chmod 600 %s", path, mode, path)


def stop_once(server: Server, stop: threading.Event) -> None:
    """Ask server and scheduler to stop; another signal ends the process at once."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    stop.set()
    server.stop()


def describe_schedule(settings: Settings) -> str:
    """Return what the scheduler does, for the log."""
    if settings.no_scheduler:
        return "no scheduler"
    kept = f", audit rows kept for {settings.audit_keep} s" if settings.audit_keep else ""
    return f"a ticket every {settings.generate_every} s, a closing every {settings.process_every} s (0: never){kept}"


def fill_demo_desk(db: Connection, settings: Settings, url: str) -> None:
    """Fill an empty desk, make a token and say how to use it; leave any other desk alone."""
    now = wall_microseconds()
    if newest_ticket(db)[0]:
        hint(f"{settings.db} has tickets already, so --demo changes nothing. A token: {program_call(settings, 'token create')}")
        return
    made, closed = generate_history(db, DEMO_TICKETS, DEMO_DAYS * DAY, now, DEMO_SEED)
    token = create_token(db, settings.user, "demo", DEMO_ABILITIES, 0, now)
    hint(f"The desk has {made} tickets of the last {DEMO_DAYS} days, {closed} of them closed. Try, with a token of its own:")
    hint(f"  curl -H 'Authorization: Bearer {token['token']}' {url}/api/stats")
    hint(f"Open {url}/ and paste the token: {token['token']}")


def suggest_next_steps(db: Connection, settings: Settings) -> None:
    """Say what to do first on a desk without tickets or tokens."""
    if not newest_ticket(db)[0]:
        hint(f"The desk is empty. Tickets now: {program_call(settings, 'generate --count 50')}")
    if not has_tokens(db):
        hint(f"There is no token yet. The API asks for one: {program_call(settings, 'token create')}")


RUN: dict[str, Callable[..., int]] = {
    "serve": command_serve,
    "generate": command_generate,
    "process": command_process,
    "tickets": command_tickets,
    "stats": command_stats,
    "token create": command_token_create,
    "token list": command_token_list,
    "token revoke": command_token_revoke,
    "token prune": command_token_prune,
    "audit": command_audit,
    "audit prune": command_audit_prune,
    "check": command_check,
    "backup": command_backup,
    "copy": command_copy,
}  # by the words of `COMMANDS`


def run_command(argv: Sequence[str] | None) -> int:
    """Run one command and return its exit code; what SQLite reports becomes a TicketApiError."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python's stderr: no text is worth a traceback
    try:
        check_flags(sys.argv[1:] if argv is None else argv)
        args = build_parser().parse_args(argv)
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    if "words" not in args:
        print(args.parser.format_help(), end="", file=sys.stderr)
        return UsageError.exit_code
    settings = resolve_settings(args, os.environ)
    settings = replace(settings, db=follow_link(settings.db) if isinstance(settings.db, Path) else settings.db)
    if args.words != "serve":
        enter_desk(settings.db)
    more = {name: getattr(args, name) for name in ("token_id", "destination", "target", "which") if hasattr(args, name)}
    try:
        with signals_interrupt():
            return RUN[args.words](settings, **more)
    except FAILURES as error:
        raise explain_failure(error, settings.db) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 usage."""
    try:
        if not open_streams() and list(argv or sys.argv[1:])[:1] != ["serve"]:
            raise TicketApiError("standard output is closed, nobody would get the result; nothing was done")
        code = run_command(argv)
        sys.stdout.flush()
        return code
    except TicketApiError as error:
        failure = error
    except BrokenPipeError:  # the reader of our output has left
        discard_output()
        return 1
    except KeyboardInterrupt:
        failure = TicketApiError(INTERRUPTED)
    except OSError as error:
        if error.filename is None:
            discard_output()
        place = "see ulimit -n" if error.errno in TOO_MANY_FILES else "standard output; what was done before stays done"
        failure = TicketApiError(f"{error.strerror}: {error.filename or place}")
    hint(f"ticketapi: {failure}")
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
