"""TensorRT beside ONNX Runtime: a release serves at once, and its engine takes over when it is built and proven.

    ONNX Runtime serves -> engine kept? else built -> golden inputs right? -> faster here? -> TensorRT serves

Building takes seconds to many minutes and happens in a thread of its own; nothing that serves waits for it, except
a candidate release, whose predecessor goes on serving (`wait_s`). Whatever goes wrong leaves what served before.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from device_agent.runtime import Batch, Runtime, check_golden
from device_agent.runtime.tensorrt import TensorRtRuntime
from sdk.bundle import Bundle
from sdk.codes import Features
from sdk.engine import EngineCache, EngineKey, prepare_engine
from sdk.errors import HeadwayError, InferenceFailed
from sdk.tensorrt_api import Library, installed, open_library

TIMED_RUNS: Final = 15
"""Single frames through each runtime, in turns; the medians decide."""
STOP_S: Final = 10.0
"""A build ends at its next step; one step may be the timing of a slow kernel."""

_log = logging.getLogger(__name__)


class Upgrading:
    """A runtime that serves, until a better one for the same backbone takes over. Safe from several threads.

    Should the better one fail, the first serves again, and the frame is not lost.

    Args:
        first: Serves from the start.
    """

    def __init__(self, first: Runtime) -> None:
        self._first = first
        self._current = first
        self._note = ""
        self._settled = threading.Event()
        self.feature_size = first.feature_size
        # What the first runtime offers beside features, for whoever asks: it stays at hand, whoever decides.
        spatial = getattr(first, "spatial", None)
        if spatial is not None:
            self.spatial = spatial

    @property
    def name(self) -> str:
        """What serves, and where the engine stands."""
        return f"{self._current.name} ({self._note})" if self._note else self._current.name

    def features(self, batch: Batch) -> Features:
        """Return the features (n, d) float32 of preprocessed frames (n, 3, H, W) float32.

        Raises:
            InferenceFailed: the first runtime failed too, or a frame's features are not finite.
        """
        current = self._current
        if current is self._first:
            return current.features(batch)
        try:
            return current.features(batch)
        except InferenceFailed as error:
            features = self._first.features(batch)  # where this fails too, the frame is at fault
            self._current, self._note = self._first, f"TensorRT failed: {error}"
            _log.warning("%s serves again: %s (%s)", self._first.name, error, error.hint)
            return features

    def say(self, note: str) -> None:
        """Note where the engine stands, for people."""
        self._note = note

    def settle(self, better: Runtime | None, note: str = "") -> None:
        """End the waiting: a better runtime takes over, or, with None, the first goes on serving."""
        if better is not None:
            self._current = better
        self._note = note
        self._settled.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is settled what serves; return whether it is."""
        return self._settled.wait(timeout_s)


class Engines:
    """This device's engines: kept in a folder, built one after another in the background.

    Args:
        folder: Where they are kept.
        library: Opens TensorRT.
        only_if_faster: An engine takes over only where it is no slower here than what serves.
    """

    def __init__(
        self, folder: Path, *, library: Callable[[], Library] = open_library, only_if_faster: bool = True
    ) -> None:
        self._cache = EngineCache(folder)
        self._library = library
        self._only_if_faster = only_if_faster
        self._building: EngineKey | None = None
        self._one = threading.Lock()  # a GPU times kernels for one build at a time
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._upgrading: list[Upgrading] = []

    def require(self) -> None:
        """Refuse to start where TensorRT is asked for and missing.

        Raises:
            TensorRtMissing: it is.
        """
        self._library()

    def upgrade(self, bundle: Bundle, precision: str | None, first: Runtime, *, wait_s: float = 0.0) -> Runtime:
        """Return a runtime that serves at once by `first`, and by TensorRT as soon as it can.

        Args:
            bundle, precision: Whose backbone.
            first: What serves meanwhile. Has passed its golden inputs.
            wait_s: Wait so long for the engine, where something else serves in the meantime.
        """
        if self._library is open_library and not installed():
            return first
        upgrading = Upgrading(first)
        upgrading.say("TensorRT engine: waiting")
        thread = threading.Thread(
            target=self._work, args=(bundle, precision, upgrading), name="engine", daemon=True
        )
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        self._upgrading = [*(u for u in self._upgrading if not u.wait(0)), upgrading]
        thread.start()
        if wait_s:
            upgrading.wait(wait_s)
        return upgrading

    def stop(self) -> None:
        """End a build at its next step, and the waiting for one at once; it begins anew at the next start.

        One that goes on all the same ends with the process. That end is ours and not the build's.
        """
        self._stop.set()
        for upgrading in self._upgrading:
            upgrading.settle(None)
        for thread in self._threads:
            thread.join(STOP_S)
        building = self._building
        if building is not None and any(thread.is_alive() for thread in self._threads):
            self._cache.end(building)

    def _work(self, bundle: Bundle, precision: str | None, upgrading: Upgrading) -> None:
        try:
            library = self._library()  # here, since loading it takes seconds
            with self._one:
                if self._stop.is_set():
                    raise InterruptedError("stopped before it began")
                better, note = self._build(library, bundle, precision, upgrading)
            upgrading.settle(better, note)
        except InterruptedError:
            upgrading.settle(None)
        except HeadwayError as error:
            _log.warning("no TensorRT engine: %s (%s)", error, error.hint)
            upgrading.settle(None, f"no TensorRT: {error}")
        except Exception as error:  # noqa: BLE001 - the thread's outermost frame: a waiting release must go on
            _log.exception("no TensorRT engine")
            upgrading.settle(None, f"no TensorRT: {type(error).__name__}: {error}")

    def _build(
        self, library: Library, bundle: Bundle, precision: str | None, upgrading: Upgrading
    ) -> tuple[Runtime | None, str]:
        """Return the runtime that should take over, or none, and what people should know."""

        def on_progress(_words: str, share: float) -> None:
            upgrading.say(f"TensorRT engine: {share:.0%} built")

        self._building = EngineKey.of(library, bundle, precision)
        try:
            prepared = prepare_engine(
                library, self._cache, bundle, precision, on_progress=on_progress, stop=self._stop
            )
        finally:
            self._building = None
        if prepared.note:
            _log.warning("the engine runs but is not kept: %s", prepared.note)
        try:
            engine = TensorRtRuntime(library, prepared, upgrading.feature_size)
            check_golden(engine, bundle, precision)
        except InferenceFailed:
            self._cache.discard(prepared.key)
            raise
        size = bundle.manifest.preprocess
        frame = np.zeros((1, 3, size.height, size.width), np.float32)
        first_ms, engine_ms = compare_ms((upgrading, frame), (engine, frame))
        figures = f"TensorRT {engine_ms:.1f} ms a frame, before {first_ms:.1f}"
        _log.info("%s (%s)", figures, "engine kept" if prepared.kept else f"built in {prepared.seconds:.0f} s")
        if self._only_if_faster and engine_ms > first_ms:
            return None, f"no faster: {figures}"
        return engine, ""


def compare_ms(*each: tuple[Runtime, Batch]) -> list[float]:
    """Return the median time of one frame (1, 3, H, W) through each of these runtimes, measured in turns."""
    taken: list[list[float]] = [[] for _ in each]
    for _ in range(TIMED_RUNS):
        for (runtime, frame), times in zip(each, taken, strict=True):
            began_s = time.perf_counter()
            runtime.features(frame)
            times.append((time.perf_counter() - began_s) * 1e3)
    return [statistics.median(times) for times in taken]
