"""The learning thread, and the serving thread beside it: from folded records to the head that serves.

*Learning* folds new records, lets the head updated by them serve at once, then updates the exact moments, solves,
and swaps the canonical head in. *Serving* does the first half of that for labels that come while the head of those
before is being solved. The moments are the learning thread's alone, and no lock is held while it computes.

Learning starts from the store, never from memory: what was acknowledged is learned exactly once, after a crash
too. Where learning fails, what serves goes on, and the next label brings the next solve; so does the next try
where there was no room (`AGAIN_S`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from device_agent.afterwards import Afterwards
from device_agent.courtesy import Courtesy
from device_agent.folded import Folded, Work
from device_agent.heads import Solved, ended
from device_agent.heads_and_updates import HeadRow, Heads, Outcome
from device_agent.moments import LearnedMoments
from device_agent.provisional import updated
from device_agent.succession import Succession
from device_agent.trial import ALONE, Base
from device_agent.turns import Turns
from device_agent.withdrawn import is_alone, less, solved_less, taken_back_here
from sdk.head import Calibration, Head, solve
from sdk.moments import UNADAPTED, Adaptation
from sdk.reason import Reason

TRIAL_ENDS_S: Final = 2.0
"""So long a solve waits for a trial to give way at most: to its next group, or to the end of a factorisation."""
AGAIN_S: Final = 10.0
"""What could not be written for want of room is tried again after this long: somebody who made room sees the fault
go, and a disk that stays full is not kept busy."""
_STOPPED: Final = Reason("stopped")
_SUPERSEDED: Final = Reason("superseded")


class Learning:
    """Learns what is folded. The constructor folds the log and solves, so `heads.active` is there at once.

    Args:
        base: The release.
        history: Of the device's heads.
        turns: The learner's lock, and what its threads tell each other.
        folded: The learner's.
        afterwards: The learner's.
        courtesy: Says when to give way.
        clock: Seconds since 1970, for the history.
        on_change: Called after something was learned.

    Attributes:
        heads: Which head serves.
        label_to_live_ms: From the last label being durable to its head serving; None before the first.
    """

    def __init__(
        self,
        base: Base,
        history: Heads,
        turns: Turns,
        *,
        folded: Folded,
        afterwards: Afterwards,
        courtesy: Courtesy,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._base = base
        self._history = history
        self._turns = turns
        self._folded = folded
        self._afterwards = afterwards
        self._courtesy = courtesy
        self._clock = clock
        self._on_change = on_change
        self._serving = threading.Lock()  # one thread at a time updates a head; taken before that of `turns`
        self._durable_at: float | None = None  # monotonic time of the first label not yet served
        self.label_to_live_ms: float | None = None
        self._moments = LearnedMoments(base.rest, folded.is_own)  # owned by the learning thread, once it runs
        self.heads = self._restore()
        if not self._resume():
            self._learn()

    def label_came(self, now_s: float) -> None:
        """Note that a label is durable, at this monotonic time. Needs the lock."""
        if self._durable_at is None:
            self._durable_at = now_s

    def moments_digest(self) -> str:
        """Return the digest of the exact moments; call it while idle."""
        return self._moments.everything.digest()

    # -- start: the confirmed head as it was, then everything since ------------------------------------------

    def _restore(self) -> Succession:
        """Return the confirmed head as it was; the log is folded and summed up as far as it had learned."""
        last = self._history.last(self._base.fold.space, [Outcome.CONFIRMED])
        calibration, adaptation = self._base.calibration, UNADAPTED
        if last is None:
            last = HeadRow(
                number=self._history.next_number(),
                created_utc=self._clock(),
                space=self._base.fold.space,
                digest=self._base.fold.digest(),
                through=0,
                samples=self._base.fold.live_samples(),
                outcome=Outcome.CONFIRMED,
            )
            last = ended(last, Outcome.CONFIRMED, Reason("with-release"))
            self._afterwards.put(last)
        else:
            if last.calibration is not None:
                calibration = msgspec.msgpack.decode(last.calibration, type=Calibration)
            if last.adaptation is not None:
                adaptation = msgspec.msgpack.decode(last.adaptation, type=Adaptation)
        unfinished = self._history.last(self._base.fold.space, [Outcome.PROVISIONAL])
        if unfinished is not None:
            self._afterwards.put(ended(unfinished, Outcome.SUPERSEDED, _STOPPED))
        self._folded.catch_up(through=last.through)
        self._folded.take()
        self._folded.learned()  # by the sums below
        live = self._base.fold.live_set()
        self._moments.sum_up(list(self._base.fold.rows()), adaptation)
        head = solve(
            self._moments.everything,
            canonical=self._base.fold.canonical,
            knobs=self._base.knobs,
            calibration=calibration,
            own=self._moments.own,
            adaptation=adaptation,
        )
        confirmed = Solved(head, live, last)
        return Succession(self._history, self._folded, self._clock, confirmed, self._counted())

    def _resume(self) -> bool:
        """Fold everything since; return whether a head of it was taken back and need not be made again."""
        confirmed = self.heads.confirmed
        if confirmed.live.digest != confirmed.row.digest and not is_alone(confirmed.row):
            # A code was erased since, or another version's fold said otherwise: its score is no longer its own.
            row = self.heads.row(self._folded.in_flight(self.heads.counted))
            self.heads.put_on_trial(confirmed.head, confirmed.live, row)
            self.heads.serve_settled(confirmed.live.digest, waiting=False)
        self._folded.catch_up()
        newest = self._history.last(self._base.fold.space, [Outcome.CONFIRMED, Outcome.TAKEN_BACK])
        if newest is not None and is_alone(newest):  # it has served since this one was taken back
            newest = self._history.last(self._base.fold.space, [Outcome.TAKEN_BACK])
        if newest is None or newest.outcome is not Outcome.TAKEN_BACK or newest.digest != self._base.fold.digest():
            return False
        self._take_back(confirmed)
        if self.heads.confirmed.live.digest == newest.digest:
            return False  # an earlier version had refused what a person here asked for
        self._moments.apply(self._folded.take())
        self._folded.learned()
        self.heads.resume_taken_back(newest, self._base.fold.live_set(), self._counted())
        return True

    def _take_back(self, confirmed: Solved) -> None:
        """Have the confirmed head go on without what was taken back here since."""
        said = self._folded.labelled_here(confirmed.row.through)
        gone = taken_back_here(said, confirmed.live, self._base.fold.live_set())
        rest = less(self._base, confirmed, gone) if gone else confirmed.live
        if not gone or not rest.samples:
            return
        row = confirmed.row
        if rest.digest != row.digest:
            row = ended(self.heads.row_less(rest), Outcome.CONFIRMED, ALONE)
            self._afterwards.put(row)
        self.heads.rest_on(solved_less(self._base, confirmed, rest, row, self._folded.device))

    def _counted(self) -> frozenset[bytes]:
        return frozenset(self._moments.everything.counts())

    # -- threads ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Wait for something to learn, and learn it; or return when told to stop. The learning thread's.

        What could not be written for want of room is tried again with that, or after a while.
        """
        turns = self._turns
        with turns.changed:
            turns.changed.wait_for(lambda: turns.dirty or turns.full is not None or turns.stopping)
            if not turns.dirty:
                turns.changed.wait_for(lambda: turns.dirty or turns.stopping, AGAIN_S)
            if turns.stopping:
                return
            turns.dirty = False
            full, turns.full = turns.full, None
            turns.learning = True
        self._courtesy.give_way()  # the answer to the label that woke us goes out first
        try:
            with turns.surviving():
                self._learn()
                if full is not None:
                    self._afterwards.again()
                self._on_change()
        finally:
            with turns.changed:
                if full is not None and turns.full is None and turns.fault == full:
                    turns.fault = None  # there is room again
                turns.learning = False
                turns.changed.notify_all()

    def serving_step(self) -> None:
        """Wait for something to serve while something else is learned. The serving thread's."""
        turns = self._turns
        with turns.changed:
            turns.changed.wait_for(lambda: turns.stopping or (turns.fresh and turns.learning))
            if turns.stopping:
                return
        self._courtesy.give_way()
        with turns.surviving():
            self._serve_at_once()

    def _serve_at_once(self) -> None:
        """Let the latest head, updated by the few changes since, serve until the canonical one is solved."""
        with self._serving:
            while True:
                with self._turns.changed:
                    self._turns.fresh = False
                    self._folded.catch_up()
                    base, counted = self.heads.latest, self.heads.counted
                    work = self._folded.ahead(counted)
                    durable_at, self._durable_at = self._durable_at, None
                    known = self.heads.knows(work.digest)
                head = None
                if base is not None and not known:
                    head = updated(
                        base,
                        work.changes,
                        learned=counted,
                        canonical=work.canonical,
                        is_own=self._folded.is_own,
                    )
                with self._turns.changed:
                    stale = self.heads.latest is not base  # solved or tried meanwhile
                    if stale or (head is None and not known):
                        self._durable_at = durable_at if durable_at is not None else self._durable_at
                        if stale:
                            continue
                        return
                    if head is None:
                        self.heads.serve_known(work.digest)
                    else:
                        self.heads.serve_updated(head, work)
                    self._now_live(durable_at)
                    return

    def _now_live(self, durable_at: float | None) -> None:
        if durable_at is not None:
            self.label_to_live_ms = (time.monotonic() - durable_at) * 1000

    def _learn(self) -> None:
        """Learn what was folded: a head updated in milliseconds serves at once, then the canonical one."""
        self._serve_at_once()
        with self._turns.changed:
            self._folded.catch_up()
            changes = self._folded.take()
            work = self._folded.in_flight(self.heads.counted)
            live = self.heads.live = self._base.fold.live_set()
            confirmed = self.heads.confirmed
            learned, undone = work.digest == self.heads.learned_digest, work.digest == confirmed.live.digest
            durable_at, self._durable_at = self._durable_at, None
            row = None if learned or undone else self.heads.row(work)
            rows = None if self._moments.serve(confirmed.head.adaptation) else list(self._base.fold.rows())
        try:
            self._courtesy.give_way()
            self._moments.bring_up(changes, rows, confirmed.head.adaptation)
            self._courtesy.give_way()
            # Undone is as if it had never been learned: the head from before is there already.
            head = self.heads.latest if learned else confirmed.head if undone else self._solve(work, confirmed)
        except BaseException:
            with self._turns.changed:
                self.heads.let_go()  # what serves goes on; the next label brings the next solve
            raise
        with self._turns.changed:
            self._folded.learned()
            self.heads.counted = self._counted()
            if not learned:
                self._turns.fault = None
                self.heads.solved(head, live, work, row)
            outdated = self.heads.take_outdated()
            active, last = self.heads.serve_settled(work.digest, waiting=self._folded.waiting)
            self._now_live(durable_at)
            self._turns.changed.notify_all()
        for each in outdated:
            self._afterwards.put(ended(each, Outcome.SUPERSEDED, _SUPERSEDED))
        if not learned and last.outcome is Outcome.PROVISIONAL:
            self._afterwards.put(last)
        if not learned or self._afterwards.ask_due:
            self._afterwards.ask(active)

    def _solve(self, work: Work, confirmed: Solved) -> Head:
        turns = self._turns
        with turns.changed:
            turns.solving = True
            # A trial holds as many large matrices as a solve. It is in vain now and gives way; the label that
            # brought this solve is served already.
            turns.changed.wait_for(lambda: turns.stopping or not turns.scoring, TRIAL_ENDS_S)
        try:
            return solve(
                self._moments.everything,
                canonical=work.canonical.__getitem__,
                knobs=self._base.knobs,
                own=self._moments.own,
                adaptation=confirmed.head.adaptation,
            )
        finally:
            with turns.changed:
                turns.solving = False
                turns.changed.notify_all()
