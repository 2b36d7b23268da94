"""GStreamer pipelines: cameras on CSI ports, hardware decoders, industrial sources.

Where OpenCV was built with GStreamer (JetPack's own is) it runs the pipeline. PyPI's is not: then
`gst-launch-1.0` runs it as a process of its own and hands raw frames over through a pipe. Its size is what
GStreamer negotiated; only its core and base plug-ins are needed beside those that the pipeline names.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import threading
import time
from collections import deque
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from sdk.errors import CameraLost, ConfigError
from sdk.preprocess import Frame

LAUNCH: Final = "gst-launch-1.0"
START_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 5.0
"""As for network cameras: longer without a frame is a lost camera."""
STOP_TIMEOUT_S: Final = 2.0
MAX_SIDE_PX: Final = 32_768
_SINK: Final = "headway"
_CAPS: Final = re.compile(
    rf"GstFdSink:{_SINK}\.GstPad:sink: caps = video/x-raw.*?width=\(int\)(\d+).*?height=\(int\)(\d+)"
)
_LAST_SINK: Final = re.compile(r"!\s*(appsink|fdsink|fakesink|autovideosink)\b[^!]*$")
_FRESH: Final = "queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0"
"""The newest frame waits, and no other: nothing that is inspected is old."""


def has_gstreamer() -> bool:
    """Return whether this OpenCV was built with GStreamer."""
    line = next((x for x in cv2.getBuildInformation().splitlines() if "GStreamer:" in x), "")
    return "YES" in line


def check_pipeline(pipeline: str) -> str:
    """Return a pipeline without a sink of its own, if there is something here to run it.

    Raises:
        ConfigError: nothing can run pipelines here, or this is none.
    """
    source = _LAST_SINK.sub("", pipeline).strip().rstrip("!").strip()
    try:
        words = shlex.split(source)
    except ValueError as error:
        raise ConfigError(f"camera.pipeline: {error}", hint="Close every quote.") from error
    if not words:
        raise ConfigError("camera.pipeline is empty", hint='For example: pipeline = "v4l2src device=/dev/video0"')
    if not has_gstreamer() and shutil.which(LAUNCH) is None:
        raise ConfigError(
            f"camera.pipeline: this OpenCV was built without GStreamer, and there is no {LAUNCH}",
            hint="sudo apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base",
        )
    return source


def open_with_opencv(pipeline: str) -> cv2.VideoCapture:
    """Run a pipeline in OpenCV."""
    tail = f"{_FRESH} ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
    return cv2.VideoCapture(f"{pipeline} ! {tail}", cv2.CAP_GSTREAMER)


class LaunchGrabber:
    """A pipeline in a process of its own.

    Args:
        name: For messages.
        pipeline: Without a sink.

    Attributes:
        process: What runs it.

    Raises:
        CameraLost: it does not start, or gives no picture in time.
    """

    def __init__(self, name: str, pipeline: str) -> None:
        self._name = name
        self._said: deque[str] = deque(maxlen=50)
        self._size: tuple[int, int] | None = None
        self._sized = threading.Event()
        self._changed = False
        self._pipe, theirs = os.pipe()
        tail = f"! {_FRESH} ! videoconvert ! video/x-raw,format=BGR ! fdsink name={_SINK} fd={theirs} sync=false"
        try:
            self.process = subprocess.Popen(
                [LAUNCH, "-v", *shlex.split(pipeline), *shlex.split(tail)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                text=True,
                errors="replace",
            )
        except OSError as error:
            os.close(self._pipe)
            raise CameraLost(f"{name}: {LAUNCH}: {error.strerror}", hint="Install gstreamer1.0-tools.") from error
        finally:
            os.close(theirs)
        self._listener = threading.Thread(target=self._listen, name="gst-launch", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Read what it says: its frame size, and why it fails."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.append(line.strip())
            found = _CAPS.search(line)
            if found is not None:
                size = int(found[1]), int(found[2])
                self._changed = self._changed or self._size not in (None, size)
                self._size = self._size or size
                self._sized.set()
        self._sized.set()

    def read(self, wanted: bool) -> npt.NDArray[Any] | None:
        """Return the next frame; none is skipped over in the pipe, whether it is wanted or not."""
        if self._size is None:
            self._sized.wait(START_TIMEOUT_S)
        if self._size is None or max(self._size) > MAX_SIDE_PX:
            raise self._lost("gives no picture")
        width, height = self._size
        row_bytes = (3 * width + 3) // 4 * 4  # GStreamer's rows begin at multiples of four
        self._check_size()
        raw = self._read_bytes(row_bytes * height)
        self._check_size()
        return _frame(raw, width, height, row_bytes) if wanted else None

    def _check_size(self) -> None:
        """Refuse what comes after a change of size: the news of it may be later than its frames, and where one
        begins in the pipe nobody knows any more."""
        if self._changed:
            raise self._lost("changed the size of its pictures")

    def _read_bytes(self, count: int) -> bytearray:
        raw = bytearray(count)
        view, filled = memoryview(raw), 0
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        while filled < count:
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                raise self._lost(f"sent nothing for {READ_TIMEOUT_S:g} s")
            got = os.readv(self._pipe, [view[filled:]])
            if not got:
                raise self._lost("sends no more frames")
            filled += got
        return raw

    def _lost(self, what: str) -> CameraLost:
        # What it said last is still on its way when it ends.
        if self.process.poll() is not None:
            self._listener.join(STOP_TIMEOUT_S)
        errors = [line for line in list(self._said) if line.startswith(("ERROR", "WARNING: erroneous"))]
        said = f": {errors[0][:200]}" if errors else ""
        return CameraLost(f"{self._name} {what}{said}", hint=f"Try the pipeline by hand: {LAUNCH} ...")

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._pipe)
        self._listener.join(STOP_TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _frame(raw: bytearray, width: int, height: int, row_bytes: int) -> Frame:
    rows = np.frombuffer(raw, np.uint8).reshape(height, row_bytes)
    return np.ascontiguousarray(rows[:, : 3 * width].reshape(height, width, 3))
