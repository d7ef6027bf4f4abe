"""Proof by kill -9 of a server that is written to: what was answered with 201 is there, with its event, audit row and delivery.

Clients create tickets with keys, and repeat what they got no answer to; a stream is followed and a webhook is told. Run with
`pytest -m proof tests/proofs/test_write_kills.py`; PROOF_ROUNDS sets how often, PROOF_SEED repeats a run's moments.
"""

import json
import os
import random
import signal
import threading
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from conftest import wait_for
from receiver import Receiver, make_webhook
from soundness import ask

import ticketapi

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "10"))
CLIENTS = 4


class Client(threading.Thread):
    """Creates tickets one after another, each with a key of its own, again with the same until it is answered."""

    def __init__(self, name, token):
        super().__init__(daemon=True)
        self.label, self.token, self.port, self.ended = name, token, 0, threading.Event()
        self.made = {}  # the id of the ticket and of the request, by key
        self.start()

    def run(self):
        number = 0
        while not self.ended.is_set():
            key = f"{self.label}-{number}"
            number += self.create(key)

    def create(self, key):
        """Try to create a ticket; tell whether that was answered."""
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key, "Content-Type": "application/json"}
        body = {"subject": key, "content": "c", "user": {"name": "Ann", "email": f"{self.label}@example.com"}}
        try:
            with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
                connection.request("POST", "/api/tickets", json.dumps(body), headers)
                answer = connection.getresponse()
                data = json.loads(answer.read())
        except (OSError, HTTPException, ValueError):
            self.ended.wait(0.01)
            return False
        assert answer.status in (201, 503), data
        if answer.status == 201:
            self.made[key] = (data["data"]["id"], answer.headers["X-Request-Id"])
        return answer.status == 201


class Follower(threading.Thread):
    """Follows the stream of events, and goes on after the last one it got."""

    def __init__(self, token):
        super().__init__(daemon=True)
        self.token, self.port, self.ended, self.seen = token, 0, threading.Event(), []
        self.start()

    def run(self):
        while not self.ended.is_set():
            headers = {"Authorization": f"Bearer {self.token}"}
            after = self.seen[-1]["id"] if self.seen else 0
            try:
                with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
                    connection.request("GET", f"/api/events/stream?after={after}", headers=headers)
                    for line in connection.getresponse():
                        if line.startswith(b"data: ") and line.endswith(b"}\n"):
                            self.seen.append(json.loads(line[6:]))
            except (OSError, HTTPException):
                self.ended.wait(0.01)


def test_what_was_answered_is_there_with_all_that_goes_with_it_whenever_the_server_is_killed(serve, desk, run):
    seed = int(os.environ.get("PROOF_SEED", "0")) or random.randrange(1, 10**9)
    print(f"PROOF_SEED={seed}")
    chance, receiver = random.Random(seed), Receiver()
    with closing(ticketapi.open_database(desk, "desk")) as db:
        webhook = make_webhook(db, receiver.url)
        token = ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, ticketapi.wall_microseconds())["token"]
    clients, follower = [Client(f"client{number}", token) for number in range(CLIENTS)], Follower(token)
    served = None
    for _ in range(ROUNDS):
        served = serve("--db", desk, "--rate", "0", "--generate-every", "1s", "--process-every", "1s")
        for one in (*clients, follower):
            one.port = served.port
        before = sum(len(client.made) for client in clients)
        wait_for(lambda before=before: sum(len(client.made) for client in clients) > before)
        threading.Event().wait(chance.uniform(0, 0.5))
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
    served = serve("--db", desk, "--rate", "0", "--no-scheduler")
    for one in (*clients, follower):
        one.port = served.port
    for client in clients:
        client.ended.set()
        client.join()
    made = {key: value for client in clients for key, value in client.made.items()}
    tickets = dict(ask(desk, "SELECT subject, id FROM tickets WHERE content = 'c'"))
    assert ask(desk, "SELECT count(*) FROM tickets WHERE content = 'c'") == [(len(tickets),)]  # none twice
    assert {key: ticket_id for key, (ticket_id, _) in made.items()}.items() <= tickets.items()
    created = [
        ticket_id
        for kind, ids in ask(desk, "SELECT type, ticket_ids FROM events ORDER BY first_change")
        for ticket_id in json.loads(ids)
        if kind == "ticket.created"
    ]
    assert len(set(created)) == len(created)
    assert {ticket_id for ticket_id, _ in made.values()} <= set(created)
    log = ticketapi.Settings(db=desk).audit_db
    logged = {row[0] for row in ask(log, "SELECT request_id FROM api_audits WHERE status_code = 201")}
    assert {request for _, request in made.values()} <= logged
    last = ask(desk, "SELECT max(last_change) FROM events")[0][0]
    wait_for(lambda: follower.seen and follower.seen[-1]["id"] == last, 30)
    follower.ended.set()
    assert [event["id"] for event in follower.seen] == list(range(1, last + 1))
    undone = f"SELECT count(*) FROM webhook_deliveries WHERE webhook_id = {webhook['id']} AND next_at IS NOT NULL"
    position = f"SELECT position FROM webhooks WHERE id = {webhook['id']}"
    wait_for(lambda: ask(desk, position) == [(last,)] and ask(desk, undone) == [(0,)], 90)
    told = {message.json["data"]["id"] for message in receiver.messages if message.json["type"] == "ticket.created"}
    assert {ticket_id for ticket_id, _ in made.values()} <= told
    twice = "SELECT event_id FROM webhook_deliveries GROUP BY event_id HAVING count(*) > 1"
    assert ask(desk, twice) == []
    assert run("check", "--db", desk)[0] == 0
    receiver.close()
    print(f"{ROUNDS} kills, {len(made)} tickets answered, {last} events, {len(receiver.messages)} messages")
