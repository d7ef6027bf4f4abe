"""serve --faults FILE: what goes wrong from the first request on, and what is said of a file that makes no sense."""

import json
import os
import subprocess
import sys
from contextlib import closing

import pytest

import ticketapi

RULE = {"route": "stats", "status": 502}


@pytest.fixture
def token(tmp_path):
    """The text of a token that may read tickets, on the desk in the folder of the test."""
    with closing(ticketapi.open_database(tmp_path / "ticketapi.db", "desk")) as db:
        return ticketapi.create_token(db, "a@example.com", "t", ["read:tickets"], 0, ticketapi.wall_microseconds())["token"]


def write(folder, *rules, **more):
    """Write a file of faults."""
    path = folder / "faults.json"
    path.write_text(json.dumps({"faults": list(rules), **more}))
    return path


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_server_begins_with_the_faults_of_a_file_and_no_token_needs_an_ability_for_it(serve, tmp_path, token, threads):
    served = serve("--faults", write(tmp_path, {**RULE, "first": 2}, seed=7), "--no-scheduler", "--threads", threads)
    assert served.get("/up").json == {"status": "up", "faults": 1}
    assert [served.get("/api/stats", token).status for _ in range(3)] == [502, 502, 200]
    assert served.get("/up").body == b'{"status":"up"}'
    assert served.get("/api/faults", token).status == 403
    code, _, err = served.stop()
    assert code == 0
    assert "Requests go wrong as" in err
    assert "faults.json says, by 1 rule\n" in err


def test_the_variable_does_the_same_and_the_next_server_has_none(serve, tmp_path, token):
    served = serve("--no-scheduler", env={"TICKETAPI_FAULTS": str(write(tmp_path, RULE))})
    assert served.get("/api/stats", token).status == 502
    served.stop()
    assert serve("--no-scheduler").get("/api/stats", token).status == 200


def refused(folder, path, **more):
    """Start a server that is to end at once; return its exit code and what it says, and check that it has made no desk."""
    command = [sys.executable, "-m", "ticketapi", "serve", "--port", "0", "--no-scheduler", "--db", "none.db", "--faults", path]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, **more)
    assert done.stdout == ""
    assert not (folder / "none.db").exists()
    return done.returncode, done.stderr


MANY = {"route": "*", "status": 503, "shere": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The file (64 KiB at most) must be a JSON object."),
        ("[]", "The file (64 KiB at most) must be a JSON object."),
        ('{"faults": [], "faults": []}', "The file (64 KiB at most) has the field faults twice."),
        ("{}", "The faults field must be an array of at most 100 rules."),
        ('{"faults": [{"route": "stats", "status": 5}]}', "The faults.0.status field must be an integer between 400 and 599."),
        (
            json.dumps({"faults": [{"route": "*", "status": 503, "share": 2}]}),
            "The faults.0.share field must be a number between 0 and 1.",
        ),
        (
            json.dumps({"faults": [RULE, {"route": "*"}, {}]}),
            "The faults.1 field must have a status (with it retry_after), latency or",
        ),
        (json.dumps({"faults": [], "x": "y" * 65536}), "The file (64 KiB at most) must be a JSON object."),
        ("\ud800".encode("utf-8", "surrogatepass"), "The file (64 KiB at most) must be a JSON object."),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line_that_names_it_and_the_field(tmp_path, text, said):
    (tmp_path / "my faults.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, err = refused(tmp_path, "my faults.json")
    assert code == 1
    assert err.startswith(f"ticketapi: --faults my faults.json: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("path", "said"), [("none.json", "No such file or directory"), (".", "Is a directory")])
def test_so_is_a_file_that_cannot_be_read(tmp_path, path, said):
    assert refused(tmp_path, path) == (1, f"ticketapi: --faults {path}: {said}\n")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a file without end")
def test_a_file_without_end_is_let_go_of(tmp_path):
    code, err = refused(tmp_path, "/dev/zero")
    assert (code, err) == (1, "ticketapi: --faults /dev/zero: The file (64 KiB at most) must be a JSON object.\n")


def test_an_empty_name_is_a_wrong_option(tmp_path):
    assert refused(tmp_path, "")[0] == 2
