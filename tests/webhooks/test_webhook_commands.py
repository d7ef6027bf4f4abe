"""The commands of webhooks: the secret alone goes to standard output, and each works with and without a server."""

import json
import re
import time
from contextlib import closing

import pytest
from conftest import wait_for
from receiver import make_webhook, reply, sent

import ticketapi


@pytest.fixture
def command(run, desk):
    """Return a function that runs a command of webhooks on the desk."""
    place = desk.url if isinstance(desk, ticketapi.Postgres) else desk
    return lambda *words: run("webhook", *words, "--db", place)


def test_create_prints_the_secret_alone(command, db, receiver):
    code, out, err = command("create", receiver.url, "--event", "ticket.created", "--event", "ticket.closed", "--name", "mine")
    assert code == 0
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=\n", out)
    assert err.startswith("Webhook 1 for ticket.created, ticket.closed.")
    assert "webhook test 1" in err
    row = ticketapi.get_webhook(db, 1)
    assert (row["name"], row["secret"], row["user_id"], row["private"]) == ("mine", out.strip(), None, 1)


def test_create_with_json_prints_the_record(command, receiver):
    code, out, err = command("create", receiver.url, "--json")
    made = json.loads(out)
    assert (code, err, made["id"], made["events"]) == (0, "", 1, list(ticketapi.EVENT_TYPES))
    assert made["secret"].startswith("whsec_")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("create", "nonsense"), 2, "'nonsense' is no URL for a webhook"),
        (("create", "http://127.0.0.1/", "--event", "ticket.made"), 2, "'ticket.made' is no type of event"),
        (("create", "http://169.254.169.254/"), 1, "169.254.169.254 is link-local or no single host"),
        (("delete", "7"), 1, "There is no webhook with the id 7."),
        (("test", "7"), 1, "There is no webhook with the id 7."),
        (("deliveries", "7"), 1, "There is no webhook with the id 7."),
    ],
)
def test_what_is_wrong_is_one_line(command, words, code, text):
    found, out, err = command(*words)
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert text in err


def test_list_shows_all_but_the_secret(command, db):
    assert command("list") == (0, "No webhooks\n", "")
    assert command("list", "--json") == (0, "[]\n", "")
    made = [make_webhook(db, "http://127.0.0.1/", name="one"), make_webhook(db, "http://[::1]:9/", events=["ticket.closed"])]
    ticketapi.update_webhook(db, 2, {"enabled": False}, 0)
    code, out, _ = command("list")
    title, first, second = out.splitlines()
    assert (code, title.split()[:3]) == (0, ["ID", "NAME", "STATE"])
    assert first.split() == ["1", "one", "on", "0", "-", "all", "http://127.0.0.1/"]
    assert second.split() == ["2", "::1", "off", "0", "-", "ticket.closed", "http://[::1]:9/"]
    code, out, _ = command("list", "--json")
    assert [webhook["id"] for webhook in json.loads(out)] == [1, 2]
    assert not any(webhook["secret"] in out for webhook in made)


def test_delete_deletes(command, db):
    make_webhook(db, "http://127.0.0.1/")
    assert command("delete", 1) == (0, "Deleted webhook 1\n", "")
    assert command("delete", 1, "--json")[0] == 1


def test_test_tells_what_came_of_it(command, db, receiver):
    make_webhook(db, receiver.url)
    code, out, err = command("test", 1)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Delivered: 204, after [0-9]+ ms\n", out)
    receiver.behaviour = reply(500)
    code, out, err = command("test", 1)
    assert (code, err) == (1, "")
    assert re.fullmatch(r"Failed: the answer was 500, after [0-9]+ ms\n", out)
    code, out, _ = command("test", 1, "--json")
    assert (code, json.loads(out)["status"]) == (1, "failed")


def test_deliveries_shows_what_was_sent_newest_first(command, db, receiver):
    make_webhook(db, receiver.url)
    assert command("deliveries", 1) == (0, "No deliveries\n", "")
    for status in (500, 200, 204):
        receiver.behaviour = reply(status)
        command("test", 1)
    code, out, _ = command("deliveries", 1)
    titles, *lines = out.splitlines()
    assert code == 0
    assert titles.split() == ["ID", "EVENT", "TYPE", "STATUS", "TRIES", "CODE", "AT", "NEXT", "ERROR"]
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert lines[-1].endswith("the answer was 500")
    code, out, _ = command("deliveries", 1, "--limit", 2, "--json")
    assert [(one["id"], one["status_code"]) for one in json.loads(out)] == [(3, 204), (2, 200)]


@pytest.mark.files
@pytest.mark.parametrize("hangs", [False, True])
def test_a_server_sends_what_is_due_and_stops_in_time_whoever_hangs(serve, tmp_path, receiver, hangs):
    receiver.behaviour = receiver.hang if hangs else reply()
    served = serve("--no-scheduler")
    with closing(ticketapi.open_database(tmp_path / "ticketapi.db", "desk")) as db:
        hook = make_webhook(db, receiver.url)
        ticketapi.add_test(db, hook["id"], ticketapi.wall_microseconds(), begin=False)
        wait_for(lambda: receiver.messages)
        if not hangs:
            wait_for(lambda: sent(db, hook)[0]["status"] == "delivered")
        begun = time.monotonic()
        code, _, err = served.stop()
        assert (code, time.monotonic() - begun < ticketapi.STOP_SECONDS) == (0, True)
        assert sent(db, hook)[0]["status"] == ("pending" if hangs else "delivered")
    assert "Traceback" not in err and "webhooks cannot" not in err
