"""The seams of ticketapi.py: rooms in one file, each of which uses only those above it and touches only its own things."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from source import BANNER, FUNCTIONS, HELPERS, QUERIES, ROOM_STARTS, ROOMS, SOURCE, TREE, is_above, room_of

CLOCK_READERS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "localtime", "sleep"}
SETTINGS, POSTGRES, DATABASE, WORDS, CLOCKS = "Settings and errors", "PostgreSQL", "Database", "Words", "Clocks"
DESK, LISTS, CHANGES, KEYS, AUDIT, WRITES = "Desk", "Lists", "Changes", "Keys and limits", "Audit", "Writes"
WEBHOOKS, WATCH, UPKEEP, IMPORT, SIMULATION = "Webhooks", "Watch", "Upkeep", "Import", "Simulation"
PLUGINS, ROUTES, JOBS, SERVER = "Plugins", "Routes", "Jobs", "Server"
OPTIONS, TERMINAL, COMMANDS = "Options", "Terminal", "Commands"
HALL = 800  # lines


class Node(NamedTuple):
    """A piece of the source, the room it lies in, and the top-level function or class and the method around it."""

    room: str
    owner: str
    node: ast.AST


def owned(node, owner) -> Iterator[tuple[str, ast.AST]]:
    """Yield a node and all below it with their owner; methods are `Class.method`."""
    for child in ast.iter_child_nodes(node):
        method = isinstance(node, ast.ClassDef) and isinstance(child, FUNCTIONS)
        name = f"{node.name}.{child.name}" if method else owner
        yield name, child
        yield from owned(child, name)


def all_nodes():
    """Return every node of the module."""
    found = []
    for top in TREE.body:
        room, owner = room_of(top.lineno), getattr(top, "name", "")
        found.append(Node(room, owner, top))
        found += [Node(room, name, node) for name, node in owned(top, owner)]
    return found


NODES = all_nodes()


def text_of(node):
    """Return a name or a dotted name as it is written, nothing for any other node."""
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def users(pattern):
    """Return (room, owner) of everything whose dotted name matches a pattern as a whole."""
    return {(room, owner) for room, owner, node in NODES if re.fullmatch(pattern, text_of(node))}


def rooms(pattern):
    """Return the rooms that use what a pattern matches."""
    return {room for room, _ in users(pattern)}


def calls(pattern):
    """Return the calls of what a pattern matches."""
    return [
        (room, owner, node)
        for room, owner, node in NODES
        if isinstance(node, ast.Call) and re.fullmatch(pattern, text_of(node.func))
    ]


def bound_names(node):
    """Return the names that a top-level statement defines."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return {node.name}
    loops = [inner.target for inner in ast.walk(node) if isinstance(inner, ast.comprehension)]
    local = {id(name) for loop in loops for name in ast.walk(loop)}
    stored = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)]
    return {name.id for name in stored if id(name) not in local}


def defined():
    """Return the room of every name that the module itself defines; names above the first room are in none, ""."""
    places = {}
    for top in TREE.body:
        for name in bound_names(top):
            places.setdefault(name, room_of(top.lineno))
    return places


# The rooms ---------------------------------------------------------------------------------------


def test_the_rooms_stand_in_order_each_under_a_banner_of_three_lines():
    assert [int(found[1]) for found in BANNER.finditer(SOURCE)] == list(range(1, len(ROOMS)))
    assert len(set(ROOMS)) == len(ROOMS)
    assert len(re.findall(r"^# =+$", SOURCE, re.MULTILINE)) == 2 * (len(ROOMS) - 1)


def test_the_rooms_that_the_tests_know_are_there_in_this_order():
    known = [SETTINGS, POSTGRES, DATABASE, *sorted(QUERIES, key=ROOMS.index), WORDS, CLOCKS, DESK, LISTS, KEYS, AUDIT]
    known += [WRITES, WATCH, UPKEEP, IMPORT, PLUGINS, ROUTES, JOBS, SERVER, OPTIONS, TERMINAL, COMMANDS]
    assert [room for room in ROOMS if room in known] == known
    assert len(QUERIES) > 1


def test_no_room_is_a_hall():
    starts = [*ROOM_STARTS, len(SOURCE.splitlines()) + 1]
    lengths = {name: end - start for name, start, end in zip(ROOMS[1:], starts[:-1], starts[1:], strict=True)}
    assert {name: length for name, length in lengths.items() if length > HALL} == {}


def test_the_docstring_lists_the_rooms_by_the_names_of_their_banners():
    _, _, listed = (ast.get_docstring(TREE) or "").partition("\nRooms, ")
    names = [(int(number), name) for number, name in re.findall(r"(\d+) ([A-Z][A-Za-z, ]+?)(?=  |\n|$)", listed)]
    assert names == list(enumerate(ROOMS))[1:]


def test_each_room_uses_only_names_of_its_own_and_of_the_rooms_above():
    places = defined()
    upward = {
        f"{room} ({owner}) uses {node.id} of {places[node.id]}"
        for room, owner, node in NODES
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and is_above(room, places.get(node.id, ""))
    }
    types = {f"{SETTINGS} ({owner}) uses Place of {DATABASE}" for owner in ("Settings", "Settings.audit_db")}
    assert upward == types | {f"{SETTINGS} (Settings) uses Profile of Rhythm"}


def test_main_is_last_and_short():
    *_, main, guard = TREE.body
    assert main.name == "main"
    assert ast.unparse(guard.test) == "__name__ == '__main__'"
    assert [ast.unparse(node) for node in guard.body] == ["sys.exit(main())"]
    assert main.end_lineno - main.lineno < 30


# What each may touch -----------------------------------------------------------------------------


def test_statements_are_executed_by_database_and_queries_alone():
    found = {room for room, _, _ in calls(r".*\.execute(many|script)?")}
    assert found - QUERIES == {POSTGRES, DATABASE}
    assert len(found & QUERIES) == 1  # which has the helpers that the others use


def test_transactions_are_written_in_the_database_and_opened_by_operations():
    words = re.compile(r"\s*(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b( IMMEDIATE| (TO )?SAVEPOINT \w+| \w+)?\s*")
    texts = {(room, node.value) for room, _, node in NODES if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {room for room, text in texts if words.fullmatch(text)} == {POSTGRES, DATABASE}
    assert users(r".*\.(commit|rollback)") == {
        (AUDIT, "AuditLog.record"),
        (AUDIT, "AuditLog.close"),
        (COMMANDS, "serve"),
    }  # AuditLog.commit
    assert rooms("transaction") == {
        DATABASE,
        DESK,
        SIMULATION,
        KEYS,
        AUDIT,
        WRITES,
        WEBHOOKS,
        UPKEEP,
        IMPORT,
        JOBS,
    }  # a job claims its run in the same one
    assert rooms("snapshot") == {DATABASE, LISTS, CHANGES, AUDIT, WRITES, UPKEEP, ROUTES}


def test_request_and_response_stop_at_the_handlers():
    """Elsewhere `bottle` is only asked whether it is installed."""
    assert rooms(r"bottle\.(request|response|HTTPResponse|HTTPError|Bottle)") == {PLUGINS, ROUTES}
    assert {user for user in users("bottle") if user[0] not in (PLUGINS, ROUTES)} == {("", ""), (COMMANDS, "command_serve")}
    presence = [node for room, owner, node in NODES if owner == "command_serve" and isinstance(node, ast.Compare)]
    assert "bottle is None" in map(ast.unparse, presence)


def test_waitress_is_known_to_the_server_alone():
    imports = {(room, node.module) for room, _, node in NODES if isinstance(node, ast.ImportFrom) and room}
    assert {room for room, module in imports if module.partition(".")[0] == "waitress"} == {SERVER}
    assert {module.partition(".")[0] for _, module in imports} == {"waitress", "psycopg"}


def test_psycopg_is_known_to_its_room_alone():
    imports = {(room, node.module) for room, _, node in NODES if isinstance(node, ast.ImportFrom)}
    imports |= {(room, name.name) for room, _, node in NODES if isinstance(node, ast.Import) for name in node.names}
    assert {room for room, module in imports if module.partition(".")[0] == "psycopg"} == {POSTGRES}


@pytest.mark.parametrize("thing", ["print", r"sys\.(stdout|stderr|stdin|exit)", "input"])
def test_only_the_last_two_rooms_print(thing):
    assert rooms(thing) <= {TERMINAL, COMMANDS}


@pytest.mark.parametrize("thing", [r"sys\.argv", r"os\.(environ|getenv)", "argparse"])
def test_only_options_and_those_below_read_arguments_and_the_environment(thing):
    assert rooms(thing) <= {OPTIONS, TERMINAL, COMMANDS}


def test_the_log_goes_through_the_logger_alone():
    assert {owner for _, owner, _ in calls(r"logging\.(debug|info|warning|error|exception|critical)")} == set()
    assert {owner for _, owner, _ in calls(r"logging\.(basicConfig|StreamHandler)")} == {"configure_log"}


# Clocks and chance -------------------------------------------------------------------------------


def test_the_clock_is_read_at_the_edges_alone():
    """`time` also converts and waits: strftime, gmtime and strptime of a given moment, and sleep, read no clock."""
    readers = users(r"time\.\w+") - users(r"time\.(strftime|gmtime|strptime|sleep)")
    names = ("command_generate", "command_process", "command_backup", "command_copy", "command_import", "prune_log")
    commands = {(COMMANDS, name) for name in names}  # they give a clock to their progress
    assert readers <= commands | {
        (CLOCKS, "wall_microseconds"),
        (CLOCKS, "Clock"),
        (SERVER, "Server.run"),
        (SERVER, "Server._drain"),
        (SERVER, "Server._turn"),
        (SERVER, "Server._make_calls"),
        (SERVER, "Server.call"),
        (POSTGRES, "PostgresConnection._ask"),  # how long it waits
        (POSTGRES, "PostgresConnection.copy_in"),
        (POSTGRES, "PostgresConnection.copy_out"),
        (POSTGRES, "PostgresConnection._wait"),
    }
    edges = {(CLOCKS, "Clock"), (PLUGINS, "AuditHook.before"), (PLUGINS, "AuditHook.after")}
    edges |= {(JOBS, "Scheduler.__init__"), (JOBS, "Scheduler._loop"), (JOBS, "start_shrinking")}
    edges |= {(WRITES, "Writer.submit"), (WRITES, "Writer._turn")}  # a thread that waits, as the scheduler's
    edges |= {(WRITES, "Broadcast.follow"), (WRITES, "Broadcast._loop")}
    edges |= {(JOBS, f"Deliveries.{name}") for name in ("_look", "_loop", "_try")}
    edges |= {(SIMULATION, "work_off"), (ROUTES, "move_clock"), (JOBS, "Simulator._note"), (JOBS, "Simulator.rest")}  # likewise
    edges.add((WEBHOOKS, "send_test"))  # which a command gives its clock
    edges.add((ROUTES, "make_app"))  # without a server, its start is that of the app
    inside = {(room, owner) for room, owner in users(r".*\.(wall|monotonic)|wall_microseconds") if room != COMMANDS}
    assert inside - readers <= edges
    assert users(r"(datetime|date)(\..+)?") == set()


def test_conversions_of_time_are_given_their_moment():
    """Without it, strftime and gmtime read the clock."""
    lacking = [ast.unparse(node) for _, _, node in calls(r"time\.strftime") if len(node.args) != 2]
    lacking += [ast.unparse(node) for _, _, node in calls(r"time\.gmtime") if len(node.args) != 1]
    assert lacking == []


def test_chance_comes_in_with_secrets_and_seeds_alone():
    imported = {name.name for _, _, node in NODES if isinstance(node, ast.Import) for name in node.names}
    assert imported & {"random", "uuid"} == set()
    assert users(r"os\.(urandom|getrandom)") == set()
    secret = {(KEYS, "new_token_text"), *((WEBHOOKS, name) for name in ("create_webhook", "add_test", "send_test"))}
    secret.add((PLUGINS, "choose_request_id"))  # ids of requests
    assert users(r"secrets\.\w+") == secret | {(COMMANDS, "command_generate"), (COMMANDS, "command_serve"), (COMMANDS, "serve")}
    assert {text_of(node) for _, _, node in NODES if text_of(node).startswith("secrets.")} == {
        "secrets.choice",
        "secrets.randbits",
        "secrets.token_hex",
    }


# SQL ---------------------------------------------------------------------------------------------


def is_plain_sql(node):
    """Tell whether an expression is a constant text, one of several, or holds nothing but whole numbers of our own."""
    if isinstance(node, ast.IfExp):
        return is_plain_sql(node.body) and is_plain_sql(node.orelse)
    if isinstance(node, ast.JoinedStr):
        holes = [part for part in node.values if isinstance(part, ast.FormattedValue)]
        return all(hole.format_spec and [part.value for part in hole.format_spec.values] == ["d"] for hole in holes)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def statements(query):
    """Return the statements of a query: what it hands to a helper, or the constant of that name that stands above it."""
    texts = {
        text_of(node.targets[0]): node.value
        for node in ast.walk(query)
        if isinstance(node, ast.Assign) and len(node.targets) == 1
    }
    handed = [node.args[1] for node in ast.walk(query) if isinstance(node, ast.Call) and text_of(node.func) in HELPERS]
    return [texts.get(text_of(node), node) for node in handed]


def queries():
    """Return the functions of the rooms of queries but for the helpers."""
    found = [top for top in TREE.body if isinstance(top, FUNCTIONS) and room_of(top.lineno) in QUERIES]
    return [top for top in found if top.name not in HELPERS]


def test_no_statement_is_put_together_from_anything_but_whole_numbers():
    """schema.sql alone is executed from a variable."""
    odd = [
        (room, owner, ast.unparse(node.args[0]))
        for room, owner, node in calls(r".*\.execute(many|script)?")
        if not is_plain_sql(node.args[0])
    ]
    assert {item[1:] for item in odd if item[0] in QUERIES} == {(name, "sql") for name in HELPERS - {"stream", "write_rows"}}
    of_postgres = {"PostgresConnection.dial", "PostgresConnection.stream", "read_version", "claim_boundary"}
    assert {owner for room, owner, _ in odd if room == POSTGRES} == of_postgres  # of constants alone
    assert {item for item in odd if item[0] not in {*QUERIES, POSTGRES}} == {
        (DATABASE, "prepare", "statement"),
        (DATABASE, "create_schema", "statement"),
        (DATABASE, "stream", "sql"),
        (DATABASE, "write_rows", "sql"),
        (DATABASE, "write_table", "insert"),
        (DATABASE, "write_table", "f'DELETE FROM {table}'"),
        (DATABASE, "copy_last_id", "find"),
        (DATABASE, "run_part", "statement"),
        (DATABASE, "copy_last_id", "f'SELECT coalesce(max(id), 0) FROM {table}'"),
        (DATABASE, "copy_last_id", "go_on"),
    }
    assert [query.name for query in queries() if not all(map(is_plain_sql, statements(query)))] == []
    filled = {room for room, _, node in calls(r".*\.execute(many)?") if isinstance(node.args[0], ast.JoinedStr)}
    assert filled <= {POSTGRES, DATABASE}


def test_one_query_is_one_statement():
    counts = {query.name: len(statements(query)) for query in queries()}
    assert len(counts) > 10
    assert {name for name, count in counts.items() if count != 1} == set()
    assert {owner for room, owner, _ in calls(r".*\.execute(many|script)?") if room in QUERIES} == HELPERS - {
        "stream",
        "write_rows",
    }


def test_the_helpers_of_queries_are_called_by_queries_alone():
    found = {(room, owner) for room, owner, node in calls("|".join(HELPERS)) if not isinstance(node.func, ast.Attribute)}
    assert {owner for room, owner in found if room not in QUERIES} == {"read_table"}


# Functions ---------------------------------------------------------------------------------------


def functions():
    """Return all functions and methods, those inside others too."""
    return [node for node in ast.walk(TREE) if isinstance(node, FUNCTIONS)]


def test_every_function_method_and_class_has_a_docstring():
    """Those inside another function are part of it."""
    inner = {id(node) for function in functions() for node in ast.walk(function) if node is not function}
    outer = [node for node in ast.walk(TREE) if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and id(node) not in inner]
    assert [node.name for node in outer if not ast.get_docstring(node)] == []


def test_no_function_is_longer_than_40_lines_and_most_have_ten():
    lengths = {(node.lineno, node.name): node.end_lineno - node.lineno + 1 for node in functions()}  # many share a name
    assert len(lengths) == len(functions())
    assert {name: length for name, length in lengths.items() if length > 40} == {}
    ordered = sorted(lengths.values())
    assert ordered[len(ordered) // 2] <= 12


def test_nothing_with_a_lifecycle_is_made_at_import():
    makers = {
        "make_app",
        "Settings",
        "connect",
        "open_database",
        "Readers",
        "AuditLog",
        "Scheduler",
        "Deliveries",
        "Server",
        "TokenBucket",
        "Clock",
    }
    made = []
    for top in TREE.body:
        if isinstance(top, (ast.Assign, ast.AnnAssign)):
            names = {text_of(node.func) for node in ast.walk(top) if isinstance(node, ast.Call)}
            made += [
                ast.unparse(top) for name in names if name in makers or name.startswith(("bottle.", "sqlite3.", "socket."))
            ]
    assert made == []
    assert [ast.unparse(node) for _, _, node in NODES if isinstance(node, ast.Global)] == []
