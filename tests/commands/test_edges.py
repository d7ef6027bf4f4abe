"""What the edges say: closed streams, full devices, few files, other Pythons, process 1, values that others have set."""

import ast
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing, suppress

import pytest
from conftest import ROOT, wait_for
from faults import make_desk

import ticketapi
from ticketapi import Settings

PROGRAM = (sys.executable, "-m", "ticketapi")
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, of Linux")


def shell(folder, script, *arguments, **more):
    """Run a shell script in a folder; `$@` is the program and its arguments."""
    command = ["sh", "-c", script, "sh", *PROGRAM, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, **more)


def tickets(folder):
    """Return how many tickets a desk has."""
    with closing(ticketapi.connect(folder / "ticketapi.db")) as db:
        return db.execute("SELECT count(*) FROM tickets").fetchone()[0]


# Standard streams --------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["2>&-", "2>&- <&-", "2>/dev/full"])
def test_with_standard_error_closed_what_was_done_is_done(tmp_path, closed):
    done = shell(tmp_path, f'"$@" {closed}', "generate", "--count", "30000")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Generated 30000 tickets\n", "")
    assert tickets(tmp_path) == 30000
    done = shell(tmp_path, f'TOKEN=$("$@" {closed}) && echo "[$TOKEN]"', "token", "create")
    assert re.fullmatch(r"\[tkt_\w{46}\]\n", done.stdout)
    done = shell(tmp_path, f'"$@" {closed}', "generate", "--count", "0")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("closed", [">&-", ">&- <&-"])
@pytest.mark.parametrize(
    "words",
    ["generate --count 30000", "token create", "token create --name serve", "stats", "process", "--version", "backup copy.db"],
)
def test_with_standard_output_closed_nothing_is_done_and_said(tmp_path, closed, words):
    make_desk(tmp_path / "ticketapi.db", 10)
    done = shell(tmp_path, f'"$@" {closed}', *words.split())
    told = "ticketapi: standard output is closed, nobody would get the result; nothing was done\n"
    assert (done.returncode, done.stderr) == (1, told)
    assert tickets(tmp_path) == 10
    assert not (tmp_path / "copy.db").exists()


def test_with_all_closed_a_desk_gets_none_of_what_is_printed(tmp_path):
    assert shell(tmp_path, '"$@" <&- >&- 2>&-', "generate").returncode == 1
    make_desk(tmp_path / "ticketapi.db", 10)
    assert shell(tmp_path, '"$@" <&- 2>&- >/dev/null', "token", "create").returncode == 0
    assert shell(tmp_path, '"$@"', "check", "--json").returncode in (0, 1)
    assert json.loads(shell(tmp_path, '"$@"', "check", "--json").stdout)["ok"]


def test_a_server_needs_no_standard_stream(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        port = sock.getsockname()[1]
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PROGRAM, "serve", "--port", str(port)], cwd=tmp_path
    ) as process:

        def up():
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/up", timeout=5) as answer:
                return answer.status == 200

        wait_for(up)
        process.terminate()
        assert process.wait(20) == 0


@FULL
@pytest.mark.parametrize("words", ["--help", "--version", "serve --help", "token create --help", "token list", "stats --json"])
def test_what_does_not_fit_its_device_is_an_error(tmp_path, words):
    make_desk(tmp_path / "ticketapi.db", 10)
    done = shell(tmp_path, '"$@" >/dev/full', *words.split())
    assert (done.returncode, done.stderr) == (
        1,
        "ticketapi: No space left on device: standard output; what was done before stays done\n",
    )


# Files -------------------------------------------------------------------------------------------


FEW = """
import resource, sys, ticketapi, bottle, waitress.server
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
raise SystemExit(ticketapi.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("limit", range(3, 12))
@pytest.mark.parametrize("words", ["token list", "stats", "serve --port 0"])
def test_with_too_few_files_that_is_what_is_said(tmp_path, limit, words):
    make_desk(tmp_path / "ticketapi.db", 10)
    command, pipe = [sys.executable, "-c", FEW, str(limit), *words.split()], subprocess.PIPE
    environ = {name: text for name, text in os.environ.items() if "COV" not in name}  # what measures coverage needs files, too
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        if words.startswith("serve") and process.stdout.readline():
            process.terminate()
        _, err = process.communicate(timeout=20)
    assert not any(word in err for word in ("Traceback", "missing", "standard output"))
    if process.returncode:
        assert re.search("Too many open files|ulimit -n", err)


@pytest.mark.parametrize(("soft", "hard"), [(64, 4096), (4096, 4096)])
def test_a_limit_that_cannot_be_raised_is_kept(monkeypatch, soft, hard):
    def refuse(*_):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", refuse)  # as macOS does above kern.maxfilesperproc
    assert ticketapi.raise_file_limit() == soft


# Sockets that are handed over --------------------------------------------------------------------


@pytest.mark.parametrize("number", ["", "abc", "-1", "1.5", "9" * 30, "1001"])
def test_a_number_of_sockets_that_is_none_is_one_line(number):
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": number}
    with pytest.raises(ticketapi.TicketApiError, match=r"^LISTEN_FDS names sockets that cannot be used: "):
        ticketapi.inherited_sockets(environ)


def test_a_descriptor_that_is_no_socket_is_one_line(tmp_path):
    make_desk(tmp_path / "ticketapi.db", 1)
    done = shell(tmp_path, 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3</dev/null', "serve")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(
        r"^ticketapi: LISTEN_FDS names sockets that cannot be used: .*Socket operation on non-socket", done.stderr, re.M
    )


# Other Pythons -----------------------------------------------------------------------------------


def test_an_old_python_is_told_which_one_is_needed():
    source = (ROOT / "ticketapi.py").read_text()
    ast.parse(source, feature_version=(3, 8))  # else it would be a SyntaxError
    old = "import sys, runpy; sys.version_info = (3, 9, 18); sys.version = '3.9.18 (main)'; "
    for run in ("sys.argv = ['ticketapi.py']; runpy.run_path('ticketapi.py', run_name='__main__')", "import ticketapi"):
        done = subprocess.run([sys.executable, "-c", old + run], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, "ticketapi needs Python 3.10 or newer; this is 3.9.18\n")


# Process 1 and signals ---------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare, of util-linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(("words", "code"), [("stats --watch", 0), ("audit --follow", 0), ("generate --count 100000000", 1)])
def test_as_process_1_every_command_ends_when_it_is_told_to(tmp_path, number, words, code):
    make_desk(tmp_path / "ticketapi.db", 10)
    ticketapi.open_database(tmp_path / "ticketapi-audit.db", "audit").close()
    inner = [*PROGRAM, *words.split()]
    command = ["unshare", "--pid", "--fork", *inner]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        children = f"/proc/{process.pid}/task/{process.pid}/children"

        def child():
            with open(children) as file:
                found = file.read().split()
            return found and handles(int(found[0]), signal.SIGTERM) and int(found[0])

        os.kill(wait_for(child), number)
        out, err = process.communicate(timeout=10)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err


def handles(pid, number):
    """Tell whether a process has a handler for a signal (proc(5), SigCgt)."""
    with open(f"/proc/{pid}/status") as file:
        caught = int(re.search(r"SigCgt:\s*([0-9a-f]+)", file.read())[1], 16)
    return bool(caught >> (number - 1) & 1)


def test_a_command_leaves_the_handlers_as_they_were(run, db, desk):
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    assert run("stats", "--db", desk)[0] == 0
    assert [signal.getsignal(number) for number in numbers] == before


# Values that are meant otherwise -----------------------------------------------------------------


def test_what_kubernetes_sets_for_a_service_is_no_port(run, monkeypatch):
    args = ticketapi.build_parser().parse_args(["serve"])
    assert ticketapi.resolve_settings(args, {"TICKETAPI_PORT": "tcp://10.96.0.12:8000"}).port == Settings().port
    assert ticketapi.resolve_settings(args, {"TICKETAPI_PORT": "9000"}).port == 9000
    with pytest.raises(ticketapi.UsageError, match="TICKETAPI_PORT"):
        ticketapi.resolve_settings(args, {"TICKETAPI_PORT": "http://10.96.0.12:8000"})


@pytest.mark.parametrize(
    ("words", "meant"), [("generate 50", "--count 50"), ("process 5", "--count 5"), ("serve 9000", "--port 9000")]
)
def test_a_number_without_its_option_is_told_which_one_was_meant(run, words, meant):
    command = words.partition(" ")[0]
    assert run(*words.split()) == (2, "", f"ticketapi: {command} takes its number with an option: {command} {meant}\n")


@pytest.mark.parametrize("ability", ["read:ticket", "read:tickets,read:audits", "", "tickets", "read:*", "READ:TICKETS"])
def test_an_ability_that_no_route_asks_for_is_refused_with_the_list(run, tmp_path, ability):
    code, out, err = run("token", "create", "--ability", ability)
    listed = f"{', '.join(ticketapi.ABILITIES[:-1])} or *"
    fix = f"is no ability; write {listed}, one with each --ability"
    assert (code, out, err) == (2, "", f"ticketapi: --ability: {ability!r} {fix}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_abilities_are_those_that_routes_ask_for():
    assert {route.ability for route in ticketapi.ROUTES} - {None, ""} == set(ticketapi.ABILITIES) - {"*"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("generate --count 99999999999", "give 1 to 1000000000"),
        ("serve --port 99999", "give 0 to 65535"),
        ("serve --threads 0", "give 1 to 64"),
        ("serve --trusted-proxy a,b", "write 127.0.0.1, or unix for the peer of a Unix socket"),
        ("serve --trusted-proxy 10.0.0.0/8", "is not the address of one proxy"),
    ],
)
def test_what_is_not_allowed_is_told_with_what_is(run, words, told):
    code, out, err = run(*words.split())
    assert (code, out, told in err, err.count("\n")) == (2, "", True, 1)


# Readiness ---------------------------------------------------------------------------------------


@pytest.mark.files
def test_many_who_probe_a_disk_at_once_do_not_disturb_each_other(desk, db):
    failures = []

    def probe():
        for _ in range(200):
            try:
                ticketapi.probe_disk(desk)
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=probe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in desk.parent.iterdir() if "probe" in path.name] == []


@pytest.mark.files
def test_a_probe_follows_no_link(desk, db, tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "desk.db-probe").symlink_to(tmp_path / "target")
    ticketapi.probe_disk(desk)
    assert (tmp_path / "target").read_text() == "kept"
