"""Every error is JSON in the words of the contract, whatever the client accepts, and tells nothing of the inside."""

import pytest
from conftest import NOON, run_sql

import ticketapi

ROUTES = ("/api/tickets/open", "/api/tickets/closed", "/api/users/1/tickets", "/api/stats")
LISTS = ROUTES[:3]
OTHER_METHODS = ("POST", "PUT", "PATCH", "DELETE", "TRACE")
ACCEPTS = ("text/html,application/xhtml+xml", "application/json", "image/png", "*/*", "")
INTERNALS = ("Traceback", "File ", "line ", ".py", "sqlite", "SELECT", "no such", "Error:", "JSON")


def make_token(db, *, abilities=("read:tickets",), expires=0, email=ticketapi.OPERATOR_EMAIL):
    """Return the text of a token made at noon."""
    return ticketapi.create_token(db, email, "test", list(abilities), expires, NOON)["token"]


def break_abilities(db):
    """Leave a token in the desk whose abilities are no JSON, and return its text."""
    text = make_token(db, email="broken@example.com")
    db.execute("UPDATE personal_access_tokens SET abilities = '[' WHERE token = ?", (ticketapi.hash_token(text),))
    return text


def assert_tells_nothing(answer):
    """Check that an answer is an error in JSON and holds neither traceback nor statement nor path."""
    assert answer.headers["content-type"] == "application/json"
    assert isinstance(answer.json["message"], str)
    assert not [word for word in INTERNALS if word in answer.body.decode()]


# 401 ---------------------------------------------------------------------------------------------


def bad_credentials(db):
    """Return Authorization headers that must not let anybody in, by what is wrong with them."""
    expired, revoked, valid = make_token(db, expires=1), make_token(db), make_token(db)
    ticketapi.revoke_token(db, 2)
    return {
        "expired": f"Bearer {expired}",
        "revoked": f"Bearer {revoked}",
        "wrong": f"Bearer {ticketapi.new_token_text()}",
        "bad checksum": f"Bearer {valid[:-1]}{'0' if valid[-1] != '0' else '1'}",
        "another form": "Bearer 1|abcdef",
        "not ASCII": "Bearer \xff\xfe",
        "long": f"Bearer {'x' * 10_000}",
        "two tokens": f"Bearer {valid} {valid}",
        "hash of a token": f"Bearer {ticketapi.hash_token(valid)}",
    }


def test_any_token_that_is_not_valid_gets_one_and_the_same_401(api, db, clock):
    credentials = bad_credentials(db)
    clock.advance(1)
    for kind, header in credentials.items():
        answer = api.get("/api/stats", headers={"Authorization": header})
        assert (kind, answer.status, answer.body) == (kind, 401, b'{"message":"Unauthenticated."}')
        assert (kind, answer.headers["www-authenticate"]) == (kind, 'Bearer error="invalid_token"')


@pytest.mark.parametrize("headers", [{}, {"Authorization": ""}, {"Authorization": "Basic b3BlbjpzZXNhbWU="}])
def test_without_a_token_the_401_names_the_scheme_alone(api, headers):
    answer = api.get("/api/stats", headers=headers)
    assert (answer.status, answer.body) == (401, b'{"message":"Unauthenticated."}')
    assert answer.headers["www-authenticate"] == "Bearer"


def test_every_route_under_api_asks_for_a_token(api):
    assert {api.get(url).status for url in ROUTES} == {401}


@pytest.mark.parametrize("query", ["token", "api_token", "access_token"])
def test_a_token_in_the_query_is_not_taken(api, token, query):
    assert api.get(f"/api/stats?{query}={token}").status == 401


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_scheme_is_read_as_rfc_9110_has_it(api, token, scheme):
    assert api.get("/api/stats", headers={"Authorization": f"{scheme} {token}"}).status == 200


def test_a_token_works_until_it_expires(api, db, clock):
    text = make_token(db, expires=60)
    clock.advance(59.999999)
    assert api.get("/api/stats", token=text).status == 200
    clock.advance(0.000001)
    assert api.get("/api/stats", token=text).status == 401


# 403 ---------------------------------------------------------------------------------------------


def test_a_token_without_the_ability_gets_403(api, db):
    text = make_token(db, abilities=["write:tickets"])
    for url in ROUTES:
        answer = api.get(url, token=text)
        assert (answer.status, list(answer.json)) == (403, ["message"])
        assert answer.headers["www-authenticate"].startswith('Bearer error="insufficient_scope"')


@pytest.mark.parametrize(
    ("abilities", "status"),
    [(["*"], 200), (["a", "read:tickets"], 200), (["read"], 403), (["read:*"], 403), (["READ:TICKETS"], 403), ([], 403)],
)
def test_the_ability_is_read_tickets_or_a_star(api, db, abilities, status):
    assert api.get("/api/stats", token=make_token(db, abilities=abilities)).status == status


# 404 and 405 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/api/nope", "api/nope"),
        ("/api/nope/", "api/nope"),
        ("/api/nope?page=1", "api/nope"),
        ("/api", "api"),
        ("/nope", "nope"),
        ("/api/caf%C3%A9", "api/café"),
        ("/%22%3Cb%3E", '"<b>'),
    ],
)
def test_an_unknown_route_is_named(api, url, path):
    answer = api.get(url)
    assert (answer.status, answer.json) == (404, {"message": f"The route {path} could not be found."})


@pytest.mark.parametrize("url", [*ROUTES, "/up"])
def test_a_method_that_is_not_supported_is_named_with_those_that_are(api, url):
    for method in OTHER_METHODS:
        answer = api.request(method, url)
        text = f"The {method} method is not supported for route {url[1:]}. Supported methods: GET, HEAD."
        assert (answer.status, answer.json) == (405, {"message": text})
        assert answer.headers["allow"] == "GET, HEAD"


def test_an_unknown_route_is_not_found_by_any_method(api):
    methods = ("GET", "HEAD", "OPTIONS", *OTHER_METHODS)
    assert {api.request(method, "/api/nope").status for method in methods} == {404}


def test_404_and_405_need_no_token_and_draw_from_no_bucket_of_a_user(api, token):
    assert api.get("/api/nope").status == 404
    assert api.request("POST", "/api/stats").status == 405
    for _ in range(40):
        assert api.get("/api/nope", token=token).status == 404
        assert api.request("POST", "/api/stats", token=token).status == 405
    assert api.get("/api/stats", token=token).headers["x-ratelimit-remaining"] == "29"


def test_an_unknown_user_is_told_from_an_unknown_route(api, token):
    answer = api.get("/api/users/5/tickets", token=token)
    assert answer.status == 404
    assert "route" not in answer.json["message"]
    assert "user" in answer.json["message"]


# 422 and 429 -------------------------------------------------------------------------------------

PAGE, PER_PAGE = "The page field must be an integer.", "The per page field must be an integer."


@pytest.mark.parametrize(
    ("query", "message", "errors"),
    [
        ("page=abc", PAGE, {"page": [PAGE]}),
        ("per_page=1.5", PER_PAGE, {"per_page": [PER_PAGE]}),
        ("per_page=x&page=x", f"{PAGE} (and 1 more error)", {"page": [PAGE], "per_page": [PER_PAGE]}),
        ("page=%D9%A1", PAGE, {"page": [PAGE]}),
        ("page=%FF", PAGE, {"page": [PAGE]}),
        ("page=1%00", PAGE, {"page": [PAGE]}),
    ],
)
def test_what_is_no_whole_number_is_a_422_that_names_the_field(api, db, token, query, message, errors):
    ticketapi.generate_tickets(db, 1, NOON, seed=1)
    user = db.execute("SELECT user_id FROM tickets").fetchone()[0]
    for url in ("/api/tickets/open", "/api/tickets/closed", f"/api/users/{user}/tickets"):
        answer = api.get(f"{url}?{query}", token=token)
        assert answer.status == 422
        assert list(answer.json) == ["message", "errors"]
        assert answer.json == {"message": message, "errors": errors}


def test_too_many_requests_get_429(make_api, token):
    api = make_api(rate=1)
    api.get("/api/stats", token=token)
    answer = api.get("/api/stats", token=token)
    assert (answer.status, answer.body) == (429, b'{"message":"Too Many Attempts."}')


# 500 and 503 -------------------------------------------------------------------------------------


def test_a_broken_row_is_a_500_without_internals(api, db, caplog):
    answer = api.get("/api/stats", token=break_abilities(db))
    assert (answer.status, answer.body) == (500, b'{"message":"Server Error"}')
    assert api.audits()[-1]["status_code"] == 500
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.records[0].exc_info


def test_an_error_in_a_handler_is_a_500_with_the_tokens_user_in_the_audit_log(api, db, token):
    db.execute("DELETE FROM ticket_counts")
    answer = api.get("/api/stats", token=token)
    assert (answer.status, answer.body) == (500, b'{"message":"Server Error"}')
    audit = api.audits()[-1]
    assert (audit["status_code"], audit["user_id"]) == (500, ticketapi.FIRST_OWNER_ID)


def test_the_server_goes_on_after_a_500(api, db, token):
    assert api.get("/api/stats", token=break_abilities(db)).status == 500
    assert api.get("/api/stats", token=token).status == 200


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE ticket_counts",
        "ALTER TABLE users RENAME TO people",
        "ALTER TABLE users RENAME COLUMN tickets_count TO n",
        "DROP TABLE personal_access_tokens",
    ],
)
def test_a_database_that_fails_is_a_503_and_says_when_to_come_again(api, db, token, statement):
    run_sql(db, statement)
    answer = api.get("/api/stats", token=token)
    assert (answer.status, answer.body) == (503, b'{"message":"Service Unavailable"}')
    assert int(answer.headers["retry-after"]) >= 1
    assert api.audits()[-1]["status_code"] == 503


@pytest.mark.files
def test_a_desk_that_is_damaged_is_a_503(desk, db, make_api, token):
    db.close()
    desk.write_bytes(b"no database at all" * 1000)
    answer = make_api().get("/api/stats", token=token)
    assert (answer.status, answer.body) == (503, b'{"message":"Service Unavailable"}')


@pytest.mark.files
def test_a_desk_that_is_gone_is_a_503_and_is_not_made_anew(desk, db, make_api, token):
    db.close()
    desk.unlink()
    answer = make_api().get("/api/stats", token=token)
    assert (answer.status, answer.body) == (503, b'{"message":"Service Unavailable"}')
    assert not desk.exists()


def test_a_desk_that_somebody_writes_to_is_read_all_the_same(api, db, token):
    with ticketapi.transaction(db):
        answer = api.get("/api/stats", token=token)
    assert answer.status == 200


# All of them -------------------------------------------------------------------------------------


def every_error(api, db, clock):
    """Return functions that each bring one error about, given the headers to send, by status."""
    valid, limited = make_token(db), make_token(db, email="limited@example.com")
    scope, broken = make_token(db, abilities=[], email="scope@example.com"), break_abilities(db)
    for _ in range(30):
        api.get("/api/stats", token=limited)
    return {
        400: lambda headers: api.get(LISTS[0], token=valid, headers={**headers, "Host": "/"}),
        401: lambda headers: api.get("/api/stats", headers=headers),
        403: lambda headers: api.get("/api/stats", token=scope, headers=headers),
        404: lambda headers: api.get("/api/nope", headers=headers),
        405: lambda headers: api.request("POST", "/api/stats", headers=headers),
        422: lambda headers: api.get(f"{LISTS[0]}?page=x", token=valid, headers=headers),
        429: lambda headers: api.get("/api/stats", token=limited, headers=headers),
        500: lambda headers: api.get("/api/stats", token=broken, headers=headers),
    }


@pytest.mark.parametrize("accept", ACCEPTS)
def test_every_error_is_json_whatever_the_client_accepts(api, db, clock, accept):
    for status, ask in every_error(api, db, clock).items():
        answer = ask({"Accept": accept})
        assert answer.status == status
        assert_tells_nothing(answer)
        assert list(answer.json) == (["message", "errors"] if status == 422 else ["message"])


def test_no_answer_is_cached_by_others_or_sniffed(api, db, clock, token):
    answers = [ask({}) for ask in every_error(api, db, clock).values()]
    answers += [api.request(method, url, token=token) for method in ("GET", "HEAD", "OPTIONS") for url in (*ROUTES, "/up")]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-cache, private"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_error_answers_head_without_a_body(api, db):
    answer = api.request("HEAD", "/api/stats", token=break_abilities(db))
    assert (answer.status, answer.body) == (500, b"")


def test_a_deeply_nested_body_breaks_nothing(api, token):
    body = b"[" * 30_000
    answer = api.request("GET", "/api/stats", token=token, body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 200
