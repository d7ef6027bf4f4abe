#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["bottle>=0.13.4", "waitress>=3.0.2,<4"]
# ///
"""ticketapi: a live support desk behind an API, in one file.

It serves a secured, rate-limited, audited and paginated JSON API over a support desk that lives: a ticket arrives every
minute, one is closed every five, and a million more are one command away. Build dashboards, connectors, SDKs and load
tests against it. `ticketapi --help` lists the commands, and so does COMMANDS in the room of options.

Configuration
    Every option can be given as a flag, as an environment variable (--generate-every is TICKETAPI_GENERATE_EVERY), or left
    to its default in `Settings`; the flag wins over the variable. Two SQLite files hold everything: the desk (--db) and
    its audit log beside it. `schema.sql` describes them.

The life of one request
    socket > Waitress > audit hook (clock, path, preflight, token) > CatchErrors > Authenticate > Throttle >
    Authorize > handler > remembered answer, or operation > queries > SQLite > JSON bytes > audit hook (headers, counters,
    audit row) > commit > socket. A request that has to wait, as for a write, is parked: it goes through the app again when that
    is done, and holds neither the loop nor a thread meanwhile.

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
     1 Settings and errors   2 PostgreSQL            3 Database              4 Queries               5 More queries
     6 Words                 7 Rhythm                8 Clocks                9 Desk                 10 Simulation
    11 Lists                12 Changes              13 Keys and limits      14 Audit                15 Writes
    16 Webhooks             17 Watch                18 Upkeep               19 Import               20 Snapshots
    21 Faults               22 Plugins              23 Routes               24 Jobs                 25 Server
    26 Options              27 Terminal             28 Commands
"""

from __future__ import annotations

import argparse
import base64
import csv
import errno
import fcntl
import gc
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
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import accumulate, chain, groupby, islice, takewhile
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TextIO
from urllib.parse import parse_qsl, urlencode, urlsplit

if sys.version_info < (3, 10):  # noqa: UP036  # or a traceback of a line below would be all that is said
    raise SystemExit(f"ticketapi needs Python 3.10 or newer; this is {sys.version.split()[0]}")

__version__ = "1.8.0"


def import_lazily(name: str) -> Any:
    """Return a module that is loaded at its first use, or None when it is not installed."""
    # The recipe of the importlib documentation, "Implementing lazy imports". Bottle is slow to load, and for `serve` alone.
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
START_OF_TIME = -62_135_596_800 * MICROSECONDS  # the year 1
END_OF_TIME = 253_370_764_800 * MICROSECONDS  # the year 9999 begins: times have four digits for the year
RUNNING, FROZEN = "running", "frozen"  # what a desk's own clock may be
MAX_SPEED = 100_000  # of a desk's own clock, in times the real one: a day takes less than a second
CLOCK_SECONDS = 10  # that it goes on after it was written last: a server writes it more often, so that is how it outlives one
MAX_ID = 2**63 - 1

READ_TICKETS, WRITE_TICKETS, WRITE_WEBHOOKS = "read:tickets", "write:tickets", "write:webhooks"
READ_AUDITS, READ_METRICS = "read:audits", "read:metrics"
CONTROL_CLOCK, CONTROL_DESK, CONTROL_FAULTS = "control:clock", "control:desk", "control:faults"
ABILITIES = (
    *(READ_TICKETS, WRITE_TICKETS, WRITE_WEBHOOKS, READ_AUDITS, READ_METRICS, CONTROL_CLOCK, CONTROL_DESK, CONTROL_FAULTS),
    "*",
)
FIRST_OWNER_ID = 1_000_000_000  # users from here up own tokens, below are customers
FIRST_BROUGHT_ID = 500_000_001  # customers from here up came with a request or a file, below were made up
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
    profile: Profile | None = None  # None is steady
    audit_keep: int = 0
    cors_origin: tuple[str, ...] = ("*",)
    trusted_proxy: str = ""
    log_level: str = "info"
    reset: str = ""
    demo: bool = False
    clock: tuple[int | None, int] | None = None  # where it starts, None for now, and thousandths of the real speed
    faults: str = ""  # a file
    # generate, process
    count: int = 1
    seed: int | None = None
    since: int = 0
    # tickets, stats
    tickets_limit: int = 20  # tickets; 0 is all
    format: str = "table"
    watch: bool = False
    # token
    name: str = "token"
    user: str = OPERATOR_EMAIL
    ability: tuple[str, ...] = (READ_TICKETS,)
    expires: int = 0
    # webhook
    event: tuple[str, ...] = ()  # none is all
    webhook_name: str = ""
    deliveries_limit: int = 20  # 0 is all
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
    # import
    import_audit: bool = False

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


class DiskFull(TicketApiError):
    """There is no room left where a database lies."""

    status = 503


class NotFound(TicketApiError):
    """What was asked for by id is not there."""

    status = 404


class BadRequest(TicketApiError):
    """A request that makes no sense as a whole."""

    status = 400


class Gone(TicketApiError):
    """A cursor that lies before what is kept, or after all there is."""

    status = 410


class Conflict(TicketApiError):
    """What cannot be done in the state that something is in."""

    status = 409


class TooLarge(TicketApiError):
    """A request body over the bound."""

    status = 413


class UnknownType(TicketApiError):
    """A request body of a media type that is not read."""

    status = 415


class PreconditionFailed(TicketApiError):
    """A ticket that is not in the state that If-Match names."""

    status = 412


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
def format_day(day: int) -> str:
    """Write a day, counted since 1970, as `2025-12-04`."""
    return time.strftime("%Y-%m-%d", time.gmtime(day * DAY)).zfill(10)  # years below 1000 come without zeros


DAY_MINUTES = [f"T{minute // 60:02d}:{minute % 60:02d}:" for minute in range(24 * 60)]


@lru_cache(maxsize=4096)
def format_second(seconds: int) -> str:
    """Write seconds since 1970 as `2025-12-04T11:30:16`; from parts, as a year's times share few seconds."""
    minutes, second = divmod(seconds, MINUTE)
    day, minute = divmod(minutes, 24 * 60)
    return f"{format_day(day)}{DAY_MINUTES[minute]}{second:02d}"


def format_time(moment: int) -> str:
    """Write microseconds since 1970 as the API and the tables show them: `2025-12-04T11:30:16.000000Z`."""
    seconds, fraction = divmod(moment, MICROSECONDS)
    return f"{format_second(seconds)}.{fraction:06d}Z"


@lru_cache(maxsize=4096)
def parse_day(text: str) -> int:
    """Return the seconds since 1970 of the start of a day such as `2025-12-04`."""
    return timegm(time.strptime(text, "%Y-%m-%d"))


@lru_cache(maxsize=4096)
def parse_second(text: str) -> int:
    """Return the seconds since 1970 of a time such as `2025-12-04T11:30:16`; what came together has the same one."""
    return parse_day(text[:10]) + int(text[11:13]) * HOUR + int(text[14:16]) * MINUTE + int(text[17:19])


def parse_time(text: str) -> int:
    """Return the microseconds since 1970 of a time that `format_time` wrote."""
    return parse_second(text[:19]) * MICROSECONDS + int(text[20:26])


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


SPACE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200C))) + "\u200e\ufeff"


def trim(text: str) -> str:
    """Return a text without what is space to Laravel's Str::trim around it; to Python's strip controls 1C to 1F are, too."""
    return text.strip(SPACE)


def whole_number(text: str) -> int | None:
    """Read a whole number of any length, or return None; beyond 19 digits, more than 64 bits hold, it is 10^19."""
    match = re.fullmatch(r"([+-]?)([0-9]+)", trim(text))
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
    lower = text.lower()  # of which a few characters become two
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", lower) or not lower.isprintable() or len(lower) > 255:
        raise ValueError(f"{text!r} is not an e-mail address")
    return lower


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


def parse_moment(text: str) -> int:
    """Read a UTC time such as `2025-12-04T11:30:16Z`, as microseconds since 1970. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3])(?::[0-5][0-9]){2})(?:\.([0-9]{1,6}))?Z", text)
    with suppress(ValueError):  # of a day that there is not
        if match:
            return parse_time(f"{match[1]}.{match[2] or '':0<6}Z")
    raise ValueError(f"{text!r} is no time; write 2025-12-04T11:30:16Z")


def read_moment(text: str, now: int) -> int:
    """Read a UTC time such as `2025-12-04T11:30:16Z`, or a duration before now such as `24h`, as microseconds since 1970."""
    return parse_moment(text) if "T" in text else now - read_duration(text) * MICROSECONDS


def read_speed(text: str) -> int:
    """Read how many times as fast as the real one a clock goes, such as `60x` or `0.5`, in thousandths."""
    found = re.fullmatch(r"([0-9]{1,6})(?:\.([0-9]{1,3}))?x?", text)
    speed = int(found[1]) * 1000 + int(f"{found[2] or '':0<3}") if found else 0
    if not 1 <= speed <= MAX_SPEED * 1000:
        raise ValueError(f"{text!r} is no speed; write 60x or 60, from 0.001 to {MAX_SPEED}")
    return speed


def parse_date(text: str) -> int:
    """Read a UTC time, or a date for its first moment. Raises ValueError."""
    return parse_moment(f"{text}T00:00:00Z" if len(text) == 10 else text)


def read_clock(text: str) -> tuple[int | None, int]:
    """Read where a clock starts (None: now) and its speed: `2025-01-01`, `now,60x`."""
    start, _, speed = text.partition(",")
    try:
        begun = None if start == "now" else parse_date(start)
    except ValueError:
        begun = END_OF_TIME
    if begun is not None and begun >= END_OF_TIME:
        raise ValueError(f"{start!r} is no start; write 2025-01-01, 2025-01-01T08:00:00Z or now, before the year 9999")
    return begun, read_speed(speed) if speed else 1000


def closest(text: str, known: Iterable[str]) -> list[str]:
    """Return the known text that a mistyped one is closest to, as a list of one, or an empty list."""
    import difflib  # only where something was mistyped

    return difflib.get_close_matches(text, list(known), 1)


def did_you_mean(meant: Sequence[str]) -> str:
    """Return `; did you mean …?` for a mistyped text; nothing without a guess."""
    return f"; did you mean {' or '.join(f'`{text}`' for text in meant)}?" if meant else ""


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

ORPHANS = " UNION ALL ".join(
    f"SELECT '{table}', id, 'users', 0 FROM {table} WHERE NOT EXISTS (SELECT 1 FROM users WHERE users.id = user_id)"  # noqa: S608
    for table in ("tickets", "personal_access_tokens")
)
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
        """Return how to connect to each host: psycopg before 3.2 gives a frozen one the time of all. Raises TicketApiError."""
        try:
            from psycopg import ProgrammingError
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:
            fix = "pip install 'ticketapi[postgres]', or Debian's python3-psycopg"
            raise TicketApiError(f"a desk in PostgreSQL needs psycopg 3: {fix} ({error})") from None
        try:
            given = conninfo_to_dict(self.url)  # https://www.postgresql.org/docs/current/libpq-connect.html
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


# It uses libpq below psycopg's cursors, which cost four times as much a row. Python waits for answers, so that signals are
# heard, and for no longer than it is told: a backend that is frozen, or a commit that waits for a lost standby, would hold
# us for ever (https://www.postgresql.org/docs/current/libpq-async.html).
class PostgresConnection:
    """A connection to PostgreSQL that takes what sqlite3.Connection takes."""

    def __init__(self, place: Postgres, setup: dict[str, int | str], leads: str, seconds: float) -> None:
        """Connect. `setup` are parameters of the session, `leads` what it may write alone, `seconds` the most to wait."""
        self.place, self.setup, self.leads, self.seconds = place, setup, leads, seconds
        self._fresh: Any = None  # a session made by another thread, taken when no transaction is open
        self._walks = 0
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
        if self in self.place.kept:
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
        """Run one statement for many rows at once, many new rows by COPY; with `leading` as a transaction in one question."""
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
        """Insert rows by COPY (https://www.postgresql.org/docs/current/sql-copy.html); return their number and a hash."""
        # The hash is the same in this process for the same rows in any order. Pieces are small, so that the server works on one
        # while the next is written: with 5,000 rows in each it took half as long again.
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
        reason = self.place.down if self in self.place.kept else ""
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
        if self in self.place.kept:
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
    """Tell whether a run of a job is this server's to do, in the transaction that does it: a desk in a file has no other."""
    # A boundary more than two steps ahead is that of a clock which was wrong. Ahead of the database's clock, too: who hung
    # since it read its own must not take back what others have done meanwhile.
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
LONG_WAL = (
    32 * 1024 * 1024
)  # bytes; beyond it nobody commits for whom others wait, as a commit may bring all of it into the file
PROBE_BYTES = 64 * 1024  # that must fit on the disk for the desk to be ready
DISK_FULL, TOO_MANY_FILES = (errno.ENOSPC, errno.EDQUOT), (errno.EMFILE, errno.ENFILE)


Place = Path | Postgres  # where a desk lives
Connection = sqlite3.Connection | PostgresConnection
Rows = sqlite3.Cursor | Result
Row = Any  # sqlite3.Row or PostgresRow


class Access(NamedTuple):
    """How a connection is opened, by what it is for; the defaults are for one that writes (https://sqlite.org/pragma.html)."""

    mode: str = "mode=rw"  # of the URI: a desk that somebody removed is not made anew behind their back
    wal: bool = True  # switches the file to WAL, which lets readers and the writer work side by side
    wait_ms: int = BUSY_TIMEOUT_MS
    synchronous: int = FULL
    checkpoint: int = 1000  # pages of a WAL, from which on a commit moves them into the file, and waits for the disk; 0: never
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
SCHEDULED = Access(leads="desk", seconds=10.0)
WRITER = SCHEDULED._replace(cache_kib=49_152, seconds=60.0, hangs=60.0)
# In the event loop nothing waits for the disk: `shrink_wal` moves the pages, unless it cannot keep up for 64 MB.
LOG_WRITER = Access(synchronous=NORMAL, leads="audit", checkpoint=16_000)
NOTER = Access(wait_ms=0, synchronous=NORMAL, checkpoint=0)  # writes what can wait for another time
# Where a list has gaps, each of the 50 tickets of a page may lie on a page of the file by itself, and to read one of those from
# the system takes longer than to write its ticket: with 2 MB the latest closings cost 1.65 times a desk without gaps, not 1.3.
READER = Access(views=True, writes=False, synchronous=NORMAL, cache_kib=24_576)
LOG_READER = Access(wait_ms=0, writes=False, strict=False)  # for a request to this process's own server: waits for nobody
# That cache takes a quarter off an integrity check.
INSPECTOR = Access(wal=False, cache_kib=49_152, seconds=3600.0, hangs=3600.0)
VISITOR = INSPECTOR._replace(writes=False, strict=False)
COPIER = WRITER._replace(seconds=3600.0, hangs=3600.0)
COPY = Access(wal=False, wait_ms=0, synchronous=OFF)  # one that fails is thrown away, one that is done is synced as a whole


class Kind(NamedTuple):
    """One of the two kinds of file."""

    application_id: int  # SQLite's: "TKTD" and "TKTA" in ASCII
    version: int  # of the schema, SQLite's user_version
    writer: Access


KINDS = {"desk": Kind(0x544B5444, 5, WRITER), "audit": Kind(0x544B5441, 3, LOG_WRITER)}

# What SQLite says, and what we say instead; the path is put in for {path}.
SQLITE_EXPLANATIONS: tuple[tuple[str, type[TicketApiError], str], ...] = (
    ("locked", DeskBusy, "database is locked: another program holds {path}; try again when it is done"),
    ("readonly", TicketApiError, "{path} is read-only; give this user the right to write it and its directory"),
    ("full", DiskFull, "disk full: make room where {path} lies; what was committed before is kept"),
    ("malformed", TicketApiError, "{path} is damaged ({error}); restore a backup"),
    ("not a database", TicketApiError, "{path} is not a SQLite database; choose another --db"),
    ("unable to open", TicketApiError, "cannot open {path}; check permissions of the file and its directory, and ulimit -n"),
)


POSTGRES_EXPLANATIONS: tuple[tuple[str, type[TicketApiError], str], ...] = (  # by SQLSTATE or text
    ("55P03", DeskBusy, "database is locked: another program writes to {path}; try again when it is done"),
    ("42501", TicketApiError, "{path}: {error}; give the role that right, docs/growing.md has those it needs"),
    ("3F000", TicketApiError, "{path}: {error}; give the role that right, docs/growing.md has those it needs"),
    ("53100", DiskFull, "disk full: make room for {path}; what was committed before is kept"),
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


__loader__: Any  # of this module; pkgutil and importlib.resources would load a script a second time to find its files


@cache
def read_resource(name: str) -> str:
    """Return the text of a file shipped beside this module, kept: the file may be replaced while a server runs."""
    try:
        return str(__loader__.get_data(os.path.join(os.path.dirname(__file__), name)).decode())
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        raise TicketApiError(f"{name} is missing beside ticketapi.py; install ticketapi again") from None


INCLUDE = "-- include: "  # ends a part with another one


def schema_statements(part: str) -> list[str]:
    """Return the statements of one part of schema.sql: `desk` and `audit` create the files, `desk 1 to 2` upgrades one."""
    text, _, included = (
        read_resource("schema.sql").partition(f"-- part: {part}\n")[2].partition("-- part: ")[0].partition(INCLUDE)
    )
    statements = [statement for statement in re.split(r";\s*\n", text) if statement.strip()]
    return statements + (schema_statements(included.strip()) if included else [])


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


def wal_bytes(path: Path) -> int:
    """Return how long the write-ahead log of a database is."""
    with suppress(OSError):
        return sidecars(path)[0].stat().st_size
    return 0


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
HELD: dict[tuple[int, int], int] = {}  # by device and inode: this process's one descriptor of each file


def hold_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return this process's descriptor of a file, kept while it uses that; nothing else may open or close the file."""
    # SQLite's locks are POSIX locks, which belong to process and inode: to close any other descriptor of the file ends them
    # all, and a commit that was acknowledged is lost (https://sqlite.org/howtocorrupt.html, section 2.2).
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
    """Take the right to serve a desk, which is made when it is not there, until the process ends. Raises TicketApiError."""
    # The lock stands beside the desk, where every version looks for it, and on Linux on its inode too: a hard link or a bind
    # mount is another name with another WAL. Elsewhere flock(2) on the desk itself would meet SQLite's locks.
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
    """Return application_id, user_version and whether there are tables, WAL left aside. Raises sqlite3.DatabaseError."""
    header = os.pread(hold_file(path), 108, 0)  # https://sqlite.org/fileformat.html, sections 1.3 and 1.6
    if not header:
        return 0, 0, False
    if len(header) < 108 or not header.startswith(b"SQLite format 3\0"):
        raise sqlite3.DatabaseError("file is not a database")
    is_interior_page, cells = header[100] == 5, header[103:105]
    application_id, version = (int.from_bytes(header[at : at + 4], "big", signed=True) for at in (68, 60))
    return application_id, version, is_interior_page or any(cells)


def read_identity(path: Path, mode: str = "") -> tuple[int, int, bool]:
    """Return what `read_header` returns as SQLite sees it, WAL included, from one snapshot, without changing the file."""
    # Where there is no WAL the file is opened as immutable, or SQLite would make a WAL that a reader cannot remove again. A
    # desk whose making was killed needs mode=rw, as its first write must be rolled back. https://sqlite.org/uri.html
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


def check_length(path: Path) -> None:
    """Refuse a file that was cut short. Beside a WAL its length says nothing: SQLite may still have to lengthen it."""
    handle = hold_file(path)  # https://sqlite.org/fileformat.html, sections 1.3.2, 1.3.7 and 1.3.8
    header, size = os.pread(handle, 100, 0), os.fstat(handle).st_size
    pages = int.from_bytes(header[28:32], "big") if header[24:28] == header[92:96] else 0
    wanted = pages * (int.from_bytes(header[16:18], "big") if header[16:18] != b"\0\1" else 65_536)
    if size < wanted and not wal_bytes(path):
        raise TicketApiError(f"{path} is damaged: it has {size} bytes of {wanted}; restore a backup")


def check_identity(path: Path, kind: str) -> int:
    """Return the version of a file's schema, 0 for none; refuse one that is not ours or newer, without changing a byte."""
    # The header is read first: SQLite would put files of its own beside another program's database in WAL mode. What is empty
    # by its header may be a new desk of ours that has its tables in the WAL yet.
    application_id, known = KINDS[kind][:2]
    for read in (read_header, read_identity):
        found, version, has_tables = read(path)
        if found != application_id and (found or version or has_tables):
            raise TicketApiError(f"{path} belongs to another program; choose another --db")
        if found:
            check_length(path)  # SQLite may not see what is missing, or say something else of it
    if has_tables and version < 1:
        raise TicketApiError(f"{path} is damaged: it has tables, but no version; restore a backup")
    if version > known:
        raise TicketApiError(f"{path} is from a newer ticketapi (schema {version}, this one knows {known}); upgrade ticketapi")
    return version


def check_tables(db: Connection, kind: str, path: Place) -> None:
    """Refuse a file, or a database, that lacks one of our tables or indexes."""
    wanted = re.findall(r"CREATE (?:UNIQUE )?(?:TABLE|INDEX) +(\w+)", " ".join(schema_statements(kind)))
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if missing := [name for name in wanted if name not in found]:
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


def connect(path: Place, access: Access = WRITER) -> Connection:
    """Open a connection for a purpose; transactions begin where the code says so."""
    return connect_postgres(path, access) if isinstance(path, Postgres) else connect_file(path, access)


def connect_postgres(place: Postgres, access: Access) -> PostgresConnection:
    """Open a connection to PostgreSQL (https://www.postgresql.org/docs/current/runtime-config-client.html)."""
    setup = {
        "lock_timeout": max(1, min(access.wait_ms, int(access.seconds * 500))),  # 0 would be for ever
        "idle_in_transaction_session_timeout": int(access.hangs * 1000),
        "synchronous_commit": "on" if access.synchronous == FULL else "off",
        "client_encoding": "'UTF8'",
        "client_min_messages": "warning",  # as a commit that was cancelled is told by one
        "default_transaction_isolation": "'read committed'",
        "cursor_tuple_fraction": 1,  # what is streamed is read to its end
        "plan_cache_mode": "force_generic_plan",  # to plan a page anew each time took as long again
    }
    return PostgresConnection(place, setup, access.leads, access.seconds)


def connect_file(path: Path, access: Access) -> sqlite3.Connection:
    """Open a connection to a file."""
    with suppress(OSError):  # SQLite says better what is wrong
        if access.mode != "immutable=1" and access.synchronous != OFF:  # where there are no locks, or nobody else has the file
            hold_file(path)
    uri = f"{path.absolute().as_uri()}?{access.mode}"
    db = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        prepare(db, access)
    except BaseException:
        db.close()
        raise
    return db


def prepare(db: sqlite3.Connection, access: Access) -> None:
    """Set up a new connection as its access says."""
    db.row_factory = sqlite3.Row
    if not access.strict:
        db.text_factory = partial(str, encoding="utf-8", errors="replace")
    if access.wal:
        enter_wal(db, access.wait_ms)
    set_busy_timeout(db, access.wait_ms)
    db.execute(f"PRAGMA synchronous = {access.synchronous:d}")
    db.execute(f"PRAGMA wal_autocheckpoint = {access.checkpoint:d}")
    db.execute(f"PRAGMA cache_size = {-access.cache_kib:d}")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA journal_size_limit = 16777216")
    for statement in schema_statements("reader") if access.views else ():
        db.execute(statement)
    if not access.writes:
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
        for step in upgrade_steps(kind, found) if found else [kind]:
            for statement in schema_statements(step):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {application_id:d}")
        db.execute(f"PRAGMA user_version = {wanted:d}")


def upgrade_steps(kind: str, found: int) -> Iterator[str]:
    """Yield the parts of schema.sql that bring an older version up to ours, and tell of each."""
    for version in range(found, KINDS[kind].version):
        step = f"{kind} {version} to {version + 1}"
        log.info("upgrading the schema: %s", step)
        yield step


def create_postgres_schema(place: Postgres) -> None:
    """Create the tables of desk and log in one transaction, or upgrade them, unless another program has done so meanwhile."""
    with closing(connect_postgres(place, COPIER)) as db:  # a large desk takes longer than others may
        with suppress(RowFault):  # two may make the same table at the same moment
            db.run(";".join(schema_statements("postgres desk")))
        with transaction(db):
            found = {kind: read_version(db, kind, known.version) for kind, known in KINDS.items()}
            if all(found[kind] == known.version for kind, known in KINDS.items()):
                return
            upgrades = [f"postgres {step}" for kind in KINDS if found[kind] for step in upgrade_steps(kind, found[kind])]
            steps = upgrades if found["desk"] else [*KINDS, "postgres"]
            script = ";".join(sql for step in (*steps, "postgres views") for sql in schema_statements(step))
            for ours, theirs in DDL_DIALECT:
                script = re.sub(ours, theirs, script)
            db.run(script)
            versions = [(known.version, kind) for kind, known in KINDS.items()]
            db.executemany("UPDATE desk SET schema_version = ? WHERE kind = ?", versions)


def admit_file(path: Path, kind: str) -> None:
    """Refuse a file that is not ours, newer or cannot be written, with nothing touched; make one that is not there."""
    check_path(path)
    create_private_file(path)
    try:
        found = check_identity(path, kind)
        desk = path.with_name(path.stem.removesuffix("-audit") + path.suffix) if kind == "audit" else path
        if 0 < found < KINDS[kind].version and is_served(desk):
            raise TicketApiError(f"{path} is old, and served: try again, or stop the server, which is upgrading it or old, too")
    except PermissionError as error:
        raise explain_failure(sqlite3.OperationalError("unable to open"), path) from error
    if not os.access(path, os.W_OK):  # SQLite would go on and only read
        raise sqlite3.OperationalError("readonly")


def open_database(path: Place, kind: str) -> Connection:
    """Open the `desk` or `audit` log to write, made or upgraded if need be. Raises TicketApiError for what is not ours."""
    with explained(path):
        if isinstance(path, Path):
            admit_file(path, kind)
        db = connect(path, KINDS[kind].writer)
        try:
            if isinstance(db, PostgresConnection):
                if read_version(db, kind, KINDS[kind].version) < KINDS[kind].version:
                    create_postgres_schema(db.place)
            elif db.execute("PRAGMA user_version").fetchone()[0] != KINDS[kind].version:
                create_schema(db, kind)
            check_tables(db, kind, path)
        except BaseException:
            db.close()
            raise
    return db


def open_to_serve(path: Place) -> Connection:
    """Open a desk with the right to serve it; of a file that is refused nothing stays beside it."""
    if isinstance(path, Postgres):
        return open_database(path, "desk")
    is_new = not lock_path(path).exists()
    lock_desk(path)
    try:
        return open_database(path, "desk")
    except BaseException:
        if is_new:
            lock_path(path).unlink()
        raise


def open_to_inspect(path: Path, access: Access = INSPECTOR) -> sqlite3.Connection:
    """Open a file that is there to read it as it stands: nothing is created, upgraded or moved from its WAL into it."""
    # SQLite reads a file in WAL mode by way of a WAL and a -shm file; only a connection that could write takes them away again,
    # but it would also write back what a killed program left in the WAL.
    if wal_bytes(path):
        access = access._replace(mode="mode=ro")
    elif os.statvfs(path).f_flag & os.ST_RDONLY:  # where SQLite can make no -shm, and nobody can write
        access = access._replace(mode="immutable=1")
    return connect_file(path, access)


def open_read_only(path: Place, kind: str, views: bool = False) -> Connection | None:
    """Open the `desk` or `audit` log to read it as it is; None while not there or empty. Our `views` need our own version."""
    wanted = KINDS[kind].version
    with explained(path), ExitStack() as stack:
        if isinstance(path, Postgres):
            db = stack.enter_context(closing(connect_postgres(path, VISITOR)))
            found = read_version(db, kind, wanted)
        else:
            check_path(path)
            found = check_identity(path, kind) if path.exists() else 0
        if not found:
            return None
        if views and found < wanted:
            fix = "another command, such as `token list`, upgrades it when it opens it"
            raise TicketApiError(f"{path} is from an older ticketapi (schema {found}, this one reads {wanted}); {fix}")
        stack.pop_all()
        return db if isinstance(path, Postgres) else open_to_inspect(path, VISITOR._replace(views=views))


def open_scratch() -> sqlite3.Connection:
    """Open a database of schema.sql's part `import`, which is on the disk as far as it is large, and gone when it is closed."""
    db = sqlite3.connect("", isolation_level=None)
    prepare(db, COPY)
    run_part(db, "import")
    return db


def run_part(db: Connection, part: str, **values: Any) -> None:
    """Run the statements of a part of schema.sql."""
    for statement in schema_statements(part):
        db.execute(statement, values)


def open_original(path: Path) -> sqlite3.Connection:
    """Open the SQLite file of the original application as it stands, with the views of schema.sql's part `original`."""
    if not path.is_file():
        raise TicketApiError(f"a SQLite file is imported by its name, not from {path}")
    with explained(path):
        if read_header(path)[0] in [kind.application_id for kind in KINDS.values()]:
            raise TicketApiError(f"{path} is a desk, or the log of one: `ticketapi copy` copies it, --db opens it")
        db = open_to_inspect(path)
        run_part(db, "original")
    return db


@contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """Run a block of writes as one: all is committed at the end, or nothing when it raises. A nested one belongs to it."""
    if db.in_transaction:
        yield
        return
    try:
        db.execute("BEGIN IMMEDIATE")  # or a transaction that asks for the write lock later would fail without waiting
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
    """Return what changes when another connection commits (https://sqlite.org/pragma.html#pragma_data_version)."""
    # PostgreSQL may come back from a failover with a number that it had before.
    version: int = db.execute("PRAGMA data_version").fetchone()[0] if number is None else number
    return version, db.place.restored if isinstance(db, PostgresConnection) else 0


def keep(db: Connection) -> None:
    """Have a connection made anew whenever it breaks."""
    if isinstance(db, PostgresConnection):
        db.place.kept.append(db)


def borrowed(db: Connection, place: Place, access: Access) -> AbstractContextManager[Connection]:
    """Give a connection to a place for a moment; in PostgreSQL the one there is, as a new one takes 5 ms."""
    return nullcontext(db) if isinstance(place, Postgres) else closing(connect(place, access))


def write_rows(db: Connection, sql: str, rows: Iterable[Any]) -> None:
    """Run one statement for many rows of values, as a transaction of its own."""
    if isinstance(db, PostgresConnection):
        db.executemany(sql, rows, leading=True)
    else:
        with transaction(db):
            db.executemany(sql, rows)


TABLES = {
    "desk": (
        *("users", "tickets", "ticket_counts", "counters", "list_blocks", "ticket_arrivals", "ticket_closings", "comments"),
        *("events", "change_times", "personal_access_tokens", "idempotency_keys", "webhooks", "simulation"),
    ),
    "audit": ("api_audits",),
}


def read_table(db: Connection, table: str) -> Iterator[Any]:
    """Yield the rows of one of TABLES, in a snapshot."""
    return stream(db, f"SELECT * FROM {table} ORDER BY 1, 2")  # noqa: S608


def write_table(db: Connection, table: str, rows: Iterator[Any]) -> list[int]:
    """Put rows into one of TABLES of an empty desk; return what `digest_table` must return then."""
    if isinstance(db, PostgresConnection) and table in TABLES["audit"]:
        db.run("UPDATE desk SET version = version + 1 WHERE kind = 'audit'")  # a server may write to it
    if table in ("ticket_counts", "counters"):  # which alone are never empty
        db.execute(f"DELETE FROM {table}")  # noqa: S608
    if isinstance(db, PostgresConnection):
        return db.copy_in(table, rows)
    tally = [0, 0]
    while chunk := list(islice(rows, FETCHED_ROWS)):
        insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(chunk[0]))})"  # noqa: S608
        db.executemany(insert, chunk)
        tally = [tally[0] + len(chunk), tally[1] + sum(map(hash, map(tuple, chunk)))]
    return tally


def digest_table(db: Connection, table: str) -> list[int]:
    """Return how many rows one of TABLES has, and a hash of them all."""
    if isinstance(db, PostgresConnection):
        return db.copy_out(table)
    tally = [0, 0]
    for row in read_table(db, table):
        tally = [tally[0] + 1, tally[1] + hash(tuple(row))]
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
    """Move a WAL that has grown into its file, so that it begins anew; one not written to for a minute gives back its room."""
    if isinstance(path, Postgres):
        return
    with suppress(OSError, *FAILURES):
        wal = sidecars(path)[0].stat()
        if wal.st_size > WAL_KEPT:
            with closing(connect(path, NOTER)) as db:
                if now - wal.st_mtime_ns // 1000 > MINUTE_MICROSECONDS:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # with the right to write, so that nobody commits meanwhile
                before = -1
                for _ in range(20):  # it begins anew once nobody has committed while it was moved
                    pages = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
                    if pages == before:
                        break
                    before = pages


def fold_wal(db: sqlite3.Connection) -> bool:
    """Bring the WAL into its file as far as nobody reads what was before, while others write; tell whether that is all."""
    return len(set(db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1:])) == 1  # as many frames as were brought


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
    """Copy a database as it is at one moment into an empty file, while others write; return the version of its schema."""
    # `report` gets the bytes done. The copy is one file, without WAL. This is SQLite's online backup within a snapshot, which
    # keeps it from beginning anew at every commit of others: 430 MB took 1 to 3 s beside a writer, in one step as in many
    # (which a signal can end), and VACUUM INTO 9 to 14 s.
    size: int = db.execute("PRAGMA page_size").fetchone()[0]
    with closing(connect_file(target, COPY)) as copy, snapshot(db):
        copy.execute("PRAGMA journal_mode = OFF")
        version: int = db.execute("PRAGMA user_version").fetchone()[0]  # the snapshot begins
        db.backup(copy, pages=BACKUP_PAGES, progress=lambda _, left, total: report((total - left) * size))
        copy.execute("PRAGMA journal_mode = DELETE")
    return version


# ======================================================================================================================
# Room 4. Queries: one function is one statement, grouped by table: people, tickets, changes. Touches .execute; never commits.
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


def fetch_tuples(db: Connection, sql: str, /, **values: Any) -> list[Any]:
    """Return all rows of a statement as plain tuples: it takes a third less than with the names of their columns."""
    rows: Any = db.execute(sql, values)
    rows.row_factory = None
    return list(rows)


def execute_many(db: Connection, sql: str, values: Iterable[tuple[Any, ...]] | Iterable[Mapping[str, Any]]) -> None:
    """Run one statement for each of many rows of values."""
    db.executemany(sql, values)


def find_user(db: Connection, user_id: int) -> Row | None:
    """Return one user, or None."""
    sql = "SELECT id, name, email, tickets_count, created_at, last_number FROM users WHERE id = :user_id"
    return fetch_one(db, sql, user_id=user_id)


def find_owner(db: Connection, email: str) -> int | None:
    """Return the id of the owner of tokens with an address, or None."""
    sql = "SELECT id FROM users WHERE lower(email) = lower(:email) AND id >= 1000000000"
    found: int | None = fetch_value(db, sql, email=email)
    return found


def list_taken_emails(db: Connection, emails: Iterable[str]) -> dict[str, int]:
    """Return those of some addresses, in lower case, that a customer has, with the customer's id."""
    sql = "SELECT lower(email), id FROM users WHERE id < 1000000000 AND lower(email) IN (SELECT value FROM json_each(:emails))"
    return {row[0]: row[1] for row in fetch_all(db, sql, emails=json.dumps(list(emails)))}


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


def list_customers_by_id(db: Connection, lowest: int, limit: int) -> list[Row]:
    """Return customers from an id on."""
    sql = """
        SELECT id, name, email, tickets_count, created_at
        FROM users
        WHERE id >= :lowest AND id < :owners
        ORDER BY id
        LIMIT :limit"""
    return fetch_all(db, sql, lowest=lowest, limit=limit, owners=FIRST_OWNER_ID)


def list_customers_before(db: Connection, below: int, limit: int) -> list[Row]:
    """Return the last customers below an id, the highest id first."""
    sql = """
        SELECT id, name, email, tickets_count, created_at
        FROM users
        WHERE id < :below AND id < :owners
        ORDER BY id DESC
        LIMIT :limit"""
    return fetch_all(db, sql, below=below, limit=limit, owners=FIRST_OWNER_ID)


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
        SELECT id, name, email, last_number
        FROM users
        WHERE id IN (SELECT CAST(value AS INTEGER) FROM json_each(:user_ids))"""
    return fetch_all(db, sql, user_ids=json.dumps(list(user_ids)))


def add_user_tickets(db: Connection, counts: Iterable[tuple[int, int]]) -> None:
    """Note that users wrote more tickets, given as (tickets more, user id)."""
    sql = """
        UPDATE users
        SET tickets_count = tickets_count + ?1, last_number = last_number + ?1
        WHERE id = ?2"""
    execute_many(db, sql, counts)


# The lists are read as JSON, written by SQLite in one step: 50 tickets take 120 microseconds, where reading their rows and
# writing them with json.dumps takes 310 and with a template in Python 170. A page is a range of the numbers that its list
# gives its tickets, its keys, so it costs the same however deep it lies; where keys are missing, `list_blocks` tells the first.


class Tickets(NamedTuple):
    """Some tickets of a list, as JSON objects with commas between them, with the lowest and highest of their keys."""

    json: bytes | None  # None when there are no tickets
    size: int
    lowest: int
    highest: int


Bounds = tuple[int, int, int]  # how many tickets a list has, from a counter, and their lowest and highest key, 0 for none


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


def find_open_ticket(db: Connection, lowest: int, skip: int) -> int | None:
    """Return the id of the open ticket that stands some places after the first from an id on, or None."""
    sql = "SELECT id FROM tickets WHERE status = 1 AND id >= :lowest ORDER BY id LIMIT 1 OFFSET :skip"
    found: int | None = fetch_value(db, sql, lowest=lowest, skip=skip)
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


def list_closed_tickets(db: Connection, lowest: int, highest: int, limit: int) -> tuple[Tickets, Bounds]:
    """Return the last closed tickets of a range of numbers, most recently closed first; their key is their number."""
    sql = """
        SELECT CAST(group_concat(resource) AS BLOB) AS json, count(*), min(closed_number), max(closed_number),
               (SELECT tickets FROM ticket_counts WHERE status = 2),
               coalesce((SELECT min(closed_number) FROM tickets WHERE closed_number IS NOT NULL), 0),
               coalesce((SELECT max(closed_number) FROM tickets WHERE closed_number IS NOT NULL), 0)
        FROM (
            SELECT resource, closed_number
            FROM ticket_resources
            WHERE closed_number BETWEEN :lowest AND :highest
            ORDER BY closed_number DESC
            LIMIT :limit
        ) AS page"""
    found = tuple(fetch_all(db, sql, lowest=lowest, highest=highest, limit=limit)[0])
    return Tickets(*found[:4]), found[4:]


def find_closed_ticket(db: Connection, lowest: int, skip: int) -> int | None:
    """Return the number of the closed ticket that stands some places after the first from a number on, or None."""
    sql = "SELECT closed_number FROM tickets WHERE closed_number >= :lowest ORDER BY closed_number LIMIT 1 OFFSET :skip"
    found: int | None = fetch_value(db, sql, lowest=lowest, skip=skip)
    return found


def list_user_tickets(db: Connection, user_id: int, lowest: int, highest: int, limit: int) -> tuple[Tickets, Bounds]:
    """Return the last tickets of one user in a range of numbers, newest first; their key is their number."""
    sql = """
        SELECT CAST(group_concat(resource) AS BLOB) AS json, count(*), min(user_number), max(user_number),
               (SELECT tickets_count FROM users WHERE id = :user_id),
               coalesce((SELECT min(user_number) FROM tickets WHERE user_id = :user_id), 0),
               coalesce((SELECT max(user_number) FROM tickets WHERE user_id = :user_id), 0)
        FROM (
            SELECT resource, user_number
            FROM ticket_resources
            WHERE user_id = :user_id AND user_number BETWEEN :lowest AND :highest
            ORDER BY user_number DESC
            LIMIT :limit
        ) AS page"""
    found = tuple(fetch_all(db, sql, user_id=user_id, lowest=lowest, highest=highest, limit=limit)[0])
    return Tickets(*found[:4]), found[4:]


def find_user_ticket(db: Connection, user_id: int, lowest: int, skip: int) -> int | None:
    """Return the number of a user's ticket that stands some places after the first from a number on, or None."""
    sql = """
        SELECT user_number
        FROM tickets
        WHERE user_id = :user_id AND user_number >= :lowest
        ORDER BY user_number
        LIMIT 1 OFFSET :skip"""
    found: int | None = fetch_value(db, sql, user_id=user_id, lowest=lowest, skip=skip)
    return found


def list_level(db: Connection, listing: int, level: int, parent: int | None) -> list[Any]:
    """Return (block, tickets) of a level in order: of those of one block of the level above, or of all."""
    sql = """
        SELECT block, tickets
        FROM list_blocks
        WHERE list = :listing AND level = :level AND block BETWEEN :lowest AND :highest
        ORDER BY block"""
    lowest, highest = (0, MAX_ID) if parent is None else (parent * 64, parent * 64 + 63)
    return fetch_tuples(db, sql, listing=listing, level=level, lowest=lowest, highest=highest)


def sum_blocks(db: Connection, listing: int, level: int, lowest: int, below: int) -> int:
    """Return the sum over some blocks of a level."""
    sql = """
        SELECT coalesce(sum(tickets), 0)
        FROM list_blocks
        WHERE list = :listing AND level = :level AND block >= :lowest AND block < :below"""
    return int(fetch_value(db, sql, listing=listing, level=level, lowest=lowest, below=below))


def add_to_blocks(db: Connection, counts: Iterable[tuple[int, int, int, int]]) -> None:
    """Change blocks, given as (list, level, block, tickets more)."""
    sql = """
        INSERT INTO list_blocks (list, level, block, tickets)
        VALUES (?, ?, ?, ?)
        ON CONFLICT (list, level, block) DO UPDATE SET tickets = list_blocks.tickets + excluded.tickets"""
    execute_many(db, sql, counts)


def delete_empty_blocks(db: Connection, level: int, lowest: int, highest: int) -> None:
    """Delete those of a range of blocks that hold no open ticket any more."""
    sql = """
        DELETE FROM list_blocks
        WHERE list = -1 AND level = :level AND block BETWEEN :lowest AND :highest AND tickets = 0"""
    execute(db, sql, level=level, lowest=lowest, highest=highest)


def delete_blocks(db: Connection) -> None:
    """Delete all blocks."""
    execute(db, "DELETE FROM list_blocks")


def list_blocks(db: Connection) -> Iterator[Row]:
    """Yield the blocks that count anything, as (list, level, block, tickets)."""
    return stream(db, "SELECT list, level, block, tickets FROM list_blocks WHERE tickets <> 0")


def list_filled_blocks(db: Connection) -> Iterator[Row]:
    """Yield the tickets of each list in each block of 64 numbers that holds any, from the rows."""
    sql = """
        SELECT -1 AS list, id / 64 AS block, count(*)
        FROM tickets
        WHERE status = 1
        GROUP BY 2
        UNION ALL
        SELECT 0, (closed_number - 1) / 64, count(*)
        FROM tickets
        WHERE closed_number IS NOT NULL
        GROUP BY 2
        UNION ALL
        SELECT -2, (id - 1) / 64, count(*)
        FROM tickets
        WHERE status > 0
        GROUP BY 2
        UNION ALL
        SELECT user_id, (user_number - 1) / 64, count(*)
        FROM tickets
        WHERE user_number IS NOT NULL
        GROUP BY 1, 2"""
    return stream(db, sql)


def list_last_numbers(db: Connection) -> list[tuple[int, int]]:
    """Return the lists that have gaps, and the highest number that each has ever given."""
    sql = """
        SELECT 0, value
        FROM counters
        WHERE name = 'closed_number' AND value <> (SELECT count(*) FROM tickets WHERE closed_number IS NOT NULL)
        UNION ALL
        SELECT -2, max(id)
        FROM tickets
        HAVING max(id) <> count(CASE WHEN status > 0 THEN 1 END)
        UNION ALL
        SELECT id, last_number
        FROM users
        WHERE last_number <> tickets_count"""
    return [(row[0], row[1]) for row in fetch_all(db, sql)]


def find_ticket(db: Connection, ticket_id: int) -> bytes | None:
    """Return one ticket as a JSON object, or None, also when it is deleted."""
    sql = """
        SELECT CAST(resource AS BLOB) AS json
        FROM ticket_resources
        WHERE id = :ticket_id AND status > 0"""
    found: bytes | None = fetch_value(db, sql, ticket_id=ticket_id)
    return found


def find_ticket_row(db: Connection, ticket_id: int) -> Row | None:
    """Return what a change of a ticket has to know, or None, also when it is deleted."""
    sql = """
        SELECT id, user_id, user_number, subject, content, status, created_at, updated_at, closed_at, closed_number, change
        FROM tickets
        WHERE id = :ticket_id AND status > 0"""
    return fetch_one(db, sql, ticket_id=ticket_id)


def list_oldest_open_tickets(db: Connection, limit: int) -> list[Any]:
    """Return id, created_at and updated_at of the open tickets that are next to be closed."""
    sql = "SELECT id, created_at, updated_at FROM tickets WHERE status = 1 ORDER BY id LIMIT :limit"
    return fetch_tuples(db, sql, limit=limit)


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
    """Return when the first ticket from an id on came, deleted or not, or None."""
    sql = "SELECT created_at FROM tickets WHERE id >= :ticket_id ORDER BY id LIMIT 1"
    found: str | None = fetch_value(db, sql, ticket_id=ticket_id)
    return found


def find_closed_at(db: Connection, closed_number: int) -> str | None:
    """Return when the first ticket from a closed_number on was closed, or None."""
    sql = "SELECT closed_at FROM tickets WHERE closed_number >= :closed_number ORDER BY closed_number LIMIT 1"
    found: str | None = fetch_value(db, sql, closed_number=closed_number)
    return found


def count_arrived(db: Connection, lowest: int, below: int) -> int:
    """Return how many tickets there are in a range of ids."""
    sql = "SELECT count(*) FROM tickets WHERE id >= :lowest AND id < :below AND status > 0"
    return int(fetch_value(db, sql, lowest=lowest, below=below))


def count_closed(db: Connection, lowest: int, below: int) -> int:
    """Return how many closed tickets there are in a range of numbers."""
    sql = "SELECT count(*) FROM tickets WHERE closed_number >= :lowest AND closed_number < :below"
    return int(fetch_value(db, sql, lowest=lowest, below=below))


def insert_tickets(db: Connection, tickets: Iterable[tuple[Any, ...]]) -> None:
    """Insert tickets given as all their columns in order, but the last."""
    sql = """
        INSERT INTO tickets (id, user_id, user_number, user_name, user_email, subject, content, status,
            created_at, updated_at, closed_at, closed_number, change)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
    execute_many(db, sql, tickets)


def close_tickets(db: Connection, closings: Iterable[tuple[str, int, int, int]]) -> None:
    """Close open tickets, given as (closed_at, closed_number, change, id)."""
    sql = """
        UPDATE tickets
        SET status = 2, closed_at = ?1, updated_at = ?1, closed_number = ?2, change = ?3
        WHERE id = ?4 AND status = 1"""
    execute_many(db, sql, closings)


def edit_ticket(db: Connection, ticket_id: int, subject: str, content: str, updated_at: str, change: int) -> None:
    """Set the texts of a ticket."""
    sql = """
        UPDATE tickets
        SET subject = :subject, content = :content, updated_at = :updated_at, change = :change
        WHERE id = :ticket_id"""
    execute(db, sql, ticket_id=ticket_id, subject=subject, content=content, updated_at=updated_at, change=change)


def reopen_ticket(db: Connection, ticket_id: int) -> None:
    """Take a closed ticket back to the open ones."""
    sql = """
        UPDATE tickets
        SET status = 1, closed_at = NULL, closed_number = NULL
        WHERE id = :ticket_id"""
    execute(db, sql, ticket_id=ticket_id)


def delete_ticket_row(db: Connection, ticket_id: int, deleted_at: str, change: int) -> None:
    """Mark a ticket as deleted, which takes it out of all lists."""
    sql = """
        UPDATE tickets
        SET status = -status, deleted_at = :deleted_at, updated_at = :deleted_at, change = :change,
            user_number = NULL, closed_number = NULL
        WHERE id = :ticket_id"""
    execute(db, sql, ticket_id=ticket_id, deleted_at=deleted_at, change=change)


def count_tickets(db: Connection, status: int) -> int:
    """Return how many tickets have a status, from its counter."""
    return int(fetch_value(db, "SELECT tickets FROM ticket_counts WHERE status = :status", status=status))


def get_counter(db: Connection, name: str) -> int:
    """Return one of the other counters."""
    return int(fetch_value(db, "SELECT value FROM counters WHERE name = :name", name=name))


def add_to_counter(db: Connection, name: str, more: int) -> None:
    """Raise one of the other counters."""
    execute(db, "UPDATE counters SET value = value + :more WHERE name = :name", name=name, more=more)


def set_counters(db: Connection, counters: Iterable[tuple[str, int]]) -> None:
    """Set other counters, given as (name, value)."""
    sql = """
        INSERT INTO counters (name, value)
        VALUES (?, ?)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
    execute_many(db, sql, counters)


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


def take_arrival(db: Connection, hour: str) -> None:
    """Take a ticket out of the counter of the hour in which it came."""
    execute(db, "UPDATE ticket_arrivals SET tickets = tickets - 1 WHERE hour = :hour", hour=hour)


def take_closing(db: Connection, hour: str, wait: int) -> None:
    """Take a ticket out of the counter of the hour and the wait with which it was closed."""
    execute(db, "UPDATE ticket_closings SET tickets = tickets - 1 WHERE hour = :hour AND wait = :wait", hour=hour, wait=wait)


def list_arrivals(db: Connection, since: str) -> list[tuple[str, int]]:
    """Return (hour, tickets) of each hour from `since` on."""
    return fetch_tuples(db, "SELECT hour, tickets FROM ticket_arrivals WHERE hour >= :since ORDER BY hour", since=since)


def list_closings(db: Connection, since: str) -> list[tuple[str, int, int]]:
    """Return (hour, wait, tickets) of each hour from `since` on, the shortest waits of an hour first."""
    sql = "SELECT hour, wait, tickets FROM ticket_closings WHERE hour >= :since ORDER BY hour, wait"
    return fetch_tuples(db, sql, since=since)


def list_ticket_times(db: Connection) -> Iterator[Row]:
    """Yield created_at and closed_at of every ticket that is not deleted."""
    return stream(db, "SELECT created_at, closed_at FROM tickets WHERE status > 0")


def list_misnamed_tickets(db: Connection) -> Iterator[Row]:
    """Yield id and user_id of the tickets that show another name or address than their user has."""
    sql = """
        SELECT tickets.id, user_id
        FROM tickets
        JOIN users ON users.id = user_id
        WHERE user_name <> name OR user_email <> email"""
    return stream(db, sql)


def list_disorder(db: Connection) -> Iterator[Row]:
    """Yield a text and an id for each ticket whose times do not grow."""
    sql = """
        SELECT 'ticket {} came before the one with the lower id', id
        FROM (SELECT id, created_at, lag(created_at) OVER (ORDER BY id) AS earlier FROM tickets) AS arrivals
        WHERE created_at < earlier
        UNION ALL
        SELECT 'ticket {} was closed too early', id
        FROM (
            SELECT id, created_at, closed_at, lag(closed_at) OVER (ORDER BY closed_number) AS earlier
            FROM tickets
            WHERE closed_number IS NOT NULL
        ) AS closings
        WHERE closed_at < earlier OR closed_at < created_at"""
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
    """Return how many tickets are open and how many closed, from the rows."""
    row = fetch_all(
        db, "SELECT (SELECT count(*) FROM tickets WHERE status = 1), (SELECT count(*) FROM tickets WHERE status = 2)"
    )
    return row[0][0], row[0][1]


def list_ticket_counts(db: Connection) -> dict[int, int]:
    """Return how many tickets there are of each status, from the counters."""
    return {row[0]: row[1] for row in fetch_all(db, "SELECT status, tickets FROM ticket_counts")}


def list_unsound_users(db: Connection) -> Iterator[Row]:
    """Yield the users whose counter is not the number of their tickets (written), or who gave a user_number again (highest)."""
    sql = """
        SELECT users.id, tickets_count, count(user_number) AS written, last_number, coalesce(max(user_number), 0) AS highest
        FROM users
        LEFT JOIN tickets ON user_id = users.id
        GROUP BY users.id
        HAVING tickets_count <> count(user_number) OR last_number < coalesce(max(user_number), 0)"""
    return stream(db, sql)


def find_number_ends(db: Connection) -> list[tuple[str, int, int]]:
    """Return name and value of the counters that rows tell, and the least that these allow."""
    sql = """
        SELECT name, value, CASE name WHEN 'customers' THEN (SELECT count(*) FROM users WHERE id < 1000000000)
                                      ELSE (SELECT max(closed_number) FROM tickets WHERE closed_number IS NOT NULL) END
        FROM counters
        WHERE name IN ('customers', 'closed_number')"""
    return [(row[0], row[1], row[2] or 0) for row in fetch_all(db, sql)]


def set_ticket_counts(db: Connection, counts: Iterable[tuple[int, int]]) -> None:
    """Set the counters of statuses, given as (status, tickets)."""
    sql = """
        INSERT INTO ticket_counts (status, tickets)
        VALUES (?, ?)
        ON CONFLICT (status) DO UPDATE SET tickets = excluded.tickets"""
    execute_many(db, sql, counts)


def set_user_tickets(db: Connection, counts: Iterable[tuple[int, int, int]]) -> None:
    """Set the counters of users, given as (tickets, highest number, user id)."""
    execute_many(db, "UPDATE users SET tickets_count = ?, last_number = ? WHERE id = ?", counts)


def count_down_user(db: Connection, user_id: int) -> None:
    """Note that a user has one ticket less."""
    execute(db, "UPDATE users SET tickets_count = tickets_count - 1 WHERE id = :user_id", user_id=user_id)


class TicketFilter(NamedTuple):
    """Which tickets are wanted; by default all."""

    status: int | None = None
    user_id: int | None = None
    updated_since: str = ""
    text: str = ""  # in subject or content


def list_matches(db: Connection, lowest: int, highest: int, wanted: TicketFilter, limit: int) -> list[Row]:
    """Return the first tickets wanted in a range of ids, as (id, JSON object), oldest first."""
    sql = """
        SELECT id, CAST(resource AS BLOB) AS json
        FROM ticket_resources
        WHERE id BETWEEN :lowest AND :highest AND status > 0
            AND (status = :status OR :status IS NULL)
            AND (user_id = :user_id OR :user_id IS NULL)
            AND updated_at >= :updated_since
            AND (instr(subject, :text) > 0 OR instr(content, :text) > 0)
        ORDER BY id
        LIMIT :limit"""
    return fetch_all(db, sql, **wanted._asdict(), lowest=lowest, highest=highest, limit=limit)


def list_matches_back(db: Connection, lowest: int, highest: int, wanted: TicketFilter, limit: int) -> list[Row]:
    """Return the last tickets wanted in a range of ids, as (id, JSON object), newest first."""
    sql = """
        SELECT id, CAST(resource AS BLOB) AS json
        FROM ticket_resources
        WHERE id BETWEEN :lowest AND :highest AND status > 0
            AND (status = :status OR :status IS NULL)
            AND (user_id = :user_id OR :user_id IS NULL)
            AND updated_at >= :updated_since
            AND (instr(subject, :text) > 0 OR instr(content, :text) > 0)
        ORDER BY id DESC
        LIMIT :limit"""
    return fetch_all(db, sql, **wanted._asdict(), lowest=lowest, highest=highest, limit=limit)


def list_changed_tickets(db: Connection, after: int, limit: int) -> tuple[bytes | None, int, int, int]:
    """Return the tickets that changed first after a change, as JSON objects with commas between them, in the order of it.

    Deleted ones are among them. With them go their number, the change of the last one, and that of the last of the desk.
    """
    sql = """
        SELECT CAST(group_concat(resource) AS BLOB) AS json, count(*), max(change), (SELECT max(change) FROM tickets)
        FROM (
            SELECT substr(resource, 1, length(resource) - 1) || ',"closed_at":' || coalesce('"' || closed_at || '"', 'null')
                       || ',"deleted_at":' || coalesce('"' || deleted_at || '"', 'null') || '}' AS resource, change
            FROM ticket_resources
            WHERE change > :after
            ORDER BY change
            LIMIT :limit
        ) AS page"""
    row = fetch_all(db, sql, after=after, limit=limit)[0]
    return row[0], row[1], row[2] or after, row[3] or 0


def list_tickets_by_id(db: Connection, ticket_ids: Iterable[int]) -> list[Row]:
    """Return tickets, deleted ones too, as (id, created_at, JSON object with closed_at)."""
    sql = """
        SELECT id, created_at, CAST(resource AS BLOB) AS json
        FROM (
            SELECT id, created_at,
                   substr(resource, 1, length(resource) - 1) || ',"closed_at":'
                       || coalesce('"' || closed_at || '"', 'null') || '}' AS resource
            FROM ticket_resources
            WHERE id IN (SELECT CAST(value AS INTEGER) FROM json_each(:ticket_ids))
        ) AS found"""
    return fetch_all(db, sql, ticket_ids=json.dumps(list(ticket_ids)))


def find_last_change(db: Connection) -> int:
    """Return the number of the latest change of the desk, 0 for none."""
    sql = """
        SELECT max(last)
        FROM (
            SELECT coalesce((SELECT last_change FROM events ORDER BY first_change DESC LIMIT 1),
                            (SELECT max(change) FROM tickets), 0) AS last
            UNION ALL SELECT value FROM counters WHERE name = 'change'
        ) AS ends"""
    return int(fetch_value(db, sql))


def insert_events(db: Connection, events: Iterable[tuple[int, int, str, str, str, int | None]]) -> None:
    """Insert rows of the log of changes, given as all their columns in order."""
    sql = """
        INSERT INTO events (first_change, last_change, type, at, ticket_ids, comment_id)
        VALUES (?, ?, ?, ?, ?, ?)"""
    execute_many(db, sql, events)


def find_first_kept(db: Connection, after: int) -> int:
    """Return the change after which events are kept: a number, or further back by what a restore left out since."""
    sql = """
        SELECT :after - CASE WHEN value <= :after THEN 0 ELSE value - coalesce(
            (SELECT last_change FROM events WHERE first_change <= value ORDER BY first_change DESC LIMIT 1), value) END
        FROM counters
        WHERE name = 'change'"""
    return int(fetch_value(db, sql, after=after))


def delete_old_events(db: Connection, until: int) -> None:
    """Delete rows of the log that hold no change after a number, but for the last few."""
    execute(db, "DELETE FROM events WHERE first_change <= :until - 499", until=until)


def list_event_rows(db: Connection, after: int, limit: int) -> list[Row]:
    """Return the first rows of the log that hold a change after a number."""
    sql = """
        SELECT first_change, last_change, type, at, ticket_ids, comment_id
        FROM events
        WHERE first_change > :after - 500 AND last_change > :after
        ORDER BY first_change
        LIMIT :limit"""
    return fetch_all(db, sql, after=after, limit=limit)


def find_event_ends(db: Connection) -> tuple[int, int]:
    """Return the first and the last change in the log, 0 for none."""
    sql = """
        SELECT coalesce(min(first_change), 0),
               coalesce((SELECT last_change FROM events ORDER BY first_change DESC LIMIT 1), 0)
        FROM events"""
    row = fetch_all(db, sql)[0]
    return row[0], row[1]


def find_change_time(db: Connection) -> str:
    """Return the last time at which a change number was noted, "" for none."""
    return str(fetch_value(db, "SELECT coalesce(max(at), '') FROM change_times"))


def delete_change_times(db: Connection, before: str) -> None:
    """Delete what was noted before a time, but for the last of it: what comes next is told from there."""
    sql = "DELETE FROM change_times WHERE at < (SELECT max(at) FROM change_times WHERE at < :before)"
    execute(db, sql, before=before)


def insert_change_times(db: Connection, rows: Iterable[tuple[str, int]]) -> None:
    """Note changes, given as (time, change before it)."""
    execute_many(db, "INSERT INTO change_times (at, change) VALUES (?, ?)", rows)


def find_change_before(db: Connection, at: str) -> int:
    """Return a change number that was the latest at a time or up to a minute before it: each later change makes a row."""
    sql = """
        SELECT CASE WHEN found.at > :minute_ago THEN found.change
               ELSE coalesce((SELECT change FROM change_times WHERE at > :at ORDER BY at LIMIT 1),
                             (SELECT last_change FROM events ORDER BY first_change DESC LIMIT 1), found.change) END
        FROM (SELECT at, change FROM change_times WHERE at <= :at ORDER BY at DESC LIMIT 1) AS found"""
    return int(fetch_value(db, sql, at=at, minute_ago=format_time(parse_time(at) - MINUTE_MICROSECONDS)) or 0)


# ======================================================================================================================
# Room 5. More queries: comments, tokens, limits, the audit log, as in the room before. Touches .execute; never commits.
# ======================================================================================================================


def find_last_comment(db: Connection, ticket_id: int) -> tuple[int, int]:
    """Return the highest id of all comments, and how many a ticket has, 0 for none."""
    sql = """
        SELECT coalesce((SELECT max(id) FROM comments), 0),
               coalesce((SELECT max(number) FROM comments WHERE ticket_id = :ticket_id), 0)"""
    row = fetch_all(db, sql, ticket_id=ticket_id)[0]
    return row[0], row[1]


def list_comments(db: Connection, ticket_id: int, lowest: int, highest: int, limit: int) -> tuple[Tickets, Bounds]:
    """Return the first comments of a ticket in a range of numbers, oldest first; their key is their number."""
    sql = """
        SELECT CAST(group_concat(resource) AS BLOB) AS json, count(*), min(number), max(number),
               (SELECT coalesce(max(number), 0) FROM comments WHERE ticket_id = :ticket_id)
        FROM (
            SELECT resource, number
            FROM comment_resources
            WHERE ticket_id = :ticket_id AND number BETWEEN :lowest AND :highest
            ORDER BY number
            LIMIT :limit
        ) AS page"""
    row = tuple(fetch_all(db, sql, ticket_id=ticket_id, lowest=lowest, highest=highest, limit=limit)[0])
    return Tickets(*row[:4]), (row[4], min(row[4], 1), row[4])


def list_comments_by_id(db: Connection, comment_ids: Iterable[int]) -> list[Row]:
    """Return comments as (id, JSON object)."""
    sql = """
        SELECT id, CAST(resource AS BLOB) AS json
        FROM comment_resources
        WHERE id IN (SELECT CAST(value AS INTEGER) FROM json_each(:comment_ids))"""
    return fetch_all(db, sql, comment_ids=json.dumps(list(comment_ids)))


def insert_comment(db: Connection, comment: Mapping[str, Any]) -> None:
    """Insert a comment."""
    sql = """
        INSERT INTO comments (id, ticket_id, number, user_id, content, created_at)
        VALUES (:id, :ticket_id, :number, :user_id, :content, :created_at)"""
    execute(db, sql, **comment)


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


class Simulation(NamedTuple):
    """A desk's own rhythm, and its clock if it has one, as the table has them: microseconds, and thousandths for the speed."""

    seed: int
    profile: str
    start: int
    worked: int
    status: str | None
    speed: int
    base: int
    written: int
    begun: int | None = None
    target: int | None = None

    def now(self, real: int) -> int:
        """Return what the desk's clock shows at a real time; one that nobody writes stands still after CLOCK_SECONDS."""
        if self.status is None:
            return real
        if self.target is not None:
            return max(self.base, self.worked)
        gone = max(0, min(real - self.written, CLOCK_SECONDS * MICROSECONDS)) if self.status == RUNNING else 0
        return min(self.base + gone * self.speed // 1000, END_OF_TIME - 1)


def find_simulation(db: Connection) -> Simulation | None:
    """Return the desk's simulation, or None for a desk that follows the real time and the options of `serve`."""
    sql = "SELECT seed, profile, start, worked, status, speed, base, written, begun, target FROM simulation WHERE id = 1"
    row = fetch_one(db, sql)
    return Simulation(*row) if row else None


def save_simulation(db: Connection, simulation: Simulation) -> None:
    """Write down the desk's simulation."""
    sql = """
        INSERT INTO simulation (id, seed, profile, start, worked, status, speed, base, written, begun, target)
        VALUES (1, :seed, :profile, :start, :worked, :status, :speed, :base, :written, :begun, :target)
        ON CONFLICT (id) DO UPDATE
        SET seed = excluded.seed, profile = excluded.profile, start = excluded.start, worked = excluded.worked,
            status = excluded.status, speed = excluded.speed, base = excluded.base, written = excluded.written,
            begun = excluded.begun, target = excluded.target"""
    execute(db, sql, **simulation._asdict())


def insert_token(db: Connection, token: Mapping[str, Any]) -> int:
    """Insert a token and return its id."""
    sql = """
        INSERT INTO personal_access_tokens (user_id, name, token, abilities, expires_at, created_at)
        VALUES (:user_id, :name, :token, :abilities, :expires_at, :created_at)
        RETURNING id"""
    return int(fetch_value(db, sql, **token))


def find_kept_answer(db: Connection, token_id: int, route: str, key: str) -> Row | None:
    """Return what was answered to a write with an Idempotency-Key, or None."""
    sql = """
        SELECT body_digest, status, body, location, created_at
        FROM idempotency_keys
        WHERE token_id = :token_id AND route = :route AND key = :key"""
    return fetch_one(db, sql, token_id=token_id, route=route, key=key)


def keep_answer(db: Connection, answer: Mapping[str, Any]) -> None:
    """Keep what is answered to a write with an Idempotency-Key; one of before is replaced."""
    sql = """
        INSERT INTO idempotency_keys (token_id, route, key, body_digest, status, body, location, created_at)
        VALUES (:token_id, :route, :key, :body_digest, :status, :body, :location, :created_at)
        ON CONFLICT (token_id, route, key) DO UPDATE
        SET body_digest = excluded.body_digest, status = excluded.status, body = excluded.body,
            location = excluded.location, created_at = excluded.created_at"""
    execute(db, sql, **answer)


def delete_kept_answers(db: Connection, before: str, limit: int) -> int:
    """Delete some of the answers that were kept before a time; return how many."""
    sql = """
        DELETE FROM idempotency_keys
        WHERE (token_id, route, key) IN (
            SELECT token_id, route, key FROM idempotency_keys WHERE created_at < :before ORDER BY created_at LIMIT :limit
        )"""
    return execute(db, sql, before=before, limit=limit).rowcount


def find_token(db: Connection, digest: str) -> Row | None:
    """Return the token with a SHA-256, or None."""
    sql = """
        SELECT id, user_id, token, abilities, last_used_at, expires_at
        FROM personal_access_tokens
        WHERE token = :digest"""
    return fetch_one(db, sql, digest=digest)


def find_token_by_id(db: Connection, token_id: int) -> Row | None:
    """Return a token and its owner, or None."""
    sql = """
        SELECT tokens.id, tokens.name, abilities, expires_at, user_id, users.name AS user_name, email
        FROM personal_access_tokens AS tokens
        JOIN users ON users.id = user_id
        WHERE tokens.id = :token_id"""
    return fetch_one(db, sql, token_id=token_id)


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
            ip_address, user_agent, duration_ms, query, request_body, created_at, request_id)
        VALUES (:user_id, :token_id, :method, :path, :route_name, :status_code,
            :ip_address, :user_agent, :duration_ms, :query, :request_body, :created_at, :request_id)"""
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


def list_webhooks(db: Connection) -> list[Row]:
    """Return all webhooks, each with how many deliveries are not done, the next of them due, and the last one tried."""
    sql = """
        SELECT webhooks.*, coalesce(waiting, 0) AS waiting, next_at, tried_at
        FROM webhooks
        LEFT JOIN (
            SELECT webhook_id, count(*) AS waiting, min(next_at) AS next_at, max(at) AS tried_at
            FROM webhook_deliveries
            WHERE next_at IS NOT NULL
            GROUP BY webhook_id
        ) AS undone ON webhook_id = webhooks.id
        ORDER BY webhooks.id"""
    return fetch_all(db, sql)


def insert_webhook(db: Connection, webhook: Mapping[str, Any]) -> int:
    """Insert a webhook and return its id."""
    sql = """
        INSERT INTO webhooks (
            user_id, name, url, private, secret, events, enabled, position, busy_until, created_at, updated_at
        )
        VALUES (:user_id, :name, :url, :private, :secret, :events, :enabled, :position, 0, :created_at, :created_at)
        RETURNING id"""
    return int(fetch_value(db, sql, **webhook))


def save_webhook(db: Connection, webhook: Mapping[str, Any]) -> None:
    """Write what may change of a webhook."""
    sql = """
        UPDATE webhooks
        SET name = :name, url = :url, private = :private, events = :events, enabled = :enabled, disabled = :disabled,
            position = :position, busy_until = :busy_until, failing_since = :failing_since, updated_at = :updated_at
        WHERE id = :id"""
    execute(db, sql, **webhook)


def switch_off_webhooks(db: Connection, reason: str) -> None:
    """Turn all webhooks off."""
    execute(db, "UPDATE webhooks SET enabled = 0, disabled = :reason WHERE enabled = 1", reason=reason)


def delete_webhook_row(db: Connection, webhook_id: int) -> None:
    """Delete a webhook and its deliveries."""
    execute(db, "DELETE FROM webhooks WHERE id = :webhook_id", webhook_id=webhook_id)


def save_delivery(db: Connection, delivery: Mapping[str, Any]) -> int:
    """Write a delivery, a new one when it has no id, and return its id."""
    sql = """
        INSERT INTO webhook_deliveries (
            id, webhook_id, event_id, message_id, type, body, attempt, status_code, error, duration_ms, at, next_at
        )
        VALUES (
            coalesce(:id, (SELECT coalesce(max(id), 0) + 1 FROM webhook_deliveries)), :webhook_id, :event_id, :message_id,
            :type, :body, :attempt, :status_code, :error, :duration_ms, :at, :next_at
        )
        ON CONFLICT (id) DO UPDATE
        SET attempt = excluded.attempt, status_code = excluded.status_code, error = excluded.error,
            duration_ms = excluded.duration_ms, at = excluded.at, next_at = excluded.next_at
        RETURNING id"""
    return int(fetch_value(db, sql, **delivery))


def list_deliveries(db: Connection, webhook_id: int, below: int, limit: int) -> list[Row]:
    """Return the last deliveries of a webhook below an id, newest first."""
    sql = """
        SELECT *
        FROM webhook_deliveries
        WHERE webhook_id = :webhook_id AND id < :below
        ORDER BY id DESC
        LIMIT :limit"""
    return fetch_all(db, sql, webhook_id=webhook_id, below=below, limit=limit)


def list_due_deliveries(db: Connection, webhook_id: int, now: str, limit: int) -> list[Row]:
    """Return the deliveries of a webhook whose next try is due, in the order in which they became so."""
    sql = """
        SELECT *
        FROM webhook_deliveries
        WHERE webhook_id = :webhook_id AND next_at <= :now
        ORDER BY next_at, id
        LIMIT :limit"""
    return fetch_all(db, sql, webhook_id=webhook_id, now=now, limit=limit)


def delete_old_deliveries(db: Connection, webhook_id: int, kept: int) -> None:
    """Delete what is done of a webhook but for its last deliveries."""
    sql = """
        DELETE FROM webhook_deliveries
        WHERE webhook_id = :webhook_id AND next_at IS NULL AND id <= (
            SELECT id
            FROM webhook_deliveries
            WHERE webhook_id = :webhook_id
            ORDER BY id DESC
            LIMIT 1 OFFSET :kept
        )"""
    execute(db, sql, webhook_id=webhook_id, kept=kept)


# ======================================================================================================================
# Room 6. Words: made-up people and tickets, from seed and id alone. Touches nothing.
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


# ======================================================================================================================
# Room 7. Rhythm: when tickets come and are closed, from profile, seed and time alone. Touches nothing.
# ======================================================================================================================


MEAN_NOISE = 100  # no two days are equally busy
HOUR_MICROSECONDS, DAY_MICROSECONDS = HOUR * MICROSECONDS, DAY * MICROSECONDS
WEIGHTS = {"hours": 24, "weekdays": 7, "working_hours": 24, "working_days": 7}  # the lists of a profile, and their lengths
RATES = {"tickets_a_day": 10**6, "team": 10**6, "tickets_an_hour": 1000, "wait_hours": 1000}  # its numbers, and the highest
AMOUNTS = RATES | {"bursts_a_month": 30, "burst_hours": 24, "burst_factor": 100, "growth": 1000}


class Profile(NamedTuple):
    """When tickets come and how they are closed, as profiles.json says it; numbers in thousandths, durations in seconds."""

    tickets_a_day: int
    hours: tuple[int, ...]  # how busy the hours of a day (UTC) and the days of a week (Monday first) are: when people write
    weekdays: tuple[int, ...]
    team: int
    tickets_an_hour: int  # of each, at full work
    working_hours: tuple[int, ...]  # when they are answered
    working_days: tuple[int, ...]
    wait_hours: int  # of full work, before a ticket is closed
    bursts_a_month: int
    burst_hours: int
    burst_factor: int
    growth: int  # per cent a year
    arrive_every: int  # 0: as the fields above say
    close_every: int

    def text(self) -> str:
        """Write the profile as JSON that `read_profile` reads back."""
        amounts = {name: getattr(self, name) / 1000 for name in AMOUNTS}
        durations = {name: f"{getattr(self, name)}s" for name in ("arrive_every", "close_every")}
        return compact(dict(sorted((self._asdict() | amounts | durations).items())))

    def scaled(self, tickets_a_day: float) -> Profile:
        """Return the same shape with that many tickets a day, and a team in proportion."""
        wanted = round(tickets_a_day * 1000)
        now = DAY * 1000 // self.arrive_every if self.arrive_every else self.tickets_a_day
        arrive, close = (max(1, every * now // wanted) if every and wanted else 0 for every in self[-2:])
        team = -(-self.team * wanted // max(1, now))  # rounded up: one that is too small would never catch up
        return self._replace(tickets_a_day=wanted, team=team, arrive_every=arrive, close_every=close)

    @property
    def full_hour(self) -> int:
        """What an hour of full work weighs on an average day."""
        return max(self.working_hours) * max(self.working_days) * MEAN_NOISE * HOUR_MICROSECONDS


def read_field(name: str, value: Any) -> Any:
    """Read a field of a profile; raises ValueError that says what it must be."""
    if name in WEIGHTS:
        fits = isinstance(value, list) and len(value) == WEIGHTS[name] and any(value)
        if fits and all(type(weight) is int and 0 <= weight <= 1000 for weight in value):
            return tuple(value)
        raise ValueError(f"must be {WEIGHTS[name]} whole numbers from 0 to 1000, with at least one above 0")
    if name in AMOUNTS:
        lowest, highest = -100 if name == "growth" else 0, AMOUNTS[name]
        if type(value) in (int, float) and lowest <= value <= highest:
            return round(value * 1000)
        raise ValueError(f"must be a number from {lowest} to {highest}")
    return read_duration(str(value)[:40])


def shipped_profiles() -> dict[str, dict[str, Any]]:
    """Return what profiles.json holds, by names."""
    return dict(json.loads(read_resource("profiles.json")))


def find_profile(name: str) -> Profile:
    """Return a profile that ticketapi brings along."""
    return read_profile(shipped_profiles()[name])


def read_profile(data: object) -> Profile:
    """Read a profile from JSON; what it leaves out is office's, the team in proportion to the tickets."""
    if not isinstance(data, dict):
        raise TicketApiError('profile: must be an object of fields, such as {"tickets_a_day": 500}')
    for name in (name for name in data if name not in Profile._fields):
        meant = did_you_mean(closest(name[:40], Profile._fields)) or f"; write {', '.join(Profile._fields)}"
        raise TicketApiError(f"profile: {name[:40]!r} is no field{meant}")
    office, read = shipped_profiles()["office"], {}
    for name in Profile._fields:
        try:
            read[name] = read_field(name, data.get(name, office[name]))
        except ValueError as error:
            raise TicketApiError(f"profile: {name} {error}") from None
    rate = DAY / read["arrive_every"] if read["arrive_every"] else read["tickets_a_day"] / 1000
    team = read["team"] if "team" in data else find_profile("office").scaled(rate).team
    return Profile(**read | {"team": team})


Weights = Sequence[int]
Factors = Callable[[int], Weights]  # of the hours of a day, which is counted since 1970


class Rhythm:
    """Hours that weigh more the busier they are; turns a moment into the weight before it, and back.

    The weight is piecewise linear, an hour a piece, in whole numbers only: the same on every machine. It grows as far as asked.
    """

    def __init__(self, start: int, seed: int, hours: Weights, days: Weights, factors: Factors = lambda _: [1] * 24) -> None:
        """Take the moment (microseconds) before which nothing weighs; factors make the hours of a day heavier."""
        self._seed, self._hours, self._days, self._factors = seed, hours, days, factors
        self._midnight, self._sums, self._base = start - start % DAY_MICROSECONDS, [0], 0
        self._base = self.weight(start)

    def _weigh_day(self) -> None:
        """Weigh one day more; no two are equally busy."""
        day = self._midnight // DAY_MICROSECONDS + len(self._sums) // 24
        weight = self._days[(day + 3) % 7] * (MEAN_NOISE - 25 + throw(self._seed, "day", day) % 51)
        weights = (hour * weight * factor for hour, factor in zip(self._hours, self._factors(day), strict=True))
        self._sums += accumulate(weights, initial=self._sums.pop())

    def moment(self, weight: int) -> int:
        """Return the moment before which the hours since the start weigh that much."""
        weight += self._base
        whole = weight // HOUR_MICROSECONDS
        while self._sums[-1] <= whole:
            self._weigh_day()
        piece = bisect_right(self._sums, whole) - 1
        before = self._sums[piece]
        passed = (weight - before * HOUR_MICROSECONDS) // (self._sums[piece + 1] - before)
        return self._midnight + piece * HOUR_MICROSECONDS + passed

    def weight(self, moment: int) -> int:
        """Return what the hours from the start to a moment weigh."""
        piece, passed = divmod(moment - self._midnight, HOUR_MICROSECONDS)
        while len(self._sums) <= piece + 1:
            self._weigh_day()
        before = self._sums[piece]
        return before * HOUR_MICROSECONDS + (self._sums[piece + 1] - before) * passed - self._base


class History(NamedTuple):
    """The plan of a past: when tickets arrive; each is closed after the same amount of work."""

    arrivals: Rhythm
    total: int  # what the period weighs
    work: Rhythm
    end: int
    delay: int  # in units of work

    def arrival(self, seed: int, position: int, count: int, ticket_id: int) -> int:
        """Return when the ticket at a position among `count` arrives: anywhere in its share of the period."""
        jitter = throw(seed, "arrival", ticket_id) % self.total
        return self.arrivals.moment((position * self.total + jitter) // count)

    def closing(self, arrival: int) -> int | None:
        """Return when a ticket that arrived then is closed, or None while it still waits."""
        moment = self.work.moment(self.work.weight(arrival) + self.delay)
        return moment if moment < self.end else None


def plan_history(start: int, now: int, seed: int) -> History:
    """Plan a period as an office has it: a ticket waits as long as there, or 3 % of the period when that is less."""
    office = find_profile("office")
    arrivals = Rhythm(start, seed, office.hours, office.weekdays)
    work = Rhythm(start, seed, office.working_hours, office.working_days)
    wait = min(office.wait_hours * office.full_hour // 1000, work.weight(now) * 3 // 100)
    return History(arrivals, arrivals.weight(now), work, now, wait)


class Course:
    """What happens on a desk after a moment, by profile and seed alone, however often and in what pieces one asks.

    One ticket arrives in each of equal shares of its rhythm, anywhere, and so for what the team can close.
    """

    def __init__(self, profile: Profile, seed: int, start: int) -> None:
        """Begin at a moment (microseconds); nothing happens before it, or at it."""
        self._profile, self._seed, self._start = profile, seed, start
        self._day, self._earliest = start // DAY_MICROSECONDS, start - 30 * DAY_MICROSECONDS
        rhythm, working = partial(Rhythm, self._earliest, seed), (profile.working_hours, profile.working_days)
        self._work = rhythm(*working, lambda _: [1000] * 24)  # growth makes a team larger, not faster
        arriving = rhythm(profile.hours, profile.weekdays, self._tide)
        closing = rhythm(*working, lambda day: [self._trend(day)] * 24) if profile.growth else self._work
        self._wait = profile.wait_hours * profile.full_hour  # in thousandths, as the work
        week = sum(profile.hours) * sum(profile.weekdays) * MEAN_NOISE * HOUR_MICROSECONDS
        rate, capacity = profile.tickets_a_day, profile.team * profile.tickets_an_hour
        share, chance = rate and week * 10**9 // (7 * rate), capacity and profile.full_hour * 10**9 // capacity
        self._arrivals = partial(self._moments, arriving, share, profile.arrive_every, "arrive")
        self._closings = partial(self._moments, closing, chance, profile.close_every, "close")

    def _trend(self, day: int) -> int:
        """Return how busy a day is by the growth, in thousandths of the first, a tenth at least."""
        return max(100, 1000 + self._profile.growth * max(0, day - self._day) // (365 * 100))

    def _tide(self, day: int) -> list[int]:
        """Return how busy the hours of a day are by growth and bursts, in millionths."""
        begun, length = (self._burst(day - 1) - 24, self._burst(day)), -(-self._profile.burst_hours // 1000)
        bursting = {hour for begin in begun for hour in range(begin, begin + length)}
        factors = [self._profile.burst_factor if hour in bursting else 1000 for hour in range(24)]
        return [self._trend(day) * factor for factor in factors]

    def _burst(self, day: int) -> int:
        """Return the hour of a day in which a burst begins, sooner in a busy one; 48 when there is none."""
        bits, draw = divmod(throw(self._seed, "burst", day), 30_000)
        sums = list(accumulate(self._profile.hours))
        return bisect_right(sums, bits % sums[-1]) if draw < self._profile.bursts_a_month else 48

    def _moments(self, rhythm: Rhythm, share: int, every: int, purpose: str, after: int) -> Iterator[int]:
        """Yield the moments after one: at whole multiples since 1970, or one in each share of a rhythm."""
        step, after = every * MICROSECONDS, max(after, self._start)
        number = after // step if step else rhythm.weight(after) // share if share else 0
        while step or share:
            draw = 0 if step else throw(self._seed, purpose, number)
            moment = number * step if step else rhythm.moment(number * share + draw % share)
            if moment > after:
                yield moment
            number += 1

    def happenings(self, after: int, until: int) -> Iterator[tuple[int, bool]]:
        """Yield what happens after a moment and until another: when, and whether a ticket arrives; else one can be closed."""
        arrivals, closings = self._arrivals(after), self._closings(after)
        arrival, closing = next(arrivals, MAX_ID), next(closings, MAX_ID)
        while min(arrival, closing) <= until:
            if arrival <= closing:
                yield arrival, True
                arrival = next(arrivals, MAX_ID)
            else:
                yield closing, False
                closing = next(closings, MAX_ID)

    def due(self, created: int) -> int:
        """Return from when on a ticket that arrived then may be closed: when the team has done some work since."""
        if self._profile.close_every or created < self._earliest:
            return created
        return max(created, self._work.moment(self._work.weight(created) + self._wait))

    def next_arrival(self, after: int) -> int | None:
        """Return when the next ticket arrives; None: never."""
        return next(self._arrivals(after), None)

    def next_closing(self, after: int) -> int | None:
        """Return when the team can close a ticket next; None: never."""
        return next(self._closings(after), None)


# ======================================================================================================================
# Room 8. Clocks: the real clocks, which the edges read and hand down as `now`. Touches time.
# ======================================================================================================================


def wall_microseconds() -> int:
    """Read the wall clock: microseconds since 1970, UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class Clock:
    """The two clocks of the edges: `wall` for what is written down, `monotonic` (seconds) for intervals and buckets.

    `pause` lets so many seconds pass, and tells whether one should stop instead of going on.
    """

    wall: Callable[[], int] = wall_microseconds
    monotonic: Callable[[], float] = time.monotonic
    pause: Callable[[float], object] = time.sleep


# ======================================================================================================================
# Room 9. Desk: all that changes a desk: generate and process, now or in the past. Opens transactions.
# ======================================================================================================================

BATCH = 25_000  # tickets in one transaction, for half a second: bounds memory, and how long other writers wait
BATCH_PAUSE = 0.02  # seconds between two, for a server that looks for the lock every POLL_SECONDS

Report = Callable[[int], object]  # takes how many tickets are done, after each batch
silent: Report = lambda done: None  # noqa: E731


@contextmanager
def uncollected() -> Iterator[None]:
    """Let nobody look for cycles in a block, as its rows have none: it took 5% of `generate` (benchmarks/bulk.py)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def batches(count: int) -> Iterator[int]:
    """Split a count into the sizes of its transactions."""
    while count > 0:
        with uncollected():
            yield min(count, BATCH)
        count -= BATCH
        time.sleep(BATCH_PAUSE if count > 0 else 0)


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


@lru_cache(maxsize=4096)  # what came together waits for as long
def cut_wait(seconds: int) -> int:
    """Cut a wait in seconds to its first two digits, as the counters by the hour have it: 12,345 is 12,000."""
    return seconds if seconds < 100 else seconds - seconds % wait_width(seconds)


def wait_width(seconds: int) -> int:
    """Return how many waits, in seconds, are cut to the same one as this."""
    width = 1
    while seconds >= 100 * width:
        width *= 10
    return width


def add_customers(db: Connection, seed: int, numbers: Mapping[int, int]) -> None:
    """Make up the customers of some numbers, each of whom comes at a moment."""
    words = load_words()
    rows, made = [], [(number, *compose_customer(words, seed, number)) for number in numbers]
    taken = list_taken_emails(db, (email for *_, email in made)) if made else {}
    for number, name, email in made:
        while email in taken:  # a customer that another seed made, or who came with a request, has it
            email = email.replace("@", f".{number}@")
            taken |= list_taken_emails(db, [email])
        rows.append((number, name, email, format_time(numbers[number])))
    insert_users(db, rows)
    add_to_counter(db, "customers", len(rows))


def ensure_customers(db: Connection, people: Mapping[str, str], now: int) -> dict[str, int]:
    """Return the ids of customers by their addresses; those unknown are created, with the names given; others keep theirs."""
    known = list_taken_emails(db, people)
    first = max(find_last_user_id(db, FIRST_OWNER_ID) or 0, FIRST_BROUGHT_ID - 1) + 1
    new = {email: first + i for i, email in enumerate(email for email in people if email not in known)}
    insert_users(db, [(user_id, people[email], email, format_time(now)) for email, user_id in new.items()])
    add_to_counter(db, "customers", len(new))
    return known | new


def ensure_customer(db: Connection, name: str, email: str, now: int) -> int:
    """Return the id of the customer with an address, who is created when unknown; the name of a known one stays."""
    return ensure_customers(db, {email.lower(): name}, now)[email.lower()]


EVENT_TYPES = CREATED, UPDATED, CLOSING, REOPENED, DELETED, COMMENTED = (
    *("ticket.created", "ticket.updated", "ticket.closed", "ticket.reopened", "ticket.deleted"),
    "comment.created",
)
EVENTS_KEPT, EVENTS_IN_A_ROW = 100_000, 500
MIXED = "mixed"  # the type of a row of the log that stands for arrivals and closings
CHANGE_TIMES_KEPT = 400 * DAY  # seconds; who asks for changes since before gets some that are older
OPEN_LIST, CLOSED_LIST, ALL_LIST = -1, 0, -2  # in list_blocks, where a user's list goes by the user's id


class Change(NamedTuple):
    """Something that becomes of a ticket: a type of event, and when, in microseconds."""

    kind: str
    ticket_id: int
    at: int


def log_changes(db: Connection, changes: Sequence[Change], now: int, comment_id: int | None = None) -> int:
    """Give the next numbers to changes, log them as events, and return the first; `now` is when we are told.

    A row of the log stands for many changes of one type, so that a batch of tickets costs little more for being logged.
    """
    first = find_last_change(db) + 1
    log_events(db, changes, first, comment_id)
    if find_change_time(db) <= format_time(now - MINUTE_MICROSECONDS):
        insert_change_times(db, [(format_time(now), first - 1)])
        delete_change_times(db, format_time(now - CHANGE_TIMES_KEPT * MICROSECONDS))
    return first


def log_events(db: Connection, changes: Sequence[Change], first: int, comment_id: int | None = None) -> None:
    """Log changes whose numbers go on from the first; those that take turns are arrivals and closings."""
    rows = []
    for start in range(0, len(changes), EVENTS_IN_A_ROW):
        part = changes[start : start + EVENTS_IN_A_ROW]
        kind, _, at = part[0]
        ids: list[Any] = [change.ticket_id for change in part]
        if not all(change.kind == kind and (kind == CREATED or change.at == at + i) for i, change in enumerate(part)):
            kind, ids = MIXED, [id if kind == CREATED else [id, moment - at] for kind, id, moment in part]
        rows.append((first + start, first + start + len(part) - 1, kind, format_time(at), compact(ids), comment_id))
    insert_events(db, rows)
    last = first + len(changes) - 1
    if last // EVENTS_IN_A_ROW > (first - 1) // EVENTS_IN_A_ROW:  # now and then, as readers leave out what is too old
        delete_old_events(db, find_first_kept(db, last - EVENTS_KEPT))


def count_in_blocks(db: Connection, listing: int, keys: Iterable[int], step: int) -> None:
    """Count tickets that come to a list (1) or leave it (-1), given by their keys, in the blocks that pages are found by."""
    counts, levels = Counter((key if listing == OPEN_LIST else key - 1) >> 6 for key in keys), list[Counter[int]]()
    for _ in range(3) if counts else ():
        levels.append(counts)
        counts = Counter()
        for block, tickets in levels[-1].items():
            counts[block >> 6] += tickets
    more = [(listing, n, block, step * tickets) for n, level in enumerate(levels, 1) for block, tickets in level.items()]
    add_to_blocks(db, more)
    if listing == OPEN_LIST and step < 0:
        for n, level in enumerate(levels, 1):
            delete_empty_blocks(db, n, min(level), max(level))


class Draft(NamedTuple):
    """A ticket to be added: whose it is, its texts, and when it came and was closed, in microseconds."""

    user_id: int
    subject: str
    content: str
    created: int
    closed: int | None = None
    number: int = 0  # its closed_number, 0 for the next


def compose_drafts(db: Connection, seed: int, first_id: int, moments: Sequence[tuple[int, int | None]]) -> list[Draft]:
    """Make up tickets, given as (created, closed or None) in microseconds, and the customers that a desk of their size has."""
    words, last_id = load_words(), first_id + len(moments) - 1
    drafts = [Draft(*compose_ticket(words, seed, first_id + i), *moment) for i, moment in enumerate(moments)]
    have, numbers = find_last_user_id(db, FIRST_BROUGHT_ID) or 0, dict[int, int]()
    if customer_pool(last_id) > have:  # each comes with the ticket that makes the desk large enough for them
        for i, (created, _) in enumerate(moments):
            numbers |= dict.fromkeys(range(have + 1 + len(numbers), customer_pool(first_id + i) + 1), created)
    add_customers(db, seed, numbers)
    return drafts


def find_authors(db: Connection, seed: int, drafts: Sequence[Draft]) -> dict[int, tuple[int, str, str]]:
    """Return last number, name and address of those who write tickets; numbers that an imported desk has not are made up."""
    user_ids = {draft.user_id for draft in drafts}
    found = list_authors(db, user_ids) if len(user_ids) > 1 else filter(None, [find_user(db, *user_ids)])
    authors = {row["id"]: (row["last_number"], row["name"], row["email"]) for row in found}
    if missing := {draft.user_id: draft.created for draft in reversed(drafts) if draft.user_id not in authors}:
        add_customers(db, seed, dict(sorted(missing.items())))
        authors |= {user_id: (last, name, email) for user_id, name, email, last in list_authors(db, missing)}
    return authors


def add_tickets(
    db: Connection,
    first_id: int,
    drafts: Sequence[Draft],
    now: int,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    changes: Sequence[int] | None = None,
) -> None:
    """Insert one batch of tickets, with its counters, and with its events unless the numbers of these are given."""
    ids = ids or range(first_id, first_id + len(drafts))
    per_user, authors = Counter(draft.user_id for draft in drafts), find_authors(db, seed, drafts)
    if changes is None:
        first = log_changes(db, [Change(CREATED, ids[i], draft.created) for i, draft in enumerate(drafts)], now)
        changes = range(first, first + len(drafts))
    already_closed = get_counter(db, "closed_number") if any(draft.closed is not None for draft in drafts) else 0
    ended = 0
    arrivals: Counter[str] = Counter()
    closings: Counter[tuple[str, int]] = Counter()
    rows: list[tuple[Any, ...]] = []
    for i, (user_id, subject, content, created, closed, number) in enumerate(drafts):
        written, name, email = authors[user_id]
        authors[user_id] = (written + 1, name, email)
        created_at = format_time(created)
        arrivals[created_at[:13]] += 1
        end: tuple[Any, ...] = (OPEN, created_at, created_at, None, None)
        if closed is not None:
            ended, closed_at = ended + 1, format_time(closed)
            closings[closed_at[:13], cut_wait(closed // MICROSECONDS - created // MICROSECONDS)] += 1
            end = (CLOSED, created_at, closed_at, closed_at, number or already_closed + ended)
        rows.append((ids[i], user_id, written + 1, name, email, subject, content, *end, changes[i]))
    insert_tickets(db, rows)
    add_user_tickets(db, [(more, user_id) for user_id, more in per_user.items()])
    add_arrivals(db, arrivals.items())
    count_in_blocks(db, OPEN_LIST, [row[0] for row in rows if row[7] == OPEN], 1)
    move_counts(db, len(rows) - ended, ended)
    if ended:
        add_closings(db, [(*place, more) for place, more in closings.items()])
        add_to_counter(db, "closed_number", ended)


def move_counts(db: Connection, opened: int, closed: int) -> None:
    """Change how many tickets are open and closed."""
    for status, more in ((OPEN, opened), (CLOSED, closed)):
        if more:
            add_ticket_count(db, status, more)


def generate_tickets(db: Connection, count: int, now: int, seed: int, report: Report = silent) -> int:
    """Add open tickets of this moment, in batches that are committed one by one; return how many."""
    done = 0
    for size in batches(count):
        with transaction(db):
            last_id, last_created = newest_ticket(db)
            moments = [(moment, None) for moment in growing([now] * size, last_created)]
            add_tickets(db, last_id + 1, compose_drafts(db, seed, last_id + 1, moments), now, seed)
        done += size
        report(done)
    return done


def close_oldest(db: Connection, moments: Sequence[int], now: int) -> list[int]:
    """Close the oldest open tickets, one for each moment, first in, first out; return their ids."""
    return close_in_order(db, list_oldest_open_tickets(db, len(moments)), moments, now)


def close_in_order(db: Connection, tickets: Iterable[Any], moments: Iterable[int], now: int) -> list[int]:
    """Close open tickets, (id, created_at, updated_at), each at a moment moved to after the one before; return their ids."""
    closings: list[Change] = []
    seconds: list[int] = []
    last, shown = last_closing(db), ""
    for (ticket_id, created_at, updated_at), moment in zip(tickets, moments, strict=False):
        last = max(moment, last + 1)
        if updated_at >= shown:  # a time before this one, as they grow
            shown = format_time(last)
            if updated_at >= shown:  # made in one go, a million tickets reach a second into the future
                last = parse_time(updated_at) + 1
        closings.append(Change(CLOSING, ticket_id, last))
        seconds.append(parse_second(created_at[:19]))
    if closings:
        first = log_changes(db, closings, now)
        mark_closed(db, closings, seconds, range(first, first + len(closings)))
    return [closing.ticket_id for closing in closings]


def mark_closed(db: Connection, closings: Sequence[Change], created: Sequence[int], changes: Sequence[int]) -> None:
    """Write down closings of tickets that were created at some seconds, whose changes have their numbers, with the counters."""
    ids, ends = [ticket_id for _, ticket_id, _ in closings], [format_time(at) for _, _, at in closings]
    number = get_counter(db, "closed_number") + 1
    close_tickets(db, zip(ends, range(number, number + len(ids)), changes, ids, strict=True))
    waits = Counter(
        [
            (end[:13], cut_wait(at // MICROSECONDS - begun))
            for end, (_, _, at), begun in zip(ends, closings, created, strict=True)
        ]
    )
    add_closings(db, [(*place, more) for place, more in waits.items()])
    count_in_blocks(db, OPEN_LIST, ids, -1)
    move_counts(db, -len(ids), len(ids))
    add_to_counter(db, "closed_number", len(ids))


def process_tickets(db: Connection, count: int, now: int, report: Report = silent) -> list[int]:
    """Close up to `count` tickets, the oldest first, in batches that are committed one by one; return their ids."""
    closed: list[int] = []
    for size in batches(count):
        with transaction(db):
            ids = close_oldest(db, [now] * size, now)
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
    closed = close_backlog(db, history, start, now)
    done = 0
    for size in batches(count):
        with transaction(db):
            newest, closings = add_history_batch(db, history, seed, (done, size, count), newest, now)
        done += size
        closed += closings
        report(done)
    return count, closed


def close_backlog(db: Connection, history: History, start: int, now: int) -> int:
    """Close the tickets that were open before the period, evenly over its first working day; return how many."""
    waiting = count_tickets(db, OPEN)
    dues = (history.delay * (i + 1) // (waiting + 1) for i in range(waiting))
    moments = (max(start, history.work.moment(due)) for due in dues)
    for size in batches(waiting):
        with transaction(db):
            close_oldest(db, list(islice(moments, size)), now)
    return waiting


def add_history_batch(
    db: Connection, history: History, seed: int, batch: tuple[int, int, int], newest: int, now: int
) -> tuple[int, int]:
    """Insert one batch (done, size, count) of a history; return the newest ticket's time and how many are closed."""
    done, size, count = batch
    last_id, last_created = newest_ticket(db)
    if last_created != newest:
        raise TicketApiError(f"another program added a ticket meanwhile; {done} of {count} tickets of the past were kept")
    arrivals = list(growing((history.arrival(seed, done + i, count, last_id + 1 + i) for i in range(size)), last_created))
    due = [moment for moment in map(history.closing, arrivals) if moment is not None]
    closings = list(growing(due, last_closing(db)))
    moments: list[tuple[int, int | None]] = list(zip(arrivals, [*closings, *[None] * (size - len(closings))], strict=True))
    add_tickets(db, last_id + 1, compose_drafts(db, seed, last_id + 1, moments), now, seed)
    return arrivals[-1], len(closings)


# What people change, one ticket at a time -----------------------------------------------------------


Author = int | tuple[str, str]  # a customer by id, or name and address of one, who is created when unknown


def create_tickets(db: Connection, tickets: Sequence[tuple[Author, str, str, int]]) -> range:
    """Add open tickets, given as (author, subject, content, now); return their ids."""
    with transaction(db):
        last_id, last = newest_ticket(db)
        drafts = []
        for author, subject, content, now in tickets:
            last = max(now, last + 1)
            user_id = author if isinstance(author, int) else ensure_customer(db, *author, now)
            drafts.append(Draft(user_id, subject, content, last))
        add_tickets(db, last_id + 1, drafts, tickets[0][3])
        return range(last_id + 1, last_id + 1 + len(drafts))


def get_ticket(db: Connection, ticket_id: int) -> Row:
    """Return what a change of a ticket has to know; raises NotFound."""
    ticket = find_ticket_row(db, ticket_id)
    if ticket is None:
        raise NotFound(f"There is no ticket with the id {ticket_id}.")
    return ticket


def uncount_closing(db: Connection, ticket: Row) -> None:
    """Take the closing of a ticket, if it is closed, out of the hour under which it is counted."""
    if closed_at := ticket["closed_at"]:
        take_closing(db, closed_at[:13], cut_wait(parse_second(closed_at[:19]) - parse_second(ticket["created_at"][:19])))


def update_ticket(db: Connection, ticket_id: int, changes: Mapping[str, Any], now: int) -> None:
    """Change any of subject, content and status of a ticket; what is so already is no change. Raises NotFound."""
    with transaction(db):
        ticket = get_ticket(db, ticket_id)
        subject, content, status = (changes.get(name, ticket[name]) for name in ("subject", "content", "status"))
        if (subject, content, status) == (ticket["subject"], ticket["content"], ticket["status"]):
            return
        if status == CLOSED != ticket["status"]:
            edit_ticket(db, ticket_id, subject, content, ticket["updated_at"], ticket["change"])
            close_in_order(db, [(ticket_id, ticket["created_at"], ticket["updated_at"])], [now], now)
            return
        moment, reopened = max(now, parse_time(ticket["updated_at"]) + 1), status != ticket["status"]
        if reopened:
            count_in_blocks(db, CLOSED_LIST, [ticket["closed_number"]], -1)
            count_in_blocks(db, OPEN_LIST, [ticket_id], 1)
            uncount_closing(db, ticket)
            move_counts(db, 1, -1)
            reopen_ticket(db, ticket_id)
        change = log_changes(db, [Change(REOPENED if reopened else UPDATED, ticket_id, moment)], now)
        edit_ticket(db, ticket_id, subject, content, format_time(moment), change)


def delete_ticket(db: Connection, ticket_id: int, now: int) -> None:
    """Take a ticket out of all lists and counters; its row stays for the export. Raises NotFound."""
    with transaction(db):
        ticket = get_ticket(db, ticket_id)
        moment, is_open = max(now, parse_time(ticket["updated_at"]) + 1), ticket["status"] == OPEN
        key = ticket_id if is_open else ticket["closed_number"]
        for listing, number in (
            (OPEN_LIST if is_open else CLOSED_LIST, key),
            (ALL_LIST, ticket_id),
            (ticket["user_id"], ticket["user_number"]),
        ):
            count_in_blocks(db, listing, [number], -1)
        take_arrival(db, ticket["created_at"][:13])
        uncount_closing(db, ticket)
        move_counts(db, -is_open, -(not is_open))
        count_down_user(db, ticket["user_id"])
        change = log_changes(db, [Change(DELETED, ticket_id, moment)], now)
        delete_ticket_row(db, ticket_id, format_time(moment), change)


def add_comment(db: Connection, ticket_id: int, user_id: int, content: str, now: int) -> int:
    """Add a comment that the owner of a token wrote to a ticket; return its id. Raises NotFound."""
    with transaction(db):
        get_ticket(db, ticket_id)
        last_id, last_number = find_last_comment(db, ticket_id)
        comment = {"id": last_id + 1, "ticket_id": ticket_id, "number": last_number + 1, "user_id": user_id, "content": content}
        insert_comment(db, comment | {"created_at": format_time(now)})
        log_changes(db, [Change(COMMENTED, ticket_id, now)], now, last_id + 1)
        return last_id + 1


# ======================================================================================================================
# Room 10. Simulation: the desk's own clock, and what happens as it goes on. Opens transactions.
# ======================================================================================================================

WRITTEN_EVERY = 5 * MICROSECONDS  # that a running clock is written, at least: each time readers forget what they remember
LONGEST_ADVANCE = 3653 * DAY * MICROSECONDS
FIRST_STEP = 100  # happenings in the first transaction of a server's turn; then as many as take HELD_SECONDS
HELD_SECONDS = 0.016  # that a server's step holds the right to write, beside its commit: others of it wait for no longer
YIELD_SECONDS = 0.001  # between two, for others that wait
SWITCH_SECONDS, EAGER_SECONDS = 0.005, 0.0005  # that a thread may keep others from running: by default, and in steps
MISSED = MINUTE_MICROSECONDS  # what was due longer ago on a desk of the real time, while nobody served it, does not happen


class Turn(NamedTuple):
    """What became of a turn: the moments of the last arrival and closing, how many there were, and whether more is due."""

    arrivals: int = 0
    closings: int = 0
    more: bool = False


def desk_now(db: Connection, real: int) -> int:
    """Return the time of the desk: that of its own clock, or the real one."""
    simulation = find_simulation(db)
    return simulation.now(real) if simulation else real


@lru_cache(maxsize=16)
def open_course(thread: int, profile: str, seed: int, start: int) -> Course:
    """Return the course of a simulation, kept for each thread: it remembers where it was."""
    return Course(read_profile(json.loads(profile)), seed, start)


def course_of(simulation: Simulation) -> Course:
    """Return what happens on a desk, and when."""
    return open_course(threading.get_ident(), simulation.profile, simulation.seed, simulation.start)


def happen(db: Connection, seed: int, course: Course, due: Sequence[tuple[int, bool]]) -> list[Change]:
    """Add tickets, and close the oldest that may be closed, at the moments at which it happens; return what changed.

    Nothing of what is written depends on how many happenings come in one transaction.
    """
    last_id, newest = newest_ticket(db)
    arrivals = list(growing((moment for moment, arrives in due if arrives), newest))
    rows = list_oldest_open_tickets(db, len(due) - len(arrivals))
    waiting = deque[tuple[int, int, int]]()
    for ticket_id, created_at, updated_at in rows:
        begun = parse_time(created_at)
        waiting.append((ticket_id, begun, begun if updated_at == created_at else parse_time(updated_at)))
    changes: list[Change] = []
    created: list[int] = []  # seconds, of those that are closed
    came, last = 0, last_closing(db)
    for moment, arrives in due:
        if arrives:
            at, came = arrivals[came], came + 1
            changes.append(Change(CREATED, last_id + came, at))
            waiting.append((last_id + came, at, at))
        elif waiting and course.due(waiting[0][1]) <= moment:
            ticket_id, begun, changed = waiting.popleft()
            last = max(moment, last + 1, changed + 1)
            changes.append(Change(CLOSING, ticket_id, last))
            created.append(begun // MICROSECONDS)
    if changes:
        write_in_order(db, seed, last_id + 1, changes, created)
    return changes


def write_in_order(db: Connection, seed: int, first_id: int, changes: Sequence[Change], created: Sequence[int]) -> None:
    """Write arrivals and closings that take turns, numbered in their order; each is told at its own moment."""
    first = find_last_change(db) + 1
    numbers: dict[str, list[int]] = {CREATED: [], CLOSING: []}
    last, times = parse_time(find_change_time(db) or format_time(0)), list[tuple[str, int]]()
    for number, (kind, _, at) in enumerate(changes, first):
        numbers[kind].append(number)
        if at >= last + MINUTE_MICROSECONDS:
            last = at
            times.append((format_time(at), number - 1))
    arrivals, closings = ([change for change in changes if change.kind == kind] for kind in (CREATED, CLOSING))
    if arrivals:
        drafts = compose_drafts(db, seed, first_id, [(change.at, None) for change in arrivals])
        add_tickets(db, first_id, drafts, 0, seed, changes=numbers[CREATED])
    if closings:
        mark_closed(db, closings, created, numbers[CLOSING])
    log_events(db, changes, first)
    insert_change_times(db, times)


def take_step(db: Connection, real: int, most: int) -> Turn:
    """Let happen what is due on a desk, about so much of it, in a transaction; write down its clock."""
    simulation = find_simulation(db)
    if simulation is None:
        return Turn()
    now, course, worked = simulation.now(real), course_of(simulation), simulation.worked
    if simulation.status is None:
        worked = max(worked, now - MISSED)
    until = now if simulation.target is None else simulation.target
    coming = course.happenings(worked, until)
    due = list(islice(coming, most))
    if more := len(due) == most:
        due += takewhile(lambda happening: happening[0] == due[most - 1][0], coming)
    changes, worked = happen(db, simulation.seed, course, due), due[-1][0] if more else until
    arrivals = sum(change.kind == CREATED for change in changes)
    ended: dict[str, Any] = {"begun": None, "target": None} if simulation.target is not None and not more else {}
    base = max(now, worked) if simulation.target is not None else now
    save_simulation(db, simulation._replace(worked=worked, base=base, written=real, **ended))
    return Turn(arrivals, len(changes) - arrivals, more)


def is_due(db: Connection, real: int, idle: bool) -> bool:
    """Tell whether a desk has a step to take."""
    simulation = find_simulation(db)
    if simulation is None or simulation.target is not None or idle:
        return simulation is not None and simulation.target is not None
    if simulation.status == RUNNING and real - simulation.written >= WRITTEN_EVERY:
        return True
    now = simulation.now(real)
    worked = simulation.worked if simulation.status else max(simulation.worked, now - MISSED)
    return next(course_of(simulation).happenings(worked, now), None) is not None


def work_off(db: Connection, clock: Clock, seconds: float, idle: bool = False, bulk: bool = False) -> Turn:
    """Take steps, short or a batch each, for so many seconds, or until nothing is due; who is idle only ends an advance."""
    least = BATCH if bulk else FIRST_STEP
    end, most, total = clock.monotonic() + seconds, least, Turn()
    sys.setswitchinterval(EAGER_SECONDS)  # or who answers requests beside waits for 5 ms at each statement
    try:
        while is_due(db, clock.wall(), idle):
            begun = clock.monotonic()
            with uncollected(), transaction(db):
                turn = take_step(db, clock.wall(), most)
                held = clock.monotonic() - begun
            total = Turn(total.arrivals + turn.arrivals, total.closings + turn.closings, turn.more)
            most = max(least, min(BATCH, int(most * HELD_SECONDS / max(held, 0.0001))))
            if not turn.more or clock.pause(YIELD_SECONDS) or clock.monotonic() >= end:
                break
    finally:
        sys.setswitchinterval(SWITCH_SECONDS)
    return total


def note_clock(db: Connection, real: int) -> None:
    """Write down what a running clock shows."""
    simulation = find_simulation(db)
    if simulation and simulation.status == RUNNING and simulation.target is None:
        save_simulation(db, simulation._replace(base=simulation.now(real), written=real))


def rest_clock(db: Connection, real: int) -> None:
    """Let a running clock stand where it is, when its last server stops; another one lets it go on from there."""
    with transaction(db):
        simulation = find_simulation(db)
        if simulation and simulation.status == RUNNING and simulation.target is None:
            gone = CLOCK_SECONDS * MICROSECONDS  # and no more will be
            base = simulation.now(real) - gone * simulation.speed // 1000
            save_simulation(db, simulation._replace(base=base, written=real - gone))


def simulated_jobs(simulation: Simulation, now: int) -> dict[str, dict[str, Any]]:
    """Return what differs in the schedule of a desk with its own rhythm: no job runs every so often."""
    course = course_of(simulation)
    coming = {"generate": course.next_arrival(now), "process": course.next_closing(now)}
    return {name: {"every": None, "next_at": format_time(at) if at else None} for name, at in coming.items()}


def clock_resource(simulation: Simulation | None, real: int) -> dict[str, Any]:
    """Return what the API says of the desk's clock; one without shows the real time, and has no speed."""
    now, speed, status, target, progress = real, 0, RUNNING, None, None
    if simulation and simulation.status:
        now, speed, status, target = simulation.now(real), simulation.speed, simulation.status, simulation.target
        if target is not None:
            begun = simulation.begun or 0
            status, progress = "advancing", round(max(0, simulation.worked - begun) / max(1, target - begun), 4)
    return {
        "now": format_time(now),
        "real_now": format_time(real),
        "status": status,
        "speed": (speed // 1000 if speed % 1000 == 0 else speed / 1000) or None,
        "target": None if target is None else format_time(target),
        "progress": progress,
    }


class ClockWish(NamedTuple):
    """What a clock is to do: a status, a speed in thousandths, so many microseconds to advance by, a moment to advance to."""

    status: str | None = None
    speed: int | None = None
    advance: int | None = None
    now: int | None = None


def read_wish(fields: Mapping[str, Any]) -> ClockWish:
    """Read what a clock is to do. Raises InvalidFields."""
    errors: dict[str, list[str]] = {}
    given = {name: fields[name] for name in CLOCK_FIELDS if fields.get(name) is not None}
    found: dict[str, Any] = {}
    for name, value in given.items():
        read, wanted = CLOCK_FIELDS[name]
        try:
            found[name] = read(str(value) if type(value) in (int, float) else value)
        except (ValueError, TypeError, KeyError):
            errors[name] = [f"The {name} field must be {wanted}."]
    if not given:
        errors["status"] = [f"The status field is required when none of {', '.join([*CLOCK_FIELDS][1:])} are present."]
    if "advance" in given and "now" in given:
        errors["now"] = ["The now field is prohibited when advance is present."]
    if errors:
        raise InvalidFields(errors)
    return ClockWish(**found)


CLOCK_FIELDS: Mapping[str, tuple[Callable[[Any], Any], str]] = {  # what reads a field, and what it takes
    "status": ({RUNNING: RUNNING, FROZEN: FROZEN}.__getitem__, "running or frozen"),
    "speed": (read_speed, f"a number such as 60 or 60x, from 0.001 to {MAX_SPEED}"),
    "advance": (lambda text: read_duration(text) * MICROSECONDS, "a duration such as 90s, 5m, 12h or 30d"),
    "now": (parse_moment, "a UTC time such as 2025-12-04T11:30:16Z"),
}


class Advancing(Conflict):
    """The clock is on its way to where somebody has set it."""


def set_clock(db: Connection, wish: ClockWish, real: int) -> Simulation:
    """Set a desk's clock; what is due until then is for `work_off`. Raises Advancing, Conflict and InvalidFields."""
    with transaction(db):
        simulation = find_simulation(db)
        if simulation is None or simulation.status is None:
            raise Conflict("This desk has no clock of its own; start its server with --clock, such as --clock now.")
        if simulation.target is not None:
            raise Advancing(f"The clock is advancing to {format_time(simulation.target)}; wait until it is there.")
        now, field = simulation.now(real), "advance" if wish.now is None else "now"
        target = now + (wish.advance or 0) if wish.now is None else wish.now
        if target < now:
            raise InvalidFields({"now": [f"The now field must not be before the time of the desk, {format_time(now)}."]})
        if target > now and (target - now > LONGEST_ADVANCE or target >= END_OF_TIME):
            raise InvalidFields(
                {field: [f"The {field} field must not be more than ten years ahead, nor beyond the year 9998."]}
            )
        changed = simulation._replace(base=now, written=real, speed=wish.speed or simulation.speed)
        changed = changed._replace(status=wish.status or simulation.status)
        if target > now:
            changed = changed._replace(begun=now, target=target)
        save_simulation(db, changed)
        return changed


def begin_simulation(
    db: Connection, profile: Profile | None, clock: tuple[int | None, int] | None, seed: int | None, drawn: int, real: int
) -> list[str]:
    """Give a desk the rhythm and the clock that its server is to have; return what is passed over, as the desk has it already.

    The clock is a moment, None for now, and a speed. Raises TicketApiError for one that would begin before the newest ticket.
    """
    passed: list[str] = []
    with transaction(db):
        simulation = find_simulation(db)
        if simulation is None:
            text = (profile or find_profile("steady")).text()
            simulation = Simulation(drawn if seed is None else seed, text, real, real, None, 1000, real, real)
        elif seed not in (None, simulation.seed):
            passed.append(f"the desk has the seed {simulation.seed}; --seed is passed over")
        if profile and profile.text() != simulation.profile:
            simulation = simulation._replace(profile=profile.text(), start=simulation.worked)
        if clock and simulation.status:
            passed.append(f"the desk has a clock, which shows {format_time(simulation.now(real))}; --clock is passed over")
        elif clock:
            newest = max(newest_ticket(db)[1], last_closing(db))
            start = max(real, newest) if clock[0] is None else clock[0]
            if newest > start:
                begins = f"--clock begins at {format_time(start)}, before the newest ticket ({format_time(newest)})"
                raise TicketApiError(f"{begins}; take a later one, now, or another --db")
            simulation = simulation._replace(
                status=RUNNING, speed=clock[1], start=start, worked=start, base=start, written=real
            )
        save_simulation(db, simulation)
    return passed


# ======================================================================================================================
# Room 11. Lists: all that reads a desk as JSON: pages, cursors, resources, figures, series. Uses queries, in snapshots.
# ======================================================================================================================

PER_PAGE, MAX_PER_PAGE = 50, 200
MAX_PAGE = 10**15  # far past the end of any desk; keeps OFFSET inside SQLite's 64 bits
BUCKETS_BACK = {"hour": (HOUR, 100 * 24), "day": (DAY, 3653)}  # of the series: seconds of one, and how many there may be
MAX_CACHED_BYTES = 1024 * 1024  # of answers, for each thread: some 36 pages; 4 MB made pages not asked for before 10 % dearer


class Answer(NamedTuple):
    """The bytes of an answer, their strong ETag (RFC 9110, section 8.8.3), and headers with them, as Bottle keeps them."""

    body: bytes
    etag: str
    headers: Mapping[str, list[str]] = {}


class ListBody(bytes):
    """The bytes of a list; `headers` are its links (RFC 8288), by which clients page without reading it, and its total."""

    headers: dict[str, list[str]]


def make_answer(body: bytes) -> Answer:
    """Return bytes with an ETag that is a hash of them."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"Etag": [tag], "Content-Length": [str(len(body))]}
    if isinstance(body, ListBody):
        return Answer(bytes(body), tag, headers | body.headers)  # WSGI takes no subclass
    return Answer(body, tag, headers)


def list_body(data: bytes, envelope: str, link: str, total: int | None = None) -> ListBody:
    """Return a list in its envelope, which is JSON without its braces."""
    body = ListBody(b'{"data":[%b],%b}' % (data, envelope.encode()))
    body.headers = {"Link": [link]} if link else {}
    if total is not None:
        body.headers["X-Total-Count"] = [str(total)]
    return body


def cursor_links(links: Mapping[str, str | None]) -> str:
    """Write links as the header has them."""
    return ", ".join(f'<{url}>; rel="{rel}"' for rel, url in links.items() if url)


def page_links(asked: ListRequest, last: int) -> str:
    """Write the links of a page as the header has them."""
    page, start = asked.page, f"<{asked.url}?page="
    end = f"&per_page={asked.per_page}>; rel=" if asked.keep_per_page else ">; rel="
    link = f'{start}1{end}"first", {start}{last}{end}"last"'
    if page > 1:
        link += f', {start}{page - 1}{end}"prev"'
    return f'{link}, {start}{page + 1}{end}"next"' if page < last else link


class Reader:
    """One thread's connection for reading, and what it remembers of the desk while the desk stays as it is.

    SQLite tells whether any other connection, of this process or another, has committed since it was asked last. That costs
    2 microseconds, where a page of 50 tickets costs 200.
    """

    def __init__(self, path: Place) -> None:
        """Open the connection."""
        self.db = connect(path, READER)
        keep(self.db)
        self.tokens: dict[bytes, Token] = {}  # by SHA-256
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
    epoch: int = 0  # of the desk, in a list of changes


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


Parsers = Mapping[str, tuple[Callable[[str], Any], str]]  # what reads a field of a query, and what is said when it cannot
TIME_WANTED = "The {} field must be a duration such as 7d, or a UTC time such as 2025-12-04T11:30:16Z."


def read_filters(query: Mapping[str, str], parsers: Parsers, errors: dict[str, list[str]]) -> dict[str, Any]:
    """Read the fields of a query that are given, the others are None; what cannot be read is noted in `errors`."""
    found: dict[str, Any] = dict.fromkeys(parsers)
    for name, (read, message) in parsers.items():
        if query.get(name):
            try:
                found[name] = read(query[name])
            except (ValueError, KeyError):
                errors[name] = [message.format(name.replace("_", " "))]
    return found


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
    payload = f"{'n' if cursor.forward else 'p'}{cursor.key}" + (f"@{cursor.epoch}" if cursor.epoch else "")
    return base64.urlsafe_b64encode(f"{payload}.{cursor_check(payload, url)}".encode()).decode().rstrip("=")


def decode_cursor(text: str, url: str) -> Cursor | None:
    """Return the cursor that a text holds, or None unless `encode_cursor` would write this very text for this list."""
    try:
        payload = base64.b64decode(text + "=" * (-len(text) % 4), b"-_").decode("ascii").partition(".")[0]
    except ValueError:
        return None
    found = re.fullmatch(r"([np])([0-9]{1,18})(?:@([0-9]{1,18}))?", payload)
    if not found:
        return None
    cursor = Cursor(int(found[2]), found[1] == "n", int(found[3] or 0))
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


def cursor_list(
    data: bytes, url: str, per_page: int, link: tuple[str, str], previous: str | None, following: str | None
) -> ListBody:
    """Write a list as Laravel's cursorPaginate; `link` is what stands before and after a cursor in a URL."""
    prev_url, next_url = (text and f"{link[0]}{text}{link[1]}" for text in (previous, following))
    links = {"first": None, "last": None, "prev": prev_url, "next": next_url}
    meta = {"path": url, "per_page": per_page, "next_cursor": following, "prev_cursor": previous}
    return list_body(data, compact({"links": links, "meta": meta})[1:-1], cursor_links(links))


def next_cursor(url: str, sliced: Slice) -> str | None:
    """Return the cursor that goes on after a slice of a list, or None at the end of the list."""
    return encode_cursor(Cursor(sliced.last, True), url) if sliced.after else None


def render_list(asked: ListRequest, total: int, sliced: Slice) -> ListBody:
    """Write a slice of a list in its envelope, with page numbers or with cursors as it was asked for."""
    data = sliced.tickets.json or b""
    if asked.by_cursor:
        link = (f"{asked.url}?cursor=", f"&per_page={asked.per_page}" if asked.keep_per_page else "")
        previous = encode_cursor(Cursor(sliced.first, False), asked.url) if sliced.before else None
        return cursor_list(data, asked.url, asked.per_page, link, previous, next_cursor(asked.url, sliced))
    links = page_links(asked, max(1, -(-total // asked.per_page)))
    return list_body(data, page_json(asked, total, sliced), links, total)


NOTHING = Slice(Tickets(None, 0, 0, 0), 0, 0, False, False)


class Listing(NamedTuple):
    """How a list is read: tickets of a range of keys, and keys that are some places away from others."""

    number: int  # in list_blocks
    read: Callable[[int, int, int], tuple[Tickets, Bounds]]  # (lowest, highest, limit)
    find: Callable[[int, int], int | None]  # (lowest, skip): the key that stands so many places after the first from a key on
    back: Callable[[int, int], int | None]  # (key, places): the key that stands so many places before one in the list
    descending: bool = True


def open_listing(db: Connection) -> Listing:
    """Return how the open tickets are read, by their ids."""
    find, back = partial(find_open_ticket, db), partial(find_open_ticket_before, db)
    return Listing(OPEN_LIST, partial(list_open_tickets, db), find, back, descending=False)


def closed_listing(db: Connection) -> Listing:
    """Return how the closed tickets are read, by the numbers in which they were closed."""
    find = partial(find_closed_ticket, db)
    return Listing(CLOSED_LIST, partial(list_closed_tickets, db), find, lambda key, places: find(key + 1, places - 1))


def user_listing(db: Connection, user_id: int) -> Listing:
    """Return how the tickets of a user are read, by their numbers among them."""
    find = partial(find_user_ticket, db, user_id)
    return Listing(user_id, partial(list_user_tickets, db, user_id), find, lambda key, places: find(key + 1, places - 1))


def get_bounds(listing: Listing) -> Bounds:
    """Return how many tickets a list has, and its lowest and highest key."""
    return listing.read(1, 0, 0)[1]


def open_bounds(db: Connection) -> Bounds:
    """Return the bounds of the open tickets."""
    return get_bounds(open_listing(db))


def closed_bounds(db: Connection) -> Bounds:
    """Return the bounds of the closed tickets."""
    return get_bounds(closed_listing(db))


def find_key(db: Connection, listing: Listing, rank: int) -> int | None:
    """Return the key of the ticket before which `rank` others of the list have lower keys; the list has gaps.

    The sums of three levels of blocks lead to the 64 numbers that hold it, however long the list is.
    """
    is_open, parent, earlier = listing.number == OPEN_LIST, None, 0
    for level, bits in ((3, 18), (2, 12), (1, 6)):
        width, blocks, parent, tickets = 0 if is_open else 1 << bits, list_level(db, listing.number, level, parent), None, 0
        for block, missing in blocks:  # 64 at most, but for the highest level
            if block * width + earlier + tickets > rank:
                break
            parent, earlier, tickets = block, earlier + tickets, missing
        if parent is None:  # nothing is missing before it
            return rank - earlier + 1
        if width and rank - earlier - tickets >= (parent + 1) * width:  # nor between it and that block
            return rank - earlier - tickets + 1
    start = (parent or 0) * 64
    return listing.find(start if is_open else start + 1, rank - earlier - (0 if is_open else start))


def find_slice(db: Connection, listing: Listing, bounds: Bounds, asked: ListRequest) -> tuple[Slice, Bounds]:
    """Return a slice of a list, and the bounds when it was read. Where no key is missing, a page is a range of them."""
    (total, first, last), cursor, size = bounds, asked.cursor, asked.per_page
    offset = 0 if asked.by_cursor else (asked.page - 1) * size
    if offset >= total:
        return NOTHING, bounds
    lowest, highest = first, last
    if cursor and cursor.forward != listing.descending:
        lowest = cursor.key + 1
    elif cursor:
        highest = cursor.key - 1
    if cursor and not cursor.forward:
        edge = listing.back(cursor.key, size)
        lowest, highest = (lowest, edge or last) if listing.descending else (edge or first, highest)
    elif offset:
        rank = total - 1 - offset if listing.descending else offset
        key = first + rank if last - first + 1 == total else find_key(db, listing, rank) or 0
        lowest, highest = (first, key) if listing.descending else (key, last)
    tickets, then = listing.read(lowest, highest, size)
    if not tickets.size:
        return NOTHING, then
    lower, higher = tickets.lowest > first, tickets.highest < last
    if listing.descending:
        return Slice(tickets, tickets.highest, tickets.lowest, higher, lower), then
    return Slice(tickets, tickets.lowest, tickets.highest, lower, higher), then


def list_page(db: Connection, listing: Listing, bounds: Bounds, asked: ListRequest) -> bytes:
    """Return a slice of a list. Bounds of a moment ago may be given: they are checked."""
    sliced, then = find_slice(db, listing, bounds, asked)
    if then != bounds:
        with snapshot(db):
            bounds = get_bounds(listing)
            sliced, _ = find_slice(db, listing, bounds, asked)
    return render_list(asked, bounds[0], sliced)


def open_tickets_page(db: Connection, asked: ListRequest, bounds: Bounds | None = None) -> bytes:
    """Return a slice of the open tickets, oldest first."""
    return list_page(db, open_listing(db), bounds or open_bounds(db), asked)


def closed_tickets_page(db: Connection, asked: ListRequest, bounds: Bounds | None = None) -> bytes:
    """Return a slice of the closed tickets, most recently closed first."""
    return list_page(db, closed_listing(db), bounds or closed_bounds(db), asked)


def user_tickets_page(db: Connection, user_id: int, asked: ListRequest) -> bytes:
    """Return a slice of one user's tickets, newest first; raises NotFound."""
    customer, listing = find_customer(db, user_id), user_listing(db, user_id)
    total = customer["tickets_count"]
    bounds = (total, min(total, 1), total) if total == customer["last_number"] else get_bounds(listing)
    return list_page(db, listing, bounds, asked)


def customers_page(db: Connection, asked: ListRequest) -> bytes:
    """Return a page of the customers, most tickets first, or, by cursor, a slice of them in the order of their ids.

    What a page costs grows with its depth, a slice costs the same.
    """
    size, (key, forward, _) = asked.per_page, asked.cursor or Cursor(0, True)
    with snapshot(db):
        total = get_counter(db, "customers")
        offset = (asked.page - 1) * size
        if asked.by_cursor:
            rows = list_customers_by_id(db, key + 1, size) if forward else list_customers_before(db, key, size)[::-1]
        else:
            rows = list_customers(db, min(size, total - offset), offset) if offset < total else []
        first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (0, 0)
        before, after = bool(list_customers_before(db, first, 1)), bool(rows and list_customers_by_id(db, last + 1, 1))
    customers = to_json(list(map(dict, rows)))[1:-1]
    return render_list(asked, total, Slice(Tickets(customers, len(rows), 0, 0), first, last, before, after))


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
    customer = dict(find_customer(db, user_id))
    del customer["last_number"]
    return to_json({"data": customer})


def walk_list(listing: Listing, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield a list in pages, at most `limit` tickets of it; 0 is all. No statement is open between pages."""
    _, lowest, highest = get_bounds(listing)
    left = limit or MAX_ID
    while left and (page := listing.read(lowest, highest, min(left, MAX_PER_PAGE))[0]).size:
        yield parse_tickets(page)
        left -= page.size
        lowest, highest = (lowest, page.lowest - 1) if listing.descending else (page.highest + 1, highest)


def walk_all(db: Connection, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield all tickets in pages, in the order that they came, at most `limit`; 0 is all."""
    after, last, left = 0, newest_ticket(db)[0], limit or MAX_ID
    while left and (rows := list_matches(db, after + 1, last, TicketFilter(), min(left, MAX_PER_PAGE))):
        yield [json.loads(row["json"].decode(errors="replace")) for row in rows]
        after, left = rows[-1]["id"], left - len(rows)


def with_closing(db: Connection, pages: Iterable[Sequence[Mapping[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Yield pages of tickets with closed_at, as it is now."""
    for page in pages:
        rows = list_tickets_by_id(db, [ticket["id"] for ticket in page])
        found = {row["id"]: json.loads(row["json"].decode(errors="replace")) for row in rows}
        yield [found[ticket["id"]] for ticket in page]


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
        opened_last_hour = count_since(db, ALL_LIST, newest_ticket(db)[0], stats["total_tickets"], hour_ago)
        closed_last_hour = count_closed_since(db, hour_ago)
    open_id, opened_at, _ = oldest[0] if oldest else (None, None, None)
    return {
        **stats,
        "total_processed_tickets": closed,
        "oldest_open_id": open_id,
        "oldest_open_at": opened_at,
        "oldest_open_age": seconds_since(opened_at, now),
        "last_closed_at": closed_at,
        "last_closed_age": seconds_since(closed_at, now),
        "opened_last_hour": opened_last_hour,
        "closed_last_hour": closed_last_hour,
    }


def count_since(db: Connection, number: int, last: int, total: int, since: str) -> int:
    """Count the tickets of ALL_LIST or CLOSED_LIST from a time on: `total` tickets, with keys up to `last` in the order of it.

    A binary search, some twenty look-ups; where keys are missing, the sums of blocks tell how many there are before.
    """
    time_of, count = (find_created_at, count_arrived) if number == ALL_LIST else (find_closed_at, count_closed)
    before = bisect_left(range(1, last + 1), since, key=lambda key: time_of(db, key) or since)  # keys
    if total != last:
        part = before >> 6 << 6
        before = (
            part
            + count(db, part + 1, before + 1)
            + sum(
                sum_blocks(db, number, level, before >> above << 6, before >> bits)
                for level, bits, above in ((3, 18, 63), (2, 12, 18), (1, 6, 12))
            )
        )
    return total - before


def count_closed_since(db: Connection, since: str) -> int:
    """Count the tickets that were closed from a time on."""
    return count_since(db, CLOSED_LIST, get_counter(db, "closed_number"), count_tickets(db, CLOSED), since)


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
        errors["since"] = [TIME_WANTED.format("since")]
    start = since // MICROSECONDS // step * step
    if since > now:
        errors["since"] = ["The since field must not lie in the future."]
    elif now // MICROSECONDS - start >= most * step:
        errors["since"] = [f"The since field must lie less than {most} {bucket}s back."]
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
        closed_last_hour = count_closed_since(db, hour_ago)
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
# Room 12. Changes: what became of tickets: the search through all of them, the export, the log of events. Uses queries.
# ======================================================================================================================

SEARCH_SPAN, SEARCH_SPANS = 10_000, 5  # ids that one statement reads through, and such statements in a request: 50 ms at most


class SearchRequest(NamedTuple):
    """Which of all tickets are asked for, in the order of their ids, or in its reverse."""

    url: str  # without the query
    fields: dict[str, str]  # of the query, which links carry on and cursors are good for
    wanted: TicketFilter
    since: str  # created_at of the first
    descending: bool
    per_page: int
    keep_per_page: bool
    cursor: Cursor | None

    @property
    def scope(self) -> str:
        """What a cursor is good for: the list with these filters."""
        return f"{self.url}?{urlencode(self.fields)}"


def read_ticket_status(value: object) -> int:
    """Read a status as it is written in requests: Open, Closed, 1 or 2. Raises ValueError."""
    statuses: dict[object, int] = {"Open": OPEN, "Closed": CLOSED, OPEN: OPEN, CLOSED: CLOSED, "1": OPEN, "2": CLOSED}
    if isinstance(value, bool | list | dict | float) or value not in statuses:
        raise ValueError("no status")
    return statuses[value]


def read_search(text: str) -> str:
    """Read a text that a ticket may hold."""
    if "\0" in text or len(text) > 255:
        raise ValueError("no ticket holds it")
    return text


def parse_search_request(url: str, query: Mapping[str, str], now: int) -> SearchRequest:
    """Read filters, `sort`, `per_page` and `cursor`; raises InvalidFields."""
    since = (partial(read_moment, now=now), TIME_WANTED)
    parsers: Parsers = {
        "status": (read_ticket_status, "The selected status is invalid."),
        "user": (read_id, "The user field must be the id of a customer."),
        "created_since": since,
        "updated_since": since,
        "q": (read_search, "The q field must be a text of 1 to 255 characters, none of them NUL."),
        "sort": ({"id": False, "-id": True}.__getitem__, "The selected sort is invalid; give id or -id."),
    }
    errors: dict[str, list[str]] = {}
    found = read_filters(query, parsers, errors)
    fields = {name: query[name] for name in parsers if query.get(name)}
    per_page = read_positive(query, "per_page", PER_PAGE, MAX_PER_PAGE, errors)
    times = [format_time(max(0, found[name])) if found[name] else "" for name in ("created_since", "updated_since")]
    wanted = TicketFilter(found["status"], found["user"], times[1], found["q"] or "")
    asked = SearchRequest(url, fields, wanted, times[0], bool(found["sort"]), per_page, bool(query.get("per_page")), None)
    cursor = read_cursor(query, asked.scope, errors)
    if errors:
        raise InvalidFields(errors)
    return asked._replace(cursor=cursor)


def search(db: Connection, wanted: TicketFilter, ends: tuple[int, int], back: bool, size: int) -> tuple[list[Row], int | None]:
    """Return the first tickets wanted between two ids, or the last, and the id after which, or before which, there may be more.

    A desk holds millions of tickets, so a request reads through no more than SEARCH_SPANS spans.
    """
    (lowest, highest), rows = ends, list[Row]()
    for _ in range(SEARCH_SPANS):
        if back:
            start = max(lowest, highest - SEARCH_SPAN + 1)
            rows += list_matches_back(db, start, highest, wanted, size + 1 - len(rows))
            highest = start - 1
        else:
            end = min(highest, lowest + SEARCH_SPAN - 1)
            rows += list_matches(db, lowest, end, wanted, size + 1 - len(rows))
            lowest = end + 1
        if len(rows) > size:
            return rows[:size], rows[size - 1]["id"]
        if lowest > highest:
            return rows, None
    return rows, highest + 1 if back else lowest - 1


def search_page(db: Connection, asked: SearchRequest) -> ListBody:
    """Return a slice of all tickets that are not deleted."""
    cursor, last = asked.cursor, newest_ticket(db)[0]
    lowest = (
        1 + bisect_left(range(1, last + 1), asked.since, key=lambda key: find_created_at(db, key) or "") if asked.since else 1
    )
    ends, back = (lowest, last), asked.descending == (cursor is None or cursor.forward)
    if cursor:
        ends = (lowest, min(last, cursor.key - 1)) if back else (max(lowest, cursor.key + 1), last)
    rows, more = search(db, asked.wanted, ends, back, asked.per_page)
    near = None if cursor is None else rows[0]["id"] if rows else max(0, cursor.key + (-1 if back else 1))
    previous, following = near, more
    if cursor and not cursor.forward:
        rows, previous, following = rows[::-1], more, near
    before = None if previous is None else encode_cursor(Cursor(previous, False), asked.scope)
    after = None if following is None else encode_cursor(Cursor(following, True), asked.scope)
    fields = asked.fields | ({"per_page": str(asked.per_page)} if asked.keep_per_page else {})
    link = (f"{asked.url}?{urlencode(fields | {'cursor': ''})}", "")
    return cursor_list(b",".join(row["json"] for row in rows), asked.url, asked.per_page, link, before, after)


class FeedRequest(NamedTuple):
    """Which changes are asked for: those after a number, None for where the feed begins, or those since a time."""

    url: str
    per_page: int
    keep_per_page: bool
    after: int | None
    since: int | None  # microseconds
    epoch: int = 0  # of the cursor


def read_start_time(text: str, now: int) -> int:
    """Read Unix seconds, a UTC time, or a duration before now, as microseconds since 1970. Raises ValueError."""
    number = whole_number(text)
    moment = max(START_OF_TIME, read_moment(trim(text), now) if number is None else number * MICROSECONDS)
    if (number or 0) < 0 or moment > now:
        raise ValueError("out of range")
    return moment


def parse_feed_request(url: str, query: Mapping[str, str], now: int, by_time: bool) -> FeedRequest:
    """Read `cursor`, `per_page` and, for the export, `start_time`; raises InvalidFields."""
    errors: dict[str, list[str]] = {}
    per_page = read_positive(query, "per_page", PER_PAGE, MAX_PER_PAGE, errors)
    cursor, since = read_cursor(query, url, errors), None
    if by_time and query.get("start_time"):
        try:
            since = read_start_time(query["start_time"], now)
        except ValueError:
            kinds = "Unix seconds, a duration such as 7d, or a UTC time such as 2025-12-04T11:30:16Z, and not in the future"
            errors["start_time"] = [f"The start time field must be {kinds}."]
    if errors:
        raise InvalidFields(errors)
    after, epoch = (cursor.key, cursor.epoch) if cursor else (None, 0)
    return FeedRequest(url, per_page, bool(query.get("per_page")), after, None if cursor else since, epoch)


find_epoch: Callable[[Connection], int] = partial(get_counter, name="epoch")  # how often a snapshot was restored


def feed_page(asked: FeedRequest, data: bytes, count: int, last: int, end: int, epoch: int) -> ListBody:
    """Write a page of a feed that goes on: `last` is its last change, `end` the desk's. Its cursor never ends. Raises Gone."""
    if asked.after is not None and asked.epoch != epoch:
        raise Gone(
            "A snapshot was restored since this cursor was given out; empty your copy, and read the export from the start."
        )
    cursor, more = encode_cursor(Cursor(last, True, epoch), asked.url), last < end
    following = f"{asked.url}?cursor={cursor}" + (f"&per_page={asked.per_page}" if asked.keep_per_page else "")
    links = {"first": None, "last": None, "prev": None, "next": following if more else None}
    meta = {"path": asked.url, "per_page": asked.per_page, "count": count, "has_more": more, "end_of_stream": not more}
    return list_body(data, compact({"links": links, "meta": meta | {"after_cursor": cursor}})[1:-1], cursor_links(links))


def export_page(db: Connection, asked: FeedRequest) -> ListBody:
    """Return each ticket that has changed, as it is now, in the order of its latest change; deleted ones too. Raises Gone."""
    after = asked.after or 0
    with snapshot(db):
        epoch = find_epoch(db)
        if asked.since is not None:
            after = find_change_before(db, format_time(asked.since))
        if after > find_last_change(db):
            raise Gone("The cursor lies after all changes of this desk; read the export anew.")
        data, count, last, end = list_changed_tickets(db, after, asked.per_page)
    return feed_page(asked, data or b"", count, last, end, epoch)


class Event(NamedTuple):
    """A change as the log of changes tells it: `data` is the ticket as it is now, in JSON, `comment` what was added to it."""

    id: int
    type: str
    at: str
    data: bytes
    comment: bytes | None = None

    def json(self) -> bytes:
        """Return the event as a JSON object."""
        more = b"" if self.comment is None else b',"comment":%b' % self.comment
        return b'{"id":%d,"type":"%b","at":"%b","data":%b%b}' % (self.id, self.type.encode(), self.at.encode(), self.data, more)


def event_ends(db: Connection) -> tuple[int, int]:
    """Return the change before the first event that is kept, and the last change; raises nothing for an empty log."""
    first, last = find_event_ends(db)[0], find_last_change(db)
    return (max(first - 1, find_first_kept(db, last - EVENTS_KEPT)) if first else last), last


def row_changes(row: Row) -> Iterator[tuple[int, str, int, int | None]]:
    """Yield number, type, ticket and time of the changes that a row of the log stands for; None is the ticket's own."""
    at = parse_time(row["at"])
    for i, entry in enumerate(json.loads(row["ticket_ids"])):
        kind, ticket_id, moment = row["type"], entry, at + i
        if kind == MIXED:
            kind, ticket_id, moment = (CREATED, entry, 0) if isinstance(entry, int) else (CLOSING, entry[0], at + entry[1])
        yield row["first_change"] + i, kind, ticket_id, None if kind == CREATED else moment


def read_events(db: Connection, after: int, limit: int) -> list[Event]:
    """Return the first events after a change, in a snapshot; those that are kept no more are left out."""
    with snapshot(db):
        after = max(after, event_ends(db)[0])
        rows = list_event_rows(db, after, limit)
        numbered = ((change, row["comment_id"]) for row in rows for change in row_changes(row) if change[0] > after)
        changes = list(islice(numbered, limit))
        tickets = {row["id"]: row for row in list_tickets_by_id(db, {ticket_id for (_, _, ticket_id, _), _ in changes})}
        comments = {row["id"]: row["json"] for row in list_comments_by_id(db, [comment_id or 0 for _, comment_id in changes])}
    return [
        Event(
            number,
            kind,
            tickets[ticket_id]["created_at"] if at is None else format_time(at),
            tickets[ticket_id]["json"],
            comments.get(comment_id),
        )
        for (number, kind, ticket_id, at), comment_id in changes
    ]


def events_page(db: Connection, asked: FeedRequest) -> ListBody:
    """Return the events after a cursor, or from the oldest that is kept on. Raises Gone for a cursor before that."""
    with snapshot(db):
        epoch, (oldest, end) = find_epoch(db), event_ends(db)
        after = oldest if asked.after is None else asked.after
        if not oldest <= after <= end:
            raise Gone("The events after this cursor are not kept; read the export, then come back without a cursor.")
        events = read_events(db, after, asked.per_page + 1)  # one more, to know whether there is
    page = events[: asked.per_page]
    data = b",".join(event.json() for event in page)
    return feed_page(asked, data, len(page), page[-1].id if len(events) > len(page) else end, end, epoch)


def comments_page(db: Connection, ticket_id: int, asked: ListRequest) -> bytes:
    """Return a slice of the comments to a ticket, oldest first. Raises NotFound."""
    get_ticket(db, ticket_id)
    read = partial(list_comments, db, ticket_id)
    listing = Listing(ticket_id, read, lambda key, skip: key + skip, lambda key, places: max(1, key - places), descending=False)
    return list_page(db, listing, get_bounds(listing), asked)


def comment_resource(db: Connection, comment_id: int) -> bytes:
    """Return one comment in its envelope."""
    return b'{"data":%b}' % list_comments_by_id(db, [comment_id])[0]["json"]


# ======================================================================================================================
# Room 13. Keys and limits: tokens, and how many requests each may make. Opens transactions.
# ======================================================================================================================

# A token of Laravel Sanctum: its row's number, which says nothing here, | and the secret.
TOKEN_PATTERN = re.compile(r"[0-9]{1,20}(?:\||%7[Cc])[0-9A-Za-z]{40,}|tkt_[0-9A-Za-z]{46}")
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
    """Tell whether a text has the shape of a token, with ours the checksum included."""
    return bool(TOKEN_PATTERN.fullmatch(text)) and ("|" in text or token_checksum(text[:-6]) == text[-6:])


def new_token_text() -> str:
    """Return a new secret: `tkt_`, 40 random letters and digits (238 bits), and their checksum."""
    body = "tkt_" + "".join(secrets.choice(BASE62) for _ in range(40))
    return body + token_checksum(body)


def hash_token(text: str) -> str:
    """Return the SHA-256 of a well-formed token's secret, which is all that the database knows of it."""
    return hashlib.sha256(text.rpartition("|")[2].encode()).hexdigest()


def ensure_owner(db: Connection, email: str, now: int, name: str = "") -> int:
    """Return the id of the owner of tokens with an address, who is created when unknown."""
    if known := find_owner(db, email):
        return known
    user_id = max(FIRST_OWNER_ID, (find_last_user_id(db, 2 * FIRST_OWNER_ID) or 0) + 1)
    name = name or ("Operator" if email == OPERATOR_EMAIL else email.partition("@")[0])
    insert_users(db, [(user_id, name, email, format_time(now))])
    return user_id


def create_token(db: Connection, email: str, name: str, abilities: Sequence[str], expires: int, now: int) -> dict[str, Any]:
    """Make a token that works for `expires` seconds, 0 for ever; return its record, with the secret that is shown once."""
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
    """Return the token behind a secret, or None when it is wrong, expired or revoked."""
    # The checksum refuses random guesses without a query. The index finds a hash, not the secret, so its timing tells nothing
    # of use; the comparison is in constant time all the same. A token that was found is remembered while the desk stays as it
    # is: a revocation changes the desk.
    key = hashlib.sha256(text.encode()).digest()
    token = reader.tokens.get(key)
    if token is None:
        if not is_well_formed(text):
            return None
        digest = hash_token(text)
        row = find_token(reader.db, digest)
        if row is None or not hmac.compare_digest(row["token"], digest):
            return None
        abilities = frozenset(json.loads(row["abilities"]))
        token = Token(row["id"], row["user_id"], abilities, row["last_used_at"], row["expires_at"])
        if len(reader.tokens) < MAX_CACHED_TOKENS:
            reader.tokens[key] = token
    if token.expires_at is not None and token.expires_at <= format_time(now):
        return None
    return token


def token_resource(db: Connection, token_id: int) -> bytes:
    """Return what a token may do and whose it is, in an envelope. Raises NotFound when it was revoked at this moment."""
    row = find_token_by_id(db, token_id)
    if row is None:
        raise NotFound("This token is revoked.")
    token = {name: row[name] for name in ("id", "name", "abilities", "expires_at")}
    user = {"id": row["user_id"], "name": row["user_name"], "email": row["email"]}
    return to_json({"data": token | {"abilities": json.loads(row["abilities"]), "user": user}})


def explain_refusal(db: Connection, text: str) -> str:
    """Say for the operator why a token is refused; whoever sent it is not told."""
    if not text or not is_well_formed(text):
        return "malformed" if text else "missing"
    return "expired" if find_token(db, hash_token(text)) else "unknown"


def note_token_use(reader: Reader, path: Place, token: Token, now: int) -> None:
    """Write last_used_at, at most once a minute; while the desk is locked leave it to a later request."""
    is_noted = token.last_used_at is not None and token.last_used_at > format_time(now - MINUTE_MICROSECONDS)
    if is_noted or (isinstance(path, Path) and wal_bytes(path) > LONG_WAL):
        return
    with suppress(sqlite3.OperationalError, PostgresError):
        with borrowed(reader.db, path, NOTER) as db, transaction(db):
            touch_token(db, token.id, format_time(now))
        for key, known in reader.tokens.items():  # in PostgreSQL this is no change of the desk that tells readers of itself
            if known.id == token.id:
                reader.tokens[key] = known._replace(last_used_at=format_time(now))


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
    """A bucket (https://en.wikipedia.org/wiki/Token_bucket) for each key: `size` permissions, refilled within a minute."""

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
    with suppress(ValueError):
        ip = ipaddress.IPv6Address(address.partition("%")[0])  # a zone makes no other source
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return address


# ======================================================================================================================
# Room 14. Audit: what is written down of each request, redacted; reads it back and prunes it. Opens transactions.
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
TOKEN_START = re.compile(r"(?:tkt_|[0-9]{1,20}(?:\||%7[Cc]))[0-9A-Za-z]*\Z")


def redact(value: Any) -> Any:
    """Return a value without secrets: what secret keys hold, and texts shaped like our tokens, at any depth."""
    # Other scalars become texts. Of a text, a list or an object no more is looked at than the log can hold.
    if isinstance(value, str):
        return cut_text(value, MAX_AUDIT_BYTES)
    if isinstance(value, dict):
        entries = islice(value.items(), MAX_AUDIT_BYTES)
        return {redact(key): REDACTED if SECRET_KEY.search(key) else redact(inner) for key, inner in entries}
    if isinstance(value, list):
        return list(map(redact, islice(value, MAX_AUDIT_BYTES)))
    return cut_text(compact(value), MAX_AUDIT_BYTES)


def redact_text(text: str) -> str:
    """Replace everything in a text that is shaped like one of our tokens."""
    return TOKEN_PATTERN.sub(REDACTED, text) if "tkt_" in text or "|" in text or "%7" in text else text


def cut_text(text: str, limit: int) -> str:
    """Return a redacted text, of a long one about `limit` characters, with no token in half, at the cost of those alone."""
    if len(text) <= limit + TOKEN_LENGTH:
        return redact_text(text)
    return TOKEN_START.sub(REDACTED, redact_text(text[: limit + TOKEN_LENGTH]))


@lru_cache(maxsize=64)
def audit_text(text: str, limit: int) -> str:
    """Return a text that a client chose as the audit log keeps it."""
    return escape(cut_text(text, limit))[:limit]


def audit_payload(value: Any) -> str | None:
    """Write a query or body as the audit log keeps it: a JSON object of at most MAX_AUDIT_BYTES, or None."""
    if not value:
        return None
    try:
        text = compact(redact(value if isinstance(value, dict) else {"body": value}))
    except RecursionError:
        return '{"unreadable":"nested too deeply"}'
    if len(text) <= MAX_AUDIT_BYTES and text.isascii() and text.isprintable():
        return text
    text = text.encode(errors="replace").decode()  # JSON may hold half a surrogate pair, which SQLite cannot keep
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
    """Read a request body for the audit log; one that cannot be read is described, as its secrets cannot be found."""
    # JSON is recognised by its first character too: curl -d sends it as a form.
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
    closing = ""
    for bracket in re.findall(r"[\[\]{}]", text):
        closing = {"[": "]", "{": "}"}[bracket] + closing if bracket in "[{" else closing[1:]
    return closing


def parse_form(text: str) -> dict[str, Any]:
    """Read the fields of a form or query for the audit log: of a long one the first alone, said to be truncated."""
    fields = parse_qsl(text[:CUT_AUDIT], keep_blank_values=True)
    if len(text) <= CUT_AUDIT or not fields:
        return dict(fields)
    fields[-1] = (TOKEN_START.sub(REDACTED, fields[-1][0]), TOKEN_START.sub(REDACTED, fields[-1][1]))
    return {"truncated": dict(fields)}


# What one row can be at fault for; all else lies with the file.
ROW_FAULTS = (RowFault, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError, OverflowError, ValueError)


# A commit costs more than a row. A server that answers several requests before it sends the answers therefore sets `grouped`:
# rows wait until it calls `commit`. Otherwise each row is committed at once. While the file cannot be written (it is locked,
# the disk is full), answers go on and up to MAX_WAITING_AUDITS rows wait in memory.
class AuditLog:
    """The audit log: one connection that all threads share under a lock."""

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
        """Delete some of the rows from before a time, the oldest first; return how many. Raises sqlite3.Error."""
        with self._lock, without_waiting(self._db):  # as requests wait for it
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
    """Read the last AUDIT_SPAN ids below one: return the newest rows wanted, and below which id to go on, 0 at the end."""
    # The log may hold millions of rows, so no statement reads more than a span. As the clock may have been set back, the search
    # ends only after a whole span of rows that are too old.
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
    parsers: Parsers = {
        "user": (read_user, "The user field must be a user's id or e-mail address."),
        "token": (read_id, "The token field must be the id of a token."),
        "status": (read_status, "The status field must be an HTTP status such as 404, or 4xx."),
        "path": (read_path_text, "The path field must be a text of at most 255 characters."),
        "since": (partial(read_since, now=now), TIME_WANTED.replace("7d", "24h")),
    }
    query = {name: trim(text) for name, text in query.items()}  # as Laravel does
    errors: dict[str, list[str]] = {}
    filters = read_filters(query, parsers, errors)
    per_page = read_positive(query, "per_page", PER_PAGE, MAX_PER_PAGE, errors)
    cursor = read_cursor(query, url, errors)
    if errors:
        raise InvalidFields(errors)
    if isinstance(filters["user"], str):
        filters["user"] = find_owner(desk, filters["user"])
        if not filters["user"]:
            raise InvalidFields({"user": ["The selected user is invalid."]})
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
    data = to_json([audit_resource(row) for row in rows])[1:-1]
    return cursor_list(data, url, asked.per_page, link, previous, following)


def count_old_audits(db: Connection, before: str) -> int:
    """Estimate how many rows are from before a time, by binary search; exact where times grow with the ids."""
    first, last = find_audit_from(db, 0), find_last_audit_id(db, MAX_ID)
    if first is None or last is None:
        return 0
    later = {"created_at": before}  # past the end
    ids = range(first["id"], last + 1)
    return bisect_left(ids, before, key=lambda audit_id: (find_audit_from(db, audit_id) or later)["created_at"])


def prune_audits(db: Connection, before: str, limit: int) -> int:
    """Delete some of the rows from before a time, the lowest ids first; return how many, 0 at the end of the work."""
    # If the clock was wrong, younger rows may lie among them: they stay, and the work ends where AUDIT_LOOK of them come first.
    with transaction(db):
        return delete_old_audits(db, before, limit, AUDIT_LOOK)


# ======================================================================================================================
# Room 15. Writes: the thread that writes for requests, and what an answer may wait for or go on with. Opens transactions.
# ======================================================================================================================

WRITE_SECONDS = 4.75  # for a write to get the desk's lock, from its arrival: its client has an answer within 5
POLL_SECONDS = 0.01  # between two tries to get it; SQLite's own pauses are up to ten times as long
GROUP = 100  # writes in one transaction
MAX_UNREAD = 64 * 1024  # bytes that a client may leave of a stream
QUEUED = SCHEDULED._replace(seconds=5.0, views=True)


class Parked(BaseException):  # not an Exception: what catches those lets it pass
    """Leaves the app for a request that waits: it is asked again when the future given is done, and never if there is none."""


class Reset(BaseException):
    """Leaves the app for a request that is done, but whose client gets no answer: its connection is reset."""


@dataclass(eq=False)
class Stream:
    """An answer that goes on: what is sent, by any thread, goes out as it comes, until one of both sides ends it.

    A client that leaves more than MAX_UNREAD bytes is cut off; who sends much looks at `unread`.
    """

    closed: bool = False
    ends: bool = False  # by itself, soon: a server that stops waits for it
    wake: Callable[[], object] = lambda: None  # set by the server, with its connection
    connection: Any = None
    _waiting: deque[bytes] = field(default_factory=deque)

    @property
    def gone(self) -> bool:
        """Whether the client has left, or was cut off."""
        return bool(self.connection) and not self.connection.connected

    @property
    def unread(self) -> int:
        """How many bytes the client has not taken."""
        return sum(map(len, tuple(self._waiting))) + (self.connection.total_outbufs_len if self.connection else 0)

    def send(self, data: bytes) -> None:
        """Send more."""
        if not (self.closed or self.gone):
            self._waiting.append(data)
            self.wake()

    def close(self) -> None:
        """End the answer after what was sent."""
        self.closed = True
        self.wake()

    def read(self, size: int = -1) -> bytes:
        """Take all that waits to be sent; for WSGI it is a file."""
        return b"".join(self._waiting.popleft() for _ in range(len(self._waiting)))


Soon = Callable[[Callable[[], object]], object]
Operation = Callable[[Connection], Any]


@dataclass(frozen=True)
class Joint:
    """An operation that is done in one go with those beside it that are of its kind."""

    do: Callable[[Connection, Sequence[Any]], Sequence[Any]]  # returns as many values as it is given
    given: Any

    def __call__(self, db: Connection) -> Any:
        """Do it alone."""
        return self.do(db, [self.given])[0]


def do_all(db: Connection, operations: Iterable[Operation]) -> list[Any]:
    """Do operations in their order; return their values."""
    values = list[Any]()
    for do, some in groupby(operations, lambda operation: getattr(operation, "do", None)):
        alike: list[Any] = list(some)
        values += do(db, [each.given for each in alike]) if do else [each(db) for each in alike]
    return values


class Write(NamedTuple):
    """An operation that waits for its turn, until a moment (monotonic seconds), and what becomes of it."""

    operation: Operation
    until: float
    future: Future[Any]


@dataclass(eq=False)
class Writer:
    """Does the writes of requests in a thread of its own: all that wait in one transaction, as the commit costs most."""

    place: Place
    clock: Clock
    _waiting: deque[Write] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _alone: int = 0  # of those that wait first, how many are to be done each by itself
    _ready: bool = False
    _closing: bool = False
    _thread: threading.Thread | None = None  # these two are made for the first write
    _db: Connection | None = None

    def run(self, operation: Operation) -> Any:
        """Do an operation at once, for who has no event loop."""
        with closing(connect(self.place, QUEUED)) as db, transaction(db):
            return operation(db)

    def submit(self, operation: Operation, soon: Soon = lambda call: call()) -> Future[Any]:
        """Do an operation as part of a transaction; the future is done when that is committed or has failed.

        It is done again, by itself, when another one of the same transaction fails. `soon` calls what it is given once all that
        came together is submitted, as the commit costs most.
        """
        write = Write(operation, self.clock.monotonic() + WRITE_SECONDS, Future())
        with self._changed:
            if self._closing:
                write.future.set_exception(DeskBusy("nothing more is written: the server stops"))
                return write.future
            self._waiting.append(write)
            if not self._thread:
                self._thread = threading.Thread(target=self._loop, name="writer", daemon=True)
                self._thread.start()
        soon(self._wake)
        return write.future

    def _wake(self) -> None:
        """Have the thread look for what waits."""
        with self._changed:
            self._ready = True
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Finish what waits, for so long, and take no more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(max(0.0, seconds))

    def _loop(self) -> None:
        """Write what comes, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._closing)
                self._ready = bool(self._waiting)
            if self._waiting:
                self._turn()
            elif self._closing:
                break
        if self._db:
            self._db.close()

    def _turn(self) -> None:
        """Try to do what waits as one transaction."""
        waiting, group, values = self._waiting, list[Write](), list[Any]()  # values: once all are done
        if waiting[0].until <= self.clock.monotonic():
            busy = f"{self.place} could not be written for {WRITE_SECONDS:g} s: others write to it"
            waiting.popleft().future.set_exception(DeskBusy(busy))
            return
        try:
            if not self._db:
                # SQLite has who comes by at the right time take the lock, PostgreSQL who stands in line.
                self._db = connect(self.place, QUEUED._replace(wait_ms=0 if isinstance(self.place, Path) else 250))
                keep(self._db)
            with transaction(self._db):
                group += (waiting.popleft() for _ in range(1 if self._alone else min(GROUP, len(waiting))))
                values = do_all(self._db, [write.operation for write in group])
            tell = [partial(write.future.set_result, value) for write, value in zip(group, values, strict=True)]
        except BaseException as error:  # whatever it is, nobody may wait in vain
            if not group and isinstance(error, FAILURES) and isinstance(explain_failure(error, self.place), DeskBusy):
                time.sleep(POLL_SECONDS)
                return
            if not values and len(group) > 1:  # one has failed, so nothing is committed: which it is will show
                waiting.extendleft(reversed(group))
                self._alone = len(group)
                return
            group = group or [waiting.popleft() for _ in range(len(waiting))]
            tell = [partial(write.future.set_exception, error) for write in group]
        self._alone = max(0, self._alone - len(group))
        for each in tell:
            each()


# What a client asks to be written ------------------------------------------------------------------

MAX_SUBJECT, MAX_CONTENT, MAX_KEY = 255, 10_000, 255  # characters
KEYS_KEPT = DAY  # seconds that an answer is kept for who asks again with its Idempotency-Key
FORM = "application/x-www-form-urlencoded"


class Posted(NamedTuple):
    """A write as a request asks for it: `key` is its Idempotency-Key, "" for none, `route` its method and path."""

    fields: dict[str, Any]
    digest: str  # SHA-256 of the body, "" without a key
    key: str
    if_match: str
    route: str
    ids: Mapping[str, int]  # in the path
    token: Token
    now: int  # the real time
    at: int = 0  # the time of the desk, once the write has its turn


class Written(NamedTuple):
    """What is answered to a write."""

    status: int
    body: bytes = b""
    location: str | None = None
    replayed: bool = False


def unique_fields(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return fields by name; raises BadRequest for one that is given twice, as others may read the other of them."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise BadRequest(f"The request body has the field {cut_text(escape(name), 60)} twice.")
        fields[name] = value
    return fields


def nest_fields(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the fields of a form as PHP does: `user[name]` is the name in user, `events[]` or `events[0]` one of events."""
    plain: list[tuple[str, Any]] = []
    inner: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, text in pairs:
        found = re.fullmatch(r"([^\[]+)\[([^\]]*)\]", name)
        (inner[found[1]] if found else plain).append((found[2] if found else name, text))
    for name, items in inner.items():
        is_list = all(re.fullmatch("[0-9]*", key) for key, _ in items)
        plain.append((name, [text for _, text in items] if is_list else unique_fields(items)))
    return unique_fields(plain)


@lru_cache(maxsize=64)
def media_type(text: str) -> str:
    """Return the media type of a Content-Type field, without parameters."""
    return text.partition(";")[0].strip().lower()


@lru_cache(maxsize=64)
def check_type(content_type: str) -> None:
    """Raise UnknownType for a body that is not read; without a type it is JSON."""
    if not re.fullmatch(rf"|application/([^ /]+\+)?json|{FORM}", media_type(content_type)):
        raise UnknownType(f"The body must be application/json or {FORM}.")


def read_float(text: str) -> float:
    """Read a number of JSON, in which 7.0 is as whole as 7 (JSON Schema draft 2020-12, section 4.2.3)."""
    number = float(text)
    return int(number) if number.is_integer() else number


def read_integer(text: str) -> int:
    """Read an integer of JSON; one of over a hundred digits is too large for anything, whichever it is."""
    return int(text[:100])


read_json = json.JSONDecoder(
    object_pairs_hook=unique_fields, parse_constant=int, parse_float=read_float, parse_int=read_integer
).decode


def read_fields(raw: bytes, content_type: str) -> dict[str, Any]:
    """Read a JSON object, or a form. Raises BadRequest."""
    wanted = "a JSON object"
    try:
        text = raw.decode()
        if media_type(content_type) != FORM or text.lstrip().startswith("{"):  # curl -d calls everything a form
            value = read_json(text)
        else:
            wanted = "a form in UTF-8"
            value = nest_fields(parse_qsl(text, keep_blank_values=True, errors="strict"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest(f"The request body must be {wanted}.")
    return value


def read_key(text: str) -> str:
    """Read an Idempotency-Key, bare or as a quoted string (RFC 8941, section 3.3.3). Raises BadRequest."""
    quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if not re.fullmatch(rf"[ -~]{{1,{MAX_KEY}}}", key):
        raise BadRequest(f"The Idempotency-Key header must be 1 to {MAX_KEY} printable characters.")
    return key


def check_text(value: object, name: str, longest: int, errors: dict[str, list[str]]) -> str:
    """Return a text without the space around it; what is wrong with it is noted in `errors`."""
    text, wrong = trim(value) if isinstance(value, str) else "", ""
    if not text:
        wrong = "is required" if value is None or isinstance(value, str) else "must be a string"
    elif "\0" in text or (not text.isascii() and re.search("[\ud800-\udfff]", text)):
        wrong = "must not hold NUL or half of a surrogate pair"
    elif len(text) > longest:
        wrong = f"must not be greater than {longest} characters"
    if wrong:
        errors[name] = [f"The {name.replace('_', ' ')} field {wrong}."]
    return text


def check_author(db: Connection, fields: Mapping[str, Any], errors: dict[str, list[str]]) -> Author:
    """Return the id of a customer, or the name and address of one; what is wrong is noted in `errors`."""
    user_id, user = fields.get("user_id"), fields.get("user")
    if user_id is not None:
        number = whole_number(user_id) if isinstance(user_id, str) else user_id
        if not isinstance(number, int) or isinstance(number, bool):
            errors["user_id"] = ["The user id field must be an integer."]
        elif not 0 < number < FIRST_OWNER_ID or find_user(db, number) is None:
            errors["user_id"] = ["The selected user id is invalid."]
        else:
            return number
    elif user is None or not isinstance(user, dict):
        words = "is required when user id is not present" if user is None else "must be an array"
        errors["user"] = [f"The user field {words}."]
    else:
        name = check_text(user.get("name"), "user.name", MAX_SUBJECT, errors)
        email = check_text(user.get("email"), "user.email", MAX_SUBJECT, errors)
        try:
            return name, read_email(email)
        except ValueError:
            errors.setdefault("user.email", ["The user.email field must be a valid email address."])
    return 0


def check_new_ticket(db: Connection, posted: Posted) -> tuple[Author, str, str, int]:
    """Return a ticket to be as `create_tickets` takes it. Raises InvalidFields."""
    errors: dict[str, list[str]] = {}
    subject = check_text(posted.fields.get("subject"), "subject", MAX_SUBJECT, errors)
    content = check_text(posted.fields.get("content"), "content", MAX_CONTENT, errors)
    author = check_author(db, posted.fields, errors)
    if errors:
        raise InvalidFields(errors)
    return author, subject, content, posted.at


def write_new_ticket(db: Connection, posted: Posted, checked: Any) -> Written:
    """Create a ticket."""
    ticket_id = create_tickets(db, [checked])[0]
    return Written(201, ticket_resource(db, ticket_id), f"/api/tickets/{ticket_id}")


def write_new_tickets(db: Connection, posted: Sequence[Posted]) -> list[Written]:
    """Create tickets that came together, which costs half of as many by themselves. Raises InvalidFields."""
    at = desk_now(db, posted[0].now)
    ids = create_tickets(db, [check_new_ticket(db, each._replace(at=at)) for each in posted])
    return [Written(201, ticket_resource(db, ticket_id), f"/api/tickets/{ticket_id}") for ticket_id in ids]


def check_ticket(db: Connection, posted: Posted) -> None:
    """Find a ticket in the state that If-Match names (RFC 9110, section 13.1.1). Raises NotFound and PreconditionFailed."""
    etag = make_answer(ticket_resource(db, posted.ids["ticket_id"])).etag
    if posted.if_match.strip(" \t") != "*" and etag not in [tag.strip(" \t") for tag in posted.if_match.split(",")]:
        raise PreconditionFailed("The ticket has changed; get it again, and send its ETag in If-Match.")


def check_changes(db: Connection, posted: Posted) -> dict[str, Any]:
    """Return what is to be changed of a ticket. Raises InvalidFields, too."""
    check_ticket(db, posted)
    given = {name: value for name, value in posted.fields.items() if value is not None}
    errors: dict[str, list[str]] = {}
    limits = {"subject": MAX_SUBJECT, "content": MAX_CONTENT}
    changes: dict[str, Any] = {name: check_text(given[name], name, limits[name], errors) for name in limits if name in given}
    if "status" in given:
        try:
            changes["status"] = read_ticket_status(given["status"])
        except ValueError:
            errors["status"] = ["The selected status is invalid."]
    if errors:
        raise InvalidFields(errors)
    return changes


def write_changes(db: Connection, posted: Posted, checked: Any) -> Written:
    """Change a ticket."""
    update_ticket(db, posted.ids["ticket_id"], checked, posted.at)
    return Written(200, ticket_resource(db, posted.ids["ticket_id"]))


def write_deletion(db: Connection, posted: Posted, checked: Any) -> Written:
    """Delete a ticket."""
    delete_ticket(db, posted.ids["ticket_id"], posted.at)
    return Written(204)


def check_comment(db: Connection, posted: Posted) -> str:
    """Return the text of a comment to be. Raises NotFound and InvalidFields."""
    get_ticket(db, posted.ids["ticket_id"])
    errors: dict[str, list[str]] = {}
    content = check_text(posted.fields.get("content"), "content", MAX_CONTENT, errors)
    if errors:
        raise InvalidFields(errors)
    return content


def write_comment(db: Connection, posted: Posted, checked: Any) -> Written:
    """Add a comment to a ticket."""
    return Written(
        201, comment_resource(db, add_comment(db, posted.ids["ticket_id"], posted.token.user_id, checked, posted.at))
    )


def find_replay(db: Connection, posted: Posted) -> Written | None:
    """Return what was answered to the same request, or None. Raises InvalidFields for another one with its key."""
    kept = find_kept_answer(db, posted.token.id, posted.route, posted.key) if posted.key else None
    if kept is None or kept["created_at"] <= format_time(posted.now - KEYS_KEPT * MICROSECONDS):
        return None
    if kept["body_digest"] != posted.digest:
        raise InvalidFields({"Idempotency-Key": ["The Idempotency-Key header was sent before with another body."]})
    return Written(kept["status"], kept["body"].encode(), kept["location"], replayed=True)


def write_once(
    db: Connection, posted: Posted, check: Callable[..., Any], write: Callable[[Connection, Posted, Any], Written]
) -> Written:
    """Do a write, and keep its answer in the same transaction, or return the one that was kept."""
    if kept := find_replay(db, posted):
        return kept
    posted = posted._replace(at=desk_now(db, posted.now))
    done = write(db, posted, check(db, posted))
    if posted.key:
        given = {"token_id": posted.token.id, "route": posted.route, "key": posted.key, "body_digest": posted.digest}
        answer = {"status": done.status, "body": done.body.decode(), "location": done.location}
        delete_kept_answers(db, format_time(posted.now - KEYS_KEPT * MICROSECONDS), 10)  # more than come, so they get fewer
        keep_answer(db, given | answer | {"created_at": format_time(posted.now)})
    return done


# Who follows the changes ---------------------------------------------------------------------------

FOLLOW_SECONDS = 0.25  # between two looks for changes while there are streams
BEAT_SECONDS = 15.0  # between two comments in a stream, at which its token is looked at too
MAX_STREAMS, MAX_USER_STREAMS = 100, 20
STREAM_BATCH = 16 * 1024  # bytes that are given to a stream at once, and that it may have unread to be given more
RESET = b'id:\nevent: reset\ndata: {"message":"A snapshot was restored; read the desk anew."}\n\n'


@dataclass(eq=False)
class Follower:
    """A stream of events: whose it is, the last event it was given, and when it was last heard to read (monotonic seconds)."""

    stream: Stream
    token: Token
    after: int
    epoch: int
    beaten: float
    drained: float


@dataclass(eq=False)
class Broadcast:
    """Gives events to the streams that follow them, from a thread that looks for changes only while there are any."""

    place: Place
    clock: Clock
    _followers: list[Follower] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _thread: threading.Thread | None = None  # made for the first stream

    def follow(self, token: Token, after: int, epoch: int = 0) -> Stream | None:
        """Return a stream of the events after a change, None when there are too many."""
        stream, tick = Stream(), self.clock.monotonic()
        stream.send(b"retry: 3000\nid: %d\n\n" % after)  # to go on from, should it be cut before the first event
        with self._changed:
            mine = sum(follower.token.user_id == token.user_id for follower in self._followers)
            if len(self._followers) >= MAX_STREAMS or mine >= MAX_USER_STREAMS or self._closing:
                return None
            self._followers.append(Follower(stream, token, after, epoch, tick, tick))
            self._changed.notify()
            if not self._thread:
                self._thread = threading.Thread(target=self._loop, name="streams", daemon=True)
                self._thread.start()
        return stream

    def close(self, seconds: float) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(max(0.0, seconds))

    def _loop(self) -> None:
        """Look for changes until the end; a database that fails now is asked again."""
        reader: Reader | None = None
        behind = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._followers or self._closing)
                if self._closing or self._changed.wait_for(lambda: self._closing, POLL_SECONDS if behind else FOLLOW_SECONDS):
                    break
            try:
                reader = reader or Reader(self.place)
                with snapshot(reader.db):
                    behind = self.turn(reader, self.clock.monotonic(), format_time(self.clock.wall()))
            except (TicketApiError, *FAILURES) as error:
                behind = False
                log.debug("streams wait: %s", error)
        if reader:
            reader.db.close()

    def turn(self, reader: Reader, tick: float, now: str) -> bool:
        """Give each stream what it lacks, end those whose client or token is gone; tell whether one that reads lacks more."""
        reader.refresh()
        last, epoch = reader.recall(find_last_change), reader.recall(find_epoch)
        behind, batches = False, dict[int, tuple[bytes, int]]()
        for follower in list(self._followers):
            stream = follower.stream
            if reads := stream.unread <= STREAM_BATCH:
                follower.drained = tick
            elif tick - follower.drained > BEAT_SECONDS:
                stream.close()
            if tick - follower.beaten >= BEAT_SECONDS:
                follower.beaten = tick
                known = find_token_by_id(reader.db, follower.token.id)
                if known is None or (known["expires_at"] or "9") <= now:
                    stream.close()
                stream.send(b": so that you know\n\n")
            if follower.epoch != epoch:
                stream.send(RESET)
                stream.close()
            if stream.closed or stream.gone:
                with self._changed:
                    self._followers.remove(follower)
            elif follower.after < last and reads:
                if follower.after not in batches:
                    batches[follower.after] = event_lines(reader.db, follower.after)
                data, follower.after = batches[follower.after]
                stream.send(data) if data else stream.close()
                behind |= follower.after < last
        return behind


def event_lines(db: Connection, after: int) -> tuple[bytes, int]:
    """Return the next events in the format of text/event-stream, none when the first is not kept any more, and the last id."""
    lines, size = list[bytes](), 0
    for event in read_events(db, after, 100):
        if event.id > after + 1:
            break
        lines.append(b"id: %d\nevent: %b\ndata: %b\n\n" % (event.id, event.type.encode(), event.json()))
        size, after = size + len(lines[-1]), event.id
        if size > STREAM_BATCH:
            break
    return b"".join(lines), after


# ======================================================================================================================
# Room 16. Webhooks: who is told of changes, what is sent and where nothing may be. Opens transactions; touches sockets.
# ======================================================================================================================

TEST_EVENT = "webhook.test"
MAX_WEBHOOKS, MAX_URL = 100, 2000  # of a desk; characters
KEPT_DELIVERIES = 1000  # of each webhook that are done, and as many that are not
MAX_UNANSWERED = 10  # tries of a webhook that are under way
TRY_SECONDS, CONNECT_TRY_SECONDS, CLAIM_SECONDS = 15, 5, 20  # a claim outlives the tries that are begun under it
LOOK_UP_SECONDS = 2  # for the name of a new webhook: everybody waits
RETRIES = (5, 30, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE, *(hours * HOUR for hours in (2, 5, 10, 14, 20, 24)))  # seconds
FAILING_DAYS = 5  # without a success, until a webhook is turned off
EVENTS_LOOK, EVENTS_LOOKS = 500, 20  # events that are read at once, and how often in one transaction
MAX_ANSWER_BYTES = 65_536  # of an answer's header
NAT64, GLOBAL_UNICAST = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("2000::/3")
NOBODYS = tuple(map(ipaddress.ip_network, ("3fff::/20", "192.88.99.0/24", "192.0.0.0/24")))  # RFC 9637, 7526 and 6890

Resolver = Callable[[str, int, float], Sequence[str]]  # takes host, port and seconds
Bits = Callable[[int], int]  # gives so many random bits


# Where to -----------------------------------------------------------------------------------------


def read_url(text: str) -> str:
    """Read the URL of a webhook."""
    with suppress(ValueError):
        parts = urlsplit(text)
        is_host = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?", parts.netloc)
        is_plain = len(text) <= MAX_URL and not re.search(r"[^!-~]|[#\\]", text)
        if parts.scheme in ("http", "https") and is_host and parts.port != 0 and is_plain:
            return text
    raise ValueError(f"{text!r} is no URL for a webhook; write https://example.com/hooks, without a name, password or #")


def url_host(url: str) -> tuple[str, int]:
    """Return host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def resolve_host(host: str, port: int, seconds: float) -> Sequence[str]:
    """Return the addresses of a host; a thread beside waits for them, as getaddrinfo(3) knows no deadline. Raises OSError."""
    found: list[str] = []

    def ask() -> None:
        with suppress(OSError, UnicodeError):
            found.extend(str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    thread = threading.Thread(target=ask, name="resolver", daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise OSError(f"{host} has no address")
    return list(dict.fromkeys(found))


def may_send_to(address: str, private: bool) -> bool:
    """Tell whether an address may be connected to; of IPv6 some stand for one of IPv4 (RFC 4291, 6052 and 3056)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip.sixtofour or ip
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return False
    return private or (ip.is_global and (ip.version == 4 or ip in GLOBAL_UNICAST) and not any(ip in net for net in NOBODYS))


def find_addresses(url: str, private: bool, seconds: float, resolve: Resolver) -> Sequence[str]:
    """Return the addresses that a URL leads to. Raises OSError, also when one of them must not be connected to."""
    addresses = resolve(*url_host(url), seconds)
    for address in addresses:
        if not may_send_to(address, private):
            raise OSError(f"{address} is {'link-local or no single host' if private else 'not a public address'}")
    return addresses


# What is sent, and what comes back ----------------------------------------------------------------


class Reply(NamedTuple):
    """What came of a try: an HTTP status, or the error that kept it from coming."""

    status: int | None
    error: str | None
    wait: int = 0  # seconds, by Retry-After
    duration_ms: int = 0


def sign_message(secret: str, message_id: str, second: int, body: bytes) -> str:
    """Return the signature of a message (https://github.com/standard-webhooks/standard-webhooks, version 1.0)."""
    signed = b"%s.%d.%s" % (message_id.encode(), second, body)
    digest = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def write_request(webhook: Mapping[str, Any], delivery: Mapping[str, Any], now: int) -> bytes:
    """Return the bytes of a try."""
    body, second, parts = delivery["body"].encode(), now // MICROSECONDS, urlsplit(webhook["url"])
    lines = (
        f"POST {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"User-Agent: ticketapi/{__version__}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        f"webhook-id: {delivery['message_id']}",
        f"webhook-timestamp: {second}",
        f"webhook-signature: {sign_message(webhook['secret'], delivery['message_id'], second, body)}\r\n\r\n",
    )
    request: bytes = "\r\n".join(lines).encode() + body
    return request


def open_connection(webhook: Mapping[str, Any], left: Callable[[], float], resolve: Resolver) -> socket.socket:
    """Connect to an address that was looked at just now, so that no name can lead elsewhere. Raises OSError."""
    (host, port), is_tls = url_host(webhook["url"]), urlsplit(webhook["url"]).scheme == "https"
    failure = OSError()
    for address in find_addresses(webhook["url"], bool(webhook["private"]), left(), resolve):
        try:
            sock = socket.create_connection((address, port), min(left(), CONNECT_TRY_SECONDS))
        except OSError as error:
            failure = error
            continue
        sock.settimeout(left())
        return tls_context().wrap_socket(sock, server_hostname=host) if is_tls else sock
    raise failure


@cache
def tls_context() -> Any:
    """Return what verifies servers by the certificates of this machine."""
    import ssl  # only where a webhook has https

    return ssl.create_default_context()


def read_reply(sock: socket.socket, left: Callable[[], float]) -> tuple[int, bytes]:
    """Return status and header of an answer, and read no more of it. Raises OSError."""
    received = b""
    while len(received) <= MAX_ANSWER_BYTES:
        head, end, rest = received.partition(b"\r\n\r\n")
        if end:
            found = re.match(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]", head + b"\r")
            if not found:
                break
            if found[1] >= b"200":
                return int(found[1]), head
            received = rest
            continue
        sock.settimeout(left())
        chunk = sock.recv(MAX_ANSWER_BYTES)
        if not chunk:
            raise OSError("the connection was closed without an answer")
        received += chunk
    raise OSError("what was answered is no HTTP/1.1")


def read_retry_after(head: bytes, now: int) -> int:
    """Return the seconds that Retry-After asks to wait, as a number or a date (RFC 9110, section 10.2.3), a day at most."""
    found = re.search(rb"(?i)\r\nretry-after:[ \t]*([^\r\n]*)", head)
    text = found[1].decode("latin-1").strip() if found else ""
    seconds = whole_number(text) or 0
    with suppress(ValueError):
        seconds = timegm(time.strptime(text, "%a, %d %b %Y %H:%M:%S GMT")) - now // MICROSECONDS
    return min(max(seconds, 0), DAY)


def send_message(
    webhook: Mapping[str, Any],
    delivery: Mapping[str, Any],
    now: int,
    monotonic: Callable[[], float],
    resolve: Resolver = resolve_host,
) -> Reply:
    """Make one try, within TRY_SECONDS all in all; whatever goes wrong is part of what comes of it."""
    begun, status, error, wait = monotonic(), None, None, 0

    def left() -> float:
        if (seconds := begun + TRY_SECONDS - monotonic()) <= 0:
            raise TimeoutError
        return seconds

    try:
        with open_connection(webhook, left, resolve) as sock:
            sock.sendall(write_request(webhook, delivery, now))
            status, head = read_reply(sock, left)
        if not 200 <= status < 300:
            error, wait = f"the answer was {status}", read_retry_after(head, now)
    except TimeoutError:
        error = f"no answer within {TRY_SECONDS} s"
    except OSError as failure:
        error = failure.strerror or str(failure)
    return Reply(status, error and escape(error)[:255], wait, int((monotonic() - begun) * 1000))


# Webhooks -----------------------------------------------------------------------------------------


def read_webhook(
    given: Mapping[str, Any], private: bool, is_new: bool = True, resolve: Resolver = resolve_host
) -> dict[str, Any]:
    """Return the fields of a webhook that are given, looking up where the URL leads. Raises InvalidFields."""
    url, events, enabled = (given.get(key) for key in ("url", "events", "enabled"))
    errors: dict[str, list[str]] = {}
    is_named = given.get("name") is not None and trim(str(given["name"]))
    name = check_text(given["name"], "name", MAX_SUBJECT, errors) if is_named else None
    enabled = (
        {"1": True, "true": True, "0": False, "false": False}.get(enabled, enabled) if isinstance(enabled, str) else enabled
    )
    wrong = {
        "url": refuse_url(url, private, resolve) if is_new or url is not None else "",
        "events": refuse_events(events) if events is not None else "",
        "enabled": "" if enabled in (None, True, False) else "The enabled field must be true or false.",
    }
    if errors := {key: [text] for key, text in wrong.items() if text} | errors:
        raise InvalidFields(errors)
    if events is not None or is_new:
        events = json.dumps([kind for kind in EVENT_TYPES if kind in (events or EVENT_TYPES)])
    fields = {"url": url, "private": url and int(private), "name": name, "events": events, "enabled": enabled}
    return {key: value for key, value in fields.items() if value not in (None, "")}


def refuse_events(events: Any) -> str:
    """Return what is wrong with types of events, or nothing."""
    if not isinstance(events, (list, tuple)):
        return "The events field must be an array."
    wrong = "The selected events is invalid." if events else "The events field is required."
    return "" if events and all(event in EVENT_TYPES for event in events) else wrong


def refuse_url(url: Any, private: bool, resolve: Resolver) -> str:
    """Return what is wrong with a URL, or nothing."""
    if not url or not isinstance(url, str):
        return f"The url field {'must be a string' if url else 'is required'}."
    try:
        find_addresses(read_url(url), private, LOOK_UP_SECONDS, resolve)
    except ValueError:
        return "The url field must be a valid URL."
    except OSError as error:
        return f"The url field must lead to {'an' if private else 'a public'} address: {error}."
    return ""


def create_webhook(
    db: Connection, fields: Mapping[str, Any], user_id: int | None, now: int, bits: Bits = secrets.randbits
) -> dict[str, Any]:
    """Make a webhook of what `read_webhook` returned; the record has the `secret`, which nobody will see again.

    It is told of what changes from now on.
    """
    secret = "whsec_" + base64.b64encode(bits(256).to_bytes(32, "big")).decode()
    with transaction(db):
        if len(list_webhooks(db)) >= MAX_WEBHOOKS:
            raise InvalidFields({"url": [f"The desk has {MAX_WEBHOOKS} webhooks, which is the most."]})
        row = {
            "name": url_host(fields["url"])[0],
            **fields,
            "enabled": int(fields.get("enabled", True)),
            "user_id": user_id,
            "secret": secret,
            "created_at": format_time(now),
        }
        webhook_id = insert_webhook(db, {**row, "position": find_last_change(db)})
        return {**webhook_resource(get_webhook(db, webhook_id)), "secret": secret}


def get_webhook(db: Connection, webhook_id: int) -> dict[str, Any]:
    """Return the row of a webhook. Raises NotFound."""
    for row in list_webhooks(db):
        if row["id"] == webhook_id:
            return dict(row)
    raise NotFound(f"There is no webhook with the id {webhook_id}.")


def webhook_resource(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the API shows of a webhook: all but its secret."""
    names = ("id", "user_id", "name", "url", "disabled", "failing_since", "waiting", "created_at", "updated_at")
    return {**{name: row[name] for name in names}, "events": json.loads(row["events"]), "enabled": bool(row["enabled"])}


def update_webhook(db: Connection, webhook_id: int, fields: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Change a webhook by what `read_webhook` returned. Turned on again, it goes on where it stood. Raises NotFound."""
    with transaction(db):
        row = {**get_webhook(db, webhook_id), **fields, "updated_at": format_time(now)}
        if row["enabled"]:
            row |= {"disabled": None, "failing_since": row["failing_since"] if "enabled" not in fields else None}
        row["enabled"] = int(row["enabled"])
        save_webhook(db, row)
        return webhook_resource(row)


def delete_webhook(db: Connection, webhook_id: int) -> None:
    """Delete a webhook and its deliveries. Raises NotFound."""
    with transaction(db):
        delete_webhook_row(db, get_webhook(db, webhook_id)["id"])


# Deliveries ---------------------------------------------------------------------------------------


def new_delivery(webhook: Mapping[str, Any], event: Event, now: int, bits: Bits) -> dict[str, Any]:
    """Return the delivery of an event, whose body never changes again."""
    comment = b',"comment":' + event.comment if event.comment else b""
    body = b'{"type":"%s","timestamp":"%s","data":%s%s}' % (event.type.encode(), event.at.encode(), event.data, comment)
    record = dict.fromkeys(("id", "status_code", "error", "duration_ms", "next_at"))
    record |= {"webhook_id": webhook["id"], "event_id": event.id or None, "type": event.type, "body": body.decode()}
    return {**record, "message_id": f"msg_{bits(128):032x}", "attempt": 0, "at": format_time(now)}


def begin_try(db: Connection, delivery: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Write down that a try begins, and that there must be another should nobody tell of its end; return the delivery."""
    next_at = format_time(now + CLAIM_SECONDS * MICROSECONDS)
    record = {**delivery, "attempt": delivery["attempt"] + 1, "at": format_time(now), "next_at": next_at}
    return {**record, "id": save_delivery(db, record)}


def end_try(
    db: Connection, webhook: dict[str, Any], delivery: Mapping[str, Any], came: Reply, now: int, bits: Bits
) -> dict[str, Any]:
    """Write down what came of a try, and what follows for the delivery and, in its row, for the webhook."""
    is_test, again = delivery["type"] == TEST_EVENT, None
    if came.error and not is_test:
        if delivery["attempt"] <= len(RETRIES) and came.status != 410:
            wait = RETRIES[delivery["attempt"] - 1] * (1 + bits(10) / 10_240)  # up to a tenth more, so that few come together
            again = format_time(now + int(max(wait, came.wait) * MICROSECONDS))
        webhook["failing_since"] = since = webhook["failing_since"] or format_time(now)
        fails_long = parse_time(since) <= now - FAILING_DAYS * DAY * MICROSECONDS
        if webhook["enabled"] and (fails_long or came.status == 410):
            reason = f"no try has succeeded for {FAILING_DAYS} days" if fails_long else "it answered 410 Gone"
            webhook |= {"enabled": 0, "disabled": reason}
    elif not is_test:
        webhook["failing_since"] = None
    record = {**delivery, "status_code": came.status, "error": came.error, "duration_ms": came.duration_ms, "next_at": again}
    save_delivery(db, record)
    delete_old_deliveries(db, webhook["id"], KEPT_DELIVERIES)
    return record


def fresh_room(webhook: Mapping[str, Any], now: int) -> int:
    """Return how many new events may be begun, as far as those count that are not done; beyond the most, one a minute."""
    room: int = KEPT_DELIVERIES - webhook["waiting"]
    return room if room > 0 else int(webhook["tried_at"] <= format_time(now - MINUTE_MICROSECONDS))


def webhooks_with_work(db: Connection, claims: Mapping[int, int], now: int) -> set[int]:
    """Return the webhooks that have a try due, or new events that may be begun, and by no other server."""
    rows = [row for row in list_webhooks(db) if row["enabled"] and may_claim(row, claims.get(row["id"]), now)]
    last = find_last_change(db) if rows else 0
    due = {row["id"] for row in rows if row["next_at"] and row["next_at"] <= format_time(now)}
    return due | {row["id"] for row in rows if row["position"] < last and fresh_room(row, now)}


def begin_events(db: Connection, webhook: dict[str, Any], room: int, now: int, bits: Bits) -> list[dict[str, Any]]:
    """Begin up to so many of the events that come next, in their order, and move the position past those looked at."""
    begun: list[dict[str, Any]] = []
    if (lost := event_ends(db)[0]) > webhook["position"]:
        skipped = new_delivery(webhook, Event(lost, "events.skipped", "", b"null", None), now, bits)
        text = f"events {webhook['position'] + 1} to {lost} had left the log before they could be sent"
        save_delivery(db, {**skipped, "body": "", "error": text})
        webhook["position"] = lost
    wanted = json.loads(webhook["events"])
    for _ in range(EVENTS_LOOKS):
        events = read_events(db, webhook["position"], EVENTS_LOOK)
        for event in events:
            if event.type in wanted:
                if len(begun) == room:
                    return begun
                begun.append(begin_try(db, new_delivery(webhook, event, now, bits), now))
            webhook["position"] = event.id
        if len(events) < EVENTS_LOOK:
            break
    return begun


def may_claim(webhook: Mapping[str, Any], held: int | None, now: int) -> bool:
    """Tell whether no other server delivers; `held` is our own claim. One that ends too late is that of a wrong clock."""
    return not now < webhook["busy_until"] <= now + CLAIM_SECONDS * MICROSECONDS or webhook["busy_until"] == held


def take_turn(
    db: Connection,
    webhook: dict[str, Any],
    ended: Iterable[tuple[Mapping[str, Any], Reply]],
    flying: set[int],
    room: int,
    now: int,
    bits: Bits,
) -> list[dict[str, Any]]:
    """Write down what came of tries, and begin up to `room` others: first those that are due, then new events.

    `flying` are deliveries that are under way. The row of the webhook is changed, and written.
    """
    for delivery, came in ended:
        end_try(db, webhook, delivery, came, now, bits)
    tries: list[dict[str, Any]] = []
    if webhook["enabled"] and room > 0:
        due = list_due_deliveries(db, webhook["id"], format_time(now), room + len(flying))
        tries = [begin_try(db, dict(row), now) for row in [row for row in due if row["id"] not in flying][:room]]
        if room := min(room - len(tries), fresh_room(webhook, now)):
            tries += begin_events(db, webhook, room, now, bits)
        webhook["busy_until"] = now + CLAIM_SECONDS * MICROSECONDS
    save_webhook(db, webhook)
    return tries


def add_test(
    db: Connection, webhook_id: int, now: int, begin: bool, bits: Bits = secrets.randbits
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write down a test, which is due at once, or with `begin` is the caller's to send; return webhook and delivery."""
    with transaction(db):
        webhook = get_webhook(db, webhook_id)
        if webhook["waiting"] >= KEPT_DELIVERIES:
            raise InvalidFields({"webhook": [f"{KEPT_DELIVERIES} messages to this webhook wait already."]})
        data = to_json({"webhook": webhook_resource(webhook)})
        delivery = new_delivery(webhook, Event(0, TEST_EVENT, format_time(now), data, None), now, bits)
        if begin:
            return webhook, begin_try(db, delivery, now)
        delivery["next_at"] = format_time(now)
        return webhook, {**delivery, "id": save_delivery(db, delivery)}


def send_test(db: Connection, webhook_id: int, clock: Clock, bits: Bits = secrets.randbits) -> dict[str, Any]:
    """Send a test now, whether or not a server runs or the webhook is turned on; return the delivery. Raises NotFound."""
    webhook, delivery = add_test(db, webhook_id, now := clock.wall(), True, bits)
    came = send_message(webhook, delivery, now, clock.monotonic)
    with transaction(db):
        return delivery_resource(end_try(db, webhook, delivery, came, now, bits))


def resend_delivery(db: Connection, webhook_id: int, delivery_id: int, now: int) -> dict[str, Any]:
    """Let a delivery be tried again at once, and then as one that is new. Raises NotFound."""
    with transaction(db):
        found = list_deliveries(db, webhook_id, delivery_id + 1, 1)
        if not found or found[0]["id"] != delivery_id or not found[0]["body"]:
            raise NotFound(f"There is no delivery with the id {delivery_id} of this webhook that could be sent.")
        record = {**dict(found[0]), "attempt": 0, "next_at": format_time(now)}
        save_delivery(db, record)
        return delivery_resource(record)


def delivery_resource(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the API shows of a delivery."""
    names = ("id", "event_id", "message_id", "type", "attempt", "status_code", "error", "duration_ms", "at", "next_at")
    done = "skipped" if not row["attempt"] else "failed" if row["error"] else "delivered"
    return {**{name: row[name] for name in names}, "status": "pending" if row["next_at"] else done}


def deliveries_page(db: Connection, webhook_id: int, asked: FeedRequest) -> ListBody:
    """Return a slice of what was sent to a webhook, newest first. Raises NotFound."""
    get_webhook(db, webhook_id)
    rows = list_deliveries(db, webhook_id, asked.after or MAX_ID, asked.per_page + 1)
    following = encode_cursor(Cursor(rows[-2]["id"], True), asked.url) if len(rows) > asked.per_page else None
    data = to_json([delivery_resource(row) for row in rows[: asked.per_page]])[1:-1]
    link = (f"{asked.url}?cursor=", f"&per_page={asked.per_page}" if asked.keep_per_page else "")
    return cursor_list(data, asked.url, asked.per_page, link, None, following)


# ======================================================================================================================
# Room 17. Watch: how a server fares: its traffic, its jobs, metrics, readiness. Uses queries.
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
    """Requests by route and status with a histogram of durations, and by status for the last minutes; memory is bounded."""

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


def route_resource(route: str, counters: RouteTraffic) -> dict[str, Any]:
    """Return what a summary says of a route, its times in milliseconds."""
    times = {"mean": counters.seconds / counters.requests, "p95": counters.quantile(0.95), "max": counters.slowest}
    written = {f"{name}_ms": round(seconds * 1000, 3) for name, seconds in times.items()}
    return {"route": route, "requests": counters.requests, **written}


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
    """One metric: its name and kind, what it tells, and its value, or samples as (rest of the name, labels, value)."""

    name: str
    kind: str
    help: str
    samples: float | Sequence[tuple[str, dict[str, str], float]]


def write_metrics(metrics: Iterable[Metric]) -> bytes:
    """Write metrics in the text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for suffix, labels, value in metric.samples if isinstance(metric.samples, Sequence) else [("", {}, metric.samples)]:
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
    started, prefix = traffic.since / MICROSECONDS, "ticketapi_http"
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
    return [
        Metric("ticketapi_audit_failures_total", "counter", "Times that the audit log could not be written.", audit.failures),
        Metric("ticketapi_audit_rows_waiting", "gauge", "Rows of the audit log not written yet.", audit.waiting),
        Metric("ticketapi_audit_rows_lost_total", "counter", "Rows of the audit log given up.", audit.lost),
        Metric("ticketapi_audit_rows_omitted_total", "counter", "Refusals of strangers (429) that left no row.", audit.omitted),
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
        Metric(f"{prefix}_alive", "gauge", "1 while the scheduler goes round.", int(schedule.alive(tick))),
        Metric(f"{prefix}_runs_total", "counter", "Runs of scheduled jobs.", runs),
        Metric(f"{prefix}_last_run_timestamp_seconds", "gauge", "When a job last ran, in Unix time.", times),
        Metric(f"{prefix}_lateness_seconds", "gauge", "How long after it was due a job last ran.", late),
    ]


def wal_metrics(settings: Settings) -> list[Metric]:
    """Return how long the write-ahead logs of both files are."""
    paths = {"desk": settings.db, "audit": settings.audit_db}
    samples = [("", {"file": kind}, wal_bytes(path)) for kind, path in paths.items() if isinstance(path, Path)]
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
# Room 18. Upkeep: checks a desk, repairs its counters, copies it. Opens transactions.
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
                wait = parse_second(closed_at[:19]) - parse_second(created_at[:19])
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
        waiting, closed = count_ticket_rows(db)
        counters = list_ticket_counts(db)
        unsound = list(list_unsound_users(db))
        misnamed = "ticket {0} shows another name or address than user {1} has"
        more_problems = hour_problems(db) + first_problem(list_misnamed_tickets(db), misnamed, "ticket")
        more_problems += first_problem(number_problems(db), "the counter {0} says {1}, there are {2}", "counter")
        more_problems += first_problem(
            block_problems(db), "the blocks of list {0} differ from its tickets at {2} (level {1})", "block"
        )
    rows = ((OPEN, "open", waiting), (CLOSED, "closed", closed))
    problems = [
        f"{count} {'ticket is' if count == 1 else 'tickets are'} {word}, the counter says {counters.get(status, 'nothing')}"
        for status, word, count in rows
        if counters.get(status) != count
    ]
    miscounted = (user for user in unsound if user["tickets_count"] != user["written"])
    problems += first_problem(miscounted, "user {0} wrote {2}, the counter says {1}", "user")
    behind = (user for user in unsound if user["highest"] > user["last_number"])
    problems += first_problem(behind, "the tickets of user {0} are numbered up to {4}, the counter says {3}", "user")
    return problems + more_problems


def number_problems(db: Connection) -> list[tuple[str, int, int]]:
    """Return the other counters that are wrong, and what they should be."""
    wrong = {"customers": int.__ne__, "closed_number": int.__lt__}
    return [(name, value, least) for name, value, least in find_number_ends(db) if wrong[name](value, least)]


def count_blocks(db: Connection) -> dict[tuple[int, int, int], int]:
    """Return the blocks of all lists as they should be, from the rows: where nothing is counted there is none."""
    most = max(find_last_change(db), newest_ticket(db)[0]) + 10**7  # a counter far beyond must not fill the memory
    gaps = {listing: min(last, most) for listing, last in list_last_numbers(db)}
    blocks = {
        (listing, 1, block): -min(64, last - block * 64) for listing, last in gaps.items() for block in range(-(-last // 64))
    }
    for listing, block, tickets in list_filled_blocks(db):
        if listing == OPEN_LIST or listing in gaps:
            blocks[listing, 1, block] = blocks.get((listing, 1, block), 0) + tickets
    for level in (1, 2):
        for (listing, at, block), tickets in list(blocks.items()):
            if at == level:
                above = (listing, level + 1, block >> 6)
                blocks[above] = blocks.get(above, 0) + tickets
    return {place: tickets for place, tickets in blocks.items() if tickets}


def block_problems(db: Connection) -> list[tuple[int, int, int]]:
    """Return the blocks that are wrong."""
    found = {row[:3]: row[3] for row in map(tuple, list_blocks(db))}
    return sorted({place for place, _ in count_blocks(db).items() ^ found.items()})


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


def rebuild_counters(db: Connection) -> None:
    """Set the counters, names and blocks to what the rows say."""
    with transaction(db):
        set_ticket_counts(db, zip((OPEN, CLOSED), count_ticket_rows(db), strict=True))
        unsound = list(list_unsound_users(db))
        set_user_tickets(db, [(user["written"], max(user["highest"], user["last_number"]), user["id"]) for user in unsound])
        set_counters(db, [(name, least) for name, _, least in number_problems(db)])
        delete_blocks(db)
        add_to_blocks(db, [(*place, tickets) for place, tickets in count_blocks(db).items()])
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
        with suppress(FileNotFoundError, KeyError):  # nothing else of this process uses it
            os.close(HELD.pop(((found := os.stat(temporary)).st_dev, found.st_ino)))
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
    """Refuse a DEST that cannot hold a copy, or where something is that nobody has given up."""
    # A WAL or journal beside it is of a database in use, or of one that was killed: SQLite would write it into the new copy. To
    # remove it would take from the old one what it holds, so that is left to a person.
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
        if problems := integrity_problems(db, 1):
            raise TicketApiError(f"{backup.source} is damaged: {problems[0]}; run ticketapi check")
        if backup.kind == "audit":
            return Copy(count_audits(db), copy.stat().st_size)
        waiting, closed = count_ticket_rows(db)
        if list_ticket_counts(db) != {OPEN: waiting, CLOSED: closed}:
            raise TicketApiError(f"the counters of {backup.source} differ from its tickets; {REPAIR}")
        return Copy(waiting + closed, copy.stat().st_size)


def copy_verified(backup: Backup, copy: Path, done: int, report: Report, note: Callable[[str], object]) -> Copy:
    """Copy one file, put the copy on the disk and verify it; `done` are the bytes of those before."""
    check_identity(backup.source, backup.kind)
    with closing(open_to_inspect(backup.source)) as db, interruptible(db):
        version = copy_database(db, copy, lambda more: report(done + more))
    sync_to_disk(copy)
    note(f"verifying {backup.destination}")
    return verify_copy(copy, backup, version)


def make_backup(backups: Sequence[Backup], force: bool, report: Report, note: Callable[[str], object]) -> list[Copy]:
    """Copy files, name the copies when all are verified; `report` gets the bytes. Raises TicketApiError, nothing changed."""
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
        if table in ("personal_access_tokens", "api_audits", "webhooks"):
            copy_last_id(source, target, table)
        copied[table] = sent[0]
    if kind == "desk":
        switch_off_webhooks(target, "it came with a copy of the desk")  # or both would tell it
    return copied


def copy_to_postgres(sources: Mapping[str, Connection], target: Postgres, report: Report) -> dict[str, int]:
    """Copy into a database whose desk is empty or not there, all of it or nothing."""
    with explained(target), closing(open_database(target, "desk")) as made, closing(connect_postgres(target, COPIER)) as db:
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
        tickets = sum(list_ticket_counts(sources["desk"]).values())  # of the rows, those that are not deleted
        if isinstance(target, Postgres):
            return copy_to_postgres(sources, target, report) | {"tickets": tickets}
        refuse_own_files(settings.db, target)
        for kind in sources:
            check_target(target if kind == "desk" else log_path(target), kind)
        return copy_to_files(sources, target, report) | {"tickets": tickets}


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
# Room 19. Import: takes tickets from CSV, JSON Lines and the original application's file. Opens files and transactions.
# ======================================================================================================================

MAX_LINE = 1024 * 1024  # bytes; what a ticket may hold takes an eighth of it
IMPORT_BATCH = 5_000  # tickets in memory, 40 kB each at most
MAX_BLANK_LINES = 100  # before the first
MAX_KEPT_ID = 10_000_000  # of the original's tickets: numbers that are missing below cost up to 50 MB and a second
NEEDED = {"subject": MAX_SUBJECT, "content": MAX_CONTENT, "name": MAX_SUBJECT, "email": MAX_SUBJECT}  # columns; characters
TICKET_COLUMNS = ("id", *NEEDED, "status", "created_at", "closed_at", "updated_at", "user_id")  # of CSV that `tickets` writes

Told = Callable[[str], object]  # takes a line for a person
Record = tuple[str, Mapping[str, Any]]  # where it stands, and its fields


def read_lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a file, without the mark that some programs put before the first. Raises TicketApiError."""
    for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
        if len(line) > MAX_LINE:
            raise TicketApiError(f"line {number}: it is longer than {MAX_LINE:,} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise TicketApiError(f"line {number}: it is not UTF-8") from None


def check_columns(row: Iterable[str], tell: Told) -> list[str]:
    """Return the names of the columns of CSV; `tell` gets those that are ignored. Raises TicketApiError."""
    names = [name.strip().lower() for name in row]
    for name in TICKET_COLUMNS:
        if names.count(name) > 1 or (name in NEEDED and name not in names):
            problem = "is there twice" if name in names else f"is missing; these must be there: {', '.join(NEEDED)}"
            raise TicketApiError(f"line 1: the column {name} {problem}")
    if ignored := [name or "(without a name)" for name in names if name not in TICKET_COLUMNS]:
        tell(f"Columns that are ignored: {cut_text(', '.join(ignored), MAX_SUBJECT)}")
    return names


def read_csv(lines: Iterable[str], tell: Told) -> Iterator[Record]:
    """Yield the records of CSV (RFC 4180), each with the line that it begins in. Raises TicketApiError."""
    csv.field_size_limit(MAX_LINE)
    reader, start = csv.DictReader(lines, strict=True), 1
    try:
        reader.fieldnames = check_columns(reader.fieldnames or (), tell)
        start = reader.line_num + 1
        for row in reader:
            if None in row or None in row.values():
                raise TicketApiError(f"line {start}: it has not as many fields as the header")
            yield f"line {start}", row
            start = reader.line_num + 1
    except csv.Error as error:
        reason = "a CR stands alone in it; lines end with LF or CR LF" if "new-line" in str(error) else error
        raise TicketApiError(f"line {start}: {reason}") from None


def read_json_lines(lines: Iterable[str]) -> Iterator[Record]:
    """Yield the objects of JSON Lines (https://jsonlines.org); name and email may stand in `user`. Raises TicketApiError."""
    for number, text in enumerate(lines, 1):
        value = None
        try:
            value = read_json(text.strip() or "{}")
        except BadRequest as error:
            raise TicketApiError(f"line {number}: {error}".replace("The request body", "it")) from None
        except (ValueError, RecursionError):
            pass
        if not isinstance(value, dict):
            raise TicketApiError(f"line {number}: it is no JSON object")
        if isinstance(user := value.get("user"), dict):
            value |= {key: user.get(key) for key in ("name", "email") if value.get(key) is None}
        if text.strip():
            yield f"line {number}", value


def read_records(lines: Iterator[str], tell: Told) -> Iterator[Record]:
    """Yield the records of JSON Lines or CSV, whichever the first line with something in it is of."""
    head: list[str] = []
    for line in islice(lines, MAX_BLANK_LINES):
        head.append(line)
        if line.strip():
            break
    is_csv = bool(head) and not head[-1].lstrip().startswith(("{", "["))  # of a desk without tickets there is no line
    yield from read_csv(chain(head, lines), tell) if is_csv else read_json_lines(chain(head, lines))


def read_original(original: Connection) -> Iterator[Record]:
    """Yield the tickets of the original's file; one was closed at its last change, unless there is a column that says when."""
    for table in ("original_customers", "original_tokens"):  # what is not there is told before anything is done
        next(read_table(original, table), None)
    for row in map(dict, read_table(original, "original_tickets")):
        closed_at = row.get("closed_at") or row.get("processed_at") or row["updated_at"]
        if not row.get("deleted_at"):
            yield f"ticket {row['id']}", row | {"closed_at": None if row["status"] in (OPEN, "1", "Open") else closed_at}


def read_past(fields: Mapping[str, Any], name: str, now: int, errors: dict[str, list[str]]) -> int | None:
    """Return a time, None when it is not given; what is wrong with it is noted in `errors`."""
    if (value := fields.get(name)) in (None, ""):
        return None
    text = str(value)
    try:
        moment = read_moment(text.removesuffix("Z").replace(" ", "T", 1) + "Z", now)
    except ValueError:
        moment = now + DAY * MICROSECONDS
    if moment <= now + MINUTE_MICROSECONDS:
        return moment
    errors[name] = [f"The {name} field must be a UTC time such as 2025-12-04T11:30:16Z, and not in the future."]
    return None


def read_address(text: str, errors: dict[str, list[str]]) -> str:
    """Return an address in lower case; what is wrong with it is noted in `errors`."""
    try:
        return read_email(text)
    except ValueError:
        errors.setdefault("email", ["The email field must be an address."])
        return ""


def check_id(value: object, highest: int, errors: dict[str, list[str]]) -> None:
    """Note in `errors` that something is no id, or too high."""
    if type(value) is not int or not 0 < value <= highest:
        errors["id"] = [f"The id field must be 1 to {highest}."]


def refuse_first(where: str, errors: Mapping[str, list[str]]) -> None:
    """Raise TicketApiError for the first thing that is wrong with what stands somewhere, if anything is."""
    for messages in errors.values():
        raise TicketApiError(f"{where}: " + re.sub(r"^The (.+?) field (.+)\.$", r"\1 \2", messages[0]))


def read_ticket(record: Record, keeps_ids: bool, now: int) -> tuple[Any, ...]:
    """Return a record as the columns of a line, but the first. Raises TicketApiError for the first thing wrong with it."""
    (where, fields), errors = record, dict[str, list[str]]()
    subject, content, name, email = [check_text(fields.get(key), key, most, errors) for key, most in NEEDED.items()]
    created, closed = read_past(fields, "created_at", now, errors), read_past(fields, "closed_at", now, errors)
    email, status, given = read_address(email, errors), CLOSED, fields.get("status")
    try:
        status = read_ticket_status(given) if given not in (None, "") else OPEN if closed is None else CLOSED
    except ValueError:
        errors["status"] = ["The status field must be Open or Closed."]
    if closed is not None and (status == OPEN or closed < (now if created is None else created)):
        errors.setdefault("closed_at", ["The closed_at field must not be before created_at, nor be there while it is Open."])
    if keeps_ids:
        check_id(fields["id"], MAX_KEPT_ID, errors)
    refuse_first(where, errors)
    ids = (fields["id"], fields["user_id"]) if keeps_ids else (None, None)
    return (*ids, status, created, closed, name, email, subject, content)


def read_customer(row: Mapping[str, Any], now: int) -> tuple[int, str, str, str]:
    """Return a user of the original's file as a customer. Raises TicketApiError."""
    errors: dict[str, list[str]] = {}
    check_id(row["id"], FIRST_OWNER_ID - 1, errors)
    name, email = (check_text(row[key], key, MAX_SUBJECT, errors) for key in ("name", "email"))
    email, created = read_address(email, errors), read_past(row, "created_at", now, errors)
    refuse_first(f"user {row['id']}", errors)
    return row["id"], name, email, format_time(now if created is None else created)


def read_token(row: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Return a token of the original's file, with its owner's name and address. Raises TicketApiError."""
    errors, wrong, abilities = dict[str, list[str]](), dict[str, list[str]](), None
    read = {key: check_text(row[key], key, MAX_SUBJECT, errors) for key in ("owner", "email", "name", "token")}
    read["email"] = read_address(read["email"], errors)
    if not re.fullmatch("[0-9a-f]{64}", read["token"]):
        errors.setdefault("token", ["The token field must be a SHA-256 in hexadecimal."])
    with suppress(ValueError, TypeError, RecursionError):
        abilities = json.loads(row["abilities"] or "[]")
    for one in abilities if isinstance(abilities, list) else (None,):
        check_text(one, "abilities", MAX_SUBJECT, wrong)
    if wrong:
        errors["abilities"] = ["The abilities field must be a list of texts."]
    latest = {"created_at": now, "last_used_at": now, "expires_at": END_OF_TIME}
    times = {key: read_past(row, key, limit, errors) for key, limit in latest.items()}
    refuse_first(f"token {row['id']}", errors)
    shown = {key: None if moment is None else format_time(moment) for key, moment in times.items()}
    return read | shown | {"created_at": shown["created_at"] or format_time(now), "abilities": json.dumps(abilities)}


def read_request(row: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Return a row of the original's log, redacted; what is no text there becomes one. Raises TicketApiError."""
    errors, read = dict[str, list[str]](), dict(row)
    for key in ("method", "path", "route_name", "ip_address", "user_agent", "query", "request_body"):
        value = row[key].decode(errors="replace") if isinstance(row[key], bytes) else row[key]
        read[key] = "" if value is None else str(value)
    if type(row["status_code"]) is not int:
        errors["status_code"] = ["The status_code field must be a whole number."]
    created = read_past(row, "created_at", now, errors)
    refuse_first(f"request {row['id']}", errors)
    read |= {key: audit_payload(parse_body(read[key].encode(), "")) for key in ("query", "request_body")}
    read["path"] = audit_text(read["path"], MAX_AUDIT_PATH)
    read["user_agent"] = audit_text(read["user_agent"], MAX_AUDIT_USER_AGENT) or None
    duration, created_at = row["duration_ms"], format_time(now if created is None else created)
    read |= {"route_name": read["route_name"] or None, "duration_ms": max(0, duration) if type(duration) is int else 0}
    return read | {"created_at": created_at, "request_id": None}


def import_lines(db: Connection, scratch: Connection, now: int, report: Report, tell: Told) -> None:
    """Add the tickets of all lines to a desk, within a transaction. Raises TicketApiError."""
    (last_id, newest), ended, number = newest_ticket(db), last_closing(db), get_counter(db, "closed_number")
    run_part(scratch, "import order", now=max(now, newest + 1, ended + 1))
    moved, created, closed = next(read_table(scratch, "line_ends"))
    for name, first, last in (("created_at", created, newest), ("closed_at", closed, ended)):
        if first is not None and first <= last:
            times = f"{format_time(first)}, not after the last one of the desk ({format_time(last)})"
            raise TicketApiError(f"the first {name} is {times}; take another --db")
    if moved:
        tell(f"{moved:,} tickets were moved by more than a second, to after the one before them")
    lines, done = read_table(scratch, "ordered_lines"), 0
    while batch := list(islice(lines, IMPORT_BATCH)):
        people = {line["email"]: line["name"] for line in batch if line["user_id"] is None}
        people |= {line["email"]: line["name"] for line in reversed(batch) if line["email"] in people}  # the first name
        customers = ensure_customers(db, people, batch[0]["created"]) if people else {}
        drafts = [
            Draft(user_id or customers[email], subject, content, created, closed, number + (nth or 0))
            for _, _, user_id, email, subject, content, created, closed, nth, _ in batch
        ]
        ids = [line["id"] or last_id + done + i for i, line in enumerate(batch, 1)]
        add_tickets(db, ids[0], drafts, now, ids=ids)
        done += len(batch)
        report(done)


def import_original(db: Connection, original: Connection, now: int) -> tuple[dict[int, int], dict[int, int]]:
    """Add users and tokens of the original's file; return the new ids of owners and of tokens by the old ones."""
    if newest_ticket(db)[0] or get_counter(db, "customers"):
        raise TicketApiError("the tickets and users of this file keep their ids, and the desk has some; take another --db")
    people, owners, tokens = map(dict, read_table(original, "original_customers")), dict[int, int](), dict[int, int]()
    while batch := [read_customer(row, now) for row in islice(people, IMPORT_BATCH)]:
        taken = list_taken_emails(db, (email for _, _, email, _ in batch))
        for user_id, _, email, _ in batch:
            if taken.setdefault(email, user_id) != user_id:
                raise TicketApiError(f"user {user_id}: email is that of user {taken[email]}, too")
        insert_users(db, batch)
    for row in map(dict, read_table(original, "original_tokens")):
        token = read_token(row, now)
        if find_token(db, token["token"]):
            raise TicketApiError(f"token {row['id']}: the desk has it already")
        owners[row["tokenable_id"]] = ensure_owner(db, token["email"], now, token["owner"])
        tokens[row["id"]] = insert_token(db, token | {"user_id": owners[row["tokenable_id"]]})
        if token["last_used_at"]:
            touch_token(db, tokens[row["id"]], token["last_used_at"])
    return owners, tokens


def import_audits(log_db: Connection, original: Connection, owners: dict[int, int], tokens: dict[int, int], now: int) -> int:
    """Add the requests of the original's log, redacted, all or none; return how many. A token that is gone is none."""
    rows, done = map(dict, read_table(original, "original_audits")), 0
    with transaction(log_db):
        while batch := [read_request(row, now) for row in islice(rows, IMPORT_BATCH)]:
            for row in batch:
                user_id = owners.get(row["user_id"], row["user_id"])
                row |= {"user_id": user_id if type(user_id) is int else None, "token_id": tokens.get(row["token_id"])}
            insert_audits(log_db, batch)
            done += len(batch)
    return done


@contextmanager
def explained_file(path: Path) -> Iterator[None]:
    """Turn what SQLite reports of a file that is imported into one line."""
    try:
        with explained(path):
            yield
    except TicketApiError as error:
        if "another --db" not in str(error):
            raise
        raise TicketApiError(str(error).replace("another --db", "another FILE")) from error


@contextmanager
def staged(source: str, now: int, tell: Told, note: Report) -> Iterator[tuple[Connection, Connection | None, int]]:
    """Read a file into a scratch database, and give that, the original's file if it is one, and how many tickets there are."""
    with ExitStack() as stack:
        file = stack.enter_context(open(0 if source == "-" else source, "rb", closefd=source != "-"))
        lines, original = read_lines(file), None
        if file.peek(16).startswith(b"SQLite format 3"):
            with explained_file(Path(source)):
                original = stack.enter_context(closing(open_original(Path(source))))
        scratch = stack.enter_context(closing(open_scratch()))
        with explained_file(Path(source)), transaction(scratch), interruptible(original or scratch):  # a view may never end
            records = read_original(original) if original else read_records(lines, tell)
            rows = (read_ticket(record, original is not None, now) for record in reported(records, note))
            total, _ = write_table(scratch, "lines", ((number, *row) for number, row in enumerate(rows)))
        yield scratch, original, total


def import_file(
    settings: Settings, source: str, now: int, begin: Callable[[int], Report], tell: Told, note: Report
) -> dict[str, int]:
    """Take the tickets of a file into a desk, all or none; return how many tickets, tokens and requests came.

    All that needs no lock on the desk is done first; then it is one transaction. `begin` is told how many tickets there are.
    """
    requests, tokens = 0, dict[int, int]()
    with ExitStack() as stack:
        scratch, original, total = stack.enter_context(staged(source, now, tell, note))
        if settings.import_audit and not original:
            raise TicketApiError(
                "--audit takes the log of the original application's SQLite file; leave it out with CSV and JSON"
            )
        db = stack.enter_context(closing(open_database(settings.db, "desk")))
        stack.enter_context(transaction(db))
        if original:
            owners, tokens = import_original(db, original, now)
        import_lines(db, scratch, now, begin(total), tell)
        if original:
            rebuild_counters(db)  # there may be gaps between its ids
        if original and settings.import_audit:
            with closing(open_database(settings.audit_db, "audit")) as log_db:
                requests = import_audits(log_db, original, owners, tokens, now)
    return {"tickets": total, "tokens": len(tokens), "requests": requests}


# ======================================================================================================================
# Room 20. Snapshots: a desk kept under a name, and brought back while it is served. Opens files and transactions.
# ======================================================================================================================

SNAPSHOT_NAME = "[0-9A-Za-z_-][0-9A-Za-z._-]{0,63}"
SNAPSHOT_WORDS = "up to 64 letters, digits, dashes, underscores and dots, the first no dot"


def read_snapshot_name(text: str) -> str:
    """Read the name of a snapshot."""
    if not re.fullmatch(SNAPSHOT_NAME, text):
        raise ValueError(f"{text!r} is no name of a snapshot; write {SNAPSHOT_WORDS}")
    return text


def find_folder(place: Place) -> tuple[Path, Path]:
    """Return the file of a desk, and the folder of its snapshots, there or not. Raises TicketApiError."""
    if isinstance(place, Postgres):
        error = TicketApiError("a desk in PostgreSQL has no snapshots; copy the database: createdb -T DESK COPY, or pg_dump")
        error.status = 501
        raise error
    require_database(place)
    desk = follow_link(place)
    folder = desk.with_name(f"{desk.name}-snapshots")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise TicketApiError(f"{folder} must be a directory for snapshots, and is not; move it away")
    return desk, folder


def list_snapshots(place: Place, name: str = "*") -> list[dict[str, Any]]:
    """Return all snapshots in the order of their names, or the one of a name. Raises NotFound."""
    found = []
    for path in sorted(find_folder(place)[1].glob(f"{name}.db")):
        if re.fullmatch(SNAPSHOT_NAME, path.stem) and stat.S_ISREG((at := path.lstat()).st_mode):
            one = {"name": path.stem, "created_at": format_time(at.st_mtime_ns // 1000), "size": at.st_size, "tickets": None}
            with suppress(*FAILURES), closing(connect_file(path, VISITOR._replace(mode="immutable=1"))) as db:
                one["tickets"] = sum(list_ticket_counts(db).values())
            found.append(one)
    if name != "*" and not found:
        raise NotFound(f"There is no snapshot with the name {name}.")
    return found


@contextmanager
def held_snapshot(place: Place, name: str, is_new: bool = False) -> Iterator[tuple[Path, Path]]:
    """Give the files of a desk and a snapshot, to one at a time. Raises NotFound, DeskBusy, DiskFull."""
    desk, folder = find_folder(place)
    try:
        with ExitStack() as stack:
            folder.mkdir(mode=0o700, exist_ok=True) if is_new else list_snapshots(place, name)
            stack.callback(os.close, handle := os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
            if not lock_file(handle, fcntl.LOCK_EX):
                raise DeskBusy(f"another snapshot of {desk} is being saved or restored; try again when that is done")
            for left in chain(folder.glob("*.part"), folder.glob("*.part-journal")):
                left.unlink()  # by who was killed
            yield desk, folder / f"{name}.db"
    except OSError as error:
        kind = {errno.ENOENT: NotFound, **dict.fromkeys(DISK_FULL, DiskFull)}.get(error.errno or 0, TicketApiError)
        raise kind(f"{error.filename or folder}: {error.strerror}; the desk is as it was") from error


def read_seal(path: Path) -> tuple[bytes, bytes]:
    """Return the SHA-256 of what SQLite sees of a file (a multiple of 512 bytes), and what follows, the same if it is whole."""
    digest, size = hashlib.sha256(), path.stat().st_size // 512 * 512
    with path.open("rb") as file:
        while chunk := file.read(min(1 << 20, size - file.tell())):
            digest.update(chunk)
        return digest.digest(), file.read()


def save_snapshot(place: Place, name: str, now: int, force: bool = False) -> dict[str, Any]:
    """Keep a desk as it is at one moment under a name, while others use it; return what is told of it."""
    if isinstance(place, Path) and place.exists():
        check_identity(place, "desk")  # of what is no desk nothing is kept, not even a folder for it
    with held_snapshot(place, name, is_new=True) as (desk, path):
        if os.path.lexists(path) and not (force and stat.S_ISREG(path.lstat().st_mode)):
            raise InvalidFields({"name": ["The name has already been taken. Delete that snapshot first."]})
        with temporary_file(path) as part:
            version = check_identity(desk, "desk")
            with closing(open_to_inspect(desk)) as db:
                copy_database(db, part, silent)
            with closing(connect_file(part, COPY)) as copy:
                if version == KINDS["desk"].version:  # an older desk has no clock
                    note_clock(copy, now)
            with part.open("ab") as file:
                file.write(read_seal(part)[0])
            os.utime(part, ns=(now * 1000, now * 1000))
            sync_to_disk(part)
            os.replace(part, path)
        sync_to_disk(path.parent)
        return list_snapshots(place, name)[0]


def delete_snapshot(place: Place, name: str, *_: object) -> dict[str, Any]:
    """Delete a snapshot, and return what there was to tell of it. Raises NotFound."""
    with held_snapshot(place, name) as (_desk, path):
        [found] = list_snapshots(place, name)
        path.unlink()
        return found


def bring_in(copy: sqlite3.Connection, part: Path, desk: Path, settle: Callable[[], object]) -> None:
    """Put a copy in a desk's place, all or nothing, while others read; `settle` may change it once nobody else writes."""
    # The first step of the online backup takes the right to write. Then `settle` is called: what the copy's connection changes
    # reaches pages that were copied, too (https://sqlite.org/c3ref/backup_finish.html); they have not left the cache yet.
    tries, once = iter(range(1, round(WRITE_SECONDS / POLL_SECONDS))), [settle]

    def report(status: int, left: int, total: int) -> None:
        if not total and not next(tries, None):
            raise DeskBusy(f"{desk} could not be written for {WRITE_SECONDS:g} s: others write to it")
        if total and once:
            once.pop()()

    pages = max(1, min(1000, part.stat().st_size // 65_536 - 1))  # less than all; after them Python's lock is waited for
    with closing(connect_file(desk, NOTER._replace(cache_kib=16_000))) as db:
        try:
            copy.backup(db, pages=pages, progress=report, sleep=POLL_SECONDS)
        finally:
            with suppress(*FAILURES):
                while not fold_wal(db) and next(tries, None):  # or others would have to do it with their next commit
                    time.sleep(POLL_SECONDS)
            shrink_wal(desk, MAX_ID)


def restore_snapshot(place: Place, name: str, now: int, *_: object) -> dict[str, Any]:
    """Bring a desk back to a snapshot, but for tokens, their owners and webhooks, while others use it."""
    with held_snapshot(place, name) as (desk, path), temporary_file(path) as part, ExitStack() as stack:
        open_database(desk, "desk").close()  # or it might be old
        shutil.copyfile(path, part)
        try:
            with explained(part):
                found, seal = read_seal(part)
                if seal not in (b"", found) or not check_identity(part, "desk"):
                    raise TicketApiError(f"{part} is damaged")
                copy = stack.enter_context(closing(connect_file(part, COPY._replace(wait_ms=BUSY_TIMEOUT_MS))))
                if not seal and integrity_problems(copy, 1):  # a backup that somebody has put there
                    raise TicketApiError(f"{part} is damaged")
                create_schema(copy, "desk")
                check_tables(copy, "desk", part)
                keep_present = partial(run_part, copy, "restore", live=f"{desk.absolute().as_uri()}?mode=ro", now=now)
                keep_present()  # what is wrong shows before anybody has to wait
        except DiskFull:
            raise
        except TicketApiError as error:
            reason = str(error).replace(str(part), f"The snapshot {name}").partition(";")[0]
            raise InvalidFields({"name": [f"{reason}."]}) from error
        bring_in(copy, part, desk, keep_present)
        return list_snapshots(place, name)[0]


# ======================================================================================================================
# Room 21. Faults: which requests go wrong, and how, from rules, seed and count alone. Touches nothing.
# ======================================================================================================================

MAX_RULES, MAX_LATENCY, SLOW_PARTS, SLOW_SECONDS = 100, 60, 10, 5.0  # seconds; parts of a slow body, and how long they take
NEVER_FAULTY = {"up", "ready", "metrics", "faults", "clock"}  # what tells of faults and ends them: names of routes begin so
STEPS, P99 = 2**53, 2.3263478740408408  # of a draw from 0 to 1; standard deviations above a mean, beyond which 1 % lies
Fields = Mapping[str, tuple[str, str]]  # by name: a pattern of the JSON of values that will do, and in words what does
WAIT = r'"(?:(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|60000)m|[1-9]|[1-5][0-9]|60)s"'  # up to MAX_LATENCY
LATE = rf'{{("fixed":{WAIT}|"uniform":\[{WAIT},{WAIT}]|"lognormal":{{"median":{WAIT},"p99":{WAIT}}})}}'
EFFECTS: Fields = {
    "status": ("[45][0-9]{2}", "must be an integer between 400 and 599"),
    "retry_after": ("[0-9]{1,5}", "must be an integer between 0 and 99999"),
    "latency": (LATE, 'must be {"fixed": "2s"}, {"uniform": ["5ms", "60s"]} or {"lognormal": {"median": "5ms", "p99": "2s"}}'),
    "body": ('"(truncated|slow|empty)"', "must be truncated, slow or empty"),
    "reset": ("true", "must be true"),
}
CONDITIONS: Fields = {
    "method": ('"(GET|HEAD|POST|PUT|PATCH|DELETE)"', "must be GET, HEAD, POST, PUT, PATCH or DELETE"),
    "token": ("[1-9][0-9]{0,17}", "must be the id of a token"),
    "share": (r"[01]|0\.[0-9]+|[0-9.]+e-[0-9]+", "must be a number between 0 and 1"),
    "first": ("[1-9][0-9]{0,8}", "must be an integer between 1 and 999999999"),
    "for": ('"([1-9][0-9]{0,4}[smh]|[1-9][0-9]{0,3}d)"', "must be a duration such as 30s or 5m, between 1s and 9999d"),
}
PLAN: Fields = {
    "seed": ("[0-9]{1,18}", "must be an integer between 0 and 10^18 - 1"),
    "faults": ("", f"must be an array of at most {MAX_RULES} rules"),
}
TOGETHER = "(?=.)((status (retry_after )?)?(latency )?(body )?|(latency )?reset )"  # effects, in their order
TOLD: dict[str, Any] = {"requests": 0, "hits": 0, "until": None}  # of a rule, and passed over when it comes back
canonical = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def draw_latency(latency: Any, bits: int) -> float:
    """Draw the seconds of a latency by bits that are random. Raises ValueError for one whose durations are reversed."""
    found = re.findall('"([0-9]+)(m?)s"', canonical(latency))
    first, *_, last = (int(digits) / (1000 if milli else 1) for digits, milli in (found[0], *found))
    if first > last:
        raise ValueError("the longer one stands first")
    bits, share = bits // STEPS, (bits % STEPS + 1) / STEPS
    if "lognormal" not in latency:
        return first + (last - first) * share
    normal = math.sqrt(-2 * math.log(share)) * math.cos(math.tau * (bits % STEPS) / STEPS)  # by Box and Muller
    return min(first * math.exp(normal * math.log(last / first) / P99), MAX_LATENCY)


def find_errors(given: Mapping[str, Any], where: str, fields: Fields) -> dict[str, list[str]]:
    """Return what is wrong with the fields that are given, by place."""
    errors = {}
    for name, value in given.items():
        pattern, words = fields.get(name, ("", f"is none of {', '.join(fields)}"))
        with suppress(ValueError, RecursionError):
            if re.fullmatch(pattern, canonical(value)) and (name != "latency" or draw_latency(value, 0)):
                continue
        errors[f"{where}{cut_text(escape(name), 60)}"] = words
    if "reset" in fields and not re.fullmatch(TOGETHER, "".join(f"{name} " for name in EFFECTS if name in given)):
        errors[where[:-1]] = "must have a status (with it retry_after), latency or body, or a reset (with it latency alone)"
    return {place: [f"The {place} field {words}."] for place, words in errors.items()}


def read_asked(text: str) -> dict[str, Any]:
    """Read what goes wrong with one request: `status=503; retry-after=2; latency=300ms; body=truncated`. Raises BadRequest."""
    given, fields = dict[str, Any](), {**EFFECTS, "latency": (LATE, "must be a duration such as 300ms or 2s, a minute at most")}
    for part in filter(str.strip, text.split(";")):
        name, sign, value = (piece.strip() for piece in part.replace("-", "_").partition("="))
        if name in given:
            raise BadRequest(f"The X-Ticketapi-Fault header names {cut_text(escape(name), 60)} twice.")
        number = int(value) if re.fullmatch("[0-9]{1,5}", value) else None
        word = True if value == "true" else value or not sign
        given[name] = {"fixed": value} if name == "latency" else word if number is None else number
    for messages in find_errors(given, "X-Ticketapi-Fault.", fields).values():
        raise BadRequest(messages[0])
    return given


def read_faults(given: Mapping[str, Any], routes: Sequence[str], now: int) -> tuple[int, list[dict[str, Any]]]:
    """Return seed and rules of a file or a request, which hold from now on. Raises InvalidFields."""
    others = {name: value for name, value in given.items() if name != "faults" and value is not None}
    rules, errors = given.get("faults"), find_errors(others, "", PLAN)
    if not isinstance(rules, list) or len(rules) > MAX_RULES:
        raise InvalidFields(errors | find_errors({"faults": None}, "", PLAN))
    route = (f'"({"|".join(map(re.escape, ("*", *routes)))})"', f"must be * or one of {', '.join(routes)}")
    for number, rule in enumerate(rules):
        items = rule.items() if isinstance(rule, dict) else ()
        rule = {"route": None} | {name: value for name, value in items if value is not None and name not in TOLD}
        errors |= find_errors(rule, f"faults.{number}.", {"route": route, **CONDITIONS, **EFFECTS})
        until = None if errors or "for" not in rule else format_time(now + read_duration(rule["for"]) * MICROSECONDS)
        rules[number] = dict.fromkeys(("route", *CONDITIONS, *EFFECTS)) | {"share": 1} | rule | TOLD | {"until": until}
    if errors:
        raise InvalidFields(errors)
    return others.get("seed", 0), rules


@dataclass(eq=False)
class Faults:
    """What goes wrong on one server: the rules in force, as the API shows them, and how often what went wrong."""

    seed: int = 0
    rules: Sequence[dict[str, Any]] = ()
    kinds: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def in_force(self, now: int, route: str | None = None) -> list[tuple[int, dict[str, Any]]]:
        """Return the rules that have not healed, with their numbers: all, or those of a route."""
        mine = [one for one in enumerate(self.rules) if route is None or one[1]["route"] in ("*", route)]
        moment = format_time(now) if mine else ""
        lasting = ((number, rule) for number, rule in mine if moment < (rule["until"] or "~"))
        return [(number, rule) for number, rule in lasting if rule["requests"] < (rule["first"] or math.inf)]

    def find(self, about: tuple[str, str, int | None], now: int, asked: str | None = None) -> dict[str, Any]:
        """Return what goes wrong with a request: what it asks for itself, or by the first rule that hits it."""
        fault, bits = {} if asked is None else read_asked(asked), 0
        with self._lock:
            for number, rule in self.in_force(now, about[0]) if asked is None else ():
                if rule["method"] in (None, about[1]) and rule["token"] in (None, about[2]):
                    rule["requests"] += 1
                    bits, draw = divmod(throw(self.seed, f"fault {number}", rule["requests"]), STEPS)
                    if draw < STEPS * rule["share"]:
                        rule["hits"] += 1
                        fault = {name: rule[name] for name in EFFECTS if rule[name] is not None}
                        break
            self.kinds.update(fault.keys() - {"retry_after"})
        return fault | ({"latency": draw_latency(fault["latency"], bits)} if "latency" in fault else {})

    def metrics(self, now: int) -> list[Metric]:
        """Return how many rules are in force, and what has gone wrong."""
        kinds = [("", {"kind": kind}, count) for kind, count in sorted(self.kinds.items())]
        return [
            Metric("ticketapi_fault_rules", "gauge", "Rules in force by which requests go wrong.", len(self.in_force(now))),
            Metric("ticketapi_faults_total", "counter", "What has gone wrong on purpose.", kinds),
        ]


# ======================================================================================================================
# Room 22. Plugins: what happens to every request before and after its handler. Touches request and response.
# ======================================================================================================================

MAX_HEADER_BYTES, MAX_BODY_BYTES = 16 * 1024, 64 * 1024
REPEAT_SECONDS = HOUR  # after which a failure of the database that goes on is logged again
PROXIED = {"HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP"}  # with HTTP_X_FORWARDED_*
HOST_PATTERN = re.compile(r"([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]*))?")
REQUEST_ID = re.compile(r"[0-9A-Za-z._:/+=@-]{1,128}")  # what is taken over; nothing that a log or a terminal would act on
NOT_IN_A_PATH = re.compile(r"[\x00-\x1f\x7f]")  # a route's `$` would accept a line feed at the end


COMMON_HEADERS = {
    "Content-Type": "application/json",
    "Cache-Control": "no-cache, private",
    "X-Content-Type-Options": "nosniff",
}


EXPOSED_HEADERS = (
    "ETag, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, RateLimit, RateLimit-Policy, "
    "Link, X-Total-Count, Location, Idempotent-Replayed, X-Request-Id"
)
OPEN_TO_ALL = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": EXPOSED_HEADERS}


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
        if "*" in self.origins:
            return OPEN_TO_ALL
        headers = {"Vary": "Origin"} if self.origins else {}
        return headers | OPEN_TO_ALL | {"Access-Control-Allow-Origin": origin} if origin in self.origins else headers

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


def allowed_methods(methods: Iterable[str]) -> str:
    """Return the methods of a route as Laravel lists them: OPTIONS goes unsaid."""
    return ", ".join(sorted({*methods, *(("HEAD",) if "GET" in methods else ())} - {"OPTIONS"}))


def choose_request_id(asked: str) -> str:
    """Return the id of a request: what its client asks for, if nothing is wrong with it, or one that is made."""
    is_safe = asked and REQUEST_ID.fullmatch(asked) and redact_text(asked) == asked
    return asked if is_safe else secrets.token_hex(16)


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
        """Start a request, or let one that was parked go on; answers a preflight at once."""
        environ = bottle.request.environ
        path = environ["bottle.raw_path"]
        if not (path.isascii() and path.isprintable()):
            # Bottle drops bytes that are no UTF-8; here they become U+FFFD, which no route holds.
            path = NOT_IN_A_PATH.sub("\ufffd", path.encode("latin-1").decode("utf-8", "replace"))
        environ["PATH_INFO"] = path[:-1] if len(path) > 1 and path.endswith("/") else path
        environ["ticketapi.replay"] = iter(environ.get("ticketapi.outcomes", ()))
        if environ.pop("ticketapi.parked", False):
            return
        environ["ticketapi.now"] = self.clock.wall()
        environ["ticketapi.tick"] = self.clock.monotonic()
        environ["ticketapi.request_id"] = choose_request_id(environ.get("HTTP_X_REQUEST_ID", ""))
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
        """Finish a request, unless it is parked; its audit row is taken before the answer is sent."""
        environ, response = bottle.request.environ, bottle.response
        if environ.get("ticketapi.parked"):
            return
        # Bottle's own dict: a sixth of a cached answer's time went into checking and respelling names and values known here.
        headers: dict[str, list[str]] = response.headers.dict
        for name, value in self.headers(environ).items():
            if name not in headers:  # a page has a type of its own, and a preflight's answer its own Vary
                headers[name] = [value]
        status = response.status_code
        if status == 405:
            headers["Allow"] = [allowed_methods(headers["Allow"][0].split(","))]
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
            log.debug("%s %s %s %d %s", client, environ["REQUEST_METHOD"], path, status, environ["ticketapi.request_id"])

    def headers(self, environ: dict[str, Any]) -> dict[str, str]:
        """Return the headers that every answer has, with those of CORS and of the limit."""
        headers = COMMON_HEADERS | {"X-Request-Id": environ["ticketapi.request_id"]}
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
        "path": audit_text(environ["PATH_INFO"].lstrip("/"), MAX_AUDIT_PATH),
        "route_name": route.name if route else None,
        "status_code": status,
        "ip_address": environ.get("REMOTE_ADDR", ""),
        "user_agent": audit_text(agent, MAX_AUDIT_USER_AGENT) or None,
        "duration_ms": int((tick - environ["ticketapi.tick"]) * 1000),
        "query": audit_payload(environ.get("ticketapi.query") or (query and parse_form(query))),
        "request_body": request_body(environ),
        "created_at": format_time(environ["ticketapi.now"]),
        "request_id": environ["ticketapi.request_id"],
    }


def request_body(environ: dict[str, Any]) -> str | None:
    """Return a request's body as the audit log keeps it."""
    if environ.get("CONTENT_LENGTH", "0") in ("", "0"):
        return None
    posted: Posted | None = environ.get("ticketapi.posted")
    if posted and int(environ["CONTENT_LENGTH"]) <= MAX_AUDIT_BYTES and media_type(environ.get("CONTENT_TYPE", "")) != FORM:
        return audit_payload(posted.fields)  # which were read from JSON
    raw = bottle.request.body.read(MAX_BODY_BYTES)
    return audit_payload(parse_body(raw, environ.get("CONTENT_TYPE", "")))


def wait_for(start: Callable[[], Future[Any]]) -> Any:
    """Return what comes of what is started. The request is parked for that: the app runs again, up to here, when it is done."""
    environ = bottle.request.environ
    for future in environ["ticketapi.replay"]:
        return future.result()
    environ["ticketapi.parked"] = True
    environ["PATH_INFO"] = environ["bottle.raw_path"]  # as Bottle wants it
    raise Parked(start())


def delay(seconds: float) -> None:
    """Let a request wait, if there is a server to park it, and something to wait for."""
    environ, future = bottle.request.environ, Future[None]()
    if seconds and "ticketapi.call" in environ:
        wait_for(lambda: environ["ticketapi.call"](partial(future.set_result, None), seconds) or future)


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
            except (DeskBusy, DiskFull, *FAILURES) as error:
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
    if isinstance(error, TicketApiError) and error.status != 500:
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
            if not (environ.get("ticketapi.outcomes") or (open_locally and is_local(environ))):
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
        if ability and not environ["ticketapi.token"].can(ability):
            challenge = f'Bearer error="insufficient_scope", scope="{ability}"'
            raise bottle.HTTPError(403, "Invalid ability provided.", www_authenticate=challenge)


@dataclass(eq=False)
class Spoil:
    """Lets requests go wrong as the faults in force, or they themselves, ask for. Innermost, around the handler alone."""

    faults: Faults
    catch: Callable[[Callable[..., Any]], Callable[..., Any]]  # turns exceptions into answers
    name, api = "spoil", 2

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Wrap a handler; one whose route has no name tells of methods alone."""

        def faulty(*args: Any, **kwargs: Any) -> Any:
            environ = bottle.request.environ
            if self.faults.rules or "HTTP_X_TICKETAPI_FAULT" in environ or "ticketapi.fault" in environ:
                return self.answer(environ, partial(self.catch(callback), *args, **kwargs))
            return callback(*args, **kwargs)

        return callback if (route.name or "up").partition(".")[0] in NEVER_FAULTY else faulty

    def answer(self, environ: dict[str, Any], handle: Callable[[], bytes | Stream]) -> Any:
        """Answer a request. What goes wrong is drawn once, and the answer that is to be spoilt made once."""
        if "ticketapi.fault" not in environ:
            token, asked = environ.get("ticketapi.token"), environ.get("HTTP_X_TICKETAPI_FAULT")
            asked = asked if token and token.can(CONTROL_FAULTS) else None
            about = (environ["bottle.route"].name, environ["REQUEST_METHOD"], token and token.id)
            waits = environ.get("ticketapi.outcomes")  # since before there were rules
            environ["ticketapi.fault"] = {} if waits else self.faults.find(about, environ["ticketapi.now"], asked)
        if not (fault := environ["ticketapi.fault"]):
            return handle()
        if "ticketapi.answer" not in environ:
            try:
                body, source = fail(**fault) if "status" in fault else handle(), bottle.response
            except bottle.HTTPError as error:
                body, source = error_body(error), error
            environ["ticketapi.answer"] = answer = source.copy(bottle.HTTPResponse)
            answer.body = body
            delay(fault.get("latency", 0.0))
        return spoil(environ["ticketapi.answer"], fault, environ.get("ticketapi.call"))


def fail(status: int, retry_after: int | None = None, **_: object) -> NoReturn:
    """Raise the error that stands for an answer, with the headers that RFC 9110 wants in it."""
    words = {401: "Unauthenticated.", 429: "Too Many Attempts.", 500: "Server Error"}
    headers = {401: {"www_authenticate": "Bearer"}, 405: {"allow": ""}}.get(status, {})
    headers |= {} if retry_after is None else {"retry_after": str(retry_after)}
    raise bottle.HTTPError(status, {"message": words.get(status) or bottle.HTTP_CODES.get(status, "Error")}, **headers)


def spoil(answer: bottle.HTTPResponse, fault: Mapping[str, Any], call: Callable[..., None] | None) -> bottle.HTTPResponse:
    """Return an answer with its body spoilt; where there is none, and in a stream, there is nothing to cut. Raises Reset."""
    body, how = answer.body, fault.get("body")
    if isinstance(body, Stream) and (how == "empty" or "reset" in fault):
        body.close()
    if call and "reset" in fault:
        answer.apply(bottle.response)  # so that it is written down
        raise Reset
    body = b"" if how == "empty" else body
    if how and isinstance(body, bytes):
        size, answer.headers["Content-Length"] = len(body), str(len(body))
        answer.body = body[: size // 2] if how == "truncated" else body
        if how == "slow" and call and body:
            answer.body = stream = Stream(ends=True)
            for part in range(SLOW_PARTS):
                data = body[size * part // SLOW_PARTS : size * (part + 1) // SLOW_PARTS]
                call(partial(stream.send, data), SLOW_SECONDS * (part + 1) / SLOW_PARTS)
            call(stream.close, SLOW_SECONDS)
    return answer


# ======================================================================================================================
# Room 23. Routes: the app and its handlers. Touches request and response; operations get plain values.
# ======================================================================================================================

ID = "<{}:re:[1-9][0-9]{{0,17}}>"  # 18 digits: inside SQLite's 64 bits
TICKET, USER, WEBHOOK = (f"/api/{name}s/{ID.format(f'{name}_id')}" for name in ("ticket", "user", "webhook"))
SNAPSHOT = f"/api/snapshots/<name:re:{SNAPSHOT_NAME}>"


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
    writer: Writer
    broadcast: Broadcast
    traffic: Traffic
    schedule: Schedule
    users: TokenBucket | None
    addresses: TokenBucket
    readiness: Readiness
    faults: Faults
    description: Answer
    dashboard: Page
    reference: Page


def base_url(environ: Mapping[str, Any]) -> str:
    """Return the URL of this server as the client used it."""
    return f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}{environ.get('ticketapi.prefix', '')}"


def list_url(environ: Mapping[str, Any]) -> str:
    """Return the URL of a request as the client used it, without the query."""
    return base_url(environ) + str(environ["PATH_INFO"])


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


def perform(app: Shared, operation: Operation) -> Any:
    """Return what a writing operation returns, once it is committed; the handler is run again for that, from its start."""
    if soon := bottle.request.environ.get("ticketapi.call"):
        return wait_for(partial(app.writer.submit, operation, soon))
    return app.writer.run(operation)


def read_posted(ids: Mapping[str, str], keyed: bool, has_body: bool = True) -> Posted:
    """Return the write that the request asks for, read once. Raises UnknownType, BadRequest and TooLarge, in this order."""
    environ = bottle.request.environ
    if "ticketapi.posted" not in environ:
        raw, kind = bottle.request.body.read(MAX_BODY_BYTES + 1), environ.get("CONTENT_TYPE", "")
        check_type(kind if has_body else "")
        key = read_key(environ["HTTP_IDEMPOTENCY_KEY"]) if keyed and "HTTP_IDEMPOTENCY_KEY" in environ else ""
        if len(raw) > MAX_BODY_BYTES:
            raise TooLarge(f"The request body is over {MAX_BODY_BYTES} bytes.")
        fields, route = read_fields(raw, kind) if has_body else {}, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        digest = hashlib.sha256(raw).hexdigest() if key else ""
        if_match = environ.get("HTTP_IF_MATCH", "*")  # an empty one is no tag at all
        token, now, numbers = environ["ticketapi.token"], environ["ticketapi.now"], {name: int(ids[name]) for name in ids}
        environ["ticketapi.posted"] = Posted(fields, digest, key, if_match, route, numbers, token, now)
    posted: Posted = environ["ticketapi.posted"]
    return posted


def answer_write(
    app: Shared,
    ids: Mapping[str, str],
    check: Callable[[Connection, Posted], Any],
    change: Callable[[Connection, Posted, Any], Written],
    keyed: bool = False,
    has_body: bool = True,
    together: Callable[[Connection, Sequence[Posted]], list[Written]] | None = None,
) -> bytes:
    """Do a write and answer it. What is wrong with it is told before it waits for its turn, and looked for again then."""
    posted, done = read_posted(ids, keyed, has_body), None
    if not bottle.request.environ.get("ticketapi.outcomes"):
        db = app.readers.get().db
        done = find_replay(db, posted)
        if not done:
            check(db, posted)
    alone: Operation = partial(write_once, posted=posted, check=check, write=change)
    done = done or perform(app, Joint(together, posted) if together and not posted.key else alone)
    headers = bottle.response.headers.dict  # as in AuditHook.after
    bottle.response.status = done.status
    if done.location:
        headers["Location"] = [base_url(bottle.request.environ) + done.location]
    if done.replayed:
        headers["Idempotent-Replayed"] = ["true"]
    if done.body:
        headers |= make_answer(done.body).headers
    return done.body


def beside(work: Callable[[], Any]) -> Any:
    """Return what a function returns that may take seconds: a thread of its own does it, if there is a server to park us."""

    def start() -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, name="beside", daemon=True).start()
        return future

    return wait_for(start) if "ticketapi.call" in bottle.request.environ else work()


def send(answer: Answer) -> bytes:
    """Send an answer with its ETag; 304 without a body when the client has these very bytes."""
    bottle.response.headers.dict.update(answer.headers)  # as in AuditHook.after
    if matches_etag(bottle.request.environ.get("HTTP_IF_NONE_MATCH", ""), answer.etag):
        bottle.response.status = 304
        return b""
    return answer.body


def matches_etag(wanted: str, etag: str) -> bool:
    """Tell whether an If-None-Match header names an ETag; weak comparison, as RFC 9110 section 13.1.2 asks for."""
    tags = [text.strip(" \t") for text in wanted.split(",")] if wanted else []
    return tags == ["*"] or etag in [tag.removeprefix("W/") for tag in tags]


def asked_list(has_cursors: bool = True) -> ListRequest:
    """Return what the request asks for of a list."""
    environ = bottle.request.environ
    return parse_list_request(list_url(environ), request_query(environ), has_cursors)


def desk_time(app: Shared) -> int:
    """Return the time of the desk at which the request is answered."""
    simulation, now = app.readers.get().recall(find_simulation), bottle.request.environ["ticketapi.now"]
    return int(simulation.now(now) if simulation else now)


def asked_feed(app: Shared, by_time: bool = False) -> FeedRequest:
    """Return what the request asks for of a list that has cursors alone."""
    environ, now = bottle.request.environ, desk_time(app) if by_time else 0
    asked = parse_feed_request(list_url(environ), request_query(environ), now, by_time)
    simulation = app.readers.get().recall(find_simulation)
    if simulation and asked.since is not None:  # what was due since then is still to be told
        return asked._replace(since=min(asked.since, simulation.worked))
    return asked


def show_open_tickets(app: Shared) -> bytes:
    """GET /api/tickets/open."""
    return reply(app, lambda db: open_tickets_page(db, asked_list(), app.readers.get().recall(open_bounds)))


def show_closed_tickets(app: Shared) -> bytes:
    """GET /api/tickets/closed."""
    return reply(app, lambda db: closed_tickets_page(db, asked_list(), app.readers.get().recall(closed_bounds)))


def show_ticket(app: Shared, ticket_id: str) -> bytes:
    """GET /api/tickets/{id}."""
    return reply(app, lambda db: ticket_resource(db, int(ticket_id)))


def search_tickets(app: Shared) -> bytes:
    """GET /api/tickets."""
    environ = bottle.request.environ
    asked = parse_search_request(list_url(environ), request_query(environ), desk_time(app))
    return send(make_answer(search_page(app.readers.get().db, asked)))


def export_tickets(app: Shared) -> bytes:
    """GET /api/tickets/export."""
    return send(make_answer(export_page(app.readers.get().db, asked_feed(app, by_time=True))))


def show_events(app: Shared) -> bytes:
    """GET /api/events."""
    return send(make_answer(events_page(app.readers.get().db, asked_feed(app))))


def stream_events(app: Shared) -> bytes | Stream:
    """GET /api/events/stream: Server-Sent Events, from after an event, or from the next one on."""
    environ, db = bottle.request.environ, app.readers.get().db
    asked = {"after field": request_query(environ).get("after"), "Last-Event-ID header": environ.get("HTTP_LAST_EVENT_ID")}
    with snapshot(db):
        (oldest, last), epoch = event_ends(db), find_epoch(db)
        after = last
        for name, text in asked.items():
            number = whole_number(text) if text else after
            if number is None:
                raise InvalidFields({name.partition(" ")[0]: [f"The {name} must be the id of an event."]})
            after = number
        if not max(oldest, get_counter(db, "change")) <= after <= last:
            raise Gone("The events after this one are not kept; read the export, then come back without it.")
    bottle.response.content_type = "text/event-stream; charset=utf-8"
    bottle.response.headers["X-Accel-Buffering"] = "no"  # or nginx would keep events until it has many
    stream = b"" if environ["REQUEST_METHOD"] == "HEAD" else app.broadcast.follow(environ["ticketapi.token"], after, epoch)
    if stream is None:
        raise bottle.HTTPError(503, "Too many streams are open; close one, or try again later.", retry_after="5")
    return stream


def show_comments(app: Shared, ticket_id: str) -> bytes:
    """GET /api/tickets/{id}/comments."""
    return reply(app, lambda db: comments_page(db, int(ticket_id), asked_list()))


def write_webhook(app: Shared, **ids: str) -> bytes:
    """POST /api/webhooks and PATCH /api/webhooks/{id}: the name in the URL is looked up first, which may take seconds."""
    environ, db, posted = bottle.request.environ, app.readers.get().db, read_posted(ids, keyed=not ids)
    if ids:
        get_webhook(db, posted.ids["webhook_id"])
    if "ticketapi.repeated" not in environ:
        environ["ticketapi.repeated"] = find_replay(db, posted) is not None
    fields: dict[str, Any] = {}
    if not environ["ticketapi.repeated"]:
        fields = beside(partial(read_webhook, posted.fields, private=False, is_new=not ids))

    def change(db: Connection, posted: Posted, checked: object) -> Written:
        if ids:
            return Written(200, to_json({"data": update_webhook(db, posted.ids["webhook_id"], fields, posted.now)}))
        webhook = create_webhook(db, fields, posted.token.user_id, posted.now)
        return Written(201, to_json({"data": webhook}), f"/api/webhooks/{webhook['id']}")

    return answer_write(app, ids, check=lambda db, posted: None, change=change, keyed=not ids)


def show_webhooks(app: Shared) -> bytes:
    """GET /api/webhooks."""
    return reply(app, lambda db: to_json({"data": list(map(webhook_resource, list_webhooks(db)))}))


def show_webhook(app: Shared, webhook_id: str) -> bytes:
    """GET /api/webhooks/{id}."""
    return reply(app, lambda db: to_json({"data": webhook_resource(get_webhook(db, int(webhook_id)))}))


def show_deliveries(app: Shared, webhook_id: str) -> bytes:
    """GET /api/webhooks/{id}/deliveries."""
    return send(make_answer(deliveries_page(app.readers.get().db, int(webhook_id), asked_feed(app))))


def check_webhook(db: Connection, posted: Posted) -> None:
    """Find a webhook. Raises NotFound."""
    get_webhook(db, posted.ids["webhook_id"])


def destroy_webhook(db: Connection, posted: Posted, checked: object) -> Written:
    """DELETE /api/webhooks/{id}."""
    delete_webhook(db, posted.ids["webhook_id"])
    return Written(204)


def try_webhook(db: Connection, posted: Posted, checked: object) -> Written:
    """POST /api/webhooks/{id}/test and .../deliveries/{id}/retry: what is sent soon."""
    if "delivery_id" in posted.ids:
        sent = resend_delivery(db, posted.ids["webhook_id"], posted.ids["delivery_id"], posted.now)
    else:
        sent = delivery_resource(add_test(db, posted.ids["webhook_id"], posted.now, begin=False)[1])
    return Written(202, to_json({"data": sent}))


def show_snapshots(app: Shared, name: str = "*") -> bytes:
    """GET /api/snapshots and GET /api/snapshots/{name}."""
    found = beside(partial(list_snapshots, app.settings.db, name))
    return send(make_answer(to_json({"data": found if name == "*" else found[0]})))


def change_snapshot(work: Callable[..., dict[str, Any]], app: Shared, name: str, status: int = 200) -> bytes:
    """Save, restore or delete a snapshot."""
    record = beside(partial(work, app.settings.db, name, bottle.request.environ["ticketapi.now"]))
    bottle.response.status = 204 if work is delete_snapshot else status
    return b"" if work is delete_snapshot else to_json({"data": record})


def store_snapshot(app: Shared) -> bytes:
    """POST /api/snapshots."""
    errors: dict[str, list[str]] = {}
    name = check_text(read_posted({}, keyed=False).fields.get("name"), "name", 64, errors)
    if not re.fullmatch(SNAPSHOT_NAME, name):
        raise InvalidFields(errors or {"name": [f"The name field must be {SNAPSHOT_WORDS}."]})
    body = change_snapshot(save_snapshot, app, name, 201)
    bottle.response.headers["Location"] = f"{base_url(bottle.request.environ)}/api/snapshots/{name}"
    return body


def show_token(app: Shared) -> bytes:
    """GET /api/token."""
    return send(make_answer(token_resource(app.readers.get().db, bottle.request.environ["ticketapi.token"].id)))


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
    now = desk_time(app)
    asked = parse_series_request(request_query(bottle.request.environ), now)
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
    now, simulation = desk_time(app), app.readers.get().recall(find_simulation)
    coming = simulated_jobs(simulation, now) if simulation else {}
    return send(
        make_answer(to_json({"data": [job_resource(job, now) | coming.get(job.name, {}) for job in app.schedule.jobs]}))
    )


ANSWER_SECONDS = 1.0  # that a client waits for a clock to advance; then it is told to look again


def show_clock(app: Shared) -> bytes:
    """GET /api/clock."""
    simulation = app.readers.get().recall(find_simulation)
    return send(make_answer(to_json({"data": clock_resource(simulation, bottle.request.environ["ticketapi.now"])})))


def move_clock(app: Shared) -> bytes:
    """PUT /api/clock: what happens until then happens beside; 202 when that takes longer than ANSWER_SECONDS."""
    posted, clock = read_posted({}, keyed=False), app.writer.clock
    wish = read_wish(posted.fields)

    def move() -> None:
        with closing(connect(app.settings.db, SCHEDULED)) as db:
            set_clock(db, wish, posted.now)
            with suppress(*FAILURES):  # it is set, and goes on by the scheduler
                work_off(db, clock, ANSWER_SECONDS)

    beside(move)
    reader = app.readers.get()
    reader.refresh()
    simulation = reader.recall(find_simulation)
    bottle.response.status = 202 if simulation and simulation.target is not None else 200
    return to_json({"data": clock_resource(simulation, clock.wall())})


def control_faults(app: Shared) -> bytes:
    """GET, PUT and DELETE /api/faults: the rules of this server, others, none."""
    environ, faults = bottle.request.environ, app.faults
    if environ["REQUEST_METHOD"] == "PUT":
        faults.seed, faults.rules = read_faults(read_posted({}, False).fields, FAULTY_ROUTES, environ["ticketapi.now"])
    elif environ["REQUEST_METHOD"] == "DELETE":
        faults.seed, faults.rules, bottle.response.status = 0, (), 204
        return b""
    body = to_json({"data": {"seed": faults.seed, "faults": faults.rules}})
    return body if environ["REQUEST_METHOD"] == "PUT" else send(make_answer(body))


def show_up(app: Shared) -> bytes:
    """GET /up: the process answers, and its scheduler goes round."""
    if not app.schedule.alive(bottle.request.environ["ticketapi.tick"]):
        raise bottle.HTTPError(503, "The scheduler does not go round.", retry_after="1")
    faults = len(app.faults.in_force(bottle.request.environ["ticketapi.now"]))
    return to_json({"status": "up", "faults": faults} if faults else {"status": "up"})


def show_metrics(app: Shared) -> bytes:
    """GET /metrics: figures for Prometheus."""
    metrics = [
        *request_metrics(app.traffic),
        *desk_metrics(app.readers),
        *audit_metrics(app.audit),
        *schedule_metrics(app.schedule, bottle.request.environ["ticketapi.tick"]),
        *app.faults.metrics(bottle.request.environ["ticketapi.now"]),
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


def show_options(methods: str, **_: str) -> bytes:
    """OPTIONS on a route that exists: what it supports."""
    bottle.response.headers["Allow"] = methods
    return b""


class Route(NamedTuple):
    """A route of the app: its rule and name, its handler, the ability that a token needs for it, None for none."""

    rule: str
    name: str
    handler: Callable[..., bytes | Stream]
    ability: str | None = None
    open_locally: bool = False  # asks this machine for no token
    method: str = "GET"


ANY_ABILITY = ""  # whatever a valid token may do


def writing(
    check: Callable[[Connection, Posted], Any],
    change: Callable[[Connection, Posted, Any], Written],
    keyed: bool = False,
    has_body: bool = True,
    together: Callable[[Connection, Sequence[Posted]], list[Written]] | None = None,
) -> Callable[..., bytes]:
    """Return the handler of a write; `together` does several that have no key."""
    return lambda app, **ids: answer_write(app, ids, check, change, keyed, has_body, together)


change_ticket = writing(check_changes, write_changes)
send_again = writing(check_webhook, try_webhook, has_body=False)
store_ticket = writing(check_new_ticket, write_new_ticket, keyed=True, together=write_new_tickets)

ROUTES = (
    Route("/api/tickets", "tickets", search_tickets, READ_TICKETS),
    Route("/api/tickets", "tickets.store", store_ticket, WRITE_TICKETS, method="POST"),
    Route("/api/tickets/export", "tickets.export", export_tickets, READ_TICKETS),
    Route("/api/tickets/open", "tickets.open", show_open_tickets, READ_TICKETS),
    Route("/api/tickets/closed", "tickets.closed", show_closed_tickets, READ_TICKETS),
    Route(TICKET, "tickets.show", show_ticket, READ_TICKETS),
    Route(TICKET, "tickets.update", change_ticket, WRITE_TICKETS, method="PATCH"),
    Route(TICKET, "tickets.replace", change_ticket, WRITE_TICKETS, method="PUT"),
    Route(TICKET, "tickets.destroy", writing(check_ticket, write_deletion, has_body=False), WRITE_TICKETS, method="DELETE"),
    Route(f"{TICKET}/comments", "comments", show_comments, READ_TICKETS),
    Route(
        f"{TICKET}/comments", "comments.store", writing(check_comment, write_comment, keyed=True), WRITE_TICKETS, method="POST"
    ),
    Route("/api/events", "events", show_events, READ_TICKETS),
    Route("/api/events/stream", "events.stream", stream_events, READ_TICKETS),
    Route("/api/users", "users", show_users, READ_TICKETS),
    Route(USER, "users.show", show_user, READ_TICKETS),
    Route(f"{USER}/tickets", "users.tickets", show_user_tickets, READ_TICKETS),
    Route("/api/stats", "stats", show_stats, READ_TICKETS),
    Route("/api/series", "series", show_series, READ_TICKETS),
    Route("/api/audits", "audits", show_audits, READ_AUDITS),
    Route("/api/audits/summary", "audits.summary", show_audits_summary, READ_AUDITS),
    Route("/api/schedule", "schedule", show_schedule, READ_TICKETS),
    Route("/api/token", "token", show_token, ANY_ABILITY),
    Route("/api/webhooks", "webhooks", show_webhooks, WRITE_WEBHOOKS),
    Route("/api/webhooks", "webhooks.store", write_webhook, WRITE_WEBHOOKS, method="POST"),
    Route(WEBHOOK, "webhooks.show", show_webhook, WRITE_WEBHOOKS),
    Route(WEBHOOK, "webhooks.update", write_webhook, WRITE_WEBHOOKS, method="PATCH"),
    Route(
        WEBHOOK, "webhooks.destroy", writing(check_webhook, destroy_webhook, has_body=False), WRITE_WEBHOOKS, method="DELETE"
    ),
    Route(f"{WEBHOOK}/test", "webhooks.test", send_again, WRITE_WEBHOOKS, method="POST"),
    Route(f"{WEBHOOK}/deliveries", "webhooks.deliveries", show_deliveries, WRITE_WEBHOOKS),
    Route(
        f"{WEBHOOK}/deliveries/{ID.format('delivery_id')}/retry", "webhooks.retry", send_again, WRITE_WEBHOOKS, method="POST"
    ),
    Route("/api/clock", "clock", show_clock, READ_TICKETS),
    Route("/api/clock", "clock.update", move_clock, CONTROL_CLOCK, method="PUT"),
    Route("/api/snapshots", "snapshots", show_snapshots, CONTROL_DESK),
    Route("/api/snapshots", "snapshots.store", store_snapshot, CONTROL_DESK, method="POST"),
    Route(SNAPSHOT, "snapshots.show", show_snapshots, CONTROL_DESK),
    Route(SNAPSHOT, "snapshots.destroy", partial(change_snapshot, delete_snapshot), CONTROL_DESK, method="DELETE"),
    Route(f"{SNAPSHOT}/restore", "snapshots.restore", partial(change_snapshot, restore_snapshot), CONTROL_DESK, method="POST"),
    Route("/api/faults", "faults", control_faults, CONTROL_FAULTS),
    Route("/api/faults", "faults.replace", control_faults, CONTROL_FAULTS, method="PUT"),
    Route("/api/faults", "faults.destroy", control_faults, CONTROL_FAULTS, method="DELETE"),
    Route("/metrics", "metrics", show_metrics, READ_METRICS, open_locally=True),
    Route("/up", "up", show_up),
    Route("/ready", "ready", show_ready),
    Route("/openapi.json", "openapi", show_openapi),
    Route("/", "dashboard", show_dashboard),
    Route("/docs", "docs", show_reference),
)
FAULTY_ROUTES = [route.name for route in ROUTES if route.name.partition(".")[0] not in NEVER_FAULTY]


def make_app(
    settings: Settings,
    readers: Readers,
    audit: AuditLog,
    clock: Clock,
    traffic: Traffic | None = None,
    schedule: Schedule | None = None,
    writer: Writer | None = None,
    broadcast: Broadcast | None = None,
    faults: Faults | None = None,
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
    faults = faults or Faults()
    for plugin in (catch_errors, authenticate, throttle, Authorize(), Spoil(faults, catch_errors.apply)):  # outermost first
        app.install(plugin)
    limits, files = (throttle.buckets, authenticate.strangers), (load_page("dashboard.html"), load_page("docs.html"))
    description, looks = make_answer(describe_api()), (Readiness(settings.db), faults)
    writer, broadcast = writer or Writer(settings.db, clock), broadcast or Broadcast(settings.db, clock)
    shared = Shared(settings, readers, audit, writer, broadcast, traffic, schedule, *limits, *looks, description, *files)
    methods: dict[str, list[str]] = defaultdict(list)
    for rule, name, handler, ability, open_locally, method in ROUTES:
        app.route(rule, method, partial(handler, shared), name=name, ability=ability, open_locally=open_locally)
        methods[rule].append(method)
    for rule in methods:
        app.route(rule, "OPTIONS", partial(show_options, allowed_methods(methods[rule])))
    return app


# ======================================================================================================================
# Room 24. Jobs: what a server does by itself, on wall-clock boundaries, in one thread. Uses operations.
# ======================================================================================================================

TURN_SECONDS = 0.9  # that the simulation takes of a second when there is much to do
PRUNE_STEPS = 50  # such transactions in one turn of the scheduler, which takes less than a second
MAX_TRIES = 40  # of all webhooks that are under way
STOP_TRIES_SECONDS = 1.5  # for their answers, when the server stops
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
                is_ours = not find_simulation(db) and claim_boundary(db, name, now // step * step, step)
                return run(db, now) if is_ours else Outcome(None, elsewhere=True)

        return Job(name, every, run_here)

    if settings.no_scheduler:
        return []
    load_words()  # now, while the file that ticketapi was started from is sure to be the same
    jobs = [once("generate", settings.generate_every, generate), once("process", settings.process_every, process)]
    if audit and settings.audit_keep:
        jobs.append(Job("prune", DAY, AuditPruner(audit, settings.audit_keep, pause).run, next_at=NEVER))  # at once, then daily
    return [job for job in jobs if job.every]


@dataclass(eq=False)
class Simulator:
    """Lets a desk with a rhythm or a clock of its own go on, a turn each second."""

    place: Place
    clock: Clock
    jobs: Sequence[Job]  # what happens counts as runs of those of its name
    idle: bool = False  # nothing happens by itself; an advance that was asked for is ended all the same
    _db: Connection | None = None
    _failing: bool = False

    def turn(self) -> None:
        """Let happen what is due, for most of a second; a failure is logged when it begins, and the next turn tries again."""
        try:
            self._db = self._db or connect(self.place, SCHEDULED)
            self._note(work_off(self._db, self.clock, TURN_SECONDS, self.idle))
            self._failing = False
        except Exception as error:
            if not self._failing:
                log.error("the simulation cannot go on, tried again every second: %s: %s", self.place, error)
            self._failing = True
            self.close()

    def _note(self, turn: Turn) -> None:
        """Count what happened as runs of the jobs that it stands for."""
        done = {"generate": (turn.arrivals, "generated"), "process": (turn.closings, "processed")}
        for job in self.jobs:
            count, name = done.get(job.name, (0, ""))
            if count and self._db:
                now = desk_now(self._db, self.clock.wall())
                job.past = job.past._replace(
                    runs=job.past.runs + count, last_at=now, last_status="ok", last_result={name: count}
                )

    def rest(self) -> None:
        """Let the clock stand where it is, as the server stops."""
        with suppress(Exception), closing(connect(self.place, SCHEDULED._replace(wait_ms=500))) as db:
            if find_simulation(db):  # others may hold the desk, and the stop has an end
                rest_clock(db, self.clock.wall())
        self.close()

    def close(self) -> None:
        """Close the connection."""
        db, self._db = self._db, None
        if db:
            with suppress(*FAILURES):
                db.close()


class Scheduler(Schedule):
    """The thread around `run_due_jobs`. One thread, so no job ever overlaps itself or another."""

    def __init__(
        self, jobs: Sequence[Job], clock: Clock, stop: threading.Event | None = None, simulator: Simulator | None = None
    ) -> None:
        """Take the jobs, and an event that ends the thread; `start` starts it."""
        super().__init__(jobs, clock.monotonic())
        self.clock, self.simulator = clock, simulator
        self._stop = stop or threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to run the jobs, if there are any."""
        if self.jobs or self.simulator:
            self._thread.start()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Let the running job end, for so long, and begin no other."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, seconds))
        if self.simulator and self._thread.ident:
            self.simulator.rest()

    def _loop(self) -> None:
        """Look once a second, on the second, whether a job is due."""
        while True:
            run_due_jobs(self.jobs, self.clock.wall())
            if self.simulator:
                self.simulator.turn()
            self.heartbeat = self.clock.monotonic()
            if self._stop.wait(1 - self.clock.wall() % MICROSECONDS / MICROSECONDS):
                return


def make_scheduler(settings: Settings, seed: int, audit: AuditLog, clock: Clock, stop: threading.Event) -> Scheduler:
    """Return what lets a desk live until the event is set."""
    jobs = scheduled_jobs(settings, seed, audit, stop.wait)
    simulator = Simulator(settings.db, replace(clock, pause=stop.wait), jobs, settings.no_scheduler)
    return Scheduler(jobs, clock, stop, simulator)


def start_shrinking(places: Iterable[Place], clock: Clock, stop: threading.Event) -> threading.Thread:
    """Start a thread that looks after write-ahead logs once a second, so that the event loop need not wait for the disk."""

    def look() -> None:
        while not stop.wait(1):
            for place in places:
                shrink_wal(place, clock.wall())

    thread = threading.Thread(target=look, name="shrinker", daemon=True)
    thread.start()
    return thread


class Deliveries:
    """Tells webhooks of changes: a thread that looks once a second, and one for each try that is under way."""

    def __init__(self, place: Place, clock: Clock, bits: Bits, resolve: Resolver = resolve_host) -> None:
        """Take the desk; nothing is looked at before `start`."""
        self.place, self.clock, self.bits, self.resolve = place, clock, bits, resolve
        self._flying: dict[int, set[int]] = defaultdict(set)  # deliveries under way, by webhook
        self._replies: deque[tuple[Mapping[str, Any], Reply]] = deque()  # what came of tries
        self._ended: dict[int, list[tuple[Mapping[str, Any], Reply]]] = defaultdict(list)  # and is to be written, by webhook
        self._claims: dict[int, int] = {}
        self._db: Connection | None = None
        self._failing, self._stopping, self._wake = False, False, threading.Event()
        self._thread = threading.Thread(target=self._loop, name="deliveries", daemon=True)

    def start(self) -> Deliveries:
        """Begin to deliver, and return itself."""
        self._thread.start()
        return self

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Begin no more tries, and wait for those under way, but not long: they are made again by the next server."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, seconds))

    def turn(self, now: int) -> None:
        """Write down what came of tries, and begin those that are due."""
        db = self._db = self._db or connect(self.place, SCHEDULED._replace(views=True))
        while self._replies:
            delivery, came = self._replies.popleft()
            self._ended[delivery["webhook_id"]].append((delivery, came))
            self._flying[delivery["webhook_id"]].discard(delivery["id"])
        work = set() if self._stopping else webhooks_with_work(db, self._claims, now)
        for webhook_id in sorted(work | self._ended.keys()):
            self._serve(db, webhook_id, now)

    def _serve(self, db: Connection, webhook_id: int, now: int) -> None:
        """Take the turn of one webhook, and make its tries once they are written down."""
        flying, ended = self._flying[webhook_id], self._ended.get(webhook_id, [])
        room = MAX_TRIES - sum(map(len, self._flying.values()))  # beyond it each webhook has one: who hangs holds up nobody
        room = 0 if self._stopping else min(MAX_UNANSWERED - len(flying), max(room, not flying))
        if not (room or ended):
            return
        tries: list[dict[str, Any]] = []
        with transaction(db), suppress(NotFound):
            webhook = get_webhook(db, webhook_id)
            free = may_claim(webhook, self._claims.get(webhook_id), now)
            tries = take_turn(db, webhook, ended, flying, room if free else 0, now, self.bits)
            self._claims[webhook_id] = webhook["busy_until"] if free else 0
        self._ended.pop(webhook_id, None)
        for delivery in tries:
            threading.Thread(target=self._try, args=(webhook, delivery, now), name="delivery", daemon=True).start()
            flying.add(delivery["id"])

    def _try(self, webhook: Mapping[str, Any], delivery: Mapping[str, Any], now: int) -> None:
        """Make one try, in a thread of its own."""
        self._replies.append((delivery, send_message(webhook, delivery, now, self.clock.monotonic, self.resolve)))
        self._wake.set()

    def _look(self) -> None:
        """Take a turn; a failure is logged when it begins, and the next turn tries again, with a connection of its own."""
        try:
            self.turn(self.clock.wall())
            self._failing = False
        except Exception as error:
            if not self._failing:
                log.error("webhooks cannot be told, tried again every second: %s: %s", self.place, error)
            self._failing = True
            self._close()

    def _close(self) -> None:
        """Close the connection."""
        db, self._db = self._db, None
        if db:
            with suppress(*FAILURES):
                db.close()

    def _loop(self) -> None:
        """Take turns until the end, and then for as long as tries may still be answered."""
        end = math.inf
        while self.clock.monotonic() < end:
            self._look()
            if self._stopping:
                end = min(end, self.clock.monotonic() + STOP_TRIES_SECONDS if any(self._flying.values()) else 0.0)
            self._wake.wait(0.1 if self._stopping else 1.0)
            self._wake.clear()
        self._close()


# ======================================================================================================================
# Room 25. Server: sockets, Waitress, stopping without losing a request, systemd. Knows nothing of tickets.
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

    That is one with no single length for its body, with two hosts, tokens or keys, or with a folded line. Raises ValueError.
    """
    if b"\n " in header or b"\n\t" in header:
        raise ValueError("folded line")
    if any(header.count(b"\n%b:" % name) > 1 for name in (b"host", b"authorization", b"idempotency-key")):
        raise ValueError("repeated field")
    codings = header.count(b"\ntransfer-encoding:")
    if codings + header.count(b"\ncontent-length:") > 1:
        raise ValueError("more than one framing")
    if codings:
        coding = header.partition(b"\ntransfer-encoding:")[2].partition(b"\n")[0]
        is_empty, first_line = not coding.strip(b", \t\r"), header.partition(b"\r\n")[0]
        if is_empty or coding.count(b"chunked") > 1 or not first_line.endswith(b"/1.1"):
            raise ValueError("no coding, chunked twice, or not HTTP/1.1")


def parse_header(parser: Any, header: bytes) -> None:
    """Parse a request's header; replaces, and calls, the method of Waitress's HTTPRequestParser.

    A target that urllib cannot parse is refused; else the connection would end without an answer. The authority of an absolute
    target counts, not Host (RFC 9112, section 3.2.2). Connection is a list, of which two words concern us (RFC 9110, 7.6.1).
    """
    try:
        check_header(header.lower())
        super(type(parser), parser).parse_header(header)
    except ValueError as error:
        from waitress.parser import ParsingError

        raise ParsingError(str(error)) from error
    if parser.version and not parser.version.startswith("1."):
        from waitress.utilities import Error

        parser.error = type("WrongVersion", (Error,), {"code": 505, "reason": "HTTP Version Not Supported"})(parser.version)
    if parser.proxy_netloc:
        parser.headers["HOST"] = parser.proxy_netloc
    words = {word.strip().lower() for word in parser.headers.pop("CONNECTION", "").split(",")}
    for word in words & {"close", "keep-alive"} if parser.version == "1.0" else words & {"close"}:
        parser.headers["CONNECTION"] = "close" if "close" in words else word


def refuse(task: Any) -> None:
    """Answer a request that the parser refused, in JSON; replaces the `execute` of Waitress's ErrorTask."""
    error, request_id = task.request.error, choose_request_id(task.request.headers.get("X_REQUEST_ID", ""))
    log.info("refused a request from %s: %d %s %s", task.channel.addr[0], error.code, error.reason, request_id)
    headers = task.channel.server.refused(error.code, task.request.headers.get("ORIGIN", "")) | {"X-Request-Id": request_id}
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
    channel, headers = task.channel, task.request.headers
    if channel.server.stopping and not channel.unread:
        headers["CONNECTION"] = "close"
    length = ("Content-Length", str(task.content_length))
    if task.version != "1.1" or "CONNECTION" in headers or not task.has_body or length not in task.response_headers:
        return bytes(super(type(task), task).build_response_header())
    lines = [f"HTTP/1.1 {task.status}", *map(": ".join, task.response_headers)]
    lines += ("Server: ticketapi", f"Date: {http_date(int(task.start_time))}", "\r\n")
    return "\r\n".join(lines).encode("latin-1")


def keep_open_without_body(task: Any) -> None:
    """Keep a connection after a 204 or 304; replaces the `set_close_on_finish` of Waitress's WSGITask.

    Waitress closes it, as for any answer without a length, but these end with their headers (RFC 9112, section 6.3).
    """
    asked_to_close = task.request.headers.get("CONNECTION", "").lower() == "close"
    if task.has_body or task.version == "1.0" or asked_to_close:
        super(type(task), task).set_close_on_finish()


def begin_environ(task: Any) -> Any:
    """Return the environ of a request, the same each time it is asked; replaces, and calls, Waitress's get_environment."""
    environ = task.request.environ = task.request.environ or super(type(task), task).get_environment()
    environ.setdefault("ticketapi.outcomes", [])
    environ["ticketapi.call"], environ["wsgi.file_wrapper"] = task.channel.server.call, partial(keep_open, task)
    return environ


def keep_open(task: Any, stream: Stream) -> Iterator[bytes]:
    """Send the header of a stream, and leave the app: all else goes by `pass_on`."""
    stream.connection, task.request.headers["CONNECTION"] = task.channel, "close"
    task.write(b"")
    task.channel.stream = stream
    stream.wake = partial(task.channel.server.call, partial(pass_on, task, stream))
    stream.wake()
    raise Parked
    yield b""


def pass_on(task: Any, stream: Stream) -> None:
    """Send what waits of a stream, in the loop, and end one that is closed, or that its client does not take."""
    channel, is_last = task.channel, stream.closed
    if not (channel.connected and channel.stream):
        return
    channel.current_outbuf_count, is_full = 2**31, channel.total_outbufs_len > MAX_UNREAD  # a buffer keeps what was sent of it
    task.write(stream.read())
    if is_last:
        task.finish()
        channel.stream, channel.close_when_flushed = None, True
        channel.requests.pop().close()
    channel.handle_write()
    if is_full and channel.total_outbufs_len > MAX_UNREAD:  # one event may be larger, and its client still take it
        log.info("a client of a stream does not read; closed")
        channel.handle_close()


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
    return not channel.holding and bool(super(type(channel), channel)._flush_some(do_close))


def queue_answer(channel: Any, data: Any) -> int:
    """Queue a part of an answer; replaces, and calls, the `write_soon` of Waitress's HTTPChannel.

    Of large bytes Waitress makes a copy: a thousand clients that did not read the description of the API cost 220 MB.
    """
    if type(data) is bytes and len(data) > 65_536:
        from waitress.buffers import ReadOnlyFileBasedBuffer

        shared = ReadOnlyFileBasedBuffer(io.BytesIO(data))  # which shares them
        shared.prepare(len(data))
        data = shared
    return int(super(type(channel), channel).write_soon(data))


def receive(channel: Any, data: bytes) -> bool:
    """Take what a client has sent, one request at a time; replaces the `received` of Waitress's HTTPChannel.

    Waitress reads and answers all requests that come together, whether or not the client takes the answers: 273 small requests
    in 8 kB made 21 MB of them. Here the rest waits as bytes until the answers before it are taken, and nothing more is read.
    """
    if channel.stream:  # its client has nothing more to say
        return True
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
    """Tell whether to read more of a connection; replaces, and calls, the `readable` of Waitress's HTTPChannel.

    Of a stream we want to know when its client leaves.
    """
    return bool(channel.stream or (not channel.unread and super(type(channel), channel).readable()))


def serve_request(channel: Any) -> None:
    """Answer a request, and count it, or park it; replaces, and calls, the `service` of Waitress's HTTPChannel."""
    channel.served += 1
    request = channel.requests[0]
    try:
        super(type(channel), channel).service()
    except Parked as parked:
        for future in parked.args:
            future.add_done_callback(partial(resume, channel, request))
    except Reset:  # by RST (SO_LINGER, socket(7)); a Unix socket has none, and just ends
        with suppress(OSError):
            channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1).to_bytes(4, sys.byteorder) + bytes(4))
        channel.requests, channel.close_when_flushed = [], True
        channel.server.pull_trigger()
    else:
        (request.environ or {}).clear()  # it leads to the task, which leads to it: rings are freed late, and at a cost


def resume(channel: Any, request: Any, future: Future[Any]) -> None:
    """Have the app asked again, now that what its request waits for is there."""
    request.environ["ticketapi.outcomes"].append(future)
    channel.server.call(partial(channel.server.add_task, channel))


def channel_class() -> type:
    """Return the connection that Waitress is to use, with our parser and answers."""
    from waitress.channel import HTTPChannel
    from waitress.parser import HTTPRequestParser
    from waitress.task import ErrorTask, WSGITask

    answers = {
        "build_response_header": build_header,
        "set_close_on_finish": keep_open_without_body,
        "get_environment": begin_environ,
        "logger": logging.getLogger("waitress.queue"),  # which says nothing: bodies may be cut on purpose
    }
    parts = {
        "parser_class": type("StrictParser", (HTTPRequestParser,), {"parse_header": parse_header, "environ": None}),
        "task_class": type("AnswerTask", (WSGITask,), answers),
        "error_task_class": type("JsonErrorTask", (ErrorTask,), {"execute": refuse}),
        "holding": False,
        "stream": None,
        "unread": b"",
        "served": 0,  # requests
        "received": receive,
        "readable": is_readable,
        "service": serve_request,
        "_flush_some": send_unless_held,
        "write_soon": queue_answer,
    }
    return type("JsonChannel", (HTTPChannel,), parts)


class Server:
    """Waitress around one app: `run` until `stop`, then answer what is in flight."""

    deadline = math.inf  # monotonic seconds, once it stops
    _loop = 0  # the thread which runs it

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
        self._slow: dict[Any, float] = {}  # what arrives or is taken, and when it was first seen
        self._behind: set[Any] = set()  # connections that have sent more requests than have been begun
        self._in_loop = LoopDispatcher(settle) if settings.threads == 1 else None
        self._calls: list[tuple[float, Callable[[], object]]] = []  # to make in the loop, from a moment on
        self._lock, self._woken, self._stopping = threading.Lock(), False, False
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
            listener.call = self.call
            if self._in_loop:
                listener.pull_trigger = lambda: None  # there is no other thread to wake the loop

    def run(self, beat: Callable[[], None]) -> None:
        """Serve until `stop` is called; `beat` is called about once a second."""
        beaten, self._loop = time.monotonic(), threading.get_ident()
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

    def call(self, thunk: Callable[[], object], seconds: float = 0.0) -> None:
        """Have something called in the loop, from any thread, after some seconds."""
        with self._lock:
            self._calls.append((time.monotonic() + seconds, thunk))
            if not self._woken and threading.get_ident() != self._loop:
                self._woken = True
                self._listeners[0].trigger.pull_trigger()

    def _make_calls(self) -> None:
        """Call what is to be called by now."""
        with self._lock:
            self._woken, now, calls, self._calls = False, time.monotonic(), self._calls, []
        for call in calls:
            call[1]() if min(call[0], self.deadline - 2) <= now else self._calls.append(call)  # nobody waits beyond the end

    def _cut_slow_clients(self, now: float) -> None:
        """Close connections whose request arrives, or whose answer is taken, too slowly: they would use up all there are."""
        slow: dict[Any, Any] = {channel.request: channel for channel in self._channels() if channel.request is not None}
        late = [channel for channel in self._channels() if channel.total_outbufs_len and not channel.stream]
        slow |= {(channel, channel.served): channel for channel in late}
        self._slow = {key: self._slow.get(key, now) for key in slow}
        for key, since in self._slow.items():
            if now - since > REQUEST_SECONDS:
                slow[key].handle_close()

    def _turn(self, timeout: float) -> None:
        """Wait for sockets and serve those that are ready, and one more request of each connection that has sent several."""
        from waitress import wasyncore

        self._behind -= {channel for channel in self._behind if not channel.connected}
        ready = [channel for channel in self._behind if may_go_on(channel)]
        wait = min([timeout, *(moment - time.monotonic() for moment, _ in self._calls)]) if self._calls else timeout
        wasyncore.loop(timeout=0 if ready or wait <= 0 else wait + 0.001, use_poll=True, map=self._map, count=1)  # cut to ms
        for _ in range(2 if self._calls else 0):  # the second time what the first has called for: who was parked goes on
            self._make_calls()
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
            for channel in self._channels():
                if channel.stream and not channel.stream.ends:
                    channel.stream.close()
            if not any(is_busy(channel, STOP_SECONDS - left) for channel in self._channels()):
                break
        self._listeners[0].task_dispatcher.shutdown(timeout=1)
        with self._lock:
            self._woken = True  # for good: the trigger's descriptor may soon be another file's
        wasyncore.close_all(self._map)


def is_busy(channel: Any, passed: float) -> bool:
    """Tell whether a connection has a request under way or an answer to send.

    A request whose headers are not complete half a second after the stop began is not waited for.
    """
    receiving = channel.request is not None and (channel.request.headers_finished or passed < 0.5)
    return bool(channel.requests or receiving or channel.total_outbufs_len or channel.unread)


# ======================================================================================================================
# Room 26. Options: tables of options and commands, the parser, flag over variable over default. Touches argv and environ.
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


def read_word(text: str, words: Sequence[str], what: str, more: str = "") -> str:
    """Read one of some words."""
    if text not in words:
        raise ValueError(f"{text!r} is {what}; write {', '.join(words[:-1])} or {words[-1]}{more}")
    return text


def read_event(text: str) -> str:
    """Read a type of event."""
    if text not in EVENT_TYPES:
        raise ValueError(f"{text!r} is no type of event; write {', '.join(EVENT_TYPES)}, one with each --event")
    return text


def read_origin(text: str) -> str:
    """Read an origin as browsers send it, `*` or `off`."""
    if text not in ("*", "off") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/,]+", text):
        raise ValueError(f"{text!r} is not an origin; write https://dashboard.example.com, * or off")
    return text


def read_format(text: str) -> str:
    """Read how tickets are written."""
    if text not in ("table", "json", "jsonl", "csv"):
        raise ValueError(f"{text!r} is no format; write table, json, jsonl or csv")
    return text


def read_rhythm(text: str) -> Profile:
    """Read a profile, by the name of one that ticketapi brings along or from a file."""
    if not text.endswith(".json"):
        return find_profile(read_word(text, tuple(shipped_profiles()), "no profile", ", or a file that ends in .json"))
    try:
        with open(text, "rb") as file:
            content = file.read(MAX_PROFILE_BYTES + 1)
        if len(content) > MAX_PROFILE_BYTES:
            raise ValueError(f"larger than {MAX_PROFILE_BYTES // 1000} kB, which no profile is")
        return read_profile(json.loads(content))
    except (OSError, ValueError, RecursionError, TicketApiError) as error:
        why = getattr(error, "strerror", None) or str(error).removeprefix("profile: ")
        raise ValueError(f"{text}: {why}") from None


def read_switch(text: str) -> bool:
    """Read an environment variable that stands for a switch."""
    answers = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in answers:
        raise ValueError(f"{text!r} is neither 1 nor 0")
    return answers[text.lower()]


read_ability = partial(read_word, words=ABILITIES, what="no ability", more=", one with each --ability")
MAX_PROFILE_BYTES = 64_000
read_level = partial(read_word, words=("debug", "info", "warning", "error"), what="not a log level")


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
        Option(
            "--profile", "rhythm: steady, office, busy, incident or a .json file; steady without it", "PROFILE", read_rhythm
        ),
        Option("--audit-keep", "how long rows of the audit log are kept; 0 is for ever", "DURATION", read_duration),
        Option("--cors-origin", "whose pages may read answers; may be repeated; * all, off none", "ORIGIN", read_origin, True),
        Option("--trusted-proxy", "address of the proxy whose X-Forwarded-* is believed, or unix", "ADDRESS", read_proxy),
        Option("--log-level", "debug (with a line for each request), info, warning or error", "LEVEL", read_level),
        Option("--clock", "start a clock of the desk's own, such as 2025-01-01, or now,60x", "START[,SPEED]", read_clock),
        Option("--reset", "restore a snapshot before anything else", "NAME", read_snapshot_name),
        Option("--demo", "fill an empty desk with 10,000 tickets of 90 days and make a token that may read all"),
        Option("--faults", "file of rules by which requests go wrong", "FILE", read_text),
        Option("--count", "how many tickets", "N", number_in(-(10**9), 10**9)),
        Option("--seed", "number that tickets derive from; random without it, 1 with --demo", "N", number_in(0, 2**63 - 1)),
        Option("--since", "spread the tickets over that time until now and close all but a backlog", "DURATION", read_duration),
        Option("--limit", "how many tickets at most; 0 is all", "N", number_in(0, 10**9), name="tickets_limit"),
        Option("--format", "table, json, jsonl or csv; the last two tell closed_at and can be imported", "FORMAT", read_format),
        Option("--watch", "look again every 2 seconds, until Ctrl-C; in place on a terminal, elsewhere when something changed"),
        Option("--name", "what the token is for", "NAME", read_text),
        Option("--user", "owner of the token, who is created when unknown", "EMAIL", read_email),
        Option("--ability", "what the token may do; may be repeated; * is everything", "ABILITY", read_ability, True),
        Option("--expires", "how long the token works; 0 is for ever", "DURATION", read_duration),
        Option("--event", "what to tell of; may be repeated; all without it", "TYPE", read_event, True),
        Option("--name", "what the webhook is for; its host without it", "NAME", read_text, name="webhook_name"),
        Option("--limit", "how many deliveries at most; 0 is all", "N", number_in(0, 10**9), name="deliveries_limit"),
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
        Option("--force", "replace what is there of that name"),
        Option("--audit", "take the log of requests in the original's file too", name="import_audit"),
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
    ("Simulation", ("clock", "snapshot")),
    ("Access", ("token",)),
    ("Webhooks", ("webhook",)),
    ("Look after it", ("audit", "check", "backup", "copy", "import")),
)  # of commands, by their first words


COMMAND_LINES = """
serve: answer HTTP requests and let the desk live
    db host port rate threads no_scheduler generate_every process_every profile audit_keep cors_origin trusted_proxy
    log_level demo clock seed faults reset
    serve --demo | serve --port 9000 --rate 0 | serve --db /srv/desk.db --generate-every 10s --process-every 15s
generate: add tickets now, or a history of them
    db count seed since json
    generate --count 50 | generate --count 1000000 --seed 7 | generate --count 10000 --since 90d
process: close the oldest open tickets
    db count json
    process | process --count 100 --json
tickets: list the open, closed or all tickets, or show one
    db tickets_limit format json
    tickets | tickets closed --limit 50 | tickets 9842 | tickets all --limit 0 --format csv
stats: show how many tickets wait, for how long, and who wrote most
    db watch json
    stats | stats --watch | stats --json
clock: show the clock of the desk
    db json
    clock | clock --json
clock freeze: let the clock of the desk stand still
    db json
    clock freeze
clock resume: let the clock of the desk go on
    db json
    clock resume
clock speed: set how fast the clock of the desk goes
    db json
    clock speed 60 | clock speed 0.5
clock advance: let time pass at once, with all that happens in it
    db json
    clock advance 30d
clock set: let time pass at once until a moment, with all that happens until then
    db json
    clock set 2025-02-01T00:00:00Z
token create: make a token; it is printed once
    db name user ability expires json
    token create | token create --user ann@example.com --name dashboard --expires 30d
token list: list tokens, without their secrets
    db json
    token list | token list --json
token revoke: delete a token, at once for a running server too
    db json
    token revoke 3
token prune: delete the tokens that have expired
    db json
    token prune
webhook create: tell a URL of what changes; the secret of its signatures is printed once
    db event webhook_name json
    webhook create https://example.com/hooks | webhook create http://127.0.0.1:9000/ --event ticket.created
webhook list: list webhooks, without their secrets
    db json
    webhook list | webhook list --json
webhook delete: delete a webhook and its deliveries
    db json
    webhook delete 1
webhook test: send a test now, and tell what came of it
    db json
    webhook test 1
webhook deliveries: show what was sent to a webhook, newest first
    db deliveries_limit json
    webhook deliveries 1 | webhook deliveries 1 --limit 100 --json
audit: show the audit log, newest first
    db audit_user audit_token audit_status audit_path audit_since audit_limit follow json
    audit --status 4xx --since 1h | audit --user ann@example.com --path /tickets/closed | audit --follow --json
audit prune: delete old rows of the audit log, also beside a running server
    db older_than json
    audit prune --older-than 90d
check: look for damage, wrong counters, open file modes and known problems
    db repair json
    check | check --repair | check --json
backup: copy the desk, while a server runs
    db audit force json
    backup ticketapi-monday.db | backup /var/backups/ticketapi --audit --force
copy: copy the desk into another file or database, from SQLite to PostgreSQL or back
    db audit json
    copy postgresql://desk@db1/desk --audit | copy small.db --db postgresql://desk@db1/desk
snapshot save: keep the desk as it is under a name, while a server runs
    db force json
    snapshot save monday | snapshot save monday --force
snapshot restore: bring the desk back to a snapshot, but for tokens and webhooks, while a server runs
    db json
    snapshot restore monday
snapshot list: list the snapshots of the desk
    db json
    snapshot list | snapshot list --json
snapshot delete: delete a snapshot
    db json
    snapshot delete monday
import: take tickets from CSV, JSON Lines or the original application's file
    db import_audit json
    import tickets.csv | import tickets.jsonl --db new.db | import database.sqlite --audit --db new.db
"""  # words and help, options, examples
COMMANDS = tuple(
    Command(words, text, tuple(options.split()), tuple(examples.split(" | ")))
    for words, text, options, examples in re.findall(r"(.+): (.+)\n((?:    [a-z_ ]+\n)+)    (.+)\n", COMMAND_LINES)
)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports what is wrong in one line."""

    def __init__(self, **more: Any) -> None:
        """Make the parser; from Python 3.14 on it would colour its help by rules of its own."""
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)
        self.color = False

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse would keep to itself that it cannot be printed."""
        file.write(message)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError for `main` to print."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Say why an argument cannot be read, where argparse would name the function that reads it."""
        read: Any = action.type or str
        try:
            return read(arg_string)
        except ValueError as error:
            raise argparse.ArgumentError(action, str(error)) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Suggest a command for one that there is not, where argparse would list them all; no option of ours has choices."""
        if action.choices is None or value in action.choices:
            return
        above = self.prog.partition(" ")[2]
        meant = [f"{above} {name}".strip() for name in closest(value, action.choices)]
        meant = meant or [command.words for command in COMMANDS if command.words.endswith(f" {value}")]
        place = f" of {above}" if above else ""
        self.error(f"{value!r} is no command{place}{did_you_mean(meant)}")


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
        default = default_text(option) if option.read else ""
        shown = f"; default {default}" if default else ""
        text = f"{option.help}{shown} [{option.variable}]".replace("%", "%%")
        taking = {"action": "append" if option.repeatable else "store", "metavar": option.metavar}
        how: dict[str, Any] = taking if option.read else {"action": "store_const", "const": True}
        parser.add_argument(option.flag, dest=name, help=text, **how)


def read_which(text: str) -> str | int:
    """Read which tickets are meant, as an argument: `open`, `closed`, `all`, or the id of one."""
    if text in ("open", "closed", "all"):
        return text
    if whole_number(text) is not None:
        return read_id(text)
    meant = did_you_mean(closest(text, ("open", "closed", "all")))
    raise ValueError(f"{text!r} is neither open, closed, all nor the id of a ticket{meant}")


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
    examples = example_text(("serve --demo", "stats --watch", "token create"))
    parser = Parser(
        prog="ticketapi",
        usage="ticketapi COMMAND [options]",
        description=f"A live support desk behind an API, in one file.\n{list_commands()}",
        epilog=f"{examples}\n\nticketapi COMMAND --help tells all of one.",
    )
    parser.add_argument("--version", action="version", version=f"ticketapi {__version__}")
    parser.set_defaults(parser=parser)
    words = parser.add_subparsers(prog="ticketapi", metavar="COMMAND", help=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    texts = "Create, list, revoke and prune tokens.", "Tell others of what changes.", "Keep a desk, and bring it back."
    for name, text in zip(("token", "webhook", "snapshot"), texts, strict=True):
        group = words.add_parser(name, description=text)
        group.set_defaults(parser=group)
        groups[name] = group.add_subparsers(metavar="COMMAND", title="commands")
    for command in COMMANDS:
        first, _, second = command.words.partition(" ")
        made = add_command((groups[first] if second else words).add_parser, second or first, command)
        if any(other.words.startswith(f"{command.words} ") for other in COMMANDS):  # a command that others begin with
            groups[first] = made.add_subparsers(metavar="[COMMAND]", title="commands")
    return parser


CLOCK_VALUES: Mapping[str, tuple[str, Callable[[str], int], str]] = {
    "clock speed": ("N", read_speed, "how many times as fast as the real one it goes, such as 60"),
    "clock advance": ("DURATION", read_duration, "how much time passes, such as 12h or 30d"),
    "clock set": ("TIME", parse_date, "the moment until which time passes, such as 2025-02-01T00:00:00Z"),
}


def add_command(add_parser: Callable[..., argparse.ArgumentParser], name: str, command: Command) -> argparse.ArgumentParser:
    """Add the parser of one command. An option that is not given leaves what was given before the last word (SUPPRESS)."""
    parser = add_parser(
        name,
        help=command.help,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=example_text(command.examples),
        argument_default=argparse.SUPPRESS,
    )
    first, _, second = command.words.partition(" ")
    if command.words == "token revoke":
        parser.add_argument("token_id", metavar="ID", type=read_id, help="the token's id, as `token list` shows it")
    if command.words == "webhook create":
        text = "where to send it; unlike over the API, a private address or this machine will do"
        parser.add_argument("url", metavar="URL", type=read_url, help=text)
    elif first == "webhook" and second != "list":
        parser.add_argument("webhook_id", metavar="ID", type=read_id, help="the webhook's id, as `webhook list` shows it")
    elif first == "snapshot" and second != "list":
        parser.add_argument(
            "snapshot_name", metavar="NAME", type=read_snapshot_name, help="the snapshot's name, such as before-demo"
        )
    if command.words in CLOCK_VALUES:
        metavar, read, text = CLOCK_VALUES[command.words]
        parser.add_argument("wanted", metavar=metavar, type=read, help=text)
    if command.words == "tickets":
        text = "open (oldest first, the default), closed (most recently closed first), all (oldest first), or a ticket's id"
        parser.add_argument("which", nargs="?", default="open", metavar="open|closed|all|ID", type=read_which, help=text)
    if command.words == "backup":
        parser.add_argument("destination", metavar="DEST", help="file to write, or a directory for one of the desk's name")
    if command.words == "copy":
        text = "file or postgresql:// URL; what is there must be an empty desk"
        parser.add_argument("target", metavar="DEST", type=read_place, help=text)
    if command.words == "import":
        parser.add_argument("source", metavar="FILE", help="CSV, JSON Lines or SQLite file; - is standard input")
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
    """Return the settings of a run: flag, then TICKETAPI_* variable, then default."""
    # What stands before the second word, `audit --user 7 prune`, must not be ignored: more would be deleted.
    for name, option in OPTIONS.items():
        if name in args and name not in args.options:
            raise UsageError(f"{option.flag} does not go with `{args.words}` (see ticketapi {args.words} --help)")
    read = {name: read_option(OPTIONS[name], getattr(args, name, None), environ) for name in args.options}
    return Settings(**{name: value for name, value in read.items() if value is not None})


# ======================================================================================================================
# Room 27. Terminal: tables, colours, wrapped text, progress, the log on standard error. Prints.
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


def print_result(settings: Settings, record: Any, *lines: str) -> None:
    """Print what a command did or found, with --json as one JSON document, else as lines."""
    if settings.json:
        print(json.dumps(record, indent=2))
    else:
        print(*lines, sep="\n")


def print_json_array(pages: Iterable[Sequence[Any]]) -> None:
    """Print a JSON array page by page, as `print_result` would print it whole."""
    separator = "["
    for record in (record for page in pages for record in page):
        text = json.dumps(record, indent=2).replace("\n", "\n  ")
        print(f"{separator}\n  {text}", end="")
        separator = ","
    print("[]" if separator == "[" else "\n]")


def print_records(
    settings: Settings, records: Sequence[Any], titles: Sequence[str], cells: Callable[[Any], list[Any]], none: str
) -> None:
    """Print records as a JSON array with --json, else as a table, or that there are none."""
    if settings.json:
        print_result(settings, records)
    elif records:
        Table(titles).show(list(map(cells, records)))
    else:
        print(none)


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
        except (KeyboardInterrupt, *FAILURES) as error:
            failure = explain_failure(error, path) if isinstance(error, FAILURES) else TicketApiError(INTERRUPTED)
            if self.done:
                failure.args = (f"{failure} ({self.done:,} of {self.total:,} {self.unit} were committed)",)
            raise failure from error

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


def field_lines(fields: Mapping[str, Any], styles: Mapping[str, str]) -> list[str]:
    """Return labels and values as lines, some in a style; on a terminal a value that is too long is wrapped in its column."""
    paint, indent = painter(), max(map(len, fields)) + 2
    lines = []
    for label, value in fields.items():
        first, *rest = [paint(line, styles.get(label, "")) for line in wrap_for_terminal(printable(value), indent)]
        lines += [paint(label, "bold") + " " * (indent - len(label)) + first, *(" " * indent + line for line in rest)]
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
# Room 28. Commands: one function for each, and main. Prints.
# ======================================================================================================================

DEMO_TICKETS, DEMO_DAYS, DEMO_SEED = 10_000, 90, 1
DEMO_ABILITIES = (READ_TICKETS, READ_AUDITS, READ_METRICS)  # all that there is to see
WATCH_SECONDS = 2.0  # between two looks at the desk
FOLLOW_SECONDS = 0.5  # between two looks for new rows
TICKET_STYLES = {"Open": "yellow", "Closed": "green"}
STATUS_STYLES = {"4": "yellow", "5": "red"}
LEVEL_STYLES = {OK: "", NOTE: "yellow", WRONG: "red"}


def command_generate(settings: Settings) -> None:
    """Add tickets now, or a history of them."""
    if settings.count < 1:
        raise UsageError("Invalid ticket count: --count must be 1 or more")
    if settings.count > settings.since * MICROSECONDS // 2 > 0:
        raise UsageError("Invalid ticket count: --count is too many for so short a --since")
    progress = Progress(settings.count, sys.stderr, time.monotonic)
    with closing(open_database(settings.db, "desk")) as db, progress, progress.told(settings.db):
        closed, simulation, now = 0, find_simulation(db), desk_now(db, wall_microseconds())
        known = simulation.seed if simulation else secrets.randbits(63)
        seed = known if settings.seed is None else settings.seed
        if settings.since:
            made, closed = generate_history(db, settings.count, settings.since, now, seed, progress)
        else:
            made = generate_tickets(db, settings.count, now, seed, progress)
    lines = [f"Generated {plural(made, 'ticket')}", f"Closed {plural(closed, 'ticket')}"]
    print_result(settings, {"generated": made, "closed": closed}, *lines[: 2 if settings.since else 1])


def command_process(settings: Settings) -> None:
    """Close the oldest open tickets."""
    with closing(open_database(settings.db, "desk")) as db:
        total = min(settings.count, count_tickets(db, OPEN))
        progress = Progress(total, sys.stderr, time.monotonic)
        with progress, progress.told(settings.db):
            ids = process_tickets(db, settings.count, desk_now(db, wall_microseconds()), progress)
    lines = [f"Processed {plural(len(ids), 'ticket')}", f"Ticket ID{'s' if len(ids) > 1 else ''}: {', '.join(map(str, ids))}"]
    print_result(settings, {"processed": len(ids), "ticket_ids": ids}, *(lines if ids else ["No tickets to process"]))


def command_clock(settings: Settings) -> None:
    """Show the desk's clock."""
    with closing(open_desk(settings)) as db, explained(settings.db):
        show_clock_state(settings, find_simulation(db))


def show_clock_state(settings: Settings, simulation: Simulation | None) -> None:
    """Print what a desk's clock shows."""
    state = clock_resource(simulation, wall_microseconds())
    pace = state["status"] + (f" at {state['speed']} times the real speed" if state["speed"] not in (1, None) else "")
    own = "" if state["speed"] else " (the real time: this desk has no clock of its own)"
    print_result(settings, state, f"{state['now']}, {pace}{own}")


def turn_clock(settings: Settings, wish: ClockWish) -> None:
    """Set the desk's clock, and let happen what happens until then, beside a server or without one."""
    open_desk(settings).close()  # none is made
    clock = Clock()
    with closing(open_database(settings.db, "desk")) as db:
        epoch = None
        while epoch is None:
            pass_time(db, clock)  # what is under way comes first
            with suppress(Advancing):  # somebody else was faster
                set_clock(db, wish, clock.wall())
                epoch = find_epoch(db)
        pass_time(db, clock)
        if find_epoch(db) != epoch:
            raise TicketApiError("a snapshot was restored meanwhile, and the clock shows what it was saved with; set it anew")
        show_clock_state(settings, find_simulation(db))


PROGRESS_SECONDS = 0.5  # between two looks at how far an advance is


def pass_time(db: Connection, clock: Clock) -> None:
    """Let happen what is due, and an advance come to its end, with progress in hours of the desk."""
    with Progress(0, sys.stderr, clock.monotonic, "hours") as progress:
        while (simulation := find_simulation(db)) and (
            work_off(db, clock, PROGRESS_SECONDS, bulk=True).more or simulation.target
        ):
            begun, target = simulation.begun or 0, simulation.target or 0
            progress.total = (target - begun) // (HOUR * MICROSECONDS)
            progress((simulation.worked - begun) // (HOUR * MICROSECONDS))


def open_desk(settings: Settings) -> Connection:
    """Open the desk to read its tickets; nothing is created or upgraded. Raises TicketApiError where there is none."""
    with explained(settings.db):
        db = open_read_only(settings.db, "desk", views=True)
    if db is None:
        fix = f"--db names its file, and this makes one: {program_call(settings, 'generate --count 50')}"
        raise TicketApiError(f"there is no desk at {settings.db}; {fix}")
    return db


def command_tickets(settings: Settings, which: str | int) -> None:
    """List tickets, or show the one with an id."""
    form = "json" if settings.json and settings.format == "table" else settings.format
    with closing(open_desk(settings)) as db, explained(settings.db):
        pages = find_tickets(db, which, settings.tickets_limit)
        if form == "json" and isinstance(which, int):
            print(json.dumps(next(pages)[0], indent=2))
        elif form == "json":
            print_json_array(pages)
        elif form == "jsonl":
            for page in with_closing(db, pages):
                print(*map(json.dumps, page), sep="\n")
        elif form == "csv":
            print_csv(with_closing(db, pages))
        elif isinstance(which, int):
            print_ticket(next(with_closing(db, pages))[0])
        else:
            print_tickets(db, with_closing(db, pages), which)


def find_tickets(db: Connection, which: str | int, limit: int) -> Iterator[Sequence[dict[str, Any]]]:
    """Yield the tickets of a list in pages, or the one with an id. Raises NotFound."""
    if isinstance(which, int):
        if (found := find_ticket(db, which)) is None:
            raise NotFound(f"no ticket has the id {which}; `tickets open` and `tickets closed` show those there are")
        yield [json.loads(found.decode(errors="replace"))]
    elif which == "all":
        yield from walk_all(db, limit)
    else:
        yield from walk_list((open_listing if which == "open" else closed_listing)(db), limit)


def print_csv(pages: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    """Print tickets as CSV (RFC 4180), which is UTF-8 wherever it goes, as `import` reads it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    writer = csv.DictWriter(sys.stdout, TICKET_COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for page in pages:
        writer.writerows({**ticket["user"], **ticket, "user_id": ticket["user"]["id"]} for ticket in page)


def print_tickets(db: Connection, pages: Iterable[Sequence[Mapping[str, Any]]], which: str) -> None:
    """Print tickets as columns, page by page; on a terminal tell how many more there are."""
    title, name = ("CLOSED", "closed_at") if which == "closed" else ("CREATED", "created_at")
    table = Table(
        ("ID", "STATUS", title, "CUSTOMER", "SUBJECT"),
        lambda column, text: "dim" if column == 2 else TICKET_STYLES.get(text, "") if column == 1 else "",
    )
    shown = 0
    for page in pages:
        table.show([(one["id"], one["status"], short_time(one[name]), one["user"]["name"], one["subject"]) for one in page])
        shown += len(page)
    counts = {"open": count_tickets(db, OPEN), "closed": count_tickets(db, CLOSED)}
    total = counts.get(which, sum(counts.values()))
    if not shown:
        print(f"No {which} tickets" if which in counts else "No tickets")
    elif shown < total and sys.stdout.isatty():
        hint(f"{total - shown:,} more; --limit 0 shows all")


def print_ticket(ticket: Mapping[str, Any]) -> None:
    """Print all there is to know of one ticket, its text wrapped on a terminal."""
    user = ticket["user"]
    fields = {
        "Ticket": ticket["id"],
        "Subject": ticket["subject"],
        "Status": ticket["status"],
        "Created": ticket["created_at"],
        **({"Closed": ticket["closed_at"]} if ticket["closed_at"] else {}),
        "Customer": f"{user['name']} <{user['email']}>, id {user['id']}",
    }
    print(*field_lines(fields, {"Status": TICKET_STYLES[ticket["status"]]}), "", sep="\n")
    for paragraph in ticket["content"].splitlines():
        print(*wrap_for_terminal(printable(paragraph)), sep="\n")


def command_stats(settings: Settings) -> None:
    """Show how the desk stands, once or until Ctrl-C."""
    if settings.watch:
        watch_desk(settings)
    else:
        overview = read_overview(settings)
        print_result(settings, overview, *overview_lines(overview))


def read_overview(settings: Settings) -> dict[str, Any]:
    """Return the figures of the desk at this moment; it is opened anew, as it may have been restored since the last time."""
    with closing(open_desk(settings)) as db, explained(settings.db):
        return desk_overview(db, desk_now(db, wall_microseconds()))


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
    fields = {
        "Open": waiting,
        "Closed": closed,
        "Total": total,
        "Oldest open": oldest,
        "Last closed": last,
        "Last hour": f"{overview['opened_last_hour']:,} arrived, {overview['closed_last_hour']:,} closed",
        "Top customer": top,
    }
    return field_lines(fields, TICKET_STYLES)


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
    """Write the figures over the previous ones, in one write, so that nothing flickers; the cursor ends below, never hidden."""
    columns, rows = shutil.get_terminal_size()
    title = printable(f"{Path(str(settings.db)).name} at {short_time(format_time(wall_microseconds()))}, until Ctrl-C")
    lines = [painter()(wrap_text(title, columns)[0], "dim"), "", *overview_lines(overview)]
    print("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines[: rows - 1]) + "\x1b[J", end="")


def command_token_create(settings: Settings) -> None:
    """Make a token; its secret is printed once."""
    with closing(open_database(settings.db, "desk")) as db:
        token = create_token(db, settings.user, settings.name, settings.ability, settings.expires, wall_microseconds())
    if not settings.json:
        expires = f"expires {token['expires_at']}" if token["expires_at"] else "does not expire"
        hint(f"Token {token['id']} of {settings.user} for {', '.join(settings.ability)}; {expires}. It is shown only once:")
    print_result(settings, token, token["token"])


def command_token_list(settings: Settings) -> None:
    """List the tokens, without their secrets."""
    with closing(open_database(settings.db, "desk")) as db:
        tokens = [{**dict(row), "abilities": json.loads(row["abilities"])} for row in list_tokens(db)]
    if settings.json or not tokens:
        print_result(settings, tokens, "No tokens")
    else:
        Table([name.upper() for name in tokens[0]]).show(list(map(token_cells, tokens)))


def token_cells(token: Mapping[str, Any]) -> list[Any]:
    """Return what the table shows of a token."""
    texts = {name: short_time(value) for name, value in token.items() if name.endswith("_at")}
    return list({**token, "abilities": ",".join(token["abilities"]), **texts}.values())


def command_token_revoke(settings: Settings, token_id: int) -> None:
    """Delete a token."""
    with closing(open_database(settings.db, "desk")) as db:
        revoke_token(db, token_id)
    print_result(settings, {"revoked": token_id}, f"Revoked token {token_id}")


def command_token_prune(settings: Settings) -> None:
    """Delete the tokens that have expired."""
    with closing(open_database(settings.db, "desk")) as db:
        pruned = prune_tokens(db, wall_microseconds())
    print_result(settings, {"pruned": pruned}, f"Pruned {plural(pruned, 'token')}")


def command_webhook_create(settings: Settings, url: str) -> None:
    """Make a webhook; its secret is printed once."""
    given = {"url": url, "events": settings.event or None, "name": settings.webhook_name or None}
    with closing(open_database(settings.db, "desk")) as db:
        webhook = create_webhook(db, read_webhook(given, private=True), None, wall_microseconds())
    if settings.json:
        print_result(settings, webhook)
        return
    hint(f"Webhook {webhook['id']} for {', '.join(webhook['events'])}. A server tells it of what changes from now on.")
    call = program_call(settings, f"webhook test {webhook['id']}")
    hint(f"Try it: {call}. Its secret is shown only once:")
    print(webhook["secret"])


def command_webhook_list(settings: Settings) -> None:
    """List the webhooks, without their secrets."""
    with closing(open_database(settings.db, "desk")) as db:
        webhooks = list(map(webhook_resource, list_webhooks(db)))
    titles = ("ID", "NAME", "STATE", "WAITING", "FAILING SINCE", "EVENTS", "URL")
    print_records(settings, webhooks, titles, webhook_cells, "No webhooks")


def webhook_cells(webhook: Mapping[str, Any]) -> list[Any]:
    """Return what the table shows of a webhook."""
    state = "on" if webhook["enabled"] else f"off: {webhook['disabled']}" if webhook["disabled"] else "off"
    events = "all" if len(webhook["events"]) == len(EVENT_TYPES) else ",".join(webhook["events"])
    failing = short_time(webhook["failing_since"])
    return [webhook["id"], webhook["name"], state, webhook["waiting"], failing, events, webhook["url"]]


def command_webhook_delete(settings: Settings, webhook_id: int) -> None:
    """Delete a webhook."""
    with closing(open_database(settings.db, "desk")) as db:
        delete_webhook(db, webhook_id)
    print_result(settings, {"deleted": webhook_id}, f"Deleted webhook {webhook_id}")


def command_webhook_test(settings: Settings, webhook_id: int) -> int:
    """Send a test, and tell what came of it."""
    with closing(open_database(settings.db, "desk")) as db:
        sent = send_test(db, webhook_id, Clock())
    came = f"{sent['error'] or sent['status_code']}, after {sent['duration_ms']} ms"
    print_result(settings, sent, f"{'Failed' if sent['error'] else 'Delivered'}: {came}")
    return 1 if sent["error"] else 0


def command_webhook_deliveries(settings: Settings, webhook_id: int) -> None:
    """Show what was sent to a webhook, newest first."""
    with closing(open_database(settings.db, "desk")) as db:
        get_webhook(db, webhook_id)
        rows = list_deliveries(db, webhook_id, MAX_ID, settings.deliveries_limit or MAX_ID)
    titles = ("ID", "EVENT", "TYPE", "STATUS", "TRIES", "CODE", "AT", "NEXT", "ERROR")
    print_records(settings, list(map(delivery_resource, rows)), titles, delivery_cells, "No deliveries")


def delivery_cells(sent: Mapping[str, Any]) -> list[Any]:
    """Return what the table shows of a delivery."""
    counts = [sent[name] for name in ("id", "event_id", "type", "status", "attempt", "status_code")]
    return [*counts, short_time(sent["at"]), short_time(sent["next_at"]), sent["error"]]


def command_audit(settings: Settings) -> None:
    """Show the audit log, newest first; with --follow oldest first and on and on."""
    wanted = audit_filter(settings, wall_microseconds())
    show = audit_printer(settings)
    if settings.follow:
        with suppress(KeyboardInterrupt):
            follow_log(settings, wanted, show)
        return
    shown = False
    if db := open_log(settings):
        with closing(db), explained(settings.audit_db):
            for page in newest_audits(db, wanted, settings.audit_limit):
                show(page)
                shown = True
    if not shown and not settings.json:
        print("No audits")


def open_log(settings: Settings) -> Connection | None:
    """Open the audit log to read it; None while there is none. Then the desk is checked, as --db may be mistyped."""
    db = open_read_only(settings.audit_db, "audit")
    if db is None and (desk := open_read_only(settings.db, "desk")):
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
    if desk := open_read_only(settings.db, "desk"):
        with closing(desk), explained(settings.db):
            if owner := find_owner(desk, email):
                return owner
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


def audit_printer(settings: Settings) -> Callable[[Sequence[Row]], None]:
    """Return what prints rows of the audit log, page by page: as columns, or as JSON Lines (https://jsonlines.org) in ASCII."""
    if settings.json:
        return lambda rows: print(*(json.dumps(audit_resource(row)) for row in rows), sep="\n")
    titles = ("TIME", "STATUS", "METHOD", "PATH", "USER", "TOKEN", "IP", "MS", "AGENT")
    names = ("status_code", "method", "path", "user_id", "token_id", "ip_address", "duration_ms", "user_agent")
    table = Table(titles, lambda column, text: STATUS_STYLES.get(text[:1], "") if column == 1 else "")
    return lambda rows: table.show([(short_time(row["created_at"]), *(row[name] for name in names)) for row in rows])


def command_audit_prune(settings: Settings) -> None:
    """Delete the rows of the audit log that are older than a time, in small steps."""
    if settings.older_than is None:
        raise UsageError("audit prune needs --older-than, which says what goes: --older-than 90d")
    if not settings.older_than:
        raise UsageError("--older-than 0 would delete the whole log; give a time, such as 90d")
    before = format_time(wall_microseconds() - settings.older_than * MICROSECONDS)
    pruned = 0
    if there := open_log(settings):
        there.close()
        with closing(open_database(settings.audit_db, "audit")) as db, explained(settings.audit_db):
            pruned = prune_log(db, before)
    print_result(settings, {"pruned": pruned}, f"Pruned {plural(pruned, 'audit')}")


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


def command_backup(settings: Settings, destination: str) -> None:
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
    names = (("db", "tickets", "bytes"), ("audit_db", "requests", "audit_bytes"))  # null when there is no copy of the log
    record, lines = dict.fromkeys(chain(*names)), []
    for keys, backup, copy in zip(names, backups, copies, strict=False):
        record |= zip(keys, (str(backup.destination), copy.rows, copy.bytes), strict=True)
        held = f"{plural(copy.rows, 'ticket' if backup.kind == 'desk' else 'request')}, {size_text(copy.bytes)}"
        lines.append(one_line(f"Backed up {backup.source} to {backup.destination}: {held}, verified"))
    print_result(settings, record, *lines)


def command_copy(settings: Settings, target: Place) -> None:
    """Copy the desk, and its audit log if asked for, into another file or database."""
    with closing(open_desk(settings)) as db:
        total = sum(list_ticket_counts(db).values())
    try:
        with Progress(total, sys.stderr, time.monotonic) as progress:
            rows = copy_desk(settings, target, progress)
    except KeyboardInterrupt:
        raise TicketApiError("interrupted; nothing was copied") from None
    names = {"ticket": "tickets", "user": "users", "token": "personal_access_tokens", "request": "api_audits"}
    counts = ", ".join(plural(rows[table], name) for name, table in names.items() if table in rows)
    record = {"db": str(target), **{f"{name}s": rows.get(table) for name, table in names.items()}}
    print_result(settings, record, f"Copied {counts} to {target}")


def command_import(settings: Settings, source: str) -> None:
    """Take tickets from a file."""
    progress = Progress(0, sys.stderr, time.monotonic)
    now = wall_microseconds()
    if db := open_read_only(settings.db, "desk"):  # or what is no desk would be found out after long reading
        with closing(db), explained(settings.db):
            now = desk_now(db, now)

    def begin(total: int) -> Report:
        progress.total = total
        return progress

    def note(done: int) -> None:
        progress.note(f"{done:,} tickets read")

    try:
        with progress:
            counts = import_file(settings, source, now, begin, hint, note)
    except KeyboardInterrupt:
        raise TicketApiError("interrupted; nothing was imported") from None
    told = ", ".join(plural(number, name[:-1]) for name, number in counts.items() if number or name == "tickets")
    print_result(settings, counts, f"Imported {told}")


def command_snapshot(done: str, work: Callable[..., dict[str, Any]], settings: Settings, snapshot_name: str) -> None:
    """Save, restore or delete a snapshot."""
    try:
        made = work(settings.db, snapshot_name, wall_microseconds(), settings.force)
    except InvalidFields as error:
        raise TicketApiError(str(error).replace("Delete that snapshot first.", "--force replaces that snapshot.")) from error
    print_result(settings, made, f"{done} {snapshot_name}: {plural(made['tickets'] or 0, 'ticket')}, {size_text(made['size'])}")


def command_snapshot_list(settings: Settings) -> None:
    """List the snapshots."""
    cells: Callable[[Any], list[Any]] = lambda one: [*list(one.values())[:2], one["tickets"], size_text(one["size"])]  # noqa: E731
    print_records(settings, list_snapshots(settings.db), ("NAME", "CREATED AT", "TICKETS", "SIZE"), cells, "No snapshots")


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
    """Open the standard streams that are closed, or a desk would get what is printed; tell whether there was an output."""
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(handle)
    has_output, sys.stderr = sys.stdout is not None, sys.stderr or os.fdopen(2, "w")
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    return has_output


def command_serve(settings: Settings) -> None:
    """Serve the API until SIGTERM or SIGINT."""
    if bottle is None or importlib.util.find_spec("waitress") is None:
        raise TicketApiError("serve needs the packages bottle and waitress: pip install bottle waitress, or use the .pyz")
    configure_log(settings.log_level)
    drawn = secrets.randbits(63)  # the seed of a desk that is given none
    faults = Faults(*load_faults(settings.faults)) if settings.faults else Faults()
    with closing(open_to_serve(settings.db)) as db:
        sockets = inherited_sockets(os.environ) or [bind_socket(settings.host, settings.port)]
        url = socket_url(sockets[0])
        if settings.reset:
            hint(f"Restored {restore_snapshot(settings.db, settings.reset, wall_microseconds())['name']}")
        begin_desk(db, settings, url, drawn)
    if faults.rules:
        hint(f"Requests go wrong as {settings.faults} says, by {plural(len(faults.rules), 'rule')}")
    serve(settings, sockets, url, drawn, faults)


def load_faults(path: str) -> tuple[int, list[dict[str, Any]]]:
    """Return seed and rules of a file. Raises TicketApiError."""
    try:
        with open(path, "rb") as file:
            return read_faults(read_fields(file.read(MAX_BODY_BYTES + 1), ""), FAULTY_ROUTES, wall_microseconds())
    except OSError as error:
        raise TicketApiError(f"--faults {path}: {error.strerror}") from error
    except TicketApiError as error:
        raise TicketApiError(f"--faults {path}: {error}".replace("request body", "file (64 KiB at most)")) from error


def serve(settings: Settings, sockets: Sequence[socket.socket], url: str, seed: int, faults: Faults) -> None:
    """Run server and scheduler until a signal, and tell systemd how they are."""
    clock, readers = Clock(), Readers(settings.db)
    audit = AuditLog(settings.audit_db, grouped=settings.threads == 1)
    for path in (settings.db, settings.audit_db):
        warn_of_other_readers(path)
    traffic, stop, cors = Traffic(clock.wall()), threading.Event(), Cors(settings.cors_origin)
    writer, broadcast = Writer(settings.db, clock), Broadcast(settings.db, clock)
    scheduler = make_scheduler(settings, seed, audit, clock, stop)
    app = make_app(settings, readers, audit, clock, traffic, scheduler, writer, broadcast, faults)

    def refused(status: int, origin: str) -> dict[str, str]:
        traffic.refuse(status)
        return cors.headers(origin)

    server = Server(app, sockets, settings, lambda: audit.commit(clock.monotonic()), refused)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop_once(server, stop))

    def beat() -> None:
        audit.commit(clock.monotonic())  # what could not be written before; there may be no request for long
        if scheduler.alive(clock.monotonic()):
            notify_systemd(os.environ, "WATCHDOG=1")

    simulation = readers.get().recall(find_simulation)  # a disk may fill soon: what reading needs there must be there
    scheduler.start()
    deliveries = Deliveries(settings.db, clock, secrets.randbits).start()
    shrinker = start_shrinking((settings.db, settings.audit_db), clock, stop)
    print(f"Listening on {url}", flush=True)
    lives = describe_schedule(settings, url, simulation)
    log.info("ticketapi %s serves %s with %s", __version__, settings.db, lives)
    notify_systemd(os.environ, "READY=1")
    server.run(beat)
    notify_systemd(os.environ, "STOPPING=1")
    for end in (deliveries.stop, scheduler.stop, writer.close, broadcast.close, shrinker.join):
        end(max(0.0, server.deadline - clock.monotonic()))
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


def describe_schedule(settings: Settings, url: str, simulation: Simulation | None = None) -> str:
    """Return what the scheduler does and where the dashboard is, for the log."""
    page = f"; dashboard: {url}/" if url.startswith("http") else ""  # a browser cannot reach a Unix socket
    if settings.no_scheduler:
        return f"no scheduler{page}"
    every, clock = "a ticket every {}, a closing every {} (0s: never)", ""
    kept = f", audit rows kept for {settings.audit_keep} s" if settings.audit_keep else ""
    if not simulation:
        lives = every.format(f"{settings.generate_every}s", f"{settings.process_every}s")
    else:
        rhythm = json.loads(simulation.profile)
        steady = (rhythm["arrive_every"], rhythm["close_every"])
        lives = f"{'a rhythm of its own' if set(steady) == {'0s'} else every.format(*steady)}, seed {simulation.seed}"
        clock = f", a clock that shows {format_time(simulation.now(wall_microseconds()))}" if simulation.status else ""
    return f"{lives}{clock}{kept}{page}"


def begin_desk(db: Connection, settings: Settings, url: str, drawn: int) -> None:
    """Fill the desk if it is to be, and give it the rhythm and the clock that the options ask for; say what they do not do."""
    steady, profile = find_profile("steady"), settings.profile
    told = steady._replace(arrive_every=settings.generate_every, close_every=settings.process_every)
    if settings.demo and fill_demo_desk(db, settings, url) and told == steady:
        profile = profile or find_profile("office").scaled(DEMO_TICKETS / DEMO_DAYS)
    elif not settings.demo:
        suggest_next_steps(db, settings)
    if profile == steady or (profile is None and told != steady):
        profile = told
    elif told != steady:
        hint("tickets come as --profile says; --generate-every and --process-every are passed over")
    if profile in (None, told) and not (settings.clock or find_simulation(db)):
        return  # the options say when, and nothing of it is kept
    seed = DEMO_SEED if settings.demo and settings.seed is None else settings.seed
    for passed in begin_simulation(db, profile, settings.clock, seed, drawn, wall_microseconds()):
        hint(passed)


def fill_demo_desk(db: Connection, settings: Settings, url: str) -> bool:
    """Fill an empty desk, make a token and say how to use it; leave any other desk alone, and tell which it was."""
    now = wall_microseconds()
    if newest_ticket(db)[0]:
        hint(f"{settings.db} has tickets already, so --demo changes nothing. A token: {program_call(settings, 'token create')}")
        return False
    end = now if settings.clock is None or settings.clock[0] is None else settings.clock[0]
    seed = DEMO_SEED if settings.seed is None else settings.seed
    made, closed = generate_history(db, DEMO_TICKETS, DEMO_DAYS * DAY, end, seed)
    token = create_token(db, settings.user, "demo", DEMO_ABILITIES, 0, now)
    hint(f"The desk has {made} tickets of the last {DEMO_DAYS} days, {closed} of them closed. Try, with a token of its own:")
    hint(f"  curl -H 'Authorization: Bearer {token['token']}' {url}/api/stats")
    hint(f"Open {url}/ and paste the token: {token['token']}")
    return True


def suggest_next_steps(db: Connection, settings: Settings) -> None:
    """Say what to do first on a desk without tickets or tokens."""
    if not newest_ticket(db)[0]:
        hint(f"The desk is empty. Tickets now: {program_call(settings, 'generate --count 50')}")
    if not has_tokens(db):
        hint(f"There is no token yet. The API asks for one: {program_call(settings, 'token create')}")


RUN: dict[str, Callable[..., int | None]] = {
    "serve": command_serve,
    "generate": command_generate,
    "process": command_process,
    "tickets": command_tickets,
    "stats": command_stats,
    "clock": command_clock,
    "clock freeze": lambda settings: turn_clock(settings, ClockWish(status=FROZEN)),
    "clock resume": lambda settings: turn_clock(settings, ClockWish(status=RUNNING)),
    "clock speed": lambda settings, wanted: turn_clock(settings, ClockWish(speed=wanted)),
    "clock advance": lambda settings, wanted: turn_clock(settings, ClockWish(advance=wanted * MICROSECONDS)),
    "clock set": lambda settings, wanted: turn_clock(settings, ClockWish(now=wanted)),
    "token create": command_token_create,
    "token list": command_token_list,
    "token revoke": command_token_revoke,
    "token prune": command_token_prune,
    "webhook create": command_webhook_create,
    "webhook list": command_webhook_list,
    "webhook delete": command_webhook_delete,
    "webhook test": command_webhook_test,
    "webhook deliveries": command_webhook_deliveries,
    "audit": command_audit,
    "audit prune": command_audit_prune,
    "check": command_check,
    "backup": command_backup,
    "copy": command_copy,
    "snapshot save": partial(command_snapshot, "Saved", save_snapshot),
    "snapshot restore": partial(command_snapshot, "Restored", restore_snapshot),
    "snapshot list": command_snapshot_list,
    "snapshot delete": partial(command_snapshot, "Deleted", delete_snapshot),
    "import": command_import,
}  # by the words of `COMMANDS`; where a command returns no exit code it is 0
POSITIONALS = ("wanted", "snapshot_name", "token_id", "webhook_id", "url", "destination", "target", "which", "source")


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
    more = {name: getattr(args, name) for name in POSITIONALS if hasattr(args, name)}
    try:
        with signals_interrupt():
            return RUN[args.words](settings, **more) or 0
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
        failure = TicketApiError(f"{error.strerror}: {place if error.filename is None else error.filename or 'an empty name'}")
    hint(f"ticketapi: {failure}")
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
