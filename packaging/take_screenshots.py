#!/usr/bin/env python3
"""Take pictures of the dashboard on a fresh `serve --demo`: light.png, dark.png and phone.png in a folder.

    python3 packaging/take_screenshots.py FOLDER

Needs Chromium, Playwright for Python and the packages of ticketapi. The README shows light.png, as .github/dashboard.png.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

PROGRAM = Path(__file__).resolve().parent.parent / "ticketapi.py"
BROWSERS = "chromium", "chromium-browser", "google-chrome"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LOOKS = {"light": (WIDE, "light"), "dark": (WIDE, "dark"), "phone": (PHONE, "light")}


@contextmanager
def demo() -> Iterator[tuple[str, str]]:
    """Serve a demo desk and give its address and token, which the server prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROGRAM), "serve", "--demo", "--port", "0"]
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr
        try:
            found = next(filter(None, (re.search(r"Open (\S+) and paste the token: (\S+)", line) for line in process.stderr)))
            yield found[1], found[2]
        finally:
            process.terminate()
            process.communicate()


def take(browser: Browser, url: str, token: str, name: str, folder: Path) -> None:
    """Sign in and take a picture of what the first screen then shows."""
    viewport, scheme = LOOKS[name]
    context = browser.new_context(viewport=viewport, color_scheme=scheme, timezone_id="UTC")
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#audits tr").first).to_be_attached()
    page.screenshot(path=folder / f"{name}.png")
    context.close()


def main() -> None:
    """Take all pictures."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    arguments = [] if os.getuid() else ["--no-sandbox"]  # which Chromium refuses to root
    with demo() as (url, token), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for name in LOOKS:
            take(browser, url, token, name, folder)
        browser.close()


if __name__ == "__main__":
    main()
