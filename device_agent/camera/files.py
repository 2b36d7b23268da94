"""Frames from files: a folder, a video, a folder that another program fills.

A sample's bytes are the file's own (folder) or a lossless PNG (video). A bad file is quarantined: counted, logged
once, never fatal; it was a part's picture all the same, and so is handed on as one that rejects it (`Shot.fault`).
Files wait: nothing is dropped, however slow the inspection. Those of a folder and a video are replayed and of no
time; when a file came into a watched folder is noted at once, by a thread that does nothing else, so that a
trigger gets no older one (`device_agent.flow`).
"""

from __future__ import annotations

import csv
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import cv2

from device_agent.camera.live import colour
from device_agent.camera.names import Names
from device_agent.camera.shot import NO_PICTURE, Bursts, CameraState, Pace, Shot, Tally, group_id
from device_agent.config import FolderCamera, VideoCamera, WatchCamera
from sdk.errors import BadImages, CameraLost, ConfigError
from sdk.images import read
from sdk.layouts import IMAGE_SUFFIXES, INDEX_NAME
from sdk.preprocess import Frame
from sdk.shown import readable

_log = logging.getLogger(__name__)

MAX_QUARANTINED: Final = 1000
"""Bad files remembered by name, so that each is logged once; past it they are only counted."""
STOP_POLL_S: Final = 0.2
"""How long a watched folder waits for a file before it looks whether it is stopped."""
STOP_TIMEOUT_S: Final = 2.0
"""How long a stop waits for a look at a folder whose server is gone; its thread does not hold the exit."""

_Stamp = tuple[int, int]
"""Time of the last change, and size."""


class _Come(NamedTuple):
    """A file of a watched folder that has stopped growing, and the monotonic time at which it was first seen."""

    name: str
    path: Path
    stamp: _Stamp
    at_s: float


_Listed = tuple[Path, str, str]
"""File, its path for people, its part."""


def list_folder(folder: Path) -> list[_Listed]:
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


class Folder:
    """Image files, as delivered."""

    live = False
    replay = True
    names_parts = False

    def __init__(self, settings: FolderCamera, device: str, clock: Callable[[], float]) -> None:
        self.name = settings.name or str(settings.path)
        self.tally = Tally()
        self._settings = settings
        self._reader = Reader(settings.path, device, clock, self.tally)
        list_folder(settings.path)

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield each file's frame, sorted; with `loop` for ever, new files included from the next round on."""
        pace = Pace(self._settings.rate_fps)
        while True:
            before = self.tally.frames
            try:
                listed = list_folder(self._settings.path)
            except ConfigError as error:
                raise CameraLost(str(error), hint=error.hint) from error
            for path, name, part in listed:
                if not pace.wait(stop):
                    return
                yield self._reader.shot(path, name, part)
            if not self._settings.loop:
                break
            if self.tally.frames == before:
                raise CameraLost(f"{self.name}: none of {len(listed)} files can be read", hint="Replace them.")
        self.tally.state = CameraState.ENDED


@dataclass(frozen=True)
class Reader:
    """Reads the files of a folder.

    Attributes:
        folder: The folder.
        device: This device's id.
        clock: UTC seconds.
        tally: Of the camera.
    """

    folder: Path
    device: str
    clock: Callable[[], float]
    tally: Tally

    def shot(self, path: Path, name: str, part: str) -> Shot:
        """Return a file's frame; one without a picture where it is no usable image, which the tally says too.

        Raises:
            CameraLost: it cannot be read because the folder is gone, which says nothing of any part.
        """
        name, part = readable(name), readable(part)
        at_s, captured_utc, group = time.monotonic(), self.clock(), group_id(self.device, part)
        try:
            data, frame = read(path)
        except BadImages as error:
            if not _is_there(self.folder):
                raise CameraLost(
                    f"{self.folder} is not a folder any more", hint="It is looked for again."
                ) from error
            return self.nothing(name, str(error).removeprefix(f"{path}: "), part, error.hint)
        self.tally.state, self.tally.last_s = CameraState.LIVE, at_s
        self.tally.frames += 1
        self.tally.quarantined.pop(name, None)  # one that is bad again is told again
        return Shot(frame, captured_utc, group, name, data, part, at_s)

    def nothing(self, name: str, reason: str, part: str | None = None, hint: str = "") -> Shot:
        """Return a file that shows nothing of its part, which is the whole name where none is known."""
        name = readable(name)
        part = name if part is None else part
        at_s, fault = time.monotonic(), f"{name}: {reason}"
        _quarantine(self.tally, name, reason, hint)
        self.tally.unreadable, self.tally.unreadable_s = fault, at_s
        group = group_id(self.device, part)
        return Shot(NO_PICTURE, self.clock(), group, name, None, part, at_s, fault=fault)


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # as of a server that is gone
        return False


def _quarantine(tally: Tally, name: str, reason: str, hint: str = "") -> None:
    """Count a file that cannot be used, and tell of it once."""
    if name in tally.quarantined:
        return
    tally.bad += 1
    _log.warning("quarantined: %s: %s%s", name, reason, f" ({hint})" if hint else "")
    if len(tally.quarantined) < MAX_QUARANTINED:
        tally.quarantined[name] = reason


class Watch:
    """A folder that another program fills. Each new file is taken once, when it has stopped growing.

    Its time is that of the look that first saw it. A thread of its own looks every `poll_s`, also while inspection
    takes nothing or is behind. What came while nobody looked, as before the first look, is as old as the look
    before: no trigger that came meanwhile may get it.
    """

    live = False
    replay = False

    def __init__(
        self, settings: WatchCamera, device: str, clock: Callable[[], float], others: Sequence[str] = ()
    ) -> None:
        if not settings.path.is_dir():
            raise ConfigError(f"camera.path: {settings.path} is not a folder", hint="Make it, or name another.")
        if settings.delete and not os.access(settings.path, os.W_OK | os.X_OK):
            # Each start would take all of it again, and send its verdicts again.
            raise ConfigError(
                f"camera.delete: nothing may be deleted from {settings.path}",
                hint="Let this user write there, print its systemd unit again, or set delete = false.",
            )
        self.name = settings.name or str(settings.path)
        self.tally = Tally()
        self.names_parts = bool(settings.names)
        self._names = Names(settings.names)
        self._others = [Names(names) for names in others]
        self._settings = settings
        self._reader = Reader(settings.path, device, clock, self.tally)
        self._looked_s = time.monotonic()
        # What lies there already is of the past; where taken files are deleted, it is left over and still to do.
        there = self._listed()
        self._taken: dict[str, _Stamp] = {} if settings.delete else {name: at for name, _, at in there}
        self._since = dict.fromkeys((name for name, _, _ in there), self._looked_s) if settings.delete else {}

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield new files, oldest first, for ever. A file is remembered, and deleted where that is asked for, as
        soon as it is read.

        Raises:
            CameraLost: the folder is gone.
        """
        closing = threading.Event()
        come: queue.SimpleQueue[_Come | Exception] = queue.SimpleQueue()
        looker = threading.Thread(target=self._look_on, args=(come, stop, closing), name="folder", daemon=True)
        looker.start()
        try:
            while not stop.is_set():
                try:
                    file = come.get(timeout=STOP_POLL_S)
                except queue.Empty:
                    continue
                if isinstance(file, Exception):
                    raise file
                shot = self._take(file)
                if shot is not None:
                    yield shot
        finally:
            closing.set()
            looker.join(STOP_TIMEOUT_S)
            while not come.empty():
                left = come.get()
                if isinstance(left, _Come):  # still to do, and as old as it is
                    self._taken.pop(left.name, None)
                    self._since[left.name] = left.at_s

    def _look_on(
        self, come: queue.SimpleQueue[_Come | Exception], stop: threading.Event, closing: threading.Event
    ) -> None:
        """Look until the folder is gone or nobody takes its files; hand over those that have stopped growing."""
        growing: dict[str, _Stamp] = {}
        before_s: float | None = self._looked_s
        try:
            while not (stop.is_set() or closing.is_set()):
                listed = self._listed()
                if closing.is_set():
                    return  # it took so long that somebody else may look now
                self._looked_s = time.monotonic()
                new_s, before_s = (self._looked_s if before_s is None else before_s), None
                self.tally.state = CameraState.LIVE
                for name, path, stamp in listed:
                    if self._taken.get(name) == stamp:
                        continue
                    self._since.setdefault(name, new_s)
                    if growing.get(name) != stamp:
                        growing[name] = stamp  # it is looked at again, and taken when it is still the same
                        continue
                    self._taken[name] = stamp
                    come.put(_Come(name, path, stamp, self._since.pop(name)))
                here = {name for name, _, _ in listed}
                self._taken = {name: at for name, at in self._taken.items() if name in here}
                self._since = {name: at_s for name, at_s in self._since.items() if name in here}
                growing = {name: at for name, at in growing.items() if name in self._since}
                closing.wait(self._settings.poll_s)
        except OSError as error:
            come.put(CameraLost(f"{self.name}: {error.strerror}", hint="It is looked for again."))
        except Exception as error:  # noqa: BLE001 - the thread's outermost frame: who takes the files must hear it
            come.put(error)

    def _take(self, file: _Come) -> Shot | None:
        """Return a file's frame, one without a picture where its name tells no part; None where it is another one
        since it was seen, or another camera's."""
        try:
            status = file.path.stat()
        except FileNotFoundError:
            return None
        if _stamp(status) != file.stamp:
            return None  # the next looks find it
        part, fault = self._names.read(file.name)
        if not part and any(other.is_like(file.name) for other in self._others):
            return None
        shot = self._reader.nothing(file.name, fault) if fault else self._reader.shot(file.path, file.name, part)
        if self._settings.delete and not shot.fault:
            self._delete(file.path, status)
        return replace(shot, at_s=file.at_s)

    def _delete(self, path: Path, taken: os.stat_result) -> None:
        """Delete what was taken, unless another is in its place: a program may give each picture one name."""
        try:
            now = path.stat()
            if (now.st_ino, *_stamp(now)) == (taken.st_ino, *_stamp(taken)):
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            # It is not taken again while the agent runs, and stays until somebody looks at the log.
            _log.warning("%s was taken and cannot be deleted: %s", path, error.strerror)

    def _listed(self) -> list[tuple[str, Path, _Stamp]]:
        """Return the folder's images, oldest first: name, file, and what changes when it is written."""
        found: list[tuple[int, str, Path, _Stamp]] = []
        with os.scandir(self._settings.path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # gone since it was listed
                found.append((status.st_mtime_ns, entry.name, Path(entry.path), _stamp(status)))
        return [(name, path, stamp) for _, name, path, stamp in sorted(found)]


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size


class Video:
    """A video file, every frame or sampled."""

    live = False
    replay = True
    names_parts = False

    def __init__(self, settings: VideoCamera, device: str, clock: Callable[[], float]) -> None:
        if not settings.path.is_file():
            raise ConfigError(f"camera.path: {settings.path} is not a file", hint="Name a video file.")
        self.name = settings.name or str(settings.path)
        self.tally = Tally()
        self._settings, self._device, self._clock = settings, device, clock

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield frames in order; with `loop` for ever.

        Raises:
            CameraLost: no frame of the file can be decoded.
        """
        settings = self._settings
        pace = Pace(settings.rate_fps)
        while True:
            bursts = Bursts(self._device, settings.burst_gap_s, settings.burst_max_s)
            before = self.tally.frames
            for number, at_s, frame in self._frames():
                if not pace.wait(stop):
                    return
                shot = Shot(frame, self._clock(), "", f"{settings.path.name} #{number}")
                self.tally.state, self.tally.last_s = CameraState.LIVE, shot.at_s
                self.tally.frames += 1
                yield bursts.joined(shot, at_s)
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
                    yield number, at_s, colour(frame)
        finally:
            capture.release()
