"""Live cameras: a thread of its own reads each, so that what is inspected is never old.

`Live` does what all of them need (reconnect for ever, waiting longer each time; the newest frame wins and the
others are counted; bursts; a picture that cannot be right is told of). What differs is a `Grabber`: OpenCV's
here, others in the modules beside this one, and plug-ins.
"""

from __future__ import annotations

import itertools
import logging
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from device_agent.camera.shot import Bursts, CameraState, Pace, Shot, Tally
from device_agent.config import GStreamerCamera, LiveCamera, OpenCvCamera, PluginCamera
from device_agent.plugins import CAMERAS, load
from sdk.errors import CameraLost, ConfigError
from sdk.preprocess import Frame

_log = logging.getLogger(__name__)

OPEN_TIMEOUT_MS: Final = 10_000
READ_TIMEOUT_MS: Final = 5_000
STOP_TIMEOUT_S: Final = 2.0
"""How long a stop waits for a driver stuck in a read; the reader is a daemon thread and does not hold the exit."""
NAMING: Final = ("location", "uri", "device", "sensor-id", "camera-name")
"""Properties of GStreamer's sources that say which camera they open."""


class Grabber(Protocol):
    """An opened camera. One thread uses it."""

    def read(self, wanted: bool) -> npt.NDArray[Any] | None:
        """Wait for the next frame and return it: (h, w), (h, w, 1) or (h, w, 3) BGR, 8 or 16 bits.

        Args:
            wanted: False where the frame will not be used, so that it need not be decoded; None is a fine answer.

        Raises:
            CameraLost: no more frames come.
        """

    def close(self) -> None:
        """Let go of the camera. Called once."""


class Live:
    """A camera that never ends.

    Args:
        name: For people; no password in it.
        settings: Rate, bursts, reconnection.
        device: This device's id.
        connect: Opens the camera, or raises CameraLost.
        clock: UTC seconds for the record.
    """

    live = True
    replay = False
    names_parts = False

    def __init__(
        self,
        name: str,
        settings: LiveCamera,
        device: str,
        connect: Callable[[], Grabber],
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.tally = Tally()
        self._settings, self._connect, self._clock = settings, connect, clock
        self._bursts = Bursts(device, settings.burst_gap_s, settings.burst_max_s)
        self._fresh = threading.Condition()
        self._latest: Shot | None = None

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield the newest frame each time; waits through outages for ever."""
        closing = threading.Event()
        reader = threading.Thread(target=self._read_for_ever, args=(stop, closing), name="camera", daemon=True)
        reader.start()
        try:
            while not stop.is_set():
                with self._fresh:
                    if self._latest is None:
                        self._fresh.wait(timeout=0.2)
                    taken, self._latest = self._latest, None
                if taken is not None:
                    self.tally.frames += 1
                    yield self._bursts.joined(taken, taken.at_s)
        finally:
            closing.set()
            reader.join(STOP_TIMEOUT_S)

    def _read_for_ever(self, stop: threading.Event, closing: threading.Event) -> None:
        wait_s = self._settings.retry_s
        while not (stop.is_set() or closing.is_set()):
            try:
                self._read_until_lost(stop, closing)
            except Exception as error:  # noqa: BLE001 - the thread's outermost loop: drivers raise what they like
                if self.tally.state is CameraState.LIVE:
                    wait_s = self._settings.retry_s
                if self.tally.state is not CameraState.LOST:
                    self.tally.outages += 1
                    if isinstance(error, CameraLost):
                        _log.warning("%s (%s)", error, error.hint)
                    else:
                        _log.warning("%s is lost", self.name, exc_info=error)
                self.tally.state = CameraState.LOST
                closing.wait(wait_s)
                wait_s = min(2 * wait_s, self._settings.retry_max_s)

    def _read_until_lost(self, stop: threading.Event, closing: threading.Event) -> None:
        grabber = self._connect()
        pace = Pace(self._settings.rate_fps)
        try:
            while not (stop.is_set() or closing.is_set()):
                due = pace.due()
                frame = grabber.read(due)
                if frame is None or not due:
                    continue
                self._take(Shot(colour(frame), self._clock(), "", self.name))
        finally:
            grabber.close()

    def _take(self, shot: Shot) -> None:
        if self.tally.state is not CameraState.LIVE:
            _log.info("%s is live", self.name)
            self.tally.state = CameraState.LIVE
        with self._fresh:
            self.tally.dropped += self._latest is not None
            self.tally.last_s = shot.at_s
            self._latest = shot
            self._fresh.notify()


class OpenCvGrabber:
    """A camera that OpenCV opens: V4L2, RTSP, HTTP; a GStreamer pipeline where OpenCV was built for it.

    Raises:
        CameraLost: it cannot be opened.
    """

    def __init__(self, name: str, capture: cv2.VideoCapture) -> None:
        self._name, self._capture = name, capture
        if not capture.isOpened():
            capture.release()
            raise CameraLost(f"{name} cannot be opened", hint="Check the cable, the address and permissions.")

    def read(self, wanted: bool) -> npt.NDArray[Any] | None:
        """Return the next frame."""
        try:
            if not self._capture.grab():
                raise CameraLost(f"{self._name} sends no more frames", hint="It is being reconnected.")
            if not wanted:
                return None
            fine, frame = self._capture.retrieve()
        except cv2.error as error:
            raise CameraLost(f"{self._name}: {error.err}", hint="It is being reconnected.") from error
        if not fine:
            raise CameraLost(f"{self._name} sent a broken frame", hint="It is being reconnected.")
        return frame

    def close(self) -> None:
        """Release it."""
        self._capture.release()


def opencv_camera(
    settings: OpenCvCamera,
    device: str,
    clock: Callable[[], float],
    capture: Callable[[int | str], cv2.VideoCapture] | None = None,
) -> Live:
    """Return the camera at an index or address."""
    if settings.url is not None and " ! " in settings.url:
        raise ConfigError(
            "camera.url is a GStreamer pipeline", hint='Use kind = "gstreamer" and pipeline = "...".'
        )
    address: int | str = settings.index if settings.index is not None else (settings.url or "")
    name = settings.name or (f"camera {address}" if isinstance(address, int) else address_name(address))

    def connect() -> Grabber:
        try:
            opened = (capture or open_capture)(address)
            _ask_for(opened, settings, name)
            return OpenCvGrabber(name, opened)
        except cv2.error as error:
            raise CameraLost(f"{name}: {error.err}", hint="It is being reconnected.") from error

    return Live(name, settings, device, connect, clock)


def _ask_for(capture: cv2.VideoCapture, settings: OpenCvCamera, name: str) -> None:
    """Ask a camera for a format, and say where it gives another."""
    if settings.fourcc is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*settings.fourcc))
    for what, wanted, prop in (
        ("width", settings.width, cv2.CAP_PROP_FRAME_WIDTH),
        ("height", settings.height, cv2.CAP_PROP_FRAME_HEIGHT),
        ("fps", settings.fps, cv2.CAP_PROP_FPS),
    ):
        if wanted is not None:
            capture.set(prop, wanted)
            given = capture.get(prop)
            if capture.isOpened() and given != wanted:
                _log.warning("%s gives %s %g, not %g", name, what, given, wanted)


def gstreamer_camera(settings: GStreamerCamera, device: str, clock: Callable[[], float]) -> Live:
    """Return the camera behind a GStreamer pipeline, in OpenCV or in a process of its own.

    Raises:
        ConfigError: nothing here can run it.
    """
    from device_agent.camera.gstreamer import LaunchGrabber, check_pipeline, has_gstreamer, open_with_opencv

    pipeline = check_pipeline(settings.pipeline)
    name = settings.name or pipeline_name(pipeline)

    def connect() -> Grabber:
        if has_gstreamer():
            return OpenCvGrabber(name, open_with_opencv(pipeline))
        return LaunchGrabber(name, pipeline)

    return Live(name, settings, device, connect, clock)


def plugin_camera(settings: PluginCamera, device: str, clock: Callable[[], float]) -> Live:
    """Return a camera of another package: its entry point takes the table's own keys and returns what opens it.

    Raises:
        ConfigError: it is not installed, or refuses its keys.
    """
    connect: Callable[[], Grabber] = load(CAMERAS, settings.plugin)(settings.options)
    return Live(settings.name or settings.plugin, settings, device, connect, clock)


def open_capture(address: int | str) -> cv2.VideoCapture:
    """Open a camera with OpenCV; network cameras with time limits."""
    if isinstance(address, str) and "://" in address:
        timeouts = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            OPEN_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            READ_TIMEOUT_MS,
        ]
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, timeouts)
    return cv2.VideoCapture(address)


def colour(frame: npt.NDArray[Any]) -> Frame:
    """Return a decoded frame as (h, w, 3) uint8 BGR, whatever the driver delivered; of 16 bits the upper eight."""
    if frame.dtype == np.uint16:
        frame = frame >> 8
    if frame.ndim == 2 or frame.shape[2] == 1:
        frame = cv2.cvtColor(np.asarray(frame, np.uint8), cv2.COLOR_GRAY2BGR)
    return np.asarray(frame[:, :, :3], np.uint8)


def address_name(url: str) -> str:
    """Return an address as it may stand in a log, a page and the store: scheme, host, port, and a plain path.

    Cameras take passwords before an @, in a query, and written like a query into the path.

    >>> address_name("rtsp://admin:secret@192.0.2.1:554/stream1"), address_name("/dev/video0")
    ('rtsp://192.0.2.1:554/stream1', '/dev/video0')
    >>> address_name("rtsp://192.0.2.1/user=admin&password=secret&channel=1.sdp")
    'rtsp://192.0.2.1/…'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url if _is_plain(url) else "…"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path, host = rest.removeprefix(authority), authority.rpartition("@")[2]
    if "@" in path:  # of a query; or the password has a / in it, and what looks like a port is its beginning
        host = host.partition(":")[0]
    return f"{scheme}{mark}{host if _is_plain(host) else '…'}{path if _is_plain(path) else '/…'}"


def pipeline_name(pipeline: str) -> str:
    """Return a GStreamer pipeline as it may stand in a log: its source, and which camera that opens.

    >>> pipeline_name("rtspsrc location=rtsp://192.0.2.1/1 user-id=admin user-pw=secret ! decodebin")
    'rtspsrc location=rtsp://192.0.2.1/1'
    """
    element, *properties = list(itertools.takewhile(lambda word: word != "!", shlex.split(pipeline))) or [""]
    named = (word.partition("=") for word in properties)
    return " ".join([address_name(element), *(f"{k}={address_name(v)}" for k, _, v in named if k in NAMING)])


def _is_plain(text: str) -> bool:
    return not set(text) & set("=&?;#@")
