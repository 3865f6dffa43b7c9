"""Names that look alike and are not the same."""

import unicodedata


def difference(one: str, other: str) -> str:
    """By what two names differ that look alike: Unicode form, blanks, case; else nothing."""
    if one == other or simple(one) != simple(other):
        return ""
    kinds = ("Unicode form", "blanks", "case")
    found = [kind for kind in kinds if simple(one, kind) != simple(other, kind)]
    return " and ".join(found) or "characters that look alike"


def simple(name: str, but: str = "") -> str:
    """A name in one Unicode form, without blanks and capitals, but for one of these changes."""
    name = name if but == "Unicode form" else unicodedata.normalize("NFKC", name)
    name = name if but == "blanks" else "".join(name.split())
    return name if but == "case" else name.casefold()
