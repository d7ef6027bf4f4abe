"""The README and the pages of docs/ as the tests read them: sections, tables, snippets, anchors."""

import re

from conftest import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
MANUAL = "\n".join(PAGES.values())
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def section(page, title):
    """Return the text of one section of a page in docs/."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGES[f"docs/{page}"], re.MULTILINE | re.DOTALL)[1]


def table(text):
    """Return the rows of the first table in a text, as lists of cells without the header."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell):
    """Return the first piece of code in a cell, or nothing."""
    found = re.search(r"`([^`]*)`", cell)
    return found[1] if found else ""


def snippets(page, title, language):
    """Return the snippets in a language that a section shows."""
    return [body for _, name, body in FENCE.findall(section(page, title)) if name == language]


def prose(text):
    """Return a page without its snippets."""
    return FENCE.sub("", text)


def anchors(text):
    """Return the anchors that the headings of a page have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def links(text):
    """Return where the links of a page lead, those of images too."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))
