"""Scripts in pages of other origins may read answers as --cors-origin says, and never with credentials."""

import pytest

HERE, THERE, ELSEWHERE = "https://a.example.com", "http://b.example.com:8080", "https://evil.example.com"
ANSWERS = {
    200: ("GET", "/api/stats"),
    401: ("GET", "/api/tickets/open"),
    404: ("GET", "/api/nope"),
    405: ("POST", "/api/stats"),
    422: ("GET", "/api/tickets/open?page=x"),
}
LIMIT_HEADERS = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit", "ratelimit-policy"}


def ask(api, token, status, **headers):
    """Bring about an answer with a status and check that it has it."""
    method, url = ANSWERS[status]
    answer = api.request(method, url, token=None if status == 401 else token, headers=headers)
    assert answer.status == status
    return answer


def preflight(api, url="/api/stats", origin=HERE, method="GET", headers="authorization"):
    """Send what a browser sends before a request with a token."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return api.request("OPTIONS", url, headers={name: value for name, value in asked.items() if value})


def cors_headers(answer):
    """Return the CORS headers of an answer."""
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def listed(text):
    """Return the lower-cased items of a header that lists names."""
    return {item.strip().lower() for item in text.split(",") if item.strip()}


# The default: every origin -----------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Origin": HERE}, {"Origin": "null"}], ids=["no origin", "origin", "null"])
def test_by_default_every_answer_under_api_is_open_to_every_origin(api, token, headers):
    for status in ANSWERS:
        assert ask(api, token, status, **headers).headers["access-control-allow-origin"] == "*"


def test_by_default_429_and_500_are_open_to_every_origin_too(make_api, db, token):
    api = make_api(rate=1)
    db.execute("DELETE FROM ticket_counts")
    answers = [api.get("/api/stats", token=token) for _ in range(2)]
    assert [answer.status for answer in answers] == [500, 429]
    assert [answer.headers["access-control-allow-origin"] for answer in answers] == ["*", "*"]


@pytest.mark.parametrize("url", ["/up", "/", "/nope", "/apinope"])
def test_what_is_not_under_api_is_not_open(api, url):
    for method in ("GET", "HEAD", "OPTIONS", "POST"):
        answer = api.request(method, url, headers={"Origin": HERE, "Access-Control-Request-Method": "GET"})
        assert cors_headers(answer) == {}
        assert answer.status != 204


def test_scripts_may_read_the_headers_of_limits_etags_and_retries(api, token):
    exposed = listed(api.get("/api/stats", token=token).headers["access-control-expose-headers"])
    assert exposed >= {"etag", "retry-after", *LIMIT_HEADERS}


# Preflights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["/api/stats", "/api/stats/", "/api/tickets/open?page=2", "/api/users/1/tickets", "/api/nope", "/api"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_preflight_is_204_and_allows_what_it_asks_for(api, url, method):
    answer = preflight(api, url, method=method, headers="authorization, x-requested-with")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == method
    assert listed(answer.headers["access-control-allow-headers"]) == {"authorization", "x-requested-with"}
    assert answer.headers["access-control-max-age"] == "86400"
    assert listed(answer.headers["vary"]) == {"access-control-request-method", "access-control-request-headers"}


def test_a_preflight_that_asks_for_no_headers_is_told_none(api):
    assert "access-control-allow-headers" not in preflight(api, headers="").headers


def test_a_preflight_is_not_audited_and_draws_from_no_bucket(api, token):
    for _ in range(40):
        assert preflight(api).status == 204
    assert api.audits() == []
    assert api.get("/api/stats", token=token).headers["x-ratelimit-remaining"] == "29"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": HERE}, {"Access-Control-Request-Method": "GET"}, {"Origin": "", "Access-Control-Request-Method": ""}],
)
def test_an_options_request_that_is_no_preflight_is_answered_by_its_route_and_audited(api, headers):
    answer = api.request("OPTIONS", "/api/stats", headers=headers)
    assert (answer.status, answer.headers["allow"]) == (200, "GET, HEAD")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert [audit["method"] for audit in api.audits()] == ["OPTIONS"]


def test_a_preflight_has_no_limit_headers(api):
    assert not LIMIT_HEADERS & set(preflight(api).headers)


# A list of origins -------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [HERE, THERE])
def test_an_origin_on_the_list_is_echoed(make_api, token, origin):
    api = make_api(cors_origin=(HERE, THERE))
    for status in ANSWERS:
        answer = ask(api, token, status, Origin=origin)
        assert answer.headers["access-control-allow-origin"] == origin
        assert listed(answer.headers["access-control-expose-headers"]) >= LIMIT_HEADERS
        assert listed(answer.headers["vary"]) == {"origin"}


@pytest.mark.parametrize(
    "origin",
    [ELSEWHERE, "null", "", f"{HERE}.evil.com", f"{HERE}:443", HERE.upper(), HERE.replace("https", "http"), f"{HERE}, {THERE}"],
)
def test_another_origin_gets_an_answer_that_browsers_keep_from_it(make_api, token, origin):
    api = make_api(cors_origin=(HERE, THERE))
    for status in ANSWERS:
        answer = ask(api, token, status, **({"Origin": origin} if origin else {}))
        assert cors_headers(answer) == {}
        assert listed(answer.headers["vary"]) == {"origin"}


def test_the_preflight_of_an_origin_on_the_list_varies_by_origin_too(make_api):
    answer = preflight(make_api(cors_origin=(HERE, THERE)))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, HERE)
    assert listed(answer.headers["vary"]) == {"origin", "access-control-request-method", "access-control-request-headers"}


def test_the_preflight_of_another_origin_allows_nothing(make_api):
    api = make_api(cors_origin=(HERE,))
    answer = preflight(api, origin=ELSEWHERE)
    assert (answer.status, answer.headers["allow"]) == (200, "GET, HEAD")
    assert cors_headers(answer) == {}


def test_a_star_on_the_list_opens_to_all(make_api, token):
    answer = ask(make_api(cors_origin=(HERE, "*")), token, 200, Origin=ELSEWHERE)
    assert answer.headers["access-control-allow-origin"] == "*"


# Off ---------------------------------------------------------------------------------------------


def test_off_leaves_no_trace_of_cors(make_api, token):
    api = make_api(cors_origin=("off",))
    for status in ANSWERS:
        answer = ask(api, token, status, Origin=HERE)
        assert cors_headers(answer) == {}
        assert "vary" not in answer.headers


@pytest.mark.parametrize(("url", "status"), [("/api/stats", 200), ("/api/nope", 404)])
def test_off_makes_a_preflight_a_plain_options_request(make_api, url, status):
    api = make_api(cors_origin=("off",))
    answer = preflight(api, url)
    assert answer.status == status
    assert cors_headers(answer) == {}


# Never -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origins", [("*",), (HERE,), ("off",)])
def test_credentials_are_never_allowed(make_api, token, origins):
    api = make_api(cors_origin=origins)
    answers = [ask(api, token, status, Origin=HERE, Cookie="session=1") for status in ANSWERS]
    for answer in [*answers, preflight(api), preflight(api, origin=ELSEWHERE)]:
        assert "access-control-allow-credentials" not in answer.headers
