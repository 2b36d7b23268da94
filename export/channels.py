"""What goes into a network's layers, channel by channel, when images run through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

from export.graph import INPUT, Pixels

Measure = Callable[[npt.NDArray[np.float32], tuple[int, ...]], npt.NDArray[Any]]
"""A number for each channel: of values and the axes to take together."""


def mean(values: npt.NDArray[np.float32], axes: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the mean over these axes."""
    return np.asarray(values.mean(axes, dtype=np.float64))


def largest(values: npt.NDArray[np.float32], axes: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the largest absolute value over these axes."""
    return np.asarray(np.abs(values).max(axes))


def of_inputs(
    model: onnx.ModelProto, layers: Sequence[onnx.NodeProto], images: Sequence[Pixels], measure: Measure
) -> dict[str, npt.NDArray[np.float64]]:
    """Return a measure (images, channels) of each tensor that goes into these layers.

    Cost: one pass of the network for each image; they go through one by one, and nothing else is kept of them.

    Args:
        model: An fp32 graph.
        layers: Some of its nodes.
        images: (1, 3, H, W) each.
        measure: `mean` or `largest`.
    """
    axis_of = {node.input[0]: channel_of_input(node) for node in layers}
    wanted = sorted(set(axis_of) - {INPUT})
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    have = {output.name for output in watched.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in have)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rows: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in axis_of}
    for pixels in images:
        found = session.run(wanted, {INPUT: pixels}) if wanted else []
        for name, value in [(INPUT, pixels), *zip(wanted, found, strict=True)]:
            if name in axis_of:
                kept = axis_of[name] % value.ndim
                rows[name].append(measure(value, tuple(i for i in range(value.ndim) if i != kept)))
    return {name: np.array(values, np.float64) for name, values in rows.items()}


def channel_of_input(node: onnx.NodeProto) -> int:
    """Return the axis of the channels in what goes into a layer."""
    return -1 if node.op_type in ("MatMul", "Gemm") else 1
