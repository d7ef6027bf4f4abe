"""`--help` shows the commands in groups; it comes by itself where a command is missing; what is mistyped is guessed."""

import re
import shlex

import pytest

import ticketapi

COMMANDS = {command.words: command for command in ticketapi.COMMANDS}
FLAGS = sorted((words, ticketapi.OPTIONS[name].flag) for words in COMMANDS for name in COMMANDS[words].options if name != "db")


def help_of(run, *words):
    """Return the help of some words."""
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    return out


def assert_guessed(result, *words):
    """Check that a usage error is one line on stderr that holds some words."""
    code, out, err = result
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not [word for word in words if word not in err], err


# The help of the program -------------------------------------------------------------------------


def test_the_commands_stand_in_groups_each_on_a_line_of_its_own(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    groups = {
        title: re.findall(r"^  (\S+(?: \S+)?)  +(\S.*)$", text, re.MULTILINE)
        for title, text in re.findall(r"^([A-Z][a-z ]+):\n((?:  .*\n)+)", help_of(run), re.MULTILINE)
    }
    assert {title: [words for words, _ in lines] for title, lines in groups.items()} == {
        "Run it": ["serve"],
        "Tickets": ["generate", "process", "tickets", "stats"],
        "Simulation": [
            *("clock", "clock freeze", "clock resume", "clock speed", "clock advance", "clock set"),
            *("snapshot save", "snapshot restore", "snapshot list", "snapshot delete"),
        ],
        "Access": ["token create", "token list", "token revoke", "token prune"],
        "Webhooks": ["webhook create", "webhook list", "webhook delete", "webhook test", "webhook deliveries"],
        "Look after it": ["audit", "audit prune", "check", "backup", "copy", "import"],
    }
    assert {words: text for lines in groups.values() for words, text in lines} == {
        words: command.help for words, command in COMMANDS.items()
    }


def test_there_are_three_examples_and_they_can_be_typed(run):
    _, _, text = help_of(run).partition("\nexamples:\n")
    examples = re.findall(r"^  (.*)$", text, re.MULTILINE)
    assert len(examples) == 3
    for program, *arguments in map(shlex.split, examples):
        assert program == "ticketapi"
        ticketapi.check_flags(arguments)
        assert ticketapi.build_parser().parse_args(arguments).words in ticketapi.RUN


@pytest.mark.parametrize("width", [50, 80, 200])
@pytest.mark.parametrize("words", [[], ["token"], ["tickets"], ["audit"]])
def test_the_help_fits_the_terminal(run, monkeypatch, width, words):
    monkeypatch.setenv("COLUMNS", str(width))
    text, _, _ = help_of(run, *words).partition("\nexamples:\n")
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("environ", [{}, {"FORCE_COLOR": "1"}])
def test_the_help_has_no_colour_on_any_python(on_terminal, environ):
    for words in ((), ("tickets",)):
        lines = on_terminal(*words, "--help", **environ)
        assert "\x1b" not in "".join(lines)
        assert lines[0].startswith("usage: ticketapi ")


def test_the_help_of_a_group_names_what_it_begins(run):
    assert re.findall(r"^    (\w+)  ", help_of(run, "token"), re.MULTILINE) == ["create", "list", "revoke", "prune"]
    assert re.findall(r"^    (\w+)  ", help_of(run, "audit"), re.MULTILINE) == ["prune"]
    listed = re.findall(r"^    (\w+)(?:  |$)", help_of(run, "webhook"), re.MULTILINE)
    assert listed == ["create", "list", "delete", "test", "deliveries"]


@pytest.mark.parametrize("words", [[], ["token"], ["webhook"]])
def test_where_a_command_is_missing_the_help_goes_to_stderr_and_the_exit_code_is_2(run, tmp_path, words):
    shown = help_of(run, *words)
    assert run(*words) == (2, "", shown)
    assert list(tmp_path.iterdir()) == []


# What is mistyped --------------------------------------------------------------------------------


def mistypings(name):
    """Return a name with two letters swapped, one left out, and one doubled."""
    middle = len(name) // 2
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    return {swapped, name[:middle] + name[middle + 1 :], name[:middle] + name[middle - 1 :]} - {name}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_mistyped_command_is_guessed(run, tmp_path, words):
    *before, name = words.split()
    for mistyped in mistypings(name):
        assert_guessed(run(*before, mistyped), repr(mistyped), f"did you mean `{words}`?", "--help")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("sevre", "'sevre' is no command; did you mean `serve`? (see ticketapi --help)"),
        ("token craete", "'craete' is no command of token; did you mean `token create`? (see ticketapi token --help)"),
        ("ticket", "'ticket' is no command; did you mean `tickets`? (see ticketapi --help)"),
        ("tokens list", "'tokens' is no command; did you mean `token`? (see ticketapi --help)"),
        ("create", "'create' is no command; did you mean `token create` or `webhook create`? (see ticketapi --help)"),
        ("prune", "'prune' is no command; did you mean `token prune` or `audit prune`? (see ticketapi --help)"),
        ("audit prnue", "'prnue' is no command of audit; did you mean `audit prune`? (see ticketapi audit --help)"),
        ("xyzzy", "'xyzzy' is no command (see ticketapi --help)"),
        ("token xyzzy", "'xyzzy' is no command of token (see ticketapi token --help)"),
        ("generate --cuont 3", "generate has no option --cuont; did you mean `--count`? (see ticketapi generate --help)"),
        ("generate --cuont=3", "generate has no option --cuont; did you mean `--count`? (see ticketapi generate --help)"),
        ("audit --limt 5", "audit has no option --limt; did you mean `--limit`? (see ticketapi audit --help)"),
        ("tickets --limt 5", "tickets has no option --limt; did you mean `--limit`? (see ticketapi tickets --help)"),
        ("token list --jsno", "token list has no option --jsno; did you mean `--json`? (see ticketapi token list --help)"),
        ("token list --name x", "token list has no option --name (see ticketapi token list --help)"),
        ("generate --port 3", "generate has no option --port (see ticketapi generate --help)"),
        ("--json stats", "--json stands after the command, as in: ticketapi COMMAND --json (see ticketapi --help)"),
        ("--db=x stats", "--db stands after the command, as in: ticketapi COMMAND --db (see ticketapi --help)"),
    ],
)
def test_the_answer_is_one_line_that_says_what_is_wrong_and_what_was_meant(run, arguments, expected):
    assert run(*arguments.split()) == (2, "", f"ticketapi: {expected}\n")


@pytest.mark.parametrize(("words", "flag"), FLAGS)
def test_a_mistyped_option_is_guessed(run, tmp_path, words, flag):
    for name in mistypings(flag[2:]):
        assert_guessed(run(*words.split(), f"--{name}=1"), f"{words} has no option --{name}", f"did you mean `{flag}`?")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "--user", "7", "--limit", "3", "--json"),
        ("audit", "--json", "prune", "--older-than", "90d"),
        ("token", "create", "--name", "--dashes and blanks"),
        ("token", "create", "--name=--dashes"),
        ("generate", "--count", "-1"),
        ("token", "revoke", "--", "--7"),
        ("--version",),
        ("serve", "--cuont", "--help"),
        (),
    ],
)
def test_what_is_not_mistyped_is_left_to_the_command(arguments):
    ticketapi.check_flags(arguments)


@pytest.mark.parametrize(
    "arguments", [["a\nb"], ["\x1b[31m"], ["token", "\u202e"], ["generate", "--\x1b[31m"], ["generate", "--\n=1"]]
)
def test_what_a_terminal_would_act_on_is_not_repeated(run, arguments):
    result = run(*arguments)
    assert_guessed(result)
    assert result[2].rstrip("\n").isprintable()
