"""Who asks and by which URL: Host as RFC 9112 has it, and what a trusted proxy says, as Laravel believes it."""

import json

import pytest

import ticketapi

PROXY, CLIENT = "10.0.0.1", "198.51.100.7"
NAMES = ("For", "Proto", "Host", "Port", "Prefix")


def told(api, token, address=PROXY, url="/api/tickets/open", **fields):
    """Ask through a proxy; return status, the URL in the answer and the client in the log."""
    headers = {f"X-Forwarded-{name}": value for name, value in fields.items()}
    answer = api.get(url, token=token, address=address, headers=headers)
    if answer.status != 200:
        return answer.status, answer.json["message"], len(api.audits())
    return 200, answer.json["meta"]["path"].removesuffix("/api/tickets/open"), api.audits()[-1]["ip_address"]


@pytest.fixture
def proxied(make_api):
    """The app behind a proxy that it trusts."""
    return make_api(trusted_proxy=PROXY)


BELIEVED = [
    ({"For": CLIENT}, "http://desk.test:8000", CLIENT),
    ({"For": f"1.2.3.4, {CLIENT}"}, "http://desk.test:8000", CLIENT),  # the nearest proxy added the last
    ({"For": f"unknown,_hidden , {CLIENT}"}, "http://desk.test:8000", CLIENT),
    ({"For": f"{CLIENT}:40001"}, "http://desk.test:8000", CLIENT),
    ({"For": f'"{CLIENT}:40001"'}, "http://desk.test:8000", CLIENT),
    ({"For": "[2001:db8::7]:40001"}, "http://desk.test:8000", "2001:db8::7"),
    ({"For": '"[2001:db8::7]:40001"'}, "http://desk.test:8000", "2001:db8::7"),
    ({"For": "[2001:db8::7]"}, "http://desk.test:8000", "2001:db8::7"),
    ({"For": "2001:DB8::7"}, "http://desk.test:8000", "2001:db8::7"),
    ({"For": "unknown"}, "http://desk.test:8000", PROXY),
    ({"For": ""}, "http://desk.test:8000", PROXY),
    ({"Proto": "https"}, "https://desk.test:8000", PROXY),
    ({"Proto": "HTTPS"}, "https://desk.test:8000", PROXY),
    ({"Proto": "https, http"}, "https://desk.test:8000", PROXY),  # a chain: the client's comes first
    ({"Host": "a.example"}, "http://a.example", PROXY),
    ({"Host": '"a.example:81"'}, "http://a.example:81", PROXY),
    ({"Host": "a.example, b.example"}, "http://a.example", PROXY),
    ({"Host": "a.example:"}, "http://a.example", PROXY),
    ({"Host": "[2001:db8::1]:443"}, "http://[2001:db8::1]:443", PROXY),
    ({"Port": "8443"}, "http://desk.test:8443", PROXY),
    ({"Host": "a.example", "Proto": "https", "Port": "443"}, "https://a.example", PROXY),
    ({"Host": "a.example:8080", "Proto": "https", "Port": "443"}, "https://a.example", PROXY),
    ({"Host": "a.example", "Port": "80"}, "http://a.example", PROXY),
    ({"Host": "a.example", "Port": "443"}, "http://a.example:443", PROXY),
    ({"Prefix": "/desk"}, "http://desk.test:8000/desk", PROXY),
    ({"Prefix": "/desk/"}, "http://desk.test:8000/desk", PROXY),
    ({"Prefix": "/a/api/b-c_d.e~f"}, "http://desk.test:8000/a/api/b-c_d.e~f", PROXY),
    ({"Prefix": "/"}, "http://desk.test:8000", PROXY),
    ({"By": "what nobody knows"}, "http://desk.test:8000", PROXY),
]
SENSELESS = [
    {"For": "for=1.2.3.4"},
    {"For": "_hidden"},
    {"For": "[2001:db8::7"},
    {"For": f'"{CLIENT}'},
    {"For": "desk.example"},
    {"For": "1.2.3.4.5"},
    {"For": "fe80::1%eth0"},
    {"For": "[fe80::%1]:80"},
    {"Proto": "wss"},
    {"Proto": '"https'},
    {"Proto": "https http"},
    {"Host": "a b"},
    {"Host": "a.example:70000"},
    {"Host": "a/../b"},
    {"Host": '"a.example'},
    {"Port": "x"},
    {"Port": "70000"},
    {"Port": "-1"},
    {"Prefix": "desk"},
    {"Prefix": "//evil.example"},
    {"Prefix": "/a?b"},
    {"Prefix": "/a b"},
]


@pytest.mark.parametrize(("fields", "url", "client"), BELIEVED)
def test_what_a_trusted_proxy_says_is_believed(proxied, token, fields, url, client):
    if "For" in fields and fields["For"] == "":
        fields = {}
    assert told(proxied, token, **fields) == (200, url, client)


@pytest.mark.parametrize("fields", [fields for fields, _, _ in BELIEVED] + SENSELESS)
@pytest.mark.parametrize(("trusted", "address"), [("", PROXY), (PROXY, CLIENT), ("unix", PROXY), (PROXY, "localhost")])
def test_nobody_else_is(make_api, token, fields, trusted, address):
    assert told(make_api(trusted_proxy=trusted), token, address, **fields) == (200, "http://desk.test:8000", address)


@pytest.mark.parametrize("fields", SENSELESS)
def test_what_makes_no_sense_is_our_own_400(proxied, token, fields):
    status, message, rows = told(proxied, token, **fields)
    assert (status, rows) == (400, 0)
    assert message == "What X-Forwarded-For, -Proto, -Host, -Port or -Prefix says makes no sense."


def test_who_looks_into_the_log_sees_what_was_refused(proxied, caplog):
    caplog.set_level("INFO", "ticketapi")
    proxied.get("/api/stats", address=PROXY, headers={"X-Forwarded-Proto": "gopher"})
    proxied.get("/api/stats", address=CLIENT, headers={"Host": "a b"})
    told = "What X-Forwarded-For, -Proto, -Host, -Port or -Prefix says makes no sense."
    assert [record.getMessage() for record in caplog.records] == [
        f"refused a request from {PROXY}: {told}",
        f"refused a request from {CLIENT}: The Host header is not valid.",
    ]


@pytest.mark.parametrize("url", ["/up", "/", "/docs", "/api/nope", "/openapi.json", "/metrics", "/api/stats"])
def test_it_is_one_on_every_route_and_may_be_read_where_answers_may(proxied, url):
    headers = {"X-Forwarded-Proto": "wss", "Origin": "https://a.example"}
    answer = proxied.get(url, address=PROXY, headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert ("access-control-allow-origin" in answer.headers) == ("api" in url)


def test_behind_a_unix_socket_the_peer_may_be_trusted(make_api, token):
    api = make_api(trusted_proxy="unix")
    fields = {"For": CLIENT, "Proto": "https", "Host": "a.example", "Prefix": "/desk"}
    assert told(api, token, "localhost", **fields) == (200, "https://a.example/desk", CLIENT)
    assert told(api, token, "127.0.0.1", **fields) == (200, "http://desk.test:8000", "127.0.0.1")


def test_a_port_makes_no_new_source(proxied):
    statuses = [
        proxied.get("/api/stats", address=PROXY, headers={"X-Forwarded-For": f"{CLIENT}:{port}"}).status for port in range(31)
    ]
    assert statuses == [401] * 30 + [429]


def test_answers_are_kept_apart_by_prefix_and_cursors_hold_under_each(proxied, token, db):
    ticketapi.generate_tickets(db, 5, proxied.clock.now, 1)
    pages = [
        proxied.get("/api/tickets/open?per_page=2", token=token, address=PROXY, headers={"X-Forwarded-Prefix": prefix})
        for prefix in ("/a", "/b")
    ]
    assert [page.json["links"]["next"][:23] for page in pages] == ["http://desk.test:8000/a", "http://desk.test:8000/b"]
    cursor = pages[0].json["meta"]["next_cursor"]
    assert proxied.get(f"/api/tickets/open?cursor={cursor}", token=token).status == 200


# Host --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "a:b", "a:65536", "a:999999999999", "[::1", "[:::]", "[zz]", "a@b", "a,b", "a:1:2"]
)
@pytest.mark.parametrize("url", ["/up", "/", "/api/stats", "/api/tickets/open", "/api/nope", "/metrics", "/nope"])
def test_a_host_that_is_none_is_400_on_every_route_and_leaves_no_row(api, token, host, url):
    answer = api.get(url, token=token, headers={"Host": host})
    assert (answer.status, answer.json) == (400, {"message": "The Host header is not valid."})
    assert api.audits() == []


@pytest.mark.parametrize(
    ("host", "shown"),
    [("a", "a"), ("a:", "a"), ("a:0", "a:0"), ("a:65535", "a:65535"), ("[::1]:", "[::1]"), ("A.b-c_d", "A.b-c_d")],
)
def test_a_host_with_an_empty_port_or_a_possible_one_is_valid(api, token, host, shown):
    assert (
        api.get("/api/tickets/open", token=token, headers={"Host": host}).json["meta"]["path"]
        == f"http://{shown}/api/tickets/open"
    )


def test_only_http_1_1_needs_a_host(api, make_api, token):
    def ask(version, api=api):
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": "/api/tickets/open", "SERVER_NAME": "desk", "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": version, "REMOTE_ADDR": CLIENT, "wsgi.url_scheme": "http", "QUERY_STRING": "",
            "HTTP_AUTHORIZATION": f"Bearer {token}",
        }  # fmt: skip
        started = []
        body = b"".join(api.app(environ, lambda status, headers, exc_info=None: started.append(int(status[:3]))))
        return started[0], json.loads(body)

    assert ask("HTTP/1.0")[1]["meta"]["path"] == "http://desk:8000/api/tickets/open"
    assert ask("HTTP/1.1") == (400, {"message": "The Host header is not valid."})
    trusting = make_api(trusted_proxy=CLIENT)  # whose health checks may be HTTP/1.0 without a Host
    assert ask("HTTP/1.0", trusting)[1]["meta"]["path"] == "http://desk:8000/api/tickets/open"
