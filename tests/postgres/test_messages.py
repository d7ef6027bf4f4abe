"""What a person is told of a desk in PostgreSQL: one line that names the place and the fix, and never a password."""

import logging
import subprocess
import sys
from urllib.parse import quote, urlencode

import pytest
from clusters import LOCKED, PASSWORD, admin_of, free_port

import ticketapi

SECRET = "hush"


# Places -------------------------------------------------------------------------------------------

PLACES = {  # what is shown of a URL
    "postgresql://ann@db.test/desk": "postgresql://ann@db.test/desk",
    "postgres://ann@db.test:5433/desk": "postgres://ann@db.test:5433/desk",
    "postgresql://db.test/desk": "postgresql://db.test/desk",
    "postgresql:///desk": "postgresql:///desk",
    "postgresql://": "postgresql://",
    f"postgresql://ann:{SECRET}@db.test/desk": "postgresql://ann@db.test/desk",
    f"postgresql://ann:a%40{SECRET}%2F@db.test/desk": "postgresql://ann@db.test/desk",
    f"postgresql://ann:a@{SECRET}@db.test/desk": "postgresql://ann@db.test/desk",
    f"postgresql://ann:a/{SECRET}@db.test/desk": "postgresql://ann@db.test/desk",
    f"postgresql://ann:a:{SECRET}:@db.test/desk": "postgresql://ann@db.test/desk",
    f"postgresql://ann:a?{SECRET}#&=@db.test/desk": "postgresql://ann@db.test/desk",
    f"postgresql://:{SECRET}@db.test/desk": "postgresql://@db.test/desk",
    f"postgresql://an%3An:{SECRET}@db.test/desk": "postgresql://an%3An@db.test/desk",
    f"postgresql://an?n:{SECRET}@db.test/desk": "postgresql://an?n@db.test/desk",
    f"postgresql://ann:{SECRET}@[::1]:5433/desk": "postgresql://ann@[::1]:5433/desk",
    f"postgresql://ann:{SECRET}@one:1,two:2/desk?target_session_attrs=any": (
        "postgresql://ann@one:1,two:2/desk?target_session_attrs=any"
    ),
    f"postgresql://ann:{SECRET}@%2Frun%2Fpostgresql/desk": "postgresql://ann@%2Frun%2Fpostgresql/desk",
    f"postgresql:///desk?host=/run/postgresql&user=ann&password={SECRET}": "postgresql:///desk?host=/run/postgresql&user=ann",
    f"postgresql:///desk?password={SECRET}&user=ann": "postgresql:///desk?user=ann",
    f"postgresql:///desk?user=ann&password={SECRET}&port=1": "postgresql:///desk?user=ann&port=1",
    f"postgresql:///desk?sslpassword={SECRET}": "postgresql:///desk",
    f"postgresql:///desk?pass%77ord={SECRET}": "postgresql:///desk",
    f"postgresql:///desk?PASSWORD={SECRET}": "postgresql:///desk",
    f"postgresql:///desk?password={SECRET}?x=/@y": "postgresql:///desk",
    f"postgresql://ann:{SECRET}@db.test/desk?sslmode=require&password={SECRET}&sslpassword={SECRET}": (
        "postgresql://ann@db.test/desk?sslmode=require"
    ),
    "postgresql://?service=desk": "postgresql://?service=desk",
}


@pytest.mark.parametrize(("url", "shown"), PLACES.items())
def test_a_place_is_shown_without_its_password(url, shown):
    place = ticketapi.Postgres(url)
    assert str(place) == f"{place}" == shown
    assert SECRET not in repr(place) + repr(ticketapi.Settings(db=place))


@pytest.mark.parametrize("url", PLACES)
def test_what_a_command_says_of_a_place_that_is_not_there_holds_no_password(run, url):
    """Of URLs that name a host, none is reached: a name of .test is never found."""
    if "@" not in url and "db.test" not in url:
        url = url.replace("postgresql://", f"postgresql://127.0.0.1:{free_port()}", 1) if ":///" in url else url
    code, out, err = run("stats", "--db", url)
    assert_one_line(code, out, err)
    assert SECRET not in err


def assert_one_line(code, out, err, expected=1):
    """Check what a command that failed has written."""
    assert (code, out) == (expected, "")
    assert err.startswith("ticketapi: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


# Commands -----------------------------------------------------------------------------------------

SERVE = ("serve", "--port", "0")
COMMANDS = [("tickets",), ("stats",), ("generate",), ("process",), ("token", "list"), ("audit",), ("check",), SERVE]


def fails(run, url, *command):
    """Run a command that fails; return what it says."""
    code, out, err = run(*command, "--db", url)
    assert_one_line(code, out, err)
    return err


@pytest.fixture
def cluster(databases):
    """The server."""
    return databases.cluster


@pytest.fixture
def desk_url(databases):
    """The URL of an empty desk."""
    return databases.fresh().url


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_server_that_is_not_there(run, command):
    port = free_port()
    url = f"postgresql://ann:{SECRET}@127.0.0.1:{port}/desk"
    err = fails(run, url, *command)
    assert err.startswith(f"ticketapi: postgresql://ann@127.0.0.1:{port}/desk does not answer, or not to us: ")
    assert SECRET not in err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_database_that_is_not_there(run, cluster, command):
    err = fails(run, cluster.url("nowhere"), *command)
    assert 'database "nowhere" does not exist; docs/growing.md shows how to create it' in err


@pytest.mark.parametrize("given", [None, "Wr0ng", f"{PASSWORD}x"])
def test_a_wrong_password_or_none(run, cluster, monkeypatch, given):
    for name in ("PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    err = fails(run, cluster.url("postgres", user=LOCKED, password=given), "stats")
    assert "wrong or no password; PGPASSWORD, PGPASSFILE or a URL in TICKETAPI_DB can hold it" in err
    assert PASSWORD not in err and quote(PASSWORD) not in err
    assert not given or given not in err


@pytest.mark.parametrize("way", ["in the user's place", "in the query", "PGPASSWORD"])
def test_the_right_password_lets_in_and_is_shown_nowhere(run, cluster, databases, database, monkeypatch, caplog, way):
    caplog.set_level(logging.DEBUG)
    with admin_of(database) as admin:
        admin.execute(f"GRANT CREATE ON SCHEMA public TO {LOCKED}")
    name = database.partition("?")[0].rpartition("/")[2]
    if way == "PGPASSWORD":
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        url = cluster.url(name, user=LOCKED)
    elif way == "in the query":
        url = cluster.url(name, user=LOCKED, password=PASSWORD)
    else:
        rest = urlencode({key: value for key, value in cluster.parameters.items() if key != "user"}, quote_via=quote)
        url = f"postgresql://{LOCKED}:{quote(PASSWORD, safe='')}@/{name}?{rest}"
    shown = ""
    for command in (["generate", "--count", "3"], ["stats"], ["check"], ["backup", "x.db"]):
        code, out, err = run(*command, "--db", url)
        assert code == (command[0] == "backup"), err
        shown += out + err
    assert name in shown
    for text in (PASSWORD, quote(PASSWORD), quote(PASSWORD, safe="")):
        assert text not in shown + caplog.text


def test_a_role_that_may_not_create_tables(run, cluster, database):
    name = database.partition("?")[0].rpartition("/")[2]
    with admin_of(database) as admin:
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    err = fails(run, cluster.url(name, user=LOCKED, password=PASSWORD), "generate")
    assert "permission denied for schema public" in err
    assert "give the role that right, docs/growing.md has those it needs" in err
    assert PASSWORD not in err


@pytest.mark.parametrize("command", [("tickets",), ("generate",), ("token", "list")], ids=" ".join)
def test_a_role_that_may_not_read_the_desk(run, cluster, databases, desk_url, command):
    err = fails(run, cluster.url(databases.name, user=LOCKED, password=PASSWORD), *command)
    assert "permission denied for " in err
    assert "give the role that right" in err


@pytest.mark.parametrize("command", [("stats",), ("generate",)], ids=" ".join)
def test_another_programs_tables_are_left_alone(run, database, command):
    with admin_of(database) as admin:
        admin.execute("CREATE TABLE desk (drawer text)")
        admin.execute("CREATE TABLE users (name text)")
        err = fails(run, database, *command)
        assert f"{ticketapi.Postgres(database)} holds another program's tables; choose another database" in err
        names = admin.execute("SELECT relname FROM pg_class WHERE relnamespace = CAST('public' AS regnamespace) ORDER BY 1")
        assert names.fetchall() == [("desk",), ("users",)]


@pytest.mark.parametrize(
    "command", [("stats",), ("tickets",), ("generate",), ("check",), ("serve", "--port", "0")], ids=" ".join
)
def test_a_desk_of_a_newer_ticketapi(run, database, command):
    ticketapi.open_database(ticketapi.Postgres(database), "desk").close()
    with admin_of(database) as admin:
        admin.execute("UPDATE desk SET schema_version = 99")
    err = fails(run, database, *command)
    assert "is from a newer ticketapi (schema 99, this one knows 5); upgrade ticketapi" in err


@pytest.mark.parametrize("command", [("stats",), ("generate",)], ids=" ".join)
def test_a_desk_that_lacks_a_table(run, database, command):
    ticketapi.open_database(ticketapi.Postgres(database), "desk").close()
    with admin_of(database) as admin:
        admin.execute("DROP TABLE ticket_counts")
    assert "ticket_counts" in fails(run, database, *command)


MISSPELT = [f"/desk?passwords={SECRET}", f"ann:a@{SECRET}@127.0.0.1:1/desk", f"ann:{SECRET}@h%zz/"]


@pytest.mark.parametrize("rest", MISSPELT)
def test_a_url_that_libpq_does_not_understand(run, rest):
    err = fails(run, f"postgresql://{rest}", "stats")
    assert "is no URL that libpq understands; write postgresql://user@host/database" in err
    assert SECRET not in err


@pytest.mark.parametrize(
    "url", [f"mysql://ann:{SECRET}@host/desk", f"http://{SECRET}", f"postgresql+psycopg://ann:{SECRET}@host"]
)
def test_the_url_of_another_database_is_wrong_as_an_argument_and_as_a_variable(run, monkeypatch, url):
    code, out, err = run("stats", "--db", url)
    assert (code, out) == (2, "")
    assert f"{url.partition('://')[0]}:// is no database of ours" in err
    assert SECRET not in err
    monkeypatch.setenv("TICKETAPI_DB", url)
    code, out, err = run("stats")
    assert (code, out) == (2, "")
    assert SECRET not in err


def test_without_psycopg_it_is_said_how_to_get_it(tmp_path):
    script = "import sys; sys.modules['psycopg'] = None; import ticketapi; sys.exit(ticketapi.main())"
    command = [sys.executable, "-c", script, "stats", "--db", f"postgresql://ann:{SECRET}@host/desk"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert_one_line(done.returncode, done.stdout, done.stderr)
    assert "a desk in PostgreSQL needs psycopg 3: pip install 'ticketapi[postgres]', or Debian's python3-psycopg" in done.stderr
    assert SECRET not in done.stderr


def test_a_desk_that_another_program_writes_to_is_busy(run, desk_url, monkeypatch):
    monkeypatch.setattr(ticketapi, "KINDS", ticketapi.KINDS | {"desk": ticketapi.KINDS["desk"]._replace(writer=IMPATIENT)})
    with admin_of(desk_url) as admin, admin.transaction():
        admin.execute("UPDATE desk SET version = version + 1")
        err = fails(run, desk_url, "generate")
    assert err == f"ticketapi: database is locked: another program writes to {desk_url}; try again when it is done\n"


IMPATIENT = ticketapi.WRITER._replace(wait_ms=20)


def test_a_schema_that_comes_first_in_the_search_path_gets_a_desk_of_its_own(database, run):
    with admin_of(database) as session:
        assert run("generate", "--count", 3, "--db", database)[0] == 0
        session.execute("CREATE SCHEMA first")
        session.execute(f"ALTER DATABASE {session.info.dbname} SET search_path = first, public")
    code, out, err = run("stats", "--db", database)
    assert (code, out) == (1, "")
    assert "there is no desk at" in err
    assert run("generate", "--count", 2, "--db", database)[0] == 0
    with admin_of(database) as session:
        counts = [session.execute(f"SELECT count(*) FROM {name}.tickets").fetchone()[0] for name in ("first", "public")]
    assert counts == [2, 3]


def test_ports_that_do_not_fit_the_hosts_are_refused_by_libpq(run):
    code, out, err = run("stats", "--db", "postgresql://127.0.0.1:1,127.0.0.1:1,127.0.0.1/x?port=1,2")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "could not match 2 port numbers to 3 hosts" in err
