"""Message types that are decoded on several threads, made known to msgspec before there are several.

msgspec works out a type when it is first decoded, and two threads that come first together crash the process
(0.22.0, twelve threads and 1,500 fresh types: a segmentation fault; none where each was prepared). A module that
defines such types prepares them when it is imported, which happens once and on one thread.
"""

from __future__ import annotations

import msgspec


def prepare(*kinds: type) -> None:
    """Let msgspec work out these types, and all that they contain, now.

    >>> class Word(msgspec.Struct):
    ...     says: str
    >>> prepare(Word)
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)
