"""What a device says of itself, to the page and to whoever asks over HTTP: plain values, ids in hex.

The dataclasses are the HTTP interface's schema (docs/agent.md); names are kept, members may be added.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Final

import msgspec

from device_agent.camera import Camera, CameraState
from device_agent.flow import Flow
from device_agent.learned import ONE_CLASS, LearnerStatus
from device_agent.masters import Telling
from device_agent.outputs import Outputs
from device_agent.runtime.choice import Measured
from device_agent.station import Serving, Station
from sdk.drift import Drift
from sdk.reason import Reason, sentences
from sdk.score import Score
from sdk.shown import readable
from sdk.wire import MAX_FAULTS, MAX_TEXT, Verdict

NONE_PASSES: Final = "every part is rejected: no class is a good one"
CHOOSE_GOOD: Final = "Choose the good ones on the page (Quality), or name them in [part] good of site.toml."
CHOOSE_AGAIN: Final = (
    "Choose the good ones again on the page (Quality): since somebody chose there, [part] good of site.toml does "
    "not count."
)
OPERATING_LOST: Final = (
    "the backup that this device came from does not say what was to be rejected: choose it again, under Quality"
)
UNSCORED: Final = "every part is rejected until the head is scored, which the threshold is found from"
NO_THRESHOLD: Final = (
    "no threshold keeps the escape rate: left-out samples cannot tell one, so parts are judged by their class"
)

UNREADABLE_S: Final = 180.0
"""A picture that could not be read is told of for so long: whoever comes to the page sees it, and one alone does
not last the five minutes after which an alarm wakes somebody (docs/agent.md)."""


@dataclass(frozen=True)
class RuntimeReport:
    """One way to run the release's backbone on this device, as it was measured here; `refused` says why it may
    not serve, and is empty where it may."""

    precision: str
    provider: str
    threads: int
    frame_ms: float
    score_off: float
    refused: str


@dataclass(frozen=True)
class ReleaseReport:
    """The release in operation. `id` is None for a bundle that did not come over MQTT.

    `runtimes` are all that were measured here, other precisions included, the fastest of each first.
    """

    id: str | None
    name: str
    digest: str
    space: str
    precision: str
    feature_size: int
    runtime: str
    runtimes: list[RuntimeReport]


@dataclass(frozen=True)
class HarmReport:
    """Another device's labels make the head worse here: recall of own left-out labels, with and without them."""

    device: str
    samples: int
    recall: float
    recall_without: float


@dataclass(frozen=True)
class NamedShare:
    """A class, and how often it is recognised."""

    name: str
    share: float


@dataclass(frozen=True)
class ReasonReport:
    """Why a trial ended as it did, as a code with values, for whoever says it in another language."""

    code: str
    name: str
    share: float
    before: float
    times: int
    of: int
    classes: list[NamedShare]


@dataclass(frozen=True)
class HeadReport:
    """The head that decides.

    Attributes:
        number: Its number in this device's history.
        state: provisional or confirmed.
        digest: Digest of the live set it was solved from.
        samples: Size of that set.
        trial: How the newest head's trial ended: provisional, confirmed, taken_back or superseded.
        reason: Why, in English.
        why: The same as codes with values.
        busy: Something is being learned or tried just now.
        own_weight: An own label counts as so many labels from elsewhere.
        shifted: Whether it allows for this station's pictures looking different from the release's.
        harm: Another device whose labels do not fit here; None where none does for sure.
        withdrawn: Labels that it decides by and that are not said any more: withdrawn or corrected elsewhere,
            where this station's trial has refused the head without them.
    """

    number: int
    state: str
    digest: str
    samples: int
    trial: str
    reason: str
    why: list[ReasonReport]
    busy: bool
    own_weight: int
    shifted: bool
    harm: HarmReport | None
    withdrawn: int


@dataclass(frozen=True)
class ClassReport:
    """A class, with its live labels: this device's operators' own, and all, the release's samples included."""

    id: str
    name: str
    own_labels: int
    labels: int


@dataclass(frozen=True)
class ClassScoreReport:
    """Recall of a class on left-out groups; `scored` is false where only one group has it."""

    id: str
    name: str
    recall: float
    low: float
    high: float
    samples: int
    groups: int
    scored: bool


@dataclass(frozen=True)
class ScoreReport:
    """The honest score of the newest head that was tried.

    `balanced_accuracy` is None where no class has two groups, and `low` and `high` are 0 and 1 then. `samples` and
    `groups` are those that were judged, `unjudged` the samples of classes that one group alone has.
    """

    balanced_accuracy: float | None
    low: float
    high: float
    classes: list[ClassScoreReport]
    samples: int
    groups: int
    summed: int
    """Of the release's samples, those that are in its sums only: learned from, and not covered by the score."""
    unjudged: int


@dataclass(frozen=True)
class CameraReport:
    """A source of frames. `age_s` is how old its newest frame is, None before the first; `picture` says what is
    wrong with it, if anything. `unreadable` is the newest picture of a part that could not be read, and why, for
    `UNREADABLE_S`."""

    name: str
    state: str
    frames: int
    bad: int
    dropped: int
    outages: int
    age_s: float | None = None
    picture: str = ""
    unreadable: str = ""


@dataclass(frozen=True)
class StageReport:
    """How long a stage of inspection takes; quantiles are of all frames since the start.

    `wait` is from capture until a frame is taken, `verdict` from capture to the part's verdict, `keep` storing.
    """

    stage: str
    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class OutputReport:
    """Where verdicts go: delivered, not delivered and never to be, waiting, from capture to delivery, and what
    is wrong."""

    name: str
    sent: int
    dropped: int
    waiting: int
    p50_ms: float
    p99_ms: float
    fault: str


@dataclass(frozen=True)
class LineReport:
    """The parts, and how inspection keeps up with them.

    Attributes:
        passed, rejected: Verdicts since the start.
        waiting: Triggers, frames and parts that wait, by stage.
        refused_triggers: Triggers whose part was rejected unseen: too many were waiting, nothing serves, or the
            trigger could not be read.
        tiles_shed: Tiles that were surely good and not stored, because storing fell behind.
        stages: Latencies.
        outputs: Where verdicts go.
    """

    passed: int
    rejected: int
    waiting: dict[str, int]
    refused_triggers: int
    tiles_shed: int
    stages: list[StageReport]
    outputs: list[OutputReport]


@dataclass(frozen=True)
class MqttReport:
    """The fleet's broker, and bytes of topic and payload moved since the start, both ways."""

    address: str
    connected: bool
    release_bytes: int
    head_bytes: int


@dataclass(frozen=True)
class TriggerReport:
    """The topic that triggers come on, by a connection of its own; `fault` says why none can come, and is empty
    where one can, or the connection has only just been lost."""

    topic: str
    connected: bool
    fault: str


@dataclass(frozen=True)
class UpdateReport:
    """The newest attempt to bring a release here."""

    release_id: str
    name: str
    state: str
    reason: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class DriftReport:
    """Whether parts still look as they did when the head was scored.

    Attributes:
        alarm: They do not; the stated rate of false alarms is one in `threshold` parts or less often.
        evidence: 1 is none, `threshold` an alarm.
        parts: Parts watched since this head was confirmed.
        strangest: Sample ids of the parts behind it, strangest first.
    """

    alarm: bool
    evidence: float
    threshold: float
    parts: int
    strangest: list[str]


@dataclass(frozen=True)
class OperatingReport:
    """What people chose is rejected; see `device_agent.accepting.Target`. `good` is None where nobody chose."""

    good: list[str] | None
    escape_rate: float
    by_threshold: bool


@dataclass(frozen=True)
class MasterReport:
    """A master part that is told wrongly: its file's name, its class, and what it is told as (empty: unknown)."""

    file: str
    wanted: str
    shown: str


@dataclass(frozen=True)
class MastersReport:
    """What the head that serves says of the station's master parts (`device_agent.masters`).

    Attributes:
        of: Parts of classes that the head knows.
        right: Told rightly.
        undone: So many of the others were told rightly until a person here took labels back.
        wrong: The others.
        strange: Folders whose name no class has: their parts judge nothing.
    """

    of: int
    right: int
    undone: int
    wrong: list[MasterReport]
    strange: list[str]


@dataclass(frozen=True)
class State:
    """Everything at once."""

    device: str
    channel: str
    version: str
    started_utc: float
    release: ReleaseReport | None
    head: HeadReport | None
    classes: list[ClassReport]
    score: ScoreReport | None
    masters: MastersReport | None
    label_to_live_ms: float | None
    own_labels: int
    live_set_digest: str | None
    live_samples: int
    queue_depth: int
    outbox: int
    frames: int
    unknown: int
    unstored: int
    errors: int
    latency_ms: float | None
    """Median from frame to decision, of the newest few hundred frames."""
    drift: DriftReport | None
    camera: CameraReport
    """The first of `cameras`."""
    cameras: list[CameraReport]
    line: LineReport | None
    mqtt: MqttReport | None
    trigger: TriggerReport | None
    """Where triggers come over MQTT."""
    update: UpdateReport | None
    trust: str
    """What the release that serves rests on: unsigned, signed, time unverified."""
    faults: list[str]
    """What is wrong just now, in words."""
    none_passes: bool
    """No class that the head knows is a good one, so that every part is rejected: among the faults as
    `NONE_PASSES`."""
    good_chosen: bool
    """People chose the good classes on the page: `[part] good` of the settings does not count since."""
    operating: OperatingReport


def camera_report(camera: Camera) -> CameraReport:
    """Return what a source says of itself."""
    tally, now_s = camera.tally, time.monotonic()
    return CameraReport(
        name=camera.name,
        state=tally.state.value,
        frames=tally.frames,
        bad=tally.bad,
        dropped=tally.dropped,
        outages=tally.outages,
        age_s=None if tally.last_s is None else now_s - tally.last_s,
        picture=tally.picture,
        unreadable=tally.unreadable if now_s - tally.unreadable_s < UNREADABLE_S else "",
    )


def lost_words(camera: str) -> str:
    """Return how the state says that a camera is lost."""
    return f"camera {camera} is lost"


def picture_words(camera: str, picture: str) -> str:
    """Return how the state says that a camera's newest picture cannot be right."""
    return f"camera {camera}: {picture}"


def unreadable_words(camera: str, unreadable: str) -> str:
    """Return how the state says that a picture could not be read."""
    return f"camera {camera}: a picture cannot be read, so its part is rejected: {unreadable}"


def output_words(output: OutputReport) -> str:
    """Return how the state says that verdicts do not arrive; empty where they do."""
    # Most faults begin with the output's name.
    about = output.fault if output.fault.startswith(output.name) else f"{output.name}: {output.fault}"
    return output.fault and f"output {about}"


def line_report(flow: Flow, outputs: Outputs) -> LineReport:
    """Return what flow and outputs say of themselves."""
    closed = flow.ledger.closed
    return LineReport(
        passed=closed[Verdict.PASS],
        rejected=closed[Verdict.REJECT],
        waiting=flow.waiting(),
        refused_triggers=flow.refused,
        tiles_shed=flow.tiles_shed,
        stages=[StageReport(stage, *astuple(times.latency())) for stage, times in flow.latencies.items()],
        outputs=output_reports(outputs),
    )


def output_reports(outputs: Outputs) -> list[OutputReport]:
    """Return what the places where verdicts go say of themselves."""
    return [
        OutputReport(
            name, tally.sent, tally.dropped, depth, times.quantile(0.5), times.quantile(0.99), tally.fault
        )
        for name, tally, depth, times in outputs.report()
    ]


def station_state(
    station: Station,
    *,
    channel: str,
    version: str,
    started_utc: float,
    camera: CameraReport,
    cameras: Sequence[CameraReport] = (),
    line: LineReport | None = None,
    mqtt: MqttReport | None = None,
    trigger: TriggerReport | None = None,
    update: UpdateReport | None = None,
    runtimes: Sequence[Measured] = (),
    errors: int = 0,
    trust: str = "unsigned",
    faults: tuple[str, ...] = (),
) -> State:
    """Return the state of a device. Cheap enough to be asked every second."""
    serving, counts, store, target = station.serving, station.counts, station.store, station.operating.target
    status = None if serving is None else serving.learner.status()
    latencies = list(station.latencies_ms)
    classes = station.classes()
    every = list(cameras) or [camera]
    wrong = [*faults, *station_faults(station, status, every, () if line is None else line.outputs)]
    if status is not None and status.quarantine:
        wrong.append(status.quarantine)
    return State(
        device=store.device,
        channel=channel,
        version=version,
        started_utc=started_utc,
        release=None if serving is None else _release(serving, runtimes),
        head=None if serving is None or status is None else _head(serving, status),
        classes=[ClassReport(c.class_id.hex(), c.name, c.own_labels, c.labels) for c in classes],
        score=None if serving is None or status is None else _score(status.score, serving.learner.called()),
        masters=None if serving is None else masters_report(serving.learner.masters()),
        label_to_live_ms=None if status is None else status.label_to_live_ms,
        own_labels=0 if status is None else status.own_labels,
        live_set_digest=None if status is None else status.live_set_digest,
        live_samples=0 if status is None else status.live_samples,
        queue_depth=store.samples.queue_depth(),
        outbox=store.log.outbox_depth(),
        frames=counts.frames,
        unknown=counts.unknown,
        unstored=counts.unstored,
        errors=errors,
        latency_ms=statistics.median(latencies) if latencies else None,
        drift=_drift(station.drift()),
        camera=camera,
        cameras=every,
        line=line,
        mqtt=mqtt,
        trigger=trigger,
        update=update,
        trust=trust,
        faults=wrong,
        none_passes=none_passes(station),
        good_chosen=target.good is not None,
        operating=OperatingReport(target.good, target.escape_rate, target.by_threshold),
    )


def station_faults(
    station: Station,
    status: LearnerStatus | None,
    cameras: Sequence[CameraReport],
    outputs: Sequence[OutputReport],
) -> Iterator[str]:
    """Yield what is wrong with a station's cameras, outputs, learning and store just now, in words."""
    if none_passes(station):
        yield NONE_PASSES
    yield from (lost_words(each.name) for each in cameras if each.state == CameraState.LOST.value)
    yield from (unreadable_words(each.name, each.unreadable) for each in cameras if each.unreadable)
    yield from (picture_words(each.name, each.picture) for each in cameras if each.picture)
    yield from (output_words(each) for each in outputs if each.fault)
    if status is not None and status.fault is not None:
        yield status.fault
    if status is not None and status.unapplied:
        yield (
            f"labels that change nothing here, their samples being in the release's sums only: {status.unapplied}"
        )
    if status is not None and status.twins:
        yield f"{status.twins}: {ONE_CLASS}"
    if status is not None and status.unheard:
        yield status.unheard
    yield from station.operating.doubts()
    if status is not None and status.prices:
        yield sentences(status.prices)
    if status is not None and status.withdrawn:
        yield (
            f"{status.withdrawn} labels that were withdrawn or corrected elsewhere still decide here: without "
            "them this station's parts are told worse"
        )
    if station.operating.forgotten:
        yield OPERATING_LOST
    if station.operating.target.by_threshold:
        accepting = station.accepting()
        if accepting is not None and not accepting.scored:
            yield UNSCORED
        elif accepting is not None and accepting.good and accepting.threshold is None:
            yield NO_THRESHOLD
    if station.counts.full:
        yield f"{station.counts.unstored} samples could not be stored: the disk is full"


def fleet_faults(
    station: Station,
    status: LearnerStatus | None,
    cameras: Sequence[CameraReport],
    outputs: Sequence[OutputReport],
    faults: Iterable[str | None],
) -> list[str]:
    """Return what the fleet should hear is wrong here: of what the state says what nobody there can know."""
    wrong = [fault for fault in faults if fault is not None]
    wrong += station_faults(station, status, cameras, outputs)
    return [fault[:MAX_TEXT] for fault in dict.fromkeys(wrong)][:MAX_FAULTS]


def none_passes(station: Station) -> bool:
    """Return whether no class that the head knows is a good one, so that every part is rejected."""
    if station.serving is None:
        return False
    active = station.serving.learner.head
    return not station.operating.good(dict(zip(active.head.class_ids, active.names, strict=True)))


def masters_report(telling: Telling | None) -> MastersReport | None:
    """Return what is said of master parts as the interface says it; None where there are none."""
    if telling is None:
        return None
    told, strange, undone = telling
    wrong = [MasterReport(readable(each.file.name), each.wanted, each.shown) for each in told if not each.right]
    return MastersReport(len(told), len(told) - len(wrong), undone, wrong, [readable(each) for each in strange])


def _drift(drift: Drift | None) -> DriftReport | None:
    if drift is None:
        return None
    strangest = [key.hex() for key in drift.strangest if isinstance(key, bytes)]
    return DriftReport(drift.alarm, min(drift.evidence, 1e9), drift.threshold, drift.parts, strangest)


def _release(serving: Serving, runtimes: Sequence[Measured]) -> ReleaseReport:
    return ReleaseReport(
        id=serving.release_id,
        name=serving.bundle.manifest.name,
        digest=serving.digest,
        space=serving.pipeline.space,
        precision=serving.pipeline.precision,
        feature_size=serving.pipeline.feature_size,
        runtime=serving.pipeline.runtime.name,
        runtimes=[RuntimeReport(**msgspec.structs.asdict(each)) for each in runtimes],
    )


def _head(serving: Serving, status: LearnerStatus) -> HeadReport:
    active, harm = serving.learner.head, status.harm
    return HeadReport(
        number=active.number,
        state=active.state.value,
        digest=active.digest,
        samples=active.samples,
        trial=status.outcome.value,
        reason=status.reason,
        why=reason_reports(status.why),
        busy=status.busy,
        withdrawn=status.withdrawn,
        own_weight=status.adaptation.own_weight,
        shifted=bool(status.adaptation.shift),
        harm=None if harm is None else HarmReport(harm.source, harm.samples, harm.recall, harm.recall_without),
    )


def reason_reports(why: Sequence[Reason]) -> list[ReasonReport]:
    """Return reasons as the interface says them."""
    return [
        ReasonReport(r.code, r.name, r.share, r.before, r.times, r.of, [NamedShare(*each) for each in r.classes])
        for r in why
    ]


def _score(score: Score | None, called: Callable[[bytes], str]) -> ScoreReport | None:
    if score is None:
        return None
    return ScoreReport(
        balanced_accuracy=score.balanced_accuracy,
        low=float(score.low),
        high=float(score.high),
        classes=[
            ClassScoreReport(
                id=c.class_id.hex(),
                name=called(c.class_id),
                recall=float(c.recall),
                low=float(c.low),
                high=float(c.high),
                samples=c.samples,
                groups=c.groups,
                scored=c.class_id not in score.one_group,
            )
            for c in sorted(score.classes, key=lambda c: called(c.class_id).casefold())
        ],
        samples=score.samples,
        groups=score.groups,
        summed=score.summed,
        unjudged=score.unjudged,
    )
