"""Idempotency-Key: however often a request is sent, it is done once, and each time answered as at first."""

import json
import threading
from contextlib import closing

import pytest
from conftest import NOON, SECOND, Served, make_served, wait_for
from writing import NEW, create, state

import ticketapi
from ticketapi import DAY

TICKETS, COMMENTS = "/api/tickets", "/api/tickets/1/comments"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


def post(api, token, key, value=NEW, url=TICKETS, **more):
    """Send a ticket with a key."""
    return api.post(url, value, token=token, headers={"Idempotency-Key": key, **more})


def kept(db):
    """Return how many answers are kept."""
    return db.execute("SELECT count(*) FROM idempotency_keys").fetchone()[0]


def test_the_same_again_is_answered_the_same_and_does_nothing(api, db, pen, clock):
    first = post(api, pen, "one")
    before = state(db)
    clock.advance(3600)
    again = post(api, pen, "one")
    assert state(db) == before
    assert first.status == again.status == 201
    assert first.body == again.body
    assert [first.headers[name] for name in ("location", "etag")] == [again.headers[name] for name in ("location", "etag")]
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert [row["status_code"] for row in api.audits()] == [201, 201]


def test_it_is_answered_as_at_first_whatever_has_become_of_the_ticket(api, pen):
    first = post(api, pen, "one")
    api.send("PATCH", "/api/tickets/1", {"status": "Closed"}, token=pen)
    assert post(api, pen, "one").body == first.body
    api.request("DELETE", "/api/tickets/1", token=pen)
    assert post(api, pen, "one").body == first.body


def test_comments_take_keys_too(api, pen):
    create(api, pen)
    answers = [post(api, pen, "one", {"content": "Hm"}, COMMENTS) for _ in range(3)]
    assert {answer.body for answer in answers} == {answers[0].body}
    assert {answer.headers["etag"] for answer in answers} == {answers[0].headers["etag"]}
    assert api.get(COMMENTS, token=pen).json["meta"]["total"] == 1
    api.request("DELETE", "/api/tickets/1", token=pen)
    assert post(api, pen, "one", {"content": "Hm"}, COMMENTS).body == answers[0].body


def test_a_quoted_key_is_the_bare_one(api, pen):
    assert post(api, pen, "a b").json["data"]["id"] == 1
    assert post(api, pen, '"a b"').headers["idempotent-replayed"] == "true"
    assert post(api, pen, r'"a \"b\" \\"').json["data"]["id"] == 2
    assert post(api, pen, r'a "b" \ '.strip()).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("key", ["k", "k" * 255, f'"{"k" * 255}"', "~", "8e03978e-40d5-43e8-bc93-6894a57f9324", "'; --"])
def test_keys_are_of_1_to_255_characters(api, pen, key):
    assert post(api, pen, key).status == 201
    assert post(api, pen, key).headers["idempotent-replayed"] == "true"


def test_another_token_route_or_key_is_another(api, db, pen, clock):
    abilities = ["read:tickets", "write:tickets"]
    other = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "other", abilities, 0, clock.wall())["token"]
    assert [post(api, token, key).json["data"]["id"] for token, key in ((pen, "a"), (other, "a"), (pen, "A"))] == [1, 2, 3]
    said = [post(api, pen, "a", {"content": "Hm"}, f"/api/tickets/{number}/comments").json["data"]["id"] for number in (1, 2)]
    assert said == [1, 2]


def test_a_trailing_slash_makes_no_other_route(api, pen):
    post(api, pen, "a")
    assert post(api, pen, "a", url=f"{TICKETS}/").headers["idempotent-replayed"] == "true"


def test_changes_take_none(api, pen):
    create(api, pen)
    for subject in ("a", "b"):
        answer = api.send("PATCH", "/api/tickets/1", {"subject": subject}, token=pen, headers={"Idempotency-Key": "one"})
        assert (answer.status, answer.json["data"]["subject"]) == (200, subject)


def test_another_body_is_refused(api, db, pen):
    post(api, pen, "one")
    before = state(db)
    for value in (NEW | {"subject": "Other"}, {}, dict(reversed(NEW.items()))):
        answer = post(api, pen, "one", value)
        assert (answer.status, list(answer.json["errors"])) == (422, ["Idempotency-Key"])
    assert state(db) == before


def test_only_what_was_done_is_kept(api, db, pen):
    assert post(api, pen, "one", {}).status == 422
    assert post(api, pen, "two", {"content": "Hm"}, COMMENTS).status == 404
    assert api.request("POST", TICKETS, token=pen, headers={"Idempotency-Key": "three"}, body=b"[").status == 400
    assert kept(db) == 0
    assert [post(api, pen, key).status for key in ("one", "two", "three")] == [201] * 3
    assert post(api, pen, "two", {"content": "Hm"}, COMMENTS).status == 201


def test_a_replay_draws_from_the_limit(make_api, pen):
    api = make_api(rate=3)
    remaining = [post(api, pen, "one").headers["x-ratelimit-remaining"] for _ in range(3)]
    assert remaining == ["2", "1", "0"]
    assert post(api, pen, "one").status == 429


def test_an_answer_is_kept_for_a_day(api, db, pen, clock):
    post(api, pen, "one")
    clock.advance(DAY - 1)
    assert "idempotent-replayed" in post(api, pen, "one").headers
    assert post(api, pen, "one", NEW | {"subject": "x"}).status == 422
    clock.advance(1)
    later = post(api, pen, "one", NEW | {"subject": "x"})
    assert (later.status, later.json["data"]["id"], "idempotent-replayed" in later.headers) == (201, 2, False)
    assert post(api, pen, "one", NEW | {"subject": "x"}).headers["idempotent-replayed"] == "true"
    assert kept(db) == 1


def test_those_that_are_over_go_when_others_come(api, db, pen, clock):
    for key in range(25):
        post(api, pen, f"old {key:02}")
        clock.advance(1)
    clock.now = NOON + (DAY + 20) * SECOND
    left = []
    for key in range(3):
        post(api, pen, f"new {key}")
        left.append([row[0] for row in db.execute("SELECT key FROM idempotency_keys WHERE key LIKE 'old%' ORDER BY key")])
    assert [len(keys) for keys in left] == [15, 5, 5]
    assert left[-1] == [f"old {key}" for key in range(20, 25)]


def test_a_restart_forgets_nothing(api, desk, pen, clock, empty_log):
    first = post(api, pen, "one")
    with ticketapi.ExitStack() as stack:
        other = make_served(api.settings, clock, stack)
        again = post(other, pen, "one")
    assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")


def test_a_commit_that_fails_keeps_neither_ticket_nor_answer(api, db, pen, monkeypatch):
    real = ticketapi.write_once

    def broken(connection, **more):
        real(connection, **more)
        raise ticketapi.DeskBusy("the disk is full")

    monkeypatch.setattr(ticketapi, "write_once", broken)
    before = state(db)
    assert post(api, pen, "one").status == 503
    assert state(db) == before
    monkeypatch.undo()
    assert post(api, pen, "one").status == 201


def together(served, tokens, key, count=8):
    """Send a ticket from many clients at once; return their answers."""
    answers, start = [], threading.Barrier(count)

    def client(number):
        start.wait()
        headers = {"Idempotency-Key": key}
        answers.append(served.get(TICKETS, tokens[number % len(tokens)], headers, "POST", json.dumps(NEW).encode()))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("threads", [1, 4])
def test_eight_clients_at_once_make_one_ticket(desk, db, tmp_path, threads):
    abilities = ["read:tickets", "write:tickets"]
    pen = ticketapi.create_token(db, "a@b.example", "t", abilities, 0, ticketapi.wall_microseconds())["token"]
    place = desk.url if isinstance(desk, ticketapi.Postgres) else desk
    servers = [Served("--db", place, "--no-scheduler", "--rate", "0", "--threads", threads, cwd=tmp_path)]
    try:
        for key in "abc":
            answers = together(servers[0], [pen], key)
            assert {(answer.status, answer.body) for answer in answers} == {(201, answers[0].body)}
            assert sum("idempotent-replayed" in answer.headers for answer in answers) == 7
        assert len(servers[0].get(TICKETS, pen).json["data"]) == 3
        if place is not desk:  # many servers of one desk
            servers.append(Served("--db", place, "--no-scheduler", "--rate", "0", cwd=tmp_path))
            found = [served.get(TICKETS, pen, {"Idempotency-Key": "a"}, "POST", json.dumps(NEW).encode()) for served in servers]
            assert {answer.json["data"]["id"] for answer in found} == {answers[0].json["data"]["id"] - 2}
    finally:
        for served in servers:
            assert served.stop()[0] == 0
    wait_for(lambda: kept(db) == 3)


@pytest.mark.files
def test_kill_9_forgets_no_answer(desk, db, tmp_path):
    abilities = ["read:tickets", "write:tickets"]
    pen = ticketapi.create_token(db, "a@b.example", "t", abilities, 0, ticketapi.wall_microseconds())["token"]
    served = Served("--db", desk, "--no-scheduler", cwd=tmp_path)
    headers, body = {"Idempotency-Key": "one"}, json.dumps(NEW).encode()
    first = served.get(TICKETS, pen, headers, "POST", body)
    served.process.kill()
    served.process.communicate()
    served = Served("--db", desk, "--no-scheduler", cwd=tmp_path)
    with closing(db):
        again = served.get(TICKETS, pen, headers, "POST", body)
        assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")
    assert served.stop()[0] == 0
