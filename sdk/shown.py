"""Text from outside on somebody's terminal or in a log: a name moves no cursor and begins no line of its own.

Devices, bundles, labels and triggers bring their own names and faults, and some are older than any check of them.
What a terminal would obey, an escape sequence or a change of the writing's direction, is shown as Python writes
it.
"""

from __future__ import annotations

import re
from typing import Final

import click

_OBEYED: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
_IN_LINES: Final = re.compile(f"[{_OBEYED}\ud800-\udfff\U000e0000-\U000e007f]")
_IN_A_LINE: Final = re.compile(f"[\t\n{_OBEYED}\ud800-\udfff\U000e0000-\U000e007f]")


def shown(text: str) -> str:
    r"""Return a text from outside as part of one line.

    >>> shown("part [/line-3] \x1b[2J"), shown("\u202egnp.")
    ('part [/line-3] \\x1b[2J', '\\u202egnp.')
    """
    return _IN_A_LINE.sub(_escaped, text)


def shown_lines(text: str) -> str:
    """Return a text of our own that may hold others': its line ends and tabs stay."""
    return _IN_LINES.sub(_escaped, text)


def readable(name: str) -> str:
    r"""Return a file's name as text that can be stored, sent and printed: bytes that are no UTF-8 become \xNN.

    >>> print(readable("pr\udcfcf_1.png"), readable("prüf_1.png"))
    pr\xfcf_1.png prüf_1.png
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def say(*lines: str, err: bool = False) -> None:
    """Print lines that may hold text from outside: what is in one stays in it."""
    click.echo("\n".join(map(shown, lines)), err=err)


def _escaped(found: re.Match[str]) -> str:
    one = found[0]
    return readable(one) if "\udc80" <= one <= "\udcff" else one.encode("unicode_escape").decode()
