"""What a page would load from elsewhere (nothing, if it is self-contained), and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

PHONE_WIDTH = 390
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# what lies beyond the page's width and is in no box that scrolls; letters of a plot that lie outside its drawing
MEASURE = """<script>
const width = document.documentElement.clientWidth, cut = [];
for (const text of document.querySelectorAll("svg text")) {
  const [t, s] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
  if (t.left < s.left - 1 || t.right > s.right + 1 || t.top < s.top - 1 || t.bottom > s.bottom + 1) cut.push(text.textContent);
}
const outside = [...document.querySelectorAll("body *")].filter(
  (e) => !e.closest(".scroll") && e.getBoundingClientRect().right > width + 1).map((e) => e.tagName);
const figures = document.querySelectorAll("svg").length, scroll = document.documentElement.scrollWidth;
parent.postMessage(JSON.stringify({width, scroll, outside, cut, figures}), "*");
</script>"""
# a window of its own is never narrower than 500 pixels
FRAME = """<!doctype html><title></title><script>onmessage = (event) => {{ document.title = event.data; }};</script>
<iframe src="measured.html" style="border: 0; width: {width}px; height: 844px"></iframe>"""


class Outside(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("link", "script", "iframe", "base"):
            self.found.append(tag)
        for name, value in attrs:
            loads = name in ("src", "href", "xlink:href", "srcset", "data", "action")
            if loads and not (value or "").startswith(("#", "data:image/png;base64,")):
                self.found.append(f"{tag} {name}={value}")


def outside(page: str) -> list[str]:
    parser = Outside()
    parser.feed(page)
    text = re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", page, flags=re.DOTALL)
    return parser.found + re.findall(r"https?://\S+|@import\S*|url\((?!#)\S*", text)


def in_a_browser(page: str, folder: Path, width: int = PHONE_WIDTH) -> dict[str, Any]:
    """What Chromium makes of a page in a frame `width` pixels wide; the test is skipped where it is not installed.

    width: of the page; scroll: the same unless something sticks out; outside: tags beyond the page's width; cut: letters of plots that
    their drawing cuts off; figures: how many plots there are.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed: no page is opened")
    (folder / "measured.html").write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}"]
    command = [browser, *flags, "--virtual-time-budget=10000", "--dump-dom", frame.as_uri()]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title is not None, shown[:1000]
    return json.loads(html.unescape(title[1]))


def assert_readable_on_a_phone(page: str, folder: Path) -> None:
    """Nothing is off screen, and every legend and label is whole."""
    seen = in_a_browser(page, folder)
    assert seen["figures"] > 0
    assert seen["scroll"] <= seen["width"] <= PHONE_WIDTH, seen
    assert seen["outside"] == []
    assert seen["cut"] == []
