"""Which head serves, and what becomes of it: provisional, confirmed, taken back, superseded.

At any time there is a confirmed head, and beside it perhaps a *candidate*, solved and waiting for its trial, and
an *updated* head, which serves until the canonical head of the same live set is solved. Taken back means that the
confirmed one serves again. Nothing here waits, computes or writes: rows for the history are handed out.

No lock: every call needs the learner's. `active` alone is read without: one reference, swapped whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from device_agent.folded import Folded, Work
from device_agent.heads import ActiveHead, Solved
from device_agent.heads_and_updates import HeadRow, Heads, Outcome
from device_agent.trial import meanwhile
from sdk.adaptation import Harm
from sdk.head import Head
from sdk.liveset import LiveSet
from sdk.wire import HeadState


class Succession:
    """The heads of one learner.

    Args:
        history: Numbers new heads.
        folded: Names their classes.
        clock: Seconds since 1970, for the history.
        confirmed: The head to begin with.
        counted: Class ids in its moments, before merges.

    Attributes:
        active: The head that decides.
        last: Row of the newest head, whatever became of it.
        confirmed: The head that serves where another is taken back.
        candidate: Provisional, waiting for its trial or in it.
        latest: The head of the live set last learned, whatever became of it; None where it is not at hand.
        counted: Class ids in its moments, before merges.
        learned_digest: Digest of that live set.
        live: The live set as it was last learned.
        harm: What the last trial found.
        unscorable: The confirmed head has too few groups for left-out scores.
    """

    def __init__(
        self,
        history: Heads,
        folded: Folded,
        clock: Callable[[], float],
        confirmed: Solved,
        counted: frozenset[bytes],
    ) -> None:
        self._history = history
        self._folded = folded
        self._clock = clock
        self.confirmed = confirmed
        self.candidate: Solved | None = None
        self.latest: Head | None = confirmed.head
        self.counted = counted
        self.learned_digest = confirmed.live.digest
        self.live = confirmed.live
        self.harm: Harm | None = None
        self.unscorable = False
        self.last = confirmed.row
        self.active = self._activate(confirmed, HeadState.CONFIRMED)
        self._settled = self.active, self.last  # what these were before an updated head served
        self._updated: HeadRow | None = None  # of the updated head that serves; None: none does
        self._outdated: list[HeadRow] = []  # of updated heads that a newer one replaced; not in the store yet

    @property
    def is_updated(self) -> bool:
        """Whether an updated head serves, until its solve."""
        return self._updated is not None

    def knows(self, digest: str) -> bool:
        """Return whether there is a canonical head of this live set."""
        return digest in (self.learned_digest, self.confirmed.live.digest)

    def row(self, work: Work) -> HeadRow:
        """Return the history's row of a head to be: that of the updated head where it is of the same live set."""
        if self._updated is not None and self._updated.digest == work.digest:
            return self._updated
        return HeadRow(
            number=self._history.next_number(),
            created_utc=self._clock(),
            space=self._folded.fold.space,
            digest=work.digest,
            through=work.through,
            samples=work.samples,
            outcome=Outcome.PROVISIONAL,
        )

    # -- at once --------------------------------------------------------------------------------------------------

    def serve_known(self, digest: str) -> None:
        """Serve what served before changes that are undone; `knows` says whether there is any."""
        if digest == self.learned_digest:
            self._serve(*self._settled)
        else:
            self._serve(self._activate(self.confirmed, HeadState.CONFIRMED), self.confirmed.row)

    def serve_updated(self, head: Head, work: Work) -> None:
        """Serve the latest head updated by the work."""
        head = head.recalibrated(meanwhile(self.confirmed.head.calibration, head))
        row = self.row(work)
        self.let_go(work.digest)
        self.last = self._updated = row
        names = self._folded.names_of(head)
        self.active = ActiveHead(head, names, HeadState.PROVISIONAL, row.digest, row.number, row.samples)

    def let_go(self, digest: str = "") -> None:
        """Forget the updated head, into the history where its successor is of another live set than this."""
        if self._updated is not None and self._updated.digest != digest:
            self._outdated.append(self._updated)
        self._updated = None

    # -- when it was learned ------------------------------------------------------------------------------------

    def solved(self, head: Head | None, live: LiveSet, work: Work, row: HeadRow | None) -> None:
        """Take in the canonical head of new work, with its row where it has one already.

        Work that is undone has the confirmed head's live set. Where another head was confirmed meanwhile, the one
        from before is on trial like any other.
        """
        self.latest = head
        self.learned_digest = work.digest
        if self.candidate is not None:
            self._outdated.append(self.candidate.row)
            self.candidate = None
        if head is None or work.digest == self.confirmed.live.digest:
            self._settled = self._activate(self.confirmed, HeadState.CONFIRMED), self.confirmed.row
        else:
            self.put_on_trial(head, live, row or self.row(work))

    def put_on_trial(self, head: Head, live: LiveSet, row: HeadRow) -> None:
        """Have a head tried; it serves until then, from the next `serve_settled` on."""
        head = head.recalibrated(meanwhile(self.confirmed.head.calibration, head))
        self.candidate = Solved(head, live, row)
        self._settled = self._activate(self.candidate, HeadState.PROVISIONAL), row

    def serve_settled(self, digest: str, *, waiting: bool) -> tuple[ActiveHead, HeadRow]:
        """Serve the head that needs no solve, unless an updated one knows more; return it and its row.

        Args:
            digest: Of the live set that it was learned from.
            waiting: Whether there is more to learn.
        """
        if self._updated is None or self._updated.digest == digest or not waiting:
            self._serve(*self._settled)
        return self._settled

    def take_outdated(self) -> list[HeadRow]:
        """Return the rows of heads that were superseded, for the history."""
        outdated, self._outdated = self._outdated, []
        return outdated

    def resume_taken_back(self, row: HeadRow, live: LiveSet, counted: frozenset[bytes]) -> None:
        """Go on where the newest head was taken back: it is not solved again, the confirmed one serves."""
        self.counted = counted
        self.live = live
        self.learned_digest = live.digest
        self.latest = None
        self.last = row
        self._settled = self.active, row

    def row_less(self, live: LiveSet) -> HeadRow:
        """Return the history's row of the confirmed head less some of its samples."""
        return HeadRow(
            number=self._history.next_number(),
            created_utc=self._clock(),
            space=live.space,
            digest=live.digest,
            through=self.confirmed.row.through,
            samples=len(live),
            outcome=Outcome.PROVISIONAL,
        )

    def rest_on(self, less: Solved) -> None:
        """Let the confirmed head go on without what was taken back here."""
        serves = self.active.number == self.confirmed.row.number
        self.confirmed = less
        self.unscorable = False
        if serves:
            self.active = self._activate(less, HeadState.CONFIRMED)

    # -- when it was tried --------------------------------------------------------------------------------------

    def scored(self, confirmed: Solved) -> None:
        """Take in a confirmed head's left-out scores, for the next trial."""
        if self.confirmed.row is confirmed.row:
            self.confirmed = confirmed
            self.unscorable = confirmed.left_out is None

    def judged(self, candidate: Solved, judged: Solved, less: Solved | None = None) -> ActiveHead | None:
        """Confirm the candidate or take it back; return what serves, None where a newer head is there already.

        Args:
            candidate: Was tried.
            judged: The same with its outcome.
            less: Serves where it is taken back: the confirmed head without what was taken back here. None is the
                confirmed one.
        """
        if self.candidate is not candidate or self._updated is not None:
            return None
        self.candidate = None
        self.harm = judged.harm
        self.last = judged.row
        if judged.row.outcome is Outcome.CONFIRMED:
            self.confirmed = judged
            if self.latest is candidate.head:
                self.latest = judged.head
            self.unscorable = judged.left_out is None
        elif less is not None:
            self.rest_on(less)
        active = self._activate(self.confirmed, HeadState.CONFIRMED)
        self._settled = active, self.last
        self._serve(active, self.last)
        return active

    def _serve(self, active: ActiveHead, last: HeadRow) -> None:
        self.let_go(active.digest)
        self.active, self.last = replace(active, names=self._folded.names_of(active.head)), last

    def _activate(self, solved: Solved, state: HeadState) -> ActiveHead:
        return ActiveHead(
            head=solved.head,
            names=self._folded.names_of(solved.head),
            state=state,
            digest=solved.live.digest,
            number=solved.row.number,
            samples=len(solved.live),
        )
