"""Frames from files: a folder, a video, a folder that another program fills.

A sample's bytes are the file's own (folder) or a lossless PNG (video). A bad file is quarantined: counted, logged
once, never fatal. Files wait: nothing is dropped, however slow the inspection.
"""

from __future__ import annotations

import csv
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import cv2

from device_agent.camera.live import colour
from device_agent.camera.shot import Bursts, CameraState, Pace, Shot, Tally, group_id, readable
from device_agent.config import FolderCamera, VideoCamera, WatchCamera
from sdk.errors import BadImages, CameraLost, ConfigError
from sdk.images import read
from sdk.layouts import IMAGE_SUFFIXES, INDEX_NAME
from sdk.preprocess import Frame

_log = logging.getLogger(__name__)

MAX_QUARANTINED: Final = 1000
"""Bad files remembered by name, so that each is logged once; past it they are only counted."""

_Stamp = tuple[int, int]
"""Time of the last change, and size."""

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

    def __init__(self, settings: FolderCamera, device: str, clock: Callable[[], float]) -> None:
        self.name = settings.name or str(settings.path)
        self.tally = Tally()
        self._settings, self._device, self._clock = settings, device, clock
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
                shot = read_shot(path, name, part, self._device, self._clock, self.tally)
                if shot is not None:
                    yield shot
            if not self._settings.loop:
                break
            if self.tally.frames == before:
                raise CameraLost(f"{self.name}: none of {len(listed)} files can be read", hint="Replace them.")
        self.tally.state = CameraState.ENDED


def read_shot(
    path: Path, name: str, part: str, device: str, clock: Callable[[], float], tally: Tally
) -> Shot | None:
    """Return a file's frame; None where it is no usable image, which the tally then says."""
    name, part = readable(name), readable(part)
    at_s, captured_utc = time.monotonic(), clock()
    try:
        data, frame = read(path)
    except BadImages as error:
        if name not in tally.quarantined:
            tally.bad += 1
            _log.warning("quarantined: %s (%s)", error, error.hint)
            if len(tally.quarantined) < MAX_QUARANTINED:
                tally.quarantined[name] = str(error).removeprefix(f"{path}: ")
        return None
    tally.state, tally.last_s = CameraState.LIVE, at_s
    tally.frames += 1
    return Shot(frame, captured_utc, group_id(device, part), name, data, part, at_s)


class Watch:
    """A folder that another program fills. Each new file is taken once, when it has stopped growing."""

    live = False

    def __init__(self, settings: WatchCamera, device: str, clock: Callable[[], float]) -> None:
        if not settings.path.is_dir():
            raise ConfigError(f"camera.path: {settings.path} is not a folder", hint="Make it, or name another.")
        self.name = settings.name or str(settings.path)
        self.tally = Tally()
        self._settings, self._device, self._clock = settings, device, clock
        # What lies there already is of the past; where taken files are deleted, it is left over and still to do.
        self._taken: dict[str, _Stamp] = {} if settings.delete else {name: at for name, _, at in self._listed()}

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield new files, oldest first, for ever.

        Raises:
            CameraLost: the folder is gone.
        """
        growing: dict[str, _Stamp] = {}
        while not stop.is_set():
            try:
                listed = self._listed()
            except OSError as error:
                raise CameraLost(f"{self.name}: {error.strerror}", hint="It is looked for again.") from error
            self.tally.state = CameraState.LIVE
            for name, path, stamp in listed:
                if self._taken.get(name) == stamp:
                    continue
                if growing.get(name) != stamp:
                    growing[name] = stamp  # it is looked at again, and taken when it is still the same
                    continue
                self._taken[name] = stamp
                shot = read_shot(path, name, name, self._device, self._clock, self.tally)
                if shot is not None:
                    yield shot
                    if self._settings.delete:
                        self._delete(path)
                if stop.is_set():
                    return
            here = {name for name, _, _ in listed}
            self._taken = {name: at for name, at in self._taken.items() if name in here}
            growing = {name: at for name, at in growing.items() if name in here and self._taken.get(name) != at}
            stop.wait(self._settings.poll_s)

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
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
                stamp = (status.st_mtime_ns, status.st_size)
                found.append((status.st_mtime_ns, entry.name, Path(entry.path), stamp))
        return [(name, path, stamp) for _, name, path, stamp in sorted(found)]


class Video:
    """A video file, every frame or sampled."""

    live = False

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
