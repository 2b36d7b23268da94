"""Small real things for tests: pictures, a bundle, a runtime. No weights, no camera, no network.

The backbone is a fixed random projection of the preprocessed pixels, seeded by the backbone file's bytes, so a
bundle's codes, golden outputs and what a device computes agree as they do in earnest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from export.set_report import ColumnReport, LeakReport, Range, SetReport, SliceReport
from sdk.bundle import (
    MANIFEST_NAME,
    BaseSamples,
    Bundle,
    ClassEntry,
    FileEntry,
    Golden,
    HeadEntry,
    Lineage,
    Manifest,
    PrecisionEntry,
    SplitEntry,
    golden_bytes,
    split_bytes,
    write_bundle,
)
from sdk.codes import Codes, encode, feature_space_id, fit_scale
from sdk.images import decode
from sdk.labels import Fold
from sdk.preprocess import Frame, Preprocess
from sdk.splits import split

PIXELS = 16
FEATURE_SIZE = 32
PREPROCESS = Preprocess(height=PIXELS, width=PIXELS)


def class_id_of(name: str) -> bytes:
    """Return a class id that is the same in every test."""
    return hashlib.sha256(b"class " + name.encode()).digest()[:16]


def picture(name: str, number: int = 0) -> bytes:
    """Return a PNG of a surface of this class: each class has its own texture, each number its own noise."""
    texture = np.random.default_rng(list(b"texture" + name.encode())).integers(40, 216, (PIXELS, PIXELS, 3))
    noise = np.random.default_rng([*name.encode(), number]).normal(0, 20, texture.shape)
    frame = np.clip(texture + noise, 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".png", frame)[1])


class Projection:
    """A runtime whose backbone is a random projection; the interface of `device_agent.runtime.Runtime`."""

    def __init__(self, backbone: bytes) -> None:
        size, seed = backbone.split(b" ", 1)
        self.name = "projection"
        self.feature_size = int(size)
        rng = np.random.default_rng(list(seed))
        self._weights = rng.normal(0, 1 / PIXELS, (self.feature_size, 3 * PIXELS * PIXELS)).astype(np.float32)

    def features(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(np.maximum(batch.reshape(len(batch), -1) @ self._weights.T, 0), np.float32)


def open_projection(bundle: Bundle, precision: str) -> Projection:
    """Return the runtime of a bundle that `make_bundle` made."""
    return Projection(bundle.backbone(precision))


def code_of(bundle: Bundle, image: bytes) -> npt.NDArray[np.int8]:
    """Return the code (d,) of a picture in a bundle's feature space."""
    entry = bundle.precision()
    features = open_projection(bundle, entry.precision).features(PREPROCESS.apply(decode(image)))
    return np.asarray(encode(features, entry.code_scale)[0], np.int8)


def make_bundle(
    out: Path,
    classes: Sequence[str] = ("good", "scratch"),
    *,
    per_class: int | Mapping[str, int] = 12,
    group_size: int = 2,
    feature_size: int = FEATURE_SIZE,
    backbone: str = "seed-1",
    class_ids: Mapping[str, bytes] | None = None,
    fitted: bool = False,
) -> Bundle:
    """Write and return a small bundle whose classes look like `picture(name, number)`.

    Args:
        out: The directory to make.
        classes: Names of its classes.
        per_class: Pictures of each, numbered from 1000.
        group_size: Pictures in a group.
        feature_size: d.
        backbone: Another text is another backbone, so another feature space.
        class_ids: Where a class should not have the id of `class_id_of`.
        fitted: Whether the backbone counts as trained on the pictures.
    """
    from sdk.head import solve
    from sdk.moments import Moments
    from sdk.score import calibrate, leave_one_group_out

    ids = {name: (class_ids or {}).get(name, class_id_of(name)) for name in classes}
    count = per_class if isinstance(per_class, Mapping) else dict.fromkeys(classes, per_class)
    owners = [name for name in classes for _ in range(count[name])]
    numbers = [number for name in classes for number in range(1000, 1000 + count[name])]
    pictures = [picture(name, number) for name, number in zip(owners, numbers, strict=True)]
    frames = np.stack([decode(each) for each in pictures])
    backbone_file = f"{feature_size} {backbone}".encode()
    features = _features(backbone_file, frames)
    scale = fit_scale(features)
    codes = encode(features, scale)
    space = feature_space_id(hashlib.sha256(backbone_file).hexdigest(), PREPROCESS, scale)
    base = BaseSamples(
        samples=[hashlib.sha256(each).digest() for each in pictures],
        class_ids=[ids[name] for name in owners],
        groups=[f"{name}-{number // group_size}" for name, number in zip(owners, numbers, strict=True)],
        codes=codes,
        fitted=np.full(len(codes), fitted),
    )
    fold = Fold(space, feature_size)
    names = {class_id: name for name, class_id in ids.items()}
    fold.add_base(base.samples, base.class_ids, base.groups, codes, names)

    moments = Moments(feature_size)
    moments.add(codes, base.class_ids)
    calibration = calibrate(leave_one_group_out(codes, base.class_ids, base.groups))
    head = solve(moments, calibration=calibration)
    columns = [head.class_ids.index(class_id) for class_id in ids.values()]
    golden_rows = np.arange(0, len(codes), max(1, len(codes) // 4))[:4]
    golden = Golden(
        frames=frames[golden_rows],
        features=features[golden_rows],
        codes=codes[golden_rows],
        scores=head.scores(codes[golden_rows])[:, columns].astype(np.float32),
    )
    files = {
        "backbone.fp32.onnx": backbone_file,
        "samples.fp32.safetensors": base.to_bytes(),
        "golden.safetensors": golden_bytes(golden.frames, {"fp32": golden}),
        "splits.safetensors": split_bytes(base.samples, list(split(base.groups, owners))),
    }
    manifest = Manifest(
        format=1,
        name=out.name,
        classes=[ClassEntry(id=class_id.hex(), name=name) for name, class_id in ids.items()],
        preprocess=PREPROCESS,
        precisions=[
            PrecisionEntry(
                precision="fp32",
                backbone="backbone.fp32.onnx",
                samples="samples.fp32.safetensors",
                feature_size=feature_size,
                code_scale=scale,
                space=space,
                head=HeadEntry(
                    rho=head.knobs.rho,
                    centre_damping=head.knobs.centre_damping,
                    lift_floor=head.knobs.lift_floor,
                    distance_weight=head.knobs.distance_weight,
                    temperature=calibration.temperature,
                    novelty_threshold=calibration.novelty_threshold,
                    false_alarm_rate=calibration.false_alarm_rate,
                    live_set_digest=fold.digest(),
                ),
            )
        ],
        golden="golden.safetensors",
        split=SplitEntry(seed=0, file="splits.safetensors", held_back=[]),
        lineage=Lineage(
            backbone="projection",
            weights_source="random",
            weights_sha256=None,
            weights_licence="none",
            strategy="none",
            data_sha256="0" * 64,
            images=len(codes),
            created_utc="2025-01-01T00:00:00Z",
            tool_versions={},
        ),
        parents=[],
        files=[FileEntry(name="to-be-filled", size_bytes=0, sha256="0" * 64)],
    )
    return write_bundle(out, files, manifest)


def with_exemplars(bundle: Bundle, out: Path, max_base_codes: int) -> Bundle:
    """Write and return the same bundle with codes of at most so many samples, and exact moments of the others."""
    from export.exemplars import exemplars

    files = {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != MANIFEST_NAME}
    entries, names = [], bundle.class_names()
    for entry in bundle.manifest.precisions:
        base = bundle.base(entry.precision)
        labels = [names[class_id] for class_id in base.class_ids]
        base = base.with_codes_of(exemplars(labels, base.groups, base.fitted, max_base_codes))
        moments = f"moments.{entry.precision}.safetensors"
        files |= {entry.samples: base.to_bytes(), moments: base.moments_bytes()}
        entries.append(msgspec.structs.replace(entry, moments=moments))
    return write_bundle(out, files, msgspec.structs.replace(bundle.manifest, precisions=entries))


def _features(backbone: bytes, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    batch = np.concatenate([PREPROCESS.apply(frame) for frame in frames])
    return Projection(backbone).features(batch)


def frame_of(name: str, number: int = 0) -> Frame:
    """Return `picture` decoded."""
    return decode(picture(name, number))


def random_codes(n: int, feature_size: int = FEATURE_SIZE, seed: int = 0) -> Codes:
    """Return (n, d) int8 codes of no meaning."""
    return np.random.default_rng(seed).integers(-127, 128, (n, feature_size), dtype=np.int8)


def set_report_on(folder: str, images: int) -> SetReport:
    """Return what could have been said of a set with a column `camera`, and near-duplicates in it."""
    some = Range(low=40.0, median=90.0, high=200.0)
    return SetReport(
        folder=folder,
        layout="index",
        found="index.csv",
        notes=[],
        usable=images,
        refused=[],
        classes=[],
        sizes=[],
        brightness=some,
        contrast=some,
        sharpness=some,
        columns=[
            ColumnReport(
                column="camera",
                slices=[
                    SliceReport(value="left", images=24, classes={}, scored=18, score=0.9, low=0.8, high=0.95),
                    SliceReport(value="right", images=12, classes={}),
                ],
            )
        ],
        leaks=LeakReport(
            groups_from="derived",
            groups=12,
            groups_before=images,
            pairs=40,
            across_groups=40,
            across_split=20,
            across_labels=0,
            threshold=0.8,
            expected_false=0.2,
            largest=6,
            score_apart=0.93,
            score_joined=0.57,
            listed=[],
        ),
    )
