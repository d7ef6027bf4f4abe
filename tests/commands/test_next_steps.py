"""A server tells on standard error what to do first, as long as it is to be done, in commands that can be pasted."""

import shlex
from contextlib import closing

import pytest
from conftest import NOON

import ticketapi

TICKETS, TOKEN = "The desk is empty. Tickets now: ", "There is no token yet. The API asks for one: "
STEPS = {TICKETS: "generate --count 50", TOKEN: "token create"}


def fill(path, has_tickets, has_tokens):
    """Make a desk with or without tickets and tokens."""
    with closing(ticketapi.open_database(path, "desk")) as db:
        if has_tickets:
            ticketapi.generate_tickets(db, 3, NOON, 1)
        if has_tokens:
            ticketapi.create_token(db, ticketapi.OPERATOR_EMAIL, "test", ["*"], 0, NOON)


@pytest.mark.parametrize("name", ["ticketapi.db", "my desk.db"])
@pytest.mark.parametrize(
    ("state", "steps"),
    [
        (None, [TICKETS, TOKEN]),
        ((False, False), [TICKETS, TOKEN]),
        ((False, True), [TICKETS]),
        ((True, False), [TOKEN]),
        ((True, True), []),
    ],
    ids=["no desk", "empty", "a token alone", "tickets alone", "both"],
)
def test_what_is_missing_is_said_and_how_to_get_it(serve, tmp_path, name, state, steps):
    if state:
        fill(tmp_path / name, *state)
    options = [] if name == "ticketapi.db" else ["--db", name]
    code, out, err = serve("--no-scheduler", *options).stop()
    assert (code, out) == (0, "")
    expected = [f"{step}{shlex.join(['ticketapi', *STEPS[step].split(), *options])}" for step in steps]
    told = [line for line in err.splitlines() if not line.startswith("INFO ")]
    assert [line.replace(f"python3 {ticketapi.__file__}", "ticketapi") for line in told] == expected
