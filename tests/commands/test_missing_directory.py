"""Where the directory of a desk is missing every command says which, in one line, and makes neither the one nor the other."""

import pytest

COMMANDS = [
    "generate", "process", "tickets", "tickets closed", "tickets 1", "stats", "stats --watch", "token create", "token list",
    "token revoke 1", "token prune", "audit", "audit --follow", "audit prune --older-than 1d", "check", "check --repair",
    "backup copy.db", "serve --port 0",
]  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--json",)])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_directory_is_named(run, tmp_path, command, more):
    if command.startswith("serve") and more:
        return  # which has no --json
    code, out, err = run(*command.split(), "--db", "gone/desk.db", *more)
    assert (code, out) == (1, "")
    assert err == "ticketapi: there is no directory gone; create it, or choose another --db\n"
    assert list(tmp_path.iterdir()) == []
