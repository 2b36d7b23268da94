"""What TensorRT would not take is told before anybody waits for an engine; engines lie beside the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph import to_onnx
from export.profiles import Profile
from export.progress import Log
from export.quantize import Method, calibrate, prepare, to_int8
from export.report import TensorRtReport
from export.tensorrt import check_tensorrt, engines_beside, tensorrt_reports
from sdk.bundle import Bundle
from sdk.errors import TensorRtMissing
from sdk.tensorrt_api import Library, open_library
from tests.commands import headway
from tests.tensorrt_sim import SimTensorRt, sim_library
from tests.tiny import backbone, tiny_bundle

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("graphs_once")]


def quantized() -> onnx.ModelProto:
    """The tiny backbone with its first weights and its input as TensorRT wants them: explicit symmetric int8."""
    model = onnx.load_from_string(backbone())
    graph = model.graph
    weights = numpy_helper.to_array(next(t for t in graph.initializer if t.name == "w1"))
    scales = np.abs(weights).max((1, 2, 3)) / 127
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(0.02, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
            numpy_helper.from_array(scales.astype(np.float32), "ws"),
            numpy_helper.from_array(np.zeros(len(scales), np.int8), "wz"),
            numpy_helper.from_array(np.rint(weights / scales[:, None, None, None]).astype(np.int8), "wq"),
        ]
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["frames", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
    ]
    first = graph.node[0]
    first.input[:] = ["x", "w"]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(model)
    return model


def tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found


def put(model: onnx.ModelProto, name: str, values: object) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def test_our_fp32_and_symmetric_int8_are_taken() -> None:
    assert check_tensorrt(backbone()) == []
    assert check_tensorrt(quantized().SerializeToString()) == []


def test_what_torch_writes_of_a_transformer_is_taken_and_the_cpus_int8_is_not() -> None:
    from export.backbones import load_backbone

    network = load_backbone("test_vit", "none", input_size_px=64)
    fp32 = to_onnx(network)
    assert check_tensorrt(fp32) == []
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    prepared = prepare(fp32)
    ranges = calibrate(prepared, [image], Method.MINMAX)
    told = check_tensorrt(to_int8(prepared, ranges, Profile.CPU, network.feature_size))
    assert any(words.startswith("QuantizeLinear of uint8, not int8") for words in told)
    assert check_tensorrt(to_int8(prepared, ranges, Profile.TENSORRT, network.feature_size)) == []


def uint8_activations(model: onnx.ModelProto) -> None:
    put(model, "z", np.uint8(0))  # the parser warns and computes in int8, half the range


def asymmetric(model: onnx.ModelProto) -> None:
    put(model, "z", np.int8(-3))


def one_channel_asymmetric(model: onnx.ModelProto) -> None:
    zeros = np.zeros(16, np.int8)
    zeros[5] = 1
    put(model, "wz", zeros)


def no_zero_point(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[2]


def int32_bias(model: onnx.ModelProto) -> None:
    put(model, "wq", numpy_helper.to_array(tensor(model, "wq")).astype(np.int32))
    del model.graph.node[2].input[2]


def scale_of_nothing(model: onnx.ModelProto) -> None:
    put(model, "s", np.float32(0))


def computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "x"


def other_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "NonZero"


def other_domain(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "com.microsoft"


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 23


def external(model: onnx.ModelProto) -> None:
    tensor(model, "w2").data_location = TensorProto.EXTERNAL


def double_weights(model: onnx.ModelProto) -> None:
    put(model, "w2", numpy_helper.to_array(tensor(model, "w2")).astype(np.float64))


def free_height(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"


def half_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def computed_axes(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ReduceMean", ["a", "b"], ["m"]))


def pool_of_one_dimension(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("MaxPool", ["a"], ["m"], kernel_shape=[2]))


def where_the_maximum_was(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("MaxPool", ["a"], ["m", "where"], kernel_shape=[2, 2]))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (uint8_activations, "QuantizeLinear of uint8, not int8"),
        (asymmetric, "QuantizeLinear is not symmetric"),
        (one_channel_asymmetric, "DequantizeLinear is not symmetric"),
        (no_zero_point, "QuantizeLinear has no constant zero point"),
        (int32_bias, "DequantizeLinear of int32, not int8"),
        (scale_of_nothing, "QuantizeLinear has a scale that is not above 0"),
        (computed_scale, "QuantizeLinear has a scale that is no float constant"),
        (other_operator, "operator NonZero is not supported"),
        (other_domain, "operator com.microsoft:Flatten is not supported"),
        (newer_opset, "opset 23 is not one of 9 to 20"),
        (external, "weights stand in another file"),
        (double_weights, "weights are double"),
        (free_height, "frames has a free size beside its batch"),
        (half_output, "features is float16, not float32"),
        (computed_axes, "ReduceMean computes its axes"),
        (pool_of_one_dimension, "MaxPool has 1 dimensions, not 2 or 3"),
        (where_the_maximum_was, "MaxPool has a second output"),
    ],
)
def test_what_tensorrt_would_not_take_is_told(harm: Callable[[onnx.ModelProto], None], words: str) -> None:
    model = quantized()
    harm(model)
    assert any(told.startswith(words) for told in check_tensorrt(model.SerializeToString()))


# Engines of a bundle


class Quiet:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def stage(self, words: str) -> None: ...

    def step(self, done: int, total: int, note: str = "") -> None:
        assert (total, note) == (100, "")
        self.steps.append(done)

    def say(self, line: str) -> None: ...


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("export-tensorrt") / "bundle", per_class=8)


def reports(bundle: Bundle, library: Library | None, folder: Path) -> tuple[list[TensorRtReport], Log, Quiet]:
    quiet = Quiet()
    log = Log(quiet)
    return tensorrt_reports(bundle, library, folder, log), log, quiet


def test_an_engine_is_built_beside_the_bundle_and_kept(bundle: Bundle, tmp_path: Path) -> None:
    (made,), log, quiet = reports(bundle, sim_library(), tmp_path)
    assert made.engine is not None
    assert (tmp_path / made.engine).is_file()
    assert (made.gpu, made.version, made.kept) == ("Orin", "10.3.0", False)
    assert quiet.steps[-1] == 100
    assert "engine" in log.seconds
    (again,), _, _ = reports(bundle, sim_library(), tmp_path)
    assert (again.engine, again.kept) == (made.engine, True)
    assert engines_beside(Path("x/bundle")) == Path("x/bundle.engines")


def test_without_a_library_the_files_are_checked_and_nothing_is_built(bundle: Bundle, tmp_path: Path) -> None:
    (made,), log, _ = reports(bundle, None, tmp_path / "engines")
    assert (made.problems, made.engine, log.warnings) == ([], None, [])
    assert not (tmp_path / "engines").exists()


def test_what_cannot_be_built_is_a_warning_and_the_bundle_stays(bundle: Bundle, tmp_path: Path) -> None:
    sim = SimTensorRt()
    sim.fails = "no implementation"
    (made,), log, _ = reports(bundle, sim_library(sim), tmp_path)
    assert made.engine is None
    assert "no implementation" in made.note
    assert log.warnings == [f"There is no fp32 engine: {made.note}."]
    assert Bundle.open(bundle.path)


def test_engine_without_tensorrt_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        open_library()
    except TensorRtMissing as error:
        told = str(error)
    else:
        pytest.skip("TensorRT and a GPU are here")
    ended = headway(
        capsys, "export", tmp_path / "nothing", "--backbone", "test_resnet", "--out", tmp_path / "b", "--engine"
    )
    assert ended.code == 2
    assert ended.err.startswith(f"error: {told}\nhint: ")
