"""Long proofs stand in a folder of their own, which the default run leaves out and CI runs."""

import re

from conftest import PROOFS, ROOT

FILES = sorted((ROOT / "tests").rglob("test_*.py"))
OTHERS = [path for path in FILES if PROOFS not in path.parents]


def test_every_file_of_tests_stands_in_a_folder_and_some_are_proofs():
    assert {path.parent.parent for path in FILES} == {ROOT / "tests"}
    assert 0 < len(OTHERS) < len(FILES)


def test_what_runs_is_a_proof_where_it_stands_in_their_folder_and_nowhere_else(request):
    wrong = [item for item in request.session.items if (PROOFS in item.path.parents) != bool(item.get_closest_marker("proof"))]
    assert wrong == []


def test_no_other_file_has_a_proof_or_a_browser():
    assert [path for path in OTHERS if re.search(r"mark\.proof\b|def .*\bbrowser\b", path.read_text())] == []


def test_the_default_run_leaves_the_proofs_out_and_ci_runs_them():
    assert "-m 'not proof'" in (ROOT / "pyproject.toml").read_text()
    assert ".venv/bin/pytest -q -m proof " in (ROOT / ".ci/run").read_text()
