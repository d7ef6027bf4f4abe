"""GET, PUT and DELETE /api/faults, and what goes wrong then, up to the answer: statuses, headers, what is written, counts."""

import json

import pytest
from conftest import NOON
from writing import errors_of

import ticketapi

HEADER = "X-Ticketapi-Fault"
ORIGIN = "https://dashboard.example.com"
TICKET = {"subject": "A", "content": "B", "user": {"name": "Ana", "email": "ana@example.com"}}
FIELDS = ["route", "method", "token", "share", "first", "for", "status", "retry_after", "latency", "body", "reset"]
DOWN = {"route": "*", "status": 503}


@pytest.fixture
def operator(db, clock):
    """The text of a token that may do everything."""
    return ticketapi.create_token(db, "operator@example.com", "all", ["*"], 0, clock.wall())["token"]


def put(api, token, *rules, **more):
    """Put rules into force and return what is said of them."""
    answer = api.send("PUT", "/api/faults", {"faults": list(rules), **more}, token=token)
    assert answer.status == 200, answer.body
    return answer.json["data"]


def statuses(api, token, count, url="/api/stats"):
    """Return the statuses of so many answers."""
    return [api.get(url, token=token).status for _ in range(count)]


# What is in force --------------------------------------------------------------------------------


def test_at_first_there_are_none(api, operator):
    answer = api.get("/api/faults", token=operator)
    assert (answer.status, answer.json) == (200, {"data": {"seed": 0, "faults": []}})
    assert api.get("/api/faults", token=operator, headers={"If-None-Match": answer.headers["etag"]}).status == 304


def test_put_tells_what_is_in_force_and_get_what_came_of_it(api, operator):
    rule = {"route": "stats", "first": 2, "status": 429, "for": "30s"}
    told = {**dict.fromkeys(FIELDS), "share": 1, **rule, "requests": 0, "hits": 0, "until": "2025-12-04T12:00:30.000000Z"}
    data = put(api, operator, rule, {"route": "*", "share": 0, "latency": {"uniform": ["1ms", "2s"]}}, seed=3)
    assert (data["seed"], data["faults"][0]) == (3, told)
    assert list(data["faults"][0]) == [*FIELDS, "requests", "hits", "until"]
    assert data["faults"][1]["latency"] == {"uniform": ["1ms", "2s"]}
    assert statuses(api, operator, 4) == [429, 429, 200, 200]
    found = api.get("/api/faults", token=operator).json["data"]["faults"]
    assert [(one["requests"], one["hits"]) for one in found] == [(2, 2), (2, 0)]


def test_put_replaces_what_was_in_force_and_begins_to_count_anew(api, operator):
    rules = [{"route": "stats", "first": 1, "status": 503}]
    put(api, operator, *rules)
    assert statuses(api, operator, 2) == [503, 200]
    put(api, operator, *rules)
    assert statuses(api, operator, 2) == [503, 200]
    assert put(api, operator) == {"seed": 0, "faults": []}


def test_what_get_shows_may_be_put_again(api, operator):
    put(api, operator, {"route": "stats", "first": 1, "status": 503}, seed=7)
    assert statuses(api, operator, 2) == [503, 200]
    shown = api.get("/api/faults", token=operator).json["data"]
    again = api.send("PUT", "/api/faults", shown, token=operator).json["data"]
    assert again == {**shown, "faults": [{**shown["faults"][0], "requests": 0, "hits": 0}]}
    assert statuses(api, operator, 2) == [503, 200]


def test_delete_ends_all_of_them_also_where_there_are_none(api, operator):
    put(api, operator, DOWN)
    assert statuses(api, operator, 1) == [503]
    for _ in range(2):
        answer = api.request("DELETE", "/api/faults", token=operator)
        assert (answer.status, answer.body) == (204, b"")
        assert statuses(api, operator, 1) == [200]
    assert api.get("/api/faults", token=operator).json["data"] == {"seed": 0, "faults": []}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_it_takes_an_ability_of_its_own(api, db, token, method):
    assert api.request(method, "/api/faults").status == 401
    assert api.request(method, "/api/faults", token=token).status == 403
    able = ticketapi.create_token(db, "a@example.com", "t", ["control:faults"], 0, NOON)["token"]
    body = json.dumps({"faults": []}).encode() if method == "PUT" else b""
    answer = api.request(method, "/api/faults", token=able, body=body, headers={"Content-Type": "application/json"})
    assert answer.status in (200, 204)


def test_faults_are_one_servers(make_api, operator):
    one, two = make_api(), make_api()
    put(one, operator, DOWN)
    assert (statuses(one, operator, 1), statuses(two, operator, 1)) == ([503], [200])


# What cannot be put ------------------------------------------------------------------------------


ROUTES = f"must be * or one of {', '.join(ticketapi.FAULTY_ROUTES)}"
LATENCY = 'must be {"fixed": "2s"}, {"uniform": ["5ms", "60s"]} or {"lognormal": {"median": "5ms", "p99": "2s"}}'
TOGETHER = "must have a status (with it retry_after), latency or body, or a reset (with it latency alone)"
STATUS, WAIT = "must be an integer between 400 and 599", "must be an integer between 0 and 99999"
BODY, UNKNOWN = "must be truncated, slow or empty", f"is none of {', '.join(FIELDS)}"
FIXED = (
    "300ms",
    300,
    True,
    [],
    {},
    ["100ms", "2s"],
    *({"fixed": value} for value in (300, "300", "61s", "0ms", "60001ms", "1m")),
)
DRAWN = [
    *({"fixed": "-1s"}, {"fixed": "1.5s"}, {"fixed": ["1s"]}, {"fix": "1s"}, {"fixed": "1s", "uniform": ["1s", "2s"]}),
    *(
        {"uniform": "1s"},
        {"uniform": ["1s"]},
        {"uniform": ["1s", "2s", "3s"]},
        {"uniform": {"1s": "2s"}},
        {"uniform": ["2s", "1s"]},
    ),
    *(
        {"lognormal": value}
        for value in (["1s", "2s"], {"median": "1s"}, {"median": "2s", "p99": "1s"}, {"median": "0s", "p99": "1s"})
    ),
    {"lognormal": {"median": "1s", "p99": "2s", "p50": "1s"}},
]
WRONG = {  # values of each field, and what is said of them
    "route": (ROUTES, [None, "", "stat", "up", "faults", "metrics", 3, ["*"]]),
    "method": ("must be GET, HEAD, POST, PUT, PATCH or DELETE", ["get", "TRACE", 1]),
    "token": ("must be the id of a token", [0, -1, 1.5, "7", True, 10**18, "tkt_x"]),
    "share": ("must be a number between 0 and 1", [-0.1, 1.01, 2, "0.5", True, [0.5], 1e9]),
    "first": ("must be an integer between 1 and 999999999", [0, -1, 1.5, "3", True, 10**9]),
    "for": (
        "must be a duration such as 30s or 5m, between 1s and 9999d",
        ["0", "0s", "30", 30, "30 s", "-1s", "1w", "99999d", "100000s", "", ["30s"]],
    ),
    "status": (STATUS, [399, 600, 200, "503", 503.5, True, -503]),
    "retry_after": (WAIT, [-1, 1.5, "2", 10**5, "soon", False]),
    "latency": (LATENCY, [*FIXED, *DRAWN]),
    "body": (BODY, ["cut", "", 1, True, ["slow"]]),
    "reset": ("must be true", [False, 1, "true", {}]),
    "shere": (UNKNOWN, [0.5]),
    "a\nb": (UNKNOWN, [1]),
    "x" * 70: (UNKNOWN, [1]),
}
SENSELESS = [  # what does not go together
    *(None, 3, "stats", [], {}, {"route": "*"}, {"route": "*", "share": 0.5, "first": 3}, {"route": "*", "status": None}),
    *({"route": "*", **effects} for effects in ({"retry_after": 2}, {"retry_after": 2, "latency": {"fixed": "1s"}})),
    *({"route": "*", "reset": True, **effects} for effects in ({"status": 503}, {"body": "slow"})),
]


def place_of(field):
    """Return how a field of the second rule is named."""
    return f"faults.1.{ticketapi.cut_text(ticketapi.escape(field), 60)}"


@pytest.mark.parametrize(
    ("rule", "place", "words"),
    [
        *(({**DOWN, name: value}, place_of(name), words) for name, (words, values) in WRONG.items() for value in values),
        ({"status": 503}, "faults.1.route", ROUTES),
        *((rule, "faults.1", TOGETHER) for rule in SENSELESS),
    ],
)
def test_a_rule_that_makes_no_sense_is_named_by_its_place(api, operator, rule, place, words):
    answer = api.send("PUT", "/api/faults", {"faults": [DOWN, rule]}, token=operator)
    assert errors_of(answer)[place] == [f"The {place} field {words}."]
    assert not any(key.startswith("faults.0") for key in answer.json["errors"])
    assert statuses(api, operator, 1) == [200]  # nothing is in force then


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        *(
            (body, "faults", "must be an array of at most 100 rules")
            for body in ({}, {"faults": None}, {"faults": {}}, {"fault": []})
        ),
        ({"faults": [DOWN] * 101}, "faults", "must be an array of at most 100 rules"),
        *(
            ({"faults": [], "seed": seed}, "seed", "must be an integer between 0 and 10^18 - 1")
            for seed in (-1, 1.5, "3", True, 10**18, [3])
        ),
        ({"faults": [], "data": {}}, "data", "is none of seed, faults"),
    ],
)
def test_so_is_a_body(api, operator, body, field, words):
    assert errors_of(api.send("PUT", "/api/faults", body, token=operator))[field] == [f"The {field} field {words}."]


def test_all_errors_are_told_at_once(api, operator):
    rules = [{"route": "stat", "status": 99}, {**DOWN, "share": 3}]
    errors = errors_of(api.send("PUT", "/api/faults", {"faults": rules, "seed": -1}, token=operator))
    assert list(errors) == ["seed", "faults.0.route", "faults.0.status", "faults.1.share"]


def test_a_hundred_rules_fit(api, operator):
    assert len(put(api, operator, *[DOWN] * 100)["faults"]) == 100


@pytest.mark.parametrize("depth", [10, 100, 300, *range(500, 1000, 20), 20_000])
def test_no_depth_of_nesting_is_a_failure(api, operator, depth):
    nested = b"[" * depth + b"]" * depth
    body = b'{"faults":[{"route":"*","status":%b}]}' % nested
    answer = api.request("PUT", "/api/faults", token=operator, body=body, headers={"Content-Type": "application/json"})
    assert answer.status in (400, 422)


def test_other_bodies_are_refused_as_of_any_write(api, operator):
    asked = {
        b"[]": 400,
        b"{": 400,
        b'{"seed": NaN}': 400,
        b'{"seed": 1, "seed": 2}': 400,
        b" " * 65537: 413,
        b"faults[]=1": 422,
    }
    for body, status in asked.items():
        kind = "application/x-www-form-urlencoded" if body.startswith(b"f") else "application/json"
        headers = {"Content-Type": kind}
        assert api.request("PUT", "/api/faults", token=operator, body=body, headers=headers).status == status
    assert api.request("PUT", "/api/faults", token=operator, body=b"{}", headers={"Content-Type": "text/plain"}).status == 415


# A status ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "Bad Request"), (429, "Too Many Attempts."), (500, "Server Error"), (502, "Bad Gateway"), (599, "Error")],
)
def test_a_status_is_answered_as_other_errors_are(api, operator, status, message):
    put(api, operator, {"route": "stats", "status": status})
    answer = api.get("/api/stats", token=operator, headers={"Origin": ORIGIN})
    assert (answer.status, answer.json) == (status, {"message": message})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-expose-headers"] == ticketapi.EXPOSED_HEADERS
    assert answer.headers["x-ratelimit-remaining"] == "28"
    assert "etag" not in answer.headers


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait", [None, 0, 2, 99999])
def test_it_has_retry_after_where_the_rule_says_so_alone(api, operator, status, wait):
    put(api, operator, {"route": "stats", "status": status, "retry_after": wait})
    answer = api.get("/api/stats", token=operator)
    assert answer.headers.get("retry-after") == (None if wait is None else str(wait))
    assert "x-ratelimit-reset" not in answer.headers


@pytest.mark.parametrize(("status", "header"), [(401, ("www-authenticate", "Bearer")), (405, ("allow", ""))])
def test_it_has_the_header_that_http_asks_for(api, operator, status, header):
    put(api, operator, {"route": "stats", "status": status})
    answer = api.get("/api/stats", token=operator)
    assert (answer.status, header) == (status, (header[0], answer.headers[header[0]]))


def test_an_answer_of_another_status_may_be_spoilt_too(api, operator):
    put(api, operator, {"route": "stats", "status": 503, "body": "empty"})
    answer = api.get("/api/stats", token=operator)
    assert (answer.status, answer.headers["content-length"], answer.body) == (503, "0", b"")


def test_nothing_is_written_by_a_request_that_is_answered_with_a_status(api, db, operator):
    put(api, operator, {"route": "tickets.store", "status": 503, "first": 1})
    key = {"Idempotency-Key": "once"}
    assert api.post("/api/tickets", TICKET, token=operator, headers=key).status == 503
    assert ticketapi.newest_ticket(db)[0] == 0
    again = [api.post("/api/tickets", TICKET, token=operator, headers=key) for _ in range(2)]
    assert [(answer.status, answer.headers.get("idempotent-replayed")) for answer in again] == [(201, None), (201, "true")]
    assert ticketapi.newest_ticket(db)[0] == 1


@pytest.mark.parametrize("body", ["empty", "truncated", "slow"])
def test_a_write_whose_answer_is_spoilt_is_done(api, db, operator, body):
    put(api, operator, {"route": "tickets.store", "body": body, "first": 1})
    answer = api.post("/api/tickets", TICKET, token=operator, headers={"Idempotency-Key": "once"})
    assert (answer.status, answer.headers["location"]) == (201, "http://desk.test:8000/api/tickets/1")
    assert ticketapi.newest_ticket(db)[0] == 1
    again = api.post("/api/tickets", TICKET, token=operator, headers={"Idempotency-Key": "once"})
    assert (again.status, again.headers["idempotent-replayed"], again.json["data"]["id"]) == (201, "true", 1)


# Bodies ------------------------------------------------------------------------------------------


def test_a_truncated_body_is_the_first_half_under_the_length_of_all(api, operator):
    whole = api.get("/api/stats", token=operator)
    put(api, operator, {"route": "stats", "body": "truncated"})
    answer = api.get("/api/stats", token=operator)
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(whole.body)))
    assert answer.body == whole.body[: len(whole.body) // 2]
    assert answer.headers["etag"] == whole.headers["etag"]


def test_an_empty_body_has_no_length(api, operator):
    put(api, operator, {"route": "stats", "body": "empty"})
    answer = api.get("/api/stats", token=operator)
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "0", b"")


@pytest.mark.parametrize("body", ["empty", "truncated", "slow"])
def test_where_there_is_no_body_there_is_nothing_to_spoil(api, operator, body):
    whole = api.get("/api/stats", token=operator)
    put(api, operator, {"route": "*", "body": body})
    head = api.request("HEAD", "/api/stats", token=operator)
    length = "0" if body == "empty" else str(len(whole.body))
    assert (head.status, head.headers["content-length"], head.body) == (200, length, b"")
    again = api.get("/api/stats", token=operator, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_errors_of_a_handler_are_spoilt_too(api, operator):
    put(api, operator, {"route": "tickets.show", "body": "truncated"})
    answer = api.get("/api/tickets/9", token=operator)
    assert answer.status == 404
    assert b'{"message":"There is no ticket with the id 9."}'.startswith(answer.body)
    assert answer.headers["content-length"] == str(2 * len(answer.body) + 1)


@pytest.mark.parametrize("status", [404, 422, 500])
def test_a_rule_without_a_status_leaves_it_as_it_is(api, operator, monkeypatch, status):
    def fail(db):
        raise RuntimeError("a defect")

    monkeypatch.setattr(ticketapi, "desk_stats", fail)
    put(api, operator, {"route": "*", "latency": {"fixed": "60s"}})  # without a server nobody waits
    url = {404: "/api/users/9", 422: "/api/tickets/open?page=x", 500: "/api/stats"}[status]
    answer = api.get(url, token=operator)
    assert answer.status == status
    assert answer.json["message"]


# Which requests ----------------------------------------------------------------------------------


def test_a_rule_of_a_token_spares_others(api, db, operator, token):
    mine = api.get("/api/token", token=token).json["data"]["id"]
    put(api, operator, {"route": "stats", "token": mine, "status": 503})
    assert (statuses(api, token, 1), statuses(api, operator, 1)) == ([503], [200])


def test_what_is_refused_anyway_is_refused_as_ever_and_counts_for_no_rule(make_api, db, operator):
    api = make_api(rate=3)
    poor = ticketapi.create_token(db, "poor@example.com", "t", ["read:audits"], 0, NOON)["token"]
    put(api, operator, {"route": "*", "first": 1, "status": 503})
    assert statuses(api, None, 1) == statuses(api, "wrong", 1) == [401]
    assert statuses(api, poor, 2) == [403, 403]
    assert statuses(api, operator, 1, "/api/nope") == [404]
    assert api.request("TRACE", "/api/stats", token=operator).status == 405
    assert api.request("OPTIONS", "/api/stats").status == 200
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": HEADER}
    assert api.request("OPTIONS", "/api/stats", headers=asked).status == 204
    assert statuses(api, operator, 3) == [503, 200, 429]


@pytest.mark.parametrize("url", ["/up", "/ready", "/metrics", "/api/faults"])
@pytest.mark.parametrize("asks", [False, True])
def test_what_tells_of_faults_is_never_faulty(api, operator, url, asks):
    put(api, operator, *([] if asks else [DOWN]))
    headers = {HEADER: "status=503; body=empty"} if asks else {}
    answer = api.get(url, token=operator, headers=headers)
    assert answer.status == 200
    assert answer.body


@pytest.mark.parametrize("url", ["/", "/docs", "/openapi.json"])
def test_the_pages_may_be(api, operator, url):
    put(api, operator, DOWN)
    assert api.get(url).status == 503
    put(api, operator, {"route": "*", "token": 1, "status": 503})
    assert api.get(url).status == 200  # which no token is for
    assert api.get(url, token=operator, headers={HEADER: "status=503"}).status == 200


# One request alone -------------------------------------------------------------------------------


def test_a_request_may_ask_to_go_wrong_if_its_token_may(api, db, operator, token):
    headers = {HEADER: "status=503; retry-after=2; latency=300ms; body=truncated"}
    answer = api.get("/api/stats", token=operator, headers=headers)
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert b'{"message":"Service Unavailable"}'.startswith(answer.body)
    able = ticketapi.create_token(db, "a@example.com", "t", ["read:tickets", "control:faults"], 0, NOON)["token"]
    assert api.get("/api/stats", token=able, headers=headers).status == 503
    assert api.get("/api/stats", token=token, headers=headers).status == 200
    assert api.get("/api/stats", headers=headers).status == 401
    assert statuses(api, operator, 1) == [200]


def test_it_wins_over_the_rules_and_counts_for_none(api, operator):
    put(api, operator, {"route": "*", "first": 1, "status": 429})
    assert api.get("/api/stats", token=operator, headers={HEADER: "status=502"}).status == 502
    assert statuses(api, operator, 2) == [429, 200]


MISTAKES = {  # what is said of the parts of a header
    ".status": (STATUS, ["status", "status=", "status=5", "status=600", "status=ok", "status=503, body=slow"]),
    ".retry_after": (WAIT, [f"status=503; retry-after={text}" for text in ("", "-1", "1.5", "100000", "soon")]),
    ".latency": (
        "must be a duration such as 300ms or 2s, a minute at most",
        ["latency", "latency=5m", "latency=61s", "latency=3"],
    ),
    ".body": (BODY, ["body", "body=cut", "body=Slow", "body=1"]),
    ".reset": ("must be true", ["reset=1", "reset=no"]),
    "": (TOGETHER, ["", ";", "retry-after=2", "reset; status=503", "reset; body=slow"]),
    ".shere": ("is none of status, retry_after, latency, body, reset", ["shere=1", "shere", "status=503; shere=1"]),
}


@pytest.mark.parametrize(
    ("text", "part", "words"), [(text, part, words) for part, (words, texts) in MISTAKES.items() for text in texts]
)
def test_a_header_that_makes_no_sense_is_a_400_that_names_the_part(api, operator, token, text, part, words):
    answer = api.get("/api/stats", token=operator, headers={HEADER: text})
    assert (answer.status, answer.json) == (400, {"message": f"The {HEADER}{part} field {words}."})
    assert api.get("/api/stats", token=token, headers={HEADER: text}).status == 200


def test_reset_may_be_said_to_be_true_as_in_a_rule(api, operator):
    assert (
        ticketapi.read_asked("reset=true; latency=1s")
        == ticketapi.read_asked("latency=1s;reset")
        == {
            "reset": True,
            "latency": {"fixed": "1s"},
        }
    )


def test_a_part_that_is_there_twice_is_refused(api, operator):
    answer = api.get("/api/stats", token=operator, headers={HEADER: "status=503; status=504"})
    assert (answer.status, answer.json) == (400, {"message": f"The {HEADER} header names status twice."})
    odd = api.get("/api/stats", token=operator, headers={HEADER: ";".join(["\x9b" * 100] * 2)}).json["message"]
    assert (odd.isprintable(), len(odd) < 200) == (True, True)


# Who sees them -----------------------------------------------------------------------------------


def test_up_tells_how_many_rules_are_in_force_and_nothing_without(api, operator):
    assert api.get("/up").body == b'{"status":"up"}'
    put(api, operator, {"route": "stats", "first": 1, "status": 503}, {"route": "*", "for": "1m", "body": "empty"})
    assert api.get("/up").json == {"status": "up", "faults": 2}
    statuses(api, operator, 1)
    assert api.get("/up").json == {"status": "up", "faults": 1}
    api.clock.advance(60)
    assert api.get("/up").body == b'{"status":"up"}'


def test_metrics_tell_the_rules_in_force_and_what_went_wrong(api, operator):
    def figures():
        lines = api.get("/metrics").body.decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line.startswith("ticketapi_fault"))

    assert figures() == {"ticketapi_fault_rules": "0"}
    put(api, operator, {"route": "stats", "status": 503, "latency": {"fixed": "1s"}}, {"route": "users", "body": "empty"})
    statuses(api, operator, 2)
    statuses(api, operator, 1, "/api/users")
    api.get("/api/tickets", token=operator, headers={HEADER: "body=truncated"})
    kinds = {"body": "2", "latency": "2", "status": "2"}
    counted = {f'ticketapi_faults_total{{kind="{kind}"}}': count for kind, count in kinds.items()}
    assert figures() == {"ticketapi_fault_rules": "2", **counted}
    api.request("DELETE", "/api/faults", token=operator)
    assert figures() == {"ticketapi_fault_rules": "0", **counted}


def test_the_audit_log_has_the_status_as_it_was_sent(api, operator):
    put(api, operator, {"route": "stats", "status": 502}, {"route": "users", "body": "empty"})
    statuses(api, operator, 1)
    statuses(api, operator, 1, "/api/users")
    api.audit.commit(float("inf"))
    rows = [(row["method"], row["route_name"], row["status_code"]) for row in api.audits()]
    assert rows == [("PUT", "faults.replace", 200), ("GET", "stats", 502), ("GET", "users", 200)]
    traffic = api.get("/api/audits/summary", token=operator)
    assert {one["route"] for one in traffic.json["data"]["routes"]} == {"faults.replace", "stats", "users"}
