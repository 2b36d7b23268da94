"""Pictures of factory surfaces with defects, drawn from a seed: for the demo, for tests, for pretraining.

A *part* is a small physical model: relief, reflectance, gloss. A surface kind makes its texture, a defect kind
changes all three where it lies. A *frame* is a photograph of a part: light from one side, uneven and fading to
the corners, shift, focus, noise. One part photographed twice gives two pictures of one defect, so groups are
parts, as on a line, and a split by picture would be too kind.

Rules this package keeps:

- The same arguments give the same bytes on every run with the same numpy and OpenCV. Every part and every frame
  draws from its own stream, keyed by what it is, never by what was drawn before it: adding classes, parts or
  frames changes no other picture.
- A person sees which defect it is in most pictures, not in all: size, loudness, place and number vary, and good
  parts have dust, lint, streaks and uneven light too.
- Nothing here is optics. What works is decided on real images.
"""

from __future__ import annotations

import csv
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from sdk.errors import ConfigError
from sdk.preprocess import Frame, resize
from sdk.surfaces.defects import DEFECTS, blemish, worked_in
from sdk.surfaces.light import lit
from sdk.surfaces.parts import FRAME_UNITS, Part, Stream, blur
from sdk.surfaces.textures import TEXTURES

Mask = npt.NDArray[np.uint8]
"""(h, w) uint8: 255 where the defect is, 0 elsewhere."""

GOOD: Final = "good"
KINDS: Final = tuple(TEXTURES)
CLASSES: Final = (GOOD, *DEFECTS)

DEFAULT_SIZE_PX: Final = 160
MIN_SIZE_PX: Final = 32
MAX_SIZE_PX: Final = 2048
MARGIN: Final = 0.09
"""A part's maps reach this share of the frame beyond it on each side: room to shift and turn the camera."""


def make(
    kind: str, defect: str, *, seed: int, size_px: int = DEFAULT_SIZE_PX, loudness: float = 1.0
) -> tuple[Frame, Mask]:
    """Return one picture (h, w, 3) uint8 BGR of a surface, and the mask (h, w) uint8 of its defect.

    About 7 ms at 160 px on one core. Pictures of one seed and kind share their texture whatever the defect.

    Args:
        kind: One of `KINDS`.
        defect: One of `CLASSES`; `good` gives an empty mask.
        seed: Another seed gives another part under another light.
        size_px: Both sides of the picture, 32 to 2048.
        loudness: How much of the defect there is to see, above 0 to 1; texture, place and mask stay the same.

    >>> frame, mask = make("brushed", "scratch", seed=1, size_px=64)
    >>> frame.shape, mask.shape, bool(mask.any())
    ((64, 64, 3), (64, 64), True)
    """
    _check([kind], [defect], size_px)
    if not 0 < loudness <= 1:
        raise ValueError(f"a loudness of {loudness} is outside 0 to 1")
    return _photograph(Stream("frame", seed, 0), _part(kind, defect, size_px, seed, loudness=loudness), size_px)


def _check(kinds: Sequence[str], classes: Sequence[str], size_px: int) -> None:
    for given, known, what in ((kinds, KINDS, "surface kind"), (classes, CLASSES, "defect kind")):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise ValueError(f"no {what} {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise ValueError(f"{size_px} px is outside {MIN_SIZE_PX} to {MAX_SIZE_PX}")


def _part(kind: str, defect: str, size_px: int, *key: int | str, loudness: float = 1.0) -> Part:
    """Return the part that the key names."""
    size = size_px + 2 * math.ceil(MARGIN * size_px)
    # The texture's stream does not know the defect: the same part could have been good.
    part = TEXTURES[kind](Stream("texture", kind, *key), size, size_px / FRAME_UNITS)
    if defect != GOOD:
        worked_in(Stream("defect", defect, *key), part, defect, loudness)
    blemish(Stream("blemish", *key), part)
    return part


def _photograph(rng: Stream, part: Part, size_px: int) -> tuple[Frame, Mask]:
    """Return one picture of a part, and its mask: another draw is another light, shift, focus and noise."""
    picture = lit(rng, part)

    # Camera: shift, turn, distance, focus, exposure, noise.
    reach = 0.75 * MARGIN * size_px
    angle, zoom = math.radians(rng.between(-2.5, 2.5)), rng.between(0.97, 1.04)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    middle_x, middle_y = (part.size / 2 + rng.between(-reach, reach) for _ in range(2))
    half = size_px / 2
    matrix = np.array([[cos, sin, middle_x - (cos + sin) * half], [-sin, cos, middle_y - (cos - sin) * half]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    frame_size = (size_px, size_px)
    seen = cv2.warpAffine(picture, matrix, frame_size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    mask = cv2.warpAffine(part.mask, matrix, frame_size, flags=flags, borderMode=cv2.BORDER_CONSTANT)
    focus = rng.between(0.3, 0.75) if rng.chance(0.85) else rng.between(0.75, 1.1)
    seen = blur(np.asarray(seen, np.float32), focus * part.unit)
    seen *= rng.between(0.34, 0.62) / max(*cv2.mean(seen), 1e-3)
    seen += rng.normal(size_px, size_px, 3) * rng.between(0.008, 0.026)
    frame = cv2.convertScaleAbs(np.maximum(seen, 0, out=seen), alpha=255)  # rounds and saturates
    return np.asarray(frame, np.uint8), np.where(np.asarray(mask) > 0.35, np.uint8(255), np.uint8(0))


PRODUCT = ("cast", "painted")
"""The demo's product: castings, raw and painted, through one station."""
PRODUCT_CLASSES = (GOOD, "scratch", "pit", "stain", "crack")


def write_image_set(
    folder: Path,
    *,
    classes: Sequence[str] = PRODUCT_CLASSES,
    parts_per_class: int,
    frames_per_part: int = 3,
    seed: int = 0,
    kinds: Sequence[str] = PRODUCT,
    size_px: int = DEFAULT_SIZE_PX,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write labelled pictures of parts as a plant would hand them over; return how many.

    The folder gets `index.csv` (path, label, group, mask), `images/` and `masks/`, PNG all. A group is one part; a
    good part's mask is empty in the index. The folder appears when it is whole, never half written. A part's
    pictures depend on the seed, its class and its number only, so a larger set contains the smaller one.

    Args:
        folder: Where to; must not exist, or be empty.
        classes: Which of `CLASSES`.
        parts_per_class: Parts of each class.
        frames_per_part: Each part is photographed once to this many times.
        seed: Another seed gives other parts.
        kinds: Each part is of one of these `KINDS`.
        size_px: Both sides of a picture.
        progress: Called with (pictures written, pictures in all).

    Raises:
        ConfigError: the folder holds something already, or cannot be written.
    """
    _check(kinds, classes, size_px)
    if parts_per_class < 1 or frames_per_part < 1 or len(set(classes)) < len(classes):
        raise ValueError("an image set needs distinct classes, and at least one part and frame of each")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already", hint="Name a new folder, or remove this one.")
    plan = [
        (label, number, Stream("shots", seed, label, number).count(1, frames_per_part))
        for label in classes
        for number in range(parts_per_class)
    ]
    in_all, done = sum(shots for _, _, shots in plan), 0
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".surfaces-", dir=folder.parent, ignore_cleanup_errors=True
        ) as near:
            root = Path(near) / "set"
            rows: list[_Row] = []

            def draw(one: tuple[str, int, int]) -> list[_Row]:
                return _write_part(root, *one, seed=seed, kinds=kinds, size_px=size_px)

            # Threads: most of the time goes into OpenCV and NumPy, which let others run meanwhile.
            pool = ThreadPoolExecutor(os.cpu_count())
            try:
                for drawn in pool.map(draw, plan):
                    rows += drawn
                    done += len(drawn)
                    if progress is not None:
                        progress(done, in_all)
            finally:
                pool.shutdown(cancel_futures=True)
            with (root / "index.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("path", "label", "group", "mask"), *rows])
            root.replace(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}", hint="Check space and rights."
        ) from error
    return done


_Row = tuple[str, str, str, str]


def _write_part(
    root: Path, label: str, number: int, shots: int, *, seed: int, kinds: Sequence[str], size_px: int
) -> list[_Row]:
    key = (seed, label, number)
    kind = Stream("kind", *key).pick(kinds)
    part = _part(kind, label, size_px, *key)
    group = f"{label}-{number:04d}"
    rows: list[_Row] = []
    for shot in range(shots):
        frame, mask = _photograph(Stream("frame", *key, shot), part, size_px)
        path = f"images/{label}/{group}-{shot}.png"
        mask_path = f"masks/{label}/{group}-{shot}.png" if label != GOOD else ""
        _write_png(root / path, frame)
        if mask_path:
            _write_png(root / mask_path, mask)
        rows.append((path, label, group, mask_path))
    return rows


def _write_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    # Level 1: noise does not compress, and harder tries would take as long as drawing.
    ok, png = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert ok, "OpenCV encodes every 8-bit picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png.tobytes())


def contact_sheet(*, seed: int = 0, size_px: int = DEFAULT_SIZE_PX, tile_px: int = 68) -> Frame:
    """Return one picture (h, w, 3) of every surface kind (rows) with every defect kind (columns).

    Args:
        seed: Which parts.
        size_px: The size each picture is drawn at.
        tile_px: The size it is shown at.
    """
    gap, top, left = 4, 24, 78
    side = tile_px + gap
    sheet = np.full((top + side * len(KINDS), left + side * len(CLASSES), 3), 255, np.uint8)

    def write(text: str, x: int, y: int) -> None:
        cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)

    for column, defect in enumerate(CLASSES):
        write(defect, left + side * column + 2, top - 8)
    for row, kind in enumerate(KINDS):
        y = top + side * row
        write(kind, 6, y + tile_px // 2 + 4)
        for column, defect in enumerate(CLASSES):
            number = seed + row * len(CLASSES) + column
            frame, _ = make(kind, defect, seed=number, size_px=size_px)
            x = left + side * column
            sheet[y : y + tile_px, x : x + tile_px] = resize(frame, tile_px, tile_px)
    return sheet
