"""The page under /docs holds all it needs, is of one piece, and asks nobody else."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from conftest import ROOT

HTML = (ROOT / "docs.html").read_text().replace("// include: page.js\n", (ROOT / "page.js").read_text())


# The file, without a browser ---------------------------------------------------------------------


class Tags(HTMLParser):
    """Collects the elements of a page with their attributes, and the text of each kind of element."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.inside = [], {}, None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, _):
        self.inside = None

    def handle_data(self, data):
        self.texts.setdefault(self.inside, []).append(data)


def test_the_policy_names_the_hashes_of_its_one_script_and_one_style(api):
    policy = api.get("/docs").headers["content-security-policy"]
    for tag in ("script", "style"):
        (text,) = Tags(HTML).texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_it_has_no_handlers_and_styles_in_attributes():
    attributes = [name for _, found in Tags(HTML).elements for name in found]
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")]


def test_it_asks_nobody_else():
    links = [found["href"] for _, found in Tags(HTML).elements if "href" in found]
    assert all(re.match(r"\./|openapi\.json$|#|data:image/svg", link) for link in links)
    assert re.findall(r"https?://[\w.]+", HTML) == ["http://www.w3.org"]  # the namespace of the icon, in its data: URL


def test_no_text_becomes_markup():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser", HTML)


def test_it_is_kept_by_the_browser_while_it_is_the_same(api):
    first = api.get("/docs")
    assert (first.status, first.headers["content-type"], first.body.decode()) == (200, "text/html; charset=utf-8", HTML)
    again = api.get("/docs", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert api.audits() == []
