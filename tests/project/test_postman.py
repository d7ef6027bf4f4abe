"""The Postman collection: every route, real examples, assertions that can fail, and no secret in it."""

import json
import re
import shutil
import subprocess
from contextlib import closing
from urllib.parse import urlencode

import bottle
import pytest
from conftest import ROOT, Answer

import ticketapi

PATH = ROOT / "postman" / "ticketapi.postman_collection.json"
TEXT = PATH.read_text()
COLLECTION = json.loads(TEXT)
SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
FOLDERS = [
    *("Tickets", "Users", "Stats", "Writing", "Changes", "Webhooks", "Token", "Simulation", "Snapshots", "Faults"),
    *("Operation", "Health", "Description", "Pages"),
]
RATE = 90  # the limit under which it is run
CONTRACT = ROOT / "tests" / "contract"
newman = pytest.mark.skipif(not shutil.which("newman"), reason="needs newman: npm install --global newman")


def items(folder=None):
    """Return the requests of one folder, or of all."""
    return [item for group in COLLECTION["item"] if folder in (None, group["name"]) for item in group["item"]]


def names(found):
    """Return the names of requests, as ids of test cases."""
    return [item["name"] for item in found]


def sent_url(item):
    """Return path and query as they are sent, put together from the parts of the URL."""
    url = item["request"]["url"]
    values = {f":{variable['key']}": variable["value"] for variable in url.get("variable", [])}
    query = "&".join(f"{field['key']}={field['value']}" for field in url.get("query", []) if not field.get("disabled"))
    path = "/".join(values.get(part, part) for part in url["path"])
    return f"/{path}?{query}" if query else f"/{path}"


def sent_body(item):
    """Return the body as it is sent."""
    body = item["request"].get("body", {})
    if body.get("mode") == "urlencoded":
        return urlencode({field["key"]: field["value"] for field in body["urlencoded"]})
    return body.get("raw", "")


def script_of(thing):
    """Return the test script of a request or of the collection."""
    return "\n".join(line for event in thing["event"] if event["listen"] == "test" for line in event["script"]["exec"])


def assert_starts_like(found, wanted):
    """Check that objects have the wanted keys first and in order, at any depth."""
    if isinstance(wanted, dict):
        assert list(found)[: len(wanted)] == list(wanted)
        for key, inner in wanted.items():
            if found[key] is not None:
                assert_starts_like(found[key], inner)
    elif isinstance(wanted, list):
        for one in found:
            if not (isinstance(one, dict) and one.get("label") == "..."):
                assert_starts_like(one, wanted[0])


# The file ----------------------------------------------------------------------------------------


def test_it_is_a_collection_of_version_2_1():
    assert COLLECTION["info"]["schema"] == SCHEMA
    assert COLLECTION["info"]["name"] == "ticketapi"
    assert [folder["name"] for folder in COLLECTION["item"]] == [*FOLDERS, "Errors"]
    assert len(set(names(items()))) == len(items())
    for event in [*COLLECTION["event"], *(event for item in items() for event in item["event"])]:
        assert event["listen"] in ("test", "prerequest")
        assert event["script"]["type"] == "text/javascript"
        assert all(isinstance(line, str) and "\n" not in line for line in event["script"]["exec"])


def test_it_is_set_up_with_three_variables_and_holds_no_token():
    assert {variable["key"]: variable["value"] for variable in COLLECTION["variable"]} == {
        "baseUrl": "http://127.0.0.1:8000",
        "apiToken": "",
        "webhookUrl": "https://[2000::1]/hooks",
    }
    assert COLLECTION["auth"] == {"type": "bearer", "bearer": [{"key": "token", "value": "{{apiToken}}", "type": "string"}]}
    assert not re.search(r"tkt_\w", TEXT)


def test_its_description_says_how_to_get_a_token_and_how_to_run_it():
    description = COLLECTION["info"]["description"]
    assert "ticketapi token create" in description
    assert f"newman run {PATH.relative_to(ROOT)}" in description
    assert f"ticketapi serve --demo --clock now --rate {RATE}" in description


# The requests ------------------------------------------------------------------------------------


def test_it_has_every_route_of_the_app_and_no_other(api):
    matched = set()
    for item in items():
        method, path = item["request"]["method"], re.sub(r"\{\{\w+\}\}", "1", sent_url(item).partition("?")[0])
        try:
            matched.add(api.app.match({"REQUEST_METHOD": method, "PATH_INFO": path})[0].rule)
        except bottle.HTTPError:
            assert item in items("Errors"), item["name"]
    assert matched == {route.rule for route in api.app.routes}
    methods = {item["request"]["method"] for folder in FOLDERS for item in items(folder)}
    assert methods == {route.method for route in api.app.routes} | {"HEAD"}


@pytest.mark.parametrize("item", items(), ids=names(items()))
def test_a_request_is_complete(item):
    request, url = item["request"], item["request"]["url"]
    query = [f"{field['key']}={field['value']}" for field in url.get("query", []) if not field.get("disabled")]
    assert url["host"] == ["{{baseUrl}}"]
    assert url["raw"] == "{{baseUrl}}/" + "/".join(url["path"]) + ("?" + "&".join(query) if query else "")
    assert request["description"].endswith(".")
    for field in [*url.get("query", []), *url.get("variable", [])]:
        assert field["description"]
    assert {part[1:] for part in url["path"] if part.startswith(":")} == {field["key"] for field in url.get("variable", [])}
    assert script_of(item).count("pm.test(") >= 2
    assert len(item["response"]) == 1


LISTS = [item for item in items("Tickets") + items("Users") if not item["name"].startswith("One ")]


@pytest.mark.parametrize("item", LISTS, ids=names(LISTS))
def test_a_list_tells_of_its_parameters(item):
    assert {field["key"] for field in item["request"]["url"]["query"]} == {"page", "per_page", "cursor"}


# The examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        ("Open tickets", "tickets-open"),
        ("Open tickets, ten a page", "tickets-open"),
        ("Closed tickets", "tickets-closed"),
        ("Tickets of a user", "user-tickets"),
        ("Stats", "stats"),
    ],
)
def test_an_example_has_the_keys_of_the_recorded_answers(name, contract):
    example = next(item["response"][0] for item in items() if item["name"] == name)
    assert_starts_like(json.loads(example["body"]), json.loads((CONTRACT / f"{contract}.json").read_text()))
    assert len(json.loads(example["body"]).get("data", [])) <= 2


def fill(text, variables):
    """Put the values of variables into a text, as Postman does."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: str(variables[found[1]]), text.replace("{{$guid}}", "a-guid"))


def play(api, item, token, variables):
    """Send a request of the collection to an app; one that is to be refused for its number is repeated."""
    kind = item["request"].get("auth", {}).get("type")
    given = {None: token, "bearer": "not-a-token", "noauth": None}[kind]
    wanted = item["response"][0]["code"]
    headers = {header["key"]: fill(header["value"], variables) for header in item["request"]["header"]}
    url, body = fill(sent_url(item), variables), fill(sent_body(item), variables).encode()
    for _ in range(RATE + 1):
        answer = api.request(item["request"]["method"], url, token=given, headers=headers, body=body)
        if answer.status == wanted or wanted != 429:
            break
    return answer


@pytest.fixture
def token(db, clock):
    """The text of a token that may do everything."""
    return ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["*"], 0, clock.wall())["token"]


KEPT = {  # what the scripts keep of an answer
    "etag": lambda answer: answer.headers["etag"],
    "next_cursor": lambda answer: answer.json["meta"]["next_cursor"],
    "after_cursor": lambda answer: answer.json["meta"]["after_cursor"],
    "snapshot": lambda answer: answer.json["data"]["name"],
    **dict.fromkeys(("ticket_id", "webhook_id", "delivery_id"), lambda answer: answer.json["data"]["id"]),
}


def test_every_example_is_what_the_app_answers(make_api, db, clock, token):
    api = make_api(rate=RATE)
    ticketapi.generate_history(db, 3000, 30 * ticketapi.DAY, clock.wall(), seed=1)
    ticketapi.begin_simulation(db, None, (None, 1000), 1, 1, clock.wall())
    variables = {"key": "a key", "webhookUrl": "https://[2000::1]/hooks"}
    for item in items():
        example = item["response"][0]
        shown = Answer(
            example["code"], {header["key"].lower(): header["value"] for header in example["header"]}, example["body"]
        )
        answer = play(api, item, token, variables)
        assert answer.status == shown.status, item["name"]
        kept = re.findall(r'variables\.set\("(\w+)"', script_of(item))
        variables.update({name: KEPT[name](answer) for name in kept if name in KEPT})
        assert shown.headers.keys() <= answer.headers.keys(), item["name"]
        assert bool(answer.body) == bool(shown.body), item["name"]
        assert answer.headers.get("content-type") == shown.headers.get("content-type"), item["name"]
        if shown.body and shown.headers["content-type"] == "application/json":
            assert list(answer.json) == list(shown.json), item["name"]
            if isinstance(shown.json.get("data"), dict):
                assert list(answer.json["data"]) == list(shown.json["data"]), item["name"]


# Newman ------------------------------------------------------------------------------------------


def run_newman(served, token):
    """Run the collection against a server."""
    command = ["newman", "run", str(PATH), "--env-var", f"baseUrl={served.url}", "--env-var", f"apiToken={token}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@newman
def test_newman_passes_on_a_fresh_demo_and_fails_with_a_wrong_token(serve, tmp_path):
    served = serve("--demo", "--clock", "now", "--no-scheduler", "--rate", str(RATE))
    with closing(ticketapi.open_database(tmp_path / "ticketapi.db", "desk")) as db:
        made = ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "newman", ["*"], 0, ticketapi.wall_microseconds())
    passed = run_newman(served, made["token"])
    assert passed.returncode == 0, passed.stdout
    assert run_newman(served, "wrong").returncode != 0
