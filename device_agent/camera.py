"""Frames with their capture time, from a folder, a video file or a live camera.

`open_camera` gives a `Camera`; its `shots` yields until the source ends or `stop` is set. Rules kept here:

- A sample's bytes are what was delivered (folder) or a lossless PNG (video, live); its id is their SHA-256.
- A bad file is quarantined: counted, logged once, never fatal.
- A live camera is reconnected for ever, waiting longer each time. Frames nobody was quick enough for are counted.
- Every frame has a group: pictures of one part, which a score must never tell apart (docs/head.md). The part id
  where the source names one (each file is its own part unless an `index.csv` says otherwise), else the burst.

What is done with a frame is the station's business.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from device_agent.config import CameraSettings, FolderCamera, OpenCvCamera, VideoCamera
from sdk.errors import BadImages, CameraLost, ConfigError
from sdk.images import read, sample_id
from sdk.labels import GroupId
from sdk.layouts import IMAGE_SUFFIXES, INDEX_NAME
from sdk.preprocess import Frame

_log = logging.getLogger(__name__)

MAX_GROUP_CHARS = 200
"""As `sdk.labels.GroupId` allows; longer part names are hashed."""
MAX_QUARANTINED = 1000
"""Bad files remembered by name, so that each is logged once; past it they are only counted."""
PNG_EFFORT = 1
"""zlib level: 1 is four times faster than the default and costs a tenth more bytes on camera noise."""
OPEN_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 5_000
STOP_TIMEOUT_S = 2.0
"""How long a stop waits for a driver stuck in a read; the reader is a daemon thread and does not hold the exit."""


class CameraState(str, Enum):
    """What a source is doing."""

    OPENING = "opening"
    LIVE = "live"
    LOST = "lost"
    ENDED = "ended"


@dataclass
class Tally:
    """What a source has done since it was opened; read by others while it runs.

    Attributes:
        state: What it is doing now.
        frames: Given out.
        quarantined: Files that could not be read, each counted once, with the reason.
        bad: Those files; more than `quarantined` names where there were very many.
        dropped: Live frames that nobody was quick enough for.
        outages: Times a live camera was lost, the first failure to open it included.
    """

    state: CameraState = CameraState.OPENING
    frames: int = 0
    bad: int = 0
    dropped: int = 0
    outages: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shot:
    """One frame from a source.

    Attributes:
        frame: (h, w, 3) uint8 BGR.
        data: The encoded image as it is to be stored.
        sample_id: SHA-256 of `data`, 32 bytes.
        captured_utc: Seconds since 1970.
        group: `device/part` or `device/first frame of the burst`.
        source: File or camera, for people.
    """

    frame: Frame
    data: bytes
    sample_id: bytes
    captured_utc: float
    group: str
    source: str


class Camera(Protocol):
    """A source of frames."""

    name: str
    tally: Tally

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield frames until the source ends or `stop` is set.

        Raises:
            CameraLost: a file source that cannot be read at all.
        """


def open_camera(
    settings: CameraSettings,
    device: str,
    *,
    clock: Callable[[], float] = time.time,
    capture: Callable[[int | str], cv2.VideoCapture] | None = None,
) -> Camera:
    """Return the source that the settings name. Nothing is read from a live camera yet.

    Args:
        settings: The `[camera]` table.
        device: This device's id, the first half of every group id.
        clock: UTC seconds for the record.
        capture: Opens a live camera; OpenCV's own way by default.

    Raises:
        ConfigError: no such folder or file, a folder without images, or a pipeline OpenCV was not built for.
    """
    if isinstance(settings, FolderCamera):
        _list_folder(settings.path)
        return _Folder(settings, device, clock)
    if isinstance(settings, VideoCamera):
        if not settings.path.is_file():
            raise ConfigError(f"camera.path: {settings.path} is not a file", hint="Name a video file.")
        return _Video(settings, device, clock)
    if settings.url is not None and " ! " in settings.url and not _has_gstreamer():
        raise ConfigError(
            "camera.url is a GStreamer pipeline, and this OpenCV was built without GStreamer",
            hint="Use the system's python3-opencv, or a device index or rtsp:// address.",
        )
    return _Live(settings, device, clock, capture or _open_capture)


def _has_gstreamer() -> bool:
    line = next((x for x in cv2.getBuildInformation().splitlines() if "GStreamer:" in x), "")
    return "YES" in line


def _group_id(device: str, part: str) -> GroupId:
    whole = f"{device}/{part}"
    if len(whole) <= MAX_GROUP_CHARS:
        return whole
    return f"{device}/{hashlib.sha256(part.encode()).hexdigest()}"


class _Bursts:
    """Puts frames without a part id into groups by the pauses between them."""

    def __init__(self, device: str, gap_s: float, max_s: float) -> None:
        self._device, self._gap_s, self._max_s = device, gap_s, max_s
        self._first_s = self._last_s = float("-inf")
        self._group = ""

    def group(self, sample: bytes, at_s: float) -> str:
        if at_s - self._last_s > self._gap_s or at_s - self._first_s > self._max_s or at_s < self._last_s:
            self._group, self._first_s = _group_id(self._device, sample.hex()[:32]), at_s
        self._last_s = at_s
        return self._group


class _Pace:
    """Waits so that frames leave at `rate_fps`; does not hurry to make up for a late one."""

    def __init__(self, rate_fps: float) -> None:
        self._period_s = 1 / rate_fps if rate_fps > 0 else 0.0
        self._due_s = 0.0

    def due(self) -> bool:
        """Say whether the next frame may go, and if so count it as gone."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return False
        late = now_s - self._due_s >= self._period_s
        self._due_s = (now_s if late else self._due_s) + self._period_s
        return True

    def wait(self, stop: threading.Event) -> bool:
        """Wait until the next frame may go; False when stopped instead."""
        while not stop.is_set():
            if self.due():
                return True
            stop.wait(max(0.0, self._due_s - time.monotonic()))
        return False


def encode_png(frame: Frame) -> bytes:
    """Return the frame (h, w, 3) uint8 BGR as a lossless PNG."""
    fine, encoded = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, PNG_EFFORT])
    if not fine:
        raise ValueError(f"OpenCV cannot encode a frame of shape {frame.shape}")
    return encoded.tobytes()


_Listed = tuple[Path, str, str]
"""File, its path for people, its part."""


def _list_folder(folder: Path) -> list[_Listed]:
    """Return the folder's images with their parts, sorted, or in the index's order.

    Raises:
        ConfigError: no folder, no images, or an index that cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"camera.path: {folder} is not a folder", hint="Name a folder of images.")
    index = folder / INDEX_NAME
    if index.is_file():
        listed = _list_index(folder, index)
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        named = [(p, p.relative_to(folder).as_posix()) for p in files if not p.name.startswith(".")]
        listed = [(path, name, name) for path, name in named]
    if not listed:
        raise ConfigError(
            f"camera.path: {folder} holds no images", hint="Put images there, or name another folder."
        )
    return listed


def _list_index(folder: Path, index: Path) -> list[_Listed]:
    listed: list[_Listed] = []
    root = folder.resolve()
    try:
        with index.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if "path" not in (reader.fieldnames or []):
                raise ConfigError(f"{index}: no column path", hint="The first line must be path[,group,...].")
            for row in reader:
                name = (row["path"] or "").strip()
                if not name or not (folder / name).resolve().is_relative_to(root):
                    raise ConfigError(
                        f"{index}, line {reader.line_num}: {name!r} is not a path below the folder",
                        hint="Use paths below the index's folder.",
                    )
                listed.append((folder / name, name, (row.get("group") or "").strip() or name))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{index}: {error}", hint="Save it as UTF-8 CSV with commas.") from error
    return listed


class _Folder:
    """Image files, as delivered."""

    def __init__(self, settings: FolderCamera, device: str, clock: Callable[[], float]) -> None:
        self.name = str(settings.path)
        self.tally = Tally()
        self._settings, self._device, self._clock = settings, device, clock

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield each file's frame, sorted; with `loop` for ever, new files included from the next round on."""
        pace = _Pace(self._settings.rate_fps)
        while True:
            before = self.tally.frames
            try:
                listed = _list_folder(self._settings.path)
            except ConfigError as error:
                raise CameraLost(str(error), hint=error.hint) from error
            for path, name, part in listed:
                if not pace.wait(stop):
                    return
                shot = self._shot(path, name, part)
                if shot is not None:
                    self.tally.state = CameraState.LIVE
                    self.tally.frames += 1
                    yield shot
            if not self._settings.loop:
                break
            if self.tally.frames == before:
                raise CameraLost(f"{self.name}: none of {len(listed)} files can be read", hint="Replace them.")
        self.tally.state = CameraState.ENDED

    def _shot(self, path: Path, name: str, part: str) -> Shot | None:
        try:
            data, frame = read(path)
        except BadImages as error:
            if name not in self.tally.quarantined:
                self.tally.bad += 1
                _log.warning("quarantined: %s (%s)", error, error.hint)
                if len(self.tally.quarantined) < MAX_QUARANTINED:
                    self.tally.quarantined[name] = str(error).removeprefix(f"{path}: ")
            return None
        return Shot(frame, data, sample_id(data), self._clock(), _group_id(self._device, part), name)


class _Video:
    """A video file, every frame or sampled."""

    def __init__(self, settings: VideoCamera, device: str, clock: Callable[[], float]) -> None:
        self.name = str(settings.path)
        self.tally = Tally()
        self._settings, self._device, self._clock = settings, device, clock

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield frames in order; with `loop` for ever.

        Raises:
            CameraLost: no frame of the file can be decoded.
        """
        settings = self._settings
        pace = _Pace(settings.rate_fps)
        while True:
            bursts = _Bursts(self._device, settings.burst_gap_s, settings.burst_max_s)
            before = self.tally.frames
            for number, at_s, frame in self._frames():
                if not pace.wait(stop):
                    return
                data = encode_png(frame)
                sample = sample_id(data)
                self.tally.state = CameraState.LIVE
                self.tally.frames += 1
                source = f"{settings.path.name} #{number}"
                yield Shot(frame, data, sample, self._clock(), bursts.group(sample, at_s), source)
            if self.tally.frames == before:
                raise CameraLost(
                    f"{self.name}: no frame can be decoded", hint="Convert it to MP4 (H.264) or MJPEG."
                )
            if not settings.loop:
                break
        self.tally.state = CameraState.ENDED

    def _frames(self) -> Iterator[tuple[int, float, Frame]]:
        """Yield (number in the file, its time in the file in seconds, frame) of those that are to be taken."""
        capture = cv2.VideoCapture(str(self._settings.path))
        try:
            file_fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
            period_s = 1 / self._settings.rate_fps if self._settings.rate_fps > 0 else 0.0
            number, due_s = 0, 0.0
            while capture.grab():
                at_s = number / file_fps
                number += 1
                if at_s + 0.5 / file_fps < due_s:
                    continue
                fine, frame = capture.retrieve()
                if fine:
                    due_s += period_s
                    yield number, at_s, _colour(frame)
        finally:
            capture.release()


def _colour(frame: npt.NDArray[Any]) -> Frame:
    """Return a decoded frame as (h, w, 3) uint8 BGR, whatever the driver delivered."""
    if frame.ndim == 2 or frame.shape[2] == 1:
        frame = cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)
    return np.asarray(frame[:, :, :3], np.uint8)


def _open_capture(address: int | str) -> cv2.VideoCapture:
    if isinstance(address, str) and "://" in address:
        timeouts = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            OPEN_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            READ_TIMEOUT_MS,
        ]
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, timeouts)
    return cv2.VideoCapture(address)


class _Live:
    """A camera that never ends, read by a thread of its own so that what is inspected is never old."""

    def __init__(
        self,
        settings: OpenCvCamera,
        device: str,
        clock: Callable[[], float],
        capture: Callable[[int | str], cv2.VideoCapture],
    ) -> None:
        self._address: int | str = settings.index if settings.index is not None else (settings.url or "")
        self.name = (
            f"camera {self._address}" if isinstance(self._address, int) else _without_password(self._address)
        )
        self.tally = Tally()
        self._settings, self._clock, self._capture = settings, clock, capture
        self._bursts = _Bursts(device, settings.burst_gap_s, settings.burst_max_s)
        self._fresh = threading.Condition()
        self._latest: tuple[Frame, float, float] | None = None

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
                    frame, captured_utc, at_s = taken
                    data = encode_png(frame)
                    sample = sample_id(data)
                    self.tally.frames += 1
                    yield Shot(frame, data, sample, captured_utc, self._bursts.group(sample, at_s), self.name)
        finally:
            closing.set()
            reader.join(STOP_TIMEOUT_S)

    def _read_for_ever(self, stop: threading.Event, closing: threading.Event) -> None:
        wait_s = self._settings.retry_s
        while not (stop.is_set() or closing.is_set()):
            try:
                self._read_until_lost(stop, closing)
            except CameraLost as error:
                if self.tally.state is CameraState.LIVE:
                    wait_s = self._settings.retry_s
                if self.tally.state is not CameraState.LOST:
                    self.tally.outages += 1
                    _log.warning("%s (%s)", error, error.hint)
                self.tally.state = CameraState.LOST
                closing.wait(wait_s)
                wait_s = min(2 * wait_s, self._settings.retry_max_s)

    def _read_until_lost(self, stop: threading.Event, closing: threading.Event) -> None:
        capture = self._capture(self._address)
        pace = _Pace(self._settings.rate_fps)
        try:
            if not capture.isOpened():
                raise CameraLost(
                    f"{self.name} cannot be opened", hint="Check the cable, the address and permissions."
                )
            while not (stop.is_set() or closing.is_set()):
                if not capture.grab():
                    raise CameraLost(f"{self.name} sends no more frames", hint="It is being reconnected.")
                if not pace.due():
                    continue
                captured_utc, at_s = self._clock(), time.monotonic()
                fine, frame = capture.retrieve()
                if not fine:
                    raise CameraLost(f"{self.name} sent a broken frame", hint="It is being reconnected.")
                if self.tally.state is not CameraState.LIVE:
                    _log.info("%s is live", self.name)
                    self.tally.state = CameraState.LIVE
                with self._fresh:
                    self.tally.dropped += self._latest is not None
                    self._latest = (_colour(frame), captured_utc, at_s)
                    self._fresh.notify()
        except cv2.error as error:
            raise CameraLost(f"{self.name}: {error.err}", hint="It is being reconnected.") from error
        finally:
            capture.release()


def _without_password(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{host}" if mark and at and user else url
