"""Proof that the recipes of docs/simulation.md do what they say, run as they stand there.

Run with `pytest -m proof tests/proofs/test_recipes.py`. Servers take ports of their own, which the lines are told.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from statistics import median

import pytest
from conftest import ROOT, wait_for
from manual import FENCE, section, snippets

import ticketapi

RECIPES = section("simulation.md", "Recipes")
PYTHON = Path(sys.executable).parent
TIMING = """
import time


def test_how_long_a_restore_takes(kept):
    for _ in range(30):
        begun = time.perf_counter()
        kept.ask("POST", "/api/snapshots/kept/restore")
        print("restored in", time.perf_counter() - begun)
"""


def recipe(title):
    """Return the text of a recipe, and its snippets."""
    found = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^### |\Z)", RECIPES, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()), [body for _, _, body in FENCE.findall(found[1])]


class Kitchen:
    """A folder with a desk, its server and a token, in which snippets are run."""

    def __init__(self, serve, folder):
        """Take what starts servers, and the folder; `ticketapi` there is the one under test."""
        self.start, self.folder, self.served = serve, folder, None
        (folder / "bin").mkdir()
        (folder / "bin" / "ticketapi").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ticketapi "$@"\n')
        (folder / "bin" / "ticketapi").chmod(0o755)
        environ = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "COV_", "TICKETAPI_"))}
        path = os.pathsep.join([str(folder / "bin"), str(PYTHON), environ["PATH"]])
        self.environ = {**environ, "PATH": path, "PYTHONPATH": str(ROOT)}

    def serve(self, line):
        """Start the server that a line of a recipe starts, and make a token that may do everything."""
        _, _, *arguments = shlex.split(line)
        self.served = self.start(*arguments)
        [making] = re.findall(r"`export TOKEN=(.*)`", RECIPES)
        self.environ["TOKEN"] = self.run(f"echo {making}").strip()
        return self

    def here(self, snippet):
        """Return a snippet with the server's address."""
        return snippet.replace("http://127.0.0.1:8000", self.served.url) if self.served else snippet

    def run(self, snippet):
        """Run lines of a shell to their end, and return what they say."""
        call = ["sh", "-euc", self.here(snippet)]
        done = subprocess.run(call, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, name, snippet):
        """Write a file."""
        (self.folder / name).write_text(self.here(snippet))

    def get(self, path):
        """Return the JSON of an answer of the API."""
        answer = self.served.get(path, self.environ["TOKEN"])
        assert answer.status == 200, answer.body
        return answer.json

    def clock(self):
        """Return the desk's clock, which a command tells without limit."""
        return json.loads(self.run("ticketapi clock --json"))

    def audits(self, path):
        """Return the statuses that were answered to requests for a path, in their order."""
        with closing(ticketapi.connect(self.folder / "ticketapi-audit.db")) as db:
            rows = db.execute("SELECT status_code FROM api_audits WHERE path = ? ORDER BY id", (path,)).fetchall()
        return [row["status_code"] for row in rows]


@pytest.fixture
def kitchen(serve, tmp_path):
    """A folder to run recipes in."""
    return Kitchen(serve, tmp_path)


def test_the_clock_is_held_as_the_manual_says(kitchen):
    serves, commands, requests = snippets("simulation.md", "The clock", "sh")
    first, *others = serves.splitlines()
    for line in others:
        kitchen.serve(line.partition("#")[0]).served.stop()
        (kitchen.folder / "ticketapi.db").unlink()
    kitchen.serve(f"{first.partition('#')[0]} --profile office")
    shown = kitchen.run(commands).splitlines()
    assert [line[:10] for line in shown] == ["2025-01-01"] * 2 + ["2025-01-31"] + ["2025-04-01"] * 3
    assert [line.partition(", ")[2] for line in shown] == [
        *("running", "frozen", "frozen", "frozen", "frozen at 0.5 times the real speed", "running at 0.5 times the real speed")
    ]
    answers = kitchen.run(requests)
    assert [answers.count(text) for text in ('"data"', '"message"')] == [3, 0]
    wait_for(lambda: kitchen.clock()["status"] == "frozen", 120)
    assert kitchen.clock()["now"][:10] == "2025-05-01"


def test_a_year_of_tickets_in_a_minute(kitchen):
    text, (serve, lines) = recipe("A year of tickets in a minute")
    said = kitchen.serve(serve).run(lines)
    clock = kitchen.clock()
    assert (clock["status"], clock["speed"], clock["now"] >= "2026-01-01") == ("running", 3600, True)
    days = json.JSONDecoder().raw_decode(said, said.index('{"data"'))[0]["data"]
    figures = dict(re.findall(r"^(Open|Total) +([\d,]+)$", said, re.MULTILINE))
    assert f"The year has {figures['Total']} tickets, {figures['Open']} of them open at its end" in text
    assert sum(day["opened"] for day in days) == int(figures["Total"].replace(",", ""))
    assert (days[0]["at"][:10], days[-1]["at"][:10]) == ("2025-01-01", "2026-01-01")
    weekdays = [day["opened"] for day in days[5 : 5 + 7 * 50]]  # from a Monday on
    working, resting = (sum(weekdays[at::7][week] for week in range(50)) for at in (0, 6))
    assert working > 2 * resting


def test_the_same_desk_in_every_test_run(kitchen):
    text, (fixture, tests) = recipe("The same desk in every test run")
    for name, body in (("conftest.py", fixture), ("test_desk.py", tests), ("test_timing.py", TIMING)):
        kitchen.write(name, body)
    suite = "python3 -m pytest -q -s -p no:cacheprovider -p no:xdist --rootdir . ."
    first, second = kitchen.run(suite), kitchen.run(suite)
    for said in (first, second):
        assert "5 passed" in said
    times = [float(seconds) for seconds in re.findall(r"restored in (\S+)", first + second)]
    assert "A restore takes less than 50 ms." in text
    print(f"a restore of 10,000 tickets took {median(times) * 1000:.0f} ms, {min(times) * 1000:.0f} ms at best")
    assert min(times) < 0.05 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # on a machine that has nothing else to do


def tickets_until(kitchen, moment):
    """Return the tickets that came until a moment: what they were, then, and when those were closed that were."""
    lines = kitchen.run("ticketapi tickets all --limit 0 --format jsonl").splitlines()
    tickets = [one for one in map(json.loads, lines) if one["created_at"] <= moment]
    ends = [one["closed_at"] if (one["closed_at"] or "9") <= moment else None for one in tickets]
    return [(one["id"], one["subject"], one["created_at"], end) for one, end in zip(tickets, ends, strict=True)]


def test_an_incident_again_and_again(kitchen):
    text, (serve, lines) = recipe("An incident, again and again")
    before, after = re.fullmatch(r"(.*\nticketapi stats\n)(.*)", lines, re.DOTALL).groups()
    kitchen.serve(serve).run(before)
    end = kitchen.clock()["now"]
    assert end == "2025-06-02T17:30:00.000000Z"
    flood = tickets_until(kitchen, end)
    hours = {row["at"][11:13]: row["opened"] for row in kitchen.get("/api/series?since=8h")["data"]}
    assert "on 2 June 2025 from noon to five" in text
    usual = max(hours["10"], hours["11"], hours["17"])
    assert min(hours[f"{hour}"] for hour in range(12, 17)) > 2 * usual
    kitchen.run(after)
    wait_for(lambda: kitchen.clock()["now"] > end, 60)
    kitchen.run("ticketapi clock freeze")
    assert kitchen.clock()["now"] < "2025-06-03"
    assert tickets_until(kitchen, end) == flood


def test_what_your_connector_does_with_bad_answers(kitchen):
    text, (client, serve, lines, alone) = recipe("What your connector does with bad answers")
    kitchen.serve(serve).write("patient.py", client)
    said = kitchen.run(lines).splitlines()
    met = said[-6:-1]
    assert met[0].endswith("429")
    assert met[1:] == ["503", "IncompleteRead", "JSONDecodeError", "ConnectionResetError"]
    assert "It says `429`, `503`, `IncompleteRead`, `JSONDecodeError` and `ConnectionResetError`" in text
    assert re.fullmatch(r"1000\d tickets", said[-1])  # some may have come meanwhile
    statuses = kitchen.audits("api/tickets/export")
    assert (statuses[:2], set(statuses[2:])) == ([429, 503], {200})
    assert kitchen.served.get("/up").json == {"status": "up"}
    once = kitchen.run(alone)
    assert once.startswith("HTTP/1.1 503 ")
    assert "Retry-After: 2\n" in once
    assert kitchen.served.get("/api/stats", kitchen.environ["TOKEN"]).status == 200


def test_a_month_ends_while_you_watch(kitchen):
    _, (report, serve, lines) = recipe("A month ends while you watch")
    kitchen.serve(serve).write("report.py", report)
    shown = re.findall(r"^python3 report.py +# (.*)$", lines, re.MULTILINE)
    said = kitchen.run(lines).splitlines()
    assert [line for line in said if re.match(r"2024-0\d \d", line)] == shown
    assert [line.split()[:2] for line in shown] == [["2024-02", "29"], ["2024-03", "1"]]
