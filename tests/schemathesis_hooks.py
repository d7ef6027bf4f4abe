"""What schemathesis cannot know: how texts of `format: cursor` and `since` are written. Named in schemathesis.toml."""

import re

import schemathesis
from hypothesis import strategies as st

import ticketapi

PLACE = re.compile(r"place ([np])([0-9]{1,18})")

places = st.builds("place {}{}".format, st.sampled_from("np"), st.integers(0, 10**18 - 1))
schemathesis.openapi.format("cursor", st.just("") | places)
durations = st.builds("{}{}".format, st.integers(0, 99), st.sampled_from("smhd"))
schemathesis.openapi.format("since", st.sampled_from(["", "0"]) | durations)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Turn a place into the cursor that leads there in the list that is asked for; a cursor is good for one list."""
    cursor = case.query.get("cursor") if case.query else None
    place = PLACE.fullmatch(cursor) if isinstance(cursor, str) else None
    if place:
        url = f"http://localhost{case.formatted_path}"
        case.query["cursor"] = ticketapi.encode_cursor(ticketapi.Cursor(int(place[2]), place[1] == "n"), url)
