"""A page is one file: what it is made of, and that nothing in it points outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = ("meta", "link", "img", "br", "input")


class Page(HTMLParser):
    """Tags that are open, and everything that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.images = self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.scripts += tag == "script"
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert tag not in ("iframe", "object", "embed")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def assert_self_contained(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert not re.search(r"url\(|@import|https?://", text)
    return page
