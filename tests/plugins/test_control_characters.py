"""A path with a control character is no route's, wherever it stands: a pattern's `$` would take a line feed at its end."""

import pytest

import ticketapi

PATHS = ("/api/tickets/1", "/api/tickets/open", "/api/users/1", "/api/users/1/tickets", "/api/stats", "/up", "/docs", "/")
CONTROLS = [*range(32), 127]


@pytest.mark.parametrize("path", PATHS)
def test_a_control_character_makes_it_the_path_of_no_route(make_api, db, token, clock, path):
    ticketapi.generate_tickets(db, 5, clock.now, 1)
    api = make_api(rate=0)
    assert api.get(path, token=token).status == 200
    for code in CONTROLS:
        for url in (f"{path}%{code:02X}", f"{path}%{code:02x}%{code:02x}", f"{path[:1]}%{code:02X}{path[1:]}"):
            answer = api.get(url, token=token)
            assert (url, answer.status) == (url, 404)
            assert answer.json["message"].startswith("The route ")
            assert answer.json["message"].isprintable()
    rows = api.audits()[1:] if path.startswith("/api") else api.audits()
    assert {(row["route_name"], row["status_code"]) for row in rows} <= {(None, 404)}
    assert all(row["path"].isprintable() for row in rows)
