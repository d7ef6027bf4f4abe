"""A desk that is served is saved and restored, by its server and beside it: no request sees half of it, streams are told."""

import http.client
import json
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial

import pytest
from conftest import wait_for
from kept import ask, assert_whole, folder_of

import ticketapi

URL = "/api/snapshots"
STREAM = "/api/events/stream"
BODY = {"subject": "s", "content": "c", "user": {"name": "Ann", "email": "ann@example.com"}}


@pytest.fixture
def desk(tmp_path):
    """A desk with tickets."""
    path = tmp_path / "ticketapi.db"
    with closing(ticketapi.open_database(path, "desk")) as db:
        ticketapi.generate_tickets(db, 400, ticketapi.wall_microseconds(), seed=1)
    return path


@pytest.fixture
def token(desk):
    """A token that may do everything."""
    with closing(ticketapi.open_database(desk, "desk")) as db:
        return ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, ticketapi.wall_microseconds())["token"]


@pytest.fixture(params=[1, 4], ids=["loop", "threads"])
def served(serve, desk, token, request):
    """A server of the desk, in whose loop requests are answered, or by threads."""
    return serve("--rate", "0", "--no-scheduler", "--threads", request.param)


class Client:
    """Asks over a connection that it keeps."""

    def __init__(self, served, token):
        self.connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(self, method, path, body=None, **headers):
        """Return status and value of an answer."""
        self.connection.request(method, path, json.dumps(body) if body else None, {**self.headers, **headers})
        answer = self.connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None

    def read_to_end(self, path, **headers):
        """Return the text of a stream, once it has ended."""
        self.connection.request("GET", path, headers=self.headers | headers)
        return self.connection.getresponse().read().decode()


class Busy(threading.Thread):
    """Does something again and again until it is told to end; what it raises is raised then."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.ended, self.error = work, threading.Event(), None
        self.start()

    def run(self):
        try:
            while not self.ended.is_set():
                self.work()
        except BaseException as error:
            self.error = error

    def end(self):
        """End, and raise what went wrong."""
        self.ended.set()
        self.join(30)
        if self.error:
            raise self.error


def beside(desk, *words):
    """Run a command on the desk in a process of its own."""
    command = [sys.executable, "-m", "ticketapi", "snapshot", *words, "--db", str(desk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def by_server(client):
    """Return what saves and restores by the server."""
    return (
        lambda: client.ask("POST", URL, {"name": "one"})[0] == 201,
        lambda: client.ask("POST", f"{URL}/one/restore")[0] == 200,
    )


def by_command(desk):
    """Return what saves and restores beside the server."""
    return lambda: beside(desk, "save", "one")[0] == 0, lambda: beside(desk, "restore", "one")[0] == 0


@pytest.fixture
def dialed(token):
    """Return a function that gives a new client of a server, with a token; all are closed afterwards."""
    made = []

    def dial(served, text=token):
        made.append(Client(served, text))
        return made[-1]

    yield dial
    for client in made:
        client.connection.close()


@pytest.fixture(params=["server", "command"])
def ways(request, served, desk, dialed):
    """What saves, and what restores."""
    return by_server(dialed(served)) if request.param == "server" else by_command(desk)


def test_no_request_sees_half_a_desk(served, desk, dialed, ways):
    save, restore = ways
    client = dialed(served)
    assert save()
    with closing(ticketapi.open_database(desk, "desk")) as db:
        for _ in range(40):
            ticketapi.process_tickets(db, 1, ticketapi.wall_microseconds())
            ticketapi.generate_tickets(db, 1, ticketapi.wall_microseconds(), seed=1)
    seen = set()

    def look():
        _, page = reader.ask("GET", "/api/tickets/open?per_page=1")
        _, stats = reader.ask("GET", "/api/stats")
        assert stats["total_tickets"] - stats["total_unprocessed_tickets"] in (0, 40)
        assert stats["total_tickets"] in (400, 440)
        assert page["meta"]["total"] == 400
        assert page["data"][0]["id"] in (1, 41)
        seen.add(stats["total_tickets"])

    reader = dialed(served)
    look()
    busy = Busy(look)
    assert restore()
    wait_for(lambda: 400 in seen or busy.error)
    busy.end()
    assert seen == {400, 440}
    assert client.ask("GET", "/api/tickets/420")[0] == 404
    assert client.ask("POST", "/api/tickets", BODY)[1]["data"]["id"] == 401
    assert_whole(desk)


def test_what_was_answered_is_there_unless_it_came_before_the_restore(served, desk, dialed, ways):
    save, restore = ways
    assert save()
    made, lock, restored, last = {}, threading.Lock(), [], set()

    def write(client):
        key, begun = f"{len(made)}-{threading.get_ident()}", len(restored)
        status, answer = client.ask("POST", "/api/tickets", BODY | {"subject": key}, **{"Idempotency-Key": key})
        assert status in (201, 503), answer
        if status == 201:
            with lock:
                made[key] = answer["data"]["id"]
                if begun == 3:
                    last.add(key)

    def wait_for_writes(known):
        wait_for(lambda: len(made.keys() - known) > 20 or any(one.error for one in writers))

    writers = [Busy(partial(write, dialed(served))) for _ in range(8)]
    during = set()
    for _ in range(3):
        wait_for_writes(during)
        with lock:
            before = set(made)
        assert restore()
        with lock:
            restored.append(True)
            during = set(made)
        wait_for_writes(during)
    wait_for(lambda: len(last) > 20 or any(one.error for one in writers))
    for one in writers:
        one.end()
    there = dict(ask(desk, "SELECT subject, id FROM tickets WHERE id > 400"))
    assert {key: made[key] for key in last}.items() <= there.items()  # whatever was asked for after the last restore
    assert not before & there.keys()  # nothing of what had been answered before it
    assert there.keys() <= set(made)
    assert_whole(desk)


def test_two_restores_at_once_are_done_one_after_the_other_or_refused(served, desk, dialed):
    clients = [dialed(served) for _ in range(6)]
    clients[0].ask("POST", URL, {"name": "one"})
    answers = []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(one.ask("POST", f"{URL}/one/restore")[0])) for one in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 503}
    assert answers.count(200) >= 1
    assert dict(ask(desk, "SELECT name, value FROM counters"))["epoch"] == answers.count(200)
    assert_whole(desk)


def test_a_stream_ends_with_the_event_reset(served, desk, dialed, ways):
    save, restore = ways
    client, follower, told = dialed(served), dialed(served), []
    assert save()
    thread = threading.Thread(target=lambda: told.append(follower.read_to_end(STREAM)))
    thread.start()
    wait_for(lambda: client.ask("GET", "/api/audits?path=stream")[1]["data"])
    client.ask("POST", "/api/tickets", BODY)
    assert restore()
    thread.join(20)
    *_, last, rest = told[0].split("\n\n")
    assert rest == ""
    name, event, data = last.split("\n")
    assert (name, event) == ("id:", "event: reset")
    assert json.loads(data.removeprefix("data: ")) == {"message": "A snapshot was restored; read the desk anew."}


def test_a_new_stream_goes_on_after_the_restore(served, desk, dialed, ways):
    save, restore = ways
    client = dialed(served)
    for _ in range(3):
        client.ask("POST", "/api/tickets", BODY)
    assert save()
    for _ in range(3):
        client.ask("POST", "/api/tickets", BODY)
    events = client.ask("GET", "/api/events?per_page=200&cursor=")[1]
    while events["links"]["next"]:
        events = client.ask("GET", events["links"]["next"].partition(str(served.port))[2])[1]
    undone = events["data"][-1]["id"]
    assert restore()
    for number in (undone - 6, undone - 3, undone - 1, undone):  # what the snapshot has, too: nobody knows who saw what then
        assert client.ask("GET", f"{STREAM}?after={number}")[0] == 410
        assert client.ask("GET", STREAM, **{"Last-Event-ID": str(number)})[0] == 410
    follower = dialed(served)
    follower.connection.request("GET", STREAM, headers=follower.headers)
    answer = follower.connection.getresponse()
    begun = int([answer.readline() for _ in range(3)][1].removeprefix(b"id: "))
    assert begun > undone
    made = client.ask("POST", "/api/tickets", BODY)[1]["data"]["id"]
    lines = [answer.readline().decode() for _ in range(3)]
    assert lines[:2] == [f"id: {begun + 1}\n", "event: ticket.created\n"]
    assert json.loads(lines[2].removeprefix("data: "))["data"]["id"] == made
    assert client.ask("GET", f"{STREAM}?after={undone}")[0] == 410  # also when there are events beyond it
    follower.connection.close()


def test_a_token_made_meanwhile_and_a_revocation_hold(served, desk, dialed):
    client = dialed(served)
    client.ask("POST", URL, {"name": "one"})
    with closing(ticketapi.open_database(desk, "desk")) as db:
        new = ticketapi.create_token(db, "bob@example.com", "t", ["*"], 0, ticketapi.wall_microseconds())
        gone = ticketapi.create_token(db, "eve@example.com", "t", ["*"], 0, ticketapi.wall_microseconds())
        ticketapi.revoke_token(db, gone["id"])
    assert dialed(served, new["token"]).ask("POST", f"{URL}/one/restore")[0] == 200
    asked = [dialed(served, one["token"]).ask("GET", "/api/stats")[0] for one in (new, gone)]
    assert asked == [200, 401]


def test_the_scheduler_goes_on(serve, desk, dialed):
    served = serve("--rate", "0", "--generate-every", "1s", "--process-every", "1s")
    client = dialed(served)
    client.ask("POST", URL, {"name": "one"})
    for _ in range(2):
        assert client.ask("POST", f"{URL}/one/restore")[0] == 200
        before = client.ask("GET", "/api/stats")[1]["total_tickets"]
        wait_for(lambda before=before: client.ask("GET", "/api/stats")[1]["total_tickets"] > before)
    jobs = client.ask("GET", "/api/schedule")[1]["data"]
    assert all(job["failures"] == 0 for job in jobs)
    assert_whole(desk)


def test_others_are_answered_while_a_snapshot_is_restored(serve, desk, dialed):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 60_000, ticketapi.wall_microseconds(), seed=2)
    served = serve("--rate", "0", "--no-scheduler")
    keeper, reader, answers = dialed(served), dialed(served), []
    for path in (URL, f"{URL}/one/restore"):
        thread = threading.Thread(target=lambda path=path: answers.append(keeper.ask("POST", path, {"name": "one"})[0]))
        thread.start()
        meanwhile = 0
        while thread.is_alive():
            assert reader.ask("GET", "/api/stats")[0] == 200
            meanwhile += 1
        thread.join()
        assert meanwhile > 10
    assert answers == [201, 200]


def test_a_server_that_is_stopped_while_it_restores_answers_first(serve, desk, dialed):
    with closing(ticketapi.open_database(desk, "desk")) as db:
        ticketapi.generate_tickets(db, 20_000, ticketapi.wall_microseconds(), seed=2)
    served = serve("--rate", "0", "--no-scheduler")
    client, answers = dialed(served), []
    assert client.ask("POST", URL, {"name": "one"})[0] == 201
    thread = threading.Thread(target=lambda: answers.append(client.ask("POST", f"{URL}/one/restore")[0]))
    thread.start()
    wait_for(lambda: list(folder_of(desk).glob("*.part")) or not thread.is_alive())
    assert served.stop()[0] == 0
    thread.join()
    assert answers == [200]
    assert not list(folder_of(desk).glob("*.part"))
    assert_whole(desk)
