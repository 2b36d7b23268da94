"""The fp32 backbone as int8, by ONNX Runtime's quantizer, calibrated on real images; and as fp16.

Calibrating (what range does each tensor need?) and placing nodes (which tensors get one?) are apart, so that the
ranges are measured once and layers can be left out many times. `export.profiles` says what goes where.

Three ways to choose a range are kept, because none is best for every network (decision record 0013): the extremes
seen, all but a few values in a hundred thousand, and the range that loses least information. `export.int8`
compares them by what they do to the features.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.checker import ValidationError
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    TensorsData,
    create_calibrator,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.bias import Means, correct_biases, input_means
from export.graph import INPUT, ORT_ERRORS, Pixels, check_onnx
from export.profiles import (
    DEQUANTIZE,
    PLACEMENTS,
    QUANTIZE,
    WEIGHTED,
    Profile,
    check_placement,
    kept_float,
    normalises,
    residual_sides,
    weighted,
)
from export.smooth import smooth
from sdk.errors import CalibrationFailed, ExportError

CALIBRATION_IMAGES: Final = 60
"""Time is linear in them, and histograms take about a third of a second for an image."""
_HINT: Final = "Export with --precision fp32."
_SUM: Final = "Add"
_FAILURES: Final = (*ORT_ERRORS, KeyError, TypeError, AssertionError, IndexError, ValidationError, OSError)
"""What the quantizer raises on graphs and numbers that it does not expect."""


class Method(str, Enum):
    """How the range of a tensor is chosen from what calibration images give. Values stand in reports."""

    MINMAX = "min-max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


_SETTINGS: Final[dict[Method, tuple[CalibrationMethod, dict[str, Any]]]] = {
    Method.MINMAX: (CalibrationMethod.MinMax, {}),
    # One-sided activations keep their zero; 99.9 % cost vit_tiny 0.19 of cosine where 99.999 % gained 0.02.
    Method.PERCENTILE: (
        CalibrationMethod.Percentile,
        {"symmetric": False, "percentile": 99.999, "num_bins": 2048},
    ),
    # ONNX Runtime's own number of bins: with 512, vit_tiny took five times as long.
    Method.ENTROPY: (CalibrationMethod.Entropy, {"symmetric": False, "num_bins": 128, "num_quantized_bins": 128}),
}


@dataclass(frozen=True)
class Prepared:
    """An fp32 graph as the quantizer takes it: constants folded, shapes known.

    Attributes:
        model: The graph.
        layers: Names of the nodes with a constant weight, in the order they run.
        weight_bytes: Of each layer, in fp32.
    """

    model: onnx.ModelProto
    layers: tuple[str, ...]
    weight_bytes: tuple[int, ...]

    @property
    def normalises(self) -> bool:
        """See `export.profiles.normalises`."""
        return normalises(self.model.graph)


@dataclass(frozen=True)
class Ranges:
    """The range of every tensor that may be quantized, as the quantizer takes them.

    Attributes:
        method: How they were chosen.
        of_tensor: onnxruntime's TensorsData.
        means: Of what goes into the layers, for their biases; empty where those are to stay as they are.
    """

    method: Method
    of_tensor: Any  # the library has no types
    means: Means = field(default_factory=dict)


def stratified(labels: Sequence[str], count: int, groups: Sequence[str] = ()) -> list[int]:
    """Return about `count` row numbers, as evenly from all classes as they have rows, spread over each.

    Args:
        labels: Class of each row.
        count: How many to choose.
        groups: Group of each row: within a class, every group gives a row before any gives another.

    >>> stratified(["a"] * 6 + ["b"] * 2, 4)
    [0, 5, 6, 7]
    >>> stratified(["a"] * 6, 2, ["p", "p", "p", "p", "p", "q"])
    [0, 5]
    """
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    # The rarest first: what they cannot fill is left to the others.
    chosen: list[int] = []
    left = len(rows_of)
    for rows in sorted(rows_of.values(), key=len):
        share = min(max(1, (count - len(chosen)) // left), len(rows))
        left -= 1
        in_turn = _in_turn(rows, groups) if groups else rows
        wanted = in_turn[: max(share, len({groups[row] for row in rows}))] if groups else in_turn
        at = np.unique(np.linspace(0, len(wanted) - 1, share).round().astype(int))
        chosen += [wanted[i] for i in at]
    return sorted(chosen)


def _in_turn(rows: Sequence[int], groups: Sequence[str]) -> list[int]:
    """Return the rows, first one of every group, then the second of every group, and so on."""
    members: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        members[groups[row]].append(row)
    return [row for turn in zip_longest(*members.values()) for row in turn if row is not None]


class _One(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    def __init__(self, pixels: Pixels) -> None:
        self._left = iter([{INPUT: pixels}])

    def get_next(self) -> dict[str, Pixels] | None:
        return next(self._left, None)


def prepare(fp32: bytes) -> Prepared:
    """Return an fp32 ONNX file from `export.graph.to_onnx`, ready for `calibrate` and `to_int8`.

    Raises:
        CalibrationFailed: ONNX Runtime cannot, or there is no layer to quantize.
    """
    with _translated(), tempfile.TemporaryDirectory(prefix="headway-int8-") as folder, _quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "prepared.onnx"
        source.write_bytes(fp32)
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        model = onnx.load(str(target))
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{place}_{node.op_type}"  # what is left out is left out by name
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = weighted(model.graph)
    if not layers:
        raise CalibrationFailed("nothing in this backbone can be quantized", hint=_HINT)
    sizes = [4 * int(np.prod(constants[node.input[1]].dims)) for node in layers]
    return Prepared(model, tuple(node.name for node in layers), tuple(sizes))


def smoothed(prepared: Prepared, images: Sequence[Pixels]) -> Prepared:
    """Return the graph with activations that lose less in 8 bits, where it normalises; else the graph as it is.

    Raises:
        CalibrationFailed: no images, or ONNX Runtime cannot run one.
    """
    if not prepared.normalises:
        return prepared
    if not images:
        raise CalibrationFailed("there are no images to calibrate on", hint=_HINT)
    with _translated():
        return replace(prepared, model=smooth(prepared.model, images))


def calibrate(prepared: Prepared, images: Sequence[Pixels], method: Method) -> Ranges:
    """Return the range of every tensor that a profile may quantize, and means, from what the images give.

    Cost: two passes of the fp32 network for each image; they go through one by one, and nothing is kept of them.

    Args:
        prepared: The graph.
        images: Preprocessed training images, (1, 3, H, W) each.
        method: How ranges are chosen.

    Raises:
        CalibrationFailed: no images, or no usable range for some tensor.
    """
    if not images:
        raise CalibrationFailed("there are no images to calibrate on", hint=_HINT)
    kinds = list(WEIGHTED) if prepared.normalises else _all_kinds()
    how, options = _SETTINGS[method]
    with _translated(), tempfile.TemporaryDirectory(prefix="headway-int8-") as folder, _quiet():
        source = Path(folder) / "prepared.onnx"
        onnx.save(prepared.model, str(source))
        calibrator = create_calibrator(
            source,
            kinds,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=how,
            extra_options=options,
        )
        for pixels in images:
            calibrator.collect_data(_One(pixels))
        return Ranges(method, calibrator.compute_data(), input_means(prepared.model, images))


def on_training_grid(ranges: Ranges, profile: Profile) -> Ranges:
    """Return the ranges as fake quantizers see them: symmetric where there are negative values.

    There are no means: weights that were trained on their own grid need no correction for it. For `cpu` the offset
    of such a tensor becomes 128 and its scale that of a signed byte; `tensorrt` is symmetric anyhow.
    """
    if profile is Profile.TENSORRT:
        return Ranges(ranges.method, ranges.of_tensor)
    found: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {}
    for name, spread in ranges.of_tensor.items():
        low, high = (float(np.ravel(value)[0]) for value in spread.range_value)
        if low < 0:
            largest = max(-low, high)
            low, high = -largest * 128 / 127, largest
        found[name] = (np.array(low, np.float32), np.array(high, np.float32))
    return Ranges(ranges.method, TensorsData(CalibrationMethod.MinMax, found))


def to_int8(
    prepared: Prepared, ranges: Ranges, profile: Profile, feature_size: int, *, without: Sequence[str] = ()
) -> bytes:
    """Return an int8 form of the graph.

    Args:
        prepared: The graph.
        ranges: From `calibrate`.
        profile: What it is made for.
        feature_size: d, for the check of the result.
        without: Layers, of `prepared.layers`, that stay fp32, beside those that the profile leaves.

    Raises:
        CalibrationFailed: the quantizer cannot, a range is unusable, or the result breaks the profile's rules.
    """
    placement = PLACEMENTS[profile]
    left = {*without, *kept_float(prepared.model.graph, profile)}
    everything = placement.everything and not prepared.normalises
    options = dict(placement.options)
    # By name: the quantizer's own MatMulConstBOnly is not heeded where nodes are placed, and attention, a product
    # of two activations, would be quantized too.
    layers = [] if everything else [name for name in prepared.layers if name not in left]
    if prepared.normalises:
        # Behind a product comes a float sum: writing 8 bits between would cost accuracy and gain no time.
        options["OpTypesToExcludeOutputQuantization"] = list(WEIGHTED)
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    correct_biases(model.graph, ranges.means, [name for name in prepared.layers if name not in left], profile)
    with _translated(), _quiet():
        quantizer = QDQQuantizer(
            model,
            True,  # per channel
            placement.reduce_range,
            placement.weight,
            placement.activation,
            ranges.of_tensor,
            layers,
            sorted(left),
            _all_kinds() if everything else list(WEIGHTED),
            options,
        )
        quantizer.quantize_model()
        model = quantizer.model.model
        if profile is Profile.TENSORRT and not prepared.normalises:
            _quantize_skips(model.graph, ranges)
    _check_ranges(model)
    check_placement(model, profile)
    return _finished(model, feature_size)


def to_fp16(fp32: bytes, feature_size: int) -> bytes:
    """Return the fp16 form of an fp32 ONNX file: half the size; input and output stay float32.

    It is made for GPUs and TensorRT, whose fp16 kernels take it as it is. ONNX Runtime runs it on a processor
    too, but mostly by converting to fp32 and back at every layer, which is no faster.

    Raises:
        CalibrationFailed: the converter cannot, or the result is not one whole, checked file.
    """
    with _translated(), _quiet():
        model = convert_float_to_float16(onnx.load_from_string(fp32), keep_io_types=True)
    return _finished(model, feature_size)


def _quantize_skips(graph: onnx.GraphProto, ranges: Ranges) -> None:
    """Quantize the other side of every residual sum, where nothing has yet."""
    maker = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    made: dict[str, str] = {}
    for node in [n for n in graph.node if n.op_type == _SUM]:
        sides = residual_sides(node, maker, users)
        if sides is None or maker[sides[1]].op_type == DEQUANTIZE:
            continue
        skip = sides[1]
        if skip not in made:
            if skip not in ranges.of_tensor:
                raise CalibrationFailed(f"calibration knows no range for {skip[:80]}", hint=_HINT)
            low, high = (float(np.ravel(value)[0]) for value in ranges.of_tensor[skip].range_value)
            scale = np.array(max(-low, high) / 127, np.float32)
            names = [f"{skip}_{part}" for part in ("skip_scale", "skip_zero", "skip_int8", "skip_float")]
            graph.initializer.append(numpy_helper.from_array(scale, names[0]))
            graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), names[1]))
            graph.node.append(helper.make_node(QUANTIZE, [skip, *names[:2]], [names[2]], name=f"{skip}_quantize"))
            graph.node.append(
                helper.make_node(DEQUANTIZE, [names[2], *names[:2]], [names[3]], name=f"{skip}_dequantize")
            )
            made[skip] = names[3]
        node.input[1 if node.input[1] == skip else 0] = made[skip]


def _all_kinds() -> list[str]:
    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _finished(model: onnx.ModelProto, feature_size: int) -> bytes:
    """Return the file's bytes, checked, and silent about the libraries' own notes."""
    ONNXModel(model).topological_sort()  # the libraries append their nodes at the end
    del model.metadata_props[:]
    model.producer_name = "headway"
    data = bytes(model.SerializeToString(deterministic=True))
    try:
        check_onnx(data, feature_size)
    except ExportError as error:
        raise CalibrationFailed(f"quantization gave a bad file: {error}", hint=_HINT) from error
    return data


def _check_ranges(model: onnx.ModelProto) -> None:
    """Refuse scales that are zero or not finite: what they scale would be lost without a word."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantized = [node for node in model.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE)]
    if not any(node.op_type == QUANTIZE for node in quantized):
        raise CalibrationFailed("nothing in this backbone can be quantized", hint=_HINT)
    for node in quantized:
        tensor = constants.get(node.input[1])
        scale: npt.NDArray[Any] = np.zeros(0) if tensor is None else numpy_helper.to_array(tensor)
        if scale.size == 0 or not (np.isfinite(scale).all() and (scale > 0).all()):
            raise CalibrationFailed(
                f"calibration found no usable range for {node.input[0][:80]}",
                hint="Check that the calibration images are real ones, or export with --precision fp32.",
            )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what ONNX Runtime's quantizer raises into our own error."""
    try:
        yield
    except CalibrationFailed:
        raise
    except _FAILURES as error:
        raise CalibrationFailed(f"quantization failed: {_one_line(error)}", hint=_HINT) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's advice on how to quantize, given through the root logger, from the terminal."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of numpy, on ranges that are refused later
            yield
    finally:
        root.setLevel(level)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
