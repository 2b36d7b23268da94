"""What follows a new head: its row in the history, and the waiting questions, asked anew.

Both are written without the learner's lock, by the thread that made the head or tried it. A full disk keeps
neither from going on. What found no room is written with what comes next, or by `again`; the learning thread calls
it now and then while something waits (`learning`), so that the fault ends soon after there is room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from device_agent.asking import ask_again
from device_agent.courtesy import Courtesy
from device_agent.heads import ActiveHead
from device_agent.heads_and_updates import HeadRow
from device_agent.queue import QueuePolicy
from device_agent.store import Store
from device_agent.turns import Turns
from sdk.errors import StoreFull

MAX_OWED: Final = 1000
"""Writes that wait for room: a few megabytes of rows at most. The oldest are given up; history is a record."""
_KEPT: Final = -1
"""Stands for what else follows a head, among the numbers of heads."""


class Afterwards:
    """Writes what follows a new head.

    Args:
        store: Where to.
        policy: Which samples are asked about again.
        space: Only of samples in this feature space.
        turns: Say whether a newer head comes; told of a full disk.
        courtesy: Says when to give way.
    """

    def __init__(self, store: Store, policy: QueuePolicy, space: str, turns: Turns, courtesy: Courtesy) -> None:
        self._store = store
        self._policy = policy
        self._space = space
        self._turns = turns
        self._courtesy = courtesy
        self._writing = threading.Lock()
        self._owed: dict[int, Callable[[], None]] = {}  # by a head's number: what was said of it last
        self.ask_due = False
        """Whether questions are still those of an earlier head."""

    def put(self, row: HeadRow) -> None:
        """Store a head's row. Without it a start before there is room tries the head once more."""
        self._write(row.number, partial(self._store.heads.put, row))

    def keep(self, write: Callable[[], None]) -> None:
        """Write what else follows a head; what was kept before stays until there is room."""
        self._write(_KEPT, write)

    def again(self) -> None:
        """Write what has found no room."""
        with self._writing:
            full = self._write_owed()
        if full is not None:
            self._turns.no_room(full)

    def _write(self, key: int, write: Callable[[], None]) -> None:
        with self._writing:
            self._owed.pop(key, None)
            self._owed[key] = write
            if len(self._owed) > MAX_OWED:
                del self._owed[next(iter(self._owed))]
        self.again()

    def _write_owed(self) -> StoreFull | None:
        """Try all of it, newest first: whatever never finds room must not keep the others back.

        Returns:
            Why the first of those that still wait found none.
        """
        first: StoreFull | None = None
        waits: dict[int, Callable[[], None]] = {}
        try:
            for key in reversed(list(self._owed)):
                write = self._owed.pop(key)
                try:
                    write()
                except StoreFull as error:
                    waits[key] = write
                    first = first or error
        finally:
            self._owed |= reversed(waits.items())  # in the order that they had
        return first

    def ask(self, active: ActiveHead) -> None:
        """Ask the waiting questions anew, to the end unless a newer label waits: its head asks them all again."""

        def newer() -> bool:
            self._courtesy.give_way()
            return self._turns.dirty and self._turns.running

        self.ask_due = True  # also where the disk is full
        try:
            asked = ask_again(self._store, self._policy, active.head, active.names, self._space, newer)
            self.ask_due = not asked
        except StoreFull as error:
            self._turns.no_room(error)
