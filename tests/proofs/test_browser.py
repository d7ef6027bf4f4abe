"""The dashboard in a real Chromium: what it shows, what it asks the server for, and what it does when something fails."""

import http.client
import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from itertools import pairwise

import pytest
from conftest import Served, wait_for

import ticketapi

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core: pip install axe-playwright-python")
expect = sync_api.expect

ALL = ["read:tickets", "read:audits"]
WRITER = ["read:tickets", "write:tickets"]
KEEPER = ["read:tickets", "control:clock"]
STREAM = "/api/events/stream"
REFUSAL = re.compile(r"Failed to load resource: (the server responded with a status of 4|net::ERR_CONNECTION_REFUSED)")
WITHOUT_LOCKS = "Object.defineProperty(Navigator.prototype, 'locks', {value: undefined})"
WITHOUT_STREAMS = "Object.defineProperty(window, 'ReadableStream', {value: undefined})"
HIDE = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
HIDE += "document.dispatchEvent(new Event('visibilitychange'))"


class Desk:
    """A desk with a server, whose audit log tells what the page asked for."""

    def __init__(self, folder, tickets=0):
        self.folder, self.path, self.served, self.ids = folder, folder / "ticketapi.db", None, {}
        with closing(ticketapi.open_database(self.path, "desk")) as db:
            now = ticketapi.wall_microseconds()
            if tickets:
                ticketapi.generate_history(db, tickets, 10 * ticketapi.DAY, now, seed=1)
                ticketapi.generate_tickets(db, 40, now, seed=2)

    def serve(self, *arguments):
        """Start a server; its scheduler rests unless it is told otherwise."""
        self.served = Served(*(arguments or ["--no-scheduler"]), cwd=self.folder)
        return self

    def token(self, *abilities):
        """Make a token of a user of its own, and so with a limit of its own."""
        email = f"user{len(self.ids)}@example.com"
        with closing(ticketapi.open_database(self.path, "desk")) as db:
            made = ticketapi.create_token(db, email, "browser", abilities or ALL, 0, ticketapi.wall_microseconds())
        self.ids[made["token"]] = made["id"]
        return made["token"]

    def run(self, *words):
        """Run a command, as a user does beside the server."""
        command = [sys.executable, "-m", "ticketapi", *words]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def ask(self, path, token):
        """Return an answer's JSON."""
        return self.served.get(path, token=token).json

    def write(self, method, path, token, fields=None, **headers):
        """Change something as another client does; return the status."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=10)) as connection:
            headers |= {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            connection.request(method, path, fields and json.dumps(fields), headers)
            return connection.getresponse().status

    def count(self, sql):
        """Return a figure of the desk's file."""
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(sql).fetchone()[0]

    def requests(self, after=0):
        """Return (path, status, id) of the requests that the page made, oldest first."""
        with closing(sqlite3.connect(self.folder / "ticketapi-audit.db")) as db:
            sql = "SELECT path, status_code, id FROM api_audits WHERE id > ? AND user_agent LIKE 'Mozilla%' ORDER BY id"
            return db.execute(sql, (after,)).fetchall()

    def last(self):
        """Return the id of the latest of them."""
        return max((row[2] for row in self.requests()), default=0)


@pytest.fixture
def desks(tmp_path):
    """Return a function that makes a desk; its server is ended after the test."""
    made = []

    def make(tickets=0):
        made.append(Desk(tmp_path, tickets))
        return made[-1]

    yield make
    for desk in made:
        if desk.served:
            desk.served.stop()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A desk of some days that the tests which change nothing share, without a limit."""
    desk = Desk(tmp_path_factory.mktemp("shown"), 600).serve("--rate", "0", "--generate-every", "1d", "--process-every", "1d")
    yield desk
    desk.served.stop()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A desk that commands change, with the limit as it is by default."""
    desk = Desk(tmp_path_factory.mktemp("live"), 60).serve()
    yield desk
    desk.served.stop()


@pytest.fixture
def visit(browser):
    """Return a function that opens tabs of one browser; afterwards no error and no request elsewhere may have been seen."""
    contexts, seen, allowed = [], [], [REFUSAL]

    def open_context(streams=True, **more):
        contexts.append(browser.new_context(**more))
        if not streams:
            contexts[-1].add_init_script(WITHOUT_STREAMS)
        contexts[-1].on("console", lambda message: seen.append(message.text) if message.type in ("error", "warning") else None)
        contexts[-1].on("weberror", lambda error: seen.append(str(error.error)))
        contexts[-1].on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url[:4] != "data" else None)
        contexts[-1].clock.install()
        return contexts[-1]

    def visit(desk, token=None, context=None, host="127.0.0.1", **more):
        page = (context or open_context(**more)).new_page()
        own.add(f"{host}:{desk.served.port}")
        page.goto(f"http://{host}:{desk.served.port}/")
        return sign_in(page, token) if token else page

    hosts, own = set(), set()
    visit.context, visit.allow = open_context, allowed.append
    yield visit
    for context in contexts:
        context.close()
    assert [text for text in seen if not any(re.match(pattern, text) for pattern in allowed)] == []
    assert hosts <= own


def sign_in(page, token):
    """Paste a token and press Enter; wait until the page has all it wants."""
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    for part in ("#open-list table", "#charts"):
        page.locator(f"{part}[aria-busy=false]").wait_for(state="attached")  # which looks more often than `expect`
    return page


def figure(page, name):
    """Return the locator of a figure of the queue now."""
    return page.locator(f"#{name}")


def number(page, name):
    """Return a figure of the queue now as a number."""
    return int(figure(page, name).inner_text().replace(",", ""))


def pass_time(page, seconds=5):
    """Let the clock of all tabs jump."""
    page.context.clock.fast_forward(seconds * 1000)


def settle(desk):
    """Wait until the page asks for nothing more, for a quarter of a second; return the id of the latest request."""
    seen = []

    def is_quiet():
        seen.append(desk.last())
        return len(seen) > 5 and len(set(seen[-6:])) == 1

    wait_for(is_quiet)
    return seen[-1]


# Signing in --------------------------------------------------------------------------------------


def test_a_wrong_token_is_told_kindly_and_a_right_one_shows_the_desk(shown, visit):
    page, token, unable = visit(shown), shown.token(), shown.token("write:nothing")
    unknown = "not known here"
    for wrong, told in (("", "Paste"), ("ключ", unknown), (token[:-1] + "x", unknown), (unable, "may not read tickets")):
        page.get_by_label("Token").fill(wrong)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text(told)
        expect(page.locator("#desk")).to_be_hidden()
    sign_in(page, f"  {token} ")
    stats = shown.ask("/api/stats", token)
    expect(figure(page, "open-count")).to_have_text(str(stats["total_unprocessed_tickets"]))
    expect(figure(page, "closed-count")).to_have_text(str(stats["total_tickets"] - stats["total_unprocessed_tickets"]))
    expect(figure(page, "top-name")).to_have_text(stats["top_user"]["name"])


def test_the_token_is_kept_for_this_tab_alone_until_it_signs_out(shown, visit):
    token = shown.token()
    page = visit(shown, token)
    assert page.get_by_label("Token").get_attribute("autocomplete") == "off"
    page.reload()
    expect(page.locator("#desk")).to_be_visible()
    assert token not in page.url
    assert page.evaluate("[localStorage.length, document.cookie, Object.values(sessionStorage)]") == [0, "", [token]]
    expect(visit(shown, context=page.context).get_by_label("Token")).to_be_visible()
    subject = page.locator("#open-list tbody button").first.inner_text()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    assert subject not in page.evaluate("document.body.textContent")


def test_a_browser_that_keeps_nothing_keeps_the_token_while_the_page_is_open(shown, visit):
    context = visit.context()
    context.add_init_script("Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('not here'); } });")
    page = visit(shown, shown.token(), context)
    expect(page.locator("#desk")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_focused()
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_token_that_is_revoked_signs_all_its_tabs_out(live, visit):
    token = live.token()
    page = visit(live, token, streams=False)
    other = visit(live, token, page.context)
    after = settle(live)
    live.run("token", "revoke", str(live.ids[token]))
    pass_time(page)
    for tab in (page, other):
        expect(tab.get_by_role("alert")).to_contain_text("revoked")
        assert tab.evaluate("sessionStorage.length") == 0
    assert [status for _, status, _ in live.requests(after)] == [401]


# What it shows -----------------------------------------------------------------------------------


def test_the_numbers_change_by_themselves_after_generate(live, visit):
    page = visit(live, live.token())
    before = number(page, "open-count")
    live.run("generate", "--count", "1234")
    pass_time(page)
    expect(figure(page, "open-count")).to_have_text(f"{before + 1234:,}")
    expect(page).to_have_title(re.compile(f"^{before + 1234:,} open"))


def test_an_empty_desk_says_how_to_fill_it_and_fills_by_itself(desks, visit):
    desk = desks().serve()
    page = visit(desk)
    page.get_by_label("Token").fill(desk.token())
    page.keyboard.press("Enter")
    expect(page.locator("#empty")).to_contain_text("ticketapi generate --count 50")
    expect(figure(page, "oldest-note")).to_have_text("nobody waits")
    settle(desk)
    desk.run("generate", "--count", "50")
    pass_time(page)
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.locator("#open-list tbody tr")).to_have_count(10)


def test_both_lists_are_read_page_by_page(shown, visit):
    token = shown.token()
    page = visit(shown, token)
    for name in ("open", "closed"):
        part = page.locator(f"#{name}-list")
        last = shown.ask(f"/api/tickets/{name}?per_page=10", token)["meta"]["last_page"]
        turns = (("Next page", 2), ("Next page", 3), ("Previous page", 2), ("Last page", last), ("First page", 1))
        for button, number in turns:
            part.get_by_role("button", name=button).click()
            expect(part.locator("nav")).to_contain_text(f"{number} of {last}")
            tickets = shown.ask(f"/api/tickets/{name}?per_page=10&page={number}", token)["data"]
            expect(part.locator("tbody tr td:first-child")).to_have_text([f"#{ticket['id']}" for ticket in tickets])


def test_a_ticket_is_opened_from_a_list_or_by_its_number(shown, visit):
    token = shown.token()
    page = visit(shown, token)
    ticket = shown.ask("/api/tickets/open?per_page=1", token)["data"][0]
    dialog = page.get_by_role("dialog")
    page.locator("#open-list tbody button").first.click()
    expect(dialog).to_contain_text(ticket["content"])
    expect(dialog).to_contain_text(ticket["user"]["email"])
    page.keyboard.press("Escape")
    expect(page.locator("#open-list tbody button").first).to_be_focused()
    for number, text in ((7, shown.ask("/api/tickets/7", token)["data"]["content"]), (999999, "There is no ticket")):
        page.get_by_label("Ticket number").fill(str(number))
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text(text)
        dialog.get_by_role("button", name="Close").click()
        expect(dialog).to_be_hidden()


def test_a_customers_tickets_are_read_page_by_page_too(shown, visit):
    token = shown.token()
    page = visit(shown, token)
    top = shown.ask("/api/stats", token)["top_user"]
    page.get_by_role("button", name=top["name"], exact=True).first.click()
    dialog = page.get_by_role("dialog", name=top["name"])
    expect(dialog).to_contain_text(top["email"])
    dialog.get_by_role("button", name="Next page").click()
    wanted = shown.ask(f"/api/users/{top['id']}/tickets?per_page=10&page=2", token)["data"]
    expect(dialog.locator("tbody tr td:first-child")).to_have_text([f"#{ticket['id']}" for ticket in wanted])
    dialog.locator("tbody button").first.click()
    expect(page.get_by_role("dialog", name=wanted[0]["subject"])).to_contain_text(wanted[0]["content"])


def test_a_chart_can_be_read_by_keyboard_and_as_a_table(shown, visit):
    token = shown.token()
    page = visit(shown, token)
    chart = page.get_by_role("figure").filter(has_text="Opened and closed")
    slider = chart.get_by_role("slider")
    chart.get_by_text("As a table").click()
    for name, query in (("24 hours", "24h&bucket=hour"), ("90 days", "90d&bucket=day")):
        page.get_by_label(name).check()
        rows = shown.ask(f"/api/series?since={query}", token)["data"]
        expect(slider).to_have_attribute("aria-valuemax", str(len(rows) - 1))
        slider.focus()
        for key, row in (("End", rows[-1]), ("ArrowLeft", rows[-2]), ("Home", rows[0]), ("ArrowRight", rows[1])):
            slider.press(key)
            expect(slider).to_have_attribute("aria-valuetext", re.compile(f": opened {row['opened']}, closed {row['closed']}$"))
            expect(chart.locator(".tip")).to_contain_text(f"opened{row['opened']}")
        cells = [str(row[key]) for row in reversed(rows) for key in ("opened", "closed")]
        expect(chart.locator("tbody td.n")).to_have_text(cells)


def test_a_wait_that_is_not_known_is_a_gap(shown, visit):
    token = shown.token()
    page = visit(shown, token)
    waits = [row["wait_p50"] for row in shown.ask("/api/series?since=24h", token)["data"]]
    assert None in waits
    pieces = len(re.findall("x+", "".join(" " if wait is None else "x" for wait in waits)))
    lines = page.get_by_role("figure").filter(has_text="Wait until closed").locator(".curve.ink-1, circle.ink-1")
    expect(lines).to_have_count(pieces)


def test_what_customers_write_is_shown_as_text(desks, visit):
    desk = desks(5).serve()
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    with closing(sqlite3.connect(desk.path)) as db, db:
        db.execute("UPDATE tickets SET subject = ?, content = ?", (evil, evil))
        db.execute("UPDATE users SET name = ? WHERE id < 1000000000", (evil,))
    page = visit(desk, desk.token())
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    page.locator("#oldest-note button").click()
    expect(page.locator("#ticket-text")).to_have_text(evil)
    assert page.locator("img, #desk script").count() == 0


def test_requests_are_for_tokens_that_may_read_audits_and_others_ask_once(shown, visit):
    page = visit(shown, shown.token())
    expect(page.locator("#requests")).to_be_visible()
    expect(page.locator("#audits tr").first).to_contain_text("GET /api/")
    expect(page.locator("#routes")).to_contain_text("tickets.open")
    expect(page.locator("#limiter-note")).to_contain_text("No limit")
    after, token = shown.last(), shown.token("read:tickets")
    page = visit(shown, token)
    wait_for(lambda: any(status == 403 for _, status, _ in shown.requests(after)))
    other = visit(shown, token, page.context)
    pass_time(page)
    settle(shown)
    expect(other.locator("#requests")).to_be_hidden()
    assert [path for path, status, _ in shown.requests(after) if status == 403] == ["api/audits/summary"]


def test_the_scheduler_is_shown_with_its_next_and_last_runs(desks, visit):
    desk = desks(30).serve("--generate-every", "1s", "--process-every", "1d")
    token = desk.token()
    wait_for(lambda: desk.ask("/api/schedule", token)["data"][0]["last_at"])
    page = visit(desk, token)
    rows = page.locator("#schedule tr")
    expect(rows.filter(has_text="generate")).to_contain_text(re.compile(r"1 s.*ago.*1 generated"))
    expect(rows.filter(has_text="process")).to_contain_text(re.compile(r"1 d.*in \d+ (h|min).*not yet"))


def test_ages_follow_the_servers_clock_and_tick(live, visit):
    token, context = live.token(), visit.context()
    context.clock.set_system_time(time.time() + 3 * ticketapi.HOUR)
    page = visit(live, token, context)
    opened = ticketapi.parse_time(live.ask("/api/tickets/open?per_page=1", token)["data"][0]["created_at"]) / 1e6

    def shown_age():
        days, hours, minutes, seconds = re.fullmatch(
            r"(?:(\d+) d )?(\d\d):(\d\d):(\d\d)", figure(page, "oldest-age").inner_text()
        ).groups(default="0")
        return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)

    expect(figure(page, "oldest-age")).to_have_text(re.compile(":"))
    settle(live)  # so that no answer sets the clock right that jumps here
    before = shown_age()
    assert abs(before - (time.time() - opened)) < 5
    context.clock.run_for(2000)
    assert shown_age() - before in range(1, 10)


# What it asks for --------------------------------------------------------------------------------


def test_it_asks_one_conditional_question_every_five_seconds_and_for_the_rest_when_that_changed(desks, visit):
    desk = desks(30).serve("--rate", "60", "--no-scheduler")
    page = visit(desk, desk.token(), streams=False)
    after = settle(desk)
    for count in range(1, 5):
        pass_time(page)
        wait_for(lambda count=count: len(desk.requests(after)) == count)
    assert {row[:2] for row in desk.requests(after)} == {("api/stats", 304)}
    after = desk.last()
    desk.run("generate")
    pass_time(page)
    wait_for(lambda: len(desk.requests(after)) >= 7)
    settle(desk)
    paths = [path for path, _, _ in desk.requests(after)]
    rest = ["audits", "audits/summary", "schedule", "series", "stats", "tickets/closed", "tickets/open"]
    assert sorted(paths) == [f"api/{path}" for path in rest]
    assert dict(row[:2] for row in desk.requests(after))["api/tickets/closed"] == 304


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "polls"])
def test_half_of_the_limit_is_left_for_clicks_and_scripts(desks, visit, streams):
    desk = desks(30).serve("--rate", "12", "--no-scheduler")
    token = desk.token()
    page = visit(desk, token, streams=streams)
    after = settle(desk)
    desk.run("generate")
    pass_time(page, 13)  # every 150 / 12 seconds
    wait_for(lambda: desk.requests(after))
    settle(desk)
    assert [path for path, _, _ in desk.requests(after)] == ["api/stats"]
    expect(page.get_by_role("status")).to_be_empty()


@pytest.mark.parametrize("host", ["127.0.0.1", "desk.test"])
def test_two_tabs_cost_what_one_costs(live, visit, host):
    token = live.token()
    page = visit(live, token, host=host, streams=False)
    assert page.evaluate("Boolean(navigator.locks)") == (host == "127.0.0.1")
    expect(page.locator("#audits tr").first).to_be_attached()
    after = settle(live)
    other = visit(live, token, page.context, host=host)
    assert len(live.requests(after)) == 1  # the token was tried
    after = settle(live)
    other.evaluate("window.heard = []; channel.addEventListener('message', ({data}) => heard.push(data))")
    live.run("generate", "--count", "40")
    before = number(page, "open-count")
    pass_time(page)
    for tab in (page, other):
        expect(figure(tab, "open-count")).to_have_text(f"{before + 40:,}")
    settle(live)
    paths = [path for path, _, _ in live.requests(after)]
    assert sorted(set(paths)) == sorted(paths)
    assert token not in json.dumps([other.evaluate("heard"), other.evaluate("channel.name")])
    other.get_by_role("button", name="Next page").first.click()  # this tab does not lead
    expect(other.locator("#open-list nav")).to_contain_text("2 of")
    expect(page.locator("#open-list nav")).to_contain_text("1 of")


def test_ten_tabs_stay_inside_the_limit(live, visit):
    token, begun = live.token(), live.last()
    pages = [visit(live, token, streams=False)]
    pages += [visit(live, token, pages[0].context) for _ in range(9)]
    before, after = number(pages[0], "open-count"), settle(live)
    for count in range(1, 7):
        pass_time(pages[0])
        wait_for(lambda count=count: len(live.requests(after)) == count)
    live.run("generate", "--count", "5")
    pass_time(pages[0])
    for page in pages:
        expect(figure(page, "open-count")).to_have_text(f"{before + 5:,}")
        expect(page.get_by_role("status")).to_be_empty()
    assert {status for _, status, _ in live.requests(begun)} == {200, 304}


def test_a_hidden_tab_pauses_and_hands_over(live, visit):
    token = live.token()
    page = visit(live, token, streams=False)
    other = visit(live, token, page.context)
    page.evaluate(HIDE % "true")
    wait_for(lambda: other.evaluate("leading"))
    after = settle(live)
    pass_time(page)
    wait_for(lambda: len(live.requests(after)) == 1)
    other.evaluate(HIDE % "true")
    for _ in range(3):
        pass_time(page, 60)
    assert len(live.requests(after)) == 1
    page.evaluate(HIDE % "false")
    wait_for(lambda: len(live.requests(after)) > 1)


# The stream --------------------------------------------------------------------------------------


def open_stream(desk, token):
    """Open a stream as another client; return its answer, which holds the connection, once it has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", desk.served.port, timeout=10)
    connection.request("GET", STREAM, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    assert answer.readline() == b"retry: 3000\n"
    return answer


def is_live(page):
    """Wait until the page follows the stream and has all it wants."""
    expect(page.locator("#pulse-text")).to_have_text("Live")
    return page


def streams(desk, after=0):
    """Return the statuses of the streams that the page asked for."""
    return [status for path, status, _ in desk.requests(after) if path == STREAM[1:]]


def test_what_commands_and_other_clients_do_shows_up_by_itself(desks, visit):
    desk = desks(60).serve("--rate", "0", "--no-scheduler")  # which would bid it wait now and then
    page = is_live(visit(desk, desk.token()))
    before, closed = number(page, "open-count"), number(page, "closed-count")
    desk.run("generate", "--count", "7")
    expect(figure(page, "open-count")).to_have_text(f"{before + 7:,}")
    desk.run("process")
    expect(figure(page, "closed-count")).to_have_text(f"{closed + 1:,}")
    for fields in {"subject": "It is back", "status": "Open"}, {"subject": "No figure tells"}:
        assert desk.write("PATCH", "/api/tickets/1", desk.token(*WRITER), fields) == 200
        expect(page.locator("#open-list tbody tr").first).to_contain_text(fields["subject"])


def test_while_nothing_happens_nothing_is_asked(live, visit):
    begun = live.last()
    page = is_live(visit(live, live.token()))
    other = visit(live, live.token(), page.context)
    after = settle(live)
    before = [tab.evaluate("stream.heard") for tab in (page, other)]
    pass_time(page, 20)  # less than the silence after which a stream is given up
    for tab, heard in zip((page, other), before, strict=True):
        tab.wait_for_function("heard => stream.heard > heard", arg=heard, timeout=30_000)  # the server says that it is there
    assert live.requests(after) == []
    assert streams(live, begun) == [200, 200]
    live.run("generate")
    wait_for(lambda: live.requests(after))


def test_a_tab_that_does_not_lead_learns_what_the_stream_tells(live, visit):
    token = live.token()
    page = is_live(visit(live, token))
    after = settle(live)
    other = is_live(visit(live, token, page.context))
    assert streams(live, after) == []
    after, before = settle(live), number(page, "open-count")
    live.run("generate", "--count", "3")
    for tab in (page, other):
        expect(figure(tab, "open-count")).to_have_text(f"{before + 3:,}")
    settle(live)
    paths = [path for path, _, _ in live.requests(after)]
    assert sorted(set(paths)) == sorted(paths)
    page.close()
    wait_for(lambda: other.evaluate("leading && Boolean(stream?.heard)"))
    live.run("generate")
    expect(figure(other, "open-count")).to_have_text(f"{before + 4:,}", timeout=10_000)


def test_many_tickets_stay_inside_the_limit(live, visit):
    page = is_live(visit(live, live.token()))
    after, before = settle(live), number(page, "open-count")
    for _ in range(20):
        live.run("generate")
    expect(figure(page, "open-count")).to_have_text(f"{before + 20:,}", timeout=10_000)
    statuses = [status for _, status, _ in live.requests(after)]
    assert set(statuses) <= {200, 304}
    assert len(statuses) <= 30
    expect(page.get_by_role("status")).to_be_empty()


def test_a_flood_of_events_is_left_out_and_its_end_is_shown(live, visit):
    page = is_live(visit(live, live.token()))
    after, before = settle(live), number(page, "open-count")
    live.run("generate", "--count", "20000")
    expect(figure(page, "open-count")).to_have_text(f"{before + 20000:,}", timeout=10_000)
    wait_for(lambda: streams(live, after) == [200])
    wait_for(lambda: page.evaluate("stream?.events === 0 && Boolean(stream.heard)"))
    live.run("generate")
    expect(figure(page, "open-count")).to_have_text(f"{before + 20001:,}", timeout=10_000)


def test_a_server_that_starts_anew_is_followed_from_the_last_event_on(desks, visit):
    desk = desks(30).serve()
    page = is_live(visit(desk, desk.token()))
    before = number(page, "open-count")
    desk.run("generate")
    expect(figure(page, "open-count")).to_have_text(str(before + 1))
    event, before, port = page.evaluate("link.event"), number(page, "open-count"), desk.served.port
    asked = []
    page.on("request", lambda request: asked.append(request.headers.get("last-event-id")) if STREAM in request.url else None)
    desk.served.stop()
    expect(page.get_by_role("status")).to_contain_text("The server does not answer.")
    desk.run("generate", "--count", "2")
    desk.serve("--no-scheduler", "--port", str(port))
    pass_time(page, 30)
    expect(figure(page, "open-count")).to_have_text(f"{before + 2:,}")
    is_live(page)
    assert asked == [event]
    wait_for(lambda: page.evaluate("Number(link.event)") == int(event) + 2)


def test_events_that_are_kept_no_more_are_done_without(live, visit):
    page = is_live(visit(live, live.token()))
    after = settle(live)
    page.evaluate("link.event = '999999999'; hangUp(); pause.until = 0")
    wait_for(lambda: streams(live, after) == [410, 200])
    is_live(page)


def test_a_snapshot_that_is_restored_is_shown_in_every_tab_at_once(live, visit):
    token, keeper = live.token(), live.token("control:desk")
    pages = [is_live(visit(live, token))]
    pages.append(is_live(visit(live, token, pages[0].context)))
    before = number(pages[0], "open-count")
    assert live.write("POST", "/api/snapshots", keeper, {"name": "shown"}) == 201
    live.run("generate", "--count", "5")
    for page in pages:
        expect(figure(page, "open-count")).to_have_text(f"{before + 5:,}", timeout=10_000)
    after = settle(live)
    assert live.write("POST", "/api/snapshots/shown/restore", keeper, {}) == 200
    for page in pages:
        expect(figure(page, "open-count")).to_have_text(f"{before:,}", timeout=10_000)
    wait_for(lambda: 200 in streams(live, after))  # a new one, from what comes next on
    assert 410 not in streams(live, after)
    live.run("generate")
    for page in pages:  # which asks for the figures every five seconds at most
        expect(figure(page, "open-count")).to_have_text(f"{before + 1:,}", timeout=10_000)
    assert live.write("DELETE", "/api/snapshots/shown", keeper, {}) == 204


def test_where_there_are_too_many_streams_it_asks_and_finds_one_later(desks, visit):
    desk = desks(30).serve("--rate", "0", "--no-scheduler")
    token = desk.token()
    visit.allow("Failed to load resource: the server responded with a status of 503")
    with ExitStack() as others:
        for _ in range(20):
            others.enter_context(closing(open_stream(desk, token)))
        page = visit(desk, token)
        wait_for(lambda: streams(desk) == [503])
        expect(page.locator("#pulse-text")).to_have_text(re.compile("^Live, .* ago$"))
        settle(desk)
        before = number(page, "open-count")
        desk.run("generate")
        pass_time(page)
        expect(figure(page, "open-count")).to_have_text(f"{before + 1:,}")
    wait_for(lambda: desk.write("GET", STREAM, token) == 200)
    page.evaluate("pause.until = 0")
    is_live(page)


def test_where_something_keeps_the_stream_back_it_asks(live, visit):
    context, held = visit.context(), []
    context.route(f"**{STREAM}", lambda route: held.append(route))  # and never answered
    page = visit(live, live.token(), context)
    wait_for(lambda: held)
    after = settle(live)
    pass_time(page, 6)
    wait_for(lambda: ("api/stats", 304) in [row[:2] for row in live.requests(after)])
    assert page.evaluate("[stream, pause.until > Date.now() + 60000]") == [None, True]
    before = number(page, "open-count")
    live.run("generate")
    pass_time(page)
    expect(figure(page, "open-count")).to_have_text(f"{before + 1:,}")
    assert len(held) == 1


def test_a_stream_that_falls_silent_is_opened_anew(live, visit):
    page = is_live(visit(live, live.token()))
    after = settle(live)
    pass_time(page, 41)
    wait_for(lambda: streams(live, after) == [200])
    is_live(page)


def test_the_stream_of_a_hidden_tab_is_closed_after_a_while_and_resumed(live, visit):
    page = is_live(visit(live, live.token()))
    after, before = settle(live), number(page, "open-count")
    page.evaluate("event => { link.event = event; }", str(live.count("SELECT max(change) FROM tickets")))  # as if it was told
    page.evaluate(HIDE % "true")
    pass_time(page, 10)
    assert page.evaluate("Boolean(stream)")  # whoever comes back soon needs no other
    page.evaluate(HIDE % "false")
    wait_for(lambda: page.evaluate("leading && link.live"))
    settle(live)
    assert live.requests(after) == []
    page.evaluate(HIDE % "true")
    pass_time(page, 31)
    page.evaluate(HIDE % "false")
    wait_for(lambda: page.evaluate("leading && link.live"))
    settle(live)
    assert [row[:2] for row in live.requests(after)] == [("api/events/stream", 200)]  # it goes on where it ended
    after = settle(live)
    page.evaluate(HIDE % "true")
    pass_time(page, 31)
    wait_for(lambda: page.evaluate("stream") is None)
    live.run("generate")
    assert live.requests(after) == []
    page.evaluate(HIDE % "false")
    expect(figure(page, "open-count")).to_have_text(f"{before + 1:,}")
    is_live(page)


def test_whoever_changes_between_two_tabs_pays_for_a_stream_alone(live, visit):
    token = live.token()
    page = is_live(visit(live, token))
    other = is_live(visit(live, token, page.context))
    after = settle(live)
    for left, right in ((page, other), (other, page), (page, other)):
        right.evaluate(HIDE % "false")
        left.evaluate(HIDE % "true")
        wait_for(lambda right=right: right.evaluate("leading && link.live"))
        wait_for(lambda left=left: left.evaluate("stream") is None)  # it listened until the other one did
    settle(live)
    assert [row[:2] for row in live.requests(after)] == [(STREAM[1:], 200)] * 3
    before = number(other, "open-count")
    live.run("generate")
    expect(figure(other, "open-count")).to_have_text(f"{before + 1:,}")


def test_a_token_that_is_revoked_ends_its_stream_and_signs_out(live, visit):
    token = live.token()
    page = is_live(visit(live, token))
    settle(live)
    live.run("token", "revoke", str(live.ids[token]))
    expect(page.get_by_role("alert")).to_contain_text("revoked", timeout=30_000)


def test_events_are_read_whole_however_they_are_cut(shown, visit):
    text = ': so\n\nid: 7\nevent: x\ndata: {"a":\u2028\ndata:1}\n\nretry: 3000\r\n\r\nid: 8\ndata: cut'
    wanted = [{}, {"id": "7", "event": "x", "data": '{"a":\u2028\n1}'}, {"retry": "3000"}]
    page = visit(shown)
    for size in (1, 2, 3, 1000):
        parts = [text[i : i + size] for i in range(0, len(text), size)]
        assert page.evaluate("parts => { const parse = makeParser(); return parts.flatMap(parse); }", parts) == wanted


# Writing -----------------------------------------------------------------------------------------


def open_ticket(page, number):
    """Open a ticket by its number; return its dialog, once it can be changed."""
    page.get_by_label("Ticket number").fill(str(number))
    page.keyboard.press("Enter")
    page.locator("#ticket-toggle[aria-disabled=false]").wait_for()
    return page.locator("#ticket-dialog")


def fill_ticket(page, subject, content="It does not work.", name="Ana Example", email="ana@example.com"):
    """Open the form of a new ticket and fill it."""
    page.get_by_role("button", name="New ticket").click()
    for label, text in (("Subject", subject), ("What it is about", content), ("'s name", name), ("address", email)):
        page.get_by_label(label).fill(text)
    return page.get_by_role("button", name="Write ticket")


def problem_of(page, label):
    """Return whether a field is marked as wrong, and what its description says."""
    field = page.get_by_label(label)
    text = field.evaluate("field => document.getElementById(field.getAttribute('aria-describedby'))?.textContent")
    return [field.get_attribute("aria-invalid"), text]


def test_a_ticket_is_written_by_keyboard_and_shows_up(live, visit):
    page = is_live(visit(live, live.token(*WRITER)))
    before = number(page, "open-count")
    opener = page.get_by_role("button", name="New ticket")
    tab_to(page, opener)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Subject")).to_be_focused()
    for text in ("<b>Printer</b>", "It smokes.\tAlways.", "Ana <Ex>", "ana.ex@example.com"):
        page.keyboard.insert_text(text)
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="<b>Printer</b>")
    expect(dialog.locator("#ticket-text")).to_have_text("It smokes.\tAlways.")
    expect(dialog).to_contain_text("Ana <Ex> <ana.ex@example.com>")
    expect(dialog.locator("#ticket-news")).to_have_text(re.compile(r"^Ticket #\d+ is written\.$"))
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    expect(figure(page, "open-count")).to_have_text(f"{before + 1:,}")
    opener.click()
    assert page.locator("#new-form").evaluate("form => [...form.elements].map(field => field.value).join('')") == ""


def test_what_is_wrong_with_a_ticket_stands_beside_its_fields(live, visit):
    page = visit(live, live.token(*WRITER))
    tickets = live.count("SELECT count(*) FROM tickets")
    fill_ticket(page, "", "", "", "nobody").click()
    required = "The {} field is required.".format
    expect(page.locator("#new-subject-error")).to_have_text(required("subject"))
    expect(page.get_by_label("Subject")).to_be_focused()
    assert problem_of(page, "Subject") == ["true", required("subject")]
    assert problem_of(page, "What it is about") == ["true", required("content")]
    assert problem_of(page, "'s name") == ["true", required("name")]
    assert problem_of(page, "address") == ["true", "The email field must be a valid email address."]
    expect(page.get_by_role("alert")).to_have_text("Nothing is written yet.")
    for label in ("Subject", "What it is about", "'s name"):
        page.get_by_label(label).fill("x")
    page.get_by_role("button", name="Write ticket").click()
    expect(page.get_by_label("address")).to_be_focused()
    assert problem_of(page, "Subject") == [None, None]
    assert live.count("SELECT count(*) FROM tickets") == tickets
    page.get_by_role("button", name="Close", exact=True).click()
    page.get_by_role("button", name="New ticket").click()
    expect(page.get_by_label("Subject")).to_have_value("x")  # what was filled in is still there
    page.get_by_label("address").fill("x@example.com")
    page.get_by_role("button", name="Write ticket").click()
    expect(page.locator("#ticket-news")).to_contain_text("is written")


def test_a_double_click_and_another_try_write_one_ticket(live, visit):
    page = visit(live, live.token(*WRITER))
    keys = []

    def lose_answer(route):
        keys.append(route.request.headers["idempotency-key"])
        assert route.fetch().status == 201
        route.abort("connectionrefused")

    page.route("**/api/tickets", lose_answer, times=1)
    page.on("request", lambda request: keys.append(request.headers["idempotency-key"]) if request.method == "POST" else None)
    button = fill_ticket(page, "Only once")
    button.dblclick()
    expect(page.get_by_role("alert")).to_contain_text("nothing is written twice")
    button.click()
    expect(page.locator("#ticket-news")).to_contain_text("is written")
    assert live.count("SELECT count(*) FROM tickets WHERE subject = 'Only once'") == 1
    assert len(set(keys)) == 1
    page.keyboard.press("Escape")
    fill_ticket(page, "Only once").click()  # filled in anew, it is another one
    wait_for(lambda: live.count("SELECT count(*) FROM tickets WHERE subject = 'Only once'") == 2)


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "polls"])
def test_a_ticket_is_closed_opened_again_commented_and_deleted(live, visit, streams):
    page = visit(live, live.token(*WRITER), streams=streams)
    ticket = live.count("SELECT max(id) FROM tickets WHERE status = 1")
    before, row = number(page, "closed-count"), f"SELECT status FROM tickets WHERE id = {ticket}"
    dialog = open_ticket(page, ticket)
    toggle, news = dialog.locator("#ticket-toggle"), dialog.locator("#ticket-news")
    toggle.click()
    expect(news).to_have_text(f"Ticket #{ticket} is closed.")
    expect(toggle).to_have_text("Reopen ticket")
    expect(toggle).to_be_focused()
    expect(dialog.locator("#ticket-facts")).to_contain_text("Waited")
    assert live.count(row) == 2
    expect(figure(page, "closed-count")).to_have_text(f"{before + 1:,}")
    page.keyboard.press("Enter")
    expect(news).to_have_text(f"Ticket #{ticket} is open again.")
    assert live.count(row) == 1
    dialog.get_by_label("Your comment").fill("<i>seen</i>\nand answered")
    dialog.get_by_role("button", name="Add comment").click()
    expect(dialog.locator("#comment-list .said")).to_have_text(["<i>seen</i>\nand answered"])
    expect(dialog.get_by_label("Your comment")).to_have_value("")
    expect(dialog.locator("#comments-title")).to_have_text("1 comment")
    dialog.get_by_role("button", name="Add comment").click()
    expect(dialog.get_by_label("Your comment")).to_be_focused()
    assert problem_of(page, "Your comment") == ["true", "The content field is required."]
    dialog.get_by_role("button", name="Delete ticket").click()
    sure = page.get_by_role("alertdialog", name=f"Delete ticket #{ticket}?")
    expect(sure.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog.get_by_role("button", name="Delete ticket")).to_be_focused()
    assert live.count(row) == 1
    page.keyboard.press("Enter")
    sure.get_by_role("button", name="Delete it").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#news")).to_have_text(f"Ticket #{ticket} is deleted.")
    expect(page.get_by_label("Ticket number")).to_be_focused()
    assert live.count(row) < 0
    expect(figure(page, "closed-count")).to_have_text(f"{before:,}")


def test_a_ticket_that_somebody_changed_meanwhile_is_shown_and_left(live, visit):
    token = live.token(*WRITER)
    page = visit(live, token, streams=False)
    ticket = live.count("SELECT min(id) FROM tickets WHERE status = 1")
    dialog = open_ticket(page, ticket)
    for action in ("Close ticket", "Delete ticket"):
        assert live.write("PATCH", f"/api/tickets/{ticket}", token, {"subject": f"Before {action}"}) == 200
        dialog.get_by_role("button", name=action).click()
        if "Delete" in action:
            page.get_by_role("button", name="Delete it").click()
        expect(dialog.get_by_role("alert")).to_contain_text("Somebody changed this ticket meanwhile")
        expect(dialog.locator("#ticket-subject")).to_have_text(f"Before {action}")
        assert live.count(f"SELECT status FROM tickets WHERE id = {ticket}") == 1
    dialog.get_by_role("button", name="Close ticket").click()
    expect(dialog.locator("#ticket-news")).to_contain_text("is closed")
    expect(dialog.get_by_role("alert")).to_be_hidden()
    assert live.write("DELETE", f"/api/tickets/{ticket}", token) == 204
    dialog.get_by_role("button", name="Reopen ticket").click()
    expect(dialog.locator("#ticket-subject")).to_have_text("Not here")
    expect(dialog.locator("#ticket-toggle")).to_be_hidden()


def test_an_open_ticket_follows_what_others_do(live, visit):
    page = is_live(visit(live, live.token(*WRITER)))
    reader = is_live(visit(live, live.token("read:tickets")))
    other = live.token(*WRITER)
    ticket = live.count("SELECT min(id) FROM tickets WHERE status = 1")
    dialog = open_ticket(page, ticket)
    reader.locator("#open-list tbody button", has_text=dialog.locator("#ticket-subject").inner_text()).first.click()
    settle(live)
    assert live.write("PATCH", f"/api/tickets/{ticket}", other, {"content": "Something else"}) == 200
    for tab in (page, reader):
        expect(tab.locator("#ticket-text")).to_have_text("Something else")
    expect(dialog.locator("#ticket-news")).to_have_text("Somebody changed this ticket just now.")
    for count in range(1, 23):
        assert live.write("POST", f"/api/tickets/{ticket}/comments", other, {"content": f"Comment {count}"}) == 201
    expect(dialog.locator("#comments-title")).to_have_text("22 comments", timeout=10_000)
    expect(dialog.locator("#comment-list .said")).to_have_count(20)
    dialog.get_by_role("button", name="Next page").click()
    expect(dialog.locator("#comment-list .said")).to_have_text(["Comment 21", "Comment 22"])


def test_a_token_that_may_not_write_sees_nothing_to_write_with(shown, live, visit):
    page = visit(shown, shown.token())
    after = settle(shown)
    page.locator("#open-list tbody button").first.click()
    expect(page.locator("#ticket-text")).not_to_be_empty()
    for name in ("New ticket", "Close ticket", "Reopen ticket", "Delete ticket", "Add comment"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.locator("#comments")).to_be_hidden()
    settle(shown)
    assert [path for path, _, _ in shown.requests(after) if "comments" in path] == []
    everything = visit(live, live.token("*"))
    expect(everything.get_by_role("button", name="New ticket")).to_be_visible()
    everything.get_by_role("button", name="Sign out").click()
    expect(everything.get_by_role("button", name="New ticket")).to_be_hidden()


def test_refusals_of_a_write_are_told(live, visit):
    token = live.token(*WRITER)
    page = visit(live, token)
    visit.allow("Failed to load resource: the server responded with a status of 503")
    body = json.dumps({"message": "The desk is busy."})
    answers = iter([(503, "7"), (403, None), (429, "9")])

    def refuse(route):
        status, wait = next(answers)
        route.fulfill(status=status, body=body, content_type="application/json", headers={"Retry-After": wait} if wait else {})

    page.route("**/api/tickets", refuse, times=3)
    button = fill_ticket(page, "Refused")
    told = page.locator("#new-problem")
    for text in (
        "The server says: The desk is busy. Try again in 7 s.",
        "may not write tickets",
        "is reached. Try again in 9 s.",
    ):
        button.click()
        expect(told).to_contain_text(text)
    live.run("token", "revoke", str(live.ids[token]))
    button.click()
    expect(page.get_by_role("alert")).to_contain_text("revoked")
    expect(page.get_by_label("Token")).to_be_focused()


def test_whoever_signs_out_leaves_nothing_of_what_was_read_or_written(live, visit):
    page = visit(live, live.token(*WRITER))
    fill_ticket(page, "A subject of mine", "A text of mine")
    page.keyboard.press("Escape")
    dialog = open_ticket(page, live.count("SELECT min(id) FROM tickets WHERE status = 1"))
    texts = [dialog.locator(f"#ticket-{part}").inner_text() for part in ("subject", "text")]
    dialog.get_by_label("Your comment").fill("A comment of mine")
    page.evaluate("signOut()")
    expect(page.get_by_label("Token")).to_be_focused()
    left = page.evaluate(
        "document.body.textContent + [...document.querySelectorAll('input, textarea')].map(field => field.value)"
    )
    for text in [*texts, "A subject of mine", "A text of mine", "A comment of mine"]:
        assert text not in left


# The desk's clock --------------------------------------------------------------------------------

RARELY = ("--rate", "0", "--generate-every", "90d", "--process-every", "90d")  # so that nothing happens by itself


def shown_time(page):
    """Return what the clock of the page shows, in seconds since 1970."""
    text = page.locator("#clock-time").get_attribute("title")
    return ticketapi.parse_time(text.replace("Z", "000Z")) / 1e6


def told_time(desk, token):
    """Return what the desk's clock shows, in seconds since 1970."""
    return ticketapi.parse_time(desk.ask("/api/clock", token)["data"]["now"]) / 1e6


def asked_for(desk, path, after=0):
    """Return how often the page asked for something."""
    return [row[0] for row in desk.requests(after)].count(path)


def set_clock(desk, **fields):
    """Set the clock as another client does."""
    assert desk.write("PUT", "/api/clock", desk.token(*KEEPER), fields) in (200, 202)


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "polls"])
def test_a_desk_that_goes_by_the_real_time_has_no_clock_and_is_asked_once(live, visit, streams):
    begun = live.last()
    page = visit(live, live.token("*"), streams=streams)
    settle(live)
    live.run("generate")
    pass_time(page)
    wait_for(lambda: asked_for(live, "api/tickets/open", begun) > 1)
    settle(live)
    expect(page.locator("#clock")).to_be_hidden()
    assert asked_for(live, "api/clock", begun) == 1


@pytest.mark.parametrize("start", ["2025-03-01T10:00:00Z", "2035-03-01T10:00:00Z", "now"])
def test_ages_go_by_the_desks_clock_which_is_asked_for_once(desks, visit, start):
    desk = desks().serve("--clock", f"{start},60x", *RARELY)
    token = desk.token("read:tickets")
    desk.run("generate", "--count", "3")
    page = is_live(visit(desk, token))
    settle(desk)
    assert abs(shown_time(page) - told_time(desk, token)) < 2 * 60
    expect(page.locator("#clock-state")).to_have_text("Running at 60 times the real speed")
    expect(page.locator("#clock-controls")).to_be_hidden()
    after, before = desk.last(), shown_time(page)
    pass_time(page, 20)
    wait_for(lambda: shown_time(page) >= before + 20 * 60)
    age = figure(page, "oldest-age").inner_text()
    assert re.fullmatch(r"00:[2-9]\d:\d\d", age), age
    expect(page.locator("#schedule tr").filter(has_text="generate")).to_contain_text(re.compile(r"as they come.*in \d+ d"))
    settle(desk)
    assert desk.requests(after) == []


def test_a_frozen_clock_stands(desks, visit):
    desk = desks().serve("--clock", "2025-03-01T10:00:00Z,60x", *RARELY)
    set_clock(desk, status="frozen")
    page = visit(desk, desk.token())
    expect(page.locator("#clock-state")).to_have_text("Frozen")
    before = page.locator("#clock-time").inner_text()
    pass_time(page, 20)
    expect(page.locator("#clock-time")).to_have_text(before)


def test_a_clock_that_goes_as_the_real_one_is_shown_too(desks, visit):
    desk = desks().serve("--clock", "now", *RARELY)
    page = visit(desk, desk.token())
    expect(page.locator("#clock-state")).to_have_text("Running")
    assert abs(shown_time(page) - time.time()) < 5


def test_where_no_scheduler_runs_a_clock_that_runs_stands_still(desks, visit):
    desk = desks(30).serve("--clock", "2035-03-01,60x", "--no-scheduler")
    page = visit(desk, desk.token())
    expect(page.locator("#clock-state")).to_contain_text("it stands still")
    before = page.locator("#clock-time").inner_text()
    pass_time(page, 20)
    expect(page.locator("#clock-time")).to_have_text(before)


def test_a_clock_that_others_set_is_found_out_when_something_happens(desks, visit):
    desk = desks().serve("--clock", "2025-03-01,60x", *RARELY)
    token = desk.token()
    page = is_live(visit(desk, token))
    settle(desk)
    for fields, state in (
        ({"status": "frozen", "advance": "50d"}, "Frozen"),
        ({"status": "running", "speed": 5}, "Running at 5"),
    ):
        set_clock(desk, **fields)
        desk.run("generate", "--count", "2")
        expect(page.locator("#clock-state")).to_contain_text(state)
        wait_for(lambda: abs(shown_time(page) - told_time(desk, token)) < 2 * 60)
        pass_time(page, 1)


def test_a_clock_that_was_stopped_is_found_out_when_a_ticket_does_not_come(desks, visit):
    desk = desks().serve("--clock", "2025-03-01,60x", "--rate", "0", "--generate-every", "1h", "--process-every", "90d")
    page = is_live(visit(desk, desk.token()))
    settle(desk)
    set_clock(desk, status="frozen")
    settle(desk)
    expect(page.locator("#clock-state")).to_contain_text("Running")
    pass_time(page, 70)  # more than an hour of the desk
    expect(page.locator("#clock-state")).to_have_text("Frozen")


def test_whoever_may_sets_the_clock(desks, visit):
    desk = desks().serve("--clock", "2025-03-01T10:00:00Z", *RARELY)
    token = desk.token(*KEEPER)
    page = visit(desk, token, timezone_id="Asia/Tokyo")
    state, news = page.locator("#clock-state"), page.locator("#news")
    page.get_by_role("button", name="Freeze").click()
    expect(state).to_have_text("Frozen")
    expect(news).to_have_text(re.compile("^It is .* on the desk; the clock stands still.$"))
    before = told_time(desk, token)
    for name, seconds in (("1 hour", 3600), ("1 day", 86400), ("30 days", 30 * 86400)):
        page.get_by_role("button", name=name).click()
        before += seconds
        wait_for(lambda before=before: abs(shown_time(page) - before) < 1)
        assert told_time(desk, token) == before
    page.get_by_text("Another duration").click()
    page.get_by_label("Duration").fill("90m")
    page.get_by_role("button", name="Advance", exact=True).click()
    wait_for(lambda: abs(shown_time(page) - before - 5400) < 1)
    page.get_by_label("Moment").fill("2025-05-01T09:30:00")
    page.get_by_role("button", name="Go there").click()
    expect(page.locator("#clock-time")).to_have_text("Thu, 1 May 2025, 09:30:00")
    assert desk.ask("/api/clock", token)["data"]["now"] == "2025-05-01T00:30:00.000000Z"
    page.get_by_label("Times the real speed").fill("0.5")
    page.get_by_role("button", name="Set speed").click()
    expect(page.get_by_label("Times the real speed")).to_have_value("")
    page.get_by_role("button", name="Resume").click()
    expect(state).to_have_text("Running at 0.5 times the real speed")
    assert desk.ask("/api/clock", token)["data"] | {"now": "", "real_now": ""} == {
        **{"now": "", "real_now": "", "status": "running", "speed": 0.5, "target": None, "progress": None}
    }


def test_what_changed_while_the_clock_advanced_is_shown(desks, visit):
    desk = desks().serve("--clock", "2025-03-01", "--rate", "0", "--profile", "office")
    token = desk.token(*KEEPER)
    page = visit(desk, token)
    set_clock(desk, status="frozen")
    page.get_by_role("button", name="1 day").click()
    wait_for(lambda: shown_time(page) >= ticketapi.parse_moment("2025-03-02T00:00:00Z") / 1e6)
    wanted = desk.ask("/api/stats", token)
    expect(figure(page, "open-note")).to_have_text(f"of {wanted['total_tickets']:,} tickets")
    expect(page.locator("#schedule")).to_contain_text("as they come")
    hour = page.get_by_role("slider").first
    expect(hour).to_have_attribute("aria-valuetext", re.compile("^Sun 2 Mar, 00:00"))


def test_what_makes_no_sense_is_told_and_the_clock_stays(desks, visit):
    desk = desks().serve("--clock", "2025-03-01T10:00:00Z", *RARELY)
    set_clock(desk, status="frozen")
    token = desk.token(*KEEPER)
    page = visit(desk, token)
    alert, before = page.get_by_role("alert"), told_time(desk, token)
    page.get_by_text("Another duration").click()
    for label, text, button, told in (
        ("Duration", "soon", "Advance", "must be a duration such as 90s, 5m, 12h or 30d."),
        ("Duration", "4000d", "Advance", "must not be more than ten years ahead"),
        ("Times", "fast", "Set speed", "must be a number such as 60 or 60x"),
        ("Moment", "2025-02-28T10:00:00", "Go there", "must not be before the time of the desk"),
        ("Moment", "", "Go there", "must be a UTC time such as"),
    ):
        page.get_by_label(label).fill(text)
        page.get_by_role("button", name=button, exact=True).click()
        expect(alert).to_have_text("The clock is as it was.")
        expect(page.get_by_label(label)).to_be_focused()
        wait_for(lambda label=label, told=told: told in (problem_of(page, label)[1] or ""))
        assert problem_of(page, label)[0] == "true"
    assert told_time(desk, token) == before
    page.get_by_role("button", name="1 hour").click()
    wait_for(lambda: told_time(desk, token) == before + 3600)
    expect(alert).to_be_hidden()
    assert page.locator("#clock [aria-invalid]").count() == 0


def test_refusals_of_the_clock_are_told(desks, visit):
    desk = desks().serve("--clock", "2025-03-01T10:00:00Z", *RARELY)
    page = visit(desk, desk.token(*KEEPER))
    visit.allow("Failed to load resource: net::ERR_FAILED")
    moving = "The clock is advancing to 2025-04-01T00:00:00.000000Z; wait until it is there."
    answers = [(409, moving, moving), (403, "No.", "This token may not set the clock."), (0, "", "The server does not answer.")]
    for status, message, told in answers:

        def refuse(route, *, status=status, message=message):
            if route.request.method != "PUT":
                return route.continue_()
            if not status:
                return route.abort()
            return route.fulfill(status=status, body=json.dumps({"message": message}), content_type="application/json")

        page.route("**/api/clock", refuse)
        page.get_by_role("button", name="1 day").click()
        expect(page.locator("#clock-problem")).to_contain_text(told)
        page.unroute("**/api/clock")


def test_an_advance_is_followed_once_a_second_at_most(desks, visit):
    desk = desks().serve("--clock", "2025-03-01", "--rate", "0", "--profile", "busy")
    set_clock(desk, status="frozen")
    token = desk.token("*")
    page = is_live(visit(desk, token))
    settle(desk)
    page.get_by_text("Another duration").click()
    page.get_by_label("Duration").fill("90d")
    page.get_by_role("button", name="Advance", exact=True).click()
    expect(page.locator("#clock-state")).to_have_text(re.compile(r"^Advancing to Fri, 30 May 2025, 00:00:\d\d: \d+ %$"))
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("button", name="1 hour")).to_have_attribute("aria-disabled", "true")
    assert violations(page) == []
    expect(page.locator("#clock-state")).to_have_text("Frozen", timeout=120_000)
    expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(page.locator("#news")).to_have_text(re.compile("^It is Fri, 30 May 2025.* stands still.$"))
    total = desk.ask("/api/stats", token)["total_tickets"]
    expect(figure(page, "open-note")).to_have_text(f"of {total:,} tickets", timeout=15_000)
    with closing(sqlite3.connect(desk.folder / "ticketapi-audit.db")) as db:
        asked = "path = 'api/clock' AND method = 'GET' AND user_agent LIKE 'Mozilla%'"
        sql = f"SELECT created_at FROM api_audits WHERE {asked} ORDER BY id"
        times = [ticketapi.parse_time(row[0]) / 1e6 for row in db.execute(sql)]
    assert len(times) >= 3
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.9


def test_the_clock_of_a_server_that_is_gone_stands_and_is_asked_for_when_it_is_back(desks, visit):
    desk = desks().serve("--clock", "2025-03-01,60x", *RARELY)
    token = desk.token()
    page = is_live(visit(desk, token))
    settle(desk)
    port = desk.served.port
    desk.served.stop()
    expect(page.get_by_role("status")).to_contain_text("The server does not answer.")
    before = page.locator("#clock-time").inner_text()
    pass_time(page, 2)
    expect(page.locator("#clock-time")).to_have_text(before)
    desk.run("clock", "freeze")
    desk.serve(*RARELY, "--port", str(port))
    pass_time(page, 30)
    expect(page.locator("#clock-state")).to_have_text("Frozen")
    wait_for(lambda: abs(shown_time(page) - told_time(desk, token)) < 1)


def test_all_tabs_have_the_clock_that_one_of_them_sets(desks, visit):
    desk = desks().serve("--clock", "2025-03-01", *RARELY)
    token = desk.token(*KEEPER)
    page = is_live(visit(desk, token))
    other = is_live(visit(desk, token, page.context))
    after = settle(desk)
    other.get_by_role("button", name="Freeze").click()
    for tab in (page, other):
        expect(tab.locator("#clock-state")).to_have_text("Frozen")
    assert asked_for(desk, "api/clock", after) == 1


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_axe_finds_nothing_wrong_with_the_clock_and_the_keyboard_is_enough(desks, visit, look):
    desk = desks().serve("--clock", "2025-03-01", *RARELY)
    desk.run("generate", "--count", "3")
    page = visit(desk, desk.token(*KEEPER), **LOOKS[look])
    toggle = page.get_by_role("button", name="Freeze")
    tab_to(page, toggle)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Resume")).to_be_focused()
    tab_to(page, page.locator("#clock summary"))
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("nonsense")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Duration")).to_have_attribute("aria-invalid", "true")
    assert violations(page) == []
    assert overflow(page) == 0
    widths = "section => Math.max(...[...section.querySelectorAll('*')].map(one => one.getBoundingClientRect().right))"
    assert page.locator("#clock").evaluate(widths) <= page.locator("#clock").evaluate(
        "one => one.getBoundingClientRect().right"
    )


def test_a_desk_that_is_brought_back_is_shown_with_the_time_of_then(desks, visit):
    desk = desks().serve("--clock", "2025-03-01", *RARELY)
    token = desk.token(*KEEPER)
    set_clock(desk, status="frozen")
    desk.run("generate", "--count", "3")
    desk.run("snapshot", "save", "kept")
    page = is_live(visit(desk, token))
    before = page.locator("#clock-time").inner_text()
    desk.run("clock", "advance", "2d")
    desk.run("generate", "--count", "4")
    expect(figure(page, "open-count")).to_have_text("7")
    expect(page.locator("#clock-time")).to_contain_text("3 Mar 2025")
    desk.run("snapshot", "restore", "kept")
    expect(figure(page, "open-count")).to_have_text("3", timeout=15_000)
    expect(page.locator("#clock-time")).to_have_text(before)


# Faults ------------------------------------------------------------------------------------------


def let_go_wrong(desk, *rules):
    """Put faults in force."""
    assert desk.write("PUT", "/api/faults", desk.token("*"), {"faults": rules}) == 200


def test_faults_in_force_are_told_until_they_are_gone(desks, visit):
    desk = desks(30).serve("--rate", "0", "--no-scheduler")
    rule = {"route": "users", "status": 503}  # which the page does not ask for
    let_go_wrong(desk, rule, rule)
    token = desk.token()
    page = visit(desk, token)
    other = visit(desk, token, page.context)
    for tab in (page, other):
        expect(tab.locator("#faults")).to_contain_text("2 faults are in force")
    assert violations(page) == []
    link = page.locator("#faults a").get_attribute("href")
    assert page.evaluate("link => new URL(link, location).href", link) == f"{desk.served.url}/docs#faults"
    let_go_wrong(desk)
    pass_time(page)
    page.get_by_role("button", name="Refresh").click()
    for tab in (page, other):
        expect(tab.locator("#faults")).to_be_empty()
    let_go_wrong(desk, rule)
    pass_time(page)
    desk.run("generate")
    expect(page.locator("#faults")).to_contain_text("1 fault is in force")
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#faults")).to_be_empty()


def test_a_page_whose_answers_go_wrong_says_why_and_goes_on_when_they_are_healed(desks, visit):
    visit.allow("Failed to load resource: (the server responded with a status of 503|net::ERR_CONTENT_LENGTH_MISMATCH)")
    desk = desks(30).serve("--rate", "0", "--no-scheduler")
    page = is_live(visit(desk, desk.token()))
    settle(desk)
    before = number(page, "open-count")
    let_go_wrong(desk, {"route": "*", "first": 5, "status": 503}, {"route": "*", "first": 5, "body": "truncated"})
    desk.run("generate", "--count", "7")
    expect(page.get_by_role("status")).to_contain_text("The server says: Service Unavailable.")
    expect(page.locator("#faults")).to_contain_text("2 faults are in force")
    for _ in range(20):
        pass_time(page, 31)
        settle(desk)
    expect(figure(page, "open-count")).to_have_text(str(before + 7))
    expect(page.get_by_role("status")).to_be_empty()
    expect(page.locator("#faults")).to_be_empty()


# What it does when something fails ---------------------------------------------------------------


def test_a_server_that_is_gone_is_told_and_found_again(desks, visit):
    desk = desks(30).serve()
    token = desk.token()
    page = visit(desk, token)
    newcomer = visit(desk, context=page.context)
    before, port = number(page, "open-count"), desk.served.port
    settle(desk)
    desk.served.stop()
    pass_time(page)
    banner = page.get_by_role("status")
    expect(banner).to_contain_text("The server does not answer.")
    expect(figure(page, "open-count")).to_have_text(str(before))
    newcomer.get_by_label("Token").fill(token)
    newcomer.keyboard.press("Enter")
    expect(newcomer.get_by_role("alert")).to_contain_text("does not answer")
    desk.run("generate", "--count", "7")
    pass_time(page, 2)
    expect(banner).to_contain_text(re.compile(r"Trying again in \d s"))
    desk.serve("--no-scheduler", "--port", str(port))
    pass_time(page, 30)
    expect(banner).to_be_empty()
    expect(figure(page, "open-count")).to_have_text(str(before + 7))


def test_a_limit_that_is_reached_is_told_and_waited_for(live, visit):
    token = live.token()
    page = visit(live, token)
    after = settle(live)
    while (answer := live.served.get("/api/stats", token=token)).status != 429:
        pass
    page.get_by_role("button", name="Next page").first.click()
    expect(page.get_by_role("status")).to_contain_text("The limit of 30 requests a minute is reached. Going on in")
    expect(page.locator("#open-list nav")).to_contain_text("2 of")
    expect(page.get_by_role("status")).to_be_empty()
    statuses = [status for _, status, _ in live.requests(after)]
    assert statuses.count(429) == 1  # it waited as long as it was told to
    assert int(answer.headers["retry-after"]) >= 1


# For everybody -----------------------------------------------------------------------------------


def overflow(page):
    """Return by how much what is shown is wider than its place."""
    places = "[document.documentElement, ...document.querySelectorAll('dialog[open]')]"
    return page.evaluate(f"Math.max(...{places}.map(place => place.scrollWidth - place.clientWidth))")


def violations(page):
    """Return what axe-core finds wrong with a page, as readable lines."""
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes']]}" for one in found]


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True},
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_axe_finds_nothing_wrong(shown, visit, look):
    page = visit(shown, **look)
    assert violations(page) == []
    sign_in(page, shown.token())
    expect(page.locator("#audits tr").first).to_be_attached()
    page.get_by_text("As a table").first.click()
    assert violations(page) == []
    page.locator("#open-list tbody button").first.click()
    assert violations(page) == []
    assert overflow(page) == 0
    page.locator("#ticket-facts button").click()
    expect(page.locator("#customer-tickets tbody tr").first).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_axe_finds_nothing_wrong_with_what_is_written_with(live, visit, look):
    page = visit(live, live.token(*WRITER), **look)
    dialog = open_ticket(page, live.count("SELECT max(id) FROM tickets WHERE status = 1"))
    dialog.get_by_label("Your comment").fill("Seen")
    dialog.get_by_role("button", name="Add comment").click()
    expect(dialog.locator("#ticket-news")).to_contain_text("is written")
    dialog.get_by_role("button", name="Add comment").click()
    expect(dialog.locator("#comment-content-error")).to_be_visible()
    assert violations(page) == []
    assert overflow(page) == 0
    dialog.get_by_role("button", name="Delete ticket").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    dialog.get_by_role("button", name="Close", exact=True).click()
    fill_ticket(page, "", "").click()
    expect(page.locator("#new-subject-error")).to_be_visible()
    assert violations(page) == []
    assert overflow(page) == 0


def tab_to(page, locator):
    """Press Tab until something has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if locator.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError("Tab does not lead there")


def test_the_keyboard_is_enough(shown, visit):
    page = visit(shown)
    tab_to(page, page.get_by_label("Token"))
    page.keyboard.type(shown.token())
    page.keyboard.press("Enter")
    following = page.locator("#open-list").get_by_role("button", name="Next page")
    expect(page.locator("#open-list tbody tr")).to_have_count(10)
    tab_to(page, following)
    for number in (2, 3):
        page.keyboard.press("Enter")
        expect(page.locator("#open-list nav")).to_contain_text(f"{number} of")
        expect(following).to_be_focused()
    tab_to(page, page.locator("#open-list tbody button").first)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#open-list tbody button").first).to_be_focused()


def test_the_focus_stays_in_a_list_whose_tickets_are_closed(live, visit):
    page = visit(live, live.token())
    settle(live)
    first = page.locator("#open-list tbody button").first
    subject = first.inner_text()
    first.focus()
    live.run("process")
    pass_time(page)
    expect(first).not_to_have_text(subject)
    expect(first).to_be_focused()


def test_it_is_as_quick_at_a_million_tickets(desks, visit):
    desk = desks()
    desk.run("generate", "--count", "1000000", "--since", "90d", "--seed", "1")
    desk.serve("--no-scheduler")
    began = time.monotonic()
    page = visit(desk, desk.token())
    expect(page.locator("#audits tr").first).to_be_attached()
    assert time.monotonic() - began < 5
    expect(figure(page, "open-note")).to_have_text("of 1,000,000 tickets")
    closed = page.locator("#closed-list")
    closed.get_by_role("button", name="Last page").click()
    expect(closed.locator("tbody tr").last).to_contain_text("#1")
    page.get_by_label("90 days").check()
    slider = page.get_by_role("slider").first
    expect(slider).to_have_attribute("aria-valuemax", "90")
    with closing(sqlite3.connect(desk.folder / "ticketapi-audit.db")) as db:
        assert db.execute("SELECT max(duration_ms) FROM api_audits").fetchone()[0] < 200
