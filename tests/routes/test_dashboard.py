"""The page at / is one file that runs its own script alone, asks its own server alone, and is kept by the browser."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from conftest import ROOT

HTML = (ROOT / "dashboard.html").read_text().replace("// include: page.js\n", (ROOT / "page.js").read_text())
SCRIPT = re.search(r"(?s)<script>(.*)</script>", HTML)[1]


class Elements(HTMLParser):
    """Collects the elements of a page: (name, attributes)."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.feed(HTML)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


ELEMENTS = Elements().found
POLICY = {
    "default-src": "'none'",
    "connect-src": "'self'",
    "img-src": "data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}


def policy_of(answer):
    """Return the directives of a Content-Security-Policy."""
    return dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))


# As it is served ---------------------------------------------------------------------------------


def test_it_needs_no_token_draws_nothing_and_is_not_audited(make_api):
    api = make_api(rate=1)
    for headers in ({}, {"Authorization": "Bearer wrong"}) * 20:
        answer = api.get("/", headers=headers)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert not [name for name in answer.headers if "limit" in name]
    assert answer.body.decode() == HTML
    assert api.audits() == []


def test_its_policy_lets_its_own_script_and_style_run_and_nothing_else(api):
    found = policy_of(api.get("/"))
    for tag in ("script", "style"):
        (text,) = re.findall(rf"(?s)<{tag}>(.*?)</{tag}>", HTML)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert found.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert found == POLICY


def test_its_other_headers_keep_it_to_itself(api):
    headers = api.get("/", headers={"Origin": "https://elsewhere.example"}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache, private"
    assert "access-control-allow-origin" not in headers


def test_a_browser_that_has_it_is_sent_nothing(api):
    first = api.get("/")
    again = api.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert policy_of(again) == policy_of(first)
    assert api.get("/", headers={"If-None-Match": '"another"'}).status == 200


def test_head_has_its_headers_and_other_methods_are_refused(api):
    get, head = api.get("/"), api.request("HEAD", "/")
    for answer in (get, head):
        assert answer.headers.pop("x-request-id")
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")
    assert api.request("OPTIONS", "/").headers["allow"] == "GET, HEAD"
    assert api.request("POST", "/").json == {
        "message": "The POST method is not supported for route /. Supported methods: GET, HEAD."
    }


@pytest.mark.parametrize("url", ["//nope", "/index.html", "/dashboard.html", "/dashboard", "/favicon.ico"])
def test_what_lies_beside_it_is_json(api, url):
    answer = api.get(url)
    assert (answer.status, list(answer.json)) == (404, ["message"])


# The file ----------------------------------------------------------------------------------------


def test_it_has_no_handlers_and_no_styles_in_attributes_and_one_script_and_one_style():
    names = [name for _, attributes in ELEMENTS for name in attributes]
    assert not [name for name in names if name.startswith("on") or name in ("style", "src", "srcset", "action")]
    assert [tag for tag, _ in ELEMENTS if tag in ("script", "style", "iframe", "object", "base")] == ["style", "script"]


def test_it_leads_to_this_server_alone():
    links = [attributes["href"] for _, attributes in ELEMENTS if "href" in attributes]
    assert {link.partition(",")[0] for link in links} == {"#main", "docs", "openapi.json", "data:image/svg+xml"}
    outside = set(re.findall(r"\bhttps?:\S*?(?=['\"\s),])", HTML))
    assert outside == {"http://www.w3.org/2000/svg", "https://github.com/bryc/code"}  # a namespace, and a source


def test_it_shares_its_tools_and_the_token_with_the_reference(api):
    shared = (ROOT / "page.js").read_text()
    for path in ("/", "/docs"):
        script = re.search(r"(?s)<script>(.*)</script>", api.get(path).body.decode())[1]
        assert script.startswith(f'\n"use strict";\n{shared}')
        assert script.count("sessionStorage") == shared.count("sessionStorage")


def test_texts_reach_the_page_as_texts():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|srcdoc", SCRIPT)


def test_every_request_goes_through_one_function_and_no_token_into_a_url_or_a_message():
    assert SCRIPT.count("fetch(") == 1
    assert "localStorage" not in SCRIPT
    assert not re.search(r"postMessage\([^)]*token", SCRIPT)


def test_without_scripts_it_says_where_the_api_is():
    assert re.search(r'<noscript>.*needs JavaScript.*href="openapi\.json".*</noscript>', HTML)


def test_every_field_has_a_label_and_the_token_is_not_remembered_by_the_browser():
    fields = {attributes["id"]: attributes for tag, attributes in ELEMENTS if tag in ("input", "textarea", "select")}
    assert {attributes.get("for") for tag, attributes in ELEMENTS if tag == "label"} == set(fields)
    assert (fields["token"]["type"], fields["token"]["autocomplete"]) == ("password", "off")
    assert "name" not in fields["token"]  # so that no form could ever send it


def test_every_field_that_is_sent_has_a_place_for_what_is_wrong_with_it():
    ids = {attributes["id"] for _, attributes in ELEMENTS if "id" in attributes}
    sent = {attributes["id"]: attributes["data-field"] for _, attributes in ELEMENTS if "data-field" in attributes}
    assert sorted(sent.values()) == ["advance", "content", "content", "now", "speed", "subject", "user.email", "user.name"]
    assert {f"{name}-error" for name in sent} <= ids


def test_every_dialog_has_a_name_and_a_button_that_closes_it():
    dialogs = re.findall(r"(?s)<dialog ([^>]*)>(.*?)</dialog>", HTML)
    assert len(dialogs) == 4
    for attributes, content in dialogs:
        name = re.search('aria-labelledby="(.*?)"', attributes)[1]
        assert f'id="{name}"' in content
        assert len(re.findall(r'<button[^>]* class="close"', content)) == 1


def test_what_only_some_tokens_see_is_hidden_at_first():
    hidden = {attributes["id"] for _, attributes in ELEMENTS if "hidden" in attributes and "id" in attributes}
    assert {"new-ticket", "ticket-actions", "comments", "clock", "clock-controls"} <= hidden
    assert [attributes["method"] for tag, attributes in ELEMENTS if tag == "form" and "method" in attributes] == ["post"] * 6
