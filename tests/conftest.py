"""What the tests share: a clock that is told the time, a desk in a real file, the real app, real processes."""

import io
import json
import os
import pty
import py_compile
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from clusters import database, databases  # noqa: F401  # fixtures
from hypothesis import settings
from receiver import courier, events, receiver, webhook  # noqa: F401  # fixtures

import ticketapi

pytest.register_assert_rewrite("attacks", "breakable", "faults", "fuzz", "pairs", "soundness", "upgrades")

ROOT = Path(__file__).resolve().parent.parent
PROOFS = ROOT / "tests" / "proofs"
NOON = 1_764_849_600_000_000  # 2025-12-04T12:00:00Z, a Thursday, in microseconds
SECOND = 1_000_000
ENGINES = ("sqlite", "postgres")
CASES_AGAIN = 4  # of a test with more than that, spread evenly, on the second engine: its time goes by tests, not by cases
# Folders whose tests run on both engines, but for those marked `files`: everything above the room of the database is the same.
ON_BOTH_ENGINES = {
    *("audit", "commands", "desk", "faults", "feeds", "keys", "lists", "plugins", "routes", "simulation", "watch", "webhooks"),
    "writes",
}
IN_CI = os.environ.get("CI") == "true"  # where every tool is there, and random searches take their time
# Put before a command: root, too, is then bound by the permissions of files.
WITHOUT_PRIVILEGES = () if os.getuid() else ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


@dataclass
class HandClock:
    """A clock that stands still until a test moves it."""

    now: int = NOON
    tick: float = 1000.0
    listener: object = None  # a function that is told of each new tick, as the limiter of PostgreSQL goes by another clock

    def __setattr__(self, name, value):
        """Set an attribute, and tell of a tick."""
        super().__setattr__(name, value)
        if name == "tick" and self.listener:
            self.listener(value)

    def wall(self):
        return self.now

    def monotonic(self):
        return self.tick

    def pause(self, seconds):
        """Let time pass for who waits."""
        self.advance(seconds)

    def advance(self, seconds):
        self.now += int(seconds * SECOND)
        self.tick += seconds


@dataclass
class Answer:
    """An HTTP answer; header names are lower case."""

    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Api:
    """The real app over a desk, called in process through wsgiref.validate."""

    settings: ticketapi.Settings
    clock: HandClock
    readers: ticketapi.Readers
    audit: ticketapi.AuditLog
    app: object
    errors: io.StringIO = field(default_factory=io.StringIO)

    def request(self, method, url, *, token=None, headers=None, body=b"", address="127.0.0.1", scheme="http"):
        """Send one request and return its Answer; `url` is a path with an optional query, percent-encoded."""
        path, _, query = url.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": urllib.request.unquote(path, "latin-1"),
            "QUERY_STRING": query,
            "REMOTE_ADDR": address,
            "HTTP_HOST": "localhost:8000" if path == "/metrics" else "desk.test:8000",  # open to this machine by its own name
            "wsgi.url_scheme": scheme,
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": self.errors,
        }
        if body:
            environ["CONTENT_LENGTH"] = str(len(body))
        if token:
            environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        for name, value in (headers or {}).items():
            key = name.upper().replace("-", "_")
            environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
        setup_testing_defaults(environ)
        started = {}

        def start_response(status, headers, exc_info=None):
            started.update(status=int(status[:3]), headers={name.lower(): value for name, value in headers})
            return lambda data: None

        with closing(validator(self.app)(environ, start_response)) as chunks:
            content = b"".join(chunks)
        return Answer(started["status"], started["headers"], content)

    def get(self, url, **more):
        """Send a GET request."""
        return self.request("GET", url, **more)

    def send(self, method, url, value, *, token, headers=None, **more):
        """Send a value as JSON."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self.request(method, url, token=token, headers=headers, body=json.dumps(value).encode(), **more)

    def post(self, url, value, **more):
        """Send a value as JSON by POST."""
        return self.send("POST", url, value, **more)

    def audits(self):
        """Return the rows of the audit log, oldest first, as dicts."""
        with closing(ticketapi.connect(self.settings.audit_db)) as db:
            return [dict(row) for row in db.execute("SELECT * FROM api_audits ORDER BY id")]


def make_served(settings, clock, stack, schedule=None):
    """Return an Api over a desk that is there; what it opens is closed with a stack."""
    readers = stack.enter_context(closing(ticketapi.Readers(settings.db)))
    audit = stack.enter_context(closing(ticketapi.AuditLog(settings.audit_db)))
    return Api(settings, clock, readers, audit, ticketapi.make_app(settings, readers, audit, clock, schedule=schedule))


def examples(count):
    """Return how many examples a random search makes: half of what is asked for in CI, a quarter elsewhere."""
    return count // 2 if IN_CI else count // 4


settings.register_profile("quick", max_examples=examples(settings.default.max_examples))
if not IN_CI:
    settings.load_profile("quick")


def create_ticket(db, author, subject, content, now):
    """Add an open ticket; return its id."""
    return ticketapi.create_tickets(db, [(author, subject, content, now)])[0]


def close_out_of_order(db, ids, now):
    """Close open tickets in the order given."""
    with ticketapi.transaction(db):
        tickets = [db.execute("SELECT id, created_at, updated_at FROM tickets WHERE id = ?", (one,)).fetchone() for one in ids]
        ticketapi.close_in_order(db, tickets, [now] * len(ids), now)


def run_sql(db, script):
    """Run statements that no constraint, reference or view holds up; others are told of the change."""
    if isinstance(db, ticketapi.PostgresConnection):
        with ticketapi.transaction(db):
            db.run(re.sub(r"(DROP TABLE \w+)", r"\1 CASCADE", script))
    else:
        db.executescript(f"PRAGMA foreign_keys = OFF; {script}")


def queries_of(db):
    """Return a list that gets the statements that a connection sends from now on."""
    statements = []
    if isinstance(db, ticketapi.PostgresConnection):
        plain = db.execute
        db.execute = lambda sql, values=(): (statements.append(sql), plain(sql, values))[1]
    else:
        db.set_trace_callback(statements.append)
    return statements


@contextmanager
def elsewhere_locked(desk):
    """Let another process have the lock of a desk, as a server of any version has."""
    take = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    script = f"{take}; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, f"{desk}-lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield
        process.stdin.close()


def wait_for(condition, seconds=15):
    """Return the first true answer of a condition; fail when it does not come in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def pytest_configure(config):
    """Compile ticketapi.py for the processes that tests start: where Python writes no bytecode each would do so anew."""
    if not hasattr(config, "workerinput"):
        with suppress(OSError):
            py_compile.compile(ticketapi.__file__)


def fail_when_skipped(outcome):
    """In CI every tool is there, so that a skipped test, or file of tests, is a failed one."""
    report = outcome.get_result()
    if report.skipped and IN_CI:
        report.outcome = "failed"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Look at how a test went."""
    fail_when_skipped((yield))


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Look at how a file was read."""
    fail_when_skipped((yield))


def pytest_xdist_auto_num_workers():
    """Two workers a core, as half of the tests wait for processes and clocks; in CI, where coverage is measured, one."""
    return (os.cpu_count() or 1) * (1 if IN_CI else 2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What stands in the folder of the proofs is a proof; a case that is marked `files` is none of PostgreSQL's.

    In CI each test that runs on both engines does, with four of its cases; elsewhere one in eight is enough for the second,
    beside tests/postgres.
    """
    for item in items:
        if PROOFS in item.path.parents:
            item.add_marker(pytest.mark.proof)
    cases = defaultdict(list)
    for item in items:
        if is_on(item, "postgres") and not item.get_closest_marker("files"):
            cases[item.function].append(item)
    again = [item for tests in cases.values() for item in tests[:: -(-len(tests) // CASES_AGAIN)]]
    chosen = {id(item) for item in again[:: 1 if IN_CI else 8]}
    items[:] = [item for item in items if id(item) in chosen or not is_on(item, "postgres")]


def is_on(item, engine):
    """Tell whether a test was given an engine."""
    return hasattr(item, "callspec") and item.callspec.params.get("engine") == engine


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, started once. It takes desk.test for this machine: a page of another host is no secure context."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        pytest.skip("needs Chromium: apt-get install chromium")
    arguments = ["--host-resolver-rules=MAP desk.test 127.0.0.1", *([] if os.getuid() else ["--no-sandbox"])]  # not for root
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def descriptors():
    """Close, after a test, the descriptors that a process keeps until its end: a thousand tests would need too many."""
    yield
    while ticketapi.HELD:
        os.close(ticketapi.HELD.popitem()[1])


def pytest_generate_tests(metafunc):
    """Run what is true on both engines on both."""
    if "engine" in metafunc.fixturenames and runs_on_both(metafunc.definition):
        metafunc.parametrize("engine", ENGINES, indirect=True)


def runs_on_both(item):
    """Tell whether a test says nothing of files."""
    return item.path.parent.name in ON_BOTH_ENGINES and not item.get_closest_marker("files")


@pytest.fixture
def engine(request):
    """Where the desk of a test lives: in SQLite's file, or in PostgreSQL."""
    return getattr(request, "param", "sqlite")


@pytest.fixture
def clock(engine, request):
    """A clock at noon of 2025-12-04."""
    hand = HandClock()
    if engine == "postgres":
        request.getfixturevalue("desk")
        hand.listener = request.getfixturevalue("databases").tell_clock
        hand.listener(hand.tick)
    return hand


@pytest.fixture
def desk(engine, tmp_path, request):
    """The place of a desk: a path at which there is nothing yet, or a database that is empty."""
    return request.getfixturevalue("databases").fresh() if engine == "postgres" else tmp_path / "desk.db"


@pytest.fixture(scope="session")
def empty_desk(tmp_path_factory):
    """An empty desk to be copied: to make a new one takes three times as long."""
    path = tmp_path_factory.mktemp("empty") / "desk.db"
    ticketapi.open_database(path, "desk").close()
    return path


@pytest.fixture(scope="session")
def empty_log(tmp_path_factory):
    """An empty audit log to be copied."""
    path = tmp_path_factory.mktemp("empty") / "desk-audit.db"
    ticketapi.open_database(path, "audit").close()
    return path


@pytest.fixture
def db(desk, empty_desk):
    """A connection to the desk, which is empty unless something has filled it."""
    if isinstance(desk, Path) and not desk.exists():
        shutil.copy(empty_desk, desk)
    with closing(ticketapi.open_database(desk, "desk")) as connection:
        yield connection


@pytest.fixture
def small_batches(monkeypatch):
    """Let a transaction hold a hundred tickets at most, so that a few make several batches; returns that number."""
    monkeypatch.setattr(ticketapi, "BATCH", 100)
    return ticketapi.BATCH


@pytest.fixture
def make_api(desk, db, clock, empty_log):
    """Return a function that makes an Api over the desk, with settings of its own."""
    with ExitStack() as stack:

        def make(schedule=None, **settings):
            chosen = replace(ticketapi.Settings(db=desk), **settings)
            if isinstance(chosen.audit_db, Path) and not chosen.audit_db.exists():
                shutil.copy(empty_log, chosen.audit_db)
            return make_served(chosen, clock, stack, schedule)

        yield make


@pytest.fixture
def api(make_api):
    """The app with its default settings."""
    return make_api()


@pytest.fixture
def token(db, clock):
    """The text of a token that may read tickets and belongs to the operator."""
    return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["read:tickets"], 0, clock.wall())["token"]


@pytest.fixture
def pen(db, clock):
    """The text of a token that may read and write tickets and belongs to the operator."""
    abilities = ["read:tickets", "write:tickets"]
    return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "pen", abilities, 0, clock.wall())["token"]


@pytest.fixture(scope="session")
def parser():
    """Return a function that gives the parser of the command line for a width: to make one takes longer than most commands."""
    build = ticketapi.build_parser
    return cache(lambda columns: build())


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, parser):
    """Return a function that runs a command in this process, in an empty folder, and gives (code, stdout, stderr)."""
    monkeypatch.setattr(ticketapi, "build_parser", lambda: parser(shutil.get_terminal_size().columns))
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TICKETAPI_"):
            monkeypatch.delenv(name)

    def command(*arguments):
        try:
            code = ticketapi.main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # --help and --version
            code = leaving.code
        out, err = capsys.readouterr()
        return code, out, err

    return command


def drain(master, chunks):
    """Collect what a terminal gets until nobody has its other side any more."""
    try:
        while chunk := os.read(master, 65536):
            chunks.append(chunk)
    except OSError:
        pass


@pytest.fixture
def on_terminal(run, monkeypatch):
    """Return a function that runs a command of this process on a terminal and gives the lines it shows, with their codes."""

    def command(*arguments, width=80, encoding="utf-8", expected=0, **environ):
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, text in {"COLUMNS": str(width), "LINES": "24", **environ}.items():
            monkeypatch.setenv(name, text)
        master, slave = pty.openpty()
        chunks = []
        reader = threading.Thread(target=drain, args=(master, chunks))
        reader.start()
        with open(slave, "w", encoding=encoding) as out, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            code = ticketapi.main(list(map(str, arguments)))
        reader.join()
        os.close(master)
        assert code == expected
        return b"".join(chunks).decode().split("\r\n")[:-1]

    return command


class Served:
    """A real `ticketapi serve` on a free port."""

    def __init__(self, *arguments, cwd, env=None, program=(sys.executable, "-m", "ticketapi")):
        """Start the process and wait for its `Listening on` line."""
        self.process = subprocess.Popen(
            [*program, "serve", "--port", "0", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        found = re.fullmatch(r"Listening on (http://\S+)\n", line)
        if not found:
            self.process.kill()
            raise AssertionError(f"no Listening line but {line!r}: {self.process.communicate()[1]}")
        self.url = found[1]
        self.port = int(self.url.rpartition(":")[2])

    def get(self, path, token=None, headers=None, method="GET", body=None):
        """Send one request over a connection of its own; a body is JSON."""
        headers = ({"Content-Type": "application/json"} if body is not None else {}) | dict(headers or {})
        if token:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def stop(self, number=signal.SIGTERM):
        """Send a signal, wait for the end, and return (exit code, rest of stdout, stderr)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def serve(tmp_path):
    """Return a function that starts `ticketapi serve` in an empty folder; it is ended after the test."""
    started = []

    def start(*arguments, **more):
        started.append(Served(*arguments, cwd=more.pop("cwd", tmp_path), **more))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.process.kill()
        served.process.communicate()


@pytest.fixture
def dial():
    """Return a function that opens a connection to a server; it is closed after the test."""
    opened = []

    def connect(served, timeout=5):
        opened.append(socket.create_connection(("127.0.0.1", served.port), timeout=timeout))
        return opened[-1]

    yield connect
    for sock in opened:
        sock.close()
