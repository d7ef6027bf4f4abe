"""One version, one list of dependencies, a zipapp that needs nothing but Python, and a program that starts without detours."""

import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from importlib.metadata import metadata, requires

import pytest
from conftest import ROOT, WITHOUT_PRIVILEGES, Served

import ticketapi

SOURCE = (ROOT / "ticketapi.py").read_text()
OWN_FILES = (
    "ticketapi.py",
    "schema.sql",
    "openapi.json",
    "vocabulary.json",
    "profiles.json",
    "dashboard.html",
    "docs.html",
    "page.js",
    "LICENSE",
)
BUILD = ROOT / "packaging" / "build_zipapp.py"


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory):
    """The zipapp, built as the manual says."""
    target = tmp_path_factory.mktemp("dist") / "ticketapi.pyz"
    subprocess.run([sys.executable, BUILD, target], check=True, capture_output=True)
    return target


def bare(zipapp):
    """Return how to run the zipapp with a Python that knows no other package."""
    return (sys.executable, "-I", "-S", str(zipapp))


def project_table():
    """Return pyproject.toml's dependencies and Python version, read without a TOML parser for Python 3.10."""
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = re.search(r"^dependencies = \[(.*)\]$", text, re.MULTILINE)[1]
    return re.findall(r'"([^"]+)"', dependencies), re.search(r'^requires-python = "(.*)"$', text, re.MULTILINE)[1]


def test_the_inline_metadata_equals_the_project():
    block = re.search(r"^# /// script\n(.*?)^# ///\n", SOURCE, re.MULTILINE | re.DOTALL)[1]
    dependencies, python = project_table()
    assert re.findall(r'"([^"]+)"', re.search(r"dependencies = \[(.*)\]", block)[1]) == dependencies
    assert re.search(r'requires-python = "(.*)"', block)[1] == python


def test_the_installed_package_has_the_version_and_dependencies_of_the_sources():
    assert metadata("ticketapi")["Version"] == ticketapi.__version__
    runtime = {re.split(r"[<>=!~ ]", line)[0] for line in requires("ticketapi") if "extra ==" not in line}
    assert runtime == {"bottle", "waitress"}


def test_the_version_stands_in_one_place():
    assert SOURCE.count(f'"{ticketapi.__version__}"') == 1
    assert ticketapi.__version__ not in (ROOT / "pyproject.toml").read_text()


def pinned_packages():
    """Return the versions that the zipapp bundles, by name."""
    text = (BUILD.parent / "requirements.txt").read_text()
    return dict(re.findall(r"^(\w+)==([\d.]+) --hash=sha256:[0-9a-f]{64}$", text, re.M))


def test_the_pinned_packages_satisfy_the_project():
    dependencies, _ = project_table()
    pinned = pinned_packages()
    for name, lowest in (dependency.partition(",")[0].split(">=") for dependency in dependencies):
        assert [int(part) for part in pinned.pop(name).split(".")] >= [int(part) for part in lowest.split(".")]
    assert not pinned


def test_what_the_zipapp_bundles_has_no_known_problem():
    assert {name: ticketapi.judge_package(name, version).level for name, version in pinned_packages().items()} == {
        "bottle": "ok",
        "waitress": "ok",
    }


def test_the_same_python_builds_the_same_zipapp_byte_for_byte_whoever_builds_it_and_where(zipapp, tmp_path):
    sources, temporary, again = tmp_path / "sources", tmp_path / "temporary", tmp_path / "elsewhere" / "again.pyz"
    shutil.copytree(BUILD.parent, sources / "packaging")
    for name in OWN_FILES:
        shutil.copy(ROOT / name, sources)
    temporary.mkdir()
    environment = {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "PYTHONOPTIMIZE": "2", "LC_ALL": "C", "TMPDIR": str(temporary)}
    script = f"umask 077; exec {sys.executable} packaging/build_zipapp.py {again}"
    subprocess.run(["sh", "-c", script], check=True, cwd=sources, env=os.environ | environment, capture_output=True)
    assert again.read_bytes() == zipapp.read_bytes()
    assert os.access(again, os.X_OK)
    assert str(tmp_path).encode() not in again.read_bytes()


def test_the_zipapp_holds_the_packages_and_all_licences(zipapp):
    names = zipfile.ZipFile(zipapp).namelist()
    assert {*OWN_FILES, "bottle.py", "waitress/__init__.py"} <= set(names)
    licences = [name for name in names if re.search(r"(bottle|waitress)-.*/LICEN[CS]E(\.txt)?$", name)]
    assert len(licences) == 2


def test_the_zipapp_runs_read_only_without_home_or_packages(zipapp, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    shutil.copy(zipapp, folder / "ticketapi.pyz")
    folder.chmod(0o555)
    desk = tmp_path / "desk.db"
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    command = [*WITHOUT_PRIVILEGES, *bare(folder / "ticketapi.pyz"), "generate", "--count", "3", "--db", desk]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Generated 3 tickets\n", "")
    assert list(folder.iterdir()) == [folder / "ticketapi.pyz"]


def test_the_zipapp_serves(zipapp, tmp_path):
    served = Served("--demo", "--generate-every", "1d", cwd=tmp_path, program=bare(zipapp))
    try:
        assert served.get("/up").json == {"status": "up"}
        token = subprocess.run(
            [*bare(zipapp), "token", "create"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        assert served.get("/api/stats", token.strip()).json["total_tickets"] == ticketapi.DEMO_TICKETS
    finally:
        code, _, err = served.stop()
    assert code == 0
    assert "Traceback" not in err


# Bytecode: for the Python that built it, the sources for all others -------------------------------

MODULES = "bottle", "ticketapi", "waitress.server"


def changed(zipapp, target, change):
    """Write a copy of the zipapp whose files a function of name and content has changed, and return its path."""
    with zipfile.ZipFile(zipapp) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, change(entry.filename, old.read(entry)))
    return target


def for_another_python(name, content):
    """Return a file as another Python sees it: the magic number of bytecode says nothing to it."""
    return b"\x00\x00" + content[2:] if name.endswith(".pyc") else content


def inside(zipapp, code):
    """Run code with the zipapp's modules alone and return what it prints."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(zipapp)!r})\n{code}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loaded_files(zipapp):
    """Return which files of the zipapp its modules are loaded from."""
    code = f"for name in {MODULES}: __import__(name); print(sys.modules[name].__file__)"
    return inside(zipapp, code).replace(f"{zipapp}/", "").split()


def generated(zipapp, desk):
    """Return the tickets that the zipapp generates from one seed."""
    subprocess.run([*bare(zipapp), "generate", "--seed", "5", "--count", "30", "--db", desk], check=True, capture_output=True)
    with closing(sqlite3.connect(desk)) as db:
        return db.execute("SELECT user_id, subject, content FROM tickets ORDER BY id").fetchall()


def test_every_module_of_the_zipapp_has_bytecode_that_is_checked_against_its_source_by_hash(zipapp):
    with zipfile.ZipFile(zipapp) as archive:
        names = archive.namelist()
        heads = {name: archive.read(name)[:16] for name in names if name.endswith(".pyc")}
        sources = {f"{name}c": archive.read(name) for name in names if name.endswith(".py")}
    flags = (0b11).to_bytes(4, "little")
    assert heads == {
        name: importlib.util.MAGIC_NUMBER + flags + importlib.util.source_hash(source) for name, source in sources.items()
    }


def test_the_python_that_built_the_zipapp_runs_its_bytecode(zipapp):
    assert loaded_files(zipapp) == ["bottle.pyc", "ticketapi.pyc", "waitress/server.pyc"]


def test_any_other_python_runs_the_zipapp_from_source_and_generates_the_same_tickets(zipapp, tmp_path):
    other = changed(zipapp, tmp_path / "other.pyz", for_another_python)
    assert loaded_files(other) == ["bottle.py", "ticketapi.py", "waitress/server.py"]
    tickets = generated(other, tmp_path / "other.db")
    assert len(tickets) == 30
    assert tickets == generated(zipapp, tmp_path / "own.db")


def test_a_source_that_was_changed_inside_the_zipapp_wins_over_its_bytecode(zipapp, tmp_path):
    version = f'__version__ = "{ticketapi.__version__}"'.encode()
    patched = changed(zipapp, tmp_path / "patched.pyz", lambda _, content: content.replace(version, b'__version__ = "9.9.9"'))
    done = subprocess.run([*bare(patched), "--version"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("ticketapi 9.9.9\n", "")


LOGGED = """
import logging, ticketapi
logging.basicConfig(stream=sys.stdout)
try:
    {call}
except ValueError:
    logging.exception("failed")
"""


@pytest.mark.parametrize(
    ("call", "file", "line"),
    [
        ("ticketapi.parse_day('never')", "ticketapi.pyz/ticketapi.py", 'return timegm(time.strptime(text, "%Y-%m-%d"))'),
        ("ticketapi.bottle.Bottle().mount('', print)", "ticketapi.pyz/bottle.py", "raise ValueError("),
    ],
)
def test_a_traceback_in_the_log_names_the_files_of_the_zipapp_and_shows_their_lines(zipapp, call, file, line):
    log = inside(zipapp, LOGGED.format(call=call))
    assert re.search(rf'File "{re.escape(file)}", line [0-9]+, in \w+\n +{re.escape(line)}', log)


# The start: each way to run the program loads it once, and finds its files ------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    listed = re.search(r"^only-include = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    for name in re.findall(r'"([^"]+)"', listed):
        shutil.copy(ROOT / name, folder)
    return folder


CALL = "import sys; from ticketapi import main; sys.exit(main())"  # what an installed command does
STARTS = {  # how to start, from which folder, and how often the module is then imported
    "script": (["-I", "-S", ROOT / "ticketapi.py"], None, 0),
    "script with its packages": ([ROOT / "ticketapi.py"], None, 0),
    "script here": (["./ticketapi.py"], ROOT, 0),
    "module": (["-m", "ticketapi"], ROOT, 0),
    "editable": (["-c", CALL], None, 1),
    "installed": (["-S", "-c", CALL], "installed", 1),
    "zipapp": (["-I", "-S", "ticketapi.pyz"], "zipapp", 1),
    "zipapp here": (["-I", "-S", "./ticketapi.pyz"], "zipapp", 1),
}


@pytest.mark.parametrize("start", STARTS)
def test_however_it_is_started_the_program_is_loaded_once_and_finds_its_files(start, zipapp, installed, tmp_path):
    words, where, imports = STARTS[start]
    folder = {"installed": installed, "zipapp": zipapp.parent}.get(where, where or tmp_path)
    command = [sys.executable, "-v", *words, "generate", "--count", "1", "--db", tmp_path / "desk.db"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Generated 1 ticket\n")
    imported = re.findall(r"^import '(\w+)' # ", done.stderr, re.MULTILINE)
    assert (imported.count("sqlite3"), imported.count("ticketapi")) == (1, imports)
    assert not {"http", "email", "waitress"} & set(imported)  # Bottle imports the first two, where it is loaded


def test_the_build_explains_a_wrong_call():
    done = subprocess.run([sys.executable, BUILD], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "usage: python3 packaging/build_zipapp.py dist/ticketapi.pyz\n"


def test_without_its_packages_serve_says_what_to_install(tmp_path):
    command = [sys.executable, "-I", "-S", ROOT / "ticketapi.py", "serve"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"ticketapi: serve needs the packages bottle and waitress: .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_beside_the_program_is_named(tmp_path):
    shutil.copy(ROOT / "ticketapi.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "ticketapi.py", "generate"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ticketapi: schema.sql is missing beside ticketapi.py; install ticketapi again\n"
