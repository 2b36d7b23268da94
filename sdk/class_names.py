"""When two names are one class's, however they are written: one rule for page, settings, folders and fleet.

A folder that came from a Mac has its umlauts as two letters each, a Japanese keyboard types wide letters, copied
text brings characters that nobody sees. This is the caseless matching of compatibility forms that Unicode defines
(The Unicode Standard, section 3.13, D147): names are kept as they were typed, their letters `composed`, and
compared by their key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from typing import Final

RESERVED: Final = "unknown"
"""What devices say of what looks like no class; no class may be called so."""

_UNSEEN: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt)."""


def key_of(name: str) -> str:
    """Return what names of one class have in common: case, width, composition, spaces and unseen characters apart.

    >>> key_of("Deep  Scratch") == key_of("deep scratch"), key_of("GROSS") == key_of("groß")
    (True, True)
    """
    if name.isascii():  # nearly all, and asked for each part
        return " ".join(name.casefold().split())
    plain = unicodedata.normalize("NFD", _UNSEEN.sub("", name)).casefold()
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain).casefold())
    return " ".join(plain.split())


def composed(name: str) -> str:
    """Return a name with each letter and its accents as one character (Unicode's NFC), as most keyboards write it.

    Names come in so: of image sets, from operators, and from whoever renames a class for a fleet.

    >>> composed("O\u0308l") == "\u00d6l", composed("GUT")
    (True, 'GUT')
    """
    return unicodedata.normalize("NFC", name)


def spelled(name: str, known: Collection[str]) -> str:
    """Return how somebody who knows a class writes it: this name, else the only one known with its key.

    >>> spelled("gut", ["Gut", "Riss"]), spelled("gut", ["Gut", "GUT"]), spelled("Beule", ["Gut"])
    ('Gut', 'gut', 'Beule')
    """
    if name in known:
        return name
    key = key_of(name)
    same = {each for each in known if key_of(each) == key}
    return same.pop() if len(same) == 1 else name


def is_reserved(name: str) -> bool:
    """Return whether a name is, to anybody who reads it, `RESERVED`."""
    return key_of(name) == RESERVED
