"""A runtime computes what the exporter computed, or is refused before it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.config import RuntimeSettings
from device_agent.pipeline import BATCH_FRAMES, Pipeline
from device_agent.runtime import base_head, check_golden, open_runtime
from device_agent.runtime import onnx as onnx_runtime
from device_agent.runtime.onnx import OnnxRuntime
from sdk.bundle import Bundle
from sdk.codes import Features
from sdk.errors import Incompatible, InferenceFailed
from sdk.images import decode
from sdk.labels import Fold
from tests.tiny import FEATURE_SIZE, SIDE, backbone, picture, tiny_bundle

SHAPE = (3, SIDE, SIDE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("runtime") / "bundle")


def run(model: bytes, feature_size: int = FEATURE_SIZE) -> OnnxRuntime:
    return OnnxRuntime(model, "backbone.fp32.onnx", SHAPE, feature_size, RuntimeSettings(threads=1))


def test_golden_inputs_give_the_exporters_scores(bundle: Bundle) -> None:
    runtime = open_runtime(bundle, None, RuntimeSettings(threads=1))
    assert check_golden(runtime, bundle) < 1e-3
    assert runtime.feature_size == FEATURE_SIZE


def test_an_onnx_runtime_without_the_newest_of_its_errors_serves_too() -> None:
    """1.20 to 1.22 have no NotFound; pip does not hold `onnxruntime-gpu` to what Headway asks of `onnxruntime`."""
    older = "from onnxruntime.capi import onnxruntime_pybind11_state as state; del state.NotFound\n"
    serves = f"{older}from device_agent.runtime.onnx import usable_providers; print(usable_providers()[0])"
    ended = subprocess.run([sys.executable, "-c", serves], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "cpu\n"), ended.stderr


def test_the_base_head_is_the_exporters(bundle: Bundle) -> None:
    head, base = base_head(bundle), bundle.base()
    fold = Fold(bundle.space(), FEATURE_SIZE)
    fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names())
    assert fold.digest() == bundle.precision().head.live_set_digest
    assert head.calibration.classes == 3


def test_one_by_one_equals_a_batch(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle, None, open_runtime(bundle, None))
    frames = [decode(picture("pit", i)) for i in range(BATCH_FRAMES + 3)]
    together = pipeline.codes(frames)
    single = np.concatenate([pipeline.code(frame) for frame in frames])
    assert together.shape == (BATCH_FRAMES + 3, FEATURE_SIZE)
    assert np.abs(together.astype(int) - single).max() <= 1  # sums may round differently in a batch
    assert pipeline.codes([]).shape == (0, FEATURE_SIZE)


@pytest.mark.parametrize("there", [True, False])
def test_cuda_libraries_that_pip_installed_are_looked_for_before_cuda_opens(
    there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime says on standard output what is missing, where the agent prints JSON; before 1.21 it cannot."""
    order: list[str] = []

    def preload(*, msvc: bool) -> None:
        order.append(f"looked, msvc {msvc}")
        print("Failed to load libcudart.so")

    def session(*_: object, **__: object) -> None:
        order.append("opened")
        raise RuntimeError("no CUDA here")

    if there:
        monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    else:
        monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    onnx_runtime._find_cuda_libraries.cache_clear()
    try:
        with pytest.raises(InferenceFailed, match="no CUDA here"):
            OnnxRuntime(backbone(), "b", SHAPE, FEATURE_SIZE, RuntimeSettings(threads=1), provider="cuda")
    finally:
        onnx_runtime._find_cuda_libraries.cache_clear()
    assert order == ["looked, msvc False", "opened"][1 - there :]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("libcudart" in printed.err) == there


def test_a_fixed_batch_size_works_too() -> None:
    model = onnx.load_from_string(backbone())
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    batch = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    fixed, free = run(model.SerializeToString()).features(batch), run(backbone()).features(batch)
    assert np.allclose(fixed, free, atol=1e-4)


class Another:
    """A runtime that computes something else: another backbone, or noise on the right one."""

    name = "another"
    feature_size = FEATURE_SIZE

    def __init__(self, runtime: OnnxRuntime, noise: float) -> None:
        self.runtime, self.noise = runtime, noise

    def features(self, batch: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Features:
        features = self.runtime.features(batch)
        noise = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
        return features + np.float32(self.noise * features.std()) * noise


def test_a_runtime_with_a_little_noise_is_admitted_and_with_much_refused(bundle: Bundle) -> None:
    right = run(bundle.backbone())
    assert check_golden(Another(right, 0.001), bundle) < 0.05
    with pytest.raises(InferenceFailed, match="off by"):
        check_golden(Another(right, 0.3), bundle)


def test_another_backbone_is_refused_by_its_codes(bundle: Bundle) -> None:
    with pytest.raises(InferenceFailed, match="gives codes off by"):
        check_golden(Another(run(backbone(seed=1)), 0.0), bundle)


def test_a_precision_that_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(Incompatible, match="only fp32"):
        open_runtime(bundle, "int8")


def with_external_data(tmp_path: Path) -> bytes:
    model = onnx.load_from_string(backbone())
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * 16 * 3 * 5 * 5))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": str(secret), "offset": "0", "length": str(4 * 16 * 75)}.items():
        tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


def not_finite() -> bytes:
    nodes = [helper.make_node("Div", ["frames", "zero"], ["x"]), helper.make_node("Flatten", ["x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "nan",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3 * SIDE * SIDE])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: b"", "holds no graph"),
        (lambda _: b"not a model" * 50, "is no ONNX"),
        (lambda _: backbone()[:2000], "is no ONNX: it ends too early"),
        (with_external_data, "keeps weights in another file"),
        (lambda _: backbone(feature_size=12), r"gives \(1, 12\) for 1 frames"),
        (lambda _: not_finite(), "not finite|gives"),
    ],
    ids=["empty", "no-model", "truncated", "external-data", "wrong-size", "nan"],
)
def test_a_backbone_that_cannot_serve_is_refused_when_it_is_opened(
    tmp_path: Path, make: object, message: str
) -> None:
    assert callable(make)
    with pytest.raises(InferenceFailed, match=message) as refusal:
        run(make(tmp_path))
    assert "\n" not in str(refusal.value)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InferenceFailed, match="not finite"):
        run(not_finite(), 3 * SIDE * SIDE)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(InferenceFailed, match="failed in ONNX Runtime"):
        run(backbone()).features(np.zeros((1, 4, SIDE, SIDE), np.float32))
