"""openapi.json describes the API to the last header and error: the app's real routes, and every kind of real answer."""

import json
import re
import socket
from contextlib import closing
from functools import partial
from urllib.parse import quote

import pytest
from conftest import NOON, ROOT, Answer, Served, run_sql
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import ticketapi

TEXT = (ROOT / "openapi.json").read_text()
DOCUMENT = json.loads(TEXT)
ORIGIN = "https://dashboard.example.com"
TRANSPORT = {
    "connection",
    "content-length",
    "content-type",
    "date",
    "server",
    "transfer-encoding",
}  # belong to HTTP, not to an answer of ours
UNDESCRIBED = {"MethodNotAllowed"}  # answers to what no operation describes
COMPONENTS = [(kind, name) for kind, parts in DOCUMENT["components"].items() for name in parts]

# References in schemas lead into the document, wherever the schema with the reference is taken from.
SCHEMAS = json.loads(TEXT.replace('"#/', '"urn:ticketapi#/'))
REGISTRY = Registry().with_resource("urn:ticketapi", Resource.from_contents(SCHEMAS, default_specification=DRAFT202012))


def resolve(thing):
    """Return what a reference leads to, or the thing itself."""
    if "$ref" not in thing:
        return thing
    kind, name = thing["$ref"].split("/")[-2:]
    return SCHEMAS["components"][kind][name]


def assert_valid(value, schema):
    """Check a value against a schema of the document."""
    Draft202012Validator(schema, registry=REGISTRY).validate(value)


OPERATIONS = {(path, method): op for path, item in SCHEMAS["paths"].items() for method, op in item.items()}
GETS = {path: operation for (path, method), operation in OPERATIONS.items() if method == "get"}
ASKED = {key: operation for key, operation in OPERATIONS.items() if key[1] != "options"}
WRITES = {key: operation for key, operation in ASKED.items() if key[1] != "get"}
STREAM = "/api/events/stream"  # whose answer has no end
FORM = "application/x-www-form-urlencoded"
NO_FORM = {"/api/faults": {FORM}}  # cannot say what nests so deeply
SNAPSHOTS = "/api/snapshots"
SNAPSHOT, RESTORED = f"{SNAPSHOTS}/{{name}}", f"{SNAPSHOTS}/{{name}}/restore"
SEARCHES = ("/api/tickets", "/api/tickets/export", "/api/events", "/api/audits", "/api/webhooks/{id}/deliveries")


def parameters(operation, place):
    """Return the parameters of an operation in one place, by name."""
    found = [resolve(one) for one in operation.get("parameters", [])]
    return {one["name"]: one for one in found if one["in"] == place}


def sent_path(path):
    """Return a path as it is sent."""
    return re.sub(r"\{\w+\}", "1", path)


def described_path(rule):
    """Return the rule of a route as the document has it."""
    return re.sub("(ticket|user|webhook)_id", "id", re.sub(r"<(\w+).*?>", r"{\1}", rule))


# The document ------------------------------------------------------------------------------------


def test_it_is_a_valid_openapi_document_of_version_3_1():
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_it_is_written_as_json_usually_is():
    assert json.dumps(DOCUMENT, indent=2, ensure_ascii=False) + "\n" == TEXT


def test_it_is_served_as_it_is_with_the_version_that_runs(api):
    assert DOCUMENT["info"]["version"] == "0.0.0"  # the version stands in ticketapi.py alone
    info = {**DOCUMENT["info"], "version": ticketapi.__version__}
    assert api.get("/openapi.json").json == {**DOCUMENT, "info": info}


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_is_used(kind, name):
    use = f'"{name}": [' if kind == "securitySchemes" else f'"$ref": "#/components/{kind}/{name}"'
    assert (use in TEXT) != (name in UNDESCRIBED)


def test_every_operation_has_a_description_with_an_example():
    for (path, _), operation in OPERATIONS.items():
        assert sent_path(path) in operation["description"]


def closed_objects(node):
    """Yield the schemas of objects with properties."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield node
        for child in node.values():
            yield from closed_objects(child)


def sent_schemas():
    """Return the names of the schemas of what clients send, in which unknown fields are ignored."""
    bodies = json.dumps([operation["requestBody"] for operation in WRITES.values() if "requestBody" in operation])
    return {*re.findall(r"schemas/(\w+)", bodies), "NewCustomer"}


def test_every_object_that_is_answered_is_closed_so_that_a_new_key_shows():
    answered = {name: one for name, one in DOCUMENT["components"]["schemas"].items() if name not in sent_schemas()}
    for schema in closed_objects(answered):
        assert schema["additionalProperties"] is False
        assert set(schema.get("required", [])) in ({*schema["properties"]}, set())


def with_examples(node):
    """Yield the schemas and examples of parameters, headers and media types."""
    if isinstance(node, dict):
        if "schema" in node and ("example" in node or "examples" in node):
            for example in [node["example"]] if "example" in node else [one["value"] for one in node["examples"].values()]:
                yield node["schema"], example
        for child in node.values():
            yield from with_examples(child)


def test_every_example_is_valid():
    examples = list(with_examples(SCHEMAS))
    assert len(examples) > 30
    for schema, example in examples:
        assert_valid(example, schema)


def test_every_answer_in_json_but_the_document_itself_has_an_example():
    done = [response for one in ASKED.values() for status, response in one["responses"].items() if status < "300"]
    for response in [*SCHEMAS["components"]["responses"].values(), *done]:
        for media_type in response.get("content", {}).values():
            assert media_type.keys() & {"example", "examples"} or media_type["schema"]["$ref"].endswith("/Description")


def test_every_body_that_is_sent_has_an_example_in_json_and_as_a_form():
    for (path, _), operation in WRITES.items():
        if "requestBody" in operation:
            kinds = operation["requestBody"]["content"]
            assert kinds.keys() == {"application/json", FORM} - NO_FORM.get(path, set())
            assert all(kind.keys() & {"example", "examples"} for kind in kinds.values())


def texts(name):
    """Return the schemas of the fields of an object that take any text, those aside that another field may make idle."""
    fields = DOCUMENT["components"]["schemas"][name].get("properties", {}).items()
    return {
        key: one
        for key, one in fields
        if "string" in one.get("type", ()) and not {"enum", "format"} & one.keys() and "[" not in key
    }


@pytest.mark.parametrize("name", sorted(sent_schemas()))
def test_no_text_that_is_sent_may_hold_nul(name):
    for key, schema in texts(name).items():
        assert not re.search(schema["pattern"], "a\0b"), key


# What `\\s` is in a pattern (ECMA-262, section 22.2.2.9), and what is space to one language or another.
ECMA_SPACE = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
SPACED = [
    ("/api/audits?user", "AuditUser", "1"),
    ("/api/audits?status", "AuditStatus", "4xx"),
    ("/api/audits?since", "AuditSince", "7d"),
    ("/api/tickets/export?start_time", "StartTime", "7d"),
    ("/api/tickets/export?start_time", "StartTime", "7"),
]
BLANKS = sorted(
    {
        *ECMA_SPACE,
        *(chr(code) for code in range(1, 0x3001) if chr(code).isspace()),
        *"\x1b\x7f\x84\u200b\u200c\u200d\u200e\u200f",
    }
)


def matches(pattern, text):
    """Tell whether a text has a pattern as JSON Schema reads it."""
    return bool(re.search(re.sub(r"\\s(?=[^\[]*\])", ECMA_SPACE, pattern.replace(r"[^@\s]", "[^@]")), text, re.ASCII))


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_what_is_space_around_a_value_is_the_same_in_the_document_and_in_the_routes(make_api, db, token, blank):
    api = make_api(rate=0)
    subject = DOCUMENT["components"]["schemas"]["NewTicket"]["properties"]["subject"]["pattern"]
    answer = api.post(
        "/api/tickets", {"subject": blank, "content": f"{blank}x", "user": {"name": "A", "email": "a@b.c"}}, token=token
    )
    assert (answer.status == 201) == matches(subject, blank)
    for path, name, value in SPACED:
        pattern = DOCUMENT["components"]["parameters"][name]["schema"]["pattern"]
        text = f"{blank}{value}{blank}"
        answer = api.get(f"{path}={quote(text)}", token=token)
        assert (answer.status == 200) == matches(pattern, text), (path, answer.json)


def test_a_field_of_a_form_is_one_text_whatever_its_name():
    forms = [one["requestBody"]["content"].get(FORM) for one in WRITES.values() if "requestBody" in one]
    for schema in (resolve(form["schema"]) for form in forms if form):
        assert schema["additionalProperties"] == {"type": "string"}


# Against the app, the manual and the Postman collection ------------------------------------------


def test_it_has_the_routes_of_the_app_with_their_methods_and_names(api):
    real = {(described_path(route.rule), route.method.lower()): route.name for route in api.app.routes}
    assert real.keys() == OPERATIONS.keys()
    assert {key: operation["operationId"] for key, operation in ASKED.items()} == {key: real[key] for key in ASKED}


def test_it_names_the_ability_that_each_route_asks_for(api):
    for route in api.app.routes:
        operation = OPERATIONS[described_path(route.rule), route.method.lower()]
        ability = route.config.get("ability")
        without = [{}] if route.config.get("open_locally") else []
        needed = [] if ability is None else [{"bearer": [ability] if ability else []}]
        assert operation["security"] == [*needed, *without]
    assert DOCUMENT["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_the_manual_has_the_same_routes_and_errors():
    manual = (ROOT / "docs" / "api.md").read_text()
    routes = re.findall(r"^\| `([A-Z]+) (/\S*)` \|", manual, re.MULTILINE)
    assert routes == [(method.upper(), path) for path, method in ASKED]
    documented = set(re.findall(r"^\| ([45]\d\d) \|", manual, re.MULTILINE))
    assert documented - {"405"} == {status for one in ASKED.values() for status in one["responses"] if status >= "4"}


def test_the_postman_collection_has_the_same_routes_and_parameters():
    collection = json.loads((ROOT / "postman" / "ticketapi.postman_collection.json").read_text())
    requests = [item["request"] for folder in collection["item"] if folder["name"] != "Errors" for item in folder["item"]]
    paths = [re.sub(r":(\w+)", r"{\1}", "/" + "/".join(one["url"]["path"])) for one in requests]
    paths = [re.sub("(ticket|user|webhook)_id", "id", path) for path in paths]
    sent = {(path, one["method"].lower()): one for path, one in zip(paths, requests, strict=True)}
    assert {(path, {"head": "get"}.get(method, method)) for path, method in sent if method != "options"} == ASKED.keys()
    for (path, method), request in sent.items():
        if method not in ("head", "options"):
            fields = {field["key"] for field in request["url"].get("query", [])}
            assert fields == parameters(OPERATIONS[path, method], "query").keys()


NAMES = {name for get in GETS.values() for name in parameters(get, "query")} | {"per-page", "limit"}


def test_parameters_in_the_query_are_those_that_the_app_reads(make_api, db, token):
    ticketapi.generate_tickets(db, 20, NOON, seed=7)
    api = make_api(rate=0)
    for path, get in GETS.items():
        answer = api.get(f"{sent_path(path)}?{'&'.join(f'{name}={LONG}' for name in NAMES)}", token=token)
        refused = answer.json["errors"] if answer.status == 422 else {}
        assert refused.keys() == parameters(get, "query").keys()


def test_if_none_match_is_a_parameter_where_there_are_etags():
    for get in GETS.values():
        assert ("If-None-Match" in parameters(get, "header")) == ("ETag" in get["responses"]["200"]["headers"])


def test_conditions_and_keys_are_parameters_where_the_app_reads_them(make_api, db, token):
    ticketapi.generate_tickets(db, 20, NOON, seed=7)
    api = make_api(rate=0)
    for (path, method), operation in WRITES.items():
        url, headers = sent_path(path), parameters(operation, "header")
        conditional = api.request(method.upper(), url, token=token, headers={"If-Match": '"none"'}, body=b"{}")
        assert (conditional.status == 412) == ("If-Match" in headers)
        keyed = api.request(method.upper(), url, token=token, headers={"Idempotency-Key": "\x07"}, body=b"{}")
        assert (keyed.status == 400) == ("Idempotency-Key" in headers)


def test_defaults_and_bounds_are_those_of_the_code(api, db, token):
    ticketapi.generate_tickets(db, 20, NOON, seed=7)
    query = parameters(GETS["/api/tickets/open"], "query")
    assert query["per_page"]["schema"]["default"] == ticketapi.PER_PAGE
    assert DOCUMENT["components"]["schemas"]["PageMeta"]["properties"]["per_page"]["maximum"] == ticketapi.MAX_PER_PAGE
    user_id = parameters(GETS["/api/users/{id}/tickets"], "path")["id"]["schema"]
    named = "There is no user with the id {}."
    for number in (user_id["minimum"] - 1, user_id["maximum"], user_id["maximum"] + 1):
        answer = api.get(f"/api/users/{number}/tickets", token=token)
        assert (answer.json["message"] == named.format(number)) == (number == user_id["maximum"])


# Answers: how to bring about each status --------------------------------------------------------


BODIES = {  # that are written
    ("POST", "/api/tickets"): {"subject": "A", "content": "B", "user": {"name": "Ana", "email": "ana@example.com"}},
    ("PATCH", "/api/tickets/1"): {"subject": "C"},
    ("PUT", "/api/tickets/1"): {"status": "Closed"},
    ("POST", "/api/tickets/1/comments"): {"content": "D"},
    ("POST", "/api/webhooks"): {"url": "https://[2000::1]/hooks"},
    ("PATCH", "/api/webhooks/1"): {"enabled": False},
    ("PUT", "/api/clock"): {"status": "frozen", "advance": "1d"},
    ("PUT", "/api/faults"): {"faults": [{"route": "stats", "status": 503}]},
    ("POST", "/api/snapshots"): {"name": "1"},
}


def say(api, token, method, url, headers=(), body=None):
    """Ask from a page of another origin, with a body that the route takes unless another is given."""
    usual = BODIES.get((method, url))
    raw = body if body is not None else json.dumps(usual).encode() if usual else b""
    kind = {"Content-Type": "application/json"} if raw else {}
    return api.request(method, url, token=token, headers={"Origin": ORIGIN, **kind, **dict(headers)}, body=raw)


def plain(api, db, token, method, url):
    """Ask as one should."""
    return [say(api, token, method, url)]


def once_and_again(api, db, token, method, url):
    """Make something, with a key for who asks twice."""
    return [say(api, token, method, url, {"Idempotency-Key": "key"}) for _ in range(2)]


def by_its_clock(api, db, token, method, url):
    """Ask of a desk with a clock, which has none yet."""
    if not ticketapi.find_simulation(db):
        ticketapi.begin_simulation(db, None, (None, 1000), 1, 1, NOON)
    return plain(api, db, token, method, url)


def for_long(api, db, token, method, url):
    """Let so much time pass that the answer cannot wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ticketapi, "FIRST_STEP", 1)
        patch.setattr(ticketapi, "ANSWER_SECONDS", 0.0)
        answers = by_its_clock(api, db, token, method, url)
    ticketapi.work_off(db, api.clock, 1000.0)
    return answers


def make_and_delete(api, db, token, method, url):
    """Delete what was made for that."""
    made = say(api, token, "POST", url.removesuffix("/1")).json["data"]["id"]
    return plain(api, db, token, method, url.replace("1", str(made)))


def save_anew(api, db, token, method, url):
    """Save a snapshot whose name is not taken any more."""
    say(api, token, "DELETE", f"{url}/1")
    return plain(api, db, token, method, url)


def saved(api, db, token, method, url):
    """Ask for a snapshot that is there."""
    say(api, token, "POST", SNAPSHOTS)
    return plain(api, db, token, method, url)


def saved_and_known(api, db, token, method, url):
    """Ask for a snapshot that one knows already."""
    say(api, token, "POST", SNAPSHOTS)
    return unchanged(api, db, token, method, url)


def taken_or_impossible(api, db, token, method, url):
    """Save a snapshot under a name that cannot be, or is taken."""
    say(api, token, "POST", SNAPSHOTS)
    return [say(api, token, method, url, body=json.dumps(fields).encode()) for fields in ({}, {"name": "../x"}, {"name": "1"})]


def damaged(api, db, token, method, url):
    """Ask for a snapshot whose file is none."""
    say(api, token, "POST", SNAPSHOTS)
    path = ticketapi.find_folder(api.settings.db)[1] / "1.db"
    path.write_bytes(b"no desk")
    return plain(api, db, token, method, url)


def no_name(api, db, token, method, url):
    """Ask what a route supports with a name that cannot be."""
    return [say(api, token, method, url.replace("1", ".x"))]


def only_the_head(api, db, token, method, url):
    """Ask for what a stream begins with."""
    return plain(api, db, token, "HEAD", url)


def one_and_all(api, db, token, method, url):
    """Ask for a part with others after it, and for as many as there are."""
    return [say(api, token, method, url + query) for query in ("", "?per_page=200&sort=-id", "?per_page=1")]


def paged_and_by_cursor(api, db, token, method, url):
    """Ask for a page, with and without others around it, past the end, and for the parts of a walk."""
    queries = ["", "?per_page=1&page=10", "?page=99", "?cursor=", "?cursor=&per_page=2"]
    answers = [api.request(method, url + query, token=token, headers={"Origin": ORIGIN}) for query in queries]
    cursor = answers[-1].json["meta"]["next_cursor"]
    return [*answers, api.request(method, f"{url}?cursor={cursor}&per_page=2", token=token)]


def paged(api, db, token, method, url):
    """Ask for a page, with and without others around it, and past the end."""
    queries = ["", "?per_page=1&page=10", "?page=99"]
    return [api.request(method, url + query, token=token, headers={"Origin": ORIGIN}) for query in queries]


def preflight(api, db, token, method, url):
    """Ask as a browser does before a script's request."""
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    more = {"Access-Control-Request-Headers": "authorization"}
    return [api.request(method, url, headers=asked), api.request(method, url, headers={**asked, **more})]


def unchanged(api, db, token, method, url):
    """Ask for what one has already, and for parts of it."""
    queries = ["", "?per_page=1"] if url in {sent_path(path) for path in (*LISTS, *SEARCHES)} else [""]
    headers = {"If-None-Match": "*", "Origin": ORIGIN}
    return [api.request(method, url + query, token=token, headers=headers) for query in queries]


def bad_host(api, db, token, method, url):
    """Name a host that is none."""
    return [api.request(method, url, token=token, headers={"Host": "a b", "Origin": ORIGIN})]


def bad_body(api, db, token, method, url):
    """Name a host that is none, and send what is no object."""
    return [*bad_host(api, db, token, method, url), *(say(api, token, method, url, body=raw) for raw in (b"[]", b"{", b"\xff"))]


def unknown_type(api, db, token, method, url):
    """Send what is neither JSON nor a form."""
    return [say(api, token, method, url, {"Content-Type": "text/plain"})]


def another_etag(api, db, token, method, url):
    """Change a ticket that is another by now, or was never so."""
    return [say(api, token, method, url, {"If-Match": etag}) for etag in ('"another"', 'W/"weak", "none"')]


def beyond(api, db, token, method, url):
    """Ask for what comes after all there is."""
    far = ticketapi.encode_cursor(ticketapi.Cursor(10**9, True), f"http://desk.test:8000{url}")
    return plain(api, db, token, method, f"{url}?after={10**9}" if url == STREAM else f"{url}?cursor={far}")


def here_and_elsewhere(api, db, token, method, url):
    """Ask from the machine of the server, without a token, and from another with one."""
    return [api.request(method, url), api.request(method, url, token=token, address=ELSEWHERE)]


def nobody(api, db, token, method, url):
    """Ask without a token, and with a wrong one."""
    return [api.request(method, url, token=text, headers={"Origin": ORIGIN}) for text in (None, "wrong")]


def unable(api, db, token, method, url):
    """Ask with a token that lacks the ability."""
    text = ticketapi.create_token(db, "clerk@example.com", "test", ["read:nothing"], 0, NOON)["token"]
    return plain(api, db, text, method, url)


def missing(api, db, token, method, url):
    """Ask for a user who cannot exist, and for one who does not."""
    ids = ("x",) if method == "OPTIONS" else ("0", "999999")
    body = json.dumps(BODIES.get((method, url), {})).encode()
    return [say(api, token, method, url.replace("1", id), body=body) for id in ids]


def bad_fields(api, db, token, method, url):
    """Send fields that cannot be used, one by one and all at once."""
    if method != "GET":
        hooks = {"url": 3, "name": LONG, "events": ["none"], "enabled": "yes"}
        wrong = [
            {"subject": 1, "content": LONG * 50, "status": 3, **hooks},
            {"content": "", "subject": LONG, "user": {}, "url": ""},
        ]
        return [say(api, token, method, url, body=json.dumps(fields).encode()) for fields in wrong]
    names = parameters(next(get for path, get in GETS.items() if sent_path(path) == url), "query")
    queries = [*(f"?{name}={LONG}" for name in names), "?" + "&".join(f"{name}=1.5" for name in names)]
    return [api.request(method, url + query, token=token, headers={"Origin": ORIGIN}) for query in queries]


def exhausted(api, db, token, method, url):
    """Empty the bucket of an address that guesses, and that of the user when there is one."""
    for _ in range(ticketapi.STRANGERS_RATE):
        api.get("/api/stats", token="wrong")
    if not api.settings.rate or method == "OPTIONS":
        return plain(api, db, "wrong", method, url)
    for _ in range(api.settings.rate):
        api.get("/api/stats", token=token)
    return [*plain(api, db, "wrong", method, url), *plain(api, db, token, method, url)]


def stalled(api, db, token, method, url):
    """Ask while the scheduler does not go round."""
    api.schedule.heartbeat -= ticketapi.HEARTBEAT_SECONDS
    return plain(api, db, token, method, url)


def broken_log(api, db, token, method, url):
    """Ask for a log whose table is gone for a moment."""
    with closing(ticketapi.connect(api.settings.audit_db)) as log:
        log.execute("ALTER TABLE api_audits RENAME TO hidden")
        answers = plain(api, db, token, method, url)
        log.execute("ALTER TABLE hidden RENAME TO api_audits")
    return answers


ASK = {
    204: preflight,
    304: unchanged,
    400: bad_host,
    401: nobody,
    403: unable,
    404: missing,
    410: beyond,
    412: another_etag,
    415: unknown_type,
    422: bad_fields,
    429: exhausted,
}
DAMAGE = {  # done to the desk before it is asked: what no constraint lets in, and tables that are gone
    500: """
        DELETE FROM ticket_counts;
        ALTER TABLE users RENAME TO people;
        CREATE TABLE users AS SELECT id, x'00' AS name, email, 'many' AS tickets_count, created_at, last_number FROM people;
        UPDATE ticket_arrivals SET hour = '2025-12-04Tff';
    """,
    503: "DROP TABLE tickets; DROP TABLE ticket_counts; DROP TABLE users; DROP TABLE webhook_deliveries; DROP TABLE webhooks;",
}
OF_POSTGRES = {  # which minds types: what is no number there
    DAMAGE[500]: """
        DELETE FROM ticket_counts;
        ALTER TABLE users RENAME TO people;
        CREATE TABLE users AS
        SELECT id, name, email, CAST('NaN' AS numeric) AS tickets_count, created_at, last_number FROM people;
        UPDATE ticket_arrivals SET hour = '2025-12-04Tff';
    """
}
NO_TOKENS = "DROP TABLE personal_access_tokens"
SPECIAL = {  # what else it takes to bring about a status, and what is done to the desk before
    ("/up", 503): (stalled, ""),
    ("/api/audits", 503): (broken_log, ""),
    ("/api/audits/summary", 503): (plain, NO_TOKENS),
    ("/api/schedule", 503): (plain, NO_TOKENS),
    ("/api/faults", 503): (plain, NO_TOKENS),
    ("/api/faults", 204): (plain, ""),
    ("/metrics", 503): (plain, NO_TOKENS),
    ("/metrics", 200): (here_and_elsewhere, ""),
    (STREAM, 200): (only_the_head, ""),
    ("/api/clock", 200): (by_its_clock, ""),
    ("/api/clock", 202): (for_long, ""),
    ("/api/clock", 503): (plain, "DROP TABLE simulation"),
    **{(path, 204): (make_and_delete, "") for path in ("/api/tickets/{id}", "/api/webhooks/{id}")},
    **{(path, 201): (once_and_again, "") for path, method in WRITES if method == "post"},
    **{(path, 200): (one_and_all, "") for path in SEARCHES},
    **{(path, 400): (bad_body, "") for (path, _), one in WRITES.items() if "requestBody" in one},
    **{(path, 503): (plain, NO_TOKENS) for path in (SNAPSHOTS, SNAPSHOT, RESTORED)},
    **{(path, 200): (saved, "") for path in (SNAPSHOT, RESTORED)},
    (SNAPSHOT, 304): (saved_and_known, ""),
    (SNAPSHOT, 204): (saved, ""),
    (SNAPSHOTS, 201): (save_anew, ""),
    (SNAPSHOTS, 422): (taken_or_impossible, ""),
    (RESTORED, 422): (damaged, ""),
}
OF_FILES = {200, 201, 204, 304, 400, 404, 415, 422}  # answers about snapshots; in PostgreSQL there are none, and a 501
ELSEWHERE = "192.0.2.1"
REFUSED = {  # by the parser, whatever the route
    400: b"no colon\r\n\r\n",
    413: b"Content-Length: 65537\r\n\r\n",
    431: b"X: " + b"a" * 16 * 1024 + b"\r\n\r\n",
    501: b"Transfer-Encoding: gzip\r\n\r\n",
    505: b"\r\n",
}
LONG = "x" * 256  # that no field takes
BY_DEFAULT, LISTED, NARROW = {}, {"cors_origin": (ORIGIN,)}, {"rate": 0, "cors_origin": ("off",)}
LISTS = {path for path, get in GETS.items() if "page" in parameters(get, "query")}
ASK_LIST = {path: paged_and_by_cursor if "cursor" in parameters(GETS[path], "query") else paged for path in LISTS}
CASES = [
    pytest.param(path, method, int(status), marks=[pytest.mark.files] if SNAPSHOTS in path and int(status) in OF_FILES else [])
    for (path, method), operation in OPERATIONS.items()
    for status in operation["responses"]
    if int(status) not in REFUSED or (status == "400" and ((method == "get" and path in LISTS) or "requestBody" in operation))
]


def as_typed(text, schema):
    """Return a header's text as its schema's type."""
    return int(text) if schema.get("type") == "integer" else text


def assert_described(answer, response):
    """Check headers and body of an answer against a response of the document."""
    declared = {name.lower(): resolve(header) for name, header in response["headers"].items()}
    assert {name for name, header in declared.items() if header.get("required")} <= answer.headers.keys()
    assert answer.headers.keys() - TRANSPORT <= declared.keys()
    for name in answer.headers.keys() & declared.keys():
        assert_valid(as_typed(answer.headers[name], declared[name]["schema"]), declared[name]["schema"])
    if "content" not in response:
        assert answer.body == b""
        return
    kind = answer.headers["content-type"]
    assert_valid(answer.json if kind == "application/json" else answer.body.decode(), response["content"][kind]["schema"])


@pytest.fixture
def filled(db):
    """A desk with tickets of several users, more than ten of them open and some closed, and comments on the first."""
    ticketapi.generate_tickets(db, 60, NOON, seed=7)
    ticketapi.process_tickets(db, 20, NOON)
    owner = ticketapi.create_token(db, "clerk@example.com", "test", ["*"], 0, NOON)
    user_id = ticketapi.find_token_by_id(db, owner["id"])["user_id"]
    for number in range(12):
        ticketapi.add_comment(db, 1, user_id, f"Comment {number}", NOON)
    hook = {"url": "https://[2000::1]/hooks", "private": 0, "events": json.dumps(ticketapi.EVENT_TYPES)}
    made = ticketapi.create_webhook(db, hook, None, NOON)
    for _ in range(2):
        ticketapi.add_test(db, made["id"], NOON, begin=False)
    return db


@pytest.fixture
def token(db, clock):
    """The text of a token that may do everything."""
    return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["*"], 0, clock.wall())["token"]


@pytest.fixture
def asked(make_api, clock):
    """Return a function that makes an app with a job to do; from a far address where a near one needs no token."""

    def make(path, status, settings):
        schedule = ticketapi.Schedule([ticketapi.Job("generate", 60, lambda now: None)], clock.monotonic())
        api = make_api(schedule, **settings)
        api.schedule = schedule
        if path == "/metrics" and status != 200:
            api.request = partial(api.request, address=ELSEWHERE)
        return api

    return make


def way_to_ask(path, method, status):
    """Return how to bring about a status, and what is done to the desk before."""
    if method == "options" and path.startswith(SNAPSHOT) and status == 404:
        return no_name, ""
    usual = ASK_LIST[path] if (method, status) == ("get", 200) and path in LISTS else ASK.get(status, plain)
    if method == "options":
        return usual, NO_TOKENS if status == 503 else ""
    if method == "get" and status == 400:
        return bad_host, ""
    return SPECIAL.get((path, status), (usual, DAMAGE.get(status, "")))


@pytest.mark.parametrize(("path", "method", "status"), CASES)
def test_an_answer_is_as_described_and_every_header_described_is_in_some_answer(
    asked, filled, token, engine, path, method, status
):
    operation, url, seen = OPERATIONS[path, method], sent_path(path), set()
    response = resolve(operation["responses"][str(status)])
    ask, damage = way_to_ask(path, method, status)
    run_sql(filled, OF_POSTGRES.get(damage, damage) if engine == "postgres" else damage)
    for settings in (BY_DEFAULT, LISTED) if status == 204 else (BY_DEFAULT, LISTED, NARROW):
        for answer in ask(asked(path, status, settings), filled, token, method.upper(), url):
            assert answer.status == status
            assert_described(answer, response)
            seen |= answer.headers.keys()
    assert {name.lower() for name in response["headers"]} <= seen


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A real server."""
    one = Served("--no-scheduler", cwd=tmp_path_factory.mktemp("served"))
    yield one
    one.stop()


def exchange_raw(served, data):
    """Send bytes over a connection of its own and return the one Answer before its end."""
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=10)) as sock:
        sock.sendall(data)
        with sock.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return Answer(int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_the_parser_refuses_is_as_described(served, path, method):
    for status, data in REFUSED.items():
        version = "2.0" if status == 505 else "1.1"
        answer = exchange_raw(served, f"{method.upper()} {sent_path(path)} HTTP/{version}\r\nHost: a\r\n".encode() + data)
        assert answer.status == status
        assert_described(answer, resolve(OPERATIONS[path, method]["responses"][str(status)]))


def test_the_server_adds_no_header_of_its_own(serve):
    served = serve("--no-scheduler", "--trusted-proxy", "127.0.0.1")  # so that each request has a bucket
    for number, ((path, method), operation) in enumerate(OPERATIONS.items()):
        client = {"X-Forwarded-For": f"192.0.2.{number}"} if path.startswith("/api/") else {}
        answer = served.get(sent_path(path), method=method.upper(), headers={"Origin": ORIGIN, **client})
        assert answer.status == (401 if operation["security"] and {} not in operation["security"] else 200)
        assert_described(answer, resolve(operation["responses"][str(answer.status)]))


@pytest.mark.parametrize("settings", [BY_DEFAULT, NARROW, LISTED])
@pytest.mark.parametrize("path", ["/nope", "/api/nope", "/up", "/openapi.json", *GETS])
def test_answers_to_what_is_not_described_are_described_too(make_api, path, settings):
    answer = make_api(**settings).request("TRACE", sent_path(path), headers={"Origin": ORIGIN})
    assert answer.status == (405 if path in GETS else 404)
    name = "MethodNotAllowed" if path in GETS else "RouteNotFound"
    assert_described(answer, SCHEMAS["components"]["responses"][name])


def test_an_empty_desk_is_as_described_too(api, token, engine):
    for path, get in GETS.items():
        if "{" not in path and path != STREAM and (path != SNAPSHOTS or engine == "sqlite"):
            assert_described(api.get(path, token=token), resolve(get["responses"]["200"]))


# The route ---------------------------------------------------------------------------------------


def test_it_needs_no_token_draws_nothing_and_is_not_audited(make_api):
    api = make_api(rate=1)
    for headers in ({}, {"Authorization": "Bearer wrong"}) * 20:
        assert api.get("/openapi.json", headers=headers).status == 200
    assert api.audits() == []


def test_it_is_sent_once_to_a_client_that_keeps_it(api):
    etag = api.get("/openapi.json").headers["etag"]
    assert api.get("/openapi.json", headers={"If-None-Match": etag}).status == 304
    assert api.get("/openapi.json", headers={"If-None-Match": '"another"'}).status == 200


def test_tools_in_pages_of_other_origins_may_read_it_as_the_api(make_api):
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    for origins, status, allowed in [(("*",), 204, "*"), ((ORIGIN,), 204, ORIGIN), (("off",), 200, None)]:
        api = make_api(cors_origin=origins)
        for path in ("/openapi.json", "/openapi.json/"):
            assert api.get(path, headers=asked).headers.get("access-control-allow-origin") == allowed
            answer = api.request("OPTIONS", path, headers=asked)
            assert (answer.status, answer.headers.get("access-control-allow-origin")) == (status, allowed)
        assert api.audits() == []
