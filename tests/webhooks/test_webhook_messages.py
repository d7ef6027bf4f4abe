"""What is sent: a message of Standard Webhooks, fixed at the first try, to an answer that is read no further than needed."""

import base64
import json
import socket
import ssl
import subprocess
import threading
import time

import pytest
from conftest import NOON, SECOND
from receiver import Receiver, make_webhook, raw, reply, sent, unused_port
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

import ticketapi

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
DELIVERY = {"message_id": "msg_1", "body": '{"type":"ticket.created"}'}


def send(url, private=1, resolve=ticketapi.resolve_host, now=NOON, body=DELIVERY["body"]):
    """Make one try."""
    hook = {"url": url, "private": private, "secret": SECRET}
    return ticketapi.send_message(hook, {**DELIVERY, "body": body}, now, time.monotonic, resolve)


@pytest.fixture
def short_try(monkeypatch):
    """Let a try take a second at most."""
    monkeypatch.setattr(ticketapi, "TRY_SECONDS", 1)


# What is sent ------------------------------------------------------------------------------------


def test_the_official_library_verifies_what_was_sent(db, events, courier, receiver, clock):
    clock.now = ticketapi.wall_microseconds()
    hook = make_webhook(db, receiver.url)
    events.add("ticket.created", "ticket.closed")
    courier.go()
    ticketapi.send_test(db, hook["id"], ticketapi.Clock())
    verifier = Webhook(hook["secret"])
    payloads = [verifier.verify(message.body, message.headers) for message in receiver.messages]
    assert {payload["type"] for payload in payloads} == {"ticket.created", "ticket.closed", "webhook.test"}
    spoilt = receiver.messages[0].body.replace(b"ticket", b"tocket")
    with pytest.raises(WebhookVerificationError):
        verifier.verify(spoilt, receiver.messages[0].headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(receiver.messages[0].body, receiver.messages[0].headers)


def test_a_message_has_the_type_the_time_and_the_ticket_of_its_event(db, events, webhook, courier, receiver):
    events.add("ticket.created")
    events.add("comment.created", comment=b'{"id":7,"content":"\xc3\xa4"}')
    courier.go()
    first, second = sorted(receiver.messages, key=lambda message: message.json["timestamp"])
    assert first.json == {
        "type": "ticket.created",
        "timestamp": "1970-01-01T00:00:00.000001Z",
        "data": {"id": 1, "subject": "Größe"},
    }
    assert second.json["comment"] == {"id": 7, "content": "ä"}
    assert second.json["data"]["id"] == 2


def test_the_request_is_a_plain_post(receiver):
    assert send(receiver.url).error is None
    message = receiver.messages[0]
    assert message.line == "POST /hooks?from=desk HTTP/1.1"
    assert message.headers["Host"] == f"127.0.0.1:{receiver.port}"
    assert message.headers["Content-Type"] == "application/json"
    assert message.headers["User-Agent"] == f"ticketapi/{ticketapi.__version__}"
    assert message.headers["webhook-timestamp"] == str(NOON // SECOND)
    assert message.body == DELIVERY["body"].encode()


def test_a_url_without_a_path_asks_for_the_root(receiver):
    send(f"http://127.0.0.1:{receiver.port}?a=1")
    assert receiver.messages[0].line == "POST /?a=1 HTTP/1.1"


def test_all_tries_have_one_id_and_one_body_but_a_time_of_their_own(db, events, webhook, courier, receiver, clock):
    receiver.behaviour = reply(500)
    events.add("ticket.created")
    courier.go()
    events.events[0] = events.events[0]._replace(data=b'{"id":1,"subject":"changed"}')
    clock.advance(6)
    courier.go()
    first, second = receiver.messages
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 6
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


def test_a_secret_is_of_32_random_bytes(db, events):
    secrets = {make_webhook(db, "http://127.0.0.1/")["secret"] for _ in range(20)}
    assert len(secrets) == 20
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32 for secret in secrets)


# What comes back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_success(receiver, status):
    receiver.behaviour = reply(status)
    assert send(receiver.url)[:3] == (status, None, 0)


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 410, 429, 500, 503, 599])
def test_anything_else_is_none(receiver, status):
    receiver.behaviour = reply(status)
    assert send(receiver.url)[:3] == (status, f"the answer was {status}", 0)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(receiver, status):
    other = Receiver()
    receiver.behaviour = reply(status, Location=other.url)
    assert send(receiver.url)[:2] == (status, f"the answer was {status}")
    assert other.messages == []
    other.close()


def test_answers_that_come_before_the_real_one_are_passed_over(receiver):
    receiver.behaviour = raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 202 Yes\r\n\r\n")
    assert send(receiver.url).status == 202


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"x" * 200_000],
)
def test_what_is_no_whole_answer_is_a_failure(receiver, answer):
    receiver.behaviour = raw(answer)
    found = send(receiver.url)
    assert found.status is None
    assert found.error


def test_of_ten_megabytes_next_to_nothing_is_read(receiver):
    taken = []

    def flood(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                sock.sendall(bytes(10_000))
                taken.append(10_000)
        taken.append(0)

    receiver.behaviour = flood
    assert send(receiver.url).status == 200
    receiver.close()
    assert sum(taken) < 10_000_000


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_try_ends_after_its_time_however_the_receiver_behaves(receiver, short_try, how):
    receiver.behaviour = getattr(receiver, how)
    found = send(receiver.url)
    assert (found.status, found.error) == (None, "no answer within 1 s")
    assert 1000 <= found.duration_ms < 5000


def test_a_try_ends_where_a_name_is_looked_up_for_ever(short_try, monkeypatch):
    looked_up = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: looked_up.wait(30) and [])
    found = send("http://slow.test/")
    looked_up.set()
    assert found.error in ("slow.test has no address", "no answer within 1 s")
    assert found.duration_ms < 5000


def test_a_receiver_that_takes_nothing_is_given_up(receiver, short_try):
    receiver.take = lambda sock: receiver.released.wait(30)
    assert send(receiver.url, body="x" * 20_000_000).error == "no answer within 1 s"


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/", "http://[::1]:{}/", "https://127.0.0.1:{}/"])
def test_where_nobody_listens_the_error_says_so(url):
    found = send(url.format(unused_port()))
    assert (found.status, bool(found.error)) == (None, True)


def test_what_a_receiver_says_never_reaches_a_terminal_as_it_is(receiver):
    receiver.behaviour = raw(b"HTTP/1.1 200\x1b[31m\r\n\r\n")
    assert (send(receiver.url).error or "").isprintable()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-5", 0),
        ("nonsense", 0),
        ("99999999999999999999999", 86_400),
        ("Thu, 04 Dec 2025 12:01:30 GMT", 90),
        ("Thu, 04 Dec 2025 11:00:00 GMT", 0),
        ("Thu, 04 Dec 2099 11:00:00 GMT", 86_400),
        ("Thu, 99 Dec 2025 11:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date_and_never_more_than_a_day(receiver, header, seconds):
    receiver.behaviour = reply(429, retry_after=header)
    assert send(receiver.url).wait == seconds


# TLS ---------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path):
    """A certificate of localhost, signed by itself."""
    pair = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", pair[0], "-out", pair[1]]
    subprocess.run(command, check=True, capture_output=True)
    return pair


@pytest.fixture
def secure(certificate):
    """A receiver with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    made = Receiver(lambda sock: context.wrap_socket(sock, server_side=True))
    yield made
    made.close()


@pytest.fixture
def trusted(certificate, monkeypatch):
    """Let this machine trust the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    ticketapi.tls_context.cache_clear()
    yield
    ticketapi.tls_context.cache_clear()


def test_https_is_verified_by_the_name_of_the_url(secure, trusted):
    local = lambda host, port, seconds: ["127.0.0.1"]  # noqa: E731
    assert send(f"https://localhost:{secure.port}/", resolve=local).status == 204
    assert send(f"HTTPS://LOCALHOST:{secure.port}/", resolve=local).status == 204
    assert "certificate" in send(f"https://other.test:{secure.port}/", resolve=local).error
    assert len(secure.messages) == 2


def test_a_certificate_that_nobody_vouches_for_is_refused(secure):
    ticketapi.tls_context.cache_clear()
    assert "certificate" in send(f"https://localhost:{secure.port}/").error
    assert secure.messages == []


def test_a_receiver_that_speaks_no_tls_is_a_failure(receiver):
    assert send(f"https://localhost:{receiver.port}/").error


def test_no_proxy_of_the_environment_is_asked(receiver, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    assert send(receiver.url).status == 204


def test_the_body_in_the_table_is_the_body_that_was_sent(db, events, webhook, courier, receiver):
    events.add("ticket.created")
    courier.go()
    [row] = ticketapi.list_deliveries(db, webhook["id"], ticketapi.MAX_ID, 10)
    assert row["body"].encode() == receiver.messages[0].body
    assert json.loads(row["body"])["data"]["subject"] == "Größe"
    assert sent(db, webhook)[0]["message_id"] == receiver.messages[0].headers["webhook-id"]
