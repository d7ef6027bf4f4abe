"""PostgreSQL clusters that proofs break: stopped, killed, frozen, with a standby or without."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from clusters import find_programs, free_port
from conftest import wait_for

import ticketapi

PAGE = "/api/tickets/open?per_page=1"
LONGEST, BACK_WITHIN = 3.0, 2.0  # seconds that an answer may take, and that a server may be away after its database is back
DOWN, UP = "the database does not answer: ", "the database answers again: "
RUNNER = "postgres" if os.getuid() == 0 else ""  # initdb and postgres refuse root


def as_runner(command):
    """Return a command as the user who runs clusters."""
    become = (f"--reuid={RUNNER}", f"--regid={RUNNER}", "--clear-groups") if RUNNER else ()
    return ["setpriv", *become, "--pdeathsig=INT", *map(str, command)]  # a run of tests that is killed leaves nothing behind


def children(pid):
    """Return the processes that a process has started."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Cluster:
    """A cluster in a folder of its own, on a port of this machine; `origin` makes it a standby of another."""

    def __init__(self, origin=None, options=(), **settings):
        """Make the cluster and start it."""
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="ticketapi-cluster-", dir="/tmp"))  # a socket's path must be short
        self.data, self.port, self.process = self.folder / "data", free_port(), None
        if RUNNER:
            shutil.chown(self.folder, RUNNER, RUNNER)
        if origin:
            self.follow(origin, *options)
        else:
            options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
            self._tool("initdb", *options, "-D", self.data)
        self.configure()
        self.start()

    def _tool(self, name, *arguments):
        """Run one of PostgreSQL's programs."""
        command = as_runner([find_programs() / name, *arguments])
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def configure(self):
        """Add its settings to its configuration."""
        common = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "max_connections": 60,
            "shared_buffers": "32MB",
            "timezone": "UTC",
        }
        with open(self.data / "postgresql.conf", "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in {**common, **self.settings}.items())

    def follow(self, origin, *options):
        """Copy another cluster, to be its standby, in place of what is here."""
        shutil.rmtree(self.data, ignore_errors=True)
        where = f"host=127.0.0.1 port={origin.port} user=postgres application_name=standby"
        options = options or ("-d", where, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        self._tool("pg_basebackup", "-D", self.data, *options)

    def rebuild(self, origin):
        """Make it, which has ended, a standby of another and start it."""
        self.follow(origin)
        self.configure()
        self.start()

    def begin(self):
        """Start it, and do not wait until it takes connections."""
        log = open(self.folder / "log", "a")  # noqa: SIM115
        command = as_runner([find_programs() / "postgres", "-D", self.data, "-p", str(self.port)])
        self.process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()

    def start(self):
        """Start it and wait until it takes connections; return when it was seen to do so."""
        self.begin()
        wait_for(self.is_ready, 60)
        return time.monotonic()

    def is_ready(self):
        """Tell whether it takes connections."""
        command = [find_programs() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def stop(self, number=signal.SIGINT):
        """End it: SIGINT is a fast stop, SIGQUIT an immediate one, SIGKILL of the postmaster takes all the others, too."""
        if not self.process or self.process.poll() is not None:
            return
        family = children(self.process.pid)
        self.process.send_signal(number)
        self.process.wait(60)
        for pid in family if number == signal.SIGKILL else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(is_alive, family)), 30)

    def freeze(self, number=signal.SIGSTOP):
        """Stop the postmaster and every backend where they are; SIGCONT lets them go on."""
        for pid in (self.process.pid, *children(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def url(self, database="ticketapi", user="postgres", password=""):
        """Return the URL of a database."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def ask(self, sql, database="postgres"):
        """Run statements as the superuser; return the rows as tuples of texts."""
        command = [find_programs() / "psql", "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", sql]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]

    def wait_for_standby(self, name="standby"):
        """Let no commit be acknowledged that a standby has not; wait until there is one."""
        self.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        self.ask("SELECT pg_reload_conf()")
        wait_for(lambda: self.ask("SELECT sync_state FROM pg_stat_replication") == [("sync",)], 60)

    def promote(self):
        """Make a standby a primary; return when it had been told so."""
        self._tool("pg_ctl", "promote", "-D", self.data, "-W")
        return time.monotonic()

    def remove(self):
        """End it and delete its files."""
        if self.process and self.process.poll() is None:
            self.freeze(signal.SIGCONT)
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


class Visitor(threading.Thread):
    """Asks for one path again and again, and keeps when each answer came, how long it took and what it was."""

    def __init__(self, port, path, token=None):
        """Take the port of a server on this machine."""
        super().__init__(daemon=True)
        self.port, self.path, self.headers = port, path, {"Authorization": f"Bearer {token}"} if token else {}
        self.answers, self.over = [], threading.Event()

    def run(self):
        """Ask, until it is told to end."""
        while not self.over.wait(0.03):
            begun = time.monotonic()
            status, retry, body = self.ask()
            self.answers.append((begun, time.monotonic() - begun, status, retry, body))

    def ask(self):
        """Return what a request is answered; its status is 0 where there is no whole answer."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection, suppress(OSError, HTTPException):
            connection.request("GET", self.path, headers=self.headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Retry-After"), answer.read().decode()
        return 0, None, ""

    def statuses(self, since=0.0):
        """Return the statuses of what was asked since a time."""
        return [status for begun, _, status, _, _ in self.answers if begun >= since]


class Numbered(Visitor):
    """Asks for numbered pages, so that each request can be found in the log."""

    numbers = itertools.count(1_000_000)

    def ask(self):
        """Return what the next page is answered, and its number."""
        self.number = next(self.numbers)
        self.path = f"/api/tickets/open?page={self.number}"
        status, retry, _ = super().ask()
        return status, retry, self.number

    def answered(self):
        """Return the numbers of the requests that were answered."""
        return {number for _, _, status, _, number in self.answers if status == 200}


class Visit:
    """Visitors of a server, and what they have seen."""

    def __init__(self, served, token):
        """Let them begin."""
        self.pages = [Visitor(served.port, PAGE, token) for _ in range(6)]
        self.ready, self.up = Visitor(served.port, "/ready"), Visitor(served.port, "/up")
        self.all = [*self.pages, self.ready, self.up]
        for visitor in self.all:
            visitor.start()
        wait_for(lambda: all(visitor.answers for visitor in self.all))

    def end(self):
        """Let all go."""
        for visitor in self.all:
            visitor.over.set()
        for visitor in self.all:
            visitor.join()

    def assert_bearable(self):
        """Every answer came soon, and none but a 503 told of the outage."""
        for visitor in self.all:
            for _, took, status, retry, body in visitor.answers:
                assert took < LONGEST, (visitor.path, took, status)
                assert status == 200 or (status == 503 and retry and body.startswith('{"message":')), (status, body)
        assert set(self.up.statuses()) == {200}

    def assert_back(self, since):
        """From a time on all was well, for everybody."""
        for visitor in self.all:
            assert visitor.statuses(since) and set(visitor.statuses(since)) == {200}, (visitor.path, visitor.statuses(since))


def is_alive(pid):
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def needed():
    """Skip a test where PostgreSQL or psycopg is missing."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'ticketapi[postgres]'")
    if not find_programs():
        pytest.skip("needs PostgreSQL: apt-get install postgresql")


@contextmanager
def cluster(database="ticketapi", **settings):
    """Give a cluster with an empty database; it is deleted afterwards."""
    needed()
    made = Cluster(**settings)
    try:
        made.ask(f"CREATE DATABASE {database}")
        yield made
    finally:
        made.remove()


class Command(subprocess.Popen):
    """A command that a failing test does not wait for."""

    def __exit__(self, kind, *rest):
        """Wait for its end, or bring it about."""
        if kind:
            self.kill()
        return super().__exit__(kind, *rest)


def command(url, *words):
    """Start a command on a desk; the URL goes by the environment, as the manual has it."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environ = {**os.environ, "TICKETAPI_DB": url}
    return Command([sys.executable, "-m", "ticketapi", *map(str, words)], text=True, env=environ, **pipes)


def finish(url, *words):
    """Run a command to its end, which must be a good one; return what it printed."""
    with command(url, *words) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def told(err, text):
    """Return the lines of a log that say something."""
    return [line for line in err.splitlines() if text in line]


class Writers:
    """Commands, and two threads that are faster, that write to a desk; they keep what was acknowledged."""

    def __init__(self, url):
        """Let them begin."""
        self.url, self.over = url, threading.Event()
        self.tickets, self.closed, self.tokens, self.generated = set(), set(), set(), 0
        work = [self.generate, self.process, self.create_tokens, self.write_fast, self.write_fast]
        self.threads = [threading.Thread(target=one, daemon=True) for one in work]
        for thread in self.threads:
            thread.start()

    def command(self, *words):
        """Run a command to its end; return what it said it did, or nothing."""
        with command(self.url, *words) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode in (0, 1) and "Traceback" not in err, err
        if process.returncode == 0:
            return out
        self.over.wait(0.1)
        return ""

    def generate(self):
        """Add tickets."""
        while not self.over.is_set():
            if out := self.command("generate", "--count", 1, "--json"):
                self.generated += json.loads(out)["generated"]

    def process(self):
        """Close tickets."""
        while not self.over.is_set():
            if out := self.command("process", "--count", 2, "--json"):
                self.closed.update(json.loads(out)["ticket_ids"])

    def create_tokens(self):
        """Make tokens."""
        while not self.over.is_set():
            if out := self.command("token", "create"):
                self.tokens.add(ticketapi.hash_token(out.strip()))

    def write_fast(self):
        """Write a ticket a transaction over one connection, for as long as it lasts."""
        while not self.over.wait(0.05):
            with suppress(*ticketapi.FAILURES), closing(ticketapi.connect(ticketapi.Postgres(self.url))) as db:
                while not self.over.wait(0.002):
                    with ticketapi.transaction(db):
                        ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), 1)
                        [(newest,)] = db.execute("SELECT max(id) FROM tickets")
                    self.tickets.add(newest)

    def end(self):
        """Let all finish what they are at."""
        self.over.set()
        for thread in self.threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in self.threads)

    def assert_kept(self, primary, before):
        """See that all that was acknowledged is there; return how much it was."""
        rows = {int(number): int(status) for number, status in primary.ask("SELECT id, status FROM tickets", "ticketapi")}
        assert self.tickets <= rows.keys()
        assert len(rows) >= before + len(self.tickets) + self.generated
        assert all(rows[number] == ticketapi.CLOSED for number in self.closed)
        kept = {token for (token,) in primary.ask("SELECT token FROM personal_access_tokens", "ticketapi")}
        assert self.tokens <= kept
        return len(self.tickets) + self.generated + len(self.closed) + len(self.tokens)
