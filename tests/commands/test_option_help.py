"""The help of a command says of each of its options what it does, its default and its variable; the manual says the same."""

import re

import pytest
from manual import code, section, table

import ticketapi

MANUAL = {code(row[1]): row[4].replace("`", "") for row in table(section("commands.md", "Options"))}
RICHER = (
    "db",
    "threads",
    "cors_origin",
    "trusted_proxy",
    "audit_token",
    "audit_path",
    "older_than",
    "audit",
    "force",
    "format",
)


@pytest.mark.parametrize("command", ticketapi.COMMANDS, ids=lambda command: command.words)
def test_each_option_has_its_text_its_default_and_its_variable(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = run(*command.words.split(), "--help")
    assert code == 0
    shown = [" ".join(found.split()) for found in re.findall(r"^  (--.*(?:\n {10,}.*)?)$", out, re.MULTILINE)]
    expected = []
    for option in (ticketapi.OPTIONS[name] for name in command.options):
        default = ticketapi.default_text(option) if option.read else ""
        told = f"; default {default}" if default else ""
        start = f"{option.flag} {option.metavar}".strip()
        expected.append(f"{start} {option.help}{told} [{option.variable}]")
    assert shown == expected


@pytest.mark.parametrize("field", sorted({*ticketapi.OPTIONS} - {*RICHER}))
def test_manual_and_help_say_of_an_option_the_same(field):
    assert MANUAL[ticketapi.OPTIONS[field].variable] == ticketapi.OPTIONS[field].help
