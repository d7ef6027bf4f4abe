"""Proof that docs/growing.md works as it stands: roles, move, servers behind a proxy, standby, backups, drop-in.

Run with `pytest -m proof tests/proofs/test_growing.py`. Hosts of the page become ports of this machine, passwords stay.
"""

import re
import shutil
import signal
import subprocess
import time
from collections import Counter

import pytest
from breakable import Cluster, Visitor, cluster, command, finish
from clusters import find_programs, free_port
from conftest import ROOT, Served, wait_for
from manual import snippets

PAGE = "growing.md"
PATH = "/usr/sbin:/usr/bin:/usr/local/bin:/bin:/sbin"
RULES = """
local all postgres trust
host all postgres 127.0.0.1/32 trust
host replication standby 127.0.0.1/32 scram-sha-256
host ticketapi,restored ticketapi,deskserver 127.0.0.1/32 scram-sha-256
"""
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""


def shown(title, language):
    """Return the snippets of a section; there are some."""
    return snippets(PAGE, title, language) or pytest.fail(f"nothing in {language} under {title}")


def psql(made, script, database="postgres"):
    """Run a script of the page as the superuser."""
    call = [find_programs() / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", made.url(database)]
    done = subprocess.run(call, input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def database():
    """A cluster with the roles and the database of the page, which takes passwords."""
    with cluster("other", fsync="off", password_encryption="scram-sha-256") as made:
        (made.data / "pg_hba.conf").write_text(RULES)
        made.ask("SELECT pg_reload_conf()")
        psql(made, shown("A database", "sql")[0].replace("\\connect ticketapi", f"\\connect {made.url()}"))
        yield made


@pytest.fixture(scope="module")
def owner(database):
    return database.url(user="ticketapi", password="a-long-secret")


@pytest.fixture(scope="module")
def moved(database, owner, tmp_path_factory):
    """The URL of a server's role, after the desk has moved in by the page's command."""
    desk = tmp_path_factory.mktemp("file") / "ticketapi.db"
    finish(str(desk), "generate", "--count", 10000, "--since", "90d")
    Served("--no-scheduler", cwd=desk.parent).stop()
    [line] = re.findall(r"ticketapi\.pyz (copy .*)", shown("Moving the desk", "console")[0])
    written = {"/var/lib/ticketapi/ticketapi.db": str(desk), "postgresql://ticketapi:a-long-secret@db1/ticketapi": owner}
    words = [written.get(word, word) for word in line.split()]
    assert set(written.values()) <= set(words)
    assert re.fullmatch(r"Copied 10000 tickets, \d+ users, 0 tokens, 0 requests to \S+", finish("", *words))
    return database.url(user="deskserver", password="another-secret")


def test_a_servers_role_can_do_all_that_servers_and_commands_do_and_change_no_table(database, moved, serve):
    token = finish(moved, "token", "create", "--ability", "*")
    served = serve("--generate-every", "1s", "--process-every", "1s", "--audit-keep", "1d", env={"TICKETAPI_DB": moved})
    for path in ("/api/stats", "/api/audits", "/api/users", "/ready", "/api/tickets/closed?page=3"):
        assert served.get(path, token).status == 200
    for words in ("generate --count 500", "process --count 100", "token prune", "audit prune --older-than 1d"):
        finish(moved, *words.split())
    assert "wrong" not in finish(moved, "check")
    finish(moved, "check", "--repair")
    wait_for(lambda: 'job="process",result="ok"} 1' in served.get("/metrics").body.decode())
    _, _, err = served.stop()
    assert "ERROR" not in err and "secret" not in err
    denied = subprocess.run([find_programs() / "psql", "-c", "DROP TABLE tickets", moved], capture_output=True, text=True)
    assert "must be owner" in denied.stderr


def test_a_dump_is_restored_by_the_commands_of_the_page(database, owner, moved, tmp_path):
    database.ask("CREATE DATABASE restored OWNER ticketapi TEMPLATE template0 ENCODING UTF8")
    for line in "".join(shown("Backups", "sh")).splitlines():
        line = line.replace("postgresql://ticketapi@db1/ticketapi", owner)
        line = line.replace("postgresql://ticketapi@db1/restored", f"{owner.removesuffix('/ticketapi')}/restored")
        if line.startswith("ticketapi "):
            assert "wrong" not in finish("", *line.split()[1:])
        else:
            subprocess.run(line.split(), check=True, cwd=tmp_path)
    counts = "SELECT (SELECT count(*) FROM tickets), (SELECT count(*) FROM api_audits)"
    assert database.ask(counts, "restored") == database.ask(counts, "ticketapi")
    with command(moved, "backup", "ticketapi.dump") as refused:
        _, err = refused.communicate(timeout=30)
    assert refused.returncode == 1 and "pg_dump --format=custom --file=ticketapi.dump postgresql://" in err


def test_vacuum_comes_after_as_many_changes_as_the_page_says(database, moved):
    [(options,)] = database.ask("SELECT reloptions FROM pg_class WHERE relname = 'tickets'", "ticketapi")
    assert "autovacuum_vacuum_scale_factor=0" in options and "autovacuum_vacuum_threshold=10000" in options
    assert "tickets" in psql(database, shown("Vacuum", "sql")[0], "ticketapi")


@pytest.fixture
def proxy(tmp_path):
    """Return a function that starts a proxy of the page before two servers and gives its port."""
    started = []

    def start(language, ports):
        program = shutil.which({"nginx": "nginx", "haproxy": "haproxy"}[language], path=PATH)
        if not program:
            pytest.skip(f"needs {language}: apt-get install nginx-light haproxy")
        port, [text] = free_port(), shown("Two servers behind a proxy", language)
        text = re.sub(r" *ssl_certificate.*\n| crt \S+", "", text)  # tests/proofs/test_proxies.py has TLS
        text = re.sub(r"(bind |listen )(:?)443 ssl", rf"\g<1>127.0.0.1:{port}", text)
        for address, there in zip(("192.0.2.21:8000", "192.0.2.22:8000"), ports, strict=True):
            text = text.replace(address, f"127.0.0.1:{there}")
        file = tmp_path / "proxy.conf"
        file.write_text(NGINX.format(folder=tmp_path, site=text) if language == "nginx" else text)
        options = {"nginx": ["-e", "stderr", "-c"], "haproxy": ["-db", "-f"]}[language]
        with open(tmp_path / "log", "wb") as log:
            started.append(subprocess.Popen([program, *options, file], cwd=tmp_path, stdout=log, stderr=log))
        visitor = Visitor(port, "/up")
        wait_for(lambda: visitor.ask()[0] == 200 or started[-1].poll() is not None)
        assert started[-1].poll() is None, (tmp_path / "log").read_text()
        return port

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("language", ["haproxy", "nginx"])
def test_no_client_notices_when_one_of_two_servers_is_killed_or_leaves(language, moved, serve, proxy):
    token = finish(moved, "token", "create")
    options = ("--rate", 0, "--no-scheduler", "--trusted-proxy", "127.0.0.1")
    servers = [serve(*options, env={"TICKETAPI_DB": moved}) for _ in range(2)]
    port = proxy(language, [served.port for served in servers])
    wait_for(lambda: Visitor(port, "/ready").ask()[0] == 200)
    clients = [Visitor(port, "/api/tickets/open?per_page=2", token) for _ in range(6)]
    for client in clients:
        client.start()
    time.sleep(1.5)
    servers[0].stop(signal.SIGKILL)
    time.sleep(3)
    again = serve(*options, "--port", servers[0].port, env={"TICKETAPI_DB": moved})
    time.sleep(4)
    servers[1].stop()  # as for an upgrade
    time.sleep(3)
    for client in clients:
        client.over.set()
    for client in clients:
        client.join()
    statuses = Counter(status for client in clients for status in client.statuses())
    assert set(statuses) == {200} and statuses[200] > 500, statuses
    links = re.findall(r'"next":"([^"]*)"', clients[0].answers[-1][-1])
    scheme = {"haproxy": "https", "nginx": "http"}[language]  # the one says what it is, the other what it was asked by
    assert links[0].startswith(f"{scheme}://127.0.0.1:{port}/api/tickets/open")
    assert again.process.poll() is None


def test_the_standby_is_made_by_the_commands_of_the_page_and_promoted(database, moved, serve):
    title = "A standby and failover"
    make, wait, promote = shown(title, "sql")
    psql(database, make)
    options = re.search(r"pg_basebackup -D \S+ (.*) -d \"host=db1 (.*)\"'", shown(title, "sh")[0])
    where = f"host=127.0.0.1 port={database.port} password=a-third-secret {options[2]}"
    standby = Cluster(database, (*options[1].split(), "-d", where), fsync="off")
    try:
        psql(database, "\n".join(wait.splitlines()[:2]))
        wait_for(lambda: psql(database, wait.splitlines()[2]).strip() == "db2|streaming|sync")
        both = moved.replace(f"127.0.0.1:{database.port}", f"127.0.0.1:{database.port},127.0.0.1:{standby.port}")
        served = serve("--no-scheduler", env={"TICKETAPI_DB": both})
        token = finish(both, "token", "create")
        database.stop(signal.SIGKILL)
        assert served.get("/api/stats", token).status == 503
        psql(standby, promote)
        wait_for(lambda: served.get("/api/stats", token).status == 200, 3)
        finish(both, "generate")
    finally:
        standby.remove()


def test_the_drop_in_is_one_that_systemd_takes(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    [drop_in] = shown("A server without a file", "ini")
    program = tmp_path / "ticketapi.pyz"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "ticketapi.service"
    unit.write_text((ROOT / "ticketapi.service").read_text().replace("/opt/ticketapi/ticketapi.pyz", str(program)))
    folder = tmp_path / "ticketapi.service.d"
    folder.mkdir()
    (folder / "postgres.conf").write_text(drop_in)

    def verify():
        return subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True).stderr

    assert verify() == ""
    (folder / "postgres.conf").write_text(drop_in.replace("StateDirectory=", "StateFolder="))
    assert "StateFolder" in verify()  # it does read the drop-in
