"""/docs is a readable reference of the whole API, drawn by the page itself from /openapi.json, with a "try it" that works."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from contextlib import closing, suppress
from urllib.parse import urlsplit

import pytest
from conftest import NOON, ROOT, Served, wait_for

import ticketapi

DOCUMENT = json.loads((ROOT / "openapi.json").read_text())
RATE = 10  # of the server that the browser asks: every token is a user's of its own, with a bucket of its own
PATIENCE = 15_000  # milliseconds until a browser that does not come along fails a test
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a desk of 30 tickets, five of them closed."""
    folder = tmp_path_factory.mktemp("docs")
    with closing(ticketapi.open_database(folder / "ticketapi.db", "desk")) as db:
        ticketapi.generate_tickets(db, 30, NOON, 1)
        ticketapi.process_tickets(db, 5, NOON)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """A real server over that desk, which has a clock of its own."""
    served = Served("--no-scheduler", "--rate", RATE, "--clock", "now", cwd=folder)
    yield served
    served.stop()


@pytest.fixture
def make_token(folder, request):
    """Return a function that makes a token of a user whom no other test has, with one ability."""

    def make(ability="read:tickets"):
        owner = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12] + "@example.com"
        with closing(ticketapi.open_database(folder / "ticketapi.db", "desk")) as db:
            return ticketapi.create_token(db, owner, "docs", [ability], 0, NOON)["token"]

    return make


@pytest.fixture(scope="module")
def tab(browser):
    """One tab for most tests: a new one for each would take most of their time."""
    with closing(browser.new_context()) as context:
        context.set_default_timeout(PATIENCE)
        yield context.new_page()


@pytest.fixture
def visit(browser, tab, server):
    """Return a function that opens a page; after the test nothing was wrong with it, and no other host was asked."""
    contexts, wrong, hosts = [], [], set()

    def note(message):
        # Chromium itself notes every answer of 400 and above, which tests want to see.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    listeners = {
        "console": note,
        "pageerror": lambda error: wrong.append(str(error)),
        "request": lambda request: hosts.add(urlsplit(request.url).netloc),
    }

    def own_tab(script="", **options):
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE)
        contexts[-1].add_init_script(script)
        return contexts[-1].new_page()

    def open_page(path="/docs", *, openapi=None, ready=".route", viewport=WIDE, scheme="light", motion="reduce", **own):
        page = own_tab(**own) if own else tab
        for name, listener in listeners.items():
            page.on(name, listener)
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=scheme, reduced_motion=motion)
        if openapi:
            page.route("**/openapi.json", openapi)
        page.goto(server.url + path)
        page.wait_for_selector(ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    if tab.url.startswith(server.url):
        tab.unroute_all()
        tab.evaluate("sessionStorage.clear()")
        tab.goto("about:blank")
    for name, listener in listeners.items():
        with suppress(KeyError):  # the tab was not used
            tab.remove_listener(name, listener)
    assert wrong == []
    assert hosts <= {urlsplit(server.url).netloc, ""}


def by_id(page, name):
    """Return the element with an id."""
    return page.locator(f'[id="{name}"]')


def trial(page, operation):
    """Return the "try it" of an operation."""
    return by_id(page, operation).locator("> .parts > .trial")


def use(page, operation, token):
    """Paste a token into an operation's "try it"."""
    trial(page, operation).get_by_label("Paste a token").fill(token)
    trial(page, operation).get_by_role("button", name="Use it").click()


def send(page, operation, fields=None, button="Send"):
    """Fill in fields of an operation, send it, and return the answer that the page got."""
    for name, value in (fields or {}).items():
        trial(page, operation).get_by_label(re.compile(rf"^{name}\b")).fill(value)
    with page.expect_response(lambda response: True) as got:
        trial(page, operation).get_by_role("button", name=button, exact=True).click()
    trial(page, operation).locator(".line", has_text=str(got.value.status)).wait_for()
    return got.value


def said(page, operation):
    """Return what the page says about the last answer, in words."""
    return trial(page, operation).locator(".said").inner_text()


def body(page, operation):
    """Return the body of the last answer as it is shown."""
    return trial(page, operation).get_by_label("Body of the answer").inner_text()


# What the page shows is the document -------------------------------------------------------------


def resolve(thing):
    """Return what a reference leads to, or the thing itself."""
    while "$ref" in thing:
        target = DOCUMENT
        for key in thing["$ref"].split("/")[1:]:
            target = target[key]
        thing = target
    return thing


OPERATIONS = [(path, method, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()]


def property_names(schema, above=()):
    """Return the names of all properties that a schema leads to."""
    schema = resolve(schema)
    if id(schema) in above:
        return set()
    inside = (*above, id(schema))
    parts = [schema.get("items"), schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    parts += [part for key in ("oneOf", "anyOf", "allOf") for part in schema.get(key, [])]
    named = schema.get("properties", {})
    found = [property_names(part, inside) for part in [*parts, *named.values()] if isinstance(part, dict)]
    return set(named).union(*found)


def plain(text):
    """Return a text of the document as it reads without its marks, spaces made one."""
    marks = r"`|\*\*|^(?:[-*]|\d+\.) |\[([^\]]+)\]\([^)]+\)"
    return " ".join(re.sub(marks, r"\1", text, flags=re.MULTILINE).split())


def shown_answer(response):
    """Return what the page must show of an answer."""
    content = response.get("content", {})
    examples = []
    for media in content.values():
        examples += [media["example"]] if "example" in media else [one["value"] for one in media.get("examples", {}).values()]
    return {
        "description": plain(response["description"]),
        "headers": list(response.get("headers", {})),
        "types": list(content),
        "properties": sorted(set().union(*(property_names(media["schema"]) for media in content.values()))),
        "examples": examples,
    }


def shown_operation(path, method, operation):
    """Return what the page must show of an operation."""
    parameters = [resolve(one) for one in operation.get("parameters", [])]
    return {
        "call": f"{method.upper()} {path}",
        "summary": operation["summary"],
        "description": plain(operation.get("description", "")),
        "abilities": sorted({one for scheme in operation["security"] for names in scheme.values() for one in names}),
        "parameters": [[one["name"], one["in"], plain(one.get("description", ""))] for one in parameters],
        "bodies": {type: shown_body(media) for type, media in operation.get("requestBody", {}).get("content", {}).items()},
        "answers": {status: shown_answer(resolve(response)) for status, response in operation["responses"].items()},
    }


def shown_body(media):
    """Return what the page must show of a body that is sent."""
    examples = [media["example"]] if "example" in media else [one["value"] for one in media["examples"].values()]
    return {"properties": sorted(property_names(media["schema"])), "examples": examples}


def until(page, script, argument=None):
    """Wait until a script is true. Playwright's own way evaluates it from a timer, where the page's policy forbids that."""
    return wait_for(lambda: page.evaluate(script, argument))


OPEN_ALL = """(id) => {
    const all = [...(document.getElementById(id) ?? document).querySelectorAll("details")];
    for (const one of all) one.open = true;
    return all.every((one) => one.childElementCount > 1);
}"""

READ_ALL = """() => {
    const flat = (node) => node?.textContent.replace(/\\s+/g, " ").trim() ?? "";
    const texts = (node, selector) => [...node.querySelectorAll(selector)].map(flat);
    const example = (text) => { try { return JSON.parse(text); } catch { return text; } };
    const answer = (node) => ({
        description: flat(node.querySelector(":scope > summary > span:last-child")),
        headers: texts(node, ":scope > .folded > .rows > li > .name"),
        types: texts(node, ":scope > .media").map((text) => text.split(":")[0]),
        properties: [...new Set(texts(node, ".tree .name"))].sort(),
        examples: texts(node, "pre").length ? [...node.querySelectorAll("pre")].map((one) => example(one.textContent)) : [],
    });
    return Object.fromEntries([...document.querySelectorAll("main [id]:has(> .parts)")].map((one) => {
        const parts = one.querySelector(":scope > .parts"), words = parts.querySelector(":scope > .words");
        const call = one.querySelector(":scope > .call, :scope > summary");
        const answers = [...parts.querySelectorAll(":scope > .answers > details")];
        return [one.id, {
            call: `${flat(call.querySelector(".method"))} ${flat(call.querySelector(".path"))}`,
            summary: flat(one.querySelector(":scope > h3, :scope > summary > .muted")).replace(/#$/, ""),
            description: texts(words, ":scope > p:not(.needs), :scope > ul:not(.rows), :scope > ol").join(" "),
            abilities: texts(words, ":scope > .needs code").sort(),
            parameters: [...words.querySelectorAll(".parameters > li")].map((row) =>
                [flat(row.querySelector(".name")), flat(row.querySelector(".flag")), flat(row.querySelector("p"))]),
            bodies: Object.fromEntries([...words.querySelectorAll(":scope > .body > details")].map((node) => [
                flat(node.querySelector(":scope > summary")),
                { properties: [...new Set(texts(node, ".tree .name"))].sort(), examples: texts(node, "pre").map(example) }])),
            answers: Object.fromEntries(answers.map((node) => [flat(node.querySelector(".status")), answer(node)])),
        }];
    }));
}"""


def properties_alone(shown):
    """Take out of the parts of schemas what is no property: alternatives, called by the names of schemas, and kinds of keys."""
    schemas = "|".join(DOCUMENT["components"]["schemas"])
    for operation in shown.values():
        for answer in [*operation["answers"].values(), *operation["bodies"].values()]:
            others = rf"{schemas}|alternative \d|any(?: other)? key|/.+/"
            answer["properties"] = [name for name in answer["properties"] if not re.fullmatch(others, name)]
    return shown


def test_every_operation_is_shown_with_all_that_the_document_says(visit):
    page = visit()
    until(page, OPEN_ALL)
    shown = properties_alone(page.evaluate(READ_ALL))
    assert shown.keys() == {operation["operationId"] for _, _, operation in OPERATIONS}
    for path, method, operation in OPERATIONS:
        assert shown[operation["operationId"]] == shown_operation(path, method, operation)
    assert page.locator("[style]").count() == 0


READ_GROUPS = """groups => groups.map((group) => [
    group.querySelector("h2").textContent,
    [...group.querySelectorAll("a")].map((link) => [...link.childNodes].map((node) => node.textContent)),
])"""


def test_the_side_lists_the_routes_by_tag(visit):
    page = visit()
    expected = {}
    for path, method, operation in OPERATIONS:
        if method != "options":
            called = path if method == "get" else f"{method.upper()} {path}"
            expected.setdefault(operation["tags"][0], []).append([operation["summary"], called])
    found = page.get_by_role("navigation", name="Routes").locator(".group").evaluate_all(READ_GROUPS)
    assert found == [[tag["name"], expected[tag["name"]]] for tag in DOCUMENT["tags"]]


def test_the_introduction_and_the_errors_are_the_documents(visit):
    page = visit()
    introduction = " ".join(by_id(page, "about").inner_text().split())
    info = DOCUMENT["info"]
    for text in (info["title"], info["summary"], plain(info["description"]), ticketapi.__version__):
        assert text in introduction
    assert by_id(page, "about").locator("strong").count() == info["description"].count("**") / 2
    assert page.title() == f"ticketapi {ticketapi.__version__}: reference"
    rows = by_id(page, "errors").locator("tbody tr").all_inner_texts()
    manual = re.findall(r"^\| ([45]\d\d) \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {row[:3] for row in rows} == set(manual)
    assert all(re.fullmatch(r"\d{3}\t.+\t.+", row) for row in rows)


STRANGE = {
    "openapi": "3.1.0",
    "info": {
        "title": "Strange",
        "version": "9",
        "description": "- *one*\n- two, [with a link](/up)\n\n1. first\n\n[bad](javascript:alert(1)) <img src=x> https://example.com/x.",
    },
    "paths": {
        "/docs": {
            "get": {
                "summary": "Text",
                "parameters": [
                    {"name": "size", "in": "query", "schema": {"enum": ["small", "large"]}},
                    {"name": "deep", "in": "query", "schema": {"type": "boolean"}},
                    {
                        "name": "limit",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 1, "maximum": 9, "examples": [3]},
                    },
                ],
                "security": [{}, {"bearer": ["read:metrics"]}],
                "responses": {
                    "200": {
                        "description": "Text.",
                        "content": {"text/plain": {"schema": {"type": "string", "minLength": 1}, "example": "a 1\nb 2"}},
                    },
                    "201": {
                        "description": "A tree.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/a~1b"}}},
                    },
                },
            }
        }
    },
    "components": {
        "schemas": {
            "word": {"type": "string", "format": "word"},
            "a~b": {"$ref": "#/components/schemas/a~0b"},
            "a/b": {
                "type": "object",
                "required": ["children"],
                "properties": {
                    "children": {"type": "array", "items": {"$ref": "#/components/schemas/a~1b"}},
                    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "grid": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
                    "both": {
                        "allOf": [{"properties": {"left": {"type": "string", "minLength": 1}}}, {"properties": {"right": {}}}]
                    },
                    "some": {"properties": {"one": {"maximum": 2**63 - 1}}, "additionalProperties": {"maxProperties": 3}},
                    "codes": {"type": "object", "patternProperties": {"^[0-9]$": {"type": "boolean"}}},
                    "round": {"$ref": "#/components/schemas/a~0b"},
                    "any": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/word"},
                            {"type": "object", "properties": {"deep": {"const": 1}}},
                        ]
                    },
                    "two": {
                        "oneOf": [{"properties": {"x": {}}}, {"properties": {"y": {}}}, {"$ref": "#/components/schemas/a~1b"}]
                    },
                    "open": {"type": "array", "minItems": 2},
                },
            },
        }
    },
}


def test_any_document_can_be_shown(visit):
    """Schemas in circles, words for what ours does not use, and marks that are no markup."""
    page = visit(openapi=lambda route: route.fulfill(json=STRANGE))
    until(page, OPEN_ALL)
    about = by_id(page, "about")
    assert about.locator("li").all_inner_texts() == ["one", "two, with a link", "first"]
    assert about.locator("a").evaluate_all("links => links.map((a) => a.getAttribute('href'))") == [
        "/up",
        "https://example.com/x",
    ]
    assert "[bad](javascript:alert(1)) <img src=x>" in about.inner_text()
    assert page.locator("img").count() == 0
    rows = page.locator(".tree .name").all_inner_texts()
    assert rows == [
        *(
            "children",
            "counts",
            "any key",
            "grid",
            "both",
            "left",
            "right",
            "some",
            "one",
            "any other key",
            "codes",
            "/^[0-9]$/",
            "round",
        ),
        *("any", "word", "alternative 2", "deep", "two", "alternative 1", "x", "alternative 2", "y", "a~1b", "open"),
    ]
    tree = " ".join(page.locator(".tree").inner_text().split())
    for text in (
        "array of a~1b · as above",
        "grid array of arrays, may",
        "deep always 1",
        "missing · at least 2 items",
        "any string (word) or object, may",
        "two object or a~1b, may",
        "left string, may be missing · at least 1 character",
        "any other key anything · at most 3 keys",
    ):
        assert text in tree
    assert "9223372036854" not in tree  # JavaScript cannot hold it
    assert "1 to 9 · for example 3" in page.locator(".parameters").inner_text()
    needs = "Needs no token where the text says so, else one with the ability read:metrics."
    assert needs in page.locator(".words").inner_text()
    assert page.locator(".answers pre").inner_text() == "a 1\nb 2"


def test_a_text_is_shown_as_text_and_choices_are_offered(visit):
    page = visit(openapi=lambda route: route.fulfill(json=STRANGE))
    answer = send(page, "get/docs")
    assert urlsplit(answer.url).query == ""
    assert body(page, "get/docs").startswith("<!doctype html>")
    page.get_by_label("size").select_option("large")
    page.get_by_label("deep").select_option("true")
    assert urlsplit(send(page, "get/docs").url).query == "size=large&deep=true"


# Loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [({"status": 503}, "The server answered 503."), (None, "The server does not answer."), ({"body": "{"}, "JSON")],
    ids=["an error", "no answer", "half an answer"],
)
def test_it_says_that_the_description_could_not_be_loaded_and_tries_again(visit, answer, reason):
    page = visit(openapi=lambda route: route.fulfill(**answer) if answer else route.abort(), ready="[role=alert]")
    alert = page.get_by_role("alert")
    assert reason in alert.inner_text()
    page.unroute_all()
    alert.get_by_role("button", name="Try again").click()
    page.locator(".route").first.wait_for()
    assert alert.count() == 0


def test_without_scripts_it_leads_to_the_document_and_the_manual(visit):
    page = visit(java_script_enabled=False, ready="noscript")
    assert "docs/api.md" in page.locator("main").inner_text()
    assert page.locator("main a").get_attribute("href") == "openapi.json"


# Try it ------------------------------------------------------------------------------------------


def test_a_wrong_token_is_explained_and_another_is_asked_for(visit, make_token):
    page = visit()
    assert send(page, "stats").status == 401
    assert said(page, "stats").startswith("This route asks for a token.")
    use(page, "stats", "tkt_wrong")
    assert send(page, "stats").status == 401
    assert said(page, "stats").startswith("The server knows no such token")
    trial(page, "stats").get_by_role("button", name="Use another").click()
    assert trial(page, "stats").get_by_label("Paste a token").evaluate("field => field === document.activeElement")
    use(page, "stats", f" Bearer {make_token()} ")
    assert send(page, "stats").status == 200
    assert json.loads(body(page, "stats"))["total_tickets"] == 30


def test_a_token_is_for_this_tab_alone_and_in_no_address(visit, make_token):
    token = make_token()
    page = visit()
    use(page, "stats", token)
    requests = [send(page, operation).request for operation in ("stats", "up")]
    assert [request.all_headers().get("authorization") for request in requests] == [f"Bearer {token}", None]  # /up needs none
    assert token not in " ".join([page.url, *(request.url for request in requests)])
    kept = page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]")
    assert kept == [{"ticketapi.token": token}, {}, ""]
    assert token not in page.content()


def test_a_token_of_the_dashboard_is_used(visit, make_token):
    page = visit()
    page.evaluate("token => sessionStorage.setItem('ticketapi.token', token)", make_token())
    page.reload()
    assert send(page, "tickets.open").status == 200
    assert not page.get_by_label("Paste a token").first.is_visible()


def test_a_browser_that_keeps_nothing_keeps_the_token_while_the_page_is_open(visit, make_token):
    page = visit(script="Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('not here'); } });")
    use(page, "stats", make_token())
    assert send(page, "stats").status == 200


def test_a_token_without_the_ability_is_explained(visit, make_token):
    page = visit()
    use(page, "stats", make_token("write:poems"))
    assert send(page, "stats").status == 403
    assert "lacks the ability read:tickets" in said(page, "stats")


def test_a_path_and_a_query_are_filled_in(visit, make_token):
    page = visit()
    use(page, "users.tickets", make_token())
    answer = send(page, "users.tickets", {"id": "1", "per_page": "1", "page": "2"})
    assert urlsplit(answer.url)[2:4] == ("/api/users/1/tickets", "page=2&per_page=1")
    assert json.loads(body(page, "users.tickets")) == answer.json()
    trial(page, "users.tickets").get_by_label("send it empty").check()
    answer = send(page, "users.tickets", {"page": ""})
    assert urlsplit(answer.url).query == "per_page=1&cursor="
    assert "next_cursor" in body(page, "users.tickets")
    assert send(page, "users.tickets", {"id": "999"}).status == 404
    assert said(page, "users.tickets") == "There is no user with the id 999."
    trial(page, "users.tickets").get_by_label(re.compile("^id")).fill("")
    trial(page, "users.tickets").get_by_role("button", name="Send").click()
    assert trial(page, "users.tickets").locator(".asks input:invalid").count() == 1  # a path needs it: nothing is sent


def test_fields_that_are_wrong_are_named_and_marked(visit, make_token):
    page = visit()
    use(page, "tickets.open", make_token())
    assert send(page, "tickets.open", {"page": "two", "cursor": "'"}).status == 422
    assert said(page, "tickets.open").splitlines() == [
        "page: The page field must be an integer.",
        "cursor: The cursor field must be a cursor of this list.",
    ]
    marked = trial(page, "tickets.open").locator("[aria-invalid=true]")
    ids = marked.evaluate_all("fields => fields.map((one) => one.id)")
    assert ids == ["tickets.open-query-page", "tickets.open-query-cursor"]
    assert send(page, "tickets.open", {"page": "2", "cursor": ""}).status == 200
    assert marked.count() == 0


def test_asking_again_shows_that_nothing_has_changed(visit, make_token):
    page = visit()
    use(page, "stats", make_token())
    etag = send(page, "stats").headers["etag"]
    assert etag in trial(page, "stats").locator(".heads").inner_text()
    again = send(page, "stats", button="Ask again")
    assert (again.status, again.request.all_headers()["if-none-match"]) == (304, etag)
    assert "you have these very bytes" in said(page, "stats")
    afresh = send(page, "stats")
    assert (afresh.status, "if-none-match" in afresh.request.all_headers()) == (200, False)  # no browser's cache between


def test_a_limit_reached_says_how_long_to_wait(visit, make_token):
    page = visit(script="")  # a tab of its own: its clock is moved
    page.clock.install()
    use(page, "stats", make_token())
    assert [send(page, "stats").status for _ in range(RATE + 1)] == [200] * RATE + [429]
    heads = trial(page, "stats").locator(".heads").inner_text().split()
    wait = int(heads[heads.index("Retry-After") + 1])
    assert 1 <= wait <= 60 / RATE
    assert said(page, "stats") == f"The limit is reached. One more request is allowed in {wait} second{'s' * (wait != 1)}."
    page.clock.fast_forward(wait * 1000 + 1000)
    trial(page, "stats").get_by_text("You can send again now.").wait_for()


@pytest.mark.parametrize(("headers", "hint"), [({"Retry-After": "1"}, "in 1 second."), ({}, "Try again later.")])
def test_a_server_in_trouble_is_quoted(visit, headers, hint):
    page = visit()
    page.route("**/ready", lambda route: route.fulfill(status=503, json={"message": "The disk is full."}, headers=headers))
    assert send(page, "ready").status == 503
    assert said(page, "ready").startswith("The disk is full. ")
    assert said(page, "ready").endswith(hint)


def test_a_server_that_is_gone_is_told(visit):
    page = visit()
    page.route("**/up", lambda route: route.abort())
    trial(page, "up").get_by_role("button", name="Send").click()
    trial(page, "up").get_by_text("The server does not answer").wait_for()
    assert page.locator("#announce").text_content().startswith("The server does not answer")


def test_a_long_answer_is_shown_too(visit):
    page = visit()
    rows = list(range(10_000, 35_000))
    page.route("**/up", lambda route: route.fulfill(json=rows))
    send(page, "up")
    assert trial(page, "up").get_by_label("Body of the answer").locator("span").count() == 0  # uncoloured
    assert json.loads(trial(page, "up").locator(".outcome pre").text_content()) == rows


def test_options_can_be_tried(visit):
    page = visit("/docs#stats.options")
    assert send(page, "stats.options").request.method == "OPTIONS"
    assert "GET, HEAD" in trial(page, "stats.options").locator(".heads").inner_text()


def copied(page, operation):
    """Press an operation's copy button and return the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    trial(page, operation).get_by_role("button", name="Copy").click()
    trial(page, operation).get_by_text("Copied").wait_for()
    return page.evaluate("navigator.clipboard.readText()")


@pytest.mark.skipif(not shutil.which("curl"), reason="apt-get install curl: the lines that the page offers are run")
def test_the_curl_line_does_the_same(visit, make_token):
    token = make_token()
    page = visit("/docs#stats.options")
    use(page, "tickets.open", token)
    answer = send(page, "tickets.open", {"per_page": "1", "cursor": "it's $HOME & `more`"})
    run = {"shell": True, "env": {**os.environ, "TOKEN": token}, "capture_output": True, "text": True, "timeout": 20}
    line = copied(page, "tickets.open")
    assert token not in line
    done = subprocess.run(line, **run)
    assert json.loads(done.stdout) == answer.json()
    assert "cursor" in done.stdout
    preflight = subprocess.run(copied(page, "stats.options"), **run)
    assert preflight.stdout.startswith("HTTP/1.1 204")


def test_without_a_clipboard_the_curl_line_is_selected(visit):
    page = visit(script="Object.defineProperty(navigator, 'clipboard', { value: undefined });")
    trial(page, "up").get_by_role("button", name="Copy").click()
    assert page.evaluate("String(getSelection())").startswith("curl http://127.0.0.1:")


# Writing -----------------------------------------------------------------------------------------


def write(page, operation, text, fields=None):
    """Write a body into an operation's editor and send it."""
    trial(page, operation).get_by_label("Body", exact=True).fill(text)
    return send(page, operation, fields)


def test_a_ticket_is_made_changed_and_deleted(visit, make_token):
    page = visit("/docs#tickets.store")
    use(page, "tickets.store", make_token("*"))
    made = send(page, "tickets.store", {"Idempotency-Key": "of the page"})
    again = send(page, "tickets.store")
    assert (made.status, again.status, again.json()) == (201, 201, made.json())
    shown = trial(page, "tickets.store").locator(".heads").inner_text()
    assert f"{made.headers['location']}\n" in shown
    assert "Idempotent-Replayed\ntrue" in shown
    known = {"id": str(made.json()["data"]["id"]), "If-Match": made.headers["etag"]}
    changed = send(page, "tickets.update", known)
    assert changed.json()["data"]["status"] == "Closed"
    assert send(page, "tickets.update").status == 412
    assert said(page, "tickets.update").startswith("The ticket has changed; get it again")
    assert send(page, "tickets.destroy", {**known, "If-Match": "*"}).status == 204
    assert send(page, "tickets.show", {"id": known["id"]}).status == 404


def test_a_body_is_chosen_and_edited_and_marked_where_it_is_wrong(visit, make_token):
    page = visit("/docs#tickets.store")
    use(page, "tickets.store", make_token("*"))
    editor = trial(page, "tickets.store").get_by_label("Body", exact=True)
    trial(page, "tickets.store").get_by_label("Body, for example").select_option("application/x-www-form-urlencoded")
    assert "user%5Bemail%5D=ana%40example.com" in editor.input_value()
    assert send(page, "tickets.store").status == 201
    trial(page, "tickets.store").get_by_label("Body, for example").select_option("application/json: By id")
    assert json.loads(editor.input_value())["user_id"] == 1
    assert write(page, "tickets.store", '{"content": "x", "user_id": 1}').status == 422
    assert said(page, "tickets.store") == "subject: The subject field is required."
    assert editor.get_attribute("aria-invalid") == "true"
    assert write(page, "tickets.store", "{").status == 400
    assert said(page, "tickets.store") == "The request body must be a JSON object."


def test_the_clock_of_the_desk_is_set(visit, make_token):
    page = visit("/docs#clock.update")
    use(page, "clock.update", make_token("control:clock"))
    frozen = send(page, "clock.update")  # as the document's first example says
    assert (frozen.status, frozen.json()["data"]["status"]) == (200, "frozen")
    moved = write(page, "clock.update", '{"advance": "1d", "speed": "60x"}')
    assert moved.json()["data"]["now"][:10] > frozen.json()["data"]["now"][:10]
    assert write(page, "clock.update", '{"advance": "soon"}').status == 422
    assert said(page, "clock.update").startswith("advance: The advance field must be a duration")


def test_the_curl_line_of_a_write_does_the_same(visit, make_token):
    token = make_token("*")
    page = visit("/docs#tickets.store")
    use(page, "tickets.store", token)
    text = json.dumps({"subject": "it's $HOME & `more`", "content": 'a "quoted" \\ one', "user_id": 1}, indent=1)
    made = write(page, "tickets.store", text, {"Idempotency-Key": "it's a key"})
    line = trial(page, "tickets.store").locator("pre code").first.text_content()
    environ = {**os.environ, "TOKEN": token}
    done = subprocess.run(line, shell=True, env=environ, capture_output=True, text=True, timeout=20)
    head, _, told = done.stdout.partition("\n\n")
    assert json.loads(told) == made.json()  # once more, as the key is the same
    assert "Idempotent-Replayed: true" in head


def test_a_stream_is_shown_as_it_comes_until_it_is_stopped(visit, make_token, folder):
    with closing(ticketapi.open_database(folder / "ticketapi.db", "desk")) as db:
        last = ticketapi.find_last_change(db)  # of many only the last are kept in sight
    page = visit("/docs#events.stream")
    use(page, "events.stream", make_token("*"))
    coming = trial(page, "events.stream").get_by_label("The stream")
    for after in (last - 5, last - 1):
        assert send(page, "events.stream", {"after": str(after)}).status == 200
        wait_for(lambda after=after: f"id: {after + 1}\n" in coming.inner_text())
        trial(page, "events.stream").get_by_role("button", name="Stop").click()
        trial(page, "events.stream").get_by_role("button", name="Stop").wait_for(state="hidden")


# Finding the way ---------------------------------------------------------------------------------


def test_an_address_leads_to_its_place(visit):
    page = visit("/docs#users.tickets")
    for name in ("users.tickets", "errors", "stats.options"):
        page.evaluate("name => { location.hash = name; }", name)
        until(page, "name => document.getElementById(name).contains(document.activeElement)", name)
        until(page, "name => document.getElementById(name).getBoundingClientRect().top < innerHeight / 2", name)
    trial(page, "stats.options").wait_for()  # what was folded is open


@pytest.mark.parametrize("name", ["nothing", "%", "filter"])
def test_an_address_that_leads_nowhere_shows_the_beginning(visit, name):
    page = visit(f"/docs#{name}")
    assert page.evaluate("scrollY") == 0
    assert page.get_by_role("heading", level=1).is_visible()


def test_the_filter_leaves_the_routes_that_have_all_its_words(visit):
    page = visit()
    routes, entries = page.locator(".route:visible"), page.locator(".entry:visible")
    all_of_them = routes.count()
    page.get_by_label("Filter the routes").fill("{ID}/tickets user's")
    page.get_by_role("status").get_by_text(f"1 of {all_of_them} routes").wait_for()
    assert (routes.count(), entries.count(), page.locator(".group:visible").count()) == (1, 1, 1)
    assert not by_id(page, "authentication").is_visible()
    page.get_by_label("Filter the routes").press("Enter")
    assert page.url.endswith("#users.tickets")
    page.get_by_label("Filter the routes").fill("no such thing")
    page.get_by_text("No route has these words.").wait_for()
    page.get_by_label("Filter the routes").press("Enter")  # nothing to go to
    page.get_by_role("link", name="Introduction").click()
    page.locator(".lead").wait_for()
    assert (routes.count(), page.get_by_label("Filter the routes").input_value()) == (all_of_them, "")


def test_the_navigation_marks_what_is_being_read(visit):
    page = visit()
    page.locator(".side a", has_text="/api/stats").click()
    page.locator(".side [aria-current]", has_text="/api/stats").wait_for()
    assert page.locator(".side [aria-current]").count() == 1


def test_who_wants_no_motion_gets_none(visit):
    behaviours = []
    page = visit(motion="no-preference")
    for motion in ("no-preference", "reduce"):
        page.emulate_media(reduced_motion=motion)
        behaviours.append(page.evaluate("getComputedStyle(document.documentElement).scrollBehavior"))
    assert behaviours == ["smooth", "auto"]


def test_the_list_of_routes_is_scrolled_along(visit):
    page = visit(viewport={"width": 1280, "height": 320})
    last = page.locator(".entry a").last
    last.evaluate("link => { location.hash = link.hash; }")
    page.locator(".entry:last-child a[aria-current]", has_text=last.inner_text().split()[-1]).wait_for()
    assert last.evaluate("link => link.getBoundingClientRect().bottom <= innerHeight")


def test_answers_lead_on_to_other_operations(visit):
    page = visit()
    by_id(page, "stats").locator(".answers a", has_text="users.tickets").click()
    page.wait_for_url("**/docs#users.tickets")


def test_on_a_phone_the_routes_fold_away_and_nothing_sticks_out(visit):
    page = visit(viewport=PHONE)
    menu = page.locator("#menu")
    assert menu.get_attribute("open") is None
    menu.get_by_text("Routes", exact=True).click()
    page.locator(".side a", has_text="/ready").click()
    assert menu.get_attribute("open") is None
    until(page, OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.set_viewport_size(WIDE)
    until(page, "document.getElementById('menu').open")


def tab_to(page, target):
    """Press Tab until an element has the focus; it shows on every stop."""
    for _ in range(60):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if target.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError("the keyboard does not get there")


def test_the_keyboard_is_enough(visit, make_token):
    page = visit()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the skip link
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_label("Filter the routes").focus()
    page.keyboard.type("stats")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.tagName === 'H3'")
    tab_to(page, trial(page, "stats").get_by_label("Paste a token"))
    page.keyboard.type(make_token())
    page.keyboard.press("Enter")
    tab_to(page, trial(page, "stats").get_by_role("button", name="Send"))
    page.keyboard.press("Enter")
    trial(page, "stats").get_by_text("200 OK").wait_for()
    assert re.match(r"200 OK in \S+ ms, \d+ bytes$", page.locator("#announce").text_content())
    tab_to(page, trial(page, "stats").get_by_label("Body of the answer"))  # it scrolls


# Accessibility -----------------------------------------------------------------------------------


def violations(page):
    """Return what axe-core finds wrong with a page."""
    reason = "pip install axe-playwright-python: it judges the page"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], node["html"]) for one in found for node in one["nodes"]]


LOOKS = [("light", WIDE), ("dark", WIDE), ("dark", PHONE)]


@pytest.mark.parametrize(("scheme", "viewport"), LOOKS, ids=["light", "dark", "phone"])
def test_axe_finds_nothing_wrong_with_a_route_that_was_tried(visit, make_token, scheme, viewport):
    page = visit("/docs#stats.options", scheme=scheme, viewport=viewport)
    send(page, "stats")
    use(page, "stats", make_token())
    send(page, "stats.options")
    until(page, OPEN_ALL, "stats")
    page.locator("#menu").evaluate("menu => { menu.open = true; }")
    page.get_by_label("Filter the routes").fill("/api/stats")
    assert violations(page) == []


@pytest.mark.parametrize(("scheme", "viewport"), LOOKS[:2], ids=["light", "dark"])
def test_axe_finds_nothing_wrong_with_a_body_that_was_refused(visit, make_token, scheme, viewport):
    page = visit("/docs#tickets.store", scheme=scheme, viewport=viewport)
    use(page, "tickets.store", make_token("*"))
    assert write(page, "tickets.store", "{}").status == 422
    until(page, OPEN_ALL, "tickets.store")
    page.get_by_label("Filter the routes").fill("tickets.store")
    assert violations(page) == []


@pytest.mark.parametrize(("scheme", "viewport"), LOOKS, ids=["light", "dark", "phone"])
def test_axe_finds_nothing_wrong_with_all_of_it(visit, scheme, viewport):
    assert violations(visit(scheme=scheme, viewport=viewport)) == []
