"""Every command writes of a desk in PostgreSQL what it writes of the same desk in a file."""

import json
import re

import pytest
from conftest import NOON, close_out_of_order, make_served
from pairs import Pair

import ticketapi

HOSTILE = "a\x1b[31m\u202e'\"\\ü😀"
READING = [
    ["tickets"],
    ["tickets", "open", "--limit", "0"],
    ["tickets", "closed", "--limit", "3"],
    ["tickets", "7"],
    ["tickets", "999"],
    ["stats"],
    ["token", "list"],
    ["audit"],
    ["audit", "--limit", "0"],
    ["audit", "--status", "4xx"],
    ["audit", "--user", "ann@example.com", "--path", "/api/tickets"],
    ["audit", "--user", "nobody@example.com"],
    ["audit", "--token", "1", "--since", "1h"],
]
WRITING = [
    ["generate", "--count", "7", "--seed", "3"],
    ["generate", "--since", "1d", "--count", "90", "--seed", "3"],
    ["process", "--count", "5"],
    ["token", "revoke", "1"],
    ["token", "revoke", "99"],
    ["token", "prune"],
    ["audit", "prune", "--older-than", "1h"],
    ["audit", "prune", "--older-than", "36500d"],
]


@pytest.fixture
def pair(tmp_path, databases, clock, monkeypatch):
    """Both desks with tickets, tokens and requests; commands go by the clock of the test."""
    monkeypatch.setattr(ticketapi, "wall_microseconds", clock.wall)
    with Pair(tmp_path, databases, clock, make_served, rate=0) as both:
        both.do(lambda db: ticketapi.generate_tickets(db, 60, NOON - 10**11, 5))
        both.do(lambda db: close_out_of_order(db, [9, 3, 40], NOON - 10**10))
        both.run("UPDATE tickets SET subject = ?, content = ? WHERE id = ?", [(HOSTILE, HOSTILE, 7)])
        both.run("UPDATE users SET name = ? WHERE id = ?", [(HOSTILE, 1)])
        both.run("UPDATE tickets SET user_name = ? WHERE user_id = ?", [(HOSTILE, 1)])
        token = both.create_token("ann@example.com", "first", ["*"], 0, NOON)["token"]
        both.create_token("bob@example.com", 'b"c\\', ["read:tickets", "x"], 60, NOON - 10**9)
        for url in ("/api/tickets/open?page=2", "/api/nope", "/api/tickets/7", "/api/stats"):
            for text in (None, token):
                both.get(url, token=text, headers={"User-Agent": HOSTILE.encode().decode("latin-1")})
            clock.advance(1800)
        yield both


def results(run, pair, arguments):
    """Run a command on each desk; return what came of each, without the name of the desk."""
    found = []
    for api in pair.apis:
        place = api.settings.db
        code, out, err = run(*arguments, "--db", place)
        names = sorted({str(place), f"'{place}'", str(api.settings.audit_db)}, key=len, reverse=True)
        found.append((code, *(re.sub("|".join(map(re.escape, names)), "DESK", text) for text in (out, err))))
    return found


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_what_a_command_shows_is_the_same(run, pair, arguments, form):
    file, database = results(run, pair, [*arguments, *form])
    assert database == file
    assert file[0] in (0, 1) and file[1] + file[2]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("arguments", WRITING, ids=" ".join)
def test_what_a_command_does_is_the_same(run, pair, arguments, form):
    file, database = results(run, pair, [*arguments, *form])
    assert database == file
    for table in ("users", "tickets", "ticket_counts", "ticket_arrivals", "ticket_closings", "personal_access_tokens"):
        pair.do(lambda db, table=table: [dict(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")])
    pair.audits()


DAMAGES = [
    "UPDATE ticket_counts SET tickets = tickets + 1",
    "UPDATE users SET tickets_count = 0 WHERE id = 1",
    "UPDATE tickets SET closed_number = closed_number + 5 WHERE id = 40",
    "UPDATE tickets SET user_number = user_number + 100 WHERE id = 60",
    "UPDATE tickets SET user_name = 'other' WHERE id = 12",
    "DELETE FROM ticket_arrivals",
    "UPDATE tickets SET created_at = '2020-01-01T00:00:00.000000Z' WHERE id = 30",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_is_found_wrong_and_repaired(run, pair, damage):
    pair.run(damage, [()])
    for arguments in (["check", "--json"], ["check", "--repair", "--json"], ["check", "--json"]):
        file, database = results(run, pair, arguments)
        assert database[0] == file[0]
        assert judged(database[1]) == judged(file[1]) != []


def judged(text):
    """Return check, level and detail of what is wrong or was repaired."""
    found = json.loads(text)["checks"]
    kinds = ("references", "counters", "order", "repair")
    return [(each["check"], each["level"], each["detail"]) for each in found if each["check"] in kinds]
