"""Names of files, folders and classes, made fit for pictures, pages, terminals; text files."""

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

JOINERS = "\u200c\u200d"  # letters of some scripts, and emoji, are joined or kept apart by them
OWN = "…→\ufffd"  # characters above LATIN that captions have, and the font of matplotlib too
LATIN = "\u052f"  # the last character that this font is known to have: Latin, Greek, Cyrillic
NO_TEXT = ("cm", "Last Resort")  # fonts of matplotlib for other purposes
# In which a list may be that is not in UTF-8, if there is a file of the name.
ENCODINGS = ("cp1252", "cp437", "gb18030", "cp932", "cp949", "cp1251", "latin-1")
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


def decode(content: bytes) -> str:
    """A file of names or options as text: in the encoding of file names, or as Windows writes it.

    UTF-16 and UTF-32 may be without their mark. Bytes that are not UTF-8 become surrogates.
    """
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32", "replace")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    zeros = [content[place::4].count(0) * 4 > len(content) * 0.9 for place in range(4)]
    if (zeros[2:] == [True, True]) != (zeros[:2] == [True, True]) and len(content) >= 4:
        return content.decode("utf-32-le" if zeros[2] and zeros[3] else "utf-32-be", "replace")
    even, odd = content[::2].count(0), content[1::2].count(0)
    ends = {content[place : place + 2] for place in range(0, len(content), 2)}
    ended = not ends.isdisjoint((b"\n\0", b"\0\n", b"\r\0", b"\0\r"))
    if max(even, odd) > len(content) // 5 or (ended and not _is_utf8(content)):
        # Without a mark; names that NUL ends have fewer zeros, and no line ends.
        return content.decode("utf-16-le" if odd > even else "utf-16-be", "replace")
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def encoding_problem(line: str) -> str:
    """What is wrong with a name that `decode` has read as UTF-8 and that is not; else nothing.

    If there is a file of this name in another encoding, that is named.
    """
    content = os.fsencode(line)
    try:
        content.decode("utf-8")
        return ""
    except UnicodeDecodeError as error:
        found = f"byte {content[error.start]:#04x} at {error.start + 1}"
    for encoding in ENCODINGS:
        with suppress(UnicodeDecodeError, ValueError, OSError):
            if os.path.exists(content.decode(encoding)):
                found = encoding
                break
    return f"is not in UTF-8 ({found}); save it in UTF-8"
