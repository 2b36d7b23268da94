"""The head that serves on this device: learned at every label, tried on groups left out, kept or taken back.

A head is a function of the live set, so nothing of one is stored but a row of its history. Three threads make it:

- *learning* folds new records, lets the head updated by them serve at once as provisional, then updates the exact
  moments, solves, and swaps the canonical head in;
- *serving* does the first half of that for labels that come while the head of those before is being solved
  (`learning` has both);
- *trial* scores the provisional head on left-out groups against the confirmed one, then confirms it or takes it
  back (`trials`). A label that comes meanwhile ends the trial: the next one tries the newer head.

Rules this module keeps:

- A label is on disk before `label` returns; learning starts from the store, never from memory, so what was
  acknowledged is learned exactly once, after a crash too.
- Neither labels nor inference wait for a solve or a trial: `head` is one reference, swapped whole, and between
  their steps the threads give way to a save (`courtesy`).
- Taken back means that the confirmed head serves again. The labels stay, and the next one makes a new provisional
  head. Withdrawing a label brings the earlier head back, bit for bit.

Here is what the agent and the page call. Callers and threads share one lock, that of `turns`. Under it are
`folded`, the log as far as it is known, and `succession`, which head serves. What operators say is checked by
`labelling`, and what follows a new head is written by `afterwards`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from device_agent.afterwards import Afterwards
from device_agent.courtesy import Courtesy
from device_agent.folded import Folded
from device_agent.former_names import FormerNames
from device_agent.heads import ActiveHead, Reference, score_of
from device_agent.heads_and_updates import HeadRow
from device_agent.labelling import Labelling, class_name
from device_agent.learned import ClassInfo, LearnerStatus, Now, Saved, called, in_english, quarantine
from device_agent.learning import Learning
from device_agent.master_folder import Masters
from device_agent.master_marks import MasterMarks
from device_agent.masters import Best, Telling
from device_agent.naming import Naming
from device_agent.queue import QueuePolicy
from device_agent.rhythm import Rhythm
from device_agent.store import Store
from device_agent.trial import Base
from device_agent.trials import Trials
from device_agent.turns import Steps, Turns
from device_agent.withdrawn import still_deciding
from sdk.audit import Suspect, suspects
from sdk.bundle import Bundle
from sdk.codes import Code
from sdk.head import Head
from sdk.labels import RELEASE_DEVICE, Body, DefineClass, MergeClasses, Record, RenameClass, new_class_id
from sdk.liveset import LiveSet
from sdk.reason import PRICES
from sdk.wire import HeadState

LEARNING_NICE: Final = 5
"""The learning thread gives way to frames: on a busy core it gets a quarter of the time that a stage of the
line gets, enough for a solve within a second."""
TRIAL_NICE: Final = 10
"""A trial can wait: a tenth. With less it would never end where the line keeps every core busy."""


class Learner:
    """Learns one release's head from one store.

    The constructor folds the log and solves, so `head` is there at once; `start` begins learning and trials.

    Args:
        bundle: The release.
        precision: Which of its precisions runs here.
        store: Where labels are.
        policy: Which samples are asked about again after a new head.
        embed: Code (d,) of a picture in this release's space; for labelling samples of an earlier release.
        clock: Seconds since 1970, for the history.
        on_change: Called from the threads after the head or its state has changed.
        courtesy: Says when both threads should give way.
        masters: Folder of the station's master parts (`device_agent.masters`); needs `embed`.

    Raises:
        BadFormat: the bundle's samples are not those its head was made from.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str | None,
        store: Store,
        *,
        policy: QueuePolicy | None = None,
        embed: Callable[[bytes], Code] | None = None,
        clock: Callable[[], float] = time.time,
        on_change: Callable[[], None] | None = None,
        courtesy: Courtesy | None = None,
        masters: Path | None = None,
    ) -> None:
        self._store = store
        self._base = Base.of(bundle, precision, store.log.shelf)
        self.space = self._base.fold.space
        self._former = FormerNames(store)
        brought = self._base.fold.names_by(RELEASE_DEVICE)
        self._brought = frozenset(brought)
        self._former.note(brought)
        self._turns = Turns()
        self._folded = Folded(store, self._base.fold, self._turns, self._former)
        self._labelling = Labelling(store, self._folded, embed)
        self._rhythm = Rhythm()
        courtesy, on_change = courtesy or Courtesy(), on_change or (lambda: None)
        afterwards = Afterwards(store, policy or QueuePolicy(), self.space, self._turns, courtesy)
        self._learning = Learning(
            self._base,
            store.heads,
            self._turns,
            folded=self._folded,
            afterwards=afterwards,
            courtesy=courtesy,
            clock=clock,
            on_change=on_change,
        )
        self._heads = self._learning.heads
        self._told: tuple[ActiveHead, Naming, Telling] | None = None
        self._twins: tuple[str, Naming, str] | None = None  # by the digest of what is labelled, and the names
        self._withdrawn = "", "", 0  # digests of the live set that serves and of the newest, and the count
        self._masters: Masters | None = None
        if masters is not None and embed is not None:
            marks = MasterMarks(store, self.space)
            best = Best(marks.load(), lambda found: afterwards.keep(lambda: marks.keep(found)))
            self._masters = Masters(masters, embed, best)
        self._trials = Trials(
            self._base,
            store,
            self._turns,
            folded=self._folded,
            heads=self._heads,
            afterwards=afterwards,
            rhythm=self._rhythm,
            courtesy=courtesy,
            masters=self._masters,
            on_change=on_change,
        )

    # -- what the agent and the page call ----------------------------------------------------------------------

    @property
    def head(self) -> ActiveHead:
        """The head that decides now. Takes no lock: read it once per decision."""
        return self._heads.active

    def canonical(self, class_id: bytes) -> bytes:
        """Return the id that stands for a class after merges. Takes no lock."""
        return self._base.fold.canonical(class_id)

    @property
    def naming(self) -> Naming:
        """What the classes are called, and by whose word. Takes no lock: read it once per decision."""
        return self._folded.naming

    def label(self, sample_id: bytes, class_id: bytes | None, operator: str) -> Saved:
        """Store an operator's label; it is on disk when this returns, and learned soon after. See `label_all`."""
        return self.label_all([(sample_id, class_id)], operator)

    def label_all(
        self,
        labels: Sequence[tuple[bytes, bytes | None]],
        operator: str,
        seen: Mapping[bytes, bytes | None] | None = None,
    ) -> Saved:
        """Store labels as one: all are on disk when this returns, or none is. Learned soon after.

        Args:
            labels: Samples kept in the store, each with its class; None withdraws the label.
            operator: Who says so.
            seen: What samples were labelled as when they were looked at; None for those not labelled.

        Raises:
            LabelError: no such sample, or its picture is needed and gone.
            LabelledMeanwhile: one is not labelled as it was seen.
            SummedSample: the release has learned from it, and knows it by its sums only.
            UnknownClassError: no such class.
            StoreFull: they could not be stored; nothing was.
        """
        asked = self._labelling.asked(labels)
        with self._turns.changed:
            self._folded.catch_up()
            self._labelling.check_unchanged(seen or {})
            bodies, codes = self._labelling.entries(asked, operator)
            with self._store.held():  # no sample goes between this look at it and its label
                self._labelling.check_kept(asked)
                records = self._store.log.append(bodies, codes)
            now_s = time.monotonic()
            self._rhythm.beat(now_s)
            self._learning.label_came(now_s)
            self._turns.wake()
        return Saved(tuple(records))

    def define_class(self, name: str, operator: str) -> bytes:
        """Return the id of a new class of this name, made durable.

        Raises:
            LabelError: the name is empty, too long, reserved, or another class has it.
        """
        class_id = new_class_id()
        self._append_named(name, (), lambda checked: DefineClass(class_id, checked, operator))
        return class_id

    def rename_class(self, class_id: bytes, name: str, operator: str) -> None:
        """Give a class another name.

        Raises:
            UnknownClassError: no such class.
            LabelError: as `define_class`.
        """
        self._append_named(name, (class_id,), lambda checked: RenameClass(class_id, checked, operator))

    def _append_named(self, typed: str, owners: tuple[bytes, ...], body: Callable[[str], Body]) -> None:
        name = class_name(typed)
        with self._turns.changed:
            self._folded.catch_up()
            self._labelling.check_free(name, *owners)
            self._store.log.append([body(name)])
            self._turns.wake()

    def merge_classes(self, one: bytes, other: bytes, operator: str, *, name: str | None = None) -> None:
        """Make two classes one, which cannot be undone.

        Args:
            one, other: The classes.
            operator: Who says so.
            name: What it is called from now on; None for the name that was given last.

        Raises:
            UnknownClassError: no such class.
            LabelError: they are one already, or the name is none or a third class's.
        """
        bodies: list[Body] = [MergeClasses(one, other, operator)]
        if name is not None:
            bodies.append(RenameClass(other, class_name(name), operator))
        with self._turns.changed:
            self._folded.catch_up()
            self._labelling.check_two(one, other)
            if name is not None:
                self._labelling.check_free(class_name(name), one, other)
            self._store.log.append(bodies)
            self._turns.wake()

    def classes(self) -> list[ClassInfo]:
        """Return the classes that exist, by name."""
        with self._turns.changed:
            self._folded.catch_up()
            return self._folded.classes()

    def called(self, now: Now = in_english) -> Callable[[bytes], str]:
        """Return what gives a class's name, also of one that was made part of another since, or that only a
        release of before had.

        Args:
            now: Joins the last name of such a class and what it is called by now.
        """
        with self._turns.changed:
            self._folded.catch_up()
            names = {each.class_id: each.name for each in self._folded.classes()}
            own = {**self._former.names, **self._base.fold.own_names()}
        return partial(called, names, own, self.canonical, now)

    def label_of(self, sample_id: bytes) -> bytes | None:
        """Return the class a sample is labelled as, after merges; None if it is not."""
        with self._turns.changed:
            self._folded.catch_up()
            return self._base.fold.label_of(sample_id)

    def codeless(self, samples: Iterable[bytes]) -> int:
        """Return how many of these are labelled and count nowhere: for want of a code in this feature space."""
        fold = self._base.fold
        with self._turns.changed:
            self._folded.catch_up()
            return sum(
                fold.label_of(each) is not None and not fold.is_summed(each) and fold.live(each) is None
                for each in samples
            )

    def digest(self) -> str:
        """Return the digest of all that is labelled now, learned yet or not."""
        with self._turns.changed:
            self._folded.catch_up()
            return self._base.fold.digest()

    def received(self, _records: Sequence[Record]) -> None:
        """Records from the fleet are in the store: learn them."""
        with self._turns.changed:
            self._turns.wake()

    def status(self) -> LearnerStatus:
        """Return how the learning stands."""
        with self._turns.changed:
            active, last, live = self._heads.active, self._heads.last, self._heads.live
            own_labels = live.devices.count(self._store.device)
            held = quarantine(self._base.fold.holds(), self._store.device)
            whole = not held and live.digest == self._base.fold.digest()
            return LearnerStatus(
                state=active.state,
                number=active.number,
                digest=active.digest,
                samples=active.samples,
                adaptation=active.head.adaptation,
                harm=self._heads.harm,
                live_set_digest=live.digest,
                live_samples=len(live),
                own_labels=own_labels,
                kept_labels=own_labels if whole else None,
                label_to_live_ms=self._learning.label_to_live_ms,
                outcome=last.outcome,
                reason=last.reason,
                why=last.why,
                score=score_of(last),
                busy=not self._trials.idle(),
                fault=self._turns.fault,
                refused=self._folded.refused,
                unapplied=len(self._base.fold.unapplied()),
                prices=tuple(each for each in self._heads.confirmed.row.why if each.code in PRICES)
                if active.state is HeadState.CONFIRMED
                else (),
                withdrawn=self._still_deciding(),
                quarantine=held,
                twins=self._twins_now(),
                unheard=self._folded.unheard(),
            )

    def _twins_now(self) -> str:
        """Return which labels are of another class than the release's of that name. Needs the lock."""
        digest, naming, known = self._base.fold.digest(), self._folded.naming, self._twins
        if known is None or known[0] != digest or known[1] is not naming:
            self._twins = known = digest, naming, self._folded.twins(self._brought)
        return known[2]

    def _still_deciding(self) -> int:
        """Return by how many labels the confirmed head decides that are not said any more. Needs the lock."""
        confirmed, now = self._heads.confirmed.live, self._heads.live
        if self._heads.active.digest != confirmed.digest:
            return 0
        if self._withdrawn[:2] != (confirmed.digest, now.digest):
            self._withdrawn = confirmed.digest, now.digest, still_deciding(confirmed, now)
        return self._withdrawn[2]

    @property
    def confirmed(self) -> Head:
        """The head that its trial has left, or that came with the release: without labels that were taken back."""
        return self._heads.confirmed.head

    @property
    def reference(self) -> Reference | None:
        """Left-out scores of the confirmed head; None until the trial thread has made them."""
        confirmed = self._heads.confirmed
        if confirmed.left_out is None:
            return None
        return Reference(confirmed.row.number, confirmed.left_out, confirmed.head.calibration)

    @property
    def unscorable(self) -> bool:
        """Whether the confirmed head has no left-out scores and gets none: of too few groups. Takes no lock."""
        return self._heads.unscorable

    def suspects(self, limit: int = 50) -> list[Suspect]:
        """Return labels that do not fit what all other groups say, most suspicious first; empty before a score."""
        reference = self.reference
        return [] if reference is None else suspects(reference.left_out, reference.calibration, limit=limit)

    def masters(self) -> Telling | None:
        """Return what the head that serves says of master parts it has not learned; None where none are read."""
        if self._masters is None or (ready := self._masters.ready) is None or not ready.files:
            return None
        with self._turns.changed:
            active, live, naming = self._heads.active, self._heads.live, self._folded.naming
        told = self._told
        if told is None or told[0] is not active or told[1] is not naming:
            learned, names = self._base.learned(live), naming.words(active.head.class_ids)

            def called(class_id: bytes) -> str:
                return self._folded.name(names, class_id)

            found = ready.told(active.head, called)
            strange = ready.strange(names.values())
            telling = Telling([each for each in found if each.sample not in learned], strange)
            self._told = told = active, naming, telling
        best, wrong = self._masters.best, [each.sample for each in told[2].told if not each.right]
        return told[2]._replace(undone=sum(map(best.is_undone, wrong)))

    def history(self, limit: int = 50) -> list[HeadRow]:
        """Return the device's heads, newest first; `score_of` reads a row's score."""
        return self._store.heads.newest(limit=limit)

    def live_set(self) -> LiveSet:
        """Return the live set as it was last learned."""
        with self._turns.changed:
            return self._heads.live

    def scorable(self, live: LiveSet) -> list[bool]:
        """Return for each sample of a live set whether it may be scored."""
        return self._base.scorable(live)

    @property
    def settled(self) -> frozenset[str]:
        """The release's groups that somebody named."""
        return self._base.settled

    def moments_digest(self) -> str:
        """Return the digest of the exact moments; call it while idle."""
        return self._learning.moments_digest()

    # -- threads ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin learning and trials."""
        if self._turns.running:
            return
        self._turns.start(
            [
                Steps("learning", self._learning.step, LEARNING_NICE),
                Steps("serving", self._learning.serving_step, LEARNING_NICE),
                Steps("trial", self._trials.step, TRIAL_NICE),
            ]
        )

    def stop(self) -> None:
        """End the threads; what is not learned or tried yet will be at the next start."""
        self._turns.stop()

    def run_until_idle(self, *, trials: bool = True) -> None:
        """Learn and try on this thread what there is, for programs that run without the threads."""
        if self._turns.running:
            raise ValueError("the learner's own threads are running; use wait_until_idle")
        while self._turns.dirty or (trials and self._heads.candidate is not None):
            if self._turns.dirty:
                self._learning.step()
            else:
                self._trials.step()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until all labels are learned and tried; return whether that came true in time."""
        with self._turns.changed:
            return self._turns.changed.wait_for(self._trials.idle, timeout_s)
