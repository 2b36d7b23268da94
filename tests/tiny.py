"""Small real things for tests: pictures of parts, and a bundle with a real (random) backbone of 32 x 32 pixels.

No torch: the ONNX graph is written by hand. Its random filters tell the classes of `picture` apart well enough
for a head to be right most of the time, in under a millisecond a frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from msgspec import UNSET, structs
from onnx import TensorProto, helper, numpy_helper

from sdk.bundle import (
    MANIFEST_NAME,
    BaseSamples,
    Bundle,
    ClassEntry,
    Golden,
    HeadEntry,
    Lineage,
    Manifest,
    MapEntry,
    PrecisionEntry,
    ReadEntry,
    SplitEntry,
    golden_bytes,
    split_bytes,
    write_bundle,
)
from sdk.codes import encode, feature_space_id, fit_scale
from sdk.head import Knobs, solve
from sdk.images import decode, sample_id
from sdk.liveset import live_set_digest
from sdk.moments import Moments
from sdk.preprocess import Frame, Preprocess, resize
from sdk.score import calibrate, leave_one_group_out
from sdk.splits import Part, split

CLASSES = ("good", "pit", "scratch")
SIDE = 32
FEATURE_SIZE = 48


def class_id(name: str) -> bytes:
    """Return the id that a tiny bundle gives to a class."""
    return hashlib.sha256(f"tiny {name}".encode()).digest()[:16]


def other_id(name: str) -> bytes:
    """Return an id that another export of the same classes may have given to one."""
    return hashlib.sha256(f"other {name}".encode()).digest()[:16]


def picture(name: str, i: int, size: int = 48) -> bytes:
    """Return the i-th picture of a class as PNG: good, pit, scratch, stain; any other name gets rings."""
    rng = np.random.default_rng([i, *name.encode()])
    frame = rng.normal(110, 7, (size, size, 3)) + 10 * rng.normal()
    x, y = (int(v) for v in rng.integers(size // 4, 3 * size // 4, 2))
    if name == "scratch":
        end = (int(x + rng.integers(-size, size)), 0 if i % 2 else size)
        cv2.line(frame, (x, y), end, (250.0, 220.0, 160.0), 2)
    elif name == "pit":
        for _ in range(4):
            spot = (int(x + rng.integers(-9, 9)), int(y + rng.integers(-9, 9)))
            cv2.circle(frame, spot, 3, (20.0, 10.0, 60.0), -1)
    elif name == "stain":
        cv2.ellipse(frame, (x, y), (14, 9), float(rng.uniform(0, 180)), 0, 360, (60.0, 120.0, 190.0), -1)
    elif name != "good":
        for radius in range(3, size, 5):
            cv2.circle(frame, (x, y), radius, (30.0, 200.0, 30.0), 1)
    done, encoded = cv2.imencode(".png", np.clip(frame, 0, 255).astype(np.uint8))
    assert done
    return encoded.tobytes()


def write_pictures(folder: Path, classes: Sequence[str] = CLASSES, per_class: int = 24) -> Path:
    """Write class folders of pictures, and return the folder."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            (folder / name / f"{i:03}.png").write_bytes(picture(name, i))
    return folder


def maps_of(feature_size: int = FEATURE_SIZE) -> list[MapEntry]:
    """Return what a manifest says of the map of `backbone(maps=True)`."""
    half = feature_size // 2
    reads = [ReadEntry(start=0, pool="avg"), ReadEntry(start=half, pool="max")]
    return [MapEntry(output="d", channels=half, height=SIDE // 4, width=SIDE // 4, reads=reads)]


def backbone(feature_size: int = FEATURE_SIZE, seed: int = 0, *, maps: bool = False) -> bytes:
    """Return an ONNX backbone: two random convolutions, average and maximum pooled; their map too, if asked."""
    rng = np.random.default_rng(seed)
    half = feature_size // 2

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        w = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        return numpy_helper.from_array((w - w.mean((1, 2, 3), keepdims=True)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["frames", "w1"], ["a"], kernel_shape=[5, 5], strides=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("GlobalMaxPool", ["d"], ["f"]),
        helper.make_node("Concat", ["e", "f"], ["g"], axis=1),
        helper.make_node("Flatten", ["g"], ["features"]),
    ]
    side = SIDE // 4
    beside = [helper.make_tensor_value_info("d", TensorProto.FLOAT, ["n", half, side, side])] if maps else []
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 2 * half]), *beside],
        [weights("w1", 16, 3, 5, 5), weights("w2", half, 16, 3, 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def features_of(model: bytes, frames: Sequence[Frame], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Return what the backbone gives for frames, by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batch = np.concatenate([preprocess.apply(frame) for frame in frames])
    return np.asarray(session.run(None, {"frames": batch})[0], np.float32)


def tiny_bundle(
    out: Path,
    *,
    classes: Sequence[str] = CLASSES,
    per_class: int = 24,
    held_back: Sequence[str] = (),
    seed: int = 0,
    name: str = "tiny",
    backbone_seed: int = 0,
    precision: str = "fp32",
    maps: bool = False,
    called: Mapping[str, str] | None = None,
    id_of: Callable[[str], bytes] = class_id,
) -> Bundle:
    """Write a bundle made from `write_pictures(folder, classes, per_class)`, and return it.

    It learned from training and validation images of the classes that are not held back; `parts()` covers all.
    Another `backbone_seed` gives another feature space. `precision` is what the same backbone is called. `called`
    says what pictures are taken for, where that is wrong. `id_of` gives classes their ids: `other_id` is as if
    exported anew without `--classes-from`.
    """
    preprocess = Preprocess(height=SIDE, width=SIDE)
    model = backbone(seed=backbone_seed, maps=maps)
    labels = [label for label in classes for _ in range(per_class)]
    data = [picture(label, i % per_class) for i, label in enumerate(labels)]
    ids = [sample_id(d) for d in data]
    groups = [f"{label}/{i % per_class:03}.png" for i, label in enumerate(labels)]
    parts = list(split(groups, labels, seed))

    learned = (Part.TRAIN, Part.VALIDATION)
    rows = [i for i, part in enumerate(parts) if part in learned and labels[i] not in held_back]
    features = features_of(model, [decode(data[i]) for i in rows], preprocess)
    scale = fit_scale(features)
    codes = encode(features, scale)
    class_ids = [id_of((called or {}).get(labels[i], labels[i])) for i in rows]
    base = BaseSamples(
        [ids[i] for i in rows], class_ids, [groups[i] for i in rows], codes, np.zeros(len(rows), bool)
    )
    moments = Moments(codes.shape[1])
    moments.add(codes, class_ids)
    calibration = calibrate(leave_one_group_out(codes, class_ids, base.groups))
    head = solve(moments, calibration=calibration)

    model_name, samples_name = f"backbone.{precision}.onnx", f"samples.{precision}.safetensors"
    sha256 = hashlib.sha256(model).hexdigest()
    space = feature_space_id(sha256, preprocess, scale)
    known = [c for c in classes if c not in held_back]
    columns = [head.class_ids.index(id_of(c)) for c in known]
    frames = np.stack([resize(decode(data[i]), SIDE, SIDE) for i in rows[:: max(1, len(rows) // 6)]])
    golden_features = features_of(model, list(frames), preprocess)
    golden_codes = encode(golden_features, scale)
    scores = head.scores(golden_codes)[:, columns].astype(np.float32)
    golden = Golden(frames, golden_features, golden_codes, scores)
    digest = live_set_digest(
        space, zip(base.samples, class_ids, (hashlib.sha256(c.tobytes()).digest() for c in codes), strict=True)
    )
    knobs = Knobs()
    manifest = Manifest(
        format=1,
        name=name,
        classes=[ClassEntry(id=id_of(c).hex(), name=c) for c in known],
        preprocess=preprocess,
        precisions=[
            PrecisionEntry(
                precision=precision,
                backbone=model_name,
                samples=samples_name,
                feature_size=codes.shape[1],
                code_scale=scale,
                space=space,
                head=HeadEntry(
                    rho=knobs.rho,
                    centre_damping=knobs.centre_damping,
                    lift_floor=knobs.lift_floor,
                    distance_weight=knobs.distance_weight,
                    temperature=calibration.temperature,
                    novelty_threshold=min(calibration.novelty_threshold, 1e9),  # infinite where no class has two
                    false_alarm_rate=calibration.false_alarm_rate,
                    live_set_digest=digest,
                ),
                maps=maps_of() if maps else UNSET,
            )
        ],
        golden="golden.safetensors",
        split=SplitEntry(seed=seed, file="splits.safetensors", held_back=list(held_back)),
        lineage=Lineage(
            backbone="tiny",
            weights_source="random",
            weights_sha256=None,
            weights_licence="none",
            strategy="head-only",
            data_sha256="00" * 32,
            images=len(data),
            created_utc="2026-01-01T00:00:00Z",
            tool_versions={},
        ),
        parents=[],
        files=[],
    )
    files = {
        model_name: model,
        samples_name: base.to_bytes(),
        "golden.safetensors": golden_bytes(frames, {precision: golden}),
        "splits.safetensors": split_bytes(ids, parts),
    }
    return write_bundle(out, files, manifest)


def with_backbone(bundle: Bundle, out: Path, model: bytes) -> Bundle:
    """Write and return the bundle with another ONNX file as its first precision's backbone, all else as it was."""
    files = {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != MANIFEST_NAME}
    entry = bundle.precision()
    files[entry.backbone] = model
    space = feature_space_id(hashlib.sha256(model).hexdigest(), bundle.manifest.preprocess, entry.code_scale)
    entries = [structs.replace(entry, space=space), *bundle.manifest.precisions[1:]]
    return write_bundle(out, files, structs.replace(bundle.manifest, precisions=entries))


def two_precisions(out: Path, **more: Any) -> Bundle:
    """Write and return a tiny bundle with fp32 and, of another backbone, what is called int8."""
    forms = {
        name: tiny_bundle(out.with_name(f"{out.name}-{name}"), precision=name, backbone_seed=seed, **more)
        for name, seed in (("fp32", 0), ("int8", 1))
    }
    first = forms["fp32"]
    golden = {name: form.golden(name) for name, form in forms.items()}
    files = {
        name: (form.path / name).read_bytes()
        for form in forms.values()
        for name in form.file_names()
        if name != MANIFEST_NAME
    }
    files["golden.safetensors"] = golden_bytes(golden["fp32"].frames, golden)
    entries = [form.precision() for form in forms.values()]
    return write_bundle(out, files, structs.replace(first.manifest, name=out.name, precisions=entries))
