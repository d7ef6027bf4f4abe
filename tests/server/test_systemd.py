"""Life under systemd: readiness and watchdog messages, sockets that are handed over, and the unit file."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from conftest import ROOT

UNIT = ROOT / "ticketapi.service"
SERVE = (sys.executable, "-m", "ticketapi", "serve", "--no-scheduler")
UP = b"GET /up HTTP/1.1\r\nHost: desk.test\r\nConnection: close\r\n\r\n"

# Becomes the server with the sockets given as descriptors 3 and up, as systemd does it; the process id does not change.
LAUNCHER = """
import fcntl, os, sys
handles = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for place, handle in enumerate(handles, 3):
    os.dup2(handle, place)
os.environ.update(LISTEN_FDS=str(len(handles)), LISTEN_PID=str(os.getpid() + int(sys.argv[2])))
os.execv(sys.argv[3], sys.argv[3:])
"""

needs = {
    name: pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}, which comes with systemd")
    for name in ("systemd-analyze", "systemd-socket-activate")
}
abstract = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's alone")


@pytest.fixture
def short():
    """An empty folder whose path is short enough for a socket's name, whatever the folder of the tests is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def launch(tmp_path):
    """Return a function that starts a program that serves, waits for its first line, and returns both."""
    started = []

    def start(program, **more):
        process = subprocess.Popen(
            program, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )
        started.append(process)
        return process, process.stdout.readline()

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def hand_over(launch, *sockets, stranger=0):
    """Start a server that inherits sockets; with `stranger` they are meant for another process."""
    handles = [sock.fileno() for sock in sockets]
    numbers = ",".join(map(str, handles))
    program = (sys.executable, "-c", LAUNCHER, numbers, str(stranger), *SERVE, "--port", "0")
    return launch(program, pass_fds=handles)


def ask(family, address, data=UP):
    """Send a request and return status and JSON of the answer."""
    with closing(socket.socket(family)) as sock:
        sock.settimeout(10)
        sock.connect(address)
        sock.sendall(data)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


def end(process):
    """Stop a server and return (exit code, rest of stdout, stderr)."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


# Messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", pytest.param("abstract", marks=abstract)])
def test_systemd_hears_when_it_is_ready_alive_and_stopping(serve, short, kind):
    name = f"@ticketapi-test-{os.getpid()}" if kind == "abstract" else str(short / "notify")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind("\0" + name[1:] if kind == "abstract" else name)
        manager.settimeout(10)
        served = serve("--generate-every", "1h", env={"NOTIFY_SOCKET": name})
        assert manager.recv(1024) == b"READY=1"
        assert served.get("/up").status == 200
        assert manager.recv(1024) == b"WATCHDOG=1"
        assert served.stop()[0] == 0
        message = b"WATCHDOG=1"
        while message == b"WATCHDOG=1":
            message = manager.recv(1024)
        assert message == b"STOPPING=1"


def test_a_busy_server_does_not_flood_a_manager_that_is_slow_to_read(serve, short):
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(short / "notify"))
        begin = time.monotonic()
        served = serve("--no-scheduler", env={"NOTIFY_SOCKET": str(short / "notify")})
        assert [served.get("/up").status for _ in range(30)] == [200] * 30
        seconds = time.monotonic() - begin
        messages = 0
        with suppress(BlockingIOError):
            while manager.recv(1024, socket.MSG_DONTWAIT):
                messages += 1
    assert messages <= seconds + 2  # READY=1, and about one WATCHDOG=1 a second


def test_a_manager_that_does_not_listen_is_no_reason_to_fail(serve, short):
    served = serve(env={"NOTIFY_SOCKET": str(short / "nobody")})
    assert served.get("/up").status == 200
    assert served.stop()[0] == 0


# Sockets -----------------------------------------------------------------------------------------


def test_it_serves_on_the_socket_that_it_is_given(launch):
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        address = sock.getsockname()
        process, line = hand_over(launch, sock)
        assert line == f"Listening on http://127.0.0.1:{address[1]}\n"
        assert ask(socket.AF_INET, address) == (200, {"status": "up"})
        code, rest, _ = end(process)
        assert (code, rest) == (0, "")


def test_what_waits_on_the_socket_when_it_starts_is_answered(launch):
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as sock,
        closing(socket.create_connection(sock.getsockname(), timeout=10)) as early,
    ):
        early.sendall(UP)
        hand_over(launch, sock)
        assert early.recv(65536).startswith(b"HTTP/1.1 200")


def test_it_serves_on_a_unix_socket(launch, short):
    path = str(short / "api")
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(path)
        sock.listen()
        process, line = hand_over(launch, sock)
        assert line == f"Listening on unix:{path}\n"
        assert ask(socket.AF_UNIX, path) == (200, {"status": "up"})
        assert ask(socket.AF_UNIX, path, UP.replace(b"/up", b"/api/stats"))[0] == 401
        assert ask(socket.AF_UNIX, path, UP.replace(b"/up", b"/metrics"))[0] == 401  # who is behind it, nobody knows
        assert ask(socket.AF_UNIX, path, b"NONSENSE\r\n\r\n")[0] == 400
        assert end(process)[0] == 0


def test_it_serves_on_all_sockets_that_it_is_given(launch):
    with closing(socket.create_server(("127.0.0.1", 0))) as one, closing(socket.create_server(("127.0.0.1", 0))) as two:
        process, _ = hand_over(launch, one, two)
        assert ask(socket.AF_INET, one.getsockname())[0] == 200
        assert ask(socket.AF_INET, two.getsockname())[0] == 200
        assert end(process)[0] == 0


@pytest.mark.parametrize(
    "kinds",
    [((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_STREAM)), ((socket.AF_INET, socket.SOCK_DGRAM),)],
    ids=["internet and unix at once", "datagrams"],
)
def test_sockets_that_it_cannot_serve_on_are_refused_in_one_line(launch, short, kinds):
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket(*kind))) for kind in kinds]
        for sock in sockets:
            sock.bind(str(short / "api") if sock.family == socket.AF_UNIX else ("127.0.0.1", 0))
            if sock.type == socket.SOCK_STREAM:
                sock.listen()
        process, line = hand_over(launch, *sockets)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, line) == (1, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("ticketapi: ")


def test_sockets_that_are_meant_for_another_process_are_left_alone(launch):
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        process, line = hand_over(launch, sock, stranger=1)
        assert line.startswith("Listening on http://127.0.0.1:")
        assert not line.endswith(f":{sock.getsockname()[1]}\n")
        assert end(process)[0] == 0


@needs["systemd-socket-activate"]
def test_systemd_starts_it_with_the_first_connection(launch, short):
    path = str(short / "api")
    process = subprocess.Popen(
        ("systemd-socket-activate", "-l", path, *SERVE),
        cwd=short,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "Listening on" in process.stderr.readline()
        assert ask(socket.AF_UNIX, path) == (200, {"status": "up"})
        assert process.stdout.readline() == f"Listening on unix:{path}\n"
        assert end(process)[0] == 0
    finally:
        process.kill()
        process.communicate()


# The unit file -----------------------------------------------------------------------------------


@needs["systemd-analyze"]
def test_systemd_finds_nothing_wrong_with_the_unit():
    done = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs["systemd-analyze"]
def test_systemd_counts_the_unit_among_the_least_exposed():
    """The threshold is in tenths: 10 is an exposure of 1.0, where a bare unit has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=10", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_unit_stops_the_server_with_time_to_answer_and_waits_for_its_messages():
    lines = [line.partition("=")[::2] for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    unit = dict(lines)
    assert unit["Type"] == "notify"
    assert int(unit["WatchdogSec"]) > 1
    assert int(unit["TimeoutStopSec"]) > 9
    assert unit["StateDirectoryMode"] == "0700"
    assert unit["Environment"].split()[0] == f"TICKETAPI_DB=/var/lib/{unit['StateDirectory']}/ticketapi.db"
