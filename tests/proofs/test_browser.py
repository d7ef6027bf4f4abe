"""The dashboard in a real Chromium: what it shows, what it asks the server for, and what it does when something fails."""

import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from conftest import Served, wait_for

import ticketapi

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core: pip install axe-playwright-python")
expect = sync_api.expect

ALL = ["read:tickets", "read:audits"]
REFUSAL = re.compile(r"Failed to load resource: (the server responded with a status of 4|net::ERR_CONNECTION_REFUSED)")
WITHOUT_LOCKS = "Object.defineProperty(Navigator.prototype, 'locks', {value: undefined})"
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
    contexts, seen = [], []

    def open_context(**more):
        contexts.append(browser.new_context(**more))
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
    visit.context = open_context
    yield visit
    for context in contexts:
        context.close()
    assert [text for text in seen if not REFUSAL.match(text)] == []
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
    """Wait until the page asks for nothing more; return the id of the latest request."""
    seen = [-1]

    def is_quiet():
        seen.append(desk.last())
        return seen[-1] == seen[-2] and len(seen) > 3

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
    page = visit(live, token)
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
    page = visit(desk, desk.token())
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


def test_half_of_the_limit_is_left_for_clicks_and_scripts(desks, visit):
    desk = desks(30).serve("--rate", "12", "--no-scheduler")
    token = desk.token()
    page = visit(desk, token)
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
    page = visit(live, token, host=host)
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
    pages = [visit(live, token)]
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
    page = visit(live, token)
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
    page.locator("#ticket-facts button").click()
    expect(page.locator("#customer-tickets tbody tr").first).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


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
