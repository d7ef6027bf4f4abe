"""Times are UTC text with six decimals, the settings hold every default, and every failure has a kind."""

import time
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ticketapi

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
LAST_MOMENT = 253_402_300_799_999_999  # the end of the year 9999
moments = st.integers(0, LAST_MOMENT)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (1_764_847_816_000_000, "2025-12-04T11:30:16.000000Z"),
        (1_709_251_199_999_999, "2024-02-29T23:59:59.999999Z"),
        (LAST_MOMENT, "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_is_written_in_utc_with_six_decimals(moment, text):
    assert ticketapi.format_time(moment) == text
    assert ticketapi.parse_time(text) == moment


@given(moments)
def test_a_written_time_is_read_back_to_the_microsecond(moment):
    assert ticketapi.parse_time(ticketapi.format_time(moment)) == moment


@given(moments)
def test_a_written_time_is_what_the_standard_library_says(moment):
    expected = (EPOCH + timedelta(microseconds=moment)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert ticketapi.format_time(moment) == expected.rjust(27, "0")


@given(moments, moments)
def test_written_times_sort_as_the_moments_do(one, other):
    assert (ticketapi.format_time(one) < ticketapi.format_time(other)) == (one < other)


def test_the_clock_tells_microseconds_since_1970_and_monotonic_seconds():
    clock = ticketapi.Clock()
    before, tick = time.time_ns() // 1000, time.monotonic()
    assert before <= clock.wall() <= time.time_ns() // 1000
    assert tick <= clock.monotonic() <= time.monotonic()


@pytest.mark.parametrize(
    ("desk", "audit"),
    [
        ("ticketapi.db", "ticketapi-audit.db"),
        ("/var/lib/desk/ticketapi.db", "/var/lib/desk/ticketapi-audit.db"),
        ("desk", "desk-audit"),
        ("my.desk.sqlite3", "my.desk-audit.sqlite3"),
        ("desk.d/file.db", "desk.d/file-audit.db"),
        ("with space.db", "with space-audit.db"),
    ],
)
def test_the_audit_log_lies_beside_the_desk(desk, audit):
    assert ticketapi.Settings(db=Path(desk)).audit_db == Path(audit)


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        ticketapi.Settings().rate = 1


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("db", Path("ticketapi.db")),
        ("host", "127.0.0.1"),
        ("port", 8000),
        ("rate", 30),
        ("no_scheduler", False),
        ("generate_every", 60),
        ("process_every", 300),
        ("cors_origin", ("*",)),
        ("count", 1),
        ("ability", ("read:tickets",)),
        ("expires", 0),
    ],
)
def test_the_defaults_are_those_of_the_contract(name, default):
    assert getattr(ticketapi.Settings(), name) == default


@pytest.mark.parametrize(
    ("error", "exit_code", "status"),
    [
        (ticketapi.TicketApiError("x"), 1, 500),
        (ticketapi.UsageError("x"), 2, 500),
        (ticketapi.DeskBusy("x"), 1, 503),
        (ticketapi.DiskFull("x"), 1, 503),
        (ticketapi.NotFound("x"), 1, 404),
        (ticketapi.BadRequest("x"), 1, 400),
        (ticketapi.InvalidFields({"page": ["x"]}), 1, 422),
    ],
)
def test_every_kind_of_failure_has_an_exit_code_and_a_status(error, exit_code, status):
    assert isinstance(error, ticketapi.TicketApiError)
    assert (str(error), error.exit_code, error.status) == ("x", exit_code, status)


@pytest.mark.parametrize(
    ("errors", "summary"),
    [
        ({"page": ["First."]}, "First."),
        ({"page": ["First."], "per_page": ["Second."]}, "First. (and 1 more error)"),
        ({"page": ["First.", "Second."], "per_page": ["Third."]}, "First. (and 2 more errors)"),
    ],
)
def test_invalid_fields_are_summed_up_as_laravel_does(errors, summary):
    error = ticketapi.InvalidFields(errors)
    assert str(error) == summary
    assert error.errors == errors


@given(st.integers(-(10**18) + 1, 10**18 - 1), st.text("0", max_size=30), st.booleans())
def test_a_whole_number_is_read_whatever_zeros_stand_before_it(number, zeros, plus):
    sign = "-" if number < 0 else "+" * plus
    assert ticketapi.whole_number(f"{sign}{zeros}{abs(number)}") == number


@pytest.mark.parametrize(
    "text", ["", " ", "-", "+", "abc", "1.5", "1e3", "0x10", "1_000", "1 2", "--1", "٣", "³", "½", "7\x00", "NaN"]
)
def test_what_is_no_whole_number_is_told_apart(text):
    assert ticketapi.whole_number(text) is None


@pytest.mark.parametrize("text", ["1" + "0" * 19, "9" * 25, "1" + "0" * 5000, "+" + "7" * 5000])
def test_a_whole_number_of_any_length_is_only_large(text):
    assert ticketapi.whole_number(text) == 10**19
    assert ticketapi.whole_number("-" + text.lstrip("+")) == -(10**19)


@pytest.mark.parametrize("text", ["0" * 16_000 + "x", "9" * 16_000 + "x", " " * 16_000 + "x"])
def test_reading_a_whole_number_takes_no_time_to_speak_of(text):
    begun = time.process_time()
    assert ticketapi.whole_number(text) is None
    assert time.process_time() - begun < 0.5
