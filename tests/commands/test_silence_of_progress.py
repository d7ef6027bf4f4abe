"""What a progress has to say, a count or a note, it says from the first second on, on a terminal alone, and takes it away."""

import io

import pytest
from conftest import HandClock

import ticketapi

ERASE = "\r\x1b[K"
SAYINGS = {"count": lambda progress: progress(1), "note": lambda progress: progress.note("looking\nat it")}


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def said(saying, seconds, stream):
    """Return what a progress writes when it has something to say after so many seconds."""
    clock = HandClock(tick=0.0)
    with ticketapi.Progress(10, stream, clock.monotonic) as progress:
        clock.tick = seconds
        SAYINGS[saying](progress)
    return stream.getvalue()


@pytest.mark.parametrize("saying", SAYINGS)
def test_it_is_silent_before_the_first_second_is_over_and_not_after(saying):
    for seconds in (0.0, 0.5, 0.999):
        assert said(saying, seconds, Terminal()) == ""
    for seconds in (1.0, 1.001, 1.5, 100.0):
        before, shown, after = said(saying, seconds, Terminal()).split(ERASE)
        assert (before, after) == ("", "")
        assert shown.isprintable()
        assert shown
    assert said(saying, 100.0, io.StringIO()) == ""
