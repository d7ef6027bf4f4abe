"""The README and docs/ document every command, option, route, error, metric and limit, and nothing that is not there."""

import re

import bottle
import pytest
from conftest import ROOT
from manual import FENCE, MANUAL, PAGES, anchors, code, links, prose, section, table

import ticketapi

OPTION_ROWS = {code(row[1]): row for row in table(section("commands.md", "Options"))}
COMMAND_NAMES = [command.words for command in ticketapi.COMMANDS]


def test_every_command_is_in_the_table_and_no_other():
    documented = [code(row[0]).removeprefix("ticketapi ") for row in table(section("commands.md", "Commands"))]
    assert documented == COMMAND_NAMES


def test_every_option_is_in_the_table_and_no_other():
    assert sorted(OPTION_ROWS) == sorted(option.variable for option in ticketapi.OPTIONS.values())
    assert len(table(section("commands.md", "Options"))) == len(OPTION_ROWS)


def test_every_field_of_the_settings_is_an_option():
    assert sorted(ticketapi.OPTIONS) == sorted(ticketapi.Settings.__dataclass_fields__)


@pytest.mark.parametrize("option", ticketapi.OPTIONS.values(), ids=lambda option: option.field)
def test_an_option_is_documented_with_variable_default_value_and_commands(option):
    written, variable, default, commands, _ = OPTION_ROWS[option.variable]
    assert code(written) == f"{option.flag} {option.metavar}".strip()
    assert code(variable) == option.variable
    assert code(default) == ("" if option.read is None else ticketapi.default_text(option))
    having = [command.words for command in ticketapi.COMMANDS if option.field in command.options]
    assert commands == ("all" if having == COMMAND_NAMES else ", ".join(having))


@pytest.mark.parametrize("command", ticketapi.COMMANDS, ids=lambda command: command.words)
def test_the_help_of_a_command_names_its_options_and_gives_examples(command, run):
    code, out, _ = run(*command.words.split(), "--help")
    assert code == 0
    flags = set(re.findall(r"^  (--[a-z-]+)", out, re.MULTILINE))
    assert flags - {"--help"} == {ticketapi.OPTIONS[name].flag for name in command.options}
    assert re.search(rf"examples:\n  ticketapi {command.words}", out)


def called(line):
    """Return the command and the flags that a line of a snippet calls, or nothing."""
    found = re.search(r"\bticketapi(?:\.pyz|\.py)? ([a-z]+(?: [a-z]+)?)(.*)", line.partition("#")[0])
    if not found:
        return None
    words = next((words for words in (found[1], found[1].split()[0]) if words in COMMAND_NAMES), found[1])
    return words, set(re.findall(r"(?<!\S)--[a-z-]+", found[2].partition("|")[0].partition(")")[0]))


LINES = [
    line
    for text in PAGES.values()
    for _, language, body in FENCE.findall(text)
    for line in body.splitlines()
    if language in ("sh", "console")
]


INLINE = re.findall(r"`([^`\n]+)`", "\n".join(map(prose, PAGES.values())))


@pytest.mark.parametrize("line", sorted(line for line in {*LINES, *INLINE} if called(line)))
def test_a_line_that_calls_the_program_has_a_command_and_options_that_there_are(line):
    words, flags = called(line)
    [command] = [command for command in ticketapi.COMMANDS if command.words == words]
    assert flags - {"--help"} <= {ticketapi.OPTIONS[name].flag for name in command.options}


def test_no_variable_is_mentioned_that_does_not_exist():
    mentioned = set(re.findall(r"TICKETAPI_[A-Z_]+", MANUAL + (ROOT / "ticketapi.service").read_text()))
    assert mentioned == {option.variable for option in ticketapi.OPTIONS.values()}


def test_every_route_is_in_the_table_and_no_other(api):
    documented = [re.sub(r"\{.*?\}", "{}", code(row[0])) for row in table(section("api.md", "Routes"))]
    real = [f"{route.method} {re.sub(r'<.*?>', '{}', route.rule)}" for route in api.app.routes if route.method != "OPTIONS"]
    assert documented == real


def test_no_route_is_mentioned_that_does_not_exist(api):
    for path in set(re.findall(r"(?<![\w.])/api/[a-z0-9_{}/]+", MANUAL)):
        rules = [re.sub(r"<.*?>", "[^/]+", route.rule) for route in api.app.routes]
        assert any(re.fullmatch(f"{rule}/?", path) for rule in rules), path


def test_the_table_of_routes_names_the_ability_that_each_needs():
    needed = [{None: "nothing", "": "any ability"}.get(route.ability, route.ability) for route in ticketapi.ROUTES]
    assert [row[2].strip("`") for row in table(section("api.md", "Routes"))] == needed


def test_every_error_of_the_code_is_in_the_table_and_no_other():
    source = (ROOT / "ticketapi.py").read_text()
    raised = {int(status) for status in re.findall(r"HTTPError\((\d{3})", source)}
    kinds = {kind.status for kind in ticketapi.TicketApiError.__subclasses__()}
    routing = {404, 405}
    assert {int(row[0]) for row in table(section("api.md", "Errors and headers"))} == raised | kinds | routing | set(
        ticketapi.REFUSALS
    )


def duration_text(seconds):
    """Write a duration in its largest unit."""
    return next(f"{seconds // size} {unit}" for unit, size in (("h", 3600), ("m", 60), ("s", 1)) if seconds % size == 0)


# What the pages say of numbers, and the number of the code that it must be.
DEFAULTS = ticketapi.Settings()
REACH = {bucket: most for bucket, (_, most) in ticketapi.BUCKETS_BACK.items()}
WORDS = {2: "two", 10: "ten"}
LIMITS = {
    "api.md": [
        f"`per_page` ({ticketapi.PER_PAGE}, from 1 to {ticketapi.MAX_PER_PAGE})",
        f"{ticketapi.MAX_BODY_BYTES // 1024} KiB",
        f"{ticketapi.MAX_HEADER_BYTES // 1024} KiB",
        f"Hours reach back {REACH['hour'] // 24} days, days {WORDS[REACH['day'] // 365]} years",
        f'"default";q={DEFAULTS.rate};w=60',
        f"1 to {ticketapi.MAX_SUBJECT} characters",
        f"1 to {ticketapi.MAX_CONTENT:,} characters",
        f"1 to {ticketapi.MAX_KEY} printable characters",
        f"within {ticketapi.KEYS_KEPT // ticketapi.HOUR} hours",
        f"after {ticketapi.WRITE_SECONDS:.0f} seconds without its turn",
        f"at most {ticketapi.SEARCH_SPAN * ticketapi.SEARCH_SPANS:,} tickets",
        f"The last {ticketapi.EVENTS_KEPT:,} events",
        f"every {ticketapi.BEAT_SECONDS:.0f} seconds",
        f"{ticketapi.MAX_UNREAD // 1024} kB of it",
        f"has {ticketapi.MAX_STREAMS} of them, {ticketapi.MAX_USER_STREAMS} for a user",
    ],
    "commands.md": [
        f"every {ticketapi.WATCH_SECONDS:.0f} seconds",
        f"{ticketapi.DEMO_TICKETS:,} tickets of {ticketapi.DEMO_DAYS} days",
    ],
    "tokens.md": [
        f"holds {DEFAULTS.rate} requests",
        f"every {WORDS[60 // DEFAULTS.rate]} seconds",
        f"a bucket of {ticketapi.STRANGERS_RATE} a minute",
        f"`tkt_` and {ticketapi.TOKEN_PATTERN.pattern[-3:-1]} letters",
        f"`{ticketapi.OPERATOR_EMAIL}`",
        f"the {ticketapi.AUDIT_LOOK:,} oldest rows",
        f"{ticketapi.AUDIT_SPANS * ticketapi.AUDIT_SPAN:,} rows",
        f"{DEFAULTS.audit_limit} without `--limit`",
        ", ".join(f"`{word}`" for word in ticketapi.SECRET_KEY.pattern.split("|")[:-1]),
    ],
    "webhooks.md": [
        f"within {ticketapi.TRY_SECONDS} seconds",
        f"a try has {ticketapi.TRY_SECONDS} seconds",
        f"up to {ticketapi.MAX_UNANSWERED} at a time",
        f"{', '.join(duration_text(seconds) for seconds in ticketapi.RETRIES[:-1])} and {duration_text(ticketapi.RETRIES[-1])}",
        f"no try succeeds for {ticketapi.FAILING_DAYS} days",
        f"{ticketapi.KEPT_DELIVERIES:,} deliveries wait",
        f"the last {ticketapi.KEPT_DELIVERIES:,} are kept",
        f"after {ticketapi.CLAIM_SECONDS} seconds",
        f"up to {ticketapi.MAX_WEBHOOKS} webhooks",
    ],
    "operation.md": [
        f"the last {ticketapi.EVENTS_KEPT:,} changes",
        f"{ticketapi.KEYS_KEPT // ticketapi.HOUR} hours",
        {30: "half a minute"}[ticketapi.HEARTBEAT_SECONDS],
    ],
    "growing.md": [
        f"after {ticketapi.READER.seconds:.0f} seconds",
        f"each try costs {ticketapi.CONNECT_SECONDS} seconds",
        f"fails after {ticketapi.SCHEDULED.seconds:.0f} seconds",
        f"up to {ticketapi.MAX_WAITING_AUDITS:,}",
        f"wrote for {ticketapi.BUSY_TIMEOUT_MS // 1000} seconds",
        f"The limit of {DEFAULTS.rate} requests",
    ],
    "promises.md": [
        f"batches of {ticketapi.BATCH:,}",
        f"up to {ticketapi.MAX_WAITING_AUDITS:,}",
        f"wait {ticketapi.BUSY_TIMEOUT_MS // 1000} seconds",
        {500: "half a second"}[ticketapi.AUDIT_WAIT_MS],
        f"{ticketapi.MAX_CONNECTIONS:,} connections",
        f"{ticketapi.BUCKETS:,} buckets",
    ],
}


@pytest.mark.parametrize("page", LIMITS)
def test_the_limits_in_the_text_are_those_of_the_code(page):
    text = " ".join(PAGES[f"docs/{page}"].split())
    for limit in LIMITS[page]:
        assert limit in text, limit


def test_every_ability_is_in_the_table_and_no_other():
    needed = {route.ability for route in ticketapi.ROUTES if route.ability}
    assert {code(row[0]) for row in table(section("tokens.md", "Tokens"))} == needed | {"*"}
    assert set(re.findall(r"(?:read|write|control):\w+", MANUAL)) == needed


def test_every_type_of_event_is_in_the_table_and_no_other():
    assert [code(row[0]) for row in table(section("webhooks.md", "Messages"))] == list(ticketapi.EVENT_TYPES)


def test_every_filter_of_the_audit_log_is_in_the_table_and_no_other(api):
    documented = {code(row[0]) for row in table(section("tokens.md", "Audit log"))}
    description = api.get("/openapi.json").json
    listed = [one["$ref"].rpartition("/")[2] for one in description["paths"]["/api/audits"]["get"]["parameters"]]
    names = {description["components"]["parameters"][reference]["name"] for reference in listed}
    assert documented == names - {"per_page", "cursor", "If-None-Match"}


def test_the_messages_about_postgresql_are_those_of_the_code():
    _, _, text = section("growing.md", "When the database is away").partition("What commands say")
    messages = [code(row[0]) for row in table(text)]
    source = (ROOT / "ticketapi.py").read_text()
    for message in messages:
        assert max(message.split("…"), key=len).strip(" :;") in source, message


def test_every_metric_is_in_the_table_with_its_type_and_labels_and_no_other(api):
    api.get("/nothing")
    lines = api.get("/metrics").body.decode().splitlines()
    types = [tuple(line.split()[2:]) for line in lines if line.startswith("# TYPE ")]
    rows = table(section("operation.md", "Metrics"))
    assert [(code(name), kind) for name, kind, _, _ in rows] == types
    documented = {code(name): set(re.findall(r"`(\w+)`", labels)) for name, _, labels, _ in rows}
    for line in (line for line in lines if not line.startswith("#")):
        name = re.sub(r"_(bucket|sum|count)$", "", re.match(r"\w+", line)[0])
        assert set(re.findall(r'(\w+)="', line)) <= documented[name], line
    assert set(re.findall(r"\bticketapi_\w+", MANUAL)) == {name for name, _ in types} - {"process_start_time_seconds"}


def test_every_command_with_json_is_in_the_table_of_json_output():
    documented = [code(row[0]) for row in table(section("commands.md", "JSON output"))]
    assert documented == [command.words for command in ticketapi.COMMANDS if "json" in command.options]


def test_the_changelog_begins_with_the_version_of_the_module_below_what_is_not_released():
    headings = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(version for version, date in headings if date != "unreleased") == ticketapi.__version__


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "benchmarks/README.md"])
def test_every_link_to_a_file_or_a_section_leads_somewhere(page):
    text = (ROOT / page).read_text()
    for target in links(text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_path_that_is_named_is_there():
    for path in re.findall(r"(?<![\w/.])(?:tests|benchmarks|packaging|postman|docs)/[\w./-]*\w", MANUAL):
        assert (ROOT / path).exists(), path


def test_every_page_leads_to_all_others_and_the_readme_to_each():
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    for name in PAGES:
        here = {"../README.md", *pages} if name != "README.md" else {f"docs/{page}" for page in pages}
        assert here <= {target.partition("#")[0] for target in links(PAGES[name])}, name


def test_the_readme_is_one_page():
    assert len(PAGES["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("title", ["Run it", "Test it"])
def test_the_first_screen_has_the_commands_that_are_run_in_ci(title):
    found = re.search(rf"^\*\*{title}\*\*.*\n\n```sh\n(.+)\n```$", PAGES["README.md"], re.MULTILINE)
    assert found and "\n" not in found[1]


def test_the_router_is_the_one_of_the_pinned_bottle():
    assert bottle.__version__ in (ROOT / "packaging" / "requirements.txt").read_text()
