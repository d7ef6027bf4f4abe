"""serve --profile takes a name or a file; whatever is wrong with either is told in one line."""

import json
import os

import pytest

import ticketapi

PARSER = ticketapi.build_parser()


def settings(*arguments, **environ):
    """Return the settings of a server."""
    return ticketapi.resolve_settings(PARSER.parse_args(["serve", *arguments]), environ)


@pytest.fixture
def shop(tmp_path):
    """A function that writes a file and returns its path."""

    def write(content):
        path = tmp_path / "shop.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    return write


def test_without_it_there_is_none():
    assert settings().profile is None


@pytest.mark.parametrize("name", ["steady", "office", "busy", "incident"])
def test_a_name_is_a_profile_that_comes_along(name):
    assert settings("--profile", name).profile == ticketapi.find_profile(name)
    assert settings(TICKETAPI_PROFILE=name).profile == ticketapi.find_profile(name)


def test_the_option_wins_over_the_variable():
    assert settings("--profile", "busy", TICKETAPI_PROFILE="office").profile == ticketapi.find_profile("busy")


def test_a_file_is_read(shop):
    data = {"tickets_a_day": 40, "growth": -2.5}
    assert settings("--profile", shop(data)).profile == ticketapi.read_profile(data)
    assert settings(TICKETAPI_PROFILE=shop(data)).profile == ticketapi.read_profile(data)


def refusal(*arguments, **environ):
    """Return the line with which a server does not start."""
    with pytest.raises(ticketapi.UsageError) as caught:
        settings(*arguments, **environ)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("name", ["offce", "", "Office", "shop.yaml", "office.json/", " office"])
def test_a_name_that_is_none_is_refused_with_those_that_there_are(name):
    told = f"{name!r} is no profile; write steady, office, busy or incident, or a file that ends in .json"
    assert refusal("--profile", name) == f"--profile: {told}"
    if name:
        assert refusal(TICKETAPI_PROFILE=name) == f"TICKETAPI_PROFILE: {told}"


BAD = {
    "not JSON": (b"{", "Expecting property name"),
    "empty": (b"", "Expecting value"),
    "not UTF-8": (b'{"\xff": 1}', "'utf-8' codec can't decode byte 0xff"),
    "nested too deep": (b"[" * 60_000, ""),
    "too large": (b" " * 64_000 + b"{}", "larger than 64 kB"),
    "a number of a thousand digits": (b'{"growth": ' + b"9" * 1000 + b"}", "growth must be a number from -100 to 1000"),
    "not a number": (b'{"growth": NaN}', "growth must be a number from -100 to 1000"),
    "a wrong field": (b'{"team": "ten"}', "team must be a number from 0 to 1000000"),
    "an unknown field": (b'{"teem": 10}', "'teem' is no field; did you mean `team`?"),
    "a list": (b"[]", "must be an object of fields"),
    "nothing": (b"null", "must be an object of fields"),
}


@pytest.mark.parametrize(("content", "told"), BAD.values(), ids=BAD)
def test_a_file_that_holds_no_profile_is_refused_by_its_name(shop, content, told):
    path = shop(content)
    assert refusal("--profile", path).startswith(f"--profile: {path}: {told}")


def test_a_file_of_64_kb_is_read(shop):
    assert settings("--profile", shop(b"{}".rjust(64_000))).profile == ticketapi.find_profile("office")


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    (tmp_path / "folder.json").mkdir()
    assert refusal("--profile", f"{tmp_path}/none.json") == f"--profile: {tmp_path}/none.json: No such file or directory"
    assert refusal("--profile", f"{tmp_path}/folder.json") == f"--profile: {tmp_path}/folder.json: Is a directory"


def test_no_traceback_and_exit_code_2(run):
    code, out, err = run("serve", "--profile", "none.json")
    assert (code, out) == (2, "")
    assert err.strip() == "ticketapi: --profile: none.json: No such file or directory"
    assert os.listdir() == []
