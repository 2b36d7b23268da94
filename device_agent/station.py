"""The release in operation on this device: frames to decisions, questions and labels. No camera, network or page.

The agent's loop, the page and a rehearsal all work through one `Station`, so a rehearsal is the real thing.
Rules kept here:

- A decision is stored with its picture before it counts as seen; where the disk is full it is counted and
  decided all the same. Frames may be lost, labels never.
- A release is swapped whole (`serve`): a frame is decided by the old one or the new one, never by parts of both.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from device_agent.accepting import THRESHOLD_KEPT_AS, Accepting, OperatingTarget, Target
from device_agent.camera import Shot
from device_agent.courtesy import Courtesy
from device_agent.decider import Decider
from device_agent.heads import ActiveHead, Reference
from device_agent.heatmap import draw, heatmap
from device_agent.learned import ClassInfo, Saved
from device_agent.learner import Learner
from device_agent.master_folder import check_folder
from device_agent.naming import Naming
from device_agent.pipeline import Pipeline
from device_agent.queue import Question, QueuePolicy, ask
from device_agent.runtime import Batch, Runtime
from device_agent.sample import Sample, SampleStatus
from device_agent.store import Store
from sdk.audit import Suspect
from sdk.bundle import Bundle
from sdk.class_names import key_of
from sdk.codes import Code, Codes, Features
from sdk.drift import Drift, DriftWatch
from sdk.errors import LabelError, NoRelease, StoreFull, UnknownClassError
from sdk.head import Decisions, Head
from sdk.images import decode, sample_id
from sdk.preprocess import Frame

_log = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
"""The decision shown for a frame that is unlike anything the head knows."""
DRIFT_RATE: Final = 1e-4
"""An unchanged line gives a false drift alarm once in 10,000 parts or less often."""
LATENCIES_KEPT: Final = 500


@dataclass(frozen=True)
class Serving:
    """A release in operation, as one reference."""

    release_id: str | None
    bundle: Bundle
    digest: str
    pipeline: Pipeline
    learner: Learner
    decider: Decider

    def stop(self) -> None:
        """Learn no more, and make ready for no more heads."""
        self.learner.stop()
        self.decider.close()


@dataclass(frozen=True)
class Decision:
    """What the head says of one frame.

    Attributes:
        shown: A class name, or "unknown".
        class_id: Of the class shown; None for unknown.
        forced: The best class's name, unknown or not.
        forced_id: Its id.
        probability: Of the best class.
        novelty: Higher is stranger; on the head's own scale.
        threshold: Novelty above it is unknown.
        unknown: Whether it is.
        scores: Score by class id; empty for frames of the camera, where nobody looks at them.
        head: Number of the head that decided.
        question: Why an operator should be asked, if so.
        defect: Probability of a defect; None where no class is known to be good.
        rejected: Whether the part goes out by the station's operating point; None like `defect`.
        good: Whether the class shown is a good one; None like `defect`, and unknown never is.
        scored: Whether the head was, where a threshold is asked for; if not, every part goes out.
    """

    shown: str
    class_id: bytes | None
    forced: str
    forced_id: bytes
    probability: float
    novelty: float
    threshold: float
    unknown: bool
    scores: dict[bytes, float]
    head: int
    question: Question | None
    defect: float | None = None
    rejected: bool | None = None
    good: bool | None = None
    scored: bool = True

    @property
    def words(self) -> str:
        """What is shown; where the threshold says otherwise than that, the probability of a defect with it."""
        if not self.scored:
            return f"head not scored yet, shown {self.shown}"
        if self.defect is None or self.rejected is None or self.rejected != self.good:
            return self.shown
        return f"defect {percent(self.defect)}, shown {self.shown}"

    @property
    def doubt(self) -> float:
        """Probability of a defect; where no class is known to be good, of any class but the best."""
        return 1 - self.probability if self.defect is None else self.defect


class Prepared(NamedTuple):
    """Frames, or tiles of one, ready for the backbone of the release that will decide about them."""

    serving: Serving
    shots: Sequence[Shot]
    batch: Batch


class Embedded(NamedTuple):
    """Their features, and how long the backbone took for all of them."""

    serving: Serving
    shots: Sequence[Shot]
    features: Features
    backbone_ms: float


class Look(NamedTuple):
    """One frame's or tile's decision, not stored yet.

    It has what its head said, not the head: frames that wait to be stored would keep each head that labels brought
    meanwhile, d x d numbers apiece.
    """

    serving: Serving
    shot: Shot
    code: Code
    decided: Decisions
    row: int
    names: Sequence[str]
    counts: Sequence[int]
    decision: Decision
    latency_ms: float


class Looked(NamedTuple):
    """Decisions of one `Prepared`, the head that made them, and how long backbone and head took for all."""

    looks: Sequence[Look]
    head: Head
    backbone_ms: float
    head_ms: float


class Seen(NamedTuple):
    """A frame's decision, and what became of it."""

    sample_id: bytes
    captured_utc: float
    decision: Decision
    status: SampleStatus
    latency_ms: float


@dataclass
class Counts:
    """What the station has done since it started.

    Attributes:
        frames: Decided, each once however many tiles it is cut into.
        unknown: Of those, with a tile that was decided as unknown.
        unstored: Samples (frames, or tiles) decided but not stored, because the disk was full.
        full: Whether that was so of the newest one.
    """

    frames: int = 0
    unknown: int = 0
    unstored: int = 0
    full: bool = False


class Station:
    """One device's release, head, questions and labels.

    Args:
        store: What survives.
        policy: Which samples operators are asked about.
        on_change: Called, from any thread, after the release, the head or its state has changed.
        on_saved: Called, from any thread, after this device's log has grown.
        masters: Folder of master parts, which judge every head; None where the station keeps none.
        threads: False leaves learning to the caller, by `learner.run_until_idle`: a rehearsal then needs no
            waiting, and gives the same figures every time.

    Attributes:
        cameras: Names of the line's cameras, by their numbers.

    Raises:
        ConfigError: there is no such folder of master parts.
    """

    def __init__(
        self,
        store: Store,
        *,
        policy: QueuePolicy | None = None,
        on_change: Callable[[], None] | None = None,
        on_saved: Callable[[], None] | None = None,
        masters: Path | None = None,
        threads: bool = True,
    ) -> None:
        self.store = store
        self.policy = policy or QueuePolicy()
        self.counts = Counts()
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self.operating = OperatingTarget(naming=self._naming, kept=store.kept(THRESHOLD_KEPT_AS))
        self.courtesy = Courtesy()
        self.cameras: Sequence[str] = ()
        self._tell_change = on_change or (lambda: None)
        self._on_saved = on_saved or (lambda: None)
        check_folder(masters)
        self._masters = masters
        self._threads = threads
        self._serving: Serving | None = None
        self._watch: tuple[object, DriftWatch] | None = None
        self._last_group = ""
        self._watched = 0  # parts
        self._has_release = threading.Event()
        self._swap = threading.Lock()

    # -- the release -----------------------------------------------------------------------------------------

    @property
    def serving(self) -> Serving | None:
        """The release in operation; None before the first. Read it once per piece of work."""
        return self._serving

    def require(self) -> Serving:
        """Return the release in operation.

        Raises:
            NoRelease: there is none yet.
        """
        serving = self._serving
        if serving is None:
            raise NoRelease(
                "no release is installed on this device yet",
                hint="Name a bundle in site.toml, or publish one: headway fleet publish BUNDLE.",
            )
        return serving

    def serve(
        self, bundle: Bundle, precision: str | None, runtime: Runtime, release_id: str | None = None
    ) -> None:
        """Let a release take over. Its learner folds the store's log, so the head has all labels at once.

        Raises:
            BadFormat: the bundle's samples are not those its head was made from.
        """
        pipeline = Pipeline(bundle, precision, runtime)

        def embed(image: bytes) -> Code:
            return np.asarray(pipeline.code(decode(image))[0], np.int8)

        with self._swap:
            learner = Learner(
                bundle,
                precision,
                self.store,
                policy=self.policy,
                embed=embed,
                on_change=self._on_change,
                courtesy=self.courtesy,
                masters=self._masters,
            )
            decider = Decider(pipeline.scale, beside=self._threads)
            serving = Serving(release_id, bundle, bundle.digest(), pipeline, learner, decider)
            old, self._serving = self._serving, serving
            if self._threads:
                learner.start()
            if old is not None:
                old.stop()
        self._has_release.set()
        _log.info("serving %s (%s)", bundle.manifest.name, pipeline.precision)
        self._on_change()

    def confirmed(self, space: str) -> Head | None:
        """Return the confirmed head of the release that serves; None where none does, or in another space."""
        serving = self._serving
        return None if serving is None or serving.learner.space != space else serving.learner.confirmed

    def serve_nothing(self) -> None:
        """Let no release serve: the only one there was has been rolled back."""
        with self._swap:
            self._has_release.clear()
            old, self._serving = self._serving, None
            if old is not None:
                old.stop()
        self._on_change()

    def wait_for_release(self, timeout_s: float) -> bool:
        """Wait until a release serves; return whether one does."""
        return self._has_release.wait(timeout_s)

    def close(self) -> None:
        """Stop learning. The store stays open; it is its owner's."""
        with self._swap:
            if self._serving is not None:
                self._serving.stop()

    # -- frames ------------------------------------------------------------------------------------------------

    def see(self, shot: Shot, code: Codes | None = None) -> Seen:
        """Decide about a frame, store it, and ask the operator where that helps.

        Args:
            shot: The frame as the camera gave it.
            code: Its code (1, d), where it is known already.

        Raises:
            NoRelease: none serves yet.
            InferenceFailed: the runtime failed; nothing was stored.
        """
        if code is None:
            return self.keep(self.look(self.prepare([shot])).looks)[0]
        began_s = time.perf_counter()
        serving = self.require()
        active = serving.learner.head
        return self.keep(self._looks(serving, [shot], active, code, active.head.decide(code), began_s))[0]

    def prepare(self, shots: Sequence[Shot]) -> Prepared:
        """Return frames, at least one, as the release that serves now wants them.

        Raises:
            NoRelease: none serves yet.
        """
        serving = self.require()
        return Prepared(serving, shots, serving.pipeline.prepare([shot.frame for shot in shots]))

    def look(self, prepared: Prepared) -> Looked:
        """Decide about frames that no line waits for: `embed`, then the head's own arithmetic.

        Raises:
            InferenceFailed: the runtime failed.
        """
        pipeline = prepared.serving.pipeline

        def by_head(head: Head, features: Features) -> tuple[Codes, Decisions]:
            codes = pipeline.codes_of(features)
            return codes, head.decide(codes)

        return self._judged(self.embed(prepared), by_head)

    def embed(self, prepared: Prepared) -> Embedded:
        """Run the backbone of the release that frames were prepared for.

        Raises:
            InferenceFailed: the runtime failed.
        """
        began_s = time.perf_counter()
        features = prepared.serving.pipeline.features(prepared.batch)
        return Embedded(prepared.serving, prepared.shots, features, (time.perf_counter() - began_s) * 1000)

    def judge(self, embedded: Embedded) -> Looked:
        """Decide about the line's frames by their features and the release's head of this moment, in one call.

        Raises:
            FeatureSizeError: the features are not finite.
        """
        return self._judged(embedded, embedded.serving.decider.decide)

    def _judged(self, embedded: Embedded, decide: Callable[[Head, Features], tuple[Codes, Decisions]]) -> Looked:
        serving, shots, features, backbone_ms = embedded
        began_s = time.perf_counter()
        active = serving.learner.head
        codes, decided = decide(active.head, features)
        looks = self._looks(serving, shots, active, codes, decided, began_s - backbone_ms / 1000)
        return Looked(looks, active.head, backbone_ms, (time.perf_counter() - began_s) * 1000)

    def _looks(
        self,
        serving: Serving,
        shots: Sequence[Shot],
        active: ActiveHead,
        codes: Codes,
        decided: Decisions,
        began_s: float,
    ) -> list[Look]:
        accepting = self._accepting(serving, active)
        decisions = [_decision(active, decided, row, accepting) for row in range(len(shots))]
        latency_ms = (time.perf_counter() - began_s) * 1000
        said = active.names, active.head.counts
        return [
            Look(serving, shot, np.asarray(codes[row], np.int8), decided, row, *said, decisions[row], latency_ms)
            for row, shot in enumerate(shots)
        ]

    def keep(self, looks: Sequence[Look]) -> list[Seen]:
        """Store a frame's decisions, at least one, with their pictures, and ask the operator where that helps.

        Args:
            looks: Its tiles, or all but such as are surely good.
        """
        seen = [self._kept(look) for look in looks]
        self.counts.frames += 1
        self.counts.unknown += any(look.decision.unknown for look in looks)
        self.latencies_ms.append(looks[0].latency_ms)
        return seen

    def _kept(self, look: Look) -> Seen:
        shot, decision = look.shot, replace(look.decision, question=_question(look, self.policy))
        status = self._keep(look, decision)
        self._watch_drift(look)
        return Seen(shot.sample_id, shot.captured_utc, decision, status, look.latency_ms)

    def _accepting(self, serving: Serving, active: ActiveHead) -> Accepting | None:
        names = dict(zip(active.head.class_ids, active.names, strict=True))
        learner = serving.learner
        scorable = not learner.unscorable
        return self.operating.accepting(names, learner.reference, serving.digest, scorable=scorable)

    def accepting(self) -> Accepting | None:
        """Return how parts are judged now; None where nobody chose, or no release serves."""
        serving = self._serving
        return None if serving is None else self._accepting(serving, serving.learner.head)

    def choose(self, target: Target) -> None:
        """Judge parts by another target from the next frame on."""
        self.operating.choose(target)
        self._keep_threshold()

    def _on_change(self) -> None:
        self._keep_threshold()
        self._tell_change()

    def _keep_threshold(self) -> None:
        """Find the threshold before a frame needs it, and keep it for the next start."""
        self.accepting()
        found = self.operating.to_keep()
        if found is not None:
            with contextlib.suppress(StoreFull):  # the next start rejects every part until its head is scored
                self.store.keep(THRESHOLD_KEPT_AS, found)

    def _watch_drift(self, look: Look) -> None:
        """Count one tile of each part, each in turn, against the left-out scores of the confirmed head."""
        serving, shot, decision = look.serving, look.shot, look.decision
        reference = serving.learner.reference
        if reference is None or reference.number != decision.head or shot.group == self._last_group:
            return  # a provisional head: its trial is the judge
        if look.row != self._watched % len(look.decided.class_index):
            return
        self._watched += 1
        self._last_group = shot.group
        key = _watched_by(serving, reference)
        if self._watch is None or self._watch[0] != key:
            self._watch = None
            if not reference.left_out.known.any():
                return  # nothing to compare with
            self._watch = key, DriftWatch(reference.left_out, rate=DRIFT_RATE)
        self._watch[1].see(decision.novelty, decision.forced_id, shot.sample_id)

    def drift(self) -> Drift | None:
        """Return whether parts look as they did when the head was scored; None where none tells how they did, and
        until the first part since.
        """
        serving, watch = self._serving, self._watch
        reference = None if serving is None else serving.learner.reference
        if serving is None or reference is None or watch is None or watch[0] != _watched_by(serving, reference):
            return None
        return watch[1].now()

    def suspects(self, limit: int = 50) -> list[Suspect]:
        """Return labels to look at again. See `Learner.suspects`."""
        return self.require().learner.suspects(limit)

    def inspect(
        self, data: bytes, *, keep: bool = False, part: str = "", source: str = "inspect", lot: str = ""
    ) -> Seen:
        """Decide about an encoded image that somebody sends.

        Args:
            data: JPEG, PNG, BMP, TIFF or WebP.
            keep: Store it as a sample, so that it can be labelled.
            part: What must not be told apart by score; the image by itself where it is empty.
            source: For people.
            lot: The lot that the part is of.

        Raises:
            BadImages: it is no usable image.
            NoRelease: none serves yet.
            StoreFull: it was to be kept and could not be.
        """
        frame, captured_utc = decode(data), time.time()
        group = f"{self.store.device}/{part or sample_id(data).hex()[:32]}"[:200]
        shot = Shot(frame, captured_utc, group, source, data, lot=lot)
        looked = self.look(self.prepare([shot]))
        look, head = looked.looks[0], looked.head
        scores = dict(zip(head.class_ids, map(float, head.scores(look.code[None])[0]), strict=True))
        decision = replace(look.decision, scores=scores, question=_question(look, self.policy))
        status = self.store.samples.put(_sample(look, decision), data) if keep else SampleStatus.SEEN
        return Seen(shot.sample_id, captured_utc, decision, status, look.latency_ms)

    def heatmap(self, data: bytes, class_id: bytes | None = None, against: bytes | None = None) -> Frame:
        """Return an encoded image with the evidence for a class of the head now serving drawn over it.

        Args:
            data: As a camera delivered it.
            class_id, against: See `device_agent.heatmap.heatmap`.

        Raises:
            BadImages: it is no usable image.
            NoRelease: none serves yet.
            NoMaps: the release or its runtime gives no maps.
            UnknownClassError: the head knows no such class.
        """
        frame = decode(data)
        serving = self.require()
        found = heatmap(serving.pipeline, serving.learner.head.head, frame, class_id, against)
        return draw(frame, found.evidence)

    def _keep(self, look: Look, decision: Decision) -> SampleStatus:
        try:
            camera = self.cameras[look.shot.camera] if look.shot.camera < len(self.cameras) else ""
            status = self.store.samples.put(_sample(look, decision, camera), look.shot.data)
        except StoreFull as error:
            if not self.counts.full:
                _log.warning("samples are not kept: %s (%s)", error, error.hint)
            self.counts.unstored += 1
            self.counts.full = True
            return SampleStatus.SEEN
        if self.counts.full:
            _log.warning("samples are kept again; %d were not so far", self.counts.unstored)
            self.counts.full = False
        return status

    # -- labels ------------------------------------------------------------------------------------------------

    def label(self, sample: bytes, class_id: bytes | None, operator: str) -> Saved:
        """Store a label; it is on disk when this returns. See `Learner.label`."""
        saved = self.require().learner.label(sample, class_id, operator)
        self._on_saved()
        return saved

    def label_all(
        self,
        labels: Sequence[tuple[bytes, bytes | None]],
        operator: str,
        seen: Mapping[bytes, bytes | None] | None = None,
    ) -> Saved:
        """Store labels as one; all are on disk when this returns, or none is. See `Learner.label_all`."""
        saved = self.require().learner.label_all(labels, operator, seen)
        self._on_saved()
        return saved

    def define_class(self, name: str, operator: str) -> bytes:
        """Define a class and return its id. See `Learner.define_class`."""
        class_id = self.require().learner.define_class(name, operator)
        self._on_saved()
        return class_id

    def rename_class(self, class_id: bytes, name: str, operator: str) -> None:
        """Give a class another name. See `Learner.rename_class`."""
        self.require().learner.rename_class(class_id, name, operator)
        self._on_saved()

    def merge_classes(self, one: bytes, other: bytes, operator: str, *, name: str | None = None) -> None:
        """Make two classes one. See `Learner.merge_classes`."""
        self.require().learner.merge_classes(one, other, operator, name=name)
        self._on_saved()

    def classes(self) -> list[ClassInfo]:
        """Return the classes that exist, by name; none before the first release."""
        serving = self._serving
        return [] if serving is None else serving.learner.classes()

    def _naming(self) -> Naming | None:
        serving = self._serving
        return None if serving is None else serving.learner.naming

    def class_named(self, name: str) -> bytes:
        """Return the id of the class that people call so, however it is written.

        Raises:
            UnknownClassError: nobody does.
            LabelError: two classes are called so (two devices invented them, or one gave this name to another
                class than people here).
        """
        wanted, naming = key_of(name), self._naming()
        words = {} if naming is None else naming.words()
        found = [
            c.class_id for c in self.classes() if wanted in map(key_of, (c.name, words.get(c.class_id, c.name)))
        ]
        if not found:
            raise UnknownClassError(f"there is no class {name[:64]!r}", hint="Define it first: POST /api/classes.")
        if len(found) > 1:
            raise LabelError(
                f"{len(found)} classes are called {name[:64]!r}", hint="Name it by its id, or merge them."
            )
        return found[0]


def _watched_by(serving: Serving, reference: Reference) -> object:
    """Return what a drift watch is of: another head's says nothing of this one."""
    return serving.digest, reference.number


def _decision(active: ActiveHead, decided: Decisions, row: int, accepting: Accepting | None) -> Decision:
    best, unknown = int(decided.class_index[row]), bool(decided.unknown[row])
    ids = active.head.class_ids
    defect, good = None, None
    if accepting is not None:
        defect = accepting.defect(ids, decided.probabilities[row])
        good = not unknown and ids[best] in accepting.good
    return Decision(
        shown=UNKNOWN if unknown else active.names[best],
        class_id=None if unknown else ids[best],
        forced=active.names[best],
        forced_id=ids[best],
        probability=float(decided.probability[row]),
        novelty=float(decided.novelty[row]),
        threshold=float(active.head.calibration.novelty_threshold),
        unknown=unknown,
        scores={},
        head=active.number,
        question=None,
        defect=defect,
        rejected=None if accepting is None or defect is None else accepting.rejects(ids[best], defect, unknown),
        good=good,
        scored=accepting is None or accepting.scored,
    )


def percent(share: float) -> str:
    """Return a share in percent, as "14 %", "0.43 %", "99.51 %": thresholds lie near either end."""
    if 0 < share < 0.0001:
        return "under 0.01 %"
    if 0.99 < share < 1:
        return f"{min(100 * share, 99.99):.2f} %"
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _question(look: Look, policy: QueuePolicy) -> Question | None:
    threshold = look.decision.threshold
    return ask(
        policy,
        look.shot.sample_id,
        look.decided,
        look.row,
        names=look.names,
        counts=look.counts,
        threshold=threshold,
    )


def _sample(look: Look, decision: Decision, camera: str = "") -> Sample:
    question, shot = decision.question, look.shot
    return Sample(
        sample_id=shot.sample_id,
        captured_utc=shot.captured_utc,
        group=shot.group,
        space=look.serving.pipeline.space,
        code=look.code,
        decision=decision.shown,
        class_id=decision.forced_id,
        probability=decision.probability,
        novelty=decision.novelty,
        unknown=decision.unknown,
        status=SampleStatus.SEEN if question is None else SampleStatus.QUEUED,
        reason="" if question is None else question.reason,
        priority=0.0 if question is None else question.priority,
        source=shot.source,
        lot=shot.lot,
        defect=decision.defect,
        rejected=decision.rejected,
        camera=camera,
    )
