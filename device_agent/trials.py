"""The trial thread: when a provisional head is tried, what ends its trial early, and what becomes of the head.

A trial begins when no label has come for a while (`rhythm`), and ends in vain as soon as a newer head is there or
about to be: both hold large matrices. While there is nothing to try, the confirmed head is scored: its next trial
and the drift watch need that. How a trial judges is `trial`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from device_agent.afterwards import Afterwards
from device_agent.courtesy import Courtesy
from device_agent.folded import Folded
from device_agent.heads import Solved
from device_agent.heads_and_updates import Outcome
from device_agent.master_folder import Masters
from device_agent.masters import MasterCodes
from device_agent.memory import give_back_now
from device_agent.rhythm import Rhythm
from device_agent.store import Store
from device_agent.succession import Succession
from device_agent.trial import ALONE, UNDONE, Base, try_out
from device_agent.turns import Turns
from device_agent.withdrawn import less, solved_less, taken_back_here
from sdk.adaptation import MAX_STREAM
from sdk.codes import Codes
from sdk.reason import Reason

SEARCH_S: Final = 5.0
"""A trial looks no longer than this for a better way to count own labels: the seven solves at d = 1280 take one
second on a server's core. Its scores and its judgement come on top."""


class Trials:
    """Tries what a learner has learned.

    Args:
        base: The release.
        store: Whose station this is.
        turns: The learner's lock, and what its threads tell each other.
        folded: The learner's.
        heads: The learner's.
        afterwards: The learner's.
        rhythm: Of its labels.
        courtesy: Says when to give way.
        masters: The station's, which judge each head too; None where it keeps none.
        on_change: Called after a head was confirmed or taken back.
    """

    def __init__(
        self,
        base: Base,
        store: Store,
        turns: Turns,
        *,
        folded: Folded,
        heads: Succession,
        afterwards: Afterwards,
        rhythm: Rhythm,
        courtesy: Courtesy,
        masters: Masters | None,
        on_change: Callable[[], None],
    ) -> None:
        self._base = base
        self._store = store
        self._turns = turns
        self._folded = folded
        self._heads = heads
        self._afterwards = afterwards
        self._rhythm = rhythm
        self._courtesy = courtesy
        self._masters = masters
        self._unreadable = False
        self._on_change = on_change

    def idle(self) -> bool:
        """Return whether there is nothing to learn and nothing to try. Needs the lock."""
        turns = self._turns
        return not (turns.dirty or turns.learning or self._heads.candidate is not None or turns.trying)

    def unprepared(self) -> bool:
        """Return whether the next trial needs something that can be made now. Needs the lock."""
        unscored = self._heads.confirmed.left_out is None and not self._heads.unscorable
        return (unscored or self._unread()) and self.idle()

    def _unread(self) -> bool:
        return self._masters is not None and self._masters.ready is None and not self._unreadable

    def _triable(self) -> bool:
        return self._heads.candidate is not None and not self._heads.is_updated and not self._turns.solving

    def step(self) -> None:
        """Wait for something to try or to score, and do it; or return when told to stop."""
        turns = self._turns
        with turns.changed:
            turns.changed.wait_for(lambda: self._triable() or self.unprepared() or turns.stopping)
            candidate, confirmed = self._heads.candidate, self._heads.confirmed
            if turns.stopping:
                return
            turns.scoring = candidate is None
        if candidate is None:
            try:
                with turns.surviving():
                    self._prepare(confirmed)
            finally:
                self._scored()
            return
        with turns.changed:
            # In a burst of labels each trial would be in vain, and slow the next head down.
            newer = turns.changed.wait_for(
                lambda: turns.stopping or self._heads.candidate is not candidate,
                self._rhythm.pause_s() if turns.running else 0.0,
            )
            if newer or turns.solving:
                return
            turns.trying = turns.scoring = True
            names = self._folded.naming.words(candidate.head.class_ids)

        try:
            with turns.surviving():
                self._end_trial(candidate, confirmed, names)
        finally:
            self._scored()

    def _scored(self) -> None:
        if self._turns.running:
            give_back_now()
        with self._turns.changed:
            self._turns.trying = self._turns.scoring = False
            self._turns.changed.notify_all()

    def _end_trial(self, candidate: Solved, confirmed: Solved, names: dict[bytes, str]) -> None:
        try:
            ended = self._try(candidate, confirmed, names)
            if ended is not None and self._settle(candidate, *ended):
                self._on_change()
        except BaseException:
            with self._turns.changed:
                if self._heads.candidate is candidate:
                    self._heads.candidate = None  # it stays provisional; the next label brings the next trial
            raise

    def _try(
        self, candidate: Solved, confirmed: Solved, names: dict[bytes, str]
    ) -> tuple[Solved, Solved | None] | None:
        """Return the candidate with its outcome; None when a newer head has made its trial obsolete.

        Beside it stands what serves where it is taken back, if that is not the confirmed head but the same without
        what was taken back here. Such a head is judged too, and kept whatever that says.
        """

        def obsolete() -> bool:
            self._courtesy.give_way()
            newer = self._heads.candidate is not candidate or self._heads.is_updated
            return newer or self._turns.solving or self._turns.stopping

        deadline = time.monotonic() + SEARCH_S

        def enough() -> bool:
            return obsolete() or time.monotonic() > deadline

        def tried(head: Solved, before: Solved, asked: Reason | None = None) -> Solved:
            return try_out(
                self._base,
                head,
                before,
                device=self._store.device,
                stream=self._stream(),
                names=lambda class_id: self._folded.name(names, class_id),
                obsolete=obsolete,
                enough=enough,
                masters=self._master_codes(obsolete),
                best=None if self._masters is None else self._masters.best,
                asked=asked,
            )

        try:
            confirmed = self._with_left_out(confirmed, obsolete)
            said = self._folded.labelled_here(confirmed.row.through)
            gone = taken_back_here(said, confirmed.live, candidate.live)
            if not gone:
                return tried(candidate, confirmed), None
            live = less(self._base, confirmed, gone)
            if live.digest == candidate.live.digest or not live.samples:
                return tried(candidate, confirmed, UNDONE), None
            with self._turns.changed:
                row = self._heads.row_less(live)
            rest = solved_less(self._base, confirmed, live, row, self._store.device)
            rest = tried(rest, confirmed, ALONE)
            return tried(candidate, rest), rest
        except InterruptedError:
            return None

    def _master_codes(self, obsolete: Callable[[], bool]) -> MasterCodes | None:
        """Return the station's master parts; None where it has none. No label stops the folder's reading."""
        return None if self._masters is None else self._masters.codes(obsolete, lambda: self._turns.stopping)

    def _stream(self) -> Codes:
        """Return the newest codes of this station, labelled or not, at most `MAX_STREAM`."""
        codes = self._store.samples.newest_codes(self._folded.fold.space, limit=MAX_STREAM)
        return np.array(codes, np.int8).reshape(len(codes), self._folded.fold.feature_size)

    def _prepare(self, confirmed: Solved) -> None:
        """Score the head that serves while there is nothing to try, and embed the master parts.

        The next trial needs both, the drift watch the one, the page the other. What a label interrupts goes on
        when it is learned.
        """

        def obsolete() -> bool:
            self._courtesy.give_way()
            turns = self._turns
            return turns.stopping or turns.dirty or turns.solving or self._heads.candidate is not None

        scored = confirmed
        try:
            if not self._heads.unscorable:
                scored = self._with_left_out(confirmed, obsolete)
            self._master_codes(obsolete)
        except InterruptedError:
            pass  # a label came first
        except BaseException:
            self._heads.unscorable = self._unreadable = True  # told once, not tried for ever
            raise
        if scored.left_out is not confirmed.left_out:
            self._on_change()

    def _with_left_out(self, confirmed: Solved, obsolete: Callable[[], bool]) -> Solved:
        """Return a confirmed head with its left-out scores, and remember them for the next trial.

        Raises:
            InterruptedError: `obsolete` said so.
        """
        if confirmed.left_out is None:
            left_out = self._base.left_out(
                confirmed.live, obsolete, device=self._store.device, adaptation=confirmed.head.adaptation
            )
            confirmed = replace(confirmed, left_out=left_out)
            with self._turns.changed:
                self._heads.scored(confirmed)
        return confirmed

    def _settle(self, candidate: Solved, judged: Solved, rest: Solved | None) -> bool:
        """Confirm the candidate or take it back; return false where a newer head is there already."""
        with self._turns.changed:
            active = self._heads.judged(candidate, judged, rest)
        if active is None:
            return False
        if rest is not None and judged.row.outcome is Outcome.TAKEN_BACK:
            self._afterwards.put(rest.row)
        self._afterwards.put(judged.row)
        self._afterwards.ask(active)
        return True
