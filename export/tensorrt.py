"""TensorRT on the server: does an ONNX file keep to what TensorRT takes, and its engine for this machine's GPU.

The check needs no GPU and no TensorRT. It reads the file against what NVIDIA's ONNX parser states for TensorRT
10.1 (operators, opsets 9 to 20, data types: docs/operators.md of onnx-tensorrt at its 10.1 release; the oldest
that devices have is 10.3), and against how that parser treats quantization. Two of its habits are traps: a uint8
zero point is taken for int8 with a mere warning, and without a zero point ONNX means uint8. Both are refused here,
before they cost accuracy that nobody can find.

Passing says that the parser should take the file, not that an engine is fast or right: a device finds out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.progress import Log
from export.report import TensorRtReport
from sdk.bundle import Bundle
from sdk.engine import EngineCache, prepare_engine
from sdk.errors import EngineError
from sdk.tensorrt_api import Library

OPSETS: Final = range(9, 21)
# fmt: off
OPERATORS: Final = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DeformConv", "DepthToSpace", "DequantizeLinear", "Div",
    "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool",
    "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool", "Mean",
    "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "PRelu", "Pad",
    "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
    "Resize", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze",
    "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze",
    "Upsample", "Where", "Xor",
))
# fmt: on
"""What the parser supports, without control flow, random numbers and results whose size depends on values."""
_TYPES: Final = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.INT8,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.BOOL,
    }
)
_CONSTANT_INPUT: Final = {"Pad": 3, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1, "CumSum": 1, "TopK": 1}
"""Input, by position, that must be a constant; all Reduce operators have their axes at 1."""
_QUANTIZED: Final = ("QuantizeLinear", "DequantizeLinear")


def engines_beside(bundle: Path) -> Path:
    """Return the folder of a bundle's engines: beside it, since a bundle holds nothing but what it lists."""
    return bundle.with_name(f"{bundle.name}.engines")


def tensorrt_reports(bundle: Bundle, library: Library | None, folder: Path, log: Log) -> list[TensorRtReport]:
    """Return what TensorRT makes of each precision of a bundle, with engines built where a library is given.

    Args:
        bundle: Written already: an engine is named by the digest of the very file.
        library: TensorRT of this machine; None checks the files only.
        folder: Where engines are kept.
        log: Told of the progress, and warned of what cannot be built.
    """
    reports = []
    for entry in bundle.manifest.precisions:
        report = TensorRtReport(
            precision=entry.precision, problems=check_tensorrt(bundle.backbone(entry.precision))
        )
        if library is not None:
            report = _with_engine(report, bundle, library, EngineCache(folder), log)
        reports.append(report)
    return reports


def _with_engine(
    report: TensorRtReport, bundle: Bundle, library: Library, cache: EngineCache, log: Log
) -> TensorRtReport:
    precision = report.precision
    if report.problems:
        note = f"TensorRT does not take the {precision} backbone: {report.problems[0]}"
        log.warn(f"{note}.")
        return msgspec.structs.replace(report, note=note)

    def on_progress(_words: str, share: float) -> None:
        log.listener.step(math.floor(100 * share), 100)

    with log.stage("engine", f"Building a TensorRT engine ({precision}) for {library.gpu.name}"):
        try:
            made = prepare_engine(library, cache, bundle, precision, on_progress=on_progress)
        except EngineError as error:
            log.warn(f"There is no {precision} engine: {error}.")
            return msgspec.structs.replace(report, note=str(error))
    if made.note:
        log.warn(made.note)
    return msgspec.structs.replace(
        report,
        engine=made.key.name,
        gpu=library.gpu.name,
        version=library.version,
        kept=made.kept,
        seconds=round(made.seconds, 1),
        note=made.note,
    )


def check_tensorrt(model: bytes) -> list[str]:
    """Return what TensorRT 10 and 11 would not take of an ONNX file, in words; empty where all is well."""
    graph = onnx.load_from_string(model)
    constants = dict(_constants(graph.graph))
    found = Counter[str]()
    found.update(_of_the_file(graph))
    for node in graph.graph.node:
        found.update(_of_a_node(node, constants))
    return [words if count == 1 else f"{words} ({count} times)" for words, count in found.items()]


def _of_the_file(model: onnx.ModelProto) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version not in OPSETS:
            yield f"opset {opset.version} is not one of {OPSETS[0]} to {OPSETS[-1]}"
    zero_points = {
        node.input[2] for node in model.graph.node if node.op_type in _QUANTIZED and len(node.input) > 2
    }
    for tensor in model.graph.initializer:
        if tensor.name in zero_points:
            continue  # told with the node
        if tensor.data_location == TensorProto.EXTERNAL:
            yield "weights stand in another file"
        elif tensor.data_type not in _TYPES:
            yield f"weights are {_type_name(tensor.data_type)}"
    for value in [*model.graph.input, *model.graph.output]:
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type != TensorProto.FLOAT:
            yield f"{value.name} is {_type_name(tensor_type.elem_type)}, not float32"
        if any(not dim.HasField("dim_value") for dim in tensor_type.shape.dim[1:]):
            yield f"{value.name} has a free size beside its batch"


def _of_a_node(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Iterator[str]:
    kind = node.op_type
    if node.domain not in ("", "ai.onnx") or kind not in OPERATORS:
        yield f"operator {node.domain + ':' if node.domain else ''}{kind} is not supported"
        return
    if kind in _QUANTIZED:
        yield from _of_quantization(node, constants)
    at = 1 if kind.startswith("Reduce") else _CONSTANT_INPUT.get(kind)
    if at is not None and len(node.input) > at and node.input[at] and node.input[at] not in constants:
        yield f"{kind} computes its axes"
    attributes = {a.name: a for a in node.attribute}
    if kind in ("Conv", "ConvTranspose", "AveragePool", "MaxPool"):
        shape = attributes.get("kernel_shape")
        if shape is not None and len(shape.ints) not in (2, 3):
            yield f"{kind} has {len(shape.ints)} dimensions, not 2 or 3"
    if kind == "AveragePool" and any(d != 1 for a in node.attribute if a.name == "dilations" for d in a.ints):
        yield "AveragePool is dilated"
    if kind in ("MaxPool", "LayerNormalization") and any(node.output[1:]):
        yield f"{kind} has a second output"


def _of_quantization(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> Iterator[str]:
    """Yield what is not explicit symmetric int8."""
    kind = node.op_type
    scale = constants.get(node.input[1])
    if scale is None or scale.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        yield f"{kind} has a scale that is no float constant"
    else:
        values = numpy_helper.to_array(scale)
        if not (np.isfinite(values).all() and (values > 0).all()):
            yield f"{kind} has a scale that is not above 0"
    named = len(node.input) > 2 and bool(node.input[2])
    zero = constants.get(node.input[2]) if named else None
    source = constants.get(node.input[0])
    if not named and kind == "DequantizeLinear" and source is not None:
        zero_type: int | None = source.data_type  # the type is the weights' own, and the zero point 0
    else:
        zero_type = None if zero is None else zero.data_type
    if zero_type is None:
        yield f"{kind} has no constant zero point: ONNX then means uint8"
    elif zero_type != TensorProto.INT8:
        yield f"{kind} of {_type_name(zero_type)}, not int8"
    elif zero is not None and np.any(numpy_helper.to_array(zero)):
        yield f"{kind} is not symmetric: its zero point is not 0"


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t
                elif attribute.name in ("value_int", "value_ints"):
                    ints = list(attribute.ints) or [attribute.i]
                    yield node.output[0], numpy_helper.from_array(np.array(ints, np.int64))


def _type_name(elem_type: int) -> str:
    return str(TensorProto.DataType.Name(elem_type)).lower()
