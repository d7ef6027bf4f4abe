"""Of all that is wrong with a request the first is told: each request here is wrong in two ways, or in all from one on."""

import json
from itertools import combinations

import pytest
from conftest import Served, create_ticket
from writing import NEW, create, state

import ticketapi

OVER = b"x" * (ticketapi.MAX_BODY_BYTES + 1)
# What is wrong, in the order in which it is told, with the status; a request is right but for what is named.
ORDER = {
    "route": 404,
    "method": 405,
    "token": 401,
    "limit": 429,
    "ability": 403,
    "type": 415,
    "key": 400,
    "size": 413,
    "body": 400,
    "other body": 422,
    "ticket": 404,
    "if-match": 412,
    "fields": 422,
}
TOLD = {
    "route": "could not be found",
    "method": "is not supported",
    "token": "Unauthenticated",
    "limit": "Too Many",
    "ability": "ability",
    "type": "application/json",
    "key": "Idempotency-Key header must",
    "size": "is over 65536 bytes",
    "body": "must be a JSON object",
    "other body": "with another body",
    "ticket": "no ticket",
    "if-match": "has changed",
    "fields": "content field",
}
IMPOSSIBLE = [  # in one request
    {"route", "method"},
    {"token", "limit"},
    {"token", "ability"},
    {"type", "method"},
    {"size", "body"},
    {"size", "fields"},
    {"body", "fields"},
    {"body", "other body"},
    {"size", "other body"},
    {"key", "other body"},
    {"other body", "if-match"},
    {"key", "if-match"},
]
PAIRS = [pair for pair in combinations(ORDER, 2) if set(pair) not in IMPOSSIBLE]


def wrong_request(wrongs, tokens):
    """Return method, path, headers and body of a request that is wrong in some ways."""
    comment = not {"if-match"} & set(wrongs)  # else a change, as comments take no If-Match
    method, path = ("POST", "/api/tickets/1/comments") if comment else ("PATCH", "/api/tickets/1")
    headers, body = {"Content-Type": "application/json"}, json.dumps({"content": "Hm"}).encode()
    token = tokens["pen"]
    if "ticket" in wrongs:
        path = path.replace("/1", "/9")
    if "other body" in wrongs:
        headers["Idempotency-Key"] = "used at 9" if "ticket" in wrongs else "used"
    if "key" in wrongs:
        headers["Idempotency-Key"] = "k" * 256
    if "if-match" in wrongs:
        headers["If-Match"] = '"another"'
    if "fields" in wrongs:
        body = json.dumps({"content": 7}).encode()
    if "body" in wrongs:
        body = b"no JSON"
    if "size" in wrongs:
        body = OVER
    if "type" in wrongs:
        headers["Content-Type"] = "text/plain"
    if "ability" in wrongs:
        token = tokens["reader"]
    if "limit" in wrongs:
        token = tokens["spent reader"] if "ability" in wrongs else tokens["spent"]
    if "token" in wrongs:
        token = "tkt_wrong"
    if "method" in wrongs:
        method, path = ("PATCH" if comment else "POST"), path
    if "route" in wrongs:
        path = path.replace("/api/tickets", "/api/nope")
    return method, path, headers | {"Authorization": f"Bearer {token}"}, body


def make_tokens(db, now):
    """Return tokens by what they are good for; each has an owner of its own, as owners share a limit."""
    read, both = ["read:tickets"], ["read:tickets", "write:tickets"]
    kinds = {"pen": both, "reader": read, "spent": both, "spent reader": read}
    return {
        kind: ticketapi.create_token(db, f"{kind.replace(' ', '.')}@example.com", kind, abilities, 0, now)["token"]
        for kind, abilities in kinds.items()
    }


def keep_key(db, token, route, key, now):
    """Keep an answer to another body under a key."""
    token_id = ticketapi.find_token(db, ticketapi.hash_token(token))["id"]
    row = {"token_id": token_id, "route": route, "key": key, "body_digest": "0" * 64, "status": 201, "body": "{}"}
    with ticketapi.transaction(db):
        ticketapi.keep_answer(db, row | {"location": None, "created_at": ticketapi.format_time(now)})


def prepare(db, tokens, now):
    """Keep the answers that requests with another body would repeat."""
    keep_key(db, tokens["pen"], "POST /api/tickets/1/comments", "used", now)
    keep_key(db, tokens["pen"], "POST /api/tickets/9/comments", "used at 9", now)


@pytest.mark.parametrize("wrongs", [*((one,) for one in ORDER), *PAIRS], ids=" and ".join)
def test_the_earlier_one_is_told(make_api, db, clock, wrongs):
    api, tokens = make_api(rate=1), make_tokens(db, clock.wall())
    create(api, tokens["pen"])
    prepare(db, tokens, clock.wall())
    clock.advance(120)
    for kind in ("spent", "spent reader"):
        assert api.get("/api/stats", token=tokens[kind]).status == 200
    before, rows = state(db), len(api.audits())
    method, path, headers, body = wrong_request(wrongs, tokens)
    answer = api.request(method, path, headers=headers, body=body)
    assert answer.status == ORDER[wrongs[0]], answer.body
    assert TOLD[wrongs[0]] in answer.json["message"]
    assert state(db) == before
    assert [row["status_code"] for row in api.audits()[rows:]] == [answer.status]


def test_what_is_right_is_done(make_api, db, clock):
    api, tokens = make_api(rate=0), make_tokens(db, clock.wall())
    create(api, tokens["pen"])
    for wrongs, status in (((), 201), (("if-match",), 412)):
        method, path, headers, body = wrong_request(wrongs, tokens)
        assert api.request(method, path, headers=headers, body=body).status == status


@pytest.mark.files
def test_a_real_server_tells_the_same(tmp_path):
    place = tmp_path / "desk.db"
    db = ticketapi.open_database(place, "desk")
    now = ticketapi.wall_microseconds()
    tokens = make_tokens(db, now)
    create_ticket(db, ("Ada", "ada@example.com"), *(NEW[name] for name in ("subject", "content")), now)
    prepare(db, tokens, now)
    served = Served("--db", place, "--no-scheduler", "--rate", "0", cwd=tmp_path)
    try:
        before, told = state(db), {}
        # The parser refuses what is too long before all; strangers get 30 answers a minute, and there is no limit else.
        pairs = [wrongs for wrongs in PAIRS if not {"size", "limit"} & set(wrongs)]
        strange = [wrongs for wrongs in pairs if "token" in wrongs][:20]
        for wrongs in [wrongs for wrongs in pairs if "token" not in wrongs] + strange:
            method, path, headers, body = wrong_request(wrongs, tokens)
            answer = served.get(path, headers=headers, method=method, body=body)
            told[wrongs] = (answer.status, TOLD[wrongs[0]] in answer.json["message"])
        assert told == {wrongs: (ORDER[wrongs[0]], True) for wrongs in told}
        assert state(db) == before
        method, path, headers, body = wrong_request(("route", "size"), tokens)
        answer = served.get(path, headers=headers, method=method, body=body)
        assert (answer.status, TOLD["size"] in answer.json["message"]) == (413, True)
    finally:
        db.close()
        assert served.stop()[0] == 0
