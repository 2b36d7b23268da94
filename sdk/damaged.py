"""What decoding raises for a file or message that is none.

msgspec says most of it in its own errors; bytes that are no text, and nesting without end, it says in Python's. A
reader that knows only the first kind is stopped by whoever writes the others.
"""

from __future__ import annotations

from typing import Final

import msgspec

DAMAGED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Raised by `msgspec.json.decode`, `msgspec.msgpack.decode` and decoders for what is not what they expect."""
