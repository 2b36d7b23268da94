"""Cameras and runtimes for tests of the line: they do what a test says, when it says so."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from device_agent.camera import Camera, CameraState, Shot, Tally
from device_agent.flow import Flow, FlowSettings, Source
from device_agent.parts import Part
from device_agent.recipe import Recipe
from device_agent.runtime import Runtime, open_runtime
from device_agent.station import Station
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.codes import Features
from sdk.images import decode
from sdk.preprocess import Frame
from tests.tiny import FEATURE_SIZE, picture


def frame_of(name: str, i: int = 0) -> Frame:
    """Return the i-th picture of a class."""
    return decode(picture(name, i))


class SimCamera:
    """A camera that gives what is pushed into it. A live one keeps nothing: who is slow misses frames."""

    def __init__(self, name: str = "sim", *, live: bool = True, device: str = "line-1") -> None:
        self.name, self.live, self.replay, self.tally = name, live, not live, Tally()
        self.names_parts = False
        self._device = device
        self._frames: queue.Queue[tuple[Frame, str | None, float] | None] = queue.Queue()

    def push(self, frame: Frame, part: str | None = None, at_s: float | None = None) -> None:
        """Give a frame, taken now or at a time."""
        self._frames.put((frame, part, time.monotonic() if at_s is None else at_s))

    def end(self) -> None:
        """Give no more."""
        self._frames.put(None)

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                given = self._frames.get(timeout=0.05)
                if given is None:
                    self.tally.state = CameraState.ENDED
                    return
                frame, part, at_s = given
                self.tally.state, self.tally.last_s = CameraState.LIVE, at_s
                self.tally.frames += 1
                group = f"{self._device}/{part or self.tally.frames}"
                yield Shot(frame, time.time(), group, f"{self.name} #{self.tally.frames}", part=part, at_s=at_s)


class GatedRuntime:
    """A real runtime behind a gate; on request it fails instead."""

    name = "gated"
    feature_size = FEATURE_SIZE

    def __init__(self, bundle: Bundle) -> None:
        self._inner: Runtime = open_runtime(bundle, None)
        self.gate = threading.Event()
        self.gate.set()
        self.fail_next: list[Exception] = []
        self.entered = 0

    def features(self, batch: npt.NDArray[np.float32]) -> Features:
        self.entered += 1
        self.gate.wait(60)
        if self.fail_next:
            raise self.fail_next.pop(0)
        return self._inner.features(batch)


class Line:
    """A flow over simulated cameras, run on a thread, with everything it told."""

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        cameras: Sequence[Camera],
        settings: FlowSettings,
        recipe: Recipe | None = None,
        check: Callable[[Shot], str] = lambda _: "",
    ) -> None:
        self.runtime = GatedRuntime(bundle)
        self.station = Station(store)
        self.station.serve(bundle, None, self.runtime)
        self.parts: list[Part] = []
        self.faults: list[Exception] = []
        self.stop = threading.Event()
        self.flow = Flow(
            self.station,
            [Source(camera, recipe or Recipe(), check) for camera in cameras],
            settings,
            on_part=self.parts.append,
            on_frame=lambda error, _: None if error is None else self.faults.append(error),
        )
        self._thread = threading.Thread(target=self.flow.run, args=(self.stop,))

    def __enter__(self) -> Line:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.station.close()

    def end(self) -> None:
        """Stop the flow, and check that it stops."""
        self.stop.set()
        self.runtime.gate.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
