"""One version, one list of dependencies, and a zipapp that is the same everywhere and needs nothing but Python."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import metadata, requires

import pytest
from conftest import ROOT, WITHOUT_PRIVILEGES, Served

import ticketapi

SOURCE = (ROOT / "ticketapi.py").read_text()
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
    for name, lowest in (dependency.split(">=") for dependency in dependencies):
        assert [int(part) for part in pinned.pop(name).split(".")] >= [int(part) for part in lowest.split(".")]
    assert not pinned


def test_what_the_zipapp_bundles_has_no_known_problem():
    assert {name: ticketapi.judge_package(name, version).level for name, version in pinned_packages().items()} == {
        "bottle": "ok",
        "waitress": "ok",
    }


def test_the_zipapp_is_the_same_byte_for_byte_whoever_builds_it(zipapp, tmp_path):
    again = tmp_path / "elsewhere" / "again.pyz"
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "LC_ALL": "C", "TMPDIR": str(tmp_path)}
    subprocess.run(
        ["sh", "-c", f"umask 077; exec {sys.executable} {BUILD} {again}"], check=True, env=environment, capture_output=True
    )
    assert again.read_bytes() == zipapp.read_bytes()
    assert os.access(again, os.X_OK)


def test_the_zipapp_holds_the_packages_and_all_licences(zipapp):
    names = zipfile.ZipFile(zipapp).namelist()
    own = {"ticketapi.py", "schema.sql", "openapi.json", "vocabulary.json", "dashboard.html", "docs.html", "page.js", "LICENSE"}
    assert own | {"bottle.py", "waitress/__init__.py"} <= set(names)
    licences = [name for name in names if re.search(r"(bottle|waitress)-.*/LICEN[CS]E(\.txt)?$", name)]
    assert len(licences) == 2


def changed(zipapp, target, change):
    """Write a copy of the zipapp in which a function of name and bytes may have changed each file."""
    with zipfile.ZipFile(zipapp) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            copy.writestr(entry, change(entry.filename, source.read(entry)))
    return target


def test_every_module_of_the_zipapp_has_its_bytecode_beside_it(zipapp):
    names = set(zipfile.ZipFile(zipapp).namelist())
    sources = {name for name in names if name.endswith(".py")}
    assert {"ticketapi.py", "bottle.py", "waitress/server.py", "__main__.py"} <= sources
    assert {name for name in names if name.endswith(".pyc")} == {f"{name}c" for name in sources}


def test_the_python_that_built_the_zipapp_compiles_nothing(zipapp, tmp_path):
    broken = changed(zipapp, tmp_path / "broken.pyz", lambda name, data: b"1 +" if name.endswith(".py") else data)
    served = Served("--generate-every", "1d", cwd=tmp_path, program=bare(broken))
    assert served.get("/up").status == 200
    assert served.stop()[0] == 0


def test_another_python_runs_the_zipapp_from_its_source(zipapp, tmp_path):
    def foreign(name, data):
        return b"\0\0" + data[2:] if name.endswith(".pyc") else data  # the magic number, which each version has its own of

    other = changed(zipapp, tmp_path / "other.pyz", foreign)
    served = Served("--generate-every", "1d", cwd=tmp_path, program=bare(other))
    assert served.get("/up").status == 200
    assert served.stop()[0] == 0


def test_a_traceback_from_the_zipapp_names_its_files_and_shows_their_lines(zipapp, tmp_path):
    script = """if True:
        import logging, sys
        sys.path.insert(0, sys.argv[1])
        import ticketapi
        try:
            ticketapi.parse_day("x")
        except ValueError:
            logging.exception("as the server's log would have it")
    """
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script, zipapp], capture_output=True, text=True)
    assert 'File "ticketapi.pyz/ticketapi.py", line ' in done.stderr
    assert 'return timegm(time.strptime(text, "%Y-%m-%d"))' in done.stderr


def test_the_script_is_loaded_once_and_finds_its_files_by_itself(tmp_path):
    """Under -I its folder is not in the search path; -v tells of every module that is loaded."""
    desk = tmp_path / "desk.db"
    command = [sys.executable, "-I", "-S", "-v", ROOT / "ticketapi.py", "generate", "--count", "1", "--db", desk]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Generated 1 ticket\n"), done.stderr[-500:]
    assert "import 'sqlite3'" in done.stderr
    assert "import 'ticketapi'" not in done.stderr


def test_a_resource_that_is_missing_is_named(tmp_path):
    shutil.copy(ROOT / "ticketapi.py", tmp_path)
    command = [sys.executable, "-I", "-S", "ticketapi.py", "generate"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ticketapi: schema.sql is missing beside ticketapi.py; install ticketapi again\n"


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
