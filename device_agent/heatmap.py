"""A picture with the evidence for a decision drawn over it: for the operator's page and for `headway evaluate`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from device_agent.camera import encode_png
from device_agent.decisions import UNKNOWN, JudgedImage
from device_agent.pipeline import Pipeline
from sdk.errors import ConfigError
from sdk.head import Head
from sdk.images import LabelledImage, read
from sdk.moments import Floats
from sdk.preprocess import Frame

USUAL_SHARE: Final = 0.5
"""A class with more than this share of all labels is the usual one, as good parts are on most lines."""
FULL_COLOUR: Final = 1.0
"""Evidence of a place, as a score, that is drawn at full strength at least: 1 is a frame that wholly looks like
the class. Where no place has as much, the colours stay faint, so that a picture without evidence shows none."""
OPACITY: Final = 0.65
_PATH_BYTES: Final = 100
_SAID_BYTES: Final = 140
"""Of a file's name, which has 255 bytes at most."""


@dataclass(frozen=True)
class Heatmap:
    """Where the evidence lies.

    Attributes:
        class_id: For which class.
        against: The class whose evidence was taken off; None where none was.
        evidence: (h, w) float64. Its sum is the class's score, or its lead over the other class; for a head of one
            class, how strange the frame is.
    """

    class_id: bytes
    against: bytes | None
    evidence: Floats


def heatmap(
    pipeline: Pipeline, head: Head, frame: Frame, class_id: bytes | None = None, against: bytes | None = None
) -> Heatmap:
    """Return where in a frame (h, w, 3) the evidence for a class lies.

    Args:
        pipeline: Of the release.
        head: Any head of its feature space.
        frame: As the camera gave it.
        class_id: None is the head's own best class.
        against: None is the usual class, if there is one and it is another: what speaks for a blowhole and not for
            a good part is found better than what speaks for a blowhole (benchmarks, heatmap).

    Raises:
        NoMaps: the release or its runtime gives no maps.
        UnknownClassError: the head knows no such class.
        InferenceFailed: the runtime failed.
    """
    seen = pipeline.spatial(frame)
    if class_id is None:
        class_id = head.class_ids[int(head.decide(pipeline.code_of(seen)).class_index[0])]
    if against is None:
        against = usual_class(head)
    found = pipeline.evidence(seen, head, class_id)
    if len(head.class_ids) == 1:
        return Heatmap(class_id, None, -found)
    if against in (None, class_id):
        return Heatmap(class_id, None, found)
    return Heatmap(class_id, against, found - pipeline.evidence(seen, head, against))


def usual_class(head: Head) -> bytes | None:
    """Return the class that has more than half of all labels; None where none has."""
    most = int(np.argmax(head.counts))
    return head.class_ids[most] if head.counts[most] > USUAL_SHARE * sum(head.counts) else None


def draw(frame: Frame, found: Floats) -> Frame:
    """Return the frame with evidence (h, w) over it; evidence against the class stays transparent."""
    height, width = frame.shape[:2]
    places = np.maximum(found * found.size, 0).astype(np.float32)  # each as if the whole frame looked like it
    strength = cv2.resize(places / max(float(places.max()), FULL_COLOUR), (width, height))
    colours = cv2.applyColorMap(np.rint(strength * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = (OPACITY * np.sqrt(strength.clip(0, 1)))[..., None]
    return np.asarray(np.rint(frame * (1 - opacity) + colours * opacity), np.uint8)


def check_folder(folder: Path) -> None:
    """Refuse a folder with something in it: heatmaps of two evaluations would lie side by side.

    Raises:
        ConfigError: it has, or it is no folder.
    """
    try:
        empty = not folder.exists() or not any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="Name another folder with --heatmaps.") from error
    if not empty:
        raise ConfigError(f"{folder} is not empty", hint="Empty it, or name another folder with --heatmaps.")


def write_heatmaps(
    folder: Path,
    pipeline: Pipeline,
    head: Head,
    names: Mapping[bytes, str],
    decisions: Sequence[tuple[LabelledImage, JudgedImage]],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write one PNG for each image, named by its path, its label and the decision that was shown.

    Args:
        folder: Made where it is missing.
        pipeline: Of the release.
        head: Of its feature space.
        names: Of the head's classes, by id.
        decisions: Images, read as they are needed, with what the head said of each. Where it said "unknown", the
            evidence is that for its best class, and the name says so.
        progress: Called with (images done, images in all).

    Raises:
        NoMaps: the release or its runtime gives no maps.
        ConfigError: the folder has something in it or cannot be written to.
    """
    check_folder(folder)
    ids = {name: class_id for class_id, name in names.items()}
    taken: set[str] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, (image, decision) in enumerate(decisions):
            frame = read(image.path)[1]
            found = heatmap(pipeline, head, frame, ids[decision.best])
            (folder / _file_name(decision, taken)).write_bytes(encode_png(draw(frame, found.evidence)))
            if progress is not None:
                progress(i + 1, len(decisions))
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="Name another folder with --heatmaps.") from error


def _file_name(decision: JudgedImage, taken: set[str]) -> str:
    """Return a name for a heatmap, and note it: of a long path the end stays, and no two are the same."""
    shown = decision.shown if decision.shown != UNKNOWN else f"{UNKNOWN}, most like {decision.best}"
    said = _plain(f" {decision.label} shown as {shown}", _SAID_BYTES)
    stem = _plain(decision.path.rpartition(".")[0] or decision.path, _PATH_BYTES, end=True).lstrip(".-")
    name, again = f"{stem}{said}.png", 1
    while name.casefold() in taken:
        again += 1
        name = f"{stem}{said}-{again}.png"
    taken.add(name.casefold())
    return name


def _plain(text: str, most_bytes: int, *, end: bool = False) -> str:
    """Return text of letters, digits, ".", "_" and "-", its beginning or its end if it is too long."""
    raw = re.sub(r"[^\w.-]+", "-", text).encode()
    return (raw[-most_bytes:] if end else raw[:most_bytes]).decode(errors="ignore")
