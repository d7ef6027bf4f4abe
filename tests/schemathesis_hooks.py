"""What schemathesis cannot know: how texts with a `format` of ours in openapi.json are written. Named in schemathesis.toml."""

import base64
import random
import re
import uuid
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from urllib.parse import urlencode

import requests
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
schemathesis.openapi.format(
    "start",
    st.just("0")
    | st.integers(0, 10**9).map(str)
    | durations
    | ages.map(lambda age: f"{datetime.now(timezone.utc) - age:%Y-%m-%dT%H:%M:%SZ}"),
)
schemathesis.openapi.format("search", st.text(st.characters(min_codepoint=1, exclude_categories=("Cs",)), max_size=255))
schemathesis.openapi.format("etags", st.just("*") | st.just('"0d1f2b7f1c4e4b6f9f5a3c2d1e0f9a8b", *'))
schemathesis.openapi.format("idempotency-key", st.uuids().map(str))
NOWHERE = "https://[2000::1]/hooks"  # a public address that nobody has, and that takes no look-up
schemathesis.openapi.format("webhook-url", st.just(NOWHERE))
FILTERS = ("status", "user", "created_since", "updated_since", "q", "sort")  # in the order of links
FEEDS = ("/api/tickets/export", "/api/events")


class Elsewhere(requests.adapters.HTTPAdapter):
    """Sends each request from an address of its own, where the server believes this proxy.

    Checks make requests without a token, which no hook sees; from one address they would soon get 429 instead of 401.
    """

    def send(self, request, **options):
        request.headers["X-Forwarded-For"] = f"2001:db8:{random.randrange(65536):x}:{random.randrange(65536):x}::1"
        return super().send(request, **options)


requests.sessions.HTTPAdapter = Elsewhere


def find_place(text):
    """Return the direction and key of a place, or of a cursor for any list; None for any other text."""
    padded = text + "=" * (-len(text) % 4)
    with suppress(ValueError):
        text = "place " + base64.b64decode(padded, b"-_", validate=True).decode("ascii").partition(".")[0]
    return PLACE.fullmatch(text)


def scope_of(case):
    """Return what the cursors of a list are good for: its URL, of a search with the filters."""
    url = f"http://localhost{case.formatted_path}"
    fields = {name: case.query[name] for name in FILTERS if case.query.get(name)}
    return f"{url}?{urlencode(fields)}" if case.path == "/api/tickets" else url


@schemathesis.hook
def filter_case(context, case):
    """Leave out long texts with space around them: it does not count to their length, which no schema can say."""
    fields = [*(case.query or {}).values(), *(case.body.values() if isinstance(case.body, dict) else ())]
    return all(len(text) <= 255 or text == ticketapi.trim(text) for text in fields if isinstance(text, str))


@schemathesis.hook
def before_call(context, case, kwargs):
    """Make what is sent fit the desk, which no schema can.

    - A place, or a cursor of another list, becomes the cursor that leads there in the list that is asked for: one is good for
      one list, and a link to the next page may come with the id of another user. In the log of changes it leads to one.
    - A key is sent once: with another body it would be refused.
    - A customer's id is that of a customer there is; a webhook is turned off, and leads nowhere.
    """
    cursor = case.query.get("cursor") if case.query else None
    place = find_place(cursor) if isinstance(cursor, str) else None
    if place:
        key = int(place[2]) % 10_000 if case.path in FEEDS else int(place[2])
        case.query["cursor"] = ticketapi.encode_cursor(ticketapi.Cursor(key, place[1] == "n"), scope_of(case))
    if case.meta and case.meta.generation.mode.is_negative:
        return  # an edit would make it pass for a positive one
    if case.headers and re.fullmatch("[ -~]{1,255}", str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    if isinstance(case.body, dict):
        fit_body(case)


def fit_body(case):
    """Name a customer whom the desk has, and send nothing to anybody."""
    number = case.body.get("user_id")
    if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < ticketapi.FIRST_OWNER_ID:
        case.body["user_id"] = number % 100 + 1  # 7.0 is an integer to JSON Schema, and stays written so
    elif isinstance(number, str) and re.fullmatch("[1-9][0-9]{0,8}", number):
        case.body["user_id"] = str(int(number) % 100 + 1)
    if str(case.body.get("url", "")).startswith("https://example.com/"):
        case.body["url"] = NOWHERE
    if case.path == "/api/webhooks" and case.body.get("enabled") in (None, True) and case.media_type == "application/json":
        case.body["enabled"] = False
