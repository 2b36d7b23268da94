"""The backbone as one ONNX file: made by torch's exporter, checked, and run by ONNX Runtime.

`pixels` (n, 3, H, W) float32 goes in, `features` (n, d) float32 comes out, n is free, and beside them the spatial
maps that the backbone can give, for whoever asks (`export.maps`). The file holds everything
itself and says nothing of the machine that made it: stack traces and paths are taken out, so the same weights
and libraries give the same bytes, and with them the same feature space.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx.checker import ValidationError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from export.backbones import Backbone
from export.maps import WithMaps
from sdk.codes import Features
from sdk.errors import BadFormat, ExportError, ParityFailed
from sdk.onnxfile import check_onnx_file

INPUT: Final = "pixels"
OUTPUT: Final = "features"
OPSET: Final = 18
"""What torch's exporter writes without conversion, and ONNX Runtime reads since 1.14 (JetPack 6 has 1.18)."""
MAX_ONNX_BYTES: Final = 1024**3
"""Half of what one protobuf message can hold, far above what an edge device runs."""
ORT_ERRORS: Final = (
    ort_state.EPFail,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    RuntimeError,
    ValueError,
)
"""What ONNX Runtime raises; most derive from nothing of its own."""
_ERRORS_ONLY: Final = 3

Pixels = npt.NDArray[np.float32]
"""(n, 3, H, W) float32: frames after `sdk.preprocess`."""

_K = TypeVar("_K")


def to_onnx(backbone: Backbone) -> bytes:
    """Return the backbone's ONNX file.

    Raises:
        ExportError: torch cannot express it in ONNX, or the result is not one whole, checked file.
    """
    size = backbone.preprocess
    example = torch.zeros(2, 3, size.height, size.width)
    try:
        with _quiet():
            program = torch.onnx.export(
                WithMaps(backbone.module, [entry.output for entry in backbone.maps]).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT, *(entry.output for entry in backbone.maps)],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ExportError(
            f"torch cannot write {backbone.name} as ONNX: {_one_line(error)}",
            hint="Use another backbone, or another version of torch.",
        ) from error
    if program is None:
        raise ExportError(f"torch gave no ONNX for {backbone.name}", hint="Use another version of torch.")
    model = program.model_proto
    _anonymize(model)
    model.producer_name, model.producer_version = "headway", torch.__version__
    model.doc_string = f"{backbone.name}: pooled features"
    data = bytes(model.SerializeToString(deterministic=True))
    check_onnx(data, backbone.feature_size)
    return data


def check_onnx(data: bytes, feature_size: int) -> None:
    """Check that ONNX bytes are one whole file with our input and output.

    Raises:
        ExportError: they are not.
    """
    again = "This is a fault in the exporter's libraries: try another version of torch or onnxruntime."
    if len(data) > MAX_ONNX_BYTES:
        raise ExportError(f"the ONNX file has {len(data)} bytes, over {MAX_ONNX_BYTES}", hint="Use a smaller one.")
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except (ValidationError, ValueError, RuntimeError) as error:
        raise ExportError(f"the ONNX file is not valid: {_one_line(error)}", hint=again) from error
    try:
        check_onnx_file(data, "the ONNX file")
    except BadFormat as error:
        raise ExportError(str(error), hint=again) from error
    found = [
        (value.name, value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
        for value in [*model.graph.input, *model.graph.output]
    ]
    if found[:2] != [(INPUT, onnx.TensorProto.FLOAT, 4), (OUTPUT, onnx.TensorProto.FLOAT, 2)] or any(
        each[1:] != (onnx.TensorProto.FLOAT, 4)
        for each in found[2:]  # maps
    ):
        raise ExportError(f"the ONNX file takes and gives {found}", hint=again)
    d = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if d not in (0, feature_size) or model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"):
        raise ExportError("the ONNX file has other dimensions than the backbone", hint=again)


def _anonymize(model: onnx.ModelProto) -> None:
    """Take out what torch notes about its own run, source paths of this machine among it."""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


class OnnxBackbone:
    """An ONNX file in ONNX Runtime, on the processor, safe to call from several threads.

    Args:
        model: The file's bytes. From bytes, so that a file with external data finds none.
        threads: Within one call; 0 is all of them.
        exact: Compute quantize and dequantize nodes in float, one by one, as the ONNX standard defines them,
            instead of by this processor's integer kernels.

    Raises:
        ExportError: ONNX Runtime does not take it.
    """

    def __init__(self, model: bytes, *, threads: int = 1, exact: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as devices run it
        if exact:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            # By their place, whoever made the file (docs/bundle.md, section 3).
            self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        except ORT_ERRORS as error:
            raise ExportError(
                f"ONNX Runtime {onnxruntime.__version__} does not load the backbone: {_one_line(error)}",
                hint="Use another backbone, or another version of onnxruntime.",
            ) from error

    def features(self, pixels: Pixels) -> Features:
        """Return features (n, d) of preprocessed frames (n, 3, H, W).

        Raises:
            ParityFailed: ONNX Runtime cannot run it, or gives what is not finite, where torch did.
        """
        try:
            features = np.asarray(self._session.run([self._output], {self._input: pixels})[0], np.float32)
        except ORT_ERRORS as error:
            raise ParityFailed(
                f"ONNX Runtime {onnxruntime.__version__} cannot run the backbone: {_one_line(error)}",
                hint="Use another backbone, or another version of onnxruntime.",
            ) from error
        if not np.isfinite(features).all():
            raise ParityFailed("the ONNX backbone gives numbers that are not finite", hint="Use --precision fp32.")
        return features


def cores() -> int:
    """Return the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def latencies_ms(models: Mapping[_K, bytes], frame: Pixels, *, rounds: int = 30) -> dict[_K, float]:
    """Return the median time of one frame (1, 3, H, W) through each model, all cores, no batch.

    The models take turns, so that whatever else the machine does falls on all of them alike.
    """
    runners = {key: OnnxBackbone(model, threads=0) for key, model in models.items()}
    taken: dict[_K, list[float]] = {key: [] for key in runners}
    for turn in range(rounds + 3):
        for key, runner in runners.items():
            start = time.perf_counter()
            runner.features(frame)
            if turn >= 3:  # the first calls allocate
                taken[key].append((time.perf_counter() - start) * 1e3)
    return {key: statistics.median(values) for key, values in taken.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter from the terminal; what matters comes as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
