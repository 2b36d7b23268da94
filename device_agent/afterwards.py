"""What follows a new head: its row in the history, and the waiting questions, asked anew.

Both are written without the learner's lock, by the thread that made the head or tried it. A full disk keeps
neither from going on: the history is a record, and the questions are asked again after the next head.
"""

from __future__ import annotations

from collections.abc import Callable

from device_agent.asking import ask_again
from device_agent.courtesy import Courtesy
from device_agent.heads import ActiveHead
from device_agent.heads_and_updates import HeadRow
from device_agent.queue import QueuePolicy
from device_agent.store import Store
from device_agent.turns import Turns
from sdk.errors import StoreFull


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
        self.ask_due = False
        """Whether questions are still those of an earlier head."""

    def put(self, row: HeadRow) -> None:
        """Store a head's row."""
        try:
            self._store.heads.put(row)
        except StoreFull as error:
            # History is a record. Without it the next start tries the head once more.
            self._turns.fault = str(error)

    def keep(self, write: Callable[[], None]) -> None:
        """Write what else follows a head; a full disk is told, and what was kept before stays."""
        try:
            write()
        except StoreFull as error:
            self._turns.fault = str(error)

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
            self._turns.fault = str(error)
