"""Checks of the pages that programs write: each is one whole file that asks for no other."""

import re
from html.parser import HTMLParser


class Elements(HTMLParser):
    """The elements of a page, and the texts in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, name: str) -> list[str | None]:
        """The values of an attribute in all elements."""
        return [attributes[name] for _, attributes in self.found if name in attributes]


def check_whole(text: str) -> Elements:
    """Fails if the page runs a script, asks for a file, or has an id twice."""
    page = Elements(text)
    assert "script" not in {tag for tag, _ in page.found}
    asked = [*page.all("src"), *page.all("href"), *page.all("xlink:href")]
    assert all(str(place).startswith(("data:image/", "#")) for place in asked)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.all("id")) == len(set(page.all("id")))
    assert not [name for _, given in page.found for name in given if name.startswith("on")]
    used = {str(place)[1:] for place in asked if str(place).startswith("#")}
    assert used | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.all("id"))
    return page
