"""An HTML page in one file: elements whose text is escaped, tables, images, the look."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

VOID = ("img", "meta")  # elements without an end
COLOURS = 6  # of the series in charts; after them come the same with other strokes
STROKES = ("", " (dashed)", " (dotted)", " (dash-dotted)")
PIXELATED = 100  # images of fewer pixels are enlarged without blur
# The colours are those of Okabe and Ito 2008, lighter in the dark; all can be told apart by
# people who are colour-blind.
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --paper: #fff; --box: #f4f6f8;
  --line: #dde1e6; --shade: 0 114 178; --series-0: #0072b2; --series-1: #d55e00;
  --series-2: #009e73; --series-3: #cc79a7; --series-4: #b8860b; --series-5: #56b4e9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4b0; --paper: #14171a; --box: #1e2327; --line: #343b42;
    --shade: 86 180 233; --series-0: #56b4e9; --series-1: #ff9248; --series-2: #2fc79a;
    --series-3: #e0a0c5; --series-4: #f0e442; --series-5: #8fb3d9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; }
.soft, figcaption, th, caption { color: var(--soft); }
.verdict { background: var(--box); border-radius: .6rem; padding: 1rem 1.2rem; margin: 1rem 0; }
.verdict strong { display: block; font-size: 2.6rem; line-height: 1.15; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem;
  margin: .8rem 0 0; }
.tiles dt { font-size: .85rem; color: var(--soft); }
.tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
.small { font-size: .8rem; font-weight: 400; }
.box { overflow: auto; max-height: 32rem; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 500; }
.numbers td:not(:first-child) { white-space: nowrap; }
td:first-child { min-width: 5rem; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; }
.matrix td { text-align: center; min-width: 2.2rem; padding: .2rem; border: 1px solid var(--line); }
.matrix th { max-width: 8rem; }
.images { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
.triple { display: grid; gap: .4rem; grid-template-columns: repeat(3, minmax(0, 1fr));
  max-width: 44rem; }
.batch { max-width: 44rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill,
  minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: .25rem; }
figcaption { font-size: .8rem; line-height: 1.3; margin-top: .2rem; white-space: pre-line; }
.pixels { image-rendering: pixelated; }
svg { width: 100%; height: auto; display: block; overflow: visible;
  font: 9px system-ui, sans-serif; stroke-linejoin: round; stroke-linecap: butt; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 0; }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0;
  font-size: .9rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .box { max-height: none; overflow: visible; }
  figure, tr, .verdict, .tiles > div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


class Html(str):
    """Text that is HTML already. All other text is escaped where it is put into an element."""


def escape(value: object) -> Html:
    """Any text as HTML; characters that cannot be shown, as in odd file names, are replaced."""
    if isinstance(value, Html):
        return value
    shown = (char if char.isprintable() or char == "\n" else "\ufffd" for char in str(value))
    return Html(html.escape("".join(shown)))


def element(name: str, /, *content: object, **attributes: object) -> Html:
    """An element; what is in it is escaped unless it is an Html. `class_` stands for class."""
    given = {key.rstrip("_"): escape(value) for key, value in attributes.items() if value != ""}
    words = "".join(f' {key}="{value}"' for key, value in given.items())
    inner = "".join(map(escape, content))
    return Html(f"<{name}{words}>" if name in VOID else f"<{name}{words}>{inner}</{name}>")


def section(title: str, *content: object) -> Html:
    """A part of the page below its heading."""
    return element("section", element("h2", title), *content, Html("\n"))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], class_: str = "") -> Html:
    """A table in a box that scrolls, so that a wide one never makes the page wider.

    Args:
        head: The names of the columns.
        rows: The cells; one that is a `td` or `th` already is left as it is.
        class_: `numbers` puts all columns but the first to the right.
    """
    top = element("tr", *(element("th", name, scope="col") for name in head))
    body = (element("tr", *map(_cell, row)) for row in rows)
    whole = element("table", element("thead", top), element("tbody", *body), class_=class_)
    return element("div", whole, class_="box", tabindex="0")


def _cell(value: object) -> Html:
    if isinstance(value, Html) and value.startswith(("<td", "<th")):
        return value
    return element("td", value)


def tiles(facts: Mapping[str, object]) -> Html:
    """Facts side by side, each with its name above it."""
    pairs = [element("div", element("dt", k), element("dd", v)) for k, v in facts.items()]
    return element("dl", *pairs, class_="tiles")


def keys(names: Iterable[object]) -> Html:
    """The legend of charts: the name of each series beside its colour."""
    items = []
    for number, name in enumerate(names):
        style = f"background: var(--series-{number % COLOURS})"
        stroke = STROKES[number // COLOURS % len(STROKES)]
        items.append(element("li", element("span", class_="key", style=style), name, stroke))
    return element("ul", *items, class_="keys")


def image(picture: Image.Image | Tensor, caption: object, alt: str, most: int = 160) -> Html:
    """An image within the page, with a caption.

    Args:
        picture: A tensor is uint8 (3, H, W).
        caption: Below the image.
        alt: What it shows, for those who do not see it.
        most: A wider or higher image is reduced to so many pixels.
    """
    picture = to_pil_image(picture) if isinstance(picture, Tensor) else picture.convert("RGB")
    picture.thumbnail((most, most))
    small = max(picture.size) < PIXELATED
    kind, file = "png" if small else "jpeg", io.BytesIO()
    picture.save(file, kind, quality=85)
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    size = {"width": picture.width, "height": picture.height}
    shown = element("img", src=source, alt=alt, **size, class_="pixels" if small else "")
    return element("figure", shown, element("figcaption", caption))


def document(title: str, *content: object) -> str:
    """A whole page, which asks no host for anything."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    body = element("body", element("main", element("h1", title), *content))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
