"""Features of the real image sets from a frozen backbone, computed once and kept in `.bench/`; drawn ones too.

The backbone is mobilenetv2_100 at 224 px with ImageNet weights, read at four levels and run as the exporter's own
ONNX file one frame at a time, so what is measured is what a device would compute. Nothing of the sets is copied
into the repository.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from sdk.codes import Codes, Features, encode, fit_scale
from sdk.images import open_images
from sdk.moments import Ints
from sdk.preprocess import Frame
from sdk.splits import Part, split

Rows = npt.NDArray[np.int64]
"""Indices of samples."""

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".bench"
BACKBONE: Final = "mobilenetv2_100"
INPUT_SIZE_PX: Final = 224
LEVELS: Final = 4
"""What `headway export` reads where nobody says: 1,584 features."""
DRAWN_SIZE: Final = 48
CAMERAS: Final[dict[str, Callable[[Frame], Frame]]] = {
    "blurred": lambda frame: np.asarray(cv2.GaussianBlur(frame, (0, 0), 2.5), np.uint8),
    "dark": lambda frame: np.asarray(np.rint((frame / 255.0) ** 1.5 * 127), np.uint8),
    "inverted": lambda frame: np.asarray(255 - frame, np.uint8),
}
"""How a station's camera may see what the release's saw, at the backbone's input size: out of focus by 2.5 px, at
half the light with another gamma, and lit from the other side."""


class NoImageSets(Exception):
    """The image sets or the weights are not on this machine; the message says where they were looked for."""


@dataclass(frozen=True)
class Sample:
    """A labelled set as features.

    Attributes:
        name: Of the set.
        classes: k class names, sorted.
        features: (n, d) float32, non-negative.
        labels: (n,) int64, index into `classes`.
        groups: (n,) str; the image itself where the set has no groups.
    """

    name: str
    classes: tuple[str, ...]
    features: Features
    labels: Ints
    groups: npt.NDArray[np.str_]

    def halves(self, seed: int) -> tuple[Rows, Rows]:
        """Return the rows to learn from and those held out: half of each class's groups, by `sdk.splits`."""
        parts = split(self.groups.tolist(), [self.classes[y] for y in self.labels], seed)
        learned = np.array([part in (Part.TRAIN, Part.VALIDATION) for part in parts])
        return np.flatnonzero(learned), np.flatnonzero(~learned)

    def codes(self, base: Rows) -> Codes:
        """Return all codes (n, d), with the code scale of a release that was trained on the rows `base`."""
        return encode(self.features, fit_scale(self.features[base]))


def shared_folder() -> Path:
    """Return the folder with `data/` and `weights/`: HEADWAY_SHARED, or `../shared` beside the checkout."""
    return Path(os.environ.get("HEADWAY_SHARED") or ROOT.parent / "shared")


def real(
    name: str, say: Callable[[str], None] = lambda _: None, *, backbone: str = BACKBONE, levels: int = LEVELS
) -> Sample:
    """Return the features of the image set `name`, from the cache where it has them.

    `SET+CAMERA` is the set as another camera sees it (`CAMERAS`).

    Cost: one to two minutes for a set, once.

    Raises:
        NoImageSets: the set or the weights are missing.
    """
    shared = shared_folder()
    name, _, camera = name.partition("+")
    folder, weights = shared / "data" / name, shared / "weights" / backbone
    for needed in (folder / "index.csv", weights / "model.safetensors"):
        if not needed.is_file():
            raise NoImageSets(f"{needed} is missing; set HEADWAY_SHARED to the folder with data/ and weights/")
    key = hashlib.sha256((folder / "index.csv").read_bytes() + (weights / "model.safetensors").read_bytes())
    seen = f"{name}-{camera}" if camera else name
    file = CACHE / f"{seen}-{backbone}-{INPUT_SIZE_PX}-{levels}-{key.hexdigest()[:12]}.npz"
    if not file.is_file():
        say(f"computing the features of {seen}, once; kept in {file.relative_to(ROOT)}")
        _compute(folder, weights, levels, file, CAMERAS[camera] if camera else None)
    with np.load(file) as kept:
        return Sample(name, tuple(kept["classes"].tolist()), kept["features"], kept["labels"], kept["groups"])


def column(name: str, title: str) -> npt.NDArray[np.str_]:
    """Return a column (n,) of a set's index.csv, row by row as `real` has them."""
    images = open_images(shared_folder() / "data" / name)
    return np.array([image.columns[title] for image in images.images])


def _compute(
    folder: Path, weights: Path, levels: int, file: Path, camera: Callable[[Frame], Frame] | None
) -> None:
    from export.backbones import load_backbone  # torch: only when there is something to compute
    from export.finetune import resized_frames
    from export.forms import features_of
    from export.graph import to_onnx

    images = open_images(folder)
    backbone = load_backbone(weights.name, str(weights), input_size_px=INPUT_SIZE_PX, levels=levels)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [image.path for image in images.images]
        frames = resized_frames(paths, backbone.preprocess, Path(scratch))
        if camera is not None:
            frames = np.stack([camera(frame) for frame in frames])
        features = features_of(to_onnx(backbone), frames, backbone.preprocess, lambda: None)
    classes = images.classes
    labels = np.array([classes.index(label) for label in images.labels], np.int64)
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(".part.npz")
    np.savez(
        unfinished, features=features, labels=labels, groups=np.array(images.groups), classes=np.array(classes)
    )
    unfinished.replace(file)


def drawn(name: str) -> Sample:
    """Return a small set of random features that stands for `name`: to try the benchmarks, never to measure.

    As in the real sets, `magnetic_tile` has several images of a group that look alike, and few groups.
    """
    name, _, camera = name.partition("+")
    grouped = name == "magnetic_tile"
    rng = np.random.default_rng(len(name))
    classes = tuple(f"class {i}" for i in range(3))
    features, labels, groups = [], [], []
    common = rng.gamma(1.0, 1.0, DRAWN_SIZE)
    for label in range(len(classes)):
        centre = common * rng.gamma(6.0, 1 / 6.0, DRAWN_SIZE)
        for part in range(10 if grouped else 32):
            own = centre * rng.gamma(3.0, 1 / 3.0, DRAWN_SIZE)
            for _ in range(4 if grouped else 1):
                features.append(own * rng.gamma(6.0 if grouped else 2.0, 0.3, DRAWN_SIZE))
                labels.append(label)
                groups.append(f"{label}-{part}")
    seen = np.array(features, np.float32)
    if camera:
        seen = np.maximum(seen + np.random.default_rng(len(camera)).normal(0, 1, DRAWN_SIZE), 0).astype(np.float32)
    return Sample(name, classes, seen, np.array(labels, np.int64), np.array(groups))
