"""What a page would load from elsewhere: nothing, if it is self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser


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
