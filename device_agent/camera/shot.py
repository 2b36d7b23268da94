"""What every source of frames gives, and what it says of itself. The sources are in the modules beside this
one."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple, Protocol

import cv2
import numpy as np

from sdk.images import sample_id
from sdk.labels import GroupId
from sdk.preprocess import Frame

MAX_GROUP_CHARS: Final = 200
"""As `sdk.labels.GroupId` allows; longer part names are hashed."""
PNG_FILTER: Final[tuple[int, ...]] = (
    (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG) if hasattr(cv2, "IMWRITE_PNG_FILTER") else ()
)
"""Each pixel by the mean of its neighbours to the left and above, which suits noise. To try all filters of PNG for
each row, as an OpenCV does that cannot be told, takes 34 instead of 16 ms for 896 x 896 pixels with
camera noise, for 0.1 % fewer bytes; 1 % fewer on NEU, 11 % on magnetic tile, both from JPEG."""
PNG_HOW: Final = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *PNG_FILTER,
)
"""zlib level 1 is four times faster than the default and costs a tenth more bytes on camera noise; runs only,
which is all that noise leaves to find, take 39 instead of 47 ms for 896 x 896 pixels with noise, and 14 % fewer
bytes (both with all filters)."""

NO_PICTURE: Final[Frame] = np.zeros((0, 0, 3), np.uint8)
"""The frame of a shot that has none."""


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
        unreadable: The newest picture of a part that could not be read, and why; empty before the first.
        unreadable_s: Monotonic time at which that was tried.
        dropped: Live frames that a newer one replaced before anybody took them, and files of a watched folder that
            no trigger had asked for.
        outages: Times a live camera was lost, the first failure to open it included.
        last_s: Monotonic time of its newest frame; None before the first.
        picture: What is wrong with its newest frame (black, over-exposed, frozen); empty for nothing.
    """

    state: CameraState = CameraState.OPENING
    frames: int = 0
    bad: int = 0
    dropped: int = 0
    outages: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""
    unreadable_s: float = -math.inf
    last_s: float | None = None
    picture: str = ""


class Box(NamedTuple):
    """A rectangle of a frame, in its pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame from a source, or one tile of it. What is stored of it is encoded only when somebody asks.

    Attributes:
        frame: (h, w, 3) uint8 BGR.
        captured_utc: Seconds since 1970.
        group: `device/part` or `device/first frame of the burst`.
        source: File or camera, for people.
        delivered: The encoded image as the source gave it; None where it gave pixels.
        part: The part that it shows, where the source knows; None where each frame stands for itself.
        at_s: Monotonic time of capture.
        camera: Number of the station's camera that took it.
        box: Where it lies in the camera's frame, if it is a tile.
        tile: Its number among the frame's tiles.
        lot: The lot that its part is of; empty where nobody said.
        fault: Why there is no picture, where the source brought one of this part that cannot be used: `frame` is
            then `NO_PICTURE`, nothing of it is decided or stored, and its part is rejected.
    """

    frame: Frame
    captured_utc: float
    group: str
    source: str
    delivered: bytes | None = None
    part: str | None = None
    at_s: float = field(default_factory=time.monotonic)
    camera: int = 0
    box: Box | None = None
    tile: int = 0
    lot: str = ""
    fault: str = ""
    _asked: AbstractContextManager[object] = field(default_factory=threading.RLock, init=False, repr=False)

    @property
    def data(self) -> bytes:
        """The encoded image as it is stored: as delivered, else a lossless PNG."""
        return self.delivered if self.delivered is not None else self._once("_png", lambda: encode_png(self.frame))

    @property
    def sample_id(self) -> bytes:
        """SHA-256 of `data`, 32 bytes."""
        return self._once("_sample_id", lambda: sample_id(self.data))

    def _once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return what is made when somebody asks first: outputs and the store ask at once, from their threads."""
        # Up to Python 3.11 `cached_property` has one lock for all shots: a verdict waited until other tiles were
        # encoded. From 3.12 on it has none, and each thread would encode the tile.
        known: bytes | None = self.__dict__.get(name)
        if known is None:
            with self._asked:
                known = self.__dict__.get(name)
                if known is None:
                    known = self.__dict__[name] = make()
        return known

    def of_part(self, part: str, device: str, lot: str = "") -> Shot:
        """Return the same frame as one of a part."""
        return replace(self, part=part, group=group_id(device, part), lot=lot)


class Camera(Protocol):
    """A source of frames.

    Attributes:
        name: For people.
        tally: What it has done.
        live: Frames come whether or not anybody takes them; a file waits.
        replay: Its frames are of no time, and each trigger gets the next one. Else a shot's `at_s` tells whether
            it came after a trigger, and only such a shot is of its part.
        names_parts: A shot's `part` is the id that a trigger would give it, so a trigger gets the shots of its own
            part, in whatever order these come.
    """

    name: str
    tally: Tally
    live: bool
    replay: bool
    names_parts: bool

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        """Yield frames until the source ends or `stop` is set.

        Raises:
            CameraLost: a file source that cannot be read at all.
        """


def encode_png(frame: Frame) -> bytes:
    """Return the frame (h, w, 3) uint8 BGR as a lossless PNG: of one channel where all three are the same.

    As those of a monochrome camera are, whatever brings them: a third of the bytes, in less than half of the time.
    """
    blue, green, red = cv2.split(np.ascontiguousarray(frame))
    grey = np.array_equal(blue, green) and np.array_equal(green, red)
    fine, encoded = cv2.imencode(".png", blue if grey else frame, list(PNG_HOW))
    if not fine:
        raise ValueError(f"OpenCV cannot encode a frame of shape {frame.shape}")
    return encoded.tobytes()


def group_id(device: str, part: str) -> GroupId:
    """Return the group of a part's pictures."""
    whole = f"{device}/{part}"
    if len(whole) <= MAX_GROUP_CHARS:
        return whole
    return f"{device}/{hashlib.sha256(part.encode()).hexdigest()}"


class Bursts:
    """Puts frames without a part id into groups by the pauses between them."""

    def __init__(self, device: str, gap_s: float, max_s: float) -> None:
        self._device, self._gap_s, self._max_s = device, gap_s, max_s
        self._first_s = self._last_s = float("-inf")
        self._group = ""

    def joined(self, shot: Shot, at_s: float) -> Shot:
        """Return the shot in its group; the first of a burst names it.

        Args:
            shot: A frame without a part.
            at_s: When it was taken, by any clock that goes on.
        """
        if at_s - self._last_s > self._gap_s or at_s - self._first_s > self._max_s or at_s < self._last_s:
            self._group, self._first_s = group_id(self._device, shot.sample_id.hex()[:32]), at_s
        self._last_s = at_s
        grouped = replace(shot, group=self._group)
        # What was encoded to name the group is not encoded again.
        grouped.__dict__.update({k: v for k, v in shot.__dict__.items() if k in {"_png", "_sample_id"}})
        return grouped


class Pace:
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
