"""The fp32 backbone as int8: static quantize and dequantize nodes by ONNX Runtime, calibrated on real images.

Weights are symmetric and per channel, activations 8-bit unsigned. Two forms are made, because no form is best
everywhere; the pipeline keeps one by what it measures:

- `NARROW`: signed weights of 7 bits. Processors without a dot-product instruction (x86 before VNNI) add two
  products in 16 bits, which 8-bit weights overflow: on such a machine full-range signed weights gave features with
  a cosine of 0.89 to what the file says, 7-bit ones 0.998. It is the fastest there and right everywhere.
- `WIDE`: unsigned weights of 8 bits, which ONNX Runtime multiplies without that overflow, slower there.

Networks that normalise while they run (transformers) have activations with outliers: there only products with
weights are quantized. Quantizing everything brought vit_tiny's features to a cosine of 0.07, this way to 0.85.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.checker import ValidationError
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.graph import INPUT, ORT_ERRORS, Pixels, check_onnx
from sdk.errors import CalibrationFailed, ExportError

CALIBRATION_IMAGES: Final = 120
"""Twice as many changed no left-out score on the sets we have; time is linear in them."""
_NORMALISING: Final = frozenset({"LayerNormalization", "Softmax", "Gelu", "Erf", "InstanceNormalization"})
_WEIGHTED: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm")


class Weights(str, Enum):
    """How int8 weights are stored; see the module."""

    NARROW = "7-bit signed"
    WIDE = "8-bit unsigned"


def stratified(labels: Sequence[str], count: int) -> list[int]:
    """Return about `count` row numbers, as evenly from all classes as they have rows, spread over each.

    >>> stratified(["a"] * 6 + ["b"] * 2, 4)
    [0, 5, 6, 7]
    """
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    # The rarest first: what they cannot fill is left to the others.
    chosen: list[int] = []
    left = len(rows_of)
    for rows in sorted(rows_of.values(), key=len):
        share = max(1, (count - len(chosen)) // left)
        left -= 1
        at = np.unique(np.linspace(0, len(rows) - 1, min(share, len(rows))).round().astype(int))
        chosen += [rows[i] for i in at]
    return sorted(chosen)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    def __init__(self, batches: Iterable[Pixels]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def to_int8(fp32: bytes, images: Iterable[Pixels], weights: Weights, feature_size: int) -> bytes:
    """Return the int8 form of an fp32 ONNX file.

    Args:
        fp32: From `export.graph.to_onnx`.
        images: Preprocessed training images, (1, 3, H, W) each.
        weights: Which of the two forms.
        feature_size: d, for the check of the result.

    Raises:
        CalibrationFailed: no images, or no usable range for some tensor.
    """
    images = list(images)
    fp32_hint = "Export with --precision fp32."
    if not images:
        raise CalibrationFailed("there are no images to calibrate on", hint=fp32_hint)
    try:
        normalises = any(node.op_type in _NORMALISING for node in onnx.load_from_string(fp32).graph.node)
        options: dict[str, Any] = {"WeightSymmetric": True}
        if normalises:
            options["MatMulConstBOnly"] = True
        with tempfile.TemporaryDirectory(prefix="headway-int8-") as folder, _quiet():
            source, prepared, target = (Path(folder) / f"{n}.onnx" for n in ("fp32", "prepared", "int8"))
            source.write_bytes(fp32)
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_WEIGHTED) if normalises else None,
                per_channel=True,
                reduce_range=weights is Weights.NARROW,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8 if weights is Weights.NARROW else QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=options,
            )
            model = onnx.load(str(target))
    except (*ORT_ERRORS, KeyError, TypeError, AssertionError, ValidationError, OSError) as error:
        raise CalibrationFailed(f"quantization failed: {_one_line(error)}", hint=fp32_hint) from error
    _check_ranges(model)
    del model.metadata_props[:]
    model.producer_name = "headway"
    data = bytes(model.SerializeToString(deterministic=True))
    try:
        check_onnx(data, feature_size)
    except ExportError as error:
        raise CalibrationFailed(f"quantization gave a bad file: {error}", hint=fp32_hint) from error
    return data


def _check_ranges(model: onnx.ModelProto) -> None:
    """Refuse scales that are zero or not finite: what they scale would be lost without a word."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantized = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not any(node.op_type == "QuantizeLinear" for node in quantized):
        raise CalibrationFailed("nothing in this backbone can be quantized", hint="Export with --precision fp32.")
    for node in quantized:
        tensor = constants.get(node.input[1])
        scale: npt.NDArray[Any] = np.zeros(0) if tensor is None else numpy_helper.to_array(tensor)
        if scale.size == 0 or not (np.isfinite(scale).all() and (scale > 0).all()):
            raise CalibrationFailed(
                f"calibration found no usable range for {node.input[0][:80]}",
                hint="Check that the calibration images are real ones, or export with --precision fp32.",
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's advice on how to quantize, given through the root logger, from the terminal."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, on ranges that are refused below
            yield
    finally:
        root.setLevel(level)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
