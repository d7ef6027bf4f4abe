"""POST /api/tickets: what makes a ticket, whose it is, and what is said of all that is wrong with one."""

import json
from urllib.parse import urlencode

import pytest
from conftest import NOON, SECOND
from writing import FORM, NEW, create, errors_of, events, state

import ticketapi
from ticketapi import FIRST_BROUGHT_ID, FIRST_OWNER_ID

ADA = {"name": "Ada Bell", "email": "ada@example.com"}


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


def refused(api, db, token, fields):
    """Return the errors of a ticket that is not made."""
    before = state(db)
    errors = errors_of(api.post("/api/tickets", fields, token=token))
    assert state(db) == before
    return errors


def test_a_ticket_is_made_and_answered_as_it_is_shown(api, db, pen):
    answer = api.post("/api/tickets", NEW, token=pen)
    assert answer.status == 201
    assert answer.headers["location"] == "http://desk.test:8000/api/tickets/1"
    shown = api.get("/api/tickets/1", token=pen)
    assert (answer.body, answer.headers["etag"]) == (shown.body, shown.headers["etag"])
    assert answer.json == {
        "data": {
            "id": 1,
            "subject": "No sound",
            "content": "It is silent.",
            "status": "Open",
            "status_id": 1,
            "created_at": "2025-12-04T12:00:00.000000Z",
            "updated_at": "2025-12-04T12:00:00.000000Z",
            "user": {"id": FIRST_BROUGHT_ID, **ADA},
        }
    }
    assert "idempotent-replayed" not in answer.headers
    assert events(db) == [("ticket.created", 1)]


def test_it_is_in_all_lists_and_figures(api, pen):
    create(api, pen)
    user = f"/api/users/{FIRST_BROUGHT_ID}"
    for url in ("/api/tickets", "/api/tickets/open", f"{user}/tickets", "/api/tickets/export"):
        assert [ticket["id"] for ticket in api.get(url, token=pen).json["data"]] == [1], url
    assert api.get("/api/tickets/closed", token=pen).json["data"] == []
    stats = api.get("/api/stats", token=pen).json
    assert (stats["total_tickets"], stats["total_unprocessed_tickets"], stats["top_user"]["id"]) == (1, 1, FIRST_BROUGHT_ID)
    assert api.get(user, token=pen).json["data"]["tickets_count"] == 1


def test_its_url_is_the_clients(api, pen):
    answer = api.post("/api/tickets/", NEW, token=pen, headers={"Host": "help.example"}, scheme="https")
    assert answer.headers["location"] == "https://help.example/api/tickets/1"


def test_times_grow_while_the_clock_stands_still_or_goes_back(api, pen, clock):
    first = create(api, pen)
    second = create(api, pen)
    clock.now -= 60 * SECOND
    third = create(api, pen)
    times = [ticket["created_at"] for ticket in (first, second, third)]
    assert times == [ticketapi.format_time(NOON + microsecond) for microsecond in range(3)]


def test_made_up_tickets_and_those_of_people_take_turns(api, db, pen, clock):
    ticketapi.generate_tickets(db, 3, clock.wall(), seed=1)
    assert create(api, pen)["id"] == 4
    ticketapi.generate_tickets(db, 3, clock.wall(), seed=1)
    assert create(api, pen, user={"name": "Bo", "email": "bo@example.com"})["user"]["id"] == FIRST_BROUGHT_ID + 1
    assert [ticket["id"] for ticket in api.get("/api/tickets/open", token=pen).json["data"]] == list(range(1, 9))


def test_a_known_address_in_any_case_is_the_same_customer_and_keeps_its_name(api, db, pen):
    create(api, pen)
    again = create(api, pen, user={"name": "Somebody Else", "email": " ADA@Example.COM "})
    assert again["user"] == {"id": FIRST_BROUGHT_ID, **ADA}
    assert [row[0] for row in db.execute("SELECT id FROM users WHERE id < 1000000000")] == [FIRST_BROUGHT_ID]


def test_a_customer_who_was_made_up_is_known_by_address_too(api, db, pen):
    ticketapi.generate_tickets(db, 20, NOON, seed=1)
    name, email = db.execute("SELECT name, email FROM users WHERE id = 3").fetchone()
    ticket = create(api, pen, user={"name": "X", "email": email.upper()})
    assert ticket["user"] == {"id": 3, "name": name, "email": email}


def test_the_address_of_an_owner_of_tokens_makes_a_customer_apart(api, db, pen):
    ticketapi.create_token(db, "ann@example.com", "t", ["*"], 0, NOON)
    ticket = create(api, pen, user={"name": "Ann", "email": "ann@example.com"})
    assert ticket["user"]["id"] == FIRST_BROUGHT_ID


@pytest.mark.parametrize("user_id", [FIRST_BROUGHT_ID, str(FIRST_BROUGHT_ID)])
def test_a_customer_may_be_given_by_id(api, pen, user_id):
    create(api, pen)
    ticket = create(api, pen, user_id=user_id, user=None)
    assert ticket["user"] == {"id": FIRST_BROUGHT_ID, **ADA}


@pytest.mark.parametrize("user_id", [FIRST_OWNER_ID, FIRST_BROUGHT_ID + 7, 0, -1, 10**25, "1" * 25, 2**63])
def test_an_id_of_no_customer_is_refused(api, db, pen, user_id):
    assert api.get("/api/token", token=pen).json["data"]["user"]["id"] == FIRST_OWNER_ID  # there is such a user
    assert refused(api, db, pen, NEW | {"user_id": user_id}) == {"user_id": ["The selected user id is invalid."]}


@pytest.mark.parametrize("user_id", [1.5, True, "one", "", [1], {"id": 1}])
def test_what_is_no_id_is_refused(api, db, pen, user_id):
    assert refused(api, db, pen, NEW | {"user_id": user_id}) == {"user_id": ["The user id field must be an integer."]}


def test_all_that_is_wrong_is_said_at_once(api, db, pen):
    answer = api.post("/api/tickets", {}, token=pen)
    assert errors_of(answer) == {
        "subject": ["The subject field is required."],
        "content": ["The content field is required."],
        "user": ["The user field is required when user id is not present."],
    }
    assert answer.json["message"] == "The subject field is required. (and 2 more errors)"
    fields = {"subject": "x" * 256, "content": "x" * 10_001, "user": {"name": " ", "email": "nobody"}}
    assert refused(api, db, pen, fields) == {
        "subject": ["The subject field must not be greater than 255 characters."],
        "content": ["The content field must not be greater than 10000 characters."],
        "user.name": ["The user.name field is required."],
        "user.email": ["The user.email field must be a valid email address."],
    }
    fields = {"subject": 7, "content": ["a"], "user": {"name": None, "email": {}}}
    assert refused(api, db, pen, fields) == {
        "subject": ["The subject field must be a string."],
        "content": ["The content field must be a string."],
        "user.name": ["The user.name field is required."],
        "user.email": ["The user.email field must be a string."],
    }


@pytest.mark.parametrize("user", ["Ada", 7, [], ["Ada"], True, False, ""])
def test_a_user_is_an_object(api, db, pen, user):
    assert refused(api, db, pen, NEW | {"user": user}) == {"user": ["The user field must be an array."]}


@pytest.mark.parametrize(
    "email", ["a", "@", "a@", "@b", "a b@c.example", "a@b@c", "a@b\nc", "a@\x7fb", "é" * 250 + "@b.example"]
)
def test_an_address_is_one(api, db, pen, email):
    errors = refused(api, db, pen, NEW | {"user": {"name": "Ada", "email": email}})
    assert list(errors) == ["user.email"]


def test_texts_may_be_as_long_as_said_in_characters(api, pen):
    ticket = create(api, pen, subject="😀" * 255, content="é" * 10_000)
    assert (ticket["subject"], ticket["content"]) == ("😀" * 255, "é" * 10_000)


def test_texts_are_trimmed_before_they_are_measured(api, db, pen):
    ticket = create(api, pen, subject=f" \n\t{'x' * 255}\u3000 ", content="  two\n lines \r\n")
    assert (ticket["subject"], ticket["content"]) == ("x" * 255, "two\n lines")
    assert refused(api, db, pen, NEW | {"subject": " \n\u2003"}) == {"subject": ["The subject field is required."]}


@pytest.mark.parametrize(
    "text", ['"', "\\", "'; DROP TABLE tickets; --", "%s {} :subject ?1", "</script>", "\u2028\x01\x1b[31m", "\U0010ffff"]
)
def test_texts_are_kept_as_they_are(api, pen, text):
    ticket = create(api, pen, subject=f"<{text}>", content=f"<{text}>", user={"name": f"<{text}>", "email": "a@b.example"})
    assert (ticket["subject"], ticket["content"], ticket["user"]["name"]) == (f"<{text}>",) * 3
    assert api.get("/api/tickets/open", token=pen).json["data"] == [ticket]


@pytest.mark.parametrize("char", ["\0", "\ud800", "\udfff"])
@pytest.mark.parametrize("name", ["subject", "content", "user.name"])
def test_what_cannot_be_kept_is_refused_by_field(api, db, pen, name, char):
    fields = NEW | ({"user": ADA | {"name": f"a{char}b"}} if name == "user.name" else {name: f"a{char}b"})
    assert refused(api, db, pen, fields) == {name: [f"The {name} field must not hold NUL or half of a surrogate pair."]}


def test_null_counts_as_not_given_and_unknown_fields_are_ignored(api, db, pen):
    create(api, pen)
    ticket = create(api, pen, user=None, user_id=FIRST_BROUGHT_ID, id=77, status="Closed", created_at="2020", colour={"a": [1]})
    assert (ticket["id"], ticket["status"], ticket["created_at"][:4]) == (2, "Open", "2025")
    errors = refused(api, db, pen, {"subject": None, "content": None, "user": None, "user_id": None})
    assert list(errors) == ["subject", "content", "user"]


def test_a_form_makes_the_same_ticket(api, pen):
    form = urlencode({"subject": " Ünï & co ", "content": "1+1=2", "user[name]": "Ada Bell", "user[email]": "ada@example.com"})
    answer = api.request("POST", "/api/tickets", token=pen, headers=FORM, body=form.encode())
    assert answer.status == 201
    assert answer.json["data"]["subject"] == "Ünï & co"
    form = f"subject=a&content=b&user_id={FIRST_BROUGHT_ID}"
    answer = api.request("POST", "/api/tickets", token=pen, headers=FORM, body=form.encode())
    assert (answer.status, answer.json["data"]["user"]) == (201, {"id": FIRST_BROUGHT_ID, **ADA})


@pytest.mark.parametrize(
    "kind", [None, "", "application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", FORM["Content-Type"]]
)
def test_json_is_read_whatever_it_is_called(api, pen, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = api.request("POST", "/api/tickets", token=pen, headers=headers, body=json.dumps(NEW).encode())
    assert answer.status == 201


def test_a_token_that_may_only_read_writes_nothing(api, db, token):
    before = state(db)
    for method, url in (
        ("POST", "/api/tickets"),
        ("PATCH", "/api/tickets/1"),
        ("PUT", "/api/tickets/1"),
        ("DELETE", "/api/tickets/1"),
        ("POST", "/api/tickets/1/comments"),
    ):
        answer = api.send(method, url, NEW, token=token)
        assert (answer.status, answer.json) == (403, {"message": "Invalid ability provided."})
        assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="write:tickets"'
    assert state(db) == before


def test_a_token_that_may_only_write_reads_nothing(api, db, clock):
    token = ticketapi.create_token(db, "w@example.com", "w", ["write:tickets"], 0, clock.wall())["token"]
    assert create(api, token)["id"] == 1
    assert api.get("/api/tickets/1", token=token).status == 403
    assert api.get("/api/tickets", token=token).status == 403


def test_it_is_audited_and_draws_from_the_limit(make_api, pen):
    api = make_api(rate=2)
    answer = api.post("/api/tickets", NEW, token=pen)
    assert (answer.status, answer.headers["x-ratelimit-remaining"]) == (201, "1")
    (row,) = api.audits()
    assert (row["method"], row["path"], row["route_name"], row["status_code"]) == ("POST", "api/tickets", "tickets.store", 201)
    assert json.loads(row["request_body"])["subject"] == "No sound"
    assert api.post("/api/tickets", NEW, token=pen).status == 201
    assert api.post("/api/tickets", NEW, token=pen).status == 429
    assert api.get("/api/tickets/3", token=pen).status == 429


@pytest.mark.parametrize(("zeros", "status"), [(".0", 201), ("e0", 201), (".5", 422), ("e400", 422)])
def test_a_whole_number_is_whole_however_json_writes_it(api, pen, zeros, status):
    known = create(api, pen)["user"]["id"]
    body = f'{{"subject": "s", "content": "c", "user_id": {known}{zeros}}}'.encode()
    answer = api.request("POST", "/api/tickets", token=pen, body=body, headers={"Content-Type": "application/json"})
    assert answer.status == status
    changed = api.request(
        "PATCH", "/api/tickets/1", token=pen, body=b'{"status": 2.0}', headers={"Content-Type": "application/json"}
    )
    assert changed.json["data"]["status"] == "Closed"
