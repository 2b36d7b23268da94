"""The line at work: capture, preparation, inspection and keeping overlap, each on threads of its own.

    cameras -> intake -> prepare -> backbone -> judge -> outputs     (nothing here waits for a disk or a network)
                                                   `-> keep: pictures and decisions to the store

Rules kept here:

- Free run: the newest frame wins, and the ones it replaced are counted, at the intake and nowhere else. With
  triggers, and from files, none is dropped: each stage waits for the next (`Flow.waiting` shows where), and a
  trigger that finds its queue full is refused and its part rejected. What a trigger did not ask for, because it
  came before it or too late, is not taken.
- A verdict never waits for storage. When that falls behind, tiles that are surely good and that nobody would be
  asked about are not stored, and counted; then inspection waits for it.
- A part whose time is over is rejected by a thread that does nothing else, whatever the others are stuck in.
- A frame that could not be read, or that fails, is counted and rejects its part, in its turn: who takes the
  verdicts may go by their order. The next one is taken. The broad catches are the flow's outermost loops.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Final, TypeVar

from device_agent.camera import Camera, CameraState, Shot
from device_agent.histogram import Histogram
from device_agent.parts import Finding, Ledger, Part
from device_agent.recipe import Recipe
from device_agent.station import Embedded, Look, Prepared, Station
from device_agent.trigger import Trigger, Triggers
from sdk.errors import CameraLost, HeadwayError, NoRelease, TriggerRefused

_log = logging.getLogger(__name__)

INTAKE_FRAMES: Final = 2
"""Frames of one camera that wait for inspection where none may be dropped: one is taken while the next is
decoded."""
STAGE_FRAMES: Final = 2
"""The same between the stages: one is in work while the next is at hand."""
KEEP_BYTES: Final = 64 * 1024**2
"""Decided frames that wait to be stored, pixels and files: 400 of 224 px, and four of 5 megapixels."""
POLL_S: Final = 0.2
RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 30.0
FAILURES_IN_A_ROW: Final = 3
"""After so many frames in a row that could not be inspected the flow waits between tries."""
_DOUBLINGS: Final = 16
"""Far past `RETRY_MAX_S`: of failures in a row for a night, 2 to that power would be no float."""
STOP_TIMEOUT_S: Final = 5.0
"""How long a stop waits for a stage stuck in a driver or runtime. Its thread does not hold the exit."""
PARTS_KEPT: Final = 64
"""Newest verdicts at hand for the page."""
STAGES: Final = ("wait", "prepare", "backbone", "head", "verdict", "keep")
"""Of which a latency histogram is kept: from capture until a frame is taken; tiles and input tensors; the
backbone; code, novelty and decision; from capture to verdict; storing."""


@dataclass(frozen=True)
class Source:
    """A camera, how its frames are cut, and what tells that one of them cannot be right (in words, or empty)."""

    camera: Camera
    recipe: Recipe = field(default_factory=Recipe)
    check: Callable[[Shot], str] = lambda _: ""


@dataclass(frozen=True)
class FlowSettings:
    """How parts are decided.

    Attributes:
        good: Names of the classes that pass.
        frames: Frames of each camera that make a part.
        decide_within_s: A part that has no verdict by then is rejected. Files that nobody triggers can wait.
        triggers: Triggers that may wait; 0 runs free.
        delay_s: From a trigger until the part stands where the cameras look.
    """

    good: tuple[str, ...] = ("good",)
    frames: int = 1
    decide_within_s: float = 1.0
    triggers: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True)
class Taken:
    """A frame on its way, the key of its part, what is or went wrong with it, if anything, and how long its
    preparation took."""

    shot: Shot
    key: object
    fault: str = ""
    prepare_ms: float = 0.0


class Intake:
    """Where cameras leave frames and inspection takes them, one camera after the other.

    Args:
        cameras: How many there are.
        depth: Frames of one camera that may wait.
    """

    def __init__(self, cameras: int, depth: int = INTAKE_FRAMES) -> None:
        self._waiting: list[deque[Taken]] = [deque() for _ in range(cameras)]
        self._depth = depth
        self._next = 0
        self._changed = threading.Condition()

    @property
    def depth(self) -> int:
        """Frames that wait."""
        return sum(map(len, self._waiting))

    def replace(self, taken: Taken) -> int:
        """Leave the newest frame of a camera; return how many it replaced, that nobody had taken."""
        with self._changed:
            waiting = self._waiting[taken.shot.camera]
            replaced = len(waiting)
            waiting.clear()
            waiting.append(taken)
            self._changed.notify_all()
        return replaced

    def put(self, taken: Taken, stop: threading.Event) -> bool:
        """Leave a frame that may not be dropped, waiting for room; False when stopped instead."""
        waiting = self._waiting[taken.shot.camera]
        with self._changed:
            while len(waiting) >= self._depth:
                if stop.is_set():
                    return False
                self._changed.wait(POLL_S)
            waiting.append(taken)
            self._changed.notify_all()
        return True

    def take(self, timeout_s: float) -> Taken | None:
        """Return the next frame, cameras in turn; None where none comes in time."""
        with self._changed:
            if not self.depth:
                self._changed.wait(timeout_s)
            for i in range(len(self._waiting)):
                camera = (self._next + i) % len(self._waiting)
                if self._waiting[camera]:
                    self._next = camera + 1
                    taken = self._waiting[camera].popleft()
                    self._changed.notify_all()
                    return taken
        return None


class Backlog:
    """Decided frames that wait to be stored, bounded by the memory that their pixels and files take."""

    def __init__(self, limit_bytes: int = KEEP_BYTES) -> None:
        self._waiting: deque[Sequence[Look]] = deque()
        self._bytes = 0
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()

    @property
    def depth(self) -> int:
        """Frames that wait."""
        return len(self._waiting)

    @property
    def behind(self) -> bool:
        """Whether storing is slower than inspection: a quarter of the room is taken."""
        return 4 * self._bytes > self._limit_bytes

    def put(self, looks: Sequence[Look], stop: threading.Event) -> None:
        """Leave a frame, waiting for room; when stopped, only as long as a stop may take."""
        size = _held_bytes(looks)
        with self._changed:
            while self._bytes and self._bytes + size > self._limit_bytes:
                if not self._changed.wait(POLL_S) and stop.is_set():
                    return
            self._waiting.append(looks)
            self._bytes += size
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Sequence[Look] | None:
        """Return the oldest frame; None where none comes in time."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout_s)
            if not self._waiting:
                return None
            looks = self._waiting.popleft()
            self._bytes -= _held_bytes(looks)
            self._changed.notify_all()
            return looks


def _held_bytes(looks: Sequence[Look]) -> int:
    return sum(look.shot.frame.nbytes + len(look.shot.delivered or b"") for look in looks)


class Flow:
    """Cameras to verdicts.

    Args:
        station: Decides and stores.
        sources: The cameras, in order: a shot's `camera` is its place here.
        settings: How parts are decided.
        on_part: Told each verdict at once, in order, from any thread; it must not wait.
        on_frame: Told after each frame that was inspected, with None or what went wrong, and how many milliseconds
            preparation, backbone and head took.
        work: Marks a piece of work that must end soon, for a watchdog.
        clock: UTC seconds, for the record.
    """

    def __init__(
        self,
        station: Station,
        sources: Sequence[Source],
        settings: FlowSettings,
        *,
        on_part: Callable[[Part], None],
        on_frame: Callable[[Exception | None, float], None] = lambda _error, _ms: None,
        work: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._station, self._sources, self._settings = station, sources, settings
        station.cameras = tuple(source.camera.name for source in sources)
        self._on_part, self._on_frame, self._work = on_part, on_frame, work
        self._clock = clock
        self.latencies = {stage: Histogram() for stage in STAGES}
        # Without triggers nothing else tells that a picture will not come.
        named = [i for i, source in enumerate(sources) if settings.triggers and source.camera.names_parts]
        self.ledger = Ledger(settings.good, cameras=len(sources), frames=settings.frames, unordered=named)
        self._lock = threading.Lock()  # the ledger's
        self._due = threading.Condition(self._lock)
        self._watched_s = float("inf")  # when deadlines are looked at next
        self._intake = Intake(len(sources))
        replayed = [i for i, source in enumerate(sources) if source.camera.replay]
        self.triggers = Triggers(len(sources), settings.triggers, replayed) if settings.triggers else None
        # None is a frame of which nothing can be looked at any more; what was taken says why.
        self._prepared: queue.Queue[tuple[Taken, Prepared | None]] = queue.Queue(STAGE_FRAMES)
        self._embedded: queue.Queue[tuple[Taken, Embedded | None]] = queue.Queue(STAGE_FRAMES)
        self._decided = Backlog()
        self.tiles_shed = 0
        self.refused = 0  # triggers whose part was rejected at once
        self.parts: deque[Part] = deque(maxlen=PARTS_KEPT)
        self._in_a_row = 0

    def waiting(self) -> dict[str, int]:
        """Return how many frames wait before each stage, and how many parts are open."""
        with self._lock:
            parts = self.ledger.depth
        if self.triggers is not None:
            self.triggers.let_go(time.monotonic() - self._settings.decide_within_s)
        return {
            "trigger": 0 if self.triggers is None else self.triggers.depth,
            "prepare": self._intake.depth,
            "backbone": self._prepared.qsize(),
            "judge": self._embedded.qsize(),
            "keep": self._decided.depth,
            "parts": parts,
        }

    def trigger(self, part: str, lot: str = "") -> str:
        """Say that a part stands before the cameras now; return its id. Its verdict comes by `on_part` in any
        case.

        Args:
            part: Its id; empty for one that is made of the time.
            lot: The lot that it is of, if anybody knows.

        Raises:
            TriggerRefused: the station runs free, or as many parts as may wait are waiting; the part is rejected.
            NoRelease: nothing serves that could decide; the part is rejected.
        """
        now_utc, now_s = self._clock(), time.monotonic()
        part = part or _named_after(now_utc)
        trigger = Trigger(part, now_utc, now_s, lot)
        with self._due:
            try:
                if self.triggers is None:
                    raise TriggerRefused("this station runs free", hint="Give site.toml a [trigger] table.")
                self._station.require()
                self.triggers.let_go(now_s - self._settings.decide_within_s)
                self.triggers.fire(trigger)
            except (NoRelease, TriggerRefused) as error:
                self.refused += 1
                self._tell([self.ledger.refuse(part, now_utc, now_s, str(error), lot)])
                raise
            self._enter(trigger, part, now_utc, now_s, now_s + self._settings.decide_within_s, lot)
        return part

    def refuse(self, reason: str) -> None:
        """Reject a part that stands before the cameras now, and of which nobody can tell which it is."""
        now_utc, now_s = self._clock(), time.monotonic()
        with self._due:
            self.refused += 1
            self._tell([self.ledger.refuse(_named_after(now_utc), now_utc, now_s, reason)])

    def run(self, stop: threading.Event) -> None:
        """Inspect until `stop` is set; every part that is open then is rejected, what was decided is stored."""
        ended, drained = threading.Event(), threading.Event()
        captures = [
            threading.Thread(target=self._capture, args=(i, source, stop), name=f"capture {i}", daemon=True)
            for i, source in enumerate(self._sources)
        ]
        stages = [
            threading.Thread(target=self._prepare_all, args=(stop,), name="prepare", daemon=True),
            threading.Thread(target=self._embed_all, args=(stop,), name="backbone", daemon=True),
            threading.Thread(target=self._judge_all, args=(stop,), name="judge", daemon=True),
        ]
        watch = threading.Thread(target=self._watch, args=(ended,), name="deadlines", daemon=True)
        keep = threading.Thread(target=self._keep_all, args=(drained,), name="keep", daemon=True)
        for thread in (*captures, *stages, watch, keep):
            thread.start()
        stop.wait()
        with self._lock:
            self._tell(self.ledger.stop(time.monotonic()))
        for thread in (*captures, *stages):
            thread.join(STOP_TIMEOUT_S)
        ended.set()
        with self._due:
            self._due.notify_all()
        drained.set()
        for thread in (watch, keep):
            thread.join(STOP_TIMEOUT_S)

    # -- capture ---------------------------------------------------------------------------------------------

    def _capture(self, number: int, source: Source, stop: threading.Event) -> None:
        """Take frames for ever; a source that is lost is tried again, waiting longer each time."""
        camera, retry_s = source.camera, RETRY_S
        while not stop.is_set():
            if not self._station.wait_for_release(POLL_S):
                continue
            before = camera.tally.frames
            try:
                self._take_all(number, camera, stop)
                break  # the source has ended; labelling goes on
            except Exception as error:  # noqa: BLE001 - as in the stages: whatever a source does, it is tried again
                self._on_frame(_lost(camera.name, error), 0.0)
                camera.tally.state = CameraState.LOST
                retry_s = RETRY_S if camera.tally.frames > before else min(2 * retry_s, RETRY_MAX_S)
                stop.wait(retry_s)

    def _take_all(self, number: int, camera: Camera, stop: threading.Event) -> None:
        if self.triggers is not None:
            take = self._take_named if camera.names_parts else self._take_triggered
            take(number, camera, self.triggers, stop)
            return
        for shot in camera.shots(stop):
            key: object = shot.part if shot.part is not None and self.ledger.several else object()
            # A copy would forget what has been encoded to name a burst.
            taken = Taken(shot if shot.camera == number else replace(shot, camera=number), key)
            if camera.live:
                camera.tally.dropped += self._intake.replace(taken)
            elif not self._intake.put(taken, stop):
                return

    def _take_triggered(self, number: int, camera: Camera, triggers: Triggers, stop: threading.Event) -> None:
        """Take the first frames after each trigger, and no others."""
        shots, trigger, left = camera.shots(stop), None, 0
        while not stop.is_set():
            if not left:
                # A replayed file waits to be asked. All others go on, so that none that is taken is an old one.
                trigger = triggers.take(number, POLL_S if camera.replay else 0.0)
                left = 0 if trigger is None else self._settings.frames
            if not left and camera.replay:
                continue
            shot = next(shots, None)
            if shot is None:
                return
            if trigger is None:
                trigger = triggers.take(number)
                left = 0 if trigger is None else self._settings.frames
            while trigger is not None and not camera.replay and self._has_passed(trigger, shot):
                trigger = triggers.take(number)
                left = 0 if trigger is None else self._settings.frames
            if trigger is None or (not camera.replay and shot.at_s < trigger.at_s + self._settings.delay_s):
                camera.tally.dropped += not camera.live  # a file of another part, and not one of many frames
                continue
            shot = replace(shot, camera=number).of_part(trigger.part, self._station.store.device, trigger.lot)
            if not self._intake.put(Taken(shot, trigger), stop):
                return
            left -= 1
            trigger = trigger if left else None

    def _take_named(self, number: int, camera: Camera, triggers: Triggers, stop: threading.Event) -> None:
        """Take the frames that are named after a triggered part, and no others."""
        begun: dict[str, tuple[Trigger, int]] = {}
        for shot in camera.shots(stop):
            after_s = shot.at_s - self._settings.decide_within_s
            begun = {part: each for part, each in begun.items() if each[0].at_s > after_s}
            part = shot.part or ""
            trigger, left = begun.pop(part, (None, self._settings.frames))
            trigger = trigger or triggers.take_named(number, part, after_s)
            if trigger is None:
                camera.tally.dropped += not camera.live
                continue
            if left > 1:
                begun[part] = trigger, left - 1
            own = replace(shot, camera=number).of_part(trigger.part, self._station.store.device, trigger.lot)
            if not self._intake.put(Taken(own, trigger), stop):
                return

    def _has_passed(self, trigger: Trigger, shot: Shot) -> bool:
        """Return whether a part's time was over before a frame was taken, as after an outage: the frame shows
        another part."""
        return shot.at_s >= trigger.at_s + self._settings.decide_within_s

    # -- inspection ------------------------------------------------------------------------------------------

    def _prepare_all(self, stop: threading.Event) -> None:
        while not stop.is_set():
            taken = self._intake.take(POLL_S)
            if taken is None:
                continue
            began_s, shot = time.monotonic(), taken.shot
            source = self._sources[shot.camera]
            self.latencies["wait"].add((began_s - shot.at_s) * 1000)
            self._expect(taken, source.camera.live)
            if shot.fault:
                _put(self._prepared, (replace(taken, fault=f"not inspected: {shot.fault}"), None), stop)
                continue
            try:
                taken = replace(taken, fault=source.check(shot))
                pipeline = self._station.require().pipeline
                tiles = source.recipe.tiles(shot, pipeline.input_px, pipeline.picture_px)
                prepared = self._station.prepare(tiles)
            except Exception as error:  # noqa: BLE001 - the line must not stop for one frame, whatever is wrong
                _put(self._prepared, (_failed(taken, error), None), stop)
                self._count_failure(error, stop)
                continue
            prepare_ms = (time.monotonic() - began_s) * 1000
            self.latencies["prepare"].add(prepare_ms)
            _put(self._prepared, (replace(taken, prepare_ms=prepare_ms), prepared), stop)

    def _expect(self, taken: Taken, live: bool) -> None:
        """Enter an untriggered frame; a triggered part has been entered by its trigger."""
        shot = taken.shot
        if isinstance(taken.key, Trigger):
            return
        deadline_s = shot.at_s + (self._settings.decide_within_s if live else float("inf"))
        with self._due:
            self._enter(taken.key, shot.part or "", shot.captured_utc, shot.at_s, deadline_s, shot.lot)

    def _enter(
        self, key: object, name: str, captured_utc: float, captured_s: float, deadline_s: float, lot: str
    ) -> None:
        """Let a part be under way: the caller has the ledger's lock."""
        self.ledger.expect(key, name, captured_utc, captured_s, deadline_s, lot)
        if deadline_s < self._watched_s:  # else the watch looks again before it is due, and need not wake for it
            self._due.notify_all()

    def _embed_all(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                taken, prepared = self._prepared.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if prepared is None:
                _put(self._embedded, (taken, None), stop)
                continue
            try:
                with self._work("a frame"):
                    embedded = self._station.embed(prepared)
            except Exception as error:  # noqa: BLE001 - as above
                _put(self._embedded, (_failed(taken, error), None), stop)
                self._count_failure(error, stop)
                continue
            _put(self._embedded, (taken, embedded), stop)

    def _judge_all(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                taken, embedded = self._embedded.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if embedded is None:
                self._decide(taken, ())
                continue
            try:
                looked = self._station.judge(embedded)
            except Exception as error:  # noqa: BLE001 - as above
                self._decide(_failed(taken, error), ())
                self._count_failure(error, stop)
                continue
            findings = [Finding(look.shot, look.decision) for look in looked.looks]
            self._decide(taken, findings)
            self.latencies["backbone"].add(looked.backbone_ms)
            self.latencies["head"].add(looked.head_ms)
            self._in_a_row = 0
            self._on_frame(None, taken.prepare_ms + looked.backbone_ms + looked.head_ms)
            self._decided.put(self._worth_keeping(looked.looks), stop)

    def _decide(self, taken: Taken, findings: Sequence[Finding]) -> None:
        with self._lock:
            self._tell(self.ledger.decided(taken.key, taken.shot.camera, findings, time.monotonic(), taken.fault))

    def _count_failure(self, error: Exception, stop: threading.Event) -> None:
        """Tell of a frame that failed; wait where many have in a row."""
        self._in_a_row += 1
        self._on_frame(error, 0.0)
        if self._in_a_row >= FAILURES_IN_A_ROW and self.triggers is None:  # triggered parts do not wait
            stop.wait(min(RETRY_S * 2 ** min(self._in_a_row - FAILURES_IN_A_ROW, _DOUBLINGS), RETRY_MAX_S))

    def _tell(self, parts: Sequence[Part]) -> None:
        """Hand verdicts over, in order: the caller has the ledger's lock."""
        for part in parts:
            self.latencies["verdict"].add(part.latency_ms)
            self.parts.append(part)
            self._on_part(part)

    def _watch(self, ended: threading.Event) -> None:
        """Reject parts whose time is over."""
        while not ended.is_set():
            with self._due:
                now_s = time.monotonic()
                self._tell(self.ledger.expire(now_s))
                due_s = self.ledger.next_deadline_s()
                wait_s = POLL_S if due_s is None else min(POLL_S, max(0.0, due_s - now_s))
                self._watched_s = now_s + wait_s
                self._due.wait(wait_s)

    # -- keeping ---------------------------------------------------------------------------------------------

    def _worth_keeping(self, looks: Sequence[Look]) -> Sequence[Look]:
        if not self._decided.behind:
            return looks
        kept = worth_keeping(looks, self.ledger, self._station.policy.ask_below)
        self.tiles_shed += len(looks) - len(kept)
        return kept

    def _keep_all(self, drained: threading.Event) -> None:
        while True:
            looks = self._decided.take(POLL_S)
            if looks is None:
                if drained.is_set():
                    return
                continue
            began_s = time.monotonic()
            try:
                with self._work("storing"):
                    self._station.keep(looks)
            except Exception as error:  # noqa: BLE001 - as above
                self._on_frame(error, 0.0)
            self.latencies["keep"].add((time.monotonic() - began_s) * 1000)


def worth_keeping(looks: Sequence[Look], ledger: Ledger, ask_below: float) -> list[Look]:
    """Return the tiles of a frame that are stored even when storing falls behind: all but those that are surely
    good, and of those the least sure one."""
    least = max(looks, key=lambda look: look.decision.doubt)
    return [
        look
        for look in looks
        if look is least or ledger.bad(look.decision) or look.decision.probability < ask_below
    ]


def _failed(taken: Taken, error: Exception) -> Taken:
    """Return a frame with why it was not inspected."""
    what = str(error) if isinstance(error, HeadwayError) else type(error).__name__
    return replace(taken, fault=f"not inspected: {what}")


def _lost(name: str, error: Exception) -> CameraLost:
    """Return what a source raised as the loss that it is; it says nothing of a frame or a release."""
    if isinstance(error, CameraLost):
        return error
    _log.error("%s failed", name, exc_info=error)
    return CameraLost(f"{name}: {type(error).__name__}: {error}", hint="It is tried again; see the agent's log.")


_T = TypeVar("_T")


def _put(to: queue.Queue[_T], item: _T, stop: threading.Event) -> None:
    """Hand an item on, waiting for room; when stopped, only as long as a stop may take."""
    while True:
        stopped = stop.is_set()
        try:
            to.put(item, timeout=POLL_S)
        except queue.Full:
            if stopped:
                return
            continue
        return


def _named_after(now_utc: float) -> str:
    """Return a part id for a part that has none."""
    return f"{datetime.fromtimestamp(now_utc, timezone.utc):%Y%m%dT%H%M%S.%f}"
