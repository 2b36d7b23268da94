"""Which part a file shows, by its name: `[camera] names = "{part}_top*.png"`.

`{part}` stands for the part id and `*` for anything. A name that can be read in two ways tells no part: pictures
of two parts would be judged as one.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from sdk.errors import ConfigError

PART: Final = "{part}"


class Reading(NamedTuple):
    """The part that a name tells, and why it tells none; one of the two is empty."""

    part: str
    fault: str = ""


class Names:
    """How a camera's files are called.

    Args:
        names: The pattern; empty: the whole name is the part id.

    Raises:
        ConfigError: it does not hold `{part}` once, or names files of other folders.

    >>> Names("{part}_top*.png").read("4711_top_2.PNG")
    Reading(part='4711', fault='')
    >>> Names("{part}_*.png").read("LOT7_0815_top.png").fault
    "its part is 'LOT7' or 'LOT7_0815' by names = '{part}_*.png': say more of what follows"
    """

    def __init__(self, names: str) -> None:
        self.names = names
        before, mark, after = (names or PART).partition(PART)
        if not mark or "{" in before + after or "}" in before + after or "/" in names:
            raise ConfigError(
                f"camera.names: {names!r} does not say where a file's name has the part id",
                hint='Write {part} where it stands and * for what differs: names = "{part}_top*.png".',
            )
        self._shortest = _pattern(before, ".*", ".+?", ".*", after)
        self._longest = _pattern(before, ".*?", ".+", ".*?", after)

    def read(self, name: str) -> Reading:
        """Return the part that a file's name tells."""
        short, long = self._shortest.fullmatch(name), self._longest.fullmatch(name)
        if short is None or long is None:
            return Reading("", f"its name is not like names = {self.names!r}")
        if short["part"] != long["part"]:
            return Reading(
                "",
                f"its part is {short['part']!r} or {long['part']!r} by names = {self.names!r}: say more of what "
                "follows",
            )
        return Reading(short["part"])

    def is_like(self, name: str) -> bool:
        """Whether a file is one of these, however it is read."""
        return self._shortest.fullmatch(name) is not None


def _pattern(before: str, left: str, part: str, right: str, after: str) -> re.Pattern[str]:
    """Return the pattern where what * stands for beside the part takes as much, or as little, as it can."""
    sides = (star.join(map(re.escape, re.split(r"\*+", side))) for side, star in ((before, left), (after, right)))
    return re.compile(f"(?P<part>{part})".join(sides), re.DOTALL | re.IGNORECASE)
