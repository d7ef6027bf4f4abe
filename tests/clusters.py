"""A PostgreSQL for the tests: a cluster of their own in a temporary folder, or that of TICKETAPI_TEST_POSTGRES."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

import ticketapi

SERVER = os.environ.get("TICKETAPI_TEST_POSTGRES")  # the URL of a role that may create databases and roles
NEEDED = "needs PostgreSQL and psycopg: apt-get install postgresql, and pip install 'ticketapi[postgres]'"
PASSWORD = "a pass:word/with@all?of&it#%"  # of the role LOCKED, which alone needs one
LOCKED = "with_password"
QUICK = ("fsync=off", "full_page_writes=off", "autovacuum=off", "max_connections=200", "shared_buffers=64MB")
# The limiter goes by the clock of its database. In the tests it reads a row that follows the clock which a test moves.
HAND_CLOCK = """
    CREATE SCHEMA tests;
    CREATE UNLOGGED TABLE tests.hand_clock (at double precision NOT NULL) WITH (fillfactor = 10);
    INSERT INTO tests.hand_clock VALUES (0);
    CREATE OR REPLACE FUNCTION rate_clock() RETURNS double precision LANGUAGE sql VOLATILE AS 'SELECT at FROM tests.hand_clock';
"""
SHAPE = """
    SELECT string_agg(concat_ws(' ', relname, relkind, attname, atttypid), ',' ORDER BY relname, attnum)
    FROM pg_class
    JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = CAST('public' AS regnamespace)
        AND relkind IN ('r', 'v', 'i', 'S')
        AND attnum > 0
        AND NOT attisdropped"""
# To empty a table that holds little takes a third of what it takes to truncate it.
EMPTY = """
    DELETE FROM webhooks; DELETE FROM events; DELETE FROM comments; DELETE FROM tickets; DELETE FROM personal_access_tokens;
    DELETE FROM users;
    DELETE FROM api_audits; DELETE FROM ticket_arrivals; DELETE FROM ticket_closings; DELETE FROM ticket_counts;
    DELETE FROM counters; DELETE FROM list_blocks; DELETE FROM change_times; DELETE FROM idempotency_keys;
    DELETE FROM simulation;
    DELETE FROM job_boundaries; DELETE FROM rate_limits; DELETE FROM desk;
    INSERT INTO ticket_counts (status, tickets) VALUES (1, 0), (2, 0);
    INSERT INTO counters (name, value) VALUES ('closed_number', 0), ('customers', 0), ('epoch', 0), ('change', 0);
    INSERT INTO desk SELECT * FROM tests.desk;
    ALTER SEQUENCE personal_access_tokens_id_seq RESTART; ALTER SEQUENCE webhooks_id_seq RESTART;
    ALTER SEQUENCE api_audits_id_seq RESTART;
"""


def find_programs():
    """Return the folder of the programs of the newest PostgreSQL, or None."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


def free_port():
    """Return a port that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Cluster:
    """A server that the tests may do anything to. It listens to this machine alone, and ends with the process that made it."""

    def __init__(self, programs):
        """Make the cluster and start it, as another user than root: PostgreSQL refuses that one."""
        self.folder = Path(tempfile.mkdtemp(prefix="ticketapi-", dir="/tmp"))  # the path of a socket must be short
        data, socket_folder, port = self.folder / "data", self.folder, free_port()
        leave = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if leave:
            shutil.chown(self.folder, "postgres")
        self.process = None
        try:
            make = [*leave, programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
            subprocess.run(make, cwd="/", check=True, capture_output=True)
            rules = data / "pg_hba.conf"
            rules.write_text(f"local all {LOCKED} scram-sha-256\nhost all {LOCKED} all scram-sha-256\n{rules.read_text()}")
            # A worker that is killed leaves no server behind; a fast shutdown is SIGINT.
            bound = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
            options = [word for option in QUICK for word in ("-c", option)]
            with open(self.folder / "log", "wb") as log:
                command = [*leave, *bound, programs / "postgres", "-D", data, "-k", socket_folder, "-h", "127.0.0.1"]
                command += ["-p", str(port), *options]
                self.process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            self.parameters = {"host": str(socket_folder), "port": str(port), "user": "postgres"}
            self.admin = self.connect()
            self.prepare()
        except BaseException:
            self.stop()
            raise

    def connect(self, seconds=20):
        """Return a session as superuser, as soon as the server is up."""
        import psycopg

        end = time.monotonic() + seconds
        while True:
            try:
                return psycopg.connect(self.url("postgres"), autocommit=True)
            except psycopg.OperationalError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise AssertionError((self.folder / "log").read_text()) from None
            time.sleep(0.02)

    def prepare(self):
        """Make the role that needs a password, and one that may do little."""
        self.admin.execute(f"CREATE ROLE {LOCKED} LOGIN PASSWORD '{PASSWORD}'")

    def url(self, database, **changes):
        """Return the URL of a database; None takes a parameter away."""
        chosen = {key: value for key, value in (self.parameters | changes).items() if value is not None}
        return f"postgresql:///{quote(database)}?{urlencode(chosen, quote_via=quote)}"

    def stop(self):
        """Stop the server, and remove all it had."""
        if self.process:
            with suppress(AttributeError):
                self.admin.close()
            self.process.send_signal(signal.SIGQUIT)  # at once; nobody needs the data
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class GivenServer(Cluster):
    """A server that is there, with a role that may create databases and roles."""

    def __init__(self, url):
        """Connect to it."""
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        self.parameters = {key: value for key, value in conninfo_to_dict(url).items() if key != "dbname"}
        self.admin = psycopg.connect(url, autocommit=True)
        self.admin.execute(f"DROP ROLE IF EXISTS {LOCKED}")
        self.prepare()

    def stop(self):
        """Leave it."""
        self.admin.close()


class Databases:
    """The databases of one process of tests on a server: one that is emptied for each test, and others."""

    def __init__(self, cluster):
        """Make none yet."""
        self.cluster, self.made, self.session = cluster, 0, None

    def create(self):
        """Return the name of a new, empty database."""
        self.made += 1
        name = f"ticketapi_{os.getpid()}_{self.made}"
        self.cluster.admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        return name

    def place(self, name):
        """Return where a database is."""
        return ticketapi.Postgres(self.cluster.url(name))

    def drop(self, name):
        """Remove a database, whoever uses it."""
        self.cluster.admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def fresh(self):
        """Return the place of an empty desk, always the same one: to make a database takes a hundred times as long."""
        if not self.session:
            self.begin()
        if self.shape() == self.sound:
            self.session.execute(EMPTY)
        else:
            self.make_anew()
        return self.place(self.name)

    def begin(self):
        """Make the database that is emptied for each test."""
        import psycopg

        self.name, self.sound = self.create(), ""
        self.session = psycopg.connect(self.cluster.url(self.name), autocommit=True)
        self.session.execute("SET lock_timeout = '5s'")  # a test that has left a transaction open is told so
        self.session.execute("SET client_min_messages = error")

    def make_anew(self):
        """Make the desk, in place of one that a test has damaged."""
        self.session.execute(
            "DROP SCHEMA IF EXISTS public, tests CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC"
        )
        ticketapi.open_database(self.place(self.name), "desk").close()
        self.session.execute(HAND_CLOCK)
        self.session.execute("CREATE TABLE tests.desk AS SELECT * FROM desk")
        self.sound = self.shape()

    def shape(self):
        """Return what tells a damaged desk from a sound one."""
        return self.session.execute(SHAPE).fetchone()[0]

    def tell_clock(self, tick):
        """Set the clock of the limiter to monotonic seconds."""
        self.session.execute("UPDATE tests.hand_clock SET at = %s", (tick * 1e6,))

    def close(self):
        """Remove the desk."""
        if self.session:
            self.session.close()
            self.session = None
            self.drop(self.name)


def start():
    """Yield the databases of a server for a whole run; skip where there is none."""
    pytest.importorskip("psycopg", reason=NEEDED)
    programs = None if SERVER else find_programs()
    if not SERVER and not programs:
        pytest.skip(NEEDED)
    cluster = GivenServer(SERVER) if SERVER else Cluster(programs)
    databases = Databases(cluster)
    try:
        yield databases
    finally:
        databases.close()
        cluster.stop()


@pytest.fixture(scope="session")
def databases():
    """The databases of a PostgreSQL that was started for the tests."""
    yield from start()


@pytest.fixture
def database(databases):
    """A new database of its own, as a URL; removed after the test."""
    name = databases.create()
    yield databases.cluster.url(name)
    databases.drop(name)


def admin_of(url):
    """Return a session of psycopg with a database, to be closed."""
    import psycopg

    return closing(psycopg.connect(url, autocommit=True))
