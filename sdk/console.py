"""The console of all commands: rich's, on which no text has its terminal obeyed (`sdk.shown`).

Words of ours may be marked up. Text from outside goes through `plain` where it stands among them.
"""

from __future__ import annotations

from typing import Any

import rich.console
from rich.markup import escape
from rich.text import Text

from sdk.shown import shown, shown_lines


class Console(rich.console.Console):
    """Prints strings, also those in tables, without what a terminal would obey; `:x:` is no picture on it."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Return a string as rich's text."""
        return super().render_str(shown_lines(text), **{**how, "emoji": False})


def plain(text: str) -> str:
    r"""Return a text from outside as part of a line of markup that shows it as it is.

    >>> print(plain("Riss [gross]"))
    Riss \[gross]
    """
    return escape(shown(text))
