"""What schemathesis cannot know: how texts with a `format` of ours in openapi.json are written. Named in schemathesis.toml."""

import base64
import re
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import schemathesis
from hypothesis import strategies as st

import ticketapi

PLACE = re.compile(r"place ([np])([0-9]{1,18})")

places = st.builds("place {}{}".format, st.sampled_from("np"), st.integers(0, 10**18 - 1))
schemathesis.openapi.format("cursor", st.just("") | places)
statuses = st.integers(100, 599).map(str) | st.sampled_from(["1xx", "2XX", "4xx"])
durations = st.builds("{}{}".format, st.integers(0, 999), st.sampled_from("smhd"))
times = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)).map(lambda time: f"{time:%Y-%m-%dT%H:%M:%S}Z")
schemathesis.openapi.format("user", st.integers(1, 10**18).map(str) | st.just(ticketapi.OPERATOR_EMAIL))
schemathesis.openapi.format("status", statuses)
schemathesis.openapi.format("since", st.just("0") | durations | times)
ages = st.timedeltas(timedelta(minutes=1), timedelta(days=90))
recently = ages.map(lambda age: f"{datetime.now(timezone.utc) - age:%Y-%m-%dT%H:%M:%SZ}")
schemathesis.openapi.format("recent", st.builds("{}{}".format, st.integers(0, 90), st.sampled_from("smhd")) | recently)


def find_place(text):
    """Return the direction and key of a place, or of a cursor for any list; None for any other text."""
    padded = text + "=" * (-len(text) % 4)
    with suppress(ValueError):
        text = "place " + base64.b64decode(padded, b"-_", validate=True).decode("ascii").partition(".")[0]
    return PLACE.fullmatch(text)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Turn a place, or a cursor of another list, into the cursor that leads there in the list that is asked for.

    A cursor is good for one list, which no schema can say: a link to the next page may come with the id of another user.
    """
    cursor = case.query.get("cursor") if case.query else None
    place = find_place(cursor) if isinstance(cursor, str) else None
    if place:
        url = f"http://localhost{case.formatted_path}"
        case.query["cursor"] = ticketapi.encode_cursor(ticketapi.Cursor(int(place[2]), place[1] == "n"), url)
