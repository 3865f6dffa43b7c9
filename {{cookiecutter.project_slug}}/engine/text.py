"""Names of files, folders and classes, made fit for pictures and pages, and for terminals."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

JOINERS = "\u200c\u200d"  # letters of some scripts, and emoji, are joined or kept apart by them
OWN = "…→\ufffd"  # characters above LATIN that captions have, and the font of matplotlib too
LATIN = "\u052f"  # the last character that this font is known to have: Latin, Greek, Cyrillic
NO_TEXT = ("cm", "Last Resort")  # fonts of matplotlib for other purposes
_found: dict[str, tuple[str, str]] = {}  # file and family of the font of a character, "" if none


def drawable(text: object) -> str:
    """Any text as one line that can be drawn: a blank for each line break, else U+FFFD.

    To draw it by matplotlib, pass `parse_math=False` too: a class may be called `$5` or `$$`.
    """

    def shown(char: str) -> str:
        if char.isprintable() or char in JOINERS:
            return char
        return " " if char.isspace() else "\ufffd"

    return "".join(map(shown, str(text)))


def printable(text: object) -> str:
    r"""Any text as one line for a terminal or a log: control characters as in Python, `\x1b`."""

    def shown(char: str) -> str:
        if char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs":
            return char
        return char.encode("unicode_escape").decode()

    text = str(text)
    return text if text.isprintable() else "".join(map(shown, text))


def own_font() -> str:
    """The file of matplotlib's font, which has more letters than that of Pillow; "" if none."""
    spec = find_spec("matplotlib")  # it is not imported, which would take a while
    folders = (spec and spec.submodule_search_locations) or ()
    return next((f"{folder}/mpl-data/fonts/ttf/DejaVuSans.ttf" for folder in folders), "")


def font_file(text: str) -> str:
    """The font that most characters of a text need; that of matplotlib if it has them, or none."""
    _look_up(text)
    files = Counter(_found[char][0] for char in text if char in _found)
    return next((file for file, _ in files.most_common() if file), own_font())


def font_families(texts: Iterable[str]) -> list[str]:
    """The fonts that texts need, for matplotlib's `font.family`."""
    text = "".join(texts)
    _look_up(text)
    names = dict.fromkeys(_found[char][1] for char in text if char in _found)
    return ["DejaVu Sans", *filter(None, names)]


def _look_up(text: str) -> None:
    """Finds a font for each character that is not known yet, among those of the system."""
    left = {char for char in text if char > LATIN} - _found.keys() - set(OWN + JOINERS)
    if not left or not own_font():
        return
    from matplotlib.font_manager import fontManager  # takes a while
    from matplotlib.ft2font import FT2Font

    usual = {entry.fname: entry.name for entry in fontManager.ttflist if _is_usual(entry)}
    for file, name in [("", ""), *usual.items()]:
        try:
            codes = FT2Font(file or own_font()).get_charmap() if left else {}
        except (OSError, RuntimeError):  # it is gone, or cannot be drawn at any size
            continue
        if ord("A") in codes:  # captions have numbers too
            here = {char for char in left if ord(char) in codes}
            _found.update(dict.fromkeys(here, (file, name)))
            left -= here
    _found.update(dict.fromkeys(left, ("", "")))


def _is_usual(entry: Any) -> bool:
    usual = (entry.style, entry.stretch) == ("normal", "normal") and entry.weight in (400, "normal")
    return usual and not entry.name.startswith(NO_TEXT)
