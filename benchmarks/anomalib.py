"""The same job in Anomalib's OpenVINO inferencer: from a file to a decision, one frame after the other.

    pip install 'anomalib[openvino]'        in an environment that also has Headway's dev extra
    python -m benchmarks.anomalib BUNDLE --images DIR

Both take the same files, backbone file and number of threads, in turns. Headway decodes, prepares, runs the
backbone in ONNX Runtime, and decides with its head: class, probability, novelty. Anomalib's inferencer decodes,
and runs one ONNX model in OpenVINO that resizes, normalises, and has the same backbone and, for a score, the
largest feature: it has no head that learns, so that work it does not do. Neither stores or publishes anything.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from threadpoolctl import threadpool_limits

from benchmarks.report import Report, Table, as_text
from device_agent.camera.shot import Shot
from device_agent.config import RuntimeSettings
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.images import read
from sdk.layouts import IMAGE_SUFFIXES
from sdk.preprocess import Preprocess

ROUNDS = 5
CLOSE = 0.05
"""Of the largest feature: two ways to resize differ by less."""


def with_preprocessing(backbone: bytes, preprocess: Preprocess) -> onnx.ModelProto:
    """Return a model from RGB (n, 3, h, w) in [0, 1] to `pred_score` (n, 1), the largest feature."""
    model = compose.add_prefix(onnx.load_model_from_string(backbone), "backbone_")
    pixels, features = model.graph.input[0].name, model.graph.output[0].name
    size = np.array([preprocess.height, preprocess.width], np.int64)
    constants: dict[str, npt.NDArray[Any]] = {
        "size": size,
        "mean": np.asarray(preprocess.mean, np.float32).reshape(1, 3, 1, 1),
        "std": np.asarray(preprocess.std, np.float32).reshape(1, 3, 1, 1),
    }
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], end=2),
        helper.make_node("Concat", ["shape", "size"], ["sizes"], axis=0),
        helper.make_node("Resize", ["image", "", "", "sizes"], ["resized"], mode="linear"),
        helper.make_node("Sub", ["resized", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["prepared"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    prepared = helper.make_tensor_value_info("prepared", TensorProto.FLOAT, ["n", 3, *map(int, size)])
    before = helper.make_graph(
        nodes, "before", [image], [prepared], [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    opsets = model.opset_import
    first = helper.make_model(before, opset_imports=opsets, ir_version=model.ir_version)
    del model.graph.output[1:]
    whole = compose.merge_models(first, model, io_map=[("prepared", pixels)])
    whole.graph.node.append(helper.make_node("ReduceMax", [features], ["pred_score"], keepdims=1, axes=[1]))
    del whole.graph.output[:]
    whole.graph.output.append(helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, ["n", 1]))
    return whole


def rate(one: Callable[[Path], object], files: Sequence[Path], seconds: float) -> float:
    """Return frames a second."""
    for file in files[:3]:
        one(file)
    began_s, count = time.perf_counter(), 0
    while time.perf_counter() - began_s < seconds:
        one(files[count % len(files)])
        count += 1
    return count / (time.perf_counter() - began_s)


def main(arguments: list[str] | None = None) -> int:
    """Let both take turns; print a report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.anomalib",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    try:
        from anomalib.deploy import OpenVINOInferencer
    except ImportError as error:
        print(f"{error}: pip install 'anomalib[openvino]'", file=sys.stderr)
        return 2
    bundle = Bundle.open(options.bundle)
    files = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)[:200]
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "data", "bench") as store:
        station = Station(store, threads=False)
        settings = RuntimeSettings(threads=options.threads)
        station.serve(bundle, options.precision, open_runtime(bundle, options.precision, settings))
        backbone = bundle.backbone(options.precision)
        path = Path(folder) / "model.onnx"
        onnx.save(with_preprocessing(backbone, bundle.manifest.preprocess), path)
        os.chdir(folder)  # it makes a cache where it stands
        # fp32 means fp32: on some processors it would otherwise take bfloat16.
        config = {"INFERENCE_NUM_THREADS": str(options.threads), "INFERENCE_PRECISION_HINT": "f32"}
        theirs: Any = OpenVINOInferencer(path=path, device="CPU", config=config)

        def ours(file: Path) -> float:
            data, frame = read(file)
            looked = station.judge(station.embed(station.prepare([Shot(frame, 0.0, "bench/x", file.name, data)])))
            return looked.looks[0].decision.probability

        pipeline = station.require().pipeline
        largest = float(pipeline.features(pipeline.prepare([read(files[0])[1]])).max())
        score = float(np.ravel(theirs.predict(files[0]).pred_score)[0])
        assert abs(score - largest) < CLOSE * largest, "the two do not compute the same"
        with threadpool_limits(options.threads):
            rounds = [
                (rate(ours, files, options.seconds), rate(theirs.predict, files, options.seconds))
                for _ in range(ROUNDS)
            ]
    mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    table = Table(
        f"Frames a second, file to decision, {options.precision}, {options.threads} threads",
        ("", "frames/s", "of Anomalib's"),
        (
            ("Headway's station, ONNX Runtime, with its head", mine, ratio),
            (f"Anomalib {version('anomalib')}, OpenVINO {version('openvino')}, no head", other, 1.0),
        ),
        2,
    )
    note = f"{bundle.manifest.lineage.backbone}, {len(files)} images; load at the end {os.getloadavg()[0]:.1f}"
    print(as_text(Report("anomalib", "the same job in Anomalib's inferencer", (table,), (), (note,))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
