"""Text from outside in a table that somebody opens in a spreadsheet program."""

from __future__ import annotations

from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet computes when a cell begins with it."""


def harmless(text: str) -> str:
    """Return a text as a cell of a CSV: what a spreadsheet would compute gets an apostrophe before it.

    >>> harmless("=1+1"), harmless("scratch")
    ("'=1+1", 'scratch')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text
