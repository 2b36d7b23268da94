"""The head that serves on this device: learned at every label, tried on groups left out, kept or taken back.

A head is a function of the live set, so nothing of one is stored but a row of its history. Three threads:

- *learning* folds new records, lets the head updated by them serve at once as provisional, then updates the exact
  moments, solves, and swaps the canonical head in;
- *serving* does the first half of that for labels that come while the head of those before is being solved;
- *trial* scores the provisional head on left-out groups against the confirmed one, then confirms it or takes it
  back. A label that comes meanwhile ends the trial: the next one tries the newer head.

Rules this module keeps:

- A label is on disk before `label` returns; learning starts from the store, never from memory, so what was
  acknowledged is learned exactly once, after a crash too.
- Neither labels nor inference wait for a solve or a trial: `head` is one reference, swapped whole, and between
  their steps the threads give way to a save (`courtesy`).
- Taken back means that the confirmed head serves again. The labels stay, and the next one makes a new provisional
  head. Withdrawing a label brings the earlier head back, bit for bit.

How a trial judges is `trial`'s, which samples are asked about `queue`'s, what is kept where `store`'s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np

from device_agent.asking import ask_again
from device_agent.courtesy import Courtesy, switch_often
from device_agent.heads import ActiveHead, Reference, Solved, ended, score_of
from device_agent.heads_and_updates import HeadRow, Outcome
from device_agent.learned import ClassInfo, LearnerStatus, Saved, quarantine
from device_agent.moments import LearnedMoments, labelled_by
from device_agent.provisional import Changes, joined, updated
from device_agent.queue import QueuePolicy
from device_agent.rhythm import Rhythm
from device_agent.sample import Sample
from device_agent.store import Store
from device_agent.trial import Base, meanwhile, try_out
from sdk.adaptation import MAX_STREAM, Harm
from sdk.audit import Suspect, suspects
from sdk.bundle import Bundle
from sdk.codes import Code, Codes, code_digest
from sdk.errors import HeadwayError, LabelError, StoreFull, SummedSample, UnknownClassError
from sdk.head import Calibration, Head, solve
from sdk.labels import (
    Body,
    CodeRecord,
    DefineClass,
    Label,
    MergeClasses,
    Record,
    RenameClass,
    new_class_id,
)
from sdk.liveset import LiveSet
from sdk.moments import UNADAPTED, Adaptation
from sdk.reason import Reason
from sdk.wire import HeadState

LEARNING_NICE: Final = 5
"""The learning thread gives way to frames: on a busy core it gets a quarter of the time that a stage of the
line gets, enough for a solve within a second."""
TRIAL_NICE: Final = 10
"""A trial can wait: a tenth. With less it would never end where the line keeps every core busy."""
RESERVED_NAMES: Final = frozenset({"unknown"})
"""What the page shows for "none of these"; no class may be called so."""
SEARCH_S: Final = 5.0
"""A trial looks no longer than this for a better way to count own labels: the seven solves at d = 1280 take one
second on a server's core. Its scores and its judgement come on top."""
TRIAL_ENDS_S: Final = 2.0
"""So long a solve waits for a trial to give way at most: to its next group, or to the end of a factorisation."""
_STOPPED: Final = Reason("stopped")
_SUPERSEDED: Final = Reason("superseded")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What there is to learn: changes, and the live set they lead to."""

    changes: Changes
    digest: str
    samples: int
    through: int
    canonical: dict[bytes, bytes]


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
    ) -> None:
        self._store = store
        self._policy = policy or QueuePolicy()
        self._courtesy = courtesy or Courtesy()
        self._embed = embed
        self._clock = clock
        self._on_change = on_change or (lambda: None)
        self._base = Base.of(bundle, precision, store.log.shelf)
        self._fold = self._base.fold
        self.space = self._fold.space
        # Guards everything below; notified when there is work, and when work is done.
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._through = 0  # arrival number of the last record folded
        self._refused = 0
        self._fault: str | None = None
        self._changes: Changes = {}  # folded, and taken by nobody to learn
        self._in_flight: Changes = {}  # being learned: not in the latest head
        self._dirty = True  # there may be something to learn
        self._fresh = True  # there may be something to serve at once
        self._learning = False
        self._durable_at: float | None = None  # monotonic time of the first label not yet served
        self._serving = threading.Lock()  # one thread at a time updates a head; taken before `_changed`
        self._rhythm = Rhythm()
        self._label_to_live_ms: float | None = None
        # Not a method: the moments would keep this learner, and 70 MB with it, until garbage is collected.
        self._is_own = labelled_by(store.device)
        self._latest: Head | None = None  # of the live set last learned, whatever became of it; None: not at hand
        self._counted: frozenset[bytes] = frozenset()  # class ids in its moments, before merges
        self._quick: HeadRow | None = None  # of the updated head that serves until its solve; None: none does
        self._outdated: list[HeadRow] = []  # of updated heads that a newer one replaced; not in the store yet
        self._candidate: Solved | None = None  # provisional, waiting for its trial or in it
        self._trying = False
        self._solving = False  # a head is solved, or is about to be
        self._scoring = False  # left-out scores are made: of the head on trial, or of the confirmed one
        self._harm: Harm | None = None  # what the last trial found
        self._ask_due = False  # questions are still those of an earlier head
        self._unscorable = False  # the confirmed head has too few groups for left-out scores
        self._restore()

    # -- start: the confirmed head as it was, then everything since ------------------------------------------

    def _restore(self) -> None:
        last = self._store.heads.last(self.space, [Outcome.CONFIRMED])
        calibration, adaptation = self._base.calibration, UNADAPTED
        if last is None:
            last = HeadRow(
                number=self._store.heads.next_number(),
                created_utc=self._clock(),
                space=self.space,
                digest=self._fold.digest(),
                through=0,
                samples=self._fold.live_samples(),
                outcome=Outcome.CONFIRMED,
            )
            last = ended(last, Outcome.CONFIRMED, Reason("with-release"))
            self._put_head(last)
        else:
            if last.calibration is not None:
                calibration = msgspec.msgpack.decode(last.calibration, type=Calibration)
            if last.adaptation is not None:
                adaptation = msgspec.msgpack.decode(last.adaptation, type=Adaptation)
        unfinished = self._store.heads.last(self.space, [Outcome.PROVISIONAL])
        if unfinished is not None:
            self._put_head(ended(unfinished, Outcome.SUPERSEDED, _STOPPED))
        self._catch_up(through=last.through)
        self._changes.clear()
        live = self._fold.live_set()
        # Owned by the learning thread from here on; of `live` after the changes are applied.
        self._moments = LearnedMoments(self._base.rest, self._is_own)
        self._moments.sum_up(list(self._fold.rows()), adaptation)
        head = solve(
            self._moments.everything,
            canonical=self._fold.canonical,
            knobs=self._base.knobs,
            calibration=calibration,
            own=self._moments.own,
            adaptation=adaptation,
        )
        confirmed = Solved(head, live, last)
        self._latest = head
        self._counted = frozenset(self._moments.everything.counts())
        self._learned_digest = live.digest
        self._live = live
        self._last = last  # the newest head's row, whatever became of it
        self._confirmed = confirmed
        self._active = self._activate(confirmed, HeadState.CONFIRMED)
        self._settled = self._active, self._last  # what these were before an updated head served
        if live.digest != last.digest:
            # A code was erased since, or another version's fold said otherwise: its score is no longer its own.
            self._provisional(head, live, self._row(self._work({})))
            self._settle_on(*self._settled)
        self._catch_up()
        newest = self._store.heads.last(self.space, [Outcome.CONFIRMED, Outcome.TAKEN_BACK])
        if newest is not None and newest.outcome is Outcome.TAKEN_BACK and newest.digest == self._fold.digest():
            self._moments.apply(self._changes)
            self._changes = {}
            self._counted = frozenset(self._moments.everything.counts())
            self._live = self._fold.live_set()
            self._learned_digest = self._live.digest
            self._latest = None
            self._last = newest
            self._settled = self._active, self._last
        else:
            self._learn()

    # -- what the agent and the page call ----------------------------------------------------------------------

    @property
    def head(self) -> ActiveHead:
        """The head that decides now. Takes no lock: read it once per decision."""
        return self._active

    def label(self, sample_id: bytes, class_id: bytes | None, operator: str) -> Saved:
        """Store an operator's label; it is on disk when this returns, and learned soon after. See `label_all`."""
        return self.label_all([(sample_id, class_id)], operator)

    def label_all(self, labels: Sequence[tuple[bytes, bytes | None]], operator: str) -> Saved:
        """Store labels as one: all are on disk when this returns, or none is. Learned soon after.

        Args:
            labels: Samples kept in the store, each with its class; None withdraws the label.
            operator: Who says so.

        Raises:
            LabelError: no such sample, or its picture is needed and gone.
            SummedSample: the release has learned from it, and knows it by its sums only.
            UnknownClassError: no such class.
            StoreFull: they could not be stored; nothing was.
        """
        asked = [(self._kept(sample_id), class_id) for sample_id, class_id in labels]
        found = {s.sample_id: self._code_of(s) for s, class_id in asked if class_id is not None}
        with self._changed:
            self._catch_up()
            bodies: list[Body] = []
            codes: dict[bytes, Code] = {}
            for sample, class_id in asked:
                sample_id = sample.sample_id
                self._check_label(sample_id, class_id)
                bodies.append(Label(sample_id, class_id, operator))
                code = found.get(sample_id)
                if code is None or sample_id in codes or self._store.log.has_code(sample_id, self.space):
                    continue
                bodies.append(CodeRecord(bytes.fromhex(self.space), sample_id, sample.group, code_digest(code)))
                codes[sample_id] = code
            records = self._store.log.append(bodies, codes)
            now_s = time.monotonic()
            self._rhythm.beat(now_s)
            if self._durable_at is None:
                self._durable_at = now_s
            self._wake()
        return Saved(tuple(records))

    def _kept(self, sample_id: bytes) -> Sample:
        sample = self._store.samples.get(sample_id)
        if sample is None:
            raise LabelError(
                f"sample {sample_id.hex()[:12]} is not kept here",
                hint="Only the newest unlabelled pictures are kept; label one of those.",
            )
        return sample

    def _check_label(self, sample_id: bytes, class_id: bytes | None) -> None:
        if self._fold.is_summed(sample_id):
            raise SummedSample(
                f"sample {sample_id.hex()[:12]} is one that the release was made from, without its code",
                hint="Correct it where the release is made, or export with a larger --max-base-codes.",
            )
        if class_id is not None and self._fold.canonical(class_id) not in self._fold.class_names():
            raise UnknownClassError(
                f"there is no class {class_id.hex()[:12]}", hint="Define the class first, then label with it."
            )

    def _code_of(self, sample: Sample) -> Code:
        if sample.space == self.space:
            return sample.code
        image = self._store.samples.image(sample.sample_id)
        if self._embed is None or image is None:
            raise LabelError(
                f"sample {sample.sample_id.hex()[:12]} was seen with an earlier release and its picture is gone",
                hint="Label a newer picture of the same kind.",
            )
        return self._embed(image)

    def define_class(self, name: str, operator: str) -> bytes:
        """Return the id of a new class of this name, made durable.

        Raises:
            LabelError: the name is empty, too long, reserved, or another class has it.
        """
        class_id = new_class_id()
        self._append_named(name, None, lambda checked: DefineClass(class_id, checked, operator))
        return class_id

    def rename_class(self, class_id: bytes, name: str, operator: str) -> None:
        """Give a class another name.

        Raises:
            UnknownClassError: no such class.
            LabelError: as `define_class`.
        """
        self._append_named(name, class_id, lambda checked: RenameClass(class_id, checked, operator))

    def _append_named(self, name: str, owner: bytes | None, body: Callable[[str], Body]) -> None:
        name = " ".join(name.split())
        if not name or not name.isprintable() or name.casefold() in RESERVED_NAMES:
            raise LabelError(f"{name[:64]!r} is no name for a class", hint="Call it what people call the defect.")
        with self._changed:
            self._catch_up()
            names = self._fold.class_names()
            if owner is not None:
                self._check_class(owner)
            for class_id, taken in names.items():
                if taken.casefold() == name.casefold() and class_id != (owner and self._fold.canonical(owner)):
                    raise LabelError(f"there is a class {taken!r} already", hint="Use it, or choose another name.")
            self._store.log.append([body(name)])
            self._wake()

    def merge_classes(self, one: bytes, other: bytes, operator: str) -> None:
        """Make two classes one; it goes by the name given last, and cannot be undone.

        Raises:
            UnknownClassError: no such class.
            LabelError: they are one already.
        """
        with self._changed:
            self._catch_up()
            for class_id in (one, other):
                self._check_class(class_id)
            if self._fold.canonical(one) == self._fold.canonical(other):
                raise LabelError("these are one class already", hint="Nothing needs to be done.")
            self._store.log.append([MergeClasses(one, other, operator)])
            self._wake()

    def _check_class(self, class_id: bytes) -> None:
        if self._fold.canonical(class_id) not in self._fold.class_names():
            raise UnknownClassError(
                f"there is no class {class_id.hex()[:12]}", hint="Look at the list of classes."
            )

    def classes(self) -> list[ClassInfo]:
        """Return the classes that exist, by name."""
        with self._changed:
            self._catch_up()
            given, canonical = self._fold.labels_by(), self._fold.canonical
            names, summed = self._fold.class_names(), self._fold.summed_counts()
            roots = {class_id: canonical(class_id) for class_id, _ in given}
        labels, own = Counter(summed), Counter[bytes]()
        for (class_id, device), count in given.items():
            labels[roots[class_id]] += count
            if device == self._store.device:
                own[roots[class_id]] += count
        infos = [ClassInfo(class_id, name, own[class_id], labels[class_id]) for class_id, name in names.items()]
        return sorted(infos, key=lambda each: (each.name.casefold(), each.class_id))

    def label_of(self, sample_id: bytes) -> bytes | None:
        """Return the class a sample is labelled as, after merges; None if it is not."""
        with self._changed:
            self._catch_up()
            return self._fold.label_of(sample_id)

    def received(self, _records: Sequence[Record]) -> None:
        """Records from the fleet are in the store: learn them."""
        with self._changed:
            self._wake()

    def status(self) -> LearnerStatus:
        """Return how the learning stands."""
        with self._changed:
            active, last, live = self._active, self._last, self._live
            return LearnerStatus(
                state=active.state,
                number=active.number,
                adaptation=active.head.adaptation,
                harm=self._harm,
                live_set_digest=live.digest,
                live_samples=len(live),
                own_labels=live.devices.count(self._store.device),
                label_to_live_ms=self._label_to_live_ms,
                outcome=last.outcome,
                reason=last.reason,
                why=last.why,
                score=score_of(last),
                busy=not self._idle(),
                fault=self._fault,
                refused=self._refused,
                unapplied=len(self._fold.unapplied()),
                quarantine=quarantine(self._fold.holds(), self._store.device),
            )

    @property
    def reference(self) -> Reference | None:
        """Left-out scores of the confirmed head; None until the trial thread has made them."""
        confirmed = self._confirmed
        if confirmed.left_out is None:
            return None
        return Reference(confirmed.row.number, confirmed.left_out, confirmed.head.calibration)

    def suspects(self, limit: int = 50) -> list[Suspect]:
        """Return labels that do not fit what all other groups say, most suspicious first; empty before a score."""
        reference = self.reference
        return [] if reference is None else suspects(reference.left_out, reference.calibration, limit=limit)

    def history(self, limit: int = 50) -> list[HeadRow]:
        """Return the device's heads, newest first; `score_of` reads a row's score."""
        return self._store.heads.newest(limit=limit)

    def live_set(self) -> LiveSet:
        """Return the live set as it was last learned."""
        with self._changed:
            return self._live

    def scorable(self, live: LiveSet) -> list[bool]:
        """Return for each sample of a live set whether it may be scored."""
        return self._base.scorable(live)

    def moments_digest(self) -> str:
        """Return the digest of the exact moments; call it while idle."""
        return self._moments.everything.digest()

    # -- threads ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin learning and trials."""
        if self._threads:
            return
        switch_often()
        self._threads = [
            threading.Thread(target=self._run, args=(step, nice), name=name, daemon=True)
            for name, step, nice in (
                ("learning", self._learning_step, LEARNING_NICE),
                ("serving", self._serving_step, LEARNING_NICE),
                ("trial", self._trial_step, TRIAL_NICE),
            )
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; what is not learned or tried yet will be at the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def run_until_idle(self, *, trials: bool = True) -> None:
        """Learn and try on this thread what there is, for programs that run without the threads."""
        if self._threads:
            raise ValueError("the learner's own threads are running; use wait_until_idle")
        while self._dirty or (trials and self._candidate is not None):
            if self._dirty:
                self._learning_step()
            else:
                self._trial_step()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until all labels are learned and tried; return whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(self._idle, timeout_s)

    def _idle(self) -> bool:
        return not (self._dirty or self._learning or self._candidate is not None or self._trying)

    def _wake(self) -> None:
        self._dirty = self._fresh = True
        self._changed.notify_all()

    def _run(self, step: Callable[[], None], nice: int) -> None:
        with contextlib.suppress(OSError):  # where the system will not, frames wait a little longer
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)
        while not self._stopping:
            step()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Note a failure and go on, where a thread of ours runs: the head must go on serving.

        It is noted before the step counts as done, so that whoever waited until idle sees it.
        """
        try:
            yield
        except Exception as error:
            if not self._threads:
                raise
            fault = str(error)
            if not isinstance(error, HeadwayError):
                log.exception("%s failed", threading.current_thread().name)
                fault = f"{type(error).__name__}: {error}"
            with self._changed:
                self._fault = fault

    def _learning_step(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._dirty or self._stopping)
            if self._stopping:
                return
            self._dirty = False
            self._learning = True
        self._courtesy.give_way()  # the answer to the label that woke us goes out first
        try:
            with self._surviving():
                self._learn()
                self._on_change()
        finally:
            with self._changed:
                self._learning = False
                self._changed.notify_all()

    def _serving_step(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or (self._fresh and self._learning))
            if self._stopping:
                return
        self._courtesy.give_way()
        with self._surviving():
            self._serve_at_once()

    # -- learning -----------------------------------------------------------------------------------------------

    def _catch_up(self, through: int | None = None) -> None:
        """Fold what the store has and we have not seen, and remember whose rows changed. Needs the lock."""
        while batch := self._store.log.records_after(self._through):
            for arrival, record in batch:
                if through is not None and arrival > through:
                    return
                self._fold_one(record)
                self._through = arrival

    def _fold_one(self, record: Record) -> None:
        try:
            changed = self._fold.changes(record)
        except HeadwayError as error:
            # The fleet should not have taken it. Everybody refuses it alike, so live sets still agree.
            self._refused += 1
            self._fault = str(error)
            return
        for sample, (before, after) in changed.items():
            self._changes[sample] = (self._changes[sample][0] if sample in self._changes else before, after)

    def _serve_at_once(self) -> None:
        """Let the latest head, updated by the few changes since, serve until the canonical one is solved."""
        with self._serving:
            while True:
                with self._changed:
                    self._fresh = False
                    self._catch_up()
                    base, counted = self._latest, self._counted
                    work = self._work(joined(self._in_flight, self._changes))
                    durable_at, self._durable_at = self._durable_at, None
                    known = work.digest in (self._learned_digest, self._confirmed.live.digest)
                head = None
                if base is not None and not known:
                    canonical = work.canonical
                    head = updated(base, work.changes, learned=counted, canonical=canonical, is_own=self._is_own)
                with self._changed:
                    stale = self._latest is not base  # solved or tried meanwhile
                    if stale or (head is None and not known):
                        self._durable_at = durable_at if durable_at is not None else self._durable_at
                        if stale:
                            continue
                        return
                    if head is None:
                        self._serve_known(work.digest)
                    else:
                        self._serve_updated(head, work)
                    if durable_at is not None:
                        self._label_to_live_ms = (time.monotonic() - durable_at) * 1000
                    return

    def _serve_known(self, digest: str) -> None:
        """Serve what served before the changes, which are undone. Needs the lock."""
        if digest == self._learned_digest:
            self._settle_on(*self._settled)
        else:
            self._settle_on(self._activate(self._confirmed, HeadState.CONFIRMED), self._confirmed.row)

    def _serve_updated(self, head: Head, work: _Work) -> None:
        """Serve an updated head. Needs the lock."""
        head = head.recalibrated(meanwhile(self._confirmed.head.calibration, head))
        row = self._row(work)
        self._retire(work.digest)
        self._last = self._quick = row
        self._active = ActiveHead(
            head, self._names(head), HeadState.PROVISIONAL, row.digest, row.number, row.samples
        )

    def _settle_on(self, active: ActiveHead, last: HeadRow) -> None:
        """Serve a head that needs no solve. Needs the lock."""
        self._retire(active.digest)
        self._active, self._last = replace(active, names=self._names(active.head)), last

    def _retire(self, digest: str) -> None:
        """Let the updated head go, into the history where its successor is of another live set. Needs the lock."""
        if self._quick is not None and self._quick.digest != digest:
            self._outdated.append(self._quick)
        self._quick = None

    def _learn(self) -> None:
        """Learn what was folded: a head updated in milliseconds serves at once, then the canonical one."""
        self._serve_at_once()
        with self._changed:
            self._catch_up()
            changes, self._changes = self._changes, {}
            self._in_flight = joined(self._in_flight, changes)  # after a failure there is something in it
            work = self._work(self._in_flight)
            live = self._live = self._fold.live_set()
            confirmed = self._confirmed
            learned, undone = work.digest == self._learned_digest, work.digest == confirmed.live.digest
            durable_at, self._durable_at = self._durable_at, None
            row = None if learned or undone else self._row(work)
            rows = None if self._moments.serve(confirmed.head.adaptation) else list(self._fold.rows())
        try:
            self._courtesy.give_way()
            self._moments.bring_up(changes, rows, confirmed.head.adaptation)
            self._courtesy.give_way()
            # Undone is as if it had never been learned: the head from before is there already.
            head = self._latest if learned else confirmed.head if undone else self._solve(work, confirmed)
        except BaseException:
            with self._changed:
                self._retire("")  # what serves goes on; the next label brings the next solve
            raise
        with self._changed:
            outdated, self._outdated = self._outdated, []
            self._in_flight = {}
            self._latest = head
            self._counted = frozenset(self._moments.everything.counts())
            if not learned:
                self._learned_digest = work.digest
                self._fault = None
                if self._candidate is not None:
                    outdated.append(self._candidate.row)
                    self._candidate = None
                if row is None or head is None or work.digest == self._confirmed.live.digest:
                    self._settled = self._activate(self._confirmed, HeadState.CONFIRMED), self._confirmed.row
                else:
                    self._provisional(head, live, row)
            active, last = self._settled
            if self._quick is None or self._quick.digest == work.digest or not self._changes:
                self._settle_on(active, last)  # else one serves that knows more
            if durable_at is not None:
                self._label_to_live_ms = (time.monotonic() - durable_at) * 1000
            self._changed.notify_all()
        for each in outdated:
            self._put_head(ended(each, Outcome.SUPERSEDED, _SUPERSEDED))
        if not learned and last.outcome is Outcome.PROVISIONAL:
            self._put_head(last)
        if not learned or self._ask_due:
            self._ask_again(active)

    def _solve(self, work: _Work, confirmed: Solved) -> Head:
        with self._changed:
            self._solving = True
            # A trial holds as many large matrices as a solve. It is in vain now and gives way; the label that
            # brought this solve is served already.
            self._changed.wait_for(lambda: self._stopping or not self._scoring, TRIAL_ENDS_S)
        try:
            return solve(
                self._moments.everything,
                canonical=work.canonical.__getitem__,
                knobs=self._base.knobs,
                own=self._moments.own,
                adaptation=confirmed.head.adaptation,
            )
        finally:
            with self._changed:
                self._solving = False
                self._changed.notify_all()

    def _work(self, changes: Changes) -> _Work:
        """Return what changes since the latest head lead to. Needs the lock."""
        classes = {row.class_id for rows in changes.values() for row in rows if row is not None}
        return _Work(
            changes=changes,
            digest=self._fold.digest(),
            samples=self._fold.live_samples(),
            through=self._through,
            canonical={c: self._fold.canonical(c) for c in classes | self._counted},
        )

    def _row(self, work: _Work) -> HeadRow:
        """Return the history's row of a head to be. Needs the lock."""
        if self._quick is not None and self._quick.digest == work.digest:
            return self._quick
        return HeadRow(
            number=self._store.heads.next_number(),
            created_utc=self._clock(),
            space=self.space,
            digest=work.digest,
            through=work.through,
            samples=work.samples,
            outcome=Outcome.PROVISIONAL,
        )

    def _provisional(self, head: Head, live: LiveSet, row: HeadRow) -> None:
        """Have a head tried; it serves until then. Needs the lock."""
        head = head.recalibrated(meanwhile(self._confirmed.head.calibration, head))
        self._candidate = Solved(head, live, row)
        self._settled = self._activate(self._candidate, HeadState.PROVISIONAL), row

    def _activate(self, solved: Solved, state: HeadState) -> ActiveHead:
        return ActiveHead(
            head=solved.head,
            names=self._names(solved.head),
            state=state,
            digest=solved.live.digest,
            number=solved.row.number,
            samples=len(solved.live),
        )

    def _names(self, head: Head) -> tuple[str, ...]:
        names = self._fold.class_names()
        # A merge that this head has not learned yet: go by the merged class's name.
        return tuple(self._name(names, class_id) for class_id in head.class_ids)

    def _name(self, names: dict[bytes, str], class_id: bytes) -> str:
        # Labels may arrive before the definition of their class: device logs come one after the other.
        return names.get(self._fold.canonical(class_id), f"class {class_id.hex()[:6]}")

    # -- trial --------------------------------------------------------------------------------------------------

    def _unscored(self) -> bool:
        return self._confirmed.left_out is None and not self._unscorable and self._idle()

    def _triable(self) -> bool:
        return self._candidate is not None and self._quick is None and not self._solving

    def _trial_step(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._triable() or self._unscored() or self._stopping)
            candidate, confirmed = self._candidate, self._confirmed
            if self._stopping:
                return
            self._scoring = candidate is None
        if candidate is None:
            try:
                with self._surviving():
                    self._score_confirmed(confirmed)
            finally:
                self._scored()
            return
        with self._changed:
            # In a burst of labels each trial would be in vain, and slow the next head down.
            newer = self._changed.wait_for(
                lambda: self._stopping or self._candidate is not candidate,
                self._rhythm.pause_s() if self._threads else 0.0,
            )
            if newer or self._solving:
                return
            self._trying = self._scoring = True
            names = self._fold.class_names()

        try:
            with self._surviving():
                self._end_trial(candidate, confirmed, names)
        finally:
            self._scored()

    def _scored(self) -> None:
        with self._changed:
            self._trying = self._scoring = False
            self._changed.notify_all()

    def _end_trial(self, candidate: Solved, confirmed: Solved, names: dict[bytes, str]) -> None:
        try:
            judged = self._try(candidate, confirmed, names)
            if judged is not None and self._settle(candidate, judged):
                self._on_change()
        except BaseException:
            with self._changed:
                if self._candidate is candidate:
                    self._candidate = None  # it stays provisional; the next label brings the next trial
            raise

    def _try(self, candidate: Solved, confirmed: Solved, names: dict[bytes, str]) -> Solved | None:
        """Return the candidate with its outcome; None when a newer head has made its trial obsolete."""

        def obsolete() -> bool:
            self._courtesy.give_way()
            newer = self._candidate is not candidate or self._quick is not None
            return newer or self._solving or self._stopping

        deadline = time.monotonic() + SEARCH_S

        def enough() -> bool:
            return obsolete() or time.monotonic() > deadline

        try:
            return try_out(
                self._base,
                candidate,
                self._with_left_out(confirmed, obsolete),
                device=self._store.device,
                stream=self._stream(),
                names=lambda class_id: self._name(names, class_id),
                obsolete=obsolete,
                enough=enough,
            )
        except InterruptedError:
            return None

    def _stream(self) -> Codes:
        """Return the newest codes of this station, labelled or not, at most `MAX_STREAM`."""
        codes = self._store.samples.newest_codes(self.space, limit=MAX_STREAM)
        return np.array(codes, np.int8).reshape(len(codes), self._fold.feature_size)

    def _score_confirmed(self, confirmed: Solved) -> None:
        """Score the head that serves while there is nothing to try: its next trial and the drift watch need it."""

        def obsolete() -> bool:
            self._courtesy.give_way()
            return self._stopping or self._dirty or self._solving or self._candidate is not None

        try:
            self._with_left_out(confirmed, obsolete)
        except InterruptedError:
            pass  # a label came first
        except BaseException:
            self._unscorable = True  # told once, not tried for ever
            raise

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
            with self._changed:
                if self._confirmed.row is confirmed.row:
                    self._confirmed = confirmed
                    self._unscorable = confirmed.left_out is None
        return confirmed

    def _settle(self, candidate: Solved, judged: Solved) -> bool:
        """Confirm the candidate or take it back; return false where a newer head is there already."""
        with self._changed:
            if self._candidate is not candidate or self._quick is not None:
                return False
            self._candidate = None
            self._harm = judged.harm
            self._last = judged.row
            if judged.row.outcome is Outcome.CONFIRMED:
                self._confirmed = judged
                if self._latest is candidate.head:
                    self._latest = judged.head
                self._unscorable = judged.left_out is None
            active = self._activate(self._confirmed, HeadState.CONFIRMED)
            self._settled = active, self._last
            self._settle_on(active, self._last)
        self._put_head(judged.row)
        self._ask_again(active)
        return True

    # -- what goes along with a new head ------------------------------------------------------------------------

    def _put_head(self, row: HeadRow) -> None:
        try:
            self._store.heads.put(row)
        except StoreFull as error:
            # History is a record. Without it the next start tries the head once more.
            self._fault = str(error)

    def _ask_again(self, active: ActiveHead) -> None:
        """Ask the waiting questions anew, to the end unless a newer label waits: its head asks them all again."""

        def newer() -> bool:
            self._courtesy.give_way()
            return self._dirty and bool(self._threads)

        self._ask_due = True  # also where the disk is full
        try:
            self._ask_due = not ask_again(self._store, self._policy, active.head, active.names, self.space, newer)
        except StoreFull as error:
            self._fault = str(error)
