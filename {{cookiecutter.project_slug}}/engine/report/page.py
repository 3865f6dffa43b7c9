"""An HTML page in one file: elements whose text is escaped, tables, images, the look."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from engine.text import drawable

VOID = ("img", "meta")  # elements without an end
# Colours of the series in charts, those of Okabe and Ito 2008 with a darker yellow: all can be told
# apart by people who are colour-blind. After them come the same with other strokes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
STROKES = {"-": "", "--": " (dashed)", ":": " (dotted)", "-.": " (dash-dotted)"}
PIXELATED = 100  # images of fewer pixels are enlarged without blur
STYLE = Path(__file__).with_name("style.css")


class Html(str):
    """Text that is HTML already. All other text is escaped where it is put into an element."""


def escape(value: object) -> Html:
    """Any text as HTML; characters that cannot be shown, as in odd file names, are replaced."""
    if isinstance(value, Html):
        return value
    return Html(html.escape("\n".join(map(drawable, str(value).split("\n")))))


def element(name: str, /, *content: object, **attributes: object) -> Html:
    """An element; what is in it is escaped unless it is an Html. `class_` stands for class."""
    given = {key.rstrip("_"): escape(value) for key, value in attributes.items() if value != ""}
    words = "".join(f' {key}="{value}"' for key, value in given.items())
    inner = "".join(map(escape, content))
    return Html(f"<{name}{words}>" if name in VOID else f"<{name}{words}>{inner}</{name}>")


def section(title: str, *content: object, note: str = "") -> Html:
    """A part of the page below its heading and a note."""
    said = [element("p", note, class_="soft")] if note else []
    return element("section", element("h2", title), *said, *content, Html("\n"))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], class_: str = "") -> Html:
    """A table in a box that scrolls, so that a wide one never makes the page wider.

    Args:
        head: The names of the columns.
        rows: Their cells.
        class_: `numbers` puts all columns but the first to the right.
    """
    top = element("tr", *(element("th", name, scope="col") for name in head))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    whole = element("table", element("thead", top), element("tbody", *body), class_=class_)
    return element("div", whole, class_="box", tabindex="0")


def tiles(facts: Mapping[str, object]) -> Html:
    """Facts side by side, each with its name above it."""
    pairs = [element("div", element("dt", k), element("dd", v)) for k, v in facts.items()]
    return element("dl", *pairs, class_="tiles")


def keys(names: Iterable[object]) -> Html:
    """The legend of charts: the name of each series beside its colour."""
    items = []
    looks = cycle(product(STROKES.values(), COLOURS))
    for name, (stroke, colour) in zip(names, looks, strict=False):
        key = element("span", class_="key", style=f"background: {colour}")
        items.append(element("li", key, name, stroke))
    return element("ul", *items, class_="keys")


def image(picture: Image.Image | Tensor, caption: object, alt: str, most: int = 160) -> Html:
    """An image within the page, with a caption below it.

    Args:
        picture: A tensor is uint8 (3, H, W).
        caption: Its text.
        alt: What it shows, for those who do not see it.
        most: A wider or higher image is reduced to so many pixels.
    """
    picture = to_pil_image(picture) if isinstance(picture, Tensor) else picture.convert("RGB")
    picture.thumbnail((most, most))
    small = max(picture.size) < PIXELATED
    kind, file = "png" if small else "jpeg", io.BytesIO()
    picture.save(file, kind, quality=85)
    size = {"width": picture.width, "height": picture.height}
    source = data_url(kind, file.getvalue())
    shown = element("img", src=source, alt=alt, **size, class_="pixels" if small else "")
    return element("figure", shown, element("figcaption", caption))


def data_url(kind: str, content: bytes) -> str:
    """An image as an address that holds the image itself; `kind` is png, jpeg or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def document(title: str, *content: object) -> str:
    """A whole page, which asks no host for anything."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
    body = element("body", element("main", element("h1", title), *content))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
