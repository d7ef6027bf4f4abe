"""/api/webhooks: what the API makes, shows, changes and sends, for a token with write:webhooks."""

import pytest
from conftest import NOON

import ticketapi

PLACE = "https://[2000::1]/hooks"  # a public address that nobody has, and that takes no look-up
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
URL = "/api/webhooks"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def keeper(db):
    """A token that may write webhooks."""
    return ticketapi.create_token(db, "kim@example.com", "t", ["write:webhooks"], 0, NOON)["token"]


def send(api, token, method, url, form, **headers):
    """Send a form."""
    return api.request(method, url, token=token, body=form.encode(), headers=FORM | headers)


def test_a_webhook_is_made_shown_without_its_secret_changed_and_deleted(api, keeper):
    made = api.post(URL, {"url": PLACE, "name": "hook", "events": ["ticket.closed"]}, token=keeper)
    assert (made.status, made.headers["location"]) == (201, "http://desk.test:8000/api/webhooks/1")
    shown = made.json["data"]
    assert shown.pop("secret").startswith("whsec_")
    assert api.get(f"{URL}/1", token=keeper).json == {"data": shown}
    assert api.get(URL, token=keeper).json == {"data": [shown]}
    changed = api.send("PATCH", f"{URL}/1", {"name": "other", "enabled": False}, token=keeper)
    assert (changed.status, changed.json["data"]["name"], changed.json["data"]["enabled"]) == (200, "other", False)
    assert api.request("DELETE", f"{URL}/1", token=keeper).status == 204
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/deliveries"),
        ("POST", "/test"),
        ("POST", "/deliveries/1/retry"),
    ):
        assert api.request(method, f"{URL}/1{path}", token=keeper).status == 404
    assert api.send("PATCH", f"{URL}/1", {"name": "x"}, token=keeper).status == 404


@pytest.mark.parametrize(
    ("form", "events"),
    [
        ("", list(ticketapi.EVENT_TYPES)),
        ("&events[]=ticket.deleted", ["ticket.deleted"]),
        ("&events[]=ticket.deleted&events[]=ticket.closed", ["ticket.closed", "ticket.deleted"]),
        ("&events[0]=ticket.deleted&events[1]=ticket.created", ["ticket.created", "ticket.deleted"]),
    ],
)
def test_a_form_says_what_json_says(api, keeper, form, events):
    made = send(api, keeper, "POST", URL, f"url={PLACE}{form}")
    assert (made.status, made.json["data"]["events"], made.json["data"]["enabled"]) == (201, events, True)
    for text, enabled in (("0", False), ("true", True), ("false", False), ("1", True)):
        changed = send(api, keeper, "PATCH", f"{URL}/1", f"enabled={text}&events[]=comment.created")
        assert (changed.json["data"]["enabled"], changed.json["data"]["events"]) == (enabled, ["comment.created"])


@pytest.mark.parametrize("form", ["events=ticket.closed", "events[]=no", "events[a]=ticket.closed", "enabled=yes"])
def test_a_form_that_says_something_else_is_refused_by_name(api, keeper, form):
    answer = send(api, keeper, "POST", URL, f"url={PLACE}&{form}")
    assert (answer.status, list(answer.json["errors"])) == (422, [form.partition("=")[0].partition("[")[0]])
    assert api.get(URL, token=keeper).json == {"data": []}


@pytest.mark.parametrize("form", ["url=a&url=b", "events[]=a&events=b", "user[name]=a&user[name]=b"])
def test_a_field_of_a_form_that_is_given_twice_is_refused(api, keeper, form):
    answer = send(api, keeper, "POST", URL, form)
    assert answer.status == 400
    assert "twice" in answer.json["message"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://[::ffff:10.0.0.1]/", "http://2130706433/", "http://a:b@[2000::1]/"]
)
def test_an_address_that_is_not_public_is_refused(api, keeper, url):
    answer = api.post(URL, {"url": url}, token=keeper)
    assert (answer.status, list(answer.json["errors"])) == (422, ["url"])


def test_a_replay_has_the_same_secret_and_asks_no_name_server(api, keeper, monkeypatch):
    body = {"url": PLACE}
    first = api.post(URL, body, token=keeper, headers={"Idempotency-Key": "k"})
    monkeypatch.setattr(ticketapi, "read_webhook", lambda *_, **__: 1 / 0)
    again = api.post(URL, body, token=keeper, headers={"Idempotency-Key": "k"})
    assert (again.status, again.body, again.headers["location"]) == (201, first.body, first.headers["location"])
    assert again.headers["idempotent-replayed"] == "true"
    assert len(api.get(URL, token=keeper).json["data"]) == 1


def test_tests_and_deliveries_are_listed_newest_first_and_sent_again(api, keeper):
    api.post(URL, {"url": PLACE}, token=keeper)
    sent = [api.request("POST", f"{URL}/1/test", token=keeper) for _ in range(3)]
    assert [(answer.status, answer.json["data"]["status"]) for answer in sent] == [(202, "pending")] * 3
    page = api.get(f"{URL}/1/deliveries?per_page=2", token=keeper).json
    assert [delivery["id"] for delivery in page["data"]] == [3, 2]
    rest = api.get(page["links"]["next"].removeprefix("http://desk.test:8000"), token=keeper).json
    assert ([delivery["id"] for delivery in rest["data"]], rest["links"]["next"]) == ([1], None)
    again = api.request("POST", f"{URL}/1/deliveries/2/retry", token=keeper)
    assert (again.status, again.json["data"]["id"], again.json["data"]["status"]) == (202, 2, "pending")
    assert api.request("POST", f"{URL}/1/deliveries/9/retry", token=keeper).status == 404


def test_it_takes_the_ability(api, pen):
    for method, url in (("GET", URL), ("POST", URL), ("GET", f"{URL}/1"), ("POST", f"{URL}/1/test")):
        assert api.request(method, url, token=pen).status == 403


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "x" * 256, 5, ["a"]])
def test_a_name_has_the_limits_of_other_texts(api, keeper, name):
    answer = api.post(URL, {"url": PLACE, "name": name}, token=keeper)
    assert (answer.status, list(answer.json["errors"])) == (422, ["name"])
    api.post(URL, {"url": PLACE, "name": " "}, token=keeper)
    assert api.send("PATCH", f"{URL}/1", {"name": name}, token=keeper).status == 422
    assert api.get(f"{URL}/1", token=keeper).json["data"]["name"] == "2000::1"


def test_no_more_tests_wait_than_deliveries_are_kept(api, keeper, monkeypatch):
    monkeypatch.setattr(ticketapi, "KEPT_DELIVERIES", 3)
    api.post(URL, {"url": PLACE, "enabled": False}, token=keeper)
    assert [api.request("POST", f"{URL}/1/test", token=keeper).status for _ in range(5)] == [202, 202, 202, 422, 422]
