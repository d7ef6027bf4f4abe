"""A desk in a few lines: what a course lets happen, first come first served, without a database."""

import hashlib
from collections import deque
from dataclasses import dataclass, field

import ticketapi

DAY = ticketapi.DAY * ticketapi.MICROSECONDS
HOUR = DAY // 24
NEW_YEAR = ticketapi.parse_time("2025-01-01T00:00:00.000000Z")  # a Wednesday


def weekday(moment):
    """Return the day of the week, Monday is 0."""
    return (moment // DAY + 3) % 7


def hour(moment):
    """Return the hour of the day, UTC."""
    return moment // HOUR % 24


@dataclass
class Replay:
    """What became of a desk."""

    arrivals: list = field(default_factory=list)
    closings: list = field(default_factory=list)  # (when the ticket came, when it was closed)
    backlog: dict = field(default_factory=dict)  # by the start of each hour, how many tickets are open
    chances: int = 0  # to close one
    digest: str = ""  # of all that happened

    @property
    def waits(self):
        """How long the tickets waited, in hours, sorted."""
        return sorted((closed - came) / HOUR for came, closed in self.closings)

    def at_noon(self, after=0):
        """Return the backlogs of weekdays at noon."""
        return [count for at, count in self.backlog.items() if at > after and hour(at) == 12 and weekday(at) < 5]


def replay(course, after, until, waiting=()):
    """Let a desk live on with the tickets that wait, given by when they came."""
    desk, opened = Replay(), deque(waiting)
    at, digest = after // HOUR * HOUR + HOUR, hashlib.sha256()
    for moment, arrives in course.happenings(after, until):
        digest.update(f"{moment}{'+' if arrives else '-'}\n".encode())
        while at <= moment:
            desk.backlog[at] = len(opened)
            at += HOUR
        if arrives:
            desk.arrivals.append(moment)
            opened.append(moment)
            continue
        desk.chances += 1
        if opened and course.due(opened[0]) <= moment:
            desk.closings.append((opened.popleft(), moment))
    desk.digest = digest.hexdigest()
    return desk
