"""The README documents every command, option, variable, route and error, and nothing that is not there."""

import re

import bottle
import pytest
from conftest import ROOT

import ticketapi

README = (ROOT / "README.md").read_text()


def section(title):
    """Return the text of one section."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def table(text):
    """Return the rows of the first table in a text, as lists of cells without the header."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell):
    """Return the first piece of code in a cell, or nothing."""
    found = re.search(r"`([^`]*)`", cell)
    return found[1] if found else ""


OPTION_ROWS = {code(row[1]): row for row in table(section("Options"))}
COMMAND_NAMES = [command.words for command in ticketapi.COMMANDS]


def test_every_command_is_in_the_table_and_no_other():
    documented = [code(row[0]).removeprefix("ticketapi ") for row in table(section("Commands"))]
    assert documented == COMMAND_NAMES


def test_every_option_is_in_the_table_and_no_other():
    assert sorted(OPTION_ROWS) == sorted(option.variable for option in ticketapi.OPTIONS.values())
    assert len(table(section("Options"))) == len(OPTION_ROWS)


def test_every_field_of_the_settings_is_an_option():
    assert sorted(ticketapi.OPTIONS) == sorted(ticketapi.Settings.__dataclass_fields__)


@pytest.mark.parametrize("option", ticketapi.OPTIONS.values(), ids=lambda option: option.field)
def test_an_option_is_documented_with_variable_default_value_and_commands(option):
    written, variable, default, commands, _ = OPTION_ROWS[option.variable]
    assert code(written) == f"{option.flag} {option.metavar}".strip()
    assert code(variable) == option.variable
    assert code(default) == ("" if option.read is None else ticketapi.show_default(option))
    having = [command.words for command in ticketapi.COMMANDS if option.field in command.options]
    assert commands == ("all" if having == COMMAND_NAMES else ", ".join(having))


@pytest.mark.parametrize("command", ticketapi.COMMANDS, ids=lambda command: command.words)
def test_the_help_of_a_command_names_its_options_and_gives_examples(command, run):
    code, out, _ = run(*command.words.split(), "--help")
    assert code == 0
    flags = set(re.findall(r"^  (--[a-z-]+)", out, re.MULTILINE))
    assert flags - {"--help"} == {ticketapi.OPTIONS[name].flag for name in command.options}
    assert re.search(rf"examples:\n  ticketapi {command.words}", out)


def test_no_variable_is_mentioned_that_does_not_exist():
    mentioned = set(re.findall(r"TICKETAPI_[A-Z_]+", README + (ROOT / "ticketapi.service").read_text()))
    assert mentioned == {option.variable for option in ticketapi.OPTIONS.values()}


def test_every_route_is_in_the_table_and_no_other(api):
    documented = [re.sub(r"\{.*?\}", "{}", code(row[0])) for row in table(section("Routes"))]
    real = [f"{route.method} {re.sub(r'<.*>', '{}', route.rule)}" for route in api.app.routes if route.method != "OPTIONS"]
    assert documented == real


def test_the_table_of_routes_names_the_ability_that_each_needs(api):
    needed = [route.config.get("ability", "nothing") for route in api.app.routes if route.method == "GET"]
    assert [row[2].strip("`") for row in table(section("Routes"))] == needed


def test_every_error_of_the_code_is_in_the_table_and_no_other():
    source = (ROOT / "ticketapi.py").read_text()
    raised = {int(status) for status in re.findall(r"HTTPError\((\d{3})", source)}
    kinds = {kind.status for kind in ticketapi.TicketApiError.__subclasses__()}
    routing = {404, 405}
    assert {int(row[0]) for row in table(section("Errors and headers"))} == raised | kinds | routing | set(ticketapi.REFUSALS)


def test_the_limits_in_the_text_are_those_of_the_code():
    assert f"`per_page` ({ticketapi.PER_PAGE}, from 1 to {ticketapi.MAX_PER_PAGE})" in README
    assert f"batches of {ticketapi.BATCH:,}" in README
    assert f"the {ticketapi.AUDIT_LOOK:,} oldest rows" in README
    assert f"{ticketapi.AUDIT_SPANS * ticketapi.AUDIT_SPAN:,} rows" in README
    assert f"{ticketapi.MAX_BODY_BYTES // 1024} KiB" in README
    assert f"{ticketapi.MAX_HEADER_BYTES // 1024} KiB" in README


def test_the_changelog_begins_with_the_version_of_the_module():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == ticketapi.__version__


def test_every_link_to_a_file_or_a_section_leads_somewhere():
    headings = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"^## (.*)$", README, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_the_router_is_the_one_of_the_pinned_bottle():
    assert bottle.__version__ in (ROOT / "packaging" / "requirements.txt").read_text()
