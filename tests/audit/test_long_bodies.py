"""Of a long body the audit log reads no more than it keeps: the start, completed, with its secrets redacted."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ticketapi
from ticketapi import CUT_AUDIT, MAX_AUDIT_BYTES, REDACTED

SECRET = "hunter2-hunter2"
TOKEN = ticketapi.new_token_text()


def kept(body):
    """Return what the log keeps of a JSON body, as text."""
    return ticketapi.audit_payload(ticketapi.parse_body(body.encode(), "application/json"))


@pytest.mark.parametrize(
    "body",
    [
        "[" + "0," * 5000 + "0]",
        "{" + ",".join(f'"k{n}":{{"a":[{n}]}}' for n in range(900)) + "}",
        '{"content":"' + "x" * 9000 + '"}',
        '{"a":1,"content":"' + "x\\n" * 9000 + '"}',
        '["' + "\\u202e" * 5000 + '"]',
        '"' + "\\\\" * 9000 + '"',
        '[{"a":"b,]}[{"},' + '"c,d",' * 2000 + "1]",
    ],
)
def test_the_start_is_there_and_said_to_be_truncated(body):
    text = kept(body)
    assert len(text.encode()) <= MAX_AUDIT_BYTES
    document = json.loads(text)
    assert list(document) == ["truncated"]
    assert "unreadable" not in text


def test_what_is_short_is_read_whole_and_one_character_more_is_not():
    assert ticketapi.parse_body(b'["' + b"x" * (CUT_AUDIT - 4) + b'"]', "") == ["x" * (CUT_AUDIT - 4)]
    found = ticketapi.parse_body(b'["' + b"x" * (CUT_AUDIT - 3) + b'"]', "")
    assert found == {"truncated": ["x" * (CUT_AUDIT - 3)]}


@pytest.mark.parametrize("room", range(-60, 12))
def test_no_secret_and_no_token_survives_the_cut_wherever_it_falls(room):
    for secret, body in (
        (SECRET, '{{"a":"{0}","password":"{1}","b":"{2}"}}'),
        (SECRET, '{{"a":"{0}","api_key":{{"x":["{1}"]}},"b":"{2}"}}'),
        (TOKEN, '{{"a":"{0}","note":"see {1} there","b":"{2}"}}'),
    ):
        text = kept(body.format(" " * (CUT_AUDIT + room), secret, "y" * 9000)) + kept(
            body.format("", secret, "y" * 9000).replace('"a"', " " * (CUT_AUDIT + room) + '"a"')
        )
        assert secret[:12] not in text, room


def test_the_values_of_secret_keys_in_the_start_are_redacted():
    text = kept('{"password":"' + SECRET + '","nested":{"Token":["' + SECRET + '"]},"rest":"' + "z" * 9000 + '"}')
    assert SECRET not in text
    assert text.count(REDACTED) >= 2


@pytest.mark.parametrize("body", ["{" * 9000, "]" * 9000, "{,}" * 3000, "nonsense" * 1000, '{"a" "b",' * 1000, "\x00" * 9000])
def test_what_is_no_json_is_described(body):
    assert json.loads(kept(body)).keys() == {"unreadable"}


SCALARS = st.text(max_size=40) | st.integers() | st.none()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
def test_any_json_that_is_long_enough_is_read_or_described(value):
    body = json.dumps({"a": value, "pad": [value] * 20, "end": "x" * CUT_AUDIT})
    text = kept(body)
    assert list(json.loads(text)) in (["truncated"], ["unreadable"])
    assert len(text.encode()) <= MAX_AUDIT_BYTES
