"""How many connections a server keeps, of whom, and for how long without a question.

A connection costs a descriptor before anybody has said a word, and the process needs its descriptors for cameras,
pictures and SQLite. So it is counted, and refused, where it is accepted: HTTP has not begun then, nor has TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from uvicorn.server import Protocols

MOST: Final = 256
"""Connections of a page at a time: some forty browsers."""
SILENT_S: Final = 10.0
"""A connection without a whole question for so long is ended: TLS and a request's head take less than a second."""
UNREAD_S: Final = 60.0
"""The same, while there is something of the last answer that the other side has not taken."""
TELL_S: Final = 60.0
"""What is refused is said once in so long."""
_LOCAL: Final = frozenset({"127.0.0.1", "::1"})
_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REST_S: Final = 0.5
"""Of asyncio's second between two tries to accept where there are no descriptors: in it there is one error."""

_log = logging.getLogger(__name__)


@dataclass
class _Open:
    address: str
    since_s: float
    """From when on it has not asked anything."""
    answered: object = None
    """What it asked last."""


class Listener(socket.socket):
    """A listening socket that refuses whoever would have too many connections. For one event loop of asyncio's.

    Of other machines one has at most a quarter of all and all of them three quarters, so that whoever stands at
    the device always finds its page.

    Args:
        bound: Listens already; it is taken over.
        most: Connections at a time; never more than a quarter of the files that this process may have open.
        silent_s: After so long without a whole question one is ended.
    """

    def __init__(self, bound: socket.socket, most: int = MOST, silent_s: float = SILENT_S) -> None:
        super().__init__(fileno=bound.detach())
        self._silent_s = silent_s
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = most if soft == resource.RLIM_INFINITY else min(most, max(8, soft // 4))
        self._open: weakref.WeakKeyDictionary[socket.socket, _Open] = weakref.WeakKeyDictionary()
        self._failed_s = self._told_s = -1e9

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection that may stay, as asyncio asks for it.

        Raises:
            BlockingIOError: there is none, or the next one was refused: the event loop has its turn.
            OSError: there are no descriptors left; said once before asyncio's rest.
        """
        try:
            made, address = super().accept()
        except OSError as error:
            now = time.monotonic()
            if error.errno not in _NONE_LEFT:
                raise
            if now - self._failed_s < _REST_S:  # asyncio goes on asking, with a traceback for each
                raise BlockingIOError from error
            self._failed_s = now
            raise
        if self._full(str(address[0])):
            self._tell("too many connections, the last from %s", address[0])
            made.close()
            raise BlockingIOError
        self._open[made] = _Open(str(address[0]), time.monotonic())
        return made, address

    def _full(self, address: str) -> bool:
        there = [each.address for made, each in self._open.items() if made.fileno() != -1]
        if len(there) >= self.most:
            return True
        if address in _LOCAL:
            return False
        foreign = [each for each in there if each not in _LOCAL]
        return len(foreign) >= self.most * 3 // 4 or foreign.count(address) >= self.most // 4

    def _tell(self, what: str, who: object) -> None:
        now = time.monotonic()
        if now - self._told_s >= TELL_S:
            self._told_s = now
            _log.warning(f"port %d takes no connections now: {what}", self.getsockname()[1], who)

    def end_silent(self, connections: Iterable[Protocols]) -> None:
        """End what has asked nothing for too long; an answer that goes on may do so.

        Args:
            connections: Those on which HTTP has begun, as Uvicorn knows them; the others are still at TLS.
        """
        now = time.monotonic()
        speaking = {_fileno(each): each for each in connections}
        for made, each in list(self._open.items()):
            if made.fileno() == -1:
                continue
            connection = speaking.get(made.fileno())
            asked = getattr(connection, "cycle", None)
            if asked is not each.answered or not getattr(asked, "response_complete", True):
                each.answered, each.since_s = asked, now
                continue
            unread = connection is not None and connection.transport.get_write_buffer_size() > 0
            if now - each.since_s < (UNREAD_S if unread else self._silent_s):
                continue
            if connection is not None:
                connection.transport.abort()
            else:
                with contextlib.suppress(OSError):  # it went by itself
                    made.shutdown(socket.SHUT_RDWR)

    def take_errors(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say in one line what asyncio says of accepting with a traceback, a second after second."""

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if isinstance(error, OSError) and error.errno in _NONE_LEFT and "socket" in context:
                self._tell("%s", error.strerror)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)


def _fileno(connection: Protocols) -> int:
    found = connection.transport.get_extra_info("socket")
    return -1 if found is None else int(found.fileno())
