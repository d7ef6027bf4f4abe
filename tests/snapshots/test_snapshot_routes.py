"""/api/snapshots: what a token with control:desk saves, sees, restores and deletes, and what is said of what cannot be."""

import pytest
from conftest import NOON, create_ticket
from kept import HOUR, folder_of

import ticketapi

URL = "/api/snapshots"


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


@pytest.fixture
def keeper(db):
    """A token that may do with the desk as a whole what it wants, and nothing else."""
    return ticketapi.create_token(db, "kim@example.com", "t", ["control:desk"], 0, NOON)["token"]


@pytest.fixture
def reader(db):
    """A token that may read tickets."""
    return ticketapi.create_token(db, "kim@example.com", "t", ["read:tickets"], 0, NOON)["token"]


def total(api, reader):
    """Return how many tickets the desk has."""
    return api.get("/api/stats", token=reader).json["total_tickets"]


def test_one_is_saved_shown_restored_and_deleted(api, db, desk, keeper, reader):
    ticketapi.generate_tickets(db, 5, NOON, seed=1)
    made = api.post(URL, {"name": "v1.0"}, token=keeper)
    size = (folder_of(desk) / "v1.0.db").stat().st_size
    shown = {"name": "v1.0", "created_at": ticketapi.format_time(NOON), "size": size, "tickets": 5}
    assert (made.status, made.headers["location"]) == (201, f"http://desk.test:8000{URL}/v1.0")
    assert made.json == {"data": shown}
    assert api.get(URL, token=keeper).json == {"data": [shown]}
    assert api.get(f"{URL}/v1.0", token=keeper).json == {"data": shown}
    ticketapi.generate_tickets(db, 3, NOON + HOUR, seed=2)
    assert total(api, reader) == 8
    answer = api.request("POST", f"{URL}/v1.0/restore", token=keeper)
    assert (answer.status, answer.json) == (200, {"data": shown})
    assert total(api, reader) == 5
    answer = api.request("DELETE", f"{URL}/v1.0", token=keeper)
    assert (answer.status, answer.body) == (204, b"")
    assert total(api, reader) == 5
    assert api.get(URL, token=keeper).json == {"data": []}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/restore")):
        answer = api.request(method, f"{URL}/v1.0{path}", token=keeper)
        assert (answer.status, answer.json) == (404, {"message": "There is no snapshot with the name v1.0."})


def test_a_form_says_what_json_says(api, keeper):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert api.request("POST", URL, token=keeper, body=b"name=one", headers=headers).status == 201


def test_they_come_in_the_order_of_their_names(api, keeper):
    for name in ("b", "a", "B", "10", "9"):
        api.post(URL, {"name": name}, token=keeper)
    assert [one["name"] for one in api.get(URL, token=keeper).json["data"]] == ["10", "9", "B", "a", "b"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "The name field is required."),
        ({"name": None}, "The name field is required."),
        ({"name": " "}, "The name field is required."),
        ({"name": 7}, "The name field must be a string."),
        ({"name": ["a"]}, "The name field must be a string."),
        ({"name": "a" * 65}, "The name field must not be greater than 64 characters."),
        ({"name": "a\0"}, "The name field must not hold NUL or half of a surrogate pair."),
        *(
            ({"name": name}, f"The name field must be {ticketapi.SNAPSHOT_WORDS}.")
            for name in ("../a", "..", ".a", "a/b", "a b", "é", "a\n.b", "%2e", "a" * 63 + "é")
        ),
    ],
)
def test_a_name_that_cannot_be_is_refused(api, desk, keeper, fields, message):
    before = sorted(desk.parent.rglob("*"))
    answer = api.post(URL, fields, token=keeper)
    assert (answer.status, answer.json) == (422, {"message": message, "errors": {"name": [message]}})
    assert sorted(desk.parent.rglob("*")) == before


def test_a_name_that_is_taken_is_refused(api, db, keeper):
    first = api.post(URL, {"name": "one"}, token=keeper).json
    ticketapi.generate_tickets(db, 1, NOON, seed=1)
    answer = api.post(URL, {"name": "one"}, token=keeper)
    message = "The name has already been taken. Delete that snapshot first."
    assert (answer.status, answer.json) == (422, {"message": message, "errors": {"name": [message]}})
    assert api.get(f"{URL}/one", token=keeper).json == first


@pytest.mark.parametrize("path", ["%2e%2e", "..%2fdesk", "a%2fb", ".a", "a%00", "a" * 65, "%c3%a9", "a%0a", "a%20b", "*"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_path_that_holds_no_name_is_no_route(api, keeper, path, method):
    answer = api.request(method, f"{URL}/{path}", token=keeper)
    assert answer.status in (404, 405)
    assert "snapshot with the name" not in answer.json["message"]


def test_the_ability_is_control_desk(api, db, desk, keeper, reader):
    api.post(URL, {"name": "one"}, token=keeper)
    others = [ability for ability in ticketapi.ABILITIES if ability not in ("control:desk", "*")]
    may_not = ticketapi.create_token(db, "eve@example.com", "t", others, 0, NOON)["token"]
    may = ticketapi.create_token(db, "eve@example.com", "t", ["*"], 0, NOON)["token"]
    before = (folder_of(desk) / "one.db").read_bytes()
    asked = [("GET", ""), ("POST", ""), ("GET", "/one"), ("POST", "/one/restore"), ("DELETE", "/one")]
    for token, status in ((None, 401), (reader, 403), (may_not, 403)):
        assert {api.request(method, URL + path, token=token).status for method, path in asked} == {status}
    assert (folder_of(desk) / "one.db").read_bytes() == before
    assert [api.request(method, URL + path, token=may).status for method, path in asked] == [200, 400, 200, 200, 204]
    assert api.get("/api/stats", token=keeper).status == 403


def test_each_request_is_audited_with_its_route_and_status(api, keeper):
    api.post(URL, {"name": "one"}, token=keeper)
    api.post(URL, {"name": "one"}, token=keeper)
    api.request("POST", f"{URL}/one/restore", token=keeper)
    api.request("POST", f"{URL}/two/restore", token=keeper)
    api.request("DELETE", f"{URL}/one", token=keeper)
    told = [(row["method"], row["path"], row["route_name"], row["status_code"], row["request_body"]) for row in api.audits()]
    assert told == [
        ("POST", "api/snapshots", "snapshots.store", 201, '{"name":"one"}'),
        ("POST", "api/snapshots", "snapshots.store", 422, '{"name":"one"}'),
        ("POST", "api/snapshots/one/restore", "snapshots.restore", 200, None),
        ("POST", "api/snapshots/two/restore", "snapshots.restore", 404, None),
        ("DELETE", "api/snapshots/one", "snapshots.destroy", 204, None),
    ]


def test_a_list_is_sent_once_to_a_client_that_keeps_it(api, keeper):
    etag = api.get(URL, token=keeper).headers["etag"]
    assert api.get(URL, token=keeper, headers={"If-None-Match": etag}).status == 304
    api.post(URL, {"name": "one"}, token=keeper)
    assert api.get(URL, token=keeper, headers={"If-None-Match": etag}).status == 200


def test_what_is_no_snapshot_is_said_and_the_desk_is_as_it_was(api, db, desk, keeper, reader):
    ticketapi.generate_tickets(db, 5, NOON, seed=1)
    folder_of(desk).mkdir()
    (folder_of(desk) / "one.db").write_bytes(b"no desk at all")
    assert api.get(f"{URL}/one", token=keeper).json["data"] | {"created_at": 0} == {
        "name": "one",
        "created_at": 0,
        "size": 14,
        "tickets": None,
    }
    answer = api.request("POST", f"{URL}/one/restore", token=keeper)
    message = "The snapshot one is damaged."
    assert (answer.status, answer.json) == (422, {"message": message, "errors": {"name": [message]}})
    assert total(api, reader) == 5
    assert api.request("DELETE", f"{URL}/one", token=keeper).status == 204


def test_a_full_disk_is_a_503_with_retry_after(api, desk, keeper, monkeypatch):
    api.post(URL, {"name": "one"}, token=keeper)

    def full(*_):
        raise OSError(ticketapi.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ticketapi.shutil, "copyfile", full)
    answer = api.request("POST", f"{URL}/one/restore", token=keeper)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


# What a reader remembers of the desk ----------------------------------------------------------------


def test_nothing_that_was_remembered_outlives_a_restore(api, db, keeper, reader):
    ticketapi.generate_tickets(db, 40, NOON, seed=1)
    ticketapi.process_tickets(db, 10, NOON)
    paths = ("/api/stats", "/api/tickets/open", "/api/tickets/closed?per_page=5", "/api/tickets/3", "/api/users", "/api/series")
    before = {path: api.get(path, token=reader) for path in paths}
    api.post(URL, {"name": "one"}, token=keeper)
    ticketapi.generate_tickets(db, 7, NOON + HOUR, seed=2)
    ticketapi.process_tickets(db, 7, NOON + HOUR)
    ticketapi.update_ticket(db, 3, {"subject": "Changed"}, NOON + HOUR)
    for path in paths:
        changed = api.get(path, token=reader, headers={"If-None-Match": before[path].headers["etag"]})
        assert (changed.status, changed.body == before[path].body) == (200, False)
    assert api.request("POST", f"{URL}/one/restore", token=keeper).status == 200
    for path in paths:
        assert api.get(path, token=reader).body == before[path].body
        assert api.get(path, token=reader, headers={"If-None-Match": before[path].headers["etag"]}).status == 304


def test_every_connection_that_is_kept_sees_the_restored_desk(desk, db):
    reader = ticketapi.Reader(desk)
    writer = ticketapi.connect(desk, ticketapi.QUEUED)
    ticketapi.generate_tickets(db, 3, NOON, seed=1)
    ticketapi.save_snapshot(desk, "one", NOON)
    ticketapi.generate_tickets(db, 3, NOON + HOUR, seed=2)
    reader.refresh()
    assert ticketapi.count_tickets(reader.db, ticketapi.OPEN) == 6
    before = ticketapi.get_data_version(reader.db)
    ticketapi.restore_snapshot(desk, "one", NOON)
    assert ticketapi.get_data_version(reader.db) != before
    for kept in (reader.db, writer, db):
        assert ticketapi.count_tickets(kept, ticketapi.OPEN) == 3
    with ticketapi.transaction(writer):
        made = create_ticket(writer, ("A", "a@example.com"), "s", "c", NOON + HOUR)
    assert made == 4
    assert b'"id":4' in ticketapi.ticket_resource(reader.db, 4)
    for kept in (reader.db, writer):
        kept.close()


def test_a_key_of_before_the_save_is_answered_again_and_one_of_after_it_done(api, db, clock, keeper):
    pen = ticketapi.create_token(db, "pen@example.com", "t", ["write:tickets"], 0, NOON)["token"]
    body = {"subject": "s", "content": "c", "user": {"name": "A", "email": "a@example.com"}}

    def send(key):
        answer = api.post("/api/tickets", body, token=pen, headers={"Idempotency-Key": key})
        assert answer.status == 201
        return answer.json["data"]["id"], answer.headers.get("idempotent-replayed")

    assert send("before") == (1, None)
    api.post(URL, {"name": "one"}, token=keeper)
    assert send("after") == (2, None)
    assert send("after") == (2, "true")
    api.request("POST", f"{URL}/one/restore", token=keeper)
    assert send("before") == (1, "true")
    assert send("after") == (2, None)  # the ticket was gone
    assert send("after") == (2, "true")
    clock.advance(ticketapi.KEYS_KEPT)
    assert send("before") == (3, None)
