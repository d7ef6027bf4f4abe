"""GET /api/tickets/export: each ticket as it is now, in the order of its latest change; nothing appears behind a cursor."""

import threading
from contextlib import closing

import pytest
from conftest import NOON, SECOND, create_ticket, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing import create, errors_of

import ticketapi
from ticketapi import format_time

URL, HOST = "/api/tickets/export", "http://desk.test:8000"
DAY = 86_400
AUTHOR = ("Ada", "ada@example.com")


@pytest.fixture
def api(make_api):
    """The app without a limit."""
    return make_api(rate=0)


def fetch(api, token, url):
    """Return the page under a link or a path."""
    answer = api.get(url.removeprefix(HOST), token=token)
    assert answer.status == 200, answer.body
    page = answer.json
    meta = page["meta"]
    assert list(meta) == ["path", "per_page", "count", "has_more", "end_of_stream", "after_cursor"]
    assert meta["count"] == len(page["data"])
    assert meta["has_more"] is not meta["end_of_stream"]
    assert meta["has_more"] == (page["links"]["next"] is not None)
    assert page["data"] or not meta["has_more"]
    assert meta["after_cursor"]
    return page


def walk(api, token, url=f"{URL}?per_page=3"):
    """Follow links to the end; return all tickets, and the cursor to poll with."""
    tickets = []
    while url:
        page = fetch(api, token, url)
        tickets += page["data"]
        url = page["links"]["next"]
    return tickets, page["meta"]["after_cursor"]


def ids(tickets):
    """Return the ids of tickets."""
    return [ticket["id"] for ticket in tickets]


def test_an_empty_desk_is_at_its_end(api, pen):
    tickets, cursor = walk(api, pen)
    assert tickets == []
    create(api, pen)
    assert ids(walk(api, pen, f"{URL}?cursor={cursor}")[0]) == [1]


def test_a_ticket_has_its_keys_and_when_it_was_closed_and_deleted(api, pen):
    ticket = create(api, pen)
    (told,) = walk(api, pen)[0]
    assert list(told) == [*ticket, "closed_at", "deleted_at"]
    assert told == ticket | {"closed_at": None, "deleted_at": None}


def test_each_comes_once_as_it_is_in_the_order_of_changes(api, db, pen, clock):
    ticketapi.generate_tickets(db, 10, NOON, seed=1)
    for number, change in ((4, {"status": "Closed"}), (2, {"subject": "x"}), (4, {"status": "Open"}), (9, {"content": "y"})):
        clock.advance(1)
        api.send("PATCH", f"/api/tickets/{number}", change, token=pen)
    api.request("DELETE", "/api/tickets/7", token=pen)
    tickets, cursor = walk(api, pen)
    assert ids(tickets) == [1, 3, 5, 6, 8, 10, 2, 4, 9, 7]
    for ticket in tickets[:-1]:
        shown = api.get(f"/api/tickets/{ticket['id']}", token=pen).json["data"]
        assert ticket == shown | {"closed_at": None, "deleted_at": None}
    assert tickets[-1]["deleted_at"] == format_time(clock.wall())
    assert walk(api, pen, f"{URL}?cursor={cursor}") == ([], cursor)


def test_what_changes_after_its_page_comes_again_and_what_changes_before_does_not(api, db, pen):
    ticketapi.generate_tickets(db, 9, NOON, seed=1)
    first = fetch(api, pen, f"{URL}?per_page=3")
    assert ids(first["data"]) == [1, 2, 3]
    api.send("PATCH", "/api/tickets/2", {"subject": "again"}, token=pen)
    api.send("PATCH", "/api/tickets/8", {"subject": "later"}, token=pen)
    rest, _ = walk(api, pen, first["links"]["next"])
    assert ids(rest) == [4, 5, 6, 7, 9, 2, 8]


def test_links_and_header_carry_the_size_of_a_page(api, db, pen):
    ticketapi.generate_tickets(db, 5, NOON, seed=1)
    answer = api.get(f"{URL}?per_page=2", token=pen)
    following = answer.json["links"]["next"]
    assert following == f"{HOST}{URL}?cursor={answer.json['meta']['after_cursor']}&per_page=2"
    assert answer.headers["link"] == f'<{following}>; rel="next"'
    assert "x-total-count" not in answer.headers
    assert "link" not in api.get(f"{URL}?per_page=5", token=pen).headers
    assert api.get(f"{URL}?per_page=5000", token=pen).json["meta"]["per_page"] == 200


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("gpcucdomnnn"), st.integers(1, 40)), max_size=40), st.integers(1, 9))
def test_who_follows_has_what_is_there_in_the_end(api, db, pen, clock, steps, size):
    now, copy, url = clock.now, {}, f"{URL}?per_page={size}"
    for step, number in steps:
        now += SECOND
        if step == "n":
            page = fetch(api, pen, url)
            copy |= {ticket["id"]: ticket for ticket in page["data"]}
            url = f"{URL}?per_page={size}&cursor={page['meta']['after_cursor']}"
            continue
        with ticketapi.transaction(db), ticketapi.suppress(ticketapi.NotFound):
            if step == "g":
                ticketapi.generate_tickets(db, number % 5 + 1, now, seed=1)
            elif step == "p":
                ticketapi.process_tickets(db, number % 3, now)
            elif step in "cou":
                change = {"c": {"status": 2}, "o": {"status": 1}, "u": {"subject": str(number)}}[step]
                ticketapi.update_ticket(db, number, change, now)
            elif step == "d":
                ticketapi.delete_ticket(db, number, now)
            else:
                ticketapi.add_comment(db, number, ticketapi.FIRST_OWNER_ID, "Hm", now)
    tickets, _ = walk(api, pen, url)
    copy |= {ticket["id"]: ticket for ticket in tickets}
    everything, _ = walk(api, pen)
    assert len(ids(everything)) == len(set(ids(everything)))
    assert copy == {ticket["id"]: ticket for ticket in everything}
    there = {number: ticket for number, ticket in copy.items() if not ticket["deleted_at"]}
    listed = api.get("/api/tickets?per_page=200", token=pen).json["data"]
    names = [name for ticket in listed[:1] for name in ticket]
    assert listed == [{name: ticket[name] for name in names} for _, ticket in sorted(there.items())]


# Since when -----------------------------------------------------------------------------------------


@pytest.fixture
def told(api, db, pen, clock):
    """A desk that was told of a ticket every 20 seconds for ten minutes, half an hour ago; returns when, by id."""
    moments = {}
    for number in range(1, 31):
        moments[number] = clock.wall()
        create_ticket(db, AUTHOR, str(number), "x", clock.wall())
        clock.advance(20)
    clock.advance(1800)
    return moments


@pytest.mark.parametrize("form", ["seconds", "time", "duration"])
def test_a_start_is_up_to_a_minute_early_and_never_late(api, pen, clock, told, form):
    for number, moment in told.items():
        ago = (clock.wall() - moment) // SECOND
        text = {"seconds": moment // SECOND, "time": format_time(moment), "duration": f"{ago}s"}[form]
        found = ids(walk(api, pen, f"{URL}?start_time={text}&per_page=7")[0])
        assert found == list(range(found[0], 31))
        assert found[0] <= number
        assert told[found[0]] > moment - 60 * SECOND


def test_a_start_before_all_gives_all_and_one_after_all_gives_nothing(api, pen, clock, told):
    for text in ("0", "1", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "20000d", "36500d"):
        assert len(walk(api, pen, f"{URL}?start_time={text}")[0]) == 30
    for text in ("20m", clock.wall() // SECOND, format_time(clock.wall()), "0s"):
        tickets, cursor = walk(api, pen, f"{URL}?start_time={text}")
        assert tickets == []
    create(api, pen)
    assert ids(walk(api, pen, f"{URL}?cursor={cursor}")[0]) == [31]


@pytest.mark.parametrize("text", ["1h", "0s", "36500d", "1000-02-15T00:00:00Z"])
def test_a_desk_of_before_1970_takes_a_start_too(text):
    now = ticketapi.parse_time("1000-02-15T00:00:00.000000Z")
    assert ticketapi.START_OF_TIME <= ticketapi.read_start_time(text, now) <= now


def test_what_was_told_counts_and_not_when_a_ticket_came(api, db, pen, clock):
    ticketapi.generate_history(db, 50, 86_400 * 30, clock.wall(), seed=1)
    tickets, _ = walk(api, pen, f"{URL}?start_time=1m&per_page=200")
    assert len(tickets) == 50
    assert min(ticket["created_at"] for ticket in tickets) < "2025-11-10"


def test_times_are_kept_for_400_days_and_who_asks_for_an_older_one_gets_more_not_less(api, db, pen, clock):
    for _ in range(4):
        create(api, pen)
        clock.advance(300 * DAY)
    times = [row[0] for row in db.execute("SELECT at FROM change_times ORDER BY at")]
    assert times == [format_time(NOON + days * DAY * SECOND) for days in (300, 600, 900)]  # 300: the one before the cut
    for days, expected in ((0, [1, 2, 3, 4]), (150, [1, 2, 3, 4]), (450, [3, 4]), (750, [4])):
        start = format_time(NOON + days * DAY * SECOND)
        assert ids(walk(api, pen, f"{URL}?start_time={start}")[0]) == expected


@pytest.mark.parametrize(
    "text", ["1764849601", "2025-12-04T12:00:01Z", "2025-12-04T12:00:00.000001Z", "x", "-1", "-1d", "1e9", "9" * 30]
)
def test_a_start_in_the_future_or_of_no_sense_is_refused_beside_a_cursor_too(api, pen, text):
    message = "The start time field must be Unix seconds, a duration such as 7d, or a UTC time such as 2025-12-04T11:30:16Z"
    cursor = ticketapi.encode_cursor(ticketapi.Cursor(0, True), f"{HOST}{URL}")
    for query in (f"start_time={text}", f"start_time={text}&cursor={cursor}"):
        assert errors_of(api.get(f"{URL}?{query}", token=pen)) == {"start_time": [f"{message}, and not in the future."]}


def test_a_cursor_counts_before_a_start(api, pen, told):
    page = fetch(api, pen, f"{URL}?per_page=20")
    assert ids(walk(api, pen, f"{URL}?start_time=0&cursor={page['meta']['after_cursor']}")[0]) == list(range(21, 31))


def test_a_cursor_beyond_the_end_of_the_desk_is_gone(api, pen, told):
    for change, status in ((30, 200), (31, 410), (10**17, 410)):
        cursor = ticketapi.encode_cursor(ticketapi.Cursor(change, True), f"{HOST}{URL}")
        answer = api.get(f"{URL}?cursor={cursor}", token=pen)
        assert answer.status == status
        assert status == 200 or list(answer.json) == ["message"]


def test_comments_and_only_they_leave_a_page_empty_at_the_end(api, pen, told):
    _, cursor = walk(api, pen)
    for _ in range(3):
        api.post("/api/tickets/1/comments", {"content": "Hm"}, token=pen)
    assert walk(api, pen, f"{URL}?cursor={cursor}") == ([], cursor)


def test_nothing_appears_behind_a_cursor_while_many_write(api, desk, db, pen, clock):
    ticketapi.generate_tickets(db, 50, NOON, seed=1)
    stop, failures = threading.Event(), []

    def writes(seed):
        try:
            with closing(ticketapi.connect(desk)) as mine:
                for number in range(1, 26):
                    with ticketapi.transaction(mine), ticketapi.suppress(ticketapi.NotFound):
                        create_ticket(mine, AUTHOR, f"{seed}", "x", NOON)
                        ticketapi.update_ticket(mine, number + seed, {"subject": f"{seed} {number}"}, NOON)
                    if number % 5 == 0:
                        with ticketapi.transaction(mine), ticketapi.suppress(ticketapi.NotFound):
                            ticketapi.delete_ticket(mine, number + seed, NOON)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=writes, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    copy, url = {}, f"{URL}?per_page=7"
    while not stop.is_set():
        if not any(thread.is_alive() for thread in threads):
            stop.set()
        page = fetch(api, pen, url)
        copy |= {ticket["id"]: ticket for ticket in page["data"]}
        url = f"{URL}?per_page=7&cursor={page['meta']['after_cursor']}"
    copy |= {ticket["id"]: ticket for ticket in walk(api, pen, url)[0]}
    assert failures == []
    assert copy == {ticket["id"]: ticket for ticket in walk(api, pen)[0]}
    assert len(copy) == 150
