"""A line of the log stays a line: what cannot be logged is lost, and of a traceback the places alone are told."""

import subprocess
import sys

import pytest

import ticketapi

SCRIPT = """
import io, sys, ticketapi
class Stream(io.StringIO):
    failures = int(sys.argv[1])
    def write(self, text):
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        return super().write(text)
sys.stderr = Stream()
ticketapi.configure_log("info")
for number in range(4):
    ticketapi.log.info("line %d", number)
    ticketapi.log.info("no number: %d", "x")
try:
    raise RuntimeError("two\\nlines")
except RuntimeError as error:
    ticketapi.log.error("failed", exc_info=error)
print(sys.stderr.getvalue(), end="")
"""


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_line_that_cannot_be_written_is_missing_and_that_is_all(failures):
    command = [sys.executable, "-c", SCRIPT, str(failures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert lines == [f"INFO ticketapi: line {number}" for number in range(failures, 4)]
    assert last.startswith("ERROR ticketapi: failed | RuntimeError: two | lines | <string>:")


def outer():
    """Fail further in."""
    inner()


def inner():
    """Fail."""
    raise ValueError("two\nlines")


def test_of_a_traceback_the_error_and_its_places_are_told_the_innermost_first():
    with pytest.raises(ValueError) as caught:
        outer()
    told = ticketapi.OneLine().formatException((caught.type, caught.value, caught.tb)).splitlines()
    innermost_first = reversed(list(caught.traceback))
    places = [f"{__file__}:{entry.lineno + 1} in {entry.name}" for entry in innermost_first]
    assert [place.rpartition(" ")[2] for place in places][:2] == ["inner", "outer"]
    assert told == ["ValueError: two", "lines", *places]
